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
    batch_size: Annotated[
        int, typer.Option(min=1, help="Windows that are predicted together; more keep a large GPU busy.")
    ] = 1,
    mirror: Annotated[
        bool,
        typer.Option(
            "--mirror",
            help="Predict each window mirrored too, along the axes along which training mirrored it, and take the "
            "mean, as nnU-Net does. Off by default, since it takes 2, 4 or 8 times the time.",
        ),
    ] = False,
    ensemble: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            metavar="RUN",
            help="A further run of the same classes and voxel size, such as another fold, whose probabilities are "
            "averaged with the others'; repeat it.",
        ),
    ] = None,
    everywhere: Annotated[
        bool,
        typer.Option(
            "--everywhere",
            help="Compute also the windows without any part of the body, which are background else.",
        ),
    ] = False,
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
        batch_size=batch_size,
        mirror=mirror,
        skip_outside_body=not everywhere,
        ensemble=ensemble or (),
        card=None if card is None else read_card(card),
        split=None if split is None else split.value,
    )
    for path in result.written:
        typer.echo(str(path))
    finish(result.problems)
