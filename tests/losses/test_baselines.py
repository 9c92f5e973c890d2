import numpy as np
import pytest
from keras import ops

from partialseg.losses import PartialSupervision
from partialseg.losses.baselines import IgnoreBackground, NaiveBackground

BOTH = pytest.mark.parametrize("make", [NaiveBackground, IgnoreBackground])
#: Classes background, liver, spleen, left kidney, right kidney.
LIVER_ONLY = [[1, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
ALL = np.eye(5, dtype="uint8").tolist()


def batch_of(*label_sets, seed=0):
    """One sample of 60 voxels for each list of sets; candidates and logits."""
    rng = np.random.default_rng(seed)
    candidates = np.stack([np.array(sets, "uint8")[rng.integers(0, len(sets), 60)] for sets in label_sets])
    return candidates, rng.normal(0, 2, candidates.shape).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def plain_losses(candidates, logits, counted):
    """Cross-entropy and soft Dice of one sample as in a textbook, `counted` voxels alone."""
    p = np.exp(logits.astype("float64"))
    p /= p.sum(axis=-1, keepdims=True)
    cross_entropy = -np.log((p * candidates).sum(-1)[counted]).sum() / len(logits)
    truth, p = candidates[counted], p[counted]
    return cross_entropy, np.mean(1 - 2 * (truth * p).sum(0) / (truth.sum(0) + p.sum(0) + 1e-7))


@BOTH
def test_fully_annotated_is_plain_cross_entropy_plus_soft_dice(make):
    candidates, logits = batch_of(ALL)
    values = make().values(candidates, logits)
    expected = plain_losses(candidates[0], logits[0], np.ones(60, bool))
    np.testing.assert_allclose([numpy(values["CE"])[0], numpy(values["DC"])[0]], expected, rtol=1e-5)
    np.testing.assert_allclose(float(make()(candidates, logits)), sum(expected), rtol=1e-5)


def test_naive_is_plain_cross_entropy_plus_soft_dice_with_unlabelled_organs_as_background():
    candidates, logits = batch_of(LIVER_ONLY)
    liver = candidates[0, :, 1] > 0
    label = np.eye(5)[liver.astype(int)]
    values = NaiveBackground().values(candidates, logits)
    expected = plain_losses(label, logits[0], np.ones(60, bool))
    np.testing.assert_allclose([numpy(values["CE"])[0], numpy(values["DC"])[0]], expected, rtol=1e-5)


def test_ignore_counts_the_voxels_of_the_annotated_organ_alone():
    candidates, logits = batch_of(LIVER_ONLY)
    values = IgnoreBackground().values(candidates, logits)
    expected = plain_losses(candidates[0], logits[0], candidates[0, :, 1] > 0)
    np.testing.assert_allclose([numpy(values["CE"])[0], numpy(values["DC"])[0]], expected, rtol=1e-5)


@BOTH
def test_classes_merged_without_background_stay_merged(make):
    kidney = [0, 0, 0, 1, 1]
    candidates, logits = batch_of([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], kidney])
    marginal = PartialSupervision(terms=("mCE", "mDC"))
    np.testing.assert_allclose(
        float(make()(candidates, logits)), float(marginal(candidates, logits)), rtol=1e-6
    )


def test_naive_teaches_that_a_likely_unlabelled_organ_is_background_and_ignore_does_not(value_and_gradient):
    candidates, logits = np.array([[LIVER_ONLY[0], LIVER_ONLY[1]]]), np.zeros((1, 2, 5))
    logits[0, 0, 2] = 3.0
    _, naive = value_and_gradient(lambda x: NaiveBackground()(candidates, x), logits)
    _, ignore = value_and_gradient(lambda x: IgnoreBackground()(candidates, x), logits)
    assert naive[0, 0, 2] > 0.1
    assert naive[0, 0, 0] < -0.1
    assert (ignore[0, 0] == 0).all()
    assert ignore[0, 1, 1] < -0.1


@BOTH
@pytest.mark.parametrize("batch", [False, True])
def test_ignored_voxels_have_no_loss_and_no_gradient(make, batch, value_and_gradient):
    candidates, logits = batch_of([[1] * 5], [[0] * 5])
    value, gradient = value_and_gradient(lambda x: make(batch=batch)(candidates, x), logits)
    assert value == 0
    assert (gradient == 0).all()


@BOTH
def test_huge_logits_stay_finite(make, value_and_gradient):
    candidates, logits = batch_of(LIVER_ONLY, ALL)
    value, gradient = value_and_gradient(lambda x: make()(candidates, x), 1e4 * np.sign(logits))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_options_reach_the_regular_losses():
    candidates, logits = batch_of(ALL, ALL)
    options = {"class_reduction": "sum", "include_background": False, "batch": True}
    expected = PartialSupervision(terms=("mCE", "mDC"), **options)(candidates, logits)
    probabilities = ops.softmax(logits)
    for make in (NaiveBackground, IgnoreBackground):
        np.testing.assert_allclose(float(make(**options)(candidates, logits)), float(expected), rtol=1e-6)
        loss = make(from_logits=False, **options)
        np.testing.assert_allclose(float(loss(candidates, probabilities)), float(expected), rtol=1e-5)
        with pytest.raises(ValueError, match="Received: class_reduction='max'"):
            make(class_reduction="max")
