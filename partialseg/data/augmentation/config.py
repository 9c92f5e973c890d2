"""Which transforms are drawn how often, and how strong: the numbers of nnU-Net's default trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveFloat,
    field_validator,
    model_validator,
)

#: A patch that is over this many times as long along one axis as along its first one is turned in its planes alone.
ANISOTROPIC = 3

Probability = Annotated[float, Field(ge=0, le=1)]


def _lower_end_first(window_hu: tuple[float, float]) -> tuple[float, float]:
    if not window_hu[0] < window_hu[1]:
        raise ValueError("the lower end must come first")
    return window_hu


#: HU to which an image is clipped.
Window = Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_lower_end_first)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Chance(_Section):
    """A transform that happens with a probability, at a strength drawn from a range.

    Strengths are drawn evenly; those of brightness, contrast and gamma half below 1 and half above, as in nnU-Net.

    Attributes:
        probability: Of the transform, for each patch.
        range: Least and greatest strength.
    """

    probability: Probability
    range: tuple[FiniteFloat, FiniteFloat]

    @field_validator("range")
    @classmethod
    def _least_first(cls, range: tuple[float, float]) -> tuple[float, float]:
        if range[0] > range[1]:
            raise ValueError("the least must come first")
        return range


class MirrorConfig(_Section):
    """Mirroring, drawn for each axis by itself.

    Attributes:
        probability: For each of the axes.
        axes: "x" is left and right, and swaps the left and right organs; "y" front and back; "z" head and feet.
    """

    probability: Probability = 0.5
    axes: tuple[Literal["z", "y", "x"], ...] = ("z", "y", "x")

    @field_validator("axes")
    @classmethod
    def _each_once(cls, axes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(axes)) < len(axes):
            raise ValueError("each axis once")
        return axes


class AugmentationConfig(_Section):
    """How patches are augmented. The defaults are those of nnU-Net's trainer (Isensee et al., 2021, supplement 4).

    What differs from nnU-Net:

    - The planes of flat patches are turned by up to 30 degrees too, not by 180: prepared scans all lie one way, and
      after half a turn a mirrored patch would show the right kidney where another one shows the left.
    - Turns and scaling are in millimetres, not in voxels, so that they do not shear what they turn; and about the voxel
      on which a patch is centred, if it is, so that it stays in the patch.
    - A mirror across left and right exchanges left and right organs.
    - Outside the volume is air, and ignored; nnU-Net has the mean intensity there, and background.
    - The network clips to its window again (`partialseg.models.layers.NormalizeHU`): what brightness or noise lifts out
      of it is not seen.

    Attributes:
        rotation: Degrees, for each axis.
        scaling: Factor by which the field of view grows; above 1 organs look smaller.
        noise: Standard deviation of Gaussian noise, in units of `std_hu`.
        blur: Standard deviation of a Gaussian, in voxels, drawn for each axis.
        brightness: Factor of the distance from `mean_hu`.
        contrast: Factor of the distance from the patch's mean; no voxel leaves the patch's range.
        low_resolution: Factor by which the patch is sampled down, and then interpolated up again.
        inverted_gamma: Exponent on the patch's range upside down; mean and standard deviation are kept.
        gamma: Exponent on the patch's range, likewise.
        mirror: Axes that are mirrored.
        in_plane: Whether patches are turned, scaled and sampled down in their planes alone; None: if they are more
            than three times as long along one axis as deep, which is nnU-Net's rule.
        window_hu: HU to which the image is clipped first: what the network clips to.
        mean_hu, std_hu: Of the organs, as nnU-Net normalises by them: the zero and the unit of brightness and noise.

    Example:
        >>> config = AugmentationConfig(rotation={"probability": 0.5, "range": (-15, 15)})
        >>> config.rotation.range, config.gamma.probability, config.is_in_plane((48, 190, 190))
        ((-15.0, 15.0), 0.3, True)
    """

    rotation: Chance = Chance(probability=0.2, range=(-30, 30))
    scaling: Chance = Chance(probability=0.2, range=(0.7, 1.4))
    noise: Chance = Chance(probability=0.1, range=(0, 0.1))
    # nnU-Net draws blur with 0.2 and low resolution with 0.25, and then each channel with 0.5; a CT has one channel.
    blur: Chance = Chance(probability=0.1, range=(0.5, 1))
    brightness: Chance = Chance(probability=0.15, range=(0.75, 1.25))
    contrast: Chance = Chance(probability=0.15, range=(0.75, 1.25))
    low_resolution: Chance = Chance(probability=0.125, range=(0.5, 1))
    inverted_gamma: Chance = Chance(probability=0.1, range=(0.7, 1.5))
    gamma: Chance = Chance(probability=0.3, range=(0.7, 1.5))
    mirror: MirrorConfig = MirrorConfig()
    in_plane: bool | None = None
    window_hu: Window = (-200.0, 300.0)
    mean_hu: FiniteFloat = 80.0
    std_hu: PositiveFloat = 100.0

    @field_validator("scaling", "contrast", "brightness", "inverted_gamma", "gamma", "low_resolution")
    @classmethod
    def _above_zero(cls, chance: Chance) -> Chance:
        if chance.range[0] <= 0:
            raise ValueError("its range must be above 0")
        return chance

    @field_validator("noise", "blur")
    @classmethod
    def _not_negative(cls, chance: Chance) -> Chance:
        if chance.range[0] < 0:
            raise ValueError("its range must not be negative")
        return chance

    @field_validator("low_resolution")
    @classmethod
    def _at_most_one(cls, chance: Chance) -> Chance:
        if chance.range[1] > 1:
            raise ValueError("its range must not be above 1")
        return chance

    @model_validator(mode="after")
    def _sides_stay_told_apart(self) -> AugmentationConfig:
        """Half a turn and a mirror across y are a mirror across x: what was swapped would meet what was not."""
        turned = self.rotation.probability > 0 and max(map(abs, self.rotation.range)) > 90
        across = self.mirror.probability > 0 and set(self.mirror.axes) - {"x"}
        if turned and across and "x" in self.mirror.axes:
            raise ValueError(
                "rotation by more than 90 degrees and mirroring across z or y make left look like right: keep "
                "`rotation.range` within 90, or set `mirror.axes` to [x]"
            )
        return self

    def is_in_plane(self, patch_size: Sequence[int]) -> bool:
        """Whether a patch of this size is turned in its planes alone."""
        return max(patch_size) > ANISOTROPIC * patch_size[0] if self.in_plane is None else self.in_plane
