"""Numbers on patches against counts by hand; no image is read, and no TensorFlow imported."""

import subprocess
import sys

import numpy as np
import pytest

from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.labels import candidate_table
from partialseg.data.patch_statistics import PatchCounts, count_values
from partialseg.data.prepared import Case, Dataset, Prepared
from partialseg.data.sampling import Draw, PatchConfig, PatchPlan
from partialseg.errors import DataError

CLASSES = ("background", "liver", "left_kidney", "right_kidney")
IGNORED, EITHER = 4, 5


def make_prepared(folder, labels, annotated):
    """`labels`: `{(dataset, case): label map}`; the foreground is listed in full, and there are no images."""
    datasets = {
        name: Dataset(
            name, organs, candidate_table(CLASSES, organs, [frozenset(CLASSES[2:])] if name == "kits" else [])
        )
        for name, organs in annotated.items()
    }
    cases = []
    for (dataset, name), label in labels.items():
        values = [v for v in np.unique(label).tolist() if not datasets[dataset].table[v, 0]]
        indices = [np.flatnonzero(label == value) for value in values]
        stops = np.cumsum([len(part) for part in indices]).tolist()
        case_folder = folder / dataset / name
        case_folder.mkdir(parents=True)
        np.save(case_folder / "label.npy", np.asarray(label, np.uint8))
        np.save(case_folder / "foreground.npy", np.concatenate([[], *indices]).astype(np.int32))
        parts = tuple(zip(values, [0, *stops], stops, strict=False))
        cases.append(Case(dataset, name, "train", label.shape, (), parts, (), "", "", ""))
    return Prepared(folder, CLASSES, (3.0, 1.5, 1.5), datasets, tuple(cases))


def line(*values):
    """A label map of one row of voxels."""
    return np.array(values).reshape(1, 1, -1)


@pytest.fixture
def prepared(tmp_path):
    labels = {
        ("full", "a"): line(0, 0, 1, 1, 2, 0, 0, IGNORED),
        ("full", "empty"): line(0, 0, 0, 0, 0, 0, 0, 0),
        ("kits", "pair"): line(0, 0, 0, 0, EITHER, EITHER, 0, 0),
        ("kits", "short"): line(3, 0),
    }
    return make_prepared(tmp_path, labels, {"full": CLASSES[1:], "kits": CLASSES[2:]})


def case(prepared, name):
    return next(case for case in prepared.cases if case.name == name)


def counted(prepared, batches, **config):
    counts = PatchCounts(PatchPlan(prepared, PatchConfig(**{"patch_size": (1, 1, 4), **config})))
    for draws in batches:
        counts.add(draws)
    return counts.report()


@pytest.fixture
def report(prepared):
    """Two batches of two patches of four voxels, drawn by hand."""
    batches = [
        [
            Draw(case(prepared, "a"), (0, 0, 1), 1, (0, 0, 3)),  # 0 1 1 2
            Draw(case(prepared, "pair"), (0, 0, 2), EITHER, (0, 0, 4)),  # 0 0 either either
        ],
        [
            Draw(case(prepared, "a"), (0, 0, 4)),  # 2 0 0 ignored
            Draw(case(prepared, "short"), (0, 0, -1)),  # outside 3 0 outside
        ],
    ]
    return counted(prepared, batches, batches_per_epoch=4)


def by_name(entries):
    return {entry["name"]: entry for entry in entries}


def test_patches_and_voxels_of_each_class_are_as_counted_by_hand(report):
    classes = by_name(report["classes"])
    assert list(classes) == ["liver", "left kidney", "right kidney", "left or right kidney"]
    found = {name: (entry["patches"], entry["centred"], entry["share"]) for name, entry in classes.items()}
    assert found == {
        "liver": (1, 1, 2 / 16),
        "left kidney": (2, 0, 2 / 16),
        "right kidney": (1, 0, 1 / 16),
        "left or right kidney": (1, 1, 2 / 16),
    }


def test_voxels_that_are_no_organ_are_told_apart(report):
    assert report["other_voxels"] == pytest.approx(
        {"background": 3 / 16, "background_or_organ": 3 / 16, "ignored": 1 / 16, "outside": 2 / 16}
    )
    organs = sum(entry["share"] for entry in report["classes"])
    assert organs + sum(report["other_voxels"].values()) == pytest.approx(1)


def test_classes_are_counted_dataset_by_dataset(report):
    pair, liver = (by_name(report["classes"])[name]["datasets"] for name in ("left or right kidney", "liver"))
    assert pair["kits"] == {"annotated": True, "patches": 1, "centred": 1}
    assert pair["full"] == {"annotated": False, "patches": 0, "centred": 0}
    assert [liver[name]["annotated"] for name in ("full", "kits")] == [True, False]


