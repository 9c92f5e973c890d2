"""One self-contained HTML file: what was run, tables, learning curves, pictures, worst cases."""

from __future__ import annotations

import base64
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
from partialseg.evaluation.metrics import HD95_DEFINITIONS
from partialseg.evaluation.rendering import Layout, layout
from partialseg.evaluation.summary import compare, organ_table
from partialseg.files import write_text
from partialseg.progress import track
from partialseg.report.case_table import CaseRow, case_rows
from partialseg.report.case_volumes import draw_case, read_case
from partialseg.report.cases import ShownCase, choose_cases, organ_words, went_wrong, worst_scores
from partialseg.report.packed_volumes import ERROR_KINDS
from partialseg.report.run_facts import run_curves, run_facts
from partialseg.report.viewer import ERROR_COLOURS, Viewer, niivue_script, niivue_version, page_parts

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
        ValueError: If the scores cannot stand together, see `partialseg.evaluation.summary.check_together`.
    """
    scored = {
        name: result.scores
        for name, result in networks.items()
        if result.scores is not None and len(result.scores)
    }
    runs = {name: Path(result.run) for name, result in networks.items() if result.run is not None}
    tables = _tables(scored)  # before anything is drawn: it refuses scores that cannot stand together
    pictures, viewer, left_out = _shown_cases(scored, pictures_per_dataset)
    organs = _scored_organs(scored)
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
        tables=tables,
        unscored={name: runs.get(name) for name in networks if name not in scored},
        curves={name: _data_uri(png) for name, folder in runs.items() if (png := run_curves(folder))},
        pictures=pictures,
        left_out=left_out,
        organs=[organ_words(organ) for organ in organs],
        cases=_case_table(case_rows(scored, organs), viewer),
        viewer=viewer,
        niivue=niivue_script() if viewer.cases else "",
        niivue_version=niivue_version(),
        errors=dict(zip(ERROR_KINDS, ERROR_COLOURS, strict=True)),
        parts=page_parts(),
        legend=organ_colours(_organs(scored)),
        worst=_worst(scored, viewer),
        hd95=_hd95(scored),
        runs={name: run_facts(folder) for name, folder in runs.items()},
    )
    write_text(path, html)
    return Path(path)


def _tables(scored: Mapping[str, pd.DataFrame]) -> list[tuple[str, Layout]]:
    """First what fits a page, the networks side by side or the only one in brief; then each with all metrics."""
    tables = {name: organ_table(scores) for name, scores in scored.items()}
    if len(tables) > 1:
        first = [("Side by side", layout(compare(scored)))]
    else:
        first = [(name, layout(table, brief=True)) for name, table in tables.items()]
    return first + [(f"{name}: all metrics", _filled(layout(table))) for name, table in tables.items()]


def _filled(table: Layout) -> Layout:
    """A table without the columns that hold nothing, such as the intervals of a few cases."""
    columns = [n for n in range(len(table.headers)) if any(row[n].text != "–" for row in table.rows)]
    rows = [[row[n] for n in columns] for row in table.rows]
    return Layout([table.headers[n] for n in columns], rows, table.note)


def _shown_cases(
    scored: Mapping[str, pd.DataFrame], per_dataset: int
) -> tuple[list[dict[str, Any]], Viewer, list[str]]:
    """Pictures with their captions, the cases of the viewer, and what was left out, in words."""
    pictures, viewer, left_out, size = [], Viewer(), [], 0
    shown = choose_cases(scored, per_dataset) if scored and per_dataset > 0 else []
    for case in track(shown, "draw") if shown else []:
        try:
            volumes = read_case(case)
        except DataError as error:
            left_out.append(str(error))
            continue
        number = viewer.add(case, volumes)
        png = draw_case(volumes)
        size += len(png)
        if size <= MAX_PICTURE_BYTES:
            wrong = {name: words for name, rows in case.rows.items() if (words := went_wrong(rows))}
            picture = {"case": case, "source": _data_uri(png), "dice": _dice_rows(case)}
            pictures.append({**picture, "wrong": wrong, "number": number})
        else:
            left_out.append(f"{case.dataset}, {case.case}: its picture would make this file too large")
    return pictures, viewer, left_out + viewer.left_out


def _case_table(rows: Sequence[CaseRow], viewer: Viewer) -> list[dict[str, Any]]:
    """The rows of the table of cases, each with the places of its case and its network in the viewer."""
    return [{"row": row, "place": viewer.place_of(row.dataset, row.case, row.network)} for row in rows]


def _dice_rows(case: ShownCase) -> list[tuple[str, list[str]]]:
    """For each organ of a case what each network scored."""
    organs = dict.fromkeys(organ for rows in case.rows.values() for organ in rows.index)
    return [(organ_words(organ), [_dice(rows, organ) for rows in case.rows.values()]) for organ in organs]


def _dice(rows: pd.DataFrame, organ: str) -> str:
    if organ not in rows.index:
        return "–"
    dice, outcome = rows.loc[organ, "dice"], rows.loc[organ, "outcome"]
    return f"{dice:.3f}" if outcome == "scored" else outcome


def _worst(scored: Mapping[str, pd.DataFrame], viewer: Viewer) -> list[dict[str, Any]]:
    """The rows of the lowest scores, in words, with their places in the viewer."""
    if not scored:
        return []
    return [
        {
            "place": viewer.place_of(row.dataset, row.case, row.network),
            "texts": [
                *(row.network, row.dataset, row.case, organ_words(row.organ), f"{row.dice:.3f}"),
                f"{row.hd95_mm:.1f}" if np.isfinite(row.hd95_mm) else "–",
                row.outcome,
            ],
        }
        for row in worst_scores(scored).itertuples()
    ]


def _hd95(scored: Mapping[str, pd.DataFrame]) -> str:
    """What HD95 is in these scores, in words; all have the same."""
    definitions = [scores["hd95_definition"].iloc[0] for scores in scored.values()]
    return HD95_DEFINITIONS[definitions[0]] if definitions else ""


def _scored_organs(scored: Mapping[str, pd.DataFrame]) -> list[str]:
    """The organs that are scored, the paper's first."""
    found = {organ for scores in scored.values() for organ in scores["organ"]}
    return [organ for organ in _organs(scored) if organ in found]


def _organs(scored: Mapping[str, pd.DataFrame]) -> list[str]:
    """The paper's organs first, in its order: predictions show them also where no dataset annotates them."""
    found = dict.fromkeys(organ for scores in scored.values() for organ in scores["organ"])
    return [*PAPER_ORGANS, *(organ for organ in found if organ not in PAPER_ORGANS)] if found else []


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
