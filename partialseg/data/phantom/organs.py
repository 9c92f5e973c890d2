"""The solid organs and the vessels: each painter draws one organ of one patient on any grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from partialseg.data.phantom.shapes import (
    Canvas,
    Triple,
    curve,
    ellipsoid,
    local_points,
    rotation,
    smooth_min,
    tube,
)


@dataclass(frozen=True)
class Layout:
    """Where organs are put in one patient.

    Attributes:
        scale: Factors on x, y, z of organ positions (body size).
        size: Factor on the size of each organ, by name; 1 where not named.
        gap_mm: Fat between neighbouring organs; 0 makes them touch.
        seed: Seed of the patient's organs.
    """

    scale: Triple
    size: dict[str, float]
    gap_mm: float
    seed: tuple[int, ...]

    def rng(self, organ: str) -> np.random.Generator:
        """Random numbers of one organ, the same whatever else is drawn."""
        return np.random.default_rng([*self.seed, *organ.encode()])

    def place(self, x: float, y: float, z: float) -> Triple:
        """A reference position, scaled to the body."""
        return (x * self.scale[0], y * self.scale[1], z * self.scale[2])

    def radius(self, organ: str) -> float:
        """Factor on the radii of an organ."""
        return self.size.get(organ, 1.0)


def jitter(rng: np.random.Generator, mm: float) -> np.ndarray:
    """A random shift in mm, `(3,)`, at most twice `mm` along each axis."""
    return np.clip(rng.normal(0, mm, 3), -2 * mm, 2 * mm)


def paint_liver(canvas: Canvas, layout: Layout, cavity: np.ndarray, above: np.ndarray) -> None:
    """Right lobe, left lobe and caudate, fitted under the diaphragm and the ribs."""
    rng, s = layout.rng("liver"), layout.radius("liver")
    right = np.add(layout.place(78, 26, 30), jitter(rng, 5))
    left = np.add(layout.place(0, 72, 58), jitter(rng, 6))
    left_reach = rng.uniform(0.75, 1.25)
    lean = rotation((rng.uniform(-8, 8), rng.uniform(8, 20), rng.uniform(-8, 8)))
    fall = rotation((rng.uniform(-25, -5), rng.uniform(-25, 0), rng.uniform(-15, 5)))
    tip = np.add(layout.place(98, 18, -35 - rng.uniform(0, 35)), jitter(rng, 5))
    box = canvas.box((-110, -75, -130), (165, 140, 140))
    if box is None:
        return
    points = canvas.at(box)
    d = ellipsoid(points, right, (66 * s, 74 * s, 80 * s), lean)
    d = smooth_min(d, ellipsoid(points, left, (74 * s * left_reach, 34 * s, 36 * s), fall), 28)
    d = smooth_min(d, ellipsoid(points, tip, (30 * s, 42 * s, 38 * s)), 30)
    d = smooth_min(d, ellipsoid(points, np.add(layout.place(24, 30, 55), jitter(rng, 3)), (18, 16, 28)), 8)
    d = np.maximum(d + np.float32(1.2) * canvas.bumps[box], cavity[box] + 2)
    # Nothing of it lies beside the spine, behind the vena cava.
    d = np.maximum(np.maximum(d, np.minimum(26 - points[0], 38 - points[1])), 2 - above[box])
    canvas.paint(box, (d < 0) & ~canvas.mask(box, "lung", "heart"), "liver", "liver")


def paint_spleen(canvas: Canvas, layout: Layout, cavity: np.ndarray, above: np.ndarray) -> None:
    """A thick crescent against the left ribs, hollow toward stomach and kidney."""
    rng, s = layout.rng("spleen"), layout.radius("spleen")
    centre = np.add(layout.place(-97, -6, 56), jitter(rng, 6))
    axes = rotation((rng.uniform(-20, 20), rng.uniform(-15, 15), rng.uniform(20, 50)))
    long = rng.uniform(0.88, 1.15)
    hollow = centre + np.array([46.0 * s, 24.0 * s, -6.0]) + jitter(rng, 4)
    box = canvas.around(centre, 80 * max(s, 1))
    if box is None:
        return
    points = canvas.at(box)
    d = ellipsoid(points, centre, (38 * s, 56 * s, 60 * s * long), axes)
    d = np.maximum(d, -ellipsoid(points, hollow, (27 * s, 34 * s, 50 * s)))
    d = np.maximum(d + np.float32(1.2) * canvas.bumps[box], cavity[box] + 2)
    d = np.maximum(d, 2 - above[box])
    canvas.paint(box, (d < 0) & ~canvas.mask(box, "lung", "heart"), "spleen", "spleen")


@dataclass(frozen=True)
class Kidney:
    """Place and shape of one kidney, in body mm."""

    organ: str
    centre: np.ndarray
    axes: np.ndarray
    radii: Triple
    bend: float


def draw_kidney(layout: Layout, side: str) -> Kidney:
    """Draw one kidney; `side` is "left" or "right"."""
    organ = f"{side}_kidney"
    rng, s = layout.rng(organ), layout.radius(organ)
    sign = 1 if side == "right" else -1
    level = -26 if side == "right" else -12
    centre = np.add(layout.place(sign * 63, -6, level), jitter(rng, 5))
    medial = np.array([-sign * np.cos(a := np.deg2rad(rng.uniform(20, 50))), np.sin(a), 0.0])
    # The upper pole lies nearer to the spine and farther back than the lower one.
    up = np.array([-sign * rng.uniform(0.1, 0.35), -rng.uniform(0.05, 0.25), 1.0])
    up -= (up @ medial) * medial
    up /= np.linalg.norm(up)
    axes = np.stack([medial, np.cross(up, medial), up])
    stretch = rng.uniform(0.92, 1.1)
    radii = (29.5 * s / stretch**0.5, 25 * s / stretch**0.5, 55 * s * stretch)
    return Kidney(organ, centre, axes, radii, rng.uniform(6, 12))


def _kidney_distance(canvas: Canvas, box: tuple, kidney: Kidney) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances to the whole bean, to the fat of its sinus and to the renal pelvis."""
    u, v, w = local_points(canvas.at(box), tuple(kidney.centre), kidney.axes)
    bent = (u - np.float32(kidney.bend) * ((w / np.float32(kidney.radii[2])) ** 2 - np.float32(0.3)), v, w)
    r = kidney.radii
    bean = ellipsoid(bent, (0, 0, 0), r) + np.float32(0.7) * canvas.bumps[box]
    sinus = ellipsoid((u, v, w), (0.72 * r[0], 0, 0), (0.72 * r[0], 0.36 * r[1], 0.46 * r[2]))
    pelvis = ellipsoid((u, v, w), (0.70 * r[0], 0, -2), (0.5 * r[0], 0.2 * r[1], 0.22 * r[2]))
    return bean, sinus, pelvis


