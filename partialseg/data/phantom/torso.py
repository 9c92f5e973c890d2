"""The trunk around the organs: skin, fat, muscle, ribs, spine, diaphragm and lungs, and the table below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from partialseg.data.phantom.shapes import Canvas, Points, curve, ellipsoid, tube

#: Reference half-width and front of the abdominal cavity, mm, for which the organs are laid out.
REFERENCE_HALF_WIDTH, REFERENCE_FRONT = 130.0, 112.0
#: Period of the vertebrae along z, mm.
VERTEBRA_MM = 34.0


@dataclass(frozen=True)
class Torso:
    """The abdominal cavity and the layers around it, in body coordinates (see `shapes`).

    Attributes:
        z_mm: Levels at which the next four are given; between them they are interpolated.
        half_width_mm: Half-width of the cavity.
        front_mm: How far the cavity reaches in front of the spine's centre.
        back_mm: How far it reaches behind the spine's centre, beside the spine.
        muscle_mm: Thickness of the lateral wall.
        fat_mm: Thickness of the subcutaneous fat.
        dome_mm: Level of the top of the right half of the diaphragm.
    """

    z_mm: tuple[float, ...]
    half_width_mm: tuple[float, ...]
    front_mm: tuple[float, ...]
    back_mm: tuple[float, ...]
    muscle_mm: tuple[float, ...]
    fat_mm: float
    dome_mm: float

    def at_level(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Half-width, front and back of the cavity, and muscle, at levels z (mm): float32, shape of z."""
        return tuple(
            np.interp(z, self.z_mm, values).astype(np.float32)
            for values in (self.half_width_mm, self.front_mm, self.back_mm, self.muscle_mm)
        )


def rounded_distance(
    x: np.ndarray, y: np.ndarray, half_width: np.ndarray, half_depth: np.ndarray
) -> np.ndarray:
    """Radial distance in mm to a shape between ellipse and rectangle; negative inside.

    Example:
        >>> rounded_distance(np.array([0.0, 3.0]), np.array([6.0, 0.0]), 2.0, 4.0).round(2).tolist()
        [2.0, 1.0]
    """
    u, v = (x / half_width) ** 2, (y / half_depth) ** 2
    level = np.maximum(np.sqrt(np.sqrt(u * u + v * v + np.float32(1.3) * u * v)), np.float32(1e-3))
    return np.sqrt(x * x + y * y + np.float32(1e-3)) * (1 - 1 / level)


def paint_wall(canvas: Canvas, torso: Torso) -> np.ndarray:
    """Paint skin, fat, muscle wall and ribs; fill the cavity with fat.

    Returns:
        Signed distance in mm to the cavity, float32, of the grid's shape; negative inside.
    """
    x, y, z = canvas.points
    half_width, front, back, muscle = torso.at_level(z)
    cavity = rounded_distance(x, y - (front - back) / 2, half_width, (front + back) / 2)
    # Behind the cavity lie the muscles of the back, so the trunk reaches farther back than forward.
    behind, before = back + np.float32(36), front + np.float32(8)
    trunk = rounded_distance(x, y - (before - behind) / 2, half_width + muscle, (before + behind) / 2)
    # Fat is thickest at the flanks and the back.
    fat = np.float32(torso.fat_mm) * (1 + np.float32(0.25) * np.tanh(-y / 60)) + canvas.bumps * 0.8
    everywhere = (slice(None),) * 3
    canvas.paint(everywhere, trunk < fat + 2, "skin")
    canvas.paint(everywhere, trunk < fat, "subcutaneous_fat")
    canvas.paint(everywhere, (trunk < 0) | (cavity < 5), "muscle")
    # A seam of fat between the layers of the flank muscles, and the linea alba in front.
    seam = (
        (np.abs(cavity - muscle * np.float32(0.5)) < 0.9)
        & (np.abs(x) > 60)
        & (z > -130)
        & (y > -20)
        & (trunk < -2)
    )
    canvas.paint(everywhere, seam, "subcutaneous_fat")
    _paint_ribs(canvas, cavity)
    canvas.paint(everywhere, cavity < 0, "visceral_fat")
    return cavity


