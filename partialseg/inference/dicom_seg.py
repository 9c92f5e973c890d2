"""A label map as DICOM segmentation beside the series that it was made of, for archives and viewers of a clinic.

One binary segment for each organ that was found, numbered in the order of the classes, on the slices of the series
itself. What organs are called is in `partialseg.data.organ_codes`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pydicom

from partialseg import __version__
from partialseg.data.classes import organ_colours
from partialseg.data.dicom import stacked_slices
from partialseg.data.dicom_series import DAMAGED, Slice, brief
from partialseg.data.organ_codes import PRIVATE_SCHEME, Code, is_private, organ_code
from partialseg.data.volumes import Volume
from partialseg.errors import DataError
from partialseg.files import atomic_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    import highdicom

#: What a segmentation says of its scan to be found beside it.
_IDENTITY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
#: What a scan may leave empty, but need not have at all.
_MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
#: Added to the number of the series, so that the segmentation comes after it.
_SERIES_NUMBER_OFFSET = 1000
_LARGEST_INTEGER = 2**31 - 1
#: Of a name in DICOM.
_NAME_LENGTH = 64


@dataclass(frozen=True)
class SourceSeries:
    """The series that a segmentation is about.

    Attributes:
        folder: Where it lies.
        slices: In the order of the volume that was read.
        affine: 4 x 4, of `(column, row, slice)` to world millimetres (RAS+).
        headers: One for each file, without pixels: one for each slice, in that order, or a multi-frame file's.
    """

    folder: Path
    slices: tuple[Slice, ...]
    affine: np.ndarray
    headers: tuple[pydicom.Dataset, ...]


def read_source_series(folder: str | Path, series: str | None = None) -> SourceSeries:
    """Read the headers of a series, and see whether a segmentation can refer to it.

    Args:
        folder: Holds the slices.
        series: Which series, where there are several.

    Raises:
        DataError: If it is no DICOM series, its slices are not told apart by identifiers, or they are frames of
            several files or a part of those of one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(
            folder,
            "is no folder of DICOM slices, and a DICOM segmentation refers to these",
            "give the DICOM series, or predict it without --dicom-seg",
        )
    slices, affine = stacked_slices(folder, series)
    paths = list(dict.fromkeys(one.path for one in slices))
    if slices[0].frame is not None and (len(paths) > 1 or len(slices) != slices[0].num_frames):
        raise DataError(
            folder,
            f"{len(slices)} slices of it are frames of {len(paths)} files with {slices[0].num_frames} frames "
            "each, and a DICOM segmentation can refer to all frames of one file alone",
            "predict it without --dicom-seg",
        )
    step_mm = float(nib.affines.voxel_sizes(affine)[2])
    headers = tuple(_with_true_spacing(_header(path), step_mm) for path in paths)
    return SourceSeries(folder, tuple(slices), affine, headers)


def write_dicom_seg(
    path: Path, labels: np.ndarray, like: Volume, source: SourceSeries, organs: Mapping[str, int], model: str
) -> None:
    """Write a DICOM segmentation, atomically.

    Args:
        path: The file to write.
        labels: uint8 `(depth, height, width)`, canonical axes, on the grid of `like`.
        like: The volume that was read from the series.
        source: The series.
        organs: The value of each organ that gets a segment; one that no voxel has may not be among them.
        model: Says which network it was; what is longer than a name in DICOM is cut off.

    Raises:
        DataError: If the headers of the series cannot be taken over; nothing is written then.
        OSError: If the file cannot be written.
        ValueError: If there is no organ, or one without a voxel.
    """
    table = np.zeros(256, dtype=np.uint8)
    table[list(organs.values())] = np.arange(1, len(organs) + 1)
    segments = table[_in_slices(labels, source)]
    found = np.bincount(segments.ravel(), minlength=len(organs) + 1)[1:]
    if not organs or not found.all():
        raise ValueError(f"expected a voxel of each organ, found {dict(zip(organs, found, strict=True))}")
    try:
        with atomic_path(path) as temporary, _quiet():
            _segmentation(segments, source, tuple(organs), _name(model)).save_as(temporary)
    except OSError:
        raise  # of the place that is written to, not of the series
    except DAMAGED as error:  # of the headers some are looked at when they are written
        raise DataError(
            like.source.path,
            f"its headers cannot be taken over into a DICOM segmentation ({brief(error)})",
            "export the series again, or predict it without --dicom-seg",
        ) from error