def paint_renal_fat(canvas: Canvas, kidney: Kidney, fat_mm: float) -> None:
    """Fat around a kidney, pressed into what lies beside it."""
    box = canvas.around(kidney.centre, 1.25 * kidney.radii[2] + fat_mm)
    if box is not None:
        bean, _, _ = _kidney_distance(canvas, box, kidney)
        soft = ~canvas.mask(box, "muscle", "lung", "cortical_bone", "marrow", "subcutaneous_fat")
        # Thick behind, thin in front, and uneven.
        thickness = fat_mm * (1 - np.float32(0.6) * np.tanh((canvas.at(box)[1] - kidney.centre[1]) / 15))
        canvas.paint(box, (bean < thickness + 2 * canvas.bumps[box]) & soft, "visceral_fat")


def paint_kidney(canvas: Canvas, kidney: Kidney) -> None:
    """Cortex, medulla, sinus fat and renal pelvis of one kidney."""
    box = canvas.around(kidney.centre, 1.25 * kidney.radii[2])
    if box is None:
        return
    bean, sinus, pelvis = _kidney_distance(canvas, box, kidney)
    inside = bean < 0
    canvas.paint(box, inside & (sinus > 0), "kidney_cortex", kidney.organ)
    pyramids = (bean < -6) & (sinus > 0) & (canvas.bumps[box] > -0.5)
    canvas.paint(box, pyramids, "kidney_medulla", kidney.organ)
    canvas.paint(box, inside & (sinus <= 0), "visceral_fat")
    canvas.paint(box, (pelvis < 0) & (bean < 6), "urine")


