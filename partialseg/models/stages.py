"""The stages of U-shaped networks: their sizes, what comes before and after them, a plain encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from partialseg.models.blocks import Triple, convolution, upsampling
from partialseg.models.layers import CropToInput, NormalizeHU, PadToMultiple

#: nnU-Net's topology for 48 x 190 x 190 patches of 3 x 1.5 x 1.5 mm: six stages, depth halved three times.
PAPER_STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))


def kernel_sizes(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Kernels of 3, but of 1 along an axis that the next stage does not stride while others do.

    As nnU-Net's planner has it: while voxels are longer along one axis than along the others, that axis is
    neither strided nor convolved. The last stages, with nothing left to stride, convolve all axes.

    Example:
        >>> kernel_sizes(((1, 1, 1), (1, 2, 2), (2, 2, 2)))
        [(1, 3, 3), (3, 3, 3), (3, 3, 3)]
    """
    kernels, convolved = [], [False, False, False]
    for stage in range(len(strides)):
        following = strides[stage + 1] if stage + 1 < len(strides) else (2, 2, 2)
        convolved = [done or step > 1 for done, step in zip(convolved, following, strict=True)]
        kernels.append(tuple(3 if axis else 1 for axis in convolved))
    return kernels


def supervision_strides(strides: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """How much coarser than the input each output of a network with deep supervision is.

    Example:
        >>> supervision_strides(((1, 1, 1), (1, 2, 2), (2, 2, 2)))
        [(1, 1, 1), (1, 2, 2)]
    """
    return [total_stride(strides[: stage + 1]) for stage in range(len(strides) - 1)]


def total_stride(strides: Sequence[Sequence[int]]) -> Triple:
    """How much coarser than the input what has passed all these strides is.

    Example:
        >>> total_stride(((1, 1, 1), (1, 2, 2), (2, 2, 2)))
        (2, 4, 4)
    """
    total = [1, 1, 1]
    for stride in strides:
        total = [t * s for t, s in zip(total, stride, strict=True)]
    return tuple(total)


class Stages(NamedTuple):
    """What each stage of a U-shaped network has.

    Attributes:
        strides: How much coarser a stage is than the one before, per axis; 1 for the first.
        kernels: Size of the kernels.
        channels: Channels.
        dropout: Share of the channels that are set to 0 after each convolution while training.
        bias: Whether convolutions have a bias.
    """

    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    channels: tuple[int, ...]
    dropout: float
    bias: bool = True

    def coarser(self, stage: int) -> Triple:
        """How much coarser than the input a stage is."""
        return total_stride(self.strides[: stage + 1])


def plan_stages(
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]] | None,
    base_channels: int,
    max_channels: int,
    dropout: float,
    bias: bool = True,
) -> Stages:
    """Sizes of the stages, from the arguments that the networks have in common.

    Raises:
        ValueError: If there are fewer than two stages, the first is coarser than the input, there are not as many
            kernels as stages, or a kernel's size is even.

    Example:
        >>> plan_stages(((1, 1, 1), (1, 2, 2), (2, 2, 2)), None, 32, 64, 0.0)  # doctest: +NORMALIZE_WHITESPACE
        Stages(strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
               channels=(32, 64, 64), dropout=0.0, bias=True)
    """
    strides = tuple(tuple(int(step) for step in stride) for stride in strides)
    if len(strides) < 2 or any(step != 1 for step in strides[0]):
        raise ValueError(f"strides must be of two stages at least, the first (1, 1, 1), received {strides}")
    if kernels is None:
        kernels = kernel_sizes(strides)
    kernels = tuple(tuple(int(size) for size in kernel) for kernel in kernels)
    if len(kernels) != len(strides) or not all(size % 2 for kernel in kernels for size in kernel):
        raise ValueError(
            f"kernels must be {len(strides)} of odd size, one for each stage, received {kernels}"
        )
    channels = tuple(min(base_channels * 2**stage, max_channels) for stage in range(len(strides)))
    return Stages(strides, kernels, channels, dropout, bias)


def network_input(stages: Stages, window_hu: Sequence[float]) -> tuple[Any, Any]:
    """HU of any size, and the same normalised and padded to what the strides divide."""
    inputs = keras.Input((None, None, None, 1), name="hu")
    x = NormalizeHU(window_hu, name="normalize")(inputs)
    return inputs, PadToMultiple(stages.coarser(len(stages.strides) - 1), name="pad")(x)


def encode(x: Any, stages: Stages, convolutions: Sequence[int] | None = None) -> list[Any]:
    """Features of each stage, finest first; the first convolution of a stage is strided.

    Args:
        x: What goes into the first stage.
        stages: Sizes of the stages.
        convolutions: How many convolutions each stage has; None: two.
    """
    convolutions = convolutions or (2,) * len(stages.strides)
    features = []
    for stage, (width, kernel) in enumerate(zip(stages.channels, stages.kernels, strict=True)):
        for repeat in range(convolutions[stage]):
            x = convolution(
                x,
                width,
                kernel,
                f"encoder{stage}_{repeat}",
                stride=(1, 1, 1) if repeat else stages.strides[stage],
                dropout=stages.dropout,
                bias=stages.bias,
            )
        features.append(x)
    return features


def upsampled(x: Any, stages: Stages, stage: int) -> Any:
    """Features of stage + 1 brought to a stage's size by a transposed convolution."""
    return upsampling(x, stages.channels[stage], stages.strides[stage + 1], f"up{stage}", bias=stages.bias)


def cropped(logits: Any, inputs: Any, stride: Triple, name: str) -> Any:
    """An output of a network: logits without what was padded."""
    return CropToInput(stride, dtype="float32", name=name)([logits, inputs])


@keras.saving.register_keras_serializable(package="partialseg")
class PrependBackground(keras.layers.Layer):
    """Put a background whose logit is 0 before the logits of the organs.

    `masked_sigmoid` takes an organ's logit less that of background, so that what the network gives for an organ is
    the logit of its own sigmoid; the largest logit is the label.

    Call arguments:
        x: Logits of the organs, `(..., organs)`.

    Returns:
        `(..., 1 + organs)`, same dtype.

    Example:
        >>> [float(logit) for logit in PrependBackground()(ops.array([[2.0, -3.0]]))[0]]
        [0.0, 2.0, -3.0]
    """

    def call(self, x: Any) -> Any:
        """Logits with background."""
        return ops.concatenate([ops.zeros_like(x[..., :1]), x], axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """One channel more."""
        return (*input_shape[:-1], input_shape[-1] + 1)
