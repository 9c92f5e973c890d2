"""Every raw case read against its card, and which organs the datasets cover between them."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partialseg.data.cards import Card, assign_splits
from partialseg.data.check_page import as_html, choose_pictures
from partialseg.data.classes import MAX_ORGANS, class_names
from partialseg.data.dataset_checks import (
    MAX_DEVIATIONS,
    MIN_CASES,
    MIN_FACTOR,
    card_notes,
    outlier_notes,
)
from partialseg.data.duplicates import Duplicate, find_duplicates
from partialseg.data.inspect_case import InspectedCase, InspectTask, inspect_case, memory_needed
from partialseg.data.prepare import choose_organs, list_raw_cases
from partialseg.errors import DataError, first_of
from partialseg.files import write_json, write_text
from partialseg.machine import jobs_in_memory
from partialseg.parallel import run_tasks
from partialseg.progress import track

OUTLIER_RULE = (
    f"A volume stands out if its logarithm lies more than {MAX_DEVIATIONS:g} standard deviations (1.4826 times "
    f"the median absolute deviation) from the median, and it is at least {MIN_FACTOR:g} times larger or smaller "
    f"than the median: of its dataset, or of all datasets where its own has fewer than {MIN_CASES} cases with "
    f"the organ. With fewer than {MIN_CASES} in all, nothing is compared."
)


@dataclass(frozen=True)
class CheckResult:
    """What `check` found.

    Attributes:
        report: Plain values, as in `check.json`:

            - `classes`: background, then the organs.
            - `organs`: for each organ `datasets` (those with a good case in which it is annotated) and `note`
              (there is none, or one alone; or null).
            - `datasets`: for each `name`, `card` (its path), `title`, `source`, `licence`, `cases` (found),
              `good_cases` (without a problem), `labelled_as_published` (or null), `fully_annotated`, `notes`.
            - `coverage`: organ, then dataset: `annotated`; `cases` (good ones in which the organ is
              annotated), `with_voxels` (those that have it), `voxels` (in all of them), `mean_ml`,
              `lowest_ml`, `highest_ml` (over those that have it; null where none has), `outliers` (names of
              cases).
            - `outlier_rule`: when a volume stands out, in words.
            - `duplicates`: for each set of cases that hold the same `cases` (`dataset`, `case`, `split`), `same`
              (what is), `leakage` (some are for training, others for testing).
            - `cases`: for each `dataset`, `name`, `split`, `image`, `label` (paths), `good`, `shape` and
              `spacing_mm` (z, y, x), `axes` (of the file, as in "LPS"), `intensity` (`lowest`, `highest`,
              `p1`, `median`, `p99`, in HU, and further figures; see `partialseg.data.intensity`),
              `label_type`, `values`, `annotated`, `voxels` and `volumes_ml` (by organ), `unsure_ml` (one of
              several organs), `cut_off` (organs that reach the first or last slice), `notes`,
              `no_picture` (why its picture could not be written, or null).
            - `problems`: for each `path`, `problem`, `remedy`, and the `dataset` and `case` (null where it is
              about a whole dataset).
        problems: What is wrong, each naming its file.
    """

    report: dict[str, Any]
    problems: list[DataError]

    @property
    def num_notes(self) -> int:
        """How many notes there are, on organs, datasets and cases."""
        report = self.report
        of_organs = sum(entry["note"] is not None for entry in report["organs"].values())
        return of_organs + sum(len(entry["notes"]) for entry in (*report["datasets"], *report["cases"]))

    @property
    def dataset_notes(self) -> list[str]:
        """The notes on whole datasets, each beginning with the path of the card."""
        return [f"{entry['card']}: {note}" for entry in self.report["datasets"] for note in entry["notes"]]

    @property
    def noted_cases(self) -> list[str]:
        """The good cases that have notes: their names, after the dataset's where there are several datasets."""
        cases = [case for case in self.report["cases"] if case["good"] and case["notes"]]
        many = len(self.report["datasets"]) > 1
        return [f"{case['dataset']}/{case['name']}" if many else case["name"] for case in cases]

    @property
    def leakage(self) -> list[str]:
        """A line for each scan that is in training and in test data."""
        return [
            "the same scan is in training and in test data: "
            + first_of([f"{case['dataset']} {case['case']} ({case['split']})" for case in found["cases"]])
            for found in self.report["duplicates"]
            if found["leakage"]
        ]


