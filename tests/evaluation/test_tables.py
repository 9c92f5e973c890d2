import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from partialseg.data.cards import Override, read_card
from partialseg.evaluation import evaluate, read_scores
from partialseg.evaluation.score_files import COLUMNS, columns
from partialseg.evaluation.tables import join_tables

CLASSES = ["background", "liver", "spleen", "pancreas", "left_kidney", "right_kidney"]


def save(path, array_xyz, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([2.0, 2.0, 5.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(array_xyz, affine), path)


def box(*corner, size=3, shape=(12, 12, 8), value=1):
    array = np.zeros(shape, np.uint8)
    array[tuple(slice(c, c + size) for c in corner)] = value
    return array


@pytest.fixture
def liver_truth(tmp_path):
    """Three cases of MSD liver (1 liver, 2 tumour); in the third the liver is not there."""
    labels = {
        "liver_0": box(2, 2, 2) + box(3, 3, 3, size=1),
        "liver_1": box(5, 5, 2),
        "liver_2": box(0, 0, 0, size=0),
    }
    for name, array in labels.items():
        save(tmp_path / f"raw/Task03_Liver/labelsTr/{name}.nii.gz", array)
        save(tmp_path / f"raw/Task03_Liver/imagesTr/{name}.nii.gz", np.zeros(array.shape, np.int16))
    return tmp_path


def run(folder, settings=None, **predictions):
    for name, array in predictions.items():
        save(folder / f"predictions/{name}.nii.gz", array)
    card, settings = read_card("msd_liver"), {"classes": CLASSES} | (settings or {})
    return evaluate(folder / "predictions", folder / "raw", card, folder / "scores", **settings)


def test_a_missed_liver_is_a_row_with_dice_0_and_tumour_is_liver(liver_truth):
    result = run(
        liver_truth, liver_0=box(2, 2, 2), liver_1=box(0, 0, 0, size=0), liver_2=box(0, 0, 0, size=0)
    )
    assert not result.problems
    scores = result.scores.set_index("case")
    assert scores["outcome"].to_dict() == {"liver_0": "scored", "liver_1": "missed", "liver_2": "both empty"}
    assert scores.loc["liver_0", "dice"] == 1
    assert scores.loc["liver_1", "dice"] == 0
    table = json.loads((liver_truth / "scores/table.json").read_text())
    assert (table[0]["n"], table[0]["dice_mean"], table[0]["missed"], table[0]["both_empty"]) == (
        2,
        0.5,
        1,
        1,
    )


def test_an_organ_that_the_dataset_does_not_annotate_has_no_row(liver_truth):
    result = run(liver_truth, liver_0=box(2, 2, 2) + box(7, 7, 5, value=2))
    assert list(result.scores["organ"]) == ["liver"]
    assert result.scores["dice"].item() == 1


def test_an_organ_that_was_not_written_is_not_scored_as_missed(liver_truth):
    said = {"classes": CLASSES, "organs": ["spleen"]}
    empty = box(0, 0, 0, size=0)
    save(liver_truth / "predictions/liver_0.nii.gz", empty)
    (liver_truth / "predictions/liver_0.json").write_text(json.dumps(said))
    result = run(liver_truth)
    assert not len(result.scores)
    assert "not scored, since they were not written (--organs): liver" in result.notes[0]


def test_distances_are_in_mm_of_the_scan(liver_truth):
    result = run(liver_truth, liver_1=box(5, 5, 3))  # one slice of 5 mm too high
    assert result.scores["hd_mm"].item() == 5


def test_in_voxels_a_slice_is_one_whatever_its_thickness(liver_truth):
    result = run(liver_truth, {"unit": "voxels"}, liver_1=box(5, 5, 3))
    assert tuple(result.scores.columns) == (*columns("voxels"), "classes")
    assert (result.scores["hd_mm"].item(), result.scores["hd_voxels"].item()) == (5, 1)
    read = read_scores(liver_truth / "scores/scores.csv")
    assert read["hd95_voxels"].tolist() == result.scores["hd95_voxels"].tolist()
    assert "HD95 voxels" in (liver_truth / "scores/table.md").read_text()


def test_tolerances_are_those_of_each_organ(liver_truth):
    result = run(liver_truth, {"nsd_tolerance_mm": {"liver": 5.0, "spleen": 1.0}}, liver_1=box(5, 5, 3))
    assert result.scores[["nsd", "nsd_tolerance_mm"]].values.tolist() == [[1, 5]]
    for settings, said in (
        ({"nsd_tolerance_mm": {"spleen": 1.0}}, "no tolerance of liver"),
        ({"nsd_tolerance_mm": -1.0}, "of liver is -1"),
        ({"hd95": "median"}, "hd95 is 'median'"),
        ({"unit": "cm"}, "unit is 'cm'"),
    ):
        with pytest.raises(ValueError, match=said):
            run(liver_truth, settings)


def test_the_definition_of_hd95_is_written_beside_the_scores(liver_truth):
    result = run(liver_truth, {"hd95": "pooled"}, liver_1=box(5, 5, 3))
    assert result.scores["hd95_definition"].item() == "pooled"


def test_cases_at_a_time_make_the_same_scores(liver_truth):
    (liver_truth / "predictions").mkdir()
    (liver_truth / "predictions/liver_2.nii.gz").write_bytes(b"not a scan")
    alone = run(liver_truth, liver_0=box(2, 2, 2), liver_1=box(5, 5, 3))
    together = run(liver_truth, {"jobs": 2})
    assert together.scores.equals(alone.scores)
    assert [str(problem) for problem in together.problems] == [str(problem) for problem in alone.problems]


def test_scores_of_several_datasets_make_one_table(liver_truth):
    run(liver_truth, liver_0=box(2, 2, 2), liver_1=box(5, 5, 3))
    scores = pd.read_csv(liver_truth / "scores/scores.csv")
    (liver_truth / "more").mkdir()
    scores.assign(dataset="lits", dice=0.5).to_csv(liver_truth / "more/scores.csv", index=False)
    table = join_tables([liver_truth / "scores", liver_truth / "more/scores.csv"], liver_truth / "table")
    assert table[["organ", "dataset", "n"]].values.tolist() == [
        ["liver", "msd_liver", 2],
        ["liver", "lits", 2],
        ["all", "", 4],
    ]
    assert {path.name for path in (liver_truth / "table").iterdir()} == {
        "table.csv",
        "table.json",
        "table.md",
    }
    scores.assign(dataset="lits", hd95_definition="pooled").to_csv(
        liver_truth / "more/scores.csv", index=False
    )
    with pytest.raises(ValueError, match="mix hd95_definition directed_max, pooled"):
        join_tables([liver_truth / "scores", liver_truth / "more"], liver_truth / "table")


def test_the_files_hold_what_was_returned(liver_truth):
    result = run(liver_truth, liver_0=box(3, 2, 2), liver_1=box(5, 5, 3), liver_2=box(5, 5, 3))
    out = liver_truth / "scores"
    assert {path.name for path in out.iterdir()} == {
        "scores.csv",
        "scores.json",
        "table.csv",
        "table.md",
        "table.json",
    }
    read = read_scores(out / "scores.csv")
    assert tuple(read.columns) == (*COLUMNS, "classes")
    assert read["dice"].tolist() == result.scores["dice"].tolist()
    assert read["case"].tolist() == ["liver_0", "liver_1", "liver_2"]
    content = json.loads((out / "scores.json").read_text())
    assert content["scores"][2]["outcome"] == "hallucinated"
    assert content["scores"][2]["hd_mm"] is None
    assert "liver ∈ msd_liver" in (out / "table.md").read_text()


def test_a_prediction_of_another_grid_is_one_line_and_the_others_go_on(liver_truth):
    moved = np.diag([2.0, 2.0, 5.0, 1.0])
    moved[0, 3] = 7
    save(liver_truth / "predictions/liver_1.nii.gz", box(5, 5, 2), moved)
    save(liver_truth / "predictions/liver_2.nii.gz", box(5, 5, 2, shape=(12, 12, 9)))
    save(liver_truth / "predictions/stranger.nii.gz", box(5, 5, 2))
    result = run(liver_truth, liver_0=box(2, 2, 2))
    assert list(result.scores["case"]) == ["liver_0"]
    lines = sorted(map(str, result.problems))
    assert len(lines) == 3
    assert "liver_1.nii.gz: msd_liver, liver_1: the prediction lies up to 7 mm from the truth" in lines[0]
    assert "the prediction has shape (9, 12, 12) (z, y, x), the truth liver_2.nii.gz (8, 12, 12)" in lines[1]
    assert "stranger.nii.gz: there is no case stranger of msd_liver" in lines[2]
    assert all("\n" not in line for line in lines)


def test_another_axis_order_of_the_same_grid_is_no_difference(liver_truth):
    array, affine = box(2, 2, 2), np.diag([2.0, 2.0, 5.0, 1.0])
    flipped = affine @ np.array([[-1, 0, 0, 11], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    save(liver_truth / "predictions/liver_0.nii.gz", array[::-1], flipped)
    result = run(liver_truth)
    assert not result.problems
    assert result.scores["dice"].item() == 1


def test_a_damaged_prediction_is_one_line(liver_truth):
    (liver_truth / "predictions").mkdir()
    (liver_truth / "predictions/liver_1.nii.gz").write_bytes(b"not a scan")
    result = run(liver_truth, liver_0=box(2, 2, 2))
    assert len(result.scores) == len(result.problems) == 1
    assert "liver_1.nii.gz" in str(result.problems[0])


def test_a_truth_value_that_the_card_does_not_list_is_a_problem(liver_truth):
    save(liver_truth / "raw/Task03_Liver/labelsTr/liver_0.nii.gz", box(2, 2, 2, value=9))
    result = run(liver_truth, liver_0=box(2, 2, 2))
    assert "holds value 9, which msd_liver.md does not describe" in str(result.problems[0])


def test_classes_beside_the_prediction_say_what_its_values_mean(liver_truth):
    (liver_truth / "predictions").mkdir()
    sidecar = liver_truth / "predictions/liver_0.json"
    sidecar.write_text(json.dumps({"classes": ["background", "spleen", "liver"]}))
    assert run(liver_truth, liver_0=box(2, 2, 2, value=2)).scores["dice"].item() == 1
    sidecar.write_text(json.dumps({"classes": ["background", "spleen"]}))
    result = run(liver_truth, liver_0=box(2, 2, 2, value=1))
    assert len(result.scores) == 0
    assert "no such class: liver" in result.notes[0]
    assert "holds value 2, but there are 2 classes" in str(
        run(liver_truth, liver_0=box(2, 2, 2, value=2)).problems[0]
    )
    sidecar.write_text(json.dumps({"classes": ["liver"]}))
    assert "expected background first" in str(run(liver_truth, liver_0=box(2, 2, 2)).problems[0])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"classes": CLASSES, "organs": None}, "has organs None, expected some of liver, spleen"),
        ({"classes": CLASSES, "organs": ["lung"]}, "has organs ['lung'], expected some of liver, spleen"),
        ({"classes": [["background"]]}, "expected background first"),
        ({"classes": None}, "does not say the classes"),
        (["liver"], "does not say the classes"),
    ],
)
def test_a_damaged_file_beside_a_prediction_is_one_line(liver_truth, content, said):
    (liver_truth / "predictions").mkdir()
    (liver_truth / "predictions/liver_0.json").write_text(json.dumps(content))
    result = run(liver_truth, liver_0=box(2, 2, 2), liver_1=box(5, 5, 3))
    assert result.scores["case"].tolist() == ["liver_1"]
    assert [said in str(problem) for problem in result.problems] == [True]


