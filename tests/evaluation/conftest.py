"""Scores made by hand."""

import numpy as np
import pandas as pd
import pytest


def frame(*rows, **settings):
    """Rows of dataset, case, organ, Dice, HD95; Dice 0 is missed, None both empty."""
    entries = []
    for dataset, case, organ, dice, hd95 in rows:
        outcome = "both empty" if dice is None else "scored" if dice else "missed"
        dice, hd95 = (np.nan if number is None else number for number in (dice, hd95))
        numbers = {"dice": dice, "hd_mm": 2 * hd95, "hd95_mm": hd95, "assd_mm": hd95 / 4, "nsd": dice}
        entries.append({"dataset": dataset, "case": case, "organ": organ, **numbers, "outcome": outcome})
    return pd.DataFrame(entries).assign(
        **{"hd95_definition": "directed_max", "nsd_tolerance_mm": 2.0, **settings}
    )


@pytest.fixture
def make_scores():
    return frame


@pytest.fixture
def scores():
    return frame(
        ("btcv", "a", "spleen", 0.9, 4.0),
        ("btcv", "a", "liver", 0.8, 6.0),
        ("btcv", "b", "liver", 0.0, None),
        ("btcv", "c", "liver", None, None),
        ("msd", "d", "liver", 0.6, 10.0),
    )
