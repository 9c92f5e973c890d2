"""Marginal losses: what is not annotated is merged with background, and its probability is added up."""

from __future__ import annotations

from typing import Any

import keras

from partialseg.losses import terms
from partialseg.losses.inputs import Tensor
from partialseg.losses.reductions import checked_class_reduction
from partialseg.losses.voxel_sums import voxel_sums


@keras.saving.register_keras_serializable(package="partialseg")
class MarginalCrossEntropy(keras.losses.Loss):
    """Cross-entropy of the set of classes that each voxel may be (eq. 4 and 5).

    Per voxel `-log q`, with q the sum of the probabilities of the voxel's candidates; per sample the mean
    over all voxels. With one candidate everywhere it is plain cross-entropy. Voxels whose candidates are all
    classes (or none) are ignored: loss 0, gradient 0, though they count in the mean.

    Reference:
        Shi, Xiao, Chen, Zhou: Marginal loss and exclusion loss for partially supervised multi-organ
        segmentation. Medical Image Analysis 2021.

    Args:
        from_logits: Whether `y_pred` holds logits, else probabilities.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Example:
        Classes background, liver, spleen; the spleen is not annotated:

        >>> loss = MarginalCrossEntropy(from_logits=False)
        >>> round(float(loss([[1, 0, 1]], [[0.1, 0.2, 0.7]])), 4)  # -log(0.1 + 0.7)
        0.2231
    """

    def __init__(
        self,
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "marginal_cross_entropy",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`."""
        return terms.marginal_cross_entropy(voxel_sums(y_true, y_pred, self.from_logits, exclusion=False))

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss."""
        return {**super().get_config(), "dtype": self.dtype, "from_logits": self.from_logits}


@keras.saving.register_keras_serializable(package="partialseg")
class MarginalDice(keras.losses.Loss):
    """Soft Dice loss per merged class (eq. 6): `1 - 2 Σ z q / (Σ z + Σ q)`.

    In each sample, classes that appear together in the candidates of a voxel are merged (and so are those
    that are linked through others): their probabilities are added, and the merged class counts once. A
    class that stands alone is its own. Voxels whose candidates are all classes (or none) are left out of
    every sum; a sample that has no others has loss 0.

    A merged class without a voxel in the sample counts, with the value 1 and no gradient, as in the plain
    soft Dice without smoothing in the numerator. With all voxels annotated the loss is that soft Dice.

    Reference:
        Shi, Xiao, Chen, Zhou: Marginal loss and exclusion loss for partially supervised multi-organ
        segmentation. Medical Image Analysis 2021.

    Args:
        from_logits: Whether `y_pred` holds logits, else probabilities.
        class_reduction: "mean" over the merged classes of the sample, so that a fully annotated sample does
            not weigh more than one with a single organ; or "sum", as in the paper.
        include_background: Whether the merged class that holds class 0 counts.
        batch: Whether Dice is of sums over the batch (and over all replicas of a TensorFlow strategy)
            instead of each sample. Merging stays per sample; merged classes of different samples are added
            where their lowest class is the same, so the merged backgrounds of all samples are one class.
            Every sample then has the same value.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Raises:
        ValueError: If `class_reduction` is not one of "mean", "sum".

    Example:
        Two voxels, of liver and of background-or-spleen, where the network is right, whichever it is:

        >>> loss = MarginalDice(from_logits=False)
        >>> candidates = [[[0, 1, 0], [1, 0, 1]]]
        >>> round(float(loss(candidates, [[[0, 1, 0], [0.3, 0, 0.7]]])), 4)
        0.0
    """

    def __init__(
        self,
        from_logits: bool = True,
        class_reduction: str = "mean",
        include_background: bool = True,
        batch: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "marginal_dice",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits
        self.class_reduction = checked_class_reduction(class_reduction)
        self.include_background = include_background
        self.batch = batch

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`."""
        sums = voxel_sums(y_true, y_pred, self.from_logits, exclusion=False)
        return terms.marginal_dice(sums, self.class_reduction, self.include_background, self.batch)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss."""
        return {
            **super().get_config(),
            "dtype": self.dtype,
            "from_logits": self.from_logits,
            "class_reduction": self.class_reduction,
            "include_background": self.include_background,
            "batch": self.batch,
        }
