"""Many independent tasks on a Dask cluster, as `partialseg.parallel.run_tasks` has them on one machine.

The cluster is started by whoever owns it (`dask scheduler` and `dask worker`, dask-jobqueue, Kubernetes, …);
all that is needed is its address. Its workers see the files under the same paths as this machine, and have the
same version of partialseg. `dask worker --nworkers 4 --nthreads 1 --memory-limit 4GB` runs four tasks at a time
and holds each to 4 GB; a worker that takes more is restarted by Dask, and counts as one that died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import platform
import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from partialseg import __version__
from partialseg.errors import DataError
from partialseg.parallel import worker_died

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
R = TypeVar("R")

#: How often a task is tried again that raised something else than a `DataError`.
RETRIES = 2
#: Seconds to wait for the scheduler, and for workers where there is none.
PATIENCE_S = 30.0


def run_on_cluster(
    function: Callable[[T], R], tasks: Sequence[T], where: Callable[[T], str], address: str
) -> Iterator[tuple[T, R | DataError]]:
    """Run a function on each task on a Dask cluster, and give each result as soon as it is there.

    A `DataError` counts as the task's result; what else a task raises is tried again, on whatever worker. Tasks
    whose workers died as often as the cluster allows (`distributed.scheduler.allowed-failures`) are tried once
    more, each alone, since Dask also blames tasks that were only waiting on such a worker; the one that kills
    its worker then too is given up, with a `DataError` as its result.

    Args:
        function: What to do; it and the tasks are pickled, and the workers can import its module.
        tasks: What to do it on.
        where: The file (or case) that a task is about, for messages.
        address: Of the scheduler (`tcp://host:8786`), or the file that `dask scheduler --scheduler-file` wrote.

    Yields:
        Task and result, in the order of completion.

    Raises:
        DataError: If the cluster does not answer, has no workers, or they are of another version.
        RuntimeError: If a task raised anything but a `DataError` each time; names the task.

    Example:
        >>> for case, length in run_on_cluster(len, ["ab", "c"], where=str, address="tcp://10.0.0.1:8786"):
        ...     print(case, length)  # doctest: +SKIP
    """
    with _connect(address) as client:
        _check_workers(client, address)
        suspects = yield from _run(client, function, tasks, where, address)
        for task in suspects:
            if (yield from _run(client, function, [task], where, address)):
                yield task, worker_died(where(task))


@contextlib.contextmanager
def _connect(address: str) -> Iterator[Client]:
    """A client of the cluster; what Dask logs of lost connections goes into one line of ours."""
    try:
        from distributed import Client
    except ImportError as error:
        raise DataError(
            address,
            "needs a package that is not installed (distributed)",
            'run `pip install "partialseg[dask]"`',
        ) from error
    scheduler = address if "://" in address else _read_scheduler_file(Path(address))
    with _quiet_dask():
        try:
            asyncio.run(_greet(scheduler))  # a client that does not get through takes a minute to give up
        except (OSError, ValueError, RuntimeError, TypeError) as error:  # TypeError: TLS without certificates
            raise DataError(
                address,
                f"no Dask scheduler answers ({str(error) or f'after {PATIENCE_S:g} s'})",
                "start `dask scheduler`, or correct the address",
            ) from error
        with Client(scheduler, timeout=PATIENCE_S, set_as_default=False) as client:
            yield client


def _read_scheduler_file(path: Path) -> str:
    """The address in a file that `dask scheduler --scheduler-file` wrote."""
    if not path.is_file():
        raise DataError(
            path,
            "there is no such scheduler file",
            "give the scheduler's address (tcp://host:8786), or the file of `dask scheduler --scheduler-file`",
        )
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(path, "is no scheduler file of Dask", "give the scheduler's address") from error


async def _greet(address: str) -> None:
    """Ask a scheduler who it is.

    Raises:
        OSError, ValueError, RuntimeError, TypeError: If there is none, or no way to it.
    """
    from distributed import rpc
    from distributed.security import Security

    arguments = Security().get_connection_args("client")
    async with rpc(address, timeout=PATIENCE_S, connection_args=arguments) as scheduler:
        answer = await asyncio.wait_for(scheduler.identity(), PATIENCE_S)
    if answer.get("type") != "Scheduler":
        raise ValueError(f"it is a {answer.get('type')}")


@contextlib.contextmanager
def _quiet_dask() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check_workers(client: Client, address: str) -> None:
    """Wait for the first worker, and refuse workers that would do something else than this machine."""
    try:
        client.wait_for_workers(1, timeout=PATIENCE_S)
    except TimeoutError as error:
        raise DataError(
            address,
            f"the Dask cluster has no worker after {PATIENCE_S:g} s",
            f"start `dask worker {address}`",
        ) from error
    here = _versions()
    for worker, there in client.run(_versions, on_error="return").items():
        if there != here:
            found = there if isinstance(there, dict) else f"{type(there).__name__}: {there}"
            raise DataError(
                address,
                f"worker {worker} has {found}, expected {here}",
                "install the same versions on all workers",
            )


def _versions() -> dict[str, str]:
    return {"partialseg": __version__, "python": ".".join(platform.python_version_tuple()[:2])}


def _run(
    client: Client, function: Callable[[T], R], tasks: Sequence[T], where: Callable[[T], str], address: str
) -> Generator[tuple[T, R | DataError], None, list[T]]:
    """Yield task and result; returns the tasks whose workers died."""
    from distributed import CancelledError, KilledWorker

    finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
    running: dict[Future, T] = {}
    suspects: list[T] = []
    try:
        for task in tasks:
            future = client.submit(_outcome, function, task, pure=False, retries=RETRIES)
            running[future] = task
            future.add_done_callback(finished.put)
        while running:
            future = _next(finished, client, address)
            task = running.pop(future)
            try:
                result = future.result(timeout=PATIENCE_S)
            except KilledWorker:
                suspects.append(task)
            except CancelledError as error:
                raise _lost(address) from error
            except Exception as error:
                if future.status == "error":
                    raise RuntimeError(f"{where(task)}: {type(error).__name__}: {error}") from error
                running[future] = task  # the worker that held the result died, and Dask makes it again
                future.add_done_callback(finished.put)
            else:
                yield task, result
    finally:
        client.cancel(list(running))
    return suspects


def _next(finished: queue.SimpleQueue[Future], client: Client, address: str) -> Future:
    """The next future that is done, while there are workers to hope for."""
    while True:
        try:
            return finished.get(timeout=PATIENCE_S)
        except queue.Empty:
            if client.status != "running" or not client.nthreads():
                raise _lost(address) from None


def _outcome(function: Callable[[T], R], task: T) -> R | DataError:
    """On a worker: what is wrong with the data is a result, and not tried again."""
    try:
        return function(task)
    except DataError as error:
        return error


def _lost(address: str) -> DataError:
    return DataError(
        address,
        "the Dask cluster has no workers any more, or its scheduler is gone",
        "start them again, and run the same command again to go on",
    )
