"""Rules chosen on cases whose mistakes are made by hand."""

import numpy as np
import pytest

from partialseg.data.prepared import read_prepared
from partialseg.data.raw_files import content_hash
from partialseg.errors import DataError
from partialseg.inference.postprocessing import OrganRules
from partialseg.inference.postprocessing_choice import (
    Choice,
    OrganChoice,
    Scores,
    choice_path,
    choose_postprocessing,
    read_choice,
    write_choice,
)
from partialseg.training.config import TrainingConfig, ValidationConfig
from partialseg.training.runs import Run, write_run

CLASSES = ("background", "liver", "left_kidney", "right_kidney")
FULL = np.eye(4, dtype=np.uint8)  # values are classes; no value is unsure
MM = (10.0, 10.0, 10.0)  # a voxel has 1 mL


def truth():
    labels = np.zeros((10, 10, 20), dtype=np.uint8)
    labels[2:8, 2:8, 12:18] = 1
    labels[1:3, 2:5, 3:6] = 2
    labels[1:3, 6:9, 14:18] = 3
    return labels


def chosen(*cases, table=FULL, annotated=CLASSES[1:]):
    scores = Scores(CLASSES)
    for predicted, true in cases:
        scores.add("one", predicted, true, table, MM, annotated, 10.0)
    return scores.choose()


def test_a_perfect_prediction_gets_no_rules():
    found = chosen((truth(), truth()))
    assert found.keys() == set(CLASSES[1:])
    for choice in found.values():
        assert choice.rules == OrganRules()
        assert (choice.dice_before, choice.dice_after, choice.cases) == (1.0, 1.0, 1)


def test_each_organ_gets_the_rule_that_mends_its_own_mistake():
    predicted = truth()
    predicted[4:6, 4:6, 14:16] = 0  # a hole in the liver
    predicted[0:2, 0, 0:4] = 2  # a second left kidney of 8 mL
    predicted[1:3, 6:9, 14:16] = 2  # half of the right kidney is called left
    found = chosen((predicted, truth()))
    assert found["liver"].rules == OrganRules(fill_holes=True)
    assert found["left_kidney"].rules == OrganRules(sides=True, largest_component=True)
    assert found["right_kidney"].rules == OrganRules(sides=True)
    for choice in found.values():
        assert choice.dice_before < 1
        assert choice.dice_after == 1


def test_what_helps_in_one_case_and_harms_as_much_in_another_is_left():
    with_speck, two_parts = truth(), truth()
    with_speck[0, 0, 0:3] = 1
    two_parts[9, 9, 0:3] = 1
    found = chosen((with_speck, truth()), (two_parts, two_parts))
    assert not found["liver"].rules.largest_component
    assert found["liver"].cases == 2


def test_an_organ_that_was_made_up_goes_by_its_volume():
    absent = np.where(truth() == 1, 0, truth()).astype(np.uint8)
    made_up = absent.copy()
    made_up[5, 5, 15] = 1
    found = chosen((made_up, absent), (truth(), truth()))
    assert found["liver"].rules == OrganRules(min_volume_ml=2.0)
    assert (found["liver"].dice_before, found["liver"].dice_after) == (0.5, 1.0)


def test_organs_that_are_not_annotated_are_not_chosen_for_and_unsure_voxels_count_for_neither():
    table = np.array(
        [[1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 1, 1]], dtype=np.uint8
    )  # only the liver is annotated
    true = np.where(truth() == 1, 1, 0)
    predicted = truth()
    predicted[0, 0, 0:3] = 1
    found = chosen((predicted, true), table=table, annotated=("liver",))
    assert found.keys() == {"liver"}
    assert found["liver"].rules == OrganRules(largest_component=True)


class Network:
    """Liver where it is brighter than 60 HU; counts the cases by their first windows."""

    def __init__(self):
        self.passes = 0

    def __call__(self, hu):
        self.passes += 1
        dark = np.full_like(hu, -1e6)
        return np.concatenate([0 * hu, hu - 60, dark, dark, dark, dark], axis=-1)


@pytest.fixture
def run(tmp_path, tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    config = TrainingConfig(name="threshold", patch_size=(64, 96, 96), validation=ValidationConfig(folds=2))
    run = Run(tmp_path / "run", config, prepared.classes, prepared.spacing_mm, {})
    write_run(run, {})
    run.model_path.write_bytes(b"weights")
    return run


def test_the_held_out_cases_are_predicted_once_and_the_file_says_what_was_found(
    run, tiny_prepared, monkeypatch
):
    network = Network()
    monkeypatch.setattr(Run, "load_model", lambda run: network)
    done = []
    choice = choose_postprocessing(
        run, read_prepared(tiny_prepared), progress=lambda *told: done.append(told)
    )
    assert done[-1][0] == done[-1][1] == network.passes
    assert "liver" in choice.organs
    path = write_choice(run, choice)
    assert path == choice_path(run)
    assert read_choice(run) == choice
    assert choice.network == content_hash([run.model_path])
    assert choice.split == "validation"


def test_without_held_out_cases_a_split_must_be_named(run, tiny_prepared):
    config = run.config.model_copy(update={"validation": None})
    run = Run(run.folder, config, run.classes, run.spacing_mm, {})
    with pytest.raises(DataError, match=r"held no cases out of training .* name the cases by --split test"):
        choose_postprocessing(run, read_prepared(tiny_prepared))


def test_data_of_other_classes_are_refused(run, tiny_prepared):
    other = Run(run.folder, run.config, ("background", "liver"), run.spacing_mm, {})
    with pytest.raises(DataError, match="its classes are background, liver, spleen"):
        choose_postprocessing(other, read_prepared(tiny_prepared))


def test_rules_of_another_network_or_organ_or_a_slip_in_the_file_are_told(run):
    with pytest.raises(DataError, match="there is no post-processing; run `partialseg postprocess"):
        read_choice(run)
    organs = {"liver": OrganChoice(rules=OrganRules(fill_holes=True))}
    write_choice(run, Choice(network="of other weights", organs=organs))
    with pytest.raises(DataError, match="was chosen for another network than the run has now"):
        read_choice(run)
    write_choice(run, Choice(organs=organs))
    assert read_choice(run).rules == {"liver": OrganRules(fill_holes=True)}
    choice_path(run).write_text("organs:\n  lung: {rules: {fill_holes: true}}\n")
    with pytest.raises(DataError, match="names lung, expected organs among liver"):
        read_choice(run)
    choice_path(run).write_text("organs:\n  liver: {rules: {fill_hole: true}}\n")
    with pytest.raises(DataError, match=r"fill_hole"):
        read_choice(run)
