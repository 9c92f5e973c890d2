"""Files about two runs on the same cases: tests in CSV, JSON and Markdown, a picture, and every pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from partialseg.errors import DataError
from partialseg.evaluation.difference_plot import difference_plot
from partialseg.evaluation.metrics import HD95_DEFINITIONS
from partialseg.evaluation.paired import (
    COMPARED_METRICS,
    TOO_FEW,
    PairedScores,
    largest_differences,
    named_runs,
    pair_scores,
)
from partialseg.evaluation.rendering import (
    HEADERS,
    Cell,
    Layout,
    markdown_table,
    number_text,
    render_layout,
    row_label,
    tolerances_text,
)
from partialseg.evaluation.score_files import read_all_scores, records
from partialseg.evaluation.statistics import MAX_EXACT, MIN_CASES
from partialseg.evaluation.summary import tolerance_column
from partialseg.files import atomic_path, write_json, write_text


def compare_runs(
    first: str | Path, second: str | Path, out: str | Path, names: Sequence[str] | None = None
) -> tuple[PairedScores, tuple[str, str]]:
    """Compare two runs that were evaluated on the same cases, and write what was found.

    Args:
        first: Scores of run A: a `scores.csv`, or a folder with one or several (see
            `partialseg.evaluation.score_files.read_all_scores`).
        second: Scores of run B.
        out: Gets `comparison.csv` (the tests), `comparison.json` (these, the outcomes and the settings),
            `comparison.md`, `comparison.png` and `pairs.csv` (a row per case and organ).
        names: What A and B are called; by default where their paths differ.

    Returns:
        The comparison, and the names.

    Raises:
        DataError: If scores are missing, or the two cannot be compared.
    """
    first, second, out = Path(first), Path(second), Path(out)
    called = tuple(names) if names is not None else run_names(first, second)
    runs = [read_all_scores(path) for path in (first, second)]
    try:
        paired = pair_scores(*runs)
    except ValueError as error:
        problem = f"cannot be compared with {first}: {error}"
        raise DataError(second, problem, "see docs/evaluation.md") from error
    write_text(out / "pairs.csv", _with_settings(paired.pairs, paired).to_csv(index=False))
    write_text(out / "comparison.csv", _with_settings(paired.tests, paired).to_csv(index=False))
    write_json(out / "comparison.json", _content(paired, called, (first, second)))
    with atomic_path(out / "comparison.png") as temporary:
        temporary.write_bytes(difference_plot(paired, called))
    write_text(out / "comparison.md", comparison_markdown(paired, called))
    return paired, called


def run_names(first: Path, second: Path) -> tuple[str, str]:
    """Call two runs by the last folders in which their paths differ.

    Example:
        >>> run_names(Path("runs/joint/scores"), Path("runs/marginal/scores/scores.csv"))
        ('joint', 'marginal')
        >>> run_names(Path("scores"), Path("scores"))
        ('A', 'B')
    """
    parts = []
    for path in (first, second):
        path = path.resolve()
        parts.append((path.parent if path.name == "scores.csv" else path).parts[::-1])
    return next(((one, other) for one, other in zip(*parts, strict=False) if one != other), ("A", "B"))


def comparison_layout(paired: PairedScores, metric: str, names: Sequence[str], brief: bool = False) -> Layout:
    """The tests of one metric for people; in bold what is more than chance after Holm's correction.

    Args:
        paired: What `pair_scores` returned.
        metric: One of `COMPARED_METRICS`.
        names: Of A and B.
        brief: What fits a terminal.
    """
    rows = paired.tests[paired.tests["metric"] == metric].to_dict("records")
    headers = ["organ ∈ dataset", "n", *names, "median difference", "p (Holm)", "better"]
    if not brief:
        headers = [
            *("organ ∈ dataset", "n", "left out", *names, "mean difference", "median difference"),
            *(f"{names[1]} better / worse / equal", "p", "p (Holm)", "verdict"),
        ]
    arranged = []
    for row in rows:
        verdict = row["verdict"]
        found = verdict in ("A better", "B better")
        first = [Cell(row_label(row)), Cell(str(row["n"]))]
        means = [Cell(number_text(row[f"mean_{run}"], metric)) for run in "ab"]
        median, p_holm = Cell(_difference(row, "median", metric)), Cell(_p_text(row["p_holm"]))
        if brief:
            none = f"n < {row['pairs_needed']}" if verdict == TOO_FEW else "–"
            better = dict(zip(("A better", "B better"), names, strict=True)).get(verdict, none)
            arranged.append([*first, *means, median, p_holm, Cell(better, found)])
            continue
        counts = Cell(f"{row['b_better']} / {row['a_better']} / {row['equal']}")
        differences = [Cell(_difference(row, "mean", metric)), median]
        last = [counts, Cell(_p_text(row["p"])), p_holm, Cell(_verdict_text(row, names), found)]
        arranged.append([*first, Cell(str(row["left_out"])), *means, *differences, *last])
    return Layout(headers, arranged, "")


def comparison_markdown(paired: PairedScores, names: Sequence[str]) -> str:
    """All that was found, for people."""
    parts = [
        f"# {names[1]} against {names[0]}",
        f"![Differences](comparison.png)\n\n{method_text(paired, names)}",
    ]
    for metric in COMPARED_METRICS:
        arranged = comparison_layout(paired, metric, names)
        rows = [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in arranged.rows]
        parts.append(f"## {HEADERS[metric]}\n\n{markdown_table(arranged.headers, rows)}")
    parts.append(f"## Missed and hallucinated\n\n{_outcomes_table(paired.outcomes, names)}")
    largest = largest_differences(paired.pairs)
    if len(largest):
        parts.append(f"## Where the runs differ most in Dice\n\n{_largest_table(largest, names)}")
    if paired.notes:
        listed = [f"- {named_runs(note, names)}" for note in paired.notes]
        parts.append("## Not compared\n\n" + "\n".join(listed))
    return "\n\n".join(parts) + "\n"


def render_comparison(paired: PairedScores, names: Sequence[str]) -> list[Table]:
    """A table for the terminal for Dice, and one for HD95."""
    return [
        render_layout(
            comparison_layout(paired, metric, names, brief=True),
            f"{HEADERS[metric]}: {names[1]} less {names[0]}",
        )
        for metric in ("dice", "hd95_mm")
    ]


def method_text(paired: PairedScores, names: Sequence[str]) -> str:
    """What must be known to read the tables."""
    sentences = (
        f"Differences are {names[1]} less {names[0]}, case by case; in brackets 95 % bootstrap intervals, from "
        f"{MIN_CASES} pairs on.",
        "p: Wilcoxon's signed-rank test, two-sided, zeros ranked and dropped (Pratt), exact up to "
        f"{MAX_EXACT} pairs, made from {MIN_CASES} pairs on; p (Holm): corrected for all tests of a metric but "
        "that of all organs, which is the first question and stands alone. Where a difference in every pair "
        "would not be enough after it, "
        "there are too few pairs.",
        "A missed or hallucinated organ has Dice and NSD 0; a distance needs the organ found in both runs, and pairs "
        "without a number are counted as left out.",
        'In the row "all" a case counts once, with the mean over its organs.',
        f"HD95: {HD95_DEFINITIONS[paired.hd95_definition]}.",
        f"NSD: {tolerances_text(paired.nsd_tolerance_mm)}.",
    )
    return " ".join(sentences)


def _with_settings(table: pd.DataFrame, paired: PairedScores) -> pd.DataFrame:
    tolerances = tolerance_column(table, paired.nsd_tolerance_mm)
    return table.assign(hd95_definition=paired.hd95_definition, nsd_tolerance_mm=tolerances)


def _content(paired: PairedScores, names: Sequence[str], paths: Sequence[Path]) -> dict[str, object]:
    runs = {
        run: {"name": name, "scores": str(path)} for run, name, path in zip("ab", names, paths, strict=True)
    }
    return {
        **runs,
        "hd95_definition": paired.hd95_definition,
        "nsd_tolerance_mm": paired.nsd_tolerance_mm,
        "method": method_text(paired, names),
        "tests": records(paired.tests),
        "outcomes": records(paired.outcomes),
        "notes": paired.notes,
    }


def _verdict_text(row: dict[str, Any], names: Sequence[str]) -> str:
    if row["verdict"] == TOO_FEW:
        return f"{TOO_FEW} ({row['pairs_needed']} needed)"
    return named_runs(row["verdict"], names)


def _difference(row: dict[str, float], kind: str, metric: str) -> str:
    """For example "+0.012 [-0.001, +0.030]"."""
    value, low, high = (row[f"{kind}_{part}"] for part in ("difference", "low", "high"))
    text = _signed(value, metric)
    return f"{text} [{_signed(low, metric)}, {_signed(high, metric)}]" if np.isfinite(low) else text


def _signed(value: float, metric: str) -> str:
    text = number_text(value, metric)
    return f"+{text}" if np.isfinite(value) and float(text) > 0 else text


def _p_text(p: float) -> str:
    return "–" if not np.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _outcomes_table(outcomes: pd.DataFrame, names: Sequence[str]) -> str:
    who = (f"by {names[0]} alone", f"by {names[1]} alone", "by both")
    headers = ["organ ∈ dataset", "cases", "with the organ"]
    headers += [f"{what} {by}" for what in ("missed", "hallucinated") for by in who]
    rows = [
        [row_label(row), *(str(row[column]) for column in outcomes.columns[2:])]
        for row in outcomes.to_dict("records")
    ]
    return markdown_table(headers, rows)


def _largest_table(largest: pd.DataFrame, names: Sequence[str]) -> str:
    headers = ["dataset", "case", "organ", *(f"Dice {name}" for name in names), "difference"]
    rows = []
    for row in largest.to_dict("records"):
        dice = [
            number_text(row[f"dice_{run}"], "dice")
            if row[f"outcome_{run}"] == "scored"
            else row[f"outcome_{run}"]
            for run in "ab"
        ]
        where = [row["dataset"], row["case"], row["organ"].replace("_", " ")]
        rows.append([*where, *dice, _signed(row["difference"], "dice")])
    return markdown_table(headers, rows, names=3)
