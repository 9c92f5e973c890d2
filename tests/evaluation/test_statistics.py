import numpy as np
import pytest
from scipy import stats

from partialseg.evaluation.statistics import (
    MIN_CASES,
    RESAMPLES,
    holm,
    median_interval,
    percentile_interval,
    resampled_means,
    signed_rank,
)


def mean_interval(values):
    return percentile_interval(resampled_means(np.array(values)[:, None]), len(values))[:, 0]


def test_holm_is_what_a_hand_computes():
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1, and never less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]).tolist() == [1, 1]


def test_holm_counts_no_test_that_was_not_made():
    assert holm([np.nan, 0.02, np.nan])[1] == 0.02
    assert np.isnan(holm([np.nan, 0.02, np.nan])[[0, 2]]).all()
    assert len(holm([])) == 0


@pytest.mark.parametrize("number", [6, 20, 60])
def test_without_ties_p_is_scipys(number):
    differences = np.random.default_rng(number).normal(0.3, 1, number)
    result = signed_rank(differences)
    assert result.p == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert result.method == ("exact" if number <= 50 else "normal")


def test_with_ties_and_zeros_p_counts_all_changes_of_sign():
    differences = np.array(
        [0, 1, 1, -1, 2, 2, 3, 5.0]
    )  # scipy.stats.wilcoxon with PermutationMethod has the same p
    ranks = stats.rankdata(np.abs(differences)) * (differences != 0)  # Pratt: zeros are ranked, then left out
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(ranks))).reshape(len(ranks), -1)
    sums = np.abs(ranks @ signs)
    expected = np.mean(sums >= abs(ranks @ np.sign(differences)) - 1e-9)
    result = signed_rank(differences)
    assert result.p == pytest.approx(expected)
    assert (result.method, result.rank_sum) == ("exact", ranks @ np.sign(differences))


def test_with_ties_the_exact_p_is_near_the_normal_approximation():
    differences = np.random.default_rng(3).normal(0.4, 1, 50).round(1)
    assert (differences == 0).any()
    normal = stats.wilcoxon(differences, zero_method="pratt", method="asymptotic").pvalue
    assert signed_rank(differences).p == pytest.approx(normal, abs=2e-3)


def test_differences_that_rounding_errors_alone_set_apart_share_a_rank():
    high, low = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.1]), np.array([0.8, 0.7, 0.6, 0.5, 0.4, 0.6, 0.3])
    assert len(set(high - low)) > 2
    assert signed_rank(high - low) == signed_rank([1, 1, 1, 1, 1, -2, -2])
    assert signed_rank([0.1 + 0.2 - 0.3] * 6).p == 1


def test_few_pairs_are_not_tested_and_equal_ones_do_not_differ():
    assert np.isnan(signed_rank([1.0] * (MIN_CASES - 1)).p)
    assert signed_rank(np.zeros(40)).p == 1


def test_the_order_of_the_runs_does_not_matter():
    differences = np.random.default_rng(0).normal(0.5, 1, 12).round(1)
    assert signed_rank(differences).p == pytest.approx(signed_rank(-differences).p)


def test_intervals_are_the_same_each_time_and_hold_the_mean():
    values = np.random.default_rng(0).beta(18, 2, 20)
    low, high = mean_interval(values)
    assert low < values.mean() < high
    assert mean_interval(values).tolist() == [low, high]
    assert median_interval(values) == median_interval(values)


@pytest.mark.parametrize("number", [20, 21])
def test_the_interval_of_the_median_is_that_of_medians_of_resamples(number):
    values = np.random.default_rng(1).permutation(number) ** 2.0
    rows = np.random.default_rng(0).integers(number, size=(RESAMPLES, number))
    medians = np.median(np.sort(values)[rows], axis=1)
    assert median_interval(values) == pytest.approx(percentile_interval(medians, number).tolist())


def test_means_of_resamples_are_those_of_the_drawn_rows():
    values = np.random.default_rng(1).random((20, 2))
    rows = np.random.default_rng(0).integers(20, size=(RESAMPLES, 20))
    assert np.allclose(resampled_means(values), values[rows].mean(axis=1))


def test_below_6_cases_there_is_no_interval():
    assert np.isnan(mean_interval(np.arange(MIN_CASES - 1.0))).all()
    assert np.isfinite(mean_interval(np.arange(MIN_CASES + 0.0))).all()


def test_intervals_of_few_cases_cover_the_true_mean_about_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(0.9, 0.03, (200, 10))
    replicates = resampled_means(draws.T)  # the same resamples for all 200 experiments
    low, high = percentile_interval(replicates, 10)
    assert 0.90 < np.mean((low <= 0.9) & (high >= 0.9)) < 0.99
    plain = np.quantile(replicates, [0.025, 0.975], axis=0)
    assert np.all((low <= plain[0]) & (high >= plain[1]))


def test_a_case_without_a_value_is_left_out_of_the_means():
    means = resampled_means(np.array([[0.5], [0.5], [np.nan]]))
    assert np.nanmin(means) == np.nanmax(means) == 0.5
    assert np.isnan(means).any()  # resamples of the third case alone
    assert percentile_interval(means, MIN_CASES).tolist() == [[0.5], [0.5]]
