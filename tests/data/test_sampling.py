"""Which patches are drawn; no TensorFlow."""

import collections
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pydantic
import pytest

from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.labels import candidate_table
from partialseg.data.prepared import Case, Dataset, Prepared
from partialseg.data.sampling import PatchConfig, PatchPlan, fixed_draws, patch_start
from partialseg.errors import DataError

CLASSES = ("background", "liver", "spleen")
ANNOTATED = {"full": ("liver", "spleen"), "livers": ("liver",), "spleens": ("spleen",)}


def make_prepared(folder, cases):
    """`cases`: (dataset, name, shape, {value: flat indices}, split) of cases that only have foreground."""
    entries = []
    for dataset, name, shape, foreground, split in cases:
        case_folder = folder / dataset / name
        case_folder.mkdir(parents=True)
        np.save(case_folder / "foreground.npy", np.concatenate([[], *foreground.values()]).astype(np.int32))
        stops = np.cumsum([len(indices) for indices in foreground.values()]).tolist()
        parts = tuple(zip(foreground, [0, *stops], stops, strict=False))
        entries.append(Case(dataset, name, split, shape, (), parts, (), "", "", ""))
    datasets = {
        name: Dataset(name, organs, candidate_table(CLASSES, organs)) for name, organs in ANNOTATED.items()
    }
    return Prepared(folder, CLASSES, (3.0, 1.5, 1.5), datasets, tuple(entries))


@pytest.fixture
def prepared(tmp_path):
    """Two datasets of three and five cases; the last case of each has no foreground."""
    cases = []
    for dataset, num in (("full", 3), ("livers", 5)):
        for i in range(num):
            foreground = (
                {} if i == num - 1 else {1: [i, 400 + i], 2: [999 - i]} if dataset == "full" else {1: [500]}
            )
            cases.append((dataset, f"case{i}", (10, 10, 10), foreground, "train"))
    cases.append(("full", "held_out", (10, 10, 10), {1: [0]}, "test"))
    return make_prepared(tmp_path, cases)


def draws_of(plan, batches):
    return [draw for index in batches for draw in plan.batch(index)]


def per_dataset(draws):
    return collections.Counter(draw.case.dataset for draw in draws)


def test_every_dataset_gives_the_same_number_of_patches_in_an_epoch(prepared):
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 4, 4), batches_per_epoch=8))
    assert per_dataset(draws_of(plan, range(8))) == {"full": 8, "livers": 8}
    assert per_dataset(draws_of(plan, range(8, 16))) == {"full": 8, "livers": 8}


def test_what_does_not_divide_goes_round_over_epochs(prepared):
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 4, 4), batch_size=1, batches_per_epoch=5))
    assert per_dataset(draws_of(plan, range(5))) == {"full": 3, "livers": 2}
    assert per_dataset(draws_of(plan, range(5, 10))) == {"full": 2, "livers": 3}


def test_fewer_patches_than_datasets_still_reach_all_over_epochs(prepared):
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 4, 4), batch_size=1, batches_per_epoch=1))
    assert per_dataset(draws_of(plan, range(6))) == {"full": 3, "livers": 3}


def test_cases_are_dealt_evenly_across_epochs(prepared):
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 4, 4), batches_per_epoch=7, foreground=0))
    draws = draws_of(plan, range(15 * 7))  # 105 patches of each dataset: 35 rounds of three, 21 of five
    counts = collections.Counter((draw.case.dataset, draw.case.name) for draw in draws)
    assert set(counts.values()) == {35, 21}


