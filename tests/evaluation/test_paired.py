import numpy as np
import pandas as pd
import pytest

from partialseg.evaluation.paired import largest_differences, pair_scores
from partialseg.evaluation.statistics import holm, median_interval, signed_rank


def run_of(make_scores, dice, dataset="btcv", organ="liver", **settings):
    rows = [
        (dataset, f"{dataset}_{i}", organ, value, 10 * (1 - value) if value else None)
        for i, value in enumerate(dice)
    ]
    return make_scores(*rows, **settings)


def row_of(paired, metric="dice", organ="liver", dataset="btcv"):
    tests = paired.tests
    found = tests[(tests["metric"] == metric) & (tests["organ"] == organ) & (tests["dataset"] == dataset)]
    return found.iloc[0]


FIRST = np.array([0.80, 0.82, 0.78, 0.90, 0.85, 0.70, 0.88, 0.81])
GAINS = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08])


def test_a_run_does_not_differ_from_itself(scores):
    paired = pair_scores(scores, scores)
    assert not paired.notes
    assert (paired.tests["mean_difference"] == 0).all()
    assert (paired.tests["b_better"] == 0).all()
    assert not paired.outcomes[["missed_a", "missed_b"]].to_numpy().any()


def test_equal_runs_of_enough_cases_have_p_1(make_scores):
    run = run_of(make_scores, FIRST)
    row = row_of(pair_scores(run, run))
    assert (row["p"], row["p_holm"], row["equal"], row["verdict"]) == (1, 1, 8, "no difference shown")
    assert (row["median_low"], row["median_high"]) == (0, 0)


def test_a_run_that_is_better_in_every_case_is_better(make_scores):
    paired = pair_scores(run_of(make_scores, FIRST), run_of(make_scores, FIRST + GAINS))
    row = row_of(paired)
    assert row["p"] == row["p_holm"] == 2 / 2**8
    assert (row["n"], row["b_better"], row["verdict"]) == (8, 8, "B better")
    assert row["median_difference"] == pytest.approx(0.045)
    assert (row["median_low"], row["median_high"]) == pytest.approx(median_interval(GAINS))
    assert row["mean_low"] < 0.045 < row["mean_high"]
    assert row_of(paired, "hd95_mm")["verdict"] == "B better"  # a smaller distance
    swapped = row_of(pair_scores(run_of(make_scores, FIRST + GAINS), run_of(make_scores, FIRST)))
    assert (swapped["p"], swapped["verdict"]) == (row["p"], "A better")
    assert swapped["median_difference"] == pytest.approx(-0.045)


def test_scores_that_rounding_errors_alone_set_apart_are_equal(make_scores):
    paired = pair_scores(run_of(make_scores, [0.1 + 0.2] * 8), run_of(make_scores, [0.3] * 8))
    row = row_of(paired)
    assert (row["equal"], row["a_better"], row["p"]) == (8, 0, 1)
    assert not len(largest_differences(paired.pairs))


def test_few_pairs_are_shown_and_not_tested(make_scores):
    row = row_of(pair_scores(run_of(make_scores, FIRST[:5]), run_of(make_scores, (FIRST + GAINS)[:5])))
    assert (row["n"], row["b_better"], row["verdict"]) == (5, 5, "too few pairs")
    assert np.isnan(row[["p", "p_holm", "median_low", "mean_low"]].astype(float)).all()


def test_holm_counts_the_tests_of_each_metric(make_scores):
    first = pd.concat([run_of(make_scores, FIRST), run_of(make_scores, FIRST, "msd", "spleen")])
    mixed = FIRST + GAINS * np.tile([1, -1], 4)
    second = pd.concat([run_of(make_scores, FIRST + GAINS), run_of(make_scores, mixed, "msd", "spleen")])
    tests = pair_scores(first, second).tests
    for _, rows in tests.groupby("metric"):
        assert list(zip(rows["organ"], rows["dataset"], strict=True)) == [
            ("liver", "btcv"),
            ("spleen", "msd"),
            ("all", "all"),
        ]
        assert rows["p_holm"].tolist() == pytest.approx([*holm(rows["p"][:2]), rows["p"].iloc[2]])
        assert rows["pairs_needed"].tolist() == [7, 7, 6]


