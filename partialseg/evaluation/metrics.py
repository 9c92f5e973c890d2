"""Dice, volume error and surface distances of two label maps, organ by organ. NumPy and SciPy alone.

The surface of a mask is made of its own voxels: those with one of their six neighbours outside the mask or
outside the volume (what erosion leaves out, as in MONAI and MedPy). Distances run between the centres of
surface voxels, in mm. Weighted by area, the surface is that of DeepMind's surface-distance instead: it lies
between the voxels, and distances run between corners of voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from partialseg.evaluation.surface_area import element_areas, element_codes

#: What "HD95" can mean; a table names the one that it used.
HD95_DEFINITIONS: dict[str, str] = {
    "directed_max": "larger of the two directed 95th percentiles",
    "pooled": "95th percentile of the distances of both directions together",
    "area_weighted": "larger of the two directed 95th percentiles, weighted by surface area; "
    "so are ASSD and NSD, and all distances run between corners of voxels",
}

SCORED, MISSED, HALLUCINATED, BOTH_EMPTY = "scored", "missed", "hallucinated", "both empty"
OUTCOMES = (SCORED, MISSED, HALLUCINATED, BOTH_EMPTY)


def score(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    organs: Mapping[str, int],
    hd95: str = "directed_max",
    nsd_tolerance_mm: float | Mapping[str, float] = 2.0,
    ignore: np.ndarray | Mapping[str, np.ndarray] | None = None,
) -> dict[str, dict[str, float | str]]:
    """Score a label map against the truth.

    For each organ:

    - `dice`: 2 |P ∩ T| / (|P| + |T|), in [0, 1].
    - `hd_mm`: Hausdorff distance, the largest distance from one surface to the other.
    - `hd95_mm`: its 95th percentile, as `hd95` defines it (percentiles of voxels are interpolated linearly).
    - `assd_mm`: mean distance over all surface voxels of both masks (Heimann et al. 2009).
    - `nsd`: share of all surface voxels of both masks within the tolerance of the other surface, in [0, 1].
      With `hd95="area_weighted"` it is the share of the surface's area, as Nikolov et al. 2018 define it.
    - `volume_error`: (|P| - |T|) / |T|; NaN where the truth is empty.
    - `volume_error_ml`: the difference in mL; of a missed organ less than 0, of a hallucinated one more.
    - `outcome`: "scored"; "missed" (truth there, prediction empty) and "hallucinated" (prediction there,
      truth empty), both with Dice and NSD 0 and no distances; or "both empty", with no number at all, so that
      none of these is averaged away. What is not there is NaN.

    Ignored voxels count in no Dice and no volume. For distances the truth in them is taken to be what was predicted, so
    that neither a speck of unknown side nor the edge of the ignored region makes a distance.

    Args:
        prediction: Whole numbers, shape `(depth, height, width)` (any number of axes will do).
        truth: Whole numbers, same shape.
        spacing_mm: Voxel size, in mm, one per axis. With all ones the distances and the tolerance are
            in voxels, and `volume_error_ml` in thousands of voxels.
        organs: For each organ its value in both label maps.
        hd95: "directed_max" (the larger of the two directed 95th percentiles, as MONAI has it), "pooled"
            (both directions together, as MedPy has it), or "area_weighted" (the larger of the two, each
            surface element weighing as much as its area, as DeepMind's surface-distance has it). The last
            needs three axes, and all distances and `nsd` are then of that surface.
        nsd_tolerance_mm: Tolerance of `nsd`, one for all organs or one for each.
        ignore: Boolean mask of voxels to ignore, same shape; or one mask for each organ that has any.

    Returns:
        `{organ: {"dice", "hd_mm", "hd95_mm", "assd_mm", "nsd", "volume_error", "volume_error_ml", "outcome"}}`,
        in the order of `organs`.

    Raises:
        ValueError: If shapes differ, spacing, `hd95` or a tolerance make no sense, or a label map is not of
            whole numbers.

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
    tolerances = _tolerances(nsd_tolerance_mm, organs)
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
            prediction[box] == value, truth[box] == value, unknown, spacing, hd95, tolerances[organ]
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
    return _nearest(surface(first), surface(second), spacing_mm)


def _nearest(
    first: np.ndarray, second: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    surfaces = first, second
    # Where the surfaces coincide the distance is 0: of a good prediction few voxels are left to be asked for.
    shared = surfaces[0] & surfaces[1]
    points = [np.argwhere(mask) * np.asarray(spacing_mm, dtype=np.float64) for mask in surfaces]
    distances = []
    for mask, other in ((surfaces[0], points[1]), (surfaces[1], points[0])):
        asked = np.argwhere(mask & ~shared) * np.asarray(spacing_mm, dtype=np.float64)
        found = np.zeros(np.count_nonzero(mask))
        if len(asked):
            tree = cKDTree(other, balanced_tree=False, compact_nodes=False)
            found[~shared[mask]] = tree.query(asked)[0]
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
    if hd95 == "area_weighted" and truth.ndim != 3:
        raise ValueError(f"hd95 'area_weighted' is of label maps with 3 axes, not {truth.ndim}")
    return spacing


def _tolerances(tolerance_mm: float | Mapping[str, float], organs: Mapping[str, int]) -> dict[str, float]:
    of_all = tolerance_mm if isinstance(tolerance_mm, Mapping) else dict.fromkeys(organs, tolerance_mm)
    if missing := [organ for organ in organs if organ not in of_all]:
        raise ValueError(
            f"nsd_tolerance_mm has no tolerance of {', '.join(missing)}: add it, or give one number"
        )
    tolerances = {organ: float(of_all[organ]) for organ in organs}
    for organ, value in tolerances.items():
        if not value >= 0:
            raise ValueError(f"nsd_tolerance_mm of {organ} is {value}, expected a distance from 0 on")
    return tolerances


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
    volume_ml = (num_predicted - num_true) * math.prod(spacing) / 1000
    if not (num_predicted and num_true):
        outcome = MISSED if num_true else HALLUCINATED if num_predicted else BOTH_EMPTY
        overlap = math.nan if outcome == BOTH_EMPTY else 0.0
        return {
            **dict.fromkeys(("dice", "hd_mm", "hd95_mm", "assd_mm", "nsd"), math.nan),
            **{"dice": overlap, "nsd": overlap},
            "volume_error": -1.0 if outcome == MISSED else math.nan,
            "volume_error_ml": math.nan if outcome == BOTH_EMPTY else volume_ml,
            "outcome": outcome,
        }
    if unknown is not None:
        true = known_true | (predicted & unknown)
    numbers = {
        "dice": 2 * np.count_nonzero(known_predicted & known_true) / (num_predicted + num_true),
        **_distances(predicted, true, spacing, hd95, tolerance_mm),
        "volume_error": (num_predicted - num_true) / num_true,
        "volume_error_ml": volume_ml,
    }
    return {**{name: float(value) for name, value in numbers.items()}, "outcome": SCORED}


def _distances(
    predicted: np.ndarray, true: np.ndarray, spacing: tuple[float, ...], hd95: str, tolerance_mm: float
) -> dict[str, float]:
    if hd95 == "area_weighted":
        return _weighted_by_area(predicted, true, spacing, tolerance_mm)
    there, back = surface_distances(predicted, true, spacing)
    both = np.concatenate([there, back])
    groups = (both,) if hd95 == "pooled" else (there, back)
    return {
        "hd_mm": both.max(),
        "hd95_mm": max(np.percentile(group, 95) for group in groups),
        "assd_mm": both.mean(),
        "nsd": np.mean(both <= tolerance_mm),
    }


def _weighted_by_area(
    predicted: np.ndarray, true: np.ndarray, spacing: tuple[float, ...], tolerance_mm: float
) -> dict[str, float]:
    codes = [element_codes(mask) for mask in (predicted, true)]
    on_surface = [(code != 0) & (code != 255) for code in codes]
    areas_mm2 = [element_areas(spacing)[code[mask]] for code, mask in zip(codes, on_surface, strict=True)]
    distances = _nearest(*on_surface, spacing)
    both, area = np.concatenate(distances), np.concatenate(areas_mm2)
    return {
        "hd_mm": both.max(),
        "hd95_mm": max(map(_weighted_percentile, distances, areas_mm2)),
        "assd_mm": np.average(both, weights=area),
        "nsd": area[both <= tolerance_mm].sum() / area.sum(),
    }


def _weighted_percentile(distances: np.ndarray, areas: np.ndarray) -> float:
    """The least distance within which 95% of the area lies."""
    order = np.lexsort((areas, distances))
    share = np.cumsum(areas[order]) / areas.sum()
    return distances[order][min(np.searchsorted(share, 0.95), len(order) - 1)]
