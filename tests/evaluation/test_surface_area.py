import itertools
import math

import numpy as np
import pytest

from partialseg.evaluation.surface_area import VOXELS, element_areas

SPACING_MM = (3.0, 1.7, 0.9)
#: From the table of surface-distance 0.1, of codes with 0 to 8 voxels inside.
PEER_SUMS = [0, 5.97, 52.27708135, 183.6641627, 326.24124405, 183.6641627, 52.27708135, 5.97, 0]


def code_of(inside):
    return sum(1 << number for number, voxel in enumerate(VOXELS) if inside[voxel])


def test_no_surface_has_no_area_and_every_other_element_has_one():
    areas = element_areas(SPACING_MM)
    assert areas.shape == (256,)
    assert areas[0] == areas[255] == 0
    assert (areas[1:255] > 0).all()


@pytest.mark.parametrize(
    ("inside", "area"),
    [
        ([(0, 0, 0)], math.sqrt(3) / 8),  # a corner cut off at the middle of its edges
        ([(0, 0, 0), (0, 0, 1)], math.sqrt(2) / 2),  # a rectangle, 1 by the diagonal of half a face
        ([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1)], 1),  # a face
        ([(0, 0, 0), (0, 1, 1)], 2 * math.sqrt(3) / 8),  # two corners that share no face
        ([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)], 6 * math.sqrt(3) / 8),  # a regular hexagon
    ],
)
def test_areas_in_a_cube_of_1_mm_are_known(inside, area):
    mask = np.zeros((2, 2, 2), bool)
    mask[tuple(zip(*inside, strict=True))] = True
    areas = element_areas((1, 1, 1))
    assert areas[code_of(mask)] == pytest.approx(area)
    assert areas[code_of(~mask)] == pytest.approx(area)


def test_turning_and_mirroring_the_voxels_changes_no_area():
    areas = element_areas(SPACING_MM)
    masks = np.array([[code >> number & 1 for number in range(8)] for code in range(256)], bool)
    for axes in itertools.permutations(range(3)):
        turned = element_areas([SPACING_MM[axis] for axis in axes])
        for flips in itertools.product((1, -1), repeat=3):
            step = tuple(slice(None, None, flip) for flip in flips)
            codes = [code_of(mask.reshape(2, 2, 2).transpose(axes)[step]) for mask in masks]
            np.testing.assert_allclose(turned[codes], areas)


def test_areas_are_those_of_deepminds_surface_distance():
    """Compared as sums, over the codes with as many voxels inside."""
    areas = element_areas(SPACING_MM)
    sums = [sum(areas[code] for code in range(256) if code.bit_count() == number) for number in range(9)]
    assert sums == pytest.approx(PEER_SUMS)
