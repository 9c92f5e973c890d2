import numpy as np
import pytest

from partialseg.evaluation.nearest import REACH, nearest_distances
from partialseg.evaluation.surfaces import Surface


def in_rows(mask):
    counts = mask.sum(axis=2).ravel()
    columns = np.argwhere(mask)[:, 2].astype(np.int32)
    return Surface(np.concatenate([[0], np.cumsum(counts)]), columns, np.zeros(0, np.uint8))


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (5.0, 0.7, 0.8), (0.4, 3.0, 6.0)])
@pytest.mark.parametrize("density", [0.001, 0.05, 0.5])
def test_distances_are_the_least_over_all_pairs(density, spacing_mm):
    random = np.random.default_rng(int(1000 * density))
    first, second = random.random((2, 9, 14, 17)) < density
    first[8, 13, 16] = second[random.integers(9), 0, 0] = True
    places = [np.argwhere(mask) * spacing_mm for mask in (first, second)]
    expected = np.linalg.norm(places[0][:, None] - places[1], axis=2).min(axis=1)
    found = nearest_distances(in_rows(first), in_rows(second), 14, spacing_mm)
    np.testing.assert_allclose(found, expected)


def test_a_point_beyond_the_rows_that_are_searched_is_found():
    size = 2 * int(REACH**0.5)
    first, second = np.zeros((2, size, size, 3), bool)
    first[0, 0, 0] = first[size - 1, 0, 0] = second[size - 1, size - 2, 2] = second[size - 1, 1, 2] = True
    found = nearest_distances(in_rows(first), in_rows(second), size, (1, 1, 1))
    np.testing.assert_allclose(found, [((size - 1) ** 2 + 1 + 4) ** 0.5, 5**0.5])


def test_a_long_row_is_searched_on_both_sides():
    first, second = np.zeros((2, 1, 1, 100), bool)
    first[..., 50], second[..., :44], second[..., 60:] = True, True, True
    assert nearest_distances(in_rows(first), in_rows(second), 1, (1, 1, 2)).tolist() == [14]
