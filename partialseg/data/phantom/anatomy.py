"""One patient: drawn at random from a cohort's ranges, and painted on the grid of a scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from partialseg.data.phantom import bowel, organs, tumours
from partialseg.data.phantom.organs import Layout
from partialseg.data.phantom.shapes import Canvas, NoiseField, Triple, rotation
from partialseg.data.phantom.torso import (
    REFERENCE_FRONT,
    REFERENCE_HALF_WIDTH,
    Torso,
    paint_lungs,
    paint_spine,
    paint_table,
    paint_wall,
)

#: The box in which deformations are defined, mm: (z, y, x).
_REACH = ((-260.0, -220.0, -300.0), (280.0, 280.0, 300.0))


@dataclass(frozen=True)
class Patient:
    """Everything that makes one patient, apart from the scan.

    Attributes:
        torso: The trunk.
        layout: Places and sizes of the organs.
        tilt_degrees: Rotation of the patient in the scanner about x, y, z.
        warp_mm: Standard deviation of the smooth deformation.
        renal_fat_mm: Fat around the kidneys.
        missing_kidney: "left_kidney", "right_kidney", or None.
        tumours: How many lesions each organ has.
    """

    torso: Torso
    layout: Layout
    tilt_degrees: Triple
    warp_mm: float
    renal_fat_mm: float
    missing_kidney: str | None
    tumours: dict[str, int]


def make_torso(
    half_width: float, front: float, back: float, fat_mm: float, muscle_mm: float, dome_mm: float
) -> Torso:
    """A trunk of the usual form: narrower at the top, deepest in the chest, flat at the waist."""
    z_mm = (-200.0, -110.0, -40.0, 30.0, 90.0, 180.0)
    return Torso(
        z_mm=z_mm,
        half_width_mm=tuple(half_width * f for f in (1.04, 1.0, 0.98, 1.0, 0.99, 0.9)),
        front_mm=tuple(front * f for f in (0.92, 0.96, 1.0, 1.0, 0.98, 0.9)),
        back_mm=tuple(back + f for f in (-4.0, 0.0, 0.0, 5.0, 14.0, 18.0)),
        muscle_mm=(muscle_mm,) * len(z_mm),
        fat_mm=fat_mm,
        dome_mm=dome_mm,
    )


def layout_of(
    torso: Torso, height: float, size: dict[str, float], gap_mm: float, seed: tuple[int, ...]
) -> Layout:
    """Places of the organs in a trunk; `height` is the factor on z."""
    width = float(np.interp(0, torso.z_mm, torso.half_width_mm)) / REFERENCE_HALF_WIDTH
    depth = float(np.interp(0, torso.z_mm, torso.front_mm)) / REFERENCE_FRONT
    return Layout((width, depth, height), size, gap_mm, seed)


def make_canvas(
    axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray],
    tilt_degrees: Triple,
    warp_mm: float,
    seed: tuple[int, ...],
    spine_mm: tuple[np.ndarray, np.ndarray] | None = None,
) -> Canvas:
    """A canvas on a regular grid.

    Args:
        axes_mm: Coordinates of the voxel centres along z, y, x, in mm of the scanner (RAS+ directions).
        tilt_degrees: Rotation of the patient.
        warp_mm: Standard deviation of the deformation.
        seed: Seed of the deformation.
        spine_mm: x and y of the vertebral column in each slice, each `(depth,)`; None where it is straight.
    """
    rng = np.random.default_rng([*seed, 1])
    turn = rotation(tilt_degrees)
    z, y, x = (np.asarray(a, np.float32) for a in axes_mm)
    flat = (x[None, None, :], y[None, :, None], z[:, None, None])
    points = []
    for row in turn.astype(np.float32):
        # Three sigma at most: what lies beyond would tear organs apart.
        push = np.clip(NoiseField(rng, *_REACH, 55.0).on(*axes_mm), -2.5, 2.5) * np.float32(warp_mm)
        points.append(row[0] * flat[0] + row[1] * flat[1] + row[2] * flat[2] + push)
    reach_mm = 2.5 * warp_mm
    for axis, path in enumerate(spine_mm or ()):
        points[axis] -= np.asarray(path, np.float32)[:, None, None]
        reach_mm += float(np.abs(path).max())
    bumps = NoiseField(rng, *_REACH, 9.0).on(*axes_mm)
    spacing = [float(a[1] - a[0]) if len(a) > 1 else 1.0 for a in axes_mm]
    to_index = np.eye(4)
    to_index[:3, :3] = np.diag(1 / np.array(spacing)) @ turn.T[::-1]
    to_index[:3, 3] = [-float(a[0]) / s for a, s in zip(axes_mm, spacing, strict=True)]
    return Canvas(tuple(points), to_index, reach_mm, bumps)


def paint_patient(
    patient: Patient,
    axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray],
    without: frozenset[str] = frozenset(),
    spine_mm: tuple[np.ndarray, np.ndarray] | None = None,
    diaphragm_mm: np.ndarray | None = None,
) -> Canvas:
    """Paint a patient on the grid of a scan; later organs press into earlier ones.

    Args:
        patient: Whom to paint.
        axes_mm: Coordinates of the voxel centres along z, y, x (see `make_canvas`).
        without: Organs to leave out: names such as "liver", "small_bowel", "vena_cava".
        spine_mm: Path of the spine, as for `make_canvas`.
        diaphragm_mm: Known level of the diaphragm in each column, as for `paint_lungs`.
    """
    layout, torso = patient.layout, patient.torso
    canvas = make_canvas(axes_mm, patient.tilt_degrees, patient.warp_mm, layout.seed, spine_mm)
    cavity = paint_wall(canvas, torso)
    above = paint_lungs(canvas, torso, cavity, diaphragm_mm)
    sides = [
        side for side in ("left", "right") if not {f"{side}_kidney"} & {patient.missing_kidney, *without}
    ]
    kidneys = [organs.draw_kidney(layout, side) for side in sides]

    def renal_fat() -> None:
        for kidney in kidneys:
            organs.paint_renal_fat(canvas, kidney, patient.renal_fat_mm)

    def renal_tissue() -> None:
        for kidney in kidneys:
            organs.paint_kidney(canvas, kidney)

    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("small_bowel", lambda: bowel.paint_small_bowel(canvas, layout, cavity)),
        ("colon", lambda: bowel.paint_colon(canvas, layout, cavity)),
        ("spleen", lambda: organs.paint_spleen(canvas, layout, cavity, above)),
        ("stomach", lambda: bowel.paint_stomach(canvas, layout, cavity, above)),
        ("liver", lambda: organs.paint_liver(canvas, layout, cavity, above)),
        ("renal_fat", renal_fat),
        ("spine", lambda: paint_spine(canvas, cavity)),
        ("adrenal", lambda: organs.paint_adrenals(canvas, layout)),
        ("kidneys", renal_tissue),
        ("duodenum", lambda: bowel.paint_duodenum(canvas, layout)),
        ("vessels", lambda: organs.paint_vessels(canvas, layout, kidneys, without)),
        ("portal_vein", lambda: organs.paint_portal_vein(canvas, layout)),
        ("pancreas", lambda: organs.paint_pancreas(canvas, layout)),
        ("gallbladder", lambda: organs.paint_gallbladder(canvas, layout)),
        ("tumours", lambda: tumours.paint_tumours(canvas, layout, patient.tumours, kidneys)),
    )
    for name, paint in steps:
        if name not in without:
            paint()
    lowest = -float(np.interp(0, torso.z_mm, torso.back_mm)) - 36 - 1.3 * torso.fat_mm - 4
    z, y, x = (np.asarray(a, np.float32) for a in axes_mm)
    paint_table(canvas, (x[None, None, :], y[None, :, None], z[:, None, None]), lowest)
    return canvas
