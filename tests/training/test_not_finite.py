"""What is found when a loss is no number: the case, the patch and the term, or the step before."""

import json
import shutil

import numpy as np
import pytest

from partialseg.data.pipeline import BatchReader
from partialseg.data.prepared import read_prepared
from partialseg.training import not_finite, read_config, train
from partialseg.training.config import StageConfig
from partialseg.training.not_finite import FOLDER, LossIsNotFiniteError
from partialseg.training.stage_patches import stage_patches


@pytest.fixture
def config():
    stage = StageConfig(name="all", datasets="all", epochs=2, patches_per_dataset=2)
    return read_config("tiny").model_copy(update={"stages": (stage,)})


def report(run):
    content = json.loads((run / FOLDER / "report.json").read_text())
    with np.load(run / FOLDER / "patches.npz") as arrays:
        return content, arrays["image"], arrays["candidates"]


def break_patch_of_step(number, monkeypatch):
    """From now on one patch of a step of the stage is read as NaN; what is returned may end that."""
    read, broken = BatchReader.read, [True]

    def read_broken(self, index):
        image, candidates = read(self, index)
        if broken and int(index) == number:
            image[1] = np.nan
        return image, candidates

    monkeypatch.setattr(BatchReader, "read", read_broken)
    return broken


@pytest.mark.parametrize("minutes", [0, 10])
def test_the_patch_the_case_and_the_terms_are_named_and_the_patches_kept(
    minutes, config, tiny_prepared, tmp_path, monkeypatch
):
    break_patch_of_step(8, monkeypatch)
    config = config.model_copy(update={"checkpoint_minutes": minutes})
    with pytest.raises(LossIsNotFiniteError) as error:
        train(config, tiny_prepared, tmp_path / "run")
    prepared = read_prepared(tiny_prepared)
    reader = BatchReader(prepared, stage_patches(config, 0, prepared))
    culprit = reader.plan.batch(8)[1]
    start = ", ".join(map(str, culprit.start))
    assert "epoch 2, step 4: the loss is nan" in str(error.value)
    assert f"mCE, mDC, eCE, eDC of the patch of {culprit.case.dataset}, case {culprit.case.name}" in str(
        error.value
    )
    assert f"({start}) is no number" in str(error.value)
    content, image, candidates = report(tmp_path / "run")
    assert [set(patch["terms"].values()) == {None} for patch in content["patches"]] == [False, True]
    assert content["weights_not_finite"] == []
    assert np.isnan(image[1]).all()
    assert np.isfinite(image[0]).all()
    assert candidates.shape == (*image.shape[:-1], len(prepared.classes))


def test_the_step_before_is_blamed_when_the_weights_were_no_numbers_any_more(config, tiny_prepared, tmp_path):
    # In float32 the rate is infinite: the loss of the first step is a number, the weights after it are none.
    wild = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 1e39})}
    )
    with pytest.raises(
        LossIsNotFiniteError, match=r"step 2: .* was no number any more after the step before"
    ):
        train(wild, tiny_prepared, tmp_path / "run")
    content, _, _ = report(tmp_path / "run")
    assert content["weights_not_finite"]
    prepared = read_prepared(tiny_prepared)
    first = BatchReader(prepared, stage_patches(config, 0, prepared)).plan.batch(0)
    assert [patch["case"] for patch in content["patches"]] == [draw.case.name for draw in first]


def test_what_does_not_come_again_is_said_and_told_anew_the_next_time(
    config, tiny_prepared, tmp_path, monkeypatch
):
    repeat = not_finite._repeat_up_to
    with monkeypatch.context() as patch:
        broken = break_patch_of_step(2, patch)
        patch.setattr(not_finite, "_repeat_up_to", lambda *args: (broken.clear(), repeat(*args)))
        with pytest.raises(LossIsNotFiniteError, match="has a finite loss when the step is repeated"):
            train(config, tiny_prepared, tmp_path / "run")
    with monkeypatch.context() as patch:
        break_patch_of_step(2, patch)
        with pytest.raises(LossIsNotFiniteError, match="is no number"):
            train(config, tiny_prepared, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / FOLDER)
    assert train(config, tiny_prepared, tmp_path / "run").model_path.is_file()
