"""Losses for partial labels: the marginal and exclusion losses of Shi et al. (2021), and those of others.

All take candidates and logits; `preset(name)` makes one by its name, and `PRESETS` lists them.
"""

from partialseg.losses.baselines import IgnoreBackground, NaiveBackground
from partialseg.losses.exclusion import ExclusionCrossEntropy, ExclusionDice
from partialseg.losses.label_set_dice import LabelSetDice, LeafDice
from partialseg.losses.marginal import MarginalCrossEntropy, MarginalDice
from partialseg.losses.masked_sigmoid import MaskedSigmoid
from partialseg.losses.presets import PRESETS, preset
from partialseg.losses.prior_aware import PriorAware
from partialseg.losses.published_code import PublishedCodeWithSummedLogits
from partialseg.losses.supervision import PartialSupervision
from partialseg.losses.target_adaptive import TargetAdaptive

__all__ = [
    "PRESETS",
    "ExclusionCrossEntropy",
    "ExclusionDice",
    "IgnoreBackground",
    "LabelSetDice",
    "LeafDice",
    "MarginalCrossEntropy",
    "MarginalDice",
    "MaskedSigmoid",
    "NaiveBackground",
    "PartialSupervision",
    "PriorAware",
    "PublishedCodeWithSummedLogits",
    "TargetAdaptive",
    "preset",
]
