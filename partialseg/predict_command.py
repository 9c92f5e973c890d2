"""`partialseg predict`: label maps of scans; and `partialseg postprocess`: what to do to them afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from partialseg.cli_options import CacheFolder, Precision, Run, Split, finish

if TYPE_CHECKING:
    from rich.table import Table

    from partialseg.inference.postprocessing_choice import Choice

#: What was chosen on fewer cases may be chance.
FEW_CASES = 5


def predict(
    run: Run,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT", help="NIfTI, NRRD or MetaImage files, folders of them, or DICOM series."
        ),
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
    organs: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--organs",
            "--organ",
            metavar="ORGAN,...",
            help="Write these alone, separated by commas or each with an option of its own; values stay the same.",
        ),
    ] = None,
    postprocess: Annotated[
        bool,
        typer.Option(
            "--postprocess",
            help="Apply RUN/postprocessing.yaml, which `partialseg postprocess` writes. Without, nothing is done. "
            "Of an ensemble the first run's rules count.",
        ),
    ] = False,
    probabilities: Annotated[
        bool,
        typer.Option(
            "--probabilities",
            help="Write DIR/<case>_probabilities/<organ>.nii.gz too, 0 to 1 in steps of 1/255.",
        ),
    ] = False,
    dicom_seg: Annotated[
        bool,
        typer.Option(
            "--dicom-seg",
            help="Write DIR/<case>.seg.dcm too, a DICOM segmentation beside the series; for DICOM series alone.",
        ),
    ] = False,
    precision: Annotated[
        Optional[Precision],  # noqa: UP045
        typer.Option(
            help="In which the network computes, float32 by default. bfloat16 took 0.56 of the time on a CPU with "
            "AVX512-BF16, and takes many times as long on CPUs without; float16 does so on every CPU. No GPU was "
            "measured. A few voxels differ.",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Predict also what is there already, and replace it.")
    ] = False,
) -> None:
    """Segment scans; called again, go on where it stopped.

    In: a run and scans. Out: DIR/<case>.nii.gz, a label map in the scan's own grid and affine, and
    DIR/<case>.json with the classes, the volume of each organ in mL, what was done, and warnings (an organ reaches
    the border of the scan, was not found, lies on the wrong side), which are printed too; and DIR/summary.csv with a
    row for each prediction in DIR. What is wrong with one scan does not keep the others from being predicted.

    A prediction that is there already, made of the same scan by the same network with the same settings, is kept.
    """
    if split is not None and card is None:
        raise typer.BadParameter("goes with --card", param_hint="--split")
    from partialseg.data.cards import read_card
    from partialseg.data.volumes import stem
    from partialseg.inference.plausibility import warning_lines
    from partialseg.inference.postprocessing_choice import read_choice
    from partialseg.inference.predict import predict as run_predict
    from partialseg.inference.prediction_files import Outputs
    from partialseg.training.runs import read_run

    named = None if card is None else read_card(card)
    trained = read_run(run)
    outputs = Outputs(
        organs=_organs(organs, trained.classes[1:]),
        rules=read_choice(trained).rules if postprocess else None,
        probabilities=probabilities,
        dicom_seg=dicom_seg,
    )
    result = run_predict(
        trained,
        inputs,
        out,
        overlap=overlap,
        batch_size=batch_size,
        mirror=mirror,
        skip_outside_body=not everywhere,
        ensemble=ensemble or (),
        card=named,
        split=None if split is None else split.value,
        outputs=outputs,
        again=again,
        precision=None if precision is None else precision.value,
    )
    for path in result.written:
        typer.echo(str(path))
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    for path in result.written:
        name = stem(path)
        for line in warning_lines(result.warnings[name]):
            typer.echo(f"note: {name}: {line}", err=True)
    if result.kept:
        warned = sum(map(bool, result.warnings.values()))
        typer.echo(
            f"{len(result.written)} predicted, {len(result.kept)} there already, {warned} of them with warnings: "
            f"{out / 'summary.csv'}"
        )
    finish(result.problems)


def postprocess(
    run: Run,
    prepared: Annotated[
        str,
        typer.Option(metavar="DIR", help="The prepared data that RUN was trained on: a folder, or its URL."),
    ],
    split: Annotated[
        Optional[Split],  # noqa: UP045
        typer.Option(
            help="Choose on these cases, instead of those that the run's config held out of training. Scores on "
            "cases that were chosen on are no longer fair."
        ),
    ] = None,
    cache: CacheFolder = None,
) -> None:
    """Choose, for each organ, what to do to predictions afterwards.

    In: a run and its prepared data. Out: RUN/postprocessing.yaml, which `partialseg predict --postprocess` applies.
    The cases that were held out of training are predicted; pieces on the wrong side, all but the largest piece, small
    pieces and holes are treated one after the other, and what raises the mean Dice of the organ by 0.001 is kept.
    """
    from rich.console import Console

    from partialseg.data.prepared import read_prepared
    from partialseg.inference.postprocessing_choice import choose_postprocessing, write_choice
    from partialseg.progress import progress_bar
    from partialseg.training.runs import read_run

    trained = read_run(run)
    with progress_bar() as bar:
        task = bar.add_task("predict", total=None)
        choice = choose_postprocessing(
            trained,
            read_prepared(prepared, cache),
            None if split is None else split.value,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    path = write_choice(trained, choice)
    Console().print(_choice_table(choice))
    few = [
        organ for organ, chosen in choice.organs.items() if chosen.rules.names and chosen.cases < FEW_CASES
    ]
    if few:
        typer.echo(f"note: chosen on fewer than {FEW_CASES} cases: {', '.join(few)}", err=True)
    typer.echo(f"Post-processing: {path}")


def _choice_table(choice: Choice) -> Table:
    """A row for each organ."""
    from rich.table import Table

    table = Table(title=f"post-processing, {choice.split} cases")
    for column in ("organ", "rules", "cases", "Dice without", "Dice with"):
        table.add_column(column, justify="left" if column in ("organ", "rules") else "right")
    for organ, chosen in choice.organs.items():
        rules = chosen.rules.model_dump(exclude_defaults=True)
        told = ", ".join(name if value is True else f"{name} {value:g}" for name, value in rules.items())
        table.add_row(
            organ, told or "none", str(chosen.cases), f"{chosen.dice_before:.3f}", f"{chosen.dice_after:.3f}"
        )
    return table


def _organs(given: list[str] | None, known: tuple[str, ...]) -> tuple[str, ...] | None:
    """The organs that are asked for, in the order of the class list; None for all."""
    if given is None:
        return None
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter(
            f"names no organ, expected some of {', '.join(known)}", param_hint="--organs"
        )
    strangers = [name for name in names if name not in known]
    if strangers:
        raise typer.BadParameter(
            f"the network has no {' or '.join(repr(name) for name in strangers)}, expected some of "
            f"{', '.join(known)}",
            param_hint="--organs",
        )
    return tuple(name for name in known if name in names)
