"""nnU-Net's 3D networks: a U-Net with a plain or a residual encoder (Isensee et al., 2021 and 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import layers

from partialseg.models.blocks import convolution, residual_block
from partialseg.models.stages import (
    PAPER_STRIDES,
    Stages,
    cropped,
    encode,
    network_input,
    plan_stages,
    upsampled,
)

#: Residual blocks of the first stages in nnU-Net's plans; further stages have as many as the last.
RESIDUAL_BLOCKS = (1, 3, 4, 6)


def unet(
    num_classes: int,
    *,
    strides: Sequence[Sequence[int]] = PAPER_STRIDES,
    base_channels: int = 32,
    max_channels: int = 320,
    kernels: Sequence[Sequence[int]] | None = None,
    encoder: Literal["plain", "residual"] = "plain",
    convolutions_per_stage: int | Sequence[int] | None = None,
    decoder_convolutions: int | None = None,
    convolution_bias: bool = True,
    dropout: float = 0.0,
    deep_supervision: bool = False,
    window_hu: tuple[float, float] = (-200.0, 300.0),
    name: str = "unet",
) -> keras.Model:
    """Build the network: HU patches of any size in, logits out.

    Each stage is some times convolution, instance norm, leaky ReLU (0.01), or some residual blocks after a first
    convolution for all; the first convolution of a stage is strided, transposed convolutions lead back up, skips are
    concatenated. The input is normalised and padded inside, and the output cropped to the input's size.

    With the strides, kernels and channels of one of its plans, it has the weights of nnU-Net's own network and gives
    the same logits; `partialseg.models.nnunet_weights` converts the weights.

    Reference:
        Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
        Nature Methods 2021: the plain encoder. Isensee et al., "nnU-Net Revisited", MICCAI 2024 (arXiv 2404.09556):
        the residual encoder.

    Args:
        num_classes: Classes including background.
        strides: Per stage the stride `(depth, height, width)` of its first convolution; the first is (1, 1, 1). A
            stage whose stride is 1 along an axis, and all before it, has kernels of 1 along it when its voxels are
            still anisotropic; see `kernel_sizes`.
        base_channels: Channels of the first stage, doubled at each further one.
        max_channels: The most channels a stage has.
        kernels: Per stage the size of its kernels, odd along each axis; None: those of `kernel_sizes`.
        encoder: Whether the stages on the way down are plain convolutions or residual blocks.
        convolutions_per_stage: Convolutions, or residual blocks, of each stage on the way down: one number, or one
            for each stage; None: 2 convolutions, or 1, 3, 4, 6, 6, … blocks.
        decoder_convolutions: Convolutions of each stage on the way up; None: 2, with a residual encoder 1.
        convolution_bias: Whether convolutions have a bias; those that give the logits always have.
        dropout: Share of the channels that are set to 0 after each convolution while training, 0 to below 1; in a
            residual block after the first one.
        deep_supervision: Whether to return logits of each stage of the decoder, finest first.
        window_hu: Window to which HU are clipped, mapped to -1 … 1.
        name: Name of the model.

    Returns:
        A functional model. Input float HU, `(batch, depth, height, width, 1)`. Output float32 logits,
        `(batch, depth, height, width, num_classes)`; with deep supervision a list, of which entry `k` is
        coarser by `supervision_strides(strides)[k]`, its sizes rounded up.

    Raises:
        ValueError: If there is no such encoder, a number of convolutions is below 1 or there are not as many as
            stages, or the stages cannot be built, see `plan_stages`.

    Example:
        >>> model = unet(6, strides=((1, 1, 1), (2, 2, 2)), base_channels=4)
        >>> model(keras.ops.zeros((1, 5, 7, 9, 1))).shape == (1, 5, 7, 9, 6)
        True
        >>> residual = unet(6, strides=((1, 1, 1), (2, 2, 2)), base_channels=4, encoder="residual")
        >>> len([layer for layer in residual.layers if layer.name.startswith("encoder1") and "_add" in layer.name])
        3
    """
    stages = plan_stages(strides, kernels, base_channels, max_channels, dropout, convolution_bias)
    if encoder not in ("plain", "residual"):
        raise ValueError(f"encoder must be 'plain' or 'residual', received {encoder!r}")
    residual = encoder == "residual"
    repeats = _encoder_repeats(convolutions_per_stage, len(stages.strides), residual)
    if decoder_convolutions is None:
        decoder_convolutions = 1 if residual else 2
    elif decoder_convolutions < 1:
        raise ValueError(f"decoder_convolutions must be 1 at least, received {decoder_convolutions}")

    inputs, x = network_input(stages, window_hu)
    features = _encode_residual(x, stages, repeats) if residual else encode(x, stages, repeats)
    outputs = []
    for stage, x in _decode(features, stages, decoder_convolutions):
        if stage == 0 or deep_supervision:
            # Logits stay float32 under mixed precision: softmax over half floats loses the small classes.
            logits = layers.Conv3D(
                num_classes, 1, kernel_initializer="he_normal", dtype="float32", name=f"logits{stage}"
            )(x)
            outputs.insert(0, cropped(logits, inputs, stages.coarser(stage), f"crop{stage}"))
    return keras.Model(inputs, outputs if deep_supervision else outputs[0], name=name)


def _encoder_repeats(number: int | Sequence[int] | None, stages: int, residual: bool) -> tuple[int, ...]:
    """Convolutions or residual blocks of each stage of the encoder.

    Example:
        >>> _encoder_repeats(None, 5, residual=True), _encoder_repeats(3, 2, residual=False)
        ((1, 3, 4, 6, 6), (3, 3))
    """
    if number is None:
        last = RESIDUAL_BLOCKS[-1]
        return (*RESIDUAL_BLOCKS, *(last,) * stages)[:stages] if residual else (2,) * stages
    repeats = (number,) * stages if isinstance(number, int) else tuple(number)
    if len(repeats) != stages or min(repeats) < 1:
        raise ValueError(
            f"convolutions_per_stage must be 1 at least, one number or {stages}, received {number}"
        )
    return repeats


def _encode_residual(x: Any, stages: Stages, blocks: Sequence[int]) -> list[Any]:
    """Features of each stage, finest first, from a first convolution and residual blocks."""
    options = {"dropout": stages.dropout, "bias": stages.bias}
    x = convolution(x, stages.channels[0], stages.kernels[0], "stem", **options)
    features = []
    for stage, (width, kernel) in enumerate(zip(stages.channels, stages.kernels, strict=True)):
        for block in range(blocks[stage]):
            stride = (1, 1, 1) if block else stages.strides[stage]
            x = residual_block(x, width, kernel, f"encoder{stage}_{block}", stride=stride, **options)
        features.append(x)
    return features


def _decode(features: list[Any], stages: Stages, convolutions: int) -> list[tuple[int, Any]]:
    """Each stage of the decoder and its features, coarsest first."""
    x, decoded = features[-1], []
    for stage in reversed(range(len(features) - 1)):
        x = layers.Concatenate(name=f"skip{stage}")([upsampled(x, stages, stage), features[stage]])
        for repeat in range(convolutions):
            x = convolution(
                x,
                stages.channels[stage],
                stages.kernels[stage],
                f"decoder{stage}_{repeat}",
                dropout=stages.dropout,
                bias=stages.bias,
            )
        decoded.append((stage, x))
    return decoded
