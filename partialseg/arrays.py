"""Parts of arrays in `.npy` files: memory-mapped on a disk, and read by byte ranges from an object store.

An uncompressed `.npy` file is its header and then the voxels, row after row, so that any box of it is a number of
byte ranges. They are read many at a time, and none holds much more than the box: rows with a small gap between
them are read as one range, since a request costs as much time as many bytes do.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import shutil
import threading
import time
import tokenize
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from partialseg.errors import DataError
from partialseg.files import atomic_path
from partialseg.storage import Location, file_system, is_remote, naming

if TYPE_CHECKING:
    from upath import UPath

#: Bytes between two rows that are read with them rather than asked for apart: a request costs some milliseconds of
#: computing alone (benchmarks/object_store.py), in which a network brings more than these.
GAP = 128 * 1024
#: A range that is longer is read in parts, at the same time.
LONGEST_RANGE = 8 * 1024**2
#: NumPy writes 128 bytes for the arrays here.
_HEADER_BYTES = 1024
#: No array is larger; a header that says so is not believed.
_MOST_BYTES = 2**40
#: Free space that staging leaves on the disk.
_RESERVE_BYTES = 2**30
#: Staged files that were not used for so long make room for others.
_UNUSED_SECONDS = 24 * 3600
_HOUR = 3600
#: What Amazon's, Google's and Azure's stores say of a file that changes when its content does.
_VERSION_MARKS = ("size", "ETag", "etag", "LastModified", "last_modified", "generation", "mtime", "created")

Box = tuple[slice, ...]


@dataclass(frozen=True)
class RemoteArray:
    """An array in a `.npy` object, of which boxes are read when they are asked for.

    Attributes:
        path: The object.
        shape: Of the array.
        dtype: Of its elements.
        offset: Bytes before the first element.

    Example:
        >>> from partialseg.storage import path_or_url
        >>> path = path_or_url("memory://doc/array.npy")
        >>> with path.open("wb") as file:
        ...     np.save(file, np.arange(24).reshape(2, 3, 4))
        >>> open_array(path)[1, 1:, 2:]
        array([[18, 19],
               [22, 23]])
    """

    path: UPath
    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read a box; a key holds whole numbers and slices of step 1.

        Raises:
            DataError: If the object is missing or shorter than its header says, or the store does not answer.
            IndexError: If the key is none of these, or lies outside.
        """
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > self.ndim:
            raise IndexError(f"{len(keys)} indices for an array with {self.ndim} axes")
        keys = (*keys, *[slice(None)] * (self.ndim - len(keys)))
        box = tuple(_slice(k, size) for k, size in zip(keys, self.shape, strict=True))
        (part,) = read_boxes([self], box)
        return part[tuple(slice(None) if isinstance(k, slice) else 0 for k in keys)]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """Read all of it, for `np.asarray`."""
        if copy is False:
            raise ValueError("an array in an object store cannot be given without a copy")
        whole = self[(slice(None),) * self.ndim]
        return whole if dtype is None else whole.astype(dtype, copy=False)


@dataclass(frozen=True)
class Cache:
    """A local folder for copies of remote files, which several processes may share.

    A file is copied once, when it is first asked for. When there is no room, files that nobody used for a day go;
    if that is not enough, the file is not copied and its parts are read from the store: to throw out a file that
    is needed again soon would cost more than it saves.

    Attributes:
        folder: Where the copies lie.
        max_bytes: They take at most so much; and 1 GiB of the disk stays free.
    """

    folder: Path
    max_bytes: int = 200 * 10**9

    def stage(self, path: UPath) -> Path | None:
        """The local copy of a file, made now if there is none; None if there is no room.

        A file that has changed in the store since has another copy.

        Raises:
            DataError: If the file is missing, or the store does not answer.
        """
        store = file_system(path)
        with naming(path):
            info = store.info(path.path)
        version = [str(info[mark]) for mark in _VERSION_MARKS if mark in info]
        local = self.folder / f"{sha256(f'{path} {version}'.encode()).hexdigest()[:32]}{path.suffix}"
        with _locks[
            local
        ]:  # two threads that want the same file copy it once; two processes may copy it twice
            if not local.is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                if not self._make_room(info["size"]):
                    return None
                with atomic_path(local) as temporary, naming(path):
                    store.get_file(path.path, str(temporary))
        self.touch(local)
        return local

    def touch(self, local: Path) -> bool:
        """Note that a copy is in use (once an hour will do); False if it is no longer there."""
        try:
            if time.time() - local.stat().st_mtime > _HOUR:
                os.utime(local)
        except FileNotFoundError:  # another process has removed it
            return False
        return True

    def _make_room(self, size: int) -> bool:
        """Remove what was not used for long, oldest first, until a file of this size fits."""
        files = sorted(self._files())
        used = sum(file_size for _, file_size, _ in files)
        free = shutil.disk_usage(self.folder).free - _RESERVE_BYTES
        for used_at, file_size, path in files:
            if used + size <= self.max_bytes and size <= free:
                break
            if time.time() - used_at < _UNUSED_SECONDS:
                break
            path.unlink(missing_ok=True)
            used, free = used - file_size, free + file_size
        return used + size <= self.max_bytes and size <= free

    def _files(self) -> list[tuple[float, int, Path]]:
        """When last used, size and path of each copy (also of one that a killed process began)."""
        found = []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                state = entry.stat()
                found.append((state.st_mtime, state.st_size, Path(entry.path)))
        return found


