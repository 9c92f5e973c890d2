"""Hollow organs: stomach, duodenum, colon and small bowel, with wall, contents and gas."""

from __future__ import annotations

import numpy as np

from partialseg.data.phantom.organs import Layout, jitter
from partialseg.data.phantom.shapes import Canvas, curve, tube


def paint_hollow(
    canvas: Canvas,
    line: np.ndarray,
    radii: np.ndarray,
    wall: tuple[str, float],
    content: str,
    gas_share: float,
    organ: str | None = None,
    within: np.ndarray | None = None,
    bump_mm: float = 1.5,
) -> None:
    """Paint a tube with a wall, its content, and gas where it is highest (toward the front).

    Args:
        canvas: Where to paint.
        line: Its axis, `(n, 3)` body mm.
        radii: Its radii, `(n,)` mm.
        wall: Tissue and thickness in mm of the wall.
        content: Tissue of the content.
        gas_share: How much of the radius is gas, from the front.
        organ: Name of the organ.
        within: Signed distance of the grid's shape; nothing is painted where it is positive.
        bump_mm: Roughness of the surface.
    """
    box = canvas.along(line, float(radii.max()) + 4)
    if box is None:
        return
    points = canvas.at(box)
    d = tube(points, line, radii) + np.float32(bump_mm) * canvas.bumps[box]
    if within is not None:
        d = np.maximum(d, within[box])
    free = ~canvas.mask(
        box, "lung", "heart", "cortical_bone", "muscle", "marrow", "kidney_cortex", "kidney_medulla"
    )
    canvas.paint(box, (d < 0) & free, wall[0], organ)
    lumen = (d < -wall[1]) & free
    canvas.paint(box, lumen, content, organ)
    if gas_share > 0 and lumen.any():
        level = np.quantile(points[1][lumen], 1 - min(gas_share, 0.95))
        canvas.paint(box, lumen & (points[1] > level), "gas", organ)


def paint_stomach(canvas: Canvas, layout: Layout, cavity: np.ndarray, above: np.ndarray) -> None:
    """From the fundus under the left diaphragm forward and across to the antrum."""
    rng, s = layout.rng("stomach"), layout.radius("stomach")
    points = [(-56, 22, 88), (-60, 32, 62), (-54, 60, 34), (-30, 80, 14), (8, 80, 4), (30, 66, 4)]
    line, radii = curve(
        [np.add(layout.place(*p), jitter(rng, 4)) for p in points],
        [26 * s, 32 * s, 28 * s, 22 * s, 15 * s, 9],
        18,
    )
    within = np.maximum(cavity + 3, 3 - above)
    paint_hollow(
        canvas,
        line,
        radii,
        ("stomach_wall", rng.uniform(3, 6)),
        "stomach_content",
        rng.uniform(0, 0.5),
        "stomach",
        within,
    )


def paint_duodenum(canvas: Canvas, layout: Layout) -> None:
    """The C around the head of the pancreas."""
    rng = layout.rng("duodenum")
    points = [(30, 66, 4), (48, 52, -4), (52, 38, -30), (38, 34, -58), (0, 46, -62), (-26, 44, -40)]
    line, radii = curve(
        [np.add(layout.place(*p), jitter(rng, 2.5)) for p in points], [9, 13, 12, 12, 11, 11], 18
    )
    paint_hollow(canvas, line, radii, ("bowel_wall", 2.5), "bowel_content", rng.uniform(0, 0.2))


def paint_colon(canvas: Canvas, layout: Layout, cavity: np.ndarray) -> None:
    """Ascending, transverse and descending colon, with haustra, stool and gas."""
    rng = layout.rng("colon")
    sag = rng.uniform(0, 45)
    points = [
        (92, 18, -125),
        (98, 18, -70),
        (92, 40, -40),
        (48, 92, -48 - sag * 0.6),
        (0, 98, -45 - sag),
        (-50, 92, -25 - sag * 0.5),
        (-92, 44, 14),
        (-104, 4, -10),
        (-104, 2, -70),
        (-98, 10, -125),
    ]
    line, radii = curve(
        [np.add(layout.place(*p), jitter(rng, 5)) for p in points], rng.uniform(13, 24, len(points)), 40
    )
    # Haustra: the radius beats along the way.
    radii = radii * (1 + 0.14 * np.sin(np.arange(len(radii)) * 2.1))
    for first in range(0, len(line) - 1, 4):
        piece = slice(first, first + 5)
        gas, stool = rng.uniform(0, 0.9), rng.random() < 0.7
        content = "stool" if stool else "bowel_content"
        paint_hollow(canvas, line[piece], radii[piece], ("bowel_wall", 2.2), content, gas, None, cavity + 3)


def paint_small_bowel(canvas: Canvas, layout: Layout, cavity: np.ndarray) -> None:
    """Packed loops below stomach and pancreas."""
    rng = layout.rng("small bowel")
    for _ in range(int(rng.integers(45, 75))):
        centre = np.array(layout.place(rng.uniform(-80, 80), rng.uniform(25, 100), rng.uniform(-150, -38)))
        step = rng.normal(0, 1, 3)
        step *= rng.uniform(16, 30) / np.linalg.norm(step)
        bend = rng.normal(0, 9, 3)
        radius, gas = rng.uniform(8, 14), rng.uniform(0, 0.4) * (rng.random() < 0.3)
        line, radii = curve([centre - step, centre + bend, centre + step], [radius] * 3, 4)
        paint_hollow(canvas, line, radii, ("bowel_wall", 2.2), "bowel_content", gas, None, cavity + 2, 1.0)
