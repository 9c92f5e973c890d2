"""DoDNet: a segmentation head whose weights the network computes for each image and organ (Zhang et al., 2021)."""

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


def dynamic_head_unet(
    num_classes: int,
    *,
    strides: Sequence[Sequence[int]] = PAPER_STRIDES,
    kernels: Sequence[Sequence[int]] | None = None,
    base_channels: int = 32,
    max_channels: int = 320,
    dropout: float = 0.0,
    window_hu: tuple[float, float] = (-200.0, 300.0),
    head_channels: int = 8,
    deep_supervision: bool = False,
    name: str = "dynamic_head_unet",
) -> keras.Model:
    """Build DoDNet on this package's U-Net: HU patches of any size in, logits out.

    Encoder and decoder are shared by all organs. A controller, one linear layer, takes the mean of the coarsest
    features over the patch and a one-hot vector of the organ, and gives the weights of three convolutions of
    1 x 1 x 1, with which the decoder's features become the organ's logit. The head costs
    `organs x head_channels` channels at full size, and no second pass through the network. With deep supervision the
    same weights read each stage of the decoder, after a convolution of the stage's own to `head_channels`.

    Reference:
        Zhang, Xie, Xia and Shen, "DoDNet: Learning to Segment Multi-Organ and Tumors from Multiple Partially
        Labeled Datasets", CVPR 2021: the controller, the one-hot task, three convolutions of 8 channels.

    Differs from the paper: a task there is a dataset with two outputs, organ and tumour (162 weights); here it is
    an organ with one (153). All organs are computed at once, also in training, instead of the one of the image's
    dataset; a loss masks those that are not known. Encoder and decoder are plain convolutions with instance norm
    instead of residual blocks with weight standardisation and group norm; skips are concatenated instead of added.
    The paper supervises the finest logits alone, as is done here by default.

    Args:
        num_classes: Classes including background.
        strides: Per stage the stride `(depth, height, width)` of its first convolution; the first is (1, 1, 1).
        kernels: Per stage the size of its kernels; None: as `kernel_sizes` has them.
        base_channels: Channels of the first stage, doubled at each further one.
        max_channels: The most channels a stage has.
        dropout: Share of the channels that are set to 0 after each convolution while training.
        window_hu: Window to which HU are clipped, mapped to -1 … 1.
        head_channels: Channels of the head's input and of its two hidden layers.
        deep_supervision: Whether to return logits of each stage of the decoder, finest first.
        name: Name of the model.

    Returns:
        A functional model. Input float HU, `(batch, depth, height, width, 1)`. Output float32 logits,
        `(batch, depth, height, width, num_classes)`, 0 for background: an organ's logit is that of its sigmoid; with
        deep supervision a list, of which entry `k` is coarser by `supervision_strides(strides)[k]`.

    Raises:
        ValueError: If the stages cannot be built, see `plan_stages`.

    Example:
        >>> model = dynamic_head_unet(6, strides=((1, 1, 1), (2, 2, 2)), base_channels=4)
        >>> model(ops.zeros((1, 5, 7, 9, 1))).shape == (1, 5, 7, 9, 6)
        True
    """
    stages = plan_stages(strides, kernels, base_channels, max_channels, dropout)
    inputs, x = network_input(stages, window_hu)
    features = encode(x, stages)
    pooled = layers.GlobalAveragePooling3D(dtype="float32", name="pool")(features[-1])
    tasks = AppendOrgan(num_classes - 1, dtype="float32", name="task")(pooled)
    weights = layers.Dense(head_size(head_channels), dtype="float32", name="controller")(tasks)

    head = DynamicHead(head_channels, name="head")
    x, outputs = features[-1], []
    for stage in reversed(range(len(stages.strides) - 1)):
        x = layers.Concatenate(name=f"skip{stage}")([upsampled(x, stages, stage), features[stage]])
        for repeat in range(2):
            width, kernel = stages.channels[stage], stages.kernels[stage]
            x = convolution(x, width, kernel, f"decoder{stage}_{repeat}", dropout=dropout)
        if stage == 0 or deep_supervision:
            level = stage or ""  # the finest keeps its names with and without the others
            logits = head([layers.Conv3D(head_channels, 1, name=f"head_input{level}")(x), weights])
            logits = PrependBackground(dtype="float32", name=f"logits{level}")(logits)
            outputs.insert(0, cropped(logits, inputs, stages.coarser(stage), f"crop{level}"))
    return keras.Model(inputs, outputs if deep_supervision else outputs[0], name=name)


