"""`partialseg evaluate`: scores of predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from partialseg.cli_options import Hd95, Jobs, Split, Unit, finish

if TYPE_CHECKING:
    from partialseg.data.cards import Card

#: In mm, of organs that no option names.
_TOLERANCE_MM = 2.0


def evaluate(
    predictions: Annotated[Path, typer.Argument(metavar="PREDICTIONS", help="Folder of label maps.")],
    truth: Annotated[Path, typer.Option(metavar="DIR", help="The dataset's raw folder.")],
    card: Annotated[str, typer.Option(metavar="CARD", help="The dataset's data card.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the tables.")],
    split: Annotated[
        Optional[Split],  # noqa: UP045 (typer reads the annotation)
        typer.Option(help="Every case of this part must have a prediction."),
    ] = None,
    hd95: Annotated[
        Hd95,
        typer.Option(
            help="Of the 95th percentiles of both directions the larger (MONAI's), that of both together "
            "(MedPy's), or the larger weighted by surface area (DeepMind's)."
        ),
    ] = Hd95.directed_max,
    nsd_tolerance: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            metavar="MM",
            help="Tolerance of NSD in mm, 2 by default; or ORGAN=MM, for one organ; repeat it.",
        ),
    ] = None,
    unit: Annotated[
        Unit, typer.Option(help="voxels: distances in voxels of the scan's own grid as well.")
    ] = Unit.mm,
    classes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAMES",
            help="What the values of label maps without a .json mean: background,liver,spleen and so on in the "
            "order of the values; or card, where they are the dataset's own.",
        ),
    ] = None,
    jobs: Jobs = None,
) -> None:
    """Score predictions over the organs that a dataset annotates.

    In: predictions, each with the .json that `predict` writes beside it, or --classes; the raw dataset, its card.
    Out: scores.csv and scores.json (a row for each case and organ), table.csv, table.json and table.md (organ by
    dataset: n, mean and standard deviation, median, bootstrap interval, missed and hallucinated organs; and the
    worst cases).
    """
    from rich.console import Console

    from partialseg.data.cards import read_card
    from partialseg.evaluation.predictions import checked_classes
    from partialseg.evaluation.tables import evaluate as run_evaluate
    from partialseg.evaluation.tables import organ_table, render_table

    read = read_card(card)
    try:
        given = checked_classes(classes)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--classes") from error
    result = run_evaluate(
        predictions,
        truth,
        read,
        out,
        split=None if split is None else split.value,
        hd95=hd95.value,
        nsd_tolerance_mm=_tolerances(nsd_tolerance or [], read),
        unit=unit.value,
        jobs=jobs,
        classes=given,
    )
    if len(result.scores):
        Console().print(render_table(organ_table(result.scores)))
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    if not len(result.scores):
        typer.echo(f"no case was scored, so nothing was written to {out}", err=True)
    finish(result.problems)
    if not len(result.scores):
        raise typer.Exit(1)


def _tolerances(given: Sequence[str], card: Card) -> dict[str, float]:
    """The tolerance of each organ that the card annotates."""
    from partialseg.data.classes import KNOWN_ORGANS

    of_all, of_organs = _TOLERANCE_MM, {}
    for text in given:
        organ, _, number = text.rpartition("=")
        if organ and organ not in (*KNOWN_ORGANS, *card.annotated):
            raise typer.BadParameter(
                f"{organ} is no organ that {card.name} annotates, which are {', '.join(card.annotated)}",
                param_hint="--nsd-tolerance",
            )
        if organ:
            of_organs[organ] = _millimetres(number, text)
        else:
            of_all = _millimetres(number, text)
    return {organ: of_organs.get(organ, of_all) for organ in card.annotated}


def _millimetres(number: str, text: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(
            f"expected mm from 0 on, or ORGAN=MM, received {text!r}", param_hint="--nsd-tolerance"
        )
    return value
