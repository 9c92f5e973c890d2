"""One self-contained HTML file: what was run, tables, learning curves, pictures, worst cases."""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd

import partialseg
from partialseg.data.classes import PAPER_ORGANS, organ_colours
from partialseg.errors import DataError
from partialseg.evaluation.rendering import Layout, layout
from partialseg.evaluation.summary import compare, organ_table
from partialseg.evaluation.tables import read_scores
from partialseg.files import write_text
from partialseg.progress import track
from partialseg.report.cases import ShownCase, choose_cases, draw_case, worst_scores
from partialseg.report.pictures import learning_curves

#: Pictures are added until they take this much; in base64 they take a third more.
MAX_PICTURE_BYTES = 10_000_000


@dataclass(frozen=True)
class NetworkResult:
    """What is known of one network.

    Attributes:
        scores: One row per case and organ, as `partialseg.evaluation.evaluate` makes them; None where nothing
            has been evaluated.
        run: Its run folder, for config, versions and curves; None where there is none.
    """

    scores: pd.DataFrame | None = None
    run: Path | None = None


def write_report(
    path: str | Path,
    title: str,
    networks: Mapping[str, NetworkResult],
    notes: Sequence[str] = (),
    pictures_per_dataset: int = 2,
) -> Path:
    """Write one HTML file that needs no other file and no network connection.

    Args:
        path: The file to write, atomically.
        title: Its heading.
        networks: By name, in the order in which they are to stand side by side.
        notes: Sentences to print under the heading.
        pictures_per_dataset: At most so many cases of each dataset are shown.

    Returns:
        The path.

    Raises:
        DataError: If a log of a run cannot be read.
        ValueError: If the scores mix definitions of HD95.
    """
    scored = {
        name: result.scores
        for name, result in networks.items()
        if result.scores is not None and len(result.scores)
    }
    runs = {name: Path(result.run) for name, result in networks.items() if result.run is not None}
    pictures, left_out = _pictures(scored, pictures_per_dataset)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("report.html.jinja").render(
        title=title,
        notes=notes,
        written=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        version=partialseg.__version__,
        python=platform.python_version(),
        tables=_tables(scored),
        unscored={name: runs.get(name) for name in networks if name not in scored},
        curves={name: curves for name, folder in runs.items() if (curves := _curves(folder))},
        pictures=pictures,
        left_out=left_out,
        legend=organ_colours(_organs(scored)),
        worst=_worst(scored),
        runs={name: _run_facts(folder) for name, folder in runs.items()},
    )
    write_text(path, html)
    return Path(path)


def report_run(folder: str | Path) -> Path:
    """Report on a run folder, or on a study that compares several.

    A run folder has `run.json`; its scores are `scores*/scores.csv` in it. A study has `study.json`:
    `{"title": ..., "networks": {name: {"run": path, "scores": [paths of scores.csv]}}, "notes": [...]}`, with
    paths relative to the study, and `run`, `title` and `notes` optional.

    Args:
        folder: The folder.

    Returns:
        The path of `report.html` in it.

    Raises:
        DataError: If the folder is neither, or a file that it names is missing or damaged.
    """
    folder = Path(folder)
    if (folder / "study.json").is_file():
        title, networks, notes = _read_study(folder)
        return write_report(folder / "report.html", title, networks, notes)
    if not (folder / "run.json").is_file():
        remedy = "give a run folder of `partialseg train`, or a folder with study.json"
        raise DataError(folder, "holds neither run.json nor study.json", remedy)
    name = folder.resolve().name
    files = sorted([*folder.glob("scores*/scores.csv"), *folder.glob("scores*/*/scores.csv")])
    result = NetworkResult(_all_scores(files), folder)
    return write_report(folder / "report.html", f"Run {name}", {name: result})


def _read_study(folder: Path) -> tuple[str, dict[str, NetworkResult], list[str]]:
    path = folder / "study.json"
    content = _read_json(path)
    try:
        title, notes = str(content.get("title", folder.resolve().name)), list(content.get("notes", []))
        entries = [
            (name, entry.get("run"), [folder / file for file in entry.get("scores", [])])
            for name, entry in content["networks"].items()
        ]
    except (AttributeError, KeyError, TypeError) as error:
        problem = f"is not a study ({error!r})"
        raise DataError(path, problem, 'expected {"networks": {name: {"run", "scores"}}}') from error
    networks = {name: NetworkResult(_all_scores(files), run and folder / run) for name, run, files in entries}
    return title, networks, notes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(path, f"is not JSON ({error})", "make it again") from error


