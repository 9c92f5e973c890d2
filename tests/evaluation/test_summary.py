import numpy as np
import pandas as pd
import pytest

from partialseg.evaluation import compare, organ_table
from partialseg.evaluation.rendering import layout, markdown


def row_of(table, organ, dataset):
    return table[(table["organ"] == organ) & (table["dataset"] == dataset)].iloc[0]


def test_rows_are_organ_by_dataset_in_the_order_of_the_paper_and_all_comes_last(scores):
    table = organ_table(scores)
    assert list(zip(table["organ"], table["dataset"], strict=True)) == [
        ("liver", "btcv"),
        ("liver", "msd"),
        ("spleen", "btcv"),
        ("all", ""),
    ]


def test_a_missed_organ_lowers_the_mean_dice_and_is_counted(scores):
    row = row_of(organ_table(scores), "liver", "btcv")
    assert row["dice_mean"] == pytest.approx(0.4)
    assert row["dice_std"] == pytest.approx(np.std([0.8, 0], ddof=1))
    assert (row["n"], row["missed"], row["both_empty"]) == (2, 1, 1)


def test_distances_are_the_mean_of_the_cases_that_have_one_and_say_so(scores):
    table = organ_table(scores)
    row = row_of(table, "liver", "btcv")
    assert (row["n_hd"], row["hd_mm_mean"], row["hd95_mm_mean"]) == (1, 12, 6)
    assert "6.0 (1 of 2)" in markdown(table)


def test_all_is_the_mean_over_cells_not_over_cases(scores):
    row = row_of(organ_table(scores), "all", "")
    assert row["dice_mean"] == pytest.approx((0.4 + 0.6 + 0.9) / 3)
    assert row["hd95_mm_mean"] == pytest.approx((6 + 10 + 4) / 3)
    assert (row["n"], row["missed"]) == (4, 1)


def test_no_scores_make_an_empty_table(scores):
    table = organ_table(scores.iloc[:0])
    assert len(table) == 0
    assert "dice_mean" in table
    assert markdown(table).startswith("| organ ∈ dataset | n | Dice |")


def test_mixed_definitions_of_hd95_are_refused(scores):
    with pytest.raises(ValueError, match="mix hd95_definition directed_max, pooled"):
        organ_table(pd.concat([scores, scores.assign(hd95_definition="pooled")]))


def test_networks_are_compared_on_the_cases_that_all_of_them_have(make_scores):
    one = make_scores(("btcv", "a", "liver", 0.8, 3.0))
    two = make_scores(("btcv", "a", "liver", 0.6, 3.0), ("btcv", "b", "liver", 0.0, None))
    assert row_of(compare({"one": one, "two": two}), "liver", "btcv")["two: dice_mean"] == pytest.approx(0.6)


def test_a_network_without_an_organ_has_an_empty_cell(scores):
    liver, both = scores[scores["organ"] == "liver"], scores
    table = compare({"liver network": liver, "F ∪ P": both})
    assert np.isnan(row_of(table, "spleen", "btcv")["liver network: dice_mean"])
    row = layout(table).rows[2]
    assert [cell.text for cell in row[:4]] == ["spleen ∈ btcv", "– / 1", "–", "0.900"]


def test_networks_stand_side_by_side(scores):
    worse = scores.assign(dice=scores["dice"] - 0.1)
    liver = row_of(compare({"F alone": worse, "F ∪ P": scores}), "liver", "msd")
    assert liver["F alone: dice_mean"] == pytest.approx(0.5)
    assert liver["F ∪ P: dice_mean"] == pytest.approx(0.6)
    assert liver["F ∪ P: hd95_mm_mean"] == 10
