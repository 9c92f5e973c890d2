"""A U-Net whose decoder is told which organ to segment (Dmitriev and Kaufman, 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from partialseg.models.blocks import convolution
from partialseg.models.stages import (
    PAPER_STRIDES,
    PrependBackground,
    cropped,
    encode,
    network_input,
    plan_stages,
    upsampled,
)


def conditioned_unet(
    num_classes: int,
    *,
    strides: Sequence[Sequence[int]] = PAPER_STRIDES,
    kernels: Sequence[Sequence[int]] | None = None,
    base_channels: int = 32,
    max_channels: int = 320,
    dropout: float = 0.0,
    window_hu: tuple[float, float] = (-200.0, 300.0),
    deep_supervision: bool = False,
    name: str = "conditioned_unet",
) -> keras.Model:
    """Build the conditioned network: HU patches of any size in, logits out.

    The encoder is shared. Each stage of the decoder has one channel more, which holds the organ's value at every
    voxel, and the decoder's one output is the logit of that organ; with deep supervision each stage of the decoder has
    such an output, as in `unet`. All organs are computed at once: the
    encoder's features are repeated for each of them along the batch axis, so that time and memory of the decoder
    grow with the number of organs. With many organs, take smaller patches or a smaller batch.

    Reference:
        Dmitriev and Kaufman, "Learning Multi-Class Segmentations From Single-Class Datasets", CVPR 2019: one
        network for all classes, conditioned by a constant channel with the class's value from a table,
        concatenated to the features of each decoder stage.

    Differs from the paper: their network is built of densely connected blocks with batch norm, and sees one
    class of each image in training; here it is this package's U-Net, with all organs, of which a loss masks those
    that are not known. Instance norm would take away what a constant channel adds, since it removes the mean
    of each channel; so the convolution that meets the organ's value is normalised over all channels together
    (group norm with one group). The values of the table are 1 apart here, and 0 on average.

    Args:
        num_classes: Classes including background.
        strides: Per stage the stride `(depth, height, width)` of its first convolution; the first is (1, 1, 1).
        kernels: Per stage the size of its kernels; None: as `kernel_sizes` has them.
        base_channels: Channels of the first stage, doubled at each further one.
        max_channels: The most channels a stage has.
        dropout: Share of the channels that are set to 0 after each convolution while training.
        window_hu: Window to which HU are clipped, mapped to -1 … 1.
        deep_supervision: Whether to return logits of each stage of the decoder, finest first.
        name: Name of the model.

    Returns:
        A functional model. Input float HU, `(batch, depth, height, width, 1)`. Output float32 logits,
        `(batch, depth, height, width, num_classes)`, 0 for background: an organ's logit is that of its sigmoid; with
        deep supervision a list, of which entry `k` is coarser by `supervision_strides(strides)[k]`.

    Raises:
        ValueError: If the stages cannot be built, see `plan_stages`.

    Example:
        >>> model = conditioned_unet(6, strides=((1, 1, 1), (2, 2, 2)), base_channels=4)
        >>> model(ops.zeros((1, 5, 7, 9, 1))).shape == (1, 5, 7, 9, 6)
        True
    """
    stages = plan_stages(strides, kernels, base_channels, max_channels, dropout)
    values = organ_values(num_classes - 1)
    inputs, x = network_input(stages, window_hu)
    features = encode(x, stages)
    features = [RepeatSamples(len(values), name=f"repeat{k}")(x) for k, x in enumerate(features)]
    x, outputs = features[-1], []
    for stage in reversed(range(len(stages.strides) - 1)):
        width, kernel = stages.channels[stage], stages.kernels[stage]
        x = layers.Concatenate(name=f"skip{stage}")([upsampled(x, stages, stage), features[stage]])
        x = AppendValue(values, name=f"condition{stage}")(x)
        x = _conditioned_convolution(x, width, kernel, f"decoder{stage}_0", dropout)
        x = convolution(x, width, kernel, f"decoder{stage}_1", dropout=dropout)
        if stage == 0 or deep_supervision:
            level = stage or ""  # the finest keeps its names with and without the others
            logits = layers.Conv3D(1, 1, dtype="float32", name=f"organ_logit{level}")(x)
            logits = OrgansToChannels(len(values), dtype="float32", name=f"organs{level}")(logits)
            logits = PrependBackground(dtype="float32", name=f"logits{level}")(logits)
            outputs.insert(0, cropped(logits, inputs, stages.coarser(stage), f"crop{level}"))
    return keras.Model(inputs, outputs if deep_supervision else outputs[0], name=name)


def organ_values(num_organs: int) -> tuple[float, ...]:
    """The value that stands for each organ: 1 apart, 0 on average.

    Example:
        >>> organ_values(4)
        (-1.5, -0.5, 0.5, 1.5)
    """
    return tuple(organ - (num_organs - 1) / 2 for organ in range(num_organs))


def _conditioned_convolution(x: Any, width: int, kernel: tuple[int, ...], name: str, dropout: float) -> Any:
    """Convolution, group norm with one group, leaky ReLU, dropout: it keeps differences between channels."""
    x = layers.Conv3D(width, kernel, padding="same", kernel_initializer="he_normal", name=f"{name}_conv")(x)
    x = layers.GroupNormalization(groups=1, epsilon=1e-5, name=f"{name}_norm")(x)
    x = layers.LeakyReLU(negative_slope=0.01, name=f"{name}_relu")(x)
    return layers.SpatialDropout3D(dropout, name=f"{name}_dropout")(x) if dropout else x


@keras.saving.register_keras_serializable(package="partialseg")
class RepeatSamples(keras.layers.Layer):
    """Repeat each sample for each organ: `(batch, ...)` to `(batch * organs, ...)`, a sample's organs together.

    Args:
        num_organs: Organs, without background.

    Example:
        >>> [int(v) for v in RepeatSamples(2)(ops.array([[7.0], [8.0]]))[:, 0]]
        [7, 7, 8, 8]
    """

    def __init__(self, num_organs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_organs = int(num_organs)

    def call(self, x: Any) -> Any:
        """Repeat `x`."""
        return ops.repeat(x, self.num_organs, axis=0)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """More samples."""
        batch = input_shape[0]
        return (None if batch is None else batch * self.num_organs, *input_shape[1:])

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "num_organs": self.num_organs}


@keras.saving.register_keras_serializable(package="partialseg")
class AppendValue(keras.layers.Layer):
    """Append a channel that holds the organ's value at every voxel.

    Args:
        values: One for each organ.

    Call arguments:
        x: Features, `(batch * organs, depth, height, width, channels)`, a sample's organs together.

    Returns:
        `(batch * organs, depth, height, width, channels + 1)`.

    Example:
        >>> x = AppendValue((-1.0, 1.0))(ops.zeros((4, 1, 1, 1, 1)))
        >>> [[float(v) for v in sample] for sample in x[:, 0, 0, 0]]
        [[0.0, -1.0], [0.0, 1.0], [0.0, -1.0], [0.0, 1.0]]
    """

    def __init__(self, values: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.values = tuple(float(value) for value in values)

    def call(self, x: Any) -> Any:
        """Append the channel to `x`."""
        empty = ops.zeros_like(x[..., :1])
        values = ops.reshape(ops.convert_to_tensor(self.values, x.dtype), (1, -1, 1, 1, 1, 1))
        by_sample = ops.reshape(empty, (-1, len(self.values), *ops.shape(empty)[1:]))
        return ops.concatenate([x, ops.reshape(by_sample + values, ops.shape(empty))], axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """One channel more."""
        return (*input_shape[:-1], input_shape[-1] + 1)

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "values": self.values}


@keras.saving.register_keras_serializable(package="partialseg")
class OrgansToChannels(keras.layers.Layer):
    """Take the organs from the batch axis to the channels.

    Args:
        num_organs: Organs, without background.

    Call arguments:
        x: `(batch * organs, depth, height, width, 1)`, a sample's organs together.

    Returns:
        `(batch, depth, height, width, organs)`.

    Example:
        >>> x = OrgansToChannels(2)(ops.reshape(ops.arange(4), (4, 1, 1, 1, 1)))
        >>> [[int(v) for v in sample] for sample in x[:, 0, 0, 0]]
        [[0, 1], [2, 3]]
    """

    def __init__(self, num_organs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_organs = int(num_organs)

    def call(self, x: Any) -> Any:
        """Reorder `x`."""
        x = ops.reshape(x, (-1, self.num_organs, *ops.shape(x)[1:-1]))
        return ops.transpose(x, (0, 2, 3, 4, 1))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Fewer samples, more channels."""
        batch = input_shape[0]
        return (None if batch is None else batch // self.num_organs, *input_shape[1:-1], self.num_organs)

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "num_organs": self.num_organs}
