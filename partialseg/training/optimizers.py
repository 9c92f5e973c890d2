"""How weights are updated: the optimiser, the running mean of the weights, the precision of the computation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from partialseg.training.config import OptimizerConfig

#: The dtype policy of Keras for each `precision` of a config.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


class _OfTraining:
    """What training wants otherwise than Keras' optimisers do it.

    The end of `fit` is not the end of training: the weights are not replaced by their mean there.

    And the gradients of several devices are added up before anything else is done with them. Keras clips those of each
    device first, by the same norm, so that more devices take larger steps, and in another direction, than one does.
    """

    #: Whether another optimiser, which this one is in, has done so.
    are_summed = False

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Update the weights by the gradients of all devices together."""
        super().apply(grads if self.are_summed else _sum_over_devices(grads), trainable_variables)

    def _all_reduce_sum_gradients(self, grads_and_vars: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
        return list(grads_and_vars)

    def finalize_variable_values(self, var_list: list[Any]) -> None:
        """Leave the weights."""


def _sum_over_devices(gradients: list[Any]) -> list[Any]:
    """The gradients of all devices, or processes, that share a step."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return gradients
    summed = iter(replica.all_reduce(tf.distribute.ReduceOp.SUM, [g for g in gradients if g is not None]))
    return [None if gradient is None else next(summed) for gradient in gradients]


class TrainingAdam(_OfTraining, keras.optimizers.Adam):
    """Adam through several calls of `fit`, on one device or several."""


class TrainingSGD(_OfTraining, keras.optimizers.SGD):
    """SGD through several calls of `fit`, on one device or several."""


class TrainingLossScale(keras.optimizers.LossScaleOptimizer):
    """Scales the loss of float16, and leaves an update out where a gradient is not finite, on one device or several.

    Keras looks at the gradients of the first device alone, and updates the weights where those of another one are not
    finite; their sum is not finite either.
    """

    def __init__(self, inner_optimizer: keras.optimizers.Optimizer, **options: Any) -> None:
        super().__init__(inner_optimizer, **options)
        inner_optimizer.are_summed = True

    def apply(self, grads: list[Any], trainable_variables: list[Any] | None = None) -> None:
        """Update the weights by the gradients of all devices together, or lower the scale."""
        super().apply(_sum_over_devices(grads), trainable_variables)


def make_optimizer(config: OptimizerConfig, parts: int = 1) -> keras.optimizers.Optimizer:
    """The optimiser of a config.

    Args:
        config: Its section.
        parts: Of how many gradients, one after the other, an update is made (their mean).

    Returns:
        Adam, or SGD with Nesterov's momentum. Its running mean of the weights, if it has one, is read by
        `averaged_weights` alone. Under the policy "mixed_float16" it is in one that scales the loss.

    Example:
        >>> make_optimizer(OptimizerConfig(name="sgd", momentum=0.99)).nesterov
        True
    """
    options: dict[str, Any] = {
        "global_clipnorm": config.clip_norm,
        "weight_decay": config.weight_decay or None,
        "gradient_accumulation_steps": parts if parts > 1 else None,
    }
    if config.ema is not None:
        # Keras takes the mean after each part: the share that stays over all parts of an update is `ema`.
        options |= {"use_ema": True, "ema_momentum": config.ema ** (1 / parts)}
    if config.name == "adam":
        optimizer = TrainingAdam(config.learning_rate, **options)
    else:
        optimizer = TrainingSGD(config.learning_rate, momentum=config.momentum, nesterov=True, **options)
    in_float16 = keras.config.dtype_policy().name == POLICIES["float16"]
    return TrainingLossScale(optimizer) if in_float16 else optimizer


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Within it a model has the running mean of its weights, where its optimiser keeps one; after it its own again."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema or not int(keras.ops.convert_to_numpy(optimizer.iterations)):
        yield
        return
    variables = model.trainable_variables
    own = [np.array(variable.numpy()) for variable in variables]
    keras.optimizers.Optimizer.finalize_variable_values(optimizer, variables)
    for variable in variables:  # JAX may throw away the array of a weight, which must not be that of the mean
        variable.assign(np.array(variable.numpy()))
    try:
        yield
    finally:
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Within it, models are built that compute in a precision; their weights and losses are float32 always.

    Args:
        precision: "float32", "bfloat16" or "float16".

    Example:
        >>> with computing_in("bfloat16"):
        ...     layer = keras.layers.Dense(1)
        >>> layer.compute_dtype, layer.variable_dtype, keras.config.dtype_policy().name
        ('bfloat16', 'float32', 'float32')
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
