"""The `losses` section of a config: which loss, with which options."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from partialseg.training.sections import Section, some_each_once

ClassReduction = Literal["mean", "sum"]
Share = Annotated[float, Field(gt=0, lt=1)]


class PartialSupervisionConfig(Section):
    """What `partialseg.losses.PartialSupervision` takes; see there."""

    preset: Literal["partial_supervision"] = "partial_supervision"
    marginal: float = Field(1.0, ge=0)
    exclusion: float = Field(2.0, ge=0)
    terms: tuple[Literal["mCE", "mDC", "eCE", "eDC"], ...] = ("mCE", "mDC", "eCE", "eDC")
    class_reduction: ClassReduction = "mean"
    include_background: bool = True
    batch: bool = False
    merged_background_excludes: bool = True
    partial_samples_only: bool = True

    @field_validator("terms")
    @classmethod
    def _some_terms_each_once(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        return some_each_once(terms)

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> PartialSupervisionConfig:
        weights = {"m": self.marginal, "e": self.exclusion}
        if not any(weights[term[0]] for term in self.terms):
            raise ValueError(
                f"found marginal {self.marginal:g}, exclusion {self.exclusion:g} and terms {', '.join(self.terms)}: "
                "the loss would be 0 whatever is predicted"
            )
        return self


class TargetAdaptiveConfig(Section):
    """What `partialseg.losses.TargetAdaptive` takes: nothing."""

    preset: Literal["target_adaptive"] = "target_adaptive"


class MaskedSigmoidConfig(Section):
    """What `partialseg.losses.MaskedSigmoid` takes; see there."""

    preset: Literal["masked_sigmoid"] = "masked_sigmoid"
    class_reduction: ClassReduction = "mean"
    batch: bool = False


class _DiceOfSetsConfig(Section):
    cross_entropy: float = Field(0.0, ge=0)
    exponent: Literal[1, 2] = 2
    class_reduction: ClassReduction = "mean"
    include_background: bool = True
    batch: bool = False


class LeafDiceConfig(_DiceOfSetsConfig):
    """What `partialseg.losses.LeafDice` takes; see there."""

    preset: Literal["leaf_dice"] = "leaf_dice"


class LabelSetDiceConfig(_DiceOfSetsConfig):
    """What `partialseg.losses.LabelSetDice` takes; see there."""

    preset: Literal["label_set_dice"] = "label_set_dice"


class _BaselineConfig(Section):
    class_reduction: ClassReduction = "mean"
    include_background: bool = True
    batch: bool = False


class NaiveBackgroundConfig(_BaselineConfig):
    """What `partialseg.losses.NaiveBackground` takes; see there."""

    preset: Literal["naive_background"] = "naive_background"


class IgnoreBackgroundConfig(_BaselineConfig):
    """What `partialseg.losses.IgnoreBackground` takes; see there."""

    preset: Literal["ignore_background"] = "ignore_background"


def _form_of_prior(prior: Any) -> str | None:
    """Whether a prior is by name or in the order of the classes; None where it is neither."""
    if isinstance(prior, dict):
        return "by name"
    return "in order" if isinstance(prior, list | tuple) else None


#: The form is told first, so that an error is that of the form which was given.
_Prior = Annotated[
    Annotated[dict[str, Share], Tag("by name")] | Annotated[tuple[Share, ...], Tag("in order")],
    Discriminator(
        _form_of_prior,
        custom_error_type="prior",
        custom_error_message="prior must be shares by class name, or a list of shares",
    ),
]


class PriorAwareConfig(Section):
    """What `partialseg.losses.PriorAware` takes; see there.

    Attributes:
        prior: Share of the voxels of a patch for each class, background first: by name, or in the order of the
            classes. None: measured in patches of the fully annotated training cases when training begins, and
            written into the config of the run.
    """

    preset: Literal["prior_aware"] = "prior_aware"
    prior: _Prior | None = None
    weight: float = Field(0.1, ge=0)
    dual_rate: float | None = Field(0.05, gt=0, le=1)
    merged_voxels: Literal["pseudo_label", "marginal"] = "pseudo_label"
    one_against_rest: bool = True
    partial_samples_only: bool = True

    @field_validator("prior")
    @classmethod
    def _shares_sum_to_one(cls, prior: Any) -> Any:
        if prior is not None and abs(sum(prior.values() if isinstance(prior, dict) else prior) - 1) > 1e-3:
            raise ValueError("the shares must sum to 1, background among them")
        return prior


class PublishedCodeConfig(Section):
    """What `partialseg.losses.PublishedCodeWithSummedLogits` takes; see there, and use another."""

    preset: Literal["published_code_with_summed_logits"] = "published_code_with_summed_logits"
    exclusion: float = Field(2.0, ge=0)
    batch: bool = True


#: The losses that a config can choose by `preset`; `partialseg.losses.PRESETS` are the same.
LOSS_CONFIGS: dict[str, type[Section]] = {
    section.model_fields["preset"].default: section
    for section in (
        PartialSupervisionConfig,
        TargetAdaptiveConfig,
        PriorAwareConfig,
        MaskedSigmoidConfig,
        LeafDiceConfig,
        LabelSetDiceConfig,
        NaiveBackgroundConfig,
        IgnoreBackgroundConfig,
        PublishedCodeConfig,
    )
}


def _preset_of(losses: Any) -> str:
    """Which loss a `losses` section chooses."""
    if isinstance(losses, dict):
        return str(losses.get("preset", "partial_supervision"))
    return getattr(losses, "preset", "partial_supervision")


#: The `losses` of a config: the section of the preset that it names, "partial_supervision" where it names none.
LossConfig = Annotated[
    Union[tuple(Annotated[section, Tag(preset)] for preset, section in LOSS_CONFIGS.items())],  # noqa: UP007 (a tuple is no operand of |)
    Discriminator(
        _preset_of,
        custom_error_type="preset",
        custom_error_message=f"preset must be one of {', '.join(LOSS_CONFIGS)}",
    ),
]
