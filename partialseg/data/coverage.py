"""Every raw case read against its card, and which organs the datasets cover between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from partialseg.data.cards import Card, RawCase
from partialseg.data.checks import find_problems, read_case
from partialseg.data.classes import class_names
from partialseg.data.prepare import choose_organs, list_raw_cases
from partialseg.data.relabel import prepared_values, to_prepared_values
from partialseg.errors import DataError
from partialseg.files import write_json, write_text
from partialseg.parallel import run_tasks
from partialseg.progress import track


@dataclass(frozen=True)
class CheckResult:
    """What `check` found.

    Attributes:
        report: Plain values, as in `check.json`: `classes`, `datasets`, `coverage` (organ, then dataset:
            annotated, cases, with_voxels, mean_ml), `cases`, `problems`.
        problems: What is wrong, each naming its file.
    """

    report: dict[str, Any]
    problems: list[DataError]


@dataclass(frozen=True)
class CheckTask:
    """Everything that is needed to check one case, on whatever machine."""

    card: Card
    raw: RawCase
    classes: tuple[str, ...]


@dataclass(frozen=True)
class CheckedCase:
    """What one raw case holds.

    Attributes:
        dataset, name: Which case.
        shape: `(depth, height, width)` in canonical axes.
        spacing_mm: `(z, y, x)`.
        volumes_ml: Volume of each annotated organ; 0 where it is absent, or where its side is not told.
        unsure_ml: Volume that is one of several organs.
        notes: What was noticed.
        problems: What is wrong; if anything is, all else is empty.
    """

    dataset: str
    name: str
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    volumes_ml: dict[str, float] | None = None
    unsure_ml: float = 0.0
    notes: tuple[str, ...] = ()
    problems: tuple[DataError, ...] = ()


def check(
    cards: Sequence[Card], raw: str | Path, out: str | Path | None = None, jobs: int | None = None
) -> CheckResult:
    """Read every raw case of some datasets and say what is there and what is wrong.

    Args:
        cards: The datasets' cards.
        raw: A folder that holds one or several raw datasets.
        out: Where to write `check.json` and `check.html`; None for nowhere.
        jobs: Cases at a time; None for one per usable core.

    Raises:
        DataError: If two cards have the same name.
    """
    found, problems = list_raw_cases(cards, raw)
    classes = class_names(choose_organs(cards))
    tasks = [CheckTask(card, raw_case, classes) for card, raw_cases in found for raw_case in raw_cases]
    checked = []
    outcomes = run_tasks(check_case, tasks, where=lambda task: str(task.raw.image), jobs=jobs)
    for task, outcome in track(outcomes, "check", total=len(tasks)):
        if isinstance(outcome, DataError):
            outcome = CheckedCase(task.raw.dataset, task.raw.name, problems=(outcome,))
        checked.append(outcome)
    checked.sort(key=lambda case: (case.dataset, case.name))
    problems += [problem for case in checked for problem in case.problems]
    report = {
        "classes": list(classes),
        "datasets": [_describe(card, classes, checked) for card in cards],
        "coverage": {
            organ: {card.name: _cover(organ, card, checked) for card in cards} for organ in classes[1:]
        },
        "cases": [_entry(case) for case in checked],
        "problems": [{"path": p.path, "problem": p.problem, "remedy": p.remedy} for p in problems],
    }
    if out is not None:
        write_json(Path(out) / "check.json", report)
        write_text(Path(out) / "check.html", as_html(report))
    return CheckResult(report, problems)


def check_case(task: CheckTask) -> CheckedCase:
    """Read one raw case and measure its organs."""
    try:
        image, label = read_case(task.card, task.raw)
    except DataError as error:
        problems = tuple(find_problems(task.card, task.raw)) or (error,)
        return CheckedCase(task.raw.dataset, task.raw.name, problems=problems)
    values, notes = to_prepared_values(label, task.card, task.classes, task.raw.name)
    table = prepared_values(task.card, task.classes)
    millilitres = np.bincount(values.ravel(), minlength=len(table)) * float(np.prod(label.spacing_mm)) / 1000
    annotated = [organ for organ in task.classes if organ in task.card.annotated]
    unsure = [row.sum() > 1 and not row[0] for row in table]
    return CheckedCase(
        dataset=task.raw.dataset,
        name=task.raw.name,
        shape=image.array.shape,
        spacing_mm=image.spacing_mm,
        volumes_ml={organ: float(millilitres[task.classes.index(organ)]) for organ in annotated},
        unsure_ml=float(millilitres[unsure].sum()),
        notes=notes,
    )


def as_html(report: dict[str, Any]) -> str:
    """The report as one self-contained page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("partialseg.data", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("coverage.html.jinja").render(**report)


def _describe(card: Card, classes: Sequence[str], checked: Sequence[CheckedCase]) -> dict[str, Any]:
    """One dataset in the report."""
    cases = [case for case in checked if case.dataset == card.name]
    return {
        "name": card.name,
        "title": card.title,
        "source": card.source,
        "licence": card.licence,
        "cases": len(cases),
        "good_cases": sum(not case.problems for case in cases),
        "labelled_as_published": card.counts.get("labelled"),
        "fully_annotated": set(classes[1:]) <= set(card.annotated),
    }


def _cover(organ: str, card: Card, checked: Sequence[CheckedCase]) -> dict[str, Any]:
    """One cell of the coverage matrix."""
    cases = [case for case in checked if case.dataset == card.name and not case.problems]
    annotated = organ in card.annotated
    volumes = [case.volumes_ml[organ] for case in cases if annotated and case.volumes_ml[organ] > 0]
    return {
        "annotated": annotated,
        "cases": len(cases) if annotated else 0,
        "with_voxels": len(volumes),
        "mean_ml": float(np.mean(volumes)) if volumes else None,
    }


def _entry(case: CheckedCase) -> dict[str, Any]:
    """One case in the report."""
    return {
        "dataset": case.dataset,
        "name": case.name,
        "shape": list(case.shape),
        "spacing_mm": list(case.spacing_mm),
        "volumes_ml": case.volumes_ml or {},
        "unsure_ml": case.unsure_ml,
        "notes": list(case.notes),
        "good": not case.problems,
    }
