"""What is noted of one raw case: each rule on a case that breaks it, and on one that does not."""

import errno
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from partialseg.data import checks
from partialseg.data.cards import RawCase, read_card
from partialseg.data.classes import class_names
from partialseg.data.inspect_case import (
    InspectTask,
    inspect_case,
    memory_needed,
    pieces_ml,
    place_notes,
)
from partialseg.data.volumes import Source, Volume, read_label
from partialseg.errors import first_of

ORGANS = ("liver", "spleen", "pancreas", "left_kidney", "right_kidney")
AFFINE = np.array([[4.0, 0, 0, -80], [0, 4, 0, -60], [0, 0, 5, 100], [0, 0, 0, 1]])  # x grows to the right


def label():
    """Organs where they are in a body, in (x, y, z)."""
    array = np.zeros((40, 30, 30), np.uint8)
    array[24:34, 10:24, 16:28] = 1  # liver
    array[6:12, 6:14, 18:26] = 2  # spleen
    array[14:24, 14:18, 12:16] = 3  # pancreas
    array[8:13, 5:10, 6:14] = 4
    array[26:31, 5:10, 6:14] = 5
    return array


def image():
    """A body in air, with bone."""
    random = np.random.default_rng(0)
    array = np.full((40, 30, 30), -1000.0)
    array[3:37, 3:27] = 40
    array[18:22, 3:6] = 700
    return (array + random.normal(0, 15, array.shape)).astype(np.int16)


CARD = """---
name: five
files: {image: "*_ct.nii.gz", label: "*_label.nii.gz"}
labels: {1: liver, 2: spleen, 3: pancreas, 4: left_kidney, 5: right_kidney}
annotated: [liver, spleen, pancreas, left_kidney, right_kidney]
---
"""


@pytest.fixture
def inspect(tmp_path):
    def run(
        ct=None, segmentation=None, affine=AFFINE, label_affine=None, fields="", header=None, thumbnail=None
    ):
        paths = tmp_path / "a_ct.nii.gz", tmp_path / "a_label.nii.gz"
        arrays = image() if ct is None else ct, label() if segmentation is None else segmentation
        for path, array, place in zip(
            paths, arrays, (affine, affine if label_affine is None else label_affine), strict=True
        ):
            file = nib.Nifti1Image(array, place)
            if header is not None:
                header(file)
            nib.save(file, path)
        (tmp_path / "card.md").write_text(CARD.replace("name: five", f"name: five\n{fields}"))
        card = read_card(tmp_path / "card.md")
        return inspect_case(
            InspectTask(card, RawCase("five", "a_ct", *paths), class_names(ORGANS), thumbnail)
        )

    return run


def test_a_good_case_is_measured_and_nothing_is_noted(inspect):
    case = inspect()
    assert (case.notes, case.problems) == ((), ())
    assert (case.shape, case.spacing_mm, case.axes) == ((30, 30, 40), (5, 4, 4), "RAS")
    assert case.voxels == {
        "liver": 1680,
        "spleen": 384,
        "pancreas": 160,
        "left_kidney": 200,
        "right_kidney": 200,
    }
    assert case.volumes_ml["liver"] == pytest.approx(1680 * 0.08)
    assert (case.label_type, case.values, case.cut_off) == ("uint8", (0, 1, 2, 3, 4, 5), ())


def test_each_file_is_read_once(inspect, monkeypatch):
    read = []
    for name in ("read_image", "read_case_label"):
        original = getattr(checks, name)
        monkeypatch.setattr(
            checks, name, lambda *a, original=original, name=name: read.append(name) or original(*a)
        )
    assert inspect(segmentation=np.where(label() == 1, 9, label()).astype(np.uint8)).problems
    assert sorted(read) == ["read_case_label", "read_image"]


