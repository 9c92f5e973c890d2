"""The one pass over the voxels that all four terms share, with its gradient written out.

All terms are functions of a few sums per sample: a classes-by-classes matrix of probability by label, and
some vectors of one entry per class (`VoxelSums`). Only they are as large as the image; what follows from
them (`partialseg.losses.terms`) costs next to nothing.

A voxel's classes are on two sides, those of its set S and all others. Sums of exponentials are taken of each
side by itself, measured from its own highest logit, so that q, the sum of the softmax over S (eq. 4), and the
probability of a class given S, p/q, which makes the gradient (eq. 7 and 8), are exact for any logits, also where
q is as small as exp(-2e4).

Voxels whose set holds all classes, or none, as zero padding makes them, are ignored: they are part of no sum
and have no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from partialseg.losses.compilation import compiled_alone
from partialseg.losses.inputs import LOG_ZERO, Tensor, rows_of_candidates_and_logits


class VoxelSums(NamedTuple):
    """Sums over the voxels of each sample that are not ignored. S is a voxel's set, p its probabilities.

    Attributes:
        labelled: `(batch, classes, classes)`. Row k, column n: the probability of n over the voxels labelled
            k. A voxel whose set holds several classes is labelled with the lowest of them.
        together: `(batch, classes, classes)`. Row k, column n: voxels labelled k whose set holds n.
        marginal_nll: `(batch,)`. Sum of -log q, the numerator of eq. 5.
        excluded: `(batch, classes)`. Voxels that cannot be the class, Σ e of eq. 10.
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
        y_pred: Logits (any finite values) or probabilities (0 to 1; scaled here to the sum 1), same shape.
            Half precision is computed in float32.
        from_logits: Whether `y_pred` holds logits.
        exclusion: Whether to sum what the exclusion terms need; else these fields are None.
        merged_background_excludes: What a voxel excludes (eq. 9). True: the complement of its set. False:
            that, unless it may be background, so that only annotated organs exclude.
        penalise_background: Whether class 0 counts in `exclusion_penalty`.

    Raises:
        ValueError: If the two shapes differ or the number of classes is not known.

    Example:
        >>> sums = voxel_sums([[[0, 1, 0], [1, 0, 1]]], [[[0, 1, 0], [0.5, 0, 0.5]]], from_logits=False)
        >>> ops.convert_to_numpy(sums.labelled[0]).round(2).tolist()
        [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    candidates, logits = rows_of_candidates_and_logits(y_true, y_pred, from_logits)
    forward, backward = _passes(exclusion, merged_background_excludes, penalise_background)

    # One tensor holds all sums: Keras' custom gradients have a single output on PyTorch.
    @ops.custom_gradient
    def packed_sums(candidates: Tensor, logits: Tensor) -> tuple[Tensor, Callable[..., Any]]:
        sums, voxels = forward(candidates, logits)

        def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor, Tensor]:
            upstream = args[0] if upstream is None else upstream
            return ops.zeros_like(candidates), backward(candidates, logits, voxels, upstream)

        return sums, gradient

    sums, num_classes = packed_sums(candidates, logits), logits.shape[-1]
    rest = sums[:, 2 * num_classes :]
    return VoxelSums(
        labelled=sums[:, :num_classes],
        together=sums[:, num_classes : 2 * num_classes],
        marginal_nll=rest[:, 0, 0],
        excluded=rest[:, 1] if exclusion else None,
        excluded_probability=rest[:, 2] if exclusion else None,
        exclusion_penalty=rest[:, 3, 0] if exclusion else None,
        num_voxels=ops.cast(ops.shape(logits)[1] * ops.shape(logits)[2], logits.dtype),
    )


class _Voxels(NamedTuple):
    """What the pass that sums leaves for the one that gives the gradient, all `(batch, voxels, ...)`.

    Attributes:
        probabilities: `(..., classes)`, 0 at ignored voxels.
        highest: `(..., 1)`: the highest logit of the set.
        log_total: `(..., 1)`: logarithm of the sum of exp(x - highest) over the set, which is 0 to log(classes);
            at ignored voxels so large that all probabilities given the set are 0.
        label: `(..., 1)`: the lowest class of the set, -1 at ignored voxels.
    """

    probabilities: Tensor
    highest: Tensor
    log_total: Tensor
    label: Tensor


