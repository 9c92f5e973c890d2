"""The stages of the U-shaped networks of other papers: their sizes, their convolutions, their encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import layers, ops

from partialseg.models.layers import CropToInput, NormalizeHU, PadToMultiple
from partialseg.models.plain_unet import _convolution, _total, kernel_sizes

Triple = tuple[int, ...]


class Stages(NamedTuple):
    """What each stage of a U-shaped network has.

    Attributes:
        strides: How much coarser a stage is than the one before, per axis; 1 for the first.
        kernels: Size of the kernels.
        channels: Channels.
        dropout: Share of the channels that are set to 0 after each convolution while training.
    """

    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    channels: tuple[int, ...]
    dropout: float

    def coarser(self, stage: int) -> Triple:
        """How much coarser than the input a stage is."""
        return _total(self.strides[: stage + 1])


def plan_stages(
    strides: Sequence[Sequence[int]],
    kernels: Sequence[Sequence[int]] | None,
    base_channels: int,
    max_channels: int,
    dropout: float,
) -> Stages:
    """Sizes of the stages, from the arguments that the networks have in common.

    Raises:
        ValueError: If there are fewer than two stages, the first is coarser than the input, there are not as many
            kernels as stages, or a kernel's size is even.

    Example:
        >>> plan_stages(((1, 1, 1), (1, 2, 2), (2, 2, 2)), None, 32, 64, 0.0)  # doctest: +NORMALIZE_WHITESPACE
        Stages(strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)),
               channels=(32, 64, 64), dropout=0.0)
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
    return Stages(strides, kernels, channels, dropout)


def network_input(stages: Stages, window_hu: Sequence[float]) -> tuple[Any, Any]:
    """HU of any size, and the same normalised and padded to what the strides divide."""
    inputs = keras.Input((None, None, None, 1), name="hu")
    x = NormalizeHU(window_hu, name="normalize")(inputs)
    return inputs, PadToMultiple(stages.coarser(len(stages.strides) - 1), name="pad")(x)


def convolution(
    x: Any, width: int, kernel: Triple, name: str, *, dropout: float, stride: Triple = (1, 1, 1)
) -> Any:
    """Convolution, dropout of whole channels, instance norm, leaky ReLU as in `unet`."""
    return _convolution(x, width, kernel, stride, dropout, name)


def encode(x: Any, stages: Stages) -> list[Any]:
    """Features of each stage, finest first: two convolutions a stage, the first of them strided."""
    features = []
    for stage, (stride, kernel, width) in enumerate(
        zip(stages.strides, stages.kernels, stages.channels, strict=True)
    ):
        for repeat in range(2):
            step = stride if repeat == 0 else (1, 1, 1)
            name = f"encoder{stage}_{repeat}"
            x = convolution(x, width, kernel, name, dropout=stages.dropout, stride=step)
        features.append(x)
    return features


def upsampled(x: Any, stages: Stages, stage: int) -> Any:
    """Features of stage + 1 brought to a stage's size by a transposed convolution."""
    stride = stages.strides[stage + 1]
    return layers.Conv3DTranspose(stages.channels[stage], stride, stride, name=f"up{stage}")(x)


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
