import keras
import numpy as np
import pytest
from keras import ops

from partialseg.losses import MarginalCrossEntropy, MarginalDice

LOSSES = [MarginalCrossEntropy, MarginalDice]
rng = np.random.default_rng(0)


def logits_of(*shape, scale=2.0):
    return rng.normal(0, scale, shape).astype("float32")


def one_hot(*shape, num_classes):
    return np.eye(num_classes, dtype=np.uint8)[rng.integers(0, num_classes, shape)]


def test_unannotated_organ_is_free_inside_merged_background():
    background_or_spleen = np.array([[1, 0, 1]])  # background, liver, spleen
    loss = MarginalCrossEntropy(from_logits=False)
    for probabilities in ([0.1, 0.2, 0.7], [0.7, 0.2, 0.1]):
        value = loss(background_or_spleen, np.array([probabilities]))
        assert float(value) == pytest.approx(-np.log(0.8), rel=1e-6)


@pytest.mark.parametrize("shape", [(5,), (5, 7), (3, 4, 5), (2, 3, 4, 5)])
def test_all_annotated_is_plain_cross_entropy(shape):
    logits, candidates = logits_of(2, *shape, 6), one_hot(2, *shape, num_classes=6)
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)(candidates, logits)
    assert float(MarginalCrossEntropy()(candidates, logits)) == pytest.approx(float(plain), abs=1e-6)


@pytest.mark.parametrize("class_reduction", ["mean", "sum"])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
def test_all_annotated_is_plain_soft_dice(class_reduction, batch, include_background):
    logits, candidates = logits_of(2, 4, 5, 6, 4), one_hot(2, 4, 5, 6, num_classes=4)
    p = ops.convert_to_numpy(ops.softmax(logits)).astype("float64")
    axes = (0, 1, 2, 3) if batch else (1, 2, 3)
    dice = 2 * (p * candidates).sum(axes) / (p.sum(axes) + candidates.sum(axes, dtype=float))
    per_class = (1 - dice)[..., 0 if include_background else 1 :]
    expected = per_class.mean(-1) if class_reduction == "mean" else per_class.sum(-1)
    loss = MarginalDice(
        class_reduction=class_reduction, batch=batch, include_background=include_background, reduction="none"
    )
    np.testing.assert_allclose(loss(candidates, logits), np.broadcast_to(expected, 2), rtol=1e-6, atol=1e-6)


def test_absent_class_has_dice_loss_one():
    candidates = np.array([[[1, 0, 0], [0, 1, 0]]])
    perfect = candidates.astype("float32")
    assert float(MarginalDice(from_logits=False)(candidates, perfect)) == pytest.approx(1 / 3, abs=1e-5)


def test_merged_class_counts_once():
    # Background and spleen merged: 2 classes, not 3. Each has overlap 1.5 of truth 2 and prediction 2.
    candidates = np.array([[[1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]]])
    probabilities = np.array([[[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 1, 0], [0.25, 0.5, 0.25]]])
    for class_reduction, expected in [("sum", 0.5), ("mean", 0.25)]:
        loss = MarginalDice(from_logits=False, class_reduction=class_reduction)
        assert float(loss(candidates, probabilities)) == pytest.approx(expected, abs=1e-6)


def test_batch_dice_adds_the_merged_backgrounds_of_different_samples():
    # Sample 0 merges background with class 2, sample 1 with class 1.
    candidates = np.array([[[1, 0, 1], [0, 1, 0]], [[1, 1, 0], [0, 0, 1]]])
    probabilities = np.array([[[0.2, 0.4, 0.4], [0, 1, 0]], [[0.5, 0.3, 0.2], [0.5, 0.1, 0.4]]])
    background = 1 - 2 * (0.6 + 0.8) / (2 + 0.6 + 1.4)
    class_1 = 1 - 2 * 1.0 / (1 + 1.4)
    class_2 = 1 - 2 * 0.4 / (1 + 0.6)
    loss = MarginalDice(from_logits=False, class_reduction="sum", batch=True, reduction="none")
    expected = background + class_1 + class_2
    np.testing.assert_allclose(loss(candidates, probabilities), [expected, expected], rtol=1e-6)


