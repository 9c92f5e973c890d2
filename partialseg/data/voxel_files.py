"""What all formats of volumes have in common: how large they may be, and what an affine must be like."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal import isal_zlib

from partialseg.errors import DataError

#: Larger volumes are refused before memory is taken. 1024 x 1024 x 953 is beyond any whole-body CT, and 4 GB as
#: float32.
MAX_VOXELS = 10**9
#: deflate cannot make its output more than 1032 times as large as its input, so a header that promises more
#: lies (https://zlib.net/zlib_tech.html).
MAX_DEFLATE_RATIO = 1032
#: Bytes that may follow the voxels, since some programs fill up a block; a file that goes on is not what its
#: header says.
MAX_TAIL_BYTES = 4096
#: In a scan there is noise, which deflate makes a quarter to a half as large. A file that unpacks to so many times
#: its size holds nothing, and is refused where it would take more memory than `SMALL_BYTES`. Label maps may.
MAX_SCAN_RATIO = 500
SMALL_BYTES = 1 << 26
#: Cosine between two axes above which an affine counts as sheared; rounding in headers stays below it.
SHEAR_TOLERANCE = 1e-3
#: No scanner reaches as far (mm).
MAX_MM = 1e6

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Limits:
    """How much a file may claim before memory is taken for it.

    Attributes:
        voxels: At most so many voxels.
        ratio: At most so many bytes for a compressed one.
    """

    voxels: int = MAX_VOXELS
    ratio: int = MAX_DEFLATE_RATIO


#: Of a scan, and of any other volume.
SCAN_LIMITS, ANY_LIMITS = Limits(ratio=MAX_SCAN_RATIO), Limits()


@dataclass(frozen=True)
class StoredVoxels:
    """A volume as it lies in its file.

    Attributes:
        array: `(i, j, k)` in the file's own axes, as stored: any integers or floats, of either byte order.
        affine: 4 x 4, of the index `(i, j, k)` to world millimetres (RAS+).
        slope, intercept: A voxel means `slope * stored + intercept`.
        header: The NIfTI header; None for other formats.
        notes: What is odd in the header and does no harm.
    """

    array: np.ndarray
    affine: np.ndarray
    slope: float = 1.0
    intercept: float = 0.0
    header: nib.Nifti1Header | None = None
    notes: tuple[str, ...] = ()


def check_is_file(path: Path, what: str) -> None:
    """Refuse what is not there, and what would be waited for without end.

    Raises:
        DataError: If the path is no file.
    """
    remedy = f"put the {what} there, or list the case under `exclude:` in the card"
    if path.is_file():
        return
    if path.is_symlink() and not path.exists():
        raise DataError(path, f"is a link that leads to no such file, expected a {what}", remedy)
    if path.is_fifo():
        raise DataError(path, "is a named pipe, expected a file", remedy)
    if path.exists():
        raise DataError(path, "is neither a file nor a folder, expected a file", remedy)
    raise DataError(path, f"there is no such file, expected a {what}", remedy)


def is_html(start: bytes) -> bool:
    """Whether a file begins as the page does that comes in place of a failed download.

    Example:
        >>> is_html(b"<!DOCTYPE html><html>"), is_html(b"n+1")
        (True, False)
    """
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def shown_shape(shape: Sequence[int]) -> str:
    """Sizes for people.

    Example:
        >>> shown_shape((512, 512, 100))
        '512 x 512 x 100'
    """
    return " x ".join(str(int(size)) for size in shape)


def check_shape(shape: Sequence[int], path: Path, limits: Limits = ANY_LIMITS) -> tuple[int, int, int]:
    """The sizes of the three axes; further axes must have size 1.

    Raises:
        DataError: If there are not three axes, one is empty, or there are more voxels than the limits allow.

    Example:
        >>> check_shape((512, 512, 100, 1), Path("scan.nii.gz"))
        (512, 512, 100)
    """
    shape = tuple(int(size) for size in shape)
    shown = shown_shape(shape)
    if not shape:
        raise DataError(path, "has no axes, expected three", "download or convert it again")
    if min(shape) < 0:
        raise DataError(
            path, f"claims {shown} voxels, expected sizes above 0", "download or convert it again"
        )
    if 0 in shape:
        raise DataError(
            path, f"has an axis of size 0 ({shown}), expected sizes above 0", "download or convert it again"
        )
    if math.prod(shape) > limits.voxels:
        raise DataError(
            path,
            f"its header claims {shown} voxels, expected at most {limits.voxels}",
            "download it again if that cannot be, else crop it",
        )
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise DataError(path, f"has {shown} voxels, expected three axes", "keep one 3D volume of it")
    width, height, depth = shape[:3]
    return width, height, depth


def check_dtype(dtype: np.dtype, path: Path) -> None:
    """Refuse voxels that are not one integer or float of up to 8 bytes.

    Raises:
        DataError: If they are complex, colours or long floats.
    """
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        shown = "".join(dtype.names) if dtype.names else dtype
        raise DataError(path, f"holds {shown} voxels, expected numbers", "convert it to int16 or float32")


def check_stored_bytes(
    promised: int, stored: int, compressed: bool, kind: str, path: Path, limits: Limits = ANY_LIMITS
) -> None:
    """Refuse a header that promises more than its file can hold, before memory is taken.

    Args:
        promised: Bytes that the header promises.
        stored: Bytes that the file has for them.
        compressed: Whether they are deflated (gzip, zlib).
        kind: Name of the format.
        path: The file.
        limits: Of what it holds.

    Raises:
        DataError: If the file cannot hold them, or they are many that hold nothing.

    Example:
        >>> check_stored_bytes(100, 90, compressed=True, kind="NRRD", path=Path("a.nrrd"))
        >>> check_stored_bytes(100, 90, compressed=False, kind="NRRD", path=Path("a.nrrd"))
        Traceback (most recent call last):
        partialseg.errors.DataError: a.nrrd: is cut short (90 bytes), its NRRD header promises 100 bytes of voxels; download it again
    """  # noqa: E501
    if compressed and promised > MAX_DEFLATE_RATIO * stored:
        raise DataError(
            path,
            f"holds {stored} compressed bytes, which cannot be the {promised} bytes that its {kind} header promises",
            "download it again",
        )
    if compressed and promised > max(SMALL_BYTES, limits.ratio * stored):
        raise DataError(
            path,
            f"unpacks to {promised} bytes, {promised // stored} times its size, expected a scan, whose noise keeps it "
            f"below {limits.ratio} times",
            "download or convert it again",
        )
    if not compressed and promised > stored:
        raise DataError(
            path,
            f"is cut short ({stored} bytes), its {kind} header promises {promised} bytes of voxels",
            "download it again",
        )


@contextlib.contextmanager
def no_traceback(kind: str, path: Path) -> Iterator[None]:
    """Say on one line what goes wrong in reading a file of a format; a file that may not be read is the caller's.

    Raises:
        DataError: In place of what Python, zlib or nibabel raise about a damaged file.
    """
    try:
        yield
    except (DataError, PermissionError):
        raise
    except EOFError as error:
        raise DataError(
            path,
            f"is cut short (its compressed content has no end), expected a whole {kind} file",
            "download it again",
        ) from error
    except (OSError, ValueError, zlib.error, isal_zlib.IsalError) as error:
        raise DataError(
            path, f"is damaged ({error}), expected a {kind} file with the right checksum", "download it again"
        ) from error


def read_voxels(
    stream: BinaryIO, shape: tuple[int, int, int], dtype: np.dtype, kind: str, path: Path
) -> np.ndarray:
    """Read voxels up to the end of a stream, and hardly more than are promised, whatever follows.

    Args:
        stream: Stands at the first voxel; decompresses, if need be, while it is read.
        shape: Sizes of the axes, the fastest first.
        dtype: Of a voxel.
        kind: Name of the format.
        path: The file.

    Returns:
        The array, of that shape and type.

    Raises:
        DataError: If there are fewer voxels, or more than `MAX_TAIL_BYTES` follow.
    """
    array = np.empty(shape, dtype=dtype, order="F")  # memory is taken as it is filled
    buffer = memoryview(array.reshape(-1, order="F").view(np.uint8))
    done = 0
    while done < len(buffer):
        num_bytes = stream.readinto(buffer[done : done + _CHUNK_BYTES])
        if not num_bytes:
            raise DataError(
                path,
                f"is cut short ({done} bytes of voxels), its {kind} header promises {len(buffer)} bytes",
                "download it again",
            )
        done += num_bytes
    # To the end, since checksums are compared there.
    rest = 0
    while rest <= MAX_TAIL_BYTES:
        tail = stream.read(MAX_TAIL_BYTES)
        if not tail:
            return array
        rest += len(tail)
    raise DataError(
        path,
        f"holds more than the {len(buffer)} bytes of voxels that its header promises ({shown_shape(shape)}, "
        f"{dtype}), expected its end there",
        "download or convert it again",
    )


def check_affine(affine: np.ndarray, path: Path) -> None:
    """Refuse affines that do not say where voxels are, and sheared ones, which no flip makes canonical.

    Args:
        affine: 4 x 4, voxel index to world millimetres.
        path: The file.

    Raises:
        DataError: If it holds NaN or infinite numbers, a voxel size of 0, or axes off the right angle.
    """
    if not np.isfinite(affine).all():
        raise DataError(
            path, "its affine holds NaN or infinite numbers, expected finite ones", "convert the file again"
        )
    largest = float(np.abs(affine).max())
    if largest > MAX_MM:
        raise DataError(
            path,
            f"its affine holds {largest:.3g}, expected numbers below {MAX_MM:g} mm",
            "convert the file again",
        )
    sizes = nib.affines.voxel_sizes(affine)
    if (sizes < 1e-6).any():
        shown = " x ".join(f"{size:g}" for size in sizes)
        raise DataError(
            path, f"its voxels measure {shown} mm, expected sizes above 0", "convert the file again"
        )
    directions = affine[:3, :3] / sizes
    cosine = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if cosine > SHEAR_TOLERANCE:
        angle = 90 - np.degrees(np.arccos(min(cosine, 1.0)))
        raise DataError(
            path,
            f"its axes are {angle:.2f} degrees off the right angle (sheared)",
            "resample it to an upright grid",
        )
