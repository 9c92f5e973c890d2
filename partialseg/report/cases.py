"""Which cases a report shows: of each dataset a typical one and the worst, and the lowest scores of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from partialseg.evaluation.metrics import HALLUCINATED, MISSED
from partialseg.evaluation.summary import worst_cases


@dataclass(frozen=True)
class ShownCase:
    """A case to show.

    Attributes:
        dataset, case: Its names.
        why: Why it was chosen, in words.
        rows: For each network that has scores of it, these scores, indexed by organ.
    """

    dataset: str
    case: str
    why: str
    rows: dict[str, pd.DataFrame]


#: So many of the lowest scores are listed, and their cases shown.
LOWEST_SCORES = 10


def choose_cases(
    networks: Mapping[str, pd.DataFrame], per_dataset: int = 2, worst: int = LOWEST_SCORES
) -> list[ShownCase]:
    """Choose what to show: of each dataset the typical case and the worst ones, and the worst of all.

    Args:
        networks: For each network its scores, as `partialseg.evaluation.evaluate` makes them.
        per_dataset: At most so many cases of each dataset, ranked by the last network's Dice.
        worst: The cases of so many of the lowest scores, see `worst_scores`, wherever they are from.

    Returns:
        The cases, each once: dataset by dataset, then those that are among the worst of all alone.
    """
    chosen: dict[tuple[str, str], str] = {}
    datasets = dict.fromkeys(dataset for scores in networks.values() for dataset in scores["dataset"])
    for dataset in datasets:
        chosen.update({(dataset, case): why for case, why in _ranked(networks, dataset)[:per_dataset]})
    for row in worst_scores(networks, worst).itertuples():
        why = f"Among the lowest of all: {organ_words(row.organ)} {outcome_words(row)} by {row.network}"
        chosen.setdefault((row.dataset, row.case), why)
    return [_shown(networks, dataset, case, why) for (dataset, case), why in chosen.items()]


def _ranked(networks: Mapping[str, pd.DataFrame], dataset: str) -> list[tuple[str, str]]:
    """The cases of a dataset: the typical one, then from the worst on, each with why it is where it is."""
    of = {name: scores[scores["dataset"] == dataset] for name, scores in networks.items()}
    last = [name for name, scores in of.items() if len(scores)][-1]
    # A case in which nothing is annotated and nothing was found has no Dice; it comes last.
    ranked = of[last].groupby("case")["dice"].mean().sort_values(kind="stable").index.tolist()
    typical = ranked[len(ranked) // 2]
    worst = [case for case in ranked if case != typical]
    named = [(typical, f"Typical: the median Dice of {last}" if worst else "The only case")]
    return named + [
        (case, f"The lowest Dice of {last}" if not i else f"Low Dice of {last}")
        for i, case in enumerate(worst)
    ]


def _shown(networks: Mapping[str, pd.DataFrame], dataset: str, case: str, why: str) -> ShownCase:
    rows = {
        name: scores[(scores["dataset"] == dataset) & (scores["case"] == case)].set_index("organ")
        for name, scores in networks.items()
    }
    return ShownCase(dataset, case, why, {name: found for name, found in rows.items() if len(found)})


def went_wrong(rows: pd.DataFrame) -> str:
    """What a network did wrong in a case, in words: what it missed, what it made up, and its lowest Dice.

    Args:
        rows: Its scores of the case, indexed by organ.

    Example:
        >>> went_wrong(pd.DataFrame({"dice": [0.0, 0.61], "outcome": ["missed", "scored"]}, ["spleen", "liver"]))
        'missed: spleen; lowest Dice: liver 0.610'
    """
    parts = [
        f"{outcome}: {', '.join(map(organ_words, rows.index[rows['outcome'] == outcome]))}"
        for outcome in (MISSED, HALLUCINATED)
        if (rows["outcome"] == outcome).any()
    ]
    dice = rows.loc[rows["outcome"] == "scored", "dice"]
    if len(dice):
        parts.append(f"lowest Dice: {organ_words(dice.idxmin())} {dice.min():.3f}")
    return "; ".join(parts)


def organ_words(organ: str) -> str:
    """An organ's name without underscores."""
    return organ.replace("_", " ")


def outcome_words(row: Any) -> str:
    """A score in words: its Dice, or that the organ was missed or made up."""
    return row.outcome if row.outcome in (MISSED, HALLUCINATED) else f"with Dice {row.dice:.3f}"


def worst_scores(networks: Mapping[str, pd.DataFrame], count: int = LOWEST_SCORES) -> pd.DataFrame:
    """The lowest Dice over all networks, cases and organs, lowest first.

    Args:
        networks: For each network its scores.
        count: At most so many rows.

    Returns:
        Rows with the columns `network`, `dataset`, `case`, `organ`, `dice`, `hd95_mm`, `outcome`.
    """
    frames = [scores.assign(network=name) for name, scores in networks.items()]
    columns = ["network", "dataset", "case", "organ", "dice", "hd95_mm", "outcome"]
    return worst_cases(pd.concat(frames, ignore_index=True), count)[columns]
