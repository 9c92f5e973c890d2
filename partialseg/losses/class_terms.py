"""The four terms class by class, to see which organ a curve is about; training itself needs them summed alone."""

from __future__ import annotations

from keras import ops

from partialseg.losses.inputs import Tensor
from partialseg.losses.terms import exclusion_dice_sums, marginal_dice_sums, soft_dice
from partialseg.losses.voxel_sets import (
    marginal_nll,
    mean_per_class,
    sum_over_voxels,
    voxel_sets_of,
    where_counted,
)
from partialseg.losses.voxel_sums import excluded_classes, voxel_sums


def class_terms(
    y_true: Tensor,
    y_pred: Tensor,
    from_logits: bool = True,
    merged_background_excludes: bool = True,
    partial_samples_only: bool = True,
    include_background: bool = True,
) -> dict[str, Tensor]:
    """Each term of `PartialSupervision` for each class, without weights.

    The Dice terms are reductions over classes: here is what they reduce, of each sample by itself (whatever the loss
    does with a batch), but for classes of which a sample has no voxel: their marginal Dice is 1 whatever the network
    says. The cross-entropies are means over all voxels; here each is the mean over the voxels that concern the class,
    so that small organs do not vanish. A merged class goes by the lowest of its classes, background where that is
    among them.

    Args:
        y_true: Candidates, 0 or 1, `(batch, ..., classes)`.
        y_pred: Logits or probabilities, same shape.
        from_logits: Whether `y_pred` holds logits.
        merged_background_excludes: See `PartialSupervision`.
        partial_samples_only: See `PartialSupervision`.
        include_background: See `PartialSupervision`; without, background has a part in "mCE" alone.

    Returns:
        float32 `(batch, classes)` under "mCE" (eq. 5; mean over the voxels labelled with the class), "mDC" (eq. 6),
        "eCE" (eq. 11; mean over the voxels that exclude the class) and "eDC" (eq. 10). NaN where a class has no such
        voxel or no part in the term, as by default in exclusion terms of samples in which nothing is merged.

    Raises:
        ValueError: If the two shapes differ, or the number of classes is not known or below 2.

    Example:
        >>> terms = class_terms([[[1, 0, 1], [0, 1, 0]]], [[[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]]], from_logits=False)
        >>> for term, values in terms.items():
        ...     print(term, *(f"{value:.2f}" for value in ops.convert_to_numpy(values[0])))
        mCE 0.22 0.22 nan
        mDC 0.20 0.20 nan
        eCE 0.10 0.18 0.10
        eDC 0.12 0.20 0.14
    """
    sums = voxel_sums(y_true, y_pred, from_logits, merged_background_excludes=merged_background_excludes)
    sets = voxel_sets_of(y_true, y_pred, from_logits)
    excludes = excluded_classes(sets.candidates, merged_background_excludes) * sets.known
    penalty = sum_over_voxels(excludes * ops.log1p(ops.exp(sets.log_probabilities)))
    merged, exclusion = marginal_dice_sums(sums), exclusion_dice_sums(sums, partial_samples_only)
    included = ops.cast(ops.arange(sums.truth.shape[-1]) >= (0 if include_background else 1), penalty.dtype)
    return {
        "mCE": mean_per_class(sets, marginal_nll(sets)),
        "mDC": where_counted(merged.counted * merged.truth * included, 1 - soft_dice(merged)),
        "eCE": where_counted(exclusion.truth * included, penalty / ops.maximum(sums.excluded, 1)),
        "eDC": where_counted(exclusion.truth * included, soft_dice(exclusion)),
    }
