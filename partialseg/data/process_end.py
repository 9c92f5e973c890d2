"""Lets a process end although TensorFlow still reads ahead.

At the end of a process TensorFlow waits for the Python function under way in an endless stream, and that function for
Python, which has ended: the process would hang.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

#: After the last call, none may begin for so many seconds; and for so many in all is waited.
_QUIET_S, _LONGEST_S = 0.05, 30.0


class CallsUntilTheEnd:
    """Counts the calls of some functions, and refuses them once the process is about to end.

    Example:
        >>> calls = CallsUntilTheEnd()
        >>> double = calls.counted(lambda number: 2 * number)
        >>> double(4)
        8
        >>> calls.end()
        >>> double(4)
        Traceback (most recent call last):
        RuntimeError: the process is about to end
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._ending = False
        self._last_begin = 0.0

    def counted(self, function: Callable[..., Result]) -> Callable[..., Result]:
        """The function, as long as the process does not end."""

        def call(*arguments: object) -> Result:
            with self._changed:
                self._last_begin = time.monotonic()
                if self._ending:
                    raise RuntimeError("the process is about to end")
                self._under_way += 1
            try:
                return function(*arguments)
            finally:
                with self._changed:
                    self._under_way -= 1
                    self._changed.notify_all()

        return call

    def end(self) -> None:
        """Refuse calls from now on, and wait until none is under way and no more are tried."""
        deadline = time.monotonic() + _LONGEST_S
        with self._changed:
            self._ending = True
            while time.monotonic() < deadline and (
                self._under_way or time.monotonic() - self._last_begin < _QUIET_S
            ):
                self._changed.wait(_QUIET_S)


#: The functions that TensorFlow calls in this process.
CALLS = CallsUntilTheEnd()
atexit.register(CALLS.end)