def test_gradient_is_the_closed_form_of_equation_8(value_and_gradient, finest_dtype):
    candidates = np.array([[[1, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 0, 1]]])
    logits = logits_of(1, 4, 5).astype("float64")
    logits[0, 3] = [-30, 30, 0, 0, -31]  # q is about exp(-60)
    loss = MarginalCrossEntropy(dtype=finest_dtype)
    _, gradient = value_and_gradient(lambda x: loss(candidates, x), logits, finest_dtype)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    q = (p * candidates).sum(axis=-1, keepdims=True)
    precision = 20 * np.finfo(finest_dtype).eps
    expected = np.where(candidates, p * (1 - 1 / q), p)
    np.testing.assert_allclose(gradient * 4, expected, rtol=precision, atol=precision / 100)


@pytest.mark.parametrize("make", LOSSES)
def test_permuting_unannotated_organs_changes_nothing(make):
    candidates = np.array([1, 0, 1, 1, 0, 1])[None, None].repeat(20, axis=1)
    candidates[0, 15:] = [0, 1, 0, 0, 0, 0]
    candidates[0, 10:15] = [0, 0, 0, 0, 1, 0]
    logits = logits_of(1, 20, 6)
    expected, loss = make()(candidates, logits), make()
    for order in ([2, 1, 0, 3, 4, 5], [5, 1, 3, 2, 4, 0]):
        assert float(loss(candidates, logits[..., order])) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("options", [{}, {"from_logits": False}])
def test_all_ignored_is_exactly_zero_with_zero_gradient(make, options, value_and_gradient):
    candidates = np.ones((2, 4, 3), np.uint8)
    probabilities = ops.softmax(logits_of(2, 4, 3))
    value, gradient = value_and_gradient(lambda x: make(**options)(candidates, x), probabilities)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("make", LOSSES)
def test_ignored_voxels_have_no_gradient_and_leave_dice_alone(make, value_and_gradient):
    known, logits = one_hot(1, 6, num_classes=4), logits_of(1, 9, 4)
    candidates = np.concatenate([known, np.ones((1, 3, 4), np.uint8)], axis=1)
    value, gradient = value_and_gradient(lambda x: make()(candidates, x), logits)
    assert not gradient[:, 6:].any()
    assert gradient[:, :6].any()
    share = 6 / 9 if make is MarginalCrossEntropy else 1  # the voxel mean is over all voxels
    assert value == pytest.approx(share * float(make()(known, logits[:, :6])), rel=1e-5)


def test_far_wrong_voxel_costs_its_logit(value_and_gradient):
    value, gradient = value_and_gradient(
        lambda x: MarginalCrossEntropy()([[1, 0, 1]], x), [[-1e4, 1e4, -1e4]]
    )
    assert value == pytest.approx(2e4, rel=1e-4)
    np.testing.assert_allclose(gradient, [[-0.5, 1, -0.5]], atol=1e-6)


@pytest.mark.parametrize("make", LOSSES)
def test_label_sets_mixed_in_a_batch_equal_the_samples_one_by_one(make):
    candidates = one_hot(3, 8, num_classes=4)
    candidates[1, candidates[1, :, 1] == 0] = [1, 0, 1, 1]
    candidates[2, candidates[2, :, 3] == 0] = [1, 1, 1, 0]
    logits = logits_of(3, 8, 4)
    loss = make(reduction="none")
    one_by_one = [float(loss(candidates[i : i + 1], logits[i : i + 1])[0]) for i in range(3)]
    np.testing.assert_allclose(loss(candidates, logits), one_by_one, rtol=1e-6)


def test_unknown_class_reduction_is_refused():
    with pytest.raises(ValueError, match=r"'mean', 'sum'.*Received: class_reduction='average'"):
        MarginalDice(class_reduction="average")
