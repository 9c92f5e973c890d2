"""Headers of DICOM files: which files of a folder are slices, and which series they belong to."""

from __future__ import annotations

import fnmatch
import struct
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import UID

from partialseg.errors import DataError
from partialseg.files import visible
from partialseg.wording import counted

#: Two slices this close (mm) along their normal lie at the same place.
SAME_PLACE_MM = 0.02
#: Largest rows or columns of a slice; CT has 512 to 2048.
MAX_SIDE = 8192
#: How pydicom and its plug-ins fail on damaged files.
DAMAGED = (
    ArithmeticError,
    AttributeError,
    BytesLengthException,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
#: How the names of the segmentations end that `partialseg predict` writes, perhaps beside the slices of a scan.
SEGMENTATION_SUFFIX = ".seg.dcm"
#: How many folders below the given one are looked into for the one that holds the slices.
_MAX_DEPTH = 3
#: Fewer slices than this, across a longer series, are a scout.
_SCOUT_SLICES = 4
_SAME_DIRECTION = 1e-3
#: Longest quotation of an error, in characters.
_BRIEF = 200

_FIELDS = (
    "AcquisitionNumber",
    "BitsAllocated",
    "BitsStored",
    "Columns",
    "HighBit",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "Modality",
    "NumberOfFrames",
    "PerFrameFunctionalGroupsSequence",
    "PixelRepresentation",
    "PixelSpacing",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "Rows",
    "SamplesPerPixel",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SharedFunctionalGroupsSequence",
    "SliceThickness",
    "TemporalPositionIdentifier",
)
#: Where a multi-frame file keeps what other files keep at the top.
_FUNCTIONAL_GROUPS = {
    "ImageOrientationPatient": ("PlaneOrientationSequence", "ImageOrientationPatient"),
    "ImagePositionPatient": ("PlanePositionSequence", "ImagePositionPatient"),
    "ImageType": ("CTImageFrameTypeSequence", "FrameType"),
    "PixelSpacing": ("PixelMeasuresSequence", "PixelSpacing"),
    "SliceThickness": ("PixelMeasuresSequence", "SliceThickness"),
    "RescaleIntercept": ("PixelValueTransformationSequence", "RescaleIntercept"),
    "RescaleSlope": ("PixelValueTransformationSequence", "RescaleSlope"),
    "RescaleType": ("PixelValueTransformationSequence", "RescaleType"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
}


@dataclass(frozen=True)
class Slice:
    """What the header of a slice says; pixels are not read.

    Attributes:
        path: The file.
        frame: Index in a multi-frame file, else None.
        num_frames: How many the file holds.
        uid: SeriesInstanceUID.
        number: SeriesNumber; empty where absent.
        description: SeriesDescription; empty where absent.
        modality: "CT" and others.
        image_type: ImageType, in capitals.
        acquisition: AcquisitionNumber; empty where absent.
        time_point: TemporalPositionIdentifier; empty where absent.
        size: `(columns, rows)`.
        spacing_mm: Distance of neighbouring columns and of neighbouring rows; None where absent or no number
            (likewise below).
        thickness_mm: SliceThickness.
        orientation: Direction of growing column index and of growing row index in LPS+, six numbers.
        position: World position (mm, LPS+) of the first voxel.
        slope: RescaleSlope; 1 where absent or empty.
        intercept: RescaleIntercept; 0 where absent or empty.
        rescale_type: RescaleType; empty where absent.
        transfer_syntax: UID of the encoding; empty where absent.
        bits_allocated: BitsAllocated.
        is_signed: PixelRepresentation.
        bits_stored: BitsStored.
        high_bit: HighBit; `bits_stored - 1` where absent.
    """

    path: Path
    frame: int | None
    num_frames: int
    uid: str
    number: str
    description: str
    modality: str
    image_type: tuple[str, ...]
    acquisition: str
    time_point: str
    size: tuple[int, int]
    spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    rescale_type: str
    transfer_syntax: str
    bits_allocated: int
    is_signed: bool
    bits_stored: int
    high_bit: int

    @property
    def encoding(self) -> str:
        """Name of the transfer syntax."""
        return UID(self.transfer_syntax, validation_mode=pydicom.config.IGNORE).name

    @property
    def is_compressed(self) -> bool:
        """Whether the pixels are encoded, and not plain numbers (in a file that may be deflated as a whole)."""
        syntax = UID(self.transfer_syntax, validation_mode=pydicom.config.IGNORE)
        return syntax.is_transfer_syntax and syntax.is_encapsulated

    @property
    def missing(self) -> tuple[str, ...]:
        """The fields that do not say where the slice lies."""
        fields = {
            "PixelSpacing": self.spacing_mm,
            "ImageOrientationPatient": self.orientation,
            "ImagePositionPatient": self.position,
        }
        return tuple(name for name, value in fields.items() if value is None)

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the slice (LPS+)."""
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def plane(self) -> str:
        """The plane that the slice is closest to."""
        return ("sagittal", "coronal", "axial")[int(np.abs(self.normal).argmax())]


@dataclass(frozen=True)
class Series:
    """Slices that belong together.

    Attributes:
        uid: SeriesInstanceUID; with `#1`, `#2`, ... behind it where several series of slices share one.
        number: SeriesNumber; empty where absent.
        description: SeriesDescription; with what tells them apart behind it where several share a UID, such
            as "Abdomen (acquisition 2)".
        slices: At least one, not sorted.
    """

    uid: str
    number: str
    description: str
    slices: tuple[Slice, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """Columns, rows and slices."""
        return *self.slices[0].size, len(self.slices)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance (mm) of columns, of rows and, on average, of slices; 0 where the headers do not say."""
        first = next((one for one in self.slices if not one.missing), None)
        if first is None:
            return 0.0, 0.0, 0.0
        along = [float(np.dot(one.position, first.normal)) for one in self.slices if not one.missing]
        step = (max(along) - min(along)) / (len(along) - 1) if len(along) > 1 else first.thickness_mm or 0.0
        return *first.spacing_mm, step

    def __str__(self) -> str:
        columns, rows, count = self.size
        number = self.number or "without number"
        return f'{number} "{self.description}" ({counted(count, "slice")} of {columns} x {rows})'


def list_series(folder: str | Path) -> list[Series]:
    """Tell the series in a folder apart, from the headers alone.

    A series is what shares a SeriesInstanceUID, size, voxel size, orientation and kind (the first three
    values of ImageType); where positions repeat, also AcquisitionNumber, TemporalPositionIdentifier or the
    whole ImageType, if that tells the repeats apart. Files that are not DICOM, DICOMDIR, and DICOM files that
    are no slices (reports, segmentations, colour pictures, slices without a position) are passed over; so are
    scouts: localizers, and up to three slices that stand across a longer series.

    Args:
        folder: Holds one file per slice, under any names, or multi-frame files. Folders in it are not looked
            into, unless it holds no DICOM file and one folder below it does.

    Returns:
        The CT series, by number; at least one.

    Raises:
        DataError: If there is none, or a DICOM file cannot be read.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> path = get_testdata_file("dicomdirtests/98892001/CT5N/2062")
        >>> [str(series) for series in list_series(Path(path).parent)]
        ['5 "SmartScore - Gated 0.5 sec" (5 slices of 16 x 16)']
    """
    folder = Path(folder)
    slices, passed_over = _read_headers(_slice_folder(folder), "CT")
    by_uid: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        by_uid[one.uid].append(one)
    found = [series for members in by_uid.values() for series in _series_of_uid(members)]
    if not found:
        raise _no_slices(folder, "slices of a CT", passed_over)
    longest = max(found, key=lambda series: len(series.slices))
    found = [series for series in found if not _is_scout(series, longest)]
    return sorted(found, key=lambda series: (series.number.zfill(12), series.uid))


def holds_dicom(folder: str | Path) -> bool:
    """Whether `list_series` would find DICOM files, of whatever kind but our own, in a folder or below it.

    Raises:
        DataError: If several folders below it hold some.
    """
    return any(map(_may_be_slice, _entries(_slice_folder(Path(folder)))))


def choose_series(folder: str | Path, series: str | None = None) -> Series:
    """The one series of a folder that is meant.

    Args:
        folder: As in `list_series`.
        series: A pattern (`*`, `?`, case does not matter) of its description, or its number, or its `uid`.

    Raises:
        DataError: If there are several and none is chosen, or the choice fits none or several.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> path = get_testdata_file("dicomdirtests/98892001/CT5N/2062")
        >>> choose_series(Path(path).parent, "*gated*").number
        '5'
    """
    found = list_series(folder)
    chosen = [one for one in found if series is None or _is_meant(one, series)]
    if len(chosen) == 1:
        return chosen[0]
    listed = "; ".join(str(one) for one in chosen or found)
    count = f"{len(found)} DICOM series"
    if series is not None:
        count = f"{len(chosen) or 'no'} DICOM series that {series!r} fits, among {len(found)}"
    raise DataError(
        folder,
        f"holds {count}, expected one: {listed}",
        'choose one by `files.series: "pattern"` in the card: its description, number or UID',
    )


def all_slices(folder: str | Path) -> Series:
    """Every slice of a folder as one series, of whatever modality, kind and UID it is.

    Raises:
        DataError: If there is no slice, or they differ in size, voxel size or orientation.
    """
    folder = Path(folder)
    slices, passed_over = _read_headers(_slice_folder(folder), None)
    if not slices:
        raise _no_slices(folder, "slices", passed_over)
    first = next(one for one in slices if not one.missing)
    for one in slices:
        if not one.missing and not _same_grid(one, first):
            raise DataError(
                one.path,
                f"differs from {first.path.name} in size, voxel size or orientation, expected the same",
                "keep the slices of one volume in the folder",
            )
    return Series(first.uid, first.number, first.description, tuple(slices))


def _no_slices(folder: Path, what: str, passed_over: Counter[str]) -> DataError:
    others = ", ".join(f"{count} {reason}" for reason, count in passed_over.items())
    return DataError(
        folder, f"holds no DICOM {what} ({others or 'no files'})", "give the folder that holds the slices"
    )


def _is_meant(series: Series, wanted: str) -> bool:
    """Whether `wanted` is the series' UID or number, or a pattern of its description."""
    if wanted in (series.uid, series.number):
        return True
    return fnmatch.fnmatchcase(series.description.lower(), wanted.lower())


def _slice_folder(folder: Path, depth: int = 0) -> Path:
    """The folder itself, or the one folder below it that holds DICOM files where it holds none."""
    entries = _entries(folder)
    below = [path for path in entries if path.is_dir()]
    if depth == _MAX_DEPTH or not below or any(map(_may_be_slice, entries)):
        return folder
    found = {path: _slice_folder(path, depth + 1) for path in below}
    holding = {top: path for top, path in found.items() if any(map(_may_be_slice, _entries(path)))}
    if len(holding) > 1:
        names = ", ".join(path.name for path in list(holding)[:5])
        raise DataError(
            folder, f"{len(holding)} folders in it hold DICOM files ({names})", "give one of them"
        )
    return next(iter(holding.values()), folder)


def _entries(folder: Path) -> list[Path]:
    try:
        return visible(folder)
    except OSError as error:
        raise DataError(folder, f"cannot be listed ({error})", "give a folder of DICOM slices") from error


def _may_be_slice(path: Path) -> bool:
    return is_dicom(path) and not path.name.endswith(SEGMENTATION_SUFFIX)


def is_dicom(path: Path) -> bool:
    """Whether a file says that it is DICOM; the index of a DICOM medium (DICOMDIR) does not count."""
    if not path.is_file() or path.name.upper() == "DICOMDIR":
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _read_headers(folder: Path, modality: str | None) -> tuple[list[Slice], Counter[str]]:
    """Every slice of the folder, and how many files were passed over for what reason."""
    slices: list[Slice] = []
    passed_over: Counter[str] = Counter()
    for path in _entries(folder):
        if not path.is_file():
            continue
        try:
            # pydicom warns of every odd header; what matters is checked here, and said once.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_FIELDS))
                reason = _no_slice(dataset, modality)
                if reason:
                    passed_over[reason] += 1
                else:
                    slices += _slices_of_file(dataset, path)
        except InvalidDicomError:
            passed_over["not DICOM"] += 1
        except DataError:
            raise
        except DAMAGED as error:
            raise DataError(
                path, f"cannot be read as DICOM ({brief(error)})", "export the series again"
            ) from error
    for uid in {one.uid for one in slices} - {one.uid for one in slices if not one.missing}:
        # Screenshots, dose reports. One slice without a position among others with one is an error later.
        passed_over["without position, orientation or voxel size"] += sum(one.uid == uid for one in slices)
        slices = [one for one in slices if one.uid != uid]
    return slices, passed_over


def _no_slice(dataset: pydicom.Dataset, modality: str | None) -> str:
    """Why a DICOM file is no slice; empty where it is one."""
    if modality is not None and dataset.get("Modality") != modality:
        return f"not of modality {modality}"
    if "Rows" not in dataset or "Columns" not in dataset:
        return "without pixels"
    if int(dataset.get("SamplesPerPixel") or 1) != 1:
        return "in colour"
    if modality is not None and "LOCALIZER" in _texts(dataset.get("ImageType")):
        return "of a scout"
    return ""


def _slices_of_file(dataset: pydicom.Dataset, path: Path) -> list[Slice]:
    """The slices of a file: one, or one for each frame."""

    def top(name: str) -> Any:
        return dataset.file_meta.get(name) if name == "TransferSyntaxUID" else dataset.get(name)

    count = int(dataset.get("NumberOfFrames") or 1)
    frames = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames is None:
        if count != 1:
            raise DataError(
                path,
                f"holds {count} frames that say nothing of their positions (PerFrameFunctionalGroupsSequence)",
                "export the series as one file per slice",
            )
        return [_slice(top, path, None)]
    if len(frames) != count:
        raise DataError(
            path, f"says that it holds {count} frames, and describes {len(frames)}", "export the series again"
        )
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]

    def lookup(frame: pydicom.Dataset) -> Callable[[str], Any]:
        def get(name: str) -> Any:
            group, inner = _FUNCTIONAL_GROUPS.get(name, ("", ""))
            for functional_groups in (frame, shared):
                items = functional_groups.get(group) if group else None
                if items and items[0].get(inner) is not None:
                    return items[0].get(inner)
            return top(name)

        return get

    return [_slice(lookup(frame), path, index) for index, frame in enumerate(frames)]


def _slice(get: Callable[[str], Any], path: Path, frame: int | None) -> Slice:
    """One slice; `get` looks up a field of its header."""
    size = int(get("Columns") or 0), int(get("Rows") or 0)
    if not all(0 < side <= MAX_SIDE for side in size):
        raise DataError(
            path,
            f"says that it has {size[0]} columns and {size[1]} rows, expected 1 to {MAX_SIDE}",
            "export it again",
        )
    spacing, thickness = _numbers(get("PixelSpacing"), 2), _numbers(get("SliceThickness"), 1)
    slope, intercept = get("RescaleSlope"), get("RescaleIntercept")
    stored = int(get("BitsStored") or 0)
    return Slice(
        path=path,
        frame=frame,
        num_frames=int(get("NumberOfFrames") or 1),
        uid=_text(get("SeriesInstanceUID")),
        number=_text(get("SeriesNumber")),
        description=" ".join(_text(get("SeriesDescription")).split()),
        modality=_text(get("Modality")),
        image_type=_texts(get("ImageType")),
        acquisition=_text(get("AcquisitionNumber")),
        time_point=_text(get("TemporalPositionIdentifier")),
        size=size,
        # In DICOM the distance of rows comes first.
        spacing_mm=spacing[::-1] if spacing and min(spacing) > 0 else None,
        thickness_mm=thickness[0] if thickness and thickness[0] > 0 else None,
        orientation=_directions(_numbers(get("ImageOrientationPatient"), 6)),
        position=_numbers(get("ImagePositionPatient"), 3),
        slope=1.0 if slope in (None, "") else (_numbers(slope, 1) or (None,))[0],
        intercept=0.0 if intercept in (None, "") else (_numbers(intercept, 1) or (None,))[0],
        rescale_type=_text(get("RescaleType")).upper(),
        transfer_syntax=_text(get("TransferSyntaxUID")),
        bits_allocated=int(get("BitsAllocated") or 0),
        is_signed=bool(get("PixelRepresentation")),
        bits_stored=stored,
        high_bit=int(get("HighBit") if get("HighBit") is not None else stored - 1),
    )


def brief(error: Exception) -> str:
    """What an exception of pydicom says, without the bytes that it may quote at length."""
    text = " ".join(str(error).split())
    return text if len(text) <= _BRIEF else text[:_BRIEF] + "…"


def _text(value: Any) -> str:
    # No value that is read here may be longer in DICOM; a damaged file's may.
    return "" if value is None else str(value).strip()[:64]


def _texts(value: Any) -> tuple[str, ...]:
    values = [value] if value is None or isinstance(value, str) else value
    return tuple(_text(one).upper() for one in values if one is not None)


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """`count` finite numbers; None where it is something else."""
    if value is None or np.size(value) != count:
        return None
    try:
        numbers = np.array(value, dtype=float).reshape(count)
    except (TypeError, ValueError):
        return None
    return tuple(numbers.tolist()) if np.isfinite(numbers).all() else None


def _directions(orientation: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Two unit vectors at a right angle; None where they are not."""
    if orientation is None:
        return None
    pair = np.reshape(orientation, (2, 3))
    return orientation if np.allclose(pair @ pair.T, np.eye(2), atol=_SAME_DIRECTION) else None


def _series_of_uid(slices: list[Slice]) -> list[Series]:
    """The series of slices that share a SeriesInstanceUID; at least one slice has a geometry."""
    parts: list[list[Slice]] = []
    for one in slices:
        if not one.missing:
            alike = next((part for part in parts if _alike(part[0], one)), None)
            if alike is None:
                parts.append(alike := [])
            alike.append(one)
    # A slice that does not say where it lies is reported when the others of its series are read.
    max(parts, key=len).extend(one for one in slices if one.missing)
    parts = [piece for part in parts for piece in _split_repeats(part)]
    several = len(parts) > 1
    return [
        Series(
            uid=part[0].uid + (f"#{index}" if several else ""),
            number=part[0].number,
            description=" ".join([part[0].description, *_difference(part, parts)]).strip(),
            slices=tuple(part),
        )
        for index, part in enumerate(parts, start=1)
    ]


def _alike(one: Slice, other: Slice) -> bool:
    """Whether two slices may be slices of one volume."""
    return one.image_type[:3] == other.image_type[:3] and _same_grid(one, other)


def _same_grid(one: Slice, other: Slice) -> bool:
    return (
        one.size == other.size
        and np.allclose(one.spacing_mm, other.spacing_mm, rtol=0, atol=1e-4)
        and np.allclose(one.orientation, other.orientation, rtol=0, atol=_SAME_DIRECTION)
    )


def _split_repeats(slices: list[Slice]) -> list[list[Slice]]:
    """Slices that lie at the same places, told apart by the first field that does so; else as they are."""
    if not _repeats(slices):
        return [slices]
    for field in ("acquisition", "time_point", "image_type"):
        groups: dict[Any, list[Slice]] = defaultdict(list)
        for one in slices:
            groups[getattr(one, field)].append(one)
        for value in [value for value, group in groups.items() if all(one.missing for one in group)]:
            # No series of its own; it is reported when the others are read.
            lost = groups.pop(value)
            max(groups.values(), key=len).extend(lost)
        if len(groups) > 1 and not any(map(_repeats, groups.values())):
            # One slice of its own is a copy of another, not a series.
            return list(groups.values()) if min(map(len, groups.values())) > 1 else [slices]
    return [slices]


def _repeats(slices: list[Slice]) -> bool:
    placed = [one for one in slices if not one.missing]
    along = np.sort([np.dot(one.position, placed[0].normal) for one in placed])
    return bool((np.diff(along) < SAME_PLACE_MM).any())


def _difference(part: list[Slice], parts: list[list[Slice]]) -> list[str]:
    """What tells one series from others of the same UID, in brackets; nothing where it is alone."""

    def traits(slices: Iterable[Slice]) -> dict[str, str]:
        first = next(one for one in slices if not one.missing)
        columns, rows = first.spacing_mm
        return {
            "plane": first.plane,
            "image type": " ".join(first.image_type).lower(),
            "size": f"{first.size[0]} x {first.size[1]}",
            "spacing": f"{columns:g} x {rows:g} mm",
            "acquisition": first.acquisition and f"acquisition {first.acquisition}",
            "time point": first.time_point and f"time point {first.time_point}",
        }

    everyone, own = [traits(other) for other in parts], traits(part)
    told = [text for name, text in own.items() if text and any(other[name] != text for other in everyone)]
    return [f"({', '.join(told)})"] if told else []


def _is_scout(series: Series, longest: Series) -> bool:
    """Whether these are a few slices that stand across a longer series."""
    first, other = (next(one for one in s.slices if not one.missing) for s in (series, longest))
    few = len(series.slices) < min(_SCOUT_SLICES, len(longest.slices))
    return few and abs(float(first.normal @ other.normal)) < 0.7
