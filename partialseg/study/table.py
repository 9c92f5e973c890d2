"""The table of a study as the paper prints it: a row per network or group of networks, a column per organ ∈ dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from rich.table import Table
from rich.text import Text

from partialseg.evaluation.tables import layout, organ_table


def study_table(rows: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All numbers: for each row of the table what `organ_table` says, with the row's name in `network`.

    Args:
        rows: For each row its scores, one row per case and organ.

    Example:
        >>> scores = pd.DataFrame({"dataset": "btcv", "case": ["a"], "organ": "liver", "dice": [0.9],
        ...     "hd_mm": [8.0], "hd95_mm": [4.0], "assd_mm": [1.0], "nsd": [0.9], "outcome": ["scored"],
        ...     "hd95_definition": "directed_max", "nsd_tolerance_mm": 2.0})
        >>> study_table({"Ψ_F": scores})[["network", "organ", "dice_mean"]].values.tolist()
        [['Ψ_F', 'liver', 0.9], ['Ψ_F', 'all', 0.9]]
    """
    tables = [organ_table(scores) for scores in rows.values()]
    named = [table.assign(network=row) for row, table in zip(rows, tables, strict=True)]
    together = pd.concat(named, ignore_index=True)
    return together[["network", *(column for column in together.columns if column != "network")]]


def study_markdown(title: str, table: pd.DataFrame, metrics: Sequence[str], notes: Sequence[str] = ()) -> str:
    """The table in Markdown: one block per metric, mean ± standard deviation.

    Args:
        title: Its heading.
        table: What `study_table` returned.
        metrics: Which blocks, such as "Dice" and "HD95 mm".
        notes: Sentences to print below.
    """
    parts = [f"# {title}"]
    for metric in metrics:
        headers, rows = _block(table, metric)
        lines = [headers, [":--", *["--:"] * (len(headers) - 1)], *rows]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"## {metric}\n\n{body}")
    parts.append(_note(table))
    if notes:
        parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def render_study(title: str, table: pd.DataFrame, metrics: Sequence[str]) -> list[Table]:
    """The same for the terminal, means alone so that it fits."""
    tables = []
    for metric in metrics:
        headers, rows = _block(table, metric)
        result = Table(title=f"{title}: {metric}", caption_justify="left")
        for number, header in enumerate(headers):
            result.add_column(Text(header), justify="right" if number else "left", no_wrap=number == 0)
        for first, *cells in rows:
            result.add_row(Text(first), *(Text(cell.split(" ±")[0]) for cell in cells))
        tables.append(result)
    return tables


def _block(table: pd.DataFrame, metric: str) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of one metric; a row has a dash where it has no such organ ∈ dataset."""
    cells: dict[str, dict[str, str]] = {}
    for row, part in table.groupby("network", sort=False):
        arranged = layout(part.drop(columns="network").reset_index(drop=True))
        column = arranged.headers.index(metric)
        cells[row] = {line[0].text: line[column].text for line in arranged.rows}
    labels = max(cells.values(), key=len)
    headers = ["network", *labels]
    return headers, [[row, *(of.get(label, "–") for label in labels)] for row, of in cells.items()]


def _note(table: pd.DataFrame) -> str:
    missed = {row: int(part["missed"].iloc[-1]) for row, part in table.groupby("network", sort=False)}
    found = ", ".join(f"{row} {count}" for row, count in missed.items() if count)
    first = table[table["network"] == table["network"].iloc[0]].drop(columns="network")
    note = layout(first.reset_index(drop=True)).note
    return f"{note} Missed organs: {found or 'none'}."
