"""What is told of the distances between two surfaces: HD, HD95, their mean, and the share within a tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from partialseg.evaluation.nearest import nearest_distances
from partialseg.evaluation.surface_area import element_areas
from partialseg.evaluation.surfaces import surface_corners, surface_voxels

#: What "HD95" can mean; a table names the one that it used.
HD95_DEFINITIONS: dict[str, str] = {
    "directed_max": "larger of the two directed 95th percentiles",
    "pooled": "95th percentile of the distances of both directions together",
    "area_weighted": "larger of the two directed 95th percentiles, weighted by surface area; "
    "so are ASSD and NSD, and all distances run between corners of voxels",
}

#: By so much of itself a voxel size of float32, as headers have it, may be wrong.
_ROUNDING = 1e-6


class Directed(NamedTuple):
    """Distances from one surface to another.

    Attributes:
        distances_mm: float64, one per point of the surface.
        weights: float64, how much each of them counts: its area in mm², or 1.
    """

    distances_mm: np.ndarray
    weights: np.ndarray


def directed_distances(
    first: np.ndarray,
    second: np.ndarray,
    value: int,
    box: np.ndarray,
    spacing_mm: Sequence[float],
    by_area: bool = False,
    num_axes: int = 3,
) -> tuple[Directed, Directed]:
    """Distances from the surface of an organ in one label map to its surface in another, and the way back.

    Args:
        first: Whole numbers from 0 on, `(depth, height, width)`, C-contiguous.
        second: Same shape and dtype.
        value: The organ's; both label maps have it.
        box: int64 `(2, 3)`, the box that holds all its voxels: the first one, and the one behind the last.
        spacing_mm: Voxel size along (z, y, x), in mm.
        by_area: Take the corners between voxels as the surface, each weighing as much as the area around it;
            otherwise the voxels at the surface, which all weigh 1.
        num_axes: Without `by_area`, neighbours along so many of the last axes make a surface.
    """
    labels = (first, second)
    if by_area:
        surfaces = [surface_corners(label, value, box) for label in labels]
        areas_mm2 = element_areas(spacing_mm)
        weights = [areas_mm2[surface.codes] for surface in surfaces]
    else:
        surfaces = [surface_voxels(label, value, box, num_axes) for label in labels]
        weights = [np.broadcast_to(1.0, surface.columns.shape) for surface in surfaces]
    height = int(box[1, 1] - box[0, 1]) + int(by_area)
    there = nearest_distances(surfaces[0], surfaces[1], height, spacing_mm)
    back = nearest_distances(surfaces[1], surfaces[0], height, spacing_mm)
    return Directed(there, weights[0]), Directed(back, weights[1])


def distance_metrics(there: Directed, back: Directed, hd95: str, tolerance_mm: float) -> dict[str, float]:
    """HD, HD95, mean distance and NSD.

    Args:
        there: Distances from one surface to the other.
        back: Distances back.
        hd95: A key of `HD95_DEFINITIONS`.
        tolerance_mm: Tolerance of NSD. A distance that rounding puts above it is within it as well, unless by area.

    Returns:
        `{"hd_mm", "hd95_mm", "assd_mm", "nsd"}`.

    Example:
        >>> there, back = Directed(np.array([0.0, 2.0]), np.ones(2)), Directed(np.zeros(2), np.ones(2))
        >>> distance_metrics(there, back, "directed_max", tolerance_mm=1.0)
        {'hd_mm': 2.0, 'hd95_mm': 1.9, 'assd_mm': 0.5, 'nsd': 0.75}
    """
    both = (there, back)
    weight = sum(one.weights.sum() for one in both)
    if hd95 == "pooled":
        percentile = np.percentile(np.concatenate([one.distances_mm for one in both]), 95)
    elif hd95 == "directed_max":
        percentile = max(np.percentile(one.distances_mm, 95) for one in both)
    else:
        percentile = max(map(_weighted_percentile, both))
    # MONAI compares in float32, and so takes 3 * 0.8 as 2.4; surface-distance in float64.
    within_mm = tolerance_mm if hd95 == "area_weighted" else tolerance_mm * (1 + _ROUNDING)
    metrics = {
        "hd_mm": max(one.distances_mm.max() for one in both),
        "hd95_mm": percentile,
        "assd_mm": sum(one.distances_mm @ one.weights for one in both) / weight,
        "nsd": sum(one.weights[one.distances_mm <= within_mm].sum() for one in both) / weight,
    }
    return {name: float(value) for name, value in metrics.items()}


def _weighted_percentile(directed: Directed) -> float:
    """The least distance within which 95% of the surface lies."""
    order = np.lexsort((directed.weights, directed.distances_mm))
    share = np.cumsum(directed.weights[order]) / directed.weights.sum()
    return directed.distances_mm[order][min(np.searchsorted(share, 0.95), len(order) - 1)]
