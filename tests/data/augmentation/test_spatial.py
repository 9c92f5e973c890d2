"""How patches are turned, scaled and mirrored."""

import numpy as np
import pydantic
import pytest

from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.augmentation.spatial import SpatialTransform, draw_spatial

SPACING = (3.0, 1.5, 1.0)
ALWAYS = {
    "rotation": {"probability": 1, "range": (-30, 30)},
    "scaling": {"probability": 1, "range": (0.7, 1.4)},
}


def draws(config, num=400, size=(32, 32, 32)):
    return [draw_spatial(config, size, np.random.default_rng(seed)) for seed in range(num)]


def test_turns_keep_lengths_and_angles_in_millimetres():
    matrix = SpatialTransform(degrees=(20, -10, 35)).matrix(SPACING)
    in_mm = matrix * np.array(SPACING)[:, np.newaxis] / np.array(SPACING)
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(in_mm) == pytest.approx(1)


def test_factor_is_that_of_the_field_of_view():
    assert np.linalg.det(SpatialTransform(factor=1.4).matrix(SPACING)) == pytest.approx(1.4**3)
    in_plane = SpatialTransform(degrees=(10, 0, 0), factor=1.4, in_plane=True).matrix(SPACING)
    assert np.linalg.det(in_plane) == pytest.approx(1.4**2)
    assert in_plane[0].tolist() == [1, 0, 0]
    assert in_plane[:, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("mirrored", [(False, False, False), (True, False, True), (False, True, False)])
def test_the_anchor_stays_at_its_place_but_for_mirroring(mirrored):
    size, anchor, at = (8, 9, 10), np.array([40.0, 50, 60]), np.array([2.0, 3, 4])
    transform = SpatialTransform((20, 5, -30), 0.8, mirrored)
    matrix, offset = transform.map(size, anchor, at, SPACING)
    place = np.where(mirrored, np.array(size) - 1 - at, at)
    np.testing.assert_allclose(matrix @ place + offset, anchor)


def test_nothing_drawn_is_a_plain_shift():
    matrix, offset = SpatialTransform().map((8, 9, 10), np.array([4.0, 5, 6]), np.array([1.0, 2, 3]), SPACING)
    np.testing.assert_array_equal(matrix, np.eye(3))
    np.testing.assert_array_equal(offset, [3, 3, 3])
    assert not SpatialTransform(mirrored=(True, True, True)).resamples


def test_draws_keep_to_probabilities_and_ranges():
    found = draws(AugmentationConfig(), 3000)
    turned = [transform for transform in found if any(transform.degrees)]
    scaled = [transform.factor for transform in found if transform.factor != 1]
    for num in (len(turned), len(scaled)):
        assert 0.2 - 0.037 < num / 3000 < 0.2 + 0.037  # five standard deviations
    degrees = np.array([transform.degrees for transform in turned])
    assert np.abs(degrees).max() <= 30
    assert (np.abs(degrees).max(axis=0) > 25).all()
    assert 0.7 <= min(scaled) < 0.75
    assert 1.35 < max(scaled) <= 1.4
    mirrored = np.mean([transform.mirrored for transform in found], axis=0)
    assert (np.abs(mirrored - 0.5) < 0.046).all()


def test_flat_patches_are_turned_in_their_planes_alone():
    found = draws(AugmentationConfig(**ALWAYS), 50, size=(48, 190, 190))
    assert all(transform.in_plane and transform.degrees[1:] == (0, 0) for transform in found)
    assert not any(t.in_plane for t in draws(AugmentationConfig(**ALWAYS), 5, size=(64, 190, 190)))
    assert not any(t.in_plane for t in draws(AugmentationConfig(in_plane=False), 5, size=(48, 190, 190)))


def test_one_transform_turned_off_leaves_the_draws_of_the_others():
    both = draws(AugmentationConfig(**ALWAYS))
    no_turns = draws(AugmentationConfig(**{**ALWAYS, "rotation": {"probability": 0, "range": (0, 0)}}))
    assert [t.factor for t in both] == [t.factor for t in no_turns]
    assert [t.mirrored for t in both] == [t.mirrored for t in no_turns]
    assert not any(any(t.degrees) for t in no_turns)


def test_only_the_axes_asked_for_are_mirrored():
    found = draws(AugmentationConfig(mirror={"probability": 1, "axes": ["y"]}), 5)
    assert {transform.mirrored for transform in found} == {(False, True, False)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"rotation": {"probability": 0.2, "range": (30, -30)}},
        {"rotation": {"probability": 1.2, "range": (-30, 30)}},
        {"scaling": {"probability": 0.2, "range": (0, 1)}},
        {"noise": {"probability": 0.2, "range": (-1, 1)}},
        {"low_resolution": {"probability": 0.2, "range": (0.5, 2)}},
        {"mirror": {"axes": ["x", "x"]}},
        {"window_hu": (300, -200)},
        {"rotations": None},
    ],
)
def test_wrong_configs_are_refused(wrong):
    with pytest.raises(pydantic.ValidationError):
        AugmentationConfig(**wrong)


def test_half_turns_are_refused_with_mirrors_that_would_make_left_of_right():
    turns = {"probability": 0.2, "range": (-180, 180)}
    with pytest.raises(pydantic.ValidationError, match="make left look like right"):
        AugmentationConfig(rotation=turns)
    assert AugmentationConfig(rotation=turns, mirror={"axes": ["x"]}).rotation.range == (-180, 180)
    assert AugmentationConfig(rotation=turns, mirror={"axes": ["z", "y"]}).mirror.axes == ("z", "y")
