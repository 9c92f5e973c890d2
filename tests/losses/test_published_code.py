import numpy as np
import pytest
from keras import ops

from partialseg.losses import MarginalCrossEntropy
from partialseg.losses.published_code import PublishedCodeWithSummedLogits

#: Classes background, liver, spleen, pancreas, left kidney, right kidney.
LIVER_ONLY = np.array([[1, 0, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]], "uint8")
ALL = np.eye(6, dtype="uint8")


def samples(sets, num_samples=2, num_voxels=40, seed=0):
    """Samples of one dataset: label (row of `sets`), candidates and logits."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(sets), (num_samples, num_voxels))
    return label, sets[label], rng.normal(0, 2, (*label.shape, sets.shape[1])).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def softmax(logits):
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def mean_dice(truth, predicted):
    """Over the batch; mean over all classes but the first; `(batch, voxels, classes)`."""
    sums = [values.sum(axis=(0, 1))[1:] for values in (truth * predicted, truth, predicted)]
    return np.mean((2 * sums[0] + 1e-5) / (sums[1] + sums[2] + 1e-5))


def reference(label, sets, logits):
    """What the published code computes on a batch of one dataset: CE, minus Dice, exclusion Dice."""
    logits = logits.astype("float64")
    merged = softmax(logits @ sets.T)
    truth = np.eye(len(sets))[label]
    cross_entropy = -np.log((merged * truth).sum(axis=-1)).mean()
    return cross_entropy, -mean_dice(truth, merged), mean_dice(1 - sets[label], softmax(logits))


def test_summed_logits_are_not_summed_probabilities():
    logits = np.array([[-2.0, -3.0, 8.0, -4.0, -4.0, -4.0]])
    candidates = LIVER_ONLY[:1]
    summed = PublishedCodeWithSummedLogits().values(candidates, logits)["CE"]
    assert float(np.exp(-numpy(summed)[0])) == pytest.approx(0.047, abs=5e-4)
    paper = MarginalCrossEntropy()(candidates, logits)
    assert float(np.exp(-float(paper))) == pytest.approx(0.99998, abs=5e-6)


def test_liver_only_batch_is_what_the_published_code_computes():
    label, candidates, logits = samples(LIVER_ONLY)
    cross_entropy, minus_dice, exclusion = reference(label, LIVER_ONLY, logits)
    values = PublishedCodeWithSummedLogits().values(candidates, logits)
    assert numpy(values["CE"]).mean() == pytest.approx(cross_entropy, rel=1e-5)
    np.testing.assert_allclose(numpy(values["DC"]), [minus_dice] * 2, rtol=1e-5)
    np.testing.assert_allclose(numpy(values["eDC"]), [exclusion] * 2, rtol=1e-5)
    value = PublishedCodeWithSummedLogits()(candidates, logits)
    assert float(value) == pytest.approx(cross_entropy + minus_dice + 2 * exclusion, rel=1e-5)


def test_fully_annotated_batch_has_no_exclusion():
    label, candidates, logits = samples(ALL)
    cross_entropy, minus_dice, _ = reference(label, ALL, logits)
    value = PublishedCodeWithSummedLogits()(candidates, logits)
    assert float(value) == pytest.approx(cross_entropy + minus_dice, rel=1e-5)


def test_per_sample_dice_is_that_of_batches_of_one():
    label, candidates, logits = samples(LIVER_ONLY)
    values = PublishedCodeWithSummedLogits(batch=False).values(candidates, logits)
    alone = [reference(label[i : i + 1], LIVER_ONLY, logits[i : i + 1]) for i in range(2)]
    for term, expected in zip(("CE", "DC", "eDC"), zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(numpy(values[term]), expected, rtol=1e-5)


def test_in_a_mixed_batch_an_organ_is_scored_where_it_is_annotated():
    first, second = samples(ALL, num_samples=1), samples(LIVER_ONLY, num_samples=1, seed=1)
    candidates, logits = (np.concatenate(pair) for pair in zip(first[1:], second[1:], strict=True))
    p = [softmax(first[2].astype("float64"))[0], softmax(second[2].astype("float64") @ LIVER_ONLY.T)[0]]
    dice = []
    for organ in range(1, 6):
        pairs = [(first[0][0] == organ, p[0][:, organ])]
        pairs += [(second[0][0] == 1, p[1][:, 1])] if organ == 1 else []
        overlap = sum((truth * q).sum() for truth, q in pairs)
        dice.append((2 * overlap + 1e-5) / (sum(truth.sum() + q.sum() for truth, q in pairs) + 1e-5))
    values = PublishedCodeWithSummedLogits().values(candidates, logits)
    np.testing.assert_allclose(numpy(values["DC"]), [-np.mean(dice)] * 2, rtol=1e-5)
    exclusion = mean_dice(1 - second[1], softmax(second[2].astype("float64")))
    np.testing.assert_allclose(numpy(values["eDC"]), [exclusion] * 2, rtol=1e-5)


@pytest.mark.parametrize("batch", [False, True])
def test_ignored_voxels_have_no_loss_and_no_gradient(batch, value_and_gradient):
    _, candidates, logits = samples(LIVER_ONLY)
    loss = PublishedCodeWithSummedLogits(batch=batch)
    candidates[:, :7] = 1
    _, gradient = value_and_gradient(lambda x: loss(candidates, x), logits)
    assert (gradient[:, :7] == 0).all()
    assert (gradient[:, 7:] != 0).all()
    value, gradient = value_and_gradient(lambda x: loss(np.ones_like(candidates), x), logits)
    assert value == 0
    assert (gradient == 0).all()


def test_huge_logits_stay_finite(value_and_gradient):
    _, candidates, logits = samples(LIVER_ONLY)
    loss = PublishedCodeWithSummedLogits()
    value, gradient = value_and_gradient(lambda x: loss(candidates, x), 1e4 * np.sign(logits))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match=r"Received: exclusion=-1"):
        PublishedCodeWithSummedLogits(exclusion=-1)
