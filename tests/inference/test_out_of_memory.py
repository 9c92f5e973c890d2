"""Which errors say that memory is exhausted: TensorFlow's own, and those that JAX and PyTorch would raise."""

from pathlib import Path

import pytest
import tensorflow as tf

from partialseg.errors import DataError
from partialseg.inference.out_of_memory import is_out_of_memory, memory_as_problem


def named(name, text, base=RuntimeError):
    """An exception as a backend has it that may not be there."""
    return type(name, (base,), {})(text)


def test_tensorflow_says_what_it_asked_for():
    with (
        pytest.raises(DataError, match=r"a.nii: needs more memory than there is \(.*allocat.*\); less"),
        memory_as_problem(Path("a.nii"), "less"),
    ):
        tf.zeros([2**58])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (named("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
        (named("XlaRuntimeError", "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), True),
        (tf.errors.InternalError(None, None, "Dst tensor is not initialized."), True),
        (tf.errors.InternalError(None, None, "Blas GEMM launch failed"), False),
        (named("XlaRuntimeError", "INTERNAL: odd"), False),
        (RuntimeError("RESOURCE_EXHAUSTED"), False),
        (ValueError("DefaultCPUAllocator"), False),
    ],
)
def test_exhausted_memory_is_told_from_other_errors_of_the_backends(error, expected):
    assert is_out_of_memory(error) == expected


def test_other_errors_and_a_stop_pass():
    for kind in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(kind), memory_as_problem(Path("a.nii"), ""):
            raise kind
