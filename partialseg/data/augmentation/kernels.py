"""Loops over the voxels of a patch, compiled by Numba: cut a box, or turn and scale it, and write out candidates.

They let go of Python's global lock, so that patches are read by several threads at the same time.

A *row table* says what a label value writes: uint8 `(values, width * classes)`, the candidates of a value repeated
along a row of the patch. Label maps have long runs of one value, and a run is copied from it at once, which makes
candidates about as fast as a plain copy of them would be.
"""

from __future__ import annotations

import numpy as np

from partialseg.compiling import compiled


def row_table(table: np.ndarray, width: int) -> np.ndarray:
    """The candidates of each value along a row.

    Args:
        table: uint8 `(values, classes)`, see `partialseg.data.labels.candidate_table`.
        width: Voxels of a row.

    Returns:
        uint8 `(values, width * classes)`.

    Example:
        >>> row_table(np.array([[1, 0], [0, 1]], np.uint8), 3).tolist()
        [[1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 1]]
    """
    return np.tile(np.ascontiguousarray(table, np.uint8), (1, width))


@compiled
def cut(
    box_image: np.ndarray,
    box_label: np.ndarray,
    mirrored: tuple[bool, bool, bool],
    window_hu: tuple[float, float],
    rows: np.ndarray,
    image: np.ndarray,
    candidates: np.ndarray,
) -> int:
    """Write a patch from a box of its own size.

    Args:
        box_image: int16 HU `(depth, height, width)`.
        box_label: uint8 values, same shape.
        mirrored: Whether each axis is mirrored.
        window_hu: HU to which the image is clipped.
        rows: The row table, see above.
        image: float32 `(depth, height, width)`, written to.
        candidates: uint8 `(depth, height, width * classes)`, written to.

    Returns:
        -1, or the first label value for which the row table has no row; then not all is written.
    """
    depth, height, width = image.shape
    low, high = np.float32(window_hu[0]), np.float32(window_hu[1])
    labels = np.empty(width, np.uint8)
    for z in range(depth):
        for y in range(height):
            from_z = depth - 1 - z if mirrored[0] else z
            from_y = height - 1 - y if mirrored[1] else y
            source, target, values = box_image[from_z, from_y], image[z, y], box_label[from_z, from_y]
            if mirrored[2]:
                backwards, values_backwards = source[::-1], values[::-1]
                for x in range(width):
                    target[x] = min(max(np.float32(backwards[x]), low), high)
                for x in range(width):
                    labels[x] = values_backwards[x]
                found = _write_candidates(labels, rows, candidates[z, y])
            else:
                for x in range(width):
                    target[x] = min(max(np.float32(source[x]), low), high)
                found = _write_candidates(values, rows, candidates[z, y])
            if found >= 0:
                return found
    return -1


@compiled
def resample(
    box_image: np.ndarray,
    box_label: np.ndarray,
    matrix: np.ndarray,
    offset: np.ndarray,
    window_hu: tuple[float, float],
    rows: np.ndarray,
    scratch: tuple[np.ndarray, np.ndarray],
    image: np.ndarray,
    candidates: np.ndarray,
) -> int:
    """Write a patch of which voxel `p` lies at `matrix @ p + offset` in a box: turned, scaled, mirrored.

    The image is interpolated linearly. A voxel's label value is the one for which the voxels around it vote, with
    the same weights: no value comes out that is not among them, and candidates of different values never mix.

    Args:
        box_image: int16 HU, of any size that holds the positions of all voxels and the voxels around them.
        box_label: uint8 values, same shape.
        matrix: float64 `(3, 3)`.
        offset: float64 `(3,)`.
        window_hu: HU to which the image is clipped before it is interpolated.
        rows: The row table, see above.
        scratch: float32 and uint8, each with an element for every voxel of the box, of any content.
        image: float32 `(depth, height, width)`, written to.
        candidates: uint8 `(depth, height, width * classes)`, written to.

    Returns:
        As `cut`.
    """
    depth, height, width = image.shape
    _, box_height, box_width = box_image.shape
    low, high = np.float32(window_hu[0]), np.float32(window_hu[1])
    clipped, mixed = scratch
    voxels = box_image.reshape(-1)
    for i in range(voxels.size):
        clipped[i] = min(max(np.float32(voxels[i]), low), high)
    # In planes alone, each voxel lies in one plane of the box and has four voxels around it instead of eight.
    flat = (
        matrix[0, 1] == 0 and matrix[0, 2] == 0 and abs(matrix[0, 0]) == 1 and offset[0] == round(offset[0])
    )
    _find_mixed_places(box_label, flat, mixed)
    values = box_label.reshape(-1)
    labels = np.empty(width, np.uint8)
    places, steps = np.empty(width, np.int32), np.empty((3, width), np.float32)
    around, weights = np.empty(8, np.uint8), np.empty(8, np.float32)
    for z in range(depth):
        for y in range(height):
            _positions(matrix, offset, z, y, box_height, box_width, places, steps)
            if flat:
                _bilinear(clipped, box_width, places, steps, image[z, y])
            else:
                _trilinear(clipped, box_width, box_height * box_width, places, steps, image[z, y])
            for x in range(width):
                place = np.uint64(np.uint32(places[x]))
                labels[x] = values[place]
                if mixed[place]:
                    shares = (steps[0, x], steps[1, x], steps[2, x])
                    labels[x] = _vote(
                        values, places[x], box_width, box_height * box_width, shares, flat, around, weights
                    )
            found = _write_candidates(labels, rows, candidates[z, y])
            if found >= 0:
                return found
    return -1


