"""From one voxel spacing to another and back, by one small matrix per axis.

Interpolation along an axis is linear in the values, cubic splines included, so it is a matrix of
`(voxels out, voxels in)`; a volume is resampled by three matrix products, which BLAS does many times faster
than a spline evaluated voxel by voxel, with the same result. The mean of a spline over each new voxel is a
matrix too, so that an image made coarser without aliasing costs the same.

All grids share the centre of the field of view: with n voxels of size s before and n' of size s' after, voxel
i' after lies at index `(i' - (n' - 1) / 2) * s' / s + (n - 1) / 2` before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from partialseg.data.boxes import value_boxes

#: Shares of a voxel that differ by less than this count as equal.
_SAME_SHARE = 1e-4
#: With a smaller share of foreground a voxel is background, even if a value loses volume.
_LEAST_SHARE = 0.2
#: Voxels of equal share are taken where the volume asks for this part of them: a flat sheet as thin as a third
#: of a new voxel remains, without holes.
_FEWEST = 0.3
#: Voxels that differ by less than this part in size count as equal.
_SAME_RATIO = 1e-4
#: The pole of the cubic spline's prefilter: the influence of a value falls by this factor with each voxel.
_POLE = math.sqrt(3) - 2
#: So many voxels away a value changes the spline by 1e-7 of itself.
_SPLINE_REACH = 12
_NO_WEIGHT = 1e-8
#: Positions of labels are moved by this part of a voxel, so that two voxels on either side of a thin sheet differ.
_SHIFT = 1e-3
#: Outputs that are computed together: many for BLAS to be fast, few to leave out the zeros of a matrix.
_BAND = 16
#: Columns across the slices that are computed together, so that they stay in the cache.
_CHUNK = 2048


#: Voxel sizes that cases may be brought to, in mm: far beyond what CT has, and far within what memory holds.
SMALLEST_MM, LARGEST_MM = 0.1, 50.0


def check_spacing(spacing_mm: Sequence[float]) -> None:
    """Refuse a voxel size that was mistyped, before hours go into it.

    Args:
        spacing_mm: Along each axis.

    Raises:
        ValueError: If one is below 0.1 mm, above 50 mm, or no number.

    Example:
        >>> check_spacing((3.0, 1.5, 1e9))
        Traceback (most recent call last):
        ValueError: the voxel size must be 0.1 to 50 mm along each axis, received 3 1.5 1e+09
    """
    if not all(SMALLEST_MM <= length <= LARGEST_MM for length in spacing_mm):
        received = " ".join(f"{length:g}" for length in spacing_mm)
        raise ValueError(
            f"the voxel size must be {SMALLEST_MM:g} to {LARGEST_MM:g} mm along each axis, received {received}"
        )


def resampled_grid(
    shape: Sequence[int], affine: np.ndarray, spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> tuple[tuple[int, int, int], np.ndarray]:
    """The grid of another spacing over the same field of view, with the same centre.

    Args:
        shape: `(depth, height, width)` in voxels.
        affine: 4 x 4, world position in mm of the voxel index `(x, y, z)`.
        spacing_mm: Voxel size `(z, y, x)`.
        new_spacing_mm: Voxel size wanted, `(z, y, x)`; it is met exactly.

    Returns:
        The new shape, `max(1, round(n * s / s'))` along each axis, and the new affine.

    Raises:
        ValueError: If a spacing is not above 0.

    Example:
        >>> shape, affine = resampled_grid((4, 4, 4), np.diag([1.0, 1, 2, 1]), (2, 1, 1), (4, 2, 1))
        >>> shape
        (2, 2, 4)
        >>> affine[:3, 3].tolist()
        [0.0, 0.5, 1.0]
    """
    ratios = size_ratios(spacing_mm, new_spacing_mm)
    new_shape = tuple(max(1, round(n / ratio)) for n, ratio in zip(shape, ratios, strict=True))
    first = [(n - 1) / 2 - (m - 1) / 2 * r for n, m, r in zip(shape, new_shape, ratios, strict=True)]
    step = np.diag([*reversed(ratios), 1.0])
    step[:3, 3] = first[::-1]
    return new_shape, np.asarray(affine, dtype=float) @ step


def resample_image(
    array: np.ndarray,
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
    antialias: bool = True,
) -> np.ndarray:
    """Resample an image, its edges continued by their own value.

    Along an axis whose voxels become smaller it is the cubic spline through the values: the result of
    `scipy.ndimage` with `order=3, mode="nearest"` at the same positions.

    Along an axis whose voxels become larger, a spline takes one point of each new voxel, and what lies between
    (noise, fine texture, thin walls) turns into errors of the result. There each new voxel gets the mean
    over its extent of the histospline, the smooth curve whose mean over each old voxel is that voxel's value
    (Boneva, Kendall and Stefanov 1971): the cubic spline through the running sums, differenced, as in the
    finite-difference form of least-squares reduction (Muñoz, Blu and Unser 2001). A scan with the larger
    voxels would have measured such means. It keeps the sum of the values, and turns smoothly into no change at
    all as the sizes become equal. In benchmarks/results/resampling.md none of five ways is closer to the true
    means of a scan without noise, by more than 0.1%. With 20 HU of noise the mean of the cubic spline itself
    comes up to 10% closer, since it blurs more, and the spline without means is off by up to 2.7 times as much.

    Args:
        array: `(depth, height, width)`, HU.
        spacing_mm: Its voxel size `(z, y, x)`.
        new_spacing_mm: The voxel size wanted, `(z, y, x)`.
        antialias: Take means where voxels become larger; False for the cubic spline along every axis.

    Returns:
        float32 on the grid of `resampled_grid`. At strong edges it overshoots a little.

    Example:
        >>> ramp = np.arange(100.0).reshape(100, 1, 1)
        >>> resample_image(ramp, (1, 1, 1), (4, 1, 1)).ravel().round(3).tolist()[10:13]
        [41.5, 45.5, 49.5]
        >>> stripes = np.tile([0.0, 100.0], 12).reshape(24, 1, 1)
        >>> resample_image(stripes, (1, 1, 1), (2, 1, 1)).ravel().round(3).tolist()[4:6]
        [50.0, 50.0]
    """
    interpolation = _mean_matrix if antialias else _cubic_matrix
    depth, height, width = _matrices(interpolation, array.shape, spacing_mm, new_spacing_mm)
    if len(depth) < array.shape[0] / 2:  # then far fewer slices remain: across the slices first
        return _in_plane(_across(np.asarray(array, dtype=np.float32), depth), height, width)
    return _across(_in_plane(array, height, width), depth)


def resample_label(
    array: np.ndarray, spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]
) -> np.ndarray:
    """Resample a label map: the value with the largest share of a voxel, and as many voxels as keep the volume.

    A value's share of a new voxel is the mean of its linearly interpolated mask over the voxel (or over an old
    one where that is larger). Among the values other than 0 the largest share wins, the lower value if they
    are equal. Whether a voxel is background is decided for each value's territory as a whole: of the voxels
    where the value leads, those with the smallest share of background keep it, as many as its volume fills.
    For a large organ that draws the line where background has half of the voxel. A sheet or a tube thinner
    than a new voxel, of which that would leave holes or nothing, has its line lower, and outlives.

    Sets of classes are values like others: no voxel gets a value that is not in the map.

    Args:
        array: Whole numbers, not negative, `(depth, height, width)`.
        spacing_mm: Its voxel size `(z, y, x)`.
        new_spacing_mm: The voxel size wanted, `(z, y, x)`.

    Returns:
        The values on the grid of `resampled_grid`, dtype of `array`.

    Raises:
        ValueError: If a value is negative.

    Example:
        >>> label = np.array([0, 0, 3, 3, 3, 5, 5, 5]).reshape(8, 1, 1)
        >>> resample_label(label, (1, 1, 1), (2, 1, 1)).ravel().tolist()
        [0, 3, 3, 5]
    """
    if array.size and array.min() < 0:
        raise ValueError(f"label values must not be negative, the smallest here is {array.min()}")
    new_shape, _ = resampled_grid(array.shape, np.eye(4), spacing_mm, new_spacing_mm)
    if new_shape == array.shape and np.allclose(spacing_mm, new_spacing_mm, rtol=_SAME_RATIO, atol=0):
        return array.copy()
    matrices = _matrices(_share_matrix, array.shape, spacing_mm, new_spacing_mm)
    labels = np.zeros(new_shape, dtype=array.dtype)
    largest, foreground = (np.zeros(new_shape, dtype=np.float32) for _ in range(2))
    territories = []
    for index, box in enumerate(value_boxes(array)):
        if box is None:
            continue
        reached = tuple(_reached(matrix, part) for matrix, part in zip(matrices, box, strict=True))
        depth, height, width = (m[r, b] for m, r, b in zip(matrices, reached, box, strict=True))
        share = _across(_in_plane(array[box] == index + 1, height, width), depth)
        leads = share > largest[reached] + _SAME_SHARE
        labels[reached][leads] = index + 1
        largest[reached][leads] = share[leads]
        foreground[reached] += share
        territories.append((index + 1, reached))
    for value, box in territories:
        _leave_background(labels[box], foreground[box], value)
    return labels


def linear_places(num_in: int, num_out: int, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Between which values of an axis the voxels of a new one lie, for linear interpolation.

    The outermost values go on beyond the ends.

    Args:
        num_in: Voxels of the axis.
        num_out: Voxels of the new axis.
        ratio: New voxel size in old voxels.

    Returns:
        The value before each new voxel, int64, and the weight of the one after it, float32; 0 where there is none.

    Example:
        >>> before, share = linear_places(2, 4, 0.5)
        >>> before.tolist(), share.tolist()
        ([0, 0, 0, 1], [0.0, 0.25, 0.75, 0.0])
    """
    positions = np.clip(_positions(num_in, num_out, ratio), 0, num_in - 1)
    before = positions.astype(np.int64)
    return before, (positions - before).astype(np.float32)


