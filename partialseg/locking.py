"""One run at a time in a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from partialseg.errors import DataError
from partialseg.files import make_folder

#: The file that is locked; it says who holds it and, on a second line, for which run; it is gone when nobody does.
LOCK_NAME = ".lock"


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str], run: str = "") -> Iterator[None]:
    """Hold a folder while the block runs, so that no other run writes into it.

    A folder that is not there is made, and removed again where nothing was written.

    The kernel gives the lock back when the process ends, also when it is killed; the file that a killed process
    leaves behind holds nobody up.

    Args:
        folder: The folder.
        run: A name by which `is_held_by` tells this run from others; one line.

    Raises:
        DataError: If another process holds it; names its machine and its process id. If it cannot be made.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with locked(folder), locked(folder):
        ...     pass
        Traceback (most recent call last):
        partialseg.errors.DataError: ... is in use by process ... on ...; wait until it has ended, or ...
    """
    path = Path(folder) / LOCK_NAME
    is_new = not path.parent.exists()
    make_folder(path.parent)
    descriptor = _lock(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n{run}".encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still held, so that it is our own
        os.close(descriptor)
        if is_new:
            with contextlib.suppress(OSError):  # something was written
                path.parent.rmdir()


def is_held_by(folder: str | os.PathLike[str], run: str) -> bool:
    """Whether a folder is locked for a run, as any machine may ask that sees it.

    A run that was killed, not stopped, counts until another one takes the folder.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with locked(folder, "first"):
        ...     is_held_by(folder, "first"), is_held_by(folder, "second")
        (True, False)
        >>> is_held_by(folder, "first")
        False
    """
    try:
        content = (Path(folder) / LOCK_NAME).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    return content.partition("\n")[2] == run


def _lock(path: Path) -> int:
    """The descriptor of the locked file that has the name `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace").partition("\n")[0] or "another process"
            os.close(descriptor)
            raise DataError(
                path.parent, f"is in use by {holder}", "wait until it has ended, or give another folder"
            ) from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # who held it removed it meanwhile
