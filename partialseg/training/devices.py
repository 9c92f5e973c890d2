"""Several devices, and several processes on one host or more, that train one network together."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from partialseg.errors import DataError
from partialseg.progress import console
from partialseg.training.checkpoints import Checkpoints
from partialseg.training.cluster import Cluster, find_cluster, this_worker


def make_strategy(devices: Sequence[str] | None = None) -> tf.distribute.Strategy | None:
    """The devices of this process, mirrored; in a cluster (see `find_cluster`) those of all its processes.

    In a cluster it returns once all processes have come; TensorFlow must not have computed anything before. Other
    backends of Keras train on one device: None.

    Args:
        devices: Such as `["GPU:0", "GPU:1"]`; all GPUs, or the CPU, by default.

    Raises:
        DataError: If devices are named in a cluster, where each process takes all that it sees, if the other processes
            did not come, or if several devices or processes are asked for on another backend than TensorFlow.

    Example:
        >>> make_strategy(["CPU:0"]).num_replicas_in_sync
        1
    """
    cluster = find_cluster()
    if keras.backend.backend() != "tensorflow":
        _refuse_several(cluster, devices)
        return None
    if cluster is None:
        # By name: without names TensorFlow would look for those of a cluster of one.
        gpus = [f"GPU:{index}" for index, _ in enumerate(tf.config.list_logical_devices("GPU"))]
        return tf.distribute.MirroredStrategy(list(devices) if devices else gpus or ["CPU:0"])
    if devices:
        raise DataError(
            "devices",
            f"{', '.join(devices)} are named, and this is one of {cluster.count} processes that train together",
            "name none: each process takes the GPUs that it sees (CUDA_VISIBLE_DEVICES)",
        )
    console.print(
        f"worker {cluster.worker} of {cluster.count}: waiting for the others at "
        f"{', '.join(address for addresses in cluster.tasks.values() for address in addresses)}",
        soft_wrap=True,
    )
    return _of_cluster(cluster)


def _refuse_several(cluster: Cluster | None, devices: Sequence[str] | None) -> None:
    """On a backend that trains on one device, refuse others."""
    backend = f"the {keras.backend.backend()} backend"
    if devices:
        raise DataError(
            backend,
            f"found devices {', '.join(devices)}, expected none: it trains on one, the first GPU or the CPU",
            "name none, or set KERAS_BACKEND=tensorflow",
        )
    if cluster is not None:
        raise DataError(
            backend,
            f"found a cluster of {cluster.count} processes, expected none: it trains in one",
            "set TF_CONFIG={} to train in one process, or KERAS_BACKEND=tensorflow",
        )


def _of_cluster(cluster: Cluster) -> tf.distribute.MultiWorkerMirroredStrategy:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({kind: list(addresses) for kind, addresses in cluster.tasks.items()}),
        task_type=cluster.kind,
        task_id=cluster.index,
        rpc_layer="grpc",
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except (tf.errors.OpError, RuntimeError) as error:
        raise DataError(
            f"worker {cluster.worker} of {cluster.count}",
            f"found no way to the others at {cluster.tasks}: {error}",
            "start all of them within a few minutes of each other, on free ports that every host reaches",
        ) from error


class Workers:
    """The processes that train together, as one of them sees them; often it is alone.

    They all take the same steps. What they must agree on goes round in a few integers.

    Args:
        strategy: What `make_strategy` gave.

    Attributes:
        strategy: The same.
        index: Of this process; 0 is the chief, which alone writes into the run folder and to the terminal.
        count: Of processes.

    Example:
        >>> workers = Workers(make_strategy(["CPU:0"]))
        >>> workers.is_chief, workers.most(15, 0)
        (True, [15, 0])
    """

    def __init__(self, strategy: tf.distribute.Strategy | None) -> None:
        self.strategy = strategy
        of_several = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        self.index, self.count = this_worker() if of_several else (0, 1)
        self._gather = tf.function(self._gather_tensor, autograph=False)

    @property
    def name(self) -> str:
        """Such as "worker 1 of 4"."""
        return f"worker {self.index} of {self.count}"

    @property
    def shard(self) -> tuple[int, int]:
        """This process's part of every batch, as `partialseg.data.patches` takes it."""
        return self.index, self.count

    @property
    def is_chief(self) -> bool:
        """Whether this process writes."""
        return self.index == 0

    def gather(self, *numbers: int) -> np.ndarray:
        """The numbers of all processes.

        Every process must call it equally often, and with equally many; it returns when all have.

        Returns:
            int64 `(rows, numbers)`, one row or more for each process.

        Raises:
            DataError: If another process has ended.
        """
        own = np.array([numbers], np.int64)
        if self.count == 1:
            return own
        with self.others_named():
            return self._gather(tf.constant(own)).numpy()

    def _gather_tensor(self, numbers: tf.Tensor) -> tf.Tensor:
        return self.strategy.gather(self.strategy.run(tf.identity, args=(numbers,)), axis=0)

    def most(self, *numbers: int) -> list[int]:
        """The largest of each number over all processes; to be called as `gather` is."""
        return self.gather(*numbers).max(axis=0).tolist()

    @contextlib.contextmanager
    def chief_first(self) -> Iterator[None]:
        """The chief goes through this block, then the others do; no one goes on before all are through.

        Raises:
            DataError: If another process did not come through.
        """
        if not self.is_chief:
            self._all_came_through()
        try:
            yield
        except Exception:
            self.most(1)  # those who wait for this one learn of it
            raise
        if self.is_chief:
            self._all_came_through()
        self._all_came_through()

    def _all_came_through(self) -> None:
        if self.most(0)[0]:
            raise DataError(
                self.name,
                "another worker could not go on",
                "see what it says, and start all of them again with the same command",
            )

    def check_same(self, steps: int, folder: Path) -> None:
        """Refuse to begin from different checkpoints.

        Args:
            steps: Of the checkpoint that this process found, -1 for none.
            folder: Where it looked.

        Raises:
            DataError: If another process found another one.
        """
        found = set(self.gather(steps)[:, 0].tolist())
        if len(found) > 1:
            raise DataError(
                folder,
                f"{self.name} found the checkpoint after {steps} steps (-1: none), and another one did not",
                "put the run folder on a file system that all hosts share",
            )

    @contextlib.contextmanager
    def leaving_together(self, *agreed: type[BaseException]) -> Iterator[None]:
        """At the end of this block, wait for the others: none may end while the chief still writes.

        Args:
            agreed: Exceptions that are raised in all processes or in none; with another one, this process ends.
        """
        try:
            yield
        except agreed:
            self.most(0)
            raise
        self.most(0)

    @contextlib.contextmanager
    def others_named(self) -> Iterator[None]:
        """In this block, say of a lost process what it means, instead of TensorFlow's pages.

        Raises:
            DataError: If another process has ended.
        """
        try:
            yield
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
            if self.count == 1:
                raise
            raise DataError(
                self.name,
                "another worker has ended, or is not reached any more",
                "see what it says; all of them started again with the same command go on from the last checkpoint",
            ) from error

    @contextlib.contextmanager
    def alone_heard(self) -> Iterator[None]:
        """In this block the chief alone writes to the terminal."""
        before = console.quiet
        console.quiet = before or not self.is_chief
        try:
            yield
        finally:
            console.quiet = before

    @contextlib.contextmanager
    def own_folder(self, folder: Path) -> Iterator[Path]:
        """The run folder for the chief; for another process one of its own, which is gone after this block."""
        if self.is_chief:
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="partialseg-") as temporary:
            try:
                yield Path(temporary)
            except DataError as error:
                path = error.path.replace(temporary, str(folder))
                raise type(error)(path, error.problem, error.remedy) from error

    def checkpoints(self, folder: Path) -> Checkpoints:
        """Checkpoints that all processes read and the chief writes."""
        return Checkpoints(folder) if self.is_chief else _Read(folder)

    def model(self, model: keras.Model) -> keras.Model:
        """The same network, with the same variables, as `fit` can train it here."""
        if self.count == 1:
            return model
        return WorkersModel(model.inputs, model.outputs, name=model.name)

    def share(
        self, stream: tf.data.Dataset, batch_size: int
    ) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        """The stream as `fit` takes it here.

        Args:
            stream: Of this process's part of each batch.
            batch_size: Patches in a whole batch.
        """
        if self.count == 1:
            return stream
        of_a_device = batch_size // self.strategy.num_replicas_in_sync
        return self.strategy.distribute_datasets_from_function(lambda context: stream.rebatch(of_a_device))


class _Read(Checkpoints):
    """Checkpoints that another process writes."""

    def save(self, step: int, progress: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        """Write nothing."""

    def drop_after(self, step: int) -> None:
        """Remove nothing."""


class WorkersModel(keras.Model):
    """A network that `fit` of Keras 3 can train in several processes (keras-team/keras, issue 20585).

    Made from the inputs and outputs of another one, whose variables it trains: that one is saved, and loaded where
    nothing is known of this class.
    """

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras takes the mean of the batches of all replicas, for their shape alone, and cannot do so across processes.
        if iterator is not None:
            batches = next(iter(iterator))[-1]
            data_batch = keras.tree.map_structure(
                lambda value: self.distribute_strategy.experimental_local_results(value)[0], next(batches)
            )
        super()._maybe_symbolic_build(data_batch=data_batch)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Logs of one element each: Keras takes their mean over the processes along the first axis."""
        return {name: tf.reshape(value, [1]) for name, value in super().train_step(data).items()}
