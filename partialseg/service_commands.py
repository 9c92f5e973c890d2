"""`partialseg data-service`: read batches on other processes or hosts than the training's."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Annotated, Any, Optional

import typer

service_app = typer.Typer(
    help="Read training patches on several processes or hosts, where one cannot feed its devices. There is no "
    "authentication, and dispatcher and workers listen on all interfaces: for a trusted network only.",
    epilog="Exit status: 0 stopped by Ctrl-C or SIGTERM; 1 something is wrong, a line for each problem; 2 wrong call.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Host = Annotated[
    Optional[str],  # noqa: UP045 (typer reads the annotation)
    typer.Option(
        metavar="NAME", help="Name or address under which other hosts reach this one; its own by default."
    ),
]


@service_app.command()
def dispatcher(
    port: Annotated[int, typer.Option(min=0, max=65535, help="To listen on; 0 for any free one.")] = 5000,
    host: Host = None,
) -> None:
    """Deal out batches to workers, until stopped. One is needed.

    In: nothing. Out: the line that goes into the config of the training.
    """
    from partialseg.data.patch_service import serve_dispatcher

    name = host or socket.gethostname()
    serve_dispatcher(port, lambda bound: typer.echo(f"data_service: grpc://{name}:{bound}"))
    typer.echo("Dispatcher stopped.")


@service_app.command()
def worker(
    dispatcher: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the dispatcher is.")],
    host: Host = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="To listen on; 0 for any free one.")] = 0,
) -> None:
    """Read batches for a training, until stopped. Start as many as needed, on any host.

    In: prepared data, under the path or URL that the training has. Out: batches, over the network.
    """
    from partialseg.data.patch_service import serve_worker

    name = host or socket.gethostname()
    serve_worker(
        _requested_batches,
        dispatcher,
        name,
        port,
        lambda who: typer.echo(f"Worker {who} reads for {dispatcher}"),
    )
    typer.echo("Worker stopped.")
    sys.stdout.flush()
    os._exit(0)  # TensorFlow may wait for clients without end


def _requested_batches(request: dict[str, Any]) -> Callable[[int], Any]:
    """What reads the batches of a stream, from what a training asks for."""
    from partialseg.data.pipeline import BatchReader
    from partialseg.data.prepared import read_prepared
    from partialseg.data.sampling import PatchConfig

    config = PatchConfig.model_validate(request["config"])
    batches = BatchReader(read_prepared(request["prepared"]), config, tuple(request["shard"]))
    batches.plan.batch_of(request["state"])  # raises if the cases are not those of the training
    return batches.read
