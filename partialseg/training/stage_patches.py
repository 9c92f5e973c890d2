"""How a stage of a training draws its patches."""

from __future__ import annotations

from partialseg.data.folds import Fold
from partialseg.data.prepared import Prepared
from partialseg.data.sampling import PatchConfig
from partialseg.training.config import TrainingConfig, stage_datasets

#: Batches of different stages never share a seed: stage k draws with seed + k times this.
STAGE_SEED = 1_000_003


def held_out(config: TrainingConfig) -> Fold | None:
    """Which training cases a config holds out for validation."""
    validation = config.validation
    return None if validation is None else Fold(folds=validation.folds, fold=validation.fold)


def stage_patches(config: TrainingConfig, number: int, prepared: Prepared) -> PatchConfig:
    """How patches are drawn in a stage. Its `batches_per_epoch` are the steps of an epoch of training.

    Args:
        config: The experiment.
        number: Of the stage, from 0.
        prepared: The prepared cases.

    Raises:
        DataError: If the prepared folder lacks a dataset, or has no fully annotated one where that is asked for.
    """
    stage = config.stages[number]
    datasets = stage_datasets(stage, prepared)
    return PatchConfig(
        patch_size=config.patch_size,
        batch_size=config.batch_size,
        foreground=config.foreground,
        seed=config.seed + STAGE_SEED * number,
        batches_per_epoch=-(-len(datasets) * stage.patches_per_dataset // config.batch_size),
        datasets=datasets,
        workers=config.workers,
        mix=stage.mix or config.mix,
        augmentation=config.augmentation,
        fold=held_out(config),
    )
