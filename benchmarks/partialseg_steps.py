"""The training steps of `partialseg train` on one batch that stays, for the workers of benchmarks that time them.

What `partialseg.training.trainer` does in each step: its optimiser, losses, compilation and strategy, and after each
step its two callbacks. Left out is what it does between steps alone: patches are not read, and neither checkpoints nor
the logs at the end of an epoch are written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from training_worker import Steps, step_callbacks

from partialseg.models import output_strides
from partialseg.progress import progress_bar
from partialseg.training.callbacks import Bookkeeper, Books, TermsPerDataset
from partialseg.training.config import StageConfig, TrainingConfig
from partialseg.training.data_wait import DataWait
from partialseg.training.devices import Workers, make_strategy
from partialseg.training.history import Progress
from partialseg.training.interruption import StopRequest
from partialseg.training.optimizers import computing_in
from partialseg.training.state import TrainingState
from partialseg.training.trainer import build_model, compile_model

#: More steps than are measured, so that the epoch, at whose end `fit` logs and saves, does not end.
MANY = 10**6


def configured(size: tuple[int, ...], network: dict[str, Any], precision: str = "float32") -> TrainingConfig:
    """A config that trains as nnU-Net does.

    SGD with Nesterov's momentum 0.99 and its clipping; its weight decay of 3e-5 is part of the gradient, which the
    momentum makes 3e-3 beside it.
    """
    return TrainingConfig.model_validate(
        {
            "name": "steps",
            "patch_size": size,
            "network": {"deep_supervision": True, **network},
            "optimizer": {
                **{"name": "sgd", "learning_rate": 1e-2, "momentum": 0.99},
                **{"weight_decay": 3e-3, "clip_norm": 12.0},
            },
            "precision": precision,
            "checkpoint_minutes": 60 * 24,
            "augmentation": None,
        }
    )


def train_steps(
    config: TrainingConfig,
    image: np.ndarray,
    candidates: np.ndarray,
    steps: Steps,
    change: Callable[[keras.Model], keras.Model] = lambda model: model,
    whole_xla: bool = False,
) -> None:
    """Fit one batch as often as the benchmark asks.

    Args:
        config: What is trained.
        image: HU, float32 `(batch, depth, height, width, 1)`.
        candidates: uint8 `(batch, depth, height, width, classes)`.
        steps: Asks and answers.
        change: Makes another network of the config's.
        whole_xla: Whether XLA compiles the whole step whatever the trainer thinks of it.
    """
    keras.utils.set_random_seed(config.seed)
    workers = Workers(make_strategy())
    with workers.strategy.scope(), computing_in(config.precision):
        model = change(build_model(config, candidates.shape[-1]))
        losses = compile_model(model, config)
        model.optimizer.build(model.trainable_variables)
    if whole_xla:
        model.jit_compile = True
    targets = [np.ascontiguousarray(candidates[:, ::d, ::h, ::w]) for d, h, w in output_strides(model)]
    data = tf.data.Dataset.from_tensors((image, tuple(targets) if len(targets) > 1 else targets[0])).repeat()
    stage = StageConfig(name="all", datasets="all", epochs=1, patches_per_dataset=MANY)
    begin, end = step_callbacks(keras, steps)
    if not steps.asked():
        return
    with tempfile.TemporaryDirectory() as folder, progress_bar() as bar:
        books = _books(model, losses, workers, Path(folder))
        bookkeeper = _StepKeeper(books, config, stage, MANY, (bar, bar.add_task(stage.name, total=MANY)))
        model.fit(
            data,
            steps_per_epoch=MANY,
            verbose=0,
            shuffle=False,
            callbacks=[begin, DataWait(), bookkeeper, end],
        )


def _books(model: keras.Model, losses: list[keras.losses.Loss], workers: Workers, folder: Path) -> Books:
    """The books of a training that has just begun."""
    return Books(
        folder=folder,
        progress=Progress(learning_rate=1e-2),
        state=TrainingState(model, losses),
        loss=losses[0],
        checkpoints=workers.checkpoints(folder / "checkpoint"),
        best=workers.checkpoints(folder / "best"),
        stop=StopRequest(),
        workers=workers,
        terms=TermsPerDataset(losses[0], (), {}),
        validation=None,
        writer=tf.summary.create_noop_writer(),
    )


class _StepKeeper(Bookkeeper):
    """Keeps the books of steps alone."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write nothing."""
