"""From values per class and sample to one: over the classes, the batch, and the replicas of a strategy."""

from __future__ import annotations

import keras
from keras import ops

from partialseg.losses.inputs import Tensor

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


def reduce_classes(values: Tensor, counted: Tensor, class_reduction: str) -> Tensor:
    """Sum or mean of `(batch, classes)` over the classes that are counted (1, else 0); 0 where none is."""
    total = ops.sum(values * counted, axis=-1)
    return total / ops.maximum(ops.sum(counted, axis=-1), 1) if class_reduction == "mean" else total


def sum_over_batch(values: Tensor) -> Tensor:
    """Sum `(batch, ...)` over the samples, and over the replicas of a TensorFlow strategy; `(1, ...)`."""
    return sum_over_replicas(ops.sum(values, axis=0, keepdims=True))


def sum_over_replicas(values: Tensor) -> Tensor:
    """Add over the replicas of a TensorFlow strategy; elsewhere there is one, and nothing to add."""
    if keras.backend.backend() != "tensorflow":
        return values
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values
    return context.all_reduce(tf.distribute.ReduceOp.SUM, values)
