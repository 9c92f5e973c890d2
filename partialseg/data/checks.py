"""Whether a raw case is as its card says, told before anything is computed from it."""

from __future__ import annotations

import itertools

import numpy as np

from partialseg.data.cards import Card, RawCase
from partialseg.data.volumes import Volume, read_image, read_label
from partialseg.errors import DataError

#: How far a label voxel may lie from its image voxel, in parts of the smallest voxel size.
PLACE_TOLERANCE = 0.05


def read_case(card: Card, raw_case: RawCase) -> tuple[Volume, Volume]:
    """Read a raw case and check it against its card.

    An annotated organ that is nowhere in the label map is no problem: it may be absent from the scan.

    Args:
        card: The dataset's card.
        raw_case: One of its cases.

    Returns:
        The image (float32 HU) and the label map (the file's own values), on one grid.

    Raises:
        DataError: The first problem found.
    """
    image, label = read_image(raw_case.image), read_label(raw_case.label)
    for problem in [*_place_problems(raw_case, image, label), *_value_problems(card, raw_case, label)]:
        raise problem
    return image, label


def find_problems(card: Card, raw_case: RawCase) -> list[DataError]:
    """Every problem of a raw case that can be told at once; see `read_case`."""
    problems, image, label = [], None, None
    try:
        image = read_image(raw_case.image)
    except DataError as error:
        problems.append(error)
    try:
        label = read_label(raw_case.label)
    except DataError as error:
        problems.append(error)
    if image is not None and label is not None:
        problems.extend(_place_problems(raw_case, image, label))
    if label is not None:
        problems.extend(_value_problems(card, raw_case, label))
    return problems


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
    """Say where organs are in the wrong order in world x: sides swapped in the file, or situs inversus.

    Args:
        card: The dataset's card.
        label: A label map with the file's own values.

    Returns:
        One note for each pair in the wrong order; none where an organ is absent.
    """
    centres = {}
    for organ in card.annotated:
        values = [value for value, names in card.labels.items() if names == [organ]]
        profile = sum(
            (np.count_nonzero(label.array == value, axis=(0, 1)) for value in values), np.zeros(1, int)
        )
        if profile.any():
            centres[organ] = float(profile @ np.arange(len(profile)) / profile.sum())
    pairs = [("spleen", "liver")]
    pairs += [
        (name, "right_" + name.removeprefix("left_")) for name in card.annotated if name.startswith("left_")
    ]
    return tuple(
        f"{right} lies left of {left}: left and right may be swapped"
        for left, right in pairs
        if left in centres and right in centres and centres[right] < centres[left]
    )


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
        difference = f"origins {origins[0]} and {origins[1]} mm (x, y, z)"
    return [
        DataError(
            raw_case.label,
            f"{who}: the label map lies up to {distance_mm:.3g} mm from its image: {difference}",
            "correct the affine of the one that is wrong, or list the case under `exclude:` with a reason",
        )
    ]


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
