"""How a training begins: all that it needs is checked, then its run folder is opened, or found as it was left."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import partialseg
from partialseg.data.folds import hold_out
from partialseg.data.organ_sizes import organ_size_prior
from partialseg.data.patch_service import find_workers
from partialseg.data.pipeline import PatchConfig
from partialseg.data.prepared import Prepared, read_prepared
from partialseg.errors import DataError, first_of
from partialseg.locking import locked
from partialseg.machine import free_memory
from partialseg.progress import console
from partialseg.training.backends import backend_versions, check_deterministic
from partialseg.training.bfloat16 import check_gradients
from partialseg.training.config import TrainingConfig, read_config, stage_datasets
from partialseg.training.runs import Run, as_begun, read_run, write_run
from partialseg.training.stage_patches import held_out
from partialseg.training.validation import check_held_out, whole_volumes
from partialseg.wording import counted

#: What networks may differ in that take over weights: those that they share are the same.
_NOT_IN_WEIGHTS = {"dropout", "deep_supervision"}


def begin(
    config: TrainingConfig | str | Path,
    prepared: Prepared | str | os.PathLike[str],
    out: str | Path,
    start_from: Run | str | Path | None,
    strategy: tf.distribute.Strategy | None,
) -> tuple[TrainingConfig, Prepared, Run, tuple[keras.Model, tuple[str, ...]] | None]:
    """Check all that training needs, then open the run folder.

    A start that is refused leaves no run folder behind, so that the corrected one is not refused for what it says.

    Args:
        config: The experiment, a config file, or the name of one that comes with the package.
        prepared: The prepared cases, or where they lie.
        out: The run folder.
        start_from: A finished run whose weights the network begins with, or its folder; None for none.
        strategy: How devices share a batch; None on a backend that has one device.

    Returns:
        Config, prepared cases and run, as training goes on with them; and of a run to start from, its network and its
        classes.

    Raises:
        DataError: If something is missing, or does not fit together.
    """
    config = config if isinstance(config, TrainingConfig) else read_config(config)
    prepared = prepared if isinstance(prepared, Prepared) else read_prepared(prepared)
    if start_from is not None and not isinstance(start_from, Run):
        start_from = read_run(start_from)
    if Path(out).exists() and not Path(out).is_dir():
        raise DataError(out, "is a file, expected a folder for the run", "give another place")
    config = as_begun(config, Path(out))
    _check_devices(config, strategy)
    check_gradients(config)
    if config.deterministic:
        check_deterministic()
    for stage in config.stages:
        stage_datasets(stage, prepared)
    _check_patches(config, prepared)
    if config.validation is not None:
        check_held_out(hold_out(prepared, config.validation))
    prepared.check_files(prepared.select(split="train"))
    if config.data_service is not None:
        find_workers(config.data_service)
    trained = None if start_from is None else _network_of(start_from, config, prepared)
    if config.losses.preset == "prior_aware":
        config = _with_prior(config, prepared, Path(out))
    first = None if trained is None else (trained, start_from.classes)
    return config, prepared, _open_run(config, prepared, Path(out), start_from), first


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[bool]:
    """In this block no other training writes into the run folder; False where its file system has no locks.

    Raises:
        DataError: If another process trains there.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            console.print(
                f"note: {folder}: its file system has no locks, so nothing keeps a second training out of it",
                soft_wrap=True,
            )
            yield False
            return
        yield True


def _check_devices(config: TrainingConfig, strategy: tf.distribute.Strategy | None) -> None:
    """Refuse devices that cannot share the batches of a config."""
    if strategy is None:
        return
    replicas = strategy.num_replicas_in_sync
    if config.batch_size % replicas:
        raise DataError(
            config.name,
            f"batch_size {config.batch_size} cannot be shared evenly by {replicas} devices",
            f"set batch_size to a multiple of {replicas}, or let fewer be seen (CUDA_VISIBLE_DEVICES)",
        )
    if config.accumulate > 1 and replicas > 1:
        raise DataError(
            config.name,
            f"accumulate {config.accumulate} is for one device, and there are {replicas}: each of them has a part of "
            "the batch already",
            "set `accumulate: 1`, or let one device be seen (CUDA_VISIBLE_DEVICES)",
        )
    first = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    (*_, device) = strategy.extended.worker_devices
    if config.accumulate > 1 and not device.endswith(first):
        # Keras accumulates under no strategy, and only a strategy can name another device.
        raise DataError(
            config.name,
            f"accumulate {config.accumulate} trains on {first}, the first device, and found {device}",
            "name none, and let the one to train on be the only one that is seen (CUDA_VISIBLE_DEVICES)",
        )


