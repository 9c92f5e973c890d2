"""The table of cases: a row for each case and network, the worst first, with each organ's Dice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from partialseg.evaluation.metrics import BOTH_EMPTY, SCORED
from partialseg.report.cases import organ_words, went_wrong

#: A Dice below this is marked.
LOW_DICE = 0.5


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        text: What it says.
        key: By what it is sorted; a cell without a number comes last.
        low: Whether it is to be marked.
    """

    text: str
    key: float
    low: bool = False


@dataclass(frozen=True)
class CaseRow:
    """A row of the table.

    Attributes:
        network, dataset, case: Which case of which network.
        mean, lowest: Dice over the organs.
        organs: A cell for each organ of the table.
        wrong: What went wrong, in words.
    """

    network: str
    dataset: str
    case: str
    mean: Cell
    lowest: Cell
    organs: list[Cell]
    wrong: str


def case_rows(networks: Mapping[str, pd.DataFrame], organs: Sequence[str]) -> list[CaseRow]:
    """All cases of all networks, from the lowest Dice of an organ on.

    Args:
        networks: For each network its scores, as `partialseg.evaluation.evaluate` makes them.
        organs: The columns.

    Returns:
        The rows.
    """
    rows = [
        _row(name, str(dataset), str(case), found.set_index("organ"), organs)
        for name, scores in networks.items()
        for (dataset, case), found in scores.groupby(["dataset", "case"], sort=False)
    ]
    return sorted(rows, key=lambda row: (row.lowest.key, row.mean.key))


def _row(network: str, dataset: str, case: str, rows: pd.DataFrame, organs: Sequence[str]) -> CaseRow:
    return CaseRow(
        *(network, dataset, case),
        mean=_number(rows["dice"].mean()),
        lowest=_number(rows["dice"].min()),
        organs=[_organ_cell(rows, organ) for organ in organs],
        wrong=went_wrong(rows),
    )


def _organ_cell(rows: pd.DataFrame, organ: str) -> Cell:
    if organ not in rows.index:
        return Cell("", math.inf)
    outcome = rows.loc[organ, "outcome"]
    if outcome == SCORED:
        return _number(rows.loc[organ, "dice"])
    return Cell("–", math.inf) if outcome == BOTH_EMPTY else Cell(organ_words(outcome), 0.0, low=True)


def _number(dice: float) -> Cell:
    if math.isnan(dice):
        return Cell("–", math.inf)
    return Cell(f"{dice:.3f}", dice, low=dice < LOW_DICE)
