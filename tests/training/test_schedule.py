import pytest

from partialseg.training.config import OptimizerConfig, ScheduleConfig, StageConfig, TrainingConfig
from partialseg.training.history import Progress
from partialseg.training.schedule import first_rate, step_schedule

FALLING = ScheduleConfig(kind="polynomial", power=0.5)


def config_of(schedule, *stages, rate=1.0):
    """A config with stages of so many epochs, or of (epochs, schedule)."""
    pairs = [stage if isinstance(stage, tuple) else (stage, None) for stage in stages]
    return TrainingConfig(
        name="test",
        patch_size=(8, 8, 8),
        optimizer=OptimizerConfig(learning_rate=rate),
        schedule=schedule,
        stages=[
            StageConfig(name=f"stage {k}", datasets="all", epochs=epochs, patches_per_dataset=1, schedule=own)
            for k, (epochs, own) in enumerate(pairs)
        ],
    )


def rates_of(config):
    """The rate of each epoch of each stage, as training sets it."""
    found = []
    for stage, section in enumerate(config.stages):
        progress = Progress(stage=stage, learning_rate=first_rate(config, stage))
        for epoch in range(section.epochs):
            found.append(progress.learning_rate)
            progress.epoch = epoch + 1
            step_schedule(progress, 1.0, config)
    return found


def test_rate_drops_by_a_fifth_when_the_loss_stays():
    config = config_of(ScheduleConfig(factor=0.8, patience=10, min_delta=1e-3), 20)
    progress = Progress(learning_rate=1.0)
    for loss in [1.0] + [1.0 - 0.0005] * 10:
        step_schedule(progress, loss, config)
    assert progress.learning_rate == pytest.approx(0.8)
    for loss in (0.9, 0.8, 0.7):
        step_schedule(progress, loss, config)
    assert progress.learning_rate == pytest.approx(0.8)
    assert (progress.best, progress.wait) == (0.7, 0)


def test_polynomial_falls_to_nothing_at_the_end():
    config = config_of(FALLING, 4, rate=2.0)
    assert rates_of(config) == pytest.approx([2.0, 2 * 0.75**0.5, 2 * 0.5**0.5, 1.0])
    progress = Progress(epoch=4)
    step_schedule(progress, 1.0, config)
    assert progress.learning_rate == 0


def test_stages_share_one_fall():
    assert rates_of(config_of(FALLING, 1, 3)) == rates_of(config_of(FALLING, 4))


def test_a_stage_with_a_schedule_of_its_own_falls_alone():
    plateau = ScheduleConfig(kind="plateau")
    assert rates_of(config_of(FALLING, (2, plateau), 4)) == [1.0, 1.0, *rates_of(config_of(FALLING, 4))]
    assert rates_of(config_of(plateau, 2, (4, FALLING))) == [1.0, 1.0, *rates_of(config_of(FALLING, 4))]


def test_stages_fall_each_by_itself_where_that_is_asked_for():
    each = FALLING.model_copy(update={"over": "each_stage"})
    assert rates_of(config_of(each, 2, 4)) == [
        *rates_of(config_of(FALLING, 2)),
        *rates_of(config_of(FALLING, 4)),
    ]


def test_plateau_begins_each_stage_with_the_rate_of_the_config():
    config = config_of(ScheduleConfig(patience=1), 3, 2)
    assert rates_of(config) == pytest.approx([1.0, 1.0, 0.8, 1.0, 1.0])
