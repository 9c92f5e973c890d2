"""The one pass over the voxels that all four terms share, with its gradient written out.

All terms are functions of a few sums per sample: a classes-by-classes matrix of probability by label, and
some vectors of one entry per class (`VoxelSums`). Only they are as large as the image; what follows from
them (`partialseg.losses.terms`) costs next to nothing.

A voxel's classes are on two sides, those of its set S and all others. Each logit x is measured from the
highest of its own side, so that one exponential a class gives the softmax p, its sum q over S (eq. 4) and the
probabilities given S, p/q, which make the gradient (eq. 7 and 8), also where q is as small as exp(-2e4):

    -log q = highest of all - highest in S + log(Σ exp(x - highest of all) / Σ over S exp(x - highest in S))

Voxels whose set holds all classes, or none, as zero padding makes them, are ignored: they are part of no sum
and have no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from partialseg.losses.compilation import compiled_alone
from partialseg.losses.inputs import LOG_ZERO, Tensor, flat_candidates_and_logits


class VoxelSums(NamedTuple):
    """Sums over the voxels of each sample that are not ignored. S is a voxel's set, p its probabilities.

    Attributes:
        labelled: `(batch, classes, classes)`. Row k, column n: the probability of n over the voxels labelled
            k. A voxel whose set holds several classes is labelled with the lowest of them.
        together: `(batch, classes, classes)`. Row k, column n: voxels labelled k whose set holds n.
        marginal_nll: `(batch,)`. Sum of -log q, the numerator of eq. 5.
        excluded: `(batch, classes)`. Voxels that cannot be the class, Σ e of eq. 10.
        excluded_probability: `(batch, classes)`. Probability of the class over these voxels, Σ e p of eq. 10.
        exclusion_penalty: `(batch, classes)`. Σ e log(p + 1) of eq. 11.
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

    Raises:
        ValueError: If the two shapes differ or the number of classes is not known.

    Example:
        >>> sums = voxel_sums([[[0, 1, 0], [1, 0, 1]]], [[[0, 1, 0], [0.5, 0, 0.5]]], from_logits=False)
        >>> ops.convert_to_numpy(sums.labelled[0]).round(2).tolist()
        [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    candidates, logits = flat_candidates_and_logits(y_true, y_pred, from_logits)
    forward, backward = _passes(exclusion, merged_background_excludes)

    # One tensor holds all sums: Keras' custom gradients have a single output on PyTorch.
    @ops.custom_gradient
    def packed_sums(logits: Tensor) -> tuple[Tensor, Callable[..., Tensor]]:
        sums, voxels = forward(candidates, logits)

        def gradient(*args: Tensor, upstream: Tensor | None = None) -> Tensor:
            return backward(candidates, voxels, args[0] if upstream is None else upstream)

        return sums, gradient

    sums, num_classes = packed_sums(logits), logits.shape[-1]
    rest = sums[:, 2 * num_classes :]
    return VoxelSums(
        labelled=sums[:, :num_classes],
        together=sums[:, num_classes : 2 * num_classes],
        marginal_nll=rest[:, 0, 0],
        excluded=rest[:, 1] if exclusion else None,
        excluded_probability=rest[:, 2] if exclusion else None,
        exclusion_penalty=rest[:, 3] if exclusion else None,
        num_voxels=ops.cast(ops.shape(logits)[1] * ops.shape(logits)[2], logits.dtype),
    )


class _Voxels(NamedTuple):
    """What the pass that sums leaves for the one that gives the gradient.

    Attributes:
        probabilities: `(batch, slices, voxels, classes)`, 0 at ignored voxels.
        powers: Same shape: exp(x - the highest x of the class's side).
        target_weight: `(batch, slices, voxels, 1)`: `powers` times this is the probability of a class of the
            set, given the set; 0 at ignored voxels.
        label: Same shape: the lowest class of the set, -1 at ignored voxels.
    """

    probabilities: Tensor
    powers: Tensor
    target_weight: Tensor
    label: Tensor


@functools.cache
def _passes(exclusion: bool, merged_background_excludes: bool) -> tuple[Callable[..., Any], ...]:
    """The pass that sums and the pass that gives the gradient, both compiled."""

    def forward(candidates: Tensor, logits: Tensor) -> tuple[Tensor, _Voxels]:
        sets = ops.cast(candidates > 0, logits.dtype)
        voxels, nll = _two_sides(sets, logits)
        labels = _one_hot(voxels.label, sets)
        labelled, together = _products(labels, voxels.probabilities), _products(labels, sets)
        nll = ops.broadcast_to(ops.sum(nll, axis=(1, 2))[:, None], ops.shape(together[:, :1]))
        rows = [labelled, together, nll]
        if exclusion:
            excluded = _excluded(sets, merged_background_excludes)
            # A voxel that may be background is labelled so.
            excluding = together if merged_background_excludes else together[:, 1:]
            holding = ops.sum(excluding, axis=1, keepdims=True)
            rows.append(ops.sum(ops.max(excluding, axis=-1, keepdims=True), axis=1, keepdims=True) - holding)
            rows.append(ops.sum(excluded * voxels.probabilities, axis=(1, 2))[:, None])
            rows.append(ops.sum(excluded * ops.log1p(voxels.probabilities), axis=(1, 2))[:, None])
        return ops.concatenate(rows, axis=1), voxels

    def backward(candidates: Tensor, voxels: _Voxels, upstream: Tensor) -> Tensor:
        p, num_classes = voxels.probabilities, ops.shape(candidates)[-1]
        sets = ops.cast(candidates > 0, p.dtype)
        of_p = ops.matmul(_one_hot(voxels.label, sets), upstream[:, None, :num_classes])
        of_nll = ops.sum(upstream[:, 2 * num_classes], axis=-1)[:, None, None, None]
        if exclusion:
            of_probability, of_penalty = upstream[:, None, -2:-1], upstream[:, None, -1:]
            excluded = _excluded(sets, merged_background_excludes)
            of_p = of_p + excluded * (of_probability + of_penalty / (1 + p))
        # The derivative of -log q (eq. 7 and 8) is the probability minus the probability given the set.
        given_set = sets * (voxels.powers * voxels.target_weight)
        return p * (of_p - ops.sum(p * of_p, axis=-1, keepdims=True) + of_nll) - of_nll * given_set

    return compiled_alone(forward), compiled_alone(backward)


def _two_sides(sets: Tensor, logits: Tensor) -> tuple[_Voxels, Tensor]:
    """Probabilities, each by way of its side, and -log q, `(batch, slices, voxels, 1)`."""
    inside = sets > 0
    highest = ops.max(ops.where(inside, logits, LOG_ZERO), axis=-1, keepdims=True)
    highest_outside = ops.max(ops.where(inside, LOG_ZERO, logits), axis=-1, keepdims=True)
    powers = ops.exp(logits - ops.where(inside, highest, highest_outside))
    total = ops.sum(ops.where(inside, powers, 0), axis=-1, keepdims=True)
    total_outside = ops.sum(ops.where(inside, 0, powers), axis=-1, keepdims=True)
    # The highest of a side gives exp(0), so a total of 0 is that of a side without classes.
    known = ops.cast(ops.logical_and(total > 0, total_outside > 0), logits.dtype)
    total = ops.maximum(total, 1)
    classes = ops.arange(ops.shape(sets)[-1], dtype=logits.dtype)
    lowest = ops.min(ops.where(inside, classes, -LOG_ZERO), axis=-1, keepdims=True)
    # Both sides measured from the higher of the two, as in any softmax.
    highest_of_all = ops.maximum(highest, highest_outside)
    scale, scale_outside = ops.exp(highest - highest_of_all), ops.exp(highest_outside - highest_of_all)
    total_of_all = scale * total + scale_outside * total_outside
    voxels = _Voxels(
        probabilities=powers * ops.where(inside, scale, scale_outside) * (known / total_of_all),
        powers=powers,
        target_weight=known / total,
        label=ops.where(known > 0, lowest, -1),
    )
    nll = known * (highest_of_all - highest + ops.log(total_of_all / total))
    return voxels, nll


def _excluded(sets: Tensor, merged_background_excludes: bool) -> Tensor:
    """Classes that a voxel cannot be (eq. 9), 0 or 1; any value will do where p is 0, at ignored voxels."""
    return 1 - sets if merged_background_excludes else (1 - sets) * (1 - sets[..., :1])


def _one_hot(label: Tensor, sets: Tensor) -> Tensor:
    """0 or 1, of the shape and dtype of `sets`; all 0 where the label is -1."""
    return ops.cast(ops.arange(ops.shape(sets)[-1], dtype=sets.dtype) == label, sets.dtype)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Sum over the voxels of the products of two classes, `(batch, classes, classes)`."""
    # Slice by slice: float32 loses digits where a million numbers are added in turn.
    return ops.sum(ops.matmul(ops.transpose(left, (0, 1, 3, 2)), right), axis=1)
