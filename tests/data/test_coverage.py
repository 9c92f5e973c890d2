import json

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.cards import read_card, shipped_cards
from partialseg.data.coverage import as_html, check

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


def test_page_escapes_what_users_wrote(checked):
    report = json.loads(json.dumps(checked[0].report))
    report["datasets"][0]["title"] = "<b>Liver & more</b>"
    page = as_html(report)
    assert "&lt;b&gt;Liver &amp; more&lt;/b&gt;" in page
    assert "<b>Liver" not in page


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
    assert not [case["notes"] for case in result.report["cases"] if "swapped" in " ".join(case["notes"])]
