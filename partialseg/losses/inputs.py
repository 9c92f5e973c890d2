"""What every loss does first with its two arguments, candidates and logits or probabilities."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

#: A Keras tensor of whichever backend is in use, or what converts to one.
Tensor = Any

#: Stands for minus infinity: far below any logit, yet finite, so that nothing becomes NaN.
LOG_ZERO = -1e30
#: Probabilities are clipped to at least this, Keras' own epsilon, before their logarithm is taken.
SMALLEST_PROBABILITY = 1e-7


def rows_of_candidates_and_logits(
    y_true: Tensor, y_pred: Tensor, from_logits: bool = True
) -> tuple[Tensor, Tensor]:
    """Both arguments of a loss with their spatial axes flattened to two, rows of voxels and the voxels of each.

    Args:
        y_true: Candidates, 0 or 1, any dtype, `(batch, ..., classes)` with any number of axes between.
        y_pred: Logits or probabilities, same shape.
        from_logits: Whether `y_pred` holds logits.

    Returns:
        Candidates and logits, both float32 or both float64, `(batch, rows, voxels, classes)`; a row is the
        last spatial axis.

    Raises:
        ValueError: If the two shapes differ, or the number of classes is not known or below 2.

    Example:
        >>> candidates, logits = rows_of_candidates_and_logits(ops.ones((2, 4, 5, 6, 3)), ops.ones((2, 4, 5, 6, 3)))
        >>> tuple(candidates.shape), tuple(logits.shape)
        ((2, 20, 6, 3), (2, 20, 6, 3))
    """
    y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
    check_shapes(tuple(y_true.shape), tuple(y_pred.shape))
    shape = ops.shape(y_pred)
    # Not -1, which cannot be found out for an empty batch, such as a replica may get.
    flat = (shape[0], math.prod(shape[1:-2]), shape[-2] if len(shape) > 2 else 1, y_pred.shape[-1])
    logits = logits_of(ops.reshape(y_pred, flat), from_logits)
    return ops.cast(ops.reshape(y_true, flat), logits.dtype), logits


def logits_of(y_pred: Tensor, from_logits: bool = True) -> Tensor:
    """Predictions as logits, in float32 or float64, also for half-precision input.

    Args:
        y_pred: Logits or probabilities, `(..., classes)`. Probabilities are clipped to at least 1e-7;
            the softmax of their logarithm scales them to the sum 1.
        from_logits: Whether `y_pred` holds logits.

    Returns:
        Logits, same shape.

    Example:
        >>> [round(float(p), 3) for p in ops.softmax(logits_of([0.2, 0.2], from_logits=False))]
        [0.5, 0.5]
    """
    y_pred = ops.convert_to_tensor(y_pred)
    if keras.backend.standardize_dtype(y_pred.dtype) != "float64":
        y_pred = ops.cast(y_pred, "float32")
    # Probabilities become logits whose softmax they are, so that one path serves both.
    return y_pred if from_logits else ops.log(ops.maximum(y_pred, SMALLEST_PROBABILITY))


def log_probabilities_of(y_pred: Tensor, from_logits: bool = True) -> Tensor:
    """Logarithm of the softmax (eq. 1), in float32 or float64, also for half-precision input.

    Args:
        y_pred: See `logits_of`.
        from_logits: Whether `y_pred` holds logits.

    Returns:
        Values of at most 0, same shape.

    Example:
        >>> [round(float(value), 4) for value in ops.exp(log_probabilities_of([0.0, 1e4]))]
        [0.0, 1.0]
    """
    return ops.log_softmax(logits_of(y_pred, from_logits), axis=-1)


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


def check_shapes(true_shape: tuple[int | None, ...], pred_shape: tuple[int | None, ...]) -> None:
    """Refuse candidates and predictions that do not belong together.

    Raises:
        ValueError: If the two shapes differ, or the number of classes is not known or below 2.
    """
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
    if pred_shape[-1] < 2:
        raise ValueError(
            f"The last axis must hold background and at least one organ. Received: y_pred.shape={pred_shape}"
        )