def test_patches_and_cases_of_each_dataset_are_as_counted_by_hand(report):
    full, kits = report["datasets"]
    assert (full["patches"], full["share"], full["centred"], full["with_foreground"]) == (2, 0.5, 1, 2)
    assert (full["cases"], full["cases_drawn"], full["never_drawn"]) == (2, 1, ["empty"])
    assert full["without_foreground"] == ["empty"]
    assert (kits["cases_drawn"], kits["never_drawn"], kits["smaller_than_patch"]) == (2, [], ["short"])


def test_of_an_epoch_in_part_the_same_part_of_the_quota_is_asked_for(report):
    assert [dataset["quota"] for dataset in report["datasets"]] == [2, 2]


def test_an_epoch_in_part_is_noted_and_a_whole_one_is_not(prepared):
    plan = PatchPlan(prepared, PatchConfig(patch_size=(1, 1, 4), batches_per_epoch=3))
    for num, noted in ((2, True), (3, False), (6, False)):
        report = counted(prepared, [plan.batch(index) for index in range(num)], batches_per_epoch=3)
        found = [note for note in report["notes"] if "over an epoch, which has 3 batches" in note]
        assert bool(found) == noted


def test_quotas_of_a_mix_add_up_over_whole_epochs_and_a_part(prepared):
    plan = PatchPlan(prepared, PatchConfig(patch_size=(1, 1, 4), batches_per_epoch=3))
    report = counted(prepared, [plan.batch(index) for index in range(7)], batches_per_epoch=3)
    assert [dataset["quota"] for dataset in report["datasets"]] == [7, 7]
    assert sum(dataset["patches"] for dataset in report["datasets"]) == report["patches"] == 14


def test_foreground_of_a_batch_has_its_least_and_its_mean(report):
    assert report["foreground"] == {
        "asked": 0.5,
        "centred": {"least": 0, "mean": 0.5},
        "annotated": {"least": 1, "mean": 1},
    }


def test_patches_that_reach_out_are_counted(report):
    assert report["reaching_out"] == {"patches": 1, "mean_outside": 2 / 16}


def test_notes_name_the_cases(report):
    said = "\n".join(report["notes"])
    assert (
        "1 case without annotated foreground: no patch of theirs is centred on an organ: full/empty" in said
    )
    assert "1 case smaller than the patch of 1 x 1 x 4" in said
    assert "1 case not drawn in 2 batches: full/empty" in said
    assert "1 of 2 batches hold fewer than 1 patch centred" in said


def test_organs_that_no_patch_holds_and_that_nobody_annotates_are_noted(tmp_path):
    labels = {("left", "a"): line(2, 0, 0, 0)}
    prepared = make_prepared(tmp_path, labels, {"left": CLASSES[2:]})
    report = counted(prepared, [[Draw(prepared.cases[0], (0, 0, 0))] * 2])
    assert "no dataset drawn from annotates liver" in report["notes"]
    assert "no patch holds right kidney, annotated by left" in report["notes"]


def test_a_mirror_that_is_not_used_is_noted(tmp_path):
    prepared = make_prepared(tmp_path, {("left", "a"): line(2, 0, 0, 0)}, {"left": CLASSES[2:]})
    alone = Prepared(tmp_path, CLASSES[:3], prepared.spacing_mm, prepared.datasets, prepared.cases)
    plan = PatchPlan(alone, PatchConfig(patch_size=(1, 1, 2), augmentation=AugmentationConfig()))
    counts = PatchCounts(plan)
    alone.datasets["left"] = Dataset("left", CLASSES[2:3], candidate_table(CLASSES[:3], CLASSES[2:3]))
    counts.add([Draw(alone.cases[0], (0, 0, 0))])
    assert counts.report()["notes"][0].startswith("patches are not mirrored across left and right")


def test_drawn_batches_hold_what_the_plan_says(prepared):
    plan = PatchPlan(prepared, PatchConfig(patch_size=(1, 1, 4)))
    report = counted(prepared, [plan.batch(index) for index in range(20)])
    assert report["foreground"]["centred"]["least"] >= report["foreground"]["asked"] == 0.5
    assert sum(entry["centred"] for entry in report["classes"]) == 20
    assert not report["datasets"][0]["never_drawn"]


def test_a_value_beyond_the_table_is_refused(prepared):
    short = case(prepared, "short")
    np.save(prepared.folder / "kits" / "short" / "label.npy", np.full(short.shape, 9, np.uint8))
    with pytest.raises(DataError, match=r"label\.npy: holds value 9, but the dataset's table has 0 to 5"):
        count_values(prepared, Draw(short, (0, 0, 0)), (1, 1, 2))


def test_nothing_counted_is_refused(prepared):
    with pytest.raises(ValueError, match="no batch was counted"):
        counted(prepared, [])


def test_inspecting_imports_neither_tensorflow_nor_matplotlib():
    code = (
        "import sys, partialseg.cli, partialseg.data.inspect_page, partialseg.data.inspect_tables\n"
        "import partialseg.training.config, partialseg.training.stage_patches\n"
        "sys.exit(', '.join({'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