def _leave_background(labels: np.ndarray, foreground: np.ndarray, value: int) -> None:
    """Set the voxels of a value's territory to 0 but those that its volume fills; in place.

    Args:
        labels: The value that leads in each voxel.
        foreground: Share of all values other than 0 in each voxel.
        value: Whose territory it is.
    """
    territory = labels == value
    shares = foreground[territory]
    labels[territory] = np.where(shares >= _lowest_share(shares), value, 0)


def _lowest_share(shares: np.ndarray) -> float:
    """From which share on so many voxels are taken as the shares add up to.

    Equal shares, as of all voxels along a flat thin sheet, are taken or left together.
    """
    count = min(round(float(shares.sum(dtype=np.float64))), len(shares))  # rounding may take shares beyond 1
    if count == 0:
        return np.inf
    last = float(np.partition(shares, -count)[-count])
    above = np.count_nonzero(shares > last + _SAME_SHARE)
    equal = np.count_nonzero(shares >= last - _SAME_SHARE) - above
    step = -_SAME_SHARE if count - above >= _FEWEST * equal else _SAME_SHARE
    return max(last + step, _LEAST_SHARE)


def size_ratios(spacing_mm: Sequence[float], new_spacing_mm: Sequence[float]) -> list[float]:
    """New voxel size in old voxels, along each axis.

    Raises:
        ValueError: If a spacing is not above 0.
    """
    if min(*spacing_mm, *new_spacing_mm) <= 0:
        raise ValueError(f"spacings must be above 0 mm, received {spacing_mm} and {new_spacing_mm}")
    return [float(new) / float(old) for old, new in zip(spacing_mm, new_spacing_mm, strict=True)]


