"""What the losses of other papers share: each voxel's set, the network's probabilities, and sums over them."""

from __future__ import annotations

from typing import NamedTuple

from keras import ops

from partialseg.losses.inputs import Tensor, check_shapes, log_probabilities_of, marginal_log_probability


class VoxelSets(NamedTuple):
    """One batch, its spatial axes flattened to one.

    Attributes:
        candidates: 0 or 1, `(batch, voxels, classes)`: the classes that each voxel may be.
        size: `(batch, voxels, 1)`: how many they are.
        known: 0 or 1, `(batch, voxels, 1)`: 0 at ignored voxels (all classes possible, or none given).
        log_probabilities: `(batch, voxels, classes)`, at most 0.
    """

    candidates: Tensor
    size: Tensor
    known: Tensor
    log_probabilities: Tensor


def voxel_sets_of(y_true: Tensor, y_pred: Tensor, from_logits: bool = True) -> VoxelSets:
    """Flatten candidates and predictions, and say which voxels are known.

    Args:
        y_true: Candidates, 0 or 1, any dtype, `(batch, ..., classes)` with any number of axes between.
        y_pred: Logits (any finite values) or probabilities (0 to 1), same shape.
        from_logits: Whether `y_pred` holds logits.

    Raises:
        ValueError: If the two shapes differ or the number of classes is not known.

    Example:
        >>> sets = voxel_sets_of([[[1, 0, 1], [1, 1, 1]]], ops.zeros((1, 2, 3)))
        >>> ops.convert_to_numpy(sets.known).ravel().tolist()
        [1.0, 0.0]
    """
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    check_shapes(tuple(y_true.shape), tuple(y_pred.shape))
    num_classes = y_pred.shape[-1]
    flat = (ops.shape(y_pred)[0], -1, num_classes)
    log_probabilities = log_probabilities_of(ops.reshape(y_pred, flat), from_logits)
    candidates = ops.cast(ops.reshape(y_true, flat) > 0, log_probabilities.dtype)
    size = ops.sum(candidates, axis=-1, keepdims=True)
    known = ops.cast(ops.logical_and(size > 0, size < num_classes), candidates.dtype)
    return VoxelSets(candidates, size, known, log_probabilities)


def marginal_nll(sets: VoxelSets) -> Tensor:
    """-log q, with q the probability of the voxel's set, 0 where ignored; `(batch, voxels)`."""
    log_q = marginal_log_probability(sets.candidates, sets.log_probabilities)
    return ops.where(sets.known[..., 0] > 0, -log_q, 0)


def marginal_cross_entropy(sets: VoxelSets) -> Tensor:
    """Mean over all voxels of `marginal_nll`; `(batch,)`."""
    return ops.mean(marginal_nll(sets), axis=1)


def mean_per_class(sets: VoxelSets, nll: Tensor) -> Tensor:
    """Mean of `(batch, voxels)` over the voxels labelled with each class, NaN where there is none; `(batch, classes)`.

    A voxel of several candidates is labelled with the lowest of them: background, where that is among them.

    Example:
        >>> sets = voxel_sets_of([[[1, 0, 1], [0, 1, 0]]], [[[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]]], from_logits=False)
        >>> [round(float(value), 2) for value in mean_per_class(sets, marginal_nll(sets))[0]]
        [0.22, 0.22, nan]
    """
    lower = ops.cumsum(sets.candidates, axis=-1) - sets.candidates
    labelled = sets.candidates * ops.cast(lower == 0, sets.candidates.dtype) * sets.known
    voxels = sum_over_voxels(labelled)
    return where_counted(voxels, sum_over_voxels(labelled * nll[..., None]) / ops.maximum(voxels, 1))


def where_counted(counted: Tensor, values: Tensor) -> Tensor:
    """The values, NaN where `counted` is 0: there is nothing to tell of such a class."""
    return ops.where(counted > 0, values, float("nan"))


def sum_over_voxels(values: Tensor) -> Tensor:
    """Sum `(batch, voxels, classes)` over the voxels."""
    # TensorFlow adds pairwise along the last axis, but in turn along the middle one, which loses digits.
    return ops.sum(ops.transpose(values, (0, 2, 1)), axis=-1)
