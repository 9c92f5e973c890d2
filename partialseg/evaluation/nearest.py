"""Distances from the points of one surface to the nearest of another. Compiled by Numba; SciPy's k-d tree.

Most points of a good prediction lie within a few voxels of the truth. Rows of the other surface are therefore
searched from the nearest one outwards, until no further row can hold a nearer point. What is still open beyond
`REACH` rows is left to a k-d tree.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from partialseg.compiling import compiled
from partialseg.evaluation.surfaces import Surface

#: How many rows are searched around a point before a k-d tree is asked.
REACH = 600


def nearest_distances(
    points: Surface, others: Surface, height: int, spacing_mm: Sequence[float]
) -> np.ndarray:
    """Distance of each point to the nearest of the others.

    Args:
        points: Surface in rows of a box.
        others: Another in rows of the same box, not empty.
        height: Rows of the box in one slice.
        spacing_mm: Voxel size along (z, y, x), in mm.

    Returns:
        float64 `(points,)`, in mm.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    steps, squares, limit = _rows_around(tuple(spacing))
    squared = _search_rows(*points[:2], *others[:2], height, spacing, steps, squares, limit)
    distances = np.sqrt(squared)
    far = np.flatnonzero(squared > limit)
    if len(far):
        tree = cKDTree(_positions(others, height, spacing), balanced_tree=False, compact_nodes=False)
        distances[far] = tree.query(_positions(points, height, spacing, far))[0]
    return distances


@functools.lru_cache(maxsize=8)
def _rows_around(spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray, float]:
    """Steps (z, y) to the rows around a point, nearest first; their squared distances; that of the first left out."""
    area = REACH * spacing[0] * spacing[1]
    extent = [int(np.sqrt(area / np.pi) / size) + 1 for size in spacing[:2]]
    grid = np.meshgrid(*(np.arange(-size, size + 1) for size in extent), indexing="ij")
    steps = np.stack([axis.ravel() for axis in grid], axis=1).astype(np.int64)
    squares = (steps * spacing[:2]) ** 2 @ np.ones(2)
    limit = min((size + 1) * step for size, step in zip(extent, spacing[:2], strict=True)) ** 2
    order = np.argsort(squares, kind="stable")
    order = order[squares[order] < limit]
    return steps[order], squares[order], limit


def _positions(
    surface: Surface, height: int, spacing: np.ndarray, chosen: np.ndarray | None = None
) -> np.ndarray:
    rows = np.repeat(np.arange(len(surface.starts) - 1), np.diff(surface.starts))
    columns = surface.columns
    if chosen is not None:
        rows, columns = rows[chosen], columns[chosen]
    return np.stack([rows // height, rows % height, columns], axis=1) * spacing


@compiled
def _search_rows(
    starts: np.ndarray,
    columns: np.ndarray,
    other_starts: np.ndarray,
    other_columns: np.ndarray,
    height: int,
    spacing: np.ndarray,
    steps: np.ndarray,
    squares: np.ndarray,
    limit: float,
) -> np.ndarray:
    """Squared distances in mm²; exact up to `limit`, beyond it only known to be larger than that."""
    result = np.empty(len(columns), np.float64)
    num_rows = len(starts) - 1
    depth = num_rows // height
    for row in range(num_rows):
        z, y = row // height, row % height
        for point in range(starts[row], starts[row + 1]):
            x = columns[point]
            best = np.inf
            for number in range(len(squares)):
                if squares[number] >= best:
                    break
                other_z, other_y = z + steps[number, 0], y + steps[number, 1]
                if other_z < 0 or other_z >= depth or other_y < 0 or other_y >= height:
                    continue
                other_row = other_z * height + other_y
                start, stop = other_starts[other_row], other_starts[other_row + 1]
                if start == stop:
                    continue
                while stop - start > 8:  # bisect to the few around x
                    middle = (start + stop) // 2
                    if other_columns[middle] <= x:
                        start = middle
                    else:
                        stop = middle + 1
                nearest = abs(other_columns[start] - x)
                for other in range(start + 1, stop):
                    nearest = min(nearest, abs(other_columns[other] - x))
                best = min(best, squares[number] + (nearest * spacing[2]) ** 2)
            result[point] = best
    return result
