"""`partialseg predict`: label maps of scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from partialseg.cli_options import Run, Split, finish


def predict(
    run: Run,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT", help="NIfTI files, folders of them, or DICOM series.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the label maps.")],
    overlap: Annotated[float, typer.Option(min=0.0, max=0.9, help="Of neighbouring windows.")] = 0.5,
    card: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="CARD", help="The inputs are raw folders of this card: its names for the cases."
        ),
    ] = None,
    split: Annotated[Optional[Split], typer.Option(help="With --card, this part alone.")] = None,  # noqa: UP045
) -> None:
    """Segment scans.

    In: a run and scans. Out: DIR/<case>.nii.gz, a label map in the scan's own grid and affine, and
    DIR/<case>.json with the classes and the volume of each organ in mL.
    """
    if split is not None and card is None:
        raise typer.BadParameter("goes with --card", param_hint="--split")
    from partialseg.data.cards import read_card
    from partialseg.inference.predict import predict as run_predict

    result = run_predict(
        run,
        inputs,
        out,
        overlap=overlap,
        card=None if card is None else read_card(card),
        split=None if split is None else split.value,
    )
    for path in result.written:
        typer.echo(str(path))
    finish(result.problems)
