"""Tables organ × dataset: from scores of cases to means, medians and intervals.

A missed organ has Dice 0 in the mean and is counted; a distance that does not exist is in no mean, and the
table says of how many cases it is the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from partialseg.data.classes import PAPER_ORGANS
from partialseg.evaluation.metrics import BOTH_EMPTY, HALLUCINATED, HD95_DEFINITIONS, MISSED
from partialseg.evaluation.score_files import DISTANCES, METRICS
from partialseg.evaluation.statistics import MIN_CASES, percentile_interval, resampled_means

ALL = "all"
#: Columns of each network in `compare`.
COMPARED = ("n", "dice_mean", "dice_std", "n_hd", "hd95_mm_mean", "hd95_mm_std", "missed", "hallucinated")


def organ_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Summarise scores organ by organ and dataset by dataset, as the paper's Tables 3 and 4 do.

    Args:
        scores: One row per case and annotated organ, as `partialseg.evaluation.evaluate` makes them.

    Returns:
        One row per organ and dataset, and a last row "all", the mean over the rows above (the paper's "All").
        Columns: `organ`, `dataset`, `n` (cases with a Dice: scored, missed, hallucinated), then of each metric that
        the scores have

        - `<metric>_mean`, `<metric>_std` (n - 1; NaN for one case and for "all"), `<metric>_median`,
        - `<metric>_low`, `<metric>_high`: 95 % bootstrap interval of the mean over cases, NaN below 6 cases with a
          value (see `partialseg.evaluation.statistics`). For "all" the cases of each dataset are drawn with all
          their organs, and there is none where a row above has fewer than 6;

        `n_hd` (cases with distances), `n_volume` (cases with a relative volume error: those in which the organ
        is), counts `missed`, `hallucinated` and `both_empty` (these are in no mean), and the settings of the metrics
        (`nsd_tolerance_mm` of "all" is NaN where organs differ).

    Raises:
        ValueError: If the scores mix definitions of HD95 or an organ's tolerances, only some have voxels, or a case
            is there twice.

    Example:
        >>> scores = pd.DataFrame({"dataset": "btcv", "case": ["a", "b"], "organ": "liver",
        ...     "dice": [0.9, 0.0], "hd_mm": [8, np.nan], "hd95_mm": [4, np.nan], "assd_mm": [1, np.nan],
        ...     "nsd": [0.9, 0.0], "outcome": ["scored", "missed"],
        ...     "hd95_definition": "directed_max", "nsd_tolerance_mm": 2.0})
        >>> organ_table(scores)[["organ", "n", "dice_mean", "n_hd", "hd_mm_mean", "missed"]].values.tolist()
        [['liver', 2, 0.45, 1, 8.0, 1], ['all', 2, 0.45, 1, 8.0, 1]]
    """
    definition, tolerances = _checked(scores)
    metrics = [metric for metric in METRICS if metric in scores.columns]
    cells = table_cells(scores)
    rows = [
        {"organ": organ, "dataset": dataset, **_summary(scores[_of(scores, organ, dataset)], metrics)}
        for organ, dataset in cells
    ]
    settings = {"hd95_definition": definition, "nsd_tolerance_mm": np.nan}
    if not rows:
        return pd.DataFrame(columns=["organ", "dataset", *_summary(scores, metrics), *settings])
    table = pd.DataFrame(rows)
    total = {"organ": ALL, "dataset": ""}
    for column in table.columns[2:]:
        if column.endswith(("_mean", "_median")):
            total[column] = table[column].mean()
        elif column.endswith("_std"):
            total[column] = np.nan
        else:
            total[column] = table[column].sum()
    table = pd.concat([table, pd.DataFrame([total])], ignore_index=True).assign(**settings)
    for metric, bounds in _intervals(scores, cells, metrics).items():
        table[f"{metric}_low"], table[f"{metric}_high"] = bounds
    return table.assign(nsd_tolerance_mm=tolerance_column(table, tolerances))


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
    definition, tolerances = check_settings(together)
    shared = _shared_cases(networks.values())
    result = pd.DataFrame([*table_cells(together), (ALL, "")], columns=["organ", "dataset"])
    for name, scores in networks.items():
        keys = pd.MultiIndex.from_frame(scores[["organ", "dataset", "case"]])
        table = organ_table(scores[keys.isin(shared)])[["organ", "dataset", *COMPARED]]
        table = table.rename(columns={column: f"{name}: {column}" for column in COMPARED})
        result = result.merge(table, on=["organ", "dataset"], how="left")
    return result.assign(hd95_definition=definition, nsd_tolerance_mm=tolerance_column(result, tolerances))


