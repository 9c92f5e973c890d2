import json

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.phantom import write_phantom
from partialseg.data.phantom.cohorts import COHORTS
from partialseg.data.phantom.layouts import LAYOUTS, oriented
from partialseg.data.phantom.write import PRESETS, Preset, write_case

LAYOUT = {layout.dataset: layout for layout in LAYOUTS}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom")
    return out, write_phantom(out, "tiny", seed=0)


def cases(out, dataset):
    """Image, label and truth of every tiny case of a dataset, as NIfTI images."""
    layout = LAYOUT[dataset]
    for index in range(PRESETS["tiny"].cases[dataset]):
        paths = [out / layout.folder / p.format(layout.numbers[index]) for p in (layout.image, layout.label)]
        yield [nib.load(p) for p in (*paths, out / "truth" / dataset / f"{layout.case_name(index)}.nii.gz")]


def test_files_lie_where_the_originals_have_them(phantom):
    out, folders = phantom
    expected = (
        "btcv/img/img0001.nii.gz",
        "btcv/label/label0001.nii.gz",
        "Task03_Liver/imagesTr/liver_0.nii.gz",
        "Task03_Liver/labelsTr/liver_0.nii.gz",
        "Task03_Liver/dataset.json",
        "Task09_Spleen/imagesTr/spleen_2.nii.gz",
        "Task07_Pancreas/labelsTr/pancreas_001.nii.gz",
        "kits19/data/case_00000/imaging.nii.gz",
        "kits19/data/case_00000/segmentation.nii.gz",
        "truth/kits19/case_00000.nii.gz",
        "truth/btcv/img0001.nii.gz",
    )
    assert [name for name in expected if not (out / name).is_file()] == []
    assert set(folders) == {"btcv", "msd_liver", "msd_spleen", "msd_pancreas", "kits19"}
    assert all(folder.is_dir() for folder in folders.values())
    assert not list(out.rglob(".partial-*"))


@pytest.mark.parametrize(
    ("dataset", "values"),
    [
        ("msd_liver", {0, 1, 2}),
        ("msd_spleen", {0, 1}),
        ("msd_pancreas", {0, 1, 2}),
        ("kits19", {0, 1, 2}),
        ("btcv", set(range(14))),
    ],
)
def test_labels_hold_the_raw_values_of_the_originals(phantom, dataset, values):
    found = {int(v) for _, label, _ in cases(phantom[0], dataset) for v in np.unique(label.dataobj)}
    # The thin adrenals (12, 13) can slip between the coarse voxels of the tiny preset.
    assert found <= values
    assert values - found <= {12, 13}


def test_images_are_int16_and_labels_uint8_on_one_grid(phantom):
    for dataset in LAYOUT:
        for image, label, truth in cases(phantom[0], dataset):
            assert image.get_data_dtype() == np.int16
            assert label.get_data_dtype() == np.uint8
            assert image.shape == label.shape == truth.shape
            np.testing.assert_array_equal(image.affine, label.affine)
            np.testing.assert_array_equal(image.affine, truth.affine)
            np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)


@pytest.mark.parametrize(
    ("dataset", "axes"),
    [
        ("btcv", "LAS"),
        ("msd_spleen", "RAS"),
        ("msd_pancreas", "RAS"),
        ("kits19", "IPL"),
        ("msd_liver", "LPS"),
    ],
)
def test_arrays_have_the_axes_of_the_originals(phantom, dataset, axes):
    image = next(cases(phantom[0], dataset))[0]
    assert "".join(nib.aff2axcodes(image.affine)) == axes


