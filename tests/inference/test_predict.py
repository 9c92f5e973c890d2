"""From files to label maps, with a network that is a threshold, so that the right answer is known."""

import datetime
import json
import shutil
from dataclasses import replace

import keras
import nibabel as nib
import numpy as np
import pydicom
import pydicom.data
import pytest

from partialseg.data.cards import read_card
from partialseg.errors import DataError
from partialseg.inference.predict import predict, predict_scan
from partialseg.inference.scans import case_name, list_scans
from partialseg.training.config import TrainingConfig
from partialseg.training.runs import Run, write_run

CLASSES = ("background", "liver", "spleen", "pancreas")
SPACING_MM = (3.0, 1.5, 1.5)


def threshold_model():
    """Liver above 100 HU, spleen above 300 HU, pancreas never."""
    inputs = keras.Input((None, None, None, 1))
    model = keras.Model(inputs, keras.layers.Conv3D(4, 1)(inputs))
    model.set_weights([np.array([0, 1, 2, 0.0]).reshape(1, 1, 1, 1, 4), np.array([0, -100, -400, -1e6])])
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = TrainingConfig(name="threshold", patch_size=(8, 16, 16))
    run = Run(folder, config, CLASSES, SPACING_MM, {"btcv": CLASSES[1:]})
    write_run(run, {})
    threshold_model().save(run.model_path)
    return run


def write_scan(path, array_xyz, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_xyz.astype(np.int16), affine), path)
    return path


def boxes(shape):
    """Air with a box of 200 HU and in it a smaller one of 500 HU, off-centre along every axis."""
    array = np.full(shape, -1000)
    x, y, z = shape
    array[x // 6 : x // 2, y // 4 : y // 2, z // 5 : z // 2] = 200
    array[x // 4 : x // 3, y // 3 : y // 2, z // 4 : z // 2] = 500
    return array


RAS = np.diag([1.5, 1.5, 3.0, 1.0])
# Array axes: toward the feet, toward the patient's left, toward the back; far from the origin.
SIP = np.array([[0, -1.5, 0, 70], [0, 0, -1.5, -31], [-3.0, 0, 0, 900], [0, 0, 0, 1]])


@pytest.mark.parametrize(("affine", "shape"), [(RAS, (21, 25, 11)), (SIP, (11, 21, 25))])
def test_on_the_network_s_own_grid_the_answer_is_exact_in_any_axis_order(run, tmp_path, affine, shape):
    array = boxes(shape)
    scan = write_scan(tmp_path / "in" / "a.nii.gz", array, affine)
    volumes_ml = predict_scan(threshold_model(), run, scan, tmp_path / "out" / "a.nii.gz")
    labels = nib.load(tmp_path / "out" / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(labels.dataobj), (array > 100) * 1 + (array > 300))
    np.testing.assert_array_equal(labels.affine, affine)
    voxel_ml = 1.5 * 1.5 * 3 / 1000
    assert volumes_ml["liver"] == pytest.approx((array == 200).sum() * voxel_ml, abs=1e-3)
    assert volumes_ml["spleen"] == pytest.approx((array == 500).sum() * voxel_ml, abs=1e-3)
    assert volumes_ml["pancreas"] == 0.0


def test_other_spacing_comes_back_on_the_scan_s_own_grid(run, tmp_path):
    affine = np.array([[-0.8, 0, 0, 12], [0, -0.8, 0, 7], [0, 0, 5.0, -300], [0, 0, 0, 1]])
    array = np.maximum(
        boxes((60, 72, 15)), 0
    )  # 100 HU is halfway up the edge: a threshold there keeps the size
    scan = write_scan(tmp_path / "a.nii.gz", array, affine)
    predict_scan(threshold_model(), run, scan, tmp_path / "out.nii.gz")
    labels = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(labels.affine, affine)
    found, truth = np.asarray(labels.dataobj) > 0, array > 100
    assert found.shape == truth.shape
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


def test_sidecar_says_what_was_done(run, tmp_path):
    scan = write_scan(tmp_path / "liver_7.nii", boxes((12, 12, 6)), RAS)
    result = predict(run.folder, [scan], tmp_path / "out", overlap=0.25, progress=False)
    assert result.written == [tmp_path / "out" / "liver_7.nii.gz"]
    sidecar = json.loads((tmp_path / "out" / "liver_7.json").read_text())
    assert sidecar["classes"] == list(CLASSES)
    assert sidecar["volumes_ml"].keys() == set(CLASSES[1:])
    assert sidecar["source"] == str(scan)
    assert sidecar["run"] == str(run.folder)
    assert sidecar["spacing_mm"] == list(SPACING_MM)
    assert sidecar["overlap"] == 0.25
    assert datetime.datetime.fromisoformat(sidecar["time"]).tzinfo is not None


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/liver_7.nii.gz", "liver_7"),
        ("a/LIVER_8.NII.GZ", "LIVER_8"),
        ("a/scan.1.nii", "scan.1"),
        ("kits/case_00000/imaging.nii.gz", "case_00000"),
        ("p12/CT.nii.gz", "p12"),
        ("series/20", "20"),
        ("series/20/", "20"),
    ],
)
def test_predictions_are_named_after_the_case(path, name):
    assert case_name(path) == name


