import numpy as np
import pytest

from partialseg.data.phantom.anatomy import make_canvas
from partialseg.data.phantom.shapes import NoiseField, curve, ellipsoid, rotation, smooth_min, tube


def grid(step=1.0, reach=20.0):
    axis = np.arange(-reach, reach + step, step, dtype=np.float32)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return x, y, z


def test_an_ellipsoid_has_its_analytic_volume():
    volume = (ellipsoid(grid(), (0, 0, 0), (6, 10, 15)) < 0).sum()
    assert volume == pytest.approx(4 / 3 * np.pi * 6 * 10 * 15, rel=0.02)


def test_a_rotated_ellipsoid_keeps_its_volume():
    turned = rotation((20, 30, 40))
    volume = (ellipsoid(grid(), (0, 0, 0), (6, 10, 15), turned) < 0).sum()
    assert volume == pytest.approx(4 / 3 * np.pi * 6 * 10 * 15, rel=0.02)
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)


def test_a_straight_tube_has_the_volume_of_a_capsule():
    line, radii = curve([(-8, 0, 0), (0, 0, 0), (8, 0, 0)], [5, 5, 5])
    volume = (tube(grid(0.8), line, radii) < 0).sum() * 0.8**3
    assert volume == pytest.approx(np.pi * 25 * 16 + 4 / 3 * np.pi * 125, rel=0.02)


def test_a_curve_meets_its_points():
    points = [(0, 0, 0), (10, 5, 0), (20, -5, 3)]
    line, radii = curve(points, [3, 4, 5], 8)
    np.testing.assert_allclose(line[[0, 4, 8]], points, atol=1e-12)
    np.testing.assert_allclose(radii[[0, 4, 8]], [3, 4, 5], atol=1e-12)


def test_smooth_union_holds_both_shapes():
    a, b = ellipsoid(grid(), (-6, 0, 0), (5, 5, 5)), ellipsoid(grid(), (6, 0, 0), (5, 5, 5))
    union = smooth_min(a, b, 6.0)
    assert np.all(union <= np.minimum(a, b) + 1e-5)


def test_noise_has_unit_spread_and_does_not_depend_on_the_grid():
    noise = NoiseField(np.random.default_rng(0), (0, 0, 0), (300, 300, 300), 10.0)
    axis = np.arange(0, 300, 6.0)
    values = noise.on(axis, axis, axis)
    assert values.std() == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(noise.on(axis[::2], axis[1:3], axis), values[::2, 1:3], atol=1e-5)


def test_the_box_of_a_shape_holds_all_of_it_on_a_tilted_and_bent_grid():
    axes = tuple(np.arange(-90.0, 91.0, step) for step in (5.0, 4.0, 4.0))
    spine = (np.linspace(-10, 10, len(axes[0])), np.linspace(5, -5, len(axes[0])))
    canvas = make_canvas(axes, (8, -6, 10), 4.0, (1,), spine)
    inside = ellipsoid(canvas.points, (30, -10, 20), (25, 20, 30)) < 0
    box = canvas.box((5, -30, -10), (55, 10, 50))
    outside = inside.copy()
    outside[box] = False
    assert inside.any()
    assert not outside.any()


def test_the_box_of_a_shape_beyond_the_scan_is_none():
    axes = tuple(np.arange(0.0, 50.0, 5.0) for _ in range(3))
    canvas = make_canvas(axes, (0, 0, 0), 0.0, (1,))
    assert canvas.box((200, 200, 200), (220, 220, 220)) is None
