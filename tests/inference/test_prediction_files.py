"""What is written, what is kept and what is made again, with a network that counts how often it is asked."""

import dataclasses
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pydicom.data
import pytest

from partialseg.data.cards import read_card
from partialseg.errors import DataError
from partialseg.inference import labelling
from partialseg.inference.postprocessing import OrganRules
from partialseg.inference.predict import predict
from partialseg.inference.prediction_files import Outputs
from partialseg.inference.probability_maps import ProbabilityMaps
from partialseg.training.config import TrainingConfig
from partialseg.training.runs import Run, write_run

CLASSES = ("background", "liver", "spleen", "pancreas")
AFFINE = np.diag([1.5, 1.5, 3.0, 1.0])


class Network:
    """Liver above 100 HU, spleen above 300 HU; may stop as if killed after some passes, or ask for too much at one."""

    def __init__(self):
        self.passes, self.stop_after, self.too_large_at = 0, None, None

    def __call__(self, hu):
        self.passes += 1
        if self.stop_after is not None and self.passes > self.stop_after:
            raise KeyboardInterrupt
        if self.passes == self.too_large_at:
            np.empty(2**60, dtype=np.uint8)
        return np.concatenate([0 * hu, hu - 100, 2 * hu - 400, 0 * hu - 1e6], axis=-1)


@pytest.fixture
def network(monkeypatch):
    network = Network()
    monkeypatch.setattr(Run, "load_model", lambda run: network)
    return network


@pytest.fixture
def run(tmp_path):
    run = Run(
        tmp_path / "run",
        TrainingConfig(name="threshold", patch_size=(8, 16, 16)),
        CLASSES,
        (3.0, 1.5, 1.5),
        {"btcv": CLASSES[1:]},
    )
    write_run(run, {})
    run.model_path.write_bytes(b"weights")
    return run


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        array = np.full((16, 16, 8), -1000, dtype=np.int16)
        array[3:9, 3:9, 2:5] = 200
        array[4:6, 4:6, 3] = 500
        array[12, 12, 6] = 200
        nib.save(nib.Nifti1Image(array, AFFINE), folder / f"{name}.nii.gz")
    return folder


def go(run, scans, out, **arguments):
    return predict(run, [scans], out, progress=False, **arguments)


def sidecar(out, name="a"):
    return json.loads((out / f"{name}.json").read_text())


def test_a_second_call_predicts_nothing_and_a_file_that_was_only_touched_is_the_same(
    run, scans, tmp_path, network
):
    first = go(run, scans, tmp_path / "out")
    assert (len(first.written), network.passes) == (3, 3)
    os.utime(scans / "b.nii.gz", (1, 1))
    second = go(run, scans, tmp_path / "out")
    assert (second.written, second.kept, network.passes) == ([], first.written, 3)
    assert len(go(run, scans, tmp_path / "out", again=True).written) == 3


def test_a_run_that_was_stopped_in_the_middle_goes_on_and_leaves_no_half_file(run, scans, tmp_path, network):
    out = tmp_path / "out"
    network.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        go(run, scans, out)
    assert sorted(path.name for path in out.iterdir()) == ["a.json", "a.nii.gz", "summary.csv"]
    assert list(pd.read_csv(out / "summary.csv").case) == ["a"]
    network.stop_after = None
    result = go(run, scans, out)
    assert [path.name for path in result.kept] == ["a.nii.gz"]
    assert [path.name for path in result.written] == ["b.nii.gz", "c.nii.gz"]
    assert network.passes == 2 + 2  # the second of the first call was for nothing


