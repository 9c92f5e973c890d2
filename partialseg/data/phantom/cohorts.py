"""The five datasets as populations of patients and scans: one row of ranges each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from partialseg.data.phantom.anatomy import Patient, layout_of, make_torso
from partialseg.data.phantom.tissue import Appearance, draw_appearance

Range = tuple[float, float]


@dataclass(frozen=True)
class Cohort:
    """From which ranges the cases of one dataset are drawn.

    Attributes:
        dataset: Name of its data card.
        phases: Ranges of the contrast phase, which cases take in turn (see `tissue`).
        half_width_mm: Of the abdominal cavity.
        fat_mm: Subcutaneous fat.
        organ_size: Factor on organ radii.
        shift_mm: Standard deviation of the position of the patient in the scanner.
        tilt_degrees: Standard deviation of the tilt.
        warp_mm: Standard deviation of the deformation.
        noise_hu: Noise.
        spread: Factor on the differences of tissues between patients.
        oral: Probability of positive oral contrast.
        ascites: Probability of fluid in the cavity.
        fatty_liver: Probability of a liver darkened by fat.
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
    spread: float
    oral: float
    ascites: float
    fatty_liver: float
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
        phases=((1.9, 2.1),),
        half_width_mm=(125, 135),
        fat_mm=(12, 22),
        organ_size=(0.97, 1.03),
        shift_mm=5,
        tilt_degrees=2,
        warp_mm=2.0,
        noise_hu=(9, 14),
        spread=0.5,
        oral=0.0,
        ascites=0.0,
        fatty_liver=0.0,
        top_mm=(140, 165),
        bottom_mm=(-125, -105),
        thickness_mm=(3.0, 5.0),
        field_mm=(365, 400),
        tumours={},
        missing_kidney=0.0,
    ),
    Cohort(
        dataset="msd_liver",
        phases=((0.0, 0.2), (0.8, 1.4), (1.6, 2.3), (2.5, 3.0)),
        half_width_mm=(106, 154),
        fat_mm=(6, 42),
        organ_size=(0.9, 1.09),
        shift_mm=12,
        tilt_degrees=8,
        warp_mm=5.5,
        noise_hu=(10, 38),
        spread=1.5,
        oral=0.4,
        ascites=0.35,
        fatty_liver=0.35,
        top_mm=(125, 170),
        bottom_mm=(-130, -75),
        thickness_mm=(2.5, 5.0),
        field_mm=(340, 460),
        tumours={"liver": (1, 6)},
        missing_kidney=0.05,
    ),
    Cohort(
        dataset="msd_spleen",
        phases=((0.9, 1.3), (1.7, 2.2), (2.5, 3.0)),
        half_width_mm=(106, 154),
        fat_mm=(5, 40),
        organ_size=(0.93, 1.1),
        shift_mm=12,
        tilt_degrees=8,
        warp_mm=5.5,
        noise_hu=(10, 36),
        spread=1.5,
        oral=0.6,
        ascites=0.3,
        fatty_liver=0.3,
        top_mm=(135, 170),
        bottom_mm=(-125, -60),
        thickness_mm=(3.0, 5.0),
        field_mm=(340, 460),
        tumours={"liver": (0, 3)},
        missing_kidney=0.05,
    ),
    Cohort(
        dataset="msd_pancreas",
        phases=((0.9, 1.4), (1.5, 2.1)),
        half_width_mm=(108, 150),
        fat_mm=(6, 38),
        organ_size=(0.94, 1.07),
        shift_mm=10,
        tilt_degrees=7,
        warp_mm=5.0,
        noise_hu=(10, 30),
        spread=1.3,
        oral=0.4,
        ascites=0.15,
        fatty_liver=0.3,
        top_mm=(95, 160),
        bottom_mm=(-130, -95),
        thickness_mm=(2.5, 3.5),
        field_mm=(340, 440),
        tumours={"pancreas": (1, 1), "liver": (0, 1)},
        missing_kidney=0.05,
    ),
    Cohort(
        dataset="kits19",
        phases=((0.8, 1.2), (0.9, 1.5)),
        half_width_mm=(106, 154),
        fat_mm=(6, 45),
        organ_size=(0.93, 1.07),
        shift_mm=12,
        tilt_degrees=8,
        warp_mm=5.5,
        noise_hu=(10, 38),
        spread=1.5,
        oral=0.4,
        ascites=0.0,
        fatty_liver=0.3,
        top_mm=(85, 150),
        bottom_mm=(-130, -105),
        thickness_mm=(2.5, 5.0),
        field_mm=(340, 470),
        tumours={"kidney": (1, 3)},
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
    """

    phase: float
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    first_mm: tuple[float, float, float]
    noise_hu: float

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
        seed: Seed of the case; the last number is that of the case in its dataset.
        matrix: Smallest and largest in-plane matrix.
        thickness_mm: Distance of slices, where the cohort's own is not wanted.
    """
    rng = np.random.default_rng([*seed, 3])
    # In turn, so that even a few cases show all phases.
    low, high = cohort.phases[sum(seed) % len(cohort.phases)]
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
    )


def draw_look(cohort: Cohort, phase: float, rng: np.random.Generator) -> Appearance:
    """Draw how the tissues of a patient of a cohort look in one phase."""
    return draw_appearance(rng, phase, cohort.spread, cohort.oral, cohort.ascites, cohort.fatty_liver)
