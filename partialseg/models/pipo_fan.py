"""PIPO-FAN: pyramid input, pyramid output, feature abstraction network (Fang and Yan, 2020), in 3D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from partialseg.models.blocks import convolution
from partialseg.models.stages import PAPER_STRIDES, Stages, cropped, network_input, plan_stages, upsampled


def pipo_fan(
    num_classes: int,
    *,
    strides: Sequence[Sequence[int]] = PAPER_STRIDES,
    kernels: Sequence[Sequence[int]] | None = None,
    base_channels: int = 32,
    max_channels: int = 320,
    dropout: float = 0.0,
    window_hu: tuple[float, float] = (-200.0, 300.0),
    deep_supervision: bool = True,
    name: str = "pipo_fan",
) -> keras.Model:
    """Build PIPO-FAN: HU patches of any size in, logits out.

    Pyramid input: the image is averaged down to the size of each stage, and features of it are concatenated with
    those that come from the stage before. Equal depth: features that are joined, or compared, have passed as many
    blocks; the coarser a scale of the image, the more blocks it passes before it is joined, and the coarser a
    scale of the decoder, the more blocks before its logits. Pyramid output: logits at each scale, from the
    coarsest stage to the finest. Fusion: one small attention network, the same for all scales, gives a scale's
    logits a score; the softmax of the scores over the scales weighs the logits, brought to full size. So a patch has
    as many weights as there are scales, and they sum to 1. The blocks that make depths equal are at coarse scales,
    where they cost little time but many parameters: 70 million in all with the defaults and six classes, where
    `unet` has 31 million.

    Reference:
        Fang and Yan, "Multi-organ segmentation over partially labeled datasets with multi-scale feature
        abstraction", IEEE Transactions on Medical Imaging 2020 (arXiv 2001.00208): pyramid input and output,
        residual blocks, equal convolutional depth, deep supervision of all scales, and the adaptive weighting.

    Differs from the paper: it is 2D there; here 3D, with strides and kernels that differ between axes.
    Convolutions are those of this package's U-Net (instance norm and leaky ReLU after a convolution) instead of
    batch norm and ReLU before it; transposed convolutions lead up instead of interpolation. The published
    code brings the logits of all scales to full size, for the attention and for supervision; here the attention sees
    them at their own size, without normalisation, and supervision compares them with a target of their size. There, the
    scales are trained first and the fusion after them; here all at once.

    Args:
        num_classes: Classes including background.
        strides: Per stage how much coarser `(depth, height, width)` it is than the one before; the first
            is (1, 1, 1).
        kernels: Per stage the size of its kernels; None: as `kernel_sizes` has them.
        base_channels: Channels of the first stage, doubled at each further one.
        max_channels: The most channels a stage has.
        dropout: Share of the channels that are set to 0 after each convolution while training.
        window_hu: Window to which HU are clipped, mapped to -1 … 1.
        deep_supervision: Whether to return the logits of each scale after the fused ones.
        name: Name of the model.

    Returns:
        A functional model. Input float HU, `(batch, depth, height, width, 1)`. Output float32 logits,
        `(batch, depth, height, width, num_classes)`; with deep supervision a list: the fused ones, then those of each
        stage, finest first, their sizes divided by the product of its strides and rounded up. The `stride` of the
        `CropToInput` layer that gives an output says how much coarser it is.

    Raises:
        ValueError: If the stages cannot be built, see `plan_stages`.

    Example:
        >>> model = pipo_fan(6, strides=((1, 1, 1), (2, 2, 2)), base_channels=4)
        >>> [tuple(int(size) for size in logits.shape) for logits in model(ops.zeros((1, 5, 7, 9, 1)))]
        [(1, 5, 7, 9, 6), (1, 5, 7, 9, 6), (1, 3, 4, 5, 6)]
    """
    stages = plan_stages(strides, kernels, base_channels, max_channels, dropout)
    inputs, x = network_input(stages, window_hu)
    features = _decode(_encode(x, stages), stages)
    logits = [_scale_logits(x, stages, stage, num_classes) for stage, x in enumerate(features)]
    attention = _attention(num_classes)
    scores = layers.Concatenate(dtype="float32", name="scores")([attention(x) for x in logits])
    weights = layers.Softmax(dtype="float32", name="fusion_weights")(scores)
    fused = FuseScales(stages.strides[1:], dtype="float32", name="fuse")([weights, *logits])
    outputs = [cropped(fused, inputs, (1, 1, 1), "crop")]
    if deep_supervision:
        for stage, x in enumerate(logits):
            outputs.append(cropped(x, inputs, stages.coarser(stage), f"crop{stage}"))
    return keras.Model(inputs, outputs if deep_supervision else outputs[0], name=name)


def _encode(x: Any, stages: Stages) -> list[Any]:
    """Features of each stage, of the stage before and of the image at the stage's size."""
    image, stem = x, _stem(stages)
    features = [stem(image)]
    for stage in range(1, len(stages.strides)):
        stride = stages.strides[stage]
        # Neither TensorFlow nor PyTorch has averages of all half floats on CPUs.
        image = layers.AveragePooling3D(stride, dtype="float32", name=f"image{stage}")(image)
        of_image = stem(image)
        # The features of the stage before have passed the stem and `stage - 1` blocks.
        for block in range(1, stage):
            of_image = _block(of_image, stages, stage, stages.channels[block], f"image{stage}_{block}")
        x = layers.MaxPooling3D(stride, name=f"down{stage}")(features[-1])
        x = layers.Concatenate(name=f"join{stage}")([x, of_image])
        features.append(_block(x, stages, stage, stages.channels[stage], f"encoder{stage}"))
    return features


