"""Validation: Dice by hand, held-out cases, what counts and what does not."""

from dataclasses import replace

import numpy as np
import pytest

from partialseg.data.folds import hold_out
from partialseg.data.labels import candidate_table
from partialseg.data.pipeline import fixed_patches
from partialseg.data.prepared import read_prepared
from partialseg.errors import DataError
from partialseg.evaluation.metrics import score
from partialseg.training import read_config
from partialseg.training.config import ValidationConfig
from partialseg.training.validation import (
    PATCHES,
    VOLUMES,
    Overlap,
    Score,
    Validation,
    left_out_note,
    mean_dice,
    whole_volumes,
)

CLASSES = ("background", "liver", "left_kidney", "right_kidney")
RANDOM = np.random.default_rng(0)


def validating(**options):
    config = read_config("tiny")
    return config.model_copy(update={"validation": ValidationConfig(folds=2, patches=2, **options)})


def oracle(prepared):
    """A callable in place of a network: it knows the label of every voxel by the HU that the test gave it."""
    return lambda hu: np.eye(len(prepared.classes), dtype=np.float32)[hu[..., 0].astype(int)] * 100


def test_dice_of_a_full_annotation_is_the_one_of_the_evaluation():
    truth, predicted = RANDOM.integers(0, 4, (2, 8, 8, 8))
    overlap = Overlap(4)
    overlap.add(truth, candidate_table(CLASSES, CLASSES[1:]), predicted)
    expected = score(predicted, truth, (1, 1, 1), {name: CLASSES.index(name) for name in CLASSES[1:]})
    for organ in CLASSES[1:]:
        assert overlap.dice(CLASSES.index(organ)) == pytest.approx(expected[organ]["dice"])


def test_ignored_voxels_and_those_of_either_kidney_count_for_no_kidney():
    table = candidate_table(CLASSES, CLASSES[1:], [frozenset(CLASSES[2:])])
    ignored, either = 4, 5
    label = np.array([2, 2, 0, ignored, either, either])
    overlap = Overlap(4)
    overlap.add(label, table, np.array([2, 0, 2, 2, 2, 1]))
    assert overlap.dice(2) == pytest.approx(2 * 1 / (2 + 2))  # voxels 0 to 2
    assert overlap.dice(1) == 0  # voxel 5 is a kidney, so it is no liver


def test_an_organ_that_is_neither_there_nor_predicted_has_no_dice():
    overlap = Overlap(4)
    overlap.add(np.zeros(5, int), candidate_table(CLASSES, CLASSES[1:]), np.zeros(5, int))
    assert np.isnan(overlap.dice(1))


def test_mean_weighs_organs_alike_however_many_cases_and_datasets_have_them():
    scores = [Score(VOLUMES, "a", str(case), "liver", 1.0) for case in range(9)]
    scores += [Score(VOLUMES, "b", "x", "liver", 0.0), Score(VOLUMES, "b", "x", "spleen", 0.25)]
    assert mean_dice(scores) == pytest.approx((0.5 + 0.25) / 2)
    assert mean_dice([]) is None


def test_an_exact_network_has_dice_1_on_the_held_out_cases_of_every_dataset(tiny_prepared, monkeypatch):
    prepared = read_prepared(tiny_prepared)
    validation = Validation(validating(), prepared)
    monkeypatch.setattr(
        type(prepared),
        "image",
        lambda self, case: _shown(self, case),
    )
    scores = validation.by_volumes(oracle(prepared))
    assert {s.dataset for s in scores} == {
        name for name in prepared.datasets if len(prepared.select(name, "train")) > 1
    }
    assert {s.dice for s in scores} == {1.0}
    held_out = {(s.dataset, s.case) for s in scores}
    assert held_out == {(c.dataset, c.name) for c in validation.prepared.select(split="validation")}
    for s in scores:
        assert s.organ in prepared.datasets[s.dataset].annotated


def _shown(prepared, case):
    """An image whose HU are a class that each voxel may be."""
    return prepared.table(case).argmax(axis=1).astype(np.int16)[prepared.label(case)]


@pytest.fixture(scope="module")
def many(tiny_prepared):
    """Twelve training cases of one dataset, two of another."""
    real = read_prepared(tiny_prepared)
    copies = {"btcv": 12, "msd_liver": 2}
    cases = [
        replace(real.select(name, "train")[0], name=f"case{index}")
        for name, number in copies.items()
        for index in range(number)
    ]
    return replace(real, cases=tuple(cases))


def names(cases):
    return {dataset: [case.name for case in of_dataset] for dataset, of_dataset in cases.items()}