def test_without_a_json_or_classes_nothing_is_scored(liver_truth):
    result = run(liver_truth, {"classes": None}, liver_0=box(2, 2, 2))
    assert not len(result.scores)
    assert not (liver_truth / "scores").exists()
    assert "no liver_0.json beside it, so it is not known what its values mean" in str(result.problems[0])
    for classes in (["liver"], ["background"], ["background", "liver", "liver"], "kidneys"):
        with pytest.raises(ValueError, match="expected background first"):
            run(liver_truth, {"classes": classes})


def test_label_maps_with_the_values_of_the_dataset_are_scored_by_its_card(liver_truth):
    labels = box(2, 2, 2) + box(3, 3, 3, size=1)
    assert labels.max() == 2  # a tumour, which is liver too
    assert run(liver_truth, {"classes": "card"}, liver_0=labels).scores["dice"].item() == 1
    assert run(liver_truth, {"classes": "background,spleen,liver"}, liver_0=box(2, 2, 2) * 2).scores[
        "dice"
    ].tolist() == [1]
    wrong = run(liver_truth, {"classes": "card"}, liver_0=box(2, 2, 2, value=7))
    assert "holds value 7, which msd_liver.md does not describe" in str(wrong.problems[0])


def test_with_a_split_its_cases_alone_count_and_each_needs_a_prediction(liver_truth):
    card = read_card("msd_liver")
    card = card.model_copy(update={"splits": card.splits.model_copy(update={"test": ["liver_0", "liver_1"]})})
    for name in ("liver_0", "liver_2"):
        save(liver_truth / f"predictions/{name}.nii.gz", box(2, 2, 2))
    result = evaluate(
        liver_truth / "predictions",
        liver_truth / "raw",
        card,
        liver_truth / "scores",
        split="test",
        classes=CLASSES,
    )
    assert list(result.scores["case"]) == ["liver_0"]
    assert "msd_liver, liver_1: the test case has no prediction" in str(result.problems[0])
    assert "liver_2" in result.notes[0]


