"""How large the organs are: the share of the voxels that each class has where all organs are annotated.

This is the prior of `partialseg.losses.prior_aware`: what the network predicts on partially annotated patches shall
have these shares on the mean. So they must be the shares in such *patches*, which are not those in whole scans:
patches are smaller than the body, and some are centred on an organ on purpose, in each dataset on those that it
annotates. Given the settings of the patches, they are drawn here from fully annotated cases as training draws
them from the partially annotated ones; without, whole scans are measured.

Both rest on what the prior-aware loss assumes: that the partially annotated scans show the organs as the fully
annotated ones do. If they show much more of the body (the legs, say), every share is smaller there.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from partialseg.data.labels import ignored_value
from partialseg.data.mixing import EpochQuotas, dataset_weights
from partialseg.data.prepared import Case, Prepared
from partialseg.data.sampling import Draw, PatchConfig, centred_draw, random_draw
from partialseg.errors import DataError

# Part of the seed, so that these patches are none of those that training draws with the same seed.
_ORGAN_SIZES = 4


def organ_size_prior(
    prepared: Prepared, config: PatchConfig | None = None, num_patches: int = 1000
) -> dict[str, float]:
    """Measure the share of the voxels that each class has, in the fully annotated training cases.

    Args:
        prepared: The prepared cases.
        config: How training draws patches. The shares are then those in patches drawn alike: as many for every
            partially annotated dataset (for every dataset if all are fully annotated) as `config.mix` asks,
            centred on one of its organs as often as `config.foreground` asks. None measures whole scans.
        num_patches: How many patches are drawn. Shares of small organs need many: they differ between patches
            by about as much as they are, so with 1000 they are within some percent.

    Returns:
        `{class: share}` in the order of `prepared.classes`, background first; each share above 0, the sum 1:
        what `PriorAware(prior=...)` takes. Ignored voxels do not count; a voxel that is one of several organs
        counts for each of them in equal parts.

    Raises:
        DataError: If there is no fully annotated training case, or no voxel of some organ in them.
    """
    cases = [case for case in prepared.select(split="train") if prepared.fully_annotated(case)]
    manifest = prepared.folder / "manifest.json"
    if not cases:
        raise DataError(
            manifest,
            "has no fully annotated training case, and only such cases show how large the organs are",
            "prepare a fully annotated dataset too, or write the shares into the config by hand",
        )
    whole = (Draw(case, (0, 0, 0)) for case in cases)
    draws = whole if config is None else _patches_as_in_training(prepared, config, cases, num_patches)
    voxels = _count(prepared, draws, None if config is None else config.patch_size)
    missing = [organ for organ, count in zip(prepared.classes, voxels, strict=True) if not count]
    if missing:
        raise DataError(
            manifest,
            f"lists no fully annotated training case that shows {', '.join(missing)}"
            + ("" if config is None else f" in {num_patches} patches"),
            "leave the organ out, measure more patches, or write the shares into the config by hand",
        )
    return dict(zip(prepared.classes, (voxels / voxels.sum()).tolist(), strict=True))


def _patches_as_in_training(
    prepared: Prepared, config: PatchConfig, cases: list[Case], num_patches: int
) -> Iterator[Draw]:
    """Patches of fully annotated cases, placed as training places those of the datasets that it draws from."""
    random = np.random.default_rng([config.seed, _ORGAN_SIZES])
    showing_value: dict[int, list[Case]] = {}
    for case in cases:
        for value, *_ in case.foreground:
            showing_value.setdefault(value, []).append(case)
    for organs in _annotated_organs(prepared, config, num_patches):
        value = prepared.classes.index(organs[random.integers(len(organs))])
        showing = showing_value.get(value)
        if showing and random.random() < config.num_forced / config.batch_size:
            case = showing[random.integers(len(showing))]
            yield centred_draw(prepared, case, config.patch_size, random, value)
        else:
            yield random_draw(cases[random.integers(len(cases))], config.patch_size, random)


def _annotated_organs(prepared: Prepared, config: PatchConfig, num_patches: int) -> Iterator[tuple[str, ...]]:
    """For each patch, the organs that its dataset annotates; as many of a dataset as the mix asks for."""
    num_cases = Counter(case.dataset for case in prepared.select(split="train"))
    drawn = [
        dataset
        for name, dataset in prepared.datasets.items()
        if (config.datasets is None or name in config.datasets) and num_cases[name]
    ]
    samples = [dataset for dataset in drawn if not dataset.fully_annotated] or drawn
    weights = dataset_weights({dataset.name: num_cases[dataset.name] for dataset in samples}, config.mix)
    quotas = EpochQuotas(weights, num_patches).of_epoch(0)
    for dataset in samples:
        yield from itertools.repeat(dataset.annotated, quotas[dataset.name])


def _count(prepared: Prepared, draws: Iterable[Draw], patch_size: tuple[int, int, int] | None) -> np.ndarray:
    """Voxels of each class, float64, within patches of this size, or within whole scans."""
    voxels = np.zeros(len(prepared.classes))
    for draw in draws:
        box = tuple(
            slice(max(start, 0), None if patch_size is None else start + patch_size[axis])
            for axis, start in enumerate(draw.start)
        )
        table = prepared.table(draw.case).astype(np.float64)
        counts = np.bincount(prepared.label(draw.case)[box].ravel(), minlength=len(table))
        counts[ignored_value(prepared.classes)] = 0
        voxels += counts @ (table / table.sum(axis=1, keepdims=True))
    return voxels
