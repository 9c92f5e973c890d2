"""Scans and label maps in canonical axes, and the way back into the file's own axes."""

from __future__ import annotations

import contextlib
import gzip
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from partialseg.data.dicom import read_series
from partialseg.errors import DataError
from partialseg.files import atomic_path

#: Cosine between two axes above which an affine counts as sheared; rounding in headers stays below it.
SHEAR_TOLERANCE = 1e-3
#: How far a float label may be from a whole number; scale factors in headers stay below it.
WHOLE_TOLERANCE = 1e-4

_DAMAGED = (EOFError, OSError, ValueError, zlib.error, ImageFileError, HeaderDataError)


@dataclass(frozen=True)
class Source:
    """What is needed to go back to a file's own axes and header.

    Attributes:
        path: The file, or the folder of DICOM slices.
        shape: Shape in the file's own axes.
        affine: 4 x 4, of the file's own axes, to world millimetres (RAS+).
        orientation: `(3, 2)`, as in `nibabel.orientations`: for each of the file's axes the canonical axis
            and 1 or -1.
        header: The NIfTI header; None for DICOM, whose label maps are written in canonical axes.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    orientation: np.ndarray
    header: nib.Nifti1Header | None = None


@dataclass(frozen=True)
class Volume:
    """A scan or a label map in canonical axes.

    Attributes:
        array: `(depth, height, width)` = (z, y, x) in RAS+, C-contiguous.
        affine: 4 x 4, world position in mm (RAS+) of the voxel index `(x, y, z)` of `array`.
        source: Where it came from.
    """

    array: np.ndarray
    affine: np.ndarray
    source: Source

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size `(z, y, x)` in mm."""
        x, y, z = (float(size) for size in nib.affines.voxel_sizes(self.affine))
        return z, y, x


def read_image(path: str | Path) -> Volume:
    """Read a CT scan.

    Args:
        path: A NIfTI file (`.nii`, `.nii.gz`, any axis order), or a folder with the slices of a DICOM series.

    Returns:
        A volume whose array is float32 HU.

    Raises:
        DataError: If the file is missing or damaged, is not 3D, has an axis of size 0, an unusable affine, or
            voxels that are NaN or infinite.
    """
    path = Path(path)
    if path.is_dir():
        array, affine = read_series(path)
        volume = _canonical(array, affine, path, None)
        orientation = np.array([[0, 1], [1, 1], [2, 1]])
        source = Source(path, volume.array.shape[::-1], volume.affine, orientation)
        return Volume(volume.array, volume.affine, source)
    image, array = _load(path, np.float32)
    not_finite = array.size - int(np.count_nonzero(np.isfinite(array)))
    if not_finite:
        raise DataError(
            path,
            f"{not_finite} of {array.size} voxels are NaN or infinite, expected HU",
            "replace them (air is -1000 HU) or list the case under `exclude:` in the card",
        )
    return _canonical(array, image.affine, path, image.header)


def read_label(path: str | Path) -> Volume:
    """Read a label map.

    Args:
        path: A NIfTI file (`.nii`, `.nii.gz`, any axis order).

    Returns:
        A volume whose array is uint8, or int16 where a value is above 255; whole numbers from 0.

    Raises:
        DataError: As for `read_image`; and if a value is not a whole number, negative or above 32767.
    """
    path = Path(path)
    image, array = _load(path, None)
    array = _whole_numbers(array, path)
    return _canonical(array, image.affine, path, image.header)


def to_source_axes(array: np.ndarray, volume: Volume) -> np.ndarray:
    """Bring an array on the grid of `volume` into the axes of the file that it was read from.

    Args:
        array: `(z, y, x)`, same shape as `volume.array`.
        volume: A volume that was read.

    Returns:
        The same values in the file's own axes (for DICOM: canonical `(x, y, z)`); a view.

    Raises:
        ValueError: If the shapes differ.
    """
    if array.shape != volume.array.shape:
        raise ValueError(
            f"the array has shape {array.shape}, the volume {volume.array.shape}; expected the same"
        )
    orientation = volume.source.orientation.astype(int)
    array = array.T.transpose(orientation[:, 0])
    return array[tuple(slice(None, None, int(step)) for step in orientation[:, 1])]


