"""Left and right: hand-made masks with known answers, and every real map at hand."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from partialseg.data.sides import split_left_right

#: Flag, and mL on the left and on the right, of the KiTS19 maps (the README of the data says what they are).
KITS19 = {
    "case_00004": ("split", 256.9, 201.8),
    "case_00005": ("fused", 0, 0),
    "case_00010": ("split", 180.6, 187.1),
    "case_00015": ("split", 220.2, 201.7),
    "case_00021": ("split", 206.0, 168.3),
    "case_00038": ("split", 261.9, 328.0),
    "case_00040": ("split", 199.1, 163.9),
    "case_00088": ("split", 293.0, 42.7),
    "case_00151": ("fused", 0, 0),
    "case_00160": ("split", 211.2, 261.8),
    "case_00165": ("one side", 0, 0),
    "case_00194": ("one side", 0, 0),
}


@pytest.fixture
def pair():
    """Two 2 x 3 x 3 blocks along the first axis."""
    mask = np.zeros((12, 5, 8), dtype=bool)
    mask[1:3, 1:4, 2:5] = mask[9:11, 1:4, 2:5] = True
    return mask


def _where_x(mask):
    return np.flatnonzero(mask.any(axis=(1, 2))).tolist()


def test_smaller_x_is_left(pair):
    left, right, flag = split_left_right(pair, np.eye(4))
    assert (flag, _where_x(left), _where_x(right)) == ("split", [1, 2], [9, 10])
    assert left.dtype == right.dtype == bool
    assert left.shape == pair.shape


def test_a_flipped_affine_swaps_the_sides(pair):
    left, right, _ = split_left_right(pair, np.diag([-1.0, 1, 1, 1]))
    assert (_where_x(left), _where_x(right)) == ([9, 10], [1, 2])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("layout", ["C", "F"])
def test_any_axis_order_and_memory_layout_gives_the_same_sides(pair, order, layout):
    affine = np.diag([1.0, 1.5, 2.0, 1])
    expected = split_left_right(pair, affine)
    columns = [*order, 3]
    moved = np.array(pair.transpose(order), order=layout)
    left, right, flag = split_left_right(moved, affine[:, columns])
    assert flag == expected[2]
    np.testing.assert_array_equal(left, expected[0].transpose(order))
    np.testing.assert_array_equal(right, expected[1].transpose(order))


def _all_orders():
    """The 48 ways to store a volume: axes in any order, each in either direction."""
    for order in itertools.permutations(range(3)):
        for steps in itertools.product((1, -1), repeat=3):
            yield np.column_stack([order, steps]).astype(float)


def _blobs(seed):
    """Two lumps side by side, which may touch, and a few specks; with an affine that is turned a little."""
    rng = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(rng.normal(size=(40, 22, 26)), 2) > 0.05
    x, y, z = np.indices(mask.shape)
    mask &= ((np.abs(x - rng.uniform(9, 13)) < 8) | (np.abs(x - rng.uniform(26, 30)) < 8)) & (y > 2) & (z > 2)
    angle = rng.uniform(-0.3, 0.3)
    affine = np.diag([0.8, 1.1, 2.5, 1])
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]] @ affine[:2, :2]
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return mask, affine


def _pieces(seed):
    """Two boxes far apart, a third piece and specks at random."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 22, 26), dtype=bool)
    mask[3:13, 5:16, 4:20] = mask[27:36, 4:15, 6:22] = True
    mask[tuple(rng.integers(0, 22, (3, 12)))] = True
    mask[3:13, 9:11] &= rng.random() < 0.5
    return mask, _blobs(seed)[1]


@pytest.mark.parametrize("make", [_blobs, _pieces])
@pytest.mark.parametrize("seed", range(3))
def test_all_48_orders_of_storage_give_the_same_place_in_the_world(make, seed):
    mask, affine = make(seed)
    left, right, flag = split_left_right(mask, affine)
    assert flag == "split" or make is _blobs
    for orientation in _all_orders():
        stored = nib.orientations.apply_orientation(mask, orientation)
        stored_affine = affine @ nib.orientations.inv_ornt_aff(orientation, mask.shape)
        stored_left, stored_right, stored_flag = split_left_right(stored, stored_affine)
        assert stored_flag == flag
        for expected, side in ((left, stored_left), (right, stored_right)):
            np.testing.assert_array_equal(side, nib.orientations.apply_orientation(expected, orientation))


@pytest.mark.parametrize("seed", range(3))
def test_a_mirrored_patient_has_the_sides_swapped(seed):
    mask, affine = _pieces(seed)
    left, right, flag = split_left_right(mask, affine)
    other_right, other_left, other_flag = split_left_right(mask, np.diag([-1, 1, 1, 1]) @ affine)
    assert (flag, other_flag) == ("split", "split")
    np.testing.assert_array_equal(left, other_left)
    np.testing.assert_array_equal(right, other_right)


