"""A case made small enough to be carried in a report: cropped to what is marked, coarser, and compressed.

Scan and label maps become NIfTI files on one grid. The scan keeps the range of HU in which organs differ, in steps
of 2 HU; label maps hold class indices.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

from partialseg.data.boxes import Box, bounding_box
from partialseg.data.resample import resample_image, resample_label, resampled_grid
from partialseg.report.case_volumes import CaseVolumes
from partialseg.report.pictures import fullest_slice

#: HU below and above are cut off; the steps between fit into one byte.
HU_RANGE, HU_STEP = (-200, 310), 2
#: Room around what is marked.
MARGIN_MM = 30.0
#: Voxels are made larger, all axes alike, until a volume has no more than these.
MAX_VOXELS = 1_000_000
#: No finer than this along any axis: organs do not look different.
FINEST_MM = 1.5
#: The values of a map of errors, from 1 on: the truth has an organ there, the prediction has, both have different ones.
ERROR_KINDS = ("too little", "too much", "another organ")
#: NIfTI's code of label maps, by which NiiVue knows of which volumes it can draw the edge.
INTENT_LABEL = 1002


@dataclass(frozen=True)
class Place:
    """Where to look.

    Attributes:
        voxel: Index `(x, y, z)` in the packed volumes.
        organ: What is there.
        kind: "organ"; or an error there: "too little" or "too much" of the organ.
    """

    voxel: tuple[int, int, int]
    organ: str
    kind: str


@dataclass(frozen=True)
class PackedCase:
    """A case's volumes as gzipped NIfTI files, on one grid.

    Attributes:
        scan: uint8, scaled to HU.
        truth: uint8 class indices; one above the last class: may be one organ or another. Its intent is
            `INTENT_LABEL`.
        predictions: For each network uint8 class indices.
        error_maps: For each network uint8, where it erred on the organs that it was scored on: 0 nowhere, then
            `ERROR_KINDS`.
        spacing_mm: Voxel size `(z, y, x)`.
        organs: For each organ that is in the truth, or else in a prediction, where most of it is.
        errors: For each network that erred, where the largest error is.
    """

    scan: bytes
    truth: bytes
    predictions: dict[str, bytes]
    error_maps: dict[str, bytes]
    spacing_mm: tuple[float, float, float]
    organs: list[Place]
    errors: dict[str, Place]

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        maps = [*self.predictions.values(), *self.error_maps.values()]
        return len(self.scan) + len(self.truth) + sum(map(len, maps))


def pack_case(case: CaseVolumes, max_voxels: int = MAX_VOXELS) -> PackedCase:
    """Crop, resample and compress the volumes of a case.

    Args:
        case: The case as it was scored.
        max_voxels: The most voxels that each volume may have.

    Returns:
        Its volumes, and where to look in them.
    """
    box = _marked_box(case)
    start = np.eye(4)
    start[:3, 3] = [part.start for part in reversed(box)]
    spacing = coarser_spacing([part.stop - part.start for part in box], case.spacing_mm, max_voxels)
    scan = resample_image(case.image[box], case.spacing_mm, spacing)
    _, affine = resampled_grid(case.image[box].shape, case.affine @ start, case.spacing_mm, spacing)
    with_unknown = np.where(case.unknown[box], len(case.classes), case.truth[box]).astype(np.uint8)
    truth = resample_label(with_unknown, case.spacing_mm, spacing)
    predictions = {
        name: resample_label(labels[box], case.spacing_mm, spacing)
        for name, labels in case.predictions.items()
    }
    low, high = HU_RANGE
    grey = np.round((np.clip(scan, low, high) - low) / HU_STEP).astype(np.uint8)
    found = {
        name: _largest_error(truth, labels, case.classes, case.scored[name])
        for name, labels in predictions.items()
    }
    return PackedCase(
        scan=_nifti(grey, affine, slope=HU_STEP, intercept=low),
        truth=_nifti(truth, affine, intent=INTENT_LABEL),
        predictions={name: _nifti(labels, affine) for name, labels in predictions.items()},
        error_maps={
            name: _nifti(_error_map(truth, labels, case.classes, case.scored[name]), affine)
            for name, labels in predictions.items()
        },
        spacing_mm=spacing,
        organs=_organ_places([truth, *predictions.values()], case.classes),
        errors={name: place for name, place in found.items() if place is not None},
    )


def coarser_spacing(
    shape: Sequence[int], spacing_mm: Sequence[float], max_voxels: int
) -> tuple[float, float, float]:
    """The voxel size at which a volume has at most so many voxels.

    Args:
        shape: `(depth, height, width)` in voxels.
        spacing_mm: Voxel size `(z, y, x)`.
        max_voxels: The most voxels.

    Returns:
        Voxel size `(z, y, x)`; along no axis is it finer than before.

    Example:
        >>> coarser_spacing((100, 100, 100), (5.0, 0.8, 0.8), 10**6)
        (5.0, 1.5, 1.5)
        >>> coarser_spacing((100, 100, 100), (5.0, 0.8, 0.8), 10**5)
        (5.0, 2.6, 2.6)
    """
    step, voxels = -1, math.inf
    while voxels > max_voxels:
        step += 1
        depth, height, width = (max(size, round(FINEST_MM + 0.1 * step, 1)) for size in spacing_mm)
        new_shape, _ = resampled_grid(shape, np.eye(4), spacing_mm, (depth, height, width))
        voxels = math.prod(new_shape)
    return depth, height, width


def _marked_box(case: CaseVolumes) -> Box:
    """The box around all that is marked, with a margin; the whole scan where nothing is."""
    shape = case.image.shape
    marked = (case.truth > 0) | case.unknown
    for labels in case.predictions.values():
        marked |= labels > 0
    box = bounding_box(marked) or tuple(slice(0, size) for size in shape)
    margins = [round(MARGIN_MM / size) for size in case.spacing_mm]
    return tuple(
        slice(max(0, part.start - margin), min(size, part.stop + margin))
        for part, margin, size in zip(box, margins, shape, strict=True)
    )


def _organ_places(maps: Sequence[np.ndarray], classes: Sequence[str]) -> list[Place]:
    """Where each organ is: in the truth, which is the first map, or else in the first prediction that has it."""
    places = []
    for value, organ in enumerate(classes[1:], 1):
        mask = next((labels == value for labels in maps if (labels == value).any()), None)
        if mask is not None:
            places.append(Place(_inside(mask), organ, "organ"))
    return places


def _largest_error(
    truth: np.ndarray, labels: np.ndarray, classes: Sequence[str], organs: Sequence[str]
) -> Place | None:
    """Where most was missed, or too much found, of the one of these organs that is found worst."""
    known = truth < len(classes)
    worst, place = 0.0, None
    for organ in organs:
        value = classes.index(organ)
        missed = (truth == value) & (labels != value)
        added = (truth != value) & (labels == value) & known
        voxels = {"too little": np.count_nonzero(missed), "too much": np.count_nonzero(added)}
        of = np.count_nonzero(truth == value) + np.count_nonzero((labels == value) & known)
        # One minus Dice, so that a pancreas that is missing counts more than the rim of a liver.
        if of and (share := sum(voxels.values()) / of) > worst:
            kind = max(voxels, key=voxels.__getitem__)
            worst, place = share, Place(_inside(missed if kind == "too little" else added), organ, kind)
    return place


def _error_map(
    truth: np.ndarray, labels: np.ndarray, classes: Sequence[str], organs: Sequence[str]
) -> np.ndarray:
    values = [classes.index(organ) for organ in organs]
    true, found = (np.where(np.isin(array, values), array, 0) for array in (truth, labels))
    kinds = [(true > 0) & (found == 0), (true == 0) & (found > 0), (true > 0) & (found > 0) & (true != found)]
    errors = np.select(kinds, range(1, len(ERROR_KINDS) + 1), 0)
    return np.where(truth < len(classes), errors, 0).astype(np.uint8)


def _inside(mask: np.ndarray) -> tuple[int, int, int]:
    """A voxel `(x, y, z)` well inside a mask, in the axial slice that shows most of it."""
    depth = fullest_slice(mask.astype(np.uint8), 0)
    inside = ndimage.distance_transform_edt(np.pad(mask[depth], 1))[1:-1, 1:-1]
    height, width = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(width), int(height), depth


def _nifti(
    array: np.ndarray, affine: np.ndarray, slope: float = 1.0, intercept: float = 0.0, intent: int = 0
) -> bytes:
    image = nib.Nifti1Image(np.ascontiguousarray(array.T), affine)
    image.header.set_slope_inter(slope, intercept)
    if intent:
        image.header.set_intent(intent)
    return gzip.compress(image.to_bytes(), compresslevel=9, mtime=0)