def test_one_bad_scan_does_not_stop_the_others(run, tmp_path):
    good = write_scan(tmp_path / "good.nii.gz", boxes((12, 12, 6)), RAS)
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    (tmp_path / "empty").mkdir()
    inputs = [broken, tmp_path / "missing.nii.gz", tmp_path / "empty", good]
    result = predict(run, inputs, tmp_path / "out", progress=False)
    assert result.written == [tmp_path / "out" / "good.nii.gz"]
    # Inputs are listed before any scan is read, so what is not there, or empty, comes first.
    assert [problem.path for problem in result.problems] == [str(inputs[1]), str(inputs[2]), str(broken)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "good.json",
        "good.nii.gz",
        "summary.csv",
    ]


def test_folder_gives_its_visible_nifti_files_and_predictions_are_replaced(run, tmp_path):
    for name in ("b.nii.gz", "a.nii", "._a.nii", "deeper/c.nii.gz", "D.NII.GZ"):
        write_scan(tmp_path / "in" / name, boxes((12, 12, 6)), RAS)
    (tmp_path / "in" / "notes.txt").write_text("not a scan")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.nii.gz").write_text("old")
    (out / "a.json").write_text('{"classes": [], "volumes_ml": {}}')
    result = predict(run, [tmp_path / "in"], out, progress=False)
    assert not result.problems
    assert result.written == [out / "D.nii.gz", out / "a.nii.gz", out / "b.nii.gz"]
    assert nib.load(out / "a.nii.gz").shape == (12, 12, 6)


def test_two_scans_of_one_name_are_a_problem_and_the_same_scan_twice_is_not(run, tmp_path):
    first = write_scan(tmp_path / "one" / "a.nii.gz", boxes((12, 12, 6)), RAS)
    second = write_scan(tmp_path / "two" / "a.nii.gz", boxes((12, 12, 6)), RAS)
    result = predict(run, [first, second, first], tmp_path / "out", progress=False)
    assert len(result.written) == 1
    assert [str(problem) for problem in result.problems] == [
        f"{second}: its prediction would be named a, like that of {first}; "
        "rename one of the two, or predict them into different folders"
    ]
    assert json.loads((tmp_path / "out" / "a.json").read_text())["source"] == str(first)


def test_with_a_card_the_cases_of_a_raw_folder_are_predicted_under_their_names(run, tmp_path):
    card = read_card("kits19")
    for i in range(5):
        write_scan(tmp_path / "raw" / f"case_{i:05d}" / "imaging.nii.gz", boxes((12, 12, 6)), RAS)
        write_scan(tmp_path / "raw" / f"case_{i:05d}" / "segmentation.nii.gz", boxes((12, 12, 6)) > 0, RAS)
    everything = predict(run, [tmp_path / "raw"], tmp_path / "all", card=card, progress=False)
    test_only = predict(run, [tmp_path / "raw"], tmp_path / "test", card=card, split="test", progress=False)
    assert [path.name for path in everything.written] == [f"case_{i:05d}.nii.gz" for i in range(5)]
    assert len(test_only.written) == 1
    assert not everything.problems
    assert not test_only.problems