def head_size(channels: int) -> int:
    """How many weights and biases the three convolutions of an organ have.

    Example:
        >>> head_size(8)
        153
    """
    return 2 * (channels + 1) * channels + channels + 1


@keras.saving.register_keras_serializable(package="partialseg")
class AppendOrgan(keras.layers.Layer):
    """Repeat a vector for each organ, followed by the organ's one-hot vector.

    Args:
        num_organs: Organs, without background.

    Call arguments:
        x: `(batch, channels)`.

    Returns:
        `(batch, organs, channels + organs)`.

    Example:
        >>> [[int(v) for v in row] for row in AppendOrgan(2)(ops.array([[7.0]]))[0]]
        [[7, 1, 0], [7, 0, 1]]
    """

    def __init__(self, num_organs: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_organs = int(num_organs)

    def call(self, x: Any) -> Any:
        """Join `x` with each organ."""
        repeated = ops.repeat(x[:, None, :], self.num_organs, axis=1)
        one_hot = ops.eye(self.num_organs, dtype=x.dtype)[None]
        return ops.concatenate([repeated, one_hot + ops.zeros_like(repeated[..., :1])], axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """An axis for the organs, and their one-hot vector."""
        return (input_shape[0], self.num_organs, input_shape[-1] + self.num_organs)

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "num_organs": self.num_organs}


@keras.saving.register_keras_serializable(package="partialseg")
class DynamicHead(keras.layers.Layer):
    """Three convolutions of 1 x 1 x 1 with the weights of each sample and organ, ReLU between them.

    All organs at once: at each voxel a matrix product, batched over samples and organs.

    Args:
        channels: Channels of the input and of the two hidden layers.

    Call arguments:
        inputs: Features `(batch, depth, height, width, channels)`, and weights
            `(batch, organs, head_size(channels))`: of each layer its matrix (inputs x outputs), then its bias.

    Returns:
        Logits, float32, `(batch, depth, height, width, organs)`.
    """

    def __init__(self, channels: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = int(channels)

    def call(self, inputs: Sequence[Any]) -> Any:
        """Logits of all organs."""
        features, weights = inputs
        batch, depth, height, width, _ = ops.shape(features)
        # An axis of 1 for the organs, over which the first product broadcasts.
        x = ops.reshape(features, (batch, 1, depth * height * width, self.channels))
        start = 0
        for layer, outputs in enumerate((self.channels, self.channels, 1)):
            if layer > 0:
                x = ops.relu(x)
            if layer == 2:  # logits stay float32 under mixed precision
                x, weights = ops.cast(x, "float32"), ops.cast(weights, "float32")
            end = start + self.channels * outputs
            matrix = ops.reshape(weights[..., start:end], (batch, -1, self.channels, outputs))
            x = ops.matmul(x, matrix) + weights[..., None, end : end + outputs]
            start = end + outputs
        x = ops.transpose(x[..., 0], (0, 2, 1))
        return ops.reshape(x, (batch, depth, height, width, weights.shape[1]))

    def compute_output_spec(self, inputs: Sequence[Any]) -> Any:
        """One channel an organ, float32."""
        features, weights = inputs
        return keras.KerasTensor((*features.shape[:-1], weights.shape[1]), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "channels": self.channels}
