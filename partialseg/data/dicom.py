"""A folder of DICOM slices as one volume: CT in HU, masks of organs, or the order of the files alone.

pydicom reads headers and pixels; compressed pixels are decoded by the plug-ins that are installed: Pillow
(JPEG, JPEG 2000), python-gdcm (those, JPEG lossless and JPEG-LS) and pydicom itself (RLE, deflated).
"""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import RLELossless

from partialseg.data.dicom_series import (
    DAMAGED,
    SAME_PLACE_MM,
    Series,
    Slice,
    all_slices,
    brief,
    choose_series,
    list_series,
)
from partialseg.data.voxel_files import check_shape
from partialseg.errors import DataError

__all__ = [
    "Series",
    "Slice",
    "hounsfield",
    "list_series",
    "read_mask",
    "read_series",
    "slice_order",
    "stacked_slices",
]

#: Slices may be this share of their distance from where equal spacing has them: some headers round to 0.1 mm.
SPACING_TOLERANCE = 0.05
#: Slices may be this far (mm), or this share of the length of the stack, beside the line along their normal.
SIDEWAYS_TOLERANCE_MM, SIDEWAYS_TOLERANCE = 0.1, 1e-3
#: Rescale types whose values are HU; "US" is "unspecified".
_HU_TYPES = ("", "HU", "HU_MOD", "US")
#: Markers that say the size of a JPEG or, the last, of a JPEG-LS image.
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_series(folder: str | Path, series: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read one CT series; headers of all files, and the pixels of this series alone.

    Values are `pixel * RescaleSlope + RescaleIntercept` of each slice, computed in double precision, without
    exception: voxels outside the field of view keep what the scanner put there (PixelPaddingValue, often
    -2000, so -3024 HU), as in volumes that dcm2niix writes and nnU-Net reads. The intensity window of the
    training takes them for air. The photometric interpretation does not change HU.

    Args:
        folder: Holds one file per slice, under any names, or multi-frame files; see `list_series`.
        series: Which one, where there are several: a pattern of its description, or its number or UID.

    Returns:
        float32 HU, `(columns, rows, slices)`, slices sorted along their normal; and the 4 x 4 affine of that
        index to world millimetres (RAS+). The array is a view of one that is contiguous in canonical axes.

    Raises:
        DataError: If there are no CT slices, or several series and none is chosen; if a slice is missing,
            there twice or not above the one before it (gantry tilt); if slices are not equally far apart; if
            values are not HU; if a file is damaged, or its transfer syntax has no decoder.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> path = get_testdata_file("dicomdirtests/98892001/CT5N/2062")
        >>> array, affine = read_series(Path(path).parent)
        >>> array.shape, array.min(), affine[2, 2]
        ((16, 16, 5), -888.0, 2.5)
    """
    slices, affine = stacked_slices(folder, series)
    array = _canonical_buffer((*slices[0].size, len(slices)), affine, np.float32)
    for index, one in enumerate(slices):
        array[:, :, index] = hounsfield(one).T
    return array, affine


def read_mask(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a mask that is kept as DICOM slices, as those of 3D-IRCADb.

    Modality, ImageType, SeriesInstanceUID and rescale do not matter; the geometry is that of the mask's own
    headers.

    Args:
        folder: Holds the slices of one mask.

    Returns:
        bool `(columns, rows, slices)`, true where the pixel is not 0; slices sorted along their normal; and
        the 4 x 4 affine of that index to world millimetres (RAS+).

    Raises:
        DataError: As for `read_series`; if pixels have more than one value beside 0.
    """
    folder = Path(folder)
    slices, affine = _stack(all_slices(folder), folder)
    array = _canonical_buffer((*slices[0].size, len(slices)), affine, np.bool_)
    values: set[int] = set()
    for index, one in enumerate(slices):
        pixels = _pixels(one)
        values.update(np.unique(pixels).tolist())
        if len(values - {0}) > 1:
            found = ", ".join(map(str, sorted(values)[:5]))
            raise DataError(one.path, f"holds values {found}, expected 0 and one other", "give a mask")
        array[:, :, index] = (pixels != 0).T
    return array, affine


def slice_order(
    folder: str | Path, series: str | None = None
) -> tuple[list[str], np.ndarray, tuple[int, int, int]]:
    """The files of a CT series in the order of `read_series`, from their headers alone.

    Args:
        folder: As in `read_series`; one file per slice.
        series: As in `read_series`.

    Returns:
        File names, the affine, and `(columns, rows, slices)`, as `read_series` has them.

    Raises:
        DataError: As for `read_series`; and for multi-frame files.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> path = get_testdata_file("dicomdirtests/98892001/CT5N/2062")
        >>> slice_order(Path(path).parent)[0]
        ['3353', '3023', '2693', '2392', '2062']
    """
    slices, affine = stacked_slices(folder, series)
    if slices[0].frame is not None:
        raise DataError(slices[0].path, "holds many slices, expected one file per slice", "split it")
    return [one.path.name for one in slices], affine, (*slices[0].size, len(slices))


def stacked_slices(folder: str | Path, series: str | None = None) -> tuple[list[Slice], np.ndarray]:
    """The slices of a CT series in the order of `read_series`, and its affine, from their headers alone.

    Args:
        folder: As in `read_series`.
        series: As in `read_series`.

    Raises:
        DataError: As for `read_series`.
    """
    return _stack(choose_series(folder, series), Path(folder))


def hounsfield(one: Slice) -> np.ndarray:
    """The pixels of one slice as float32 HU, `(rows, columns)`.

    Raises:
        DataError: If they cannot be decoded, or are not HU.
    """
    check_rescale(one)
    return (_pixels(one) * np.float64(one.slope) + np.float64(one.intercept)).astype(np.float32)


def check_rescale(one: Slice) -> None:
    """Refuse a slice whose rescale does not give HU.

    Raises:
        DataError: If RescaleType says so, or slope and intercept are unusable.
    """
    if one.rescale_type not in _HU_TYPES:
        raise DataError(
            one.path, f"holds {one.rescale_type} values (RescaleType), expected HU", "take another series"
        )
    if not one.slope or one.intercept is None:
        raise DataError(
            one.path,
            "RescaleSlope or RescaleIntercept is no number, or the slope is 0",
            "export the series again",
        )


def _pixels(one: Slice) -> np.ndarray:
    """The stored values of one slice, `(rows, columns)`, whole numbers."""
    if one.high_bit != one.bits_stored - 1:
        raise DataError(
            one.path,
            f"its HighBit is {one.high_bit}, expected BitsStored - 1 ({one.bits_stored - 1})",
            "export it again",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_codestream(one)
            # From a path, one frame of many is read without the others; but no deflated file is.
            source = pydicom.dcmread(one.path) if one.frame is None else one.path
            pixels = pixel_array(source, index=one.frame, raw=True)
    except DAMAGED as error:
        raise DataError(
            one.path,
            f"its pixels ({one.encoding}) cannot be decoded ({brief(error)})",
            "export the series again, uncompressed",
        ) from error
    if pixels.shape != one.size[::-1]:
        raise DataError(
            one.path, f"has pixels of shape {pixels.shape}, expected {one.size[::-1]}", "export it again"
        )
    return pixels


def _check_codestream(one: Slice) -> None:
    """Refuse compressed pixels of another size than the header's before a decoder takes memory for them.

    Raises:
        ValueError: If the sizes differ, or none is found.
    """
    if one.transfer_syntax == RLELossless or not one.is_compressed:
        return
    with one.path.open("rb") as stream:
        pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=[])
        # Tag, "OB", two reserved bytes and the length, which is undefined: then come the items.
        if stream.read(12)[:4] != b"\xe0\x7f\x10\x00":
            raise ValueError("no PixelData")
        frame = get_frame(stream, one.frame or 0, number_of_frames=one.num_frames)
    size = _codestream_size(frame)
    if size != one.size:
        raise ValueError(f"they claim {size} columns and rows, expected {one.size}")


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """Columns and rows in the header of a JPEG 2000, JPEG or JPEG-LS codestream; None where it is none of them.

    Source: ISO/IEC 15444-1 annex A.5.1 (marker SIZ), ITU-T T.81 annex B and T.87 annex C (markers SOF).
    """
    # Some writers put the boxes of a .jp2 file around the codestream.
    siz = frame.find(b"\xff\x4f\xff\x51", 0, 4096) if frame[4:8] == b"jP  " else 0
    if frame[siz : siz + 4] == b"\xff\x4f\xff\x51":
        right, bottom, left, top = struct.unpack_from(">4I", frame, siz + 8)
        return right - left, bottom - top
    start = 2
    while frame[:2] == b"\xff\xd8" and start + 9 <= len(frame) and frame[start] == 0xFF:
        marker = frame[start + 1]
        if marker in _START_OF_FRAME:
            rows, columns = struct.unpack_from(">2H", frame, start + 5)
            return columns, rows
        # A marker may be filled up with 0xFF in front of it.
        start += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, start + 2)[0]
    return None


