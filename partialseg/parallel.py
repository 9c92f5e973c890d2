"""Many independent tasks in worker processes: one that fails, or dies, is named and the rest go on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from partialseg.errors import DataError

T = TypeVar("T")
R = TypeVar("R")

_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def run_tasks(
    function: Callable[[T], R], tasks: Sequence[T], where: Callable[[T], str], workers: int | None = None
) -> Iterator[tuple[T, R | DataError]]:
    """Run a function on each task in several processes, and give each result as soon as it is there.

    A `DataError` counts as the task's result. When a worker process dies (killed for its memory, say), the
    tasks that were running are tried once more, each alone, so that only the one that kills its worker is
    given up, with a `DataError` as its result. Workers have one BLAS thread each and end with this process.

    Args:
        function: What to do; it and the tasks are pickled, so it stands at the top of a module.
        tasks: What to do it on.
        where: The file (or case) that a task is about, for messages.
        workers: Number of processes; None for one per processor. With 1 everything runs in this process.

    Yields:
        Task and result, in the order of completion.

    Raises:
        RuntimeError: If workers cannot be started, or a task raised anything but a `DataError`; names the
            task, and the tasks that wait are dropped.

    Example:
        >>> list(run_tasks(len, ["ab", "c"], where=str, workers=1))
        [('ab', 2), ('c', 1)]
    """
    workers = workers if workers is not None else os.cpu_count() or 1
    if workers < 1:
        raise ValueError(f"workers must be 1 or more, received {workers}")
    if workers == 1:
        for task in tasks:
            yield task, _result(lambda task=task: function(task), where(task))
        return
    waiting = deque(tasks)
    while waiting:
        suspects = yield from _run_until_a_worker_dies(function, waiting, where, workers)
        for task in suspects:
            if (yield from _run_until_a_worker_dies(function, deque([task]), where, 1)):
                problem = "its worker process was killed or crashed, also when it ran alone"
                remedy = (
                    "see whether there is memory enough, or whether the file is far larger than the others"
                )
                yield task, DataError(where(task), problem, remedy)


def _run_until_a_worker_dies(
    function: Callable[[T], R], waiting: deque[T], where: Callable[[T], str], workers: int
) -> Generator[tuple[T, R | DataError], None, list[T]]:
    """Take tasks from `waiting` until none is left; returns those that ran when a worker died."""
    running: dict[Future[R], T] = {}
    suspects: list[T] = []
    pool = _start_pool(min(workers, len(waiting)))
    try:
        while running or (waiting and not suspects):
            while waiting and not suspects and len(running) < workers:
                try:
                    with _one_thread_each():  # processes are started here, when none is idle
                        running[pool.submit(function, waiting[0])] = waiting[0]
                except BrokenProcessPool:  # a worker died while it had nothing to do
                    suspects.append(waiting[0])
                waiting.popleft()
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(task)
                else:
                    yield task, _result(future.result, where(task))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return suspects


def _start_pool(workers: int) -> ProcessPoolExecutor:
    """A pool whose workers are seen to work."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
    try:
        with _one_thread_each():
            started = [pool.submit(os.getpid) for _ in range(workers)]
        for future in started:
            future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "worker processes cannot be started: a script calls this under `if __name__ == '__main__':`, "
            "or gives workers=1"
        ) from error
    return pool


def _result(get: Callable[[], R], where: str) -> R | DataError:
    try:
        return get()
    except DataError as error:
        return error
    except Exception as error:
        raise RuntimeError(f"{where}: {type(error).__name__}: {error}") from error


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, which lets running tasks end; end at once where the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started in this block have one BLAS thread: as many as processors would quarrel over them."""
    before = {name: os.environ.get(name) for name in _THREAD_SETTINGS}
    os.environ.update(dict.fromkeys(_THREAD_SETTINGS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
