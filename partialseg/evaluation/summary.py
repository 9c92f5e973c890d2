"""Tables organ × dataset: from scores of cases to means, and from means to text.

A missed organ has Dice 0 in the mean and is counted; a distance that does not exist is in no mean, and the
table says of how many cases it is the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from partialseg.data.classes import PAPER_ORGANS
from partialseg.evaluation.metrics import BOTH_EMPTY, HALLUCINATED, HD95_DEFINITIONS, MISSED

ALL = "all"
_METRICS = ("dice", "hd_mm", "hd95_mm", "assd_mm", "nsd")
_SETTINGS = ("hd95_definition", "nsd_tolerance_mm")
_COMPARED = ("n", "dice_mean", "dice_std", "n_hd", "hd95_mm_mean", "hd95_mm_std", "missed", "hallucinated")


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


def organ_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarise scores organ by organ and dataset by dataset, as the paper's Tables 3 and 4 do.

    Args:
        scores: One row per case and annotated organ, as `partialseg.evaluation.evaluate` makes them.

    Returns:
        One row per organ and dataset, and a last row "all", the mean over the rows above (the paper's "All").
        Columns: `organ`, `dataset`, `n` (cases with a Dice: scored, missed, hallucinated), mean and standard
        deviation (n - 1; NaN for one case) of each metric, `n_hd` (cases with distances), counts `missed`,
        `hallucinated` and `both_empty` (these are in no mean), and the settings of the metrics.

    Raises:
        ValueError: If the scores mix definitions of HD95 or tolerances.

    Example:
        >>> scores = pd.DataFrame({"dataset": "btcv", "case": ["a", "b"], "organ": "liver",
        ...     "dice": [0.9, 0.0], "hd_mm": [8, np.nan], "hd95_mm": [4, np.nan], "assd_mm": [1, np.nan],
        ...     "nsd": [0.9, 0.0], "outcome": ["scored", "missed"],
        ...     "hd95_definition": "directed_max", "nsd_tolerance_mm": 2.0})
        >>> organ_table(scores)[["organ", "n", "dice_mean", "n_hd", "hd_mm_mean", "missed"]].values.tolist()
        [['liver', 2, 0.45, 1, 8.0, 1], ['all', 2, 0.45, 1, 8.0, 1]]
    """
    settings = {name: _the_one(scores, name) for name in _SETTINGS}
    rows = [
        {"organ": organ, "dataset": dataset, **_summary(scores[_of(scores, organ, dataset)])}
        for organ, dataset in _cells(scores)
    ]
    if not rows:
        return pd.DataFrame(columns=["organ", "dataset", *_summary(scores), *settings])
    table = pd.DataFrame(rows)
    total = {"organ": ALL, "dataset": ""}
    for column in table.columns[2:]:
        if column.endswith("_mean"):
            total[column] = table[column].mean()
        elif column.endswith("_std"):
            total[column] = np.nan
        else:
            total[column] = table[column].sum()
    return pd.concat([table, pd.DataFrame([total])], ignore_index=True).assign(**settings)


