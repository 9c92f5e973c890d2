"""How a stage draws its patches; no TensorFlow."""

from partialseg.data.prepared import read_prepared
from partialseg.training.config import StageConfig, TrainingConfig
from partialseg.training.stage_patches import STAGE_SEED, stage_patches

STAGES = (
    StageConfig(name="first", datasets="full", epochs=2, patches_per_dataset=5),
    StageConfig(name="second", datasets="all", epochs=2, patches_per_dataset=5, mix="proportional"),
)


def test_a_stage_has_its_own_datasets_steps_seed_and_mix(tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    config = TrainingConfig(name="own", seed=7, batch_size=2, foreground=0.6, stages=STAGES)
    first, second = (stage_patches(config, number, prepared) for number in (0, 1))
    assert first.datasets == ["btcv"]
    assert second.datasets == list(prepared.datasets)
    assert (first.batches_per_epoch, second.batches_per_epoch) == (
        3,
        13,
    )  # 5 and 25 patches, in batches of two
    assert (first.seed, second.seed) == (7, 7 + STAGE_SEED)
    assert (first.mix, second.mix) == ("equal", "proportional")


def test_what_the_config_says_of_patches_is_passed_on(tiny_prepared):
    config = TrainingConfig(
        name="own",
        patch_size=(8, 16, 16),
        batch_size=3,
        foreground=0.6,
        mix="inverse_sqrt",
        stages=STAGES[:1],
    )
    drawn = stage_patches(config, 0, read_prepared(tiny_prepared))
    assert (drawn.patch_size, drawn.batch_size, drawn.foreground) == ((8, 16, 16), 3, 0.6)
    assert drawn.mix == "inverse_sqrt"
    assert drawn.augmentation == config.augmentation is not None
