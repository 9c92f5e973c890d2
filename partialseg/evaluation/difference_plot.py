"""A picture of two runs: the difference of every case, organ by organ."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from partialseg.evaluation.paired import COMPARED_METRICS, PairedScores, named_runs, pairs_of
from partialseg.evaluation.rendering import HEADERS, row_label

#: Told apart by the colour-blind as well.
_COLOURS = {
    "B better": "#0072b2",
    "A better": "#d55e00",
    "no difference shown": "#777777",
    "too few pairs": "#bbbbbb",
}
#: Of more organs and datasets than these the ones with the smallest p are drawn.
MAX_ROWS = 40
_ROW_INCHES, _PANEL_INCHES, _DOTS_PER_INCH = 0.36, 4.2, 110
#: Differences up to this are drawn to scale, and larger ones by their logarithm: one missed organ would hide the rest.
_LINEAR = {"dice": 0.05, "hd95_mm": 2.0, "nsd": 0.05}
_TICKS = {"dice": (0.02, 0.05, 0.2, 1), "hd95_mm": (1, 2, 10, 100, 1000), "nsd": (0.02, 0.05, 0.2, 1)}


def difference_plot(paired: PairedScores, names: tuple[str, str]) -> bytes:
    """Draw the differences B - A: a dot per case, the median and its bootstrap interval per organ and dataset.

    Of more than `MAX_ROWS` rows those with the smallest p of any metric are drawn, and the title says so.

    Args:
        paired: What `partialseg.evaluation.paired.pair_scores` returned.
        names: What runs A and B are called.

    Returns:
        A PNG file.
    """
    metrics = list(COMPARED_METRICS)
    tests, num_rows = _drawn(paired.tests), len(paired.tests) // len(metrics)
    labels = [row_label(row) for row in tests[tests["metric"] == metrics[0]].to_dict("records")]
    height = _ROW_INCHES * len(labels) + 1.6
    figure = Figure(figsize=(_PANEL_INCHES * len(metrics) + 1.8, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        _draw_metric(axes, paired.pairs, tests[tests["metric"] == metric], metric)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    shown = [verdict for verdict in _COLOURS if (tests["verdict"] == verdict).any()]
    handles = [Line2D([], [], color=_COLOURS[verdict], marker="o", linewidth=3) for verdict in shown]
    texts = [named_runs(verdict, names) for verdict in shown]
    figure.legend(handles, texts, loc="outside lower center", ncols=len(shown), frameon=False)
    title = f"{names[1]} less {names[0]}: cases, median, 95 % interval; colours after Holm's correction"
    if len(labels) < num_rows:
        title += f"\nThe {len(labels)} of {num_rows} rows with the smallest p"
    figure.suptitle(title)
    with io.BytesIO() as buffer:
        figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
        return buffer.getvalue()


def _drawn(tests: pd.DataFrame) -> pd.DataFrame:
    """The tests of the organs and datasets that are drawn, in their order."""
    groups = tests.groupby(["organ", "dataset"], sort=False)
    least = groups["p"].min().rank(method="first", na_option="bottom")
    rank = least.reindex(pd.MultiIndex.from_frame(tests[["organ", "dataset"]]))
    return tests[rank.to_numpy() <= MAX_ROWS]


def _draw_metric(axes: Axes, pairs: pd.DataFrame, tests: pd.DataFrame, metric: str) -> None:
    """One panel; rows are those of the tests."""
    for place, row in enumerate(tests.to_dict("records")):
        differences = _differences(pairs, row, metric)
        colour = _COLOURS[row["verdict"]]
        # Dots are set apart so that equal ones can be counted; the pattern is the same each time.
        spread = np.random.default_rng(0).uniform(-0.26, 0.26, len(differences))
        axes.plot(differences, place + spread, ".", color=colour, alpha=0.5, markersize=6, markeredgewidth=0)
        if np.isfinite(row["median_low"]):
            axes.plot([row["median_low"], row["median_high"]], [place] * 2, color=colour, linewidth=3)
        if row["n"]:
            axes.plot(
                row["median_difference"], place, "o", color=colour, markeredgecolor="white", markersize=8
            )
    axes.axvline(0, color="black", linewidth=0.8, zorder=0)
    better = "right" if COMPARED_METRICS[metric] else "left"
    axes.set_xlabel(f"{HEADERS[metric]} (better: {better})")
    axes.grid(axis="x", alpha=0.3)
    axes.set_xscale("symlog", linthresh=_LINEAR[metric], linscale=1.2)
    reach = 1.1 * max(*(abs(bound) for bound in axes.get_xlim()), _LINEAR[metric])
    ticks = [tick for tick in _TICKS[metric] if tick <= reach]
    ticks = [*(-tick for tick in reversed(ticks)), 0, *ticks]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(-reach, reach)


def _differences(pairs: pd.DataFrame, row: dict[str, str], metric: str) -> np.ndarray:
    values = pairs_of(pairs, row["organ"], row["dataset"], metric)
    return (values[f"{metric}_b"] - values[f"{metric}_a"]).to_numpy(dtype=float)