def _decode(features: list[Any], stages: Stages) -> list[Any]:
    """Features of each stage of the decoder, finest first; the coarsest is the encoder's."""
    decoded = [features[-1]]
    for stage in reversed(range(len(features) - 1)):
        x = layers.Concatenate(name=f"skip{stage}")([upsampled(decoded[0], stages, stage), features[stage]])
        decoded.insert(0, _block(x, stages, stage, stages.channels[stage], f"decoder{stage}"))
    return decoded


def _scale_logits(x: Any, stages: Stages, stage: int, num_classes: int) -> Any:
    """Logits of a scale, after as many blocks as the finer stages of the decoder have."""
    for finer in reversed(range(stage)):
        x = _block(x, stages, stage, stages.channels[finer], f"output{stage}_{finer}")
    return layers.Conv3D(num_classes, 1, dtype="float32", name=f"logits{stage}")(x)


def _block(x: Any, stages: Stages, stage: int, width: int, name: str) -> Any:
    """Two convolutions and, added to them, the input."""
    y = x
    for repeat in range(2):
        y = convolution(y, width, stages.kernels[stage], f"{name}_{repeat}", dropout=stages.dropout)
    if x.shape[-1] != width:
        x = layers.Conv3D(width, 1, name=f"{name}_bridge")(x)
    return layers.Add(name=f"{name}_add")([x, y])


def _stem(stages: Stages) -> keras.Model:
    """The first two convolutions, the same for the image at all sizes."""
    image = x = keras.Input((None, None, None, 1), name="image")
    for repeat in range(2):
        x = convolution(x, stages.channels[0], stages.kernels[0], f"stem_{repeat}", dropout=stages.dropout)
    return keras.Model(image, x, name="stem")


def _attention(num_classes: int) -> keras.Model:
    """The score of a scale's logits, `(batch, 1)`: mean plus maximum over the patch of a map computed from them."""
    logits = keras.Input((None, None, None, num_classes), name="scale_logits", dtype="float32")
    x = layers.Conv3D(1, 1, dtype="float32", name="attention_conv0")(logits)
    x = layers.LeakyReLU(negative_slope=0.01, dtype="float32", name="attention_relu")(x)
    # A bias would be the same for all scales, which the softmax over them does not see.
    x = layers.Conv3D(1, 3, padding="same", use_bias=False, dtype="float32", name="attention_conv1")(x)
    mean = layers.GlobalAveragePooling3D(dtype="float32", name="attention_mean")(x)
    highest = layers.GlobalMaxPooling3D(dtype="float32", name="attention_max")(x)
    return keras.Model(logits, layers.Add(dtype="float32", name="score")([mean, highest]), name="attention")


@keras.saving.register_keras_serializable(package="partialseg")
class FuseScales(keras.layers.Layer):
    """Weighted sum of maps of several scales at the size of the finest.

    From the coarsest scale on, the sum so far is brought to the next finer scale by linear interpolation and that
    scale's map added, so that no coarse map alone is ever held at full size.

    Args:
        strides: How much coarser each scale but the first is than the one before, per axis.

    Call arguments:
        inputs: Weights `(batch, scales)`, then the maps `(batch, depth, height, width, channels)`, finest first.

    Returns:
        Of the finest map's shape.
    """

    def __init__(self, strides: Sequence[Sequence[int]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strides = tuple(tuple(int(step) for step in stride) for stride in strides)

    def call(self, inputs: Sequence[Any]) -> Any:
        """Fuse the maps."""
        weights, *maps = inputs
        weighted = [x * weights[:, k, None, None, None, None] for k, x in enumerate(maps)]
        fused = weighted[-1]
        for finer, stride in zip(reversed(weighted[:-1]), reversed(self.strides), strict=True):
            for axis, factor in enumerate(stride, start=1):
                fused = _upsample_linearly(fused, axis, factor)
            fused = fused + finer
        return fused

    def compute_output_shape(self, input_shape: Sequence[tuple]) -> tuple:
        """The finest map's."""
        return tuple(input_shape[1])

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "strides": self.strides}


def _upsample_linearly(x: Any, axis: int, factor: int) -> Any:
    """Interpolate between the centres of voxels along an axis; beyond the outermost centres, their values."""
    if factor == 1:
        return x
    size = ops.shape(x)
    first, last = _along(axis, slice(None, 1)), _along(axis, slice(-1, None))
    before = ops.concatenate([x[first], x[_along(axis, slice(None, -1))]], axis=axis)
    after = ops.concatenate([x[_along(axis, slice(1, None))], x[last]], axis=axis)
    parts = []
    for part in range(factor):
        offset = (part + 0.5) / factor - 0.5  # from the centre of the coarse voxel, in its sizes
        neighbour = before if offset < 0 else after
        parts.append((1 - abs(offset)) * x + abs(offset) * neighbour)
    stacked = ops.stack(parts, axis=axis + 1)
    return ops.reshape(stacked, (*size[:axis], size[axis] * factor, *size[axis + 1 :]))


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    """Index of a part of one axis of five."""
    return tuple(part if k == axis else slice(None) for k in range(5))
