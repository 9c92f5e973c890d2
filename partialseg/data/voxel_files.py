"""What all formats of volumes have in common: how large they may be, and what an affine must be like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from partialseg.errors import DataError

#: Larger volumes are refused before memory is taken: 512 x 512 x 4096, twice the longest whole-body CT; 4 GiB
#: as float32.
MAX_VOXELS = 2**30
#: deflate cannot make its output more than 1032 times as large as its input, so a header that promises more
#: lies (https://zlib.net/zlib_tech.html).
MAX_DEFLATE_RATIO = 1032
#: Bytes that may follow the voxels; a file that goes on for longer is not what its header says.
MAX_TAIL_BYTES = 1 << 16
#: Cosine between two axes above which an affine counts as sheared; rounding in headers stays below it.
SHEAR_TOLERANCE = 1e-3


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


def check_shape(shape: Sequence[int], path: Path) -> tuple[int, int, int]:
    """The sizes of the three axes; further axes must have size 1.

    Raises:
        DataError: If there are not three axes, one is empty, or there are more than `MAX_VOXELS` voxels.

    Example:
        >>> check_shape((512, 512, 100, 1), Path("scan.nii.gz"))
        (512, 512, 100)
    """
    shape = tuple(int(size) for size in shape)
    if min(shape, default=0) < 0:
        raise DataError(path, f"has an axis of negative size (shape {shape})", "download the file again")
    if 0 in shape:
        raise DataError(path, f"has an axis of size 0 (shape {shape})", "convert or download the file again")
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise DataError(path, f"has shape {shape}, expected three axes", "keep one 3D volume of it")
    width, height, depth = shape[:3]
    if width * height * depth > MAX_VOXELS:
        raise DataError(
            path,
            f"its header claims {width} x {height} x {depth} voxels, expected at most {MAX_VOXELS}",
            "download it again if that cannot be, else crop it",
        )
    return width, height, depth


def check_dtype(dtype: np.dtype, path: Path) -> None:
    """Refuse voxels that are not one integer or float of up to 8 bytes.

    Raises:
        DataError: If they are complex, colours or long floats.
    """
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DataError(path, f"holds {dtype} voxels, expected numbers", "convert it to int16 or float32")


def check_stored_bytes(promised: int, stored: int, compressed: bool, path: Path) -> None:
    """Refuse a header that promises more than its file can hold, before memory is taken.

    Args:
        promised: Bytes that the header promises.
        stored: Bytes that the file has for them.
        compressed: Whether they are deflated (gzip, zlib).
        path: The file.

    Raises:
        DataError: If the file cannot hold them.

    Example:
        >>> check_stored_bytes(100, 90, compressed=True, path=Path("scan.nii.gz"))
        >>> check_stored_bytes(100, 90, compressed=False, path=Path("a.nii"))
        Traceback (most recent call last):
        partialseg.errors.DataError: a.nii: is cut short (its header promises 100 bytes, it has 90); download it again
    """
    if compressed and promised > MAX_DEFLATE_RATIO * stored:
        raise DataError(
            path,
            f"its header promises {promised} bytes, more than {stored} compressed bytes can hold",
            "download it again",
        )
    if not compressed and promised > stored:
        raise DataError(
            path, f"is cut short (its header promises {promised} bytes, it has {stored})", "download it again"
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
        raise DataError(path, "its affine holds NaN or infinite numbers", "convert the file again")
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
