"""Checkpoints: all that training is, in one file, written so that a kill at any moment loses none."""

from __future__ import annotations

import errno
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from partialseg.errors import DataError
from partialseg.files import atomic_path, sync_folder

#: The member of a checkpoint that says where training stood; the others are arrays.
_PROGRESS = "progress"
#: How many are kept: the newest, and the one before in case it is torn.
_KEPT = 2
#: What reading a file gives of which some bytes are lost or others than they were.
_SIGNS_OF_TEARING = (
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(KeyError, ValueError, EOFError, RuntimeError),
)


class Checkpoints:
    """The checkpoints of a run, in a folder of their own.

    Each is an uncompressed `.npz`, whose parts have checksums: one that a full disk or a lost power supply has torn is
    told from a whole one when it is read. It is written under a temporary name, brought to the disk, and renamed; the
    newest two are kept.

    Args:
        folder: Where they lie.

    Example:
        >>> import tempfile
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> checkpoints.save(7, {"epoch": 1}, {"kernel": np.ones(3)})
        >>> progress, arrays, torn = checkpoints.newest()
        >>> progress, arrays["kernel"].tolist(), torn
        ({'epoch': 1}, [1.0, 1.0, 1.0], [])
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def save(self, step: int, progress: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write a checkpoint, then remove all but it and the one before.

        What is there of later steps goes too: it is torn, or of a training that went on from an earlier checkpoint.

        Args:
            step: Steps of the whole training that are done; later checkpoints have more.
            progress: Where training stands, as JSON has it.
            arrays: Every variable, by name.
        """
        text = json.dumps(progress).encode()
        with atomic_path(self._path(step)) as temporary, temporary.open("wb") as file:
            np.savez(file, **{_PROGRESS: np.frombuffer(text, np.uint8)}, **arrays)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)
        self.drop_after(step)
        for older in self._by_age()[_KEPT:]:
            older.unlink()

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        for path in self._by_age():
            if path > self._path(step):
                path.unlink()

    def newest(
        self, until: int | None = None
    ) -> tuple[dict[str, Any] | None, dict[str, np.ndarray], list[Path]]:
        """The newest checkpoint that is whole: its progress, its arrays, and the torn ones that came after it.

        The progress is None where none is whole.

        Args:
            until: Of those after at most so many steps; None: of all.

        Raises:
            DataError: If one of them cannot be read, whole or not.
        """
        torn = []
        for path in self._by_age():
            if until is not None and path > self._path(until):
                continue
            content = _read(path)
            if content is not None:
                return *content, torn
            torn.append(path)
        return None, {}, torn

    def _path(self, step: int) -> Path:
        return self.folder / f"step{step:09d}.npz"

    def _by_age(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob("step*.npz"), reverse=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Progress and arrays of a checkpoint; None if it is not whole."""
    try:
        with np.load(path) as content:
            arrays = {name: content[name] for name in content.files}
        return json.loads(arrays.pop(_PROGRESS).tobytes()), arrays
    except _SIGNS_OF_TEARING:
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a torn table of contents points before the file's beginning
            return None
        # It may be whole all the same: to go on without it could be to begin anew.
        raise DataError(
            path,
            f"cannot be read ({error.strerror or error})",
            "see to the disk and the rights, then give the same command again",
        ) from error
