"""`partialseg card`: write a data card, list those that come with the package, show one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from partialseg.cli_options import Jobs

card_app = typer.Typer(
    help="Write, list and show data cards, which tell what a dataset's files and label values are.",
    epilog="Exit status: 0 done; 1 something is wrong with the data, a line for each problem; 2 wrong call.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@card_app.command()
def new(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A dataset.json (of the Medical Segmentation Decathlon, or of nnU-Net), a folder that holds one, or a "
            "folder with label maps: in it, in a subfolder such as labels, or one in each case's folder.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="CARD.md", help="The card to write.")],
    name: Annotated[
        Optional[str],  # noqa: UP045 (typer reads the annotation)
        typer.Option(
            metavar="NAME", help="Of the dataset, used in folders and tables; the folder's by default."
        ),
    ] = None,
    names: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="FILE_OR_CARD",
            help="What the label values are: a YAML or JSON file with lines such as `1: liver`, or a data card.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the card where it is there.")] = False,
    jobs: Jobs = None,
) -> None:
    """Write a data card for a dataset of your own.

    In: label maps, whose values are read, or a dataset.json. Out: CARD.md with all that could be found out, and a
    skeleton of the prose for people. Names of organs become those of the other cards (kidney_left: left_kidney).
    nnU-Net's ignore label and regions are understood. A value that nobody has named is `?`, and the card cannot be
    used until its organ is written there.
    """
    from partialseg.data.card_new import write_new_card
    from partialseg.data.card_sets import organ_notes

    result = write_new_card(source, out, name, names, force, jobs)
    for note in [*result.notes, *(organ_notes([result.card]) if result.card else [])]:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"Card: {result.path}")


@card_app.command("list")
def list_cards() -> None:
    """List the cards that come with the package, and the card sets.

    In: nothing. Out: for each card its name, number of labelled cases, organs and licence; for each set its cards
    and organs.
    """
    from rich.console import Console
    from rich.table import Table

    from partialseg.data.card_sets import read_card_set, shipped_card_sets
    from partialseg.data.cards import read_card, shipped_cards

    cards, sets = (Table(box=None, pad_edge=False) for _ in range(2))
    for table, columns in ((cards, "card title cases organs licence"), (sets, "set title cards organs")):
        for column in columns.split():
            table.add_column(column, overflow="fold")
    for name in shipped_cards():
        card = read_card(name)
        cards.add_row(
            name, card.title, str(card.counts.get("labelled", "")), ", ".join(card.organs), card.licence
        )
    for name in shipped_card_sets():
        card_set = read_card_set(name)
        sets.add_row(
            name, card_set.title, ", ".join(card.name for card in card_set.cards), ", ".join(card_set.organs)
        )
    console = Console()
    console.print(cards)
    console.print()
    console.print(sets)


@card_app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A card or a card set that comes with the package, or a file."),
    ],
) -> None:
    """Show a card or a card set as it is written.

    In: its name. Out: its text, which says where the dataset comes from, what its values mean and what to look out
    for; a copy of it is a good beginning for a card of your own.
    """
    from partialseg.data.card_sets import expand, is_card_set, read_card_set

    path = read_card_set(name).path if is_card_set(name) else expand([name])[0][0].path
    typer.echo(path.read_text(encoding="utf-8"))
