"""Compile a function by itself, while the network around it stays as the user has it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from partialseg._environment import start_xla_quietly


def compiled_alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let XLA compile a function of tensors, on the backends that have it.

    XLA fuses the many small steps of a loss into few passes over the voxels and adds pairwise. For the 3D
    convolutions of a network it is several times slower on CPUs than oneDNN, so the network is left alone.
    Under TensorFlow, `tf.config.run_functions_eagerly(True)` turns the compilation off, to debug. PyTorch
    runs the function as it is.

    Args:
        function: Takes and returns tensors (or tuples of them) alone, and has no side effect.

    Returns:
        A function that computes the same.

    Example:
        >>> float(compiled_alone(lambda x: keras.ops.sum(x * x))(keras.ops.ones(3)))
        3.0
    """
    make: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        if not make:  # not before the first call, so that importing a loss is quick
            make.append(_compile(function))
        return make[0](*args)

    return call


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        start_xla_quietly()
        return tf.function(function, jit_compile=True, reduce_retracing=True, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function
