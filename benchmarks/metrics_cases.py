"""Label maps for benchmarks/metrics.py: phantoms, random ones and real ones, with predictions of several kinds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from scipy import ndimage

from partialseg.data.phantom.anatomy import paint_patient
from partialseg.data.phantom.cohorts import COHORTS, draw_patient

ORGANS = ("liver", "spleen", "pancreas", "left_kidney", "right_kidney")


class Case(NamedTuple):
    """A pair of label maps.

    Attributes:
        name: What it is.
        prediction: uint8 `(depth, height, width)`.
        truth: uint8, same shape.
        spacing_mm: Voxel size.
    """

    name: str
    prediction: np.ndarray
    truth: np.ndarray
    spacing_mm: tuple[float, float, float]


def phantom(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """The five organs of a synthetic patient, uint8 from 1 on in the order of `ORGANS`."""
    middle_mm = (20.0, 28.0, 0.0)
    axes_mm = tuple(
        (np.arange(size) - (size - 1) / 2) * step + middle
        for size, step, middle in zip(shape, spacing_mm, middle_mm, strict=True)
    )
    cohort = next(cohort for cohort in COHORTS if cohort.dataset == "btcv")
    canvas = paint_patient(draw_patient(cohort, (0, 0)), axes_mm)
    label = np.zeros(shape, np.uint8)
    for value, organ in enumerate(ORGANS, 1):
        label[canvas.organ == canvas.organ_names[organ]] = value
    return label


def warped(
    label: np.ndarray, spacing_mm: tuple[float, float, float], std_mm: float, smooth_mm: float, seed: int
) -> np.ndarray:
    """The label map under a smooth random deformation, as a network's mistakes are smooth and of all sizes."""
    rng = np.random.default_rng(seed)
    moved = []
    for axis, (size, step) in enumerate(zip(label.shape, spacing_mm, strict=True)):
        knots = [max(2, round(n * s / smooth_mm) + 1) for n, s in zip(label.shape, spacing_mm, strict=True)]
        coarse = rng.normal(0, std_mm / step, knots)
        field = ndimage.zoom(
            coarse, [n / k for n, k in zip(label.shape, knots, strict=True)], order=1, grid_mode=False
        )
        index = np.arange(size).reshape([-1 if i == axis else 1 for i in range(3)])
        moved.append((index + field).astype(np.float32))
    return ndimage.map_coordinates(label, moved, order=0)


def speed_cases(shape: tuple[int, int, int] = (150, 256, 256)) -> list[Case]:
    """A good prediction and a poor one of five organs."""
    spacing_mm = (2.5, 1.5, 1.5)
    truth = phantom(shape, spacing_mm)
    good = warped(truth, spacing_mm, 2.0, 25.0, seed=1)
    poor = warped(truth, spacing_mm, 10.0, 40.0, seed=2)
    rng = np.random.default_rng(3)
    for value in range(1, len(ORGANS) + 1):  # false positives all over the scan
        for _ in range(4):
            corner = [int(rng.integers(0, size - 8)) for size in shape]
            poor[tuple(slice(start, start + int(rng.integers(2, 8))) for start in corner)] = value
    return [Case("good", good, truth, spacing_mm), Case("poor", poor, truth, spacing_mm)]


def random_cases(number: int = 200) -> Iterator[Case]:
    """Blobs, noise and single voxels of all densities, on grids of all spacings, cut off at the border."""
    rng = np.random.default_rng(0)
    for index in range(number):
        shape = tuple(map(int, rng.integers(2, 44, 3)))
        spacing_mm = tuple(
            float(step) for step in np.round(np.exp(rng.uniform(np.log(0.4), np.log(6), 3)), 3)
        )
        pair = []
        for _ in range(2):
            field = rng.normal(size=shape)
            if index % 4:  # every fourth is bare noise
                field = ndimage.gaussian_filter(field, rng.uniform(0.5, 5), mode="nearest")
            share = float(rng.choice([rng.uniform(0.3, 0.95), rng.uniform(0.95, 0.999), 1.0]))
            mask = field >= min(np.quantile(field, share), field.max())  # of 1.0 a single voxel is left
            pair.append(mask.astype(np.uint8))
        if index % 3 == 0:  # a prediction that is much like the truth
            pair[0] = pair[1] ^ (rng.random(shape) < rng.uniform(0, 0.02)).astype(np.uint8)
            pair[0] = pair[0] if pair[0].any() else pair[1]
        yield Case(f"random {index}", *pair, spacing_mm)


def real_cases(folder: Path) -> Iterator[Case]:
    """Every organ of every label map, cropped to it, against a shifted, eroded, dilated or warped copy."""
    number = 0
    for path in sorted(folder.rglob("*.nii.gz")):
        if "ct" in path.name.removesuffix(".nii.gz").split("_"):
            continue
        image = nibabel.load(path)
        label = np.asarray(image.dataobj)
        spacing_mm = tuple(round(float(step), 4) for step in image.header.get_zooms()[:3])
        for value, box in enumerate(ndimage.find_objects(label.astype(np.int32)), 1):
            if box is None:
                continue
            margin = [min(8, 1 + round(8 / step)) for step in spacing_mm]
            part = tuple(
                slice(max(0, ends.start - m), ends.stop + m) for ends, m in zip(box, margin, strict=True)
            )
            truth = (label[part] == value).astype(np.uint8)
            kind = ("shifted", "eroded", "dilated", "warped")[number % 4]
            prediction = changed(truth, spacing_mm, kind, seed=number)
            number += 1
            if prediction.any():
                name = path.name.removesuffix(".nii.gz")
                yield Case(f"{name} {value} {kind}", prediction, truth, spacing_mm)


def scan_cases(shape: tuple[int, int, int] = (1000, 512, 512)) -> Iterator[Case]:
    """Whole scans: a liver, one with false positives all over the scan, and an organ as long and wide as the scan."""
    spacing_mm = (0.7, 0.8, 0.8)
    liver = ellipsoid(shape, (420, 250, 180), (130, 100, 140))
    moved = ellipsoid(shape, (424, 247, 184), (126, 103, 138))
    yield Case("liver", moved, liver, spacing_mm)
    noise = np.random.default_rng(0)
    places = tuple(noise.integers(0, size, math.prod(shape) // 1000) for size in shape)
    moved[places] = 1
    yield Case("liver, one voxel of 1000 wrong", moved, liver, spacing_mm)
    del liver, moved
    long = ellipsoid(shape, (500, 256, 256), (4000, 252, 252))
    moved = ellipsoid(shape, (500, 260, 254), (3000, 246, 254))
    yield Case("organ as long and wide as the scan", moved, long, spacing_mm)


def ellipsoid(
    shape: tuple[int, int, int], centre: tuple[int, int, int], radii: tuple[int, int, int]
) -> np.ndarray:
    """A bumpy ellipsoid, in voxels, slice by slice."""
    label = np.zeros(shape, np.uint8)
    y, x = np.ogrid[: shape[1], : shape[2]]
    for z in range(shape[0]):
        bumps = 0.06 * np.sin(z / 7 + x / 11) * np.cos(y / 9)
        distance = sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), centre, radii, strict=True))
        label[z] = distance + bumps < 1
    return label


def changed(truth: np.ndarray, spacing_mm: tuple[float, float, float], kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "shifted":
        return np.roll(truth, rng.integers(-2, 3, 3), (0, 1, 2))
    if kind == "warped":
        return warped(truth, spacing_mm, 3.0, 20.0, seed)
    operation = ndimage.binary_erosion if kind == "eroded" else ndimage.binary_dilation
    return operation(truth, iterations=2).astype(np.uint8)