def _paint_ribs(canvas: Canvas, cavity: np.ndarray) -> None:
    """Ribs run around the cavity, falling toward the front; below the costal margin there are none."""
    x, y, z = canvas.points
    phase = (z + 0.45 * y + 6 * np.sign(x)) / np.float32(31)
    height = np.abs(phase - np.round(phase)) * np.float32(31)
    cage = (z > np.where(y > 0, np.float32(-38) + np.float32(0.95) * y, np.float32(-38))) & (np.abs(x) > 28)
    rib = np.hypot(height, (cavity - np.float32(6.5)) * np.float32(1.4))
    everywhere = (slice(None),) * 3
    cartilage = cage & (y > 85)
    canvas.paint(everywhere, cage & ~cartilage & (rib < 6.5), "cortical_bone")
    canvas.paint(everywhere, cage & (rib < 4) | (cartilage & (rib < 6.5)), "marrow")


def paint_lungs(
    canvas: Canvas, torso: Torso, cavity: np.ndarray, known_mm: np.ndarray | None = None
) -> np.ndarray:
    """Paint lungs and heart above the diaphragm.

    Args:
        canvas: Where to paint.
        torso: The trunk.
        cavity: Signed distance to the cavity.
        known_mm: Level of the diaphragm in each column `(height, width)` where it is known, NaN elsewhere.

    Returns:
        Height in mm of the diaphragm above each voxel (negative in the chest), float32, of the grid's shape.
    """
    x, y, z = canvas.points
    half_width, front, back, _ = torso.at_level(z)
    u = y - (front - back) / 2 + 8
    right = _dome(x - half_width * np.float32(0.48), u, half_width, front + back)
    left = _dome(x + half_width * np.float32(0.48), u, half_width, front + back)
    # The left half stands a little lower; in front the diaphragm is fixed higher than behind.
    diaphragm = np.float32(torso.dome_mm) - np.minimum(right, left + 9) + np.float32(0.10) * y
    if known_mm is not None:
        diaphragm = np.where(np.isnan(known_mm), diaphragm, known_mm.astype(np.float32))
    above = diaphragm - z
    everywhere = (slice(None),) * 3
    chest = (above < 0) & (cavity < 3)
    canvas.paint(everywhere, chest, "lung")
    mediastinum = chest & (np.abs(x + 6) < 20 + canvas.bumps * 3) & (y > 12) & (y < 60)
    canvas.paint(everywhere, mediastinum, "visceral_fat")
    heart = canvas.around((-22, 68, torso.dome_mm + 38), 70)
    if heart is not None:
        d = ellipsoid(canvas.at(heart), (-22, 68, torso.dome_mm + 38), (58, 40, 46))
        canvas.paint(heart, (d < 5) & chest[heart], "visceral_fat")
        canvas.paint(heart, (d < 0) & chest[heart], "heart")
    return above