@compiled
def _write_candidates(values: np.ndarray, rows: np.ndarray, candidates: np.ndarray) -> int:
    """Write a row of candidates, run by run; gives the first value that the table has not, or -1."""
    width = values.shape[0]
    classes = candidates.shape[0] // width
    start = 0
    while start < width:
        value = values[start]
        if value >= rows.shape[0]:
            return value
        stop = _end_of_run(values, start)
        source, target = (
            rows[value, start * classes : stop * classes],
            candidates[start * classes : stop * classes],
        )
        for i in range(target.shape[0]):
            target[i] = source[i]
        start = stop
    return -1


@compiled
def _end_of_run(values: np.ndarray, start: int) -> int:
    """Where another value follows; in blocks that the processor compares at once, as far as they go."""
    width, value, stop = values.shape[0], values[start], start + 1
    while stop + 32 <= width:
        block, differs = values[stop : stop + 32], np.uint8(0)
        for i in range(32):
            differs |= block[i] ^ value
        if differs:
            break
        stop += 32
    while stop < width and values[stop] == value:
        stop += 1
    return stop


@compiled
def _find_mixed_places(label: np.ndarray, flat: bool, found: np.ndarray) -> None:
    """Note where the four or eight voxels from each one on, to the next along each axis, hold different values.

    The last voxels along an axis have no next ones, and no position lies beyond them: there nothing is written.
    """
    depth, height, width = label.shape
    mixed = found[: label.size].reshape(label.shape)
    for z in range(depth if flat else depth - 1):
        for y in range(height - 1):
            here, below, target = label[z, y], label[z, y + 1], mixed[z, y]
            for x in range(width - 1):
                target[x] = (here[x] ^ here[x + 1]) | (here[x] ^ below[x]) | (here[x] ^ below[x + 1])
            if not flat:
                here_up, below_up = label[z + 1, y], label[z + 1, y + 1]
                for x in range(width - 1):
                    target[x] |= (here[x] ^ here_up[x]) | (here[x] ^ here_up[x + 1])
                    target[x] |= (here[x] ^ below_up[x]) | (here[x] ^ below_up[x + 1])


@compiled
def _positions(
    matrix: np.ndarray,
    offset: np.ndarray,
    z: int,
    y: int,
    box_height: int,
    box_width: int,
    places: np.ndarray,
    steps: np.ndarray,
) -> None:
    """Where the voxels of a row lie: the flat index of the voxel before each, and the steps on from there (0 to 1)."""
    start_z = np.float32(matrix[0, 0] * z + matrix[0, 1] * y + offset[0])
    start_y = np.float32(matrix[1, 0] * z + matrix[1, 1] * y + offset[1])
    start_x = np.float32(matrix[2, 0] * z + matrix[2, 1] * y + offset[2])
    step_z, step_y, step_x = np.float32(matrix[0, 2]), np.float32(matrix[1, 2]), np.float32(matrix[2, 2])
    plane, row = np.int32(box_height * box_width), np.int32(box_width)
    for x in range(places.shape[0]):
        along = np.float32(np.int32(x))
        at_z, at_y, at_x = start_z + step_z * along, start_y + step_y * along, start_x + step_x * along
        before_z, before_y, before_x = np.int32(at_z), np.int32(at_y), np.int32(at_x)
        steps[0, x] = at_z - np.float32(before_z)
        steps[1, x] = at_y - np.float32(before_y)
        steps[2, x] = at_x - np.float32(before_x)
        places[x] = before_z * plane + before_y * row + before_x


