"""Training: the stages of section 4.3 on one device or many, into a run folder that can be resumed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from partialseg.data.folds import hold_out
from partialseg.data.patch_reading import mirror_note
from partialseg.data.pipeline import data_problems, fixed_patches
from partialseg.data.prepared import Prepared
from partialseg.errors import DataError
from partialseg.files import atomic_path, sync_folder
from partialseg.losses import preset
from partialseg.models import build_network, take_over
from partialseg.progress import console, progress_bar
from partialseg.training.backends import (
    compute_deterministically,
    jit_compile,
    leave_gpus_to_the_backend,
    on_tensorflow,
)
from partialseg.training.batches import stage_batches, steps_of_epoch
from partialseg.training.beginning import begin, only_writer
from partialseg.training.callbacks import (
    Bookkeeper,
    Books,
    NotFinite,
    TermsPerDataset,
)
from partialseg.training.config import TrainingConfig
from partialseg.training.data_wait import DataWait
from partialseg.training.devices import Workers, make_strategy
from partialseg.training.history import Progress
from partialseg.training.interruption import StopRequest, TrainingStopped
from partialseg.training.not_finite import LossIsNotFiniteError, explain
from partialseg.training.optimizers import averaged_weights, computing_in, make_optimizer
from partialseg.training.runs import Run, left_overs, remove_left_overs
from partialseg.training.schedule import first_rate
from partialseg.training.state import TrainingState, bring_home
from partialseg.training.validation import Validation, left_out_note


def train(
    config: TrainingConfig | str | Path,
    prepared: Prepared | str | os.PathLike[str],
    out: str | Path,
    start_from: Run | str | Path | None = None,
    devices: Sequence[str] | None = None,
) -> Run:
    """Train a network through all stages of the config; go on where an earlier call stopped.

    Where TF_CONFIG or Slurm describes several processes, all of them call it alike and train together (see
    docs/clusters.md); the run folder is one that all of them see, and the first of them writes it.

    Args:
        config: The experiment, a config file, or the name of one that comes with the package.
        prepared: What `partialseg prepare` wrote, or the folder or URL where it lies.
        out: The run folder. If it holds an unfinished run of the same config and cases, that is continued; if it
            holds a finished one, that is returned. `workers`, `data_service` and `checkpoint_minutes`, which change
            nothing in the weights, may be others than before.
        start_from: A finished run whose weights the network begins with, instead of random ones. It must have the
            same network, but for `dropout` and `deep_supervision`. An organ that it does not know begins as part of
            background; one that the prepared data do not have is left out (see `partialseg.models.take_over`).
        devices: Devices of this host to train on, such as `["GPU:0", "GPU:1"]`; all GPUs, or the CPU, by default.

    Returns:
        The finished run.

    Raises:
        DataError: If the run folder belongs to another config or other data, or another process trains in it, data
            are missing, the data service of the config does not answer, or another process of a cluster is lost.
        LossIsNotFiniteError: If training diverged.
        TrainingStopped: After Ctrl-C or a signal that ends jobs, once a checkpoint is saved.
    """
    leave_gpus_to_the_backend()
    workers = Workers(make_strategy(devices))  # of a cluster: before TensorFlow computes anything
    with workers.alone_heard(), workers.others_named(), contextlib.ExitStack() as held:
        with workers.chief_first():
            config, prepared, run, trained = begin(config, prepared, out, start_from, workers.strategy)
            to_do = not run.model_path.is_file() or left_overs(run.folder)
            if workers.is_chief and to_do and held.enter_context(only_writer(run.folder)):
                remove_left_overs(run.folder)
        if not run.model_path.is_file():
            with workers.own_folder(run.folder) as folder:
                _train(config, prepared, run, trained, workers, folder)
    return run


def _train(
    config: TrainingConfig,
    prepared: Prepared,
    run: Run,
    trained: tuple[keras.Model, tuple[str, ...]] | None,
    workers: Workers,
    folder: Path,
) -> None:
    """Train from where the run stands to its end, with the logs of this process in a folder."""
    if (note := mirror_note(prepared, config.augmentation)) is not None:
        console.print(f"note: {note}")
    if config.validation is not None and (alone := _never_held_out(config, prepared)):
        console.print(f"note: no case is held out of {', '.join(alone)}: one training case each")
    if (note := left_out_note(prepared, config.validation)) is not None:
        console.print(f"note: {note}", soft_wrap=True)
    strategy = workers.strategy
    if strategy and config.accumulate > 1:  # Keras cannot accumulate under any other, not even on one device
        strategy = tf.distribute.get_strategy()
    if config.deterministic:
        compute_deterministically()
    keras.utils.set_random_seed(config.seed)
    with strategy.scope() if strategy else contextlib.nullcontext(), computing_in(config.precision):
        model = workers.model(build_model(config, len(prepared.classes)))
        losses = compile_model(model, config)
        if trained is not None:
            take_over(*trained, model, prepared.classes)
        books = _open_books(model, losses, config, prepared, run, workers, folder)
    with books.stop.listening(), workers.leaving_together(TrainingStopped, LossIsNotFiniteError):
        _train_stages(model, config, prepared, books)
    books.writer.close()
    with workers.chief_first():
        if not workers.is_chief:
            return
        network = _trained(model, len(prepared.classes), config, books)
        with atomic_path(run.model_path) as temporary:
            network.save(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(run.folder)
        for folder in (books.checkpoints.folder, books.best.folder):
            shutil.rmtree(folder, ignore_errors=True)


def _never_held_out(config: TrainingConfig, prepared: Prepared) -> list[str]:
    """Datasets with a single training case, which stays in training."""
    kept = hold_out(prepared, config.validation)
    return [n for n in kept.datasets if kept.select(n, "train") and not kept.select(n, "validation")]


def _trained(model: keras.Model, num_classes: int, config: TrainingConfig, books: Books) -> keras.Model:
    """The network that a run ends with, in float32 and without the optimiser."""
    network = build_model(config, num_classes)
    if books.validation is not None and config.validation.keep == "best":
        books.check_best()
        if books.progress.best_steps:
            _, arrays, _ = books.best.newest(until=books.progress.best_steps)
            network.set_weights([arrays[name] for name in sorted(arrays)])
            return network
    bring_home(model)
    with averaged_weights(model):
        network.set_weights(model.get_weights())
    return network


def build_model(config: TrainingConfig, num_classes: int) -> keras.Model:
    """The network of a config, with fresh weights."""
    return build_network(num_classes=num_classes, **config.network.model_dump())


def compile_model(model: keras.Model, config: TrainingConfig) -> list[keras.losses.Loss]:
    """Compile for the training of a config.

    Args:
        model: Its network.
        config: The experiment.

    Returns:
        One loss for each output, the finest first; a loss may have a state.
    """
    options = config.losses.model_dump(exclude={"preset"})
    losses = [preset(config.losses.preset, **options, name="loss") for _ in model.outputs]
    num_outputs = len(losses)
    # nnU-Net's weights: each coarser output counts half the finer one.
    weights = np.array([0.5**k for k in range(num_outputs)])
    model.compile(
        optimizer=make_optimizer(config.optimizer, config.accumulate),
        loss=losses[0] if num_outputs == 1 else losses,
        loss_weights=None if num_outputs == 1 else (weights / weights.sum()).tolist(),
        jit_compile=jit_compile(),
    )
    return losses


def _monitor_patches(config: TrainingConfig, prepared: Prepared) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    prepared = hold_out(prepared, config.validation)
    return {
        name: fixed_patches(prepared, name, "train", config.monitor_patches, config.patch_size, config.seed)
        for name in prepared.datasets
        if prepared.select(name, "train")
    }


def _open_books(
    model: keras.Model,
    losses: list[keras.losses.Loss],
    config: TrainingConfig,
    prepared: Prepared,
    run: Run,
    workers: Workers,
    logs: Path,
) -> Books:
    """Begin a training's books, or open them where the last whole checkpoint left them."""
    model.optimizer.build(model.trainable_variables)
    folder = run.folder / "checkpoint"
    if (folder / "progress.json").is_file():
        raise DataError(
            folder,
            "holds a checkpoint of an earlier version, which this one cannot continue",
            "finish the run with the version that began it, or train in another folder",
        )
    books = Books(
        folder=logs,
        progress=Progress(learning_rate=first_rate(config, 0)),
        state=TrainingState(model, losses),
        loss=losses[0],
        checkpoints=workers.checkpoints(folder),
        best=workers.checkpoints(run.folder / "best"),
        stop=StopRequest(),
        workers=workers,
        terms=TermsPerDataset(losses[0], prepared.classes, _monitor_patches(config, prepared)),
        validation=None if config.validation is None else Validation(config, prepared),
        writer=tf.summary.create_file_writer(str(logs / "tensorboard")),
    )
    saved, arrays, torn = books.checkpoints.newest()
    if torn and saved is None:
        raise DataError(
            torn[0],
            f"is not a whole checkpoint, and there is no other one that is ({len(torn)} torn)",
            f"copy {folder} from where it is whole, or delete it to begin the training anew",
        )
    for path in torn:
        console.print(f"note: {path}: is not a whole checkpoint, the one before it is used", soft_wrap=True)
    workers.check_same(-1 if saved is None else saved["steps"], folder)
    if saved is None:
        books.save()
    else:
        books.progress = Progress(**saved)
        books.state.restore(arrays, folder)
        books.best.drop_after(books.progress.best_steps)  # of a training that this one does not go on from
        books.check_best()
    return books


