"""A training that is told to stop saves first: Ctrl-C, and the signals by which clusters end jobs."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: Ctrl-C; the end of a job; Slurm's warning where a script asks for it (`--signal=USR1@120`).
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class TrainingStopped(KeyboardInterrupt):
    """Training was told to stop, and has saved where it stands.

    Args:
        signal_number: By which signal.
        where: Where training stands, in words.
    """

    def __init__(self, signal_number: int, where: str) -> None:
        super().__init__(f"stopped at {where}; the same command goes on from there")
        self.signal_number = signal_number


class StopRequest:
    """Whether one of the signals has come.

    Attributes:
        signal_number: The signal; None so far.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Note the first signal that comes in this block; a second one of its kind acts as ever.

        In a thread other than the main one nothing can be noted, and signals act as ever.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def note(number: int, frame: FrameType | None) -> None:
            self.signal_number = number
            signal.signal(number, before[number] if before[number] is not None else signal.SIG_DFL)

        for number in SIGNALS:
            signal.signal(number, note)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