def compare(networks: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Put several networks side by side, organ × dataset.

    Where networks were scored on different cases of a dataset, the cases that all of them have are compared.

    Args:
        networks: For each network's name its scores, one row per case and organ.

    Returns:
        Columns `organ` and `dataset`, then for each network `"<name>: n"`, `"<name>: dice_mean"`,
        `"<name>: dice_std"`, `"<name>: n_hd"`, `"<name>: hd95_mm_mean"`, `"<name>: hd95_mm_std"`,
        `"<name>: missed"` and `"<name>: hallucinated"`, as `organ_table` has them; the last row is "all". A
        network that has no score in a cell has NaN there.

    Raises:
        ValueError: If the scores mix definitions of HD95 or tolerances.
    """
    together = pd.concat(networks.values(), ignore_index=True)
    settings = {name: _the_one(together, name) for name in _SETTINGS}
    shared = _shared_cases(networks.values())
    result = pd.DataFrame([*_cells(together), (ALL, "")], columns=["organ", "dataset"])
    for name, scores in networks.items():
        keys = pd.MultiIndex.from_frame(scores[["organ", "dataset", "case"]])
        table = organ_table(scores[keys.isin(shared)])[["organ", "dataset", *_COMPARED]]
        table = table.rename(columns={column: f"{name}: {column}" for column in _COMPARED})
        result = result.merge(table, on=["organ", "dataset"], how="left")
    return result.assign(**settings)


def layout(table: pd.DataFrame) -> Layout:
    """Arrange the numbers of `organ_table` or `compare` for people; the best of several networks is marked.

    The best HD95 is marked only where the networks have distances for equally many cases: a network that
    misses the hard cases would win otherwise.
    """
    names = [column.removesuffix(": dice_mean") for column in table.columns if column.endswith(": dice_mean")]
    definition = HD95_DEFINITIONS.get(table["hd95_definition"].iloc[0], "") if len(table) else ""
    note = (
        "Mean ± standard deviation over cases; the last row is the mean of the rows above. "
        f"HD95: {definition}. A missed or hallucinated organ has Dice 0 and no distance; (n of m): n of m "
        "cases have one."
    )
    if names:
        return _compared(table, names, note + " Bold: the best of a row.")
    if len(table):
        note += f" NSD: at {table['nsd_tolerance_mm'].iloc[0]:g} mm."
    headers = ["organ ∈ dataset", "n", "Dice", "HD mm", "HD95 mm", "ASSD mm", "NSD"]
    rows = []
    for row in table.to_dict("records"):
        texts = [_label(row), _count(row["n"]), _mean_std(row, "dice", 3)]
        texts += [_mean_std(row, metric, 1) for metric in ("hd_mm", "hd95_mm", "assd_mm")]
        texts += [_mean_std(row, "nsd", 3)]
        texts += [_count(row[outcome]) for outcome in ("missed", "hallucinated", "both_empty")]
        rows.append([Cell(text) for text in texts])
    return Layout([*headers, "missed", "hallucinated", "both empty"], rows, note)


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown, with its note."""
    arranged = layout(table)
    lines = [arranged.headers, [":--", *["--:"] * (len(arranged.headers) - 1)]]
    lines += [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in arranged.rows]
    body = "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)
    return f"{body}\n\n{arranged.note}\n"


def render_table(table: pd.DataFrame, title: str | None = None) -> Table:
    """The table for the terminal.

    Args:
        table: What `organ_table` or `compare` returned.
        title: A line above it.
    """
    arranged = layout(table)
    result = Table(title=title, caption=arranged.note, caption_justify="left")
    for number, header in enumerate(arranged.headers):
        result.add_column(Text(header), justify="right" if number else "left", no_wrap=number == 0)
    for number, row in enumerate(arranged.rows, 1):
        last_before_mean = number == len(arranged.rows) - 1
        cells = [Text(cell.text, style="bold" if cell.best else "") for cell in row]
        result.add_row(*cells, end_section=last_before_mean)
    return result


def _the_one(scores: pd.DataFrame, setting: str) -> str | float | None:
    values = scores[setting].unique().tolist() if len(scores) else []
    if len(values) > 1:
        raise ValueError(
            f"the scores mix {setting} {', '.join(map(str, values))}: evaluate all with the same"
        )
    return values[0] if values else None


def _cells(scores: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs of organ and dataset: the paper's organs in its order, then others; datasets as they come."""
    pairs = list(dict.fromkeys(zip(scores["organ"], scores["dataset"], strict=True)))
    organs = [*PAPER_ORGANS, *dict.fromkeys(organ for organ, _ in pairs if organ not in PAPER_ORGANS)]
    datasets = list(dict.fromkeys(scores["dataset"]))
    return sorted(pairs, key=lambda pair: (organs.index(pair[0]), datasets.index(pair[1])))


def _of(scores: pd.DataFrame, organ: str, dataset: str) -> pd.Series:
    return (scores["organ"] == organ) & (scores["dataset"] == dataset)


def _summary(scores: pd.DataFrame) -> dict[str, float]:
    """Numbers of one cell of the table; Dice and NSD of "both empty" are NaN and so in no mean."""
    result: dict[str, float] = {
        "n": int(scores["dice"].notna().sum()),
        "n_hd": int(scores["hd_mm"].notna().sum()),
    }
    for metric in _METRICS:
        result[f"{metric}_mean"] = float(scores[metric].mean())
        result[f"{metric}_std"] = float(scores[metric].std())
    for column, outcome in (("missed", MISSED), ("hallucinated", HALLUCINATED), ("both_empty", BOTH_EMPTY)):
        result[column] = int((scores["outcome"] == outcome).sum())
    return result


def _shared_cases(networks: Iterable[pd.DataFrame]) -> pd.MultiIndex:
    """Organ, dataset and case of all rows that every network with that organ of that dataset has."""
    columns = ["organ", "dataset", "case"]
    rows = pd.concat([scores[columns].drop_duplicates() for scores in networks])
    cells = pd.concat([scores[columns[:2]].drop_duplicates() for scores in networks]).value_counts()
    counts = rows.value_counts()
    return counts.index[[count == cells[key[:2]] for key, count in counts.items()]]


def _compared(table: pd.DataFrame, names: Sequence[str], note: str) -> Layout:
    headers = ["organ ∈ dataset", "n", *[f"{name}: Dice" for name in names]]
    headers += [*[f"{name}: HD95 mm" for name in names], "missed", "hallucinated"]
    rows = []
    for row in table.to_dict("records"):
        of = [{column: row[f"{name}: {column}"] for column in _COMPARED} for name in names]
        dice = _marked([entry["dice_mean"] for entry in of], max)
        comparable = len({entry["n_hd"] for entry in of if entry["n"] > 0}) == 1
        hd95 = _marked([entry["hd95_mm_mean"] for entry in of], min) if comparable else [False] * len(of)
        cells = [Cell(_label(row)), Cell(_joined(of, "n"))]
        cells += [Cell(_mean_std(entry, "dice", 3), best) for entry, best in zip(of, dice, strict=True)]
        cells += [Cell(_mean_std(entry, "hd95_mm", 1), best) for entry, best in zip(of, hd95, strict=True)]
        rows.append(
            [*cells, Cell(_joined(of, "missed", always=True)), Cell(_joined(of, "hallucinated", always=True))]
        )
    return Layout(headers, rows, note)


def _marked(values: Sequence[float], better: type[max] | type[min]) -> list[bool]:
    """Which values are the best; none where all are alike."""
    finite = [value for value in values if np.isfinite(value)]
    if len(set(finite)) < 2:
        return [False] * len(values)
    return [value == better(finite) for value in values]


def _joined(of: Sequence[Mapping[str, float]], column: str, always: bool = False) -> str:
    texts = [_count(entry[column]) for entry in of]
    return texts[0] if len(set(texts)) == 1 and not always else " / ".join(texts)


def _label(row: Mapping[str, str]) -> str:
    organ = row["organ"].replace("_", " ")
    return f"{organ} ∈ {row['dataset']}" if row["dataset"] else organ


def _count(number: float) -> str:
    return "–" if np.isnan(number) else f"{int(number)}"


def _mean_std(row: Mapping[str, float], metric: str, digits: int) -> str:
    """For example "0.931 ± 0.012"; distances say of how many cases where some case has none."""
    mean, std = row[f"{metric}_mean"], row[f"{metric}_std"]
    if not np.isfinite(mean):
        return "–"
    text = f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if np.isfinite(std) else "")
    if metric.endswith("_mm") and row["n_hd"] != row["n"]:
        text += f" ({_count(row['n_hd'])} of {_count(row['n'])})"
    return text
