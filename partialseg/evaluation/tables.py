"""Scores of a folder of predictions: case by case and organ by organ, with tables organ × dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from partialseg.data.cards import Card, RawCase, count_label_maps, find_cases
from partialseg.data.checks import PLACE_TOLERANCE
from partialseg.data.folder_kinds import check_is_not_prepared
from partialseg.data.label_files import read_case_label, with_missing_masks
from partialseg.data.raw_files import extent
from partialseg.data.relabel import prepared_values, to_prepared_values
from partialseg.data.volumes import Volume
from partialseg.errors import DataError
from partialseg.evaluation.metrics import score
from partialseg.evaluation.predictions import (
    Given,
    check_described,
    checked_classes,
    label_maps,
    matched,
    read_prediction,
)
from partialseg.evaluation.rendering import layout, markdown, render_table
from partialseg.evaluation.score_files import (
    COLUMNS,
    DISTANCES,
    columns,
    read_all_scores,
    read_scores,
    records,
)
from partialseg.evaluation.summary import compare, organ_table, worst_cases
from partialseg.files import write_json, write_text
from partialseg.machine import jobs_in_memory
from partialseg.parallel import run_tasks
from partialseg.progress import track
from partialseg.wording import counted

__all__ = [
    "COLUMNS",
    "EvaluateResult",
    "compare",
    "evaluate",
    "join_tables",
    "layout",
    "markdown",
    "organ_table",
    "read_scores",
    "render_table",
]

#: What a worker takes at most: Python and its libraries, and the arrays of a case (6 bytes a voxel where both files are
#: of whole numbers).
_BASE_BYTES, _BYTES_PER_VOXEL = 300_000_000, 14


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` found.

    Attributes:
        scores: One row per case and organ; the columns are `partialseg.evaluation.score_files.columns(unit)`.
        problems: Predictions or cases that could not be scored.
        notes: What was left out on purpose, in words.
    """

    scores: pd.DataFrame
    problems: list[DataError]
    notes: list[str] = dataclasses.field(default_factory=list)


def evaluate(
    predictions: str | Path,
    truth: str | Path,
    card: Card,
    out: str | Path,
    split: str | None = None,
    hd95: str = "directed_max",
    nsd_tolerance_mm: float | Mapping[str, float] = 2.0,
    unit: str = "mm",
    jobs: int | None = 1,
    classes: Given = None,
) -> EvaluateResult:
    """Score predictions against the label maps of one dataset, over the organs that it annotates.

    A prediction `<case>.nii.gz` is matched by name to a case of the dataset (or to its label file). Its values
    are indices into the classes that `<case>.json` beside it lists, or into `classes` where there is no such
    file. Truth voxels that may be several organs (a kidney whose side is not known) are ignored for each of
    these; an organ of which such voxels alone are there cannot be scored and is noted.

    Args:
        predictions: Folder of label maps.
        truth: Raw folder of the dataset, or a folder of several datasets.
        card: The dataset's card.
        out: Gets `scores.csv` and `scores.json` (a row per case and organ), `table.csv`, `table.json` and
            `table.md` (organ × dataset, and the worst cases); nothing where no case could be scored.
        split: "train" or "test": score the cases of that split alone, and require a prediction of each.
        hd95: Definition of HD95, see `partialseg.evaluation.score`.
        nsd_tolerance_mm: Tolerance of NSD, one for all organs or one for each that the dataset annotates.
        unit: "mm", or "voxels": distances in voxels of the scan's own grid as well. The tolerance is in mm all the
            same.
        jobs: Cases at a time; None for one per usable core. Fewer where the memory would not do.
        classes: What the values of label maps without a `.json` mean: background first, then the organs; "card" where
            they are those of the dataset's own label maps. Scores name them in a further column, `classes`.

    Returns:
        The scores, and the problems; a problem with one case leaves the others as they are.

    Raises:
        DataError: If there are no predictions at all, or no cases.
        ValueError: If unit or `hd95` are unknown, classes do not begin with background, or a
            tolerance is negative or lacks for an organ of the dataset.
    """
    predictions, out = Path(predictions), Path(out)
    classes = checked_classes(classes)
    names = columns(unit) if classes is None else (*columns(unit), "classes")
    settings = {"hd95": hd95, "nsd_tolerance_mm": nsd_tolerance_mm}
    nothing = np.zeros((1, 1, 1), dtype=np.uint8)  # so that wrong settings are told before any case is read
    score(nothing, nothing, (1.0,) * 3, {organ: 1 for organ in card.annotated}, **settings)
    cases = {case.name: case for case in find_cases(card, truth)}
    card = with_missing_masks(card, cases.values())
    if not cases:
        check_is_not_prepared(Path(truth), "the raw dataset", "give the folder that `prepare` got as --raw")
        remedy = f"give the folder that holds {card.files.image}"
        alone = count_label_maps(card, truth)
        why = f": {counted(alone, 'label map')}, but no scan of them" if alone else ""
        raise DataError(truth, f"holds no case of {card.name}{why}", remedy)
    files = label_maps(predictions)
    if not files:
        check_is_not_prepared(predictions, "predictions", "give what `partialseg predict` wrote")
        raise DataError(predictions, "holds no label map (*.nii.gz)", "run `partialseg predict` first")
    pairs, problems, notes = matched(files, cases, card, split)
    rows: list[dict[str, Any]] = []
    for outcome in _outcomes(
        pairs, functools.partial(_score_case, card, settings, unit, classes), card, jobs
    ):
        if isinstance(outcome, DataError):
            problems.append(outcome)
        else:
            rows += outcome[0]
            notes += outcome[1]
    scores = pd.DataFrame(rows, columns=list(names))
    if len(scores):
        _write(out, scores, problems, notes)
    return EvaluateResult(scores, problems, notes)


