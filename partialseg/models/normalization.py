"""Instance norm and leaky ReLU in one layer with its gradient written out, which takes less time and memory.

Left to automatic gradients, the two layers keep and pass over more copies of the features than their formulas
need. Here the forward pass leaves its input, a mean and a scale per sample and channel, and nothing else as large
as the features besides its output; the backward pass makes the normalised features again. Sums over the voxels are
matrix products by a row of ones where these keep float32's digits: the fastest of the ways tried to sum
channels-last features on CPUs.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from partialseg.losses.compilation import compiled_alone
from partialseg.losses.gradients import with_gradient

#: A Keras tensor of whichever backend is in use.
Tensor = Any
#: Whether graphs that are traced now have their norms compiled in prediction too.
_in_prediction = contextvars.ContextVar("norms compiled in prediction", default=False)


@contextlib.contextmanager
def norms_compiled_in_prediction() -> Iterator[None]:
    """Have XLA compile the norms of the graphs that are traced meanwhile, as it does in training.

    A norm takes a third of the time then, and XLA a fraction of a second for each shape of features. So it pays where
    the same few shapes come again and again, as windows do. A graph that is to be saved must do without.
    """
    token = _in_prediction.set(True)
    try:
        yield
    finally:
        _in_prediction.reset(token)


@keras.saving.register_keras_serializable(package="partialseg")
class InstanceNormLeakyReLU(keras.layers.Layer):
    """Instance norm with a scale and an offset per channel, then leaky ReLU.

    With mean m and variance v over the voxels of a sample and channel (Ulyanov, Vedaldi and Lempitsky, 2016,
    eq. 4), `z = gamma (x - m) / sqrt(v + epsilon) + beta`, and the result is z where z > 0 and
    `negative_slope * z` elsewhere. The same as `GroupNormalization(groups=-1)` and `LeakyReLU` one after the
    other, with weights of the same names and shapes. Mean, variance and the weights are float32 (or float64) also
    under mixed precision; the variance is that of what is left when the mean is taken off, so that features far
    from 0 keep their digits.

    Args:
        epsilon: Added to the variance, above 0.
        negative_slope: Slope of the leaky ReLU below 0, 0 or more.
        **kwargs: Those of every Keras layer, such as `name`.

    Call arguments:
        x: Features, `(batch, ..., channels)`, with one spatial axis or more between.

    Returns:
        Features of the same shape, in the layer's compute dtype.

    Raises:
        ValueError: If epsilon is not above 0, the slope is negative, or the input has no spatial axis.

    Example:
        >>> x = ops.reshape(ops.array([1.0, 3.0]), (1, 2, 1))
        >>> [round(float(value), 3) for value in InstanceNormLeakyReLU()(x)[0, :, 0]]
        [-0.01, 1.0]
    """

    def __init__(self, epsilon: float = 1e-5, negative_slope: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not epsilon > 0:
            raise ValueError(f"epsilon must be above 0, received {epsilon}")
        if not negative_slope >= 0:
            raise ValueError(f"negative_slope must be 0 or more, received {negative_slope}")
        self.epsilon, self.negative_slope = float(epsilon), float(negative_slope)

    def build(self, input_shape: tuple) -> None:
        """Make the weights: gamma 1 and beta 0 for each channel."""
        if len(input_shape) < 3:
            raise ValueError(f"Expected (batch, ..., channels) with a spatial axis, received {input_shape}")
        shape = (input_shape[-1],)
        self.gamma = self.add_weight(shape=shape, name="gamma", initializer="ones", autocast=False)
        self.beta = self.add_weight(shape=shape, name="beta", initializer="zeros", autocast=False)

    def call(self, x: Tensor, training: bool | None = None) -> Tensor:
        """Normalised and rectified features."""
        # Copies, since TensorFlow's custom gradients take tensors alone, no variables. In float32 also where the
        # policy is float16 throughout.
        gamma, beta = _accurate(ops.copy(self.gamma)), _accurate(ops.copy(self.beta))
        # XLA compiles for each shape anew: not in all prediction, where sizes differ and a SavedModel must do without.
        compiled = bool(training) or _in_prediction.get()
        y = instance_norm_leaky_relu(x, gamma, beta, self.epsilon, self.negative_slope, compiled)
        return ops.cast(y, self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "epsilon": self.epsilon, "negative_slope": self.negative_slope}


def instance_norm_leaky_relu(
    x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float, negative_slope: float, compiled: bool = False
) -> Tensor:
    """What `InstanceNormLeakyReLU` computes.

    Args:
        x: Features, `(batch, ..., channels)`, float.
        gamma: Scale, `(channels,)`, float32, or float64 for float64 features.
        beta: Offset, alike.
        epsilon: Added to the variance.
        negative_slope: Slope below 0.
        compiled: Whether XLA compiles the two passes, where the backend has it: once for each shape.

    Returns:
        Features of the same shape and dtype.

    Example:
        >>> x = ops.reshape(ops.array([1.0, 3.0]), (1, 2, 1))
        >>> y = instance_norm_leaky_relu(x, ops.array([2.0]), ops.array([1.0]), 1e-5, 0.01)
        >>> [round(float(value), 3) for value in y[0, :, 0]]
        [-0.01, 3.0]
    """
    forward, backward = _passes(epsilon, negative_slope, compiled)
    normalised = with_gradient(forward, backward)
    # A row is one step of the first spatial axis: all numbers of axes share the compiled passes.
    shape = ops.shape(x)
    rows = ops.reshape(x, (shape[0], shape[1], math.prod(shape[2:-1]), shape[-1]))
    return ops.reshape(normalised(rows, gamma, beta), shape)


@functools.cache
def _passes(
    epsilon: float, negative_slope: float, compiled: bool
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The pass to the result, with mean and 1 / sqrt(v + epsilon), and the pass back to the three gradients."""

    def forward(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        features = _accurate(x)
        mean = _sum(features) / _num_voxels(features)
        centred = features - mean
        scale = ops.rsqrt(_sum(centred * centred) / _num_voxels(features) + epsilon)
        z = centred * (scale * gamma) + beta
        return ops.cast(ops.where(z > 0, z, negative_slope * z), x.dtype), (mean, scale)

    def backward(
        arguments: tuple[Tensor, Tensor, Tensor], kept: tuple[Tensor, Tensor], upstream: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        (x, gamma, beta), (mean, scale) = arguments, kept
        centred = _accurate(x) - mean
        by_z = _accurate(upstream)
        by_z = ops.where(centred * (scale * gamma) + beta > 0, by_z, negative_slope * by_z)
        by_beta, by_gamma = _sum(by_z), _sum(by_z * centred) * scale
        # Mean and variance take from the gradient what lies along 1 and along the normalised features.
        share = scale * by_gamma / _num_voxels(centred)
        by_x = (scale * gamma) * (by_z - by_beta / _num_voxels(centred) - centred * share)
        return ops.cast(by_x, x.dtype), ops.sum(by_gamma, axis=(0, 1, 2)), ops.sum(by_beta, axis=(0, 1, 2))

    return (compiled_alone(forward), compiled_alone(backward)) if compiled else (forward, backward)


def _accurate(x: Tensor) -> Tensor:
    """In float32, or float64 as it is."""
    return x if keras.backend.standardize_dtype(x.dtype) == "float64" else ops.cast(x, "float32")


def _sum(features: Tensor) -> Tensor:
    """Sum over voxels, `(batch, 1, 1, channels)`; row by row, since float32 loses digits in one long sum."""
    if not _products_keep_digits():
        return ops.sum(ops.sum(features, axis=2, keepdims=True), axis=1, keepdims=True)
    row = ops.ones_like(features[:, :, :, :1])
    sums = ops.matmul(ops.transpose(row, (0, 1, 3, 2)), features)
    return ops.sum(sums, axis=1, keepdims=True)


@functools.cache
def _products_keep_digits() -> bool:
    """Whether matrix products of float32 are of float32: on GPUs TensorFlow and JAX round factors to TF32, 11 bits."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return not tf.config.get_visible_devices("GPU")
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() == "cpu"
    return True


def _num_voxels(features: Tensor) -> Tensor:
    """Voxels of a sample."""
    shape = ops.shape(features)
    return ops.cast(shape[1] * shape[2], features.dtype)
