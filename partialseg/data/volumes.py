"""Scans and label maps in canonical axes, and the way back into the file's own axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from partialseg.data.dicom import read_series
from partialseg.data.itk_files import ITK_SUFFIXES, read_itk
from partialseg.data.nifti import NIFTI_SUFFIXES, read_nifti
from partialseg.data.voxel_files import (
    MAX_VOXELS,
    SCAN_LIMITS,
    Limits,
    StoredVoxels,
    check_is_file,
)
from partialseg.errors import DataError
from partialseg.files import atomic_path

#: How the names of volumes that can be read end.
SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
#: How far a float label may be from a whole number; scale factors in headers stay below it.
WHOLE_TOLERANCE = 1e-4
#: Rows that are brought into canonical axes at a time: they stay in the processor's cache, which makes it eight
#: times as fast where the file's slices come first, and no volume is ever held as float64.
_ROWS = 8


@dataclass(frozen=True)
class Source:
    """What is needed to go back to a file's own axes and header.

    Attributes:
        path: The file, or the folder of DICOM slices.
        shape: Shape in the file's own axes.
        affine: 4 x 4, of the file's own axes, to world millimetres (RAS+).
        orientation: `(3, 2)`, as in `nibabel.orientations`: for each of the file's axes the canonical axis
            and 1 or -1.
        header: The NIfTI header; None for other formats, whose label maps get a new one.
        dtype: Name of the file's data type, as in "int16"; "" for DICOM and PNG.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: np.ndarray
    orientation: np.ndarray
    header: nib.Nifti1Header | None = None
    dtype: str = ""