def worst_cases(scores: pd.DataFrame, count: int = 10) -> pd.DataFrame:
    """The cases and organs with the lowest Dice, lowest first; among equals as they come.

    Returns:
        At most `count` rows of the scores.

    Example:
        >>> scores = pd.DataFrame({"case": ["a", "b", "c"], "dice": [0.9, np.nan, 0.2]})
        >>> worst_cases(scores, 1)["case"].tolist()
        ['c']
    """
    return scores.dropna(subset="dice").sort_values("dice", kind="stable").head(count).reset_index(drop=True)


def check_together(networks: Sequence[pd.DataFrame]) -> None:
    """Check that scores can stand in the tables of one report, without making these.

    Args:
        networks: Of each network its scores.

    Raises:
        ValueError: If the settings of the metrics differ, or a network has a case twice or distances in voxels for
            some scores alone.
    """
    for scores in networks:
        _checked(scores)
    if len(networks) > 1:
        check_settings(pd.concat(networks, ignore_index=True))


def _checked(scores: pd.DataFrame) -> tuple[str | None, dict[str, float]]:
    """The settings of one network's scores, see `check_settings`, if there is nothing wrong with these."""
    settings = check_settings(scores)
    check_rows(scores)
    _check_voxels(scores)
    return settings


def check_settings(scores: pd.DataFrame) -> tuple[str | None, dict[str, float]]:
    """The settings of the metrics, which must be the same for all scores that are put together.

    Returns:
        The definition of HD95 (None where there are no scores), and the tolerance of NSD of each organ in mm.

    Raises:
        ValueError: If there are several definitions of HD95 or an unknown one, or several tolerances of an organ.
    """
    definitions = scores["hd95_definition"].unique().tolist()
    for unknown in set(definitions) - set(HD95_DEFINITIONS):
        known = ", ".join(HD95_DEFINITIONS)
        raise ValueError(f"hd95_definition is {unknown!r}, expected one of {known}: evaluate again")
    if len(definitions) > 1:
        names = ", ".join(map(str, definitions))
        raise ValueError(f"the scores mix hd95_definition {names}: evaluate all with the same")
    tolerances = {}
    for organ, found in scores.groupby("organ", sort=False)["nsd_tolerance_mm"]:
        values = found.unique().tolist()
        if len(values) > 1:
            names = ", ".join(f"{value:g}" for value in values)
            raise ValueError(
                f"the scores mix nsd_tolerance_mm {names} for {organ}: evaluate all with the same"
            )
        tolerances[organ] = values[0]
    return (definitions[0] if definitions else None), tolerances


def tolerance_column(table: pd.DataFrame, tolerances: Mapping[str, float]) -> list[float]:
    """The tolerance of each row; of "all" the one of all organs, or NaN where they differ."""
    of_all = next(iter(tolerances.values())) if len(set(tolerances.values())) == 1 else np.nan
    return [tolerances.get(organ, of_all) for organ in table["organ"]]


