import numpy as np
import pytest
from scipy import ndimage

from partialseg.data.augmentation.config import AugmentationConfig
from partialseg.data.augmentation.intensity import (
    TRANSFORMS,
    add_noise,
    apply_gamma,
    around_one,
    augment_intensity,
    blur,
    draw_strengths,
    lower_resolution,
    scale_brightness,
    scale_contrast,
)

SHAPE = (7, 20, 24)
#: Every transform by itself, with a strength that does much.
EACH = [
    pytest.param(lambda image: add_noise(image, 5.0, np.random.default_rng(0)), id="noise"),
    pytest.param(lambda image: blur(image, (1.0, 0.7, 0.5)), id="blur"),
    pytest.param(lambda image: scale_brightness(image, 1.2, 80.0), id="brightness"),
    pytest.param(lambda image: scale_contrast(image, 1.2), id="contrast"),
    pytest.param(lambda image: lower_resolution(image, 0.6, False), id="low resolution"),
    pytest.param(lambda image: lower_resolution(image, 0.6, True), id="low resolution in plane"),
    pytest.param(lambda image: apply_gamma(image, 1.4, False), id="gamma"),
    pytest.param(lambda image: apply_gamma(image, 0.7, True), id="inverted gamma"),
]


def random_image(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).uniform(-200, 300, shape).astype(np.float32)


def changed(image, change, *arguments):
    copy = image.copy()
    change(copy, *arguments)
    assert copy.dtype == np.float32
    return copy


def only(*names, **ranges):
    """A config in which these transforms always happen and the others never."""
    default = AugmentationConfig()
    sections = {
        name: {"probability": float(name in names), "range": ranges.get(name, getattr(default, name).range)}
        for name in TRANSFORMS
    }
    return AugmentationConfig(**sections)


def augmented(image, config, seed=0, in_plane=False):
    copy = image.copy()
    return augment_intensity(copy, config, in_plane, np.random.default_rng(seed)), copy


@pytest.mark.parametrize("change", EACH)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 9), (3, 1, 1), (2, 2, 3)])
def test_small_images_stay_finite(change, shape):
    assert np.isfinite(changed(random_image(shape), change)).all()