def test_all_problems_of_a_case_are_told_and_what_can_be_measured_is(inspect):
    moved = AFFINE.copy()
    moved[2, 3] += 15
    case = inspect(ct=image() + 1024, segmentation=label() * 2, label_affine=moved)
    for problem, words in zip(case.problems, ("1024 too high", "15 mm", "values 6, 8, 10"), strict=True):
        assert words in problem.problem
    assert case.voxels == {}
    assert case.image.ordered
    assert case.label.ordered


@pytest.mark.parametrize(
    ("axis", "notes"),
    [
        (0, ["liver lies left of spleen", "right_kidney lies left of left_kidney"]),
        (1, ["liver lies behind right_kidney", "pancreas lies behind left_kidney"]),
        (2, ["liver lies below right_kidney", "spleen lies below left_kidney"]),
    ],
)
def test_swapped_axes_are_noted(inspect, axis, notes):
    flip = np.ones(4)
    flip[axis] = -1
    found = inspect(affine=AFFINE @ np.diag(flip)).notes
    swapped = ["left and right", "front and back", "head and feet"][axis]
    assert [note.split(": ") for note in found] == [[note, f"{swapped} may be swapped"] for note in notes]


@pytest.mark.parametrize(("organ", "value", "half"), [("liver", 1, "left"), ("spleen", 2, "right")])
def test_one_organ_alone_in_the_wrong_half_of_the_body_is_noted(inspect, organ, value, half):
    alone = np.where(label() == value, value, 0).astype(np.uint8)
    note = f"{organ} lies in the {half} half of the body: left and right may be swapped"
    assert note not in inspect(segmentation=alone).notes
    assert note in inspect(segmentation=alone, affine=AFFINE @ np.diag([-1, 1, 1, 1])).notes


def test_absent_organs_are_noted(inspect):
    assert inspect(segmentation=np.where(label() == 3, 0, label()).astype(np.uint8)).notes == ("no pancreas",)
    assert inspect(segmentation=np.zeros_like(label())).notes == (
        "nothing is labelled: no voxel of any organ that is annotated",
    )


def test_an_organ_in_pieces_is_noted(inspect):
    pieces = label()
    pieces[26:29, 12:16, 4:8] = 1
    assert inspect(segmentation=pieces).notes == ("liver is in pieces 30 mm or more apart: 134 mL, 3.8 mL",)
    pieces[26:29, 12:16, 4:8] = 0
    pieces[26, 12, 4] = 1  # a speck of 0.08 mL
    assert inspect(segmentation=pieces).notes == ()


def test_label_map_of_another_scan_is_noted(inspect):
    other = image()
    other[24:34, 10:24, 16:28] -= 900
    assert "does the label map belong to this image" in inspect(ct=other).notes[0]


def test_organs_that_are_cut_off_are_told(inspect):
    case = inspect(ct=image()[:, :, 10:], segmentation=label()[:, :, 10:])
    assert case.cut_off == ("left_kidney", "right_kidney")


def test_label_map_of_floats_is_noted(inspect):
    case = inspect(segmentation=label().astype(np.float32))
    assert case.notes == ("label map: stored as float32, though its values are whole numbers",)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_label_map_of_floats_is_noted_of_any_format(inspect, tmp_path, suffix):
    simpleitk = pytest.importorskip("SimpleITK")
    inspect()
    path = tmp_path / f"a_label{suffix}"
    array = read_label(tmp_path / "a_label.nii.gz").array
    file = simpleitk.GetImageFromArray(array[:, ::-1, ::-1].astype(np.float32))
    file.SetSpacing((4, 4, 5))
    file.SetOrigin((-(-80 + 39 * 4), -(-60 + 29 * 4), 100))
    simpleitk.WriteImage(file, str(path))
    case = inspect_case(
        InspectTask(
            read_card(tmp_path / "card.md"),
            RawCase("five", "a_ct", tmp_path / "a_ct.nii.gz", path),
            class_names(ORGANS),
        )
    )
    assert case.problems == ()
    assert case.label_type == "float32"
    assert case.notes == ("label map: stored as float32, though its values are whole numbers",)


