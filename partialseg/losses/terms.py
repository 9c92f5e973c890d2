"""The four terms of Shi et al. (2021) as pure functions of candidates and predictions, on `keras.ops` alone.

A loss first turns its two arguments into `Voxels` (`voxels_of`), which all terms share, so that the softmax
is taken once. The marginal Dice of any merging follows from a classes-by-classes matrix, one matrix product
per sample; nothing larger than `(batch, voxels, classes)` is ever made.

Three kinds of voxels, by the size of the candidate set: one class (annotated), some classes (merged) and
all classes (ignored). Ignored voxels are left out of every sum and have no gradient; so are voxels with no
candidate at all, as zero padding makes them. The voxel means of the two cross-entropies divide by all voxels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
from keras import ops

#: A Keras tensor of whichever backend is in use, or what converts to one.
Tensor = Any

#: Stands for the logarithm of zero: far below any logit, yet finite, so that no gradient becomes NaN.
LOG_ZERO = -1e30
#: Only keeps 0/0 away in Dice: a sum of truth that is not zero is at least one voxel.
EPSILON = 1e-7

CLASS_REDUCTIONS = ("mean", "sum")


def checked_class_reduction(class_reduction: str) -> str:
    """Return `class_reduction` if it is "mean" or "sum".

    Raises:
        ValueError: If it is anything else.
    """
    if class_reduction not in CLASS_REDUCTIONS:
        raise ValueError(
            f"class_reduction must be one of {CLASS_REDUCTIONS}. "
            f"Received: class_reduction={class_reduction!r}"
        )
    return class_reduction


class Voxels(NamedTuple):
    """What the terms need of one batch, its spatial axes flattened to one.

    Attributes:
        candidates: 0 or 1, `(batch, voxels, classes)`: the set of classes that each voxel may be.
        known: 0 or 1, `(batch, voxels, 1)`: 0 at ignored voxels (all classes possible, or none given).
        share: `(batch, voxels, classes)`: 1/size of the set on its members, else and at ignored voxels 0.
        partial: 0 or 1, `(batch, 1)`: 1 for samples in which a voxel's set holds some but not all classes.
        log_probabilities: `(batch, voxels, classes)`, at most 0.
        probabilities: `(batch, voxels, classes)`, 0 to 1.
    """

    candidates: Tensor
    known: Tensor
    share: Tensor
    partial: Tensor
    log_probabilities: Tensor
    probabilities: Tensor


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


def voxels_of(y_true: Tensor, y_pred: Tensor, from_logits: bool = True) -> Voxels:
    """Bring candidates and predictions into the form that all terms share.

    Args:
        y_true: Candidates, 0 or 1, any dtype, `(batch, ..., classes)` with any number of axes between.
        y_pred: Logits (any finite values) or probabilities (0 to 1; scaled here to the sum 1), same shape.
            Half precision is computed in float32.
        from_logits: Whether `y_pred` holds logits.

    Raises:
        ValueError: If the two shapes differ or the number of classes is not known.

    Example:
        >>> voxels = voxels_of([[1, 0, 1]], [[0.0, 0.0, 0.0]])
        >>> [round(float(share), 2) for share in voxels.share[0, 0]]
        [0.5, 0.0, 0.5]
    """
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    _check_shapes(tuple(y_true.shape), tuple(y_pred.shape))
    num_classes = y_pred.shape[-1]
    flat = (ops.shape(y_pred)[0], -1, num_classes)
    log_probabilities = log_probabilities_of(ops.reshape(y_pred, flat), from_logits)
    dtype = log_probabilities.dtype
    candidates = ops.cast(ops.reshape(y_true, flat) > 0, dtype)
    size = ops.sum(candidates, axis=-1, keepdims=True)
    known = ops.cast(ops.logical_and(size > 0, size < num_classes), dtype)
    return Voxels(
        candidates=candidates,
        known=known,
        share=candidates * (known / ops.maximum(size, 1)),
        partial=ops.cast(ops.max(size * known, axis=1) > 1, dtype),
        log_probabilities=log_probabilities,
        probabilities=ops.exp(log_probabilities),
    )


def log_probabilities_of(y_pred: Tensor, from_logits: bool = True) -> Tensor:
    """Logarithm of the softmax (eq. 1), in float32 or float64, also for half-precision input.

    Args:
        y_pred: Logits or probabilities, `(..., classes)`. Probabilities are clipped to at least 1e-7, as
            Keras does, and scaled to the sum 1.
        from_logits: Whether `y_pred` holds logits.

    Returns:
        Values of at most 0, same shape.

    Example:
        >>> [round(float(value), 4) for value in ops.exp(log_probabilities_of([0.0, 1e4]))]
        [0.0, 1.0]
    """
    y_pred = ops.convert_to_tensor(y_pred)
    if keras.backend.standardize_dtype(y_pred.dtype) != "float64":
        y_pred = ops.cast(y_pred, "float32")
    # Probabilities become logits whose softmax they are, so that one path serves both.
    return ops.log_softmax(y_pred if from_logits else ops.log(ops.maximum(y_pred, EPSILON)), axis=-1)


def marginal_log_probability(candidates: Tensor, log_probabilities: Tensor) -> Tensor:
    """Logarithm of the marginal probability q of each voxel's own set (eq. 4).

    It is the probabilities of the set that are summed, not its logits. Computed as `logsumexp` over the
    set, so that q may be as small as exp(-1e4 * 2) and its logarithm and gradient stay finite.

    Args:
        candidates: 0 or 1, `(..., classes)`.
        log_probabilities: Same shape, see `log_probabilities_of`.

    Returns:
        log q, at most 0 (up to rounding), of shape `(...)`.

    Example:
        Liver alone is annotated, so a background voxel may be anything but liver:

        >>> logits = [[-2.0, -3.0, 8.0, -4.0, -4.0, -4.0]]
        >>> log_q = marginal_log_probability([[1, 0, 1, 1, 1, 1]], log_probabilities_of(logits))
        >>> round(float(ops.exp(log_q)[0]), 5)
        0.99998
    """
    possible = ops.convert_to_tensor(candidates) > 0
    return ops.logsumexp(ops.where(possible, log_probabilities, LOG_ZERO), axis=-1)


def marginal_cross_entropy(voxels: Voxels) -> Tensor:
    """Mean over all voxels of -log q (eq. 5), 0 at ignored voxels; shape `(batch,)`."""
    log_q = marginal_log_probability(voxels.candidates, voxels.log_probabilities)
    return ops.mean(ops.where(voxels.known[..., 0] > 0, -log_q, 0), axis=1)


def merged_classes(voxels: Voxels) -> Tensor:
    """Which classes are merged in each sample.

    Classes that appear together in the set of a known voxel are merged, and so are those that are linked
    through others. A merged class goes by the lowest of its classes.

    Returns:
        0 or 1, `(batch, classes, classes)`: entry `[b, k, m]` is 1 if class `k` belongs to merged class
        `m`. Columns of classes that lead no merged class are 0.

    Example:
        >>> liver_only = voxels_of([[[1, 0, 1], [0, 1, 0]]], ops.zeros((1, 2, 3)))
        >>> ops.convert_to_numpy(merged_classes(liver_only)[0]).astype(int).tolist()
        [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    """
    num_classes = voxels.candidates.shape[-1]
    together = ops.matmul(ops.transpose(voxels.share, (0, 2, 1)), voxels.candidates)
    linked = ops.maximum(ops.cast(together > 0, together.dtype), ops.eye(num_classes, dtype=together.dtype))
    # A chain of links has at most classes - 1 of them, and each product doubles the length that is covered.
    for _ in range((num_classes - 1).bit_length()):
        linked = ops.cast(ops.matmul(linked, linked) > 0, linked.dtype)
    leads = ops.cast(ops.sum(ops.tril(linked, k=-1), axis=-1) == 0, linked.dtype)
    return linked * leads[:, None, :]


def marginal_dice_sums(voxels: Voxels) -> DiceSums:
    """Sums for the marginal Dice (eq. 6), per merged class at the index of its lowest class.

    `counted` is 1 for every merged class of a sample, present in its voxels or not, and 0 throughout
    in a sample that is ignored as a whole.
    """
    merged = merged_classes(voxels)
    # Row k, column n: the probability of n over the voxels labelled k. A voxel's set lies within one merged
    # class, over which its shares add up to 1.
    by_label = ops.matmul(ops.transpose(voxels.share, (0, 2, 1)), voxels.probabilities)
    any_known = ops.max(voxels.known, axis=1)
    return DiceSums(
        overlap=ops.sum(merged * ops.matmul(by_label, merged), axis=1),
        truth=_merge(_sum_over_voxels(voxels.share), merged),
        predicted=_merge(ops.sum(by_label, axis=1), merged),
        counted=ops.diagonal(merged, axis1=1, axis2=2) * any_known,
    )


def marginal_dice(
    voxels: Voxels, class_reduction: str = "mean", include_background: bool = True, batch: bool = False
) -> Tensor:
    """Sum or mean over merged classes of one minus the soft Dice (eq. 6); shape `(batch,)`.

    See `partialseg.losses.MarginalDice` for the arguments.
    """
    sums = marginal_dice_sums(voxels)
    if batch:
        sums = _over_batch(sums)
    values = _reduce_classes(1 - soft_dice(sums), sums.counted, class_reduction, include_background)
    return ops.broadcast_to(values, ops.shape(voxels.partial)[:1])


def exclusion_sets(voxels: Voxels, merged_background_excludes: bool = True) -> Tensor:
    """The classes that each voxel cannot be (eq. 9): the complement of its candidates, nothing if ignored.

    Args:
        voxels: Candidates and predictions.
        merged_background_excludes: False empties the sets of voxels that may be background, so that only
            annotated organs exclude.

    Returns:
        0 or 1, `(batch, voxels, classes)`.
    """
    excluding = voxels.known
    if not merged_background_excludes:
        excluding = excluding * (1 - voxels.candidates[..., :1])
    return excluding * (1 - voxels.candidates)


def exclusion_dice_sums(voxels: Voxels, excluded: Tensor) -> DiceSums:
    """Sums for the exclusion Dice (eq. 10) with the sets of `exclusion_sets` in the place of truth."""
    predicted = _sum_over_voxels(voxels.probabilities * voxels.known)
    return DiceSums(
        overlap=_sum_over_voxels(excluded * voxels.probabilities),
        truth=_sum_over_voxels(excluded),
        predicted=predicted,
        counted=ops.ones_like(predicted),
    )


def exclusion_dice(
    voxels: Voxels,
    excluded: Tensor,
    class_reduction: str = "mean",
    include_background: bool = True,
    batch: bool = False,
    partial_samples_only: bool = True,
) -> Tensor:
    """Sum or mean over classes of the soft Dice with what is excluded (eq. 10); shape `(batch,)`.

    See `partialseg.losses.ExclusionDice` for the arguments.
    """
    sums = exclusion_dice_sums(voxels, excluded)
    if partial_samples_only:
        sums = DiceSums(*(values * voxels.partial for values in sums))
    if batch:
        sums = _over_batch(sums)
    values = _reduce_classes(soft_dice(sums), sums.counted, class_reduction, include_background)
    return ops.broadcast_to(values, ops.shape(voxels.partial)[:1])


def exclusion_cross_entropy(
    voxels: Voxels, excluded: Tensor, include_background: bool = True, partial_samples_only: bool = True
) -> Tensor:
    """Mean over all voxels of the sum over excluded classes of log(p + 1) (eq. 11); shape `(batch,)`."""
    values = excluded * ops.log1p(voxels.probabilities)
    if not include_background:
        values = values[..., 1:]
    values = ops.mean(ops.sum(values, axis=-1), axis=1)
    return values * voxels.partial[:, 0] if partial_samples_only else values


def soft_dice(sums: DiceSums) -> Tensor:
    """2 overlap / (truth + predicted + epsilon): 0, not 1, where truth is empty."""
    return 2 * sums.overlap / (sums.truth + sums.predicted + EPSILON)


def _sum_over_voxels(values: Tensor) -> Tensor:
    """Sum `(batch, voxels, classes)` over the voxels."""
    # Along the last axis TensorFlow adds pairwise. Along the middle one it adds in turn, and is wrong by a
    # percent for a million voxels of 0.2 in float32.
    return ops.sum(ops.transpose(values, (0, 2, 1)), axis=-1)


def _merge(per_class: Tensor, merged: Tensor) -> Tensor:
    """Add up `(batch, classes)` within merged classes."""
    return ops.sum(per_class[:, :, None] * merged, axis=1)


def _over_batch(sums: DiceSums) -> DiceSums:
    """Add sums over the samples, and over the replicas of a strategy, kept as a batch of one."""
    totals = _sum_over_replicas(ops.stack([ops.sum(values, axis=0, keepdims=True) for values in sums]))
    return DiceSums(totals[0], totals[1], totals[2], ops.minimum(totals[3], 1))


def _sum_over_replicas(values: Tensor) -> Tensor:
    """Add over the replicas of a tf.distribute strategy; elsewhere there is one, and nothing to add."""
    if keras.backend.backend() != "tensorflow":
        return values
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)


def _reduce_classes(
    values: Tensor, counted: Tensor, class_reduction: str, include_background: bool
) -> Tensor:
    """Sum or mean over the classes that are counted; 0 where none is."""
    if not include_background:
        values, counted = values[:, 1:], counted[:, 1:]
    total = ops.sum(values * counted, axis=-1)
    return total / ops.maximum(ops.sum(counted, axis=-1), 1) if class_reduction == "mean" else total


def _check_shapes(true_shape: tuple[int | None, ...], pred_shape: tuple[int | None, ...]) -> None:
    known_to_differ = any(
        None not in (true, pred) and true != pred for true, pred in zip(true_shape, pred_shape, strict=False)
    )
    if len(true_shape) != len(pred_shape) or len(pred_shape) < 2 or known_to_differ:
        raise ValueError(
            "y_true (candidates) and y_pred must have the same shape (batch, ..., classes). Received: "
            f"y_true.shape={true_shape}, y_pred.shape={pred_shape}. A map of label values becomes candidates "
            "by partialseg.data.candidates(label, table)."
        )
    if pred_shape[-1] is None:
        raise ValueError(f"The number of classes must be known. Received: y_pred.shape={pred_shape}")
