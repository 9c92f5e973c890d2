"""The compiled loops against slices, flips and SciPy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from partialseg.data.augmentation.kernels import box_of, cut, resample, row_table

ANY_HU = (-np.inf, np.inf)
TABLE = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1]], np.uint8)
MIRRORINGS = list(itertools.product((False, True), repeat=3))


def random_box(shape, seed=0):
    """Image and label map whose every voxel differs from its neighbours, mostly."""
    random = np.random.default_rng(seed)
    image = random.integers(-1000, 2000, shape).astype(np.int16)
    return image, random.integers(0, len(TABLE), shape).astype(np.uint8)


def smooth_box(shape, seed=0):
    """The same with regions of some voxels, as organs are."""
    random = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(random.standard_normal((len(TABLE), *shape)), (0, 2, 2, 2))
    return (fields[0] * 5000).astype(np.int16), fields.argmax(axis=0).astype(np.uint8)


def outputs(shape, classes=3):
    return np.full(shape, np.nan, np.float32), np.full((*shape[:2], shape[2] * classes), 77, np.uint8)


def run_cut(image, label, mirrored=(False, False, False), window_hu=ANY_HU, table=TABLE):
    patch, sets = outputs(image.shape, table.shape[1])
    assert cut(image, label, mirrored, window_hu, row_table(table, image.shape[2]), patch, sets) == -1
    return patch, sets.reshape(*image.shape, -1)


def run_resample(image, label, matrix, offset, size, window_hu=ANY_HU):
    patch, sets = outputs(size)
    rows = row_table(TABLE, size[2])
    scratch = np.full(image.size, np.nan, np.float32), np.full(image.size, 77, np.uint8)
    matrix, offset = np.asarray(matrix, float), np.asarray(offset, float)
    assert resample(image, label, matrix, offset, window_hu, rows, scratch, patch, sets) == -1
    return patch, sets.reshape(*size, -1)


@pytest.mark.parametrize("mirrored", MIRRORINGS)
def test_cut_mirrors_image_and_candidates_alike(mirrored):
    image, label = random_box((3, 4, 5))
    patch, sets = run_cut(image, label, mirrored)
    axes = tuple(axis for axis in range(3) if mirrored[axis])
    np.testing.assert_array_equal(patch, np.flip(image, axes))
    np.testing.assert_array_equal(sets, TABLE[np.flip(label, axes)])


@pytest.mark.parametrize(
    "label", [np.zeros((2, 2, 9)), np.arange(36).reshape(2, 2, 9) // 4 % 4, np.eye(9)[None]]
)
def test_candidates_are_those_of_the_table_whatever_the_runs(label):
    label = label.astype(np.uint8)
    _, sets = run_cut(np.zeros(label.shape, np.int16), label)
    np.testing.assert_array_equal(sets, TABLE[label])


def test_a_value_without_a_row_is_given_back_and_not_written():
    image, label = np.zeros((2, 3, 40), np.int16), np.zeros((2, 3, 40), np.uint8)
    label[1, 1, 36] = 200
    patch, sets = outputs(image.shape)
    rows, still = row_table(TABLE, 40), (False, False, False)
    assert cut(image, label, still, ANY_HU, rows, patch, sets) == 200
    scratch = np.empty(image.size, np.float32), np.empty(image.size, np.uint8)
    patch, sets = outputs((1, 2, 39))
    identity, offset = np.eye(3), np.array([1.0, 0, 0])
    rows = row_table(TABLE, 39)
    assert resample(image, label, identity, offset, ANY_HU, rows, scratch, patch, sets) == 200


@pytest.mark.parametrize("classes", [2, 7, 65])
def test_any_number_of_classes_will_do(classes):
    table = np.random.default_rng(0).integers(0, 2, (4, classes)).astype(np.uint8)
    image, label = random_box((2, 3, 11))
    np.testing.assert_array_equal(run_cut(image, label, table=table)[1], table[label])


def test_image_is_clipped_to_the_window_and_nothing_else_happens_to_it():
    image, label = random_box((3, 4, 5))
    patch, _ = run_cut(image, label, window_hu=(-200.5, 300.25))
    np.testing.assert_array_equal(patch, np.clip(image.astype(np.float32), -200.5, 300.25))
    resampled, _ = run_resample(
        np.pad(image, 1), np.pad(label, 1), np.eye(3), [1, 1, 1], image.shape, (-200.5, 300.25)
    )
    np.testing.assert_array_equal(resampled, patch)


@pytest.mark.parametrize("mirrored", MIRRORINGS)
def test_resampling_at_whole_voxels_is_cutting(mirrored):
    image, label = random_box((6, 7, 8))
    size = np.array((4, 5, 6))
    offset = 1 + np.where(mirrored, size - 1, 0)
    found = run_resample(image, label, np.diag(np.where(mirrored, -1.0, 1.0)), offset, tuple(size))
    expected = run_cut(image[1:5, 1:6, 1:7].copy(), label[1:5, 1:6, 1:7].copy(), mirrored)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_quarter_turn_is_exact():
    image, label = random_box((3, 8, 8))
    matrix = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]  # column x of the patch is row 6 - x of the box
    patch, sets = run_resample(image, label, matrix, [0, 6, 0], (2, 7, 7))
    np.testing.assert_array_equal(patch, np.rot90(image[:2, :7, :7], -1, axes=(1, 2)))
    np.testing.assert_array_equal(sets, TABLE[np.rot90(label[:2, :7, :7], -1, axes=(1, 2))])


def any_map(seed, flat):
    """A turn, scaling and shear near the identity, in planes alone or not."""
    random = np.random.default_rng(seed)
    matrix = np.eye(3) + 0.35 * random.uniform(-1, 1, (3, 3))
    if flat:
        matrix[0], matrix[:, 0] = (1, 0, 0), (1, 0, 0)
    return matrix, random.uniform(-3, 3, 3).round(0 if flat else 9)


def in_its_box(image, label, matrix, offset, size):
    """Image and label map in the box that is needed, and the offset there."""
    start, box = box_of(matrix, offset, size)
    pad = 40
    part = tuple(slice(s + pad, s + pad + n) for s, n in zip(start, box, strict=True))
    padded = np.pad(image, pad, constant_values=-1024)[part], np.pad(label, pad, constant_values=3)[part]
    return *map(np.ascontiguousarray, padded), offset - start


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_image_equals_scipy_s_linear_interpolation(seed, flat):
    image, label = random_box((9, 10, 11), seed)
    matrix, offset = any_map(seed, flat)
    size = (7, 8, 12)
    box_image, box_label, inside = in_its_box(image, label, matrix, offset, size)
    found, _ = run_resample(box_image, box_label, matrix, inside, size)
    padded = np.pad(image.astype(float), 40, constant_values=-1024)
    expected = ndimage.affine_transform(padded, matrix, offset + 40, size, order=1)
    np.testing.assert_allclose(found, expected, atol=0.05)  # of 3000 HU: float32 positions


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("make", [random_box, smooth_box])
def test_label_is_the_value_with_most_weight_around(make, flat):
    image, label = make((9, 10, 11))
    matrix, offset = any_map(5, flat)
    size = (7, 8, 12)
    box_image, box_label, inside = in_its_box(image, label, matrix, offset, size)
    _, sets = run_resample(box_image, box_label, matrix, inside, size)
    padded = np.pad(label, 40, constant_values=3)
    weights = np.stack([
        ndimage.affine_transform((padded == value).astype(float), matrix, offset + 40, size, order=1)
        for value in range(len(TABLE))
    ])  # fmt: skip
    clear = (
        np.sort(weights, axis=0)[-1] - np.sort(weights, axis=0)[-2] > 1e-4
    )  # float32 may decide ties otherwise
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(sets[clear], TABLE[weights.argmax(axis=0)][clear])


@given(seed=st.integers(0, 10**6), size=st.tuples(*[st.integers(1, 40)] * 3))
@settings(max_examples=60, deadline=None)
def test_the_box_holds_every_position_and_the_voxel_after_it(seed, size):
    random = np.random.default_rng(seed)
    matrix, offset = random.uniform(-1.5, 1.5, (3, 3)), random.uniform(-50, 50, 3)
    start, box = box_of(matrix, offset, size)
    corners = np.array(list(itertools.product(*[(0, n - 1) for n in size])))
    positions = corners @ matrix.T + offset - start
    assert (positions >= 0).all()
    assert (np.floor(positions) + 1 <= box - 1).all()
    assert (positions.min(axis=0) < 2).all()
    assert (box - positions.max(axis=0) < 4).all()
