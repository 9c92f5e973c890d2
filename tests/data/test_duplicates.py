"""The same scan twice, whatever its file looks like."""

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.duplicates import NO_CONTENT, content_of, find_duplicates
from partialseg.data.volumes import read_image

A, B, C = ("one", "a"), ("one", "b"), ("two", "c")
TRAIN = {A: "train", B: "train", C: "train"}


def image(seed=0):
    return np.random.default_rng(seed).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)


@pytest.mark.parametrize(
    ("suffix", "dtype", "axes"),
    [(".nii", np.int16, "RAS"), (".nii.gz", np.float32, "LPS"), (".nii.gz", np.float64, "SLA")],
)
def test_content_does_not_depend_on_the_file(tmp_path, suffix, dtype, axes):
    path = tmp_path / f"scan{suffix}"
    turn = nib.orientations.axcodes2ornt(axes)
    nib.save(nib.Nifti1Image(image().T.astype(dtype), np.diag([1, 2, 3, 1])).as_reoriented(turn), path)
    assert content_of(read_image(path).array) == content_of(image())


def test_content_tells_another_shape():
    assert content_of(image()).ordered != content_of(image().reshape(6, 8, 7)).ordered


def test_content_tells_a_single_voxel():
    other = image()
    other[1, 2, 3] += 1
    assert content_of(other).ordered != content_of(image()).ordered
    assert content_of(other).histogram != content_of(image()).histogram


@pytest.mark.parametrize(
    "change", [lambda array: array[:, ::-1], lambda array: array.T, lambda array: array + 1024]
)
def test_histogram_knows_a_scan_that_was_turned_or_shifted(change):
    changed = content_of(change(image()))
    assert changed.ordered != content_of(image()).ordered
    assert changed.histogram == content_of(image()).histogram


def test_what_has_no_content_is_like_nothing_else():
    empty = content_of(np.zeros((4, 4, 4), np.uint8))
    assert empty == NO_CONTENT
    assert find_duplicates({A: empty, B: empty}, {A: NO_CONTENT, B: NO_CONTENT}, TRAIN) == []
    assert content_of(np.arange(8).reshape(2, 2, 2)).histogram == ""  # few values


def test_sets_of_cases_that_hold_the_same():
    same, other = content_of(image()), content_of(image(1))
    label = content_of(image() > 0)
    images = {A: same, B: other, C: same}
    (found,) = find_duplicates(images, {A: label, B: NO_CONTENT, C: label}, TRAIN)
    assert (found.cases, found.same, found.leakage) == ((A, C), "image and label map", False)
    first, second = find_duplicates(images, {A: label, B: label, C: NO_CONTENT}, TRAIN)
    assert (first.cases, first.same) == ((A, B), "label map")
    assert (second.cases, second.same) == ((A, C), "image")


def test_a_turned_copy_is_told_apart_from_an_exact_one():
    images = {A: content_of(image()), B: content_of(image()[::-1])}
    (found,) = find_duplicates(images, {}, TRAIN)
    assert found.same == "image (perhaps turned, or with other HU)"


@pytest.mark.parametrize("copy", [image(), image()[:, ::-1]])
def test_one_scan_in_training_and_in_test_data_is_leakage(copy):
    splits = {A: "test", C: "train"}
    images = {A: content_of(image()), C: content_of(copy)}
    assert find_duplicates(images, {}, splits)[0].leakage
    assert not find_duplicates(images, {}, {A: "test", C: "test"})[0].leakage


def test_the_same_label_map_alone_is_no_leakage():
    label = content_of(image() > 0)
    (found,) = find_duplicates({}, {A: label, C: label}, {A: "test", C: "train"})
    assert (found.same, found.leakage) == ("label map", False)
