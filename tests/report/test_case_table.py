import math

import numpy as np
import pandas as pd

from partialseg.report.case_table import case_rows
from partialseg.report.cases import went_wrong

NAN = math.nan


def scores(*rows):
    return pd.DataFrame(rows, columns=["dataset", "case", "organ", "dice", "outcome"])


NETWORKS = {
    "a": scores(
        ("d", "1", "liver", 0.9, "scored"),
        ("d", "1", "left_kidney", 0.0, "missed"),
        ("d", "2", "liver", 0.4, "scored"),
        ("d", "2", "left_kidney", NAN, "both empty"),
    ),
    "b": scores(("d", "1", "liver", NAN, "both empty"), ("e", "1", "liver", 0.0, "hallucinated")),
}


def test_the_worst_case_of_any_network_comes_first_and_one_without_a_number_last():
    rows = case_rows(NETWORKS, ["liver", "left_kidney"])
    assert [(row.network, row.dataset, row.case) for row in rows] == [
        ("b", "e", "1"),
        ("a", "d", "1"),
        ("a", "d", "2"),
        ("b", "d", "1"),
    ]
    assert [row.lowest.text for row in rows] == ["0.000", "0.000", "0.400", "–"]
    assert [row.mean.text for row in rows] == ["0.000", "0.450", "0.400", "–"]


def test_a_cell_says_what_happened_and_is_sorted_by_its_dice():
    missed, half = case_rows({"a": NETWORKS["a"]}, ["liver", "left_kidney", "spleen"])
    assert [cell.text for cell in missed.organs] == ["0.900", "missed", ""]
    assert [cell.text for cell in half.organs] == ["0.400", "–", ""]
    np.testing.assert_array_equal([cell.key for cell in missed.organs], [0.9, 0, np.inf])
    assert [cell.low for cell in missed.organs] == [False, True, False]
    assert half.organs[0].low


def test_what_went_wrong_is_in_words_and_nothing_where_nothing_was_scored():
    of_case = [rows.set_index("organ") for _, rows in NETWORKS["b"].groupby("dataset")]
    assert [went_wrong(rows) for rows in of_case] == ["", "hallucinated: liver"]
    rows = NETWORKS["a"][:2].set_index("organ")
    assert went_wrong(rows) == "missed: left kidney; lowest Dice: liver 0.900"