def _dome(x: np.ndarray, y: np.ndarray, half_width: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """How far one half of the diaphragm lies below its top: flat in the middle, steep at the wall."""
    r2 = (x / (half_width * np.float32(0.55))) ** 2 + (y / (depth * np.float32(0.5))) ** 2
    return np.minimum(np.float32(28) * r2 + np.float32(22) * r2 * r2, np.float32(170))


def paint_spine(canvas: Canvas, cavity: np.ndarray) -> None:
    """Paint vertebrae, discs, canal, muscles of the back, psoas, crura and iliac wings."""
    _paint_muscles(canvas)
    box = canvas.box((-48, -72, -240), (48, 32, 400))
    if box is not None:
        _paint_vertebrae(canvas, box)
    low = canvas.box((-200, -60, -250), (200, 60, -88))
    if low is not None:
        x, y, z = canvas.at(low)
        wing = (
            (z < -92 - 0.25 * np.abs(y - 5)) & (z > -250) & (y < 52) & (np.abs(x) > 48) & (cavity[low] > -16)
        )
        canvas.paint(low, wing & (cavity[low] < 0), "muscle")
        canvas.paint(low, wing & (np.abs(cavity[low] + 5) < 5), "cortical_bone")
        canvas.paint(low, wing & (np.abs(cavity[low] + 5) < 2.5), "marrow")


def _paint_muscles(canvas: Canvas) -> None:
    for side in (-1, 1):
        back = canvas.box((side * 36 - 34, -72, -400), (side * 36 + 34, -15, 400))
        if back is not None:
            x, y, _ = canvas.at(back)
            d = (
                rounded_distance(x - side * 35, y + 46, np.float32(30), np.float32(21))
                + canvas.bumps[back] * 1.5
            )
            inside = canvas.mask(back, "visceral_fat", "lung", "muscle", "cortical_bone", "marrow")
            canvas.paint(back, (d < 0) & inside, "muscle")
            canvas.paint(back, (np.abs(d) < 1) & inside, "subcutaneous_fat")
        psoas = curve(
            [(side * 20, -6, 25), (side * 34, -4, -45), (side * 50, 12, -130), (side * 62, 30, -220)],
            [6, 17, 23, 22],
        )
        crus = curve([(side * 16, 18, -25), (side * 15, 25, 35), (side * 14, 32, 80)], [4, 7, 6])
        for line, radii in (psoas, crus):
            box = canvas.along(line, 26)
            if box is not None:
                d = tube(canvas.at(box), line, radii) + canvas.bumps[box]
                canvas.paint(box, (d < 0) & ~canvas.mask(box, "lung"), "muscle")


def _paint_vertebrae(canvas: Canvas, box: tuple[slice, slice, slice]) -> None:
    x, y, z = canvas.at(box)
    part = np.mod(z / np.float32(VERTEBRA_MM), 1)  # the disc is the last fifth
    in_disc = part > 0.8
    waist = np.float32(1) - np.float32(0.10) * np.sin(np.clip(part / 0.8, 0, 1) * np.float32(np.pi))
    body = rounded_distance(x, y, 23 * waist, 18 * waist)
    endplate = np.minimum(part, np.abs(part - 0.8)) * np.float32(VERTEBRA_MM)
    canal = rounded_distance(x, y + 27, np.float32(10.5), np.float32(8.5))
    arch = (canal < 6) & (part > 0.15) & (part < 0.7) & (y < -18)
    spinous = (np.abs(x) < 3.5) & (y < -33) & (y > -62) & (part > 0.1) & (part < 0.55)
    transverse = (np.abs(y + 22 + 0.12 * np.abs(x)) < 4.5) & (np.abs(x) < 42) & (part > 0.3) & (part < 0.6)
    facets = (np.hypot(np.abs(x) - 17, y + 33) < 7) & ((part < 0.2) | (part > 0.6))
    process = (arch | spinous | transverse | facets) & (canal > 0)
    canvas.paint(box, process, "cortical_bone")
    canvas.paint(box, process & (canvas.bumps[box] > 0.1), "marrow")
    canvas.paint(box, body < 0, "cortical_bone")
    canvas.paint(box, (body < -2.2) & (endplate > 2), "marrow")
    canvas.paint(box, (body < 0) & in_disc, "disc")
    canvas.paint(box, canal < 0, "visceral_fat")
    canvas.paint(box, canal < -2.5, "nerve")


def paint_table(canvas: Canvas, scan_points: Points, below_mm: float) -> None:
    """Paint a thin curved table top under the body, fixed to the scanner and not to the patient.

    Args:
        canvas: Where to paint; only air is painted over.
        scan_points: x, y, z in mm of the scanner, any shapes that broadcast to the grid.
        below_mm: y of the lowest point of its surface.
    """
    x, y, _ = scan_points
    gap = y - (np.float32(below_mm) + x * x / np.float32(900))
    shell = ((np.abs(gap) < 2.5) | (np.abs(gap + 26) < 2.5)) & (np.abs(x) < 205)
    everywhere = (slice(None),) * 3
    shell = np.broadcast_to(shell, canvas.tissue.shape)
    canvas.paint(everywhere, shell & canvas.mask(everywhere, "air"), "table")
