"""Tables as people read them: in Markdown, in the terminal, and for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from partialseg.evaluation.metrics import HD95_DEFINITIONS
from partialseg.evaluation.score_files import DISTANCES
from partialseg.evaluation.statistics import MIN_CASES
from partialseg.evaluation.summary import ALL, COMPARED

_COUNTS = {"missed": "missed", "hallucinated": "hallucinated", "both_empty": "both empty"}
_DIGITS = {"dice": 3, "nsd": 3, "volume_error": 1}  # else 1
#: How the metrics are called.
HEADERS = {
    "dice": "Dice",
    "hd_mm": "HD mm", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm",
    "hd_voxels": "HD voxels", "hd95_voxels": "HD95 voxels", "assd_voxels": "ASSD voxels",
    "nsd": "NSD", "volume_error": "volume error %", "volume_error_ml": "volume error mL",
}  # fmt: skip
#: Shown with median and interval; of the others they are in table.csv.
_IN_FULL = ("dice", "hd95_mm", "hd95_voxels")


@dataclass(frozen=True)
class Cell:
    """The text of a cell, and whether it is the best of its row."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Layout:
    """A table as people read it.

    Attributes:
        headers: One per column; the first column names the row.
        rows: Cells, one list per row; the last row is the mean of all.
        note: What must be known to read it.
    """

    headers: list[str]
    rows: list[list[Cell]]
    note: str


def layout(table: pd.DataFrame, brief: bool = False) -> Layout:
    """Arrange the numbers of `organ_table` or `compare` for people; the best of several networks is marked.

    The best HD95 is marked only where the networks have distances for equally many cases: a network that
    misses the hard cases would win otherwise. For the same reason nothing is marked in the last row where a
    network lacks a row.

    Args:
        table: What `organ_table` or `compare` returned.
        brief: Means without deviations and medians, of Dice, HD and HD95 alone (in voxels where these were asked
            for), and only counts that are not all 0, so that it fits a terminal.
    """
    names = [column.removesuffix(": dice_mean") for column in table.columns if column.endswith(": dice_mean")]
    rows = table.to_dict("records")
    columns = _compared(rows, names, brief) if names else _single(table, rows, brief)
    labels = {"organ ∈ dataset": [Cell(row_label(row)) for row in rows]}
    together = {**labels, **columns}
    arranged = [list(cells) for cells in zip(*together.values(), strict=True)]
    return Layout([*together], arranged, _note(table, bool(names), brief))


def markdown(table: pd.DataFrame, worst: pd.DataFrame | None = None) -> str:
    """The table in Markdown, with its note.

    Args:
        table: What `organ_table` or `compare` returned.
        worst: Scores to list below, see `partialseg.evaluation.summary.worst_cases`.
    """
    arranged = layout(table)
    rows = [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in arranged.rows]
    text = f"{markdown_table(arranged.headers, rows)}\n\n{arranged.note}\n"
    if worst is None or not len(worst):
        return text
    distance = "hd95_voxels" if "hd95_voxels" in worst.columns else "hd95_mm"
    headers = ["dataset", "case", "organ", "Dice", HEADERS[distance], "outcome"]
    listed = [
        [
            *(row["dataset"], row["case"], row["organ"].replace("_", " ")),
            *(number_text(row[metric], metric) for metric in ("dice", distance)),
            row["outcome"],
        ]
        for row in worst.to_dict("records")
    ]
    return f"{text}\n## Lowest Dice\n\n{markdown_table(headers, listed, names=3)}\n"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """A table in Markdown; its first columns are names, at the left, and the others numbers, at the right.

    Example:
        >>> print(markdown_table(["organ", "n"], [["liver", "3"]]))
        | organ | n |
        | :-- | --: |
        | liver | 3 |
    """
    aligned = [":--" if place < names else "--:" for place in range(len(headers))]
    lines = [headers, aligned, *rows]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def render_table(table: pd.DataFrame, title: str | None = None) -> Table:
    """The table for the terminal, in brief.

    Args:
        table: What `organ_table` or `compare` returned.
        title: A line above it.
    """
    arranged = layout(table, brief=True)
    return render_layout(arranged, title, totals=1)


