"""What is measured of one raw case, and what is unusual in it; each of its files is read once."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from partialseg.data.boxes import value_boxes
from partialseg.data.cards import Card, RawCase
from partialseg.data.checks import Examined, examine, label_values
from partialseg.data.classes import organ_colours
from partialseg.data.duplicates import NO_CONTENT, Content, content_of
from partialseg.data.intensity import Intensity, intensity_notes, intensity_problem, organ_notes, sampled
from partialseg.data.labels import ignored_value
from partialseg.data.raw_files import extent
from partialseg.data.relabel import prepared_values, to_prepared_values
from partialseg.data.thumbnails import thumbnail
from partialseg.data.volumes import Volume
from partialseg.errors import DataError, first_of

#: Voxel sizes in mm beyond which a scan is unusual.
USUAL_SPACING_MM = (0.2, 12.0)
#: Fewer slices than this are hardly a volume.
FEW_SLICES = 10
#: Axes that are turned further than this from the patient's are unusual.
OBLIQUE_DEGREES = 15.0
#: A piece of an organ that lies 30 mm or more from the rest is noted if it is at least this large.
PIECE_ML = 0.5
_BLOCK_MM = 10.0
_BASE_BYTES, _BYTES_PER_VOXEL = 3e8, 14
#: Which half of the body is the organ's own (1: the right one), and how far beyond the middle of the body the
#: organ's middle must lie to be noted.
_HALF = {"liver": 1, "spleen": -1}
_HALF_MARGIN_MM = 15.0


@dataclass(frozen=True)
class InspectTask:
    """Everything that is needed to inspect one case.

    Attributes:
        card: Its dataset's card.
        raw: Its files.
        classes: Background, then the organs.
        thumbnail: Where to write its picture (PNG); None for nowhere.
    """

    card: Card
    raw: RawCase
    classes: tuple[str, ...]
    thumbnail: Path | None = None


@dataclass(frozen=True)
class InspectedCase:
    """What one raw case holds; fields that could not be measured are empty.

    Attributes:
        dataset, name: Which case.
        shape: `(depth, height, width)` of the image in canonical axes.
        spacing_mm: `(z, y, x)`.
        axes: Directions in which the file's own axes grow, as in "LPS".
        intensity: Figures of the image.
        label_type: Data type of the label map's file.
        values: Label values that are there, 0 included.
        voxels: Number of voxels of each organ that is annotated in the case; 0 where it is absent, or where
            its side is not told. Empty if there is a problem.
        volumes_ml: The same in mL.
        unsure_ml: Volume that is one of several organs.
        cut_off: Organs that reach the first or the last slice.
        image, label: Content of the image and of the label map.
        notes: What was noticed.
        problems: What is wrong.
        no_picture: Why its picture could not be written; None where that did not fail.
    """

    dataset: str
    name: str
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    axes: str = ""
    intensity: Intensity | None = None
    label_type: str = ""
    values: tuple[int, ...] = ()
    voxels: dict[str, int] = dataclasses.field(default_factory=dict)
    volumes_ml: dict[str, float] = dataclasses.field(default_factory=dict)
    unsure_ml: float = 0.0
    cut_off: tuple[str, ...] = ()
    image: Content = NO_CONTENT
    label: Content = NO_CONTENT
    notes: tuple[str, ...] = ()
    problems: tuple[DataError, ...] = ()
    no_picture: str | None = None


def inspect_case(task: InspectTask) -> InspectedCase:
    """Read one raw case and measure it."""
    found = examine(task.card, task.raw)
    case = InspectedCase(task.raw.dataset, task.raw.name, intensity=found.intensity, problems=found.problems)
    if found.image is not None:
        case = _with_image(case, found.image)
    if found.label is not None:
        case = _with_label(case, found.label)
    if not case.problems:
        case = _with_organs(case, task, found)
    if task.thumbnail is not None and (found.image is not None or found.label is not None):
        case = dataclasses.replace(case, no_picture=_write_thumbnail(task, found))
    return case


def memory_needed(task: InspectTask) -> int:
    """Bytes that a worker takes at most to inspect a case, from the header of its scan.

    It is 0.3 GB for Python and its libraries, and 14 bytes for each voxel: 4 GB for 512 x 512 x 1000 voxels.
    """
    return int(_BASE_BYTES + _BYTES_PER_VOXEL * extent(task.raw.image).voxels)


def place_notes(volume: Volume) -> tuple[str, ...]:
    """What is unusual in a volume's grid: voxel sizes, number of slices, axes.

    Example:
        >>> from partialseg.data.volumes import Source
        >>> array, affine = np.zeros((4, 40, 40)), np.diag([0.8, 0.8, 15, 1])
        >>> place_notes(Volume(array, affine, Source(Path("ct.nii"), (40, 40, 4), affine, np.zeros((3, 2)))))
        ('voxels of 15 x 0.8 x 0.8 mm (z, y, x)', '4 slices alone')
    """
    notes = []
    low, high = USUAL_SPACING_MM
    if min(volume.spacing_mm) < low or max(volume.spacing_mm) > high:
        notes.append(f"voxels of {' x '.join(f'{size:.3g}' for size in volume.spacing_mm)} mm (z, y, x)")
    if 1 in volume.array.shape:
        notes.append("a single slice")
    elif len(volume.array) < FEW_SLICES:
        notes.append(f"{len(volume.array)} slices alone")
    cosines = np.abs(np.diag(volume.affine[:3, :3])) / np.array(volume.spacing_mm[::-1])
    degrees = float(np.degrees(np.arccos(np.clip(cosines.min(), 0, 1))))
    if degrees > OBLIQUE_DEGREES:
        notes.append(f"its axes are turned by {degrees:.0f} degrees against the patient's")
    if np.array_equal(volume.source.affine, np.eye(4)):
        notes.append("its affine is the identity: voxel sizes and directions may have been lost")
    return tuple(notes)


def pieces_ml(mask: np.ndarray, spacing_mm: Sequence[float]) -> list[float]:
    """Volumes of the parts of a mask that lie 30 mm or more apart, the largest first.

    Looked at are blocks of about 10 mm: blocks belong together where at most two empty ones lie between them.

    Args:
        mask: bool, 3D.
        spacing_mm: Voxel size in the same order of axes.

    Example:
        >>> mask = np.zeros((60, 10, 10), dtype=bool)
        >>> mask[:10] = mask[55:] = True
        >>> pieces_ml(mask, (2.0, 2.0, 2.0))
        [8.0, 4.0]
    """
    blocks, most = mask.view(np.uint8), 1
    for axis, size in enumerate(spacing_mm):
        edge = max(1, round(_BLOCK_MM / size))
        most *= min(edge, mask.shape[axis])
        starts = np.arange(0, mask.shape[axis], edge)
        # In the smallest type that can hold the sums: to convert each voxel would take far longer than to add it.
        blocks = np.add.reduceat(blocks, starts, axis=axis, dtype=np.min_scalar_type(most))
    near = np.ones((3, 3, 3), dtype=bool)
    padded = np.pad(blocks, 1)
    parts, count = ndimage.label(ndimage.binary_dilation(padded > 0, near), near)
    voxels = ndimage.sum_labels(padded, parts, np.arange(1, count + 1))
    return sorted((float(number) * float(np.prod(spacing_mm)) / 1000 for number in voxels), reverse=True)


def _with_image(case: InspectedCase, image: Volume) -> InspectedCase:
    notes = image.notes + place_notes(image)
    if case.intensity is not None and intensity_problem(case.intensity) is None:
        notes += intensity_notes(case.intensity)
    return dataclasses.replace(
        case,
        shape=image.array.shape,
        spacing_mm=image.spacing_mm,
        axes="".join(nib.aff2axcodes(image.source.affine)),
        image=content_of(image.array),
        notes=case.notes + notes,
    )


def _with_label(case: InspectedCase, label: Volume) -> InspectedCase:
    stored = label.source.dtype
    notes = tuple(f"label map: {note}" for note in label.notes)
    if stored.startswith("float"):
        notes += (f"label map: stored as {stored}, though its values are whole numbers",)
    return dataclasses.replace(
        case,
        label_type=stored,
        values=tuple(label_values(label.array)),
        label=content_of(label.array),
        notes=case.notes + notes,
    )


def _with_organs(case: InspectedCase, task: InspectTask, found: Examined) -> InspectedCase:
    """Measure the organs that are annotated in the case."""
    image, label, classes = found.image, found.label, task.classes
    try:
        values, notes = to_prepared_values(label, task.card, classes, task.raw.name)
    except DataError as error:
        return dataclasses.replace(case, problems=(error,))
    table = prepared_values(task.card, classes)
    counts = sum(np.bincount(plane.ravel(), minlength=len(table)) for plane in values)
    voxel_ml = float(np.prod(label.spacing_mm)) / 1000
    annotated = [organ for organ in classes if organ in task.card.annotated_in(task.raw.name)]
    voxels = {organ: int(counts[classes.index(organ)]) for organ in annotated}
    unsure = [row.sum() > 1 and not row[0] for row in table]
    present = {organ: classes.index(organ) for organ in annotated if voxels[organ]}
    notes += _absence_notes(annotated, table[counts > 0], classes)
    looks = _organ_notes(image, values, present)
    if any("left and right" in note for note in notes):  # told by the order of the organs
        looks = tuple(note for note in looks if "left and right" not in note)
    notes += looks
    seen = np.flatnonzero((values != ignored_value(classes)).any(axis=(1, 2)))
    ends = values[seen[[0, -1]]] if len(seen) else values[:0]
    return dataclasses.replace(
        case,
        voxels=voxels,
        volumes_ml={organ: count * voxel_ml for organ, count in voxels.items()},
        unsure_ml=float(counts[unsure].sum() * voxel_ml),
        cut_off=tuple(organ for organ, value in present.items() if (ends == value).any()),
        notes=case.notes + notes,
    )


def _absence_notes(annotated: Sequence[str], rows: np.ndarray, classes: Sequence[str]) -> tuple[str, ...]:
    """Annotated organs without a voxel, alone or in a set; `rows` are the sets that are there."""
    here = rows[rows[:, 0] == 0].any(axis=0)
    absent = [organ for organ in annotated if not here[classes.index(organ)]]
    if absent and len(absent) == len(annotated):
        return ("nothing is labelled: no voxel of any organ that is annotated",)
    return tuple(f"no {organ}" for organ in absent)


def _organ_notes(image: Volume, values: np.ndarray, present: dict[str, int]) -> tuple[str, ...]:
    """Organs that do not look like tissue, that lie in the wrong half of the body, or are in pieces."""
    some_hu, some_values = sampled(image.array), sampled(values)
    inside = {organ: some_values == value for organ, value in present.items()}
    step_mm = image.spacing_mm[2] * image.array.shape[2] / some_hu.shape[2]
    return (
        *organ_notes({organ: some_hu[mask] for organ, mask in inside.items()}),
        *_half_notes(inside, some_hu, step_mm),
        *piece_notes(values, present, image.spacing_mm).values(),
    )


def _half_notes(inside: dict[str, np.ndarray], hu: np.ndarray, step_mm: float) -> list[str]:
    """Liver or spleen in the wrong half of the body, for datasets that have only one of them."""
    body = _mean_x(hu > -300)
    notes = []
    for organ, side in _HALF.items():
        mask = inside.get(organ)
        if mask is not None and mask.any() and side * (_mean_x(mask) - body) * step_mm < -_HALF_MARGIN_MM:
            half = "left" if side > 0 else "right"
            notes.append(f"{organ} lies in the {half} half of the body: left and right may be swapped")
    return notes


def _mean_x(mask: np.ndarray) -> float:
    profile = np.count_nonzero(mask, axis=(0, 1))
    return float(profile @ np.arange(len(profile)) / max(1, profile.sum()))


def piece_notes(
    values: np.ndarray, present: Mapping[str, int], spacing_mm: Sequence[float]
) -> dict[str, str]:
    """Say of which organs a piece lies far from the rest.

    Args:
        values: A label map.
        present: The value of each organ that is there.
        spacing_mm: Voxel size in the same order of axes.
    """
    boxes = value_boxes(values)
    notes = {}
    for organ, value in present.items():
        box = boxes[value - 1]
        pieces = [piece for piece in pieces_ml(values[box] == value, spacing_mm) if piece >= PIECE_ML]
        if len(pieces) > 1:
            shown = [f"{piece:.0f} mL" if piece >= 10 else f"{piece:.2g} mL" for piece in pieces]
            notes[organ] = f"{organ} is in pieces 30 mm or more apart: {first_of(shown)}"
    return notes


def _write_thumbnail(task: InspectTask, found: Examined) -> str | None:
    """Draw the case; a disk that is full must not end the check, so why a picture is missing is returned."""
    drawn = organ_colours(task.card.annotated)
    colours = {value: drawn.get(names[0], "#ffffff") for value, names in task.card.labels.items()}
    spread = found.intensity is not None and intensity_problem(found.intensity) is not None
    png = thumbnail(found.image, found.label, colours, spread)
    try:
        task.thumbnail.write_bytes(png)
    except OSError as error:
        with contextlib.suppress(OSError):  # what was said first counts
            task.thumbnail.unlink(missing_ok=True)
        return f"it could not be written to {task.thumbnail.parent}: {error.strerror or error}"
    return None
