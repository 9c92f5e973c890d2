import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pydicom.data
import pytest

from partialseg.cli import app
from partialseg.data import prepare as prepare_module
from partialseg.data import prepare_case as prepare_case_module
from partialseg.data.cards import read_card
from partialseg.data.classes import PAPER_ORGANS
from partialseg.data.prepare import choose_organs, list_raw_cases, plan, prepare
from partialseg.data.prepare_case import choose_foreground, prepare_case_elsewhere
from partialseg.data.prepared import read_prepared
from partialseg.data.volumes import read_image, write_label_map
from partialseg.errors import DataError
from partialseg.locking import locked

FIVE = {1: "liver", 2: "spleen", 3: "pancreas", 4: "left_kidney", 5: "right_kidney"}
DICOM_FILES = {"image": "*/slices", "label": "*/label.nii.gz"}
FILES = {"image.npy", "label.npy", "foreground.npy", "case.json"}


def write_card(folder, name="small", labels=None, annotated=("spleen",), image="*_ct.nii.gz", **fields):
    labels = {1: "spleen"} if labels is None else labels
    content = {
        "name": name,
        "title": name,
        "source": "made by hand",
        "licence": "none",
        "citation": "none",
        "files": {"image": image, "label": "*_label.nii.gz"},
        "labels": labels,
        "annotated": list(annotated),
        "splits": {"seed": 0, "test": 0.0},
        **fields,
    }
    lines = [f"{key}: {yaml_flow(value)}" for key, value in content.items()]
    path = folder / f"{name}.md"
    path.write_text("\n".join(["---", *lines, "---", "Prose."]))
    return read_card(path)


