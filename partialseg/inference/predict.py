"""Predict scans: files in, label maps in their own geometry out."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom

from partialseg.data.cards import Card
from partialseg.data.raw_files import content_hash
from partialseg.data.volumes import read_image, stem
from partialseg.errors import DataError, first_of
from partialseg.files import os_problem
from partialseg.inference.dicom_seg import read_source_series
from partialseg.inference.labelling import (
    Network,
    check_ensemble,
    label_scan,
    load_networks,
    trained_mirror_axes,
)
from partialseg.inference.out_of_memory import memory_as_problem
from partialseg.inference.plausibility import PredictionWarning
from partialseg.inference.prediction_files import (
    Origin,
    Outputs,
    check_names_are_free,
    find_prediction,
    problem_json,
    write_prediction,
)
from partialseg.inference.probability_maps import file_names, probability_maps
from partialseg.inference.scans import Scan, list_scans, with_files
from partialseg.inference.summary import write_summary
from partialseg.models.sliding_window import DEFAULT_SETTINGS, WindowSettings
from partialseg.progress import progress_bar
from partialseg.training.runs import Run, read_run
from partialseg.wording import counted

#: Of how a label map comes from a scan and a network; a new number where the same settings give other labels, so that
#: what an older version predicted is made again.
METHOD = 1


@dataclass(frozen=True)
class PredictResult:
    """What `predict` did.

    Attributes:
        written: The label maps, in the order of the inputs.
        kept: Those that were there already.
        problems: What was wrong, one for each scan that could not be predicted, or whose DICOM segmentation could not
            be written.
        notes: What was passed over.
        warnings: For the label maps that were written or kept, what somebody who uses them must know; by name.
    """

    written: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: dict[str, list[PredictionWarning]] = field(default_factory=dict)


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
    outputs: Outputs | None = None,
    again: bool = False,
    precision: str | None = None,
) -> PredictResult:
    """Predict scans with a trained network; each gives `OUT/<case>.nii.gz` and `OUT/<case>.json`.

    `OUT/summary.csv` has a row for each prediction in the folder; it is written too where the work is stopped.

    What is wrong with one scan, or that the memory does not do for it, does not keep the others from being
    predicted. A prediction that is there already, made of the same scan by the same network with the same settings,
    is kept; any other is replaced. A file that is no prediction is left alone.

    Args:
        run: A run, or its folder.
        inputs: NIfTI files, folders that hold NIfTI files, and folders with the slices of a DICOM series;
            several series in a folder are predicted each, as `<folder>_series<number>`, and so are all folders of
            slices below one, named by the way to them (`<patient>_<study>`). With a card, folders
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
        outputs: Which organs are written, and what is done to them; all, and nothing, by default.
        again: Whether to predict also what is there already.
        precision: In which the networks compute, float32 by default; see `partialseg.inference.precision.load_model`.

    Raises:
        DataError: If a run is not one, is given twice or has no trained network; if a run of the ensemble has other
            classes or another voxel size; if windows are to be mirrored and a run was trained without that; if the
            probabilities of two organs would share a file; if a test case was trained on; or if `out` is a file or
            may not be written to.
        ValueError: If a split is asked for without a card, or an organ is not among the run's classes.
    """
    if split is not None and card is None:
        raise ValueError(f"split {split!r} needs a card, which says what cases belong to it")
    runs = [one if isinstance(one, Run) else read_run(one) for one in (run, *ensemble)]
    check_ensemble(runs)
    mirror_axes = trained_mirror_axes(runs) if mirror else ()
    settings, outputs = (
        WindowSettings(overlap, batch_size, mirror_axes, skip_outside_body),
        outputs or Outputs(),
    )
    _check_organs(outputs, runs[0])
    _check_folder(Path(out))
    networks = (
        None if all(one.model_path.is_file() for one in runs) else load_networks(runs, precision)
    )  # says what is missing
    origin = _origin(runs, settings, outputs, precision)
    result = PredictResult()
    scans = list_scans(inputs, card, split, result.problems, result.notes)
    if split == "test":
        _check_unseen(runs, card, scans)
    sources = {path.resolve() for scan in scans for path in (scan.path, *scan.files)}
    remedy = _more_memory(batch_size)
    with _summary_at_the_end(Path(out), result), progress_bar() as bar:
        bar.disable = not progress
        overall = bar.add_task("predict", total=len(scans))
        windows = bar.add_task("windows", total=None)
        for scan in scans:
            bar.reset(windows, description=scan.name)
            label_map = Path(out) / f"{scan.name}.nii.gz"
            try:
                with memory_as_problem(scan.path, remedy):
                    scan = with_files(scan)
                    check_names_are_free(label_map, sources)
                    sidecar = None if again else find_prediction(label_map, scan.sources, origin)
                    if sidecar is not None:
                        result.kept.append(label_map)
                    else:
                        # Loaded when they are needed: where all is there already, a second call takes no time.
                        networks = networks or load_networks(runs, precision)
                        sidecar = _predict_scan(
                            networks,
                            runs,
                            scan,
                            label_map,
                            settings,
                            lambda done, total: bar.update(windows, completed=done, total=total),
                            outputs,
                            origin,
                        )
                        result.written.append(label_map)
                result.warnings[scan.name] = [PredictionWarning(**one) for one in sidecar["warnings"]]
                result.problems.extend(DataError(**problem) for problem in sidecar["problems"])
            except DataError as error:
                # Without its traceback, whose frames would hold the scan's arrays until all scans are done.
                result.problems.append(DataError(**problem_json(error)))
            bar.advance(overall)
    return result


def _more_memory(batch_size: int) -> str:
    """What to do where a scan does not fit."""
    smaller = f"give a --batch-size below {batch_size}, or " if batch_size > 1 else ""
    return (
        f"{smaller}predict it where there is more: on another GPU, on the CPU (CUDA_VISIBLE_DEVICES=-1), or on a "
        "machine with more memory"
    )


@contextlib.contextmanager
def _summary_at_the_end(out: Path, result: PredictResult) -> Iterator[None]:
    """Write the table of what was done, also where the work is stopped in the middle."""
    try:
        yield
    finally:
        _write_summary(out, result)


def _write_summary(out: Path, result: PredictResult) -> None:
    """Write the table; that it cannot be written is one problem more, and hides none that ended the work."""
    if not (result.written or result.kept):
        return
    statuses = {stem(path): "predicted" for path in result.written}
    statuses |= {stem(path): "kept" for path in result.kept}
    try:
        write_summary(out, statuses, result.problems)
    except DataError as error:
        result.problems.append(error)
    except OSError as error:
        result.problems.append(os_problem(error))


def predict_scan(
    model: Callable[[Any], Any] | Sequence[Network],
    run: Run,
    path: str | Path,
    out: str | Path,
    settings: WindowSettings = DEFAULT_SETTINGS,
    progress: Callable[[int, int], None] | None = None,
    series: str | None = None,
    outputs: Outputs | None = None,
) -> dict[str, float]:
    """Predict one scan, and write its label map and beside it `<case>.json`.

    See `partialseg.inference.labelling.label_scan`.

    Args:
        model: HU `(batch, depth, height, width, 1)` to logits, such as `run.load_model()`; or several networks.
        run: Says voxel size, patch size and classes.
        path: A NIfTI file or a folder with the slices of a DICOM series.
        out: The label map to write, `.nii.gz` or `.nii`: same shape, affine and axis order as the scan (for
            DICOM: canonical axes).
        settings: Of the windows.
        progress: Called with the number of windows done and in all.
        series: Which DICOM series, where the folder holds several: a pattern of its description, or its number
            or UID.
        outputs: Which organs are written, and what is done to them; all, and nothing, by default.

    Returns:
        The volume of each organ in mL; 0 where it was not found.

    Raises:
        DataError: If the scan cannot be read or has an unusable geometry; or if files that are no prediction lie
            where its files are to be.
    """
    scan, outputs = with_files(Scan(stem(Path(out)), Path(path), series)), outputs or Outputs()
    networks = [Network(model, run.patch_size)] if callable(model) else model
    check_names_are_free(Path(out), {scan.path.resolve()})
    origin = _origin([run], settings, outputs, networks[0].precision)
    sidecar = _predict_scan(networks, [run], scan, Path(out), settings, progress, outputs, origin)
    return sidecar["volumes_ml"]


def _predict_scan(
    networks: Sequence[Network],
    runs: Sequence[Run],
    scan: Scan,
    out: Path,
    settings: WindowSettings,
    progress: Callable[[int, int], None] | None,
    outputs: Outputs,
    origin: Origin,
) -> dict[str, Any]:
    """Predict one scan and write it; what its sidecar says."""
    source, problems = None, []
    if outputs.dicom_seg:
        try:
            source = read_source_series(scan.path, scan.series)
        except DataError as error:  # the label map is no worse for it
            problems.append(problem_json(error))
    made_of = origin.marks(scan.sources)
    volume = read_image(scan.path, scan.series)
    classes = runs[0].classes
    facts = {
        "run": str(runs[0].folder.absolute()),
        "ensemble": [str(run.folder.absolute()) for run in runs[1:]],
        "source": str(scan.path.absolute()),
        "series": scan.series,
        **_identifiers(scan),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "spacing_mm": runs[0].spacing_mm,
        "overlap": settings.overlap,
        "mirror_axes": settings.mirror_axes,
        "skip_outside_body": settings.skip_outside_body,
        "settings": origin.settings,
        "made_of": made_of,
        "problems": problems,
    }
    with contextlib.ExitStack() as stack:
        maps = None
        if outputs.probabilities:
            maps = stack.enter_context(probability_maps(out, volume, outputs.values(classes)))
        on_probabilities = None if maps is None else maps.add
        labels = label_scan(
            networks, volume, runs[0].spacing_mm, classes, settings, progress, on_probabilities
        )
        return write_prediction(out, labels, volume, classes, outputs, facts, source, maps)


def _origin(
    runs: Sequence[Run], settings: WindowSettings, outputs: Outputs, precision: str | None = None
) -> Origin:
    """All that changes a prediction beside the scan; how many windows are predicted together does not."""
    return Origin(
        content_hash([run.model_path for run in runs]),
        {
            "method": METHOD,
            "classes": list(runs[0].classes),
            "spacing_mm": list(runs[0].spacing_mm),
            "patch_sizes": [list(run.patch_size) for run in runs],
            "overlap": settings.overlap,
            "mirror_axes": list(settings.mirror_axes),
            "skip_outside_body": settings.skip_outside_body,
            "precision": precision or "float32",
            **outputs.as_json(),
        },
    )


def _identifiers(scan: Scan) -> dict[str, str | None]:
    """Of a DICOM series, which its files have wherever they lie; None for other scans."""
    tags = {"series_uid": "SeriesInstanceUID", "study_uid": "StudyInstanceUID"}
    if not scan.path.is_dir():
        return dict.fromkeys(tags)
    header = pydicom.dcmread(scan.files[0], stop_before_pixels=True, specific_tags=list(tags.values()))
    return {key: str(header.get(tag, "")) or None for key, tag in tags.items()}


def _check_unseen(runs: Sequence[Run], card: Card, scans: Sequence[Scan]) -> None:
    """Refuse what a card counts as test and a run was trained on: scores would be taken for those of new cases."""
    for run in runs:
        trained_on = (run.cases or {}).get("train", {}).get(card.name, ())
        if seen := [scan.name for scan in scans if scan.name in trained_on]:
            raise DataError(
                run.folder,
                f"trained on {counted(len(seen), 'case')} that the card {card.name} counts as test ({first_of(seen)})",
                "give the card with which the data of the training were prepared",
            )


def _check_folder(out: Path) -> None:
    """Refuse a folder for the predictions that is none, or cannot be written."""
    there = next((path for path in (out, *out.parents) if path.exists()), Path())
    if not there.is_dir():
        raise DataError(there, "is a file, expected a folder for the predictions", "give another --out")
    if not os.access(there, os.W_OK):
        raise DataError(there, "may not be written to", "give yourself the permission, or another --out")


def _check_organs(outputs: Outputs, run: Run) -> None:
    strangers = [organ for organ in outputs.organs or () if organ not in run.classes[1:]]
    if strangers:
        raise ValueError(
            f"organs {', '.join(strangers)}: the network has no such class, expected some of "
            f"{', '.join(run.classes[1:])}"
        )
    if outputs.probabilities:
        try:
            file_names(outputs.values(run.classes))
        except ValueError as error:
            raise DataError(run.folder, str(error), "write one of the two by --organs") from error
