"""Which patch is drawn: a pure function of the seed and the batch's index.

So the stream of patches is the same on any number of workers, and can go on at any batch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from partialseg.data.augmentation import AugmentationConfig
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
        batches_per_epoch: Over this many batches every dataset gives the same number of patches.
        datasets: Names of the datasets to draw from; None for all that have cases in the split.
        split: "train" or "test".
        workers: Batches that are read at the same time.
        mix: What share of the patches each dataset gives; see `partialseg.data.mixing.dataset_shares`.
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
    split: Literal["train", "test"] = "train"
    workers: int = Field(2, ge=1)
    mix: Literal["equal", "proportional", "inverse_sqrt"] = "equal"
    augmentation: AugmentationConfig | None = None

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

    - Over an epoch every dataset gives the same number of patches. What does not divide evenly goes to a few
      datasets in turn, so that over some epochs all give exactly the same.
    - The cases of a dataset are dealt in shuffled rounds: none comes a second time before all came
      once (stand-ins apart, see below).
    - In every batch `config.num_forced` patches are centred on annotated foreground, as far as the edge of
      the volume permits: the label value is chosen evenly among those of the case, then one of its voxels.
      Such patches go to cases that have foreground; if too few cases of the batch have any, other cases of
      the same datasets that have some stand in.

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
        self._epoch = functools.lru_cache(maxsize=2)(self._deal_epoch)

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

    def _deal_epoch(self, epoch: int) -> list[Case]:
        """The case of every patch of an epoch, in order."""
        num_datasets = len(self.datasets)
        each, rest = divmod(self.config.batches_per_epoch * self.config.batch_size, num_datasets)
        order = np.repeat(np.arange(num_datasets), each)
        order = np.append(order, np.arange(epoch * rest, (epoch + 1) * rest) % num_datasets)
        np.random.default_rng([self.config.seed, _DATASETS, epoch]).shuffle(order)
        # How many patches each dataset gave in all epochs before: this is where its dealing of cases goes on.
        given = [epoch * each + len(range(i, epoch * rest, num_datasets)) for i in range(num_datasets)]
        dealt = []
        for dataset in order:
            dealt.append(self._case(int(dataset), given[dataset]))
            given[dataset] += 1
        return dealt

    def _case(self, dataset: int, count: int) -> Case:
        """The case that a dataset gives after it gave `count`."""
        cases = self.cases[self.datasets[dataset]]
        round_, place = divmod(count, len(cases))
        order = np.random.default_rng([self.config.seed, _CASES, dataset, round_]).permutation(len(cases))
        return cases[order[place]]

    def _forced_slots(self, cases: list[Case], random: np.random.Generator) -> set[int]:
        """Choose the patches that are centred on foreground; may replace entries of `cases`."""
        shuffled = random.permutation(len(cases)).tolist()
        forced = [slot for slot in shuffled if cases[slot].foreground][: self.config.num_forced]
        for slot in shuffled:
            others = [case for case in self.cases[cases[slot].dataset] if case.foreground]
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