@pytest.mark.parametrize(
    "what",
    ["scan", "network", "method", "overlap", "organs", "rules", "precision", "cut", "bit", "sidecar", "gone"],
)
def test_what_changed_is_made_again(run, scans, tmp_path, network, monkeypatch, what):
    out, arguments, asked = tmp_path / "out", {}, []
    # Trained in bfloat16, it computes in float32 until somebody asks for another precision.
    run = dataclasses.replace(run, config=run.config.model_copy(update={"precision": "bfloat16"}))
    # The network has no weights that could be computed with in another.
    loaded = [labelling.Network(network, run.patch_size)]
    monkeypatch.setattr(
        "partialseg.inference.predict.load_networks",
        lambda runs, precision: asked.append(precision) or loaded,
    )
    go(run, scans, out)
    expected = ["a.nii.gz"]
    if what == "scan":
        nib.save(nib.Nifti1Image(np.full((16, 16, 8), 200, dtype=np.int16), AFFINE), scans / "a.nii.gz")
    elif what == "cut":
        (out / "a.nii.gz").write_bytes((out / "a.nii.gz").read_bytes()[:-1])
    elif what == "bit":
        content = bytearray((out / "a.nii.gz").read_bytes())
        content[-1] ^= 1
        (out / "a.nii.gz").write_bytes(content)
    elif what == "sidecar":
        (out / "a.json").write_text("{")
    elif what == "gone":
        (out / "a.nii.gz").unlink()
    else:
        expected = ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
        if what == "network":
            run.model_path.write_bytes(b"other weights")
        elif what == "method":
            monkeypatch.setattr("partialseg.inference.predict.METHOD", -1)
        elif what == "overlap":
            arguments["overlap"] = 0.25
        elif what == "precision":
            arguments["precision"] = "bfloat16"
        elif what == "organs":
            arguments["outputs"] = Outputs(organs=("liver",))
        else:
            arguments["outputs"] = Outputs(rules={"liver": OrganRules(fill_holes=True)})
    assert [path.name for path in go(run, scans, out, **arguments).written] == expected
    assert go(run, scans, out, **arguments).written == []
    assert asked == [None, arguments.get("precision")]
    assert sidecar(out)["settings"]["precision"] == (asked[1] or "float32")


def test_what_a_killed_process_left_of_a_case_goes_and_what_another_works_on_stays(
    run, scans, tmp_path, network
):
    out = tmp_path / "out"
    (out / ".partial-probabilities-a.nii.gz").mkdir(parents=True)
    (out / ".partial-0123abcd-a_probabilities").mkdir()
    for name in ("a.json", "a.nii.gz", ".partial-4567cdef-a.nii.gz", "x-a.nii.gz"):
        (out / f".partial-0123abcd-{name}").write_bytes(b"half")
    predict(run, [scans / "a.nii.gz"], out, progress=False, outputs=Outputs(probabilities=True))
    assert [path.name for path in out.glob(".*")] == [".partial-0123abcd-x-a.nii.gz"]