def check(
    cards: Sequence[Card],
    raw: str | Path,
    out: str | Path | None = None,
    jobs: int | None = None,
    organs: Sequence[str] | None = None,
) -> CheckResult:
    """Read every raw case of some datasets and say what is there, what is wrong, and what is unusual.

    Problems are what makes a case useless; `partialseg prepare` would leave it out. Notes are what a person
    should look at; each noted case has a picture on the page.

    Args:
        cards: The datasets' cards.
        raw: A folder that holds one or several raw datasets.
        out: Where to write `check.json` and `check.html`; None for nowhere.
        jobs: Cases at a time; None for one per usable core. Fewer where the memory would not do for the largest
            case, see `partialseg.data.inspect_case.memory_needed`.
        organs: The class list, in order; None for all that any card annotates.

    Raises:
        DataError: If two cards have the same name, or there are more than 64 organs.
        ValueError: If an organ is named twice.
    """
    classes = _class_list(cards, organs)
    found, problems = list_raw_cases(cards, raw)
    tasks = [InspectTask(card, raw_case, classes) for card, raw_cases in found for raw_case in raw_cases]
    with tempfile.TemporaryDirectory(prefix="partialseg-check-") as pictures:
        if out is not None:
            tasks = [
                dataclasses.replace(task, thumbnail=Path(pictures) / f"{number}.png")
                for number, task in enumerate(tasks)
            ]
        cases = _inspect(tasks, jobs)
        problems += [problem for case in cases.values() for problem in case.problems]
        report = _report(cards, raw, classes, tasks, cases, problems)
        if out is not None:
            write_json(Path(out) / "check.json", report)
            files = {(task.raw.dataset, task.raw.name): task.thumbnail for task in tasks}
            write_text(Path(out) / "check.html", as_html(report, choose_pictures(report, files)))
    return CheckResult(report, problems)


def _class_list(cards: Sequence[Card], organs: Sequence[str] | None) -> tuple[str, ...]:
    chosen = tuple(organs) if organs is not None else choose_organs(cards)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"expected different organs, received {list(chosen)}")
    if len(chosen) > MAX_ORGANS:
        raise DataError(
            cards[-1].path,
            f"with it, the cards annotate {len(chosen)} organs, expected {MAX_ORGANS} at most",
            "choose the organs with --organ",
        )
    return class_names(chosen)


def _inspect(tasks: Sequence[InspectTask], jobs: int | None) -> dict[tuple[str, str], InspectedCase]:
    """Every case inspected, in the order of datasets and names."""
    cases = {}
    memory = None
    if tasks and jobs != 1:
        jobs, memory = jobs_in_memory(jobs, max(memory_needed(task) for task in tasks))
    running = run_tasks(inspect_case, tasks, lambda task: str(task.raw.image), jobs, memory)
    with contextlib.closing(running) as outcomes:
        for task, outcome in track(outcomes, "check", total=len(tasks)):
            if isinstance(outcome, DataError):
                outcome = InspectedCase(task.raw.dataset, task.raw.name, problems=(outcome,))
            cases[outcome.dataset, outcome.name] = outcome
    return dict(sorted(cases.items()))


def _report(
    cards: Sequence[Card],
    raw: str | Path,
    classes: tuple[str, ...],
    tasks: Sequence[InspectTask],
    cases: Mapping[tuple[str, str], InspectedCase],
    problems: Sequence[DataError],
) -> dict[str, Any]:
    """Everything that was found, as plain values."""
    checked = [*cases.values()]
    splits: dict[tuple[str, str], str] = {}
    for card in cards:
        names = [name for dataset, name in cases if dataset == card.name]
        splits |= {(card.name, name): split for name, split in assign_splits(card, names).items()}
    duplicates = find_duplicates(
        {key: case.image for key, case in cases.items()},
        {key: case.label for key, case in cases.items()},
        splits,
    )
    outliers = outlier_notes(checked, classes[1:])
    notes = _notes_of_cases(cases, outliers, duplicates)
    tasks_of = {(task.raw.dataset, task.raw.name): task for task in tasks}
    coverage = {
        organ: {card.name: _cover(organ, card, checked, outliers) for card in cards} for organ in classes[1:]
    }
    # Two cards may read the same files, so that their problems have the same words.
    owners = {id(problem): case for case in checked for problem in case.problems}
    return {
        "classes": list(classes),
        "organs": {organ: _describe_organ(coverage[organ]) for organ in classes[1:]},
        "datasets": [_describe_dataset(card, classes, raw, checked) for card in cards],
        "coverage": coverage,
        "outlier_rule": OUTLIER_RULE,
        "duplicates": [_describe_duplicate(found, splits) for found in duplicates],
        "cases": [
            _describe_case(case, tasks_of[key], splits[key], notes[key]) for key, case in cases.items()
        ],
        "problems": [_describe_problem(problem, owners.get(id(problem))) for problem in problems],
    }


