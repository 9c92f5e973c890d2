"""Dice and surface distances of two label maps, organ by organ. NumPy and SciPy alone.

The surface of a mask is made of its own voxels: those with one of their six neighbours outside the mask or
outside the volume (what erosion leaves out, as in MONAI and MedPy). Distances run between the centres of
surface voxels, in mm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

#: What "HD95" can mean; a table names the one that it used.
HD95_DEFINITIONS: dict[str, str] = {
    "directed_max": "larger of the two directed 95th percentiles",
    "pooled": "95th percentile of the distances of both directions together",
}

SCORED, MISSED, HALLUCINATED, BOTH_EMPTY = "scored", "missed", "hallucinated", "both empty"
OUTCOMES = (SCORED, MISSED, HALLUCINATED, BOTH_EMPTY)


def score(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    organs: Mapping[str, int],
    hd95: str = "directed_max",
    nsd_tolerance_mm: float = 2.0,
    ignore: np.ndarray | Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict[str, float | str]]:
    """Score a label map against the truth.

    For each organ:

    - `dice`: 2 |P ∩ T| / (|P| + |T|), in [0, 1].
    - `hd_mm`: Hausdorff distance, the largest distance from one surface to the other.
    - `hd95_mm`: its 95th percentile, as `hd95` defines it (percentiles are interpolated linearly).
    - `assd_mm`: mean distance over all surface voxels of both masks (Heimann et al. 2009).
    - `nsd`: share of all surface voxels of both masks within `nsd_tolerance_mm` of the other surface, in
      [0, 1] (Nikolov et al. 2018, counted in voxels rather than in area).
    - `outcome`: "scored"; "missed" (truth there, prediction empty) and "hallucinated" (prediction there,
      truth empty), both with Dice and NSD 0 and no distances; or "both empty", with neither. What is not
      there is NaN.

    Ignored voxels count in no Dice. For distances the truth in them is taken to be what was predicted, so
    that neither a speck of unknown side nor the edge of the ignored region makes a distance.

    Args:
        prediction: Whole numbers, shape `(depth, height, width)` (any number of axes will do).
        truth: Whole numbers, same shape.
        spacing_mm: Voxel size, in mm, one per axis. With all ones the distances are in voxels.
        organs: For each organ its value in both label maps.
        hd95: "directed_max" (the larger of the two directed 95th percentiles, as MONAI has it) or "pooled"
            (both directions together, as MedPy has it).
        nsd_tolerance_mm: Tolerance of `nsd`.
        ignore: Boolean mask of voxels to ignore, same shape; or one mask for each organ that has any.

    Returns:
        `{organ: {"dice", "hd_mm", "hd95_mm", "assd_mm", "nsd", "outcome"}}`, in the order of `organs`.

    Raises:
        ValueError: If shapes differ, spacing or `hd95` make no sense, or a label map is not of whole numbers.

    Example:
        >>> truth = np.zeros((8, 8, 8), np.uint8)
        >>> truth[2:5, 2:5, 2:5] = 1
        >>> shifted = np.roll(truth, 1, axis=0)  # by one slice of 3 mm
        >>> scores = score(shifted, truth, (3.0, 1.5, 1.5), {"liver": 1, "spleen": 2})
        >>> round(scores["liver"]["dice"], 3), scores["liver"]["hd_mm"], scores["spleen"]["outcome"]
        (0.667, 3.0, 'both empty')
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    spacing = _checked(prediction, truth, spacing_mm, hd95)
    ignored = (
        {}
        if ignore is None
        else dict(ignore)
        if isinstance(ignore, Mapping)
        else dict.fromkeys(organs, ignore)
    )
    for organ, mask in ignored.items():
        if np.shape(mask) != truth.shape:
            raise ValueError(
                f"ignore[{organ!r}] has shape {np.shape(mask)}, but the label maps have {truth.shape}"
            )
    boxes = [_boxes(label, organs.values()) for label in (prediction, truth)]
    result = {}
    for organ, value in organs.items():
        box = _joint_box(boxes[0].get(value), boxes[1].get(value), truth.ndim)
        unknown = np.asarray(ignored[organ][box], dtype=bool) if organ in ignored else None
        result[organ] = _score_masks(
            prediction[box] == value, truth[box] == value, unknown, spacing, hd95, nsd_tolerance_mm
        )
    return result


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of the mask with a neighbour (of six, in 3D) outside it; the array's border counts as outside.

    Args:
        mask: Boolean, any shape.

    Returns:
        Boolean, same shape.

    Example:
        >>> surface(np.array([True, True, True, False, True])).tolist()
        [True, False, True, False, True]
    """
    inner = mask.copy()
    for axis in range(mask.ndim):
        here, before, after = (np.moveaxis(array, axis, 0) for array in (inner, mask, mask))
        here[1:] &= before[:-1]
        here[:-1] &= after[1:]
        here[[0, -1]] = False
    return mask & ~inner


def surface_distances(
    first: np.ndarray, second: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of one mask to the nearest of the other, and the way back.

    Args:
        first: Boolean mask, not empty.
        second: Boolean mask of the same shape, not empty.
        spacing_mm: Voxel size, one per axis.

    Returns:
        Two float64 arrays, one entry per surface voxel of the first mask and of the second, in no set order.

    Example:
        >>> there, back = surface_distances(np.eye(1, 4, 0) > 0, np.eye(1, 4, 3) > 0, (1, 2))
        >>> there.tolist(), back.tolist()
        ([6.0], [6.0])
    """
    surfaces = surface(first), surface(second)
    # Where the surfaces coincide the distance is 0: of a good prediction few voxels are left to be asked for.
    shared = surfaces[0] & surfaces[1]
    points = [np.argwhere(mask) * np.asarray(spacing_mm, dtype=np.float64) for mask in surfaces]
    distances = []
    for mask, other in ((surfaces[0], points[1]), (surfaces[1], points[0])):
        asked = np.argwhere(mask & ~shared) * np.asarray(spacing_mm, dtype=np.float64)
        found = np.zeros(np.count_nonzero(mask))
        if len(asked):
            tree = cKDTree(other, balanced_tree=False, compact_nodes=False)
            found[: len(asked)] = tree.query(asked)[0]
        distances.append(found)
    return distances[0], distances[1]