def test_order_of_datasets_changes_from_epoch_to_epoch(prepared):
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 4, 4), batches_per_epoch=20))
    first, second = ([d.case.dataset for d in draws_of(plan, range(e * 20, e * 20 + 20))] for e in (0, 1))
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize(
    ("batch_size", "foreground", "num"), [(2, 0.33, 1), (3, 0.33, 1), (4, 0.33, 2), (2, 1, 2)]
)
def test_share_of_patches_on_foreground_holds_in_every_batch(prepared, batch_size, foreground, num):
    config = PatchConfig(patch_size=(4, 4, 4), batch_size=batch_size, foreground=foreground)
    assert config.num_forced == num
    plan = PatchPlan(prepared, config)
    for index in range(60):
        assert sum(draw.forced_value is not None for draw in plan.batch(index)) == num


def test_quota_holds_although_cases_without_foreground_are_replaced(prepared):
    config = PatchConfig(patch_size=(4, 4, 4), batch_size=2, foreground=1, batches_per_epoch=10)
    draws = draws_of(PatchPlan(prepared, config), range(10))
    assert per_dataset(draws) == {"full": 10, "livers": 10}
    assert all(draw.case.foreground for draw in draws)


def test_values_of_a_case_are_chosen_evenly(prepared):
    config = PatchConfig(patch_size=(4, 4, 4), foreground=1, datasets=["full"])
    values = collections.Counter(
        draw.forced_value for draw in draws_of(PatchPlan(prepared, config), range(300))
    )
    assert values.keys() == {1, 2}
    assert abs(values[1] - values[2]) < 100  # 600 draws: four standard deviations


def test_forced_patch_holds_its_voxel_and_is_centred_where_the_volume_permits(tmp_path):
    centre = int(np.ravel_multi_index((5, 6, 4), (10, 10, 10)))
    prepared = make_prepared(tmp_path, [("full", "a", (10, 10, 10), {1: [centre], 2: [999]}, "train")])
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 4, 4), foreground=1))
    starts = {draw.forced_value: draw.start for draw in draws_of(plan, range(20))}
    assert starts == {1: (3, 4, 2), 2: (6, 6, 6)}


def test_random_patches_reach_every_place(tmp_path):
    prepared = make_prepared(tmp_path, [("full", "a", (6, 5, 4), {}, "train")])
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 4, 4)))
    draws = draws_of(plan, range(60))
    assert {draw.start for draw in draws} == {(z, y, 0) for z in range(3) for y in range(2)}
    assert {draw.forced_value for draw in draws} == {None}


def test_small_volume_is_centred_in_the_patch(tmp_path):
    prepared = make_prepared(tmp_path, [("full", "a", (2, 5, 8), {1: [79]}, "train")])
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 8, 4), foreground=1))
    assert {draw.start for draw in plan.batch(0)} == {(-1, -1, 4)}


@pytest.mark.parametrize("patch", range(1, 12))
def test_start_keeps_the_patch_inside_or_the_volume_inside(patch):
    size = 7
    for wanted in range(-3, 12):
        start = patch_start(wanted, size, patch)
        covered = set(range(start, start + patch)) & set(range(size))
        assert len(covered) == min(patch, size)


def test_stream_is_a_function_of_seed_and_batch_alone(prepared):
    config = PatchConfig(patch_size=(4, 4, 4), batches_per_epoch=6, seed=3)
    forward = [PatchPlan(prepared, config).batch(index) for index in range(20)]
    plan = PatchPlan(prepared, config)
    assert [plan.batch(index) for index in reversed(range(20))] == forward[::-1]
    other_seed = PatchPlan(prepared, config.model_copy(update={"seed": 4}))
    assert [other_seed.batch(index) for index in range(20)] != forward


