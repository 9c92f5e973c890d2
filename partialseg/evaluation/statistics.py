"""What can be said of more cases than were looked at: bootstrap intervals, signed-rank tests, Holm's correction.

NumPy and SciPy alone. Everything random is seeded: the same scores give the same numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Below so many cases there is no interval and no test: with 5 pairs no difference at all could reach p < 0.05.
MIN_CASES = 6
CONFIDENCE = 0.95
RESAMPLES = 9999
SEED = 0
#: Few, so that they stay in the processor's cache.
_DRAWN_AT_A_TIME = 500_000
#: Of so many cases, and fewer, the draws are kept for the next organ: 10 MB.
_MAX_KEPT = 1000
#: Differences are rounded to so many decimals, lest 0.9 - 0.8 and 0.8 - 0.7 be ranked as different.
DECIMALS = 9
#: Up to so many pairs p is exact.
MAX_EXACT = 50


@dataclass(frozen=True)
class SignedRank:
    """Wilcoxon's signed-rank test of paired differences.

    Attributes:
        p: Two-sided; NaN where there are fewer than `MIN_CASES` pairs.
        method: "exact", "normal" (approximation), or "none" where p is NaN.
        rank_sum: Sum of the ranks of the positive differences less that of the negative ones: which way they go.
    """

    p: float
    method: str
    rank_sum: float


def resampled_means(values: np.ndarray) -> np.ndarray:
    """Means of bootstrap resamples of the rows; all columns share the same resamples.

    Args:
        values: One row per case and one column per quantity, shape `(cases, columns)`; NaN where a case lacks it.

    Returns:
        float64, shape `(RESAMPLES, columns)`; NaN where a resample has no case with a value.

    Example:
        >>> resampled_means(np.array([[0.5, 2.0], [0.5, np.nan]])).shape
        (9999, 2)
    """
    values = np.asarray(values, dtype=np.float64)
    known = np.isfinite(values)
    filled = np.where(known, values, 0)
    means = []
    for drawn in _counts(len(values)):
        counts = drawn.astype(np.float64)
        sums, numbers = counts @ filled, counts @ known
        means.append(np.divide(sums, numbers, out=np.full_like(sums, np.nan), where=numbers > 0))
    return np.concatenate(means)


def _resamples(num_cases: int) -> Iterator[np.ndarray]:
    """The cases of each resample, shape `(resamples, num_cases)`, in blocks lest thousands of cases take gigabytes."""
    rng, size = np.random.default_rng(SEED), max(1, _DRAWN_AT_A_TIME // num_cases)
    for start in range(0, RESAMPLES, size):
        yield rng.integers(num_cases, size=(min(size, RESAMPLES - start), num_cases))


def _counts(num_cases: int) -> Sequence[np.ndarray] | Iterator[np.ndarray]:
    """How often each resample has each case, which is all that a mean needs; as `_resamples`, uint8."""
    return _kept_counts(num_cases) if num_cases <= _MAX_KEPT else map(_count, _resamples(num_cases))


@functools.lru_cache(maxsize=8)
def _kept_counts(num_cases: int) -> tuple[np.ndarray, ...]:
    return tuple(map(_count, _resamples(num_cases)))


def _count(rows: np.ndarray) -> np.ndarray:
    places = rows + rows.shape[1] * np.arange(len(rows))[:, None]
    return np.bincount(places.ravel(), minlength=rows.size).reshape(rows.shape).astype(np.uint8)


@functools.lru_cache(maxsize=256)
def _middles(num_cases: int) -> np.ndarray:
    """The two cases in the middle of each resample of sorted cases, `(RESAMPLES, 2)`: their mean is its median."""
    middle = [(num_cases - 1) // 2, num_cases // 2]
    return np.concatenate([np.partition(rows, middle, axis=1)[:, middle] for rows in _resamples(num_cases)])


def percentile_interval(replicates: np.ndarray, num_cases: int, num_strata: int = 1) -> np.ndarray:
    """The interval between percentiles of bootstrap replicates, widened for few cases.

    Plain percentiles make intervals that are too narrow, the more so the fewer the cases. The percentiles are
    those that would make the bootstrap of a mean of normal values as wide as Student's interval (the expanded
    percentile interval of Hesterberg, The American Statistician 69, 2015).

    Args:
        replicates: The statistic of each resample along the first axis; NaN is left out.
        num_cases: Cases that were drawn from.
        num_strata: Groups that they were drawn from separately.

    Returns:
        Lower and upper bound along the first axis; NaN where there are fewer than `MIN_CASES` cases.

    Example:
        >>> percentile_interval(np.arange(1001.0), num_cases=10**6).round(1).tolist()
        [25.0, 975.0]
        >>> percentile_interval(np.arange(1001.0), num_cases=10).round(1).tolist()
        [8.6, 991.4]
    """
    replicates = np.asarray(replicates, dtype=np.float64)
    if num_cases < MIN_CASES or num_cases <= num_strata:
        return np.full((2, *replicates.shape[1:]), np.nan)
    freedom = num_cases - num_strata
    width = math.sqrt(num_cases / freedom) * stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    share = stats.norm.cdf(-width)
    empty = ~np.isfinite(replicates).any(axis=0)
    bounds = np.nanquantile(np.where(empty, 0.0, replicates), [share, 1 - share], axis=0)
    return np.where(empty, np.nan, bounds)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The bootstrap interval of the median.

    Args:
        values: Finite, one per case.

    Returns:
        Lower and upper bound; NaN where there are fewer than `MIN_CASES` cases.

    Example:
        >>> median_interval([1, 2, 3, 4, 5])
        (nan, nan)
        >>> median_interval([3.0] * 8)
        (3.0, 3.0)
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < MIN_CASES:
        return math.nan, math.nan
    medians = np.sort(values)[_middles(len(values))].mean(axis=1)
    low, high = percentile_interval(medians, len(values))
    return float(low), float(high)


def signed_rank(differences: Sequence[float]) -> SignedRank:
    """Wilcoxon's signed-rank test of whether paired differences lie symmetrically about 0, two-sided.

    Differences are rounded to 9 decimals: what differs by rounding errors alone is equal. Those of 0 take part in
    the ranking and then drop out (Pratt 1959); equal ones share their mean rank. Up to 50 pairs p is the share of
    all changes of sign with a sum of ranks as far from its mean, so it is exact with zeros and ties as well; beyond,
    the normal approximation with SciPy's corrections for both.

    Args:
        differences: Finite, one per pair.

    Example:
        >>> signed_rank([1, 2, 3, 4, 5, 6])  # all of one sign: 2 of 64 ways
        SignedRank(p=0.03125, method='exact', rank_sum=21.0)
        >>> signed_rank([0, 0, 0, 0, 0, 0]).p
        1.0
    """
    values = np.round(np.asarray(differences, dtype=np.float64), DECIMALS)
    rank_sum = float(np.sign(values) @ stats.rankdata(np.abs(values)))
    if len(values) < MIN_CASES:
        return SignedRank(math.nan, "none", rank_sum)
    if not values.any():
        return SignedRank(1.0, "exact", rank_sum)
    if len(values) <= MAX_EXACT:
        return SignedRank(_exact_p(values), "exact", rank_sum)
    p = stats.wilcoxon(values, zero_method="pratt", method="asymptotic").pvalue
    return SignedRank(float(p), "normal", rank_sum)


def _exact_p(differences: np.ndarray) -> float:
    """SciPy is exact with ties or zeros up to 13 pairs alone, by trying all signs; this adds rank after rank."""
    ranks = stats.rankdata(np.abs(differences))[differences != 0]
    doubled = np.rint(2 * ranks).astype(int)  # ties have halves
    sums = np.ones(1)  # how likely each sum of positive ranks is
    for rank in doubled:
        without, with_it = np.pad(sums, (0, rank)), np.pad(sums, (rank, 0))
        sums = (without + with_it) / 2
    positive = doubled[differences[differences != 0] > 0].sum()
    tail = min(sums[: positive + 1].sum(), sums[positive:].sum())
    return float(min(1.0, 2 * tail))


def pairs_needed(num_tests: int) -> int:
    """The fewest pairs with which a signed-rank test can find anything after Holm's correction for so many tests.

    A difference of the same sign in all n pairs has p = 2 / 2^n.

    Example:
        >>> pairs_needed(1), pairs_needed(18)
        (6, 10)
    """
    return max(MIN_CASES, math.floor(math.log2(max(num_tests, 1) / (1 - CONFIDENCE))) + 2)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Correct p values for their number, so that one false finding among all has the chance that each claims.

    Holm's step-down method (Scandinavian Journal of Statistics 6, 1979), valid however the tests depend on
    each other.

    Args:
        p_values: In [0, 1]; NaN where there was no test, which counts as none.

    Returns:
        float64, the corrected values in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03, np.nan]).tolist()
        [0.03, 0.06, 0.06, nan]
    """
    values = np.asarray(p_values, dtype=np.float64)
    corrected = np.full(values.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(order) else steps
    return corrected
