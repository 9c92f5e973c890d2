"""Batches that other processes or hosts read: the tf.data service, with order and content as if read here.

TensorFlow numbers the Python functions of a graph per process, so a graph that calls one runs only where it was made.
Here what is asked for is *data*: a request (JSON) and the index of a batch. A worker is a process of this package whose
first Python function, `TOKEN`, answers any such request, and keeps what it opened for it.

The dispatcher gives every index to one worker, and batches arrive in any order. The client puts them in order, and
reads here what did not arrive (its worker died): a batch is a pure function of its index, so the stream is the local
one, batch for batch, whatever happens to workers and dispatcher.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from partialseg import __version__
from partialseg.data.process_end import CALLS
from partialseg.errors import DataError

logger = logging.getLogger(__name__)

#: Gives the arrays of a batch by its index; what a `DataError` says reaches the client.
Reader = Callable[[int], Sequence[np.ndarray]]

#: The name that TensorFlow gives to the first Python function of a process; a worker makes sure of it.
TOKEN = "pyfunc_0"

#: As many batches of each worker may come before the one that is due; then it is read here.
MOST_AHEAD = 8

#: A service that is there answers within so many seconds.
ANSWER_S = 20.0

#: As many requests stay open in a worker: those of several trainers, or of a training and its validation.
_MOST_OPEN = 8

#: A worker that is stopped while it is asked for batches ends after so many seconds.
_STOP_S = 3.0

_HELLO = "hello"
_START = "start `partialseg data-service {}`, or leave out data_service to read on this host"


class _LostError(Exception):
    """The connection to the service ended."""


def distribute(
    request: Mapping[str, Any],
    read: Reader,
    signature: Sequence[tf.TensorSpec],
    address: str,
    start: int = 0,
    *,
    parallel_reads: int = 2,
    answer_s: float = ANSWER_S,
    patience_s: float = 60.0,
    on_problem: Callable[[DataError], Any] = lambda problem: None,
) -> tf.data.Dataset:
    """The endless stream `read(start), read(start + 1), ...`, read by the workers of a tf.data service.

    Every batch comes exactly once and in order. One that does not arrive, since its worker died, is read here.
    After a restart of the dispatcher the stream goes on at the batch that is due. With the logger of this module at
    level DEBUG, every batch is logged with its worker.

    Args:
        request: What a worker needs to make the same `read`; JSON-able.
        read: Gives the arrays of a batch by its index.
        signature: Shape and dtype of each of those arrays.
        address: Of the dispatcher, `grpc://host:port`.
        start: Index of the first batch.
        parallel_reads: Batches that each worker reads at the same time.
        answer_s: How long to wait for the dispatcher, and for a worker, at first, in seconds.
        patience_s: If no batch comes for so many seconds, the service is asked anew for the batch that is due; if it
            does not come then either, the stream ends with an error.
        on_problem: Called with the `DataError` that ends the stream; TensorFlow passes on its text alone.

    Returns:
        A dataset of tuples of tensors, as `signature` says.

    Raises:
        DataError: If the address is none, if no dispatcher answers there, if no worker does, or if workers have
            another version of this package.
    """
    find_workers(address, answer_s)
    asked = _Asked(json.dumps(request), tuple(signature), address, parallel_reads)

    def batches() -> Iterator[tuple[np.ndarray, ...]]:
        stream = _unbroken(asked, read, start, patience_s)
        following = CALLS.counted(lambda: next(stream))
        try:
            while True:
                yield following()
        except DataError as problem:
            on_problem(problem)
            raise

    return tf.data.Dataset.from_generator(batches, output_signature=tuple(signature)).prefetch(2)


def find_workers(address: str, answer_s: float = ANSWER_S) -> str:
    """Make sure that a dispatcher and a worker of this version answer.

    Args:
        address: Of the dispatcher, `grpc://host:port`.
        answer_s: How long to wait for each of them, in seconds.

    Returns:
        The worker that answered first, as `host:process`.

    Raises:
        DataError: If the address is none, or if no dispatcher or no worker of this version answers.
    """
    _reach(address, answer_s)
    hello = _Asked(_HELLO, (), address, 1, once=True)
    try:
        for _, worker, _ in _arriving(hello, answer_s):
            return worker
        raise _LostError("the answer was empty")
    except _LostError as lost:
        raise DataError(
            address,
            f"a dispatcher is there, but no worker answered: {lost}; expected at least one that this host reaches",
            _START.format("worker") + "; a worker on another host needs its --host",
        ) from lost


def in_order(
    arriving: Iterator[tuple[int, str, Any]],
    read: Callable[[int], Any],
    start: int,
    most_ahead: int = MOST_AHEAD,
) -> Iterator[Any]:
    """Put batches in the order of their indices.

    Args:
        arriving: Index, worker and batch, in any order; some may be lost, or come twice.
        read: Reads the batch with an index, the same as a worker does.
        start: Index of the first batch.
        most_ahead: When more than so many batches per worker wait for the one that is due, it is read here.

    Yields:
        The batches `start, start + 1, ...`, each once.

    Example:
        >>> arriving = [(1, "a", "one"), (3, "b", "three"), (0, "a", "zero"), (4, "b", "four"), (5, "b", "five")]
        >>> list(in_order(iter(arriving), lambda index: f"{index}, read here", 0, most_ahead=1))
        ['zero', 'one', '2, read here', 'three', 'four', 'five']
    """
    waiting: dict[int, Any] = {}
    workers: set[str] = set()
    due = start
    for index, worker, batch in arriving:
        logger.debug("batch %d from %s", index, worker)
        workers.add(worker)
        if index >= due:  # else it is late, and was read here
            waiting[index] = batch
        if due not in waiting and len(waiting) > most_ahead * len(workers):
            logger.warning("batch %d did not arrive from the data service; it is read here", due)
            waiting[due] = read(due)
        while due in waiting:
            yield waiting.pop(due)
            due += 1


def serve_dispatcher(port: int, ready: Callable[[str], None]) -> None:
    """Run a dispatcher until SIGINT or SIGTERM; to be called in the main thread of a process of its own.

    Args:
        port: To listen on, on all interfaces; 0 for any free one.
        ready: Called with its port when it answers.

    Raises:
        DataError: If it cannot listen there.
    """
    stop = _stop_signal()
    tf.config.set_visible_devices([], "GPU")  # it needs none, and TensorFlow would take all of its memory
    # It keeps no state on disk: after a restart clients ask anew for what is due.
    config = tf.data.experimental.service.DispatcherConfig(
        port=port, protocol="grpc", worker_timeout_ms=10_000
    )
    try:
        server = tf.data.experimental.service.DispatchServer(config)
    except tf.errors.OpError as error:
        raise DataError(
            f"port {port}", f"no dispatcher can listen: {error.message}", "choose another"
        ) from error
    ready(server.target.rpartition(":")[2])
    stop.wait()
    server.stop()


def serve_worker(
    make_reader: Callable[[dict[str, Any]], Reader],
    dispatcher: str,
    host: str,
    port: int,
    ready: Callable[[str], None],
    answer_s: float = 60.0,
) -> None:
    """Run a worker until SIGINT or SIGTERM; to be called in the main thread of a process of its own.

    After it the process should end with `os._exit`: a server that clients still ask may hold up Python's own end.

    Args:
        make_reader: From a request to what reads its batches.
        dispatcher: Its address, `grpc://host:port`.
        host: Name under which other hosts reach this one.
        port: To listen on, on all interfaces; 0 for any free one.
        ready: Called with the worker's name, `host:process`, when it is registered.
        answer_s: How long to wait for the dispatcher, in seconds.

    Raises:
        DataError: If no dispatcher answers, if the worker cannot listen, or if this process called Python functions
            from TensorFlow before.
    """
    stop = _stop_signal()
    tf.config.set_visible_devices([], "GPU")
    name = f"{host}:{os.getpid()}"
    graph = _registered(_answering(make_reader, name))  # is kept, since the function goes with it
    _reach(dispatcher, answer_s)
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher_address=":".join(map(str, _host_and_port(dispatcher))),
        worker_address=f"{host}:{port or '%port%'}",
        port=port,
        protocol="grpc",
        heartbeat_interval_ms=1000,
        data_transfer_address=f"{host}:{port or '%port%'}",
    )
    try:
        server = tf.data.experimental.service.WorkerServer(config)
    except tf.errors.OpError as error:
        raise DataError(
            f"{host}:{port}", f"no worker can run: {error.message}", "see --host and --port"
        ) from error
    ready(name)
    stop.wait()
    # TensorFlow waits here for what clients have asked of it, which may never end.
    stopping = threading.Thread(target=server.stop, daemon=True)
    stopping.start()
    stopping.join(_STOP_S)
    del graph


class _Asked:
    """What is asked of a service, as a tf.data graph that names no function of this process.

    Args:
        request: `_HELLO`, or JSON.
        signature: Of the arrays of a batch.
        address: Of the dispatcher.
        parallel_reads: Batches that each worker reads at the same time.
        once: Ask every worker once, instead of each index of one worker.
    """

    def __init__(
        self,
        request: str,
        signature: tuple[tf.TensorSpec, ...],
        address: str,
        parallel_reads: int,
        once: bool = False,
    ) -> None:
        self.dtypes = [spec.dtype for spec in signature]
        self.text = json.dumps(
            {"request": request, "version": __version__, "dtypes": [dtype.name for dtype in self.dtypes]}
        )
        self.address, self.parallel_reads, self.once = address, parallel_reads, once

    def stream(self, start: int) -> tf.data.Dataset:
        """Answers to the indices from `start` on: index, a report (JSON), arrays."""

        def ask(index: tf.Tensor) -> tuple[tf.Tensor, ...]:
            types = [tf.int64, tf.string, *self.dtypes]
            return tuple(tf.raw_ops.PyFuncStateless(input=[self.text, index], token=TOKEN, Tout=types))

        # Not `Dataset.counter`: its indices are not dealt out, every worker would count for itself.
        indices = tf.data.Dataset.range(start, start + 1 if self.once else tf.int64.max)
        answers = indices.map(ask, num_parallel_calls=self.parallel_reads, deterministic=False)
        service = tf.data.experimental.service
        policy = service.ShardingPolicy.OFF if self.once else service.ShardingPolicy.DYNAMIC
        return answers.apply(service.distribute(policy, _grpc(self.address)))


def _unbroken(asked: _Asked, read: Reader, start: int, patience_s: float) -> Iterator[tuple[np.ndarray, ...]]:
    """Batches in order, also after the service was away for a while."""
    due, last_lost = start, -1
    while True:
        try:
            for batch in in_order(_arriving(asked, patience_s, due), read, due):
                yield tuple(batch)
                due += 1
            raise _LostError("the stream ended")
        except _LostError as lost:
            if last_lost == due:
                raise DataError(
                    asked.address,
                    f"batch {due} did not come, in two attempts: {lost}",
                    "see what the workers print, and whether this host reaches them under their --host",
                ) from lost
            last_lost = due
            logger.warning("the data service at %s was lost at batch %d: %s", asked.address, due, lost)
            find_workers(asked.address, patience_s)


def _arriving(
    asked: _Asked, patience_s: float, start: int = 0
) -> Iterator[tuple[int, str, list[np.ndarray]]]:
    """What the service sends, as index, worker and arrays; it is lost if nothing comes for so many seconds.

    TensorFlow waits for a service without end, so it does so in a thread; one that waits for ever is left behind.
    """
    received: queue.Queue[Any] = queue.Queue(maxsize=2)
    left = threading.Event()

    def put(item: Any) -> None:
        while not left.is_set():
            try:
                return received.put(item, timeout=0.2)
            except queue.Full:
                continue

    def receive() -> None:
        try:
            for element in asked.stream(start):
                put(element)
                if left.is_set():
                    return
            put(None)
        except Exception as error:  # noqa: BLE001 (raised where the batches are awaited)
            put(error)

    threading.Thread(target=receive, daemon=True, name="data service").start()
    try:
        while True:
            try:
                element = received.get(timeout=patience_s)
            except queue.Empty:
                raise _LostError(f"nothing came for {patience_s:g} s") from None
            if element is None:
                return
            if isinstance(element, tf.errors.OpError):
                raise _what_ended(element, asked.address) from element
            if isinstance(element, Exception):
                raise element
            index, report, *arrays = element
            yield int(index), _checked_worker(json.loads(report.numpy()), asked.address), arrays
    finally:
        left.set()


def _what_ended(error: tf.errors.OpError, address: str) -> Exception:
    """Whether the service is away, or a worker cannot do what it is asked for."""
    if f"key={TOKEN}" in error.message or "callback" in error.message:
        return DataError(address, "a worker there is none of partialseg", _START.format("worker"))
    away = (
        tf.errors.UnavailableError,
        tf.errors.NotFoundError,
        tf.errors.CancelledError,
        tf.errors.AbortedError,
    )
    return _LostError(error.message) if isinstance(error, away) else error


def _checked_worker(report: dict[str, Any], address: str) -> str:
    """Name of the worker that sent a report; raises what it found wrong with the data."""
    if report["version"] != __version__:
        raise DataError(
            address,
            f"worker {report['worker']} is partialseg {report['version']}, expected {__version__} as here",
            "install the same version on all hosts",
        )
    if report["problem"]:
        raise DataError(*report["problem"])
    return report["worker"]


def _answering(make_reader: Callable[[dict[str, Any]], Reader], name: str) -> Callable[..., tuple[Any, ...]]:
    """The Python function of a worker: from request and index to index, report and arrays."""
    readers: dict[str, Reader] = {}
    opening = threading.Lock()

    def reader_of(request: str) -> Reader:
        with opening:
            if request not in readers:
                while len(readers) >= _MOST_OPEN:
                    readers.pop(next(iter(readers)))
                readers[request] = make_reader(json.loads(request))
            readers[request] = readers.pop(request)  # the last to go
            return readers[request]

    def answer(text: bytes, index: np.int64) -> tuple[Any, ...]:
        asked = json.loads(text)
        report: dict[str, Any] = {"worker": name, "version": __version__, "problem": None}
        arrays = [np.zeros(0, dtype) for dtype in asked["dtypes"]]
        if (
            asked["request"] != _HELLO and asked.get("version") == __version__
        ):  # else the client says what is wrong
            try:
                arrays = reader_of(asked["request"])(int(index))
            except DataError as error:  # passed on as data, so that all of it reaches the client
                report["problem"] = [error.path, f"{error.problem} (on {name})", error.remedy]
        return (index, json.dumps(report).encode(), *arrays)

    return answer


def _registered(answer: Callable[..., tuple[Any, ...]]) -> Any:
    """Make a function known to TensorFlow as `TOKEN`; it lives as long as the graph that is returned."""
    types = [tf.int64, tf.string]  # a client says its own
    traced = tf.function(lambda text, index: tf.numpy_function(answer, [text, index], types, stateful=False))
    graph = traced.get_concrete_function(tf.TensorSpec((), tf.string), tf.TensorSpec((), tf.int64)).graph
    tokens = [op.get_attr("token").decode() for op in graph.get_operations() if op.type == "PyFuncStateless"]
    if tokens != [TOKEN]:
        raise DataError(
            "data service",
            f"TensorFlow {tf.__version__} calls the worker's function {tokens}, expected {TOKEN!r}",
            "run the worker as `partialseg data-service worker`, with the TensorFlow version that setup.py asks for",
        )
    return graph


def _grpc(address: str) -> str:
    """An address as TensorFlow takes it."""
    return "grpc://{}:{}".format(*_host_and_port(address))


def _host_and_port(address: str) -> tuple[str, int]:
    """Host and port of an address.

    Example:
        >>> _host_and_port("grpc://reader1:5000")
        ('reader1', 5000)
    """
    host, _, port = address.removeprefix("grpc://").rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise DataError(address, "is no address of a data service", "write grpc://HOST:PORT")
    return host, int(port)


def _reach(address: str, answer_s: float) -> None:
    """Wait until something listens at an address: TensorFlow itself would wait for an hour."""
    host, port = _host_and_port(address)
    deadline = time.monotonic() + answer_s
    while True:
        try:
            with socket.create_connection((host.strip("[]"), port), timeout=max(answer_s, 0.1)):
                return
        except socket.gaierror as error:
            problem = f"no such host is known here: {error.strerror or error}"
            raise DataError(address, problem, "write a name or address that this host can reach") from error
        except OSError as error:
            if time.monotonic() > deadline:
                raise DataError(
                    address,
                    f"no dispatcher answered within {answer_s:g} s: {error.strerror or error}",
                    _START.format("dispatcher"),
                ) from error
        time.sleep(0.2)


def _stop_signal() -> threading.Event:
    """Set when the process is asked to end."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop
