"""Whether a raw case is as its card says, told before anything is computed from it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from partialseg.data.boxes import value_boxes
from partialseg.data.cards import Card, RawCase
from partialseg.data.intensity import Intensity, intensity_problem, measure_intensity
from partialseg.data.label_files import read_case_label
from partialseg.data.volumes import Volume, read_image
from partialseg.errors import DataError

#: How far a label voxel may lie from its image voxel, in parts of the smallest voxel size.
PLACE_TOLERANCE = 0.05
#: Organs whose centres lie in this order along a world axis (x to the right, y to the front, z to the head),
#: and by how many mm the order must be wrong to be noted.
_ORDER = {
    "left and right": (2, 0.0, (("spleen", "liver"),)),
    "front and back": (1, 20.0, (("right_kidney", "liver"), ("left_kidney", "pancreas"))),
    "head and feet": (0, 30.0, (("right_kidney", "liver"), ("left_kidney", "spleen"))),
}
#: How a pair that is in the wrong order lies.
WRONG_ORDER_WORDS = {"left and right": "left of", "front and back": "behind", "head and feet": "below"}


@dataclass(frozen=True)
class Examined:
    """A raw case, each of its files read once.

    Attributes:
        image: The image (float32 HU); None where it cannot be read.
        label: The label map, with the values of the card; None where it cannot be read.
        intensity: Figures of the image; None where it cannot be read.
        problems: Everything that is wrong, as far as it can be told at once.
    """

    image: Volume | None
    label: Volume | None
    intensity: Intensity | None
    problems: tuple[DataError, ...]


def read_case(card: Card, raw_case: RawCase) -> tuple[Volume, Volume]:
    """Read a raw case and check it against its card.

    An annotated organ that is nowhere in the label map is no problem: it may be absent from the scan.

    Args:
        card: The dataset's card.
        raw_case: One of its cases.

    Returns:
        The image (float32 HU) and the label map (values as in the card), on one grid.

    Raises:
        DataError: The first problem found.
    """
    found = examine(card, raw_case)
    for problem in found.problems:
        raise problem
    return found.image, found.label


def examine(card: Card, raw_case: RawCase) -> Examined:
    """Read a raw case, each of its files once, and list every problem that can be told at once.

    Wrong are: a file that cannot be read, image and label map on two grids, an image that is not in HU, and
    values that the card does not list.
    """
    problems: list[DataError] = []
    image = _read(lambda: read_image(raw_case.image, card.files.series), problems)
    label = _read(lambda: read_case_label(card, raw_case), problems)
    intensity = None
    if image is not None:
        same_shape = label is not None and label.array.shape == image.array.shape
        intensity = measure_intensity(image.array, label.array if same_shape else None)
        problems.extend(_intensity_problems(raw_case, intensity))
    if image is not None and label is not None:
        problems.extend(_place_problems(raw_case, image, label))
    if label is not None:
        problems.extend(_value_problems(card, raw_case, label))
    return Examined(image, label, intensity, tuple(problems))


def label_values(array: np.ndarray) -> list[int]:
    """The different values of a label map, sorted; slice by slice, since a sort of the whole is slow.

    Example:
        >>> label_values(np.array([[[0, 2]], [[2, 7]]], dtype=np.uint8))
        [0, 2, 7]
    """
    found: set[int] = set()
    for plane in array:
        found.update(np.flatnonzero(np.bincount(plane.ravel())).tolist())
    return sorted(found)


def order_notes(card: Card, label: Volume) -> tuple[str, ...]:
    """Say where organs are in the wrong order in the world: axes swapped in the file, or situs inversus.

    Looked at are left and right (liver and spleen, and every `left_x` and `right_x`), front and back, head
    and feet (kidneys against liver, spleen and pancreas).

    Args:
        card: The dataset's card.
        label: A label map with the values of the card.

    Returns:
        One note for each pair in the wrong order; none where an organ is absent.
    """
    values = {
        organ: [value for value, names in card.labels.items() if names == [organ]] for organ in card.annotated
    }
    return tuple(
        f"{second} lies {WRONG_ORDER_WORDS[swapped]} {first}: {swapped} may be swapped"
        for swapped, first, second in wrong_order(organ_centres_mm(label.array, values, label.spacing_mm))
    )


def wrong_order(centres_mm: Mapping[str, np.ndarray]) -> list[tuple[str, str, str]]:
    """The pairs of organs that lie in the wrong order.

    Args:
        centres_mm: For each organ that is there, `(z, y, x)` in mm.

    Returns:
        For each pair what seems to be swapped ("left and right", "front and back", "head and feet"), the organ that
        should have the smaller coordinate, and the other one.

    Example:
        >>> wrong_order({"liver": np.zeros(3), "spleen": np.array([0, 0, 50.0])})
        [('left and right', 'spleen', 'liver')]
    """
    sides = [(name, "right_" + name.removeprefix("left_")) for name in centres_mm if name.startswith("left_")]
    return [
        (swapped, first, second)
        for swapped, (axis, margin_mm, pairs) in _ORDER.items()
        for first, second in [*pairs, *(sides if axis == 2 else [])]
        if {first, second} <= centres_mm.keys()
        and centres_mm[second][axis] < centres_mm[first][axis] - margin_mm
    ]


def organ_centres_mm(
    array: np.ndarray, values: Mapping[str, Sequence[int]], spacing_mm: Sequence[float]
) -> dict[str, np.ndarray]:
    """Centre of each organ that is there, `(z, y, x)` in mm from the first voxel.

    Args:
        array: A label map.
        values: The values of each organ.
        spacing_mm: Voxel size `(z, y, x)`.
    """
    boxes = value_boxes(array)
    centres = {}
    for organ, own in values.items():
        total, moment = 0, np.zeros(3)
        for value in own:
            box = boxes[value - 1] if value <= len(boxes) else None
            if box is None:
                continue
            mask = array[box] == value
            total += np.count_nonzero(mask)
            for axis in range(3):
                profile = np.count_nonzero(mask, axis=tuple(other for other in range(3) if other != axis))
                moment[axis] += profile @ (np.arange(len(profile)) + box[axis].start)
        if total:
            centres[organ] = moment / total * spacing_mm
    return centres


def _read(read: Callable[[], Volume], problems: list[DataError]) -> Volume | None:
    try:
        return read()
    except DataError as error:
        problems.append(error)
        return None


def _intensity_problems(raw_case: RawCase, intensity: Intensity) -> list[DataError]:
    """The image must be in HU."""
    found = intensity_problem(intensity)
    if found is None:
        return []
    problem, remedy = found
    remedy = f"{remedy}; or list the case under `exclude:` with a reason"
    return [DataError(raw_case.image, f"{raw_case.dataset}, {raw_case.name}: {problem}", remedy)]


def _place_problems(raw_case: RawCase, image: Volume, label: Volume) -> list[DataError]:
    """Image and label map must lie on one grid."""
    who = f"{raw_case.dataset}, {raw_case.name}"
    if image.array.shape != label.array.shape:
        return [
            DataError(
                raw_case.label,
                f"{who}: the label map has shape {_sizes(label)} (x, y, z), its image {_sizes(image)}",
                "give both on one grid, or list the case under `exclude:` with a reason",
            )
        ]
    corners = np.array(list(itertools.product(*((0, size - 1) for size in _sizes(image)))))
    moved = corners @ (image.affine - label.affine)[:3, :3].T + (image.affine - label.affine)[:3, 3]
    distance_mm = float(np.linalg.norm(moved, axis=1).max())
    if distance_mm <= PLACE_TOLERANCE * min(image.spacing_mm):
        return []
    if not np.allclose(image.spacing_mm, label.spacing_mm, rtol=1e-3):
        difference = (
            f"voxel sizes {_millimetres(label.spacing_mm)} and {_millimetres(image.spacing_mm)} mm (z, y, x)"
        )
    elif not np.allclose(image.affine[:3, :3], label.affine[:3, :3], atol=1e-3):
        difference = "their axes point in different directions"
    else:
        origins = [_millimetres(volume.affine[:3, 3]) for volume in (label, image)]
        difference = f"origins {origins[0]} and {origins[1]} mm (x, y, z){_flip_in_words(label, image)}"
    return [
        DataError(
            raw_case.label,
            f"{who}: the label map lies up to {distance_mm:.3g} mm from its image: {difference}",
            "correct the affine of the one that is wrong, or list the case under `exclude:` with a reason",
        )
    ]


def _flip_in_words(label: Volume, image: Volume) -> str:
    """Whether one of two files seems to be flipped: their own axes run in different directions."""
    if label.source.header is None or image.source.header is None:  # no axes of the file's own
        return ""
    axes = ["".join(nib.aff2axcodes(volume.source.affine)) for volume in (label, image)]
    if axes[0] == axes[1]:
        return ""
    return f", and the axes of the files are {axes[0]} and {axes[1]}: one affine may be flipped"


def _value_problems(card: Card, raw_case: RawCase, label: Volume) -> list[DataError]:
    """The label map may hold only 0 and the values that the card lists."""
    unknown = [value for value in label_values(label.array) if value != 0 and value not in card.labels]
    if not unknown:
        return []
    values = ", ".join(map(str, unknown))
    listed = ", ".join(map(str, sorted(card.labels)))
    plural = "s" if len(unknown) > 1 else ""
    return [
        DataError(
            raw_case.label,
            f"{raw_case.dataset}, {raw_case.name}: the label map holds value{plural} {values}, "
            f"which {card.path} does not describe (it lists {listed})",
            f"add {values} under `labels:`, or list the case under `exclude:` with a reason",
        )
    ]


def _sizes(volume: Volume) -> tuple[int, ...]:
    return volume.array.shape[::-1]


def _millimetres(values: tuple[float, ...] | np.ndarray) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
