"""How much memory a training step needs: an estimate from the sizes of the network's maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from partialseg.models.stages import kernel_sizes
from partialseg.training.network_config import UNetConfig

#: Maps that stay for the backward pass of a convolution, its norm and its leaky ReLU, which are one layer.
MAPS_OF_A_CONVOLUTION = 2
#: As many times more stay of a residual block: norms without a leaky ReLU, what is pooled and added.
RESIDUAL = 1.4
#: Largest maps that exist besides: gradients on their way, and what a convolution works in.
MAPS_IN_PASSING = 4
#: Of logits, softmax, candidates and their gradients, in float32, for each class and voxel.
MAPS_OF_A_CLASS = 6
#: What a process takes before it has a network, in bytes: libraries, CUDA context, input pipeline.
RUNTIME = 900e6
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step.

    Attributes:
        weights: Weights, gradients and what the optimiser keeps.
        maps: What stays for the backward pass.
        passing: What exists for a moment.
        runtime: What any training process takes.
    """

    weights: float
    maps: float
    passing: float
    runtime: float = RUNTIME

    @property
    def gigabytes(self) -> float:
        """All of it, in 10^9 bytes."""
        return (self.weights + self.maps + self.passing + self.runtime) / 1e9


def estimate(
    network: UNetConfig,
    patch_size: Sequence[int],
    batch_size: int,
    num_classes: int,
    precision: str = "float32",
    copies: int = 3,
) -> Memory:
    """Estimate what a step needs, on one device.

    Args:
        network: A U-Net.
        patch_size: Voxels `(depth, height, width)`.
        batch_size: Patches on this device at a time.
        num_classes: Background included.
        precision: In which maps are kept.
        copies: Of the weights beside themselves: gradient, and one for SGD, two for Adam, one for a running mean.

    Returns:
        The estimate. Measured processes took 1.03 to 1.12 of it (docs/planning.md).

    Example:
        >>> small = UNetConfig(strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)))
        >>> round(estimate(small, (64, 64, 64), 2, 6).gigabytes, 1)
        2.2
    """
    stages = len(network.strides)
    channels = [min(network.base_channels * 2**stage, network.max_channels) for stage in range(stages)]
    down, up = _convolutions(network)
    sizes, voxels = list(patch_size), []
    for stride in network.strides:
        sizes = [-(-size // step) for size, step in zip(sizes, stride, strict=True)]
        voxels.append(math.prod(sizes))
    values = 0.0
    for stage in range(stages):
        of_stage = MAPS_OF_A_CONVOLUTION * down[stage] * (RESIDUAL if network.encoder == "residual" else 1)
        if (
            stage < stages - 1
        ):  # the decoder's: upsampled, joined with the skip (twice the channels), convolved
            of_stage += MAPS_OF_A_CONVOLUTION * up + 1 + 2
        values += voxels[stage] * channels[stage] * of_stage
    size = _BYTES[precision]
    return Memory(
        weights=_weights(network, channels, down, up, num_classes) * 4 * (1 + copies),
        maps=batch_size * values * size + batch_size * voxels[0] * num_classes * 4 * MAPS_OF_A_CLASS,
        passing=batch_size
        * max(v * c for v, c in zip(voxels, channels, strict=True))
        * size
        * MAPS_IN_PASSING,
    )


def _convolutions(network: UNetConfig) -> tuple[list[int], int]:
    """Convolutions of each stage on the way down, and of a stage on the way up."""
    stages, given = len(network.strides), network.convolutions_per_stage
    residual = network.encoder == "residual"
    if given is None:
        given = [1, 3, 4, *[6] * stages][:stages] if residual else 2
    down = [given] * stages if isinstance(given, int) else list(given)
    if residual:  # a block has two; the first stage has the stem as well
        down = [2 * blocks + (stage == 0) for stage, blocks in enumerate(down)]
    return down, network.decoder_convolutions or (1 if residual else 2)


def _weights(network: UNetConfig, channels: list[int], down: list[int], up: int, num_classes: int) -> float:
    """How many weights the network has, to a few percent."""
    kernels = [math.prod(kernel) for kernel in network.kernels or kernel_sizes(network.strides)]
    count = 0.0
    for stage, width in enumerate(channels):
        before = channels[stage - 1] if stage else 1
        count += kernels[stage] * width * (before + (down[stage] - 1) * width)
        if stage < len(channels) - 1:
            count += math.prod(network.strides[stage + 1]) * channels[stage + 1] * width
            count += kernels[stage] * width * (2 * width + (up - 1) * width)
    return count + num_classes * sum(channels[:-1])
