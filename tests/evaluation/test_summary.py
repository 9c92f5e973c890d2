import numpy as np
import pandas as pd
import pytest

from partialseg.evaluation import compare, organ_table, render_table
from partialseg.evaluation.summary import layout, markdown


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


SCORES = frame(
    ("btcv", "a", "spleen", 0.9, 4.0),
    ("btcv", "a", "liver", 0.8, 6.0),
    ("btcv", "b", "liver", 0.0, None),
    ("btcv", "c", "liver", None, None),
    ("msd", "d", "liver", 0.6, 10.0),
)


def row_of(table, organ, dataset):
    return table[(table["organ"] == organ) & (table["dataset"] == dataset)].iloc[0]


def test_rows_are_organ_by_dataset_in_the_order_of_the_paper_and_all_comes_last():
    table = organ_table(SCORES)
    assert list(zip(table["organ"], table["dataset"], strict=True)) == [
        ("liver", "btcv"),
        ("liver", "msd"),
        ("spleen", "btcv"),
        ("all", ""),
    ]


def test_a_missed_organ_lowers_the_mean_dice_and_is_counted():
    row = row_of(organ_table(SCORES), "liver", "btcv")
    assert row["dice_mean"] == pytest.approx(0.4)
    assert row["dice_std"] == pytest.approx(np.std([0.8, 0], ddof=1))
    assert (row["n"], row["missed"], row["both_empty"]) == (2, 1, 1)


def test_distances_are_the_mean_of_the_cases_that_have_one_and_say_so():
    table = organ_table(SCORES)
    row = row_of(table, "liver", "btcv")
    assert (row["n_hd"], row["hd_mm_mean"], row["hd95_mm_mean"]) == (1, 12, 6)
    assert "6.0 (1 of 2)" in markdown(table)


def test_all_is_the_mean_over_cells_not_over_cases():
    row = row_of(organ_table(SCORES), "all", "")
    assert row["dice_mean"] == pytest.approx((0.4 + 0.6 + 0.9) / 3)
    assert row["hd95_mm_mean"] == pytest.approx((6 + 10 + 4) / 3)
    assert (row["n"], row["missed"]) == (4, 1)


def test_no_scores_make_an_empty_table():
    table = organ_table(SCORES.iloc[:0])
    assert len(table) == 0
    assert "dice_mean" in table
    assert markdown(table).startswith("| organ ∈ dataset | n | Dice |")


def test_mixed_definitions_of_hd95_are_refused():
    with pytest.raises(ValueError, match="mix hd95_definition directed_max, pooled"):
        organ_table(pd.concat([SCORES, SCORES.assign(hd95_definition="pooled")]))


def test_the_table_names_its_definition_of_hd95():
    assert "larger of the two directed 95th percentiles" in markdown(organ_table(SCORES))


def test_networks_stand_side_by_side_and_the_better_is_marked():
    worse = SCORES.assign(dice=SCORES["dice"] - 0.1, hd95_mm=SCORES["hd95_mm"] + 1)
    table = compare({"F alone": worse, "F ∪ P": SCORES})
    liver = row_of(table, "liver", "msd")
    assert liver["F alone: dice_mean"] == pytest.approx(0.5)
    assert liver["F ∪ P: dice_mean"] == pytest.approx(0.6)
    assert liver["F ∪ P: hd95_mm_mean"] == 10
    arranged = layout(table)
    marked = {arranged.headers[i] for row in arranged.rows for i, cell in enumerate(row) if cell.best}
    assert marked == {"F ∪ P: Dice", "F ∪ P: HD95 mm"}
    assert arranged.rows[-1][0].text == "all"


def test_hd95_of_unlike_cases_is_not_called_better():
    misses = frame(("btcv", "a", "liver", 0.8, 3.0), ("btcv", "b", "liver", 0.0, None))
    finds = frame(("btcv", "a", "liver", 0.8, 3.0), ("btcv", "b", "liver", 0.5, 9.0))
    arranged = layout(compare({"misses": misses, "finds": finds}))
    best = [arranged.headers[i] for i, cell in enumerate(arranged.rows[0]) if cell.best]
    assert best == ["finds: Dice"]
    assert arranged.rows[0][arranged.headers.index("missed")].text == "1 / 0"


def test_networks_are_compared_on_the_cases_that_all_of_them_have():
    one = frame(("btcv", "a", "liver", 0.8, 3.0))
    two = frame(("btcv", "a", "liver", 0.6, 3.0), ("btcv", "b", "liver", 0.0, None))
    assert row_of(compare({"one": one, "two": two}), "liver", "btcv")["two: dice_mean"] == pytest.approx(0.6)


def test_a_network_without_an_organ_has_an_empty_cell():
    liver, both = SCORES[SCORES["organ"] == "liver"], SCORES
    table = compare({"liver network": liver, "F ∪ P": both})
    assert np.isnan(row_of(table, "spleen", "btcv")["liver network: dice_mean"])
    row = layout(table).rows[2]
    assert [cell.text for cell in row[:4]] == ["spleen ∈ btcv", "– / 1", "–", "0.900"]


def test_the_terminal_table_holds_every_row():
    rendered = render_table(compare({"F [alone]": SCORES, "F ∪ P": SCORES}), title="test cases")
    assert rendered.row_count == 4
    assert [str(column.header) for column in rendered.columns][:3] == [
        "organ ∈ dataset",
        "n",
        "F [alone]: Dice",
    ]
