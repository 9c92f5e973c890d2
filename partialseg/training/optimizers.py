"""How weights are updated: the optimiser, the running mean of the weights, the precision of the computation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from partialseg.training.config import OptimizerConfig

#: The dtype policy of Keras for each `precision` of a config.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


class _GoesOn:
    """The end of `fit` is not the end of training: the weights are not replaced by their mean there."""

    def finalize_variable_values(self, var_list: list[Any]) -> None:
        """Leave the weights."""


class TrainingAdam(_GoesOn, keras.optimizers.Adam):
    """Adam through several calls of `fit`."""


class TrainingSGD(_GoesOn, keras.optimizers.SGD):
    """SGD through several calls of `fit`."""


def make_optimizer(config: OptimizerConfig, parts: int = 1) -> keras.optimizers.Optimizer:
    """The optimiser of a config.

    Args:
        config: Its section.
        parts: Of how many gradients, one after the other, an update is made (their mean).

    Returns:
        Adam, or SGD with Nesterov's momentum. Its running mean of the weights, if it has one, is read by
        `averaged_weights` alone. Under the policy "mixed_float16" Keras wraps it to scale the loss.

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
        return TrainingAdam(config.learning_rate, **options)
    return TrainingSGD(config.learning_rate, momentum=config.momentum, nesterov=True, **options)


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
