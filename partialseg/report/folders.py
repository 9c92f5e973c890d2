"""What a report is about, read from a folder: a run, a study that compares several, or scores alone."""

from __future__ import annotations

from pathlib import Path

from partialseg.errors import DataError
from partialseg.evaluation.score_files import find_scores, read_all_scores
from partialseg.evaluation.summary import check_together
from partialseg.report.html import NetworkResult, write_report
from partialseg.report.run_facts import read_json


def report_run(folder: str | Path) -> Path:
    """Report on a run folder, on a study that compares several, or on scores.

    A run folder has `run.json`; its scores are in it or up to two folders below, as for
    `partialseg.evaluation.score_files.read_all_scores`. A study has `study.json`:
    `{"title": ..., "networks": {name: {"run": path, "scores": [paths of scores.csv]}}, "notes": [...]}`, with
    paths relative to the study, and `run`, `title` and `notes` optional. Any other folder holds what
    `partialseg evaluate` wrote: `scores.csv`, or folders with one each.

    Args:
        folder: The folder.

    Returns:
        The path of `report.html` in it.

    Raises:
        DataError: If the folder is none of these, a file that it names is missing or damaged, or scores cannot stand
            together, see `partialseg.evaluation.summary.check_together`.
    """
    folder = Path(folder)
    if (folder / "study.json").is_file():
        title, networks, notes = _read_study(folder)
        return _write(folder, title, networks, notes)
    name = folder.resolve().name
    files = find_scores(folder)
    is_run = (folder / "run.json").is_file()
    if not is_run and not files:
        remedy = "give a run folder of `partialseg train`, what `partialseg evaluate` wrote, or a study"
        raise DataError(folder, "holds neither run.json nor study.json nor scores.csv", remedy)
    result = NetworkResult(read_all_scores(*files) if files else None, folder if is_run else None)
    title = f"Run {name}" if is_run else f"Scores in {name}"
    return _write(folder, title, {name: result}, [])


def _write(folder: Path, title: str, networks: dict[str, NetworkResult], notes: list[str]) -> Path:
    try:
        check_together([result.scores for result in networks.values() if result.scores is not None])
    except ValueError as error:
        remedy = "they belong into one report only if they are alike"
        raise DataError(folder, str(error), remedy) from error
    return write_report(folder / "report.html", title, networks, notes)


def _read_study(folder: Path) -> tuple[str, dict[str, NetworkResult], list[str]]:
    path = folder / "study.json"
    content = read_json(path)
    try:
        title, notes = str(content.get("title", folder.resolve().name)), list(content.get("notes", []))
        entries = [
            (name, entry.get("run"), [folder / file for file in entry.get("scores", [])])
            for name, entry in content["networks"].items()
        ]
    except (AttributeError, KeyError, TypeError) as error:
        problem = f"is not a study ({error!r})"
        raise DataError(path, problem, 'expected {"networks": {name: {"run", "scores"}}}') from error
    networks = {
        name: NetworkResult(read_all_scores(*files) if files else None, run and folder / run)
        for name, run, files in entries
    }
    return title, networks, notes
