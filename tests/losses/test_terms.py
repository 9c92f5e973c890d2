import keras
import numpy as np
import pytest
from keras import ops

from partialseg.losses import MarginalCrossEntropy, inputs, terms
from partialseg.losses.voxel_sums import voxel_sums

# Classes: background, liver, spleen, pancreas, left kidney, right kidney; liver alone is annotated.
SIX_LOGITS = np.array([-2.0, -3.0, 8.0, -4.0, -4.0, -4.0], dtype="float32")
MERGED_BACKGROUND = np.array([1, 0, 1, 1, 1, 1])


def test_marginal_probability_adds_probabilities():
    log_q = inputs.marginal_log_probability(MERGED_BACKGROUND, inputs.log_probabilities_of(SIX_LOGITS))
    assert float(ops.exp(log_q)) == pytest.approx(0.99998, abs=5e-6)


def test_loss_adds_probabilities_and_not_logits():
    # A softmax after adding up the logits gives 0.047.
    loss = MarginalCrossEntropy()(MERGED_BACKGROUND[None], SIX_LOGITS[None])
    assert float(ops.exp(-loss)) == pytest.approx(0.99998, abs=5e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_half_precision_is_computed_in_float32(dtype):
    log_probabilities = inputs.log_probabilities_of(ops.convert_to_tensor(SIX_LOGITS, dtype=dtype))
    computed = keras.backend.standardize_dtype(log_probabilities.dtype)
    has_float64 = keras.backend.backend() != "jax"
    assert computed == ("float64" if dtype == "float64" and has_float64 else "float32")
    assert float(ops.sum(ops.exp(log_probabilities))) == pytest.approx(1, abs=1e-6)


def test_probabilities_and_their_logits_are_the_same_prediction():
    probabilities = ops.softmax(SIX_LOGITS / 4)
    np.testing.assert_allclose(
        inputs.log_probabilities_of(probabilities, from_logits=False),
        inputs.log_probabilities_of(SIX_LOGITS / 4),
        rtol=1e-5,
    )


def test_log_probability_of_a_hopeless_set_is_finite():
    log_q = inputs.marginal_log_probability([1, 0, 1], inputs.log_probabilities_of([-1e4, 1e4, -1e4]))
    assert float(log_q) == pytest.approx(-2e4 + np.log(2), rel=1e-6)


def test_classes_linked_through_others_are_merged():
    candidates = np.array([[[1, 1, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]]])
    merged = terms.merged_classes(voxel_sums(candidates, np.zeros(candidates.shape)))
    expected = [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(merged[0], expected)


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 6, 9, 16, 17])
def test_the_longest_chain_of_links_is_merged_into_one(num_classes):
    links = np.eye(num_classes, dtype=int)[:-1] + np.eye(num_classes, k=1, dtype=int)[:-1]
    if num_classes == 2:
        links = np.eye(2, dtype=int)  # a set of both would be ignored
    merged = terms.merged_classes(voxel_sums(links[None], np.zeros((1, *links.shape))))
    assert np.array(merged)[0].sum(axis=0).tolist()[0] == (1 if num_classes == 2 else num_classes)


def test_merging_is_told_apart_by_sample():
    candidates = np.array([[[1, 0, 1], [0, 1, 0]], [[1, 1, 0], [0, 0, 1]]])
    merged = terms.merged_classes(voxel_sums(candidates, np.zeros(candidates.shape)))
    np.testing.assert_array_equal(merged[0], [[1, 0, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(merged[1], [[1, 0, 0], [1, 0, 0], [0, 0, 1]])


def test_sums_over_a_million_voxels_keep_their_digits():
    num_voxels = 1_500_000
    candidates = np.zeros((1, 15, 100, 1000, 6), np.uint8)
    candidates[..., :] = MERGED_BACKGROUND
    candidates[0, 0, 0] = [0, 1, 0, 0, 0, 0]
    sums = voxel_sums(candidates, np.zeros(candidates.shape, "float32"))
    marginal = terms.marginal_dice_sums(sums)
    np.testing.assert_allclose(marginal.truth[0, :2], [num_voxels - 1000, 1000], rtol=5e-6)
    np.testing.assert_allclose(marginal.predicted[0, :2], [num_voxels * 5 / 6, num_voxels / 6], rtol=5e-6)
    np.testing.assert_allclose(marginal.overlap[0, :2], [(num_voxels - 1000) * 5 / 6, 1000 / 6], rtol=5e-6)
    np.testing.assert_allclose(sums.excluded_probability[0, 1], (num_voxels - 1000) / 6, rtol=5e-6)
    np.testing.assert_allclose(sums.predicted[0], np.full(6, num_voxels / 6), rtol=5e-6)


@pytest.mark.parametrize("no_candidates", [0, 1])
def test_voxels_with_no_candidate_count_as_ignored(no_candidates):
    candidates = np.array([[[1, 0, 0], [0, 1, 1], [no_candidates] * 3]])
    sums = voxel_sums(candidates, np.zeros(candidates.shape))
    np.testing.assert_array_equal(sums.known, [[2]])
    np.testing.assert_array_equal(sums.truth, [[1, 1, 0]])
    np.testing.assert_allclose(sums.predicted, np.full((1, 3), 2 / 3), rtol=1e-6)
    np.testing.assert_allclose(sums.marginal_nll, [np.log(3) + np.log(3 / 2)], rtol=1e-6)
    np.testing.assert_array_equal(sums.excluded, [[1, 1, 1]])


@pytest.mark.parametrize(
    ("true_shape", "pred_shape"), [((2, 4, 4, 1), (2, 4, 4, 3)), ((2, 4, 4), (2, 4, 4, 3)), ((3,), (3,))]
)
def test_shapes_that_differ_are_refused_with_both_shapes(true_shape, pred_shape):
    with pytest.raises(ValueError, match=r"same shape .* Received: y_true.shape=\(") as caught:
        voxel_sums(np.ones(true_shape), np.ones(pred_shape))
    assert f"y_pred.shape={pred_shape}" in str(caught.value)
