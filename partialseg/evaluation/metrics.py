"""Dice, volume error and surface distances of two label maps, organ by organ. NumPy, SciPy and Numba alone.

The surface of a mask is made of its own voxels: those with one of their six neighbours outside the mask or
outside the volume (what erosion leaves out, as in MONAI and MedPy). Distances run between the centres of
surface voxels, in mm. Weighted by area, the surface is that of DeepMind's surface-distance instead: it lies
between the voxels, and distances run between corners of voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from partialseg.evaluation.distances import HD95_DEFINITIONS, directed_distances, distance_metrics
from partialseg.evaluation.surfaces import count_voxels, organ_boxes

__all__ = ["BOTH_EMPTY", "HALLUCINATED", "HD95_DEFINITIONS", "MISSED", "OUTCOMES", "SCORED", "score"]

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
        prediction: Whole numbers, shape `(depth, height, width)` (or with fewer axes).
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
    spacing = _checked(prediction, truth, spacing_mm, organs, hd95)
    tolerances = _tolerances(nsd_tolerance_mm, organs)
    ignored = _ignored(ignore, organs, truth.shape)
    small = _small_values(organs)
    labels = [_as_loops_read_it(label, small) for label in (prediction, truth)]
    boxes = [organ_boxes(label, max(small.values(), default=0)) for label in labels]
    result = {}
    for organ, value in organs.items():
        ends = [box[small[value]] for box in boxes]
        box = np.stack([np.minimum(ends[0][0], ends[1][0]), np.maximum(ends[0][1], ends[1][1])])
        pair = _Pair(*labels, small[value], box)
        result[organ] = (
            _score_organ(pair, ignored.get(organ), spacing, hd95, tolerances[organ])
            if box[1].all()
            else _without_distances(0, 0, 0.0)
        )
    return result


class _Pair(NamedTuple):
    """Two label maps, the value of an organ, and the box that holds it in both."""

    prediction: np.ndarray
    truth: np.ndarray
    value: int
    box: np.ndarray


def _checked(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: Sequence[float],
    organs: Mapping[str, int],
    hd95: str,
) -> tuple[float, ...]:
    if prediction.shape != truth.shape:
        raise ValueError(f"the prediction has shape {prediction.shape}, but the truth has {truth.shape}")
    for name, label in (("prediction", prediction), ("truth", truth)):
        if label.dtype.kind not in "iub":
            raise ValueError(f"the {name} holds {label.dtype}, but a label map is of whole numbers")
    if not 1 <= truth.ndim <= 3:
        raise ValueError(f"the label maps have {truth.ndim} axes, expected (depth, height, width)")
    spacing = tuple(float(size) for size in spacing_mm)
    if len(spacing) != truth.ndim or not all(math.isfinite(size) and size > 0 for size in spacing):
        raise ValueError(f"spacing_mm is {spacing}, expected {truth.ndim} positive sizes in mm")
    if hd95 not in HD95_DEFINITIONS:
        raise ValueError(f"hd95 is {hd95!r}, expected one of {', '.join(HD95_DEFINITIONS)}")
    if hd95 == "area_weighted" and truth.ndim != 3:
        raise ValueError(f"hd95 'area_weighted' is of label maps with 3 axes, not {truth.ndim}")
    if min(organs.values(), default=1) < 1:
        raise ValueError(f"organs have values from 1 on, not {min(organs.values())}: 0 is background")
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


def _ignored(
    ignore: np.ndarray | Mapping[str, np.ndarray] | None, organs: Mapping[str, int], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """The voxels to ignore for each organ that has any, with three axes."""
    given = {} if ignore is None else ignore if isinstance(ignore, Mapping) else dict.fromkeys(organs, ignore)
    masks = {organ: np.asarray(mask, dtype=bool) for organ, mask in given.items()}
    for organ, mask in masks.items():
        if mask.shape != shape:
            raise ValueError(f"ignore[{organ!r}] has shape {mask.shape}, but the label maps have {shape}")
    return {organ: _with_three_axes(mask) for organ, mask in masks.items()}


def _with_three_axes(array: np.ndarray) -> np.ndarray:
    return array.reshape((1,) * (3 - array.ndim) + array.shape)


def _small_values(organs: Mapping[str, int]) -> dict[int, int]:
    """What each value becomes in a label map of uint8: itself, if all of them fit."""
    values = sorted({int(value) for value in organs.values()})
    if not values or values[-1] < 256:
        return {value: value for value in values}
    if len(values) > 255:
        raise ValueError(f"the organs have {len(values)} values, expected 255 at most: score them in parts")
    return {value: number for number, value in enumerate(values, 1)}


def _as_loops_read_it(label: np.ndarray, small: Mapping[int, int]) -> np.ndarray:
    """Three axes, uint8, C order, writable: compiled loops are compiled anew for every other kind.

    Values that no organ has become background where they do not fit.
    """
    if any(value != number for value, number in small.items()):
        renumbered = np.zeros(label.shape, np.uint8)
        for value, number in small.items():
            renumbered[label == value] = number
        label = renumbered
    elif label.dtype != np.uint8:
        cast = label.astype(np.uint8)
        cast[cast != label] = 0
        label = cast
    return np.require(_with_three_axes(label), requirements=("C", "W"))


def _score_organ(
    pair: _Pair,
    unknown: np.ndarray | None,
    spacing: tuple[float, ...],
    hd95: str,
    tolerance_mm: float,
) -> dict[str, float | str]:
    measured, counted = (pair, pair) if unknown is None else _with_unknown(pair, unknown)
    num_predicted, num_true, num_both = count_voxels(*counted)
    volume_ml = (num_predicted - num_true) * math.prod(spacing) / 1000
    if not (num_predicted and num_true):
        return _without_distances(num_predicted, num_true, volume_ml)
    num_axes = len(spacing)
    spacing = (1.0,) * (3 - num_axes) + spacing
    directed = directed_distances(*measured, spacing, hd95 == "area_weighted", num_axes)
    return {
        "dice": 2 * num_both / (num_predicted + num_true),
        **distance_metrics(*directed, hd95, tolerance_mm),
        "volume_error": (num_predicted - num_true) / num_true,
        "volume_error_ml": volume_ml,
        "outcome": SCORED,
    }


def _without_distances(num_predicted: int, num_true: int, volume_ml: float) -> dict[str, float | str]:
    """The scores of an organ that prediction or truth lacks."""
    outcome = MISSED if num_true else HALLUCINATED if num_predicted else BOTH_EMPTY
    overlap = math.nan if outcome == BOTH_EMPTY else 0.0
    return {
        "dice": overlap,
        **dict.fromkeys(("hd_mm", "hd95_mm", "assd_mm"), math.nan),
        "nsd": overlap,
        "volume_error": -1.0 if outcome == MISSED else math.nan,
        "volume_error_ml": math.nan if outcome == BOTH_EMPTY else volume_ml,
        "outcome": outcome,
    }


def _with_unknown(pair: _Pair, unknown: np.ndarray) -> tuple[_Pair, _Pair]:
    """The pair to measure distances of, where the truth follows the prediction in unknown voxels; that to count."""
    prediction, truth, value, box = pair
    part = tuple(slice(*ends) for ends in box.T)
    prediction, truth, unknown = prediction[part].copy(), truth[part], unknown[part]
    background = truth.dtype.type(0)
    followed = np.where(unknown, np.where(prediction == value, prediction, background), truth)
    known = [np.where(unknown, background, label) for label in (prediction, truth)]
    inside = np.stack([np.zeros(3, np.int64), box[1] - box[0]])
    return _Pair(prediction, followed, value, inside), _Pair(*known, value, inside)
