"""A folder of DICOM CT slices as one volume in HU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.errors import InvalidDicomError

from partialseg.errors import DataError

#: Slices may be this far (mm) from equal spacing, and from the line along their normal; headers are rounded.
POSITION_TOLERANCE_MM = 0.02
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_series(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the slices of one CT series.

    Files that are not DICOM, and DICOM files that are no slices of a CT (reports, localizers, segmentations),
    are passed over.

    Args:
        folder: Holds one file per slice, under any names.

    Returns:
        float32 HU, `(columns, rows, slices)`, slices sorted along their normal; and the 4 x 4 affine of that
        index to world millimetres (RAS+).

    Raises:
        DataError: If there are no CT slices, or slices of several series, sizes or orientations; if a slice
            is missing, there twice or not above the one before it (gantry tilt); if pixels cannot be decoded.
    """
    folder = Path(folder)
    slices = _ct_slices(folder)
    rows, columns, height, width = _common_plane(slices, folder)
    normal = np.cross(rows, columns)
    positions = np.array([_numbers(dataset, "ImagePositionPatient", 3, folder) for dataset in slices])
    order = np.argsort(positions @ normal, kind="stable")
    positions, slices = positions[order], [slices[i] for i in order]
    step = _step_mm(positions, normal, slices, folder)

    array = np.stack([_hounsfield(dataset, folder) for dataset in slices], axis=-1)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = rows * width, columns * height, normal * step
    affine[:3, 3] = positions[0]
    return array.swapaxes(0, 1), _LPS_TO_RAS @ affine


def _ct_slices(folder: Path) -> list[pydicom.Dataset]:
    """Every CT slice of the folder, pixels included; of one series."""
    slices, others = [], 0
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        try:
            dataset = pydicom.dcmread(path)
        except InvalidDicomError:
            others += 1
            continue
        except (EOFError, OSError, ValueError) as error:
            raise DataError(path, f"cannot be read as DICOM ({error})", "export the series again") from error
        is_slice = (
            dataset.get("Modality") == "CT" and "PixelData" in dataset and "ImagePositionPatient" in dataset
        )
        if is_slice and "LOCALIZER" not in (dataset.get("ImageType") or []):
            slices.append(dataset)
        else:
            others += 1
    if not slices:
        raise DataError(
            folder,
            f"holds no DICOM slices of a CT ({others} other files)",
            "give the folder that holds the slices",
        )
    series = sorted({str(dataset.get("SeriesInstanceUID", "")) for dataset in slices})
    if len(series) > 1:
        raise DataError(
            folder,
            f"holds {len(series)} DICOM series, expected one ({', '.join(series)})",
            "one folder per series",
        )
    return slices


def _numbers(dataset: pydicom.Dataset, name: str, count: int, folder: Path) -> np.ndarray:
    """A field of `count` numbers."""
    value = dataset.get(name)
    if value is None or np.size(value) != count:
        raise DataError(
            getattr(dataset, "filename", folder),
            f"{name} is {value}, expected {count} numbers",
            "export it again",
        )
    return np.array(value, dtype=float).reshape(count)


def _common_plane(slices: list[pydicom.Dataset], folder: Path) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Direction of growing column index, of growing row index, row spacing and column spacing in mm."""
    first = None
    for dataset in slices:
        orientation = _numbers(dataset, "ImageOrientationPatient", 6, folder)
        spacing = _numbers(dataset, "PixelSpacing", 2, folder)
        size = (int(dataset.Rows), int(dataset.Columns))
        if first is None:
            first = orientation, spacing, size
        same = np.allclose(orientation, first[0], atol=1e-4) and np.allclose(spacing, first[1], atol=1e-4)
        if not same or size != first[2]:
            raise DataError(
                dataset.filename,
                f"the slice is {size} voxels of {spacing} mm in direction {orientation}, "
                f"another one {first[2]} of {first[1]} mm in {first[0]}",
                "keep the slices of one series in the folder",
            )
    orientation, spacing, _ = first
    if (spacing <= 0).any():
        raise DataError(
            folder, f"PixelSpacing is {spacing}, expected sizes above 0", "export the series again"
        )
    return orientation[:3], orientation[3:], float(spacing[0]), float(spacing[1])


def _step_mm(positions: np.ndarray, normal: np.ndarray, slices: list[pydicom.Dataset], folder: Path) -> float:
    """Distance between slices, after checking that they stand in one upright, even row."""
    if len(positions) == 1:
        thickness = float(slices[0].get("SliceThickness") or 0)
        if thickness <= 0:
            raise DataError(
                folder, "one slice without SliceThickness", "give the folder that holds all slices"
            )
        return thickness
    steps = np.diff(positions @ normal)
    step = float(np.median(steps))
    worst = int(np.abs(steps - step).argmax())
    if steps.min() < POSITION_TOLERANCE_MM:
        twice = int(steps.argmin())
        names = " and ".join(Path(slices[i].filename).name for i in (twice, twice + 1))
        raise DataError(folder, f"{names} lie at the same place", "keep one slice for each position")
    if abs(steps[worst] - step) > max(POSITION_TOLERANCE_MM, 0.01 * step):
        raise DataError(
            folder,
            f"{steps[worst]:.2f} mm between slices {worst} and {worst + 1}, elsewhere {step:.2f} mm",
            "fetch the missing slices, or resample the series to even spacing",
        )
    sideways = positions - positions[0] - np.outer((positions - positions[0]) @ normal, normal)
    if (
        np.linalg.norm(sideways, axis=1).max()
        > max(POSITION_TOLERANCE_MM, 0.01 * step) * len(positions) ** 0.5
    ):
        angle = np.degrees(np.arctan(np.linalg.norm(sideways[-1]) / (steps.sum())))
        raise DataError(
            folder,
            f"slices are shifted against one another ({angle:.1f} degrees: gantry tilt)",
            "resample it upright",
        )
    return float(steps.mean())


def _hounsfield(dataset: pydicom.Dataset, folder: Path) -> np.ndarray:
    """The pixels of one slice as float32 HU, `(rows, columns)`."""
    try:
        pixels = dataset.pixel_array
    except (AttributeError, EOFError, OSError, RuntimeError, ValueError, NotImplementedError) as error:
        raise DataError(
            getattr(dataset, "filename", folder),
            f"its pixels cannot be decoded ({error})",
            "export it uncompressed",
        ) from error
    given = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")  # None where absent or empty
    slope, intercept = (
        usual if value is None else float(value) for value, usual in zip(given, (1, 0), strict=True)
    )
    return pixels.astype(np.float32) * np.float32(slope) + np.float32(intercept)
