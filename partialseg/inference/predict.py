"""Predict scans: files in, label maps in their own geometry out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from partialseg.data.cards import Card
from partialseg.data.volumes import read_image, write_label_map
from partialseg.errors import DataError
from partialseg.files import write_json
from partialseg.inference.labelling import Network, label_scan, load_networks, trained_mirror_axes
from partialseg.inference.scans import list_scans, stem
from partialseg.models.sliding_window import DEFAULT_SETTINGS, WindowSettings
from partialseg.progress import progress_bar
from partialseg.training.runs import Run, read_run


@dataclass(frozen=True)
class PredictResult:
    """What `predict` did.

    Attributes:
        written: The label maps, in the order of the inputs.
        problems: What was wrong, one for each scan that could not be predicted.
    """

    written: list[Path] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)


def predict(
    run: Run | str | Path,
    inputs: Iterable[str | Path],
    out: str | Path,
    overlap: float = 0.5,
    card: Card | None = None,
    split: str | None = None,
    batch_size: int = 1,
    progress: bool = True,
    mirror: bool = False,
    skip_outside_body: bool = True,
    ensemble: Iterable[Run | str | Path] = (),
) -> PredictResult:
    """Predict scans with a trained network; each gives `OUT/<case>.nii.gz` and `OUT/<case>.json`.

    What is wrong with one scan does not keep the others from being predicted. Predictions that are already
    there are replaced; a file that is no prediction is not.

    Args:
        run: A run, or its folder.
        inputs: NIfTI files, folders that hold NIfTI files, and folders with the slices of a DICOM series;
            several series in a folder are predicted each, as `<folder>_series<number>`. With a card, folders
            of raw data, whose cases are predicted under their names.
        out: Folder for the label maps. A value is the index of its class in the run's classes.
        overlap: Share of a window that it has in common with the next one at least, 0 to below 1.
        card: The card of the dataset that the inputs are.
        split: With a card: predict only its "train" or "test" cases.
        batch_size: Windows that are predicted together.
        progress: Whether to show a progress bar on standard error.
        mirror: Whether windows are predicted mirrored too, along the axes along which training mirrored, and the
            results averaged: up to 8 times the time.
        skip_outside_body: Whether windows without any part of the body are background without being computed.
        ensemble: Further runs, such as the other folds, whose probabilities are averaged with the run's.

    Raises:
        DataError: If a run is not one, or has no trained network; if a run of the ensemble has other classes or
            another voxel size; or if windows are to be mirrored and a run was trained without that.
        ValueError: If a split is asked for without a card.
    """
    if split is not None and card is None:
        raise ValueError(f"split {split!r} needs a card, which says what cases belong to it")
    runs = [one if isinstance(one, Run) else read_run(one) for one in (run, *ensemble)]
    mirror_axes = trained_mirror_axes(runs) if mirror else ()
    settings = WindowSettings(overlap, batch_size, mirror_axes, skip_outside_body)
    networks = load_networks(runs)
    result = PredictResult()
    scans = list_scans(inputs, card, split, result.problems)
    sources = {scan.path.resolve() for scan in scans}
    with progress_bar() as bar:
        bar.disable = not progress
        overall = bar.add_task("predict", total=len(scans))
        windows = bar.add_task("windows", total=None)
        for scan in scans:
            bar.reset(windows, description=scan.name)
            label_map = Path(out) / f"{scan.name}.nii.gz"
            try:
                _check_not_a_scan(label_map, sources)
                predict_scan(
                    networks,
                    runs[0],
                    scan.path,
                    label_map,
                    settings,
                    lambda done, total: bar.update(windows, completed=done, total=total),
                    scan.series,
                    [other.folder for other in runs[1:]],
                )
                result.written.append(label_map)
            except DataError as error:
                result.problems.append(error)
            bar.advance(overall)
    return result


def _check_not_a_scan(label_map: Path, sources: Collection[Path]) -> None:
    """Refuse to write over a scan: one that is predicted, or a file beside which no prediction is described."""
    is_scan = label_map.resolve() in sources
    if is_scan or (label_map.exists() and not label_map.with_name(f"{stem(label_map)}.json").exists()):
        raise DataError(
            label_map,
            "is the scan itself, expected a new file"
            if is_scan
            else "is there already and is no prediction (there is no .json beside it), expected a new file",
            "give another folder with --out",
        )


def predict_scan(
    model: Callable[[Any], Any] | Sequence[Network],
    run: Run,
    path: str | Path,
    out: str | Path,
    settings: WindowSettings = DEFAULT_SETTINGS,
    progress: Callable[[int, int], None] | None = None,
    series: str | None = None,
    ensemble: Sequence[Path] = (),
) -> dict[str, float]:
    """Predict one scan, and write its label map and beside it `<case>.json`.

    See `partialseg.inference.labelling.label_scan`.

    Args:
        model: HU `(batch, depth, height, width, 1)` to logits, such as `run.load_model()`; or the networks of an
            ensemble.
        run: Says voxel size, patch size and classes.
        path: A NIfTI file or a folder with the slices of a DICOM series.
        out: The label map to write, `.nii.gz` or `.nii`: same shape, affine and axis order as the scan (for
            DICOM: canonical axes).
        settings: Of the windows.
        progress: Called with the number of windows done and in all.
        series: Which DICOM series, where the folder holds several: a pattern of its description, or its number
            or UID.
        ensemble: Folders of the runs of the networks after the first, as `<case>.json` names them.

    Returns:
        The volume of each organ in mL; 0 where it was not found.

    Raises:
        DataError: If the scan cannot be read or has an unusable geometry.
    """
    path, out = Path(path), Path(out)
    scan = read_image(path, series)
    networks = [Network(model, run.patch_size)] if callable(model) else model
    labels = label_scan(networks, scan, run.spacing_mm, run.classes, settings, progress)
    volumes_ml = _volumes_ml(labels, scan.spacing_mm, run.classes)
    write_json(
        out.with_name(f"{stem(out)}.json"),
        {
            "classes": run.classes,
            "volumes_ml": volumes_ml,
            "run": str(run.folder),
            "ensemble": [str(folder) for folder in ensemble],
            "source": str(path),
            "series": series,
            "spacing_mm": run.spacing_mm,
            "overlap": settings.overlap,
            "mirror_axes": settings.mirror_axes,
            "skip_outside_body": settings.skip_outside_body,
        },
    )
    # Last: a label map without the file that says its classes would be read with others.
    write_label_map(out, labels, like=scan)
    return volumes_ml


def _volumes_ml(labels: np.ndarray, spacing_mm: Sequence[float], classes: Sequence[str]) -> dict[str, float]:
    voxels = np.bincount(labels.ravel(), minlength=len(classes))
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return {organ: round(int(voxels[value]) * voxel_ml, 3) for value, organ in enumerate(classes) if value}
