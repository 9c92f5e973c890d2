"""What happens after each epoch: learning rate, loss terms per dataset, logs, checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from rich.progress import Progress as ProgressBar

from partialseg.data.classes import ALL_ORGANS
from partialseg.models.forward import first_output
from partialseg.progress import console
from partialseg.training.backends import on_tensorflow
from partialseg.training.checkpoints import Checkpoints
from partialseg.training.config import StageConfig, TrainingConfig
from partialseg.training.devices import Workers
from partialseg.training.history import Progress
from partialseg.training.interruption import StopRequest, TrainingStopped
from partialseg.training.optimizers import averaged_weights
from partialseg.training.schedule import step_schedule
from partialseg.training.state import TrainingState, bring_home
from partialseg.training.validation import PATCHES, VOLUMES, Score, Validation, mean_dice
from partialseg.wording import counted

#: Share of an epoch that the device may wait for data before its line says what to do.
MUCH_WAIT = 0.1
#: Of a shorter epoch the wait says little: much of it is for the first batch.
SHORT_EPOCH_S = 10.0


#: Dataset, class (or `ALL_ORGANS`), term, value.
TermRow = tuple[str, str, str, float]


class TermsPerDataset:
    """Every loss term on fixed patches of every dataset, so that the curves of epochs can be compared.

    Args:
        loss: The loss that training uses, one of `partialseg.losses.PRESETS`; its terms (its `values`, and its
            `class_values` for each class) are logged without their weights.
        classes: Names of the classes, background first.
        patches: Per dataset the images, float32 HU `(n, d, h, w, 1)`, and candidates, uint8 `(n, d, h, w, C)`.
    """

    def __init__(
        self,
        loss: keras.losses.Loss,
        classes: Sequence[str],
        patches: dict[str, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self.loss = loss
        self.classes = tuple(classes)
        self.patches = patches

    def __call__(self, model: keras.Model) -> list[TermRow]:
        """For each dataset and term the mean over its patches, and for each class that over those it is part of."""
        rows = []
        for dataset, (images, candidates) in self.patches.items():
            of_patches = [
                self._evaluate(model, image[None], target[None])
                for image, target in zip(images, candidates, strict=True)
            ]
            for term in of_patches[0]:
                whole, per_class = (
                    np.array([values[term][part] for values in of_patches]) for part in range(2)
                )
                rows.append((dataset, ALL_ORGANS, term, float(np.mean(whole))))
                for organ, values in zip(self.classes, np.moveaxis(per_class, -1, 0), strict=True):
                    if not np.isnan(values).all():
                        rows.append((dataset, organ, term, float(np.nanmean(values))))
        return rows

    def _evaluate(
        self, model: keras.Model, image: np.ndarray, candidates: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        if on_tensorflow():
            return self._values(model, image, candidates)
        logits = first_output(model.predict_on_batch(image))
        values = self._of_logits(ops.convert_to_tensor(candidates), ops.convert_to_tensor(logits))
        return {term: tuple(ops.convert_to_numpy(value) for value in values[term]) for term in values}

    @tf.function(autograph=False)
    def _values(
        self, model: keras.Model, image: tf.Tensor, candidates: tf.Tensor
    ) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        """The terms of one patch; `predict_on_batch` would return it once for each replica of a strategy."""
        logits = model(image, training=False)
        return self._of_logits(candidates, logits[0] if isinstance(logits, list | tuple) else logits)

    def _of_logits(self, candidates: Any, logits: Any) -> dict[str, tuple[Any, Any]]:
        """Each term of a patch as a whole, and of each class, `(1, classes)`."""
        per_class = self.loss.class_values(candidates, logits)
        whole = self.loss.values(candidates, logits)
        return {term: (value, per_class[term]) for term, value in whole.items()}


@dataclass
class Books:
    """What is kept of a training while it runs, and written down as it goes.

    Attributes:
        folder: The run folder.
        progress: Where training stands; changed in place.
        state: All variables.
        loss: Of the finest output.
        checkpoints: Where progress and state are saved.
        stop: Whether a signal asks training to stop.
        best: Where the weights with the best validation are kept.
        workers: The processes that train together.
        terms: Called with the model after each epoch.
        validation: Of the held-out cases; None where none are.
        writer: TensorBoard's.
        saved_at: Clock of the last checkpoint.
    """

    folder: Path
    progress: Progress
    state: TrainingState
    loss: keras.losses.Loss
    checkpoints: Checkpoints
    best: Checkpoints
    stop: StopRequest
    workers: Workers
    terms: TermsPerDataset
    validation: Validation | None
    writer: tf.summary.SummaryWriter
    saved_at: float = field(default_factory=time.monotonic)

    def save(self) -> None:
        """Write a checkpoint."""
        self.checkpoints.save(self.progress.steps, asdict(self.progress), self.state.read())
        self.saved_at = time.monotonic()

    def keep_if_best(self, dice: float | None, weights: list[np.ndarray]) -> None:
        """Keep weights if no validation before had so high a mean Dice.

        They are written before the checkpoint that tells of them; until then the ones before are there too.
        """
        progress = self.progress
        if dice is None or (progress.best_dice is not None and dice <= progress.best_dice):
            return
        progress.best_dice, progress.best_steps = dice, progress.steps
        arrays = {f"{index:05d}": weight for index, weight in enumerate(weights)}
        self.best.save(progress.steps, {"dice": dice, "steps": progress.steps}, arrays)

    def check_best(self) -> None:
        """See whether the best weights are there and whole; if not, those before them count as the best, or none."""
        progress = self.progress
        if not progress.best_steps:
            return
        saved, _, torn = self.best.newest(until=progress.best_steps)
        if saved and not torn and saved.get("steps", progress.best_steps) == progress.best_steps:
            return
        lost = torn[0] if torn else self.best.folder
        instead = "the best before them take their place" if saved else "the latest take their place"
        console.print(
            f"note: {lost}: the weights of step {progress.best_steps} are lost, {instead}", soft_wrap=True
        )
        saved = saved or {"dice": None, "steps": 0}
        progress.best_dice, progress.best_steps = saved["dice"], saved.get("steps", 0)


class Bookkeeper(keras.callbacks.Callback):
    """After each step: count it, and save where it is time; after each epoch: log, step the learning rate, save.

    Comes after a `DataWait` among the callbacks, whose `data_wait` it logs.

    The order makes a kill at any moment harmless: a checkpoint is whole before it has its name, and holds the
    tables, which are written first and are written again by a resumed run.

    Args:
        books: Of the training.
        config: The experiment, for its schedule.
        stage: The stage under way.
        steps: Of an epoch.
        bar: The progress bar and its task.
    """

    def __init__(
        self,
        books: Books,
        config: TrainingConfig,
        stage: StageConfig,
        steps: int,
        bar: tuple[ProgressBar, Any],
    ) -> None:
        super().__init__()
        self.books, self.config, self.stage, self.steps, self.bar = books, config, stage, steps, bar
        self._started = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Start the clock; in an epoch that goes on, from where it was."""
        self._started = time.perf_counter() - self.books.progress.seconds
        if self.books.progress.step:
            self.books.state.restore_running_loss()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Move the bar; stop at once if the loss is not a number; save if it is time or a signal came."""
        books, progress = self.books, self.books.progress
        loss = float((logs or {})["loss"])
        if not math.isfinite(loss):
            raise NotFinite(loss)
        progress.step += 1
        progress.steps += 1
        progress.seconds = time.perf_counter() - self._started
        bar, task = self.bar
        bar.update(task, advance=1, description=f"{self.stage.name}: loss {loss:.3f}")
        if progress.step == self.steps:
            return  # the epoch's end saves
        is_due = time.monotonic() - books.saved_at >= 60 * self.config.checkpoint_minutes
        # Processes that train together must stop, and read what is saved, at the same step.
        stop, is_due = books.workers.most(books.stop.signal_number or 0, is_due)
        if stop or is_due:
            books.save()
        if stop:
            raise TrainingStopped(stop, place(self.stage, progress))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Log, validate, step the learning rate, save, print."""
        books, progress, logs = self.books, self.books.progress, logs or {}
        loss, wait = float(logs["loss"]), logs.get("data_wait")
        progress.epoch, progress.step = epoch + 1, 0
        bring_home(self.model)
        with averaged_weights(self.model):
            rows = books.terms(self.model)
            scores = self._validate()
        dice = {source: mean_dice([s for s in scores if s.source == source]) for source in (PATCHES, VOLUMES)}
        seconds, progress.seconds = progress.seconds, 0.0
        progress.log.append(
            [
                *(self.stage.name, progress.epoch, progress.learning_rate),
                *(round(loss, 6), round(seconds, 3), None if wait is None else round(wait, 4)),
                *(dice[PATCHES], dice[VOLUMES]),
            ]
        )
        progress.terms += [
            [self.stage.name, progress.epoch, *where, round(value, 6)] for *where, value in rows
        ]
        progress.validation += [
            [self.stage.name, progress.epoch, *score[:-1], round(score.dice, 6)] for score in scores
        ]
        self._write_tensorboard(loss, wait, rows)
        self._write_dice(scores, dice)
        step_schedule(progress, loss, self.config)
        self.model.optimizer.learning_rate = progress.learning_rate
        progress.write_tables(books.folder)
        books.save()
        # Neither colours nor marks: a stage may be called anything.
        config = self.config
        line = epoch_line(
            *(self.stage, progress.epoch, loss, seconds, wait),
            *(config.workers, config.data_service is not None, dice),
        )
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        (stop,) = books.workers.most(books.stop.signal_number or 0)
        if stop:
            raise TrainingStopped(stop, place(self.stage, progress))

    def _validate(self) -> list[Score]:
        """Dice on held-out cases with the weights as they are; the best weights are kept."""
        books, progress = self.books, self.books.progress
        if books.validation is None:
            return []
        every = self.config.validation.volumes_every
        epochs = len(progress.log) + 1
        is_last = epochs == sum(stage.epochs for stage in self.config.stages)
        scores = books.validation.by_patches(self.model)
        decisive = scores
        if every is not None:
            decisive = []
            if epochs % every == 0 or is_last:
                bar, task = self.bar
                decisive = books.validation.by_volumes(
                    self.model,
                    lambda done, of: bar.update(
                        task, description=f"{self.stage.name}: validating {done}/{of}"
                    ),
                )
            scores = scores + decisive
        books.keep_if_best(mean_dice(decisive), self.model.get_weights())
        return scores

    def _write_dice(self, scores: list[Score], means: dict[str, float | None]) -> None:
        """Dice to TensorBoard: `dice_patches/btcv/liver`, and `dice_patches` the mean over organs."""
        cells: dict[str, list[float]] = {f"dice_{s}": [m] for s, m in means.items() if m is not None}
        for score in scores:
            name = f"dice_{score.source}/{score.dataset}/{score.organ}"
            cells.setdefault(name, []).append(score.dice)
        with self.books.writer.as_default():
            for name, values in cells.items():
                tf.summary.scalar(name, float(np.mean(values)), len(self.books.progress.log))
        self.books.writer.flush()

    def _write_tensorboard(self, loss: float, wait: float | None, rows: list[TermRow]) -> None:
        step, writer = len(self.books.progress.log), self.books.writer
        with writer.as_default():
            tf.summary.scalar("loss", loss, step)
            if wait is not None:
                tf.summary.scalar("data_wait", wait, step)
            tf.summary.scalar("learning_rate", self.books.progress.learning_rate, step)
            for dataset, organ, term, value in rows:
                name = f"{term}/{dataset}" if organ == ALL_ORGANS else f"{term}/{dataset}/{organ}"
                tf.summary.scalar(name, value, step)
        writer.flush()