def test_a_test_case_by_the_card_that_was_trained_on_is_refused(run, tmp_path):
    card = read_card("kits19")
    for i in range(5):
        write_scan(tmp_path / "raw" / f"case_{i:05d}" / "imaging.nii.gz", boxes((12, 12, 6)), RAS)
        write_scan(tmp_path / "raw" / f"case_{i:05d}" / "segmentation.nii.gz", boxes((12, 12, 6)) > 0, RAS)
    arguments = ([tmp_path / "raw"], tmp_path / "out", 0.5, card, "test")
    (unseen,) = predict(run, *arguments, progress=False).written
    name = unseen.name.removesuffix(".nii.gz")
    other = replace(run, cases={"train": {"kits19": ("case_x",), "btcv": (name,)}})
    assert predict(other, *arguments, progress=False).kept == [unseen]
    seen = replace(run, cases={"train": {"kits19": ("case_x", name)}})
    with pytest.raises(DataError, match=rf"trained on 1 case that the card kits19 counts as test \({name}\)"):
        predict(seen, *arguments, progress=False)


def test_card_without_cases_in_the_folder_is_a_problem(run, tmp_path):
    result = predict(run, [tmp_path], tmp_path / "out", card=read_card("kits19"), progress=False)
    assert not result.written
    assert "holds no cases of kits19" in str(result.problems[0])


def test_split_needs_a_card(run, tmp_path):
    with pytest.raises(ValueError, match="needs a card"):
        predict(run, [], tmp_path, split="test")


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"is no run folder \(it has no run\.json\)"):
        predict(tmp_path, [], tmp_path)


@pytest.mark.parametrize(
    "name", ["totalseg_example_3mm_ct.nii.gz", "vhf_pelvis_3mm_no_target_organ_ct.nii.gz"]
)
def test_real_scan_comes_back_in_its_own_geometry(run, real_data, tmp_path, name):
    result = predict(run, [real_data / name], tmp_path, overlap=0, batch_size=8, progress=False)
    assert not result.problems
    scan, labels = nib.load(real_data / name), nib.load(result.written[0])
    assert labels.shape == scan.shape
    np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-5)
    found, truth = np.asarray(labels.dataobj) > 0, scan.get_fdata() > 100
    # Thin bone is not the same after resampling twice; swapped axes would leave next to nothing in common.
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85


def test_dicom_series_is_predicted_in_canonical_axes(run, real_data, tmp_path):
    result = predict(run, [real_data / "ts_dicom20"], tmp_path, overlap=0, batch_size=8, progress=False)
    assert not result.problems
    labels = nib.load(tmp_path / "ts_dicom20.nii.gz")
    assert labels.shape == (512, 512, 20)
    assert nib.aff2axcodes(labels.affine) == ("R", "A", "S")
    assert (np.asarray(labels.dataobj) == 2).sum() > 1000  # bone


def test_series_of_one_folder_are_predicted_each_and_named_by_number(run, tmp_path):
    folder = tmp_path / "patient" / "study"
    folder.mkdir(parents=True)
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.Rows, dataset.Columns, dataset.PixelSpacing, dataset.RescaleIntercept = 12, 12, [1.5, 1.5], 0
    for number, uid, value in ((2, "1.2", 200), (4, "1.4", 500), (4, "1.5", 200)):
        for index in range(6):
            dataset.SeriesNumber, dataset.SeriesInstanceUID = number, uid
            dataset.ImagePositionPatient = [0, 0, 3 * index]
            dataset.PixelData = np.full((12, 12), value, dtype=np.int16).tobytes()
            dataset.save_as(folder / f"{uid}_{index}")
    out = tmp_path / "out"
    result = predict(run, [tmp_path / "patient"], out, progress=False)
    assert not result.problems
    names = ["patient_series2", "patient_series4", "patient_series4_2"]
    assert [path.name for path in result.written] == [f"{name}.nii.gz" for name in names]
    for name, organ in zip(names, (1, 2, 1), strict=True):
        assert (np.asarray(nib.load(out / f"{name}.nii.gz").dataobj) == organ).all()
    content = json.loads((out / "patient_series4.json").read_text())
    assert (content["series"], content["series_uid"]) == ("1.4", "1.4")
    assert content["study_uid"] == dataset.StudyInstanceUID