def write_label_map(path: str | Path, labels: np.ndarray, like: Volume) -> None:
    """Write a label map in the geometry of the file that `like` was read from.

    Shape, axis order, affine, qform and sform with their codes are that file's.

    Args:
        path: A `.nii.gz` or `.nii` file; written atomically.
        labels: uint8 or int16 whole numbers, `(z, y, x)`, same shape as `like.array`.
        like: The volume whose geometry to take.
    """
    array = to_source_axes(labels, like)
    header = like.source.header.copy() if like.source.header is not None else nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"], header["cal_max"], header["descrip"] = 0, 0, b"partialseg label map"
    header.extensions.clear()  # they may hold what DICOM said about the patient
    # nibabel keeps qform, sform and their codes where the affine is the header's own.
    image = nib.Nifti1Image(array, like.source.affine, header)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _load(path: Path, dtype: type[np.floating] | None) -> tuple[nib.Nifti1Image, np.ndarray]:
    """Read and check a NIfTI file: its header, and its voxels as `dtype` (None: as in the file), three axes."""
    if not path.is_file():
        raise DataError(
            path, "there is no such file", "put it there, or list the case under `exclude:` in the card"
        )
    try:
        with _quiet_nibabel():
            image, array = _read(path, dtype)
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(
            path, f"cannot be read as NIfTI, or is cut short ({error})", "download or convert it again"
        ) from error
    return image, array.reshape(array.shape[:3])


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keep nibabel from printing what it thinks of a strange header: one line for each problem is enough."""
    logger = nib.imageglobals.logger
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read(path: Path, dtype: type[np.floating] | None) -> tuple[nib.Nifti1Image, np.ndarray]:
    """The image and its voxels."""
    kind = type(nib.load(path))
    if not issubclass(kind, nib.Nifti1Image):
        raise DataError(path, f"is {kind.__name__}, expected NIfTI in one file", "convert it to .nii.gz")
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
        image = kind.from_stream(stream)
        _check_header(image, path)
        array = np.asanyarray(image.dataobj, dtype=dtype)
        # gzip compares its checksum when it comes to the end, and nibabel stops before.
        while stream.read(1 << 20):
            pass
    return image, array


def _check_header(image: nib.Nifti1Image, path: Path) -> None:
    """Refuse what cannot be a scan or a label map with a place in the world."""
    shape, dtype = image.shape, image.get_data_dtype()
    if 0 in shape:
        raise DataError(path, f"has an axis of size 0 (shape {shape})", "convert or download the file again")
    if len(shape) < 3 or any(size != 1 for size in shape[3:]):
        raise DataError(path, f"has shape {shape}, expected three axes", "keep one 3D volume of it")
    if dtype.kind not in "iuf":
        raise DataError(path, f"holds {dtype} voxels, expected numbers", "convert it to int16 or float32")
    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        raise DataError(
            path,
            "has neither sform nor qform, so left and right are not known",
            "convert it again with its orientation",
        )
    _check_affine(image.affine, path)


def _check_affine(affine: np.ndarray, path: Path) -> None:
    """Refuse affines that do not say where voxels are, and sheared ones, which no flip makes canonical."""
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


def _whole_numbers(array: np.ndarray, path: Path) -> np.ndarray:
    """The label values as uint8 or int16."""
    if array.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # infinite minus infinite is NaN, and NaN is wrong too
            wrong = ~(np.abs(array - np.round(array)) <= WHOLE_TOLERANCE)
        if wrong.any():
            raise DataError(
                path,
                f"{np.count_nonzero(wrong)} voxels are not whole numbers, the first is {array[wrong][0]:g}",
                "save the label map as whole numbers (resample labels by nearest neighbour)",
            )
        array = np.round(array)
    low, high = array.min(), array.max()
    if low < 0 or high > np.iinfo(np.int16).max:
        raise DataError(
            path, f"holds values {low:g} to {high:g}, expected 0 to 32767", "give organs small numbers"
        )
    return array.astype(np.uint8 if high <= 255 else np.int16, copy=False)


def _canonical(array: np.ndarray, affine: np.ndarray, path: Path, header: nib.Nifti1Header | None) -> Volume:
    """Flip and transpose `array`, in NIfTI axes, to (z, y, x) in RAS+."""
    orientation = nib.io_orientation(affine)
    canonical = nib.apply_orientation(array, orientation)
    new_affine = affine @ nib.orientations.inv_ornt_aff(orientation, array.shape)
    source = Source(
        path, array.shape, np.array(affine), orientation, header.copy() if header is not None else None
    )
    return Volume(_contiguous(canonical.T), new_affine, source)


def _contiguous(view: np.ndarray) -> np.ndarray:
    """A C-contiguous copy. A few rows at a time is eight times faster where the file's slices come first."""
    if view.flags.c_contiguous:
        return view
    copy = np.empty(view.shape, dtype=view.dtype)
    for start in range(0, view.shape[1], 8):
        copy[:, start : start + 8] = view[:, start : start + 8]
    return copy
