"""What happens after each epoch: learning rate, loss terms per dataset, logs, checkpoint."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.progress import Progress as ProgressBar

from partialseg.errors import DataError
from partialseg.files import atomic_path
from partialseg.progress import console
from partialseg.training.config import ScheduleConfig, StageConfig, TrainingConfig
from partialseg.training.history import Progress

#: Share of an epoch that the device may wait for data before its line says what to do.
MUCH_WAIT = 0.1


class LossIsNotFiniteError(DataError):
    """Training diverged: in which run, what was seen and what to change."""


def schedule_step(
    progress: Progress, loss: float, schedule: ScheduleConfig, first: float, epochs: int
) -> None:
    """Set the learning rate of the next epoch, in `progress`, in place.

    Under "plateau" (section 4.3 of the paper) it is multiplied by `schedule.factor` when the loss has not
    fallen by `schedule.min_delta` below the lowest so far in `schedule.patience` epochs. The state is part of
    `progress`, so a resumed run goes on as if it had never stopped.

    Args:
        progress: After the epoch that just ended.
        loss: Mean loss of that epoch.
        schedule: The rule.
        first: Learning rate with which the stage began.
        epochs: Of the stage.

    Example:
        >>> progress = Progress(learning_rate=0.1)
        >>> for loss in (1.0, 1.0, 1.0):
        ...     schedule_step(progress, loss, ScheduleConfig(patience=2), first=0.1, epochs=3)
        >>> round(progress.learning_rate, 3)
        0.08
    """
    if schedule.kind == "polynomial":
        progress.learning_rate = first * max(0.0, 1 - progress.epoch / epochs) ** schedule.power
    elif progress.best is None or loss < progress.best - schedule.min_delta:
        progress.best, progress.wait = loss, 0
    else:
        progress.wait += 1
        if progress.wait >= schedule.patience:
            progress.learning_rate *= schedule.factor
            progress.wait = 0


class TermsPerDataset:
    """Every loss term on fixed patches of every dataset, so that the curves of epochs can be compared.

    Args:
        loss: The loss that training uses, one of `partialseg.losses.PRESETS`; its terms (its `values`) are
            logged without their weights.
        patches: Per dataset the images, float32 HU `(n, d, h, w, 1)`, and candidates, uint8 `(n, d, h, w, C)`.
    """

    def __init__(self, loss: keras.losses.Loss, patches: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        self.loss = loss
        self.patches = patches

    def __call__(self, model: keras.Model) -> list[tuple[str, str, float]]:
        """Rows (dataset, term, mean over the dataset's patches)."""
        rows = []
        for dataset, (images, candidates) in self.patches.items():
            of_patches = [
                self._values(model, image[None], target[None])
                for image, target in zip(images, candidates, strict=True)
            ]
            rows += [
                (dataset, term, float(np.mean([values[term] for values in of_patches])))
                for term in of_patches[0]
            ]
        return rows

    @tf.function(autograph=False)
    def _values(self, model: keras.Model, image: tf.Tensor, candidates: tf.Tensor) -> dict[str, tf.Tensor]:
        """The terms of one patch; `predict_on_batch` would return it once for each replica of a strategy."""
        logits = model(image, training=False)
        return self.loss.values(candidates, logits[0] if isinstance(logits, list | tuple) else logits)


class EpochEnd(keras.callbacks.Callback):
    """After each epoch: log, step the learning rate, save a checkpoint, print a line; during it: move the bar.

    Comes after a `DataWait` among the callbacks, whose `data_wait` it logs.

    The order makes a kill at any moment harmless: the checkpoint is written under its own name, then
    `progress.json`, which names it, replaces the one before, then older checkpoints are removed.

    Args:
        folder: The run folder.
        progress: Where training stands; changed in place.
        config: The experiment, for its schedule.
        stage: The stage under way.
        terms: Called with the model after each epoch.
        writer: TensorBoard's.
        bar: The progress bar and its task.
    """

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        config: TrainingConfig,
        stage: StageConfig,
        terms: TermsPerDataset,
        writer: tf.summary.SummaryWriter,
        bar: tuple[ProgressBar, Any],
    ) -> None:
        super().__init__()
        self.folder, self.progress, self.config, self.stage = folder, progress, config, stage
        self.terms, self.writer, self.bar = terms, writer, bar
        self._started = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Move the bar; stop at once if the loss is not a number."""
        loss = float((logs or {})["loss"])
        if not math.isfinite(loss):
            raise LossIsNotFiniteError(
                self.folder,
                f"stage {self.stage.name!r}, epoch {self.progress.epoch + 1}, step {batch + 1}: the loss is {loss}",
                "lower `optimizer.learning_rate`, or set `optimizer.clip_norm: 12`, and start in a new run folder",
            )
        bar, task = self.bar
        bar.update(task, advance=1, description=f"{self.stage.name}: loss {loss:.3f}")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log, step the learning rate, save, print."""
        progress, logs = self.progress, logs or {}
        loss, wait = float(logs["loss"]), float(logs["data_wait"])
        seconds = time.perf_counter() - self._started
        rows = self.terms(self.model)
        progress.epoch = epoch + 1
        progress.log.append(
            [
                *(self.stage.name, progress.epoch, progress.learning_rate),
                *(round(loss, 6), round(seconds, 3), round(wait, 4)),
            ]
        )
        progress.terms += [
            [self.stage.name, progress.epoch, dataset, term, round(v, 6)] for dataset, term, v in rows
        ]
        self._write_tensorboard(loss, wait, rows)
        schedule = self.stage.schedule or self.config.schedule
        schedule_step(progress, loss, schedule, self.config.optimizer.learning_rate, self.stage.epochs)
        self.model.optimizer.learning_rate = progress.learning_rate
        save_checkpoint(self.model, self.folder, progress)
        # Neither colours nor marks: a stage may be called anything.
        config = self.config
        line = epoch_line(
            self.stage, progress.epoch, loss, seconds, wait, config.workers, config.data_service is not None
        )
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _write_tensorboard(self, loss: float, wait: float, rows: list[tuple[str, str, float]]) -> None:
        step = len(self.progress.log)
        with self.writer.as_default():
            tf.summary.scalar("loss", loss, step)
            tf.summary.scalar("data_wait", wait, step)
            tf.summary.scalar("learning_rate", self.progress.learning_rate, step)
            for dataset, term, value in rows:
                tf.summary.scalar(f"{term}/{dataset}", value, step)
        self.writer.flush()