#: One for each staged file of this process.
_locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
os.register_at_fork(after_in_child=_locks.clear)  # the thread that held one is not in the child


def open_array(path: Location) -> np.ndarray | RemoteArray:
    """Open a `.npy` file without reading its elements.

    Args:
        path: A local path (memory-mapped) or a URL (see `RemoteArray`).

    Raises:
        DataError: If it is missing, no `.npy` file, holds pickled objects (never unpickled), or is shorter than
            its header says (of a remote array that is seen when a part is read).
    """
    remedy = "prepare the case again"
    try:
        if is_remote(path):
            return _open_remote(path)
        return _open_local(path)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(path, "there is no such file, expected a .npy file", remedy) from error
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(path, f"cannot be read as a .npy file ({error})", remedy) from error


def read_boxes(arrays: Sequence[np.ndarray | RemoteArray], box: Box) -> list[np.ndarray]:
    """Read the same box of several arrays, all remote ones at the same time.

    Args:
        arrays: What `open_array` gave; all have the same number of axes.
        box: For each axis `slice(start, stop)`, inside the arrays.

    Returns:
        One array for each: a view of a local one, memory of its own for a remote one.

    Raises:
        DataError: If an object is missing or shorter than its header says, or the store does not answer.
    """
    remote = [array for array in arrays if isinstance(array, RemoteArray)]
    plans = [plan_ranges(array.shape, array.dtype.itemsize, box, GAP) for array in remote]
    parts = iter(_fetch(remote, plans))
    return [next(parts) if isinstance(array, RemoteArray) else array[box] for array in arrays]


@dataclass(frozen=True)
class RangePlan:
    """How a box of an array is read.

    Attributes:
        ranges: `(start, stop)` in bytes after the header, ascending.
        row: Number of elements of each row of the box.
        positions: Index of each row's first element in all ranges laid end to end.
        shape: Of the box.
    """

    ranges: tuple[tuple[int, int], ...]
    row: int
    positions: np.ndarray
    shape: tuple[int, ...]


def plan_ranges(shape: Sequence[int], itemsize: int, box: Box, gap: int) -> RangePlan:
    """Choose the byte ranges that hold a box of an array in C order.

    Args:
        shape: Of the array.
        itemsize: Bytes of an element.
        box: For each axis `slice(start, stop)`, inside the array.
        gap: Rows with at most so many bytes between them are read as one range.

    Example:
        >>> plan_ranges((4, 10), 2, (slice(1, 3), slice(0, 5)), gap=0).ranges
        ((20, 30), (40, 50))
        >>> plan_ranges((4, 10), 2, (slice(1, 3), slice(0, 5)), gap=10).ranges
        ((20, 50),)
    """
    counts = tuple(part.stop - part.start for part in box)
    if min(counts) <= 0:
        return RangePlan((), 0, np.zeros(0, np.int64), tuple(max(count, 0) for count in counts))
    axis = len(shape) - 1
    while axis > 0 and counts[axis] == shape[axis]:  # whole rows that follow one another are one row
        axis -= 1
    row = math.prod(counts[axis:])
    starts = np.zeros(1, np.int64)
    for level in range(len(shape)):
        steps = np.arange(box[level].start, box[level].stop) if level < axis else [box[level].start]
        starts = np.add.outer(starts, np.multiply(steps, math.prod(shape[level + 1 :]))).ravel()
    new = np.diff(starts, prepend=starts[0]) - row > gap // itemsize
    new[0] = True
    first = np.flatnonzero(new)
    lengths = starts[np.r_[first[1:] - 1, -1]] + row - starts[first]
    before = np.r_[0, np.cumsum(lengths)[:-1]]
    which = np.cumsum(new) - 1
    ends = starts[first] + lengths
    ranges = tuple(zip((starts[first] * itemsize).tolist(), (ends * itemsize).tolist(), strict=True))
    return RangePlan(ranges, row, starts - starts[first][which] + before[which], counts)


