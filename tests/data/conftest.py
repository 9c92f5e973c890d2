"""Fixtures of tests of the data: grids, and where the voxels of one lie in another."""

import numpy as np
import pytest


@pytest.fixture(
    params=[
        pytest.param(((9, 31, 24), (5.0, 0.8, 0.8), (3.0, 1.5, 1.5)), id="up across, down in plane"),
        pytest.param(((40, 21, 10), (0.5, 3.0, 2.0), (3.0, 1.5, 1.5)), id="down across, up in plane"),
        pytest.param(((1, 7, 13), (2.5, 1.0, 1.0), (3.0, 1.5, 1.5)), id="one slice"),
        pytest.param(((20, 1, 2), (0.5, 1.0, 1.0), (3.0, 0.6, 0.4)), id="one row, two columns"),
        pytest.param(((2, 3, 4), (9.0, 9.0, 9.0), (1.0, 2.0, 3.0)), id="far up"),
        pytest.param(((5, 6, 7), (3.0, 1.5, 1.5), (3.0, 1.5, 1.5)), id="the same"),
    ]
)
def grid(request):
    """Shape and spacing of a volume, and another spacing."""
    return request.param


@pytest.fixture
def positions():
    """A function: where the voxels of a grid lie, as indices in another with the same centre."""

    def of_grid(shape, spacing, new_shape, new_spacing):
        axes = [
            (np.arange(m) - (m - 1) / 2) * new / old + (n - 1) / 2
            for n, m, old, new in zip(shape, new_shape, spacing, new_spacing, strict=True)
        ]
        return np.meshgrid(*axes, indexing="ij")

    return of_grid