def _checked(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], hd95: str
) -> tuple[float, ...]:
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction has shape {prediction.shape}, but the truth has {truth.shape}")
    for name, label in (("prediction", prediction), ("truth", truth)):
        if label.dtype.kind not in "iub":
            raise ValueError(f"the {name} holds {label.dtype}, but a label map is of whole numbers")
    spacing = tuple(float(size) for size in spacing_mm)
    if len(spacing) != truth.ndim or not all(math.isfinite(size) and size > 0 for size in spacing):
        raise ValueError(f"spacing_mm is {spacing}, expected {truth.ndim} positive sizes in mm")
    if hd95 not in HD95_DEFINITIONS:
        raise ValueError(f"hd95 is {hd95!r}, expected one of {', '.join(HD95_DEFINITIONS)}")
    return spacing


def _boxes(label: np.ndarray, values: Sequence[int]) -> dict[int, tuple[slice, ...]]:
    """The bounding box of each value that is present, all in one pass."""
    wanted = sorted({int(value) for value in values})
    if wanted and wanted[0] < 1:
        raise ValueError(f"organs have values from 1 on, not {wanted[0]}: 0 is background")
    whole = label.astype(np.uint8) if label.dtype == bool else label
    found = ndimage.find_objects(whole, max_label=wanted[-1]) if wanted and label.size else []
    return {
        value: found[value - 1] for value in wanted if value <= len(found) and found[value - 1] is not None
    }


def _joint_box(
    first: tuple[slice, ...] | None, second: tuple[slice, ...] | None, axes: int
) -> tuple[slice, ...]:
    if first is None or second is None:
        return first or second or (slice(0, 0),) * axes
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True)
    )


def _score_masks(
    predicted: np.ndarray,
    true: np.ndarray,
    unknown: np.ndarray | None,
    spacing: tuple[float, ...],
    hd95: str,
    tolerance_mm: float,
) -> dict[str, float | str]:
    known_predicted, known_true = (
        (predicted, true) if unknown is None else (predicted & ~unknown, true & ~unknown)
    )
    num_predicted, num_true = np.count_nonzero(known_predicted), np.count_nonzero(known_true)
    if not (num_predicted and num_true):
        outcome = MISSED if num_true else HALLUCINATED if num_predicted else BOTH_EMPTY
        value = math.nan if outcome == BOTH_EMPTY else 0.0
        return _entry(value, math.nan, math.nan, math.nan, value, outcome)
    dice = 2 * np.count_nonzero(known_predicted & known_true) / (num_predicted + num_true)
    if unknown is not None:
        true = known_true | (predicted & unknown)
    there, back = surface_distances(predicted, true, spacing)
    both = np.concatenate([there, back])
    groups = (both,) if hd95 == "pooled" else (there, back)
    percentile = max(np.percentile(group, 95) for group in groups)
    return _entry(dice, both.max(), percentile, both.mean(), np.mean(both <= tolerance_mm), SCORED)


def _entry(
    dice: float, hd_mm: float, hd95_mm: float, assd_mm: float, nsd: float, outcome: str
) -> dict[str, float | str]:
    numbers = {"dice": dice, "hd_mm": hd_mm, "hd95_mm": hd95_mm, "assd_mm": assd_mm, "nsd": nsd}
    return {**{name: float(value) for name, value in numbers.items()}, "outcome": outcome}