def _train_stages(
    model: keras.Model,
    config: TrainingConfig,
    prepared: Prepared,
    books: Books,
) -> None:
    """Fit the stages that are left, from where the books stand."""
    progress = books.progress
    for index in range(progress.stage, len(config.stages)):
        if index > progress.stage:  # a new stage begins with its own learning rate and plateau
            progress.stage, progress.epoch, progress.best, progress.wait = index, 0, None, 0
            progress.learning_rate = first_rate(config, index)
        model.optimizer.learning_rate = progress.learning_rate
        if progress.step:  # what is left of the epoch under way
            _fit(model, config, prepared, books, progress.epoch + 1)
        if progress.epoch < config.stages[index].epochs:
            _fit(model, config, prepared, books, config.stages[index].epochs)


def _fit(
    model: keras.Model,
    config: TrainingConfig,
    prepared: Prepared,
    books: Books,
    until: int,
) -> None:
    """Fit the stage under way from where the books stand until so many of its epochs are done."""
    progress, stage = books.progress, config.stages[books.progress.stage]
    steps = steps_of_epoch(config, progress.stage, prepared)
    done = progress.epoch * steps + progress.step
    stream = stage_batches(model, config, prepared, progress.stage, done, books.workers.shard)
    with data_problems(), progress_bar() as bar:
        task = bar.add_task(stage.name, total=stage.epochs * steps, completed=done)
        bookkeeper = Bookkeeper(books, config, stage, steps, (bar, task))
        try:
            model.fit(
                books.workers.share(stream, config.batch_size),
                initial_epoch=progress.epoch,
                epochs=until,
                steps_per_epoch=steps - progress.step,
                verbose=0,
                shuffle=False,
                # The first measures what the second logs, where Keras shows it when a batch is fetched.
                callbacks=[DataWait(), bookkeeper] if on_tensorflow() else [bookkeeper],
            )
        except NotFinite as problem:
            raise explain(str(problem), model, config, prepared, books) from problem
