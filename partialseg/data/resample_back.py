"""From scores on a resampled grid back to labels on the scan's own, plane by plane.

The scores of a whole scan never exist on its own grid, nor need they exist on the resampled one: planes are taken as a
network finishes them, and labels are made as soon as the two planes on either side of theirs are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from partialseg.compiling import compiled
from partialseg.data.resample import linear_places, size_ratios

#: What takes the scores of one plane of the scan: its index, and float32 `(height, width, classes)`.
PlaneConsumer = Callable[[int, np.ndarray], None]


def resample_back(
    scores: np.ndarray,
    spacing_mm: Sequence[float],
    shape: Sequence[int],
    original_spacing_mm: Sequence[float],
) -> np.ndarray:
    """From scores on a resampled grid to labels on the scan's own grid: linear interpolation, then argmax.

    Args:
        scores: Logits or probabilities `(depth, height, width, classes)` on the grid that `resampled_grid`
            gives for `shape` and `original_spacing_mm`.
        spacing_mm: Voxel size `(z, y, x)` of `scores`.
        shape: `(depth, height, width)` of the scan.
        original_spacing_mm: Its voxel size `(z, y, x)`.

    Returns:
        uint8 class indices of shape `shape`.

    Example:
        >>> scores = np.zeros((2, 1, 1, 2)); scores[0, ..., 0] = scores[1, ..., 1] = 1
        >>> resample_back(scores, (2, 1, 1), (4, 1, 1), (1, 1, 1)).ravel().tolist()
        [0, 0, 1, 1]
    """
    result = ScanLabels(scores.shape[:3], spacing_mm, shape, original_spacing_mm)
    for plane in scores:
        result.add(plane)
    return result.labels


class ScanLabels:
    """Labels on a scan's grid, made from planes of scores on a resampled grid as they come.

    Each voxel of the scan gets the class of the largest score, of scores interpolated linearly. Where one class
    leads in all eight voxels around it that class is taken at once: between them it cannot be overtaken.

    Args:
        resampled_shape: `(depth, height, width)` of the resampled grid, see `resampled_grid`.
        spacing_mm: Its voxel size `(z, y, x)`.
        shape: `(depth, height, width)` of the scan.
        original_spacing_mm: Its voxel size `(z, y, x)`.
        on_scores: Called with each plane of the scan in turn: its index and its interpolated scores. It costs an
            interpolation of every class at every voxel, one plane at a time.

    Attributes:
        labels: uint8 class indices of shape `shape`; done when all planes were added.

    Raises:
        ValueError: If a spacing is not above 0.

    Example:
        >>> result = ScanLabels((2, 1, 1), (2, 1, 1), (4, 1, 1), (1, 1, 1))
        >>> result.add(np.array([[[1.0, 0.0]]]))
        >>> result.add(np.array([[[0.0, 1.0]]]))
        >>> result.labels.ravel().tolist()
        [0, 0, 1, 1]
    """

    def __init__(
        self,
        resampled_shape: Sequence[int],
        spacing_mm: Sequence[float],
        shape: Sequence[int],
        original_spacing_mm: Sequence[float],
        on_scores: PlaneConsumer | None = None,
    ) -> None:
        ratios = size_ratios(spacing_mm, original_spacing_mm)
        self._depth, self._height, self._width = (
            linear_places(n, m, ratio) for n, m, ratio in zip(resampled_shape, shape, ratios, strict=True)
        )
        self.labels = np.zeros(tuple(shape), dtype=np.uint8)
        self._on_scores = on_scores
        self._added, self._labelled = 0, 0
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, scores: np.ndarray) -> None:
        """Take the next plane; labels of the scan's planes up to it are made.

        Args:
            scores: `(height, width, classes)`, at most 256 classes. It must not change until the next call has ended.
        """
        scores = np.ascontiguousarray(scores, dtype=np.float32)
        plane = (scores, _leading(scores))
        places, shares = self._depth
        while self._labelled < len(places):
            index = self._labelled
            if places[index] + (shares[index] > 0) > self._added:
                break
            lower = plane if places[index] == self._added else self._before
            self._label(index, lower, plane if shares[index] > 0 else lower, shares[index])
            self._labelled += 1
        self._before = plane
        self._added += 1

    def _label(
        self,
        index: int,
        lower: tuple[np.ndarray, np.ndarray],
        upper: tuple[np.ndarray, np.ndarray],
        share: np.float32,
    ) -> None:
        """Label one plane of the scan between two planes of scores."""
        _label_plane(*lower, *upper, share, *self._height, *self._width, self.labels[index])
        if self._on_scores is not None:
            shape = (*self.labels.shape[1:], lower[0].shape[-1])
            scores = np.empty(shape, np.float32)
            _interpolate_plane(lower[0], upper[0], share, *self._height, *self._width, scores)
            self._on_scores(index, scores)


@compiled
def _leading(scores: np.ndarray) -> np.ndarray:
    """The class of the largest score of each voxel, the first of equals."""
    height, width, classes = scores.shape
    leading = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            for k in range(1, classes):
                if scores[y, x, k] > scores[y, x, leading[y, x]]:
                    leading[y, x] = k
    return leading


@compiled
def _label_plane(
    lower: np.ndarray,
    lower_leading: np.ndarray,
    upper: np.ndarray,
    upper_leading: np.ndarray,
    share: float,
    rows: np.ndarray,
    row_shares: np.ndarray,
    columns: np.ndarray,
    column_shares: np.ndarray,
    labels: np.ndarray,
) -> None:
    """Write the labels of a plane that lies by `share` of a plane's distance above the lower one."""
    height, width, classes = lower.shape
    scores = np.empty((1, classes), np.float32)
    for y in range(labels.shape[0]):
        row = rows[y]
        next_row = min(row + 1, height - 1)
        for x in range(labels.shape[1]):
            column = columns[x]
            after = min(column + 1, width - 1)
            first = lower_leading[row, column]
            differs = (
                (first ^ lower_leading[row, after])
                | (first ^ lower_leading[next_row, column])
                | (first ^ lower_leading[next_row, after])
                | (first ^ upper_leading[row, column])
                | (first ^ upper_leading[row, after])
                | (first ^ upper_leading[next_row, column])
                | (first ^ upper_leading[next_row, after])
            )
            if differs:
                _interpolate(
                    lower,
                    upper,
                    share,
                    row,
                    next_row,
                    row_shares[y],
                    column,
                    after,
                    column_shares[x],
                    scores[0],
                )
                first = 0
                for k in range(1, classes):
                    if scores[0, k] > scores[0, first]:
                        first = k
            labels[y, x] = first


