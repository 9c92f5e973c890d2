"""`partialseg table`: one table of several datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def table(
    scores: Annotated[
        list[Path],
        typer.Argument(metavar="SCORES", help="Each a scores.csv, or a folder with one or several, as RUN."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the table.")],
) -> None:
    """Put the scores of several datasets into one table.

    In: what `partialseg evaluate` wrote about one network, a dataset at a time. Out: table.csv, table.json and
    table.md (organ by dataset, as of `partialseg evaluate`, and the worst cases of all).
    """
    from rich.console import Console

    from partialseg.evaluation.tables import join_tables, render_table

    Console().print(render_table(join_tables(scores, out)))
    typer.echo(f"Table: {out / 'table.md'}")
