import numpy as np
import pandas as pd
import pytest

from partialseg.evaluation import compare, organ_table
from partialseg.evaluation.rendering import layout, markdown
from partialseg.evaluation.summary import worst_cases


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
    assert markdown(table).startswith("| organ ∈ dataset | n | missed | hallucinated | both empty | Dice |")


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


def many(make_scores, dataset="btcv", count=8, **settings):
    """Two organs in several cases; the liver is missed in the first."""
    dice = np.linspace(0.6, 0.95, count)
    rows = [
        (dataset, f"{dataset}{i}", "liver", dice[i] if i else 0.0, 3.0 + i if i else None)
        for i in range(count)
    ]
    rows += [(dataset, f"{dataset}{i}", "spleen", dice[::-1][i], 2.0) for i in range(count)]
    return make_scores(*rows, **settings)


def test_medians_and_intervals_stand_beside_the_means(make_scores):
    table = organ_table(many(make_scores))
    liver = row_of(table, "liver", "btcv")
    assert liver["dice_median"] == pytest.approx(np.median([0, *np.linspace(0.6, 0.95, 8)[1:]]))
    assert liver["dice_low"] < liver["dice_mean"] < liver["dice_high"]
    assert (liver["n_hd"], liver["hd95_mm_median"]) == (7, 7)
    assert liver["hd95_mm_low"] < liver["hd95_mm_mean"] < liver["hd95_mm_high"]
    spleen = row_of(table, "spleen", "btcv")
    assert (spleen["hd95_mm_low"], spleen["hd95_mm_high"]) == (2, 2)
    pd.testing.assert_frame_equal(table, organ_table(many(make_scores)))


def test_the_interval_of_all_draws_cases_with_all_their_organs(make_scores):
    # Spleen and liver go opposite ways, so that their mean hardly varies from case to case.
    scores = many(make_scores, count=9)
    scores = scores[scores["case"] != "btcv0"]
    table = organ_table(scores)
    width = table["dice_high"] - table["dice_low"]
    assert table["organ"].tolist() == ["liver", "spleen", "all"]
    assert width.iloc[2] < 0.05 < width.iloc[0]


def test_with_few_cases_in_one_row_the_mean_of_all_has_no_interval(make_scores):
    few = make_scores(("msd", "a", "liver", 0.9, 4.0))
    table = organ_table(pd.concat([many(make_scores), few]))
    assert np.isfinite(row_of(table, "liver", "btcv")["dice_low"])
    assert np.isnan(row_of(table, "liver", "msd")["dice_low"])
    assert np.isnan(row_of(table, "all", "")["dice_low"])
    assert np.isfinite(row_of(organ_table(many(make_scores)), "all", "")["dice_low"])


def test_organs_may_have_tolerances_of_their_own_but_one_each(scores):
    own = scores.assign(nsd_tolerance_mm=np.where(scores["organ"] == "liver", 5.0, 1.0))
    table = organ_table(own)
    assert table["nsd_tolerance_mm"].tolist()[:3] == [5, 5, 1]
    assert np.isnan(table["nsd_tolerance_mm"].iloc[3])
    assert "NSD: at 5 mm (liver), 1 mm (spleen)." in markdown(table)
    with pytest.raises(ValueError, match="mix nsd_tolerance_mm 2, 3 for liver"):
        organ_table(scores.assign(nsd_tolerance_mm=[2, 2, 2, 2, 3.0]))


def test_volume_errors_are_of_the_cases_in_which_the_organ_is(make_scores):
    scores = make_scores(("btcv", "a", "liver", 0.9, 4.0), ("btcv", "b", "liver", 0.8, 4.0))
    scores = scores.assign(volume_error=[0.2, np.nan], volume_error_ml=[30.0, 10.0])
    row = row_of(organ_table(scores), "liver", "btcv")
    assert (row["n"], row["n_volume"], row["volume_error_mean"], row["volume_error_ml_mean"]) == (
        2,
        1,
        0.2,
        20,
    )
    assert "20.0 (1 of 2)" in markdown(organ_table(scores))


def test_a_case_that_is_there_twice_is_refused(scores):
    with pytest.raises(ValueError, match="msd, d, liver is scored twice"):
        organ_table(pd.concat([scores, scores.iloc[4:]]))


def test_scores_with_voxels_do_not_mix_with_scores_without(scores):
    with_voxels = scores.assign(hd_voxels=1.0, hd95_voxels=1.0, assd_voxels=1.0)
    headers = layout(organ_table(with_voxels)).headers
    assert {"HD95 mm", "HD95 voxels", "ASSD voxels"} <= set(headers)
    assert "HD95 mm" not in layout(organ_table(with_voxels), brief=True).headers
    mixed = pd.concat([with_voxels.iloc[:3], scores.iloc[3:]])
    with pytest.raises(ValueError, match="evaluate all with the same unit"):
        organ_table(mixed)


def test_the_worst_cases_come_first_and_those_without_a_dice_not_at_all(scores):
    assert worst_cases(scores)["case"].tolist() == ["b", "d", "a", "a"]
    assert len(worst_cases(scores, 2)) == 2
    assert "| btcv | b | liver | 0.000 | – | missed |" in markdown(organ_table(scores), worst_cases(scores))