def join_tables(scores: Sequence[str | Path], out: str | Path) -> pd.DataFrame:
    """Put the scores of several datasets into one table organ × dataset.

    Args:
        scores: Files or folders of one network's scores, see `partialseg.evaluation.score_files.read_all_scores`.
        out: Gets `table.csv`, `table.json` and `table.md`, as of `evaluate`.

    Returns:
        The table, see `organ_table`.

    Raises:
        DataError: If there are no scores, a case is scored twice, or settings of the metrics differ.
    """
    together = read_all_scores(*scores)
    try:
        table = organ_table(together)
    except ValueError as error:
        where = ", ".join(map(str, scores))
        raise DataError(where, str(error), "they belong into one table only if they are alike") from error
    _write_table(Path(out), table, together)
    return table


def read_truth(
    case: RawCase, card: Card, classes: Sequence[str]
) -> tuple[Volume, np.ndarray, tuple[str, ...]]:
    """Read a raw label map and turn it into values of the dataset's prepared table, on its own grid.

    Returns:
        The raw volume, the uint8 values `(z, y, x)` (see `partialseg.data.relabel.prepared_values`), notes.

    Raises:
        DataError: If it cannot be read or holds a value that the card does not list.
    """
    raw = read_case_label(card, case)
    check_described(case.label, raw, card)
    values, notes = to_prepared_values(raw, card, classes, case.name)
    return raw, values, notes


def _outcomes(
    pairs: list[tuple[Path, RawCase]],
    function: Callable[[tuple[Path, RawCase]], Any],
    card: Card,
    jobs: int | None,
) -> list[Any]:
    """What the function returns of each pair, or a DataError, in the order of the pairs."""
    memory = None
    if jobs != 1 and len(pairs) > 1:
        jobs, memory = jobs_in_memory(jobs, max(_memory_needed(path) for path, _ in pairs))
    found = {}
    running = run_tasks(function, pairs, lambda pair: str(pair[0]), jobs if len(pairs) > 1 else 1, memory)
    with contextlib.closing(running) as outcomes:
        for pair, outcome in track(outcomes, f"evaluate {card.name}", total=len(pairs)):
            found[pair[0]] = outcome
    return [found[path] for path, _ in pairs]


def _memory_needed(path: Path) -> int:
    """Bytes that a worker takes at most to score a prediction, from its header."""
    return int(_BASE_BYTES + _BYTES_PER_VOXEL * extent(path).voxels)