def _fetch(arrays: Sequence[RemoteArray], plans: Sequence[RangePlan]) -> list[np.ndarray]:
    """Read all ranges of some arrays in one go, and pick the rows of the boxes from them."""
    owners, starts, stops = [], [], []
    for number, (array, plan) in enumerate(zip(arrays, plans, strict=True)):
        for first, last in plan.ranges:
            for start in range(first, last, LONGEST_RANGE):
                owners.append(number)
                starts.append(array.offset + start)
                stops.append(array.offset + min(start + LONGEST_RANGE, last))
    pieces: list[list[bytes]] = [[] for _ in arrays]
    if owners:
        paths = [arrays[number].path for number in owners]
        for number, start, stop, piece in zip(owners, starts, stops, _cat(paths, starts, stops), strict=True):
            if len(piece) != stop - start:
                raise _cut_short(arrays[number], start + len(piece))
            pieces[number].append(piece)
    parts = []
    for array, plan, held in zip(arrays, plans, pieces, strict=True):
        if not plan.ranges:
            parts.append(np.zeros(plan.shape, array.dtype))
            continue
        elements = np.frombuffer(b"".join(held), array.dtype)
        windows = np.lib.stride_tricks.sliding_window_view(elements, plan.row)
        parts.append(windows[plan.positions].reshape(plan.shape))
    return parts


def _cat(paths: Sequence[UPath], starts: list[int], stops: list[int]) -> list[bytes]:
    """Byte ranges of objects of one store; a range past the end gives fewer bytes, or none."""
    answers = file_system(paths[0]).cat_ranges(
        [path.path for path in paths], starts, stops, on_error="return"
    )
    for number, answer in enumerate(answers):
        if isinstance(answer, BaseException):
            if _is_past_the_end(answer):
                answers[number] = b""
                continue
            with naming(paths[number]):
                raise answer
    return answers


def _is_past_the_end(error: BaseException) -> bool:
    """Whether a store answered 416, "range not satisfiable"."""
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return False  # its words name the object, perhaps "liver_416"
    words = str(error).lower()
    return any(word in words for word in ("416", "invalidrange", "not satisfiable", "invalid range"))


def _open_local(path: Path) -> np.ndarray:
    """Map a `.npy` file whose size was compared with its header."""
    with path.open("rb") as file:
        shape, dtype, start = _read_header(file)
        size, needed = os.fstat(file.fileno()).st_size, start + math.prod(shape) * dtype.itemsize
        if size < needed:
            raise ValueError(f"it is cut short: {size} bytes, expected {needed} for the shape {shape}")
        return np.memmap(file, dtype, mode="r", offset=start, shape=shape)


def _open_remote(path: UPath) -> RemoteArray:
    """Read the header of a `.npy` object."""
    (head,) = _cat([path], [0], [_HEADER_BYTES])
    array = RemoteArray(path, *_read_header(io.BytesIO(head)))
    if array.nbytes > _MOST_BYTES:
        raise ValueError(f"its header claims the shape {array.shape}, expected {_MOST_BYTES} bytes at most")
    return array


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and first byte of a `.npy` file; NumPy evaluates it as a literal, and its length is bounded."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format, expected 1.0 or 2.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran_order, dtype = read(file, max_header_size=_HEADER_BYTES)
    except (
        SyntaxError,
        TypeError,
        RecursionError,
        tokenize.TokenError,
    ) as error:  # NumPy reads it as Python's words
        raise ValueError("its header is damaged, expected one that NumPy wrote") from error
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, expected numbers")
    if fortran_order and len(shape) > 1:
        raise ValueError("it is in Fortran order, expected C order")
    if min(shape, default=-1) < 0:
        raise ValueError(f"its header claims the shape {shape}, expected sizes from 0")
    return tuple(map(int, shape)), dtype, file.tell()


def _slice(key: Any, size: int) -> slice:
    """A key of one axis as `slice(start, stop)` inside it."""
    if isinstance(key, slice):
        start, stop, step = key.indices(size)
        if step != 1:
            raise IndexError(f"expected slices of step 1, received {key}")
        return slice(start, max(start, stop))
    index = int(key)
    if not -size <= index < size:
        raise IndexError(f"index {index} is outside an axis of {size}")
    return slice(index % size, index % size + 1)


def _cut_short(array: RemoteArray, size: int) -> DataError:
    return DataError(
        array.path,
        f"ends before byte {size + 1}, but an array of shape {array.shape} has {array.offset + array.nbytes}",
        "prepare the case again",
    )