@functools.cache
def _passes(
    exclusion: bool, merged_background_excludes: bool, penalise_background: bool
) -> tuple[Callable[..., Any], ...]:
    """The pass that sums and the pass that gives the gradient, both compiled.

    They take rows, `(batch, rows, voxels, classes)`; in between voxels are flat, which is faster.
    """

    def forward(candidates: Tensor, logits: Tensor) -> tuple[Tensor, _Voxels]:
        sets = ops.cast(_flat(candidates) > 0, logits.dtype)
        voxels, nll = _two_sides(sets, _flat(logits))
        labels, p = ops.cast(_classes(sets) == voxels.label, sets.dtype), voxels.probabilities
        together = _products(labels, sets, like=logits)
        rows = [_products(labels, p, like=logits), together, _row(ops.sum(nll, axis=1), together)]
        if exclusion:
            excluded = _excluded(sets, merged_background_excludes)
            penalised = (
                excluded if penalise_background else excluded * ops.cast(_classes(sets) > 0, sets.dtype)
            )
            penalty = ops.sum(penalised * ops.log1p(p), axis=-1, keepdims=True)
            # Merged background is labelled background, so all its voxels are in the first row.
            excluding = together if merged_background_excludes else together[:, 1:]
            holding = ops.sum(excluding, axis=1, keepdims=True)
            rows.append(ops.sum(ops.max(excluding, axis=-1, keepdims=True), axis=1, keepdims=True) - holding)
            rows.append(ops.sum(excluded * p, axis=1, keepdims=True))
            rows.append(_row(ops.sum(penalty, axis=1), together))
        return ops.concatenate(rows, axis=1), voxels

    def backward(candidates: Tensor, logits: Tensor, voxels: _Voxels, upstream: Tensor) -> Tensor:
        sets, p = ops.cast(_flat(candidates) > 0, logits.dtype), voxels.probabilities
        num_classes = ops.shape(sets)[-1]
        of_p = _rows_of(upstream[:, :num_classes], voxels.label)
        of_nll = ops.sum(upstream[:, 2 * num_classes], axis=-1)[:, None, None]
        if exclusion:
            of_probability, of_penalty = upstream[:, -2:-1], ops.sum(upstream[:, -1:], axis=-1, keepdims=True)
            if not penalise_background:
                of_penalty = of_penalty * ops.cast(_classes(sets) > 0, sets.dtype)
            excluded = _excluded(sets, merged_background_excludes)
            of_p = of_p + excluded * (of_probability + of_penalty / (1 + p))
        # The derivative of -log q (eq. 7 and 8) is the probability minus the probability given the set.
        given_set = sets * ops.exp((_flat(logits) - voxels.highest) - voxels.log_total)
        through_softmax = p * (of_p - ops.sum(p * of_p, axis=-1, keepdims=True))
        return ops.reshape(through_softmax + of_nll * (p - given_set), ops.shape(logits))

    return compiled_alone(forward), compiled_alone(backward)


def _two_sides(sets: Tensor, logits: Tensor) -> tuple[_Voxels, Tensor]:
    """Probabilities by way of the two sides, and -log q, `(batch, voxels, 1)`, 0 at ignored voxels."""
    inside = sets > 0
    highest = ops.max(ops.where(inside, logits, LOG_ZERO), axis=-1, keepdims=True)
    highest_outside = ops.max(ops.where(inside, LOG_ZERO, logits), axis=-1, keepdims=True)
    total = ops.sum(ops.where(inside, ops.exp(logits - highest), 0), axis=-1, keepdims=True)
    total_outside = ops.sum(ops.where(inside, 0, ops.exp(logits - highest_outside)), axis=-1, keepdims=True)
    # The highest of a side gives exp(0), so a total of 0 is that of a side without classes.
    known = ops.logical_and(total > 0, total_outside > 0)
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


def _excluded(sets: Tensor, merged_background_excludes: bool) -> Tensor:
    """Classes that a voxel cannot be (eq. 9), 0 or 1; any value will do where p is 0, at ignored voxels."""
    return 1 - sets if merged_background_excludes else (1 - sets) * (1 - sets[..., :1])


def _flat(rows: Tensor) -> Tensor:
    """`(batch, rows, voxels, classes)` as `(batch, voxels, classes)`."""
    shape = ops.shape(rows)
    return ops.reshape(rows, (shape[0], shape[1] * shape[2], shape[3]))


def _classes(sets: Tensor) -> Tensor:
    return ops.arange(ops.shape(sets)[-1], dtype=sets.dtype)


def _row(value: Tensor, matrices: Tensor) -> Tensor:
    """`(batch, 1)` as one more row of matrices."""
    return ops.broadcast_to(value[:, None], ops.shape(matrices[:, :1]))


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
