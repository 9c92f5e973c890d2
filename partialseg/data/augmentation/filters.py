"""Filters along the three axes of a patch: each voxel becomes a weighted sum of a few voxels of its row.

Blur is such a filter, and so is sampling down and interpolating up again. All three axes are done in one pass over
the patch, plane by plane, in place: a plane that is overwritten is kept for as long as later planes need it, so that
what is read and written stays in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from partialseg.data.augmentation.kernels import compiled

#: A Gaussian is cut off near this many standard deviations.
_TRUNCATE = 3


class Taps(NamedTuple):
    """Which voxels of a row are added up for each voxel of the result, and by which weights.

    Attributes:
        indices: `(voxels, taps)` int64, positions in the row.
        weights: `(voxels, taps)` float32.
        shifted: Whether all voxels have the same weights, and the taps of the next voxel lie one further, except
            where they would leave the row: then whole rows are added instead of single voxels, which is faster.
    """

    indices: np.ndarray
    weights: np.ndarray
    shifted: bool


def no_taps(size: int) -> Taps:
    """Leaves a row as it is.

    Example:
        >>> no_taps(3).indices.tolist()
        [[0], [1], [2]]
    """
    return Taps(np.arange(size)[:, None], np.ones((size, 1), np.float32), True)


def gaussian_taps(size: int, sigma: float) -> Taps:
    """A Gaussian, its ends mirrored about the outermost voxels.

    Args:
        size: Voxels of the row, at least 1.
        sigma: Standard deviation in voxels, 0 or more.

    Returns:
        An odd number of taps: the one nearest to `6 sigma + 0.5`, as in nnU-Net. The weights sum to 1.

    Example:
        >>> taps = gaussian_taps(3, 0.5)
        >>> taps.indices.tolist()
        [[1, 0, 1], [0, 1, 2], [1, 2, 1]]
        >>> taps.weights[0].round(3).tolist()
        [0.10700000077486038, 0.7870000004768372, 0.10700000077486038]
    """
    reach = int(_TRUNCATE * sigma + 0.25)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2) if reach else np.ones(1)
    weights = (weights / weights.sum()).astype(np.float32)
    period = max(1, 2 * (size - 1))
    indices = (np.arange(size)[:, None] + offsets) % period
    return Taps(
        np.minimum(indices, period - indices) if size > 1 else indices, np.tile(weights, (size, 1)), True
    )


def coarse_taps(size: int, coarse: int) -> Taps:
    """Takes the voxel nearest to the centre of each of fewer, larger voxels, and interpolates linearly between them.

    Both grids cover the same field of view, as in PyTorch's `interpolate(mode="nearest-exact")` followed by
    `interpolate(mode="linear", align_corners=False)`; beyond the outermost centres the value stays. Where a
    centre lies exactly between two voxels the upper one is taken; PyTorch's rounding takes the lower one at times.

    Args:
        size: Voxels of the row, at least 1.
        coarse: How many remain, between 1 and `size`.

    Example:
        >>> taps = coarse_taps(4, 2)
        >>> taps.indices.tolist(), taps.weights.tolist()
        ([[1, 3], [1, 3], [1, 3], [3, 3]], [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [1.0, 0.0]])
    """
    nearest = (2 * np.arange(coarse) + 1) * size // (2 * coarse)
    position = np.maximum((np.arange(size) + 0.5) * coarse / size - 0.5, 0)
    before = np.minimum(position.astype(np.int64), coarse - 1)
    after = np.minimum(before + 1, coarse - 1)
    share = np.where(after > before, position - before, 0)
    weights = np.stack([1 - share, share], axis=1).astype(np.float32)
    return Taps(np.stack([nearest[before], nearest[after]], axis=1), weights, False)


def filter_axes(image: np.ndarray, taps: Sequence[Taps]) -> None:
    """Filter a patch along its three axes, in place.

    Args:
        image: `(depth, height, width)` float32, C-contiguous.
        taps: One for each axis, of as many voxels as the axis has.

    Example:
        >>> image = np.float32([[[0, 2, 4, 8]]])
        >>> filter_axes(image, [no_taps(1), no_taps(1), coarse_taps(4, 2)])
        >>> image.tolist()
        [[[2.0, 3.5, 6.5, 8.0]]]
    """
    along_z, along_y, along_x = taps
    depth, height, width = image.shape
    kept = 1 + max(0, int(np.max(np.arange(depth)[:, None] - along_z.indices)))
    margin = along_x.indices.shape[1] // 2 if along_x.shifted else 0
    _filter_planes(
        image,
        (along_z.indices, along_z.weights),
        (along_y.indices, along_y.weights),
        (np.ascontiguousarray(along_x.indices.T), np.ascontiguousarray(along_x.weights.T)),
        along_x.shifted,
        np.empty((kept, height, width), np.float32),
        np.empty((height, width), np.float32),
        np.empty(width + 2 * margin, np.float32),
    )


@compiled
def _filter_planes(
    image: np.ndarray,
    along_z: tuple[np.ndarray, np.ndarray],
    along_y: tuple[np.ndarray, np.ndarray],
    along_x: tuple[np.ndarray, np.ndarray],
    shifted: bool,
    kept: np.ndarray,
    plane: np.ndarray,
    padded: np.ndarray,
) -> None:
    """Filter plane by plane; `kept` holds the last planes as they were, `plane` and `padded` what is half done."""
    depth, height, width = image.shape
    margin = (padded.size - width) // 2
    row = padded[margin : margin + width]
    for z in range(depth):
        kept[z % kept.shape[0]] = image[z]
        for y in range(height):
            for tap in range(along_z[0].shape[1]):
                source = along_z[0][z, tap]
                if source < z:
                    _add_row(kept[source % kept.shape[0], y], along_z[1][z, tap], tap == 0, plane[y])
                else:
                    _add_row(image[source, y], along_z[1][z, tap], tap == 0, plane[y])
        for y in range(height):
            for tap in range(along_y[0].shape[1]):
                _add_row(plane[along_y[0][y, tap]], along_y[1][y, tap], tap == 0, row)
            if shifted:
                _filter_shifted(padded, along_x[0], along_x[1], image[z, y])
            else:
                _filter_gathered(row, along_x[0], along_x[1], image[z, y])


@compiled
def _add_row(source: np.ndarray, weight: np.float32, first: bool, target: np.ndarray) -> None:
    """Add a weighted row to the target, or write it there if it is the first."""
    if first:
        for x in range(target.size):
            target[x] = weight * source[x]
    else:
        for x in range(target.size):
            target[x] += weight * source[x]


@compiled
def _filter_shifted(padded: np.ndarray, indices: np.ndarray, weights: np.ndarray, target: np.ndarray) -> None:
    """Filter a row by adding it up shifted; its margins are filled here."""
    width = target.size
    margin = (padded.size - width) // 2
    for x in range(margin):
        padded[x] = padded[margin + indices[x, 0]]
        padded[margin + width + x] = padded[margin + indices[margin + 1 + x, width - 1]]
    for tap in range(weights.shape[0]):
        _add_row(padded[tap : tap + width], weights[tap, 0], tap == 0, target)


@compiled
def _filter_gathered(row: np.ndarray, indices: np.ndarray, weights: np.ndarray, target: np.ndarray) -> None:
    """Filter a row by fetching the voxels of each tap."""
    for tap in range(weights.shape[0]):
        index, weight = indices[tap], weights[tap]
        if tap == 0:
            for x in range(target.size):
                target[x] = weight[x] * row[index[x]]
        else:
            for x in range(target.size):
                target[x] += weight[x] * row[index[x]]