def epoch_line(
    stage: StageConfig,
    epoch: int,
    loss: float,
    seconds: float,
    wait: float,
    workers: int,
    data_service: bool = False,
) -> str:
    """What is printed after an epoch; where the device waited much for data, with what to do about it.

    Args:
        stage: Under way.
        epoch: Epochs of it that are done.
        loss: Mean of the epoch.
        seconds: That it took.
        wait: Share of the time of its steps for which the device waited for data, 0 to 1; see `DataWait`.
        workers: Batches that are read at the same time.
        data_service: Whether other processes or hosts read them.

    Example:
        >>> stage = StageConfig(name="all", datasets="all", epochs=80, patches_per_dataset=500)
        >>> print(epoch_line(stage, 3, 1.2341, 12.34, 0.04, workers=2))
        all, epoch 3 of 80: loss 1.234, 12.3 s, waited for data 4%
    """
    line = f"{stage.name}, epoch {epoch} of {stage.epochs}: loss {loss:.3f}, {seconds:.1f} s"
    line += f", waited for data {wait:.0%}"
    if wait > MUCH_WAIT:
        more = (
            "start more workers of the data service"
            if data_service
            else "feed from other machines (data_service)"
        )
        line += f": raise workers ({workers}), or {more}"
    return line


def save_checkpoint(model: keras.Model, folder: Path, progress: Progress) -> None:
    """Save weights and optimiser, then the progress that names them, then remove what it replaces."""
    checkpoints = folder / "checkpoint"
    progress.checkpoint = f"stage{progress.stage}_epoch{progress.epoch:04d}.weights.h5"
    with atomic_path(checkpoints / progress.checkpoint) as temporary:
        model.save_weights(temporary)
    progress.save(folder)
    for older in checkpoints.glob("*.weights.h5"):
        if older.name != progress.checkpoint:
            older.unlink()
