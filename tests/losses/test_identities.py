"""What holds for each of the losses of the paper, whatever the numbers are."""

import keras
import numpy as np
import pytest
from keras import ops

from partialseg.losses import (
    ExclusionCrossEntropy,
    ExclusionDice,
    MarginalCrossEntropy,
    MarginalDice,
    PartialSupervision,
)

LOSSES = [MarginalCrossEntropy, MarginalDice, ExclusionCrossEntropy, ExclusionDice, PartialSupervision]
# Classes background, liver, spleen, pancreas, left kidney, right kidney; liver alone is annotated.
MERGED_BACKGROUND, LIVER = [1, 0, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]
SPLEEN_SEEN = np.array([[-2.0, -3.0, 8.0, -4.0, -4.0, -4.0]], "float32")


def test_spleen_seen_in_merged_background_is_no_mistake():
    # Of the probabilities of eq. 4 the sum is 0.99998; of a softmax after adding up the logits it is 0.047.
    loss = MarginalCrossEntropy()
    assert np.exp(-float(loss([MERGED_BACKGROUND], SPLEEN_SEEN))) == pytest.approx(0.99998, abs=5e-6)
    values = PartialSupervision().values([MERGED_BACKGROUND], SPLEEN_SEEN)
    liver = 1 / np.exp(SPLEEN_SEEN[0] + 3).sum()
    assert float(values["mCE"][0]) == pytest.approx(-np.log1p(-liver), abs=2e-7)
    assert float(values["eCE"][0]) == pytest.approx(np.log1p(liver), rel=1e-5)


def test_all_annotated_is_plain_cross_entropy_and_soft_dice_in_any_mixture_of_samples():
    rng = np.random.default_rng(0)
    label, logits = rng.integers(0, 6, (2, 300)), rng.normal(0, 2, (2, 300, 6)).astype("float32")
    candidates = np.eye(6, dtype=np.uint8)[label]
    values = PartialSupervision().values(candidates, logits)
    p = ops.convert_to_numpy(ops.softmax(logits)).astype("float64")
    dice = 2 * (p * candidates).sum(1) / (p.sum(1) + candidates.sum(1, dtype=float))
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")(label, logits)
    np.testing.assert_allclose(values["mCE"], ops.mean(plain, axis=1), rtol=1e-6)
    np.testing.assert_allclose(values["mDC"], (1 - dice).mean(-1), rtol=1e-6)
    np.testing.assert_array_equal(values["eCE"], [0, 0])
    np.testing.assert_array_equal(values["eDC"], [0, 0])


@pytest.mark.parametrize("batch", [False, True])
def test_permuting_unannotated_organs_leaves_value_and_follows_in_the_gradient(batch, value_and_gradient):
    rng, order = np.random.default_rng(1), [3, 1, 5, 0, 2, 4]
    candidates = np.array([MERGED_BACKGROUND, LIVER, [1] * 6])[rng.integers(0, 3, (2, 12))]
    logits = rng.normal(0, 3, (2, 12, 6)).astype("float32")
    for term in ("mCE", "mDC"):
        loss = PartialSupervision(terms=[term], batch=batch)
        value, gradient = value_and_gradient(lambda x, loss=loss: loss(candidates, x), logits)
        moved, moved_gradient = value_and_gradient(
            lambda x, loss=loss: loss(candidates, x), logits[..., order]
        )
        assert moved == pytest.approx(value, rel=1e-6)
        np.testing.assert_allclose(moved_gradient, gradient[..., order], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("ignored", [0, 1])
def test_all_ignored_is_exactly_zero_with_zero_gradient(make, from_logits, ignored, value_and_gradient):
    predictions = np.random.default_rng(0).dirichlet(np.ones(3), (2, 4))
    loss = make(from_logits=from_logits)
    value, gradient = value_and_gradient(lambda x: loss(np.full((2, 4, 3), ignored), x), predictions)
    assert value == 0
    assert not gradient.any()


EXTREMES = {
    "high": np.full((4, 3), 1e4),
    "low": np.full((4, 3), -1e4),
    "mixed": np.array([[1e4, -1e4, 1e4], [1e4, -1e4, 0], [-1e4, 1e4, -1e4], [1e4, 0, -1e4]]),
    "mixed, other signs": -np.array([[1e4, -1e4, 1e4], [1e4, -1e4, 0], [-1e4, 1e4, -1e4], [1e4, 0, -1e4]]),
    "right beyond doubt": np.array([[1e4, -1e4, 1e4], [-1e4, 1e4, -1e4], [-1e4, -1e4, 1e4], [0, 0, 1e4]]),
    "wrong beyond doubt": np.array([[-1e4, 1e4, -1e4], [1e4, -1e4, 1e4], [1e4, 1e4, -1e4], [0, 0, -1e4]]),
}


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_logits_of_ten_thousand_give_finite_values_and_gradients(make, extreme, dtype, value_and_gradient):
    partial = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1], [1, 1, 1]])
    merged_organs = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 1], [1, 1, 1]])
    full = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    candidates = np.stack([partial, merged_organs, full])
    logits = np.broadcast_to(EXTREMES[extreme], candidates.shape)
    for batch in [False, True] if "Dice" in make.__name__ else [False]:
        loss = make(batch=batch) if batch else make()
        value, gradient = value_and_gradient(lambda x, loss=loss: loss(candidates, x), logits, dtype)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert 0 <= value <= 6e4
        assert np.abs(gradient).max() <= 3


def test_wrong_beyond_doubt_is_exact_in_every_way_of_running(compiled, value_and_gradient):
    # One voxel of liver, one of background or spleen, each taken for the other beyond doubt.
    candidates, logits = np.array([[[0, 1, 0], [1, 0, 1]]]), [[[1e4, -1e4, -1e4], [-1e4, 1e4, -1e4]]]
    loss = PartialSupervision()
    value, gradient = value_and_gradient(compiled(lambda x: loss(candidates, x)), logits)
    cross_entropies = [2e4 / 2 + (2e4 - np.log(2)) / 2, 2 * np.log(2)]
    dice = [1, 2 * (2 * 1 / (1 + 1) + 2 * 1 / (1 + 1)) / 3]  # background is in the liver, liver in background
    assert value == pytest.approx(sum(cross_entropies + dice), rel=1e-6)
    np.testing.assert_allclose(gradient, [[[0.5, -0.5, 0], [-0.25, 0.5, -0.25]]], atol=1e-6)


def test_far_wrong_voxel_costs_its_logit_in_every_way_of_running(compiled, value_and_gradient):
    loss = MarginalCrossEntropy()
    cost = compiled(lambda x: loss(np.array([[1, 0, 1]]), x))
    value, gradient = value_and_gradient(cost, [[-1e4, 1e4, -1e4]])
    assert value == pytest.approx(2e4 - np.log(2), rel=1e-6)
    np.testing.assert_allclose(gradient, [[-0.5, 1, -0.5]], atol=1e-6)


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_not_taken_for_ignored(make, wrong):
    logits = np.zeros((1, 3, 4, 3), "float32")
    logits[0, 1, 2, 1] = wrong
    candidates = np.broadcast_to(np.array([1, 0, 1], np.uint8), logits.shape)
    assert np.isnan(float(make()(candidates, logits)))


@pytest.mark.parametrize("make", LOSSES)
def test_one_class_is_refused(make):
    with pytest.raises(ValueError, match=r"at least one organ. Received: y_pred.shape=\(2, 4, 1\)"):
        make()(np.ones((2, 4, 1)), np.zeros((2, 4, 1)))
