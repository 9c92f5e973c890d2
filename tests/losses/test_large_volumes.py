"""Sums over millions of voxels keep their digits in float32, in every way of running.

A plain running sum does not: adding 0.2 a million times is wrong by a percent.
"""

import numpy as np
import pytest
from keras import ops

from partialseg.losses import PartialSupervision

TERMS = ("mCE", "mDC", "eCE", "eDC")
# Background, liver, spleen; liver alone is annotated. Five kinds of voxels, and how many there are of each.
CANDIDATES = np.array([[1, 0, 1], [1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]], np.uint8)
LOGITS = np.array([[0.0, 0, 0], [2.5, -1, 0.3], [-0.7, 0.9, 0.1], [0, 0.4, -0.2], [0.6, -1.5, 1]], "float32")
COUNTS = np.array([700_001, 650_003, 449_996, 150_000, 50_000])
SHAPE = (1, 40, 200, 250, 3)


def exact(logits):
    """The four terms from one voxel of each kind, in double precision, real or complex."""
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    liver = CANDIDATES[:, 1]
    merged = np.stack([1 - p[:, 1], p[:, 1]], axis=1)
    own = np.where(liver, merged[:, 1], merged[:, 0])
    overlap = [COUNTS @ (own * (1 - liver)), COUNTS @ (own * liver)]
    sizes = COUNTS @ (np.stack([1 - liver, liver], axis=1) + merged)
    excluded = 1 - CANDIDATES
    return {
        "mCE": -COUNTS @ np.log(own) / COUNTS.sum(),
        "mDC": (1 - 2 * np.array(overlap) / sizes).mean(),
        "eCE": COUNTS @ (excluded * np.log(1 + p)).sum(-1) / COUNTS.sum(),
        "eDC": (2 * (COUNTS @ (excluded * p)) / (COUNTS @ (excluded + p))).mean(),
    }


def test_two_million_voxels_in_float32_equal_double_precision(compiled, value_and_gradient, complex_step):
    candidates = ops.convert_to_tensor(np.repeat(CANDIDATES, COUNTS, axis=0).reshape(SHAPE))
    logits = ops.convert_to_tensor(np.repeat(LOGITS, COUNTS, axis=0).reshape(SHAPE))
    loss = PartialSupervision()
    values = compiled(loss.values)(candidates, logits)
    expected = exact(LOGITS.astype("float64"))
    for term in TERMS:
        assert float(values[term][0]) == pytest.approx(expected[term], rel=3e-6), term

    weights = dict(zip(TERMS, (1.0, 3.0, 5.0, 7.0), strict=True))
    total = compiled(lambda *args: sum(weights[term] * loss.values(*args)[term][0] for term in TERMS))
    _, gradient = value_and_gradient(lambda x: total(candidates, x), logits)
    of_each_kind = complex_step(lambda x: sum(weights[term] * exact(x)[term] for term in TERMS), LOGITS)
    last_of_each_kind = gradient.reshape(-1, 3)[np.cumsum(COUNTS) - 1]
    expected = of_each_kind / COUNTS[:, None]
    np.testing.assert_allclose(last_of_each_kind, expected, atol=1e-5 * np.abs(expected).max())