def _matrices(
    interpolation: Callable[[int, int, float], np.ndarray],
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    new_spacing_mm: Sequence[float],
) -> list[np.ndarray]:
    """One matrix for each axis, from `shape` to the grid of `resampled_grid`."""
    new_shape, _ = resampled_grid(shape, np.eye(4), spacing_mm, new_spacing_mm)
    ratios = size_ratios(spacing_mm, new_spacing_mm)
    return [interpolation(n, m, ratio) for n, m, ratio in zip(shape, new_shape, ratios, strict=True)]


def _positions(num_in: int, num_out: int, ratio: float) -> np.ndarray:
    """Where the voxels of the new axis lie on the old one, in its voxels."""
    positions = (np.arange(num_out) - (num_out - 1) / 2) * ratio + (num_in - 1) / 2
    same = num_in == num_out and np.allclose(positions, np.arange(num_in), rtol=0, atol=1e-4)
    return np.arange(num_in, dtype=float) if same else positions


def _cubic_matrix(num_in: int, num_out: int, ratio: float) -> np.ndarray:
    """Cubic spline interpolation along one axis."""
    return _spline_weights(_positions(num_in, num_out, ratio), num_in).astype(np.float32)


def _mean_matrix(num_in: int, num_out: int, ratio: float) -> np.ndarray:
    """Means of the histospline over each new voxel; where voxels do not become larger, the cubic spline."""
    if ratio <= 1 + _SAME_RATIO:
        return _cubic_matrix(num_in, num_out, ratio)
    # The spline goes through the sums of the values up to each voxel's edge, some voxels beyond the ends included.
    beyond = math.ceil(ratio) + _SPLINE_REACH
    centres = _positions(num_in, num_out, ratio) + 0.5 + beyond
    num_edges = num_in + 2 * beyond + 1
    upper, lower = (_spline_weights(centres + side * ratio / 2, num_edges) for side in (1, -1))
    # A value counts in all sums after it.
    weights = np.cumsum((upper - lower)[:, :0:-1], axis=1)[:, ::-1] / ratio
    matrix = _continued(weights, beyond).astype(np.float32)
    matrix[np.abs(matrix) < _NO_WEIGHT] = 0
    return matrix


