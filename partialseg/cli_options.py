"""What several commands share: arguments, options, and how they end."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from partialseg.errors import DataError
from partialseg.wording import counted

Cards = Annotated[
    list[str],
    typer.Argument(
        metavar="CARD",
        help="Data cards or card sets: files, or names that come with the package, such as kits19 or paper.",
    ),
]
Raw = Annotated[
    Path,
    typer.Option("--raw", metavar="DIR", help="Folder with the datasets as downloaded."),
]
Organs = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads the annotation)
    typer.Option(
        help="An organ of the class list, in order; repeat it. By default those of the card set, or all of the "
        "cards."
    ),
]
Jobs = Annotated[
    Optional[int],  # noqa: UP045 (typer reads the annotation)
    typer.Option(
        min=1, help="Cases at a time; by default one per usable core. Less where the memory would not do."
    ),
]
Memory = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        min=0.5,
        metavar="GB",
        help="What one worker may take; a case that needs more is a problem. By default its share of what is free.",
    ),
]
Dask = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        metavar="ADDRESS",
        help="A Dask cluster that does the work: its scheduler's address (tcp://host:8786) or scheduler file.",
    ),
]
CacheFolder = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        metavar="DIR",
        envvar="PARTIALSEG_CACHE",
        help="With a URL, a local folder for copies of the cases; else the parts needed are read each time.",
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that `partialseg train` wrote.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the phantom, the weights and the patches.")]


class Commands(TyperGroup):
    """The commands. Of a wrong value it says what is wrong, without the name of the exception that told."""

    def invoke(self, ctx: typer.Context) -> Any:
        """Read the arguments of a command and call it."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


class Preset(str, Enum):
    """Sizes of the phantom datasets."""

    tiny = "tiny"
    demo = "demo"


class Split(str, Enum):
    """Parts of a dataset."""

    train = "train"
    test = "test"


class Precision(str, Enum):
    """In which a network computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Hd95(str, Enum):
    """What HD95 can mean, see `partialseg.evaluation.metrics.HD95_DEFINITIONS`."""

    directed_max = "directed_max"
    pooled = "pooled"
    area_weighted = "area_weighted"


class Unit(str, Enum):
    """Units of distances."""

    mm = "mm"
    voxels = "voxels"


class StudyName(str, Enum):
    """Tables of the paper."""

    table3 = "table3"
    table4 = "table4"
    table5 = "table5"
    table6 = "table6"
    table7 = "table7"


def finish(problems: Sequence[DataError]) -> None:
    """Print a line for each problem and their count; exit with 1 if there are any."""
    if not problems:
        return
    for problem in problems:
        typer.echo(str(problem), err=True)
    typer.echo(counted(len(problems), "problem"), err=True)
    raise typer.Exit(1)