def yaml_flow(value):
    """JSON is YAML, but for keys that are numbers."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_flow(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


def write_case(folder, name, size=(24, 20, 12), spacing=(1.0, 1.0, 2.0), value=1, seed=0, order="RAS"):
    """An image of noise and a label map with one block, in (x, y, z)."""
    folder.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).normal(50, 20, size).astype(np.float32)
    label = np.zeros(size, dtype=np.uint8)
    label[tuple(slice(n // 4, n // 2) for n in size)] = value
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(order)
    )
    for array, kind in ((image, "ct"), (label, "label")):
        file = nib.Nifti1Image(array, np.diag([*spacing, 1.0])).as_reoriented(turn)
        nib.save(file, folder / f"{name}_{kind}.nii.gz")


@pytest.fixture
def raw(tmp_path):
    for seed, name in enumerate(("anna", "bert", "carl")):
        write_case(tmp_path / "raw", name, seed=seed)
    return tmp_path / "raw"


def run(card, raw, out, spacing_mm=(2.0, 2.0, 2.0), jobs=1, organs=PAPER_ORGANS):
    return prepare([card], raw, out, spacing_mm=spacing_mm, jobs=jobs, organs=organs)


def test_prepared_case_is_what_its_format_says(tmp_path, raw):
    result = run(write_card(tmp_path), raw, tmp_path / "out")
    assert (result.done, result.skipped, result.problems) == (3, 0, [])
    prepared = read_prepared(tmp_path / "out")
    assert prepared.classes == ("background", "liver", "spleen", "pancreas", "left_kidney", "right_kidney")
    assert prepared.spacing_mm == (2.0, 2.0, 2.0)
    assert prepared.datasets["small"].annotated == ("spleen",)
    assert prepared.datasets["small"].table[0].tolist() == [1, 1, 0, 1, 1, 1]
    assert [case.name for case in prepared.cases] == ["anna_ct", "bert_ct", "carl_ct"]
    assert {path.name for path in (tmp_path / "out" / "small" / "anna_ct").iterdir()} == FILES
    case = prepared.cases[0]
    image, label, foreground = prepared.image(case), prepared.label(case), prepared.foreground(case)
    assert case.shape == image.shape == label.shape == (12, 10, 12)
    assert (image.dtype, label.dtype, foreground.dtype) == (np.int16, np.uint8, np.int32)
    assert np.diag(case.affine).tolist() == [2, 2, 2, 1]
    assert set(np.unique(label)) == {0, 2}
    assert case.foreground == ((2, 0, len(foreground)),)
    assert case.voxels == ((label == 2).sum(),)
    np.testing.assert_array_equal(foreground, np.flatnonzero(label == 2))
    assert 30 < image.mean() < 70


def test_axis_order_of_the_file_makes_no_difference(tmp_path):
    write_case(tmp_path / "raw", "upright", seed=5)
    write_case(tmp_path / "raw", "turned", seed=5, order="SPL")
    prepared = run(write_card(tmp_path), tmp_path / "raw", tmp_path / "out").prepared
    turned, upright = prepared.cases
    np.testing.assert_array_equal(prepared.image(turned), prepared.image(upright))
    np.testing.assert_array_equal(prepared.label(turned), prepared.label(upright))
    np.testing.assert_allclose(turned.affine, upright.affine, atol=1e-9)


def test_two_workers_prepare_the_same_as_one(tmp_path, raw):
    card = write_card(tmp_path)
    one = run(card, raw, tmp_path / "one", jobs=1).prepared
    two = run(card, raw, tmp_path / "two", jobs=2).prepared
    assert one.cases == two.cases
    for case in one.cases:
        np.testing.assert_array_equal(one.image(case), two.image(case))
        np.testing.assert_array_equal(one.foreground(case), two.foreground(case))


def test_values_beyond_int16_are_clipped(tmp_path):
    write_case(tmp_path / "raw", "metal")
    path = tmp_path / "raw" / "metal_ct.nii.gz"
    image = np.full((24, 20, 12), 40, dtype=np.float32)
    image[:8], image[16:] = -50_000, 50_000
    nib.save(nib.Nifti1Image(image, np.diag([1.0, 1, 2, 1])), path)
    prepared = run(write_card(tmp_path), tmp_path / "raw", tmp_path / "out", (2.0, 1.0, 1.0)).prepared
    hu = prepared.image(prepared.cases[0])
    assert (hu.min(), hu.max()) == (-32768, 32767)


def test_second_run_skips_everything(tmp_path, raw):
    card = write_card(tmp_path)
    first = run(card, raw, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "small").rglob("*")}
    second = run(card, raw, tmp_path / "out")
    assert (second.done, second.skipped) == (0, 3)
    assert second.prepared.cases == first.prepared.cases
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "small").rglob("*")} == times


def test_changed_label_file_is_prepared_again(tmp_path, raw):
    card = write_card(tmp_path)
    run(card, raw, tmp_path / "out")
    write_case(raw, "bert", seed=1, value=0)
    result = run(card, raw, tmp_path / "out")
    assert (result.done, result.skipped) == (1, 2)
    bert = result.prepared.cases[1]
    assert bert.foreground == ()
    assert bert.notes == ("no spleen",)
    assert not result.prepared.label(bert).any()


@pytest.mark.parametrize("changed", ["spacing", "organs", "labels"])
def test_other_settings_prepare_everything_again(tmp_path, raw, changed):
    run(write_card(tmp_path), raw, tmp_path / "out")
    labels = {1: "background", 2: "spleen"} if changed == "labels" else None
    result = run(
        write_card(tmp_path, labels=labels),
        raw,
        tmp_path / "out",
        spacing_mm=(3.0, 2.0, 2.0) if changed == "spacing" else (2.0, 2.0, 2.0),
        organs=["spleen"] if changed == "organs" else PAPER_ORGANS,
    )
    assert (result.done, result.skipped) == (3, 0)


def test_other_splits_and_prose_prepare_nothing_again(tmp_path, raw):
    run(write_card(tmp_path), raw, tmp_path / "out")
    result = run(write_card(tmp_path, splits={"seed": 0, "test": ["bert_ct"]}), raw, tmp_path / "out")
    assert (result.done, result.skipped) == (0, 3)
    splits = {case.name: case.split for case in read_prepared(tmp_path / "out").cases}
    assert splits == {"anna_ct": "train", "bert_ct": "test", "carl_ct": "train"}


def test_case_that_is_gone_leaves_the_manifest(tmp_path, raw):
    card = write_card(tmp_path)
    run(card, raw, tmp_path / "out")
    (raw / "carl_ct.nii.gz").unlink()
    run(card, raw, tmp_path / "out")
    assert [case.name for case in read_prepared(tmp_path / "out").cases] == ["anna_ct", "bert_ct"]


@pytest.mark.parametrize("lost", sorted(FILES))
def test_case_that_is_not_whole_is_prepared_again(tmp_path, raw, lost):
    card = write_card(tmp_path)
    run(card, raw, tmp_path / "out")
    (tmp_path / "out" / "small" / "anna_ct" / lost).unlink()
    result = run(card, raw, tmp_path / "out")
    assert (result.done, result.skipped) == (1, 2)
    assert {path.name for path in (tmp_path / "out" / "small" / "anna_ct").iterdir()} == FILES


def test_case_with_an_empty_entry_is_prepared_again(tmp_path, raw):
    card = write_card(tmp_path)
    run(card, raw, tmp_path / "out")
    (tmp_path / "out" / "small" / "anna_ct" / "case.json").write_text("")
    result = run(card, raw, tmp_path / "out")
    assert (result.done, result.skipped, result.problems) == (1, 2, [])


def test_left_overs_of_a_killed_run_are_removed(tmp_path, raw):
    left_over = tmp_path / "out" / "small" / ".partial-0123abcd-anna_ct"
    left_over.mkdir(parents=True)
    (left_over / "image.npy").touch()
    (tmp_path / "out" / ".partial-0123abcd-manifest.json").touch()
    entry = tmp_path / "out" / "small" / "berta_ct" / ".partial-0123abcd-case.json"
    entry.parent.mkdir()
    entry.touch()
    run(write_card(tmp_path), raw, tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".partial-*"))


def test_manifest_does_not_outlive_cases_that_change(tmp_path, raw, monkeypatch):
    card = write_card(tmp_path)
    run(card, raw, tmp_path / "out")

    def full_disk(task):
        raise OSError("no space left on device")

    monkeypatch.setattr(prepare_module, "prepare_case", full_disk)
    with pytest.raises(RuntimeError, match=r"small, anna_ct.*no space left"):
        run(card, raw, tmp_path / "out", spacing_mm=(4.0, 4.0, 4.0))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_killed_run_leaves_whole_cases_and_is_taken_up_again(tmp_path):
    for index in range(6):
        write_case(tmp_path / "raw", f"case{index}", size=(96, 96, 48), seed=index)
    card = write_card(tmp_path)
    code = (
        "import sys; from partialseg.data.cards import read_card; from partialseg.data.prepare import prepare\n"
        "from partialseg.data.classes import PAPER_ORGANS\n"
        "if __name__ == '__main__':\n"
        "    prepare([read_card(sys.argv[1])], sys.argv[2], sys.argv[3], (2.0, 2.0, 2.0), PAPER_ORGANS, 2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, script, card.path, tmp_path / "raw", out])
    end = time.monotonic() + 300
    while not list(out.glob("small/case*_ct")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.wait()
    visible = sorted(out.glob("small/case*_ct"))
    assert visible
    for folder in visible:
        assert {path.name for path in folder.iterdir()} == FILES
    result = run(card, tmp_path / "raw", out)
    assert result.done + result.skipped == 6
    assert result.skipped >= len(visible)
    assert not list(out.rglob(".partial-*"))


def test_card_without_cases_is_a_problem_and_the_others_go_on(tmp_path, raw):
    absent = write_card(tmp_path, name="absent", image="scan_*.nii.gz")
    result = prepare([absent, write_card(tmp_path)], raw, tmp_path / "out", (2.0, 2.0, 2.0), jobs=1)
    assert result.done == 3
    assert [problem.path for problem in result.problems] == [str(absent.path)]
    assert "absent: 3 label maps are there" in str(result.problems[0])
    assert "and no image scan_*.nii.gz; fetch the images" in str(result.problems[0])


def test_nothing_prepared_is_said(tmp_path):
    result = run(write_card(tmp_path), tmp_path / "raw", tmp_path / "out")
    assert result.prepared.cases == ()
    assert [problem.problem.split(" in ")[0] for problem in result.problems] == [
        "small: no file",
        "no case could be prepared",
    ]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_card_with_none_of_the_organs_is_a_problem(tmp_path, raw):
    result = run(write_card(tmp_path), raw, tmp_path / "out", organs=["liver"])
    assert "small annotates spleen, none of liver" in str(result.problems[0])


def test_two_cards_of_one_name_are_refused(tmp_path, raw):
    card = write_card(tmp_path)
    with pytest.raises(DataError, match="another card called small"):
        prepare([card, card], raw, tmp_path / "out", jobs=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"spacing_mm": (0.0, 1.0, 1.0)},
        {"spacing_mm": (1e9, 1.0, 1.0)},
        {"organs": ["spleen", "spleen"]},
        {"organs": ["background"]},
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, raw, settings):
    with pytest.raises(ValueError, match="received"):
        run(write_card(tmp_path), raw, tmp_path / "out", **settings)


def test_organs_are_those_annotated_the_papers_first(tmp_path):
    cards = [
        write_card(tmp_path, "one", {1: "stomach", 2: "liver"}, ("stomach", "liver")),
        write_card(tmp_path, "two", {1: "spleen", 2: "liver"}, ("spleen", "liver")),
    ]
    assert choose_organs(cards) == ("liver", "spleen", "stomach")


def test_foreground_is_a_seeded_choice_of_each_value():
    table = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1]])
    values = np.zeros((30, 40, 50), dtype=np.uint8)
    values[:20], values[20], values[21], values[22, 0, 0] = 1, 3, 4, 2
    indices, parts, voxels = choose_foreground(values, table, "dataset/case")
    assert voxels == (40_000, 1, 2000)
    assert parts == ((1, 0, 10_000), (2, 10_000, 10_001), (4, 10_001, 12_001))
    for value, start, stop in parts:
        assert set(values.ravel()[indices[start:stop]]) == {value}
        assert len(set(indices[start:stop])) == stop - start
    again, _, _ = choose_foreground(values, table, "dataset/case")
    np.testing.assert_array_equal(again, indices)
    assert (choose_foreground(values, table, "dataset/other")[0] != indices).any()


def test_phantom_is_prepared_without_a_problem(tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    assert set(prepared.datasets) == {"btcv", "msd_liver", "msd_spleen", "msd_pancreas", "kits19"}
    assert prepared.datasets["btcv"].fully_annotated
    assert not prepared.datasets["kits19"].fully_annotated
    for name in prepared.datasets:
        assert {case.split for case in prepared.select(name)} == {"train", "test"}
    assert all(case.foreground for case in prepared.cases)


def raw_volumes_ml(path, meaning):
    image = nib.load(path)
    voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
    array = np.asarray(image.dataobj)
    return {organ: float((array == value).sum() * voxel_ml) for value, organ in meaning.items()}


def prepared_volumes_ml(prepared, case):
    return {
        prepared.classes[value]: voxels * np.prod(prepared.spacing_mm) / 1000
        for (value, _, _), voxels in zip(case.foreground, case.voxels, strict=True)
        if value < len(prepared.classes)
    }


def mean_x(prepared, case, organ):
    return np.nonzero(prepared.label(case) == prepared.classes.index(organ))[2].mean()


@pytest.fixture(scope="module")
def two_cts(real_data, tmp_path_factory):
    """The two labelled CTs, prepared as the paper has it."""
    folder = tmp_path_factory.mktemp("two_cts")
    (folder / "raw").mkdir()
    for path in real_data.glob("*.nii.gz"):
        if path.name.endswith(("_ct.nii.gz", "_label.nii.gz")) and "no_target_organ" not in path.name:
            (folder / "raw" / path.name).symlink_to(path.resolve())
    card = write_card(folder, "two_cts", FIVE, FIVE.values())
    result = prepare([card], folder / "raw", folder / "out", jobs=1)
    assert (result.done, result.problems) == (2, [])
    return result.prepared


def test_real_organs_keep_their_volume(two_cts):
    for case in two_cts.cases:
        before = raw_volumes_ml(case.label_source, FIVE)
        after = prepared_volumes_ml(two_cts, case)
        assert set(after) == set(FIVE.values())
        for organ, volume in before.items():
            assert after[organ] == pytest.approx(volume, rel=0.03), (case.name, organ)


def test_real_organs_lie_on_their_side(two_cts):
    for case in two_cts.cases:
        assert mean_x(two_cts, case, "liver") > mean_x(two_cts, case, "spleen")
        assert mean_x(two_cts, case, "right_kidney") > mean_x(two_cts, case, "left_kidney")


def test_real_organs_keep_their_hu(two_cts):
    for case in two_cts.cases:
        image = np.asarray(nib.load(case.image_source).dataobj, dtype=np.float32)
        label = np.asarray(nib.load(case.label_source).dataobj)
        for value in (1, 2):
            after = np.median(two_cts.image(case)[two_cts.label(case) == value])
            assert after == pytest.approx(np.median(image[label == value]), abs=2)


def test_real_dicom_series_is_prepared(real_data, tmp_path):
    case = tmp_path / "raw" / "patient_20"
    case.mkdir(parents=True)
    (case / "slices").symlink_to((real_data / "ts_dicom20").resolve())
    (case / "seg.nii.gz").symlink_to((real_data / "ts_dicom20_seg_v2ids.nii.gz").resolve())
    meaning = {1: "spleen", 5: "liver", 7: "pancreas"}
    others = range(1, 118)
    card = write_card(
        tmp_path,
        "series",
        {value: meaning.get(value, "background") for value in others},
        meaning.values(),
        files={"image": "*/slices", "label": "*/seg.nii.gz"},
    )
    result = prepare([card], tmp_path / "raw", tmp_path / "out", jobs=1)
    assert (result.done, result.problems) == (1, [])
    prepared, case = result.prepared, result.prepared.cases[0]
    assert case.name == "patient_20"
    assert case.shape[0] == round(20 * 2 / 3)
    before, after = raw_volumes_ml(case.label_source, meaning), prepared_volumes_ml(prepared, case)
    for organ in ("spleen", "liver"):
        assert after[organ] == pytest.approx(before[organ], rel=0.03)
    # 2.5 mL in the last slices alone, which at 3 mm end half a slice earlier or later.
    assert after["pancreas"] == pytest.approx(before["pancreas"], abs=0.5)
    assert mean_x(prepared, case, "liver") > mean_x(prepared, case, "spleen")
    liver = prepared.image(case)[prepared.label(case) == prepared.classes.index("liver")]
    assert 40 < np.median(liver) < 160


def write_dicom_case(case):
    """Six slices in a folder, and a label map beside it."""
    (case / "slices").mkdir(parents=True)
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    for index in range(6):
        dataset.SOPInstanceUID, dataset.ImagePositionPatient = f"1.2.{index}", [0, 0, 3 * index]
        dataset.save_as(case / "slices" / f"{index}.dcm")
    scan = read_image(case / "slices")
    labels = np.zeros(scan.array.shape, np.uint8)
    labels[2:4, 40:60, 40:60] = 1
    write_label_map(case / "label.nii.gz", labels, like=scan)


def write_predictions(folder):
    """Files of the names and kinds that `predict` may write into the folder of the slices."""
    for name in ("anna.nii.gz", "anna.json", "summary.csv"):
        (folder / name).write_text("a prediction")
    segmentation = pydicom.dcmread(folder / "0.dcm")
    segmentation.Modality = "SEG"
    segmentation.save_as(folder / "anna.seg.dcm")


def test_what_lies_beside_the_slices_of_a_series_is_no_part_of_its_case(tmp_path):
    raw, out, card = tmp_path / "raw", tmp_path / "out", write_card(tmp_path, files=DICOM_FILES)
    write_dicom_case(raw / "anna")
    first = run(card, raw, out)
    assert (first.done, first.problems) == (1, [])
    write_predictions(raw / "anna" / "slices")
    for _ in range(2):
        again = run(card, raw, out)
        assert (again.done, again.skipped, again.problems) == (0, 1, [])
        assert again.prepared.cases == first.prepared.cases
    last = raw / "anna" / "slices" / "5.dcm"
    changed = pydicom.dcmread(last)
    changed.RescaleIntercept -= 1
    changed.save_as(last)
    assert run(card, raw, out).done == 1


def test_what_an_earlier_version_prepared_of_all_that_lay_beside_the_slices_is_kept(tmp_path, monkeypatch):
    raw, out, card = tmp_path / "raw", tmp_path / "out", write_card(tmp_path, files=DICOM_FILES)
    write_dicom_case(raw / "anna")
    write_predictions(raw / "anna" / "slices")
    with monkeypatch.context() as earlier:
        earlier.setattr(prepare_case_module, "_series_files", lambda task: {})
        first = run(card, raw, out)
    assert (first.done, first.problems) == (1, [])
    os.utime(raw / "anna" / "slices" / "0.dcm", (0, 0))
    again = run(card, raw, out)
    assert (again.done, again.skipped) == (0, 1)
    assert again.prepared.cases == first.prepared.cases


def test_scan_is_listed_where_it_was_read(tmp_path, raw):
    case = run(write_card(tmp_path), raw, tmp_path / "out").prepared.cases[0]
    assert Path(case.image_source) == raw / "anna_ct.nii.gz"
    assert os.path.samefile(case.label_source, raw / "anna_label.nii.gz")


def edit_card(card, old, new):
    """The card with some words of it changed."""
    text = card.path.read_text()
    assert old in text
    card.path.write_text(text.replace(old, new))
    return read_card(card.path)


def tree(out):
    """The content of every file."""
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("old", "new", "done"),
    [
        ("Prose.", "Other prose.", 0),
        ('licence: "none"', 'licence: "other"', 0),
        ('title: "small"', 'title: "other"', 0),
        ("test: 0.0", "test: 0.5", 0),
        ("seed: 0", "seed: 7", 0),
        ('labels: {1: "spleen"}', 'labels: {1: "spleen", 2: "background"}', 3),
    ],
)
def test_changed_card_prepares_again_what_it_touches(tmp_path, raw, old, new, done):
    card = write_card(tmp_path)
    run(card, raw, tmp_path / "out")
    changed = edit_card(card, old, new)
    result = run(changed, raw, tmp_path / "out")
    assert (result.done, result.skipped) == (done, 3 - done)
    run(changed, raw, tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


@pytest.mark.parametrize("override", [{"annotated": ["spleen"]}, {"slices": [2, 8]}])
def test_override_of_a_case_prepares_that_case_again(tmp_path, raw, override):
    write_case(raw, "anna", seed=0)
    fields = {"labels": {1: "spleen", 2: "liver"}, "annotated": ("spleen", "liver")}
    run(write_card(tmp_path, **fields), raw, tmp_path / "out")
    card = write_card(tmp_path, cases={"bert_ct": override}, **fields)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("small/*/image.npy")}
    result = run(card, raw, tmp_path / "out")
    assert (result.done, result.skipped) == (1, 2)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path.parent.name for path in before if after[path] != before[path]] == ["bert_ct"]


def test_further_card_prepares_none_of_the_others_again(tmp_path, raw):
    write_case(tmp_path / "more", "dora", seed=9, value=2)
    one = write_card(tmp_path)
    other = write_card(tmp_path, "other", {2: "kidney"}, ("kidney",))
    run(one, raw, tmp_path / "out", organs=None)
    shutil.move(tmp_path / "more", raw / "other")
    shutil.copytree(raw, tmp_path / "both" / "small", ignore=shutil.ignore_patterns("other"))
    shutil.move(raw / "other", tmp_path / "both" / "other")
    both = prepare([one, other], tmp_path / "both", tmp_path / "out", (2.0, 2.0, 2.0), jobs=1)
    assert both.prepared.classes == ("background", "spleen", "kidney")
    assert (both.done, both.skipped) == (1, 3), "the new organ comes last, and changes no value of the first"
    prepare([one, other], tmp_path / "both", tmp_path / "fresh", (2.0, 2.0, 2.0), jobs=1)
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_class_list_counts_where_label_values_depend_on_it(tmp_path, raw):
    card = write_card(tmp_path, labels={1: "spleen", 2: "ignore"})
    run(card, raw, tmp_path / "out", organs=["spleen"])
    assert run(card, raw, tmp_path / "out", organs=["spleen", "liver"]).done == 3, "ignored is another value"


def test_moved_copied_and_touched_files_prepare_nothing_again(tmp_path, raw):
    card = write_card(tmp_path)
    run(card, raw, tmp_path / "out")
    for path in raw.iterdir():
        os.utime(path)
    assert run(card, raw, tmp_path / "out").skipped == 3
    shutil.copytree(raw, tmp_path / "elsewhere")
    shutil.rmtree(raw)
    result = run(card, tmp_path / "elsewhere", tmp_path / "out")
    assert (result.done, result.skipped) == (0, 3)
    assert {Path(case.image_source).parent for case in result.prepared.cases} == {tmp_path / "elsewhere"}
    run(card, tmp_path / "elsewhere", tmp_path / "fresh")
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")


def test_changed_content_of_the_same_size_and_time_is_prepared_again(tmp_path, raw):
    card = write_card(tmp_path, image="*_ct.nii")
    for path in raw.glob("*_ct.nii.gz"):
        nib.save(nib.load(path), path.with_name(path.name.removesuffix(".gz")))
        path.unlink()
    run(card, raw, tmp_path / "out")
    path = raw / "bert_ct.nii"
    before, content = path.stat(), bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert run(card, raw, tmp_path / "out").done == 1


def test_files_that_change_while_they_are_read_are_a_problem(tmp_path, raw, monkeypatch):
    real = prepare_case_module.read_case

    def read_and_append(card, raw_case):
        found = real(card, raw_case)
        with raw_case.image.open("ab") as file:
            file.write(b"more")
        return found

    monkeypatch.setattr(prepare_case_module, "read_case", read_and_append)
    result = run(write_card(tmp_path), raw, tmp_path / "out")
    assert len(result.problems) == 4
    assert "anna_ct: its files changed while they were read; run again" in str(result.problems[0])
    assert not list((tmp_path / "out").rglob("*.npy"))


def two_datasets(tmp_path, organ="liver"):
    for seed, name in enumerate(("anna", "bert")):
        write_case(tmp_path / "raw" / "one", name, seed=seed)
    write_case(tmp_path / "raw" / "two", "carl", seed=5)
    return write_card(tmp_path, "one"), write_card(tmp_path, "two", {1: organ}, (organ,))


def test_cases_of_cards_that_are_not_named_stay_listed(tmp_path):
    one, two = two_datasets(tmp_path)
    out = tmp_path / "out"
    prepare([one, two], tmp_path / "raw", out, (2.0, 2.0, 2.0), jobs=1)
    before = tree(out)
    result = prepare([two], tmp_path / "raw", out, (2.0, 2.0, 2.0), jobs=1)
    assert (result.done, result.skipped, result.kept, result.dropped) == (0, 1, 2, ())
    assert result.prepared.classes == ("background", "liver", "spleen")
    assert tree(out) == before


def test_datasets_may_be_prepared_one_after_the_other(tmp_path):
    one, two = two_datasets(tmp_path)
    for out, order in ((tmp_path / "a", (one, two)), (tmp_path / "b", (two, one))):
        for card in order:
            prepare([card], tmp_path / "raw", out, (2.0, 2.0, 2.0), organs=["liver", "spleen"], jobs=1)
    assert set(read_prepared(tmp_path / "a").datasets) == {"one", "two"}
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"spacing_mm": (3.0, 3.0, 3.0)},
            "holds one, prepared for spleen at 2 x 2 x 2 mm, expected liver at 3 x 3 x 3 mm",
        ),
        ({}, "holds one, prepared for spleen at 2 x 2 x 2 mm, expected liver at 2 x 2 x 2 mm"),
        ({"organs": ["liver", "spleen"]}, "expected liver, spleen at 2 x 2 x 2 mm"),
    ],
)
def test_folder_of_other_settings_and_cards_is_not_taken(tmp_path, settings, problem):
    one, two = two_datasets(tmp_path)
    out = tmp_path / "out"
    prepare([one], tmp_path / "raw", out, (2.0, 2.0, 2.0), jobs=1)
    before = tree(out)
    with pytest.raises(DataError, match=f"{out}: .*{problem}; name their cards and raw data as well"):
        prepare([two], tmp_path / "raw", out, **{"spacing_mm": (2.0, 2.0, 2.0), "jobs": 1, **settings})
    assert tree(out) == before
    result = prepare(
        [one, two], tmp_path / "raw", out, **{"spacing_mm": (2.0, 2.0, 2.0), "jobs": 1, **settings}
    )
    assert set(result.prepared.datasets) == {"one", "two"}


def test_other_datasets_outlive_a_killed_run(tmp_path, monkeypatch):
    one, two = two_datasets(tmp_path, "spleen")
    out = tmp_path / "out"
    prepare([one, two], tmp_path / "raw", out, (2.0, 2.0, 2.0), jobs=1)
    write_case(tmp_path / "raw" / "two", "carl", seed=6)
    monkeypatch.setattr(prepare_module, "prepare_case", lambda task: 1 / 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        prepare([two], tmp_path / "raw", out, (2.0, 2.0, 2.0), jobs=1)
    with pytest.raises(DataError, match="there is no manifest"):
        read_prepared(out)
    monkeypatch.undo()
    result = prepare([two], tmp_path / "raw", out, (2.0, 2.0, 2.0), jobs=1)
    assert (result.done, result.kept) == (1, 2)
    prepare([one, two], tmp_path / "raw", tmp_path / "fresh", (2.0, 2.0, 2.0), jobs=1)
    assert tree(out) == tree(tmp_path / "fresh")


def test_cases_that_are_gone_are_named(tmp_path, raw):
    card = write_card(tmp_path)
    run(card, raw, tmp_path / "out")
    (raw / "carl_ct.nii.gz").unlink()
    (raw / "carl_label.nii.gz").unlink()
    (raw / "bert_label.nii.gz").write_bytes(b"damaged")
    result = run(card, raw, tmp_path / "out")
    assert result.dropped == ("small/bert_ct", "small/carl_ct")
    assert len(result.problems) == 1
    assert (tmp_path / "out" / "small" / "carl_ct" / "image.npy").exists()


@pytest.mark.parametrize("change", ["other organs", "damaged files"])
def test_where_no_case_is_left_all_is_as_it_was(tmp_path, raw, change):
    card = write_card(tmp_path)
    run(card, raw, tmp_path / "out")
    before = tree(tmp_path / "out")
    for path in raw.glob("*_label.nii.gz") if change == "damaged files" else ():
        path.write_bytes(b"damaged")
    result = run(
        card, raw, tmp_path / "out", organs=["stomach"] if change == "other organs" else PAPER_ORGANS
    )
    assert (result.prepared.cases, result.dropped) == ((), ())
    assert "no case could be prepared" in str(result.problems[-1])
    assert tree(tmp_path / "out") == before
    assert not (tmp_path / "out" / ".previous").exists()


@pytest.mark.parametrize(
    ("field", "content"),
    [
        ("cases", {"brt_ct": {"annotated": ["spleen"]}}),
        ("exclude", {"brt_*": "blurred"}),
        ("splits.test", ["bert_ct", "brt_ct"]),
    ],
)
def test_names_in_the_card_that_no_case_has_are_noted(tmp_path, raw, field, content):
    fields = {"splits": {"test": content}} if field == "splits.test" else {field: content}
    card = write_card(tmp_path, **fields)
    (note,) = run(card, raw, tmp_path / "out").notes
    name = "brt_*" if field == "exclude" else "brt_ct"
    assert note == f"{card.path}: `{field}` of the card names {name}: no case here is called so"


def test_a_part_of_a_published_dataset_has_no_notes(tiny_raw, tmp_path):
    card = read_card("kits19")
    assert card.exclude or card.cases or isinstance(card.splits.test, list)
    assert prepare([card], tiny_raw, tmp_path / "out", (6.0, 6.0, 6.0), jobs=1).notes == ()


def test_the_command_prints_notes_and_ends_well(tmp_path, raw, capsys):
    card = write_card(tmp_path, cases={"brt_ct": {"annotated": ["spleen"]}})
    arguments = ["prepare", card.path, "--raw", raw, "--out", tmp_path / "out", "--jobs", "1"]
    app([str(argument) for argument in arguments], standalone_mode=False)
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [f"note: {card.path}: `cases` of the card names brt_ct: no case here is called so"]


def test_card_whose_raw_data_is_away_keeps_its_cases(tmp_path):
    one, two = two_datasets(tmp_path, "spleen")
    out = tmp_path / "out"
    prepare([one, two], tmp_path / "raw", out, (2.0, 2.0, 2.0), jobs=1)
    shutil.rmtree(tmp_path / "raw" / "one")
    result = prepare([one, two], tmp_path / "raw", out, (2.0, 2.0, 2.0), jobs=1)
    assert [problem.path for problem in result.problems] == [str(one.path)]
    assert (result.kept, result.dropped) == (2, ())
    assert len(read_prepared(out).cases) == 3


def test_folder_of_another_format_is_not_overwritten(tmp_path, raw):
    card = write_card(tmp_path)
    run(card, raw, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 999'))
    with pytest.raises(
        DataError, match=r"has format 999, expected .*; give another folder, or delete this file"
    ):
        run(card, raw, tmp_path / "out")


def test_worker_of_a_run_that_has_ended_writes_nothing(tmp_path, raw, monkeypatch):
    card, out = write_card(tmp_path), tmp_path / "out"
    ((_, cases),), _ = list_raw_cases([card], raw)
    (task, *_), _ = plan([(card, cases)], out, ("background", "spleen"), (2.0, 2.0, 2.0), run="first")
    ended = f"{out}: small, anna_ct: the run that asked for it has ended"
    with locked(out, "second"), pytest.raises(DataError, match=ended):
        prepare_case_elsewhere(task)
    real = prepare_case_module.read_case

    def read_while_another_run_takes_the_folder(card, raw_case):
        monkeypatch.undo()
        runs.close()
        runs.enter_context(locked(out, "second"))
        return real(card, raw_case)

    with contextlib.ExitStack() as runs:
        runs.enter_context(locked(out, "first"))
        monkeypatch.setattr(prepare_case_module, "read_case", read_while_another_run_takes_the_folder)
        with pytest.raises(DataError, match=ended):
            prepare_case_elsewhere(task)
    assert not list(out.rglob("*.npy"))
    with locked(out, "first"):
        assert prepare_case_elsewhere(task)[1]
    assert {path.name for path in (out / "small" / "anna_ct").iterdir()} == FILES


@pytest.mark.parametrize("kind", ["absent", "dangling link"])
def test_file_that_is_not_there_at_all_is_no_fault_of_a_worker(tmp_path, raw, kind):
    for name in ("bert", "carl"):
        (raw / f"{name}_ct.nii.gz").unlink()
        (raw / f"{name}_label.nii.gz").unlink()
    (raw / "anna_label.nii.gz").unlink()
    if kind == "dangling link":
        (raw / "anna_label.nii.gz").symlink_to(tmp_path / "gone")
    settings = {"spacing_mm": (2.0, 2.0, 2.0)}
    result = prepare([write_card(tmp_path)], raw, tmp_path / "out", dask="no cluster is asked", **settings)
    here = prepare([write_card(tmp_path)], raw, tmp_path / "here", jobs=1, **settings)
    assert len(result.problems) == 2
    assert str(result.problems[0]) == str(here.problems[0])
    assert "worker" not in str(result.problems[0])


def test_worker_elsewhere_says_which_files_it_does_not_see(tmp_path, raw):
    card = write_card(tmp_path)
    ((_, cases),), _ = list_raw_cases([card], raw)
    tasks, _ = plan([(card, cases)], tmp_path / "out", ("background", "spleen"), (2.0, 2.0, 2.0))
    with pytest.raises(
        DataError, match=f"{tmp_path}/out: small, anna_ct: the worker on .* does not see this folder"
    ):
        prepare_case_elsewhere(tasks[0])
    (raw / "anna_ct.nii.gz").unlink()
    with pytest.raises(
        DataError, match=f"{raw}/anna_ct.nii.gz: small, anna_ct: the worker on .* does not see it"
    ):
        prepare_case_elsewhere(tasks[0])


def test_raw_data_are_never_replaced(tmp_path, raw):
    card = write_card(tmp_path)
    with pytest.raises(DataError, match=r"raw: is the folder of the raw data, .*; give another folder"):
        run(card, raw, raw)
    scans = {path.name: path.read_bytes() for path in raw.iterdir()}
    assert len(scans) == 6  # and no lock, no manifest
    kept = tmp_path / "out" / "small" / "bert_ct"
    kept.mkdir(parents=True)
    (kept / "ct.nii.gz").write_bytes(b"the only copy")
    result = run(card, raw, tmp_path / "out")
    (problem,) = result.problems
    assert f"{kept}: holds ct.nii.gz, expected a folder that holds a prepared case alone" in str(problem)
    assert [path.name for path in kept.iterdir()] == ["ct.nii.gz"]
    assert [case.name for case in result.prepared.cases] == ["anna_ct", "carl_ct"]