def test_values_other_than_0_count_as_the_organ(pair):
    left, _, flag = split_left_right(pair.astype(np.uint8) * 2, np.eye(4))
    assert (flag, left.sum()) == ("split", 18)


def test_specks_join_the_clearly_nearer_organ_and_else_neither(pair):
    big = np.kron(pair, np.ones((4, 4, 4), dtype=bool))  # 8 x 12 x 12 blocks at 4..11 and 36..43
    near_left, near_right, between = (1, 8, 12), (46, 8, 12), (24, 8, 12)
    for place in (near_left, near_right, between):
        big[place] = True
    left, right, flag = split_left_right(big, np.eye(4))
    assert flag == "split"
    assert (left[near_left], right[near_left]) == (True, False)
    assert (left[near_right], right[near_right]) == (False, True)
    assert (left[between], right[between]) == (False, False)
    assert big.sum() == left.sum() + right.sum() + 1


def test_an_organ_in_two_large_pieces_keeps_both_on_its_side(pair):
    big = np.kron(pair, np.ones((4, 4, 4), dtype=bool))
    big[4:12, 9:11] = False  # cut the left organ in two, one above 3% of the other
    left, right, flag = split_left_right(big, np.eye(4))
    assert flag == "split"
    np.testing.assert_array_equal(left | right, big)
    assert _where_x(left) == list(range(4, 12))


@pytest.mark.parametrize("shift_mm", [0.0, -500.0])
def test_one_component_alone_is_not_guessed(pair, shift_mm):
    pair[6:] = False
    affine = np.eye(4)
    affine[0, 3] = shift_mm
    left, right, flag = split_left_right(pair, affine)
    assert (flag, left.any(), right.any()) == ("one side", False, False)


def test_one_component_with_specks_on_the_other_side_is_not_guessed(pair):
    big = np.kron(pair, np.ones((4, 4, 4), dtype=bool))
    big[30:] = False
    big[40, 8, 12] = True
    left, right, flag = split_left_right(big, np.eye(4))
    assert (flag, left.any(), right.any()) == ("one side", False, False)


def test_organs_joined_by_a_bridge_are_fused(pair):
    pair[1:11, 2, 3] = True
    left, right, flag = split_left_right(pair, np.eye(4))
    assert (flag, left.any(), right.any()) == ("fused", False, False)


@pytest.mark.parametrize("axis", [1, 2])
def test_components_above_or_behind_one_another_are_unclear(axis):
    mask = np.zeros((6, 12, 12), dtype=bool)
    block = np.moveaxis(mask, axis, 0)
    block[1:4, 1:4, 1:4] = block[8:11, 1:4, 1:4] = True
    left, right, flag = split_left_right(mask, np.eye(4))
    assert (flag, left.any(), right.any()) == ("unclear", False, False)


def test_an_empty_mask_is_empty():
    left, right, flag = split_left_right(np.zeros((4, 5, 6), dtype=bool), np.eye(4))
    assert (flag, left.shape, left.any(), right.any()) == ("empty", (4, 5, 6), False, False)


@pytest.mark.parametrize(("mask", "affine"), [(np.ones((4, 4)), np.eye(4)), (np.ones((4, 4, 4)), np.eye(3))])
def test_other_shapes_are_refused(mask, affine):
    with pytest.raises(ValueError, match="expected three axes"):
        split_left_right(mask, affine)


@pytest.mark.parametrize("case", KITS19)
def test_kits19_kidneys(real_data, case):
    file = nib.load(real_data / "kits19_labels" / f"{case}.nii.gz")
    mask = np.asanyarray(file.dataobj) > 0
    left, right, flag = split_left_right(mask, file.affine)
    voxel_ml = abs(np.linalg.det(file.affine[:3, :3])) / 1000
    expected_flag, left_ml, right_ml = KITS19[case]
    assert flag == expected_flag
    assert np.count_nonzero(left) * voxel_ml == pytest.approx(left_ml, abs=0.1)
    assert np.count_nonzero(right) * voxel_ml == pytest.approx(right_ml, abs=0.1)
    assert not (left & right).any()
    if flag == "split":
        assert np.count_nonzero(mask & ~left & ~right) * voxel_ml < 0.1


def _drawn_sides(real_data):
    """Label maps in which people or programs told the sides: file, value on the left, value on the right."""
    yield from ((path, 3, 4) for path in sorted((real_data / "word_labels").glob("*.nii.gz"))[::2])
    yield from ((path, 4, 5) for path in sorted(real_data.glob("*_label.nii.gz")))


def test_sides_agree_with_label_maps_that_tell_them(real_data):
    for path, left_value, right_value in _drawn_sides(real_data):
        file = nib.load(path)
        label = np.asanyarray(file.dataobj)
        left, right, flag = split_left_right((label == left_value) | (label == right_value), file.affine)
        assert flag == "split", path
        assert not (left & (label == right_value)).any(), path
        assert not (right & (label == left_value)).any(), path
        for side, value in ((left, left_value), (right, right_value)):
            assert side.sum() > 0.99 * (label == value).sum(), path
