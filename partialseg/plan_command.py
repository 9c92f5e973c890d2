"""`partialseg plan`: a training config for prepared data."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from partialseg.cli_options import CacheFolder, Precision
from partialseg.wording import times

if TYPE_CHECKING:
    from rich.table import Table

    from partialseg.training.network_config import NetworkConfig
    from partialseg.training.planner import Plan


class Encoder(str, Enum):
    """Encoders of the U-Net."""

    plain = "plain"
    residual = "residual"


def plan(
    prepared: Annotated[
        str,
        typer.Argument(metavar="PREPARED", help="What `partialseg prepare` wrote: a folder, or its URL."),
    ],
    out: Annotated[Path, typer.Option(metavar="CONFIG", help="The config to write.")] = Path("plan.yaml"),
    memory: Annotated[
        float,
        typer.Option(min=0.5, metavar="GB", help="Memory of the device that trains, or of each of them."),
    ] = 8.0,
    preset: Annotated[
        str,
        typer.Option(
            metavar="CONFIG",
            help="Says all that is not planned. With paper nothing is: patch, batch and network are the paper's.",
        ),
    ] = "default",
    encoder: Annotated[
        Optional[Encoder],  # noqa: UP045 (typer reads the annotation)
        typer.Option(help="Of a U-Net; as in the preset by default."),
    ] = None,
    precision: Annotated[
        Optional[Precision],  # noqa: UP045
        typer.Option(help="In which it computes; as in the preset by default."),
    ] = None,
    patch_size: Annotated[
        Optional[tuple[int, int, int]],  # noqa: UP045
        typer.Option(metavar="Z Y X", help="Voxels of a patch, instead of what fits."),
    ] = None,
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Patches in a batch, instead of what fits."),
    ] = None,
    devices: Annotated[
        int, typer.Option(min=1, metavar="N", help="GPUs, of one host or several, that share each batch.")
    ] = 1,
    cache: CacheFolder = None,
) -> None:
    """Plan a training: patch, batch and network for the data and the memory.

    In: prepared data. Out: CONFIG, for `partialseg train CONFIG`, and on the terminal what led to it. A plan that is
    there is replaced; another file is not.
    """
    from rich.console import Console

    from partialseg.data.prepared import read_prepared
    from partialseg.files import write_text
    from partialseg.training.planner import check_may_write_plan, spacing_line
    from partialseg.training.planner import plan as make_plan

    if patch_size is not None and min(patch_size) < 1:
        raise typer.BadParameter(f"must be above 0, received {patch_size}", param_hint="--patch-size")
    check_may_write_plan(out)
    made = make_plan(
        read_prepared(prepared, cache),
        preset,
        memory,
        encoder and encoder.value,
        precision and precision.value,
        patch_size,
        batch_size,
        devices,
    )
    console = Console()
    console.print(data_table(made))
    console.print(stages_table(made))
    config = made.config
    typer.echo(
        f"patch {times(config.patch_size)}, batch {config.batch_size}, "
        f"{_network(config.network)}, {config.precision}: about {made.memory.gigabytes:.1f} of {made.memory_gb:g} GB "
        f"{f'on each of {made.devices} devices ' if made.devices > 1 else ''}"
        f"(weights {made.memory.weights / 1e9:.1f}, maps {made.memory.maps / 1e9:.1f}, passing "
        f"{made.memory.passing / 1e9:.1f}, runtime {made.memory.runtime / 1e9:.1f})"
    )
    typer.echo(spacing_line(made.fingerprint))
    for note in made.notes:
        typer.echo(f"note: {note}", err=True)
    write_text(out, made.text())
    typer.echo(f"Config: {out}")


def data_table(made: Plan) -> Table:
    """The fingerprint: a row for each dataset."""
    from rich.table import Table

    table = Table(title=f"training cases, {times(made.fingerprint.spacing_mm)} mm")
    for column in ("dataset", "cases", "organs", "voxels, 10%", "median", "90%", "raw scans, mm"):
        table.add_column(column, justify="left" if column == "dataset" else "right")
    for of in made.fingerprint.datasets:
        raw = "" if of.source_mm is None else times(of.source_mm)
        sizes = (times(size) for size in (of.low, of.median, of.high))
        table.add_row(of.name, str(of.cases), str(of.organs), *sizes, raw)
    return table


def stages_table(made: Plan) -> Table:
    """The network: a row for each stage."""
    from rich.table import Table

    from partialseg.models.stages import kernel_sizes

    network, sizes = made.config.network, list(made.config.patch_size)
    spacing = list(made.fingerprint.spacing_mm)
    table = Table(title="network")
    for column in ("stage", "voxels", "mm", "stride", "kernel", "channels"):
        table.add_column(column, justify="right")
    kernels = network.kernels or kernel_sizes(network.strides)
    for stage, (stride, kernel) in enumerate(zip(network.strides, kernels, strict=True)):
        sizes = [-(-size // step) for size, step in zip(sizes, stride, strict=True)]
        spacing = [length * step for length, step in zip(spacing, stride, strict=True)]
        width = min(network.base_channels * 2**stage, network.max_channels)
        table.add_row(
            str(stage + 1),
            times(sizes),
            times(spacing),
            times(stride),
            times(kernel),
            str(width),
        )
    return table


def _network(network: NetworkConfig) -> str:
    """What kind of network a plan has, in words."""
    return f"{network.encoder} encoder" if network.kind == "unet" else f"network {network.kind}"