def test_every_series_below_a_folder_of_patients_is_a_scan_and_one_without_is_told(tmp_path):
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    for number, place in enumerate(["p1", "p2/ct", "p3/first/a", "p3/second", "p4"]):
        folder = tmp_path / "night" / place
        folder.mkdir(parents=True)
        dataset.Modality = "SR" if place == "p4" else "CT"
        for index in range(3):
            dataset.ImagePositionPatient = [0, 0, 3 * index]
            dataset.SeriesInstanceUID = f"1.{number}"
            dataset.save_as(folder / f"{index}.dcm")
    (tmp_path / "night" / "notes.txt").write_text("no scan")
    (tmp_path / "night" / "empty").mkdir()
    problems, notes = [], []
    scans = list_scans([tmp_path / "night"], None, None, problems, notes)
    assert notes == []
    assert [scan.name for scan in scans] == ["p1", "p2", "p3_first", "p3_second"]
    assert [problem.path for problem in problems] == [str(tmp_path / "night" / "p4")]


def test_scans_are_not_written_over(run, tmp_path):
    scan = write_scan(tmp_path / "in" / "a.nii.gz", boxes((12, 12, 6)), RAS)
    other = write_scan(tmp_path / "out" / "a.nii.gz", boxes((12, 12, 6)), RAS)
    before = scan.read_bytes()
    itself = predict(run.folder, [scan], tmp_path / "in", progress=False)
    assert "a.nii.gz: is the scan itself" in str(itself.problems[0])
    another = predict(run.folder, [scan], other.parent, progress=False)
    assert "a.nii.gz: is there already and is no prediction" in str(another.problems[0])
    assert (itself.written, another.written) == ([], [])
    assert scan.read_bytes() == other.read_bytes() == before


@pytest.mark.parametrize("name", ["a.nii.gz", "a.json", "a.seg.dcm", "a_probabilities/liver.nii.gz"])
def test_files_of_others_are_refused_and_stay_as_they_are(run, tmp_path, name):
    """Converters write such pairs of an image and a JSON: the JSON alone is no proof of a prediction."""
    scan = write_scan(tmp_path / "in" / "a.nii.gz", boxes((12, 12, 6)), RAS)
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("theirs")
    (out / "a.json").write_text('{"Modality": "CT"}')
    result = predict(run, [scan], out, progress=False)
    assert "is no prediction (its a.json does not describe one)" in str(result.problems[0])
    with pytest.raises(DataError, match="is no prediction"):
        predict_scan(threshold_model(), run, scan, out / "a.nii.gz")
    assert (out / "a.json").read_text() == '{"Modality": "CT"}'
    assert name == "a.json" or (out / name).read_text() == "theirs"


def test_an_ensemble_with_mirrored_windows_is_written_down(run, tmp_path):
    """The runs are the same network, and pointwise: the mean over both and over all flips changes nothing."""
    scan = write_scan(tmp_path / "a.nii.gz", boxes((12, 12, 6)), RAS)
    alone = predict(run, [scan], tmp_path / "alone", progress=False)
    other = shutil.copytree(run.folder, tmp_path / "other")
    together = predict(run, [scan], tmp_path / "both", progress=False, mirror=True, ensemble=[other])
    labels = [np.asarray(nib.load(result.written[0]).dataobj) for result in (alone, together)]
    np.testing.assert_array_equal(*labels)
    assert labels[0].any()
    sidecar = json.loads((tmp_path / "both" / "a.json").read_text())
    assert sidecar["ensemble"] == [str(other)]
    assert sidecar["mirror_axes"] == ["z", "y", "x"]


def test_a_run_counts_once_in_an_ensemble(run, tmp_path):
    with pytest.raises(DataError, match="is given twice"):
        predict(run, [tmp_path / "missing"], tmp_path, ensemble=[run.folder / ".." / run.folder.name])


def test_an_out_that_is_a_file_is_refused_before_any_scan_is_read(run, tmp_path):
    (tmp_path / "out").write_text("")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(DataError, match="out: is a file, expected a folder"):
            predict(run, [tmp_path / "missing"], out, progress=False)


def test_an_ensemble_of_other_classes_is_refused_before_any_scan_is_read(run, tmp_path):
    other = Run(tmp_path / "other", run.config, CLASSES[:2], SPACING_MM, {"btcv": CLASSES[1:2]})
    write_run(other, {})
    with pytest.raises(DataError, match=r"other: its classes \(background, liver\) differ"):
        predict(run, [tmp_path / "missing"], tmp_path, ensemble=[other.folder])
