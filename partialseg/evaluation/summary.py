"""Tables organ × dataset: from scores of cases to means.

A missed organ has Dice 0 in the mean and is counted; a distance that does not exist is in no mean, and the
table says of how many cases it is the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from partialseg.data.classes import PAPER_ORGANS
from partialseg.evaluation.metrics import BOTH_EMPTY, HALLUCINATED, MISSED

ALL = "all"
_METRICS = ("dice", "hd_mm", "hd95_mm", "assd_mm", "nsd")
_SETTINGS = ("hd95_definition", "nsd_tolerance_mm")
#: Columns of each network in `compare`.
COMPARED = ("n", "dice_mean", "dice_std", "n_hd", "hd95_mm_mean", "hd95_mm_std", "missed", "hallucinated")


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
        table = organ_table(scores[keys.isin(shared)])[["organ", "dataset", *COMPARED]]
        table = table.rename(columns={column: f"{name}: {column}" for column in COMPARED})
        result = result.merge(table, on=["organ", "dataset"], how="left")
    return result.assign(**settings)


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
