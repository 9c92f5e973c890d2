"""Lesions of liver, pancreas and kidneys, and harmless cysts."""

from __future__ import annotations

import numpy as np

from partialseg.data.phantom.organs import Kidney, Layout, jitter, pancreas_curve
from partialseg.data.phantom.shapes import Canvas, ellipsoid

#: Suffix of the name under which the tumour of an organ is painted.
SUFFIX = "_tumour"
_BONE = (
    "cortical_bone",
    "marrow",
    "disc",
    "nerve",
    "muscle",
    "lung",
    "aorta",
    "air",
    "skin",
    "subcutaneous_fat",
)


def paint_tumours(canvas: Canvas, layout: Layout, number: dict[str, int], kidneys: list[Kidney]) -> None:
    """Paint `number[organ]` lesions in each organ ("liver", "pancreas", "kidney")."""
    for index in range(number.get("liver", 0)):
        _liver_tumour(canvas, layout, layout.rng(f"liver tumour {index}"))
    for index in range(number.get("pancreas", 0)):
        _pancreas_tumour(canvas, layout, layout.rng(f"pancreas tumour {index}"))
    for index in range(number.get("kidney", 0)):
        rng = layout.rng(f"kidney tumour {index}")
        if kidneys:
            _kidney_tumour(canvas, kidneys[int(rng.integers(len(kidneys)))], rng)


def _blob(
    canvas: Canvas, box: tuple, centre: np.ndarray, radius: float, rng: np.random.Generator
) -> np.ndarray:
    shape = radius * rng.uniform(0.8, 1.2, 3)
    return (
        ellipsoid(canvas.at(box), tuple(centre), tuple(shape)) + np.float32(0.08 * radius) * canvas.bumps[box]
    )


def _liver_tumour(canvas: Canvas, layout: Layout, rng: np.random.Generator) -> None:
    direction = rng.normal(0, 1, 3)
    direction *= rng.uniform(0, 1) ** (1 / 3) / np.linalg.norm(direction)
    centre = np.add(layout.place(75, 25, 35), direction * (52, 55, 58))
    radius = float(np.clip(rng.lognormal(2.6, 0.5), 5, 40))
    box = canvas.around(centre, 1.6 * radius)
    if box is not None:
        d = _blob(canvas, box, centre, radius, rng)
        inside = canvas.mask(box, "liver")
        canvas.paint(box, (d < 0) & inside, "liver_tumour", "liver" + SUFFIX)


def _pancreas_tumour(canvas: Canvas, layout: Layout, rng: np.random.Generator) -> None:
    line, _ = pancreas_curve(layout)
    at = int(rng.integers(3, len(line) - 1))
    centre, radius = line[at] + jitter(rng, 3), rng.uniform(8, 17)
    # The duct widens, and the tissue wastes, from the tumour to the tail.
    box = canvas.around(centre, 1.6 * radius)
    if box is not None:
        d = _blob(canvas, box, centre, radius, rng)
        free = ~canvas.mask(box, *_BONE, "kidney_cortex", "kidney_medulla")
        canvas.paint(box, (d < 0) & free, "pancreas_tumour", "pancreas" + SUFFIX)


def _kidney_tumour(canvas: Canvas, kidney: Kidney, rng: np.random.Generator) -> None:
    radius = float(np.clip(rng.lognormal(3.0, 0.4), 8, 42))
    level = rng.uniform(-0.75, 0.75)
    angle = rng.uniform(-1.9, 1.9)
    outward = -np.cos(angle) * kidney.axes[0] + np.sin(angle) * kidney.axes[1]
    reach = kidney.radii[0] * np.sqrt(1 - level**2)
    centre = (
        kidney.centre + outward * reach * rng.uniform(0.6, 1.0) + kidney.axes[2] * level * kidney.radii[2]
    )
    box = canvas.around(centre, 1.6 * radius)
    if box is not None:
        d = _blob(canvas, box, centre, radius, rng)
        free = ~canvas.mask(box, *_BONE)
        cyst = rng.random() < 0.15
        if cyst:  # KiTS19 counts cysts as kidney
            canvas.paint(box, (d < 0) & free, "cyst", kidney.organ)
            return
        canvas.paint(box, (d < 0) & free, "kidney_tumour", kidney.organ + SUFFIX)
        if radius > 18:  # a dead core
            canvas.paint(box, (d < -0.55 * radius) & free, "cyst", kidney.organ + SUFFIX)