@compiled
def _interpolate_plane(
    lower: np.ndarray,
    upper: np.ndarray,
    share: float,
    rows: np.ndarray,
    row_shares: np.ndarray,
    columns: np.ndarray,
    column_shares: np.ndarray,
    scores: np.ndarray,
) -> None:
    """Write the scores of a plane that lies by `share` of a plane's distance above the lower one."""
    height, width, _ = lower.shape
    for y in range(scores.shape[0]):
        next_row = min(rows[y] + 1, height - 1)
        for x in range(scores.shape[1]):
            after = min(columns[x] + 1, width - 1)
            _interpolate(
                lower,
                upper,
                share,
                rows[y],
                next_row,
                row_shares[y],
                columns[x],
                after,
                column_shares[x],
                scores[y, x],
            )


@compiled
def _interpolate(
    lower: np.ndarray,
    upper: np.ndarray,
    share_z: float,
    row: int,
    next_row: int,
    share_y: float,
    column: int,
    after: int,
    share_x: float,
    scores: np.ndarray,
) -> None:
    """Write the scores at one voxel, between the eight around it."""
    for k in range(scores.shape[0]):
        low = _between(lower, row, next_row, share_y, column, after, share_x, k)
        high = _between(upper, row, next_row, share_y, column, after, share_x, k)
        scores[k] = low + share_z * (high - low)


@compiled
def _between(
    plane: np.ndarray,
    row: int,
    next_row: int,
    share_y: float,
    column: int,
    after: int,
    share_x: float,
    k: int,
) -> float:
    """One score between the four voxels around it in a plane."""
    first = plane[row, column, k] + share_x * (plane[row, after, k] - plane[row, column, k])
    second = plane[next_row, column, k] + share_x * (plane[next_row, after, k] - plane[next_row, column, k])
    return first + share_y * (second - first)
