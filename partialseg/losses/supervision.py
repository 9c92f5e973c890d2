"""The weighted sum of marginal and exclusion losses with which a network is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from partialseg.losses.class_terms import class_terms
from partialseg.losses.inputs import Tensor
from partialseg.losses.reductions import checked_class_reduction
from partialseg.losses.terms import (
    exclusion_cross_entropy,
    exclusion_dice,
    marginal_cross_entropy,
    marginal_dice,
)
from partialseg.losses.voxel_sums import voxel_sums

MARGINAL_TERMS = ("mCE", "mDC")
EXCLUSION_TERMS = ("eCE", "eDC")
TERMS = (*MARGINAL_TERMS, *EXCLUSION_TERMS)


@keras.saving.register_keras_serializable(package="partialseg")
class PartialSupervision(keras.losses.Loss):
    """`marginal * (mCE + mDC) + exclusion * (eCE + eDC)`, of the terms chosen.

    The four terms are those of `MarginalCrossEntropy` (mCE), `MarginalDice` (mDC), `ExclusionCrossEntropy`
    (eCE) and `ExclusionDice` (eDC), computed from one softmax. With the defaults it is plain
    cross-entropy plus soft Dice on fully annotated samples, so the same loss serves both stages of training.

    Reference:
        Shi, Xiao, Chen, Zhou: Marginal loss and exclusion loss for partially supervised multi-organ
        segmentation. Medical Image Analysis 2021; the weights 1 : 2 are the best of its Table 5.

    Args:
        marginal: Weight of the marginal terms, at least 0.
        exclusion: Weight of the exclusion terms, at least 0.
        terms: Which of "mCE", "mDC", "eCE", "eDC" take part.
        from_logits: Whether `y_pred` holds logits, else probabilities.
        class_reduction: Of the two Dice terms, see `MarginalDice` and `ExclusionDice`.
        include_background: Of mDC, eCE and eDC.
        batch: Of the two Dice terms.
        merged_background_excludes: Of the exclusion terms, see `ExclusionDice`.
        partial_samples_only: Of the exclusion terms, see `ExclusionDice`.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between. Any value above 0 counts
            as 1. Voxels whose candidates are all classes (or none) are ignored: loss 0, gradient 0.
        y_pred: Logits or probabilities, same shape.

    Raises:
        ValueError: If a term or `class_reduction` is not known, or a weight is negative.

    Example:
        >>> loss = PartialSupervision(terms=("mCE", "eCE"), from_logits=False)
        >>> round(float(loss([[1, 0, 1]], [[0.1, 0.2, 0.7]])), 4)  # -log(0.8) + 2 * log(1.2)
        0.5878
    """

    def __init__(
        self,
        marginal: float = 1.0,
        exclusion: float = 2.0,
        terms: Sequence[str] = ("mCE", "mDC", "eCE", "eDC"),
        from_logits: bool = True,
        class_reduction: str = "mean",
        include_background: bool = True,
        batch: bool = False,
        merged_background_excludes: bool = True,
        partial_samples_only: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "partial_supervision",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if (
            not terms
            or isinstance(terms, str)
            or not set(terms) <= set(TERMS)
            or len(set(terms)) < len(terms)
        ):
            raise ValueError(f"terms must be some of {TERMS}, each once. Received: terms={terms!r}")
        if marginal < 0 or exclusion < 0:
            raise ValueError(
                f"The weights must not be negative. Received: marginal={marginal}, exclusion={exclusion}"
            )
        self.marginal = float(marginal)
        self.exclusion = float(exclusion)
        self.terms = tuple(terms)
        self.from_logits = from_logits
        self.class_reduction = checked_class_reduction(class_reduction)
        self.include_background = include_background
        self.batch = batch
        self.merged_background_excludes = merged_background_excludes
        self.partial_samples_only = partial_samples_only

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`."""
        values = self._values(y_true, y_pred, self.terms)
        return sum(self._weight(term) * value for term, value in values.items())

    def values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The four terms one by one, without weights, also those that are not chosen.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.

        Returns:
            One value per sample, `(batch,)`, under each of "mCE", "mDC", "eCE", "eDC".

        Example:
            >>> values = PartialSupervision(from_logits=False).values([[1, 0, 1]], [[0.1, 0.2, 0.7]])
            >>> {term: round(float(value[0]), 4) for term, value in values.items()}
            {'mCE': 0.2231, 'mDC': 0.5556, 'eCE': 0.1823, 'eDC': 0.1111}
        """
        return self._values(y_true, y_pred, TERMS)

    def class_values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The four terms of each class, without weights: see `partialseg.losses.class_terms`.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.

        Returns:
            `(batch, classes)` under the names of `values`; NaN where a class takes no part.

        Example:
            >>> loss = PartialSupervision(from_logits=False)
            >>> values = loss.class_values([[[1, 0, 1], [0, 1, 0]]], [[[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]]])
            >>> round(float(values["mCE"][0, 1]), 4)  # -log(0.8), of the voxel of liver
            0.2231
        """
        return class_terms(
            y_true,
            y_pred,
            self.from_logits,
            self.merged_background_excludes,
            self.partial_samples_only,
            self.include_background,
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss."""
        return {
            **super().get_config(),
            "dtype": self.dtype,
            "marginal": self.marginal,
            "exclusion": self.exclusion,
            "terms": list(self.terms),
            "from_logits": self.from_logits,
            "class_reduction": self.class_reduction,
            "include_background": self.include_background,
            "batch": self.batch,
            "merged_background_excludes": self.merged_background_excludes,
            "partial_samples_only": self.partial_samples_only,
        }

    def _weight(self, term: str) -> float:
        return self.marginal if term in MARGINAL_TERMS else self.exclusion

    def _values(self, y_true: Tensor, y_pred: Tensor, chosen: Sequence[str]) -> dict[str, Tensor]:
        sums = voxel_sums(
            y_true,
            y_pred,
            self.from_logits,
            exclusion=not set(chosen).isdisjoint(EXCLUSION_TERMS),
            merged_background_excludes=self.merged_background_excludes,
            penalise_background=self.include_background,
        )
        dice = (self.class_reduction, self.include_background, self.batch)
        compute = {
            "mCE": lambda: marginal_cross_entropy(sums),
            "mDC": lambda: marginal_dice(sums, *dice),
            "eCE": lambda: exclusion_cross_entropy(sums, self.partial_samples_only),
            "eDC": lambda: exclusion_dice(sums, *dice, self.partial_samples_only),
        }
        return {term: compute[term]() for term in chosen}