def _check_patches(config: TrainingConfig, prepared: Prepared) -> None:
    """Refuse batches of which not even the patches fit into the memory of this machine."""
    bytes_of_voxel = 4 + len(prepared.classes)  # float32 HU, and a byte for each class
    needed, free = config.batch_size * math.prod(config.patch_size) * bytes_of_voxel, free_memory()
    if needed > free:
        raise DataError(
            config.name,
            f"{config.batch_size} patches of {'×'.join(map(str, config.patch_size))} voxels take "
            f"{needed / 1e9:,.1f} GB as they are read, and {free / 1e9:.1f} GB are free",
            "take a smaller patch_size or batch_size; `partialseg plan` chooses what fits",
        )


def _with_prior(config: TrainingConfig, prepared: Prepared, folder: Path) -> TrainingConfig:
    """The config with a prior: its own, else that with which the run in the folder began, else as measured."""
    prior = config.losses.prior
    if prior is not None:
        _check_prior(config, prepared)
        return config
    if (folder / "run.json").is_file():
        prior = getattr(read_run(folder).config.losses, "prior", None)
    if prior is None:
        prior = _measured_prior(config, prepared)
    return config.model_copy(update={"losses": config.losses.model_copy(update={"prior": prior})})


def _check_prior(config: TrainingConfig, prepared: Prepared) -> None:
    """Refuse a prior of other classes than those of the prepared data, or in another order."""
    given = config.losses.prior
    by_name = isinstance(given, dict)
    if len(given) != len(prepared.classes) or (by_name and tuple(given) != prepared.classes):
        raise DataError(
            config.name,
            f"losses.prior has {', '.join(given) if by_name else f'{len(given)} shares'}, and the classes of the "
            f"prepared data are {', '.join(prepared.classes)}",
            "give one share for each class in this order, or no prior, to have it measured",
        )


def _measured_prior(config: TrainingConfig, prepared: Prepared) -> dict[str, float]:
    """Share of the voxels for each class, in patches drawn as training draws them."""
    drawn = {name for stage in config.stages for name in stage_datasets(stage, prepared)}
    patch_config = PatchConfig(
        patch_size=config.patch_size,
        batch_size=config.batch_size,
        foreground=config.foreground,
        seed=config.seed,
        datasets=[name for name in prepared.datasets if name in drawn],
        mix=config.mix,
        fold=held_out(config),
    )
    prior = organ_size_prior(prepared, patch_config)
    console.print("Organ sizes: " + ", ".join(f"{name} {share:.3g}" for name, share in prior.items()))
    return prior