@compiled
def _bilinear(
    voxels: np.ndarray, row: int, places: np.ndarray, steps: np.ndarray, target: np.ndarray
) -> None:
    """Interpolate a row between the four voxels around each place in its plane."""
    for x in range(target.shape[0]):
        here = np.uint64(np.uint32(places[x]))  # unsigned: Numba need not look for indices below 0
        below = here + np.uint64(row)
        step_y, step_x = steps[1, x], steps[2, x]
        upper = voxels[here] + step_x * (voxels[here + np.uint64(1)] - voxels[here])
        lower = voxels[below] + step_x * (voxels[below + np.uint64(1)] - voxels[below])
        target[x] = upper + step_y * (lower - upper)


@compiled
def _trilinear(
    voxels: np.ndarray, row: int, plane: int, places: np.ndarray, steps: np.ndarray, target: np.ndarray
) -> None:
    """Interpolate a row between the eight voxels around each place."""
    for x in range(target.shape[0]):
        here = np.uint64(np.uint32(places[x]))
        below, up = here + np.uint64(row), here + np.uint64(plane)
        both = below + np.uint64(plane)
        step_z, step_y, step_x = steps[0, x], steps[1, x], steps[2, x]
        first = voxels[here] + step_x * (voxels[here + np.uint64(1)] - voxels[here])
        second = voxels[below] + step_x * (voxels[below + np.uint64(1)] - voxels[below])
        third = voxels[up] + step_x * (voxels[up + np.uint64(1)] - voxels[up])
        fourth = voxels[both] + step_x * (voxels[both + np.uint64(1)] - voxels[both])
        lower, upper = first + step_y * (second - first), third + step_y * (fourth - third)
        target[x] = lower + step_z * (upper - lower)


@compiled
def _vote(
    values: np.ndarray,
    place: int,
    row: int,
    plane: int,
    steps: tuple[float, float, float],
    flat: bool,
    around: np.ndarray,
    weights: np.ndarray,
) -> int:
    """The value with the greatest weight among the voxels around a place; the first of equals.

    `around` and `weights` have room for eight: memory of its own would cost more than the vote.
    """
    weights[:] = 0
    for corner in range(4 if flat else 8):
        up, down, right = corner >> 2, (corner >> 1) & 1, corner & 1
        around[corner] = values[place + up * plane + down * row + right]
        weight_z = np.float32(1) if flat else (steps[0] if up else 1 - steps[0])
        weight_y = steps[1] if down else 1 - steps[1]
        weight = weight_z * weight_y * (steps[2] if right else 1 - steps[2])
        first = corner
        for earlier in range(corner):
            if around[earlier] == around[corner]:
                first = earlier
                break
        weights[first] += weight
    best = 0
    for corner in range(1, 4 if flat else 8):
        if weights[corner] > weights[best]:
            best = corner
    return around[best]


def box_of(
    matrix: np.ndarray, offset: np.ndarray, patch_size: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The box that `resample` needs: its first voxel, and its size.

    Args:
        matrix: float64 `(3, 3)`: voxel `p` of the patch lies at `matrix @ p + offset` in the volume.
        offset: float64 `(3,)`.
        patch_size: `(depth, height, width)`.

    Returns:
        Two arrays of whole numbers `(z, y, x)`; the box may reach out of the volume.

    Example:
        >>> start, size = box_of(np.eye(3), np.array([4.0, -1.5, 0.0]), (2, 3, 4))
        >>> start.tolist(), size.tolist()
        ([3, -2, -1], [4, 4, 6])
    """
    last = np.array(patch_size) - 1
    reach = np.stack([matrix * 0, matrix * last])
    # Positions are float32 later on: what is whole but for some 1e-5 of a voxel may fall to either side.
    start = np.floor(offset + reach.min(axis=0).sum(axis=1) - 1e-3).astype(int)
    stop = np.floor(offset + reach.max(axis=0).sum(axis=1) + 1e-3).astype(int) + 2
    return start, stop - start
