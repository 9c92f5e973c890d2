"""Blend windows of logits into planes, and turn planes into probabilities: loops compiled by Numba.

They let go of Python's global lock: a window is added while the network computes the next one, on cores that it leaves
idle.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from partialseg.compiling import compiled
from partialseg.machine import usable_cores

#: With more threads the memory is the limit.
MAX_THREADS = 4
#: Background's logit in a window that is not computed; the other classes have 0.
CERTAIN = np.float32(20)
NOT_NUMBERS = "the network gave values that are not numbers"


class BlendedPlanes:
    """Weighted sums of the logits of windows, of the whole volume, or of as many planes as a window is deep.

    The planes are a ring: plane `z` of the volume lies at `z % depth`. A row of all classes is one run of memory, so
    that adding a window costs little more than one pass over its logits. A window is still being added when `add` is
    back; the next one, and whoever asks for a plane, waits until it is in. So sums do not depend on who was faster.

    Args:
        shape: `(depth, height, width)` of the sums: at least as deep as a window.
        num_classes: Background included.
        patch_size: `(depth, height, width)` of a window.
        mirrored_classes: Which class each class is in a mirrored window; None: itself.

    Example:
        >>> sums = BlendedPlanes((2, 3, 4), 2, (2, 3, 4))
        >>> ones = [np.ones(size, np.float32) for size in (2, 3, 4)]
        >>> sums.add(np.full((2, 3, 4, 2), 0.5, np.float32), (5, 0, 0), ones)
        >>> sums.plane(6).sum(), sums.plane(6).shape
        (12.0, (3, 4, 2))
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        num_classes: int,
        patch_size: tuple[int, int, int],
        mirrored_classes: Sequence[int] | None = None,
    ) -> None:
        self.num_classes = num_classes
        depth, height, width = shape
        classes = np.arange(num_classes) if mirrored_classes is None else np.asarray(mirrored_classes)
        #: For each logit of a window's row its place in the row of a mirrored window.
        self._mirrored_row = (np.arange(patch_size[2])[::-1, np.newaxis] * num_classes + classes).ravel()
        self._threads = min(MAX_THREADS, usable_cores())
        self._pool = ThreadPoolExecutor(self._threads)
        #: The parts of the last window that are being added.
        self._tasks: list[Future] = []
        # np.zeros would come in small pages, which take longer than the blending of some windows.
        self._sums = np.empty((depth, height, width * num_classes), np.float32)
        self.clear(range(depth))

    def add(
        self,
        logits: np.ndarray,
        start: tuple[int, int, int],
        weights: Sequence[np.ndarray],
        mirrored: tuple[bool, bool, bool] = (False, False, False),
    ) -> None:
        """Add a window, times the product of the weights along its axes.

        Args:
            logits: float32 `(depth, height, width, classes)`, as the network gave them; not to be changed afterwards.
            start: First voxel `(z, y, x)` of the window in the volume.
            weights: float32, one array for each axis.
            mirrored: Whether the network saw the window mirrored along `(z, y, x)`; it is mirrored back here.
        """
        rows = logits.reshape(*logits.shape[:2], -1)
        depth, height, width = weights
        where = (start[0], start[1], start[2] * self.num_classes)
        row_weights = np.repeat(width, self.num_classes)
        ends = [len(rows) * part // self._threads for part in range(self._threads + 1)]
        self._wait()
        self._tasks = [
            self._pool.submit(
                _add_window,
                self._sums,
                rows,
                part,
                where,
                depth,
                height,
                row_weights,
                mirrored,
                self._mirrored_row,
            )
            for part in itertools.pairwise(ends)
        ]

    def add_background(self, start: tuple[int, int, int], weights: Sequence[np.ndarray]) -> None:
        """Add a window that is background for certain."""
        self._wait()
        where = (start[0], start[1], start[2] * self.num_classes)
        _add_background(self._sums, where, *weights, self.num_classes)

    def plane(self, index: int) -> np.ndarray:
        """The sums of a plane of the volume, float32 `(height, width, classes)`: a view."""
        self._wait()
        plane = self._sums[index % len(self._sums)]
        return plane.reshape(len(plane), -1, self.num_classes)

    def planes(self) -> np.ndarray:
        """The sums of all planes, float32 `(depth, height, width, classes)`: a view."""
        self._wait()
        return self._sums.reshape(*self._sums.shape[:2], -1, self.num_classes)

    def clear(self, planes: range) -> None:
        """Make room for planes that come later."""
        self._wait()
        list(self._pool.map(lambda index: self._sums[index % len(self._sums)].fill(0), planes))

    def softmax(self, planes: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]) -> None:
        """Write the probabilities of some planes; see `softmax`, also for what is raised."""
        self._wait()
        list(self._pool.map(softmax, planes, probabilities))

    def check(self, planes: Sequence[np.ndarray]) -> None:
        """Make sure that planes are of numbers.

        Raises:
            FloatingPointError: If a value is NaN or +inf, or all of a plane are -inf. Some that are -inf pass: they are
                classes that are certainly not there.
        """
        self._wait()
        if not np.isfinite(list(self._pool.map(np.max, planes))).all():
            raise FloatingPointError(NOT_NUMBERS)

    def _wait(self) -> None:
        """Until the last window is added; what it keeps in memory is let go."""
        for task in self._tasks:
            task.result()
        self._tasks = []


@compiled
def _add_window(
    total: np.ndarray,
    logits: np.ndarray,
    planes: tuple[int, int],
    start: tuple[int, int, int],
    depth_weights: np.ndarray,
    height_weights: np.ndarray,
    row_weights: np.ndarray,
    mirrored: tuple[bool, bool, bool],
    source: np.ndarray,
) -> None:
    """Add some planes of a window of logits `(depth, height, width * classes)`; `start[2]` counts logits too."""
    depth, height, length = logits.shape
    for z in range(planes[0], planes[1]):
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
def _add_background(
    total: np.ndarray,
    start: tuple[int, int, int],
    depth_weights: np.ndarray,
    height_weights: np.ndarray,
    width_weights: np.ndarray,
    num_classes: int,
) -> None:
    for z in range(len(depth_weights)):
        plane = total[(start[0] + z) % total.shape[0]]
        for y in range(len(height_weights)):
            weight = CERTAIN * depth_weights[z] * height_weights[y]
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

    Raises:
        FloatingPointError: If a logit is NaN or +inf, or all of a voxel are -inf, so that there are no probabilities.
            A class of -inf beside others has the probability 0.

    Example:
        >>> softmax(np.log(np.array([[[1, 3], [2, 2]]], np.float32)), np.empty((1, 2, 2), np.float32)).tolist()
        [[[0.25, 0.75], [0.5, 0.5]]]
    """
    _subtract_largest(logits, probabilities)
    np.exp(
        probabilities, out=probabilities
    )  # NumPy's exponential is several at a time; a compiled loop's is not
    if not _divide_by_sum(probabilities.reshape(-1, probabilities.shape[-1])):
        raise FloatingPointError(NOT_NUMBERS)
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
def _divide_by_sum(voxels: np.ndarray) -> bool:
    """Whether all sums are numbers."""
    are_numbers = True
    for i in range(voxels.shape[0]):
        total = np.float32(0)
        for k in range(voxels.shape[1]):
            total += voxels[i, k]
        are_numbers &= np.isfinite(total)
        factor = np.float32(1) / total
        for k in range(voxels.shape[1]):
            voxels[i, k] *= factor
    return are_numbers
