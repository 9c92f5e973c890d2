"""NOT the loss of the paper: what the code that was published with it computes, for comparison alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from partialseg.losses.inputs import Tensor
from partialseg.losses.reductions import sum_over_replicas
from partialseg.losses.voxel_sets import (
    VoxelSets,
    mean_per_class,
    sum_over_voxels,
    voxel_sets_of,
    where_counted,
)

#: In numerator and denominator of Dice, as in the published code.
SMOOTH = 1e-5
#: The logit of a column that is no merged class: far below any sum of logits, yet finite.
NO_CLASS = -1e30


class _DiceSums(NamedTuple):
    """Sums over voxels, each `(batch, organs)`; `counted` is 0 or 1."""

    overlap: Tensor
    truth: Tensor
    predicted: Tensor
    counted: Tensor


@keras.saving.register_keras_serializable(package="partialseg")
class PublishedCodeWithSummedLogits(keras.losses.Loss):
    """DO NOT TRAIN WITH THIS: a different loss from the paper's. Use `PartialSupervision`.

    It is what the code that Shi et al. published computes, kept so that runs of that code can be compared with
    runs of the paper's equations. It merges classes by adding their raw LOGITS before the softmax, where eq. 4
    adds their probabilities after it. At logits [-2, -3, 8, -4, -4, -4] of a liver-only sample (background,
    liver, spleen, pancreas, left kidney, right kidney) the network is sure of the spleen, so merged background
    has probability 0.99998 by eq. 4; here it has 0.047, and the network is told that it is wrong. Each further
    unlabelled organ with a negative logit makes it worse.

    The loss is `CE - mean Dice + 2 * mean exclusion Dice`:

    - CE: cross-entropy of the softmax over merged classes, whose logits are the sums of their members';
    - Dice: soft Dice of the same softmax, mean over the annotated organs. Merged background is left out.
      It counts as minus Dice, so the loss may be negative;
    - exclusion Dice: soft Dice of the softmax over all classes with the voxels that cannot be the class,
      mean over organs, background left out; on partially annotated samples alone. There is no exclusion CE.

    Dice sums go over the whole batch, and 1e-5 is added to numerator and denominator, so that an organ that
    is neither there nor predicted scores 1.

    Reference:
        The code published with Shi, Xiao, Chen, Zhou: Marginal loss and exclusion loss for partially
        supervised multi-organ segmentation. Medical Image Analysis 2021, in the repository
        MIRACLE-Center/Partially-supervised-multi-organ-segmentation (the loss of its multi-dataset trainer).

    Differs from the paper: as said above, in everything: logits are summed (eq. 4), Dice leaves background
    out (eq. 6), epsilon is in the numerator of exclusion Dice too (eq. 10), exclusion cross-entropy (eq. 11)
    is missing. Differs from the published code: a batch there holds one dataset, whose organs say what is
    merged. Here classes are merged that appear together in a voxel's set of the sample (or are linked through
    others), datasets mix in a batch, and an organ's Dice is of the samples that annotate it. Ignored voxels
    are left out of every sum. The weights of deep supervision are the trainer's own.

    Args:
        exclusion: Weight of the exclusion Dice, at least 0; 2 in the published code.
        batch: Whether Dice sums over the batch (and over all replicas of a TensorFlow strategy), as in the
            published code, instead of each sample.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits, same shape. There is no `from_logits`: of probabilities the sums cannot be made.

    Raises:
        ValueError: If `exclusion` is negative.

    Example:
        >>> liver_only, logits = [[1, 0, 1, 1, 1, 1]], [[-2.0, -3.0, 8.0, -4.0, -4.0, -4.0]]
        >>> value = PublishedCodeWithSummedLogits().values(liver_only, logits)["CE"][0]
        >>> round(float(ops.exp(-value)), 3)  # the probability of merged background; eq. 4 says 0.99998
        0.047
    """

    def __init__(
        self,
        exclusion: float = 2.0,
        batch: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str = "published_code_with_summed_logits",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if exclusion < 0:
            raise ValueError(f"The weight must not be negative. Received: exclusion={exclusion}")
        self.exclusion = float(exclusion)
        self.batch = batch

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`."""
        values = self.values(y_true, y_pred)
        return values["CE"] + values["DC"] + self.exclusion * values["eDC"]

    def values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The three terms without weights, `(batch,)` each.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits, same shape.

        Returns:
            Cross-entropy under "CE" (at least 0), minus Dice under "DC" (-1 to 0), exclusion Dice under "eDC"
            (0 to 1).
        """
        sets = voxel_sets_of(y_true, y_pred)
        nll, marginal = self._marginal(sets, y_pred)
        return {
            "CE": ops.mean(nll, axis=1),
            "DC": -self._dice(marginal),
            "eDC": self._dice(_exclusion_sums(sets)),
        }

    def class_values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The three terms of each class; cross-entropy is the mean over the class's own voxels.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits, same shape.

        Returns:
            `(batch, classes)` under the names of `values`; NaN where a class takes no part.
        """
        sets = voxel_sets_of(y_true, y_pred)
        nll, marginal = self._marginal(sets, y_pred)
        dice, exclusion_dice = (
            ops.pad(
                ops.broadcast_to(where_counted(sums.counted, _dice_per_organ(sums)), ops.shape(sums.overlap)),
                ((0, 0), (1, 0)),  # background takes no part
                constant_values=float("nan"),
            )
            for sums in (marginal, _exclusion_sums(sets))
        )
        return {"CE": mean_per_class(sets, nll), "DC": -dice, "eDC": exclusion_dice}

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss."""
        return {**super().get_config(), "dtype": self.dtype, "exclusion": self.exclusion, "batch": self.batch}

    def _marginal(self, sets: VoxelSets, y_pred: Tensor) -> tuple[Tensor, _DiceSums]:
        """-log of the merged class' probability, `(batch, voxels)`, and the sums of its Dice."""
        merged = _merged_classes(sets)
        log_probabilities = _of_summed_logits(y_pred, merged)
        truth = ops.cast(ops.matmul(sets.candidates, merged) > 0, merged.dtype) * sets.known
        sums = _marginal_sums(sets, merged, ops.exp(log_probabilities), truth)
        return -ops.sum(truth * log_probabilities, axis=-1), sums

    def _dice(self, sums: _DiceSums) -> Tensor:
        """Mean over the organs that are counted; `(batch,)`, 0 where none is."""
        num_samples = ops.shape(sums.overlap)[0]
        if self.batch:
            counted_alone = [values * sums.counted for values in sums]
            totals = ops.stack([ops.sum(values, axis=0, keepdims=True) for values in counted_alone])
            sums = _DiceSums(*ops.unstack(sum_over_replicas(totals), num=4))
        counted = ops.minimum(sums.counted, 1)
        values = ops.sum(_dice_per_organ(sums) * counted, axis=-1) / ops.maximum(ops.sum(counted, axis=-1), 1)
        return ops.broadcast_to(values, (num_samples,))


