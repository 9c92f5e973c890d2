"""All ways to learn from partial labels by name, so that a config can choose one."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras

from partialseg.losses.baselines import IgnoreBackground, NaiveBackground
from partialseg.losses.label_set_dice import LabelSetDice, LeafDice
from partialseg.losses.masked_sigmoid import MaskedSigmoid
from partialseg.losses.prior_aware import PriorAware
from partialseg.losses.published_code import PublishedCodeWithSummedLogits
from partialseg.losses.supervision import PartialSupervision
from partialseg.losses.target_adaptive import TargetAdaptive

#: Name of a preset and its loss; the defaults of the class are those of the preset ("prior_aware" must be given
#: its `prior`). Each takes candidates and logits, returns one value per sample, and has `values(y_true, y_pred)`:
#: its terms one by one, without weights; and `class_values(y_true, y_pred)`: the same class by class.
PRESETS: Mapping[str, type[keras.losses.Loss]] = MappingProxyType(
    {
        "partial_supervision": PartialSupervision,
        "target_adaptive": TargetAdaptive,
        "prior_aware": PriorAware,
        "masked_sigmoid": MaskedSigmoid,
        "leaf_dice": LeafDice,
        "label_set_dice": LabelSetDice,
        "naive_background": NaiveBackground,
        "ignore_background": IgnoreBackground,
        "published_code_with_summed_logits": PublishedCodeWithSummedLogits,
    }
)


def preset(name: str, /, **options: Any) -> keras.losses.Loss:
    """Make the loss of a preset.

    Args:
        name: One of `PRESETS`.
        **options: Arguments of its class, instead of their defaults.

    Raises:
        ValueError: If there is no such preset, it has no such option, or an option has a value that it cannot have.

    Example:
        >>> loss = preset("naive_background", class_reduction="sum")
        >>> sorted(loss.values([[1, 0, 1]], [[0.0, 0.0, 0.0]]))
        ['CE', 'DC']
        >>> preset("naive")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: There is no preset 'naive'; there are partial_supervision, target_adaptive, ...
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}; there are {', '.join(PRESETS)}")
    known = inspect.signature(PRESETS[name]).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"Preset {name!r} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    missing = [option for option, p in known.items() if p.default is p.empty and option not in options]
    if missing:
        raise ValueError(f"Preset {name!r} must be given {', '.join(missing)}; see {PRESETS[name].__name__}")
    return PRESETS[name](**options)
