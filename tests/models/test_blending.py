"""Windows are added in threads: whoever asks for sums gets all of them, or the error."""

import time

import numpy as np
import pytest

from partialseg.models import blending
from partialseg.models.blending import CERTAIN, BlendedPlanes, softmax
from partialseg.models.sliding_window import predict_volume

SHAPE = (4, 3, 5)
CLASSES = 2
START = (0, 0, 0)
WEIGHTS = [np.ones(size, np.float32) for size in SHAPE]
RANDOM = np.random.default_rng(0)


def window():
    """Logits of a window."""
    return RANDOM.normal(0, 3, (*SHAPE, CLASSES)).astype(np.float32)


@pytest.fixture
def sums(monkeypatch):
    """Sums in which the first plane of the first window arrives long after all that is asked for next."""
    monkeypatch.setattr(blending, "usable_cores", lambda: SHAPE[0])  # a thread for each plane of the window
    add_window, waits = blending._add_window, [0.05]
    warm = BlendedPlanes(SHAPE, CLASSES, SHAPE)  # what Numba compiles now does not wait for it below
    warm.add(window(), START, WEIGHTS)
    warm.add_background(START, WEIGHTS)
    warm.softmax(warm.planes(), np.empty((*SHAPE, CLASSES), np.float32))

    def add_late(total, logits, planes, *more):
        if planes[0] == 0 and waits:
            time.sleep(waits.pop())
        add_window(total, logits, planes, *more)

    monkeypatch.setattr(blending, "_add_window", add_late)
    return BlendedPlanes(SHAPE, CLASSES, SHAPE)


def test_the_sums_are_of_the_whole_window(sums):
    first = window()
    sums.add(first, START, WEIGHTS)
    np.testing.assert_array_equal(sums.planes().copy(), first)


def test_a_plane_is_of_the_whole_window(sums):
    first = window()
    sums.add(first, START, WEIGHTS)
    np.testing.assert_array_equal(sums.plane(0).copy(), first[0])


def test_a_window_waits_for_the_one_before(sums):
    first, second = window(), window()
    sums.add(first, START, WEIGHTS)
    sums.add(second, START, WEIGHTS)
    np.testing.assert_array_equal(sums.planes().copy(), first + second)


def test_background_waits_for_the_window_before(sums):
    sums.planes()[:] = -1e9
    sums.add(np.full((*SHAPE, CLASSES), 1e9, np.float32), START, WEIGHTS)
    sums.add_background(START, WEIGHTS)
    # In the other order float32 would lose what background adds.
    np.testing.assert_array_equal(sums.planes()[..., 0], CERTAIN)


def test_planes_are_cleared_of_the_window_before(sums):
    sums.add(window(), START, WEIGHTS)
    sums.clear(range(SHAPE[0]))
    assert not sums.planes().any()


def test_probabilities_are_of_the_whole_window(sums):
    first, planes = window(), sums.planes()
    sums.add(first, START, WEIGHTS)
    found, expected = (np.empty((*SHAPE, CLASSES), np.float32) for _ in range(2))
    sums.softmax(planes, found)
    for plane, probabilities in zip(first, expected, strict=True):
        softmax(plane, probabilities)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_whole_window_is_checked(sums, value):
    first, planes = window(), sums.planes()
    first[0, 1, 2, 1] = value
    sums.add(first, START, WEIGHTS)
    with pytest.raises(FloatingPointError, match="not numbers"):
        sums.check(planes)


def test_an_error_in_a_thread_comes_out(monkeypatch):
    def fail(*_):
        raise MemoryError("no room for a window")

    monkeypatch.setattr(blending, "_add_window", fail)
    sums = BlendedPlanes(SHAPE, CLASSES, SHAPE)
    sums.add(window(), START, WEIGHTS)
    with pytest.raises(MemoryError, match="no room"):
        sums.planes()
    with pytest.raises(MemoryError, match="no room"):
        predict_volume(lambda hu: np.concatenate([hu, hu], axis=-1), np.zeros(SHAPE), SHAPE)


def test_a_class_that_is_certainly_not_there_is_no_error_and_a_voxel_without_any_is():
    plane = np.zeros((2, 3, CLASSES), np.float32)
    plane[1, 2, 0] = -np.inf
    np.testing.assert_array_equal(softmax(plane, np.empty_like(plane))[1, 2], [0, 1])
    BlendedPlanes(SHAPE, CLASSES, SHAPE).check([plane])
    plane[1, 2, 1] = -np.inf
    with pytest.raises(FloatingPointError, match="not numbers"):
        softmax(plane, np.empty_like(plane))
