"""From a dataset's own values to the values of its prepared table."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.cards import Card, Override, read_card
from partialseg.data.classes import PAPER_ORGANS, class_names
from partialseg.data.labels import candidates, ignored_value
from partialseg.data.relabel import prepared_values, to_prepared_values
from partialseg.data.volumes import read_label
from partialseg.errors import DataError

CLASSES = class_names(PAPER_ORGANS)
EITHER = ("left_kidney", "right_kidney")


def _card(labels, annotated, **fields):
    return Card(
        name="toy",
        title="Toy",
        source="nowhere",
        licence="CC0-1.0",
        citation="Nobody",
        files={"image": "i*", "label": "l*"},
        labels=labels,
        annotated=annotated,
        splits={"test": 0.0},
        path=Path("toy.md"),
        **fields,
    )


def _names(row, classes=CLASSES):
    return {name for name, is_in in zip(classes, row, strict=True) if is_in}


def _volume(tmp_path, array_xyz, affine=None):
    path = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(array_xyz.astype(np.uint8), np.eye(4) if affine is None else affine), path)
    return read_label(path)


def _line(tmp_path, values):
    return _volume(tmp_path, np.array(values).reshape(-1, 1, 1))


def test_background_of_a_partial_dataset_is_every_organ_it_does_not_annotate():
    assert _names(prepared_values(read_card("msd_spleen"), CLASSES)[0]) == set(CLASSES) - {"spleen"}
    assert _names(prepared_values(read_card("btcv"), CLASSES)[0]) == {"background"}


def test_tumour_is_its_organ(tmp_path):
    values, notes = to_prepared_values(_line(tmp_path, [0, 1, 2]), read_card("msd_pancreas"), CLASSES, "case")
    assert values.ravel().tolist() == [0, 3, 3]
    assert values.dtype == np.uint8
    assert notes == ()


def test_btcv_values_become_the_classes_and_its_other_organs_background(tmp_path):
    label = np.zeros((14, 2, 2))
    label += np.arange(14).reshape(-1, 1, 1)
    values, notes = to_prepared_values(_volume(tmp_path, label), read_card("btcv"), CLASSES, "case")
    assert values[0, 0].tolist() == [0, 2, 5, 4, 0, 0, 1, 0, 0, 0, 0, 3, 0, 0]
    # Spleen 1 and right kidney 2 lie left of liver 6 and left kidney 3 in this made-up map.
    assert len(notes) == 1
    assert "right_kidney lies left of left_kidney" in notes[0]


def test_every_meaning_of_a_label_has_its_set(tmp_path):
    labels = {
        1: "liver",
        2: ["left_kidney", "right_kidney"],
        3: "background",
        4: "ignore",
        5: ["liver", "spleen"],
    }
    card = _card(labels, ["liver", "spleen", *EITHER])
    table = prepared_values(card, CLASSES)
    values, _ = to_prepared_values(_line(tmp_path, range(6)), card, CLASSES, "case")
    sets = [_names(row) for row in candidates(values.ravel(), table)]
    assert sets == [
        {"background", "pancreas"},
        {"liver"},
        set(EITHER),
        {"background"},
        set(CLASSES),
        {"liver", "spleen"},
    ]
    assert values.ravel()[4] == ignored_value(CLASSES)


def test_an_organ_that_is_no_class_is_background(tmp_path):
    classes = ("background", "left_kidney", "pancreas")
    card = _card({1: ["liver"], 2: list(EITHER)}, ["liver", *EITHER])
    table = prepared_values(card, classes)
    values, _ = to_prepared_values(_line(tmp_path, [0, 1, 2]), card, classes, "case")
    sets = [_names(row, classes) for row in candidates(values.ravel(), table)]
    assert sets == [{"background", "pancreas"}, {"background"}, {"background", "left_kidney"}]


def test_kidneys_are_split_in_world_x_and_unsure_voxels_keep_the_set(tmp_path):
    label = np.zeros((48, 12, 12))
    label[4:12, 2:10, 2:10] = 1
    label[36:44, 2:10, 2:10] = 1
    label[36:40, 2:10, 2:10] = 2  # tumour, counted as kidney
    label[24, 5, 5] = 1  # a speck between the two
    for affine in (np.eye(4), np.diag([-1.0, 1, 1, 1])):
        volume = _volume(tmp_path, label, affine)
        values, notes = to_prepared_values(volume, read_card("kits19"), CLASSES, "case")
        assert notes == ("left_kidney/right_kidney: 0.001 mL on neither side",)
        assert np.bincount(values.ravel()).tolist() == [label.size - 1025, 0, 0, 0, 512, 512, 0, 1]
        # On the canonical grid x grows to the right, whichever way the file runs.
        assert set(values[5, 5, 4:12]) == {4}
        assert set(values[5, 5, 36:44]) == {5}


@pytest.mark.parametrize(("bridge", "flag"), [(True, "fused"), (False, "one side")])
def test_one_component_keeps_the_set_of_both(tmp_path, bridge, flag):
    label = np.zeros((48, 12, 12))
    label[4:12, 2:10, 2:10] = 1
    if bridge:
        label[4:44, 5, 5] = label[36:44, 2:10, 2:10] = 1
    card = read_card("kits19")
    values, notes = to_prepared_values(_volume(tmp_path, label), card, CLASSES, "case")
    assert notes == (f"left_kidney/right_kidney: {flag}",)
    assert np.unique(values).tolist() == [0, 7]
    assert _names(prepared_values(card, CLASSES)[7]) == set(EITHER)


def test_split_sides_without_a_side_among_the_classes_is_background(tmp_path):
    label = np.zeros((12, 3, 3))
    label[1:3] = label[9:11] = 1
    classes = ("background", "liver", "left_kidney")
    card = read_card("kits19")
    values, _ = to_prepared_values(_volume(tmp_path, label), card, classes, "case")
    table = prepared_values(card, classes)
    assert [_names(table[v], classes) for v in (values[0, 0, 1], values[0, 0, 9])] == [
        {"left_kidney"},
        {"background"},
    ]


def test_real_kits19_and_dicom_label_maps(real_data):
    volume = read_label(real_data / "kits19_labels" / "case_00038.nii.gz")
    values, notes = to_prepared_values(volume, read_card("kits19"), CLASSES, "case")
    assert notes == ()
    assert np.unique(values).tolist() == [0, 4, 5]
    np.testing.assert_array_equal(values > 0, volume.array > 0)
    assert np.argwhere(values == 5)[:, 2].mean() > np.argwhere(values == 4)[:, 2].mean()

    card = _card({1: "spleen", 5: "liver", 7: "pancreas"}, ["spleen", "liver", "pancreas"])
    volume = read_label(real_data / "ts_dicom20_seg_v2ids.nii.gz")
    others = {int(v): "background" for v in np.unique(volume.array) if v not in (0, 1, 5, 7)}
    card = _card({1: "spleen", 5: "liver", 7: "pancreas", **others}, ["spleen", "liver", "pancreas"])
    values, notes = to_prepared_values(volume, card, CLASSES, "case")
    assert notes == ()
    for raw, value in ((5, 1), (1, 2), (7, 3)):
        np.testing.assert_array_equal(values == value, volume.array == raw)


def test_an_organ_not_annotated_in_one_case_is_its_background(tmp_path):
    card = read_card("btcv").model_copy(
        update={"cases": {"few": Override(annotated=["liver", "left_kidney"])}}
    )
    label = _line(tmp_path, [0, 1, 6, 3, 2])  # spleen, liver, left and right kidney
    usual, _ = to_prepared_values(label, card, CLASSES, "other")
    few, _ = to_prepared_values(label, card, CLASSES, "few")
    assert usual.ravel().tolist() == [0, 2, 1, 4, 5]
    assert few.ravel().tolist() == [0, 0, 1, 4, 0]


def test_slices_that_are_not_annotated_are_ignored_in_the_order_of_the_file(tmp_path):
    card = read_card("msd_spleen").model_copy(
        update={"cases": {"some": Override(slices=[2, 3]), "parts": Override(slices=[[0, 0], [4, 4]])}}
    )
    ignored = len(CLASSES)
    for step, some in (
        (1.0, [0, 0, 1, 1, 0]),
        (-1.0, [0, 1, 1, 0, 0]),
    ):  # stored from the feet on, or from the head
        path = tmp_path / f"map{step}.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros((2, 2, 5), np.uint8), np.diag([1, 1, step, 1])), path)
        label = read_label(path)
        values, _ = to_prepared_values(label, card, CLASSES, "some")
        assert (values[:, 0, 0] != ignored).astype(int).tolist() == some
        values, _ = to_prepared_values(label, card, CLASSES, "parts")
        assert (values[:, 0, 0] != ignored).astype(int).tolist() == [1, 0, 0, 0, 1]
    beyond = card.model_copy(update={"cases": {"some": Override(slices=[2, 5])}})
    with pytest.raises(DataError, match=r"msd_spleen, some: has slices 0 to 4, but .* slices 2 to 5"):
        to_prepared_values(label, beyond, CLASSES, "some")
