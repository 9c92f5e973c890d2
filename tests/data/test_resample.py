import numpy as np
import pytest
from scipy import ndimage, special

from partialseg.data.resample import (
    _lowest_share,
    resample_image,
    resample_label,
    resampled_grid,
)


def sphere(shape, spacing, radius_mm, off_centre_mm=(0, 0, 0)):
    axes = [
        (np.arange(n) - (n - 1) / 2) * s - c for n, s, c in zip(shape, spacing, off_centre_mm, strict=True)
    ]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    return z**2 + y**2 + x**2 < radius_mm**2


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_image_equals_scipy_cubic_spline(grid, dtype, positions):
    shape, spacing, new_spacing = grid
    image = np.random.default_rng(0).normal(0, 1000, shape).astype(dtype)
    new_shape, _ = resampled_grid(shape, np.eye(4), spacing, new_spacing)
    where = positions(shape, spacing, new_shape, new_spacing)
    expected = ndimage.map_coordinates(image.astype(float), where, order=3, mode="nearest")
    resampled = resample_image(image, spacing, new_spacing, antialias=False)
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, expected, atol=0.01)


def voxel_means(shape, spacing, width_mm=3.0, off_centre_mm=(3.0, -2.0, 1.5)):
    """The exact mean, over each voxel, of a Gaussian bump of 1000 HU in air."""
    means = 1.0
    for n, size, centre in zip(shape, spacing, off_centre_mm, strict=True):
        edges = ((np.arange(n + 1) - n / 2) * size - centre) / width_mm
        means = np.multiply.outer(means, np.diff(special.erf(edges)) * np.sqrt(np.pi) / 2 * width_mm / size)
    return 1000 * means - 1000


def test_larger_voxels_hold_the_true_means():
    shape, spacing, new_spacing = (30, 54, 60), (2.0, 1.2, 1.0), (3.0, 1.8, 2.0)
    image = voxel_means(shape, spacing)
    resampled = resample_image(image, spacing, new_spacing)
    assert resampled.dtype == np.float32
    expected = voxel_means(resampled.shape, new_spacing)
    assert np.abs(resampled - expected).max() < 4
    assert np.abs(resample_image(image, spacing, new_spacing, antialias=False) - expected).max() > 30


def test_larger_voxels_keep_the_sum_of_the_values():
    image = np.random.default_rng(5).normal(0, 1000, (12, 24, 30)).astype(np.float32)
    image[0] = image[-1] = image[:, 0] = image[:, -1] = image[..., 0] = image[..., -1] = 0
    spacing, new_spacing = (1.0, 1.0, 1.0), (3.0, 1.5, 1.2)
    image = np.pad(image, ((6, 6), (9, 9), (12, 12)))
    resampled = resample_image(image, spacing, new_spacing)
    assert resampled.sum() * np.prod(new_spacing) == pytest.approx(image.sum(dtype=float), abs=5)


def test_noise_goes_down_where_voxels_become_larger():
    noise = np.random.default_rng(6).normal(0, 20, (20, 80, 80)).astype(np.float32)
    spacing, new_spacing = (5.0, 0.8, 0.8), (5.0, 1.6, 1.6)
    assert resample_image(noise, spacing, new_spacing).std() < 11
    assert resample_image(noise, spacing, new_spacing, antialias=False).std() > 14


def test_only_the_axis_whose_voxels_become_larger_is_averaged():
    image = np.random.default_rng(7).normal(0, 1000, (10, 12, 30)).astype(np.float32)
    spacing, new_spacing = (5.0, 1.0, 0.8), (3.0, 1.0, 1.5)
    across = resample_image(image, (5, 1, 1), (3, 1, 1), antialias=False)
    both = resample_image(across, (3, 1, 0.8), new_spacing)
    np.testing.assert_allclose(resample_image(image, spacing, new_spacing), both, atol=0.01)


def test_slightly_larger_voxels_hardly_change_the_image():
    image = np.random.default_rng(8).normal(0, 100, (5, 6, 7)).astype(np.float32)
    resampled = resample_image(image, (1, 1, 1), (1.002, 1.002, 1.002))
    np.testing.assert_allclose(resampled, image, atol=5)


def test_image_and_label_are_the_same_when_spacing_is_unchanged():
    rng = np.random.default_rng(1)
    image = rng.normal(0, 1000, (5, 6, 7)).astype(np.float32)
    label = rng.integers(0, 4, (5, 6, 7)).astype(np.uint8)
    spacing = (2.5, 0.703125, 0.703125)
    read_back = tuple(float(np.float32(s * 1.0000001)) for s in spacing)
    np.testing.assert_array_equal(resample_image(image, spacing, read_back), image)
    np.testing.assert_array_equal(resample_label(label, spacing, read_back), label)