def test_only_the_split_and_the_datasets_asked_for(prepared):
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 4, 4), split="test"))
    assert {draw.case.name for draw in plan.batch(0)} == {"held_out"}
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 4, 4), datasets=["livers"]))
    assert per_dataset(draws_of(plan, range(9))) == {"livers": 18}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"datasets": ["liver"]}, "has no dataset liver (it has full, livers, spleens)"),
        ({"datasets": ["spleens", "full"]}, "has no case of spleens in the split 'train'"),
        ({"datasets": []}, "has no case in the split 'train'"),
    ],
)
def test_datasets_that_cannot_be_drawn_from_are_named(prepared, config, message):
    with pytest.raises(DataError) as error:
        PatchPlan(prepared, PatchConfig(**config))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"patch_size": (0, 4, 4)},
        {"batch_size": 0},
        {"foreground": 33},
        {"patchsize": 4},
        {"mix": "sqrt"},
        {"datasets": ["full", "livers", "full"]},
    ],
)
def test_wrong_config_is_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        PatchConfig(**wrong)


def test_fixed_draws_stay_the_same_and_show_every_case_and_value(prepared):
    draws = fixed_draws(prepared, "full", "train", 4, (4, 4, 4), seed=1)
    assert draws == fixed_draws(prepared, "full", "train", 4, (4, 4, 4), seed=1)
    shown = {(draw.case.name, draw.forced_value) for draw in draws}
    assert shown == {("case0", 1), ("case0", 2), ("case1", 1), ("case1", 2)}


def test_fixed_draws_of_an_unknown_dataset_are_refused(prepared):
    with pytest.raises(DataError, match="has no dataset nowhere"):
        fixed_draws(prepared, "nowhere", "train", 1, (4, 4, 4), seed=0)


@pytest.mark.parametrize(
    ("mix", "numbers"),
    [("equal", (40, 40)), ("proportional", (30, 50)), ("inverse_sqrt", (35, 45))],
)
def test_drawn_patches_are_the_quotas_of_the_mix(prepared, mix, numbers):
    config = PatchConfig(patch_size=(4, 4, 4), batches_per_epoch=40, mix=mix)
    plan = PatchPlan(prepared, config)
    for epoch in range(3):
        quotas = plan.quotas(epoch)
        assert per_dataset(draws_of(plan, range(epoch * 40, epoch * 40 + 40))) == quotas
    assert plan.quotas(0) == dict(zip(("full", "livers"), numbers, strict=True))


def test_a_dataset_with_no_patch_in_an_epoch_has_one_in_a_later_epoch(prepared):
    config = PatchConfig(patch_size=(4, 4, 4), batch_size=1, batches_per_epoch=1, mix="proportional")
    plan = PatchPlan(prepared, config)
    assert per_dataset(draws_of(plan, range(8))) == {"full": 3, "livers": 5}


def test_no_case_comes_twice_in_a_round_whatever_the_mix(prepared):
    config = PatchConfig(patch_size=(4, 4, 4), batches_per_epoch=7, foreground=0, mix="inverse_sqrt")
    draws = draws_of(PatchPlan(prepared, config), range(70))
    for dataset, num in (("full", 3), ("livers", 5)):
        names = [draw.case.name for draw in draws if draw.case.dataset == dataset]
        for first in range(0, len(names) - num + 1, num):
            assert len(set(names[first : first + num])) == num


def test_batches_share_the_patches_of_a_dataset_without_foreground(tmp_path):
    cases = [("full", f"case{i}", (10, 10, 10), {}, "train") for i in range(3)]
    prepared = make_prepared(tmp_path, [*cases, ("livers", "case0", (10, 10, 10), {1: [500]}, "train")])
    plan = PatchPlan(prepared, PatchConfig(patch_size=(4, 4, 4), batches_per_epoch=20))
    for index in range(60):
        assert [draw.case.dataset for draw in plan.batch(index) if draw.forced_value] == ["livers"]
    assert per_dataset(draws_of(plan, range(20))) == {"full": 20, "livers": 20}


def test_a_draw_names_the_voxel_on_which_it_is_centred(prepared):
    config = PatchConfig(patch_size=(4, 4, 4), foreground=1, datasets=["livers"])
    voxels = {draw.voxel for draw in draws_of(PatchPlan(prepared, config), range(10))}
    assert voxels == {(5, 0, 0)}
    config = PatchConfig(patch_size=(4, 4, 4), foreground=0)
    assert {draw.voxel for draw in PatchPlan(prepared, config).batch(0)} == {None}


