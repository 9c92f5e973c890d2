import numpy as np
import pytest
from keras import ops

from partialseg.losses.masked_sigmoid import MaskedSigmoid, _organs

#: Classes background, liver, spleen, left kidney, right kidney.
LIVER_ONLY = [[1, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
ALL = np.eye(5, dtype=int).tolist()
SIDE_UNSURE = [*ALL, [0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]


def batch_of(*label_sets, num_voxels=40, seed=0):
    """One sample for each list of sets; candidates and logits."""
    rng = np.random.default_rng(seed)
    drawn = [np.array(sets)[rng.integers(0, len(sets), num_voxels)] for sets in label_sets]
    candidates = np.stack(drawn).astype("uint8")
    return candidates, rng.normal(0, 2, candidates.shape).astype("float32")


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def answer(candidates, organ):
    """1 or 0 where the voxel is known to be, or not to be, the organ; None where it is not known."""
    if not 0 < sum(candidates) < len(candidates):
        return None
    if not candidates[organ]:
        return 0
    return 1 if sum(candidates) == 1 else None


def organ_is_annotated(sample, organ):
    known = [v for v in sample if 0 < sum(v) < len(v)]
    return bool(known) and not any(v[0] and v[organ] for v in known)


def reference(sample, logits):
    """Binary cross-entropy, and per annotated organ the three sums of Dice."""
    losses, sums = [], {}
    for organ in range(1, len(sample[0])):
        overlap = truth = predicted = 0.0
        for candidates, z in zip(sample, logits.astype("float64"), strict=True):
            if (known := answer(candidates, organ)) is not None:
                p = 1 / (1 + np.exp(z[0] - z[organ]))
                losses.append(-np.log(p if known else 1 - p))
                overlap, truth, predicted = overlap + known * p, truth + known, predicted + p
        if organ_is_annotated(sample, organ):
            sums[organ] = np.array([overlap, truth, predicted])
    return np.mean(losses) if losses else 0.0, sums


def dice_losses(sums):
    return [1 - 2 * overlap / (truth + predicted + 1e-7) for overlap, truth, predicted in sums.values()]


@pytest.mark.parametrize("class_reduction", ["mean", "sum"])
def test_values_are_those_of_a_loop_over_voxels_and_organs(class_reduction):
    candidates, logits = batch_of(ALL, LIVER_ONLY, SIDE_UNSURE, [[1] * 5])
    values = MaskedSigmoid(class_reduction=class_reduction).values(candidates, logits)
    expected = [reference(*sample) for sample in zip(candidates, logits, strict=True)]
    assert [list(sums) for _, sums in expected] == [[1, 2, 3, 4], [1], [1, 2, 3, 4], []]
    np.testing.assert_allclose(numpy(values["BCE"]), [bce for bce, _ in expected], rtol=1e-5)
    reduce = {"mean": lambda losses: sum(losses) / max(len(losses), 1), "sum": sum}[class_reduction]
    np.testing.assert_allclose(
        numpy(values["DC"]), [reduce(dice_losses(sums)) for _, sums in expected], rtol=1e-5
    )
    loss = MaskedSigmoid(class_reduction=class_reduction, reduction="none")(candidates, logits)
    np.testing.assert_allclose(numpy(loss), numpy(values["BCE"]) + numpy(values["DC"]), rtol=1e-6)


def test_batch_dice_adds_the_sums_of_the_samples_that_annotate_an_organ():
    candidates, logits = batch_of(ALL, LIVER_ONLY, [[1] * 5])
    (_, first), (_, second), _ = (reference(*sample) for sample in zip(candidates, logits, strict=True))
    together = {organ: sums + second.get(organ, 0) for organ, sums in first.items()}
    values = MaskedSigmoid(batch=True).values(candidates, logits)
    np.testing.assert_allclose(numpy(values["DC"]), [np.mean(dice_losses(together))] * 3, rtol=1e-5)


def test_two_classes_are_the_binary_cross_entropy_of_one_sigmoid():
    rng = np.random.default_rng(0)
    label, logits = rng.integers(0, 2, (1, 30)), rng.normal(0, 2, (1, 30, 2))
    p = 1 / (1 + np.exp(logits[..., 0] - logits[..., 1]))
    expected = -np.mean(np.where(label == 1, np.log(p), np.log(1 - p)))
    values = MaskedSigmoid().values(np.eye(2)[label], logits)
    assert float(values["BCE"][0]) == pytest.approx(expected, rel=1e-5)


def test_the_largest_logit_is_the_largest_sigmoid_above_one_half_else_background():
    candidates, logits = batch_of(ALL, num_voxels=1000)
    sigmoids = numpy(ops.sigmoid(_organs(candidates, logits, from_logits=True).logits))
    chosen = np.where(sigmoids.max(axis=-1) > 0.5, 1 + sigmoids.argmax(axis=-1), 0)
    assert (logits.argmax(axis=-1) == chosen).all()


def test_what_is_not_known_has_no_gradient(value_and_gradient):
    candidates, logits = batch_of(LIVER_ONLY, SIDE_UNSURE)
    _, gradient = value_and_gradient(lambda x: MaskedSigmoid()(candidates, x), logits)
    masked = np.array([[[answer(v, n) is None for n in range(5)] for v in sample] for sample in candidates])
    assert (gradient[..., 1:][masked[..., 1:]] == 0).all()
    assert (gradient[..., 1:][~masked[..., 1:]] != 0).all()
    ignored = candidates.all(axis=-1)
    assert ignored.any()
    assert (gradient[ignored] == 0).all()


def test_an_unlabelled_organ_learns_from_another_organ_that_it_is_not_there(value_and_gradient):
    _, gradient = value_and_gradient(lambda x: MaskedSigmoid()([LIVER_ONLY], x), np.zeros((1, 2, 5)))
    background_voxel, liver_voxel = gradient[0]
    assert (background_voxel[2:] == 0).all()
    assert (liver_voxel[2:] > 0).all()


@pytest.mark.parametrize("batch", [False, True])
def test_huge_logits_stay_finite(batch, value_and_gradient):
    candidates, logits = batch_of(LIVER_ONLY, SIDE_UNSURE)
    loss = MaskedSigmoid(batch=batch)
    value, gradient = value_and_gradient(lambda x: loss(candidates, x), 1e4 * np.sign(logits))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    right = 1e4 * (2.0 * np.eye(5)[None] - 1)
    right[..., 0] = 0  # sigmoids are of the difference from background
    assert float(loss(np.eye(5)[None], right)) == pytest.approx(0, abs=1e-6)


def test_probabilities_may_be_given():
    candidates, logits = batch_of(LIVER_ONLY, ALL)
    expected = float(MaskedSigmoid()(candidates, logits))
    value = MaskedSigmoid(from_logits=False)(candidates, ops.softmax(logits))
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="must have the same shape"):
        MaskedSigmoid().call(np.ones((1, 4, 3)), np.ones((1, 5, 3)))
