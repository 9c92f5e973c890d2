"""The one pass over the voxels that all four terms share, with its gradient written out.

All terms are functions of a few sums per sample: a classes-by-classes matrix of probability by label, and
some vectors of one entry per class (`VoxelSums`). Only what is summed is as large as the image; what follows
from the sums (`partialseg.losses.terms`) costs next to nothing. The gradient is written out, not left to each
backend: four terms then cost 1.2 to 1.5 times as much as plain cross-entropy and Dice, where automatic
gradients of the same sums took twice as much.

A voxel's classes are on two sides, those of its set S and all others. Sums of exponentials are taken of each
side by itself, measured from its own highest logit. So -log q, with q the sum of the softmax p over S (eq. 4),
and the probability of a class given S, p/q, which makes the gradient (eq. 7 and 8), keep their digits where q
itself is as small as exp(-2e4).

Voxels whose set holds all classes, or none, as zero padding makes them, are ignored: they are part of no sum
and have no gradient.

Where a GPU rounds the factors of matrix products to TF32, as TensorFlow and JAX let it, `labelled` sums
probabilities of 11 bits: within 0.05 % of the exact sum. Counts of voxels stay exact, and so does every gradient but
for what it takes from these sums.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from partialseg.losses.compilation import compiled_alone
from partialseg.losses.gradients import with_gradient
from partialseg.losses.inputs import LOG_ZERO, Tensor, rows_of_candidates_and_logits


class VoxelSums(NamedTuple):
    """Sums over the voxels of each sample that are not ignored. S is a voxel's set, p its probabilities.

    Attributes:
        labelled: `(batch, classes, classes)`. Row k, column n: the probability of n over the voxels labelled
            k. A voxel whose set holds several classes is labelled with the lowest of them.
        together: `(batch, classes, classes)`. Row k, column n: voxels labelled k whose set holds n.
        marginal_nll: `(batch,)`. Sum of -log q, the numerator of eq. 5.
        excluded: `(batch, classes)`. Voxels that exclude the class, Σ e of eq. 10.
        excluded_probability: `(batch, classes)`. Probability of the class over these voxels, Σ e p of eq. 10.
        exclusion_penalty: `(batch,)`. Σ e log(p + 1) over voxels and classes, of eq. 11.
        num_voxels: Voxels of a sample, ignored ones too.
    """

    labelled: Tensor
    together: Tensor
    marginal_nll: Tensor
    excluded: Tensor | None
    excluded_probability: Tensor | None
    exclusion_penalty: Tensor | None
    num_voxels: Tensor

    @property
    def known(self) -> Tensor:
        """Voxels that are not ignored, `(batch, 1)`."""
        return ops.sum(self.truth, axis=-1, keepdims=True)

    @property
    def truth(self) -> Tensor:
        """Voxels labelled with each class, `(batch, classes)`."""
        return ops.diagonal(self.together, axis1=1, axis2=2)

    @property
    def predicted(self) -> Tensor:
        """Probability of each class, `(batch, classes)`."""
        return ops.sum(self.labelled, axis=1)


def voxel_sums(
    y_true: Tensor,
    y_pred: Tensor,
    from_logits: bool = True,
    exclusion: bool = True,
    merged_background_excludes: bool = True,
    penalise_background: bool = True,
) -> VoxelSums:
    """Sum over voxels all that the four terms need.

    Args:
        y_true: Candidates, 0 or 1, any dtype, `(batch, ..., classes)` with any number of axes between.
        y_pred: Logits (between -1e30 and 1e30) or probabilities (0 to 1; scaled here to the sum 1), same shape.
            Half precision is computed in float32.
        from_logits: Whether `y_pred` holds logits.
        exclusion: Whether to sum what the exclusion terms need; else these fields are None.
        merged_background_excludes: What a voxel excludes (eq. 9). True: the complement of its set. False:
            that, unless it may be background, so that only annotated organs exclude.
        penalise_background: Whether class 0 counts in `exclusion_penalty`.

    Raises:
        ValueError: If the two shapes differ, or the number of classes is not known or below 2.

    Example:
        >>> sums = voxel_sums([[[0, 1, 0], [1, 0, 1]]], [[[0, 1, 0], [0.5, 0, 0.5]]], from_logits=False)
        >>> ops.convert_to_numpy(sums.labelled[0]).round(2).tolist()
        [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    candidates, logits = rows_of_candidates_and_logits(y_true, y_pred, from_logits)
    forward, backward = _passes(logits.shape[-1], exclusion, merged_background_excludes, penalise_background)

    def gradients(rows: tuple[Tensor, Tensor], voxels: _Voxels, upstream: Tensor) -> tuple[Tensor, Tensor]:
        return ops.zeros_like(rows[0]), backward(*rows, voxels, upstream)

    packed_sums = with_gradient(forward, gradients)
    sums = _unpacked(packed_sums(candidates, logits), logits.shape[-1], exclusion)
    return VoxelSums(
        **sums._asdict(),
        excluded=_num_excluded(sums.together, merged_background_excludes) if exclusion else None,
        num_voxels=ops.cast(ops.shape(logits)[1] * ops.shape(logits)[2], logits.dtype),
    )


class _Sums(NamedTuple):
    """What is summed over voxels, or the derivatives by it; see `VoxelSums`."""

    labelled: Tensor
    together: Tensor
    marginal_nll: Tensor
    excluded_probability: Tensor | None = None
    exclusion_penalty: Tensor | None = None


def _packed(sums: _Sums) -> Tensor:
    """All in one tensor `(batch, ..., classes)`: Keras' custom gradients have a single output on PyTorch."""
    row = ops.zeros_like(sums.labelled[:, :1])
    parts = [sums.labelled, sums.together, row + sums.marginal_nll[:, None, None]]
    if sums.excluded_probability is not None:
        parts += [sums.excluded_probability[:, None], row + sums.exclusion_penalty[:, None, None]]
    return ops.concatenate(parts, axis=1)


def _unpacked(packed: Tensor, num_classes: int, exclusion: bool) -> _Sums:
    """What `_packed` took, or the derivatives by it."""
    labelled, together = packed[:, :num_classes], packed[:, num_classes : 2 * num_classes]
    rest = packed[:, 2 * num_classes :]
    by_exclusion = (rest[:, 1], rest[:, 2, 0]) if exclusion else ()
    return _Sums(labelled, together, rest[:, 0, 0], *by_exclusion)


def _num_excluded(together: Tensor, merged_background_excludes: bool) -> Tensor:
    """Voxels that exclude each class, Σ e of eq. 10; `(batch, classes)`."""
    labelled = ops.diagonal(together, axis1=1, axis2=2)[:, :, None]  # a set holds its label
    cannot_be = labelled - together  # row k, column n: voxels labelled k that cannot be n
    # Voxels that may be background are labelled background, the first row.
    return ops.sum(cannot_be if merged_background_excludes else cannot_be[:, 1:], axis=1)


class _Voxels(NamedTuple):
    """What the pass that sums leaves for the one that gives the gradient, all `(batch, voxels, ...)`.

    Attributes:
        probabilities: `(..., classes)`, 0 at ignored voxels.
        highest: `(..., 1)`: the highest logit of the set.
        log_total: `(..., 1)`: logarithm of the sum of exp(x - highest) over the set, 0 to log(classes); at
            ignored voxels so large that exp(x - highest - log_total) is 0 for every class of the set.
        label: `(..., 1)`: the lowest class of the set, -1 at ignored voxels.
    """

    probabilities: Tensor
    highest: Tensor
    log_total: Tensor
    label: Tensor


@functools.cache
def _passes(
    num_classes: int, exclusion: bool, merged_background_excludes: bool, penalise_background: bool
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The pass that sums and the pass that gives the gradient, both compiled.

    They take rows, `(batch, rows, voxels, classes)`; in between voxels are flat, which is faster.
    """

    def forward(candidates: Tensor, logits: Tensor) -> tuple[Tensor, _Voxels]:
        sets = ops.cast(_flat(candidates) > 0, logits.dtype)
        voxels, nll = _two_sides(sets, _flat(logits))
        labels, p = ops.cast(_classes(sets) == voxels.label, sets.dtype), voxels.probabilities
        sums = _Sums(
            labelled=_products(labels, p, like=logits),
            together=_products(labels, sets, like=logits),
            marginal_nll=ops.sum(nll, axis=(1, 2)),
        )
        if exclusion:
            excluded = excluded_classes(sets, merged_background_excludes)
            # First over the classes, which XLA does without writing the products down.
            penalty = ops.sum(excluded * penalised(sets) * ops.log1p(p), axis=-1)
            sums = sums._replace(
                excluded_probability=ops.sum(excluded * p, axis=1), exclusion_penalty=ops.sum(penalty, axis=1)
            )
        return _packed(sums), voxels

    def backward(candidates: Tensor, logits: Tensor, voxels: _Voxels, upstream: Tensor) -> Tensor:
        by, p = _unpacked(upstream, num_classes, exclusion), voxels.probabilities
        sets = ops.cast(_flat(candidates) > 0, logits.dtype)
        by_p = _rows_of(by.labelled, voxels.label)
        if exclusion:
            by_penalty = by.exclusion_penalty[:, None, None] * penalised(sets)
            excluded = excluded_classes(sets, merged_background_excludes)
            by_p = by_p + excluded * (by.excluded_probability[:, None] + by_penalty / (1 + p))
        # Not times `sets`: outside the set the exponential may be infinite.
        given_set = ops.where(sets > 0, ops.exp((_flat(logits) - voxels.highest) - voxels.log_total), 0)
        # Of the softmax, and of -log q (eq. 7 and 8).
        by_logits = p * (by_p - ops.sum(p * by_p, axis=-1, keepdims=True))
        by_logits = by_logits + by.marginal_nll[:, None, None] * (p - given_set)
        return ops.reshape(by_logits, ops.shape(logits))

    def penalised(sets: Tensor) -> Tensor | float:
        return 1.0 if penalise_background else ops.cast(_classes(sets) > 0, sets.dtype)

    return compiled_alone(forward), compiled_alone(backward)


def _two_sides(sets: Tensor, logits: Tensor) -> tuple[_Voxels, Tensor]:
    """Probabilities by way of the two sides, and -log q, `(batch, voxels, 1)`, 0 at ignored voxels."""
    inside = sets > 0
    highest = ops.max(ops.where(inside, logits, LOG_ZERO), axis=-1, keepdims=True)
    highest_outside = ops.max(ops.where(inside, LOG_ZERO, logits), axis=-1, keepdims=True)
    total = ops.sum(ops.where(inside, ops.exp(logits - highest), 0), axis=-1, keepdims=True)
    total_outside = ops.sum(ops.where(inside, 0, ops.exp(logits - highest_outside)), axis=-1, keepdims=True)
    # The highest of a side gives exp(0), so a total of 0 is that of a side without classes. Logits that are not
    # numbers are not ignored: their loss is not a number either.
    known = ops.logical_not(ops.logical_or(total == 0, total_outside == 0))
    # Both sides measured from the higher of the two, as in any softmax.
    highest_of_all = ops.maximum(highest, highest_outside)
    scale, scale_outside = ops.exp(highest - highest_of_all), ops.exp(highest_outside - highest_of_all)
    log_total_of_all = ops.where(known, ops.log(scale * total + scale_outside * total_outside), -LOG_ZERO)
    log_total = ops.where(known, ops.log(total), -LOG_ZERO)
    lowest = ops.min(ops.where(inside, _classes(sets), -LOG_ZERO), axis=-1, keepdims=True)
    voxels = _Voxels(
        probabilities=ops.exp((logits - highest_of_all) - log_total_of_all),
        highest=highest,
        log_total=log_total,
        label=ops.where(known, lowest, -1),
    )
    return voxels, ops.where(known, (highest_of_all - highest) + (log_total_of_all - log_total), 0)


def excluded_classes(sets: Tensor, merged_background_excludes: bool) -> Tensor:
    """Classes that a voxel cannot be (eq. 9), 0 or 1, `(..., classes)`; of no use at ignored voxels."""
    return 1 - sets if merged_background_excludes else (1 - sets) * (1 - sets[..., :1])


def _flat(rows: Tensor) -> Tensor:
    """`(batch, rows, voxels, classes)` as `(batch, voxels, classes)`."""
    shape = ops.shape(rows)
    return ops.reshape(rows, (shape[0], shape[1] * shape[2], shape[3]))


def _classes(sets: Tensor) -> Tensor:
    return ops.arange(ops.shape(sets)[-1], dtype=sets.dtype)


def _rows_of(matrices: Tensor, label: Tensor) -> Tensor:
    """Of each sample's matrix the row that each voxel's label says; any row where the label is -1."""
    num_samples, num_classes = ops.shape(matrices)[0], ops.shape(matrices)[-1]
    first_row = ops.reshape(ops.arange(num_samples, dtype="int32") * num_classes, (-1, 1))
    row = first_row + ops.cast(ops.maximum(label[..., 0], 0), "int32")
    return ops.take(ops.reshape(matrices, (-1, num_classes)), row, axis=0)


def _products(left: Tensor, right: Tensor, like: Tensor) -> Tensor:
    """Sum over the voxels of the products of two classes, `(batch, classes, classes)`."""
    # Row by row: float32 loses digits where a matrix product adds a million numbers in turn.
    left, right = ops.reshape(left, ops.shape(like)), ops.reshape(right, ops.shape(like))
    return ops.sum(ops.matmul(ops.transpose(left, (0, 1, 3, 2)), right), axis=1)
