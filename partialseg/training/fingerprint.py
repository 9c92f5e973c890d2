"""What a planner needs to know of prepared data: sizes of the training cases, voxel sizes, how much there is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from partialseg.data.prepared import Case, Prepared
from partialseg.errors import DataError

#: From how many times longer than the others a voxel edge is taken for that of thick slices, as nnU-Net has it.
ANISOTROPIC = 3


@dataclass(frozen=True)
class DatasetSizes:
    """The training cases of one dataset.

    Attributes:
        name: Of the dataset.
        cases: How many.
        organs: How many are annotated.
        low, median, high: 10th percentile, median and 90th percentile of voxels, `(depth, height, width)`.
        source_mm: Median voxel size `(z, y, x)` of the raw scans in mm; None where it is not known of any.
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
        source_mm: Median voxel size of the raw scans; None where it is not known of any.
        datasets: One by one.
        target_mm: Voxel size that nnU-Net would prepare the raw scans at (see `target_spacing`); None likewise.
        known: Of how many cases the voxel size of the raw scan is known.
    """

    spacing_mm: tuple[float, float, float]
    median: tuple[int, int, int]
    voxels: int
    source_mm: tuple[float, float, float] | None
    datasets: tuple[DatasetSizes, ...]
    target_mm: tuple[float, float, float] | None = None
    known: int = 0


def fingerprint(prepared: Prepared) -> Fingerprint:
    """Measure the training cases; reads the manifest, and where it does not have the voxel sizes, headers of raw scans.

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
    datasets, of_known = [], []
    for name in prepared.datasets:
        of_dataset = prepared.select(name, "train")
        known = [(case, size) for case in of_dataset if (size := _source_mm(case)) is not None]
        of_known += known
        if of_dataset:
            organs = len(prepared.datasets[name].annotated)
            datasets.append(_sizes(name, of_dataset, organs, [size for _, size in known]))
    sizes = [size for _, size in of_known]
    # What a scan has in voxels of its own: what it has in prepared ones, which cover as much.
    voxels = [
        [n * new / old for n, new, old in zip(case.shape, prepared.spacing_mm, size, strict=True)]
        for case, size in of_known
    ]
    return Fingerprint(
        spacing_mm=prepared.spacing_mm,
        median=_percentile(cases, 50),
        voxels=sum(math.prod(case.shape) for case in cases),
        source_mm=_median_mm(sizes),
        datasets=tuple(datasets),
        target_mm=target_spacing(sizes, voxels) if sizes else None,
        known=len(sizes),
    )


def target_spacing(
    spacings_mm: Sequence[Sequence[float]], shapes: Sequence[Sequence[float]]
) -> tuple[float, float, float]:
    """The voxel size to prepare scans at, by nnU-Net's rule.

    It is the median along each axis. Where the longest voxel edge is more than three times the others, and that axis
    has less than a third of the others' voxels, most slices are thick: there the 10th percentile is taken, but no
    less than the longer of the other edges, so that the thinner slices of some scans are not thrown away.

    Reference:
        Isensee et al., Nature Methods 2021; `ExperimentPlanner.determine_fullres_target_spacing` of nnU-Net 2.8.1.

    Args:
        spacings_mm: Of each scan, `(z, y, x)`.
        shapes: Of each scan, in its own voxels.

    Example:
        >>> target_spacing([(1.0, 0.8, 0.8), (2.0, 0.7, 0.7), (3.0, 0.9, 0.9)], [(300, 512, 512)] * 3)
        (2.0, 0.8, 0.8)
        >>> target_spacing([(5.0, 0.8, 0.8)] * 9 + [(2.5, 0.8, 0.8)] * 2, [(60, 512, 512)] * 11)
        (2.5, 0.8, 0.8)
    """
    target, voxels = np.median(spacings_mm, axis=0), np.median(shapes, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    longest = max(target[others])
    if target[worst] > ANISOTROPIC * longest and voxels[worst] * ANISOTROPIC < min(voxels[others]):
        target[worst] = max(np.percentile(np.asarray(spacings_mm)[:, worst], 10), longest)
    return tuple(round(float(length), 3) for length in target)


def _sizes(
    name: str, cases: list[Case], organs: int, sizes: list[tuple[float, float, float]]
) -> DatasetSizes:
    low, median, high = (_percentile(cases, percent) for percent in (10, 50, 90))
    return DatasetSizes(name, len(cases), organs, low, median, high, _median_mm(sizes))


def _percentile(cases: list[Case], percent: int) -> tuple[int, int, int]:
    return tuple(
        round(float(size)) for size in np.percentile([case.shape for case in cases], percent, axis=0)
    )


def _median_mm(sizes: list[tuple[float, float, float]]) -> tuple[float, float, float] | None:
    return tuple(round(float(size), 3) for size in np.median(sizes, axis=0)) if sizes else None


def _source_mm(case: Case) -> tuple[float, float, float] | None:
    """Voxel size of the raw scan: as it was prepared, else from its header if it is a NIfTI file and still there."""
    if case.source_mm is not None:
        return case.source_mm
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