def _dice_per_organ(sums: _DiceSums) -> Tensor:
    return (2 * sums.overlap + SMOOTH) / (sums.truth + sums.predicted + SMOOTH)


def _merged_classes(sets: VoxelSets) -> Tensor:
    """0 or 1, `(batch, classes, classes)`: whether class k belongs to the merged class whose lowest is m."""
    num_classes = sets.candidates.shape[-1]
    known = sets.candidates * sets.known
    together = ops.matmul(ops.transpose(known, (0, 2, 1)), known) + ops.eye(num_classes, dtype=known.dtype)
    linked = ops.cast(together > 0, known.dtype)
    for _ in range((num_classes - 1).bit_length()):  # each product doubles the length of links covered
        linked = ops.cast(ops.matmul(linked, linked) > 0, known.dtype)
    leads = ops.cast(ops.sum(ops.tril(linked, k=-1), axis=-1) == 0, known.dtype)
    return linked * leads[:, None, :]


def _of_summed_logits(y_pred: Tensor, merged: Tensor) -> Tensor:
    """Log-softmax over merged classes of the sums of logits; 0 at columns that are no merged class."""
    logits = ops.cast(ops.convert_to_tensor(y_pred), merged.dtype)
    logits = ops.reshape(logits, (ops.shape(logits)[0], -1, merged.shape[-1]))
    is_class = ops.max(merged, axis=1, keepdims=True) > 0
    summed = ops.where(is_class, ops.matmul(logits, merged), NO_CLASS)
    return ops.where(is_class, ops.log_softmax(summed, axis=-1), 0)


def _marginal_sums(sets: VoxelSets, merged: Tensor, probabilities: Tensor, truth: Tensor) -> _DiceSums:
    """Sums of the merged classes without the first, which holds background."""
    any_known = ops.max(sets.known, axis=1)
    counted = ops.diagonal(merged, axis1=1, axis2=2) * any_known
    sums = (sum_over_voxels(values) for values in (probabilities * truth, truth, probabilities * sets.known))
    return _DiceSums(*(values[:, 1:] for values in (*sums, counted)))


def _exclusion_sums(sets: VoxelSets) -> _DiceSums:
    """Sums of all organs of partially annotated samples, with what a voxel cannot be in the place of truth."""
    probabilities = ops.exp(sets.log_probabilities) * sets.known
    excluded = (1 - sets.candidates) * sets.known
    partial = ops.cast(ops.max(sets.size * sets.known, axis=1) > 1, probabilities.dtype)
    sums = [sum_over_voxels(values) for values in (probabilities * excluded, excluded, probabilities)]
    return _DiceSums(*(values[:, 1:] for values in (*sums, partial * ops.ones_like(sums[0]))))