def test_grid_has_the_new_spacing_and_the_same_centre(grid):
    shape, spacing, new_spacing = grid
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing[::-1])
    affine[:3, 3] = (-120, 35, 900)
    new_shape, new_affine = resampled_grid(shape, affine, spacing, new_spacing)
    np.testing.assert_allclose(np.linalg.norm(new_affine[:3, :3], axis=0), new_spacing[::-1])
    np.testing.assert_allclose(
        new_affine @ [*((np.array(new_shape[::-1]) - 1) / 2), 1],
        affine @ [*((np.array(shape[::-1]) - 1) / 2), 1],
    )


def test_a_point_keeps_its_place_in_the_world():
    # The first coordinate of each voxel as its value: wherever a voxel comes to lie, it must hold its place.
    shape, spacing, new_spacing = (30, 40, 50), (2.0, 0.7, 0.9), (3.0, 1.5, 1.5)
    affine = np.diag([0.9, 0.7, 2.0, 1.0])
    affine[:3, 3] = (-10, 20, 300)
    new_shape, new_affine = resampled_grid(shape, affine, spacing, new_spacing)
    for axis in range(3):
        index = np.indices(shape)[axis]
        world = affine[2 - axis, 2 - axis] * index + affine[2 - axis, 3]
        new_index = np.indices(new_shape)[axis]
        expected = new_affine[2 - axis, 2 - axis] * new_index + new_affine[2 - axis, 3]
        # A ramp bends where its edge is continued.
        middle = tuple(slice(n // 4, -(n // 4)) for n in new_shape)
        np.testing.assert_allclose(
            resample_image(world, spacing, new_spacing)[middle], expected[middle], atol=0.01
        )


def test_constant_stays_constant():
    constant = np.full((7, 8, 9), -1000, dtype=np.int16)
    np.testing.assert_allclose(resample_image(constant, (5, 1, 1), (3, 1.5, 0.4)), -1000, atol=0.01)


def test_spacing_of_zero_is_refused():
    with pytest.raises(ValueError, match="above 0 mm"):
        resample_image(np.zeros((2, 2, 2)), (0, 1, 1), (3, 1.5, 1.5))


@pytest.mark.parametrize(
    ("spacing", "new_spacing"), [((5, 0.8, 0.8), (3, 1.5, 1.5)), ((3, 1.5, 1.5), (1.1, 0.7, 0.9))]
)
def test_sphere_keeps_volume_and_centre(spacing, new_spacing):
    shape = tuple(round(120 / s) for s in spacing)
    label = sphere(shape, spacing, 40, (5, -6, 7)).astype(np.uint8) * 4
    resampled = resample_label(label, spacing, new_spacing)
    expected = sphere(resampled.shape, new_spacing, 40, (5, -6, 7))
    assert set(np.unique(resampled)) == {0, 4}
    assert resampled.dtype == np.uint8
    assert (resampled == 4).sum() * np.prod(new_spacing) == pytest.approx(4 / 3 * np.pi * 40**3, rel=0.02)
    overlap = 2 * (expected & (resampled == 4)).sum() / (expected.sum() + (resampled == 4).sum())
    assert overlap > 0.97
    centre = np.array(ndimage.center_of_mass(resampled)) - (np.array(resampled.shape) - 1) / 2
    np.testing.assert_allclose(centre * new_spacing, (5, -6, 7), atol=0.1)


def mean_shares(label, spacing, new_spacing, num_values, samples=6):
    """Share of each value in each new voxel: its interpolated mask at many points, evenly over the voxel."""
    new_shape, _ = resampled_grid(label.shape, np.eye(4), spacing, new_spacing)
    axes = []
    for n, m, old, new in zip(label.shape, new_shape, spacing, new_spacing, strict=True):
        centres = (np.arange(m) - (m - 1) / 2) * new / old + (n - 1) / 2
        points = ((np.arange(samples) + 0.5) / samples - 0.5) * max(new / old, 1)
        axes.append((centres[:, None] + points).ravel())
    where = np.meshgrid(*axes, indexing="ij")
    blocks = [size for m in new_shape for size in (m, samples)]
    return np.stack(
        [
            ndimage.map_coordinates((label == v).astype(np.float32), where, order=1, mode="nearest")
            .reshape(blocks)
            .mean(axis=(1, 3, 5))
            for v in range(num_values)
        ]
    )


def test_largest_share_wins_and_the_line_to_background_keeps_the_volume():
    fields = np.random.default_rng(3).normal(size=(5, 20, 30, 30))
    label = np.stack([ndimage.gaussian_filter(field, 2) for field in fields]).argmax(axis=0)
    spacing, new_spacing = (2.0, 0.8, 1.1), (3.0, 1.5, 0.9)
    shares = mean_shares(label, spacing, new_spacing, 5)
    resampled = resample_label(label, spacing, new_spacing)
    ordered = np.sort(shares[1:], axis=0)
    leader = shares[1:].argmax(axis=0) + 1
    clear = (ordered[-1] - ordered[-2] > 0.03) & (resampled > 0)
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(resampled[clear], leader[clear])
    foreground = 1 - shares[0]
    for value in range(1, 5):
        kept, left = (resampled == value), (resampled == 0) & (leader == value)
        assert kept.sum() == pytest.approx(foreground[leader == value].sum(), rel=0.03)
        assert foreground[kept].min() > foreground[left & (ordered[-1] - ordered[-2] > 0.03)].max() - 0.03


@pytest.mark.parametrize("new_spacing", [(1, 1, 2), (2, 2, 2), (1, 1.875, 1.875), (3, 1.2, 1.2)])
def test_organ_keeps_its_volume(new_spacing):
    label = sphere((60, 60, 60), (1, 1, 1), 20, (0.3, -0.4, 0.2)).astype(np.uint8)
    volume = resample_label(label, (1, 1, 1), new_spacing).sum() * np.prod(new_spacing)
    assert volume == pytest.approx(label.sum(), rel=0.004)


@pytest.mark.parametrize("ratio", [1.4, 1.875, 2, 2.143, 3])
def test_flat_sheet_one_voxel_thin_remains_without_holes(ratio):
    for place in range(6, 12):
        label = np.zeros((3, 12, 18), dtype=np.uint8)
        label[..., place] = 2
        resampled = resample_label(label, (1, 1, 1), (1, 1, ratio))
        assert (resampled == 2).any(axis=2).all(), place
        assert (resampled == 2).sum() == 36, place


@pytest.mark.parametrize("spacing", [(5.0, 0.8, 0.8), (1.0, 0.7, 0.7), (1.5, 0.75, 0.75)])
def test_thin_tilted_sheet_and_tube_keep_their_volume(spacing):
    shape = tuple(round(60 / s) for s in spacing)
    z, y, x = (c * s - 30 for c, s in zip(np.indices(shape), spacing, strict=True))
    sheet = np.abs(0.2 * z + 0.4 * y + 0.9 * x) < spacing[2] / 2
    tube = (y - 0.3 * z) ** 2 + (x + 0.4 * z) ** 2 < (1.5 * spacing[2]) ** 2
    for mask in (sheet, tube):
        resampled = resample_label(mask.astype(np.uint8), spacing, (3.0, 1.5, 1.5))
        assert resampled.sum() * 6.75 == pytest.approx(mask.sum() * np.prod(spacing), rel=0.06)


def test_thin_organ_between_others_remains():
    label = np.full((8, 30, 30), 1, dtype=np.uint8)
    label[..., 16:] = 7
    label[..., 14:16] = 4
    resampled = resample_label(label, (1, 0.8, 0.8), (1, 1.5, 1.5))
    assert set(np.unique(resampled)) == {1, 4, 7}
    assert (resampled == 4).any(axis=2).all()
    assert resampled.all()


def test_values_next_to_each_other_leave_no_gap():
    label = np.zeros((20, 40, 40), dtype=np.uint8)
    label[:, 10:30, 10:20], label[:, 10:30, 20:30] = 1, 9
    resampled = resample_label(label, (1, 0.8, 0.8), (1, 1.5, 1.5))
    filled = (resampled > 0).astype(int)
    assert (np.abs(np.diff(filled, axis=2)).sum(axis=2) <= 2).all()


def test_value_between_two_samples_is_left_out():
    label = np.zeros((1, 1, 9), dtype=np.uint8)
    label[..., 4] = 1
    assert not resample_label(label, (1, 1, 1), (1, 1, 4)).any()


def test_shares_that_rounding_takes_beyond_one_leave_nothing_out():
    shares = np.full(10**7, np.nextafter(np.float32(1), np.float32(2)))
    assert _lowest_share(shares) <= 1


def test_empty_label_map_stays_empty():
    assert not resample_label(np.zeros((4, 4, 4), dtype=np.uint8), (1, 1, 1), (2, 2, 2)).any()


def test_negative_label_is_refused():
    with pytest.raises(ValueError, match="-1"):
        resample_label(np.full((2, 2, 2), -1), (1, 1, 1), (2, 2, 2))