@pytest.mark.parametrize("change", EACH[1:])
@pytest.mark.parametrize("value", [0.0, 80.0, -1000.0])
def test_a_constant_image_stays_constant(change, value):
    image = np.full(SHAPE, value, np.float32)
    after = changed(image, change)
    expected = 80 + 1.2 * (value - 80) if change is EACH[2].values[0] else value
    np.testing.assert_allclose(after, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("change", EACH)
@pytest.mark.parametrize(
    "image",
    [
        np.zeros(SHAPE),
        np.zeros((20, 24), np.float32),
        np.zeros(SHAPE, np.float32)[:, :, ::2],
        np.zeros((0, 2, 3), np.float32),
    ],
    ids=["float64", "a plane", "strided", "empty"],
)
def test_what_cannot_be_changed_in_place_is_refused(change, image):
    with pytest.raises(ValueError, match="must be float32"):
        change(image)


def test_noise_has_the_moments_of_a_gaussian_within_five_standard_errors():
    noise = np.zeros((20, 101, 99), np.float32)
    add_noise(noise, 7.0, np.random.default_rng(3))
    unit, n = noise.astype(float) / 7, noise.size
    assert abs(unit.mean()) < 5 / n**0.5
    assert abs((unit**2).mean() - 1) < 5 * (2 / n) ** 0.5
    assert abs((unit**3).mean()) < 5 * (15 / n) ** 0.5
    assert abs((unit**4).mean() - 3) < 5 * (96 / n) ** 0.5
    for limit, share in [(1, 0.317311), (2, 0.045500), (3, 0.0026998)]:
        assert abs((abs(unit) > limit).mean() - share) < 5 * (share / n) ** 0.5


def test_noise_of_neighbours_and_of_the_halves_of_a_plane_is_unrelated():
    noise = np.zeros((20, 100, 100), np.float32)
    add_noise(noise, 1.0, np.random.default_rng(4))
    limit = 5 / noise.size**0.5 * 2
    for axis in range(3):
        assert abs((noise * np.roll(noise, 1, axis)).mean()) < limit
    assert abs((noise[:, :50] * noise[:, 50:]).mean()) < limit
    assert abs((noise[:, :50] ** 2 * noise[:, 50:] ** 2).mean() - 1) < 5 * 8**0.5 / (noise.size / 2) ** 0.5


def test_noise_is_added_to_every_voxel():
    image = random_image((3, 5, 7))
    difference = changed(image, add_noise, 10.0, np.random.default_rng(0)) - image
    alone = changed(np.zeros_like(image), add_noise, 10.0, np.random.default_rng(0))
    np.testing.assert_allclose(difference, alone, atol=1e-4)
    assert (alone != 0).all()


def test_noise_of_no_strength_changes_nothing():
    image = random_image()
    np.testing.assert_array_equal(changed(image, add_noise, 0.0, np.random.default_rng(0)), image)


@pytest.mark.parametrize("shape", [SHAPE, (1, 5, 4), (3, 2, 1)])
@pytest.mark.parametrize(("sigmas", "reach"), [((0.5, 0.5, 0.5), (1, 1, 1)), ((1.0, 0.75, 0.5), (3, 2, 1))])
def test_blur_equals_scipy(shape, sigmas, reach):
    image = random_image(shape)
    expected = image.astype(float)
    for axis in range(3):
        expected = ndimage.gaussian_filter1d(expected, sigmas[axis], axis, mode="mirror", radius=reach[axis])
    np.testing.assert_allclose(changed(image, blur, sigmas), expected, atol=1e-3)


def test_blur_of_no_width_changes_nothing():
    image = random_image()
    np.testing.assert_array_equal(changed(image, blur, (0, 0.01, 0.05)), image)


def test_blur_works_along_the_axis_it_names():
    image = np.zeros((5, 5, 5), np.float32)
    image[2, 2, 2] = 1
    after = changed(image, blur, (0, 0.5, 0))
    assert np.argwhere(after).tolist() == [[2, 1, 2], [2, 2, 2], [2, 3, 2]]
    assert after[2, 1, 2] == pytest.approx(np.exp(-2) / (1 + 2 * np.exp(-2)))


def test_brightness_scales_the_distance_from_the_mean_of_organs():
    image = random_image()
    expected = (image.astype(float) - 80) * 0.8 + 80
    np.testing.assert_allclose(changed(image, scale_brightness, 0.8, 80.0), expected, atol=1e-4)


def test_contrast_scales_the_distance_from_the_mean_within_the_range():
    image = random_image()
    mean = image.astype(float).mean()
    for factor in (0.75, 1.25):
        expected = np.clip((image - mean) * factor + mean, image.min(), image.max())
        after = changed(image, scale_contrast, factor)
        np.testing.assert_allclose(after, expected, atol=1e-3)
    assert after.min() == image.min()
    assert after.max() == image.max()


def test_factors_of_one_change_nothing():
    image = random_image()
    np.testing.assert_array_equal(changed(image, scale_brightness, 1.0, 80.0), image)
    np.testing.assert_array_equal(changed(image, scale_contrast, 1.0), image)
    np.testing.assert_array_equal(changed(image, lower_resolution, 1.0, False), image)


def lowered(image, factor, axes):
    """Nearest voxels at the centres of larger ones, then NumPy's linear interpolation, axis by axis."""
    image = image.astype(float)
    for axis in axes:
        size = image.shape[axis]
        coarse = max(1, round(size * factor))
        centres = (np.arange(coarse) + 0.5) * size / coarse
        sampled = np.take(image, np.floor(centres + 1e-9).astype(int), axis)
        image = np.apply_along_axis(
            lambda row, c=centres, n=size: np.interp(np.arange(n) + 0.5, c, row), axis, sampled
        )
    return image


@pytest.mark.parametrize("factor", [0.5, 0.63, 0.9, 0.01])
@pytest.mark.parametrize("in_plane", [False, True])
def test_low_resolution_equals_sampling_and_interpolation(factor, in_plane):
    image = random_image()
    expected = lowered(image, factor, (1, 2) if in_plane else (0, 1, 2))
    np.testing.assert_allclose(changed(image, lower_resolution, factor, in_plane), expected, atol=1e-3)


def test_low_resolution_in_plane_lets_no_plane_into_another():
    image = random_image()
    after = changed(image, lower_resolution, 0.6, True)
    image[3] += 100
    other = changed(image, lower_resolution, 0.6, True)
    assert np.flatnonzero((after != other).any(axis=(1, 2))).tolist() == [3]


def gamma_model(image, exponent):
    image = image.astype(float)
    low, high = image.min(), image.max()
    power = ((image - low) / (high - low)) ** exponent
    return (power - power.mean()) * image.std() / power.std() + image.mean()


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.5])
def test_gamma_equals_its_formula(exponent):
    image = random_image()
    np.testing.assert_allclose(
        changed(image, apply_gamma, exponent, False), gamma_model(image, exponent), atol=2e-3
    )


@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_inverted_gamma_is_gamma_of_the_negative(exponent):
    image = random_image()
    expected = -changed(-image, apply_gamma, exponent, False)
    after = changed(image, apply_gamma, exponent, True)
    np.testing.assert_allclose(after, expected, atol=1e-4)
    assert abs(after - changed(image, apply_gamma, exponent, False)).max() > 10


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_keeps_mean_and_standard_deviation(inverted):
    image = random_image() ** 2 / 300
    after = changed(image, apply_gamma, 1.5, inverted).astype(float)
    assert after.mean() == pytest.approx(image.astype(float).mean(), abs=1e-3)
    assert after.std() == pytest.approx(image.astype(float).std(), rel=1e-5)