def _all_scores(files: Sequence[Path]) -> pd.DataFrame | None:
    """The scores of all files; a case that is in two of them would count twice, so it is refused."""
    if not files:
        return None
    frames = [read_scores(file).assign(file=str(file)) for file in files]
    scores = pd.concat(frames, ignore_index=True)
    twice = scores[scores.duplicated(["dataset", "case", "organ"])]
    if len(twice):
        row = twice.iloc[0]
        problem = f"{row['dataset']}, {row['case']}, {row['organ']} is scored in another file as well"
        raise DataError(row["file"], problem, "keep one evaluation of each dataset")
    return scores.drop(columns="file")


def _tables(scored: Mapping[str, pd.DataFrame]) -> dict[str, Layout]:
    """The comparison first, where there is one, then each network's own table."""
    tables = {"Side by side": layout(compare(scored))} if len(scored) > 1 else {}
    return tables | {name: layout(organ_table(scores)) for name, scores in scored.items()}


def _pictures(scored: Mapping[str, pd.DataFrame], per_dataset: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Pictures with their captions, and what was left out, in words."""
    pictures, left_out, size = [], [], 0
    shown = choose_cases(scored, per_dataset) if scored and per_dataset > 0 else []
    for number, case in enumerate(track(shown, "draw") if shown else []):
        try:
            png = draw_case(case)
        except DataError as error:
            left_out.append(str(error))
            continue
        if size + len(png) > MAX_PICTURE_BYTES:
            left_out.append(f"{len(shown) - number} more pictures, which would make this file too large")
            break
        size += len(png)
        pictures.append({"case": case, "source": _data_uri(png), "dice": _dice_rows(case)})
    return pictures, left_out


def _dice_rows(case: ShownCase) -> list[tuple[str, list[str]]]:
    """For each organ of a case what each network scored."""
    organs = dict.fromkeys(organ for rows in case.rows.values() for organ in rows.index)
    return [(_spaced(organ), [_dice(rows, organ) for rows in case.rows.values()]) for organ in organs]


def _dice(rows: pd.DataFrame, organ: str) -> str:
    if organ not in rows.index:
        return "–"
    dice, outcome = rows.loc[organ, "dice"], rows.loc[organ, "outcome"]
    return f"{dice:.3f}" if outcome == "scored" else outcome


def _worst(scored: Mapping[str, pd.DataFrame]) -> list[list[str]]:
    if not scored:
        return []
    return [
        [
            *(row.network, row.dataset, row.case, _spaced(row.organ), f"{row.dice:.3f}"),
            f"{row.hd95_mm:.1f}" if np.isfinite(row.hd95_mm) else "–",
            row.outcome,
        ]
        for row in worst_scores(scored).itertuples()
    ]


def _organs(scored: Mapping[str, pd.DataFrame]) -> list[str]:
    """The paper's organs first, in its order: predictions show them also where no dataset annotates them."""
    found = dict.fromkeys(organ for scores in scored.values() for organ in scores["organ"])
    return [*PAPER_ORGANS, *(organ for organ in found if organ not in PAPER_ORGANS)] if found else []


def _curves(run: Path) -> str | None:
    """The learning curves of a run as a data URI; None where no epoch has been logged."""
    log, terms = (_read_log(run / name) for name in ("log.csv", "terms.csv"))
    if log is None or not len(log):
        return None
    return _data_uri(learning_curves(log, terms))


def _read_log(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        return pd.read_csv(path)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(path, f"cannot be read ({error})", "let the training write it again") from error


def _run_facts(run: Path) -> dict[str, Any]:
    """What a run folder says about itself: run.json entry by entry, and the text of its config."""
    facts = _read_json(run / "run.json") if (run / "run.json").is_file() else {}
    config = run / "config.yaml"
    return {
        "folder": str(run),
        "facts": {_spaced(key): _in_words(value) for key, value in facts.items()},
        "config": config.read_text(encoding="utf-8") if config.is_file() else "",
    }


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_in_words(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(_in_words(entry) for entry in value)
    return str(value)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
