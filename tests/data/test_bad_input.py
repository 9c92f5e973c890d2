"""Raw cases with something wrong, through `prepare`: one line each, the others go on, nothing half-written."""

import gzip
import struct

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.cards import read_card
from partialseg.data.coverage import check
from partialseg.data.prepare import prepare
from partialseg.data.prepared import read_prepared

SHAPE = (12, 11, 10)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])

#: Kind of problem: the folder of the file that must be named, and words of the line.
EXPECTED = {
    "truncated_gzip": ("imagesTr", ["cut short", "download"]),
    "truncated_label": ("labelsTr", ["cut short", "download"]),
    "not_nifti": ("imagesTr", ["cannot be read as NIfTI", "download"]),
    "other_shape": ("labelsTr", ["(12, 11, 9)", "(12, 11, 10)", "one grid"]),
    "other_affine": ("labelsTr", ["3 mm from its image", "correct the affine"]),
    "unknown_value": ("labelsTr", ["value 7", "it lists 1", "add 7 under `labels:`"]),
    "not_whole": ("labelsTr", ["not whole numbers", "0.5", "nearest neighbour"]),
    "nan_voxels": ("imagesTr", ["2 of 1320 voxels are NaN", "exclude"]),
    "four_axes": ("imagesTr", ["(12, 11, 10, 2)", "expected three axes", "keep one 3D volume"]),
    "zero_axis": ("imagesTr", ["size 0", "convert or download"]),
    "missing_image": ("imagesTr", ["no such file", "exclude"]),
    "missing_label": ("labelsTr", ["no such file", "exclude"]),
}


def image():
    return np.random.default_rng(0).normal(40, 20, SHAPE).astype(np.float32)


def label():
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[3:8, 3:8, 3:8] = 1
    return array


def save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)


def set_axis_to_zero(path):
    """Write 0 as the size of the third axis into the header."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[46:48] = struct.pack("<h", 0)
    path.write_bytes(gzip.compress(bytes(content)))


def spoil(kind, image_path, label_path):
    """Make the one thing wrong that `kind` names."""
    if kind == "truncated_gzip":
        image_path.write_bytes(image_path.read_bytes()[:-2000])
    elif kind == "truncated_label":
        label_path.write_bytes(label_path.read_bytes()[:-10])
    elif kind == "not_nifti":
        image_path.write_bytes(gzip.compress(b"<html>404</html>" * 50))
    elif kind == "other_shape":
        save(label_path, label()[..., :-1])
    elif kind == "other_affine":
        moved = AFFINE.copy()
        moved[0, 3] = 3
        save(label_path, label(), moved)
    elif kind == "unknown_value":
        save(label_path, label() * 7)
    elif kind == "not_whole":
        save(label_path, label().astype(np.float32) / 2)
    elif kind == "nan_voxels":
        array = image()
        array[0, 0, :2] = np.nan
        save(image_path, array)
    elif kind == "four_axes":
        save(image_path, np.stack([image(), image()], axis=-1))
    elif kind == "zero_axis":
        set_axis_to_zero(image_path)
    elif kind == "missing_image":
        image_path.unlink()
    elif kind == "missing_label":
        label_path.unlink()


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A spleen dataset with two good cases and one for each kind of problem."""
    folder = tmp_path_factory.mktemp("bad_input")
    dataset = folder / "Task09_Spleen"
    for part in ("imagesTr", "labelsTr"):
        (dataset / part).mkdir(parents=True)
    for kind in ("aa_good", *EXPECTED, "zz_good"):
        paths = [dataset / part / f"spleen_{kind}.nii.gz" for part in ("imagesTr", "labelsTr")]
        for path, array in zip(paths, (image(), label()), strict=True):
            save(path, array)
        spoil(kind, *paths)
    return folder


@pytest.fixture(scope="module")
def result(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("bad_output")
    return prepare([read_card("msd_spleen")], raw, out, spacing_mm=(2.0, 2.0, 2.0), jobs=1)


@pytest.mark.parametrize("kind", EXPECTED)
def test_problem_is_one_line_naming_file_problem_and_remedy(raw, result, kind):
    part, words = EXPECTED[kind]
    lines = [str(problem) for problem in result.problems if kind in problem.path]
    assert len(lines) == 1
    assert "\n" not in lines[0]
    assert lines[0].startswith(str(raw / "Task09_Spleen" / part / f"spleen_{kind}.nii.gz") + ": ")
    for word in words:
        assert word in lines[0]


def test_other_cases_go_on(result):
    assert result.done == 2
    assert len(result.problems) == len(EXPECTED)
    prepared = read_prepared(result.prepared.folder)
    assert [case.name for case in prepared.cases] == ["spleen_aa_good", "spleen_zz_good"]
    assert all(prepared.image(case).shape == case.shape for case in prepared.cases)


def test_nothing_half_written_stays_behind(result):
    folder = result.prepared.folder
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "msd_spleen"}
    assert {path.name for path in (folder / "msd_spleen").iterdir()} == {"spleen_aa_good", "spleen_zz_good"}


def test_case_that_is_mended_is_prepared_by_the_next_run(raw, tmp_path):
    cards = [read_card("msd_spleen")]
    copy = tmp_path / "raw" / "Task09_Spleen"
    for part in ("imagesTr", "labelsTr"):
        (copy / part).mkdir(parents=True)
        for kind in ("aa_good", "unknown_value"):
            name = f"spleen_{kind}.nii.gz"
            (copy / part / name).write_bytes((raw / "Task09_Spleen" / part / name).read_bytes())
    first = prepare(cards, tmp_path / "raw", tmp_path / "out", (2.0, 2.0, 2.0), jobs=1)
    save(copy / "labelsTr" / "spleen_unknown_value.nii.gz", label())
    second = prepare(cards, tmp_path / "raw", tmp_path / "out", (2.0, 2.0, 2.0), jobs=1)
    assert (first.done, first.skipped, len(first.problems)) == (1, 0, 1)
    assert (second.done, second.skipped, second.problems) == (1, 1, [])


def test_whole_dataset_check_finds_the_same_problems(raw, result):
    checked = check([read_card("msd_spleen")], raw, jobs=1)
    assert sorted(map(str, checked.problems)) == sorted(map(str, result.problems))
