"""Memory that did not do for a scan, of the machine or of a GPU: told from other errors, and said of the scan.

Where Linux ends the process instead of refusing memory, nobody can say anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from partialseg.errors import DataError

#: Beside MemoryError, the names of exceptions of the backends, and what their text holds where they are of other
#: things too. Names, since a backend that does not compute is not imported for this.
_KINDS = (
    ("ResourceExhaustedError", ""),  # TensorFlow
    ("InternalError", "Dst tensor is not initialized"),  # TensorFlow: windows that do not fit onto the GPU
    ("OutOfMemoryError", ""),  # PyTorch, on a GPU
    ("RuntimeError", "DefaultCPUAllocator"),  # PyTorch, on a CPU
    ("XlaRuntimeError", "RESOURCE_EXHAUSTED"),  # JAX
    ("JaxRuntimeError", "RESOURCE_EXHAUSTED"),
)
#: Longest quotation, in characters.
_BRIEF = 200


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is exhausted, that of the machine or of a GPU.

    Example:
        >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, MemoryError):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    return any(name in names and text in str(error) for name, text in _KINDS)


@contextmanager
def memory_as_problem(path: Path, remedy: str) -> Iterator[None]:
    """Turn exhausted memory into a problem of one scan; other errors pass.

    Args:
        path: The scan.
        remedy: What to do about it.

    Raises:
        DataError: If the block runs out of memory; quotes what was asked for.

    Example:
        >>> with memory_as_problem(Path("a.nii.gz"), "give a smaller --batch-size"):
        ...     raise MemoryError("Unable to allocate 8 GiB")
        Traceback (most recent call last):
        partialseg.errors.DataError: a.nii.gz: ... (Unable to allocate 8 GiB); give a smaller --batch-size
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        asked = _asked_for(str(error))
        raise DataError(path, f"needs more memory than there is{asked and f' ({asked})'}", remedy) from error


def _asked_for(text: str) -> str:
    r"""The line of an error that says what was asked for: Keras puts its own lines before it.

    Example:
        >>> _asked_for("Exception in call().\n\n\x1b[1mOOM when allocating tensor with shape[9]\x1b[0m\n\nx=1")
        'OOM when allocating tensor with shape[9]'
    """
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", text).splitlines() if line.strip()]
    return next((line for line in lines if "alloc" in line.lower()), "".join(lines[:1]))[:_BRIEF]
