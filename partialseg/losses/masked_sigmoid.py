"""Masked sigmoid losses: one binary problem per organ, left out where it is not known."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

from partialseg.losses.inputs import Tensor
from partialseg.losses.reductions import checked_class_reduction, reduce_classes, sum_over_replicas
from partialseg.losses.voxel_sets import VoxelSets, sum_over_voxels, voxel_sets_of, where_counted

EPSILON = 1e-7


class _Organs(NamedTuple):
    """One binary problem per organ, `(batch, voxels, organs)` but for `annotated`.

    Attributes:
        logits: Of the sigmoid.
        truth: 0 or 1; 0 where it is not known.
        decided: 0 or 1: whether it is known that the voxel is, or is not, the organ.
        annotated: 0 or 1, `(batch, organs)`.
    """

    logits: Tensor
    truth: Tensor
    decided: Tensor
    annotated: Tensor


@keras.saving.register_keras_serializable(package="partialseg")
class MaskedSigmoid(keras.losses.Loss):
    """Binary cross-entropy plus soft Dice of each organ's own sigmoid, only where a voxel decides the organ.

    A voxel that cannot be organ n (n is not among its candidates) is a 0 of organ n, one that can be nothing
    else is a 1, and all others are masked: out of every sum, with zero gradient for the organ. So background
    that may hold a spleen says nothing of the spleen.

    The logit of organ n's sigmoid is `z_n - z_0`: its own, less that of background. A network of C logits
    serves unchanged, and the largest of them is what sigmoids would choose: the organ of largest probability
    above 0.5, else background. So the labels of single windows are right as they are; exported probabilities are
    the softmax, not these sigmoids, and sliding windows average the softmax.

    The cross-entropy is the mean over pairs of voxel and organ that are decided. Dice is per organ that is
    annotated in the sample, which it is unless a voxel may be the organ or background.

    Reference:
        Zhang, Xie, Xia and Shen, "DoDNet: Learning to Segment Multi-Organ and Tumors from Multiple Partially
        Labeled Datasets", CVPR 2021 (Dice and binary cross-entropy of the labelled organs, with the same
        weight); Ulrich et al., "MultiTalent: A Multi-Dataset Approach to Medical Image Segmentation", MICCAI
        2023 (sigmoids and a loss of a dataset's own classes, Dice over all images of the batch: `batch=True`);
        Liu et al., "CLIP-Driven Universal Model for Organ Segmentation and Tumor Detection", ICCV 2023
        (masked back-propagation).

    Differs from the paper: it is the loss that the three share, without DoDNet's dynamic head, MultiTalent's
    lists of classes and CLIP's text embedding. Their networks have a sigmoid output per organ and no background;
    here it is the difference from the background's logit. Tumours and overlapping organs are not modelled.
    Their labels are masked for a whole image and organ; here it is voxel by voxel, so that an organ that is not
    annotated still learns from voxels of other organs that it is not there. MultiTalent sums both Dice and
    binary cross-entropy over the classes; here `class_reduction="sum"` sums Dice alone. In Dice, epsilon is 1e-7
    in the denominator; the public code of DoDNet and of the CLIP-driven model has 1.

    Args:
        from_logits: Whether `y_pred` holds logits, else probabilities.
        class_reduction: Of Dice, "mean" or "sum" over the annotated organs.
        batch: Whether Dice sums over the batch (and over all replicas of a TensorFlow strategy) instead of
            each sample. Every sample then has the same Dice.
        reduction: Keras' reduction over the values of the samples.
        name: Name of the loss.
        dtype: Keras' dtype of the loss; below float32 the sums are float32 all the same.

    Call arguments:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`, any number of axes between.
        y_pred: Logits or probabilities, same shape.

    Raises:
        ValueError: If `class_reduction` is not known.

    Example:
        Background or spleen (classes: background, liver, spleen): the liver alone is decided. Its sigmoid is
        0.2 / (0.1 + 0.2):

        >>> values = MaskedSigmoid(from_logits=False).values([[1, 0, 1]], [[0.1, 0.2, 0.7]])
        >>> {term: round(float(value[0]), 4) for term, value in values.items()}  # -log(1 - 2 / 3); no liver
        {'BCE': 1.0986, 'DC': 1.0}
    """

    def __init__(
        self,
        from_logits: bool = True,
        class_reduction: str = "mean",
        batch: bool = False,
        reduction: str | None = "sum_over_batch_size",
        name: str = "masked_sigmoid",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = from_logits
        self.class_reduction = checked_class_reduction(class_reduction)
        self.batch = batch

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """One value per sample, `(batch,)`."""
        return sum(self.values(y_true, y_pred).values())

    def values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy and one minus soft Dice, `(batch,)` each, under "BCE" and "DC".

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.
        """
        organs = _organs(y_true, y_pred, self.from_logits)
        return {"BCE": _binary_cross_entropy(organs), "DC": self._dice(organs)}

    def class_values(self, y_true: Tensor, y_pred: Tensor) -> dict[str, Tensor]:
        """The two terms of each organ; cross-entropy is the mean over the voxels that decide it.

        Args:
            y_true: Candidates, `(batch, ..., classes)`.
            y_pred: Logits or probabilities, same shape.

        Returns:
            `(batch, classes)` under the names of `values`; NaN where a class takes no part, as background, which has
            no sigmoid.
        """
        organs = _organs(y_true, y_pred, self.from_logits)
        decided = sum_over_voxels(organs.decided)
        cross_entropy = sum_over_voxels(_negative_log_likelihood(organs)) / ops.maximum(decided, 1)
        dice, annotated = self._dice_per_organ(organs)
        values = {
            "BCE": where_counted(decided, cross_entropy),
            "DC": ops.broadcast_to(where_counted(annotated, dice), ops.shape(organs.annotated)),
        }
        return {
            term: ops.pad(value, ((0, 0), (1, 0)), constant_values=float("nan"))
            for term, value in values.items()
        }

    def get_config(self) -> dict[str, Any]:
        """The arguments that make the same loss."""
        return {
            **super().get_config(),
            "dtype": self.dtype,
            "from_logits": self.from_logits,
            "class_reduction": self.class_reduction,
            "batch": self.batch,
        }

    def _dice(self, organs: _Organs) -> Tensor:
        """Reduced over the organs that are annotated; `(batch,)`."""
        losses, annotated = self._dice_per_organ(organs)
        values = reduce_classes(losses, annotated, self.class_reduction)
        return ops.broadcast_to(values, ops.shape(organs.annotated)[:1])

    def _dice_per_organ(self, organs: _Organs) -> tuple[Tensor, Tensor]:
        """One minus the soft Dice of each organ, and whether it is annotated; `(batch or 1, organs)`."""
        probabilities = ops.sigmoid(organs.logits) * organs.decided
        sums = [
            sum_over_voxels(values) * organs.annotated
            for values in (probabilities * organs.truth, organs.truth, probabilities)
        ]
        counted = organs.annotated
        if self.batch:
            totals = ops.stack([ops.sum(values, axis=0, keepdims=True) for values in (*sums, counted)])
            *sums, counted = ops.unstack(sum_over_replicas(totals), num=4)
            counted = ops.minimum(counted, 1)
        overlap, truth, predicted = sums
        return 1 - 2 * overlap / (truth + predicted + EPSILON), counted


def _organs(y_true: Tensor, y_pred: Tensor, from_logits: bool) -> _Organs:
    sets = voxel_sets_of(y_true, y_pred, from_logits)
    logits = _flat_logits(y_pred, sets) if from_logits else sets.log_probabilities
    possible = sets.candidates[..., 1:]
    truth = possible * ops.cast(sets.size == 1, possible.dtype)
    or_background = ops.max(possible * sets.candidates[..., :1] * sets.known, axis=1)
    return _Organs(
        logits=logits[..., 1:] - logits[..., :1],
        truth=truth,
        decided=sets.known * (1 - possible) + truth,
        annotated=(1 - or_background) * ops.max(sets.known, axis=1),
    )


def _flat_logits(y_pred: Tensor, sets: VoxelSets) -> Tensor:
    """The logits themselves: differences of log-probabilities would leave traces in masked gradients."""
    logits = ops.cast(ops.convert_to_tensor(y_pred), sets.log_probabilities.dtype)
    return ops.reshape(logits, (ops.shape(logits)[0], -1, sets.candidates.shape[-1]))


def _negative_log_likelihood(organs: _Organs) -> Tensor:
    """Of each organ at each voxel, 0 where that is not decided."""
    # softplus(s) - t s is -log sigmoid(s) at t = 1 and -log(1 - sigmoid(s)) at t = 0, for any s.
    return (ops.softplus(organs.logits) - organs.truth * organs.logits) * organs.decided


def _binary_cross_entropy(organs: _Organs) -> Tensor:
    decided = ops.mean(organs.decided, axis=(1, 2))
    return ops.mean(_negative_log_likelihood(organs), axis=(1, 2)) / ops.where(decided > 0, decided, 1)
