"""What may be done to a predicted label map afterwards, organ by organ; nothing is unless it is asked for.

In this order, whatever the order in a file:

1. `sides`: a piece of a left organ that lies in the right half of the body becomes the right organ, and the other
   way round; where the class list has no such organ it becomes background. All organs, before anything else is
   done, so that a piece which changes its name is part of its new organ from then on.
2. `largest_component`: all pieces but the largest become background.
3. `min_volume_ml`: pieces that are smaller become background.
4. `fill_holes`: background that an organ encloses becomes the organ. Another organ in it (a tumour, a vessel) stays.

A piece is what hangs together through faces, edges or corners of voxels; enclosed is what no way through faces leads
out of. What is removed becomes background, never the next organ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from scipy import ndimage

from partialseg.data.boxes import value_boxes
from partialseg.data.classes import other_side, side_of
from partialseg.data.intensity import sampled, sampling_step
from partialseg.inference.pieces import pieces

#: What is denser is body; air, and foam of the table, are not.
BODY_HU = -300.0
#: So far beyond the middle of the body the centre of a piece must lie to be on the wrong side. A horseshoe kidney,
#: and an organ that reaches across, are left alone.
WRONG_SIDE_MM = 15.0
#: Where the first or the last columns of a scan hold this part of the body's widest section or more, the scan is cut
#: there, and its middle need not be that of the body.
CUT_OFF = 0.5


class OrganRules(BaseModel):
    """What is done to one organ; see the module.

    Attributes:
        sides: Whether pieces on the wrong side of the body change their name.
        largest_component: Whether only the largest piece stays.
        min_volume_ml: Pieces below this volume become background.
        fill_holes: Whether enclosed background becomes the organ.

    Example:
        >>> OrganRules(largest_component=True).names
        ['largest_component']
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sides: bool = False
    largest_component: bool = False
    min_volume_ml: FiniteFloat = Field(0.0, ge=0)
    fill_holes: bool = False

    @property
    def names(self) -> list[str]:
        """The names of what is done, in order."""
        return [name for name in type(self).model_fields if getattr(self, name)]


@dataclass(frozen=True)
class Change:
    """What post-processing did to one organ.

    Attributes:
        done: The rules that were applied; they need not have changed a voxel.
        removed, added: Voxels that were the organ and are not any more, and the other way round.
    """

    done: tuple[str, ...]
    removed: int
    added: int


def postprocess(
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Sequence[str],
    rules: Mapping[str, OrganRules],
    middle: float | None,
) -> tuple[np.ndarray, dict[str, Change]]:
    """Apply rules to a label map.

    Args:
        labels: uint8 class indices `(depth, height, width)` in canonical axes: the last one grows toward the
            patient's right. It is not changed.
        spacing_mm: Voxel size `(z, y, x)`.
        classes: Background, then the organs.
        rules: For organs of the class list; others are left as they are.
        middle: Where the middle of the body is along the last axis, in voxels (`middle_of_body`). None: it is not
            known, and no rule of sides is applied.

    Returns:
        A new label map; and for each organ that has a rule, or whose voxels changed, what was done.

    Raises:
        ValueError: If a rule is for an organ that is not among the classes.

    Example:
        >>> labels = np.array([[[1, 1, 0, 0, 1]]], dtype=np.uint8)
        >>> after, changes = postprocess(
        ...     labels, (1, 1, 1), ["background", "liver"], {"liver": OrganRules(largest_component=True)}, None)
        >>> after.tolist(), changes["liver"].removed
        ([[[1, 1, 0, 0, 0]]], 1)
    """
    if strangers := [organ for organ in rules if organ not in classes[1:]]:
        raise ValueError(f"rules for {', '.join(strangers)}, expected organs among {', '.join(classes[1:])}")
    after = labels.copy()
    if middle is not None:
        for organ in (organ for organ, rule in rules.items() if rule.sides):
            _move_to_own_side(after, labels, spacing_mm, classes, organ, middle)
    boxes = value_boxes(after)
    for organ, rule in rules.items():
        value = classes.index(organ)
        box = boxes[value - 1] if value <= len(boxes) else None
        if box is not None:
            part = after[box]
            mask = part == value
            kept = apply_rules(mask, spacing_mm, rule)
            part[mask & ~kept] = 0
            part[kept & (part == 0)] = value
    return after, dict(_changes(labels, after, classes, rules, middle))


