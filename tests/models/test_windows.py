"""Windows along an axis: as few as the overlap permits, and weights that sum to 1."""

import numpy as np
import pytest

from partialseg.models.windows import window_starts, window_weights


@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize(("size", "patch"), [(7, 7), (8, 7), (20, 7), (31, 6), (100, 48), (5, 1)])
def test_windows_cover_the_axis_and_weights_sum_to_one(size, patch, overlap):
    starts = window_starts(size, patch, overlap)
    assert starts[0] == 0
    assert starts[-1] == size - patch
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert np.ptp(steps) <= 1 if len(steps) else True
    assert (steps <= max(1, np.ceil(patch * (1 - overlap)))).all()
    total = np.zeros(size)
    for start, weights in zip(starts, window_weights(starts, size, patch), strict=True):
        total[start : start + patch] += weights
    np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_no_more_windows_than_needed():
    assert len(window_starts(48, 48, 0.5)) == 1
    assert len(window_starts(72, 48, 0.5)) == 2
    assert len(window_starts(73, 48, 0.5)) == 3
    assert len(window_starts(96, 48, 0)) == 2


def test_voxels_are_decided_by_the_window_in_which_they_lie_centrally():
    starts = window_starts(16, 8, 0.5)
    weights = window_weights(starts, 16, 8)
    assert weights[1, 3] > 0.99  # voxel 7 is in the middle of the second window, at the edge of the first
    assert weights[0, 7] < 0.01
