import json

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.cards import read_card, shipped_cards
from partialseg.data.coverage import check
from partialseg.errors import DataError

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])
CARDS = ["msd_liver", "kits19", "msd_spleen"]


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def empty():
    return np.zeros((40, 20, 10), dtype=np.uint8)


def scan(seed):
    """Tissue with air in front of it and bone behind."""
    image = np.random.default_rng(seed).normal(50, 40, (40, 20, 10)).astype(np.int16)
    image[:, :2] += 650
    image[:, 18:] = -1000
    return image


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Liver: two cases, one without a liver. Kidneys: one pair, one fused mass. Spleen: none."""
    folder = tmp_path_factory.mktemp("raw")
    liver, pair, fused = empty(), empty(), empty()
    liver[25:35, 5:15, 2:8] = 1
    liver[30, 10, 5] = 2
    pair[5:11, 5:11, 2:6] = pair[29:35, 5:11, 2:6] = 1
    fused[5:35, 8:12, 4:6] = 1
    for seed, (name, label) in enumerate((("liver_0", liver), ("liver_1", empty()))):
        save(folder / "Task03_Liver" / "imagesTr" / f"{name}.nii.gz", scan(seed))
        save(folder / "Task03_Liver" / "labelsTr" / f"{name}.nii.gz", label)
    for seed, (name, label) in enumerate((("case_00000", pair), ("case_00001", fused)), 2):
        save(folder / "kits19" / "data" / name / "imaging.nii.gz", scan(seed))
        save(folder / "kits19" / "data" / name / "segmentation.nii.gz", label)
    return folder


@pytest.fixture(scope="module")
def checked(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("check")
    return check([read_card(name) for name in CARDS], raw, out, jobs=1), out


def test_coverage_counts_cases_and_measures_volume(checked):
    coverage = checked[0].report["coverage"]
    assert coverage["liver"]["msd_liver"] == {
        "annotated": True,
        "cases": 2,
        "with_voxels": 1,
        "voxels": 600,  # the tumour is liver, too
        "mean_ml": pytest.approx(600 * 0.02),
        "lowest_ml": pytest.approx(600 * 0.02),
        "highest_ml": pytest.approx(600 * 0.02),
        "outliers": [],
    }
    assert coverage["left_kidney"]["kits19"]["with_voxels"] == 1
    assert coverage["left_kidney"]["kits19"]["mean_ml"] == pytest.approx(144 * 0.02)
    assert coverage["liver"]["kits19"] == {
        "annotated": False,
        "cases": 0,
        "with_voxels": 0,
        "voxels": 0,
        "mean_ml": None,
        "lowest_ml": None,
        "highest_ml": None,
        "outliers": [],
    }


def test_volume_whose_side_is_not_told_is_kept_apart(checked):
    fused = next(case for case in checked[0].report["cases"] if case["name"] == "case_00001")
    assert fused["volumes_ml"] == {"left_kidney": 0, "right_kidney": 0}
    assert fused["unsure_ml"] == pytest.approx(240 * 0.02)
    assert "left_kidney/right_kidney: fused" in fused["notes"]


def test_dataset_that_is_not_there_is_the_one_problem(checked):
    result, _ = checked
    assert [problem.path for problem in result.problems] == [str(shipped_cards()["msd_spleen"])]
    assert [dataset["cases"] for dataset in result.report["datasets"]] == [2, 2, 0]


def test_report_is_written_as_json_and_as_one_page(checked):
    result, out = checked
    assert json.loads((out / "check.json").read_text()) == result.report
    page = (out / "check.html").read_text()
    for name in ("liver_1", "case_00001", "right_kidney", "msd_spleen", "<b>1</b><span>problem</span>"):
        assert name in page
    assert "<script" not in page
    assert page.count("src=") == page.count('src="data:image/png;base64,') == 2  # no liver; fused kidneys


def test_two_workers_find_the_same_as_one(raw, checked):
    result = check([read_card(name) for name in CARDS], raw, jobs=2)
    assert result.report == checked[0].report


def test_mirrored_scan_is_noticed_once(tmp_path):
    label = np.zeros((40, 20, 10), np.uint8)
    label[35], label[5], label[30], label[8] = 1, 6, 3, 2  # spleen, liver, left and right kidney
    save(tmp_path / "btcv" / "img" / "img0001.nii.gz", scan(0))
    save(tmp_path / "btcv" / "label" / "label0001.nii.gz", label)
    (case,) = check([read_card("btcv")], tmp_path, jobs=1).report["cases"]
    assert [note.split(":")[0] for note in case["notes"] if "swapped" in note] == [
        "liver lies left of spleen",
        "right_kidney lies left of left_kidney",
    ]


def test_phantom_is_covered_as_the_paper_has_it(tiny_raw):
    cards = [read_card(name) for name in ("btcv", "msd_liver", "msd_spleen", "msd_pancreas", "kits19")]
    result = check(cards, tiny_raw, jobs=1)
    assert not result.problems
    annotated = {
        organ: [name for name, cell in row.items() if cell["annotated"]]
        for organ, row in result.report["coverage"].items()
    }
    assert annotated == {
        "liver": ["btcv", "msd_liver"],
        "spleen": ["btcv", "msd_spleen"],
        "pancreas": ["btcv", "msd_pancreas"],
        "left_kidney": ["btcv", "kits19"],
        "right_kidney": ["btcv", "kits19"],
    }
    notes = {case["name"]: case["notes"] for case in result.report["cases"] if case["notes"]}
    assert notes == {"case_00002": ["left_kidney/right_kidney: one side"]}  # so drawn
    assert {note.split(" ", 1)[1] for dataset in result.report["datasets"] for note in dataset["notes"]} == {
        f"of the {count} published cases are here" for count in (30, 131, 41, 281, 210)
    }
    assert not result.report["duplicates"]


def test_organs_without_a_case_or_with_one_dataset_alone_are_noted(raw):
    cards = [read_card("msd_liver"), read_card("kits19")]
    organs = check(cards, raw, jobs=1, organs=["liver", "stomach"]).report["organs"]
    assert organs == {
        "liver": {
            "datasets": ["msd_liver"],
            "note": "annotated by msd_liver alone: a network sees it in scans of one source (domain shift)",
        },
        "stomach": {"datasets": [], "note": "annotated in no case here: a network learns nothing about it"},
    }
    alone = check(cards[:1], raw, jobs=1).report["organs"]
    assert alone == {"liver": {"datasets": ["msd_liver"], "note": None}}


def test_more_than_64_organs_are_refused(tmp_path):
    organs = ", ".join(f"organ_{number}" for number in range(1, 66))
    values = ", ".join(f"{number}: organ_{number}" for number in range(1, 66))
    files = 'files: {image: "*_ct.nii", label: "*_label.nii"}'
    (tmp_path / "many.md").write_text(
        f"---\nname: many\n{files}\nlabels: {{{values}}}\nannotated: [{organs}]\n---\n"
    )
    card = read_card(tmp_path / "many.md")
    with pytest.raises(DataError, match="65 organs, expected 64 at most; choose the organs with --organ"):
        check([card], tmp_path, jobs=1)
    assert check([card], tmp_path, jobs=1, organs=["organ_1"]).report["classes"] == ["background", "organ_1"]


@pytest.fixture
def two_datasets(tmp_path):
    """One scan in both, under another name, in another data type and with other axes; it is for testing in one."""
    label = empty()
    label[25:35, 5:15, 2:8] = 1
    for folder, test in (("here", "[b_ct]"), ("there", "[]")):
        (tmp_path / f"{folder}.md").write_text(
            f'---\nname: {folder}\nfiles: {{image: "*_ct.nii.gz", label: "*_label.nii.gz"}}\nlabels: {{1: liver}}\n'
            f"annotated: [liver]\nsplits: {{test: {test}}}\n---\n"
        )
    for seed, name in enumerate(("here/a", "here/b", "there/c")):
        save(tmp_path / f"{name}_ct.nii.gz", scan(seed))
        save(tmp_path / f"{name}_label.nii.gz", np.roll(label, seed, axis=0))
    turn = nib.orientations.axcodes2ornt("SLA")
    for kind, array in (("ct", scan(1).astype(np.float32)), ("label", np.roll(label, 1, axis=0))):
        file = nib.Nifti1Image(array, AFFINE).as_reoriented(turn)
        nib.save(file, tmp_path / "there" / f"z_{kind}.nii.gz")
    return tmp_path


def test_a_scan_in_training_and_in_test_data_is_leakage(two_datasets):
    cards = [read_card(two_datasets / f"{name}.md") for name in ("here", "there")]
    result = check(cards, two_datasets, jobs=1)
    assert result.report["duplicates"] == [
        {
            "cases": [
                {"dataset": "here", "case": "b_ct", "split": "test"},
                {"dataset": "there", "case": "z_ct", "split": "train"},
            ],
            "same": "image and label map",
            "leakage": True,
        }
    ]
    assert result.leakage == [
        "the same scan is in training and in test data: here b_ct (test), there z_ct (train)"
    ]
    notes = {case["name"]: case["notes"] for case in result.report["cases"]}
    assert notes["b_ct"] == ["leakage, in training and in test data: same image and label map as there z_ct"]
    assert notes["a_ct"] == []
    assert not result.problems


def test_problems_of_a_file_that_two_cards_read_are_those_of_either_dataset(two_datasets):
    (two_datasets / "here" / "a_ct.nii.gz").write_bytes(b"")
    cards = [read_card(two_datasets / "here.md")]
    cards.append(cards[0].model_copy(update={"name": "again", "folders": ["here"]}))
    report = check(cards, two_datasets, jobs=1).report
    problems = [(entry["dataset"], entry["case"], entry["problem"]) for entry in report["problems"]]
    assert sorted(problems) == [
        (name, "a_ct", "is empty, expected a NIfTI file") for name in ("again", "here")
    ]


def test_notes_are_counted(two_datasets):
    cards = [read_card(two_datasets / f"{name}.md") for name in ("here", "there")]
    assert check(cards[:1], two_datasets, jobs=1).num_notes == 0
    assert check(cards, two_datasets, jobs=1).num_notes == 2


def test_nothing_is_noted_of_real_scans(real_data, tmp_path):
    names = {1: "liver", 2: "spleen", 3: "pancreas", 4: "left_kidney", 5: "right_kidney"}
    (tmp_path / "real.md").write_text(
        '---\nname: real\nfiles: {image: "*_ct.nii.gz", label: "*_label.nii.gz"}\n'
        f"labels: {names}\nannotated: [{', '.join(names.values())}]\n---\n"
    )
    for name in ("totalseg_example_3mm", "lidc0001_upper_abdomen"):
        for kind in ("ct", "label"):
            (tmp_path / f"{name}_{kind}.nii.gz").symlink_to((real_data / f"{name}_{kind}.nii.gz").resolve())
    result = check([read_card(tmp_path / "real.md")], tmp_path, tmp_path / "out", jobs=1)
    assert (len(result.report["cases"]), result.problems, result.num_notes) == (2, [], 0)
