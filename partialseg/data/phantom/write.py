"""Phantom datasets: five cohorts of patients, scanned and written in the raw layouts."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partialseg.data.phantom.anatomy import paint_patient
from partialseg.data.phantom.cohorts import COHORTS, Cohort, Range, draw_look, draw_patient, draw_scan
from partialseg.data.phantom.layouts import (
    LAYOUTS,
    RawLayout,
    organ_labels,
    oriented,
    truth_labels,
    write_msd_description,
    write_nifti,
)
from partialseg.data.phantom.scan import render_whole
from partialseg.files import write_json
from partialseg.progress import track


@dataclass(frozen=True)
class Preset:
    """How many cases, and how fine.

    Attributes:
        cases: Number of cases per dataset, at most 15.
        matrix: Smallest and largest in-plane matrix.
        thickness_mm: Distance of slices; None for that of each cohort.
    """

    cases: dict[str, int]
    matrix: Range
    thickness_mm: Range | None = None


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        {"btcv": 3, "msd_liver": 2, "msd_spleen": 2, "msd_pancreas": 2, "kits19": 3}, (64, 64), (9.0, 11.0)
    ),
    "demo": Preset(
        {"btcv": 6, "msd_liver": 10, "msd_spleen": 8, "msd_pancreas": 10, "kits19": 10}, (128, 144)
    ),
}
#: In every phantom the third KiTS19 case has one kidney, so that small phantoms hold such a case, too.
_ONE_KIDNEY = ("kits19", 2)


def write_phantom(out: str | os.PathLike[str], preset: str = "tiny", seed: int = 0) -> dict[str, Path]:
    """Write phantom datasets in the raw layouts of BTCV, MSD liver, spleen and pancreas, and KiTS19.

    Images are int16 HU, labels uint8 with the values of the originals. Under `out/truth/<dataset>/` lie
    label maps of all five organs (values 1 to 5 in the order of `PAPER_ORGANS`) on each case's own grid, also
    of the organs that the dataset does not annotate; `out/phantom.json` says how each case was drawn.

    Args:
        out: Folder to write to.
        preset: "tiny" (seconds) or "demo".
        seed: The same seed gives the same voxels; a case depends on nothing but seed, dataset and its number.

    Returns:
        The folder of each dataset, by the name of its data card.

    Raises:
        ValueError: If there is no such preset.

    Example:
        >>> import tempfile
        >>> folders = write_phantom(tempfile.mkdtemp(), "tiny")
        >>> sorted(folders)
        ['btcv', 'kits19', 'msd_liver', 'msd_pancreas', 'msd_spleen']
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    out, plan = Path(out), PRESETS[preset]
    cohorts = {cohort.dataset: cohort for cohort in COHORTS}
    jobs = [(layout, index) for layout in LAYOUTS for index in range(plan.cases[layout.dataset])]
    # NumPy, SciPy and zlib let go of the interpreter, so threads share the work without starting processes.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(
            lambda job: write_case(out, job[0], cohorts[job[0].dataset], job[1], plan, seed), jobs
        )
        cases = list(track(made, "phantom", total=len(jobs)))
    for layout in LAYOUTS:
        if layout.title is not None:
            numbers = list(layout.numbers[: plan.cases[layout.dataset]])
            write_msd_description(out / layout.folder, layout, numbers)
    write_json(out / "phantom.json", {"preset": preset, "seed": seed, "cases": cases})
    return {layout.dataset: out / layout.folder for layout in LAYOUTS}


def write_case(
    out: Path, layout: RawLayout, cohort: Cohort, index: int, plan: Preset, seed: int
) -> dict[str, Any]:
    """Draw, scan and write one case; returns how it was drawn."""
    key = (seed, *cohort.dataset.encode(), index)
    patient = draw_patient(cohort, key, missing_kidney=(cohort.dataset, index) == _ONE_KIDNEY)
    scan = draw_scan(cohort, key, plan.matrix, plan.thickness_mm)
    canvas = paint_patient(patient, scan.axes_mm)
    rng = np.random.default_rng([*key, 4])
    blur = (0.35 * scan.spacing_mm[0], *(max(0.7, 0.4 * spacing) for spacing in scan.spacing_mm[1:]))
    look = draw_look(cohort, scan.phase, rng)
    hu = render_whole(canvas.tissue, scan.spacing_mm, look, rng, blur, scan.noise_hu)
    # Scanners count z from anywhere.
    first = (scan.first_mm[0] - float(rng.integers(200, 900)), *scan.first_mm[1:])
    axes = layout.axes[index % len(layout.axes)]
    number, name = layout.numbers[index], layout.case_name(index)
    volumes = {
        out / layout.folder / layout.image.format(number): np.round(hu).astype(np.int16),
        out / layout.folder / layout.label.format(number): organ_labels(canvas, layout.values),
        out / "truth" / layout.dataset / f"{name}.nii.gz": truth_labels(canvas),
    }
    for path, array in volumes.items():
        write_nifti(path, oriented(array, scan.spacing_mm, first, axes, layout.keeps_origin))
    return {
        "dataset": layout.dataset,
        "case": name,
        "phase": round(scan.phase, 2),
        "spacing_mm": scan.spacing_mm,
        "noise_hu": round(scan.noise_hu, 1),
        "missing_kidney": patient.missing_kidney,
        "lesions": patient.tumours,
    }
