import numpy as np
import pytest
from keras import ops

from partialseg.losses import MarginalCrossEntropy
from partialseg.losses.target_adaptive import TargetAdaptive


def softmax(logits):
    p = np.exp(logits.astype("float64"))
    return p / p.sum(axis=-1, keepdims=True)


def liver_and_kidneys(num_voxels=50):
    """Classes background, liver, spleen, left and right kidney; the spleen is not annotated; label, sets, logits."""
    rng = np.random.default_rng(0)
    label = rng.choice([0, 1, 3, 4], (2, num_voxels))
    candidates = np.eye(5, dtype="uint8")[label]
    candidates[label == 0] = [1, 0, 1, 0, 0]
    return label, candidates, rng.normal(0, 2, candidates.shape).astype("float32")


def test_background_is_what_the_annotated_organs_leave():
    label, candidates, logits = liver_and_kidneys()
    p = softmax(logits)
    annotated = p[..., 1] + p[..., 3] + p[..., 4]
    own = np.take_along_axis(p, label[..., np.newaxis], axis=-1)[..., 0]
    expected = -np.log(np.where(label == 0, 1 - annotated, own)).mean(axis=1)
    loss = TargetAdaptive(reduction="none")
    np.testing.assert_allclose(ops.convert_to_numpy(loss(candidates, logits)), expected, rtol=1e-5)
    values = loss.values(candidates, logits)
    assert list(values) == ["TAL"]
    np.testing.assert_allclose(ops.convert_to_numpy(values["TAL"]), expected, rtol=1e-5)


def test_it_is_the_marginal_cross_entropy_and_fully_annotated_the_plain_one():
    label, candidates, logits = liver_and_kidneys()
    assert float(TargetAdaptive()(candidates, logits)) == float(MarginalCrossEntropy()(candidates, logits))
    own = np.take_along_axis(softmax(logits), label[..., np.newaxis], axis=-1)
    plain = -np.log(own).mean()
    assert float(TargetAdaptive()(np.eye(5)[label], logits)) == pytest.approx(plain, rel=1e-5)


def test_probabilities_may_be_given():
    _, candidates, logits = liver_and_kidneys()
    value = TargetAdaptive(from_logits=False)(candidates, softmax(logits))
    assert float(value) == pytest.approx(float(TargetAdaptive()(candidates, logits)), rel=1e-5)


def test_what_background_and_unlabelled_organs_have_together_is_all_that_counts():
    _, candidates, logits = liver_and_kidneys()
    swapped = logits[..., [2, 1, 0, 3, 4]]
    value = TargetAdaptive()(candidates, swapped)
    assert float(value) == pytest.approx(float(TargetAdaptive()(candidates, logits)), rel=1e-6)


def test_huge_logits_stay_finite_and_ignored_voxels_have_no_gradient(value_and_gradient):
    _, candidates, logits = liver_and_kidneys()
    candidates[0] = 1
    value, gradient = value_and_gradient(lambda x: TargetAdaptive()(candidates, x), 1e4 * np.sign(logits))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).any()
