"""The `network` section of a config: which network, with which options."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, PositiveInt, Tag, ValidationInfo, field_validator

from partialseg.data.augmentation.config import Window
from partialseg.training.sections import Section

Stride = tuple[PositiveInt, PositiveInt, PositiveInt]


class _UNetShape(Section):
    """What the networks have in common: a U-Net's stages.

    Attributes:
        strides: Per stage the stride `(depth, height, width)` of its first convolution.
        kernels: Per stage the size of its kernels; None: as `partialseg.models.stages.kernel_sizes` has them.
        base_channels: Channels of the first stage, doubled at each further one.
        max_channels: The most channels that a stage has.
        dropout: Share of the channels that are set to 0 after each convolution while training, 0 to below 1.
        window_hu: Window to which HU are clipped.
    """

    strides: tuple[Stride, ...] = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    kernels: tuple[Stride, ...] | None = None
    base_channels: PositiveInt = 32
    max_channels: PositiveInt = 320
    dropout: float = Field(0.0, ge=0, lt=1)
    window_hu: Window = (-200.0, 300.0)

    @field_validator("strides")
    @classmethod
    def _first_stage_as_the_input_and_others(cls, strides: tuple) -> tuple:
        if len(strides) < 2:
            raise ValueError("at least two stages are needed")
        if strides[0] != (1, 1, 1):
            raise ValueError(
                f"the first stage has the voxels of the input, expected [1, 1, 1], found {list(strides[0])}"
            )
        return strides

    @field_validator("kernels")
    @classmethod
    def _kernels_of_odd_size_for_each_stage(cls, kernels: tuple | None, info: ValidationInfo) -> tuple | None:
        strides = info.data.get("strides")
        if kernels is None or strides is None:
            return kernels
        if len(kernels) != len(strides):
            raise ValueError(f"there are {len(kernels)}, and `strides` has {len(strides)} stages")
        if not all(size % 2 for kernel in kernels for size in kernel):
            raise ValueError("sizes must be odd")
        return kernels


class UNetConfig(_UNetShape):
    """What `partialseg.models.unet` takes; see there.

    Attributes:
        encoder: Plain convolutions or residual blocks on the way down.
        convolutions_per_stage: Convolutions, or residual blocks, of each stage on the way down: one number, or one
            for each stage; None: 2 convolutions, or 1, 3, 4, 6, 6, … blocks.
        decoder_convolutions: Convolutions of each stage on the way up; None: 2, with a residual encoder 1.
        convolution_bias: Whether convolutions have a bias.
        deep_supervision: Whether each stage of the decoder gives logits.
    """

    kind: Literal["unet"] = "unet"
    encoder: Literal["plain", "residual"] = "plain"
    convolutions_per_stage: PositiveInt | tuple[PositiveInt, ...] | None = None
    decoder_convolutions: PositiveInt | None = None
    convolution_bias: bool = True
    deep_supervision: bool = False

    @field_validator("convolutions_per_stage")
    @classmethod
    def _one_for_each_stage(cls, number: Any, info: ValidationInfo) -> Any:
        strides = info.data.get("strides")
        if isinstance(number, tuple) and strides is not None and len(number) != len(strides):
            raise ValueError(f"there are {len(number)}, and `strides` has {len(strides)} stages")
        return number


class PipoFanConfig(_UNetShape):
    """What `partialseg.models.pipo_fan` takes; see there."""

    kind: Literal["pipo_fan"] = "pipo_fan"
    deep_supervision: bool = True


class ConditionedConfig(_UNetShape):
    """What `partialseg.models.conditioned_unet` takes (Dmitriev and Kaufman, 2019); see there."""

    kind: Literal["conditioned"] = "conditioned"
    deep_supervision: bool = False


class DynamicHeadConfig(_UNetShape):
    """What `partialseg.models.dynamic_head_unet` takes (DoDNet: Zhang et al., 2021); see there."""

    kind: Literal["dynamic_head"] = "dynamic_head"
    head_channels: PositiveInt = 8
    deep_supervision: bool = False


#: The networks that a config can choose by `kind`; `partialseg.models.NETWORKS` are the same.
NETWORK_CONFIGS: dict[str, type[_UNetShape]] = {
    section.model_fields["kind"].default: section
    for section in (UNetConfig, PipoFanConfig, ConditionedConfig, DynamicHeadConfig)
}


def network_of_kind(kind: str, like: _UNetShape) -> _UNetShape:
    """A network of another kind with the stages and channels of a given one.

    Args:
        kind: One of `NETWORK_CONFIGS`.
        like: Of any kind. Deep supervision is taken over from it too, but for PIPO-FAN, whose scales are always
            supervised.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> dodnet = network_of_kind("dynamic_head", UNetConfig(base_channels=8, deep_supervision=True))
        >>> dodnet.base_channels, dodnet.deep_supervision, dodnet.head_channels
        (8, True, 8)
    """
    if kind not in NETWORK_CONFIGS:
        raise ValueError(f"there is no network {kind!r}; there are {', '.join(NETWORK_CONFIGS)}")
    shape = like.model_dump(include=set(_UNetShape.model_fields))
    if kind != "pipo_fan":
        shape["deep_supervision"] = like.deep_supervision
    return NETWORK_CONFIGS[kind].model_validate(shape)


def _kind_of(network: Any) -> str:
    """Which network a `network` section chooses."""
    if isinstance(network, dict):
        return str(network.get("kind", "unet"))
    return getattr(network, "kind", "unet")


#: The `network` of a config: the section of the kind that it names, "unet" where it names none.
NetworkConfig = Annotated[
    Union[tuple(Annotated[section, Tag(kind)] for kind, section in NETWORK_CONFIGS.items())],  # noqa: UP007
    Discriminator(
        _kind_of,
        custom_error_type="kind",
        custom_error_message=f"kind must be one of {', '.join(NETWORK_CONFIGS)}",
    ),
]
