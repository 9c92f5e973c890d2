from dataclasses import replace

import pytest
from pydantic import ValidationError

from partialseg.data.folds import Fold, hold_out
from partialseg.data.prepared import read_prepared
from partialseg.data.sampling import PatchConfig, PatchPlan
from partialseg.errors import DataError


@pytest.fixture(scope="module")
def prepared(tiny_prepared):
    """Of each dataset with training cases seven; of kits19 a single one."""
    real = read_prepared(tiny_prepared)
    firsts = {}
    for case in real.select(split="train"):
        firsts.setdefault(case.dataset, case)
    cases = [
        replace(case, name=f"{case.name}_{copy}")
        for case in firsts.values()
        for copy in range(1 if case.dataset == "kits19" else 7)
    ]
    return replace(real, cases=(*cases, *real.select(split="test")))


def held_out(prepared, fold, dataset):
    return {case.name for case in hold_out(prepared, fold).select(dataset, "validation")}


def test_each_case_is_held_out_in_one_fold(prepared):
    folds = [held_out(prepared, Fold(folds=5, fold=fold), "btcv") for fold in range(5)]
    assert sorted(len(fold) for fold in folds) == [1, 1, 1, 2, 2]
    assert set.union(*folds) == {case.name for case in prepared.select("btcv", "train")}


def test_with_fewer_cases_than_folds_each_fold_holds_out_one(prepared):
    assert [len(held_out(prepared, Fold(folds=10, fold=fold), "btcv")) for fold in range(10)] == [1] * 10


def test_the_only_case_of_a_dataset_stays_in_training(prepared):
    assert held_out(prepared, Fold(), "kits19") == set()
    assert len(hold_out(prepared, Fold()).select("kits19", "train")) == 1


def test_test_cases_and_other_datasets_change_nothing(prepared):
    alone = replace(prepared, cases=tuple(prepared.select("btcv")))
    assert held_out(alone, Fold(fold=3), "btcv") == held_out(prepared, Fold(fold=3), "btcv")
    assert hold_out(prepared, Fold()).select(split="test") == prepared.select(split="test")
    assert hold_out(prepared, None) is prepared


def test_held_out_cases_are_never_drawn_for_training_and_always_for_validation(prepared):
    fold = Fold(folds=3, fold=1)
    config = PatchConfig(patch_size=(8, 8, 8), batch_size=4, batches_per_epoch=25, foreground=0, fold=fold)
    out = {(case.dataset, case.name) for case in hold_out(prepared, config.fold).select(split="validation")}
    drawn = {
        split: {
            (draw.case.dataset, draw.case.name)
            for index in range(25)
            for draw in PatchPlan(prepared, config.model_copy(update={"split": split})).batch(index)
        }
        for split in ("train", "validation")
    }
    assert not drawn["train"] & out
    assert drawn["validation"] == out


def test_a_state_of_another_fold_is_refused(prepared):
    plans = [PatchPlan(prepared, PatchConfig(patch_size=(8, 8, 8), fold=Fold(fold=fold))) for fold in (0, 1)]
    with pytest.raises(DataError, match=r"another config: fold\.fold is 0, expected 1"):
        plans[1].batch_of(plans[0].state(3))


def test_a_fold_that_is_not_there_is_refused():
    with pytest.raises(ValidationError, match="expected one of 0 to 4"):
        Fold(folds=5, fold=5)