def test_workers_share_every_batch_without_overlap(prepared):
    plan = PatchPlan(prepared, PatchConfig(batch_size=12))
    for workers in (1, 2, 3, 4, 6, 12):
        slots = [slot for worker in range(workers) for slot in plan.slots((worker, workers))]
        assert slots == list(range(12))


@pytest.mark.parametrize("shard", [(0, 5), (3, 3), (-1, 3), (0, 0)])
def test_workers_that_cannot_share_a_batch_are_refused(prepared, shard):
    with pytest.raises(ValueError, match="worker"):
        PatchPlan(prepared, PatchConfig(batch_size=12)).slots(shard)


def test_a_state_saved_as_json_goes_on_at_its_batch(prepared):
    config = PatchConfig(patch_size=(4, 4, 4), mix="inverse_sqrt", augmentation=AugmentationConfig())
    state = json.loads(json.dumps(PatchPlan(prepared, config).state(17)))
    assert PatchPlan(prepared, config.model_copy(update={"workers": 7})).batch_of(state) == 17
    named = config.model_copy(update={"datasets": ["full", "livers"]})  # those that None stands for
    assert PatchPlan(prepared, named).batch_of(state) == 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed is 0, expected 4"),
        ({"mix": "proportional"}, "mix is 'equal', expected 'proportional'"),
        ({"datasets": ["livers", "full"]}, "datasets is ['full', 'livers'], expected ['livers', 'full']"),
        (
            {"augmentation": AugmentationConfig(mirror={"probability": 0.25})},
            "augmentation.mirror.probability is 0.5, expected 0.25",
        ),
    ],
)
def test_a_state_of_another_config_is_refused(prepared, change, message):
    config = PatchConfig(augmentation=AugmentationConfig())
    state = PatchPlan(prepared, config).state(3)
    with pytest.raises(DataError) as error:
        PatchPlan(prepared, config.model_copy(update=change)).batch_of(state)
    assert f"was saved with another config: {message}" in str(error.value)


def test_a_state_of_other_cases_is_refused(prepared):
    state = PatchPlan(prepared, PatchConfig()).state(3)
    first = dataclasses.replace(prepared.cases[0], fingerprint="prepared anew")
    for cases in (prepared.cases[1:], (first, *prepared.cases[1:])):
        plan = PatchPlan(dataclasses.replace(prepared, cases=cases), PatchConfig())
        with pytest.raises(DataError, match="was saved with other cases"):
            plan.batch_of(state)


@pytest.mark.parametrize("wrong", [{"batch": -1}, {"batch": "3"}, {"batch": True}, {"config": None}])
def test_what_is_no_state_is_refused(prepared, wrong):
    plan = PatchPlan(prepared, PatchConfig())
    with pytest.raises(DataError, match="expected a number from 0 and a config"):
        plan.batch_of({**plan.state(3), **wrong})


def test_sampling_needs_no_tensorflow():
    code = "import sys, partialseg.data.sampling; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_too_few_patches_with_foreground_are_spread_evenly(tmp_path):
    cases = [("full", "a", (6, 6, 6), {1: [0]}, "train"), ("livers", "b", (6, 6, 6), {}, "train")]
    cases += [("spleens", f"{number}", (6, 6, 6), {}, "train") for number in range(4)]
    prepared = make_prepared(tmp_path, cases)
    config = PatchConfig(
        patch_size=(4, 4, 4), batch_size=6, batches_per_epoch=5, foreground=0.5, mix="proportional"
    )
    plan = PatchPlan(prepared, config)  # 5 of 30 patches can be centred on foreground, and 15 should be
    assert [sum(draw.voxel is not None for draw in plan.batch(index)) for index in range(5)] == [1] * 5