def _score_case(
    card: Card, settings: dict[str, Any], unit: str, given: Given, pair: tuple[Path, RawCase]
) -> tuple[list[dict[str, Any]], list[str]]:
    path, case = pair
    prediction, (classes, written) = read_prediction(path, case, card, given)
    raw, values, notes = read_truth(case, card, classes)
    _check_same_grid(path, prediction, case, raw)
    table = prepared_values(card, classes)
    annotated = card.annotated_in(case.name)
    organs = {organ: classes.index(organ) for organ in annotated if organ in written}
    who = f"{card.name}, {case.name}"
    said = [f"{who}: {note}" for note in notes]
    if left_out := [organ for organ in annotated if organ in classes and organ not in written]:
        said.append(f"{who}: not scored, since they were not written (--organs): {', '.join(left_out)}")
    lacking = [organ for organ in annotated if organ not in classes]
    if lacking:
        said.append(f"{who}: not scored, since the network has no such class: {', '.join(lacking)}")
    ignore = {}
    for organ, index in list(organs.items()):
        unknown = ((table[:, index] == 1) & (table.sum(axis=1) > 1))[values]
        if unknown.any():
            ignore[organ] = unknown
            if not (values == index).any():
                said.append(f"{who}: {organ} not scored, since it is not known which voxels it has")
                del organs[organ]
    results = score(prediction.array, values, raw.spacing_mm, organs, ignore=ignore, **settings)
    if unit == "voxels":
        of_grid = score(prediction.array, values, (1.0,) * 3, organs, ignore=ignore, **settings)
        for organ, entry in results.items():
            distances = zip(DISTANCES["voxels"], DISTANCES["mm"], strict=True)
            entry.update({name: of_grid[organ][in_mm] for name, in_mm in distances})
    files = {"image": case.image, "truth": case.label, "prediction": path, "card": card.path}
    common = {
        **{name: os.fspath(Path(file).resolve()) for name, file in files.items()},
        "hd95_definition": settings["hd95"],
        "classes": given if given is None or isinstance(given, str) else ",".join(given),
    }
    given = settings["nsd_tolerance_mm"]
    tolerances = given if isinstance(given, Mapping) else dict.fromkeys(organs, given)
    keys = {"dataset": card.name, "case": case.name}
    rows = [
        {**keys, "organ": organ, **entry, "nsd_tolerance_mm": tolerances[organ], **common}
        for organ, entry in results.items()
    ]
    return rows, said


def _check_same_grid(path: Path, prediction: Volume, case: RawCase, truth: Volume) -> None:
    """Prediction and truth must have the same shape, and their voxels the same places."""
    who, remedy = f"{case.dataset}, {case.name}", "predict the scan that the label map belongs to"
    shapes = [volume.array.shape for volume in (prediction, truth)]
    if shapes[0] != shapes[1]:
        problem = (
            f"{who}: the prediction has shape {shapes[0]} (z, y, x), the truth {case.label.name} {shapes[1]}"
        )
        raise DataError(path, problem, remedy)
    corners = [(*corner, 1) for corner in itertools.product(*((0, size - 1) for size in shapes[0][::-1]))]
    moved = np.array(corners) @ (prediction.affine - truth.affine).T
    distance_mm = float(np.linalg.norm(moved[:, :3], axis=1).max())
    if distance_mm > PLACE_TOLERANCE * min(truth.spacing_mm):
        problem = f"{who}: the prediction lies up to {distance_mm:.3g} mm from the truth {case.label.name}"
        raise DataError(path, problem, remedy)


def _write(out: Path, scores: pd.DataFrame, problems: list[DataError], notes: list[str]) -> None:
    write_text(out / "scores.csv", scores.to_csv(index=False))
    content = {"scores": records(scores), "problems": [str(problem) for problem in problems], "notes": notes}
    write_json(out / "scores.json", content)
    _write_table(out, organ_table(scores), scores)


def _write_table(out: Path, table: pd.DataFrame, scores: pd.DataFrame) -> None:
    write_text(out / "table.csv", table.to_csv(index=False))
    write_text(out / "table.md", markdown(table, worst_cases(scores)))
    write_json(out / "table.json", records(table))
