"""How often bootstrap intervals cover the truth, and how often tests find what is not there, for results/intervals.md.

    python benchmarks/intervals.py [--experiments 2000]

About a minute. Scores are drawn from distributions whose mean and median are known; the intervals and
tests are those of `partialseg.evaluation.statistics`, beside plain percentiles, SciPy's BCa and Student's t.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable

import numpy as np
import scipy
from scipy import stats

from partialseg.evaluation.statistics import (
    holm,
    median_interval,
    percentile_interval,
    resampled_means,
    signed_rank,
)

NUMBERS = (6, 10, 20, 40)
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def good_dice(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Beta(18, 2): mean 0.9, standard deviation 0.065, a tail to the left."""
    return rng.beta(18, 2, shape)


def dice_with_misses(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """The same, and every tenth organ missed: Dice 0."""
    return good_dice(rng, shape) * (rng.random(shape) > 0.1)


def distances(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Log-normal: median 3 mm, mean 4.9 mm, 95th percentile 16 mm."""
    return 3 * rng.lognormal(0, 1, shape)


def differences(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Student's t with three degrees of freedom: symmetric, with heavy tails."""
    return 0.02 * rng.standard_t(3, shape)


#: What is drawn, its mean and its median (None: not shown).
DRAWN: dict[str, tuple[Draw, float, float | None]] = {
    "Dice, mean 0.9": (good_dice, 0.9, stats.beta(18, 2).median()),
    "Dice, every tenth missed": (dice_with_misses, 0.81, None),
    "HD95, log-normal": (distances, 3 * np.exp(0.5), 3.0),
    "differences, t(3)": (differences, 0.0, 0.0),
}


def coverage(draw: Draw, mean: float, median: float | None, number: int, experiments: int) -> list[float]:
    """Shares of experiments whose interval holds the mean: ours, plain, BCa, t; and the median: ours."""
    draws = draw(np.random.default_rng(number), (experiments, number))
    replicates = resampled_means(draws.T)
    error = stats.t.ppf(0.975, number - 1) * draws.std(axis=1, ddof=1) / np.sqrt(number)
    means = draws.mean(axis=1)
    varied = draws[draws.std(axis=1) > 0]
    bca = stats.bootstrap((varied,), np.mean, axis=1, n_resamples=1999, batch=50, rng=0).confidence_interval
    bounds = (
        percentile_interval(replicates, number),
        np.quantile(replicates, [0.025, 0.975], axis=0),
        (bca.low, bca.high),
        (means - error, means + error),
    )
    shares = [float(np.mean((low <= mean) & (mean <= high))) for low, high in bounds]
    if median is None:
        return [*shares, float("nan")]
    medians = [median_interval(row) for row in draws[:500]]
    return [*shares, float(np.mean([low <= median <= high for low, high in medians]))]


def false_findings(number: int, experiments: int, step: float) -> tuple[float, float]:
    """Where nothing differs: the share of tests with p < 0.05, and of families of 11 with one after Holm.

    Args:
        number: Pairs of each test.
        experiments: Families.
        step: Differences are rounded to it, which makes ties and zeros; 0 for none.
    """
    rng = np.random.default_rng(number)
    shared = rng.standard_t(3, (experiments, 1, number))  # organs of one case go up and down together
    drawn = 0.7 * shared + rng.standard_t(3, (experiments, 11, number))
    drawn = np.round(drawn / step) * step if step else drawn
    p = np.array([[signed_rank(row).p for row in family] for family in drawn])
    return float(np.mean(p < 0.05)), float(np.mean([holm(family).min() < 0.05 for family in p]))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=2000)
    experiments = parser.parse_args().experiments
    print(
        f"{datetime.date.today()}: NumPy {np.__version__}, SciPy {scipy.__version__}; {experiments} experiments.\n"
    )
    print("## Share of 95 % intervals that hold the true value\n")
    print("| scores | n | mean: ours | plain percentiles | BCa | Student's t | median: ours |")
    print("|---|---|---|---|---|---|---|")
    for name, (draw, mean, median) in DRAWN.items():
        for number in NUMBERS:
            shares = coverage(draw, mean, median, number, experiments)
            print(
                f"| {name} | {number} | " + " | ".join("–" if s != s else f"{s:.3f}" for s in shares) + " |"
            )
    families = max(experiments // 10, 1)
    print(f"\n## False findings at 0.05, {families} families of 11 dependent tests\n")
    print("| n | differences | single tests | families, after Holm |\n|---|---|---|---|")
    for number in (6, 10, 20, 60):
        for text, step in (("as drawn", 0.0), ("rounded: ties and zeros", 1.0)):
            single, family = false_findings(number, families, step)
            print(f"| {number} | {text} | {single:.3f} | {family:.3f} |")


if __name__ == "__main__":
    main()
