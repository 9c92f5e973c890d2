"""Writing so that nothing half-written is ever seen: to a temporary name first, then renamed (or uploaded)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partialseg.errors import DataError
from partialseg.storage import is_remote, path_or_url, upload

if TYPE_CHECKING:
    from upath import UPath


#: What the name of a file begins with while it is written.
_TEMPORARY = re.compile(r"\.partial-[0-9a-f]{8}-(replaced-)?")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str] | UPath, last: str | None = None) -> Iterator[Path]:
    """Yield a temporary path; it becomes `path` if the block ends without an exception.

    The temporary name keeps the suffixes of `path` (`.nii.gz` matters to nibabel) and may be made a file or
    a folder. On an exception it is removed and `path` is as it was.

    Locally the temporary path lies beside `path` and is renamed. For a URL it lies in the machine's folder for
    temporary files and is uploaded: a file at once, a folder file by file, since an object store cannot rename.

    Args:
        path: Where it shall be.
        last: Of a folder at a URL, the file by which readers know that it is whole; it is deleted first and
            uploaded last.

    Raises:
        DataError: If its folder cannot be made, see `make_folder`; for a URL, if the folder for temporary files is
            full, or the store does not take it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "note.txt") as temporary:
        ...     _ = temporary.write_text("done")
        >>> [entry.name for entry in folder.iterdir()]
        ['note.txt']
    """
    path = path_or_url(path)
    if is_remote(path):
        with contextlib.ExitStack() as stack:
            with _naming_temporary_folder(path):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="partialseg-"))
                yield Path(folder) / path.name
            upload(Path(folder) / path.name, path, last)
        return
    make_folder(path.parent)
    token = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".partial-{token}-{path.name}")
    replaced = path.with_name(f".partial-{token}-replaced-{path.name}")
    try:
        yield temporary
        if path.is_dir() and temporary.is_dir():
            os.replace(path, replaced)  # a folder cannot be renamed over another; a kill here loses neither
        os.replace(temporary, path)
        shutil.rmtree(replaced, ignore_errors=True)
    finally:
        if replaced.is_dir() and not path.exists():  # the second rename failed
            os.replace(replaced, path)
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _naming_temporary_folder(path: UPath) -> Iterator[None]:
    """Say of a full disk that it is this machine's: of an object store nobody would look for it there."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        problem = f"the folder for temporary files, {tempfile.gettempdir()}, has no room ({error.strerror})"
        raise DataError(path, problem, "make room there, or set TMPDIR to a folder with more room") from error


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, where they are not there.

    Raises:
        DataError: If it cannot be made where it is to be, as in `/proc`; the system says then that it is not there,
            as it says of a file that is to be read.
        OSError: If a file is there, the disk is full, or the user may not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise _cannot_be_made(Path(os.fsdecode(error.filename)), error) from error


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; hidden files are those of the system, and what a process is just writing.

    Raises:
        OSError: If it cannot be listed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b", ".partial-0123abcd-a", "a"):
        ...     (folder / name).touch()
        >>> [path.name for path in visible(folder)]
        ['a', 'b']
    """
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def os_problem(error: OSError) -> DataError:
    """What the system did not let be written or read, in words: which file, why, and what to do.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     print(os_problem(NotADirectoryError(errno.ENOTDIR, "", f"{file.name}/run")).problem)
        is a file, expected a folder
    """
    if error.filename is None:
        return DataError("files", error.strerror or str(error), "give another place")
    named = os.fsdecode(error.filename if error.filename2 is None else error.filename2)
    path = Path(_TEMPORARY.sub("", named))
    there = _there(path)
    why = f" ({error.strerror})" if error.strerror else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(path, f"cannot be written{why}", "make room there, or give another place")
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and not there.is_dir():
        return DataError(there, "is a file, expected a folder", "give another place, or move the file away")
    if error.errno in (errno.EACCES, errno.EPERM) and there == path:
        return DataError(path, f"may not be used{why}", "give yourself the permission, or give another place")
    if there == path:
        return DataError(path, f"cannot be used{why}", "give another place")
    if error.errno == errno.ENOENT and path == Path(named) and error.filename2 is None:
        # What is written has a temporary name first, in a folder that is there: it was to be read.
        return DataError(path, "there is no such file or folder", "correct the path, or put it back")
    return _cannot_be_made(path, error)


def _there(path: Path) -> Path:
    """The path, or the folder next above it that is there."""
    return next((folder for folder in (path, *path.parents) if folder.exists()), Path())


def _cannot_be_made(path: Path, error: OSError) -> DataError:
    why = f" ({error.strerror})" if error.strerror else ""
    return DataError(path, f"cannot be made in {_there(path)}{why}", "give a place that can be written to")


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring the names in a local folder to the disk, so that a loss of power forgets no rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not do so for folders
            raise
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str] | UPath, text: str) -> None:
    """Write `text` (UTF-8) to `path` (or URL) atomically; bytes of a file's name that are no text are escaped."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str] | UPath, value: Any) -> None:
    """Write `value` as indented JSON to `path` (or URL) atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