def test_names_match_the_case_or_its_label_file(tmp_path):
    save(tmp_path / "raw/btcv/img/img0001.nii.gz", np.zeros((12, 12, 8), np.int16))
    save(tmp_path / "raw/btcv/label/label0001.nii.gz", box(2, 2, 2, value=6))
    save(tmp_path / "predictions/label0001.nii.gz", box(2, 2, 2))
    result = evaluate(
        tmp_path / "predictions", tmp_path / "raw", read_card("btcv"), tmp_path / "scores", classes=CLASSES
    )
    assert result.scores["case"].unique().tolist() == ["img0001"]
    assert result.scores.set_index("organ")["outcome"].to_dict() == {
        "liver": "scored",
        **dict.fromkeys(["spleen", "pancreas", "left_kidney", "right_kidney"], "both empty"),
    }


def test_kidneys_are_scored_left_and_right_and_unknown_sides_are_ignored(tmp_path):
    card = read_card("kits19")
    truth = np.zeros((60, 40, 30), np.uint8)
    truth[5:15, 10:25, 5:25], truth[45:55, 10:25, 5:25] = 1, 1
    for name, label in {
        "case_00000": truth,
        "case_00001": truth * (np.arange(60) < 30)[:, None, None],
    }.items():
        label = label.astype(np.uint8)
        save(
            tmp_path / f"raw/kits19/data/{name}/imaging.nii.gz",
            np.zeros(label.shape, np.int16),
            4 * np.eye(4),
        )
        save(tmp_path / f"raw/kits19/data/{name}/segmentation.nii.gz", label, 4 * np.eye(4))
        prediction = label * np.where(np.arange(60) < 30, 4, 5)[:, None, None].astype(np.uint8)
        save(tmp_path / f"predictions/{name}.nii.gz", prediction, 4 * np.eye(4))
    result = evaluate(tmp_path / "predictions", tmp_path / "raw", card, tmp_path / "scores", classes=CLASSES)
    assert not result.problems
    assert result.scores[["case", "organ", "dice"]].values.tolist() == [
        ["case_00000", "left_kidney", 1],
        ["case_00000", "right_kidney", 1],
    ]
    assert any("case_00001: left_kidney not scored" in note for note in result.notes)


