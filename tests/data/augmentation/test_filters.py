import numpy as np
import pytest
from scipy import ndimage

from partialseg.data.augmentation.filters import coarse_taps, filter_axes, gaussian_taps, no_taps

SHAPES = [(5, 9, 13), (1, 7, 6), (2, 1, 9), (6, 3, 1), (1, 1, 1), (48, 17, 33)]


def random_image(shape, seed=0):
    return np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32)


def dense(taps):
    """The filter as a matrix, summed up from its taps."""
    size = len(taps.indices)
    matrix = np.zeros((size, size))
    for voxel in range(size):
        for index, weight in zip(taps.indices[voxel], taps.weights[voxel], strict=True):
            matrix[voxel, index] += weight
    return matrix


def filtered_by_matrices(image, taps):
    z, y, x = map(dense, taps)
    return np.einsum("az,by,cx,zyx->abc", z, y, x, image.astype(float))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigmas", [(1.0, 1.0, 1.0), (0.5, 0.8, 1.3), (2.5, 0.3, 2.0)])
def test_gaussian_taps_equal_products_with_matrices(shape, sigmas):
    image = random_image(shape)
    taps = [gaussian_taps(size, sigma) for size, sigma in zip(shape, sigmas, strict=True)]
    expected = filtered_by_matrices(image, taps)
    filter_axes(image, taps)
    np.testing.assert_allclose(image, expected, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_coarse_taps_equal_products_with_matrices(shape):
    image = random_image(shape)
    taps = [coarse_taps(size, max(1, round(0.6 * size))) for size in shape]
    expected = filtered_by_matrices(image, taps)
    filter_axes(image, taps)
    np.testing.assert_allclose(image, expected, atol=1e-3)


def test_taps_far_ahead_and_far_behind_see_the_planes_as_they_were():
    image = random_image((6, 4, 5))
    turned = no_taps(6)._replace(indices=np.arange(6)[::-1, None])
    expected = image[::-1].copy()
    filter_axes(image, [turned, no_taps(4), no_taps(5)])
    np.testing.assert_array_equal(image, expected)


def test_no_taps_leave_the_image_bit_for_bit():
    image = random_image((3, 4, 5))
    before = image.copy()
    filter_axes(image, [no_taps(size) for size in image.shape])
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("sigma", "taps"),
    [(0, 1), (0.1, 1), (0.25, 3), (0.5, 3), (0.58, 3), (0.6, 5), (0.9, 5), (0.92, 7), (1, 7), (2, 13)],
)
def test_a_gaussian_has_the_odd_number_of_taps_nearest_to_six_sigma_and_a_half(sigma, taps):
    assert gaussian_taps(40, sigma).weights.shape == (40, taps)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, 2.2])
def test_gaussian_taps_equal_scipy_with_its_mirrored_ends(size, sigma):
    taps = gaussian_taps(size, sigma)
    expected = np.eye(size)
    if sigma:
        reach = taps.indices.shape[1] // 2
        expected = ndimage.gaussian_filter1d(expected, sigma, axis=0, mode="mirror", radius=reach)
    np.testing.assert_allclose(dense(taps), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "coarse"), [(1, 1), (2, 1), (4, 2), (7, 5), (48, 36), (160, 97), (160, 160)]
)
def test_coarse_taps_equal_sampling_and_numpy_interpolation(size, coarse):
    row = np.random.default_rng(size).normal(size=size)
    sampled = row[[int((place + 0.5) * size / coarse + 1e-9) for place in range(coarse)]]
    centres = (np.arange(coarse) + 0.5) * size / coarse
    expected = np.interp(np.arange(size) + 0.5, centres, sampled)
    np.testing.assert_allclose(dense(coarse_taps(size, coarse)) @ row, expected, atol=1e-6)


def test_coarse_taps_of_all_voxels_are_the_voxels():
    np.testing.assert_array_equal(dense(coarse_taps(9, 9)), np.eye(9))