@dataclass(frozen=True)
class Volume:
    """A scan or a label map in canonical axes.

    Attributes:
        array: `(depth, height, width)` = (z, y, x) in RAS+, C-contiguous.
        affine: 4 x 4, world position in mm (RAS+) of the voxel index `(x, y, z)` of `array`.
        source: Where it came from.
        notes: What is odd about the file and kept nobody from reading it, such as sform and qform at odds.
    """

    array: np.ndarray
    affine: np.ndarray
    source: Source
    notes: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size `(z, y, x)` in mm."""
        x, y, z = (float(size) for size in nib.affines.voxel_sizes(self.affine))
        return z, y, x


def stem(path: Path) -> str:
    """The name of a volume's file without what says the format; of a folder, its name.

    Example:
        >>> stem(Path("labels/img0001.nii.gz")), stem(Path("LIVER.1.MHA")), stem(Path("series.2"))
        ('img0001', 'LIVER.1', 'series.2')
    """
    return next((path.name[: -len(s)] for s in SUFFIXES if path.name.lower().endswith(s)), path.name)


def sidecar_path(label_map: Path) -> Path:
    """Where the JSON lies that describes a predicted label map: beside it.

    Example:
        >>> sidecar_path(Path("out/liver_7.nii.gz")).as_posix()
        'out/liver_7.json'
    """
    return label_map.with_name(f"{stem(label_map)}.json")


def read_image(path: str | Path, series: str | None = None) -> Volume:
    """Read a CT scan.

    Args:
        path: A NIfTI (`.nii`, `.nii.gz`), NRRD (`.nrrd`) or MetaImage (`.mha`, `.mhd`) file with any axis order,
            or a folder with the slices of a DICOM series.
        series: Where the folder holds several DICOM series, a pattern of the description (or the UID) of the one
            to take.

    Returns:
        A volume whose array is float32 HU.

    Raises:
        DataError: If the file is missing or damaged, claims more than it can hold, more than a scan unpacks to or
            more than 10^9 voxels, is not 3D, has an axis of size 0, an unusable affine, or voxels that are NaN or
            infinite.
    """
    path = Path(path)
    if path.is_dir():
        return canonical_volume(*read_series(path, series), path, np.float32)
    stored = _read_file(path, "scan", SCAN_LIMITS)
    array = _fill_canonical(stored, np.float32)
    # Whole numbers of up to 8 bytes stay finite unless they are scaled.
    if stored.array.dtype.kind == "f" or (stored.slope, stored.intercept) != (1, 0):
        not_finite = sum(plane.size - int(np.count_nonzero(np.isfinite(plane))) for plane in array)
        if not_finite:
            raise DataError(
                path,
                f"{not_finite} of {array.size} voxels are NaN or infinite, expected HU",
                "replace them (air is -1000 HU) or list the case under `exclude:` in the card",
            )
    return _volume(stored, array, path)


def read_label(path: str | Path, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a label map.

    Args:
        path: A NIfTI, NRRD or MetaImage file; see `read_image`.
        max_voxels: A file that claims more is refused before memory is taken.

    Returns:
        A volume whose array is uint8, or int16 where a value is above 255; whole numbers from 0.

    Raises:
        DataError: As for `read_image`; and if a value is not a whole number, negative or above 32767.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(
            path,
            "is a folder, expected one file with the label map",
            "if it holds one mask for each organ, give their names under `labels:` in the card",
        )
    stored = _read_file(path, "label map", Limits(voxels=min(max_voxels, MAX_VOXELS)))
    high = _check_whole_numbers(stored, path)
    return _volume(stored, _fill_canonical(stored, np.uint8 if high <= 255 else np.int16), path)


def canonical_volume(array: np.ndarray, affine: np.ndarray, path: Path, dtype: type[np.generic]) -> Volume:
    """A volume of voxels that come without a header of their own, such as DICOM slices.

    Args:
        array: `(i, j, k)`, numbers.
        affine: 4 x 4, of that index to world millimetres (RAS+).
        path: Where they came from.
        dtype: What the volume's array shall be.

    Returns:
        A volume whose source is said to be in canonical axes: nothing of the kind needs the way back.
    """
    stored = StoredVoxels(array, affine)
    view = nib.apply_orientation(array, nib.io_orientation(affine)).T
    # read_series lays voxels so that there is nothing to copy.
    is_canonical = view.flags.c_contiguous and view.dtype == dtype
    volume = _volume(stored, view if is_canonical else _fill_canonical(stored, dtype), path)
    orientation = np.array([[0, 1], [1, 1], [2, 1]])
    source = Source(path, volume.array.shape[::-1], volume.affine, orientation)
    return Volume(volume.array, volume.affine, source)


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

    Shape, axis order and affine are that file's, of NIfTI also qform and sform with their codes.

    Args:
        path: A `.nii.gz` or `.nii` file; written atomically.
        labels: uint8 or int16 whole numbers, `(z, y, x)`, same shape as `like.array`.
        like: The volume whose geometry to take.
    """
    image = _image_like(labels, like)
    image.header.set_slope_inter(1, 0)
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    image.header["descrip"] = b"partialseg label map"
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def write_probability_map(path: str | Path, numbers: np.ndarray, full: int, like: Volume) -> None:
    """Write probabilities in the geometry of the file that `like` was read from; see `write_label_map`.

    Args:
        path: A `.nii.gz` or `.nii` file; written atomically.
        numbers: uint8 whole numbers, `(z, y, x)`, same shape as `like.array`.
        full: The number that stands for a probability of 1; the header has the scale.
        like: The volume whose geometry to take.
    """
    image = _image_like(numbers, like)
    image.header.set_slope_inter(1 / full, 0)
    image.header["cal_min"], image.header["cal_max"] = 0, 1
    image.header["descrip"] = b"partialseg probability map"
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _image_like(array: np.ndarray, like: Volume) -> nib.Nifti1Image:
    """An image in the axes and with the geometry of another's file."""
    header = like.source.header
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = kind(to_source_axes(array, like), like.source.affine, header, dtype=array.dtype)
    if header is None:
        for set_form in (image.set_sform, image.set_qform):
            set_form(like.source.affine, "scanner")
    image.header.extensions.clear()  # they may hold what DICOM said about the patient
    return image


