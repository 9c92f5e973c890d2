import numpy as np
import pytest
from keras import ops

from partialseg.losses import ExclusionCrossEntropy, ExclusionDice

LOSSES = [ExclusionCrossEntropy, ExclusionDice]
# Classes background, liver, spleen; liver alone is annotated: one liver voxel, one of merged background.
LIVER_ONLY = np.array([[[0, 1, 0], [1, 0, 1]]])
PREDICTION = np.array([[[0.2, 0.5, 0.3], [0.3, 0.1, 0.6]]])


def test_dice_of_each_class_with_what_excludes_it():
    background, liver, spleen = 2 * 0.2 / (1 + 0.5), 2 * 0.1 / (1 + 0.6), 2 * 0.3 / (1 + 0.9)
    loss = ExclusionDice(from_logits=False, class_reduction="sum")
    assert float(loss(LIVER_ONLY, PREDICTION)) == pytest.approx(background + liver + spleen, rel=1e-5)
    loss = ExclusionDice(from_logits=False, include_background=False)
    assert float(loss(LIVER_ONLY, PREDICTION)) == pytest.approx((liver + spleen) / 2, rel=1e-5)


def test_read_literally_only_annotated_organs_exclude():
    background, spleen = 2 * 0.2 / (1 + 0.5), 2 * 0.3 / (1 + 0.9)
    options = {"from_logits": False, "merged_background_excludes": False}
    loss = ExclusionDice(class_reduction="sum", **options)
    assert float(loss(LIVER_ONLY, PREDICTION)) == pytest.approx(background + spleen, rel=1e-5)
    loss = ExclusionCrossEntropy(**options)
    assert float(loss(LIVER_ONLY, PREDICTION)) == pytest.approx((np.log(1.2) + np.log(1.3)) / 2, rel=1e-5)


def test_cross_entropy_sums_over_excluded_classes_and_averages_over_voxels():
    loss = ExclusionCrossEntropy(from_logits=False)
    expected = (np.log(1.2) + np.log(1.3) + np.log(1.1)) / 2
    assert float(loss(LIVER_ONLY, PREDICTION)) == pytest.approx(expected, rel=1e-5)
    loss = ExclusionCrossEntropy(from_logits=False, include_background=False)
    assert float(loss(LIVER_ONLY, PREDICTION)) == pytest.approx((np.log(1.3) + np.log(1.1)) / 2, rel=1e-5)


def test_cross_entropy_of_a_class_lies_between_zero_and_log_two():
    loss = ExclusionCrossEntropy()
    background_or_spleen = np.array([[1, 0, 1]])
    assert float(loss(background_or_spleen, [[0.0, 1e4, 0.0]])) == pytest.approx(np.log(2), rel=1e-6)
    assert float(loss(background_or_spleen, [[0.0, -1e4, 0.0]])) == 0


def test_nothing_excluded_and_nothing_predicted_scores_zero():
    # No liver voxel: nothing excludes background and spleen; liver is excluded and not predicted.
    candidates = np.array([[[1, 0, 1], [1, 0, 1]]])
    for spleen in (0.0, 0.5):
        prediction = np.array([[[1 - spleen, 0, spleen]] * 2])
        assert float(ExclusionDice(from_logits=False)(candidates, prediction)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("make", LOSSES)
def test_fully_annotated_samples_are_left_to_the_regular_losses(make):
    annotated = np.array([[[0, 1, 0], [1, 0, 0]]])
    candidates = np.concatenate([LIVER_ONLY, annotated])
    predictions = np.concatenate([PREDICTION, PREDICTION])
    partial, full = make(from_logits=False, reduction="none")(candidates, predictions)
    assert float(partial) > 0
    assert float(full) == 0
    everywhere = make(from_logits=False, partial_samples_only=False, reduction="none")
    first, second = everywhere(candidates, predictions)
    assert float(first) == pytest.approx(float(partial), rel=1e-6)
    assert float(second) > 0


@pytest.mark.parametrize("make", LOSSES)
def test_ignored_voxels_do_not_make_a_sample_partial(make):
    candidates = np.array([[[0, 1, 0], [1, 1, 1]]])
    assert float(make(from_logits=False)(candidates, PREDICTION)) == 0


def test_batch_dice_leaves_fully_annotated_samples_out_of_its_sums():
    candidates = np.concatenate([LIVER_ONLY, [[[0, 1, 0], [1, 0, 0]]]])
    predictions = np.concatenate([PREDICTION, PREDICTION[:, ::-1]])
    alone = float(ExclusionDice(from_logits=False)(LIVER_ONLY, PREDICTION))
    together = ExclusionDice(from_logits=False, batch=True, reduction="none")(candidates, predictions)
    np.testing.assert_allclose(together, [alone, alone], rtol=1e-6)


@pytest.mark.parametrize("make", LOSSES)
@pytest.mark.parametrize("options", [{}, {"from_logits": False}, {"partial_samples_only": False}])
def test_all_ignored_is_exactly_zero_with_zero_gradient(make, options, value_and_gradient):
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), (2, 4))
    value, gradient = value_and_gradient(lambda x: make(**options)(np.ones((2, 4, 3)), x), probabilities)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("make", LOSSES)
def test_descent_takes_probability_from_excluded_classes(make, value_and_gradient):
    logits = np.zeros((1, 2, 3))
    _, gradient = value_and_gradient(lambda x: make()(LIVER_ONLY, x), logits)
    after = ops.convert_to_numpy(ops.softmax(logits - gradient))
    assert (after[0, 0, [0, 2]] < 1 / 3).all()
    assert after[0, 1, 1] < 1 / 3
