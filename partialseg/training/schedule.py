"""How the learning rate falls from epoch to epoch."""

from __future__ import annotations

from partialseg.training.config import ScheduleConfig, TrainingConfig
from partialseg.training.history import Progress


def first_rate(config: TrainingConfig, stage: int) -> float:
    """The learning rate with which a stage begins.

    That of the config, but where a polynomial that several stages share has fallen meanwhile.

    Example:
        >>> from partialseg.training.config import StageConfig
        >>> stages = [StageConfig(name=n, datasets="all", epochs=5, patches_per_dataset=1) for n in ("one", "two")]
        >>> schedule = ScheduleConfig(kind="polynomial", power=1.0)
        >>> config = TrainingConfig(name="t", patch_size=(8, 8, 8), stages=stages, schedule=schedule)
        >>> first_rate(config, 1) / first_rate(config, 0)
        0.5
    """
    schedule = _schedule_of(config, stage)
    return _polynomial(config, stage, 0) if schedule.kind == "polynomial" else config.optimizer.learning_rate


def step_schedule(progress: Progress, loss: float, config: TrainingConfig) -> None:
    """Set the learning rate of the next epoch, in `progress`, in place.

    Under "plateau" (section 4.3 of the paper) it is multiplied by `factor` when the loss has not fallen by
    `min_delta` below the lowest so far in `patience` epochs. The state is part of `progress`, so a resumed run goes
    on as if it had never stopped.

    Args:
        progress: After the epoch that just ended, which it counts.
        loss: Mean loss of that epoch.
        config: The experiment.

    Example:
        >>> from partialseg.training.config import StageConfig
        >>> stage = StageConfig(name="all", datasets="all", epochs=3, patches_per_dataset=1)
        >>> config = TrainingConfig(name="t", patch_size=(8, 8, 8), stages=[stage], schedule=ScheduleConfig(patience=2))
        >>> progress = Progress(learning_rate=0.1)
        >>> for loss in (1.0, 1.0, 1.0):
        ...     step_schedule(progress, loss, config)
        >>> round(progress.learning_rate, 3)
        0.08
    """
    schedule = _schedule_of(config, progress.stage)
    if schedule.kind == "polynomial":
        progress.learning_rate = _polynomial(config, progress.stage, progress.epoch)
    elif progress.best is None or loss < progress.best - schedule.min_delta:
        progress.best, progress.wait = loss, 0
    else:
        progress.wait += 1
        if progress.wait >= schedule.patience:
            progress.learning_rate *= schedule.factor
            progress.wait = 0


def _schedule_of(config: TrainingConfig, stage: int) -> ScheduleConfig:
    return config.stages[stage].schedule or config.schedule


def _polynomial(config: TrainingConfig, stage: int, epoch: int) -> float:
    """The rate after so many epochs of a stage, which falls alone or with the others."""
    alone = config.stages[stage].schedule is not None or config.schedule.over == "each_stage"
    shared = [stage] if alone else [k for k, other in enumerate(config.stages) if other.schedule is None]
    epochs = sum(config.stages[k].epochs for k in shared)
    done = sum(config.stages[k].epochs for k in shared if k < stage) + epoch
    power = _schedule_of(config, stage).power
    return config.optimizer.learning_rate * max(0.0, 1 - done / epochs) ** power
