"""What a planner needs to know of prepared data: sizes of the training cases, voxel sizes, how much there is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from partialseg.data.prepared import Case, Prepared
from partialseg.errors import DataError


@dataclass(frozen=True)
class DatasetSizes:
    """The training cases of one dataset.

    Attributes:
        name: Of the dataset.
        cases: How many.
        organs: How many are annotated.
        low, median, high: 10th percentile, median and 90th percentile of voxels, `(depth, height, width)`.
        source_mm: Median voxel size `(z, y, x)` of the raw scans in mm; None where their headers are not at hand.
    """

    name: str
    cases: int
    organs: int
    low: tuple[int, int, int]
    median: tuple[int, int, int]
    high: tuple[int, int, int]
    source_mm: tuple[float, float, float] | None


@dataclass(frozen=True)
class Fingerprint:
    """All training cases of a prepared folder.

    Attributes:
        spacing_mm: Voxel size `(z, y, x)` of the prepared cases.
        median: Median of voxels over all cases, `(depth, height, width)`.
        voxels: Of all cases together.
        source_mm: Median voxel size of the raw scans; None where their headers are not at hand.
        datasets: One by one.
    """

    spacing_mm: tuple[float, float, float]
    median: tuple[int, int, int]
    voxels: int
    source_mm: tuple[float, float, float] | None
    datasets: tuple[DatasetSizes, ...]


def fingerprint(prepared: Prepared) -> Fingerprint:
    """Measure the training cases; reads the manifest, and headers of raw scans that are still there.

    Args:
        prepared: The prepared cases.

    Raises:
        DataError: If there is no training case.
    """
    cases = prepared.select(split="train")
    if not cases:
        raise DataError(
            prepared.folder, "has no training case", "prepare a card whose `splits` leave some for training"
        )
    datasets = [
        _sizes(name, prepared.select(name, "train"), len(prepared.datasets[name].annotated))
        for name in prepared.datasets
        if prepared.select(name, "train")
    ]
    return Fingerprint(
        spacing_mm=prepared.spacing_mm,
        median=_percentile(cases, 50),
        voxels=sum(math.prod(case.shape) for case in cases),
        source_mm=_source_mm(cases),
        datasets=tuple(datasets),
    )


def _sizes(name: str, cases: list[Case], organs: int) -> DatasetSizes:
    low, median, high = (_percentile(cases, percent) for percent in (10, 50, 90))
    return DatasetSizes(name, len(cases), organs, low, median, high, _source_mm(cases))


def _percentile(cases: list[Case], percent: int) -> tuple[int, int, int]:
    return tuple(
        round(float(size)) for size in np.percentile([case.shape for case in cases], percent, axis=0)
    )


def _source_mm(cases: list[Case]) -> tuple[float, float, float] | None:
    """Median voxel size of those raw scans that are NIfTI files and still where they were."""
    found = [size for case in cases if (size := _header_mm(case)) is not None]
    return tuple(round(float(size), 3) for size in np.median(found, axis=0)) if found else None


def _header_mm(case: Case) -> tuple[float, float, float] | None:
    path = Path(case.image_source)
    if not path.name.endswith((".nii", ".nii.gz")) or not path.is_file():
        return None
    try:
        affine = nib.load(path).affine
    except (nib.filebasedimages.ImageFileError, OSError, EOFError):
        return None  # it was read when it was prepared; what became of it since is not for the planner to say
    # Columns of a canonical affine: x, y, z of the world, whichever axis of the file they are.
    order = nib.io_orientation(affine)[:, 0].argsort()
    lengths = nib.affines.voxel_sizes(affine)[order]
    return tuple(float(length) for length in lengths[::-1])
