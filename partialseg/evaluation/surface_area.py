"""How much surface lies around a corner where eight voxels meet, as marching cubes draws it. NumPy alone.

A mask's surface passes half-way between a voxel inside and its neighbour outside. Around each corner of the
voxel grid it is a small polygon, a *surface element*, of which there are 256, one for each way to have the
eight voxels inside or outside. Nikolov et al. 2018 weigh surface distances by the areas of these elements.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

Voxel = tuple[int, int, int]

#: The eight voxels around a corner, as steps along (z, y, x); voxel i is bit i of a code.
VOXELS = tuple(itertools.product((0, 1), repeat=3))


def element_areas(spacing_mm: Sequence[float]) -> np.ndarray:
    """Area of the surface element of every code.

    The voxels inside, or those outside where they are fewer, are taken apart into pieces that share faces;
    each piece is cut off by a polygon of its own. The six shapes that a piece can have, and the triangles that
    its polygon is made of, are those of Lorensen and Cline 1987.

    Args:
        spacing_mm: Voxel size along (z, y, x), in mm.

    Returns:
        float64 `(256,)`, in mm². Bit 4 z + 2 y + x of a code says whether the voxel at (z, y, x) is inside.

    Example:
        >>> areas = element_areas((3.0, 2.0, 1.0))
        >>> float(areas[0b00001111]), float(areas[0b11110000])  # flat across z: the area of a voxel's face
        (2.0, 2.0)
        >>> float(areas[0]), float(areas[255])
        (0.0, 0.0)
    """
    z, y, x = map(float, spacing_mm)
    faces = np.array([y * x, z * x, z * y])
    normals = ([normal for piece in _pieces(code) for normal in _normals(piece)] for code in range(256))
    return np.array([math.fsum(_length(normal, faces) for normal in element) for element in normals])


def _length(normal: np.ndarray, faces: np.ndarray) -> float:
    return math.hypot(*(normal * faces))


@functools.cache
def _pieces(code: int) -> tuple[tuple[Voxel, ...], ...]:
    """The fewer of the voxels, inside or outside, in pieces that share faces."""
    bits = code if code.bit_count() <= 4 else 255 - code
    left = [voxel for number, voxel in enumerate(VOXELS) if bits >> number & 1]
    pieces = []
    while left:
        piece = [left.pop()]
        for voxel in piece:
            neighbours = [other for other in left if math.dist(voxel, other) == 1]
            left = [other for other in left if other not in neighbours]
            piece += neighbours
        pieces.append(tuple(piece))
    return tuple(pieces)


@functools.cache
def _normals(piece: tuple[Voxel, ...]) -> list[np.ndarray]:
    """Triangles that cut a piece off: the area of each, of unit voxels, times its normal without signs."""
    joined = [pair for pair in itertools.combinations(piece, 2) if math.dist(*pair) == 1]
    axis = {pair: next(i for i in range(3) if pair[0][i] != pair[1][i]) for pair in joined}
    unit, ones = np.eye(3), np.ones(3)
    across = unit[3 - sum(set(axis.values()))] if len(set(axis.values())) == 2 else None
    if len(piece) == 1:  # a triangle
        return [ones / 8]
    if len(piece) == 2:  # a rectangle
        return [(ones - unit[axis[joined[0]]]) / 2]
    if len(piece) == 3:  # a pentagon
        return [across / 2, ones * 3 / 8]
    if across is not None:  # four voxels in a plane: a whole face
        return [across]
    degree = {voxel: sum(voxel in pair for pair in joined) for voxel in piece}
    if max(degree.values()) == 3:  # a voxel and its three neighbours: a hexagon
        return [ones * 3 / 4]
    # A path along three axes: a hexagon that is not flat.
    middle = axis[next(pair for pair in joined if all(degree[voxel] == 2 for voxel in pair))]
    return [ones / 2, *((unit[middle] + unit[other]) / 4 for other in range(3) if other != middle)]
