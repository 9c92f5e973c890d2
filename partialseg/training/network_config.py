"""The `network` section of a config: which network, with which options."""

from __future__ import annotations

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from partialseg.data.augmentation.config import Window
from partialseg.training.sections import Section

Stride = tuple[PositiveInt, PositiveInt, PositiveInt]


class NetworkConfig(Section):
    """What `partialseg.models.unet` takes; see there."""

    strides: tuple[Stride, ...] = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    kernels: tuple[Stride, ...] | None = None
    base_channels: PositiveInt = 32
    max_channels: PositiveInt = 320
    convolutions_per_stage: PositiveInt = 2
    dropout: float = Field(0.0, ge=0, lt=1)
    deep_supervision: bool = False
    window_hu: Window = (-200.0, 300.0)

    @field_validator("strides")
    @classmethod
    def _two_stages_at_least(cls, strides: tuple) -> tuple:
        if len(strides) < 2:
            raise ValueError("at least two stages are needed")
        return strides

    @field_validator("kernels")
    @classmethod
    def _odd_kernels_for_each_stage(cls, kernels: tuple | None, info: ValidationInfo) -> tuple | None:
        strides = info.data.get("strides")
        if kernels is None or strides is None:
            return kernels
        if len(kernels) != len(strides):
            raise ValueError(f"there are {len(kernels)}, and `strides` has {len(strides)} stages")
        if not all(size % 2 for kernel in kernels for size in kernel):
            raise ValueError("sizes must be odd")
        return kernels
