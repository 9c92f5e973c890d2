"""The four terms of Shi et al. (2021) as functions of the sums over voxels, on `keras.ops` alone.

Three kinds of voxels, by the size of the candidate set: one class (annotated), some classes (merged) and
all classes (ignored). Ignored voxels are left out of every sum and have no gradient; so are voxels with no
candidate at all, as zero padding makes them. The voxel means of the two cross-entropies divide by all voxels.
"""

from __future__ import annotations

from typing import NamedTuple

from keras import ops

from partialseg.losses.inputs import Tensor
from partialseg.losses.reductions import reduce_classes, sum_over_replicas
from partialseg.losses.voxel_sums import VoxelSums

#: Only keeps 0/0 away in Dice: a sum of truth that is not zero is at least one voxel.
EPSILON = 1e-7


class DiceSums(NamedTuple):
    """Sums over voxels from which a soft Dice per class follows, each `(batch, classes)`.

    Attributes:
        overlap: Sum of truth times probability.
        truth: Sum of truth, in voxels.
        predicted: Sum of probability, in voxels.
        counted: 0 or 1: whether the class takes part in the reduction over classes.
    """

    overlap: Tensor
    truth: Tensor
    predicted: Tensor
    counted: Tensor


def marginal_cross_entropy(sums: VoxelSums) -> Tensor:
    """Mean over all voxels of -log q (eq. 5), 0 at ignored voxels; shape `(batch,)`."""
    return sums.marginal_nll / sums.num_voxels


def merged_classes(sums: VoxelSums) -> Tensor:
    """Which classes are merged in each sample.

    Classes that appear together in the set of a known voxel are merged, and so are those that are linked
    through others. A merged class goes by the lowest of its classes.

    Returns:
        0 or 1, `(batch, classes, classes)`: entry `[b, k, m]` is 1 if class `k` belongs to merged class
        `m`. Columns of classes that lead no merged class are 0.

    Example:
        >>> from partialseg.losses.voxel_sums import voxel_sums
        >>> liver_only = voxel_sums([[[1, 0, 1], [0, 1, 0]]], ops.zeros((1, 2, 3)))
        >>> ops.convert_to_numpy(merged_classes(liver_only)[0]).astype(int).tolist()
        [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    """
    together, num_classes = sums.together, sums.together.shape[-1]
    linked = ops.cast(together + ops.transpose(together, (0, 2, 1)) > 0, together.dtype)
    linked = ops.maximum(linked, ops.eye(num_classes, dtype=together.dtype))
    # A chain of links has at most classes - 1 of them, and each product doubles the length that is covered.
    for _ in range((num_classes - 1).bit_length()):
        linked = ops.cast(ops.matmul(linked, linked) > 0, linked.dtype)
    leads = ops.cast(ops.sum(ops.tril(linked, k=-1), axis=-1) == 0, linked.dtype)
    return linked * leads[:, None, :]


def marginal_dice_sums(sums: VoxelSums) -> DiceSums:
    """Sums for the marginal Dice (eq. 6), per merged class at the index of its lowest class.

    `counted` is 1 for every merged class of a sample, present in its voxels or not, and 0 throughout
    in a sample that is ignored as a whole.
    """
    merged = merged_classes(sums)
    # A voxel's set lies within one merged class, so its row of `labelled` tells where its probability belongs.
    return DiceSums(
        overlap=ops.sum(merged * ops.matmul(sums.labelled, merged), axis=1),
        truth=_merge(sums.truth, merged),
        predicted=_merge(sums.predicted, merged),
        counted=ops.diagonal(merged, axis1=1, axis2=2) * ops.cast(sums.known > 0, merged.dtype),
    )


def marginal_dice(
    sums: VoxelSums, class_reduction: str = "mean", include_background: bool = True, batch: bool = False
) -> Tensor:
    """Sum or mean over merged classes of one minus the soft Dice (eq. 6); shape `(batch,)`.

    See `partialseg.losses.MarginalDice` for the arguments.
    """
    dice_sums = marginal_dice_sums(sums)
    if batch:
        dice_sums = _over_batch(dice_sums)
    values = _reduce(1 - soft_dice(dice_sums), dice_sums.counted, class_reduction, include_background)
    return ops.broadcast_to(values, ops.shape(sums.marginal_nll))


def partial_samples(sums: VoxelSums) -> Tensor:
    """1 for samples in which a voxel's set holds some but not all classes, else 0; shape `(batch, 1)`."""
    together = sums.together
    others = together * (1 - ops.eye(together.shape[-1], dtype=together.dtype))
    return ops.cast(ops.max(others, axis=(1, 2)) > 0, together.dtype)[:, None]


def exclusion_dice_sums(sums: VoxelSums, partial_samples_only: bool = True) -> DiceSums:
    """Sums for the exclusion Dice (eq. 10), per class; all 0 in samples that have no part in it."""
    dice_sums = DiceSums(
        overlap=sums.excluded_probability,
        truth=sums.excluded,
        predicted=sums.predicted,
        counted=ops.ones_like(sums.predicted),
    )
    if not partial_samples_only:
        return dice_sums
    partial = partial_samples(sums)
    return DiceSums(*(values * partial for values in dice_sums))


def exclusion_dice(
    sums: VoxelSums,
    class_reduction: str = "mean",
    include_background: bool = True,
    batch: bool = False,
    partial_samples_only: bool = True,
) -> Tensor:
    """Sum or mean over classes of the soft Dice with what is excluded (eq. 10); shape `(batch,)`.

    See `partialseg.losses.ExclusionDice` for the arguments.
    """
    dice_sums = exclusion_dice_sums(sums, partial_samples_only)
    if batch:
        dice_sums = _over_batch(dice_sums)
    values = _reduce(soft_dice(dice_sums), dice_sums.counted, class_reduction, include_background)
    return ops.broadcast_to(values, ops.shape(sums.marginal_nll))


def exclusion_cross_entropy(sums: VoxelSums, partial_samples_only: bool = True) -> Tensor:
    """Mean over all voxels of the sum over excluded classes of log(p + 1) (eq. 11); shape `(batch,)`."""
    values = sums.exclusion_penalty / sums.num_voxels
    return values * partial_samples(sums)[:, 0] if partial_samples_only else values


def soft_dice(sums: DiceSums) -> Tensor:
    """2 overlap / (truth + predicted + epsilon): 0, not 1, where truth is empty."""
    return 2 * sums.overlap / (sums.truth + sums.predicted + EPSILON)


def _merge(per_class: Tensor, merged: Tensor) -> Tensor:
    """Add up `(batch, classes)` within merged classes."""
    return ops.sum(per_class[:, :, None] * merged, axis=1)


def _over_batch(sums: DiceSums) -> DiceSums:
    """Add sums over the samples, and over the replicas of a strategy, kept as a batch of one."""
    totals = sum_over_replicas(ops.stack([ops.sum(values, axis=0, keepdims=True) for values in sums]))
    return DiceSums(totals[0], totals[1], totals[2], ops.minimum(totals[3], 1))


def _reduce(values: Tensor, counted: Tensor, class_reduction: str, include_background: bool) -> Tensor:
    if not include_background:
        values, counted = values[:, 1:], counted[:, 1:]
    return reduce_classes(values, counted, class_reduction)
