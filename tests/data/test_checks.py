"""Checks of one raw case against its card."""

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.cards import RawCase, read_card
from partialseg.data.checks import examine, label_values, order_notes, read_case
from partialseg.data.volumes import read_label
from partialseg.errors import DataError

AFFINE = np.array([[-0.8, 0, 0, 90], [0, 0.8, 0, -120], [0, 0, 3, -700], [0, 0, 0, 1.0]])


def noise(shape=(6, 5, 4)):
    """Soft tissue."""
    return np.random.default_rng(0).normal(40, 30, shape).astype(np.int16)


@pytest.fixture
def card():
    return read_card("msd_liver")


@pytest.fixture
def write_case(tmp_path):
    def write(image=None, label=None, image_affine=AFFINE, label_affine=AFFINE):
        image = noise() if image is None else image
        label = np.ones((6, 5, 4), np.uint8) if label is None else label
        case = RawCase("msd_liver", "liver_7", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
        nib.save(nib.Nifti1Image(image, image_affine), case.image)
        nib.save(nib.Nifti1Image(label, label_affine), case.label)
        return case

    return write


def _moved(row, column, by):
    affine = AFFINE.copy()
    affine[row, column] += by
    return affine


def test_a_good_case_is_read(card, write_case):
    image, label = read_case(card, write_case())
    assert image.array.shape == label.array.shape == (4, 5, 6)
    assert examine(card, write_case()).problems == ()


def test_an_annotated_organ_that_is_absent_is_no_problem(card, write_case):
    assert examine(card, write_case(label=np.zeros((6, 5, 4), np.uint8))).problems == ()


def test_the_same_grid_in_another_axis_order_is_no_problem(card, write_case):
    label = np.arange(120).reshape(6, 5, 4).astype(np.uint8) % 3
    flipped = AFFINE @ nib.orientations.inv_ornt_aff([[0, -1], [1, 1], [2, 1]], label.shape)
    image, read = read_case(card, write_case(label=label[::-1], label_affine=flipped))
    np.testing.assert_allclose(read.affine, image.affine, atol=1e-5)
    np.testing.assert_array_equal(read.array, label[::-1].T)  # x grows to the right in neither file


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (2, 3)])
def test_rounding_in_an_affine_is_no_problem(card, write_case, place):
    assert examine(card, write_case(label_affine=_moved(*place, 1e-5))).problems == ()


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (_moved(2, 3, 3), r"up to 3 mm from its image: origins \(86, -120, -697\) and \(86, -120, -700\) mm"),
        (_moved(2, 2, 2), r"voxel sizes \(5, 0.8, 0.8\) and \(3, 0.8, 0.8\) mm"),
        (AFFINE @ np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "directions"),
    ],
)
def test_another_affine_names_the_difference(card, write_case, affine, words):
    with pytest.raises(DataError, match=words) as error:
        read_case(card, write_case(label_affine=affine))
    assert "msd_liver, liver_7" in str(error.value)


def test_a_flipped_affine_is_named(card, write_case):
    flipped = AFFINE @ np.diag([-1, 1, 1, 1])
    (problem,) = examine(card, write_case(label_affine=flipped)).problems
    assert "the axes of the files are RAS and LAS: one affine may be flipped" in problem.problem


def test_another_shape_names_both(card, write_case):
    with pytest.raises(DataError, match=r"shape \(6, 5, 3\) \(x, y, z\), its image \(6, 5, 4\)"):
        read_case(card, write_case(label=np.ones((6, 5, 3), np.uint8)))


def test_a_value_that_the_card_does_not_list_is_named_with_the_remedy(card, write_case):
    label = np.ones((6, 5, 4), np.uint8)
    label[0, 0, :2] = 3, 9
    with pytest.raises(DataError) as error:
        read_case(card, write_case(label=label))
    message = str(error.value)
    assert message.startswith(str(error.value.path))
    assert "msd_liver, liver_7: the label map holds values 3, 9, which " in message
    assert (
        "msd_liver.md does not describe (it lists 1, 2); add 3, 9 under `labels:`, or list the case"
        in message
    )
    assert "\n" not in message


def test_all_problems_are_found_at_once(card, write_case):
    image = noise().astype(np.float32)
    image[0, 0, 0] = np.nan
    problems = examine(card, write_case(image=image, label=np.full((6, 5, 4), 3, np.uint8))).problems
    assert [problem.path.rsplit("/", 1)[-1] for problem in problems] == ["image.nii.gz", "label.nii.gz"]
    problems = examine(card, write_case(label=np.full((6, 5, 3), 3, np.uint8))).problems
    assert ["shape" in problems[0].problem, "value 3" in problems[1].problem] == [True, True]


def test_missing_files_are_found(card, tmp_path):
    case = RawCase("msd_liver", "liver_7", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")
    assert len(examine(card, case).problems) == 2
    with pytest.raises(DataError, match=r"image.nii.gz: there is no such file"):
        read_case(card, case)


def test_values_are_those_that_numpy_finds():
    array = np.random.default_rng(0).choice([0, 3, 260], (4, 5, 6)).astype(np.int16)
    assert label_values(array) == np.unique(array).tolist()


def test_organs_on_the_wrong_side_are_noted(tmp_path):
    label = np.zeros((8, 4, 4), np.uint8)
    label[1, :, :2], label[1, :, 2:], label[6, :, :2], label[6, :, 2:] = 1, 3, 6, 2  # spleen, kidneys, liver
    card = read_card("btcv")
    for sign, notes in ((1, 0), (-1, 2)):
        nib.save(nib.Nifti1Image(label, np.diag([sign, 1, 1, 1])), tmp_path / "label.nii.gz")
        assert len(order_notes(card, read_label(tmp_path / "label.nii.gz"))) == notes
    np.putmask(label, label == 6, 0)
    nib.save(nib.Nifti1Image(label, np.diag([-1, 1, 1, 1])), tmp_path / "label.nii.gz")
    assert order_notes(card, read_label(tmp_path / "label.nii.gz")) == (
        "right_kidney lies left of left_kidney: left and right may be swapped",
    )