def _read_file(path: Path, what: str, limits: Limits) -> StoredVoxels:
    """A volume by the suffix of its file; `what` it should be."""
    check_is_file(path, what)
    name = path.name.lower()
    try:
        if name.endswith(NIFTI_SUFFIXES):
            return read_nifti(path, limits)
        if name.endswith(ITK_SUFFIXES):
            return read_itk(path, limits)
    except PermissionError as error:
        raise DataError(
            path, "may not be read, expected a file that you can read", "give yourself the permission"
        ) from error
    raise DataError(
        path,
        f"is of a format that is not read, expected {', '.join(SUFFIXES)} or a folder of DICOM slices",
        "convert it to .nii.gz",
    )


def _parts(stored: StoredVoxels) -> Iterator[tuple[slice, np.ndarray]]:
    """A few canonical rows (of axis 1) at a time, scaled: exact in float64 where anything is to be scaled."""
    canonical = nib.apply_orientation(stored.array, nib.io_orientation(stored.affine)).T
    scaled = (stored.slope, stored.intercept) != (1, 0)
    for start in range(0, canonical.shape[1], _ROWS):
        rows = slice(start, start + _ROWS)
        part = canonical[:, rows]
        yield rows, part * np.float64(stored.slope) + np.float64(stored.intercept) if scaled else part


def _fill_canonical(stored: StoredVoxels, dtype: type[np.generic]) -> np.ndarray:
    """The voxels in canonical axes, `(z, y, x)` in RAS+; rounded where `dtype` is of whole numbers."""
    array = np.empty(_canonical_shape(stored), dtype=dtype)
    with np.errstate(over="ignore", invalid="ignore"):  # what becomes infinite here is reported by the caller
        for rows, part in _parts(stored):
            is_rounded = array.dtype.kind != "f" and part.dtype.kind == "f"
            array[:, rows] = np.rint(part) if is_rounded else part
    return array


def _canonical_shape(stored: StoredVoxels) -> tuple[int, int, int]:
    order = nib.io_orientation(stored.affine)[:, 0].argsort()[::-1]
    z, y, x = (stored.array.shape[axis] for axis in order)
    return z, y, x


def _check_whole_numbers(stored: StoredVoxels, path: Path) -> float:
    """The largest label value, after checking that all are whole numbers from 0 to 32767."""
    low, high, wrong, first = np.inf, -np.inf, 0, None
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite or NaN is no whole number
        for _, part in _parts(stored):
            if part.dtype.kind == "f":
                is_wrong = ~(np.abs(part - np.rint(part)) <= WHOLE_TOLERANCE)
                if is_wrong.any():
                    wrong += np.count_nonzero(is_wrong)
                    first = part[is_wrong][0] if first is None else first
            low, high = min(low, part.min()), max(high, part.max())
    if wrong:
        raise DataError(
            path,
            f"{wrong} voxels are not whole numbers, the first is {first:g}",
            "save the label map as whole numbers (resample labels by nearest neighbour)",
        )
    low, high = np.rint(low), np.rint(high)
    if low < 0 or high > np.iinfo(np.int16).max:
        raise DataError(
            path, f"holds values {low:g} to {high:g}, expected 0 to 32767", "give organs small numbers"
        )
    return float(high)


def _volume(stored: StoredVoxels, array: np.ndarray, path: Path) -> Volume:
    """A volume of canonical voxels, which knows the way back."""
    orientation = nib.io_orientation(stored.affine)
    shape = stored.array.shape
    affine = stored.affine @ nib.orientations.inv_ornt_aff(orientation, shape)
    source = Source(path, shape, np.array(stored.affine), orientation, stored.header, stored.array.dtype.name)
    return Volume(array, affine, source, stored.notes)