def _network_of(earlier: Run, config: TrainingConfig, prepared: Prepared) -> keras.Model:
    """The network of a finished run, once it is sure that its weights fit; says which organs are new."""
    if earlier.spacing_mm != prepared.spacing_mm:
        raise DataError(
            earlier.folder,
            f"its spacing_mm {earlier.spacing_mm} is not that of the prepared data, {prepared.spacing_mm}",
            "start from a run on data prepared alike, or from none",
        )
    theirs, ours = (c.network.model_dump(exclude=_NOT_IN_WEIGHTS) for c in (earlier.config, config))
    if unlike := [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
        name = unlike[0]
        raise DataError(
            earlier.folder,
            f"has another network: {name} {theirs.get(name)}, where the config has {ours.get(name)}",
            "copy its `network` section into the new config",
        )
    new = [name for name in prepared.classes if name not in earlier.classes]
    left_out = [name for name in earlier.classes if name not in prepared.classes]
    if config.network.kind == "conditioned" and earlier.classes != prepared.classes:
        raise DataError(
            earlier.folder,
            f"its classes {', '.join(earlier.classes)} are not those of the prepared data, "
            f"{', '.join(prepared.classes)}, and a conditioned network tells organs by their place in the list",
            "train it anew, or choose another network",
        )
    for what, names in (("new organs", new), ("left out", left_out)):
        if names:
            note = f"note: begins with the weights of {earlier.folder}; {what}: {', '.join(names)}"
            console.print(note, markup=False, highlight=False, soft_wrap=True)
    return earlier.load_model()


def _difference(before: Any, now: Any) -> str:
    """The first thing that two configs, or two values, do not have in common.

    Example:
        >>> one = TrainingConfig(name="x")
        >>> _difference(one, one.model_copy(update={"seed": 7}))
        'seed was 0, and is 7'
    """
    was, place = before, []
    if isinstance(before, TrainingConfig):
        was, now = before.model_dump(), now.model_dump()
    while isinstance(was, dict) and isinstance(now, dict):
        unlike = next(name for name in [*was, *now] if was.get(name) != now.get(name))
        place.append(str(unlike))
        was, now = was.get(unlike), now.get(unlike)
    return f"{'.'.join(place) or 'it'} was {was}, and is {now}"


def _all_cases(prepared: Prepared) -> dict[str, dict[str, tuple[str, ...]]]:
    """Names of the cases of each dataset, by split, as a run keeps them."""
    found: dict[str, dict[str, list[str]]] = {}
    for case in prepared.cases:
        found.setdefault(case.split, {}).setdefault(case.dataset, []).append(case.name)
    return {
        split: {dataset: tuple(sorted(names)) for dataset, names in of_split.items()}
        for split, of_split in found.items()
    }


def _difference_of_cases(
    before: dict[str, dict[str, tuple[str, ...]]], now: dict[str, dict[str, tuple[str, ...]]]
) -> str:
    """Which cases were added or dropped, or are in another split.

    Example:
        >>> _difference_of_cases(
        ...     {"train": {"btcv": ("a", "b", "c")}}, {"train": {"btcv": ("a", "d", "e")}, "test": {"btcv": ("b",)}}
        ... )
        '2 cases added (btcv/d, btcv/e); 1 case dropped (btcv/c); 1 case in another split (btcv/b)'
    """
    was, is_now = (
        {
            f"{dataset}/{name}": split
            for split, datasets in cases.items()
            for dataset, names in datasets.items()
            for name in names
        }
        for cases in (before, now)
    )
    changes = {
        "added": [case for case in is_now if case not in was],
        "dropped": [case for case in was if case not in is_now],
        "in another split": [case for case in was if is_now.get(case, was[case]) != was[case]],
    }
    return "; ".join(
        f"{counted(len(cases), 'case')} {what} ({first_of(cases)})"
        for what, cases in changes.items()
        if cases
    )


def _held_out_cases(config: TrainingConfig, prepared: Prepared) -> list[dict[str, list[str]]]:
    """Names of the held-out cases of each dataset, and of those that validation predicts whole."""
    if config.validation is None:
        return [{}, {}]
    kept = hold_out(prepared, config.validation)
    all_of_them = {name: kept.select(name, "validation") for name in kept.datasets}
    return [
        {name: sorted(case.name for case in cases) for name, cases in chosen.items() if cases}
        for chosen in (all_of_them, whole_volumes(kept, config.validation))
    ]


def _open_run(config: TrainingConfig, prepared: Prepared, folder: Path, start_from: Run | None) -> Run:
    """Write config.yaml and run.json, or check that those there say the same."""
    run = Run(
        folder=folder,
        config=config,
        classes=prepared.classes,
        spacing_mm=prepared.spacing_mm,
        datasets={name: dataset.annotated for name, dataset in prepared.datasets.items()},
        started_from=None if start_from is None else os.path.relpath(start_from.folder, folder),
        cases=_all_cases(prepared),
    )
    if (folder / "run.json").is_file():
        earlier = read_run(folder)
        free = {
            field: getattr(earlier.config, field)
            for field in ("workers", "data_service", "checkpoint_minutes")
        }
        run = replace(run, config=config.model_copy(update=free))
        for what in ("config", "classes", "spacing_mm", "datasets", "started_from"):
            if getattr(earlier, what) != getattr(run, what):
                raise DataError(
                    folder,
                    f"holds a run with another {what}: {_difference(getattr(earlier, what), getattr(run, what))}",
                    "give the same config, data and first weights to continue it, or another folder for a new run",
                )
        # With others the folds are dealt anew: what was trained on would be held out. Test cases may come and go.
        if earlier.cases is not None and earlier.cases.get("train") != run.cases.get("train"):
            raise DataError(
                folder,
                f"holds a run with other cases: {_difference_of_cases(earlier.cases, run.cases)}",
                "give the same cases to continue it, or another folder for a new run",
            )
        return run
    versions = {
        "partialseg": partialseg.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        **backend_versions(),
    }
    write_run(run, versions, *_held_out_cases(config, prepared))
    return run
