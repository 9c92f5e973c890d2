"""`partialseg compare`: two runs on the same cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer


def compare(
    first: Annotated[
        Path,
        typer.Argument(metavar="SCORES_A", help="A scores.csv, or a folder with one or several, as RUN."),
    ],
    second: Annotated[Path, typer.Argument(metavar="SCORES_B", help="The same of the other run.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for tables and picture.")],
    names: Annotated[
        Optional[tuple[str, str]],  # noqa: UP045 (typer reads the annotation)
        typer.Option(metavar="A B", help="What the runs are called; by default where their paths differ."),
    ] = None,
) -> None:
    """Compare two runs case by case: is one better, by how much, and is it more than chance?

    In: what `partialseg evaluate` wrote about two runs, on the same cases and with the same settings. Out:
    comparison.md and comparison.png for people; comparison.csv, comparison.json and pairs.csv: by organ and dataset
    the paired differences of Dice, HD95 and NSD with bootstrap intervals, Wilcoxon's signed-rank test with Holm's
    correction, and who missed or hallucinated an organ.
    """
    from rich.console import Console

    from partialseg.evaluation.comparison import compare_runs, method_text, render_comparison
    from partialseg.evaluation.paired import named_runs

    if names is not None and (names[0] == names[1] or not all(name.strip() for name in names)):
        raise typer.BadParameter(f"expected two different names, received {names}", param_hint="--names")
    paired, called = compare_runs(first, second, out, names)
    console = Console()
    for table in render_comparison(paired, called):
        console.print(table)
    console.print(method_text(paired, called), highlight=False)
    counts = paired.outcomes
    for what in ("missed", "hallucinated"):
        numbers = [int(counts[f"{what}_{who}"].sum()) for who in ("a", "b", "both")]
        typer.echo(
            f"{what}: {numbers[0]} by {called[0]} alone, {numbers[1]} by {called[1]} alone, {numbers[2]} by both"
        )
    for note in paired.notes:
        typer.echo(f"note: {named_runs(note, called)}", err=True)
    typer.echo(f"Comparison: {out / 'comparison.md'}")
