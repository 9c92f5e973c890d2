"""The command line. Each command is a thin call of the function that does the work."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from partialseg import __version__
from partialseg.card_commands import card_app
from partialseg.cli_options import (
    CacheFolder,
    Cards,
    Commands,
    Dask,
    Jobs,
    Memory,
    Organs,
    Preset,
    Raw,
    Run,
    Seed,
    StudyName,
    finish,
)
from partialseg.compare_command import compare
from partialseg.errors import DataError, first_of
from partialseg.evaluate_command import evaluate
from partialseg.files import os_problem
from partialseg.inspect_command import inspect
from partialseg.plan_command import plan
from partialseg.predict_command import postprocess, predict
from partialseg.service_commands import service_app
from partialseg.table_command import table
from partialseg.wording import counted

app = typer.Typer(
    name="partialseg",
    cls=Commands,
    help="Train one multi-organ CT segmentation network from datasets that each label only some organs.",
    epilog="Exit status: 0 done; 1 something is wrong with the data, a line for each problem; 2 wrong call.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(card_app, name="card")
app.add_typer(service_app, name="data-service")
#: So many notes on datasets are printed by `check`; the page has all of them.
_MOST_NOTES = 20


def _version(value: bool) -> None:
    if value:
        typer.echo(f"partialseg {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for all that the demo makes.")] = Path(
        "demo"
    ),
    preset: Annotated[
        Preset, typer.Option(help="demo: minutes; tiny: a minute, learns nothing.")
    ] = Preset.demo,
    seed: Seed = 0,
) -> None:
    """Go the whole way on embedded phantom data.

    In: nothing. Out: phantom scans, prepared data, two networks (F alone; F and P1 to P4), predictions,
    scores, a table and one HTML report.
    """
    from rich.console import Console

    from partialseg.demo import demo as run_demo
    from partialseg.evaluation.tables import render_table

    result = run_demo(out, preset.value, seed)
    Console().print(render_table(result.table))
    typer.echo(f"Report: {result.report.resolve()}")


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write to.")],
    preset: Annotated[Preset, typer.Option(help="How many cases, and how large.")] = Preset.tiny,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same voxels.")] = 0,
    from_labels: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="DIR", help="Dress the label maps (*.nii.gz) of this folder as CT instead."),
    ] = None,
    names: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="NAMES",
            help="With --from-labels, what the values are: a YAML or JSON file {value: organ}, a data card, "
            "or one of the known sets (word, kits19, ...).",
        ),
    ] = None,
) -> None:
    """Write synthetic CT with perfect labels.

    In: nothing, or a folder of label maps. Out: five datasets in the raw layouts of BTCV, MSD and KiTS19, or
    OUT/images and OUT/labels, one pair for each label map.
    """
    from partialseg.data.phantom import dress_folder, write_phantom

    if names is not None and from_labels is None:
        raise typer.BadParameter("goes with --from-labels", param_hint="--names")
    if from_labels is None:
        for dataset, folder in write_phantom(out, preset.value, seed).items():
            typer.echo(f"{dataset}: {folder}")
        return
    result = dress_folder(from_labels, out, names, seed)
    for image in result.written:
        typer.echo(str(image))
    finish(result.problems)


@app.command()
def check(
    cards: Cards,
    raw: Raw,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for check.json and check.html.")] = Path(
        "check"
    ),
    organ: Organs = None,
    jobs: Jobs = None,
) -> None:
    """Read every raw case against its card.

    In: data cards, or a card set, and raw data. Out: check.html, a page for people, and check.json, the same for
    programs: which dataset annotates which organ, in how many cases and mL; what is unusual (geometry,
    intensities, volumes, duplicates), with a picture; and a line for each problem.
    """
    from partialseg.data.coverage import check as run_check

    _check_organs(organ)
    read, organs, said = _cards_and_organs(cards, organ)
    result = run_check(read, raw, out, jobs, organs)
    for line in result.leakage:
        typer.echo(f"note: leakage: {line}", err=True)
    total = len(result.report["cases"])
    good = sum(case["good"] for case in result.report["cases"])
    typer.echo(
        f"{counted(total, 'case')}, {good} of them without a problem; {counted(result.num_notes, 'note')}"
    )
    page = out / "check.html"
    if noted := result.noted_cases:
        typer.echo(f"notes on {counted(len(noted), 'good case')}: {first_of(noted, 10)}: see {page}")
    notes = [note for note in result.dataset_notes if note not in said]
    for note in notes[:_MOST_NOTES]:
        typer.echo(f"note: {note}", err=True)
    if len(notes) > _MOST_NOTES:
        typer.echo(f"note: {len(notes) - _MOST_NOTES} more on the datasets: see {page}", err=True)
    typer.echo(f"Coverage: {page}")
    finish(result.problems)


@app.command()
def prepare(
    cards: Cards,
    raw: Raw,
    out: Annotated[
        str,
        typer.Option(
            metavar="PREPARED", help="Folder for the prepared cases, or its URL (s3://, gs://, az://)."
        ),
    ],
    spacing: Annotated[
        tuple[float, float, float],
        typer.Option(metavar="Z Y X", help="Voxel size in mm; the paper's by default."),
    ] = (3.0, 1.5, 1.5),
    organ: Organs = None,
    jobs: Jobs = None,
    memory: Memory = None,
    dask: Dask = None,
) -> None:
    """Bring raw cases to one spacing, one orientation and one class list.

    In: data cards, or a card set, and raw data. Out: PREPARED/manifest.json and a folder for each case. It may be
    stopped, or killed, at any time: run again, it goes on. Cases that are there already, made of the same content
    with the same settings, are kept; so are those of cards that are not named now. A second run into the same folder
    is refused; an object store has no locks, so see to it that one run at a time writes to a URL.

    A worker takes at most 0.3 GB, 14 bytes for each voxel of its scan and 8 for each prepared one (2 and 26 where
    that is more): 4.2 GB for a scan of 512 x 512 x 1000 voxels of 0.8 x 0.8 x 1 mm, 0.7 GB for 100 slices of 2.5 mm.
    There are as many workers as the memory allows for the largest scan.
    """
    from partialseg.data.prepare import prepare as run_prepare

    _check_spacing(spacing)
    _check_organs(organ)
    if dask is not None and (jobs is not None or memory is not None):
        raise typer.BadParameter("--jobs and --memory are for one machine", param_hint="--dask")
    read, organs, _ = _cards_and_organs(cards, organ)
    try:
        result = run_prepare(read, raw, out, spacing, organs, jobs, memory, dask)
    except KeyboardInterrupt:
        typer.echo("stopped; run again to go on", err=True)
        raise typer.Exit(130) from None
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    there = "was there already" if result.skipped == 1 else "were there already"
    typer.echo(f"{counted(result.done, 'case')} prepared, {result.skipped} {there}: {out}")
    if result.kept:
        typer.echo(f"kept of cards that are not named now: {counted(result.kept, 'case')}")
    if result.dropped:
        typer.echo(f"no longer listed: {', '.join(result.dropped)}")
    datasets = result.prepared.datasets.values()
    typer.echo(f"datasets: {', '.join(dataset.name for dataset in datasets)}")
    typer.echo(f"classes: {', '.join(result.prepared.classes)}")
    annotated = {name for dataset in datasets for name in dataset.annotated}
    if result.prepared.cases and (
        unsupervised := [name for name in result.prepared.organs if name not in annotated]
    ):
        typer.echo(
            f"no dataset here annotates {', '.join(unsupervised)}: a network learns nothing about them"
        )
    finish(result.problems)


app.command()(inspect)
app.command()(plan)


@app.command()
def train(
    config: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A YAML file, or the name of one that comes with the package."),
    ],
    prepared: Annotated[
        str, typer.Option(metavar="DIR", help="What `partialseg prepare` wrote: a folder, or its URL.")
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="The run folder.")],
    start_from: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--from",
            metavar="RUN",
            help="Begin with the weights of this finished run; organs new to it begin as background.",
        ),
    ] = None,
    cache: CacheFolder = None,
) -> None:
    """Train a network; called again, go on where it stopped, to the step.

    It takes all GPUs of this host. Where srun starts it as several tasks, or TF_CONFIG describes a cluster, all of them
    train together (docs/clusters.md).

    In: a config (docs/config.md has all fields) and prepared data. Out: RUN with the resolved config, the network
    (model.keras), log.csv, terms.csv (every loss term for every dataset and organ) and TensorBoard logs.
    """
    from partialseg.data.prepared import read_prepared
    from partialseg.training.config import read_config
    from partialseg.training.interruption import TrainingStopped
    from partialseg.training.trainer import train as run_train

    try:
        run = run_train(read_config(config), read_prepared(prepared, cache), out, start_from=start_from)
    except TrainingStopped as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(128 + stopped.signal_number) from None
    typer.echo(f"Network: {run.model_path}")


app.command()(predict)
app.command()(postprocess)


app.command()(evaluate)
app.command()(table)
app.command()(compare)


@app.command()
def export(
    run: Run,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the SavedModel.")],
) -> None:
    """Write a SavedModel for TensorFlow Serving.

    In: a run. Out: DIR, a SavedModel that takes patches in HU (batch, depth, height, width) of any size at the
    run's spacing, and returns labels; a second signature returns probabilities.
    """
    from partialseg.inference.saved_model import export as run_export
    from partialseg.training.runs import read_run

    trained = read_run(run)
    run_export(trained.load_model(), out, trained.spacing_mm, trained.classes)
    typer.echo(f"SavedModel: {out}")


@app.command()
def study(
    name: Annotated[
        StudyName, typer.Argument(metavar="NAME", help="table3, table4, table5, table6 or table7.")
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(metavar="DIR", help="Folder for all that the study makes; study/NAME by default."),
    ] = None,
    raw: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            metavar="DIR", help="Folder with the five datasets as downloaded; phantom data by default."
        ),
    ] = None,
    config: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="CONFIG", help="A YAML file or a name; paper with --raw, else demo, by default."
        ),
    ] = None,
    seed: Seed = 0,
    spacing: Annotated[
        Optional[tuple[float, float, float]],  # noqa: UP045
        typer.Option(
            metavar="Z Y X", help="Voxel size in mm; with --raw the paper's, else 6 3 3, by default."
        ),
    ] = None,
    only: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="NETWORK", help="Make this network alone (see --list); repeat it."),
    ] = None,
    list_networks: Annotated[
        bool, typer.Option("--list", help="List the networks and their steps, and run nothing.")
    ] = False,
) -> None:
    """Make one table of the paper as an experiment; called again, go on where it stopped.

    In: nothing, or the raw datasets. Out: DIR with networks, predictions and scores, and study.json, table.csv,
    table.md and report.html. table3: Dice by training data and loss; table4: Hausdorff distances of the same
    networks; table5: weights of marginal and exclusion loss; table6: fewer annotations; table7: networks and
    losses of other methods. To share the work, give each machine a DIR and some networks, copy their runs and
    predictions together, and call once more.
    """
    from partialseg.study.plan import choose_networks, plan_study
    from partialseg.training.config import read_config

    if spacing is not None:
        _check_spacing(spacing)
    resolved = read_config(config or ("demo" if raw is None else "paper"))
    try:
        networks = choose_networks(plan_study(name.value, resolved), only or [])
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise typer.BadParameter(str(error), param_hint="--only") from error
    if list_networks:
        for network in networks:
            start = f" after {network.start_from}" if network.start_from else ""
            steps = network.steps(resolved.batch_size)
            typer.echo(
                f"{network.name}: {counted(steps, 'step')}{start}; {network.row or 'no row of its own'}"
            )
        in_all = sum(network.steps(resolved.batch_size) for network in networks)
        typer.echo(f"{counted(in_all, 'step')} in all")
        return
    _run_study(name.value, out or Path("study") / name.value, raw, resolved, seed, spacing, only or [])


@app.command()
def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN-or-STUDY-or-SCORES", help="A run, a study, a demo folder, or scores."),
    ],
) -> None:
    """Write one self-contained HTML report.

    In: a run folder, with what `partialseg evaluate` wrote to RUN/scores or RUN/scores_..., a folder with
    study.json, or what `partialseg evaluate` wrote alone. Out: report.html in it, with tables, curves, pictures and a
    3D/2D viewer of cases.
    """
    from partialseg.report.folders import report_run

    typer.echo(f"Report: {report_run(folder)}")


def _run_study(name: str, *settings) -> None:  # noqa: ANN002 (those of `run_study`, in its order)
    from rich.console import Console

    from partialseg.study.plan import METRICS, TITLES
    from partialseg.study.runner import run_study
    from partialseg.study.table import render_study

    result = run_study(name, *settings)
    if result.missing:
        typer.echo(f"Rows are left out that wait for {counted(len(result.missing), 'network')}; see --list.")
    if result.report is not None:
        Console().print(render_study(TITLES[name], result.table, METRICS[name]))
        typer.echo(f"Table: {result.report.with_name('table.md').resolve()}")
        typer.echo(f"Report: {result.report.resolve()}")
    finish(result.problems)


def _check_spacing(spacing: tuple[float, float, float]) -> None:
    from partialseg.data.resample import check_spacing

    try:
        check_spacing(spacing)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--spacing") from error


def _check_organs(organs: Optional[list[str]]) -> None:  # noqa: UP045
    if organs and len({"background", *organs}) <= len(organs):
        raise typer.BadParameter(
            f"expected different organs, received {', '.join(organs)}", param_hint="--organ"
        )


def _cards_and_organs(names: list[str], organs: Optional[list[str]]):  # noqa: ANN202, UP045
    """The cards that are named, alone or in sets; and the class list that is asked for, or that of the sets.

    Returns:
        Cards, class list, and the notes on them, which are printed.
    """
    from partialseg.data.card_sets import expand, organ_notes

    cards, organs_of_sets = expand(names)
    classes = organs or organs_of_sets
    notes = organ_notes(cards, classes)
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    return cards, classes, notes


def _card(path_or_name: str):  # noqa: ANN202 (pydantic is imported late)
    from partialseg.data.cards import read_card

    return read_card(path_or_name)


def main() -> None:
    """Entry point: a DataError that no command expected ends on one line too, with exit status 1."""
    if any(not argument or re.fullmatch("--[a-z-]+=", argument) for argument in sys.argv[1:]):
        typer.echo("Error: an argument is empty; was a variable of the shell not set?", err=True)
        sys.exit(2)  # an empty path would be the current folder
    if (backend := os.environ.get("KERAS_BACKEND") or "tensorflow") not in ("tensorflow", "jax", "torch"):
        typer.echo(f"Error: KERAS_BACKEND is {backend!r}, expected tensorflow, jax or torch", err=True)
        sys.exit(2)
    try:
        app()
    except DataError as error:
        typer.echo(f"{error}\n1 problem", err=True)
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that cannot be written, a file where a folder should be
        typer.echo(f"{os_problem(error)}\n1 problem", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
