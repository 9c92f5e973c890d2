"""Many independent tasks in worker processes: one that fails, or dies, is named and the rest go on."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from partialseg.errors import DataError
from partialseg.machine import usable_cores

T = TypeVar("T")
R = TypeVar("R")

_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    where: Callable[[T], str],
    jobs: int | None = None,
    memory: int | None = None,
    dask: str | None = None,
) -> Iterator[tuple[T, R | DataError]]:
    """Run a function on each task in several processes, and give each result as soon as it is there.

    A `DataError` counts as the task's result. When a worker process dies (killed for its memory, say), the
    tasks that were running are tried once more, each alone, so that only the one that kills its worker is
    given up, with a `DataError` as its result. Workers have one BLAS thread each. They end with this process,
    and at once when the generator is closed or left by an exception (Ctrl-C): what is half done must not
    matter.

    Args:
        function: What to do; it and the tasks are pickled, so it stands at the top of a module.
        tasks: What to do it on.
        where: The file (or case) that a task is about, for messages.
        jobs: Tasks at a time; None for one per usable core. With 1, and no limit to the memory, everything
            runs in this process.
        memory: Bytes that one worker may take; a task that asks for more has a `DataError` as its result.
            None for no limit.
        dask: A Dask cluster that does it instead, see `partialseg.dask_cluster`; `jobs` and `memory` are
            then the cluster's own affair.

    Yields:
        Task and result, in the order of completion.

    Raises:
        RuntimeError: If workers cannot be started, or a task raised anything but a `DataError`; names the
            task, and the tasks that wait are dropped.
        DataError: If the Dask cluster cannot be used.

    Example:
        >>> list(run_tasks(len, ["ab", "c"], where=str, jobs=1))
        [('ab', 2), ('c', 1)]
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be 1 or more, received {jobs}")
    if dask is not None:
        from partialseg.dask_cluster import run_on_cluster

        yield from run_on_cluster(function, tasks, where, dask)
        return
    if jobs == 1 and memory is None:
        for task in tasks:
            yield task, _result(lambda task=task: function(task), where(task))
        return
    jobs = jobs if jobs is not None else usable_cores()
    waiting = deque(tasks)
    while waiting:
        suspects = yield from _run_until_a_worker_dies(function, waiting, where, jobs, memory)
        for task in suspects:
            if (yield from _run_until_a_worker_dies(function, deque([task]), where, 1, memory)):
                yield task, worker_died(where(task))


def worker_died(where: str) -> DataError:
    """What is said of a task that kills its worker."""
    return DataError(
        where,
        "its worker process was killed or crashed, also when it ran alone",
        "see whether there is memory enough, or whether the file is far larger than the others",
    )


def _run_until_a_worker_dies(
    function: Callable[[T], R], waiting: deque[T], where: Callable[[T], str], jobs: int, memory: int | None
) -> Generator[tuple[T, R | DataError], None, list[T]]:
    """Take tasks from `waiting` until none is left; returns those that ran when a worker died."""
    running: dict[Future[R], T] = {}
    suspects: list[T] = []
    with _worker_pool(min(jobs, len(waiting)), memory) as pool:
        while running or (waiting and not suspects):
            while waiting and not suspects and len(running) < jobs:
                task = waiting.popleft()
                try:
                    running[pool.submit(_within_memory, function, task, where(task), memory)] = task
                except BrokenProcessPool:  # a worker died while it had nothing to do
                    suspects.append(task)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(task)
                else:
                    yield task, _result(future.result, where(task))
    return suspects


@contextlib.contextmanager
def _worker_pool(workers: int, memory: int | None) -> Iterator[ProcessPoolExecutor]:
    """A pool whose workers are seen to work; they end at once where the block is left by an exception."""
    spawn = multiprocessing.get_context("spawn")
    ends_with, keeps_alive = spawn.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, spawn, initializer=_begin_worker, initargs=(ends_with, memory))
    try:
        try:
            with _as_workers_start():  # each call starts a process, while none waits for work
                started = [pool.submit(os.getpid) for _ in range(workers)]
            for future in started:
                future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "worker processes cannot be started: a script calls this under `if __name__ == '__main__':`, "
                "or gives jobs=1; a limit to the memory leaves room for Python itself"
            ) from error
        yield pool
    except BaseException:
        keeps_alive.close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        keeps_alive.close()
        ends_with.close()


def _within_memory(function: Callable[[T], R], task: T, where: str, memory: int | None) -> R:
    """In a worker: a task that asks for more memory than the worker may take is the data's problem."""
    try:
        return function(task)
    except MemoryError as error:
        allowed = "there is" if memory is None else f"the {memory / 1e9:.3g} GB that a worker may take"
        raise DataError(
            where, f"needs more memory than {allowed}", "allow more with --memory, or fewer --jobs at a time"
        ) from error


def _result(get: Callable[[], R], where: str) -> R | DataError:
    try:
        return get()
    except DataError as error:
        return error
    except Exception as error:
        raise RuntimeError(f"{where}: {type(error).__name__}: {error}") from error


def _begin_worker(ends_with: multiprocessing.connection.Connection, memory: int | None) -> None:
    """Leave Ctrl-C to the parent, end when it says so or is gone, and take no more memory than allowed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(ends_with,), daemon=True).start()
    if memory is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(
            resource.RLIMIT_DATA, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard)
        )


def _end_with(connection: multiprocessing.connection.Connection) -> None:
    parent = multiprocessing.parent_process()
    multiprocessing.connection.wait([connection, *([parent.sentinel] if parent is not None else [])])
    os._exit(1)


@contextlib.contextmanager
def _as_workers_start() -> Iterator[None]:
    """Processes started in this block have one BLAS thread (as many as processors would quarrel over them).

    A Ctrl-C meanwhile waits for the end of the block, so that no worker answers it.
    """
    before = {name: os.environ.get(name) for name in _THREAD_SETTINGS}
    os.environ.update(dict.fromkeys(_THREAD_SETTINGS, "1"))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