def test_kits_arrays_are_slice_row_column_from_the_head_down(phantom):
    image, label, _ = next(cases(phantom[0], "kits19"))
    spacing = image.header.get_zooms()
    assert spacing[0] > 8 > spacing[1] == spacing[2]
    np.testing.assert_array_equal(image.affine[:3, 3], 0)
    # Lungs, at the top of the scan, are in the first slices; the back of the body in the last rows.
    hu = np.asarray(image.dataobj)
    kidneys = np.argwhere(np.asarray(label.dataobj) == 1)
    assert (np.abs(hu[: image.shape[0] // 4] + 830) < 120).sum() > (np.abs(hu[-4:] + 830) < 120).sum()
    assert kidneys[:, 1].mean() > image.shape[1] / 2


def test_right_organs_have_the_larger_world_x(phantom):
    for dataset in LAYOUT:
        for *_, truth in cases(phantom[0], dataset):
            labels = np.asarray(truth.dataobj)
            x = {
                value: nib.affines.apply_affine(truth.affine, np.argwhere(labels == value))[:, 0].mean()
                for value in np.unique(labels[labels > 0])
            }
            assert x[1] > x[3] > x[2]
            if {4, 5} <= set(x):
                assert x[5] > x[4]


def test_truth_agrees_with_labels_where_they_annotate(phantom):
    prepared = {"liver": 1, "spleen": 2, "pancreas": 3, "left_kidney": 4, "right_kidney": 5}
    for dataset, layout in LAYOUT.items():
        for _, label, truth in cases(phantom[0], dataset):
            raw, true = np.asarray(label.dataobj), np.asarray(truth.dataobj)
            for organ, value in prepared.items():
                values = {raw for name, raw in layout.values.items() if name.removesuffix("_tumour") == organ}
                if values and dataset != "kits19":
                    np.testing.assert_array_equal(np.isin(raw, list(values)), true == value)
            if dataset == "kits19":
                np.testing.assert_array_equal(raw > 0, true >= 4)


def test_truth_holds_organs_that_the_dataset_does_not_annotate(phantom):
    for *_, truth in cases(phantom[0], "msd_spleen"):
        assert {1, 2, 3} <= set(np.unique(truth.dataobj))


def test_one_kits_case_has_one_kidney(phantom):
    out, _ = phantom
    rows = json.loads((out / "phantom.json").read_text())["cases"]
    single = [row["case"] for row in rows if row["missing_kidney"]]
    assert "case_00002" in single
    truths = [set(np.unique(truth.dataobj)) for *_, truth in cases(out, "kits19")]
    assert len(truths[2] & {4, 5}) == 1


def test_the_same_seed_gives_the_same_voxels_whatever_was_drawn_before(phantom, tmp_path):
    out, _ = phantom
    cohort = next(cohort for cohort in COHORTS if cohort.dataset == "kits19")
    write_case(tmp_path, LAYOUT["kits19"], cohort, 1, PRESETS["tiny"], 0)
    write_case(tmp_path / "other", LAYOUT["kits19"], cohort, 1, PRESETS["tiny"], 1)
    name = "kits19/data/case_00001/imaging.nii.gz"
    first, again, other = (folder / name for folder in (out, tmp_path, tmp_path / "other"))
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_hounsfield_units_are_those_of_ct(phantom):
    image, label, _ = next(cases(phantom[0], "btcv"))
    hu, raw = np.asarray(image.dataobj), np.asarray(label.dataobj)
    assert np.median(hu[raw == 6]) == pytest.approx(108, abs=25)
    assert np.median(hu[:, -1]) < -950
    assert -1024 <= hu.min() < -900 < 300 < hu.max() <= 3071


def test_dataset_json_lists_every_case_and_label(phantom):
    folder = phantom[1]["msd_pancreas"]
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"0": "background", "1": "pancreas", "2": "cancer"}
    assert content["numTraining"] == len(content["training"]) == PRESETS["tiny"].cases["msd_pancreas"]
    assert all(
        (folder / row["image"]).is_file() and (folder / row["label"]).is_file() for row in content["training"]
    )


def test_an_unknown_preset_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tiny"):
        write_phantom(tmp_path, "huge")


def test_every_preset_has_numbers_for_its_cases():
    for preset in PRESETS.values():
        assert isinstance(preset, Preset)
        assert all(count <= len(LAYOUT[dataset].numbers) for dataset, count in preset.cases.items())


@pytest.mark.parametrize("axes", ["RAS", "LAS", "LPS", "IPL"])
def test_reoriented_voxels_stay_where_they_are_in_the_world(axes):
    array = np.zeros((3, 4, 5), np.uint8)
    array[2, 1, 3] = 1
    image = oriented(array, (5.0, 2.0, 1.0), (10.0, 20.0, 30.0), axes, keeps_origin=True)
    world = nib.affines.apply_affine(image.affine, np.argwhere(np.asarray(image.dataobj))[0])
    np.testing.assert_allclose(world, [33.0, 22.0, 20.0])