def check_rows(scores: pd.DataFrame) -> None:
    """No case may count twice.

    Raises:
        ValueError: If one is there twice.
    """
    twice = scores[scores.duplicated(["dataset", "case", "organ"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(f"{row['dataset']}, {row['case']}, {row['organ']} is scored twice: keep one of them")


def _check_voxels(scores: pd.DataFrame) -> None:
    """Distances in voxels must be there for all scores or for none."""
    for in_mm, in_voxels in zip(DISTANCES["mm"], DISTANCES["voxels"], strict=True):
        if in_voxels in scores.columns and (scores[in_mm].notna() & scores[in_voxels].isna()).any():
            raise ValueError(
                "some scores have distances in voxels and some have not: evaluate all with the same unit"
            )


def table_cells(scores: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs of organ and dataset: the paper's organs in its order, then others; datasets as they come."""
    pairs = list(dict.fromkeys(zip(scores["organ"], scores["dataset"], strict=True)))
    organs = [*PAPER_ORGANS, *dict.fromkeys(organ for organ, _ in pairs if organ not in PAPER_ORGANS)]
    datasets = list(dict.fromkeys(scores["dataset"]))
    return sorted(pairs, key=lambda pair: (organs.index(pair[0]), datasets.index(pair[1])))


def _of(scores: pd.DataFrame, organ: str, dataset: str) -> pd.Series:
    return (scores["organ"] == organ) & (scores["dataset"] == dataset)


def _summary(scores: pd.DataFrame, metrics: Sequence[str]) -> dict[str, float]:
    """Numbers of one cell of the table; what of "both empty" is NaN is in no mean. Intervals are filled in later."""
    result: dict[str, float] = {
        "n": int(scores["dice"].notna().sum()),
        "n_hd": int(scores["hd_mm"].notna().sum()),
    }
    if "volume_error" in metrics:
        result["n_volume"] = int(scores["volume_error"].notna().sum())
    for metric in metrics:
        values = scores[metric]
        result[f"{metric}_mean"], result[f"{metric}_std"] = float(values.mean()), float(values.std())
        result[f"{metric}_median"] = float(values.median())
        result[f"{metric}_low"] = result[f"{metric}_high"] = np.nan
    for column, outcome in (("missed", MISSED), ("hallucinated", HALLUCINATED), ("both_empty", BOTH_EMPTY)):
        result[column] = int((scores["outcome"] == outcome).sum())
    return result


def _intervals(
    scores: pd.DataFrame, cells: Sequence[tuple[str, str]], metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Of each metric the bounds of its mean, shape `(2, cells + 1)`; the last is that of the mean over the cells."""
    bounds = {metric: np.full((2, len(cells) + 1), np.nan) for metric in metrics}
    of_datasets = {
        dataset: found.pivot(index="case", columns="organ", values=list(metrics))
        for dataset, found in scores.groupby("dataset", sort=False)
    }
    totals = {metric: _Total() for metric in metrics}
    for dataset, wide in of_datasets.items():
        means = resampled_means(wide.to_numpy(dtype=float)) if len(wide) >= MIN_CASES else None
        numbers = wide.notna().sum()
        for place, (metric, organ) in enumerate(wide.columns):
            number = int(numbers.iloc[place])
            if number >= MIN_CASES:
                bounds[metric][:, cells.index((organ, dataset))] = percentile_interval(
                    means[:, place], number
                )
                totals[metric].add(means[:, place])
            elif number:
                totals[metric].lacking = True
        for metric in metrics:
            totals[metric].count(int(wide[metric].notna().any(axis=1).sum()))
    for metric, total in totals.items():
        bounds[metric][:, -1] = total.interval()
    return bounds


@dataclass
class _Total:
    """What is known so far of the mean over the cells, in each resample; the cells of a dataset share resamples."""

    sums: np.ndarray | float = 0.0
    cells: np.ndarray | int = 0
    num_cases: int = 0
    num_datasets: int = 0
    lacking: bool = False

    def add(self, means: np.ndarray) -> None:
        known = np.isfinite(means)
        self.sums, self.cells = self.sums + np.where(known, means, 0), self.cells + known

    def count(self, cases: int) -> None:
        self.num_cases += cases
        self.num_datasets += cases > 0

    def interval(self) -> np.ndarray:
        if self.lacking or not self.num_datasets:
            return np.full(2, np.nan)
        means = np.divide(self.sums, self.cells, out=np.full(len(self.sums), np.nan), where=self.cells > 0)
        return percentile_interval(means, self.num_cases, self.num_datasets)


def _shared_cases(networks: Iterable[pd.DataFrame]) -> pd.MultiIndex:
    """Organ, dataset and case of all rows that every network with that organ of that dataset has."""
    columns = ["organ", "dataset", "case"]
    rows = pd.concat([scores[columns].drop_duplicates() for scores in networks])
    cells = pd.concat([scores[columns[:2]].drop_duplicates() for scores in networks]).value_counts()
    counts = rows.value_counts()
    return counts.index[[count == cells[key[:2]] for key, count in counts.items()]]
