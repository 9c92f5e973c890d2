"""The marginal and exclusion losses of Shi et al. (2021): candidates and logits in, a loss out."""

from partialseg.losses.exclusion import ExclusionCrossEntropy, ExclusionDice
from partialseg.losses.marginal import MarginalCrossEntropy, MarginalDice
from partialseg.losses.supervision import PartialSupervision

__all__ = [
    "ExclusionCrossEntropy",
    "ExclusionDice",
    "MarginalCrossEntropy",
    "MarginalDice",
    "PartialSupervision",
]
