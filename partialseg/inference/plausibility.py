"""What somebody who uses a prediction must know: of the scan, and of the organs that were found in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from partialseg.data.boxes import Box, value_boxes
from partialseg.data.checks import WRONG_ORDER_WORDS, organ_centres_mm, wrong_order
from partialseg.data.classes import side_of
from partialseg.data.inspect_case import piece_notes, place_notes
from partialseg.data.intensity import intensity_notes, intensity_problem, measure_intensity
from partialseg.data.volumes import Volume
from partialseg.errors import first_of
from partialseg.inference.postprocessing import on_wrong_side

#: Kinds of warnings.
SCAN, INTENSITY, NOT_FOUND, BORDER = "scan", "intensity", "not_found", "touches_border"
SWAPPED, ORDER, PIECES, SIDES = "left_right_swapped", "order", "in_pieces", "sides_unknown"
DICOM_SEG = "dicom_seg"
#: What several organs share.
_IN_WORDS = {
    NOT_FOUND: "not found",
    BORDER: "reach the border of the scan, so that their volumes are incomplete",
    SWAPPED: "left and right may be swapped",
    ORDER: "in the wrong order, so that axes may be swapped",
    PIECES: "a piece lies far from the rest",
    SIDES: "not checked for pieces on the wrong side, since the scan does not show both sides of the body",
    DICOM_SEG: "their DICOM segments have codes of partialseg's own",
}
#: Unpaired organs, and the half of the body in which they lie.
_HALF = {"liver": "right", "spleen": "left"}
_ENDS = (("lower end", "upper end"), ("back", "front"), ("left edge", "right edge"))


class PredictionWarning(NamedTuple):
    """One warning.

    Attributes:
        organ: Which organ; None where it is about the scan.
        kind: One of the kinds above, for programs.
        text: The same for people, on one line.
    """

    organ: str | None
    kind: str
    text: str


def scan_warnings(scan: Volume) -> list[PredictionWarning]:
    """What is odd about a scan: its file, its grid, and intensities that are not HU or were clipped."""
    warnings = [PredictionWarning(None, SCAN, note) for note in scan.notes + place_notes(scan)]
    if np.array_equal(scan.source.affine, np.eye(4)):
        text = "voxels of 1 mm from the origin on: converters write this where they know neither"
        warnings.append(PredictionWarning(None, SCAN, f"{text}; volumes and sides may be wrong"))
    measured = measure_intensity(scan.array)
    found = intensity_problem(measured)
    if found is not None:
        problem, remedy = found
        return [*warnings, PredictionWarning(None, INTENSITY, f"{problem}: do not use the result; {remedy}")]
    return warnings + [PredictionWarning(None, INTENSITY, note) for note in intensity_notes(measured)]


def organ_warnings(
    labels: np.ndarray, spacing_mm: Sequence[float], organs: Mapping[str, int], middle: float | None
) -> list[PredictionWarning]:
    """What is odd about the organs that were found.

    Args:
        labels: `(depth, height, width)` in canonical axes.
        spacing_mm: Voxel size `(z, y, x)`.
        organs: The value of each organ that was looked for.
        middle: Where the middle of the body is along the last axis, in voxels; None where it is not known.

    Returns:
        Organs that were not found, that reach the border of the scan, that lie on the wrong side of the body or of
        one another, and of which a piece lies far from the rest.

    Example:
        >>> labels = np.zeros((4, 4, 4), dtype=np.uint8); labels[2:, 1:3, 1:3] = 1
        >>> for warning in organ_warnings(labels, (1, 1, 1), {"liver": 1, "spleen": 2}, None):
        ...     print(warning.organ, warning.kind, warning.text, sep=": ")
        spleen: not_found: spleen was not found
        liver: touches_border: liver reaches the border of the scan (upper end): its volume is incomplete
    """
    boxes = value_boxes(labels)
    found = {
        organ: boxes[value - 1]
        for organ, value in organs.items()
        if value <= len(boxes) and boxes[value - 1] is not None
    }
    present = {organ: organs[organ] for organ in found}
    warnings = [
        PredictionWarning(organ, NOT_FOUND, f"{organ} was not found")
        for organ in organs
        if organ not in found
    ]
    for organ, box in found.items():
        if ends := _ends_reached(box, labels.shape):
            text = f"{organ} reaches the border of the scan ({', '.join(ends)})"
            warnings.append(PredictionWarning(organ, BORDER, f"{text}: its volume is incomplete"))
    centres = organ_centres_mm(labels, {organ: [value] for organ, value in present.items()}, spacing_mm)
    warnings += _place_warnings(centres, spacing_mm, middle)
    pieces = piece_notes(labels, present, spacing_mm)
    return warnings + [PredictionWarning(organ, PIECES, text) for organ, text in pieces.items()]


def warning_lines(warnings: Iterable[PredictionWarning]) -> list[str]:
    """Warnings as lines for people, one for each kind: of several organs the names alone.

    Example:
        >>> warning_lines([PredictionWarning("liver", NOT_FOUND, ""), PredictionWarning("spleen", NOT_FOUND, "")])
        ['not found: liver, spleen']
    """
    kinds: dict[str, list[PredictionWarning]] = {}
    for warning in warnings:
        kinds.setdefault(warning.kind, []).append(warning)
    lines = []
    for kind, alike in kinds.items():
        organs = [warning.organ for warning in alike if warning.organ is not None]
        if kind in _IN_WORDS and len(organs) == len(alike) and (len(alike) > 1 or kind == NOT_FOUND):
            lines.append(f"{_IN_WORDS[kind]}: {first_of(organs, 10)}")
        else:
            lines += [warning.text for warning in alike]
    return lines


def _ends_reached(box: Box, shape: Sequence[int]) -> list[str]:
    """The ends of the scan that a box touches, in words."""
    return [
        end
        for part, size, (first, last) in zip(box, shape, _ENDS, strict=True)
        for end, touches in ((first, part.start == 0), (last, part.stop == size))
        if touches
    ]


def _place_warnings(
    centres_mm: Mapping[str, np.ndarray], spacing_mm: Sequence[float], middle: float | None
) -> list[PredictionWarning]:
    """Organs in the wrong order, and organs in the wrong half of the body."""
    warnings = []
    for swapped, first, second in wrong_order(centres_mm):
        kind = SWAPPED if swapped == "left and right" else ORDER
        text = f"{second} lies {WRONG_ORDER_WORDS[swapped]} {first}: {swapped} may be swapped"
        warnings.append(PredictionWarning(second, kind, text))
    told = {organ for _, first, second in wrong_order(centres_mm) for organ in (first, second)}
    for organ, centre in centres_mm.items():
        side = side_of(organ) or _HALF.get(organ)
        if middle is None or side is None or organ in told:
            continue
        if on_wrong_side(centre[2] / spacing_mm[2], middle, side, spacing_mm[2]):
            half = "left" if side == "right" else "right"
            text = f"{organ} lies in the {half} half of the body: left and right may be swapped"
            warnings.append(PredictionWarning(organ, SWAPPED, text))
    return warnings
