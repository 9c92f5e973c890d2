"""Whether an image holds HU: each rule on an image that breaks it, and on one that does not."""

import numpy as np
import pytest

from partialseg.data.intensity import (
    intensity_notes,
    intensity_problem,
    measure_intensity,
    organ_notes,
    sampled,
)


def scan():
    """Air around a body of fat, soft tissue and a little bone; HU."""
    random = np.random.default_rng(0)
    image = np.full((20, 30, 30), -1000.0)
    image[:, 5:25, 5:25] = -100
    image[:, 8:22, 8:22] = 50
    image[:, 8:10, 12:18] = 700
    return (image + random.normal(0, 15, image.shape)).astype(np.float32)


def body():
    label = np.zeros((20, 30, 30), np.uint8)
    label[5:10, 12:20, 10:20] = 1
    return label


def problem(image, label=None):
    return intensity_problem(measure_intensity(image, label))


@pytest.mark.parametrize("label", [None, body()])
def test_a_scan_in_hu_is_good(label):
    assert problem(scan(), label) is None
    assert intensity_notes(measure_intensity(scan(), label)) == ()


@pytest.mark.parametrize("padding", [-1024, -2048, -3024])
def test_padding_around_the_field_of_view_is_good(padding):
    image = scan()
    image[:, :4] = padding
    assert problem(image) is None
    assert intensity_notes(measure_intensity(image)) == ()


def test_a_part_of_a_body_without_air_is_good():
    assert problem(scan()[:, 9:21, 9:21]) is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda image: np.full_like(image, -1000), "every voxel is -1000"),
        (lambda image: image + 1024, "about 1024 too high"),
        (lambda image: np.clip(image + 1024, 0, 4095).round(), "values 0 to 1"),
        (lambda image: np.clip((image + 160) / 400 * 255, 0, 255), "grey values 0 to 255"),
        (lambda image: (image + 1000) / 2000, "it was rescaled"),
        (lambda image: (image - image.mean()) / image.std(), "it was rescaled"),
        (lambda image: image - 1024, "lie between -200 and 300"),
        (lambda image: image * 16 + 6000, "lie between -200 and 300"),
    ],
)
@pytest.mark.parametrize("label", [None, body()])
def test_an_image_that_is_not_in_hu_is_a_problem(spoil, words, label):
    found, remedy = problem(spoil(scan()), label)
    assert words in found
    assert "again" in remedy
    assert "\n" not in found + remedy


def test_a_shift_is_found_behind_padding_too():
    image = scan() + 1024
    image[:, :3] = -1024
    assert "about 1024 too high" in problem(image)[0]

    mostly_padding = np.full_like(image, -1024)
    mostly_padding[5:10, 9:22, 9:22] = image[5:10, 9:22, 9:22]
    assert measure_intensity(mostly_padding).lifted < 0.1
    assert "about 1024 too high" in problem(mostly_padding, body())[0]


def test_much_bone_is_no_shift():
    image = scan()
    image[:, 8:12, 8:22] = 1000  # 6% of all voxels
    assert problem(image) is None


@pytest.mark.parametrize("median", [700, 1150, 1350])
def test_labels_of_bone_teeth_or_metal_are_no_shift(median):
    image, label = scan(), np.zeros((20, 30, 30), np.uint8)
    label[:, 8:10, 12:18] = 1
    image[label > 0] = np.linspace(median - 200, median + 200, np.count_nonzero(label))
    measured = measure_intensity(image, label)
    assert measured.labelled_median == pytest.approx(median, abs=10)
    assert intensity_problem(measured) is None
    assert "about 1024 too high" in problem(image + 1024, body())[0]


def test_a_small_shifted_body_in_much_air_is_found_by_its_labels():
    image = scan()[:, 9:22, 9:22] + 1024
    small, label = np.full((20, 60, 60), 24.0), np.zeros((20, 60, 60), np.uint8)
    small[:, 9:22, 9:22] = image
    small += np.random.default_rng(1).normal(0, 15, small.shape)
    label[:, 12:18, 12:18] = 1
    assert measure_intensity(small).lifted < 0.1
    assert "about 1024 too high" in problem(small, label)[0]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda image: np.minimum(image, 150), "no voxel above 150 HU"),
        (lambda image: np.minimum(image, 240), "1.3% of the voxels have the highest value 240"),
        (lambda image: np.maximum(image, -160), "no voxel below -160 HU"),
        (lambda image: np.where(image > 730, 32767, image), "far beyond -1024 to 3071 HU"),
        (lambda image: np.where(image < -1050, -9999, image), "far beyond -1024 to 3071 HU"),
    ],
)
def test_unusual_figures_are_noted(spoil, words):
    measured = measure_intensity(spoil(scan()))
    assert intensity_problem(measured) is None
    (note,) = intensity_notes(measured)
    assert words in note
    assert "\n" not in note


def test_solid_organs_must_look_like_tissue():
    tissue, lung = np.full(100, 60.0), np.full(100, -700.0)
    mixed = np.concatenate([tissue, lung[:20]])
    assert organ_notes({"liver": tissue, "left_lung": lung, "spleen": np.zeros(0)}) == ()
    assert "median of -700 HU" in organ_notes({"liver": lung})[0]
    assert "17% of its voxels below -200 HU" in organ_notes({"spleen": mixed})[0]


def test_figures_of_a_large_image_come_from_evenly_spread_voxels():
    array = np.zeros((220, 200, 150), np.int16)
    array[::2] = 100
    assert sampled(array).size < 1_300_000
    assert measure_intensity(array).median in (0, 50, 100)
    assert measure_intensity(array).highest == 100