def test_where_the_correction_leaves_no_chance_there_are_too_few_pairs(make_scores):
    organs = ["liver", "spleen", "pancreas"]
    first = pd.concat([run_of(make_scores, FIRST[:6], organ=organ) for organ in organs])
    second = pd.concat([run_of(make_scores, (FIRST + GAINS)[:6], organ=organ) for organ in organs])
    tests = pair_scores(first, second).tests
    dice = tests[tests["metric"] == "dice"]
    assert dice["p"].tolist() == [2 / 2**6] * 4
    assert dice["verdict"].tolist() == ["too few pairs"] * 3 + ["B better"]
    assert dice["pairs_needed"].tolist() == [7, 7, 7, 6]


def test_an_organ_of_several_datasets_is_tested_over_all_of_them_too(make_scores):
    first = pd.concat([run_of(make_scores, FIRST), run_of(make_scores, FIRST[:4], "msd")])
    second = pd.concat([run_of(make_scores, FIRST + GAINS), run_of(make_scores, FIRST[:4] - 0.01, "msd")])
    paired = pair_scores(first, second)
    row = row_of(paired, dataset="all")
    differences = np.concatenate([(FIRST + GAINS) - FIRST, (FIRST[:4] - 0.01) - FIRST[:4]])
    assert (row["n"], row["p"]) == (12, signed_rank(differences).p)
    assert paired.tests["organ"].unique().tolist() == ["liver"]  # the mean over one organ is that organ


def test_over_all_organs_a_case_counts_once(make_scores):
    first = pd.concat([run_of(make_scores, FIRST), run_of(make_scores, FIRST, organ="spleen")])
    second = pd.concat([run_of(make_scores, FIRST + GAINS), run_of(make_scores, FIRST, organ="spleen")])
    row = row_of(pair_scores(first, second), organ="all", dataset="all")
    assert row["n"] == 8
    assert row["mean_difference"] == pytest.approx(GAINS.mean() / 2)


def test_a_missed_organ_is_dice_0_and_no_distance_and_is_counted(make_scores):
    second = (FIRST + GAINS) * ([0, 1] + [1] * 6)
    paired = pair_scores(run_of(make_scores, FIRST), run_of(make_scores, second))
    dice, distance = (row_of(paired, metric) for metric in ("dice", "hd95_mm"))
    assert (dice["n"], dice["left_out"], dice["a_better"]) == (8, 0, 1)
    assert dice["mean_b"] == pytest.approx(second.mean())
    assert (distance["n"], distance["left_out"]) == (7, 1)
    counts = paired.outcomes.iloc[0]
    assert counts[["cases", "there", "missed_a", "missed_b", "missed_both"]].tolist() == [8, 8, 0, 1, 0]


def test_an_organ_that_one_run_alone_hallucinated_is_counted_and_shown(make_scores):
    first, second = (run_of(make_scores, [*FIRST, None]) for _ in range(2))
    second.loc[8, ["dice", "nsd", "outcome"]] = [0.0, 0.0, "hallucinated"]
    paired = pair_scores(first, second)
    assert row_of(paired)["left_out"] == 1  # the other run has no Dice there
    assert paired.outcomes.iloc[0][["hallucinated_a", "hallucinated_b"]].tolist() == [0, 1]
    worst = largest_differences(paired.pairs)
    assert (worst["case"].tolist(), worst["difference"].tolist()) == (["btcv_8"], [-1])


def test_what_one_run_alone_has_is_named(make_scores):
    both = run_of(make_scores, FIRST)
    more = pd.concat(
        [both, run_of(make_scores, FIRST[:2], "msd"), run_of(make_scores, FIRST[:1], organ="spleen")]
    )
    assert pair_scores(both, more).notes == [
        "msd: cases in B alone, not compared: msd_0, msd_1",
        "btcv: organs of cases in B alone, not compared: btcv_0 spleen",
    ]


def test_what_cannot_be_compared_is_refused(make_scores):
    run = run_of(make_scores, FIRST)
    for other, said in (
        (run_of(make_scores, FIRST, hd95_definition="pooled"), "mix hd95_definition directed_max, pooled"),
        (run_of(make_scores, FIRST, nsd_tolerance_mm=1.0), "mix nsd_tolerance_mm 2, 1 for liver"),
        (run_of(make_scores, FIRST, "msd"), "no case and organ is scored in both runs"),
        (run_of(make_scores, [None, *FIRST[1:]]), "btcv_0, liver is scored in A and both empty in B"),
        (pd.concat([run, run]), "scored twice"),
    ):
        with pytest.raises(ValueError, match=said):
            pair_scores(run, other)