def test_of_each_dataset_so_many_cases_are_predicted_whole_the_same_ones_each_time(many):
    whole = {
        number: names(whole_volumes(hold_out(many, fold), fold))
        for number in (1, 2, None)
        for fold in [ValidationConfig(folds=2, volumes=number)]
    }
    assert {number: [len(cases) for cases in chosen.values()] for number, chosen in whole.items()} == {
        1: [1, 1],
        2: [2, 1],
        None: [6, 1],
    }
    assert whole[1]["btcv"] == whole[2]["btcv"][:1]
    assert set(whole[2]["btcv"]) < set(whole[None]["btcv"])
    fold = ValidationConfig(folds=2, volumes=2)
    backward = replace(many, cases=many.cases[::-1])
    assert names(whole_volumes(hold_out(backward, fold), fold)) == whole[2]
    never = ValidationConfig(folds=2, volumes_every=None)
    assert not any(whole_volumes(hold_out(many, never), never).values())


def with_rare(many, dataset, common, rare):
    """The cases of a dataset changed, the last in the order of the held-out ones in another way than all others."""
    fold = ValidationConfig(folds=2, volumes=None)
    last = whole_volumes(hold_out(many, fold), fold)[dataset][-1].name
    cases = tuple(
        replace(case, **(rare if case.name == last else common)) if case.dataset == dataset else case
        for case in many.cases
    )
    return last, replace(many, cases=cases)


@pytest.mark.parametrize(
    ("common", "rare"),
    [
        ({"annotated": ("liver",)}, {"annotated": ("spleen",)}),
        ({"annotated": ("liver", "spleen")}, {}),
        ({"foreground": (), "voxels": ()}, {}),
    ],
    ids=["annotated in one alone", "with more annotated in one", "with voxels in one alone"],
)
def test_an_organ_that_one_held_out_case_alone_has_is_predicted_whole(many, common, rare):
    last, cases = with_rare(many, "btcv", common, rare)
    chosen = {}
    for number in (1, 2, 3):
        fold = ValidationConfig(folds=2, volumes=number)
        chosen[number] = names(whole_volumes(hold_out(cases, fold), fold))["btcv"]
        backward = replace(cases, cases=cases.cases[::-1])
        assert names(whole_volumes(hold_out(backward, fold), fold))["btcv"] == chosen[number]
    fold = ValidationConfig(folds=2, volumes=None)
    in_order = names(whole_volumes(hold_out(cases, fold), fold))["btcv"]
    assert chosen[3] == [*in_order[:2], last]
    assert chosen[2] == [in_order[0], last]
    # One case has no organ in common with the others: it takes two to have all.
    assert chosen[1] == ([in_order[0], last] if rare else [last])


def test_a_note_says_of_which_datasets_not_every_held_out_case_is_predicted_whole(many):
    assert left_out_note(many, ValidationConfig(folds=2, volumes=2)) == (
        "validation predicts 2 of the 6 held-out cases of btcv whole (validation.volumes); run.json names them"
    )
    for nothing_to_say in (
        None,
        ValidationConfig(folds=2),
        ValidationConfig(folds=2, volumes=None),
        ValidationConfig(folds=2, volumes=1, volumes_every=None),
    ):
        assert left_out_note(many, nothing_to_say) is None


def test_patches_are_the_same_at_every_call_and_scored_together(tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    first, again = (Validation(validating(), prepared) for _ in range(2))
    nothing = lambda hu: np.eye(len(prepared.classes), dtype=np.float32)[np.zeros(hu.shape[:-1], int)]  # noqa: E731
    scores = first.by_patches(nothing)
    assert scores == again.by_patches(nothing)
    assert {s.source for s in scores} == {PATCHES}
    assert {s.dice for s in scores} == {0.0}


def test_patches_are_kept_as_stored_and_mean_what_the_candidates_of_patches_mean(tiny_prepared):
    validation = Validation(validating(), read_prepared(tiny_prepared))
    prepared, config = validation.prepared, validation.config
    for name, patches in validation._patches.items():
        images, sets = fixed_patches(prepared, name, "validation", 2, config.patch_size, config.seed)
        for (case, image, values), expected, sets_of_patch in zip(patches, images, sets, strict=True):
            assert (image.dtype, values.dtype) == (np.int16, np.uint8)
            np.testing.assert_array_equal(image, expected[..., 0])
            np.testing.assert_array_equal(prepared.table(case)[values], sets_of_patch)


def test_data_of_which_nothing_can_be_held_out_are_refused(tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    first = [prepared.select(name, "train")[0] for name in prepared.datasets]
    with pytest.raises(DataError, match="no dataset has two training cases"):
        Validation(validating(), replace(prepared, cases=tuple(first)))
