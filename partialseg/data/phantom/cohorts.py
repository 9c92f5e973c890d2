"""The five datasets as populations of patients and scans: one row of ranges each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from partialseg.data.phantom.anatomy import Patient, layout_of, make_torso

Range = tuple[float, float]


@dataclass(frozen=True)
class Cohort:
    """From which ranges the cases of one dataset are drawn.

    Attributes:
        dataset: Name of its data card.
        phases: Ranges of the contrast phase, one of which is chosen (see `tissue`).
        half_width_mm: Of the abdominal cavity.
        fat_mm: Subcutaneous fat.
        organ_size: Factor on organ radii.
        shift_mm: Standard deviation of the position of the patient in the scanner.
        tilt_degrees: Standard deviation of the tilt.
        warp_mm: Standard deviation of the deformation.
        noise_hu: Noise.
        oral: Probability of positive oral contrast.
        top_mm, bottom_mm: Ends of the scan in body millimetres.
        thickness_mm: Distance of slices.
        field_mm: In-plane field of view.
        tumours: Range of the number of lesions per organ, "liver", "pancreas", "kidney".
        missing_kidney: Probability that one kidney is missing.
    """

    dataset: str
    phases: tuple[Range, ...]
    half_width_mm: Range
    fat_mm: Range
    organ_size: Range
    shift_mm: float
    tilt_degrees: float
    warp_mm: float
    noise_hu: Range
    oral: float
    top_mm: Range
    bottom_mm: Range
    thickness_mm: Range
    field_mm: Range
    tumours: dict[str, tuple[int, int]]
    missing_kidney: float


COHORTS: tuple[Cohort, ...] = (
    # F: portal venous, ordinary size, ordinary protocol, as in BTCV.
    Cohort(
        dataset="btcv",
        phases=((1.85, 2.15),),
        half_width_mm=(124, 136),
        fat_mm=(12, 22),
        organ_size=(0.97, 1.03),
        shift_mm=5,
        tilt_degrees=2,
        warp_mm=2.5,
        noise_hu=(9, 14),
        oral=0.2,
        top_mm=(140, 165),
        bottom_mm=(-125, -105),
        thickness_mm=(3.0, 5.0),
        field_mm=(365, 400),
        tumours={},
        missing_kidney=0.0,
    ),
    Cohort(
        dataset="msd_liver",
        phases=((1.6, 2.3), (0.8, 1.4), (2.5, 3.0), (0.0, 0.1)),
        half_width_mm=(112, 148),
        fat_mm=(6, 42),
        organ_size=(0.93, 1.07),
        shift_mm=12,
        tilt_degrees=5,
        warp_mm=4.0,
        noise_hu=(8, 28),
        oral=0.35,
        top_mm=(125, 170),
        bottom_mm=(-130, -75),
        thickness_mm=(2.5, 5.0),
        field_mm=(340, 460),
        tumours={"liver": (1, 6)},
        missing_kidney=0.05,
    ),
    Cohort(
        dataset="msd_spleen",
        phases=((1.5, 2.4), (1.9, 2.2), (2.4, 3.0)),
        half_width_mm=(112, 148),
        fat_mm=(5, 40),
        organ_size=(0.93, 1.1),
        shift_mm=12,
        tilt_degrees=6,
        warp_mm=4.0,
        noise_hu=(8, 26),
        oral=0.5,
        top_mm=(135, 170),
        bottom_mm=(-125, -60),
        thickness_mm=(3.0, 5.0),
        field_mm=(340, 460),
        tumours={"liver": (0, 3)},
        missing_kidney=0.05,
    ),
    Cohort(
        dataset="msd_pancreas",
        phases=((1.2, 1.6), (1.7, 2.2)),
        half_width_mm=(114, 146),
        fat_mm=(6, 38),
        organ_size=(0.94, 1.07),
        shift_mm=10,
        tilt_degrees=5,
        warp_mm=4.0,
        noise_hu=(8, 24),
        oral=0.2,
        top_mm=(95, 160),
        bottom_mm=(-130, -95),
        thickness_mm=(2.5, 3.5),
        field_mm=(340, 440),
        tumours={"pancreas": (1, 1), "liver": (0, 1)},
        missing_kidney=0.05,
    ),
    Cohort(
        dataset="kits19",
        phases=((0.9, 1.3), (1.0, 1.6)),
        half_width_mm=(112, 150),
        fat_mm=(6, 45),
        organ_size=(0.93, 1.07),
        shift_mm=12,
        tilt_degrees=6,
        warp_mm=4.0,
        noise_hu=(9, 28),
        oral=0.15,
        top_mm=(85, 150),
        bottom_mm=(-130, -105),
        thickness_mm=(2.5, 5.0),
        field_mm=(340, 470),
        tumours={"kidney": (1, 2)},
        missing_kidney=0.15,
    ),
)


@dataclass(frozen=True)
class ScanPlan:
    """How one case is scanned.

    Attributes:
        phase: Contrast phase, 0 to 3.
        spacing_mm: `(z, y, x)`.
        shape: `(depth, height, width)`.
        first_mm: Body coordinate of the first voxel centre, `(z, y, x)`.
        noise_hu: Noise.
        oral: Probability of oral contrast.
    """

    phase: float
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    first_mm: tuple[float, float, float]
    noise_hu: float
    oral: float

    @property
    def axes_mm(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates of the voxel centres along z, y, x."""
        parts = zip(self.first_mm, self.shape, self.spacing_mm, strict=True)
        return tuple(first + np.arange(n) * step for first, n, step in parts)


