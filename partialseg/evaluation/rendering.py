"""Tables as people read them: in Markdown, in the terminal, and for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from partialseg.evaluation.metrics import HD95_DEFINITIONS
from partialseg.evaluation.summary import COMPARED

_COUNTS = {"missed": "missed", "hallucinated": "hallucinated", "both_empty": "both empty"}
_DIGITS = {"dice": 3, "hd_mm": 1, "hd95_mm": 1, "assd_mm": 1, "nsd": 3}
_HEADERS = {"dice": "Dice", "hd_mm": "HD mm", "hd95_mm": "HD95 mm", "assd_mm": "ASSD mm", "nsd": "NSD"}


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
        brief: Means without deviations, neither ASSD nor NSD, and only counts that are not all 0, so that it
            fits a terminal.
    """
    names = [column.removesuffix(": dice_mean") for column in table.columns if column.endswith(": dice_mean")]
    rows = table.to_dict("records")
    columns = _compared(rows, names, brief) if names else _single(rows, brief)
    labels = {"organ ∈ dataset": [Cell(_label(row)) for row in rows]}
    together = {**labels, **columns}
    arranged = [list(cells) for cells in zip(*together.values(), strict=True)]
    return Layout([*together], arranged, _note(table, bool(names), brief))


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, with its note."""
    arranged = layout(table)
    lines = [arranged.headers, [":--", *["--:"] * (len(arranged.headers) - 1)]]
    lines += [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in arranged.rows]
    body = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
    return f"{body}\n\n{arranged.note}\n"


def render_table(table: pd.DataFrame, title: str | None = None) -> Table:
    """The table for the terminal, in brief.

    Args:
        table: What `organ_table` or `compare` returned.
        title: A line above it.
    """
    arranged = layout(table, brief=True)
    result = Table(title=title, caption=arranged.note, caption_justify="left")
    for number, header in enumerate(arranged.headers):
        result.add_column(Text(header), justify="right" if number else "left", no_wrap=number == 0)
    for number, row in enumerate(arranged.rows, 1):
        cells = [Text(cell.text, style="bold" if cell.best else "") for cell in row]
        result.add_row(*cells, end_section=number == len(arranged.rows) - 1)
    return result


def _note(table: pd.DataFrame, compared: bool, brief: bool) -> str:
    if not len(table):
        return "There are no scores."
    parts = ["Mean over cases" if brief else "Mean ± standard deviation over cases"]
    parts[0] += "; the last row is the mean of the rows above."
    parts.append(f"HD95: {HD95_DEFINITIONS[table['hd95_definition'].iloc[0]]}.")
    parts.append(
        "A missed or hallucinated organ has Dice 0 and no distance; (n of m): n of m cases have one."
    )
    if compared:
        parts.append("Bold: the best of a row.")
    elif not brief:
        parts.append(f"NSD: at {table['nsd_tolerance_mm'].iloc[0]:g} mm.")
    return " ".join(parts)


def _single(rows: Sequence[Mapping[str, float]], brief: bool) -> dict[str, list[Cell]]:
    columns = {"n": [Cell(_count(row["n"])) for row in rows]}
    for metric in ("dice", "hd_mm", "hd95_mm") if brief else _HEADERS:
        columns[_HEADERS[metric]] = [Cell(_mean(row, metric, brief)) for row in rows]
    for count, header in _COUNTS.items():
        if not brief or count == "missed" or any(row[count] for row in rows):
            columns[header] = [Cell(_count(row[count])) for row in rows]
    return columns


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
            columns[f"{name}: {_HEADERS[metric]}"] = [
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


def _label(row: Mapping[str, str]) -> str:
    organ = row["organ"].replace("_", " ")
    return f"{organ} ∈ {row['dataset']}" if row["dataset"] else organ


def _count(number: float) -> str:
    return "–" if np.isnan(number) else f"{int(number)}"


def _mean(row: Mapping[str, float], metric: str, brief: bool) -> str:
    """For example "0.931 ± 0.012"; distances say of how many cases where some case has none."""
    mean, std = row[f"{metric}_mean"], row[f"{metric}_std"]
    if not np.isfinite(mean):
        return "–"
    text = f"{mean:.{_DIGITS[metric]}f}"
    if np.isfinite(std) and not brief:
        text += f" ± {std:.{_DIGITS[metric]}f}"
    if metric.endswith("_mm") and row["n_hd"] != row["n"]:
        text += f" ({_count(row['n_hd'])} of {_count(row['n'])})"
    return text
