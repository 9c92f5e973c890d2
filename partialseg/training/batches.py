"""The batches of a stage as `fit` takes them: coarser targets for deep supervision, parts for accumulation."""

from __future__ import annotations

import keras
import tensorflow as tf

from partialseg.data.pipeline import patches
from partialseg.data.prepared import Prepared
from partialseg.models import output_strides
from partialseg.training.config import TrainingConfig
from partialseg.training.stage_patches import stage_patches


def steps_of_epoch(config: TrainingConfig, stage: int, prepared: Prepared) -> int:
    """Steps that `fit` takes in an epoch of a stage: one for each part of each batch."""
    return stage_patches(config, stage, prepared).batches_per_epoch * config.accumulate


def stage_batches(
    model: keras.Model,
    config: TrainingConfig,
    prepared: Prepared,
    stage: int,
    step: int,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """The endless stream of a stage's batches, each in `config.accumulate` parts, from one of its steps on.

    Args:
        model: The network; where it has several outputs, each gets a target of its own.
        config: The experiment.
        prepared: The prepared cases.
        stage: Index of the stage.
        step: Steps of the stage that are done.
        shard: Part of each batch, see `partialseg.data.patches`.

    Raises:
        DataError: What `partialseg.data.patches` raises.
    """
    batch, part = divmod(step, config.accumulate)
    drawn = stage_patches(config, stage, prepared)
    stream = patches(prepared, drawn, batch, shard=shard, service=config.data_service)
    if config.accumulate > 1:
        stream = stream.flat_map(lambda *pair: _parts(pair, config.accumulate)).skip(part)
    if len(model.outputs) > 1:
        strides = output_strides(model)
        stream = stream.map(lambda image, target: (image, _coarser(target, strides)))
    return stream


def _parts(pair: tuple[tf.Tensor, ...], number: int) -> tf.data.Dataset:
    """A batch as so many batches, one after the other."""
    return tf.data.Dataset.from_tensor_slices(
        tuple(tf.reshape(tensor, (number, tensor.shape[0] // number, *tensor.shape[1:])) for tensor in pair)
    )


def _coarser(target: tf.Tensor, strides: list[tuple[int, ...]]) -> tuple[tf.Tensor, ...]:
    """Candidates for the coarser outputs of deep supervision: every stride-th voxel."""
    return tuple(target[:, ::d, ::h, ::w] for d, h, w in strides)