def _canonical_buffer(shape: tuple[int, int, int], affine: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """An array of that shape whose memory is contiguous in canonical (z, y, x): bringing it there copies nothing."""
    orientation = nib.io_orientation(affine).astype(int)
    canonical_shape = np.empty(3, dtype=int)
    canonical_shape[orientation[:, 0]] = shape
    array = np.empty(canonical_shape[::-1], dtype=dtype).T.transpose(orientation[:, 0])
    return array[tuple(slice(None, None, step) for step in orientation[:, 1])]


def _stack(series: Series, folder: Path) -> tuple[list[Slice], np.ndarray]:
    """Slices in the order of their positions, and the affine to RAS+, after checking that they are one volume."""
    for one in series.slices:
        if one.missing:
            fields = ", ".join(one.missing)
            raise DataError(
                one.path,
                f"{fields} not given or no usable numbers, expected in every slice",
                "export it again",
            )
    normal = series.slices[0].normal
    slices = sorted(series.slices, key=lambda one: float(np.dot(one.position, normal)))
    positions = np.array([one.position for one in slices])
    columns, rows = slices[0].spacing_mm
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(slices[0].orientation[:3], columns)
    affine[:3, 1] = np.multiply(slices[0].orientation[3:], rows)
    affine[:3, 2] = normal * _step_mm(slices, positions @ normal, folder)
    affine[:3, 3] = positions[0]
    check_shape((*slices[0].size, len(slices)), folder)
    _check_upright(slices, positions, normal, folder)
    return slices, _LPS_TO_RAS @ affine


def _step_mm(slices: list[Slice], along: np.ndarray, folder: Path) -> float:
    """Distance between slices, after checking that it is the same everywhere."""
    if len(slices) == 1:
        if slices[0].thickness_mm is None:
            raise DataError(
                folder, "one slice without SliceThickness", "give the folder that holds all slices"
            )
        return slices[0].thickness_mm
    steps = np.diff(along)
    closest = int(steps.argmin())
    if steps[closest] < SAME_PLACE_MM:
        raise DataError(
            folder,
            f"{_pair(slices, closest)} lie at the same place, expected one slice for each",
            "keep one of them",
        )
    step = float(np.median(steps))
    mean = float(along[-1] - along[0]) / len(steps)
    worst = int(np.abs(steps - step).argmax())
    off_mm = float(np.abs(along - along[0] - mean * np.arange(len(along))).max())
    if off_mm <= max(SAME_PLACE_MM, SPACING_TOLERANCE * mean):
        return mean
    between = f"{steps[worst]:.2f} mm between {_pair(slices, worst)}, elsewhere {step:.2f} mm"
    missing = steps[worst] / step - 1
    if missing > 0.5 and abs(missing - round(missing)) < 0.1:
        raise DataError(folder, f"{between}: {round(missing)} missing", "fetch the missing slices")
    raise DataError(
        folder,
        f"slices are not equally far apart ({between})",
        "resample the series to even spacing, or take another one",
    )


def _check_upright(slices: list[Slice], positions: np.ndarray, normal: np.ndarray, folder: Path) -> None:
    """Refuse slices that do not stand above one another."""
    offsets = positions - positions[0]
    along = offsets @ normal
    sideways = offsets - np.outer(along, normal)
    tolerance = max(SIDEWAYS_TOLERANCE_MM, SIDEWAYS_TOLERANCE * along[-1])
    if np.linalg.norm(sideways, axis=1).max() <= tolerance:
        return
    slope = along @ sideways / (along @ along)
    beside = np.linalg.norm(sideways - np.outer(along, slope), axis=1)
    if beside.max() <= tolerance:
        angle = np.degrees(np.arctan(np.linalg.norm(slope)))
        raise DataError(
            folder,
            f"slices are shifted against one another, {angle:.1f} degrees from upright (gantry tilt)",
            "resample it upright",
        )
    worst = int(beside.argmax())
    raise DataError(
        slices[worst].path,
        f"lies {beside[worst]:.2f} mm beside the line of the other slices",
        "export the series again",
    )


def _pair(slices: list[Slice], index: int) -> str:
    """Names of two neighbours."""
    return " and ".join(one.path.name for one in slices[index : index + 2])