def _segmentation(
    segments: np.ndarray, source: SourceSeries, organs: tuple[str, ...], model: str
) -> highdicom.seg.Segmentation:
    """The data set, from segment numbers `(slices, rows, columns)` in the order of the headers or frames."""
    import highdicom

    first = source.headers[0]
    has_other_letters = not all(name.isascii() for name in (model, *organs))
    if has_other_letters:
        first.decode()  # into text; what stays bytes would be written as they are
    number = int(first.get("SeriesNumber") or 0) + _SERIES_NUMBER_OFFSET
    segmentation = highdicom.seg.Segmentation(
        source_images=source.headers,
        pixel_array=segments,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_descriptions(organs),
        series_instance_uid=highdicom.UID(),
        series_number=min(number, _LARGEST_INTEGER),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="partialseg",
        manufacturer_model_name=model,
        software_versions=__version__,
        device_serial_number=model,
        content_label="ORGANS",
        content_description="Organs, segmented by a network",
        series_description="partialseg: organs",
    )
    if has_other_letters:
        segmentation.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: that of the series may not have the letters
    if any(is_private(organ_code(organ)) for organ in organs):
        segmentation.CodingSchemeIdentificationSequence = [_private_scheme()]
    return segmentation


def _descriptions(organs: tuple[str, ...]) -> list[highdicom.seg.SegmentDescription]:
    """One segment for each organ: name, codes, colour, and that a network made it."""
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="partialseg", family=codes.cid7162.ArtificialIntelligence, version=__version__
    )
    colours = organ_colours(organs)
    described = []
    for number, organ in enumerate(organs, start=1):
        code = organ_code(organ)
        segment = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=_name(organ),
            segmented_property_category=_concept(code.category),
            segmented_property_type=_concept(code.kind),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            anatomic_regions=None if code.region is None else [_concept(code.region)],
            display_color=highdicom.color.CIELabColor.from_rgb(*_rgb(colours[organ])),
        )
        if code.side is not None:
            kind = segment.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [_concept(code.side)]
        described.append(segment)
    return described


def _in_slices(labels: np.ndarray, source: SourceSeries) -> np.ndarray:
    """A label map in canonical axes as `(slices, rows, columns)`, in the order of the headers or frames."""
    canonical = np.array([[0, 1], [1, 1], [2, 1]])
    back = nib.orientations.ornt_transform(canonical, nib.io_orientation(source.affine))
    slices = nib.apply_orientation(labels.T, back).T
    frames = [one.frame for one in source.slices]
    return slices if frames[0] is None else slices[np.argsort(frames)]


def _header(path: Path) -> pydicom.Dataset:
    """A header without pixels, in which all is there that a segmentation takes over."""
    try:
        with _quiet():
            header = pydicom.dcmread(path, stop_before_pixels=True)
            missing = [name for name in _IDENTITY if not header.get(name)]
            for name in _MAY_BE_EMPTY:
                if name not in header:
                    setattr(header, name, "")
    except DAMAGED as error:
        raise DataError(
            path, f"cannot be read as DICOM ({brief(error)})", "export the series again"
        ) from error
    if missing:
        raise DataError(
            path,
            f"{', '.join(missing)} not given, by which a DICOM segmentation refers to its scan",
            "export the series with its identifiers, or predict it without --dicom-seg",
        )
    return header


def _with_true_spacing(header: pydicom.Dataset, step_mm: float) -> pydicom.Dataset:
    """The header with the distance that the positions of the slices have; others are told now and then.

    A segmentation without its empty slices is put together by that distance.
    """
    shared = header.get("SharedFunctionalGroupsSequence")
    measures = (
        shared[0].PixelMeasuresSequence[0] if shared and "PixelMeasuresSequence" in shared[0] else header
    )
    measures.SpacingBetweenSlices = round(step_mm, 6)
    if not measures.get("SliceThickness"):
        measures.SliceThickness = round(step_mm, 6)
    return header


def _concept(code: Code) -> highdicom.sr.CodedConcept:
    import highdicom

    return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _private_scheme() -> pydicom.Dataset:
    """Says whose the codes are that are in no other scheme."""
    scheme = pydicom.Dataset()
    scheme.CodingSchemeDesignator = PRIVATE_SCHEME
    scheme.CodingSchemeName = "Classes of partialseg"
    scheme.CodingSchemeResponsibleOrganization = "partialseg"
    return scheme


def _name(text: str) -> str:
    r"""What DICOM takes as a name: no backslash, which parts two values, and 64 characters; here bytes of UTF-8.

    Example:
        >>> print(_name("runs\\fold_0"))
        runs_fold_0
    """
    name = "".join("_" if one == "\\" or not one.isprintable() else one for one in text)
    return name.encode(errors="replace")[:_NAME_LENGTH].decode(errors="ignore")


def _rgb(colour: str) -> tuple[int, int, int]:
    """Of `#rrggbb`."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what pydicom and highdicom tell of every odd header; nobody who predicts can do anything about it."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
