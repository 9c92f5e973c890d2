"""The surface of a mask as a list of points, straight from a label map. Compiled by Numba.

A whole scan has hundreds of millions of voxels, and few of them are surface: no mask of its size is made.
Points are kept in *rows* along the last axis of a box: its row `y + height * z` has the points
`columns[starts[row]:starts[row + 1]]`, in rising order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from partialseg.compiling import compiled


class Surface(NamedTuple):
    """Points of a surface, in rows.

    Attributes:
        starts: int64 `(rows + 1,)`.
        columns: int32 `(points,)`.
        codes: uint8 `(points,)`: for corners of voxels, which of the eight around it are inside
            (see `partialseg.evaluation.surface_area`); 0 for voxels.
    """

    starts: np.ndarray
    columns: np.ndarray
    codes: np.ndarray


@compiled
def organ_boxes(label: np.ndarray, largest: int) -> np.ndarray:
    """The bounding box of each value from 1 on, in one pass.

    Args:
        label: Whole numbers from 0 on, `(depth, height, width)`.
        largest: The last value that counts.

    Returns:
        int64 `(largest + 1, 2, 3)`: first voxel, and the one behind the last; that is 0 where the value is absent.
    """
    depth, height, width = label.shape
    boxes = np.zeros((largest + 1, 2, 3), np.int64)
    boxes[:, 0] = label.size
    for z in range(depth):
        for y in range(height):
            any_value = 0
            for x in range(
                width
            ):  # of most rows no more is read: without a branch this is many times as fast
                any_value |= label[z, y, x]
            if any_value == 0:
                continue
            x = 0
            while x < width:
                value, start = label[z, y, x], x
                x += 1
                while x < width and label[z, y, x] == value:
                    x += 1
                if 0 < value <= largest:
                    _include(boxes[value], z, y, start, x)
    return boxes


@compiled
def _include(box: np.ndarray, z: int, y: int, start: int, stop: int) -> None:
    box[0, 0], box[1, 0] = min(box[0, 0], z), max(box[1, 0], z + 1)
    box[0, 1], box[1, 1] = min(box[0, 1], y), max(box[1, 1], y + 1)
    box[0, 2], box[1, 2] = min(box[0, 2], start), max(box[1, 2], stop)


@compiled
def count_voxels(
    prediction: np.ndarray, truth: np.ndarray, value: int, box: np.ndarray
) -> tuple[int, int, int]:
    """Voxels of a value within a box: predicted, true, and both.

    Args:
        prediction: Whole numbers `(depth, height, width)`.
        truth: Same shape and dtype.
        value: The organ's.
        box: int64 `(2, 3)`, first voxel and the one behind the last.
    """
    predicted, true, both = 0, 0, 0
    for z in range(box[0, 0], box[1, 0]):
        for y in range(box[0, 1], box[1, 1]):
            for x in range(box[0, 2], box[1, 2]):
                in_prediction, in_truth = prediction[z, y, x] == value, truth[z, y, x] == value
                predicted += in_prediction
                true += in_truth
                both += in_prediction and in_truth
    return predicted, true, both


@compiled
def surface_voxels(label: np.ndarray, value: int, box: np.ndarray, num_axes: int) -> Surface:
    """Voxels of a value with a neighbour (of six) of another value, or at the border of the label map.

    Args:
        label: Whole numbers `(depth, height, width)`.
        value: The organ's.
        box: int64 `(2, 3)`, first voxel and the one behind the last; no voxel of the value lies outside.
        num_axes: Neighbours along so many of the last axes count.

    Returns:
        The voxels in rows of the box.
    """
    depth, height, width = label.shape
    left, right = box[0, 2], box[1, 2]
    starts = np.zeros((box[1, 0] - box[0, 0]) * (box[1, 1] - box[0, 1]) + 1, np.int64)
    columns = np.empty(4096, np.int32)
    row, count = 0, 0
    for z in range(box[0, 0], box[1, 0]):
        for y in range(box[0, 1], box[1, 1]):
            columns = _with_room(columns, count, right - left)
            at_border = (num_axes >= 3 and (z == 0 or z == depth - 1)) or (
                num_axes >= 2 and (y == 0 or y == height - 1)
            )
            # At the border every voxel is surface, and along an axis without neighbours a voxel is its own.
            step_z, step_y = int(num_axes >= 3 and not at_border), int(num_axes >= 2 and not at_border)
            for x in range(left, right):
                if label[z, y, x] == value and (
                    at_border
                    or x == 0
                    or x == width - 1
                    or label[z, y, x - 1] != value
                    or label[z, y, x + 1] != value
                    or label[z, y - step_y, x] != value
                    or label[z, y + step_y, x] != value
                    or label[z - step_z, y, x] != value
                    or label[z + step_z, y, x] != value
                ):
                    columns[count] = x - left
                    count += 1
            row += 1
            starts[row] = count
    return Surface(starts, columns[:count], np.zeros(0, np.uint8))


@compiled
def surface_corners(label: np.ndarray, value: int, box: np.ndarray) -> Surface:
    """Corners of the voxel grid around which some of the eight voxels have the value and some have not.

    Args:
        label: Whole numbers `(depth, height, width)`; outside it no voxel has the value.
        value: The organ's.
        box: int64 `(2, 3)`, first voxel and the one behind the last; no voxel of the value lies outside.

    Returns:
        The corners in rows of a box that is larger by one along each axis.
    """
    depth, height, width = box[1, 0] - box[0, 0], box[1, 1] - box[0, 1], box[1, 2] - box[0, 2]
    starts = np.zeros((depth + 1) * (height + 1) + 1, np.int64)
    columns, codes = np.empty(4096, np.int32), np.empty(4096, np.uint8)
    fours = np.zeros(width + 1, np.uint8)  # of each corner in a row, the four voxels on its right
    row, count = 0, 0
    for z in range(depth + 1):
        for y in range(height + 1):
            columns, codes = _with_room(columns, count, width + 1), _with_room(codes, count, width + 1)
            fours[:] = 0
            for number in range(4):
                voxel_z, voxel_y = z - 1 + number // 2, y - 1 + number % 2
                if 0 <= voxel_z < depth and 0 <= voxel_y < height:
                    _mark(
                        fours,
                        label[box[0, 0] + voxel_z, box[0, 1] + voxel_y],
                        value,
                        box[0, 2],
                        1 << 2 * number,
                    )
            left = np.uint8(0)
            for x in range(width + 1):
                code = left | fours[x] << 1
                if 0 < code < 255:
                    columns[count], codes[count] = x, code
                    count += 1
                left = fours[x]
            row += 1
            starts[row] = count
    return Surface(starts, columns[:count], codes[:count])


@compiled
def _mark(fours: np.ndarray, row: np.ndarray, value: int, start: int, bit: int) -> None:
    """Set a bit where a row of the label map has the value; without a branch many voxels go at once."""
    for x in range(len(fours) - 1):
        fours[x] |= np.uint8((row[start + x] == value) * bit)


@compiled
def _with_room(array: np.ndarray, count: int, more: int) -> np.ndarray:
    """The array, or a longer copy where `more` entries after `count` do not fit."""
    if count + more <= len(array):
        return array
    longer = np.empty(2 * len(array) + more, array.dtype)
    for number in range(count):
        longer[number] = array[number]
    return longer
