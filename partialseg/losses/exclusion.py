"""Exclusion losses: organs do not overlap, so an annotated voxel says what it is not."""

from __future__ import annotations

from typing import Any

import keras

from partialseg.losses import terms
from partialseg.losses.inputs import Tensor
from partialseg.losses.reductions import checked_class_reduction
from partialseg.losses.voxel_sums import voxel_sums


@keras.saving.register_keras_serializable(package="partialseg")
class ExclusionDice(keras.losses.Loss):
    """Soft overlap of each class with the voxels that cannot be it (eq. 9 and 10), to be made small.

    Per class `2 Σ e p / (Σ e + Σ p + ε)`, with e the complement of the voxel's candidates. ε stands in the
    denominator alone: where nothing is excluded and nothing predicted the value is 0. Voxels whose
    candidates are all classes (or none) are left out of every sum.

    Reference:
        Shi, Xiao, Chen, Zhou: Marginal loss and exclusion loss for partially supervised multi-organ
        segmentation. Medical Image Analysis 2021.

    Args:
        from_logits: Whether `y_pred` holds logits, else probabilities.
        class_reduction: "mean" over the classes, or "sum", as in the paper. A class that nothing excludes
            counts with the value 0.
        include_background: Whether class 0 counts: whether it is a mistake of its own to call an annotated
            organ background.
        batch: Whether sums are over the batch (and over all replicas of a TensorFlow strategy) instead of
            each sample. Every sample then has the same value.
        merged_background_excludes: True: a background voxel excludes the annotated organs (as the paper's
            code has it). False: voxels that may be background exclude nothing, only annotated organs do
            (eq. 9 read literally).
        partial_samples_only: True: a sample takes part only if it is partial, that is, if one of its voxels
            has several candidates, but not all classes; others have the value 0 and, with `batch`, are left
            out of the sums. On fully annotated samples the paper uses the regular losses alone. A patch that
            lies within annotated organs has no such voxel, and counts as fully annotated.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Raises:
        ValueError: If `class_reduction` is not one of "mean", "sum".

    Example:
        A voxel of liver and one of background or spleen. All is right but half a voxel of spleen in the
        liver: 2 * 0.5 / (1 + 1) for the spleen, nothing for background and liver.

        >>> loss = ExclusionDice(from_logits=False, class_reduction="sum")
        >>> round(float(loss([[[0, 1, 0], [1, 0, 1]]], [[[0, 0.5, 0.5], [0.5, 0, 0.5]]])), 4)
        0.5
    """

    def __init__(
        self,
        from_logits: bool = True,
        class_reduction: str = "mean",
        include_background: bool = True,
        batch: bool = False,
        merged_background_excludes: bool = True,
        partial_samples_only: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "exclusion_dice",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits
        self.class_reduction = checked_class_reduction(class_reduction)
        self.include_background = include_background
        self.batch = batch
        self.merged_background_excludes = merged_background_excludes
        self.partial_samples_only = partial_samples_only

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`."""
        sums = voxel_sums(
            y_true,
            y_pred,
            self.from_logits,
            merged_background_excludes=self.merged_background_excludes,
        )
        return terms.exclusion_dice(
            sums,
            self.class_reduction,
            self.include_background,
            self.batch,
            self.partial_samples_only,
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss."""
        return {
            **super().get_config(),
            "dtype": self.dtype,
            "from_logits": self.from_logits,
            "class_reduction": self.class_reduction,
            "include_background": self.include_background,
            "batch": self.batch,
            "merged_background_excludes": self.merged_background_excludes,
            "partial_samples_only": self.partial_samples_only,
        }


@keras.saving.register_keras_serializable(package="partialseg")
class ExclusionCrossEntropy(keras.losses.Loss):
    """Penalty on the probability of classes that a voxel cannot be (eq. 11 with the paper's ε = 1).

    Per voxel `Σ e log(p + 1)` over the classes, each between 0 and log 2, with e the complement of the
    voxel's candidates; per sample the mean over all voxels. Voxels whose candidates are all classes (or none)
    exclude nothing.

    Reference:
        Shi, Xiao, Chen, Zhou: Marginal loss and exclusion loss for partially supervised multi-organ
        segmentation. Medical Image Analysis 2021.

    Args:
        from_logits: Whether `y_pred` holds logits, else probabilities.
        include_background: Whether class 0 counts.
        merged_background_excludes: See `ExclusionDice`.
        partial_samples_only: See `ExclusionDice`.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Example:
        A voxel of background or spleen, which cannot be liver:

        >>> loss = ExclusionCrossEntropy(from_logits=False)
        >>> round(float(loss([[1, 0, 1]], [[0.1, 0.2, 0.7]])), 4)  # log(0.2 + 1)
        0.1823
    """

    def __init__(
        self,
        from_logits: bool = True,
        include_background: bool = True,
        merged_background_excludes: bool = True,
        partial_samples_only: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "exclusion_cross_entropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits
        self.include_background = include_background
        self.merged_background_excludes = merged_background_excludes
        self.partial_samples_only = partial_samples_only

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`."""
        sums = voxel_sums(
            y_true,
            y_pred,
            self.from_logits,
            merged_background_excludes=self.merged_background_excludes,
            penalise_background=self.include_background,
        )
        return terms.exclusion_cross_entropy(
            sums,
            self.partial_samples_only,
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss."""
        return {
            **super().get_config(),
            "dtype": self.dtype,
            "from_logits": self.from_logits,
            "include_background": self.include_background,
            "merged_background_excludes": self.merged_background_excludes,
            "partial_samples_only": self.partial_samples_only,
        }