def _notes_of_cases(
    cases: Mapping[tuple[str, str], InspectedCase],
    outliers: Mapping[tuple[str, str], Mapping[str, str]],
    duplicates: Sequence[Duplicate],
) -> dict[tuple[str, str], list[str]]:
    """Notes of each case: its own, then those from the comparison with other cases."""
    notes = {key: [*case.notes, *outliers.get(key, {}).values()] for key, case in cases.items()}
    for found in duplicates:
        leak = "leakage, in training and in test data: " if found.leakage else ""
        for case in found.cases:
            others = [" ".join(other) for other in found.cases if other != case]
            notes[case].append(f"{leak}same {found.same} as {first_of(others)}")
    return notes


def _describe_organ(row: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One organ in the report, from its row of the coverage matrix."""
    names = [name for name, cell in row.items() if cell["cases"]]
    note = None
    if not names:
        note = "annotated in no case here: a network learns nothing about it"
    elif len(names) == 1 and len(row) > 1:
        note = f"annotated by {names[0]} alone: a network sees it in scans of one source (domain shift)"
    return {"datasets": names, "note": note}


def _describe_dataset(
    card: Card, classes: Sequence[str], raw: str | Path, checked: Sequence[InspectedCase]
) -> dict[str, Any]:
    """One dataset in the report."""
    cases = [case for case in checked if case.dataset == card.name]
    return {
        "name": card.name,
        "card": str(card.path),
        "title": card.title,
        "source": card.source,
        "licence": card.licence,
        "cases": len(cases),
        "good_cases": sum(not case.problems for case in cases),
        "labelled_as_published": card.counts.get("labelled"),
        "fully_annotated": set(classes[1:]) <= set(card.annotated),
        "notes": card_notes(card, raw, cases),
    }


def _cover(
    organ: str,
    card: Card,
    checked: Sequence[InspectedCase],
    outliers: Mapping[tuple[str, str], Mapping[str, str]],
) -> dict[str, Any]:
    """One cell of the coverage matrix."""
    cases = [case for case in checked if case.dataset == card.name and organ in case.volumes_ml]
    volumes = [case.volumes_ml[organ] for case in cases if case.voxels[organ]]
    return {
        "annotated": organ in card.annotated,
        "cases": len(cases),
        "with_voxels": len(volumes),
        "voxels": sum(case.voxels[organ] for case in cases),
        "mean_ml": float(np.mean(volumes)) if volumes else None,
        "lowest_ml": min(volumes, default=None),
        "highest_ml": max(volumes, default=None),
        "outliers": [case.name for case in cases if organ in outliers.get((case.dataset, case.name), {})],
    }


def _describe_duplicate(found: Duplicate, splits: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """Cases that hold the same, in the report."""
    cases = [{"dataset": case[0], "case": case[1], "split": splits[case]} for case in found.cases]
    return {"cases": cases, "same": found.same, "leakage": found.leakage}


def _describe_case(
    case: InspectedCase, task: InspectTask, split: str, notes: Sequence[str]
) -> dict[str, Any]:
    """One case in the report."""
    return {
        "dataset": case.dataset,
        "name": case.name,
        "split": split,
        "image": str(task.raw.image),
        "label": str(task.raw.label),
        "good": not case.problems,
        "shape": list(case.shape),
        "spacing_mm": list(case.spacing_mm),
        "axes": case.axes,
        "intensity": None if case.intensity is None else dataclasses.asdict(case.intensity),
        "label_type": case.label_type,
        "values": list(case.values),
        "annotated": list(task.card.annotated_in(case.name)),
        "voxels": case.voxels,
        "volumes_ml": case.volumes_ml,
        "unsure_ml": case.unsure_ml,
        "cut_off": list(case.cut_off),
        "notes": list(notes),
        "no_picture": case.no_picture,
    }


def _describe_problem(problem: DataError, case: InspectedCase | None) -> dict[str, Any]:
    """One problem in the report."""
    return {
        "path": problem.path,
        "problem": problem.problem,
        "remedy": problem.remedy,
        "dataset": None if case is None else case.dataset,
        "case": None if case is None else case.name,
    }
