"""Add windows of logits to their weighted sum, and turn sums into probabilities: loops compiled by Numba.

A sum is float32 `(planes, height, width * classes)`: a row is one run of memory, so that adding a window costs
little more than one pass over its logits. The planes are a ring: plane `z` of the volume lies at `z % planes`.
"""

from __future__ import annotations

import numpy as np

from partialseg.data.augmentation.kernels import compiled


@compiled
def add_window(
    total: np.ndarray,
    logits: np.ndarray,
    start: tuple[int, int, int],
    depth_weights: np.ndarray,
    height_weights: np.ndarray,
    row_weights: np.ndarray,
    mirrored: tuple[bool, bool, bool],
    source: np.ndarray,
) -> None:
    """Add the logits of a window, times the product of the weights along its axes.

    Args:
        total: The sum, written to.
        logits: float32 `(depth, height, width * classes)`, as the network gave them.
        start: Plane and row of the window's first voxel in the volume, and the place in the row of its first logit.
        depth_weights: float32, one for each plane.
        height_weights: float32, one for each row.
        row_weights: float32, one for each logit of a row.
        mirrored: Whether the network saw the window mirrored along `(z, y, x)`; it is mirrored back here.
        source: Whole numbers: for each logit of a row its place in a row that is mirrored along x.
    """
    depth, height, length = logits.shape
    for z in range(depth):
        plane = total[(start[0] + z) % total.shape[0]]
        for y in range(height):
            weight = depth_weights[z] * height_weights[y]
            target = plane[start[1] + y, start[2] : start[2] + length]
            values = logits[depth - 1 - z if mirrored[0] else z, height - 1 - y if mirrored[1] else y]
            if mirrored[2]:
                for i in range(length):
                    target[i] += weight * row_weights[i] * values[source[i]]
            else:
                for i in range(length):
                    target[i] += weight * row_weights[i] * values[i]


@compiled
def add_background(
    total: np.ndarray,
    logit: float,
    start: tuple[int, int, int],
    depth_weights: np.ndarray,
    height_weights: np.ndarray,
    width_weights: np.ndarray,
    num_classes: int,
) -> None:
    """Add a window whose background has a logit and whose other classes have 0.

    Args:
        total: The sum, written to.
        logit: The logit of background.
        start: As for `add_window`.
        depth_weights: float32, one for each plane.
        height_weights: float32, one for each row.
        width_weights: float32, one for each voxel of a row.
        num_classes: Background included.
    """
    for z in range(len(depth_weights)):
        plane = total[(start[0] + z) % total.shape[0]]
        for y in range(len(height_weights)):
            weight = np.float32(logit) * depth_weights[z] * height_weights[y]
            target = plane[start[1] + y]
            for x in range(len(width_weights)):
                target[start[2] + x * num_classes] += weight * width_weights[x]


def softmax(logits: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Probabilities of a plane of logits.

    Args:
        logits: float32 `(height, width, classes)`, a part of a larger array perhaps.
        probabilities: float32, the same shape, C-contiguous; written to.

    Returns:
        `probabilities`.

    Example:
        >>> softmax(np.log(np.array([[[1, 3], [2, 2]]], np.float32)), np.empty((1, 2, 2), np.float32)).tolist()
        [[[0.25, 0.75], [0.5, 0.5]]]
    """
    _subtract_largest(logits, probabilities)
    np.exp(
        probabilities, out=probabilities
    )  # NumPy's exponential is several at a time; a compiled loop's is not
    _divide_by_sum(probabilities.reshape(-1, probabilities.shape[-1]))
    return probabilities


@compiled
def _subtract_largest(logits: np.ndarray, target: np.ndarray) -> None:
    for y in range(logits.shape[0]):
        for x in range(logits.shape[1]):
            largest = logits[y, x, 0]
            for k in range(1, logits.shape[2]):
                largest = max(largest, logits[y, x, k])
            for k in range(logits.shape[2]):
                target[y, x, k] = logits[y, x, k] - largest


@compiled
def _divide_by_sum(voxels: np.ndarray) -> None:
    for i in range(voxels.shape[0]):
        total = np.float32(0)
        for k in range(voxels.shape[1]):
            total += voxels[i, k]
        factor = np.float32(1) / total
        for k in range(voxels.shape[1]):
            voxels[i, k] *= factor