def test_sform_and_qform_at_odds_are_noted(inspect):
    def move(file):
        elsewhere = AFFINE.copy()
        elsewhere[0, 3] += 30
        file.set_qform(elsewhere, 1)

    assert [note.replace("label map: ", "") for note in inspect(header=move).notes] == [
        "sform and qform place voxels up to 30 mm apart; the sform counts"
    ] * 2


def test_organs_and_slices_that_are_not_annotated_do_not_count(inspect):
    case = inspect(fields="cases: {a_ct: {annotated: [liver, pancreas]}}")
    assert case.voxels == {"liver": 1680, "pancreas": 160}
    assert case.notes == ()
    case = inspect(fields="cases: {a_ct: {slices: [20, 29]}}")
    assert case.voxels["liver"] == 1680 * 8 // 12
    assert case.cut_off == ("liver", "spleen")
    assert case.notes == ("no pancreas", "no left_kidney", "no right_kidney")


def volume(shape, affine, stored=None):
    return Volume(
        np.zeros(shape, np.float32),
        affine,
        Source(Path("x.nii"), shape, affine if stored is None else stored, np.eye(3)),
    )


def turned(degrees):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("shape", "affine", "notes"),
    [
        ((100, 30, 30), np.diag([0.7, 0.7, 5, 1]), ()),
        ((100, 30, 30), np.diag([0.7, 0.7, 14, 1]), ("voxels of 14 x 0.7 x 0.7 mm (z, y, x)",)),
        ((100, 30, 30), np.diag([0.1, 0.1, 1, 1]), ("voxels of 1 x 0.1 x 0.1 mm (z, y, x)",)),
        ((1, 30, 30), np.diag([0.7, 0.7, 5, 1]), ("a single slice",)),
        ((9, 30, 30), np.diag([0.7, 0.7, 5, 1]), ("9 slices alone",)),
        ((100, 30, 30), turned(10), ()),
        ((100, 30, 30), turned(20), ("its axes are turned by 20 degrees against the patient's",)),
        (
            (100, 30, 30),
            np.eye(4),
            ("its affine is the identity: voxel sizes and directions may have been lost",),
        ),
    ],
)
def test_unusual_grids_are_noted(shape, affine, notes):
    assert place_notes(volume(shape, affine)) == notes


def test_pieces_are_apart_by_30_mm_or_more():
    mask = np.zeros((40, 8, 8), bool)
    mask[:8] = mask[10:14] = True
    assert pieces_ml(mask, (10, 10, 10)) == [12 * 64]
    mask[17:20] = True
    assert pieces_ml(mask, (10, 10, 10)) == [12 * 64, 3 * 64]


def test_long_lists_are_cut():
    assert first_of(["a", "b"]) == "a, b"
    assert first_of(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_memory_follows_the_header(inspect, tmp_path):
    inspect()
    task = InspectTask(
        read_card(tmp_path / "card.md"), RawCase("five", "a_ct", tmp_path / "a_ct.nii.gz", tmp_path), ()
    )
    assert memory_needed(task) == 300_000_000 + 14 * 36_000


def test_a_picture_is_drawn_of_what_can_be_read(inspect, tmp_path):
    inspect(thumbnail=tmp_path / "good.png")
    bad = image().astype(np.float32)
    bad[0, 0, 0] = np.nan
    assert inspect(ct=bad, thumbnail=tmp_path / "label_alone.png").problems
    for name in ("good.png", "label_alone.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_no_end_of_the_check(inspect, tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    case = inspect(thumbnail=tmp_path / "a.png")
    assert case.no_picture == f"it could not be written to {tmp_path}: No space left on device"
    assert (case.notes, case.problems) == ((), ())
    assert case.voxels["liver"] == 1680
    assert not (tmp_path / "a.png").exists()
