"""`partialseg inspect`: what training would draw."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from partialseg.cli_options import CacheFolder


def inspect(
    prepared: Annotated[
        str,
        typer.Argument(metavar="PREPARED", help="What `partialseg prepare` wrote: a folder, or its URL."),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for inspect.json and inspect.html.")
    ] = Path("inspect"),
    config: Annotated[
        Optional[str],  # noqa: UP045 (typer reads the annotation)
        typer.Option(metavar="CONFIG", help="The training's: a YAML file, or one of paper, demo, tiny."),
    ] = None,
    stage: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            metavar="STAGE", help="With --config, its name, or its number from 1; the last by default."
        ),
    ] = None,
    patch_size: Annotated[
        Optional[tuple[int, int, int]],  # noqa: UP045
        typer.Option(metavar="Z Y X", help="Without --config, voxels of a patch; 48 190 190 by default."),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Without --config, of the patches; 0 by default."),
    ] = None,
    augment: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--augment/--no-augment",
            help="Whether patches are augmented; by default as CONFIG says, or they are.",
        ),
    ] = None,
    batches: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="How many are counted; an epoch by default, 250 at most."),
    ] = None,
    pictures: Annotated[int, typer.Option(min=0, max=100, help="Patches that are shown.")] = 6,
    cache: CacheFolder = None,
) -> None:
    """Show which patches training draws.

    In: prepared data and, to see what a training gets in one of its stages, its config; without, batches of 2,
    as many from every dataset. Out: DIR with inspect.html, a page for people, and inspect.json, the same for
    programs: patches for each dataset and class, foreground in a batch, pictures of a few patches and of what each
    of their voxels may be.
    """
    from rich.console import Console

    from partialseg.data.augmentation import AugmentationConfig
    from partialseg.data.inspect_page import inspect_patches
    from partialseg.data.inspect_tables import classes_table, datasets_table, foreground_line
    from partialseg.data.prepared import read_prepared
    from partialseg.data.sampling import PatchConfig
    from partialseg.training.config import read_config
    from partialseg.training.stage_patches import stage_patches

    _check_call(config, stage, patch_size, seed)
    whole = None if config is None else read_config(config)
    number = None if whole is None else _stage_number(stage, [each.name for each in whole.stages])
    read = read_prepared(prepared, cache)
    if whole is None:
        named = {"patch_size": patch_size, "seed": seed}
        given = {name: value for name, value in named.items() if value is not None}
        training, settings = None, PatchConfig(**given, augmentation=AugmentationConfig())
    else:
        training = {"config": whole.name, "stage": whole.stages[number].name}
        settings = stage_patches(whole, number, read)
    if augment is False:
        settings = settings.model_copy(update={"augmentation": None})
    elif augment and settings.augmentation is None:
        augmentation = AugmentationConfig(window_hu=whole.network.window_hu)
        settings = settings.model_copy(update={"augmentation": augmentation})
    report = inspect_patches(read, settings, out, batches, pictures, training)
    console = Console()
    console.print(datasets_table(report))
    console.print(classes_table(report))
    typer.echo(foreground_line(report))
    for note in report["notes"]:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"Patches: {out / 'inspect.html'}")


def _check_call(
    config: Optional[str],  # noqa: UP045
    stage: Optional[str],  # noqa: UP045
    patch_size: Optional[tuple[int, int, int]],  # noqa: UP045
    seed: Optional[int],  # noqa: UP045
) -> None:
    """Refuse options that do not go together."""
    if stage is not None and config is None:
        raise typer.BadParameter("goes with --config", param_hint="--stage")
    for value, option in ((patch_size, "--patch-size"), (seed, "--seed")):
        if value is not None and config is not None:
            raise typer.BadParameter("goes without --config, which says it", param_hint=option)
    if patch_size is not None and min(patch_size) < 1:
        raise typer.BadParameter(f"must be above 0, received {patch_size}", param_hint="--patch-size")


def _stage_number(stage: Optional[str], names: Sequence[str]) -> int:  # noqa: UP045
    """Which stage is meant, from 0."""
    if stage is None:
        return len(names) - 1
    if stage in names:
        return names.index(stage)
    if stage.isdecimal() and 1 <= int(stage) <= len(names):
        return int(stage) - 1
    expected = ", ".join(f"{number} ({name})" for number, name in enumerate(names, 1))
    raise typer.BadParameter(f"found {stage!r}, expected one of {expected}", param_hint="--stage")
