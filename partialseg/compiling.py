"""Compile a loop by Numba, once for all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function at its first call, and keep the result for later processes where a folder can be written."""
    try:
        return numba.njit(function, nogil=True, cache=True, error_model="numpy")
    except RuntimeError:  # Numba finds no folder for its cache: each process compiles anew, a few seconds
        return numba.njit(function, nogil=True, error_model="numpy")
