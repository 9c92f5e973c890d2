"""The way back from a resampled grid, against SciPy's linear interpolation of the whole."""

import numpy as np
import pytest
from scipy import ndimage

from partialseg.data.resample import resampled_grid
from partialseg.data.resample_back import ScanLabels, resample_back


@pytest.fixture
def interpolated(positions):
    """A function: scores in the voxels of another grid, by SciPy."""

    def scores_in(scores, spacing, shape, original_spacing):
        where = positions(scores.shape[:3], spacing, shape, original_spacing)
        classes = (scores[..., c].astype(float) for c in range(scores.shape[-1]))
        return np.stack(
            [ndimage.map_coordinates(c, where, order=1, mode="nearest") for c in classes], axis=-1
        )

    return scores_in


def test_scores_go_back_to_the_scans_own_grid(grid, interpolated):
    shape, spacing, new_spacing = grid
    new_shape, _ = resampled_grid(shape, np.eye(4), spacing, new_spacing)
    scores = np.random.default_rng(4).normal(size=(*new_shape, 4)).astype(np.float32)
    whole = interpolated(scores, new_spacing, shape, spacing)
    clear = np.sort(whole)
    clear = clear[..., -1] - clear[..., -2] > 1e-3
    labels = resample_back(scores, new_spacing, shape, spacing)
    assert labels.shape == shape
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels[clear], whole.argmax(axis=-1)[clear])


def test_scores_of_each_plane_are_handed_over_in_turn(grid, interpolated):
    shape, spacing, new_spacing = grid
    new_shape, _ = resampled_grid(shape, np.eye(4), spacing, new_spacing)
    scores = np.random.default_rng(5).normal(size=(*new_shape, 3)).astype(np.float32)
    planes = []
    result = ScanLabels(new_shape, new_spacing, shape, spacing, lambda i, plane: planes.append((i, plane)))
    for plane in scores:
        result.add(plane)
    assert [index for index, _ in planes] == list(range(shape[0]))
    found = np.stack([plane for _, plane in planes])
    np.testing.assert_allclose(found, interpolated(scores, new_spacing, shape, spacing), atol=1e-5)


def test_a_large_organ_goes_back_at_its_size(interpolated):
    shape, spacing, new_spacing = (25, 60, 70), (5.0, 0.8, 0.8), (3.0, 1.5, 1.5)
    new_shape, _ = resampled_grid(shape, np.eye(4), spacing, new_spacing)
    z, y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(new_shape, new_spacing, strict=True))
    organ = (z[:, None, None] - 20) ** 2 + (y[:, None] + 10) ** 2 + (x - 8) ** 2 < 12**2
    scores = np.stack([~organ, organ], axis=-1).astype(np.float16)
    share = interpolated(scores, new_spacing, shape, spacing)[..., 1]
    clear = abs(share - 0.5) > 1e-3
    labels = resample_back(scores, new_spacing, shape, spacing)
    np.testing.assert_array_equal(labels[clear], share[clear] > 0.5)
    assert labels.sum() * np.prod(spacing) == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.05)


def test_scores_with_background_everywhere_give_background():
    assert not resample_back(np.eye(3)[np.zeros((2, 3, 4), dtype=int)], (2, 2, 2), (4, 6, 8), (1, 1, 1)).any()
