"""A 3D U-Net in the form of nnU-Net's plain-convolution network (Isensee et al., 2018, 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from partialseg.models.layers import CropToInput, NormalizeHU, PadToMultiple

#: nnU-Net's topology for 48 x 190 x 190 patches of 3 x 1.5 x 1.5 mm: six stages, depth halved three times.
PAPER_STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))


def unet(
    num_classes: int,
    *,
    strides: Sequence[Sequence[int]] = PAPER_STRIDES,
    base_channels: int = 32,
    max_channels: int = 320,
    kernels: Sequence[Sequence[int]] | None = None,
    convolutions_per_stage: int = 2,
    dropout: float = 0.0,
    deep_supervision: bool = False,
    window_hu: tuple[float, float] = (-200.0, 300.0),
    name: str = "unet",
) -> keras.Model:
    """Build the network: HU patches of any size in, logits out.

    Each stage is `convolutions_per_stage` times convolution, instance norm, leaky ReLU (0.01); the first
    convolution of a stage is strided, transposed convolutions lead back up, skips are concatenated. The
    input is normalised and padded inside, and the output cropped to the input's size.

    Args:
        num_classes: Classes including background.
        strides: Per stage the stride `(depth, height, width)` of its first convolution. A stage whose
            stride is 1 along an axis, and all before it, has kernels of 1 along it when its voxels are
            still anisotropic; see `kernel_sizes`.
        base_channels: Channels of the first stage, doubled at each further one.
        max_channels: The most channels a stage has.
        kernels: Per stage the size of its kernels, odd along each axis; None: those of `kernel_sizes`.
        convolutions_per_stage: Convolutions of each stage, on the way down and on the way up.
        dropout: Share of the channels that are set to 0 after each convolution while training, 0 to below 1.
        deep_supervision: Whether to return logits of each decoder stage but the coarsest, finest first.
        window_hu: Window to which HU are clipped, mapped to -1 … 1.
        name: Name of the model.

    Returns:
        A functional model. Input float HU, `(batch, depth, height, width, 1)`. Output float32 logits,
        `(batch, depth, height, width, num_classes)`; with deep supervision a list, of which entry `k` is
        coarser by `supervision_strides(strides)[k]`, its sizes rounded up.

    Example:
        >>> model = unet(6, strides=((1, 1, 1), (2, 2, 2)), base_channels=4)
        >>> model(keras.ops.zeros((1, 5, 7, 9, 1))).shape == (1, 5, 7, 9, 6)
        True
    """
    strides = [tuple(int(s) for s in stride) for stride in strides]
    kernels = [tuple(kernel) for kernel in kernels] if kernels is not None else kernel_sizes(strides)
    channels = [min(base_channels * 2**stage, max_channels) for stage in range(len(strides))]
    inputs = keras.Input((None, None, None, 1), name="hu")
    x = PadToMultiple(_total(strides), name="pad")(NormalizeHU(window_hu, name="normalize")(inputs))

    skips = []
    for stage, (width, stride, kernel) in enumerate(zip(channels, strides, kernels, strict=True)):
        for repeat in range(convolutions_per_stage):
            first_stride = stride if repeat == 0 else (1, 1, 1)
            x = _convolution(x, width, kernel, first_stride, dropout, f"encoder{stage}_{repeat}")
        skips.append(x)

    outputs = []
    for stage in reversed(range(len(strides) - 1)):
        up = strides[stage + 1]
        x = layers.Conv3DTranspose(channels[stage], up, up, name=f"up{stage}")(x)
        x = layers.Concatenate(name=f"skip{stage}")([x, skips[stage]])
        for repeat in range(convolutions_per_stage):
            x = _convolution(
                x, channels[stage], kernels[stage], (1, 1, 1), dropout, f"decoder{stage}_{repeat}"
            )
        coarser = _total(strides[: stage + 1])
        if stage == 0 or deep_supervision:
            # Logits stay float32 under mixed precision: softmax over half floats loses the small classes.
            logits = layers.Conv3D(num_classes, 1, dtype="float32", name=f"logits{stage}")(x)
            outputs.insert(0, CropToInput(coarser, dtype="float32", name=f"crop{stage}")([logits, inputs]))
    return keras.Model(inputs, outputs if deep_supervision else outputs[0], name=name)


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
    return [_total(strides[: stage + 1]) for stage in range(len(strides) - 1)]


def _total(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    total = [1, 1, 1]
    for stride in strides:
        total = [t * s for t, s in zip(total, stride, strict=True)]
    return tuple(total)


def _convolution(
    x: Any, width: int, kernel: tuple[int, ...], stride: tuple[int, ...], dropout: float, name: str
) -> Any:
    """Convolution, dropout of whole channels, instance norm (group norm with a channel a group), leaky ReLU."""
    x = layers.Conv3D(
        width, kernel, stride, padding="same", kernel_initializer="he_normal", name=f"{name}_conv"
    )(x)
    if dropout:
        x = layers.SpatialDropout3D(dropout, name=f"{name}_dropout")(x)
    x = layers.GroupNormalization(groups=-1, epsilon=1e-5, name=f"{name}_norm")(x)
    return layers.LeakyReLU(negative_slope=0.01, name=f"{name}_relu")(x)