def apply_rules(mask: np.ndarray, spacing_mm: Sequence[float], rule: OrganRules) -> np.ndarray:
    """What is left of the mask of one organ, and what its holes add; rules of sides are not looked at.

    Args:
        mask: bool, 3D; no more than the organ's bounding box need be given.
        spacing_mm: Voxel size in the same order of axes.
        rule: What is done.

    Example:
        >>> ring = np.array([[[1, 1, 1], [1, 0, 1], [1, 1, 1]]], dtype=bool)
        >>> bool(apply_rules(np.repeat(ring, 3, axis=0), (1, 1, 1), OrganRules(fill_holes=True)).all())
        False
    """
    if not (rule.largest_component or rule.min_volume_ml or rule.fill_holes):
        return mask
    found = pieces(mask)
    largest = max((int(voxels.max()) for *_, voxels in found), default=0)
    result = np.zeros_like(mask)
    for box, numbers, voxels in found:
        kept = voxels * float(np.prod(spacing_mm)) / 1000 >= rule.min_volume_ml
        if rule.largest_component:
            first = int(voxels.argmax())
            kept &= (np.arange(len(voxels)) == first) & (voxels[first] == largest)
            largest += int(kept.any())  # of two that are equally large the first stays
        kept[0] = False
        part = kept[numbers]
        # What encloses a hole hangs together, so it is in one island.
        result[box] |= fill_holes(part) if rule.fill_holes else part
    return result


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """A mask without the holes that it encloses on all sides.

    Example:
        >>> shell = np.ones((3, 3, 3), dtype=bool); shell[1, 1, 1] = False
        >>> int(fill_holes(shell).sum())
        27
    """
    outside, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    return (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]


def middle_of_body(hu: np.ndarray) -> float | None:
    """Where the middle of the body is along the last axis, in voxels: half of the body lies on either side.

    Args:
        hu: `(depth, height, width)`, canonical axes.

    Returns:
        None where it cannot be told: there is no body, or the scan is cut so that one side of it may be missing.

    Example:
        >>> scan = np.full((4, 10, 20), -1000.0); scan[:, 2:8, 4:13] = 50
        >>> middle_of_body(scan), middle_of_body(scan[..., 6:])
        (8.0, None)
    """
    columns = np.count_nonzero(sampled(hu) > BODY_HU, axis=(0, 1))
    if not columns.any() or max(columns[0], columns[-1]) >= CUT_OFF * columns.max():
        return None
    before = np.cumsum(columns)
    return float(np.searchsorted(before, before[-1] / 2) * sampling_step(hu.size))


def on_wrong_side(centre: float, middle: float, side: str, width_mm: float) -> bool:
    """Whether a centre along the last axis, in voxels, lies clearly in the other half of the body than its side's.

    Example:
        >>> on_wrong_side(40.0, 100.0, "right", 1.0), on_wrong_side(90.0, 100.0, "right", 1.0)
        (True, False)
    """
    beyond_mm = (centre - middle) * width_mm
    return (beyond_mm if side == "left" else -beyond_mm) > WRONG_SIDE_MM


def _move_to_own_side(
    after: np.ndarray,
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Sequence[str],
    organ: str,
    middle: float,
) -> None:
    """Give the pieces of an organ that lie on the wrong side to the organ of that side, in `after`.

    They are told in `labels`, the map as it was: what has been moved here is not moved back.
    """
    side, value = side_of(organ), classes.index(organ)
    if side is None:
        return
    other = other_side(organ, classes)
    boxes = value_boxes(labels)
    box = boxes[value - 1] if value <= len(boxes) else None
    if box is None:
        return
    new, part = 0 if other is None else classes.index(other), after[box]
    for place, numbers, voxels in pieces(labels[box] == value):
        wrong = [
            number
            for number, inside in enumerate(ndimage.find_objects(numbers, len(voxels) - 1), start=1)
            if on_wrong_side(
                _centre(numbers[inside] == number) + inside[2].start + place[2].start + box[2].start,
                middle,
                side,
                spacing_mm[2],
            )
        ]
        if wrong:
            part[place][np.isin(numbers, wrong)] = new


def _centre(mask: np.ndarray) -> float:
    """Of a mask, along the last axis."""
    profile = np.count_nonzero(mask, axis=(0, 1))
    return float(profile @ np.arange(len(profile)) / profile.sum())


def _changes(
    before: np.ndarray,
    after: np.ndarray,
    classes: Sequence[str],
    rules: Mapping[str, OrganRules],
    middle: float | None,
) -> Iterator[tuple[str, Change]]:
    """What became of each organ, in the order of the classes."""
    size = len(classes)
    moved = np.zeros((size, size), dtype=np.int64)
    for old, new in zip(before, after, strict=True):  # a slice at a time: no second volume of indices
        changed = old != new
        if changed.any():
            pairs = old[changed].astype(np.int64) * size + new[changed]
            moved += np.bincount(pairs, minlength=size * size).reshape(size, size)
    for value, organ in enumerate(classes[1:], start=1):
        rule = rules.get(organ, OrganRules())
        removed, added = int(moved[value].sum()), int(moved[:, value].sum())
        done = tuple(name for name in rule.names if name != "sides" or middle is not None)
        if rule.names or removed or added:
            yield organ, Change(done, removed, added)
