"""Left and right of a paired organ that a dataset labels with one value."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from partialseg.data.boxes import bounding_box

#: A component counts as an organ of its own from this part of the largest one's volume on; below, as a speck.
MAIN_PART = 0.03
#: Two organs stand side by side where their centres are this many organ sizes apart along x; an organ's size
#: is the edge of a cube of the larger one's volume. The closest pair seen among real kidneys has 1.2.
APART = 0.8
#: One component wider along x than this many sizes is two organs that have grown together. Single kidneys
#: reach 1.4, a horseshoe kidney and a crossed fused one 2.2 and more.
WIDE = 1.8
#: A speck belongs to an organ that is this many times nearer than the other one.
NEARER = 2.0


def split_left_right(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Tell the left organ from the right one by connected components and their place in world x.

    The two organs are the largest components on either side of the widest gap in x. Every other component
    joins the organ that is clearly nearer. Nothing is guessed: with one component alone, whether one organ or
    two grown together, left and right are both empty, and unsure voxels are in neither.

    Args:
        mask: bool (or numbers, where not 0 counts), 3D, in the axes that `affine` is about.
        affine: 4 x 4, voxel index to world mm, RAS+: x grows toward the patient's right.

    Returns:
        Left and right, bool, shape of `mask`; and what was found: "split", "one side" (one component),
        "fused" (one component as wide as two), "unclear" (components that do not stand side by side),
        "empty". Left and right are empty for all but "split".

    Raises:
        ValueError: If the mask is not 3D or the affine not 4 x 4.

    Example:
        >>> mask = np.zeros((8, 4, 4), dtype=bool)
        >>> mask[1:3, 1:3, 1:3] = mask[5:7, 1:3, 1:3] = True
        >>> left, right, flag = split_left_right(mask, np.eye(4))
        >>> flag, np.flatnonzero(left.any(axis=(1, 2))).tolist()
        ('split', [1, 2])
    """
    mask, affine = np.asarray(mask), np.asarray(affine, dtype=float)
    if mask.ndim != 3 or affine.shape != (4, 4):
        raise ValueError(
            f"mask has shape {mask.shape} and affine {affine.shape}; expected three axes and (4, 4)"
        )
    order = "F" if mask.flags.f_contiguous else "C"  # zeros_like would keep it too, but writes every zero
    left, right = (np.zeros(mask.shape, dtype=bool, order=order) for _ in range(2))
    box = bounding_box(mask)
    if box is None:
        return left, right, "empty"

    components, count = ndimage.label(mask[box])
    index = np.nonzero(components)
    component = components[index]
    voxels = np.bincount(component, minlength=count + 1)
    x = sum(affine[0, axis] * index[axis] for axis in range(3))  # the constant part changes no comparison
    size_mm = np.cbrt(voxels.max() * abs(np.linalg.det(affine[:3, :3])))

    main = np.flatnonzero(voxels >= MAIN_PART * voxels.max())
    if len(main) == 1:
        wide = np.ptp(x[component == main[0]]) > WIDE * size_mm
        return left, right, "fused" if wide else "one side"
    pair = _side_by_side(main, component, voxels, x, size_mm)
    if pair is None:
        return left, right, "unclear"

    side_of = _sides(pair, components, component, index, count, affine)
    sides = side_of[components]
    left[box], right[box] = sides == 1, sides == 2
    return left, right, "split"


def _side_by_side(
    main: np.ndarray, component: np.ndarray, voxels: np.ndarray, x: np.ndarray, size_mm: float
) -> tuple[int, int] | None:
    """The left and the right organ among the main components, if two of them stand side by side in x."""
    centres = np.array([x[component == each].mean() for each in main])
    order = np.argsort(centres)
    cut = int(np.diff(centres[order]).argmax()) + 1
    left = max(main[order[:cut]], key=lambda each: voxels[each])
    right = max(main[order[cut:]], key=lambda each: voxels[each])
    x_left, x_right = x[component == left], x[component == right]
    apart = x_right.mean() - x_left.mean() >= APART * size_mm
    disjoint = np.percentile(x_left, 90) < np.percentile(x_right, 10)
    return (int(left), int(right)) if apart and disjoint else None


def _sides(
    pair: tuple[int, int],
    components: np.ndarray,
    component: np.ndarray,
    index: tuple[np.ndarray, ...],
    count: int,
    affine: np.ndarray,
) -> np.ndarray:
    """For each component 1 (left), 2 (right) or 0 (unsure); uint8, shape `(count + 1,)`."""
    side_of = np.zeros(count + 1, dtype=np.uint8)
    side_of[list(pair)] = 1, 2
    others = ~np.isin(component, pair)
    if others.any():
        specks, points = component[others], _world(tuple(axis[others] for axis in index), affine)
        near = np.full((2, count + 1), np.inf)
        for row, organ in zip(near, pair, strict=True):
            body = components == organ
            surface = np.nonzero(body & ~ndimage.binary_erosion(body))
            distance, _ = cKDTree(_world(surface, affine)).query(points)
            np.minimum.at(row, specks, distance)
        near = near.round(
            6
        )  # the order of the axes in the file must not decide where one is just twice the other
        rest = np.unique(specks)
        side_of[rest] = np.select([NEARER * near[0] <= near[1], NEARER * near[1] <= near[0]], [1, 2], 0)[rest]
    return side_of


def _world(index: tuple[np.ndarray, ...], affine: np.ndarray) -> np.ndarray:
    """Positions in mm, up to one shift for all: `(points, 3)`."""
    return np.stack(index, axis=1) @ affine[:3, :3].T
