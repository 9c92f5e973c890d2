"""The two Dice losses for partial labels of Fidon et al. (2021): leaf-Dice, and Dice of averaged probabilities.

A label-set loss is one that cannot tell apart two predictions that give every voxel's set of candidates the
same probability: where the annotation leaves several classes open, so does the loss. Both losses here are
label-set losses (and tested to be); the plain soft Dice with a uniform target is not. Both train as
`model.compile(loss=LeafDice())` or, with the marginal cross-entropy that their package offers beside them,
`LeafDice(cross_entropy=1.0)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from partialseg.losses.inputs import Tensor
from partialseg.losses.reductions import checked_class_reduction, reduce_classes, sum_over_batch
from partialseg.losses.voxel_sets import (
    VoxelSets,
    marginal_cross_entropy,
    marginal_nll,
    mean_per_class,
    sum_over_voxels,
    voxel_sets_of,
    where_counted,
)

#: Only keeps 0/0 away, for a class without a voxel of which none is predicted either.
EPSILON = 1e-7


class _DiceOfSets(keras.losses.Loss):
    """What the two losses share: all but what stands for the truth and for the prediction."""

    term: str
    default_name: str
    #: Both `(batch, voxels, classes)`, 0 to 1, and 0 at voxels that are left out.
    _truth_and_prediction: Callable[..., tuple[Tensor, Tensor]]

    def __init__(
        self,
        cross_entropy: float = 0.0,
        exponent: int = 2,
        from_logits: bool = True,
        class_reduction: str = "mean",
        include_background: bool = True,
        batch: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name or self.default_name, reduction=reduction, dtype=dtype)
        if exponent not in (1, 2):
            raise ValueError(f"exponent must be 1 or 2. Received: exponent={exponent!r}")
        if cross_entropy < 0:
            raise ValueError(f"cross_entropy is a weight of at least 0. Received: {cross_entropy}")
        self.cross_entropy = float(cross_entropy)
        self.exponent = exponent
        self.from_logits = from_logits
        self.class_reduction = checked_class_reduction(class_reduction)
        self.include_background = include_background
        self.batch = batch

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`."""
        sets = voxel_sets_of(y_true, y_pred, self.from_logits)
        loss = self._dice_loss(sets)
        return loss + self.cross_entropy * marginal_cross_entropy(sets) if self.cross_entropy else loss

    def values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The two terms one by one, without weights, also the cross-entropy where it takes no part.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.

        Returns:
            One value per sample, `(batch,)`: the Dice loss under its own name, and "mCE".
        """
        sets = voxel_sets_of(y_true, y_pred, self.from_logits)
        return {self.term: self._dice_loss(sets), "mCE": marginal_cross_entropy(sets)}

    def class_values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The two terms of each class; cross-entropy is the mean over the class's own voxels.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.

        Returns:
            `(batch, classes)` under the names of `values`; NaN where a class takes no part.
        """
        sets = voxel_sets_of(y_true, y_pred, self.from_logits)
        losses, counted = self._dice_per_class(sets)
        dice = ops.broadcast_to(where_counted(counted, losses), ops.shape(sets.candidates[:, 0]))
        return {self.term: dice, "mCE": mean_per_class(sets, marginal_nll(sets))}

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss."""
        return {
            **super().get_config(),
            "dtype": self.dtype,
            "cross_entropy": self.cross_entropy,
            "exponent": self.exponent,
            "from_logits": self.from_logits,
            "class_reduction": self.class_reduction,
            "include_background": self.include_background,
            "batch": self.batch,
        }

    def _dice_loss(self, sets: VoxelSets) -> Tensor:
        """One minus the soft Dice of every class, reduced over the classes; `(batch,)`."""
        losses, counted = self._dice_per_class(sets)
        if not self.include_background:
            losses, counted = losses[:, 1:], counted[:, 1:]
        values = reduce_classes(losses, counted, self.class_reduction)
        return ops.broadcast_to(values, ops.shape(sets.known)[:1])

    def _dice_per_class(self, sets: VoxelSets) -> tuple[Tensor, Tensor]:
        """One minus the soft Dice of every class, and whether it counts; `(batch or 1, classes)`."""
        truth, predicted = self._truth_and_prediction(sets)
        overlap = sum_over_voxels(truth * predicted)
        total = sum_over_voxels(truth**self.exponent + predicted**self.exponent)
        # Every class counts, but none does in a sample that is ignored as a whole.
        counted = ops.max(sets.known[..., 0], axis=1, keepdims=True) * ops.ones_like(total)
        if self.batch:
            overlap, total, counted = (sum_over_batch(values) for values in (overlap, total, counted))
            counted = ops.minimum(counted, 1)
        return 1 - 2 * overlap / (total + EPSILON), counted


@keras.saving.register_keras_serializable(package="partialseg")
class LeafDice(_DiceOfSets):
    """Soft Dice of the voxels whose class is known, per class: `1 - 2 Σ t p / (Σ t^α + Σ p^α)`.

    The truth t of a class is 1 at the voxels annotated as that class alone. So a class that the sample leaves
    open has no truth in it: its loss is the constant 1, without gradient. A class that it annotates is held to
    its own voxels, also against false positives among the voxels that may be several other classes.

    Reference:
        Fidon, Aertsen, Emam, Mufti, Guffens, Deprest, Demaerel, David, Melbourne, Ourselin, Deprest,
        Vercauteren: Label-set loss functions for partial supervision: application to fetal brain 3D MRI
        parcellation. MICCAI 2021; the leaf-Dice loss, as in the package label-set-loss-functions that they
        published with it.

    Differs from the paper: It defines the loss for samples in which a class is either annotated wherever it is
    or left open wherever it is. Here a voxel may also be one of several classes that are annotated elsewhere
    in the sample ("kidney": left or right); such a voxel is left out of the sums of those classes, or the loss
    would not be a label-set loss. With `batch`, the same holds between samples of different label sets.
    Ignored voxels (all classes possible, or none given), which the paper does not have, are left out of every
    sum, and a sample that has no others has loss 0. ε is 1e-7 for their 1e-5. They train with Dice alone,
    and so does the default; `cross_entropy` adds the term that their package adds in LeafDiceCE.

    Args:
        cross_entropy: Weight of the marginal cross-entropy beside it, at least 0.
        exponent: α, 1 or 2. 2 is the default of the authors' package.
        from_logits: Whether `y_pred` holds logits, else probabilities.
        class_reduction: "mean" over the classes, as in the paper, or "sum". Every class counts, also one that
            the sample leaves open.
        include_background: Whether class 0 counts.
        batch: Whether the sums are over the batch (and over all replicas of a TensorFlow strategy) instead of
            each sample. Every sample then has the same Dice loss.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss; by default the class' name in snake case.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Raises:
        ValueError: If `class_reduction`, `exponent` or `cross_entropy` is none of the values above.

    Example:
        A voxel of liver and one of background or spleen; the liver is found, and no more is known.

        >>> loss = LeafDice(from_logits=False)
        >>> candidates = [[[0, 1, 0], [1, 0, 1]]]
        >>> round(float(loss(candidates, [[[0, 1, 0], [0.3, 0, 0.7]]])), 4)  # (1 + 0 + 1) / 3
        0.6667
    """

    term = "leafDC"
    default_name = "leaf_dice"

    def _truth_and_prediction(self, sets: VoxelSets) -> tuple[Tensor, Tensor]:
        alone = ops.cast(sets.size == 1, sets.candidates.dtype)
        truth = sets.candidates * alone
        open_classes = sets.candidates * (1 - alone)
        return truth * sets.known, ops.exp(sets.log_probabilities) * (1 - open_classes) * sets.known


@keras.saving.register_keras_serializable(package="partialseg")
class LabelSetDice(_DiceOfSets):
    """Soft Dice after averaging within each voxel's set, per class: `1 - 2 Σ ψ φ / (Σ ψ^α + Σ φ^α)`.

    The paper turns any loss of fully annotated images into a label-set loss, and shows that this is the only
    way: the truth of a voxel with k candidates becomes ψ = 1/k on each of them, and its probabilities are
    replaced, on the candidates, by their mean; the others stay. Here the loss is the mean-class Dice, which
    the authors call the marginalised Dice loss.

    With the exponent 2 a prediction is perfect (loss 0, classes without a voxel apart) if every voxel's set
    has the probability 1. With the exponent 1 it is not: a class that is always one of k has at best the
    Dice 1/k.

    Reference:
        Fidon, Aertsen, Emam, Mufti, Guffens, Deprest, Demaerel, David, Melbourne, Ourselin, Deprest,
        Vercauteren: Label-set loss functions for partial supervision: application to fetal brain 3D MRI
        parcellation. MICCAI 2021; the conversion Φ, Ψ applied to the mean-class Dice loss, as in the package
        label-set-loss-functions that they published with it.

    Differs from the paper: Ignored voxels (all classes possible, or none given), which the paper does not
    have, are left out of every sum, and a sample that has no others has loss 0. ε is 1e-7 for their 1e-5.
    The cross-entropy that can be added is that of the set, -log q, which is their marginalised cross-entropy
    without its constant log k.

    Args:
        cross_entropy: Weight of the marginal cross-entropy beside it, at least 0. The authors train without.
        exponent: α, 1 or 2. 2 is the default of the authors' package.
        from_logits: Whether `y_pred` holds logits, else probabilities.
        class_reduction: "mean" over the classes, as in the paper, or "sum".
        include_background: Whether class 0 counts.
        batch: Whether the sums are over the batch (and over all replicas of a TensorFlow strategy) instead of
            each sample. Every sample then has the same Dice loss.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss; by default the class' name in snake case.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Raises:
        ValueError: If `class_reduction`, `exponent` or `cross_entropy` is none of the values above.

    Example:
        A voxel of liver and one of background or spleen, where the network is right, whichever it is:

        >>> loss = LabelSetDice(from_logits=False)
        >>> candidates = [[[0, 1, 0], [1, 0, 1]]]
        >>> abs(round(float(loss(candidates, [[[0, 1, 0], [0.3, 0, 0.7]]])), 4))
        0.0
    """

    term = "setDC"
    default_name = "label_set_dice"

    def _truth_and_prediction(self, sets: VoxelSets) -> tuple[Tensor, Tensor]:
        probabilities = ops.exp(sets.log_probabilities)
        truth = sets.candidates / ops.maximum(sets.size, 1)
        averaged = truth * ops.sum(sets.candidates * probabilities, axis=-1, keepdims=True)
        return truth * sets.known, (averaged + (1 - sets.candidates) * probabilities) * sets.known