def draw_patient(cohort: Cohort, seed: tuple[int, ...], missing_kidney: bool = False) -> Patient:
    """Draw a patient of a cohort; `missing_kidney` forces what is otherwise left to chance."""
    rng = np.random.default_rng([*seed, 2])
    half_width = rng.uniform(*cohort.half_width_mm)
    fat = rng.uniform(*cohort.fat_mm)
    build = half_width / 130
    torso = make_torso(
        half_width=half_width,
        front=rng.normal(106, 5) * build + 0.35 * (fat - 18),
        back=rng.normal(39, 2),
        fat_mm=fat,
        muscle_mm=rng.uniform(13, 19),
        dome_mm=rng.normal(112, 6),
    )
    sizes = {
        organ: build**0.4 * rng.uniform(*cohort.organ_size)
        for organ in ("liver", "spleen", "left_kidney", "pancreas", "stomach")
    }
    sizes["right_kidney"] = sizes["left_kidney"] * rng.uniform(0.97, 1.01)
    layout = layout_of(torso, rng.normal(1, 0.03), sizes, float(rng.uniform(0, 2)), seed)
    missing = missing_kidney or rng.random() < cohort.missing_kidney
    side = str(rng.choice(["left_kidney", "right_kidney"]))
    return Patient(
        torso=torso,
        layout=layout,
        tilt_degrees=tuple(np.clip(rng.normal(0, cohort.tilt_degrees, 3), -12, 12)),
        warp_mm=cohort.warp_mm,
        renal_fat_mm=float(1 + 0.15 * fat + rng.uniform(0, 3)),
        missing_kidney=side if missing else None,
        tumours={organ: int(rng.integers(low, high + 1)) for organ, (low, high) in cohort.tumours.items()},
    )


def draw_scan(
    cohort: Cohort, seed: tuple[int, ...], matrix: Range, thickness_mm: Range | None = None
) -> ScanPlan:
    """Draw a scan of a cohort.

    Args:
        cohort: The row of ranges.
        seed: Seed of the case.
        matrix: Smallest and largest in-plane matrix.
        thickness_mm: Distance of slices, where the cohort's own is not wanted.
    """
    rng = np.random.default_rng([*seed, 3])
    low, high = cohort.phases[int(rng.integers(len(cohort.phases)))]
    size = int(rng.integers(int(matrix[0]) // 4, int(matrix[1]) // 4 + 1)) * 4
    in_plane = round(rng.uniform(*cohort.field_mm) / size, 3)
    thickness = round(rng.uniform(*(thickness_mm or cohort.thickness_mm)) * 2) / 2
    bottom, top = rng.uniform(*cohort.bottom_mm), rng.uniform(*cohort.top_mm)
    depth = max(2, round((top - bottom) / thickness))
    shift = np.clip(rng.normal(0, cohort.shift_mm, 2), -25, 25)
    return ScanPlan(
        phase=float(rng.uniform(low, high)),
        spacing_mm=(thickness, in_plane, in_plane),
        shape=(depth, size, size),
        first_mm=(bottom, 28 + shift[0] - in_plane * (size - 1) / 2, shift[1] - in_plane * (size - 1) / 2),
        noise_hu=float(rng.uniform(*cohort.noise_hu)),
        oral=cohort.oral,
    )
