"""How much memory a training step needs: an estimate from the sizes of the network's maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from partialseg.training.config import TrainingConfig
from partialseg.training.network_config import NetworkConfig
from partialseg.training.network_sizes import network_size

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
    network: NetworkConfig,
    patch_size: Sequence[int],
    batch_size: int,
    num_classes: int,
    precision: str = "float32",
    copies: int = 3,
) -> Memory:
    """Estimate what a step needs, on one device.

    Args:
        network: Of any kind.
        patch_size: Voxels `(depth, height, width)`.
        batch_size: Patches on this device at a time.
        num_classes: Background included.
        precision: In which maps are kept.
        copies: Of the weights beside themselves: gradient, and one for SGD, two for Adam, one for a running mean.

    Returns:
        The estimate. Measured processes took 1.03 to 1.12 of it with a U-Net, 0.99 to 1.17 with another network
        (docs/planning.md).

    Example:
        >>> from partialseg.training.network_config import UNetConfig
        >>> small = UNetConfig(strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)))
        >>> round(estimate(small, (64, 64, 64), 2, 6).gigabytes, 1)
        2.2
    """
    found, size = network_size(network, patch_size, num_classes), _BYTES[precision]
    return Memory(
        weights=found.weights * 4 * (1 + copies),
        maps=batch_size * (found.maps * size + found.logits * 4 * MAPS_OF_A_CLASS),
        passing=batch_size * found.largest * size * MAPS_IN_PASSING,
    )


def estimate_training(config: TrainingConfig, num_classes: int, devices: int = 1) -> Memory:
    """Estimate what a step of a config needs, on each device.

    Args:
        config: With network, patch, batch, optimiser and precision.
        num_classes: Background included.
        devices: How many share a batch.

    Example:
        >>> round(estimate_training(TrainingConfig(name="paper's patch"), 6).gigabytes, 1)
        11.8
    """
    copies = 1 + (2 if config.optimizer.name == "adam" else 1) + (config.optimizer.ema is not None)
    copies += config.accumulate > 1
    at_a_time = -(-config.batch_size // (config.accumulate * devices))
    return estimate(config.network, config.patch_size, at_a_time, num_classes, config.precision, copies)