def test_a_prediction_of_a_case_that_the_card_excludes_is_noted(liver_truth):
    card = read_card("msd_liver").model_copy(update={"exclude": {"liver_1": "cut off"}})
    for name in ("liver_0", "liver_1"):
        save(liver_truth / f"predictions/{name}.nii.gz", box(2, 2, 2))
    result = evaluate(
        liver_truth / "predictions", liver_truth / "raw", card, liver_truth / "scores", classes=CLASSES
    )
    assert list(result.scores["case"]) == ["liver_0"]
    assert not result.problems
    assert result.notes == ["msd_liver, liver_1: not scored, since the card excludes it: cut off"]


def test_no_predictions_or_no_cases_stop_at_once(liver_truth):
    with pytest.raises(ValueError, match="holds no label map"):
        run(liver_truth)
    with pytest.raises(ValueError, match="holds no case of msd_spleen"):
        evaluate(liver_truth, liver_truth / "raw", read_card("msd_spleen"), liver_truth / "scores")
    for scan in (liver_truth / "raw/Task03_Liver/imagesTr").iterdir():
        scan.unlink()
    with pytest.raises(ValueError, match="holds no case of msd_liver: 3 label maps, but no scan of them"):
        run(liver_truth)
    with pytest.raises(ValueError, match="no such file of scores"):
        read_scores(liver_truth / "nothing.csv")


def test_a_case_is_scored_over_what_is_annotated_in_it(tmp_path):
    truth = box(2, 2, 1, value=1) + box(7, 7, 1, value=6)  # spleen and liver, in slices 1 to 3
    for name in ("usual", "few", "part"):
        save(tmp_path / f"raw/btcv/img/img{name}.nii.gz", np.zeros(truth.shape, np.int16))
        save(tmp_path / f"raw/btcv/label/label{name}.nii.gz", truth)
        # Without the spleen, and with a liver that goes on into slices 4 and 5.
        predicted = box(7, 7, 1) + box(7, 7, 4)[..., :8]
        save(tmp_path / f"predictions/img{name}.nii.gz", predicted)
    card = read_card("btcv").model_copy(
        update={"cases": {"imgfew": Override(annotated=["liver"]), "imgpart": Override(slices=[[0, 3]])}}
    )
    result = evaluate(tmp_path / "predictions", tmp_path / "raw", card, tmp_path / "scores", classes=CLASSES)
    assert not result.problems
    scores = result.scores.set_index(["case", "organ"])["dice"]
    assert scores["imgusual"][["liver", "spleen"]].tolist() == [pytest.approx(2 * 27 / (27 + 54)), 0]
    assert scores["imgfew"].index.tolist() == ["liver"]
    assert scores["imgpart"]["liver"] == 1
    assert scores["imgpart"]["spleen"] == 0
