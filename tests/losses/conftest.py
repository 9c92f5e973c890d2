"""What the tests of the losses do in another way on each backend of Keras, and exact gradients to compare with."""

import keras
import numpy as np
import pytest
from keras import ops

BACKEND = keras.backend.backend()

#: How a function of tensors is run on each backend.
WAYS = {"tensorflow": ("eager", "graph", "xla"), "jax": ("eager", "jit"), "torch": ("eager",)}[BACKEND]


def _value_and_gradient(function, x):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return value, tape.gradient(value, x)
    if BACKEND == "jax":
        import jax

        return jax.value_and_grad(function)(x)
    x.requires_grad_(True)
    value = function(x)
    value.backward()
    return value.detach(), x.grad


def _float64(tensor):
    # Half precision is no type of NumPy's, or one that it cannot print or compare.
    exact = ops.convert_to_numpy(ops.cast(tensor, "float32" if _is_half(tensor) else tensor.dtype))
    return exact.astype("float64")


def _is_half(tensor):
    return keras.backend.standardize_dtype(tensor.dtype) in ("float16", "bfloat16")


@pytest.fixture(scope="session")
def finest_dtype():
    """What gradients are compared in: float64 where Keras has it.

    On JAX and PyTorch its operations turn float64 into float32 wherever they promote types.
    """
    return "float64" if BACKEND == "tensorflow" else "float32"


@pytest.fixture(scope="session")
def value_and_gradient():
    """`value_and_gradient(function, x, dtype="float32")`: both as float64 arrays of NumPy.

    `x` becomes a tensor of `dtype`; `function` returns one number, or several, of which the sum is taken.
    """

    def compute(function, x, dtype="float32"):
        x = ops.convert_to_tensor(ops.cast(ops.convert_to_tensor(x), dtype))
        value, gradient = _value_and_gradient(lambda x: ops.sum(function(x)), x)
        assert keras.backend.standardize_dtype(gradient.dtype) == dtype
        return _float64(value), _float64(gradient)

    return compute


@pytest.fixture(params=WAYS)
def compiled(request):
    """`compiled(function)` runs a function of tensors in each way that the backend has, compiled or not."""
    if request.param == "eager":
        return lambda function: function
    if BACKEND == "jax":
        import jax

        return jax.jit
    import tensorflow as tf

    return lambda function: tf.function(function, jit_compile=request.param == "xla")


@pytest.fixture(scope="session")
def complex_step():
    """`complex_step(function, x)`: the gradient of an analytic function of NumPy, exact to rounding.

    The imaginary part of `f(x + ih)` over h is f'(x) up to h², and nothing cancels, so h may be tiny
    (Squire and Trapp: Using complex variables to estimate derivatives of real functions. SIAM Review 1998).
    """

    def gradient(function, x):
        result = np.zeros(np.shape(x))
        for index in np.ndindex(*result.shape):
            moved = np.array(x, "complex128")
            moved[index] += 1e-30j
            result[index] = np.imag(function(moved)) * 1e30
        return result

    return gradient
