"""Patches for training: a `tf.data` pipeline of `(image, candidates)` batches."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from partialseg.data.patch_reading import PatchReader
from partialseg.data.patch_service import distribute
from partialseg.data.prepared import Prepared, read_prepared
from partialseg.data.process_end import CALLS
from partialseg.data.sampling import PatchConfig, PatchPlan, fixed_draws
from partialseg.errors import DataError
from partialseg.storage import is_remote

__all__ = ["PatchConfig", "data_problems", "fixed_patches", "patches"]

#: What lately ended a stream of this process; TensorFlow passes on its text alone.
_problems: deque[DataError] = deque(maxlen=32)


def patches(
    prepared: Prepared | str | os.PathLike[str],
    config: PatchConfig | Mapping[str, Any],
    start_batch: int | Mapping[str, Any] = 0,
    shard: tuple[int, int] = (0, 1),
    service: str | None = None,
) -> tf.data.Dataset:
    """An endless stream of batches, always the same for the same config (see `PatchPlan` for what is drawn).

    Args:
        prepared: The prepared cases, or the folder (or URL) that holds them.
        config: How patches are drawn. `workers` batches are read at the same time.
        start_batch: Index of the first batch, or a state that `PatchPlan.state` gave: a training that stopped goes
            on where it was, also in the middle of an epoch.
        shard: `(k, n)`: worker k of n, which gets its own n-th part of every batch. All workers together see the
            stream of one.
        service: Address of a tf.data service (`grpc://host:port`, see docs/data_service.md) whose workers read the
            same batches, in the same order; None reads them in this process.

    Returns:
        A dataset of `(image, candidates)`: image float32 HU `(batch, depth, height, width, 1)`, candidates
        uint8 of 0 and 1, `(batch, depth, height, width, classes)`. Where a patch reaches out of the volume,
        the image is air (-1024 HU, or the lower end of the augmentation's window) and every class is a candidate.

    Raises:
        DataError: If a dataset is unknown or has no case in the split, if there is none at all, if a file of
            a case is missing or too short, if the state is one of another stream, or if no service answers. What is
            wrong inside a file shows when it is read: iteration then ends with an `OpError` (see `data_problems`).
        pydantic.ValidationError: If the config is not valid.
        ValueError: If the shards do not divide the batch, or `start_batch` is below 0.
    """
    if not isinstance(prepared, Prepared):
        prepared = read_prepared(prepared)
    batches = BatchReader(prepared, PatchConfig.model_validate(config), shard)
    prepared.check_files([case for cases in batches.plan.cases.values() for case in cases])
    first = batches.plan.batch_of(start_batch) if isinstance(start_batch, Mapping) else int(start_batch)
    if first < 0:
        raise ValueError(f"start_batch is {first}, expected 0 or more")

    stream = _read_here(batches, first) if service is None else _read_by(service, batches, first)
    options = tf.data.Options()
    # Each worker of a MultiWorkerMirroredStrategy has its shard already.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return stream.prefetch(2).with_options(options)


def _read_here(batches: BatchReader, first: int) -> tf.data.Dataset:
    """The batches from the first on, read by threads of this process."""
    read = CALLS.counted(batches.read)

    def to_tensors(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, sets = tf.numpy_function(read, [index], [tf.float32, tf.uint8], stateful=False)
        return tf.ensure_shape(image, batches.image_shape), tf.ensure_shape(sets, batches.candidates_shape)

    return tf.data.Dataset.counter(first).map(
        to_tensors, num_parallel_calls=batches.config.workers, deterministic=True
    )


def _read_by(service: str, batches: BatchReader, first: int) -> tf.data.Dataset:
    """The same batches, read by the workers of a tf.data service."""
    folder = batches.prepared.folder
    request = {
        "prepared": str(folder) if is_remote(folder) else str(folder.resolve()),
        "config": batches.config.model_dump(mode="json"),
        "shard": batches.shard,
        "state": batches.plan.state(first),  # a worker whose cases are others refuses
    }
    signature = (
        tf.TensorSpec(batches.image_shape, tf.float32),
        tf.TensorSpec(batches.candidates_shape, tf.uint8),
    )
    return distribute(
        request,
        batches.read,
        signature,
        service,
        first,
        parallel_reads=batches.config.workers,
        on_problem=_problems.append,
    )


class BatchReader:
    """Reads the batches of a stream by their index.

    Args:
        prepared: The prepared cases.
        config: How patches are drawn.
        shard: `(k, n)`, see `patches`.

    Raises:
        DataError: If a dataset is unknown or has no case in the split, or if there is none at all.
        ValueError: If the shards do not divide the batch.
    """

    def __init__(self, prepared: Prepared, config: PatchConfig, shard: tuple[int, int] = (0, 1)) -> None:
        self.prepared, self.config, self.shard = prepared, config, shard
        self.plan = PatchPlan(prepared, config)
        self.slots = self.plan.slots(shard)
        self.reader = PatchReader(prepared, config.patch_size, config.augmentation, config.seed)
        self.image_shape = (len(self.slots), *config.patch_size, 1)
        self.candidates_shape = (len(self.slots), *config.patch_size, len(prepared.classes))

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read one batch.

        Args:
            index: Of the batch, from the beginning of the training.

        Returns:
            Image float32 HU and candidates uint8, as `patches` has them.

        Raises:
            DataError: If a file is missing or holds what the manifest does not say.
        """
        image = self.reader.memory.empty(self.image_shape, np.float32)
        candidates = self.reader.memory.empty(self.candidates_shape, np.uint8)
        try:
            draws = self.plan.batch(int(index))
            for place, slot in enumerate(self.slots):
                self.reader.read(draws[slot], (int(index), slot), image[place, ..., 0], candidates[place])
        except DataError as error:
            _problems.append(
                DataError(error.path, error.problem, error.remedy)
            )  # without the batch in its frames
            raise
        return image, candidates


@contextlib.contextmanager
def data_problems() -> Iterator[None]:
    """While `patches` are read in this block, raise what was wrong with a file instead of TensorFlow's error.

    Raises:
        DataError: If a file that a patch needs could not be read, or holds what the manifest does not say.
    """
    try:
        yield
    except tf.errors.OpError as error:
        for problem in reversed(_problems):
            if str(problem) in error.message:
                raise problem from error
        raise


def fixed_patches(
    prepared: Prepared, dataset: str, split: str, num: int, patch_size: Sequence[int], seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Patches centred on the foreground of one dataset, the same at every call, for monitoring.

    Args:
        prepared: The prepared cases.
        dataset: Name of the dataset.
        split: "train", "test", or "validation" where cases are held out (see `partialseg.data.folds`).
        num: How many patches; cases and their organs come in turn.
        patch_size: `(depth, height, width)` in voxels.
        seed: Of the choice.

    Returns:
        Image, float32 HU `(num, depth, height, width, 1)`, and candidates, uint8 of 0 and 1,
        `(num, depth, height, width, classes)`.

    Raises:
        DataError: If the dataset is unknown or has no case in the split.
    """
    draws = fixed_draws(prepared, dataset, split, num, patch_size, seed)
    reader = PatchReader(prepared, patch_size)
    image = np.empty((num, *patch_size, 1), np.float32)
    sets = np.empty((num, *patch_size, len(prepared.classes)), np.uint8)
    for slot, draw in enumerate(draws):
        reader.read(draw, (slot,), image[slot, ..., 0], sets[slot])
    return image, sets
