"""Where the windows of a volume lie along an axis, and what each weighs there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: the last window ends with the axis, steps are even.

    Args:
        size: Voxels along the axis, at least `patch`.
        patch: Voxels of a window.
        overlap: Share of a window that it has in common with the next one at least.

    Example:
        >>> window_starts(10, 4, 0.5), window_starts(11, 4, 0.5), window_starts(4, 4, 0.5)
        ([0, 2, 4, 6], [0, 2, 4, 5, 7], [0])
    """
    steps = math.ceil((size - patch) / max(1.0, patch * (1 - overlap)))
    return [round(step * (size - patch) / max(steps, 1)) for step in range(steps + 1)]


def window_weights(starts: Sequence[int], size: int, patch: int) -> np.ndarray:
    """Gaussian weights of the windows along one axis, scaled to sum to 1 at every voxel.

    The windows of a volume are a grid, so the product of the weights along its axes sums to 1 as well: no
    volume of weights is needed to divide by.

    Args:
        starts: First voxels of the windows, which cover the axis.
        size: Voxels along the axis.
        patch: Voxels of a window.

    Returns:
        float32 `(windows, patch)`.

    Example:
        >>> print(window_weights([0, 2], 6, 4).round(3))
        [[1.    1.    0.982 0.018]
         [0.018 0.982 1.    1.   ]]
    """
    offset = (np.arange(patch) - (patch - 1) / 2) / (patch / 8)
    gaussian = np.exp(-0.5 * offset**2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + patch] += gaussian
    return np.stack([gaussian / total[start : start + patch] for start in starts]).astype(np.float32)