def test_a_case_that_was_killed_between_its_files_is_made_again(run, scans, tmp_path, network, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    out, arguments = tmp_path / "out", {"outputs": Outputs(probabilities=True)}
    with monkeypatch.context() as patch:
        patch.setattr(ProbabilityMaps, "write", kill)
        with pytest.raises(KeyboardInterrupt):
            go(run, scans, out, **arguments)
    (out / "a_probabilities").mkdir(exist_ok=True)  # as if killed a moment later
    assert not (out / "a.nii.gz").exists()
    result = go(run, scans, out, **arguments)
    assert (len(result.written), result.problems) == (3, [])


def test_a_network_that_gives_no_numbers_writes_no_empty_label_map(run, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "load_model", lambda run: lambda hu: np.repeat(hu * np.nan, 4, axis=-1))
    result = go(run, scans, tmp_path / "out")
    assert result.written == []
    assert "a.nii.gz: the network gave values that are not numbers" in str(result.problems[0])


def test_a_scan_for_which_the_memory_does_not_do_ends_nothing(run, scans, tmp_path, network):
    network.too_large_at = 2
    result = go(run, scans, tmp_path / "out", batch_size=4)
    assert [path.name for path in result.written] == ["a.nii.gz", "c.nii.gz"]
    (problem,) = result.problems
    assert "b.nii.gz: needs more memory than there is (Unable to allocate" in str(problem)
    assert "; give a --batch-size below 4, or predict it where there is more" in str(problem)
    assert problem.__traceback__ is problem.__cause__ is None  # whose frames would hold the scan
    table = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert list(table.status) == ["predicted", "predicted", "problem"]


def test_a_table_that_cannot_be_written_is_a_problem_beside_the_predictions(run, scans, tmp_path, network):
    (tmp_path / "out" / "summary.csv").mkdir(parents=True)
    result = go(run, scans, tmp_path / "out")
    assert len(result.written) == 3
    assert "summary.csv: cannot be used" in str(result.problems[0])


def test_a_scan_that_can_no_longer_be_read_leaves_its_prediction(run, scans, tmp_path, network):
    out = tmp_path / "out"
    go(run, scans, out)
    before = (out / "a.nii.gz").read_bytes()
    (scans / "a.nii.gz").write_bytes(b"broken")
    result = go(run, scans, out)
    assert len(result.problems) == 1
    assert (out / "a.nii.gz").read_bytes() == before


def test_organs_limit_what_is_written_and_values_stay(run, scans, tmp_path, network):
    go(run, scans, tmp_path / "all")
    go(run, scans, tmp_path / "out", outputs=Outputs(organs=("spleen",)))
    everything, spleen = (
        np.asarray(nib.load(tmp_path / folder / "a.nii.gz").dataobj) for folder in ("all", "out")
    )
    np.testing.assert_array_equal(spleen, np.where(everything == 2, 2, 0))
    content = sidecar(tmp_path / "out")
    assert content["organs"] == ["spleen"]
    assert content["classes"] == list(CLASSES)
    assert content["volumes_ml"].keys() == {"spleen"}
    assert {warning["organ"] for warning in content["warnings"]} <= {None, "spleen"}


def test_an_organ_that_the_network_does_not_know_is_refused(run, scans, tmp_path, network):
    with pytest.raises(
        ValueError, match="organs aorta: the network has no such class, expected some of liver"
    ):
        go(run, scans, tmp_path / "out", outputs=Outputs(organs=("aorta",)))


def test_the_sidecar_says_what_post_processing_did_and_where_it_did_nothing(run, scans, tmp_path, network):
    go(run, scans, tmp_path / "plain")
    assert sidecar(tmp_path / "plain")["postprocessing"] is None
    rules = {"liver": OrganRules(largest_component=True), "pancreas": OrganRules(fill_holes=True)}
    go(run, scans, tmp_path / "out", outputs=Outputs(rules=rules))
    done = sidecar(tmp_path / "out")["postprocessing"]
    voxel_ml = 1.5 * 1.5 * 3 / 1000
    assert done["liver"]["done"] == ["largest_component"]
    assert done["liver"]["removed_voxels"] == 1
    assert done["liver"]["removed_ml"] == pytest.approx(voxel_ml, abs=1e-3)
    assert done["spleen"] == {
        "done": [], "removed_voxels": 0, "added_voxels": 0, "removed_ml": 0.0, "added_ml": 0.0,
    }  # fmt: skip
    volumes = [sidecar(tmp_path / folder)["volumes_ml"]["liver"] for folder in ("plain", "out")]
    assert volumes[0] - volumes[1] == pytest.approx(voxel_ml, abs=2e-3)


def test_warnings_are_in_the_sidecar_and_in_the_result(run, scans, tmp_path, network):
    result = go(run, scans, tmp_path / "out")
    kinds = {(warning["organ"], warning["kind"]) for warning in sidecar(tmp_path / "out")["warnings"]}
    assert ("pancreas", "not_found") in kinds
    assert {(warning.organ, warning.kind) for warning in result.warnings["a"]} == kinds


def test_the_summary_has_all_predictions_of_a_folder(run, scans, tmp_path, network):
    out = tmp_path / "out"
    predict(run, [scans / "a.nii.gz", scans / "b.nii.gz"], out, progress=False)
    (scans / "a.nii.gz").unlink()
    (scans / "d.nii.gz").write_bytes(b"broken")
    go(run, scans, out)
    table = pd.read_csv(out / "summary.csv").set_index("case")
    assert dict(table.status) == {
        "a": "there", "b": "kept", "c": "predicted", str(scans / "d.nii.gz"): "problem",
    }  # fmt: skip
    assert table.loc["b", "liver [mL]"] == sidecar(out, "b")["volumes_ml"]["liver"]
    assert "not found: pancreas" in table.loc["b", "warnings"]
    (out / "summary.csv").write_text("theirs")
    assert "is no table of predictions" in str(go(run, scans, out).problems[-1])
    assert (out / "summary.csv").read_text() == "theirs"


def test_dicom_segmentation_is_written_beside_a_series_and_refused_for_other_scans(
    run, scans, tmp_path, network
):
    folder, out = tmp_path / "series", tmp_path / "out"
    folder.mkdir()
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    dataset.Rows, dataset.Columns, dataset.PixelSpacing, dataset.RescaleIntercept = 12, 12, [1.5, 1.5], 0
    for index in range(6):
        dataset.SOPInstanceUID, dataset.ImagePositionPatient = f"1.2.{index}", [0, 0, 3 * index]
        pixels = np.full((12, 12), -1000, dtype=np.int16)
        pixels[2:5, 3:9] = 200
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(folder / f"{index}.dcm")
    result = predict(run, [folder, scans / "a.nii.gz"], out, progress=False, outputs=Outputs(dicom_seg=True))
    assert [path.name for path in result.written] == ["series.nii.gz", "a.nii.gz"]
    again = predict(run, [scans / "a.nii.gz"], out, progress=False, outputs=Outputs(dicom_seg=True))
    assert (len(again.kept), str(again.problems[0])) == (1, str(result.problems[0]))
    assert "a.nii.gz: is no folder of DICOM slices" in str(result.problems[0])
    segments = pydicom.dcmread(out / "series.seg.dcm")
    assert [segment.SegmentLabel for segment in segments.SegmentSequence] == ["liver"]
    assert segments.NumberOfFrames == 6
    assert (
        segments.pixel_array.sum()
        == (np.asarray(nib.load(out / "series.nii.gz").dataobj) == 1).sum()
        == 6 * 18
    )
    assert sidecar(out, "series")["files"]["series.seg.dcm"] == (out / "series.seg.dcm").stat().st_size
    (out / "series.seg.dcm").unlink()
    assert len(predict(run, [folder], out, progress=False, outputs=Outputs(dicom_seg=True)).written) == 1
    assert len(predict(run, [folder], out, progress=False).written) == 1
    assert not (out / "series.seg.dcm").exists()  # it would be of another prediction than the label map


def write_six_slices(folder):
    folder.mkdir(parents=True)
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    for index in range(6):
        dataset.SOPInstanceUID, dataset.ImagePositionPatient = f"1.2.{index}", [0, 0, 3 * index]
        dataset.save_as(folder / f"{index}.dcm")


def test_headers_that_no_segmentation_can_take_over_cost_no_label_map(run, tmp_path, network):
    folder, out = tmp_path / "series", tmp_path / "out"
    write_six_slices(folder)
    assert len(predict(run, [folder], out, progress=False).written) == 1
    for path in folder.iterdir():
        dataset, tag = pydicom.dcmread(path), pydicom.tag.Tag("StudyDate")
        dataset[tag] = pydicom.dataelem.RawDataElement(tag, "DA", 8, b"garbage!", 0, False, True)
        dataset.save_as(path)
    result = predict(run, [folder], out, progress=False, outputs=Outputs(dicom_seg=True))
    again = predict(run, [folder], out, progress=False, outputs=Outputs(dicom_seg=True))
    assert [path.name for path in result.written] == [path.name for path in again.kept] == ["series.nii.gz"]
    for problems in (result.problems, again.problems):
        assert ["headers cannot be taken over" in str(problem) for problem in problems] == [True]
    assert sidecar(out, "series")["files"].keys() == {"series.nii.gz"}


def test_predictions_in_a_folder_within_the_series_are_no_part_of_it(run, tmp_path, network):
    folder = tmp_path / "series"
    write_six_slices(folder)
    arguments = {"progress": False, "outputs": Outputs(dicom_seg=True)}
    for out in (folder / "out", folder):
        assert len(predict(run, [folder], out, **arguments).written) == 1
        again = predict(run, [folder], out, **arguments)
        assert (len(again.kept), again.written, again.problems) == (1, [], [])


@pytest.mark.parametrize("out", ["case/slices", "case", "case/out"])
def test_predictions_within_a_case_of_a_card_are_no_part_of_it(run, tmp_path, network, out):
    raw = tmp_path / "raw"
    write_six_slices(raw / "case" / "slices")
    text = (
        "---\nname: mine\nsource: here\nlicence: none\nfiles: {image: '*', label: '*/label.nii.gz'}\n"
        "labels: {1: liver}\nannotated: [liver]\nsplits: {test: 0.5}\n---\n"
    )
    card_file = tmp_path / "mine.md"
    card_file.write_text(text)
    arguments = {"progress": False, "outputs": Outputs(dicom_seg=True), "card": read_card(card_file)}
    assert len(predict(run, [raw], raw / out, **arguments).written) == 1
    again = predict(run, [raw], raw / out, **arguments)
    assert (len(again.kept), again.written, again.problems) == (1, [], [])


def test_folders_of_scans_that_are_not_read_are_named(run, scans, tmp_path, network):
    for name in ("sub/deeper", "notes", "dicom"):
        (scans / name).mkdir(parents=True)
    (scans / "sub" / "deeper" / "d.nii.gz").write_bytes((scans / "a.nii.gz").read_bytes())
    (scans / "notes" / "a.txt").write_text("none")
    shutil.copy(pydicom.data.get_testdata_file("CT_small.dcm"), scans / "dicom")
    for _ in range(2):  # the second time the predictions are there too
        result = go(run, scans, scans / "out", outputs=Outputs(probabilities=True))
        (note,) = result.notes
        assert "not read, though there are scans in it: dicom, sub;" in note
    everything = predict(
        run, [scans, scans / "sub" / "deeper", scans / "dicom"], tmp_path / "out", progress=False
    )
    assert everything.notes == []


def test_predictions_beside_the_series_of_a_patient_are_no_series(run, tmp_path, network):
    folder = tmp_path / "patient" / "series"
    write_six_slices(folder)
    out = tmp_path / "patient" / "out"
    first = predict(run, [tmp_path / "patient"], out, progress=False)
    (out / "patient.seg.dcm").write_bytes((folder / "0.dcm").read_bytes())
    again = predict(run, [tmp_path / "patient"], out, progress=False)
    assert again.problems == []
    assert [path.name for path in first.written] == [path.name for path in again.kept] == ["patient.nii.gz"]


def test_patients_with_predictions_beside_their_series_are_predicted(run, tmp_path, network):
    night, arguments = tmp_path / "night", {"progress": False, "outputs": Outputs(dicom_seg=True)}
    for name in ("p1", "p2"):
        write_six_slices(night / name / "series")
        predict(run, [night / name], night / name, **arguments)
        assert (night / name / f"{name}.seg.dcm").is_file()
    result = predict(run, [night], tmp_path / "out", **arguments)
    assert [path.name for path in result.written] == ["p1.nii.gz", "p2.nii.gz"]
    assert (result.problems, result.notes) == ([], [])


def test_probabilities_are_those_of_the_network_in_the_scan_s_own_axes(run, scans, tmp_path, network):
    array = np.asarray(nib.load(scans / "a.nii.gz").dataobj)
    affine = np.array([[0, -1.5, 0, 70], [0, 0, -1.5, -31], [-3.0, 0, 0, 900], [0, 0, 0, 1]])
    turned = np.ascontiguousarray(array.transpose(2, 0, 1))  # slices first
    nib.save(nib.Nifti1Image(turned, affine), tmp_path / "turned.nii.gz")
    out, outputs = tmp_path / "out", Outputs(organs=("liver", "spleen"), probabilities=True)
    predict(run, [tmp_path / "turned.nii.gz"], out, progress=False, outputs=outputs)
    folder = out / "turned_probabilities"
    assert sorted(path.name for path in folder.iterdir()) == ["liver.nii.gz", "spleen.nii.gz"]
    hu = turned.astype(float)
    logits = np.stack([0 * hu, hu - 100, 2 * hu - 400])
    expected = np.exp(logits - logits.max(axis=0))
    expected /= expected.sum(axis=0)
    for value, organ in ((1, "liver"), (2, "spleen")):
        found = nib.load(folder / f"{organ}.nii.gz")
        np.testing.assert_allclose(found.get_fdata(), expected[value], atol=1 / 255)
        np.testing.assert_array_equal(found.affine, affine)
        assert found.get_data_dtype() == np.uint8
        assert f"turned_probabilities/{organ}.nii.gz" in sidecar(out, "turned")["files"]
    assert not list(out.glob(".*"))
    (folder / "liver.nii.gz").unlink()
    arguments = {"progress": False, "outputs": outputs}
    assert len(predict(run, [tmp_path / "turned.nii.gz"], out, **arguments).written) == 1
    predict(run, [tmp_path / "turned.nii.gz"], out, progress=False)
    assert not folder.exists()


def test_organs_whose_probabilities_would_share_a_file_are_refused(run, scans, tmp_path, network):
    classes = ("background", "left kidney", "left_kidney", "liver")
    alike = Run(tmp_path / "alike", run.config, classes, run.spacing_mm, {"btcv": classes[1:]})
    write_run(alike, {})
    alike.model_path.write_bytes(b"weights")
    with pytest.raises(DataError, match="'left kidney' and 'left_kidney' would share a file"):
        go(alike, scans, tmp_path / "out", outputs=Outputs(probabilities=True))


def test_a_stop_while_probabilities_come_in_leaves_nothing(run, scans, tmp_path, network):
    network.stop_after = 0
    with pytest.raises(KeyboardInterrupt):
        go(run, scans, tmp_path / "out", outputs=Outputs(probabilities=True))
    assert list((tmp_path / "out").iterdir()) == []
