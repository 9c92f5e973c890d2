"""A function of tensors with its gradient written out, on every backend of Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import ops


def with_gradient(
    forward: Callable[..., tuple[Any, Any]], backward: Callable[[tuple, Any, Any], tuple]
) -> Callable[..., Any]:
    """A function that is computed by one function and differentiated by another.

    Args:
        forward: Takes the arguments, all of them tensors (TensorFlow knows no variables here); returns the result, one
            tensor, and whatever the gradient needs besides the arguments.
        backward: Takes the arguments, what `forward` kept, and the derivative by the result; returns the derivative by
            each argument.

    Returns:
        A function of the arguments that gives the result.

    Example:
        >>> square = with_gradient(lambda x: (x * x, 2 * x), lambda arguments, kept, upstream: (kept * upstream,))
        >>> float(square(ops.convert_to_tensor(3.0)))
        9.0
    """

    @ops.custom_gradient
    def function(*arguments: Any) -> tuple[Any, Callable[..., Any]]:
        result, kept = forward(*arguments)

        # PyTorch passes the arguments again, and upstream by name; TensorFlow and JAX pass upstream alone.
        def gradient(*args: Any, upstream: Any = None) -> tuple:
            return backward(arguments, kept, args[0] if upstream is None else upstream)

        return result, gradient

    return function