def render_layout(arranged: Layout, title: str | None = None, totals: int = 0) -> Table:
    """A layout for the terminal, with a line before its last `totals` rows."""
    result = Table(title=title, caption=arranged.note or None, caption_justify="left")
    for number, header in enumerate(arranged.headers):
        result.add_column(Text(header), justify="right" if number else "left", no_wrap=number == 0)
    for number, row in enumerate(arranged.rows, 1):
        cells = [Text(cell.text, style="bold" if cell.best else "") for cell in row]
        result.add_row(*cells, end_section=number == len(arranged.rows) - totals)
    return result


def _note(table: pd.DataFrame, compared: bool, brief: bool) -> str:
    if not len(table):
        return "There are no scores."
    parts = ["Mean over cases" if brief else "Mean ± standard deviation over cases"]
    parts[0] += "; the last row is the mean of the rows above, and its n their sum: organs of cases."
    if not compared and np.isfinite(table.filter(regex="_low$").to_numpy(dtype=float)).any():
        parts.append(
            f"In brackets the 95 % bootstrap interval (CI) of the mean, from {MIN_CASES} cases on with a value."
        )
    parts.append(f"HD95: {HD95_DEFINITIONS[table['hd95_definition'].iloc[0]]}.")
    if not compared and _in_voxels(table):
        parts.append("Voxels are those of the scan's own grid.")
    hallucinated = np.nansum(table.filter(regex="hallucinated$").to_numpy(dtype=float)) > 0
    what = (
        "missed or hallucinated" if hallucinated or not brief else "missed"
    )  # in brief, as there are columns
    parts.append(f"A {what} organ has Dice 0 and no distance; (n of m): n of m cases have one.")
    if compared:
        parts.append("Bold: the best of a row.")
    elif not brief:
        parts.append("An organ neither there nor predicted (both empty) is in no mean and no n.")
        rows = table[table["organ"] != ALL]
        of_organs = dict(zip(rows["organ"], rows["nsd_tolerance_mm"], strict=True))
        parts.append(f"NSD: {tolerances_text(of_organs)}.")
        if "volume_error_mean" in table.columns:
            parts.append(
                "Volume error: predicted less true volume, in % of the true one where the organ is there, a "
                "missed one -100 %."
            )
    return " ".join(parts)


def tolerances_text(tolerances: Mapping[str, float]) -> str:
    """The tolerances of NSD in words.

    Example:
        >>> tolerances_text({"liver": 5, "left_kidney": 3, "right_kidney": 3})
        'at 5 mm (liver), 3 mm (left kidney, right kidney)'
        >>> tolerances_text({"liver": 2, "spleen": 2})
        'at 2 mm'
    """
    organs: dict[float, list[str]] = {}
    for organ, tolerance in tolerances.items():
        organs.setdefault(tolerance, []).append(organ.replace("_", " "))
    if len(organs) == 1:
        return f"at {next(iter(organs)):g} mm"
    return "at " + ", ".join(f"{tolerance:g} mm ({', '.join(of)})" for tolerance, of in organs.items())


def _in_voxels(table: pd.DataFrame) -> bool:
    return "hd95_voxels_mean" in table.columns


def _single(table: pd.DataFrame, rows: Sequence[Mapping[str, float]], brief: bool) -> dict[str, list[Cell]]:
    columns = {"n": [Cell(_count(row["n"])) for row in rows]}
    counts = {
        header: [Cell(_count(row[count])) for row in rows]
        for count, header in _COUNTS.items()
        if not brief or count == "missed" or any(row[count] for row in rows)
    }
    if not brief:  # a wide table may be cut off at its right
        columns |= counts
    hidden = DISTANCES["mm"] if brief and _in_voxels(table) else ()
    shown = [name for name in HEADERS if f"{name}_mean" in table.columns and name not in hidden]
    for metric in shown:
        header = HEADERS[metric]
        if brief and not metric.startswith(("dice", "hd")):
            continue
        columns[header] = [Cell(_mean(row, metric, brief)) for row in rows]
        if brief and metric == "dice":
            columns[header] = [
                Cell(" ".join([_mean(row, metric, brief), _interval(row, metric)]).strip()) for row in rows
            ]
        elif not brief and metric in _IN_FULL:
            columns[f"{header} median"] = [Cell(number_text(row[f"{metric}_median"], metric)) for row in rows]
            columns[f"{header} 95 % CI"] = [Cell(_interval(row, metric) or "–") for row in rows]
    return columns | counts