def pancreas_curve(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Head to tail of the pancreas: polyline and radii, mm."""
    rng, s = layout.rng("pancreas"), layout.radius("pancreas")
    rise = rng.uniform(0.5, 1.3)
    points = [
        (15, 38, -34),
        (27, 45, -18),
        (22, 54, -2),
        (2, 58, 5),
        (-28, 50, 14),
        (-58, 28, 22),
        (-80, 8, 28),
    ]
    moved = [np.add(layout.place(x, y, z * rise if x < 20 else z), jitter(rng, 3)) for x, y, z in points]
    radii = [10 * s, 17 * s, 13.5 * s, 10 * s, 12.5 * s, 12 * s, 9.5 * s]
    return curve(moved, radii, 20)


def paint_pancreas(canvas: Canvas, layout: Layout) -> None:
    """A lobulated tube across the midline, from the duodenum to the hilum of the spleen."""
    line, radii = pancreas_curve(layout)
    box = canvas.along(line, 26)
    if box is None:
        return
    d = tube(canvas.at(box), line, radii, (1.0, 1.0, 0.9)) + np.float32(2.0) * canvas.bumps[box]
    free = ~canvas.mask(
        box, "cortical_bone", "marrow", "disc", "muscle", "kidney_cortex", "kidney_medulla", "aorta"
    )
    canvas.paint(
        box, (d < layout.gap_mm) & canvas.mask(box, "stomach_wall", "bowel_wall", "spleen"), "visceral_fat"
    )
    canvas.paint(box, (d < 0) & free, "pancreas", "pancreas")


def paint_vessels(
    canvas: Canvas, layout: Layout, kidneys: list[Kidney], without: frozenset[str] = frozenset()
) -> None:
    """Aorta with its upper branches, vena cava, renal vessels and the oesophagus, but for those in `without`."""
    rng = layout.rng("vessels")
    wide = rng.uniform(0.85, 1.25)
    sway = rng.uniform(-6, 6)
    aorta = curve([(-8, 32, 160), (-6, 33, 60), (-7 + sway, 30, -40), (-2, 30, -105)], [12, 11.5, 10, 8.5])
    cava = curve([(24, 46, 105), (22, 36, 60), (19, 30, -20), (16, 28, -105)], [14, 13, 12, 10])
    trunk = curve([(-6, 40, 12), (-5, 62, 2), (-3, 60, -50)], [4.5, 4, 3.5])
    tubes = [("vena_cava", "vena_cava", *cava, (1.0, 1.2, 1.0)), ("aorta", "aorta", *aorta, (1.0, 1.0, 1.0))]
    tubes.append(("aorta", None, *trunk, (1.0, 1.0, 1.0)))
    for kidney in kidneys:
        hilum = kidney.centre + 0.8 * kidney.radii[0] * kidney.axes[0]
        start = np.array([np.sign(hilum[0]) * 9.0 + 6, 33.0, hilum[2] + 8])
        vein = curve([hilum, (hilum + start) / 2 + [0, 6, 0], start], [4, 5, 5], 6)
        artery = curve([np.add(hilum, (0, -4, 4)), np.add(start, (-6, -4, 6))], [2.5, 3], 4)
        tubes += [("vena_cava", None, *vein, (1.0, 1.0, 1.0)), ("aorta", None, *artery, (1.0, 1.0, 1.0))]
    for tissue, organ, line, radii, flatten in tubes:
        if tissue not in without:
            _paint_tube(canvas, line, radii * wide, tissue, organ, flatten)
    gullet = curve([(-10, 44, 160), (-14, 48, 105), (-34, 46, 84)], [8, 8, 9])
    if "esophagus" not in without:
        _paint_tube(canvas, *gullet, "esophagus", "esophagus")


def paint_portal_vein(canvas: Canvas, layout: Layout) -> None:
    """Splenic vein behind the pancreas, mesenteric vein from below, portal vein into the liver."""
    line, _ = pancreas_curve(layout)
    splenic = line[6:] + np.array([0, -9.0, 3.0])
    start = splenic[0]
    _paint_tube(canvas, splenic[::2], np.full(len(splenic[::2]), 4.0), "portal_vein", "portal_vein")
    portal = curve([start, np.add(start, (18, -6, 22)), np.add(start, (42, -4, 42))], [6.5, 7, 6])
    mesenteric = curve([start, np.add(start, (4, 6, -35)), np.add(start, (2, 10, -80))], [5.5, 5, 4])
    _paint_tube(canvas, *portal, "portal_vein", "portal_vein")
    _paint_tube(canvas, *mesenteric, "portal_vein", None)


def _paint_tube(
    canvas: Canvas,
    line: np.ndarray,
    radii: np.ndarray,
    tissue: str,
    organ: str | None,
    flatten: Triple = (1.0, 1.0, 1.0),
) -> None:
    box = canvas.along(line, float(radii.max()) + 2)
    if box is not None:
        d = tube(canvas.at(box), line, radii, flatten)
        free = ~canvas.mask(box, "cortical_bone", "marrow", "disc", "kidney_cortex", "kidney_medulla")
        canvas.paint(box, (d < 0) & free, tissue, organ)


def paint_gallbladder(canvas: Canvas, layout: Layout) -> None:
    """A pear under the liver, of any filling."""
    rng = layout.rng("gallbladder")
    centre = np.add(layout.place(50, 68, -8), jitter(rng, 5))
    r = rng.uniform(9, 16)
    box = canvas.around(centre, 3 * r)
    if box is not None:
        d = ellipsoid(canvas.at(box), centre, (r, 1.15 * r, 1.9 * r), rotation((30, 15, 0)))
        free = canvas.mask(box, "liver", "visceral_fat", "bowel_wall", "bowel_content", "stool", "gas")
        canvas.paint(box, (d < 1.5) & free, "stomach_wall", "gallbladder")
        canvas.paint(box, (d < 0) & free, "bile", "gallbladder")


def paint_adrenals(canvas: Canvas, layout: Layout) -> None:
    """Two thin limbs above each kidney."""
    for side, sign in (("right", 1), ("left", -1)):
        rng = layout.rng(f"{side}_adrenal")
        base = np.add(layout.place(sign * 34, 12, 34 if sign > 0 else 26), jitter(rng, 3))
        for end in ((sign * 4, -16, -14), (sign * 14, -10, -16)):
            line, radii = curve([np.add(base, (0, 6, 6)), base, np.add(base, end)], [3.0, 4.2, 3.2], 6)
            box = canvas.along(line, 6)
            if box is not None:
                d = tube(canvas.at(box), line, radii)
                free = canvas.mask(box, "visceral_fat", "liver", "muscle")
                canvas.paint(box, (d < 0) & free, "adrenal", f"{side}_adrenal")
