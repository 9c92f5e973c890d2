"""Patches for training: a `tf.data` pipeline of `(image, candidates)` batches."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from partialseg.arrays import read_boxes
from partialseg.data.labels import candidates, ignored_value
from partialseg.data.prepared import Case, Prepared, read_prepared
from partialseg.data.sampling import Draw, PatchConfig, PatchPlan, fixed_draws
from partialseg.errors import DataError

__all__ = ["PatchConfig", "data_problems", "fixed_patches", "patches", "read_patch"]

#: What lies outside the field of view, in HU.
AIR = -1024

#: What lately ended a stream of this process; TensorFlow passes on its text alone.
_problems: deque[DataError] = deque(maxlen=32)


def patches(
    prepared: Prepared | str | os.PathLike[str], config: PatchConfig | Mapping[str, Any], start_batch: int = 0
) -> tf.data.Dataset:
    """An endless stream of batches, always the same for the same config (see `PatchPlan` for what is drawn).

    Args:
        prepared: The prepared cases, or the folder (or URL) that holds them.
        config: How patches are drawn. From an object store, `workers` batches are read at the same time.
        start_batch: Index of the first batch; a training that stopped goes on where it was.

    Returns:
        A dataset of `(image, candidates)`: image float32 HU `(batch, depth, height, width, 1)`, candidates
        uint8 of 0 and 1, `(batch, depth, height, width, classes)`. Where a patch reaches out of the volume,
        the image is air (-1024 HU) and every class is a candidate.

    Raises:
        DataError: If a dataset is unknown or has no case in the split, if there is none at all, or if a file of
            a case is missing or too short. What is wrong inside a file shows when it is read: iteration then
            ends with an `InvalidArgumentError` (see `data_problems`).
        pydantic.ValidationError: If the config is not valid.
    """
    if not isinstance(prepared, Prepared):
        prepared = read_prepared(prepared)
    config = PatchConfig.model_validate(config)
    plan = PatchPlan(prepared, config)
    cases = [case for name in plan.datasets for case in plan.cases[name]]
    prepared.check_files(cases)
    tables, offsets = _joined_tables(prepared, cases)
    shape = (config.batch_size, *config.patch_size)

    def read_batch(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, label = np.empty(shape, np.int16), np.empty(shape, np.uint8)
        try:
            draws = plan.batch(int(index))
            for slot, draw in enumerate(draws):
                read_patch(prepared, draw, image[slot], label[slot])
        except DataError as error:
            _problems.append(error)
            raise
        return image, label, np.array([offsets[_table_key(draw.case)] for draw in draws], np.int32)

    def to_tensors(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label, offset = tf.numpy_function(
            read_batch, [index], [tf.int16, tf.uint8, tf.int32], stateful=False
        )
        image, label = tf.ensure_shape(image, shape), tf.ensure_shape(label, shape)
        offset = tf.reshape(offset, (config.batch_size, 1, 1, 1))
        sets = tf.gather(tables, tf.cast(label, tf.int32) + offset)
        return tf.cast(image, tf.float32)[..., tf.newaxis], sets

    batches = tf.data.Dataset.counter(start_batch)
    return batches.map(to_tensors, num_parallel_calls=config.workers, deterministic=True).prefetch(2)


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
        split: "train" or "test".
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
    image = np.empty((num, *patch_size), np.int16)
    label = np.empty((num, *patch_size), np.uint8)
    for slot, draw in enumerate(draws):
        read_patch(prepared, draw, image[slot], label[slot])
    sets = [
        candidates(one_label, prepared.table(draw.case)) for one_label, draw in zip(label, draws, strict=True)
    ]
    return image[..., np.newaxis].astype(np.float32), np.stack(sets)


def read_patch(prepared: Prepared, draw: Draw, image: np.ndarray, label: np.ndarray) -> None:
    """Read one patch into arrays; what lies outside the volume is air, and ignored.

    Args:
        prepared: The prepared cases.
        draw: The patch to read.
        image: int16 HU `(depth, height, width)`, written to.
        label: uint8 values of the dataset's table, same shape, written to.

    Raises:
        DataError: If a file is missing or holds what the manifest does not say.
    """
    case = draw.case
    inside, source = [], []
    for start, size, patch in zip(draw.start, case.shape, image.shape, strict=True):
        first, stop = max(start, 0), min(start + patch, size)
        source.append(slice(first, stop))
        inside.append(slice(first - start, stop - start))
    image.fill(AIR)
    label.fill(ignored_value(prepared.classes))
    parts = read_boxes([prepared.image(case), prepared.label(case)], tuple(source))
    image[tuple(inside)], label[tuple(inside)] = parts
    num_values = len(prepared.datasets[case.dataset].table)
    if label.max() >= num_values:
        raise DataError(
            prepared.folder / case.dataset / case.name / "label.npy",
            f"holds value {label.max()}, but the dataset's table has 0 to {num_values - 1}",
            "prepare the case again",
        )


def _table_key(case: Case) -> tuple[str, tuple[str, ...] | None]:
    """Cases with the same key have the same table."""
    return case.dataset, case.annotated


def _joined_tables(
    prepared: Prepared, cases: Iterable[Case]
) -> tuple[tf.Tensor, dict[tuple[str, tuple[str, ...] | None], int]]:
    """All tables one below the other, and where each begins, so that one gather serves a mixed batch."""
    tables = {_table_key(case): prepared.table(case) for case in cases}
    starts = np.cumsum([0, *map(len, tables.values())])[:-1]
    return tf.constant(np.concatenate([*tables.values()])), dict(zip(tables, starts.tolist(), strict=True))