def test_gamma_of_one_bright_voxel_stays_finite():
    image = np.zeros(SHAPE, np.float32)
    image[3, 4, 5] = 1e-38
    assert np.isfinite(changed(image, apply_gamma, 1.5, False)).all()


def test_around_one_half_of_the_strengths_are_below():
    shares = np.random.default_rng(0).random(20_000)
    strengths = np.array([around_one((0.7, 1.5), share) for share in shares])
    assert abs((strengths < 1).mean() - 0.5) < 5 * 0.5 / 20_000**0.5
    assert abs((strengths < 0.85).mean() - 0.25) < 5 * 0.5 / 20_000**0.5
    assert abs((strengths > 1.25).mean() - 0.25) < 5 * 0.5 / 20_000**0.5
    assert strengths.min() > 0.7
    assert strengths.max() < 1.5


@pytest.mark.parametrize("range", [(0.5, 0.8), (0.5, 1.0), (1.0, 1.4), (1.2, 1.4)])
def test_a_range_on_one_side_of_one_is_drawn_from_evenly(range):
    assert [around_one(range, share) for share in (0, 0.5, 0.75)] == pytest.approx(
        [range[0] + share * (range[1] - range[0]) for share in (0, 0.5, 0.75)]
    )


def test_each_transform_happens_as_often_as_its_probability_says():
    config, random, draws = AugmentationConfig(), np.random.default_rng(1), 4000
    counts = dict.fromkeys(TRANSFORMS, 0)
    for _ in range(draws):
        strengths = draw_strengths(config, random)
        for name, strength in strengths.items():
            counts[name] += 1
            low, high = getattr(config, name).range
            unit = config.std_hu if name == "noise" else 1
            assert all(unit * low <= value <= unit * high for value in strength)
    for name, count in counts.items():
        probability = getattr(config, name).probability
        assert abs(count / draws - probability) < 5 * (probability * (1 - probability) / draws) ** 0.5


def test_blur_draws_each_axis_by_itself():
    strength = draw_strengths(only("blur"), np.random.default_rng(0))["blur"]
    assert len(set(strength)) == 3


def test_probabilities_of_zero_leave_the_image_bit_for_bit():
    image = random_image()
    applied, after = augmented(image, only())
    assert applied == {}
    assert after.tobytes() == image.tobytes()


def test_probabilities_of_one_apply_all_in_order():
    image, config = random_image(), only(*TRANSFORMS)
    applied, after = augmented(image, config, seed=5, in_plane=True)
    assert tuple(applied) == TRANSFORMS
    random = np.random.default_rng(5)
    drawn = draw_strengths(config, random)
    expected = image.copy()
    add_noise(expected, drawn["noise"][0], np.random.Generator(np.random.SFC64(random.integers(2**63))))
    blur(expected, drawn["blur"])
    scale_brightness(expected, drawn["brightness"][0], config.mean_hu)
    scale_contrast(expected, drawn["contrast"][0])
    lower_resolution(expected, drawn["low_resolution"][0], True)
    apply_gamma(expected, drawn["inverted_gamma"][0], True)
    apply_gamma(expected, drawn["gamma"][0], False)
    np.testing.assert_array_equal(after, expected)
    assert applied["blur"] == pytest.approx(np.mean(drawn["blur"]))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_one_transform_alone_changes_the_image_and_is_named(name):
    image = random_image()
    applied, after = augmented(image, only(name))
    assert list(applied) == [name]
    assert abs(after - image).max() > 0.1


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    image, config = random_image(), only(*TRANSFORMS)
    first, second, other = (augmented(image, config, seed)[1].tobytes() for seed in (0, 0, 1))
    assert first == second
    assert first != other


@pytest.mark.parametrize("name", TRANSFORMS)
def test_turning_one_transform_off_leaves_the_draws_of_the_others(name):
    image, others = random_image(), [other for other in TRANSFORMS if other != name]
    everything, _ = augmented(image, only(*TRANSFORMS))
    without, _ = augmented(image, only(*others))
    assert without == {other: everything[other] for other in others}


def test_the_noise_of_voxels_is_the_same_whatever_else_happens():
    image = np.zeros(SHAPE, np.float32)
    noise = augmented(image, only("noise"))[1]
    both = augmented(image, only("noise", "brightness", brightness=(2, 2)))[1]
    np.testing.assert_allclose(both, 2 * noise - 80, atol=1e-4)


def test_what_is_drawn_from_the_generator_does_not_depend_on_what_happens():
    left = set()
    for config in (only(), only("noise"), only(*TRANSFORMS)):
        random = np.random.default_rng(0)
        augment_intensity(random_image(), config, False, random)
        left.add(random.integers(2**62))
    assert len(left) == 1
