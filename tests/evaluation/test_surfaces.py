import numpy as np
import pytest
from scipy import ndimage

from partialseg.evaluation.surface_area import VOXELS
from partialseg.evaluation.surfaces import count_voxels, organ_boxes, surface_corners, surface_voxels


def random_label(shape, share=0.6, seed=0):
    random = np.random.default_rng(seed)
    return ((random.random(shape) < share) * random.integers(1, 4, shape)).astype(np.uint8)


def whole(label):
    return np.array([(0, 0, 0), label.shape])


def points(surface, height):
    """Rows as a list of (z, y, x)."""
    rows = np.repeat(np.arange(len(surface.starts) - 1), np.diff(surface.starts))
    return np.stack([rows // height, rows % height, surface.columns], axis=1)


def test_boxes_are_those_of_scipy_and_an_absent_value_has_none():
    label = np.zeros((9, 10, 11), np.uint8)
    label[2:4, 3:5, 10], label[0, 0, 0], label[8, 9, 4:6], label[5, 5, 5] = 1, 3, 1, 200
    boxes = organ_boxes(label, 3)
    for value, box in enumerate(ndimage.find_objects(label, 3), 1):
        if box is None:
            assert not boxes[value, 1].any()
        else:
            assert boxes[value].T.tolist() == [[ends.start, ends.stop] for ends in box]


def test_voxels_of_both_are_counted_within_the_box():
    first, second = random_label((7, 8, 9)), random_label((7, 8, 9), seed=1)
    part = (slice(1, 6), slice(2, 8), slice(0, 5))
    box = np.array([[ends.start for ends in part], [ends.stop for ends in part]])
    a, b = first[part] == 2, second[part] == 2
    assert count_voxels(first, second, 2, box) == (a.sum(), b.sum(), (a & b).sum())


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 6, 7), (30, 30, 30)])
def test_surface_voxels_are_what_erosion_takes_away(shape):
    label = random_label(shape, share=0.95)
    for value in (1, 2, 3):
        mask = label == value
        expected = mask & ~ndimage.binary_erosion(mask)
        found = points(surface_voxels(label, value, whole(label), 3), shape[1])
        assert found.tolist() == np.argwhere(expected).tolist()


def test_a_solid_block_has_its_outer_voxels_as_surface_also_at_the_border():
    label = np.ones((4, 5, 6), np.uint8)
    assert len(surface_voxels(label, 1, whole(label), 3).columns) == 4 * 5 * 6 - 2 * 3 * 4


def test_neighbours_along_axes_that_do_not_count_make_no_surface():
    label = np.ones((1, 5, 6), np.uint8)
    numbers = [len(surface_voxels(label, 1, whole(label), axes).columns) for axes in (1, 2, 3)]
    assert numbers == [5 * 2, 5 * 6 - 3 * 4, 5 * 6]


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 1, 1), (25, 25, 25)])
def test_surface_corners_see_the_eight_voxels_around(shape):
    label = random_label(shape, share=1.0)
    label.flat[0] = 1
    padded = np.pad(label == 1, 1)
    codes = np.zeros(tuple(size + 1 for size in shape), int)
    for number, voxel in enumerate(VOXELS):
        part = tuple(slice(step, step + size) for step, size in zip(voxel, codes.shape, strict=True))
        codes += padded[part].astype(int) << number
    mixed = (codes > 0) & (codes < 255)
    found = surface_corners(label, 1, whole(label))
    assert points(found, shape[1] + 1).tolist() == np.argwhere(mixed).tolist()
    assert found.codes.tolist() == codes[mixed].tolist()


def test_points_are_told_within_the_box():
    label = np.zeros((8, 8, 8), np.uint8)
    label[3:6, 4:7, 5:8] = 7
    box = organ_boxes(label, 7)[7]
    assert len(surface_voxels(label, 7, box, 3).columns) == 26
    corners = points(surface_corners(label, 7, box), 4)
    assert len(corners) == 4**3 - 2**3
    assert (corners.min(), corners.max()) == (0, 3)
