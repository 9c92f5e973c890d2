"""Which patch is drawn: a pure function of the seed and the batch's index.

So the stream of patches is the same on any number of workers, and can go on at any batch.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.folds import Fold, hold_out
from partialseg.data.mixing import EpochQuotas, Mix, dataset_weights
from partialseg.data.prepared import Case, Prepared
from partialseg.errors import DataError

# What a stream of random numbers is for, part of its seed: streams for different purposes are independent.
_DATASETS, _CASES, _VOXELS, _FIXED = range(4)


class PatchConfig(BaseModel):
    """How patches are drawn.

    Attributes:
        patch_size: `(depth, height, width)` in voxels.
        batch_size: Patches in a batch.
        foreground: Smallest share of a batch's patches that are centred on annotated foreground.
        seed: Of the whole stream.
        batches_per_epoch: Over this many batches every dataset gives its exact share of the patches.
        datasets: Names of the datasets to draw from, each once; None for all that have cases in the split.
        split: "train", "validation" (of `fold`) or "test".
        fold: Which training cases are held out for validation; None for none.
        workers: Batches that are read at the same time.
        mix: What share of the patches each dataset gives; see `partialseg.data.mixing.dataset_weights`.
        augmentation: How patches are changed at random; None leaves them as they are.

    Example:
        >>> PatchConfig(patch_size=(32, 64, 64), batch_size=4).num_forced
        2
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    patch_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (48, 190, 190)
    batch_size: int = Field(2, ge=1)
    foreground: float = Field(0.33, ge=0, le=1)
    seed: int = Field(0, ge=0)
    batches_per_epoch: int = Field(250, ge=1)
    datasets: list[str] | None = None
    split: Literal["train", "validation", "test"] = "train"
    fold: Fold | None = None
    workers: int = Field(2, ge=1)
    mix: Mix = "equal"
    augmentation: AugmentationConfig | None = None

    @field_validator("datasets")
    @classmethod
    def _each_once(cls, datasets: list[str] | None) -> list[str] | None:
        if twice := sorted({name for name in datasets or () if datasets.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is there twice, expected each dataset once")
        return datasets

    @property
    def num_forced(self) -> int:
        """How many patches of every batch are centred on annotated foreground, at least."""
        return math.ceil(self.foreground * self.batch_size - 1e-9)


@dataclass(frozen=True)
class Draw:
    """One patch.

    Attributes:
        case: Where it is cut from.
        start: First voxel `(z, y, x)`; negative along an axis on which the volume is smaller than the patch.
        forced_value: The annotated label value on which it is centred; None if it lies anywhere.
        voxel: The voxel `(z, y, x)` of that value on which it is centred; None if it lies anywhere.
    """

    case: Case
    start: tuple[int, int, int]
    forced_value: int | None = None
    voxel: tuple[int, int, int] | None = None


class PatchPlan:
    """Says, for every batch, which patches it holds.

    - Over an epoch every dataset gives the number of patches that `config.mix` asks for, rounded up or down. What
      does not divide evenly is made up for in the epochs that follow: after any number of epochs every dataset is
      less than one patch from its share.
    - The cases of a dataset are dealt in shuffled rounds: none comes a second time before all came
      once (stand-ins apart, see below).
    - In every batch `config.num_forced` patches are centred on annotated foreground, as far as the edge of
      the volume permits: the label value is chosen evenly among those of the case, then one of its voxels.
      Such patches go to cases that have foreground; if too few cases of the batch have any, other cases of
      the same datasets that have some stand in. Patches of datasets that have no foreground at all are
      spread over the epoch's batches so that none holds too many of them, as far as there are others.

    Args:
        prepared: The prepared cases.
        config: How patches are drawn.

    Raises:
        DataError: If a dataset is unknown or has no case in the split, or if there is none at all.
    """

    def __init__(self, prepared: Prepared, config: PatchConfig) -> None:
        self.prepared = prepared
        self.config = config
        self.cases = _cases_by_dataset(prepared, config)
        self.datasets = tuple(self.cases)
        self._with_foreground = {
            name: [case for case in cases if case.foreground] for name, cases in self.cases.items()
        }
        num_cases = {name: len(cases) for name, cases in self.cases.items()}
        self._quotas = EpochQuotas(
            dataset_weights(num_cases, config.mix), config.batches_per_epoch * config.batch_size
        )
        self._epoch = functools.lru_cache(maxsize=2)(self._deal_epoch)

    def quotas(self, epoch: int) -> dict[str, int]:
        """How many patches each dataset gives in this epoch, counted from the beginning of the training."""
        return self._quotas.of_epoch(epoch)

    def batch(self, index: int) -> list[Draw]:
        """The patches of the batch with this index, counted from the beginning of the training."""
        size = self.config.batch_size
        epoch, place = divmod(index, self.config.batches_per_epoch)
        cases = list(self._epoch(epoch)[place * size : (place + 1) * size])
        random = np.random.default_rng([self.config.seed, _VOXELS, index])
        forced = self._forced_slots(cases, random)
        patch_size = self.config.patch_size
        return [
            centred_draw(self.prepared, case, patch_size, random)
            if slot in forced
            else random_draw(case, patch_size, random)
            for slot, case in enumerate(cases)
        ]

    def slots(self, shard: tuple[int, int]) -> range:
        """Which patches of every batch one of several workers reads.

        Args:
            shard: `(worker, workers)`, the worker counted from 0.

        Raises:
            ValueError: If there is no such worker, or the workers do not divide the batch evenly.

        Example:
            The second of two workers reads the second half of every batch:

            >>> from pathlib import Path
            >>> case = Case("msd", "a", "train", (9, 9, 9), (), (), (), "", "", "")
            >>> prepared = Prepared(Path("prepared"), (), (3, 1.5, 1.5), {"msd": None}, (case,))
            >>> PatchPlan(prepared, PatchConfig(batch_size=4)).slots((1, 2))
            range(2, 4)
        """
        worker, workers = shard
        size = self.config.batch_size
        if not 0 <= worker < workers:
            raise ValueError(f"worker {worker} of {workers}, expected a number from 0 to {workers - 1}")
        if size % workers:
            raise ValueError(f"{workers} workers cannot share a batch of {size} evenly: change batch_size")
        return range(worker * size // workers, (worker + 1) * size // workers)

    def state(self, batch: int) -> dict[str, Any]:
        """What must be saved, as JSON, to go on before the batch with this index; see `batch_of`."""
        return {"batch": batch, "config": self._settings(), "cases": self._fingerprint}

    def batch_of(self, state: Mapping[str, Any]) -> int:
        """The index of the batch before which a saved state goes on.

        Args:
            state: What `state` gave, of this plan or of one that draws the same patches.

        Raises:
            DataError: If it is of a plan that draws other patches, or no such state.
        """
        name = "state of the patches"
        batch, config = (state.get(key) for key in ("batch", "config"))
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 0 or not isinstance(config, dict):
            problem = f"has batch {batch!r} and config {config!r}, expected a number from 0 and a config"
            raise DataError(name, problem, "give what `PatchPlan.state` gave, or begin at a batch's index")
        if difference := _first_difference(config, self._settings()):
            problem = f"was saved with another config: {difference}"
            raise DataError(name, problem, "take the config of the run that saved it, or begin anew")
        if state.get("cases") != self._fingerprint:
            raise DataError(
                name,
                f"was saved with other cases than those of {self.prepared.folder}",
                "take the prepared folder of the run that saved it, or begin anew",
            )
        return batch

    def _settings(self) -> dict[str, Any]:
        """The config as JSON, without what does not decide which patches are drawn and how they look."""
        settings = self.config.model_dump(mode="json", exclude={"workers"})
        return {**settings, "datasets": list(self.datasets)}

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Of the cases, their order, and what their values stand for."""
        tables = [[name, self.prepared.datasets[name].table.tolist()] for name in self.datasets]
        cases = [
            [case.dataset, case.name, case.fingerprint, case.shape, case.foreground, case.annotated]
            for name in self.datasets
            for case in self.cases[name]
        ]
        text = json.dumps([self.prepared.classes, tables, cases])
        return hashlib.sha256(text.encode()).hexdigest()

    def _deal_epoch(self, epoch: int) -> list[Case]:
        """The case of every patch of an epoch, in order."""
        order = np.repeat(np.arange(len(self.datasets)), list(self.quotas(epoch).values()))
        random = np.random.default_rng([self.config.seed, _DATASETS, epoch])
        random.shuffle(order)
        self._spread_foreground(order, random)
        before = self._quotas.before(epoch)
        dealt = [self._deal(dataset, before[name]) for dataset, name in enumerate(self.datasets)]
        return [next(dealt[dataset]) for dataset in order]

    def _spread_foreground(self, order: np.ndarray, random: np.random.Generator) -> None:
        """Swap patches between batches until all have enough of datasets that have foreground, or as many as can be."""
        batches = order.reshape(-1, self.config.batch_size)
        has_foreground = np.array([bool(self._with_foreground[name]) for name in self.datasets])
        counts = has_foreground[batches].sum(axis=1)
        while counts.min() < self.config.num_forced and counts.max() - counts.min() > 1:
            taker, giver = (
                random.choice(np.flatnonzero(counts == most)) for most in (counts.min(), counts.max())
            )
            here = taker, has_foreground[batches[taker]].argmin()
            there = giver, has_foreground[batches[giver]].argmax()
            batches[here], batches[there] = batches[there], batches[here]
            counts[taker] += 1
            counts[giver] -= 1

    def _deal(self, dataset: int, count: int) -> Iterator[Case]:
        """The cases that a dataset gives after it gave `count`, endlessly."""
        cases = self.cases[self.datasets[dataset]]
        first, place = divmod(count, len(cases))
        for round_ in itertools.count(first):
            order = np.random.default_rng([self.config.seed, _CASES, dataset, round_]).permutation(len(cases))
            yield from (cases[index] for index in order[place:])
            place = 0

    def _forced_slots(self, cases: list[Case], random: np.random.Generator) -> set[int]:
        """Choose the patches that are centred on foreground; may replace entries of `cases`."""
        shuffled = random.permutation(len(cases)).tolist()
        forced = [slot for slot in shuffled if cases[slot].foreground][: self.config.num_forced]
        for slot in shuffled:
            others = self._with_foreground[cases[slot].dataset]
            if len(forced) < self.config.num_forced and slot not in forced and others:
                cases[slot] = others[random.integers(len(others))]
                forced.append(slot)
        return set(forced)


def centred_draw(
    prepared: Prepared,
    case: Case,
    patch_size: Sequence[int],
    random: np.random.Generator,
    value: int | None = None,
) -> Draw:
    """Draw a patch centred on annotated foreground, moved as far as needed to lie in the volume.

    Args:
        prepared: The prepared cases.
        case: One of them, with foreground.
        patch_size: `(depth, height, width)` in voxels.
        random: Where the choice comes from.
        value: The label value to centre on; None chooses evenly among those of the case.

    Raises:
        DataError: If `foreground.npy` is missing, or is not what the manifest says.
    """
    parts = [part for part in case.foreground if value in (None, part[0])]
    value, first, stop = parts[random.integers(len(parts))]
    index = int(prepared.foreground(case)[random.integers(first, stop)])
    if not 0 <= index < math.prod(case.shape):
        raise DataError(
            prepared.folder / case.dataset / case.name / "foreground.npy",
            f"lists voxel {index}, expected 0 to {math.prod(case.shape) - 1}",
            "prepare the case again",
        )
    voxel = tuple(int(place) for place in np.unravel_index(index, case.shape))
    start = (
        patch_start(centre - patch // 2, size, patch)
        for centre, size, patch in zip(voxel, case.shape, patch_size, strict=True)
    )
    return Draw(case, tuple(start), value, voxel)


def random_draw(case: Case, patch_size: Sequence[int], random: np.random.Generator) -> Draw:
    """Draw a patch anywhere in the volume, all places alike."""
    start = (
        patch_start(int(random.integers(max(1, size - patch + 1))), size, patch)
        for size, patch in zip(case.shape, patch_size, strict=True)
    )
    return Draw(case, tuple(start))


def patch_start(start: int, size: int, patch: int) -> int:
    """Move the start of a patch so that it lies in the volume; if it is longer, centre the volume in it.

    Args:
        start: Wanted first voxel along one axis.
        size: Voxels of the volume along it.
        patch: Voxels of the patch along it.

    Example:
        >>> patch_start(-3, 10, 4), patch_start(5, 10, 4), patch_start(9, 10, 4), patch_start(5, 3, 6)
        (0, 5, 6, -1)
    """
    if patch >= size:
        return -((patch - size) // 2)
    return min(max(start, 0), size - patch)


def fixed_draws(
    prepared: Prepared, dataset: str, split: str, num: int, patch_size: Sequence[int], seed: int
) -> list[Draw]:
    """Draw a fixed set of patches of one dataset, for monitoring.

    Cases with foreground come in turn; each time that a case comes, its next label value is centred on. If
    no case has foreground, patches lie anywhere.

    Args:
        prepared: The prepared cases.
        dataset: Name of the dataset.
        split: "train" or "test".
        num: How many patches.
        patch_size: `(depth, height, width)` in voxels.
        seed: Of the choice.

    Raises:
        DataError: If the dataset is unknown or has no case in the split.
    """
    cases = _cases_by_dataset(prepared, PatchConfig(datasets=[dataset], split=split))[dataset]
    random = np.random.default_rng([seed, _FIXED])
    with_foreground = [case for case in cases if case.foreground]
    pool = with_foreground or cases
    order = random.permutation(len(pool))
    draws = []
    for count in range(num):
        round_, place = divmod(count, len(pool))
        case = pool[order[place]]
        if case.foreground:
            # Adding the place lets the first round show different organs, not the first one of every case.
            value = case.foreground[(round_ + place) % len(case.foreground)][0]
            draws.append(centred_draw(prepared, case, patch_size, random, value))
        else:
            draws.append(random_draw(case, patch_size, random))
    return draws


def _first_difference(found: Mapping[str, Any], expected: Mapping[str, Any], within: str = "") -> str | None:
    """Where one config differs from another, in words; None if they are the same.

    Example:
        >>> _first_difference({"seed": 0, "mirror": {"probability": 1}}, {"seed": 0, "mirror": {"probability": 0}})
        'mirror.probability is 1, expected 0'
    """
    for key in sorted(found.keys() | expected.keys()):
        one, other = found.get(key), expected.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            if difference := _first_difference(one, other, f"{within}{key}."):
                return difference
        elif one != other:
            return f"{within}{key} is {one!r}, expected {other!r}"
    return None


def _cases_by_dataset(prepared: Prepared, config: PatchConfig) -> dict[str, list[Case]]:
    """The cases to draw from; see `PatchPlan` for what is raised."""
    manifest = prepared.folder / "manifest.json"
    names = list(prepared.datasets) if config.datasets is None else config.datasets
    unknown = sorted(set(names) - set(prepared.datasets))
    if unknown:
        raise DataError(
            manifest,
            f"has no dataset {', '.join(unknown)} (it has {', '.join(prepared.datasets) or 'none'})",
            "correct `datasets` in the config, or prepare the dataset too",
        )
    prepared = hold_out(prepared, config.fold)
    cases = {name: prepared.select(name, config.split) for name in names}
    empty = [name for name in names if not cases[name]]
    if config.datasets and empty:
        raise DataError(
            manifest,
            f"has no case of {', '.join(empty)} in the split {config.split!r}",
            "take the dataset out of `datasets`, or change `splits` in its card and prepare again",
        )
    cases = {name: found for name, found in cases.items() if found}
    if not cases:
        raise DataError(
            manifest,
            f"has no case in the split {config.split!r} from which patches could be drawn",
            "prepare cases, or name at least one dataset in the config",
        )
    return cases