def _compared(
    rows: Sequence[Mapping[str, float]], names: Sequence[str], brief: bool
) -> dict[str, list[Cell]]:
    """Columns of several networks: Dice of each, HD95 of each, then counts as "2 / 0"."""
    of = [[{column: row[f"{name}: {column}"] for column in COMPARED} for name in names] for row in rows]
    columns = {"n": [Cell(_joined(entries, "n", brief=True)) for entries in of]}
    whole = all(np.isfinite(entry["n"]) for entries in of for entry in entries)
    for metric, better in (("dice", max), ("hd95_mm", min)):
        best = [
            _best([entry[f"{metric}_mean"] for entry in entries], better)
            if (whole or entries is not of[-1]) and (metric == "dice" or _alike(entries))
            else [False] * len(names)
            for entries in of
        ]
        for place, name in enumerate(names):
            columns[f"{name}: {HEADERS[metric]}"] = [
                Cell(_mean(entries[place], metric, brief), marks[place])
                for entries, marks in zip(of, best, strict=True)
            ]
    for count in ("missed", "hallucinated"):
        if not brief or count == "missed" or any(entry[count] > 0 for entries in of for entry in entries):
            columns[count] = [Cell(_joined(entries, count)) for entries in of]
    return columns


def _alike(entries: Sequence[Mapping[str, float]]) -> bool:
    """Whether the networks that have scores have distances for equally many cases."""
    return len({entry["n_hd"] for entry in entries if entry["n"] > 0}) == 1


def _best(values: Sequence[float], better: type[max] | type[min]) -> list[bool]:
    """Which values are the best; none where all are alike."""
    finite = [value for value in values if np.isfinite(value)]
    if len(set(finite)) < 2:
        return [False] * len(values)
    return [value == better(finite) for value in values]


def _joined(entries: Sequence[Mapping[str, float]], column: str, brief: bool = False) -> str:
    texts = [_count(entry[column]) for entry in entries]
    return texts[0] if brief and len(set(texts)) == 1 else " / ".join(texts)


def row_label(row: Mapping[str, str]) -> str:
    """For example "left kidney ∈ btcv"; the organ alone where there is no dataset, or all are meant."""
    organ, dataset = row["organ"].replace("_", " "), row["dataset"]
    return f"{organ} ∈ {dataset}" if dataset and (row["organ"], dataset) != (ALL, ALL) else organ


def _count(number: float) -> str:
    return "–" if np.isnan(number) else f"{int(number)}"


def _mean(row: Mapping[str, float], metric: str, brief: bool) -> str:
    """For example "0.931 ± 0.012"; what not every case has says of how many it is the mean."""
    mean, std = row[f"{metric}_mean"], row[f"{metric}_std"]
    if not np.isfinite(mean):
        return "–"
    text = number_text(mean, metric)
    if np.isfinite(std) and not brief:
        text += f" ± {number_text(std, metric)}"
    number = row["n_hd"] if metric in (*DISTANCES["mm"], *DISTANCES["voxels"]) else row["n"]
    if metric == "volume_error":
        number = row["n_volume"]
    if number == row["n"] or (brief and metric.startswith("hd_")):  # HD95 beside it says of how many
        return text
    return f"{text} ({_count(number)} of {_count(row['n'])})"


def _interval(row: Mapping[str, float], metric: str) -> str:
    low, high = row[f"{metric}_low"], row[f"{metric}_high"]
    return f"[{number_text(low, metric)}, {number_text(high, metric)}]" if np.isfinite(low) else ""


def number_text(value: float, metric: str) -> str:
    """A value of a metric; the relative volume error in %."""
    if not np.isfinite(value):
        return "–"
    text = f"{100 * value if metric == 'volume_error' else value:.{_DIGITS.get(metric, 1)}f}"
    return text if float(text) else text.lstrip("-")
