"""Scans of bodies whose true values are known everywhere: the ground on which resampling is judged.

A body is a rule that says which value a point has; a voxel's true value is the mean over its box.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

Points = tuple[np.ndarray, np.ndarray, np.ndarray]
Body = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

#: Points along each axis of a voxel that a surface cuts.
SAMPLES = 8


def centres(shape: Sequence[int], spacing_mm: Sequence[float]) -> Points:
    """World z, y, x of the voxels, ready to broadcast; 0 is the centre of the field of view."""
    z, y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True))
    return z[:, None, None], y[None, :, None], x[None, None, :]


def true_means(body: Body, shape: Sequence[int], spacing_mm: Sequence[float], lattice: int = 2) -> np.ndarray:
    """The mean of a body over each voxel: float32 `(depth, height, width)`.

    Only the voxels that a surface cuts are sampled at many points. They are found by a lattice of so many points
    along each axis of a voxel, which no part of the body may slip through.
    """
    offsets = (np.arange(lattice) + 0.5) / lattice - 0.5
    axes = [axis.ravel() for axis in centres(shape, spacing_mm)]
    z, y, x = ((axis[:, None] + offsets * size).ravel() for axis, size in zip(axes, spacing_mm, strict=True))
    low, high = np.full(tuple(shape), np.inf, np.float32), np.full(tuple(shape), -np.inf, np.float32)
    for number, height in enumerate(z):  # a plane of points at a time bounds the memory
        plane = body(height, y[:, None], x).reshape(shape[1], lattice, shape[2], lattice)
        index = number // lattice
        low[index] = np.minimum(low[index], plane.min(axis=(1, 3)))
        high[index] = np.maximum(high[index], plane.max(axis=(1, 3)))
    cut = np.nonzero(ndimage.maximum_filter(high, 3) != ndimage.minimum_filter(low, 3))
    points = [axis[index] for axis, index in zip(axes, cut, strict=True)]
    steps = [((np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5) * size for size in spacing_mm]
    total = np.zeros(len(cut[0]))
    for step in itertools.product(*steps):
        total += body(*(point + part for point, part in zip(points, step, strict=True)))
    low[cut] = total / SAMPLES**3
    return low


def ball(radius: float, centre: Sequence[float] = (0, 0, 0)) -> Body:
    return lambda z, y, x: (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 < radius**2


def sheet(
    thickness: float, normal: Sequence[float], extent: float, centre: Sequence[float] = (0, 0, 0)
) -> Body:
    """A round sheet of the given radius."""
    nz, ny, nx = np.divide(normal, np.linalg.norm(normal))

    def inside(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        z, y, x = z - centre[0], y - centre[1], x - centre[2]
        near = np.abs(z * nz + y * ny + x * nx) < thickness / 2
        return near & (z**2 + y**2 + x**2 < extent**2)

    return inside


def tube(diameter: float, along: Sequence[float], extent: float, centre: Sequence[float] = (0, 0, 0)) -> Body:
    """A straight tube of twice the extent's length."""
    tz, ty, tx = np.divide(along, np.linalg.norm(along))

    def inside(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        z, y, x = z - centre[0], y - centre[1], x - centre[2]
        length = z * tz + y * ty + x * tx
        return (z**2 + y**2 + x**2 - length**2 < diameter**2 / 4) & (np.abs(length) < extent)

    return inside


def painted(background: float, *parts: tuple[float, Body]) -> Body:
    """A body of several parts, each over those before it."""

    def value(z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        values = np.full(np.broadcast_shapes(z.shape, y.shape, x.shape), background, dtype=np.float32)
        for part_value, inside in parts:
            values[inside(z, y, x)] = part_value
        return values

    return value


def noise(shape: Sequence[int], spacing_mm: Sequence[float], deviation: float = 20.0) -> np.ndarray:
    """Noise as a CT has: independent from slice to slice, and within one of the spectrum of a soft kernel.

    The power grows with the frequency, as filtered backprojection leaves it, and falls again by a Gaussian.
    """
    white = np.random.default_rng(0).normal(size=tuple(shape)).astype(np.float32)
    y, x = (np.fft.fftfreq(n, s) for n, s in zip(shape[1:], spacing_mm[1:], strict=True))
    frequency = np.hypot(y[:, None], x[: shape[2] // 2 + 1])
    gain = np.sqrt(frequency) * np.exp(-((frequency / 0.35) ** 2))
    for plane in white:
        plane[...] = np.fft.irfft2(np.fft.rfft2(plane) * gain, shape[1:])
    return white * (deviation / white.std())


#: Organ, HU, radius and centre `(z, y, x)` in mm.
ORGANS = {
    "liver": (110, 72, (0, -40, 60)),
    "spleen": (120, 36, (20, -60, -90)),
    "pancreas": (90, 22, (-20, 20, -10)),
    "left_kidney": (150, 26, (-50, -90, -55)),
    "right_kidney": (150, 24, (-70, -90, 60)),
}


def abdomen() -> tuple[Body, Body]:
    """A round body of fat with five organs, gas, a vertebra and a table's air around; HU, and its label map."""
    organs = [(hu, ball(radius, centre)) for hu, radius, centre in ORGANS.values()]
    outer = tube(360, (1, 0, 0), 10_000)
    gas, bone = (-950, ball(20, (0, 90, -40))), (500, tube(44, (1, 0, 0), 10_000, (0, -130, 0)))
    labels = [(value, inside) for value, (_, inside) in enumerate(organs, start=1)]
    return painted(-1000, (-90, outer), gas, bone, *organs), painted(0, *labels)
