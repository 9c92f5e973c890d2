"""Leaf-Dice and label-set Dice, on whichever backend of Keras is set."""

import keras
import numpy as np
import pytest
from keras import ops

from partialseg.losses.label_set_dice import LabelSetDice, LeafDice

BOTH = pytest.mark.parametrize("make", [LeafDice, LabelSetDice])
#: Classes background, liver, spleen, left kidney, right kidney.
LIVER_ONLY = [[1, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
#: All annotated, but for a kidney whose side is not told.
SIDE_UNSURE = [*np.eye(5, dtype=int).tolist(), [0, 0, 0, 1, 1]]


def sample(sets, num_voxels=60, seed=0):
    """Candidates `(1, voxels, classes)` drawn from some sets, and logits."""
    rng = np.random.default_rng(seed)
    sets = np.array(sets)
    candidates = sets[rng.integers(0, len(sets), num_voxels)][np.newaxis]
    return candidates, rng.normal(0, 2, candidates.shape).astype("float32")


def batch_of_label_sets():
    """Three samples: all annotated, the liver alone, and the side of a kidney not told everywhere."""
    parts = [sample(sets, seed=seed) for seed, sets in enumerate((np.eye(5), LIVER_ONLY, SIDE_UNSURE))]
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def moved_within_the_sets(candidates, logits, seed=1):
    """Probabilities that give every set what the logits give it, in another way."""
    before = softmax(logits.astype("float64"))
    after = np.random.default_rng(seed).uniform(0.1, 1, before.shape)
    for inside in (candidates, 1 - candidates):
        ambiguous = (candidates.sum(axis=-1, keepdims=True) > 1) & (inside is candidates)
        scale = (before * inside).sum(-1, keepdims=True) / np.maximum(
            (after * inside).sum(-1, keepdims=True), 1e-9
        )
        after = np.where(inside > 0, np.where(ambiguous, after * scale, before), after)
    return after


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def soft_dice_loss(truth, predicted, exponent):
    """Mean over the classes, `(voxels, classes)`."""
    overlap = 2 * (truth * predicted).sum(axis=0)
    return np.mean(1 - overlap / ((truth**exponent).sum(axis=0) + (predicted**exponent).sum(axis=0) + 1e-7))


@BOTH
@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("batch", [False, True])
def test_all_annotated_gives_the_mean_class_soft_dice(make, exponent, batch):
    candidates, logits = (
        np.concatenate(x) for x in zip(*(sample(np.eye(5), seed=s) for s in (0, 1)), strict=True)
    )
    truth, predicted = candidates.astype("float64"), softmax(logits.astype("float64"))
    if batch:
        expected = soft_dice_loss(truth.reshape(-1, 5), predicted.reshape(-1, 5), exponent)
    else:
        expected = [soft_dice_loss(*pair, exponent) for pair in zip(truth, predicted, strict=True)]
    values = numpy(make(exponent=exponent, batch=batch, reduction=None)(candidates, logits))
    assert values.shape == (2,)
    np.testing.assert_allclose(values, np.broadcast_to(expected, 2), rtol=1e-5)


def test_leaf_dice_is_the_formula_of_the_paper():
    candidates, logits = sample(LIVER_ONLY)
    alone = candidates[0] * (candidates[0].sum(axis=-1, keepdims=True) == 1)
    expected = soft_dice_loss(alone, softmax(logits)[0], 2)
    np.testing.assert_allclose(float(LeafDice()(candidates, logits)), expected, rtol=1e-5)


def test_label_set_dice_is_the_soft_dice_of_averages():
    candidates, logits = sample(LIVER_ONLY)
    truth = candidates[0] / candidates[0].sum(axis=-1, keepdims=True)
    predicted = softmax(logits)[0]
    for voxel, row in enumerate(candidates[0]):
        predicted[voxel, row == 1] = predicted[voxel, row == 1].mean()
    np.testing.assert_allclose(
        float(LabelSetDice()(candidates, logits)), soft_dice_loss(truth, predicted, 2), rtol=1e-5
    )


@BOTH
@pytest.mark.parametrize("options", [{}, {"exponent": 1}, {"batch": True}, {"cross_entropy": 1.0}])
def test_probability_may_move_within_a_voxels_set(make, options):
    candidates, logits = batch_of_label_sets()
    moved = moved_within_the_sets(candidates, logits)
    assert np.abs(moved - softmax(logits)).max() > 0.1
    loss = make(from_logits=False, reduction=None, **options)
    np.testing.assert_allclose(
        numpy(loss(candidates, moved)), numpy(loss(candidates, softmax(logits))), rtol=1e-5
    )


@BOTH
def test_probability_may_not_move_out_of_a_voxels_set(make):
    candidates, logits = sample(LIVER_ONLY)
    more_liver = logits + np.array([0, 1, 0, 0, 0], "float32") * (candidates[..., :1] == 1)
    assert float(make()(candidates, more_liver)) > float(make()(candidates, logits)) + 1e-3


def test_with_exponent_2_the_right_sets_cost_nothing():
    candidates, _ = sample(SIDE_UNSURE)
    right = np.where(candidates > 0, 0, -50).astype("float32")
    assert float(LabelSetDice()(candidates, right)) == pytest.approx(0, abs=1e-5)
    assert float(LabelSetDice(exponent=1)(candidates, right)) > 0.01


@BOTH
@pytest.mark.parametrize("empty", [0, 1], ids=["none possible", "all possible"])
def test_ignored_voxels_are_left_out(make, empty):
    candidates, logits = batch_of_label_sets()
    rng = np.random.default_rng(3)
    padding = np.full((3, 20, 5), empty)
    with_padding = np.concatenate([candidates, padding], axis=1)
    more = np.concatenate([logits, rng.normal(size=padding.shape).astype("float32")], axis=1)
    loss = make(reduction=None)
    np.testing.assert_allclose(numpy(loss(with_padding, more)), numpy(loss(candidates, logits)), rtol=1e-6)
    assert numpy(make(cross_entropy=1.0, reduction=None)(padding, more[:, -20:])).tolist() == [0, 0, 0]


@BOTH
def test_ignored_samples_do_not_touch_the_batch_dice(make):
    candidates, logits = batch_of_label_sets()
    rest = np.concatenate([candidates, np.ones_like(candidates)]), np.concatenate([logits, logits])
    loss = make(batch=True)
    assert float(loss(*rest)) == pytest.approx(float(loss(candidates, logits)), rel=1e-6)


@BOTH
@pytest.mark.parametrize("cross_entropy", [0.0, 1.0])
def test_gradient_within_a_set_has_the_direction_of_the_probabilities(
    make, cross_entropy, value_and_gradient
):
    """The loss depends on the set's probability q alone: d/dlogit_n = p_n (a - b) for all n of the set."""
    candidates, logits = sample(LIVER_ONLY, num_voxels=8)
    loss = make(cross_entropy=cross_entropy)
    _, grad = value_and_gradient(lambda logits: loss(candidates, logits), logits)
    merged = candidates[0, :, 0] == 1
    assert 0 < merged.sum() < merged.size
    inside = [0, 2, 3, 4]
    per_probability = grad[0, merged][:, inside] / softmax(logits)[0, merged][:, inside]
    spread = np.ptp(per_probability, axis=-1)
    np.testing.assert_allclose(spread, 0, atol=1e-4 * np.abs(per_probability).max())
    np.testing.assert_allclose(grad.sum(axis=-1), 0, atol=1e-6 * np.abs(grad).max())


@BOTH
def test_gradient_is_zero_where_ignored(make, value_and_gradient):
    candidates, logits = sample(LIVER_ONLY, num_voxels=6)
    candidates[0, :2] = 1
    loss = make(cross_entropy=1.0)
    _, grad = value_and_gradient(lambda logits: loss(candidates, logits), logits)
    assert np.abs(grad[0, 2:]).max() > 1e-2
    np.testing.assert_array_equal(grad[0, :2], 0)


@BOTH
@pytest.mark.parametrize("exponent", [1, 2])
def test_large_logits_stay_finite(make, exponent, value_and_gradient):
    candidates, logits = batch_of_label_sets()
    loss = make(cross_entropy=1.0, exponent=exponent)
    value, gradient = value_and_gradient(lambda x: loss(candidates, x), np.sign(logits) * 1e4)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@BOTH
def test_cross_entropy_is_that_of_the_set(make):
    candidates, logits = sample(LIVER_ONLY)
    q = (softmax(logits) * candidates).sum(axis=-1)
    values = make(cross_entropy=0.5).values(candidates, logits)
    np.testing.assert_allclose(numpy(values["mCE"]), -np.log(q).mean(axis=1), rtol=1e-5)
    total = numpy(values[make.term]) + 0.5 * numpy(values["mCE"])
    np.testing.assert_allclose(float(make(cross_entropy=0.5)(candidates, logits)), total[0], rtol=1e-6)


@BOTH
def test_classes_are_summed_or_background_left_out(make):
    candidates, logits = sample(np.eye(5))
    total = float(make(class_reduction="sum")(candidates, logits))
    assert total == pytest.approx(5 * float(make()(candidates, logits)), rel=1e-5)
    organs = float(make(class_reduction="sum", include_background=False)(candidates, logits))
    assert organs == pytest.approx(
        total - soft_dice_loss(candidates[0, :, :1], softmax(logits)[0, :, :1], 2), rel=1e-5
    )


@BOTH
def test_config_makes_the_same_loss(make):
    loss = make(1.5, 1, False, "sum", False, True, "sum", "mine")
    config = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is make
    assert again.get_config() == loss.get_config()
    assert keras.saving.get_registered_name(make) == f"partialseg>{make.__name__}"


@BOTH
@pytest.mark.parametrize("wrong", [{"exponent": 3}, {"cross_entropy": -1}, {"class_reduction": "max"}])
def test_wrong_arguments_are_refused(make, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**wrong)


@BOTH
def test_shapes_that_differ_are_refused(make):
    with pytest.raises(ValueError, match="same shape"):
        make()(np.ones((1, 4, 3)), np.ones((1, 5, 3)))


@BOTH
def test_training_lowers_it(make):
    candidates, _ = batch_of_label_sets()
    image = candidates.astype("float32") @ np.arange(5, dtype="float32")[:, np.newaxis]
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((60, 1)), keras.layers.Dense(16, "relu"), keras.layers.Dense(5)])
    model.compile(optimizer=keras.optimizers.Adam(0.03), loss=make(cross_entropy=1.0))
    history = model.fit(image, candidates, batch_size=3, epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]