class NotFinite(Exception):  # noqa: N818 (caught by the trainer, which says why)
    """The loss of a step is not a number.

    Args:
        loss: The running mean of the epoch with that step.
    """

    def __init__(self, loss: float) -> None:
        super().__init__(f"the loss is {loss}")
        self.loss = loss


def place(stage: StageConfig, progress: Progress) -> str:
    """Where training stands, in words.

    Example:
        >>> stage = StageConfig(name="all", datasets="all", epochs=80, patches_per_dataset=500)
        >>> place(stage, Progress(epoch=2, step=7))
        'all, epoch 3, after 7 steps'
    """
    if not progress.step:
        return f"{stage.name}, after epoch {progress.epoch}"
    return f"{stage.name}, epoch {progress.epoch + 1}, after {counted(progress.step, 'step')}"


def epoch_line(
    stage: StageConfig,
    epoch: int,
    loss: float,
    seconds: float,
    wait: float | None,
    workers: int,
    data_service: bool = False,
    dice: Mapping[str, float | None] | None = None,
) -> str:
    """What is printed after an epoch; where the device waited much for data, with what to do about it.

    Args:
        stage: Under way.
        epoch: Epochs of it that are done.
        loss: Mean of the epoch.
        seconds: That it took.
        wait: Share of the time of its steps for which the device waited for data, 0 to 1; see `DataWait`. None where
            it is not measured.
        workers: Batches that are read at the same time.
        data_service: Whether other processes or hosts read them.
        dice: Mean Dice of held-out patches and volumes, as far as they were predicted.

    Example:
        >>> stage = StageConfig(name="all", datasets="all", epochs=80, patches_per_dataset=500)
        >>> print(epoch_line(stage, 3, 1.2341, 12.34, 0.04, workers=2))
        all, epoch 3 of 80: loss 1.234, 12.3 s, waited for data 4%
        >>> print(epoch_line(stage, 3, 1.2341, 12.34, None, workers=2, dice={"patches": 0.61, "volumes": None}))
        all, epoch 3 of 80: loss 1.234, Dice 0.610 (patches), 12.3 s
    """
    found = "".join(
        f", Dice {mean:.3f} ({source})" for source, mean in (dice or {}).items() if mean is not None
    )
    line = f"{stage.name}, epoch {epoch} of {stage.epochs}: loss {loss:.3f}{found}, {seconds:.1f} s"
    if wait is not None:
        line += f", waited for data {wait:.0%}"
    if wait is not None and wait > MUCH_WAIT and seconds >= SHORT_EPOCH_S:
        more = (
            "start more workers of the data service"
            if data_service
            else "feed from other machines (data_service)"
        )
        line += f": raise workers ({workers}), or {more}"
    return line