def _share_matrix(num_in: int, num_out: int, ratio: float) -> np.ndarray:
    """Means of linear interpolation over each new voxel, or over the width of an old one if that is more."""
    width = max(ratio, 1.0)
    beyond = math.ceil(width) + 1
    centres = _positions(num_in, num_out, ratio) - _SHIFT
    offsets = centres[:, None] - np.arange(-beyond, num_in + beyond)
    upper, lower = (np.clip(offsets + side * width / 2, -1, 1) for side in (1, -1))
    # The integral of linear interpolation's weight 1 - |t| from -1 to t is 1/2 + t - t |t| / 2.
    weights = (upper - lower - (upper * np.abs(upper) - lower * np.abs(lower)) / 2) / width
    return _continued(weights, beyond).astype(np.float32)


def _spline_weights(positions: np.ndarray, num_in: int) -> np.ndarray:
    """What each value adds to the cubic spline through all of them, at each position: `(positions, values)`.

    The spline through a single 1 among zeros is a sum of B-splines whose coefficients fall as `z^|k|`,
    z = sqrt(3) - 2 (Unser 1999). Beyond the ends the outermost value goes on.
    """
    before = np.floor(positions)
    steps = np.arange(-_SPLINE_REACH, _SPLINE_REACH + 2)
    weights = np.zeros((len(positions), len(steps)))
    for knot in range(
        -1, 3
    ):  # the only B-splines that are not 0 at a position, counted from the voxel before
        distance = np.abs(positions - before - knot)
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = np.maximum(2 - distance, 0) ** 3 / 6
        weights += np.where(distance < 1, near, far)[:, None] * _POLE ** np.abs(steps - knot)
    weights /= weights.sum(
        axis=1, keepdims=True
    )  # the factor of all coefficients, and what lies out of reach
    values = np.clip(before.astype(int)[:, None] + steps, 0, num_in - 1)
    places = np.arange(len(positions))[:, None] * num_in + values
    matrix = np.bincount(places.ravel(), weights.ravel(), minlength=len(positions) * num_in)
    return matrix.reshape(len(positions), num_in)


def _continued(weights: np.ndarray, beyond: int) -> np.ndarray:
    """Give the weights of the voxels beyond either end to the outermost one."""
    matrix = weights[:, beyond:-beyond].copy()
    matrix[:, 0] += weights[:, :beyond].sum(axis=1)
    matrix[:, -1] += weights[:, -beyond:].sum(axis=1)
    return matrix


def _in_plane(array: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Apply the matrices of the second and third axis, slice by slice; float32."""
    planes = np.empty((len(array), len(height), len(width)), dtype=np.float32)
    rows, columns = _bands(height), _bands(width)
    plane = np.empty(array.shape[1:], dtype=np.float32)
    half = np.empty((len(height), array.shape[2]), dtype=np.float32)
    for index, values in enumerate(array):
        plane[...] = values
        for out, used, weights in rows:
            np.matmul(weights, plane[used], out=half[out])
        for out, used, weights in columns:
            np.matmul(half[:, used], weights.T, out=planes[index, :, out])
    return planes


def _across(array: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Apply the matrix of the first axis; float32."""
    columns = np.ascontiguousarray(array).reshape(len(array), -1)
    planes = np.empty((len(depth), columns.shape[1]), dtype=np.float32)
    bands = _bands(depth)
    for start in range(0, columns.shape[1], _CHUNK):
        chunk = slice(start, start + _CHUNK)
        for out, used, weights in bands:
            np.matmul(weights, columns[used, chunk], out=planes[out, chunk])
    return planes.reshape(len(depth), *array.shape[1:])


def _bands(matrix: np.ndarray) -> list[tuple[slice, slice, np.ndarray]]:
    """Some outputs each, with the inputs that they need and their weights: most of a matrix is zeros."""
    bands = []
    for start in range(0, len(matrix), _BAND):
        out = slice(start, start + _BAND)
        used = _reached(matrix[out].T, slice(None))
        bands.append((out, used, np.ascontiguousarray(matrix[out, used])))
    return bands


def _reached(matrix: np.ndarray, part: slice) -> slice:
    """The outputs on which a part of the inputs has any influence."""
    rows = np.flatnonzero(matrix[:, part].any(axis=1))
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)
