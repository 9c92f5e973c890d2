"""Implicit shapes in body millimetres, and the canvas on which they are painted.

Body coordinates are millimetres, `(x, y, z)`: x toward the patient's right, y toward the front, z toward the
head; the origin is the centre of the vertebral column at the level of the first lumbar disc. A shape is a
distance: negative inside, in mm. Since shapes live in millimetres, any grid can sample them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from partialseg.data.phantom.tissue import TISSUE_ID

Points = tuple[np.ndarray, np.ndarray, np.ndarray]
Box = tuple[slice, slice, slice]
Triple = tuple[float, float, float]


def _spline_weights(at: np.ndarray, lower: float, step: float, knots: int) -> np.ndarray:
    """Weights `(len(at), knots)` of the cubic B-splines centred on `lower + step * knot`."""
    t = np.abs((at[:, None] - lower) / step - np.arange(knots))
    inner, outer = 2 / 3 - t**2 + t**3 / 2, (2 - t) ** 3 / 6
    return np.where(t < 1, inner, np.where(t < 2, outer, 0)).astype(np.float32)


class NoiseField:
    """Smooth random values of about unit standard deviation, defined everywhere in a box of millimetres.

    Normal random numbers on a coarse lattice, joined by cubic B-splines; it fades to 0 outside.

    Args:
        rng: Source of the random numbers.
        lower: First corner of the box, mm, in the order of the axes.
        upper: Opposite corner.
        scale_mm: Distance of lattice points: structures are about twice as large.

    Example:
        >>> noise = NoiseField(np.random.default_rng(0), (0, 0, 0), (40, 40, 40), 10.0)
        >>> noise.on(np.arange(4.0), np.arange(5.0), np.arange(6.0)).shape
        (4, 5, 6)
    """

    def __init__(
        self, rng: np.random.Generator, lower: Sequence[float], upper: Sequence[float], scale_mm: float
    ) -> None:
        self._lower = [low - 2 * scale_mm for low in lower]
        self._step = scale_mm
        self._knots = [int(np.ceil((up - low) / scale_mm)) + 5 for low, up in zip(lower, upper, strict=True)]
        # The mean of the squared B-spline weights is 0.479 per axis.
        values = rng.standard_normal(self._knots, dtype=np.float32)
        self._values = values / np.float32(0.479**1.5)

    def on(self, *axes: np.ndarray) -> np.ndarray:
        """Values on the grid of three coordinate vectors (mm): float32, shape of their lengths."""
        value = self._values
        for axis, at in enumerate(axes):
            weights = _spline_weights(
                np.asarray(at, dtype=np.float64), self._lower[axis], self._step, self._knots[axis]
            )
            value = np.moveaxis(np.tensordot(weights, value, axes=(1, axis)), 0, axis)
        return np.ascontiguousarray(value)


def ellipsoid(points: Points, centre: Triple, radii: Triple, axes: np.ndarray | None = None) -> np.ndarray:
    """Approximate signed distance in mm to an ellipsoid.

    Args:
        points: Coordinates x, y, z in mm.
        centre: Its centre, mm.
        radii: Half axes, mm.
        axes: 3 x 3, rows are the directions of the half axes; None for x, y, z.

    Returns:
        float32, negative inside; exact on the surface, first order near it.

    Example:
        >>> x = np.array([0.0, 2.0, 4.0], np.float32)
        >>> ellipsoid((x, 0 * x, 0 * x), (0, 0, 0), (2, 2, 2)).tolist()
        [-2.0, 0.0, 2.0]
    """
    q = local_points(points, centre, axes)
    scaled = [c / np.float32(r) for c, r in zip(q, radii, strict=True)]
    level = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
    slope = np.sqrt(sum((c / np.float32(r)) ** 2 for c, r in zip(scaled, radii, strict=True)))
    depth = np.float32(min(radii))
    return np.where(level > 0.05, level * (level - 1) / np.maximum(slope, 1e-6), -depth).astype(np.float32)


def local_points(points: Points, centre: Triple, axes: np.ndarray | None = None) -> Points:
    """Coordinates relative to `centre`, along the rows of `axes` where given."""
    q = tuple(c - np.float32(m) for c, m in zip(points, centre, strict=True))
    if axes is None:
        return q
    rows = np.asarray(axes, dtype=np.float32)
    return tuple(row[0] * q[0] + row[1] * q[1] + row[2] * q[2] for row in rows)


def curve(
    points: Sequence[Triple], radii: Sequence[float], pieces: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """A smooth (Catmull-Rom) curve: polyline `(pieces + 1, 3)` and radii `(pieces + 1,)`, mm.

    Example:
        >>> line, radii = curve([(0, 0, 0), (1, 0, 0), (2, 0, 0)], [1, 1, 3], 4)
        >>> line[:, 0].tolist()
        [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    knots = np.column_stack([np.asarray(points, dtype=np.float64), radii])
    padded = np.vstack([2 * knots[0] - knots[1], knots, 2 * knots[-1] - knots[-2]])
    at = np.linspace(0, len(knots) - 1, pieces + 1)
    first = np.minimum(at.astype(int), len(knots) - 2)
    t = (at - first)[:, None]
    before, start, end, after = (padded[first + k] for k in range(4))
    slopes = (end - before) / 2, (after - start) / 2
    bend = (
        (2 * t**3 - 3 * t**2) * (start - end) + (t**3 - 2 * t**2 + t) * slopes[0] + (t**3 - t**2) * slopes[1]
    )
    rows = start + bend
    return rows[:, :3], rows[:, 3]


def tube(
    points: Points, line: np.ndarray, radii: np.ndarray, flatten: Triple = (1.0, 1.0, 1.0)
) -> np.ndarray:
    """Signed distance in mm to a tube along a polyline, its radius changing along the way.

    Args:
        points: Coordinates x, y, z in mm.
        line: `(n, 3)` in mm.
        radii: `(n,)` in mm.
        flatten: Factors by which x, y, z count, so that 1.5 makes the tube 1.5 times thinner that way.

    Returns:
        float32, negative inside.

    Example:
        >>> x = np.array([5.0], np.float32)
        >>> straight = np.array([[0.0, 0, 0], [10, 0, 0]])
        >>> tube((x, x, 0 * x), straight, np.array([2.0, 2.0])).tolist()
        [3.0]
    """
    weights = np.asarray(flatten, dtype=np.float32)
    scaled = [c * w for c, w in zip(points, weights, strict=True)]
    line = line * weights
    distance = np.full(np.broadcast(*points).shape, np.float32(1e6))
    for start, end, r0, r1 in zip(line[:-1], line[1:], radii[:-1], radii[1:], strict=True):
        along = (end - start).astype(np.float32)
        q = [c - np.float32(s) for c, s in zip(scaled, start, strict=True)]
        length = np.float32(max(float(along @ along), 1e-6))
        t = np.clip((q[0] * along[0] + q[1] * along[1] + q[2] * along[2]) / length, 0, 1)
        gap = [c - t * a for c, a in zip(q, along, strict=True)]
        radius = np.float32(r0) + t * np.float32(r1 - r0)
        np.minimum(distance, np.sqrt(gap[0] ** 2 + gap[1] ** 2 + gap[2] ** 2) - radius, out=distance)
    return distance


def smooth_min(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """The union of two shapes, joined by a fillet of about `width_mm` (polynomial smooth minimum)."""
    h = np.clip(0.5 + 0.5 * (b - a) / np.float32(width_mm), 0, 1)
    return b + (a - b) * h - np.float32(width_mm) * h * (1 - h)


def rotation(degrees: Triple) -> np.ndarray:
    """3 x 3 rotation about x, then y, then z."""
    rx, ry, rz = np.deg2rad(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(rx), -np.sin(rx)], [0, np.sin(rx), np.cos(rx)]])
    about_y = np.array([[np.cos(ry), 0, np.sin(ry)], [0, 1, 0], [-np.sin(ry), 0, np.cos(ry)]])
    about_z = np.array([[np.cos(rz), -np.sin(rz), 0], [np.sin(rz), np.cos(rz), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@dataclass
class Canvas:
    """Tissue and organ maps on a grid, and the body coordinates of its voxels.

    Attributes:
        points: x, y, z of every voxel in body mm, after deformation; float32, each `(depth, height, width)`.
        to_index: 4 x 4, from body mm `(x, y, z, 1)` to voxel index `(z, y, x, 1)`, deformation left out.
        reach_mm: How far the deformation moves a point at most.
        bumps: Fine unit noise for surfaces, float32, same shape.
        tissue: uint8 index into `TISSUES`, same shape.
        organ: uint8 index into the names that painters were given, 0 for none, same shape.
        organ_names: Index in `organ` of every name met so far.
    """

    points: Points
    to_index: np.ndarray
    reach_mm: float
    bumps: np.ndarray
    tissue: np.ndarray = field(init=False)
    organ: np.ndarray = field(init=False)
    organ_names: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tissue = np.zeros(self.points[0].shape, np.uint8)
        self.organ = np.zeros(self.points[0].shape, np.uint8)

    def box(self, lower: Sequence[float], upper: Sequence[float]) -> Box | None:
        """The part of the grid that can hold a shape between two corners (body mm); None if there is none."""
        corners = np.array(np.meshgrid(*zip(lower, upper, strict=True), indexing="ij")).reshape(3, -1)
        index = self.to_index[:3, :3] @ corners + self.to_index[:3, 3:]
        margin = self.reach_mm * np.abs(self.to_index[:3, :3]).sum(axis=1) + 1
        first = np.maximum(np.floor(index.min(axis=1) - margin).astype(int), 0)
        last = np.minimum(np.ceil(index.max(axis=1) + margin).astype(int) + 1, self.tissue.shape)
        if np.any(first >= last):
            return None
        return tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))

    def around(self, centre: Sequence[float], radius_mm: float) -> Box | None:
        """The part of the grid within `radius_mm` of a point."""
        return self.box([c - radius_mm for c in centre], [c + radius_mm for c in centre])

    def along(self, line: np.ndarray, radius_mm: float) -> Box | None:
        """The part of the grid within `radius_mm` of a polyline."""
        return self.box(line.min(axis=0) - radius_mm, line.max(axis=0) + radius_mm)

    def at(self, box: Box) -> Points:
        """Body coordinates of the voxels in a box."""
        return tuple(c[box] for c in self.points)

    def mask(self, box: Box, *tissues: str) -> np.ndarray:
        """Where one of the tissues has been painted, in a box."""
        here = self.tissue[box]
        table = np.zeros(256, bool)
        table[[TISSUE_ID[name] for name in tissues]] = True
        return table[here]

    def paint(
        self, box: Box, where: np.ndarray, tissue: str, organ: str | None = None, keep_organ: bool = False
    ) -> None:
        """Paint a tissue over what is there; `organ` names the organ it belongs to, None for none of them."""
        self.tissue[box][where] = TISSUE_ID[tissue]
        if not keep_organ:
            value = 0 if organ is None else self.organ_names.setdefault(organ, len(self.organ_names) + 1)
            self.organ[box][where] = value

    def organ_mask(self, name: str) -> np.ndarray:
        """Where an organ was painted last, bool of the grid's shape."""
        return self.organ == self.organ_names.get(name, 255)
