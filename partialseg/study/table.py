"""The table of a study as the paper prints it: a row per network or group of networks, a column per organ ∈ dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from partialseg.evaluation.metrics import HD95_DEFINITIONS
from partialseg.evaluation.tables import organ_table

ALL = "all"
HEADERS = {"dice": "Dice", "hd95_mm": "HD95 mm", "hd_mm": "HD mm", "hd95_voxels": "HD95 voxels"}


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
    """The table in Markdown: a block per metric, mean ± standard deviation, the best of a column in bold.

    Args:
        title: Its heading.
        table: What `study_table` returned.
        metrics: Some of "dice", "hd95_mm", "hd_mm" and "hd95_voxels".
        notes: Sentences to print below.
    """
    parts = [f"# {title}"]
    for metric in metrics:
        columns = {"network": list(dict.fromkeys(table["network"]))}
        for key, part in table.groupby(["organ", "dataset"], sort=False):
            columns[_label(*key)] = _column(part.set_index("network"), metric, columns["network"])
        totals = table[table["organ"] == ALL].set_index("network")
        columns["missed"] = [str(totals.loc[row, "missed"]) for row in columns["network"]]
        lines = [[*columns], [":--", *["--:"] * (len(columns) - 1)], *zip(*columns.values(), strict=True)]
        body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        parts.append(f"## {HEADERS[metric]}\n\n{body}")
    definition = HD95_DEFINITIONS[table["hd95_definition"].iloc[0]]
    every = [
        "Mean ± standard deviation over the test cases; `all` is the mean of the other columns.",
        "A missed organ has Dice 0 and no distance; (n of m): n of m cases have one.",
        f"HD95: {definition}.",
    ]
    if "hd95_voxels" in metrics:  # the paper's code measures in voxels
        every.append("Voxels are those of the scan's own grid.")
    parts.append("\n".join(f"- {note}" for note in [*every, *notes]))
    return "\n\n".join(parts) + "\n"


def render_study(title: str, table: pd.DataFrame, metrics: Sequence[str]) -> Table:
    """For the terminal: of each row the mean over all organs and datasets, and how many organs were missed."""
    totals = table[table["organ"] == ALL]
    result = Table(title=title)
    result.add_column("network")
    for metric in metrics:
        result.add_column(HEADERS[metric], justify="right")
    result.add_column("missed", justify="right")
    for row in totals.to_dict("records"):
        result.add_row(Text(row["network"]), *(_text(row, metric) for metric in metrics), str(row["missed"]))
    return result


def _label(organ: str, dataset: str) -> str:
    organ = organ.replace("_", " ")
    return f"{organ} ∈ {dataset}" if dataset else organ


def _column(of: pd.DataFrame, metric: str, rows: Sequence[str]) -> list[str]:
    """The cells of one organ ∈ dataset; the best distance is marked only where all have equally many."""
    means = of[f"{metric}_mean"]
    counts = of["n"] if metric == "dice" else of["n_hd"]
    best = means.max() if metric == "dice" else means.min()
    marked = means.nunique() > 1 and counts.nunique() == 1
    texts = {
        row: f"**{_text(entry, metric)}**"
        if marked and entry[f"{metric}_mean"] == best
        else _text(entry, metric)
        for row, entry in of.to_dict("index").items()
    }
    return [texts.get(row, "–") for row in rows]


def _text(row: Mapping[str, float], metric: str) -> str:
    mean, std = row[f"{metric}_mean"], row[f"{metric}_std"]
    if not np.isfinite(mean):
        return "–"
    digits = 3 if metric == "dice" else 2
    text = f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if np.isfinite(std) else "")
    return text if metric == "dice" or row["n_hd"] == row["n"] else f"{text} ({row['n_hd']} of {row['n']})"
