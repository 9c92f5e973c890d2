"""Two runs on the same cases: differences case by case, and which of them are more than chance."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from partialseg.errors import first_of
from partialseg.evaluation.metrics import BOTH_EMPTY, HALLUCINATED, MISSED, SCORED
from partialseg.evaluation.statistics import (
    CONFIDENCE,
    DECIMALS,
    MIN_CASES,
    holm,
    median_interval,
    pairs_needed,
    percentile_interval,
    resampled_means,
    signed_rank,
)
from partialseg.evaluation.summary import ALL, check_rows, check_settings, table_cells

#: Metrics that are tested, and whether more is better.
COMPARED_METRICS = {"dice": True, "hd95_mm": False, "nsd": True}
#: The verdict where the correction leaves no chance to find anything.
TOO_FEW = "too few pairs"
_KEY = ["dataset", "case", "organ"]


@dataclass(frozen=True)
class PairedScores:
    """Two runs, A and B, compared case by case.

    Attributes:
        pairs: A row per case and organ that both runs have scores of: `dataset`, `case`, `organ`, `outcome_a`,
            `outcome_b`, and of each metric `<metric>_a`, `<metric>_b`.
        tests: A row per metric and group of pairs, see `paired_tests`.
        outcomes: A row per organ and dataset, see `count_outcomes`.
        hd95_definition: What HD95 is in both runs.
        nsd_tolerance_mm: Tolerance of NSD of each organ in both runs.
        notes: What only one of the runs has, in words.
    """

    pairs: pd.DataFrame
    tests: pd.DataFrame
    outcomes: pd.DataFrame
    hd95_definition: str
    nsd_tolerance_mm: dict[str, float]
    notes: list[str]


def pair_scores(first: pd.DataFrame, second: pd.DataFrame) -> PairedScores:
    """Compare two runs on the cases and organs that both have scores of.

    Args:
        first: Scores of run A, one row per case and organ, as `partialseg.evaluation.evaluate` makes them.
        second: Scores of run B.

    Raises:
        ValueError: If a run has a case twice, if definitions of HD95 or tolerances of NSD differ, if no case is in
            both, or if a case was scored against different truths.
    """
    for scores in (first, second):
        check_rows(scores)
    definition, tolerances = check_settings(pd.concat([first, second], ignore_index=True))
    columns = [*_KEY, "outcome", *COMPARED_METRICS]
    pairs = first[columns].merge(second[columns], on=_KEY, suffixes=("_a", "_b"))
    if not len(pairs):
        raise ValueError("no case and organ is scored in both runs: compare runs on the same datasets")
    _check_same_truth(pairs)
    notes = [*_only_in("A", first, second), *_only_in("B", second, first)]
    return PairedScores(pairs, paired_tests(pairs), count_outcomes(pairs), str(definition), tolerances, notes)


def paired_tests(pairs: pd.DataFrame) -> pd.DataFrame:
    """Test the differences B - A of each metric, organ by organ and dataset by dataset.

    An organ that several datasets have is tested over all of them as well (`dataset` "all"), and so is the mean over
    the organs of each case (`organ` "all"). A missed or hallucinated organ has Dice and NSD 0. A pair counts where both
    runs have a number: two missed organs do, with no difference; a distance needs the organ found in both.

    Args:
        pairs: See `PairedScores`.

    Returns:
        Columns: `metric`, `organ`, `dataset`, `n` (pairs), `left_out` (cases and organs without a number in a run),
        `mean_a`, `mean_b`, `mean_difference` with its 95 % bootstrap interval (`mean_low`, `mean_high`),
        `median_difference` (`median_low`, `median_high`; intervals from 6 pairs on), `b_better`, `a_better`, `equal`
        (numbers of pairs), `p` (Wilcoxon's signed-rank test, two-sided; NaN below 6 pairs), `method` (of p),
        `p_holm` (Holm's correction for all tests of the metric but that of all organs, which stands alone),
        `pairs_needed` (with fewer no test can be below 0.05 after it), and `verdict`: "B better", "A better",
        "no difference shown" or "too few pairs".
    """
    rows = []
    for metric, more_is_better in COMPARED_METRICS.items():
        found = [
            {"metric": metric, "organ": organ, "dataset": dataset, **_test(pairs, organ, dataset, metric)}
            for organ, dataset in _groups(pairs)
        ]
        # Whether a run is better over all organs is the first question, and so not one of many.
        for family in (
            [row for row in found if row["organ"] == ALL],
            [row for row in found if row["organ"] != ALL],
        ):
            _correct(family, more_is_better)
        rows += found
    return pd.DataFrame(rows)


def _correct(family: list[dict[str, Any]], more_is_better: bool) -> None:
    """Correct the tests of a family for their number, and say what they show."""
    corrected = holm([row["p"] for row in family])
    tested = [row["n"] for row in family if np.isfinite(row["p"])]
    for row, p_holm in zip(family, corrected, strict=True):
        row |= {"p_holm": float(p_holm), "pairs_needed": pairs_needed(len(tested))}
        # At best all tests with more pairs come before this one.
        reachable = row["n"] >= pairs_needed(sum(n <= row["n"] for n in tested))
        row["verdict"] = _verdict(row, row.pop("ranks"), more_is_better) if reachable else TOO_FEW


def count_outcomes(pairs: pd.DataFrame) -> pd.DataFrame:
    """Count who missed, and who hallucinated, an organ: these are in no distance, and some in no Dice.

    Args:
        pairs: See `PairedScores`.

    Returns:
        Columns: `organ`, `dataset`, `cases`, `there` (cases that have the organ), `missed_a`, `missed_b`,
        `missed_both` (by A alone, by B alone, by both), and the same of `hallucinated`.
    """
    rows = []
    for organ, dataset in table_cells(pairs):
        group = pairs[(pairs["organ"] == organ) & (pairs["dataset"] == dataset)]
        row = {
            "organ": organ,
            "dataset": dataset,
            "cases": len(group),
            "there": int(_is_there(group, "a").sum()),
        }
        for outcome in (MISSED, HALLUCINATED):
            a, b = group["outcome_a"] == outcome, group["outcome_b"] == outcome
            row |= {f"{outcome}_a": int((a & ~b).sum()), f"{outcome}_b": int((b & ~a).sum())}
            row[f"{outcome}_both"] = int((a & b).sum())
        rows.append(row)
    return pd.DataFrame(rows)


def largest_differences(pairs: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """The cases and organs in which B lost most Dice, then those in which it won most.

    An organ that only one of the runs hallucinated counts as a Dice of 1 for the other.

    Returns:
        At most `count` rows of each kind, with the columns of `pairs` and `difference`.
    """
    dice = {run: pairs[f"dice_{run}"].where(pairs[f"outcome_{run}"] != BOTH_EMPTY, 1.0) for run in "ab"}
    ordered = pairs.assign(difference=(dice["b"] - dice["a"]).round(DECIMALS)).sort_values(
        "difference", kind="stable"
    )
    lost, won = ordered[ordered["difference"] < 0], ordered[ordered["difference"] > 0]
    return pd.concat([lost.head(count), won.tail(count)[::-1]], ignore_index=True)


def named_runs(text: str, names: Sequence[str]) -> str:
    """A verdict or a note with the names of the runs.

    Example:
        >>> named_runs("btcv: cases in A alone, not compared: c8", ("plain", "marginal"))
        'btcv: cases in plain alone, not compared: c8'
        >>> named_runs("B better", ("B", "A"))
        'A better'
    """
    called = dict(zip("AB", names, strict=True))
    # In one go, since a run may be called as the other one is here.
    return re.sub(
        r"\b([AB])(?= better$| alone, not compared:)", lambda found: called[found[1]], text, count=1
    )


def pairs_of(pairs: pd.DataFrame, organ: str, dataset: str, metric: str) -> pd.DataFrame:
    """The pairs with a number in both runs that a row of the tests is about.

    Args:
        pairs: See `PairedScores`.
        organ: Its name; "all" for the mean over the organs of each case, which are no independent pairs.
        dataset: Its name, or "all".
        metric: One of `COMPARED_METRICS`.

    Returns:
        Columns `dataset`, `case`, `<metric>_a` and `<metric>_b`.
    """
    names = [f"{metric}_a", f"{metric}_b"]
    values = pairs[_belongs(pairs, organ, dataset)].dropna(subset=names)
    if organ == ALL:
        return values.groupby(["dataset", "case"], sort=False)[names].mean().reset_index()
    return values[["dataset", "case", *names]].reset_index(drop=True)


def _belongs(pairs: pd.DataFrame, organ: str, dataset: str) -> pd.Series:
    return ((pairs["organ"] == organ) | (organ == ALL)) & ((pairs["dataset"] == dataset) | (dataset == ALL))


def _groups(pairs: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Organ and dataset of what is tested; one that would be another's over again is not."""
    cells = table_cells(pairs)
    for organ in dict.fromkeys(organ for organ, _ in cells):
        datasets = [dataset for other, dataset in cells if other == organ]
        yield from ((organ, dataset) for dataset in datasets)
        if len(datasets) > 1:
            yield organ, ALL
    if len({organ for organ, _ in cells}) > 1:
        yield ALL, ALL


def _test(pairs: pd.DataFrame, organ: str, dataset: str, metric: str) -> dict[str, float]:
    group = pairs[_belongs(pairs, organ, dataset)]
    lacking = group[[f"{metric}_a", f"{metric}_b"]].isna().any(axis=1)
    values = pairs_of(group, organ, dataset, metric)
    a, b = (values[f"{metric}_{run}"].to_numpy(dtype=float) for run in "ab")
    differences = np.round(b - a, DECIMALS)
    signs = np.sign(differences) * (1 if COMPARED_METRICS[metric] else -1)
    result = signed_rank(differences)
    row = {"n": len(values), "left_out": int(lacking.sum())}
    for name, numbers in (("mean_a", a), ("mean_b", b), ("mean_difference", differences)):
        row[name] = float(numbers.mean()) if len(numbers) else np.nan
    row["mean_low"], row["mean_high"] = _mean_interval(differences)
    row["median_difference"] = float(np.median(differences)) if len(differences) else np.nan
    row["median_low"], row["median_high"] = median_interval(differences)
    row |= {"b_better": int((signs > 0).sum()), "a_better": int((signs < 0).sum())}
    row["equal"] = int((signs == 0).sum())
    return row | {"p": result.p, "method": result.method, "ranks": result.rank_sum}


def _mean_interval(differences: np.ndarray) -> tuple[float, float]:
    if len(differences) < MIN_CASES:
        return np.nan, np.nan
    low, high = percentile_interval(resampled_means(differences[:, None])[:, 0], len(differences))
    return float(low), float(high)


def _verdict(row: dict[str, float], ranks: float, more_is_better: bool) -> str:
    if not np.isfinite(row["p"]):
        return TOO_FEW
    if row["p_holm"] >= 1 - CONFIDENCE:
        return "no difference shown"
    return "B better" if (ranks > 0) == more_is_better else "A better"


def _is_there(pairs: pd.DataFrame, run: str) -> pd.Series:
    return pairs[f"outcome_{run}"].isin([SCORED, MISSED])


def _check_same_truth(pairs: pd.DataFrame) -> None:
    differ = pairs[_is_there(pairs, "a") != _is_there(pairs, "b")]
    if len(differ):
        row = differ.iloc[0]
        raise ValueError(
            f"{row['dataset']}, {row['case']}, {row['organ']} is {row['outcome_a']} in A and {row['outcome_b']} in B, "
            "so the truths differ: evaluate both runs against the same label maps"
        )


def _only_in(name: str, scores: pd.DataFrame, other: pd.DataFrame) -> list[str]:
    """A note for each dataset on the cases, and one on the single organs of cases, that only one run has."""
    keys, others = (pd.MultiIndex.from_frame(frame[_KEY]) for frame in (scores, other))
    alone = scores[~keys.isin(others)].reset_index(drop=True)
    cases = set(zip(other["dataset"], other["case"], strict=True))
    notes = []
    for dataset, rows in alone.groupby("dataset", sort=False):
        whole = np.array([(dataset, case) not in cases for case in rows["case"]])
        names = list(dict.fromkeys(rows.loc[whole, "case"]))
        if names:
            notes.append(f"{dataset}: cases in {name} alone, not compared: {first_of(names)}")
        organs = [f"{row['case']} {row['organ']}" for row in rows[~whole].to_dict("records")]
        if organs:
            notes.append(f"{dataset}: organs of cases in {name} alone, not compared: {first_of(organs)}")
    return notes
