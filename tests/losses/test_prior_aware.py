"""The prior-aware loss, on whichever backend of Keras is set; what has a state, on all but JAX."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from partialseg.losses.prior_aware import PriorAware

PRIOR = [0.7, 0.2, 0.1]
#: Classes background, liver, spleen; the liver alone is annotated.
MERGED, LIVER = [1, 0, 1], [0, 1, 0]
stateful = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="Keras drops the state of a loss on JAX, so it is refused there"
)


def batch(num_partial=2, num_full=1, num_voxels=40, seed=0):
    """Candidates and logits; the partial samples come first."""
    rng = np.random.default_rng(seed)
    partial = np.array([MERGED, LIVER])[rng.integers(0, 2, (num_partial, num_voxels))]
    full = np.eye(3, dtype=int)[rng.integers(0, 3, (num_full, num_voxels))]
    candidates = np.concatenate([partial, full])
    return candidates, rng.normal(0, 2, candidates.shape).astype("float32")


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def prior_term(loss, candidates, logits):
    values = numpy(loss.values(candidates, logits)["prior"])
    assert values.shape == (len(candidates),)
    np.testing.assert_array_equal(values, values[0])  # of the batch, the same for every sample
    return values[0]


def divergence(prior, mean):
    return np.sum(prior * np.log(prior / mean))


def with_mean(mean, num_voxels=30):
    """A partial sample whose predictions are `mean` in every voxel."""
    candidates = np.array([MERGED, LIVER])[np.arange(num_voxels) % 2][np.newaxis]
    return candidates, np.broadcast_to(np.log(np.array(mean, "float32")), candidates.shape)


def test_without_duals_it_is_the_divergence_of_the_partial_samples_mean():
    candidates, logits = batch()
    mean = softmax(logits)[:2].mean(axis=(0, 1))
    loss = PriorAware(PRIOR, dual_rate=None, one_against_rest=False)
    assert prior_term(loss, candidates, logits) == pytest.approx(divergence(np.array(PRIOR), mean), rel=1e-5)


def test_against_the_rest_it_is_a_sum_of_two_way_divergences():
    candidates, logits = batch()
    mean = softmax(logits)[:2].mean(axis=(0, 1))
    expected = sum(
        divergence(np.array([q, 1 - q]), np.array([p, 1 - p])) for q, p in zip(PRIOR, mean, strict=True)
    )
    assert prior_term(PriorAware(PRIOR, dual_rate=None), candidates, logits) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("one_against_rest", [True, False])
def test_it_is_zero_where_the_prior_is_met_and_above_elsewhere(one_against_rest):
    loss = PriorAware(PRIOR, dual_rate=None, one_against_rest=one_against_rest)
    assert prior_term(loss, *with_mean(PRIOR)) == pytest.approx(0, abs=1e-6)
    assert prior_term(loss, *with_mean([0.6, 0.25, 0.15])) > 0.01


def test_full_samples_count_where_asked_for_and_alone_give_nothing():
    candidates, logits = batch()
    over_all = PriorAware(PRIOR, dual_rate=None, one_against_rest=False, partial_samples_only=False)
    mean = softmax(logits).mean(axis=(0, 1))
    assert prior_term(over_all, candidates, logits) == pytest.approx(
        divergence(np.array(PRIOR), mean), rel=1e-5
    )
    assert prior_term(PriorAware(PRIOR, dual_rate=None), candidates[2:], logits[2:]) == 0


@pytest.mark.parametrize("value", [0, 1], ids=["none possible", "all possible"])
def test_ignored_voxels_count_nowhere(value):
    candidates, logits = batch()
    padding = np.full((3, 40, 3), value)
    loss = PriorAware(PRIOR, dual_rate=None)
    alone = {term: numpy(tensor) for term, tensor in loss.values(candidates, logits).items()}
    padded = loss.values(
        np.concatenate([candidates, padding], axis=1), np.concatenate([logits, logits[::-1]], axis=1)
    )
    np.testing.assert_allclose(numpy(padded["prior"]), alone["prior"], rtol=1e-5)
    np.testing.assert_allclose(numpy(padded["CE"]), alone["CE"] / 2, rtol=1e-5)  # the mean is over all voxels
    for tensor in loss.values(padding, logits).values():
        np.testing.assert_array_equal(numpy(tensor), 0)


def test_cross_entropy_takes_the_most_likely_candidate_or_all_of_them():
    candidates, logits = batch()
    inside = softmax(logits) * candidates
    pseudo = PriorAware(PRIOR, dual_rate=None).values(candidates, logits)["CE"]
    marginal = PriorAware(PRIOR, dual_rate=None, merged_voxels="marginal").values(candidates, logits)["CE"]
    np.testing.assert_allclose(numpy(pseudo), -np.log(inside.max(axis=-1)).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(numpy(marginal), -np.log(inside.sum(axis=-1)).mean(axis=1), rtol=1e-5)
    assert numpy(pseudo)[2] == pytest.approx(numpy(marginal)[2], rel=1e-6)  # fully annotated: plain CE


def test_call_is_the_weighted_sum():
    candidates, logits = batch()
    loss = PriorAware(PRIOR, weight=0.3, dual_rate=None, reduction=None)
    values = {term: numpy(value) for term, value in loss.values(candidates, logits).items()}
    np.testing.assert_allclose(
        numpy(loss(candidates, logits)), values["CE"] + 0.3 * values["prior"], rtol=1e-5
    )


def test_gradient_is_that_of_the_divergence(value_and_gradient):
    """d KL / dp̄ = -q / p̄, through the softmax: p_n (g_n - Σ p g) / voxels, zero in the full sample."""
    candidates, logits = batch()
    loss = PriorAware(PRIOR, dual_rate=None, one_against_rest=False)
    _, gradient = value_and_gradient(lambda x: loss.values(candidates, x)["prior"][:1], logits)
    p = softmax(logits)
    g = -np.array(PRIOR) / p[:2].mean(axis=(0, 1))
    expected = p * (g - (p * g).sum(axis=-1, keepdims=True)) / 80
    expected[2] = 0
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_gradient_is_zero_where_ignored(value_and_gradient):
    candidates, logits = batch()
    candidates[:, :5] = 1
    loss = PriorAware(PRIOR, dual_rate=None)
    _, gradient = value_and_gradient(lambda x: loss(candidates, x), logits)
    np.testing.assert_array_equal(gradient[:, :5], 0)
    assert np.abs(gradient[:, 5:]).max() > 1e-4


@pytest.mark.parametrize("merged_voxels", ["pseudo_label", "marginal"])
def test_large_logits_stay_finite(merged_voxels, value_and_gradient):
    candidates, logits = batch()
    loss = PriorAware(PRIOR, dual_rate=None, merged_voxels=merged_voxels)
    for scaled in (np.sign(logits) * 1e4, np.broadcast_to(np.float32([1e4, -1e4, -1e4]), logits.shape)):
        value, gradient = value_and_gradient(lambda x: loss(candidates, x), scaled)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


@stateful
@pytest.mark.parametrize("one_against_rest", [True, False])
def test_duals_at_their_optimum_give_the_divergence(one_against_rest, value_and_gradient):
    """With the rate 1 the duals are -1/p̄ of the batch: the value and the gradient of the divergence itself."""
    candidates, logits = batch()
    ascended = PriorAware(PRIOR, dual_rate=1.0, one_against_rest=one_against_rest)
    exact = PriorAware(PRIOR, dual_rate=None, one_against_rest=one_against_rest)
    results = [
        value_and_gradient(lambda x, loss=loss: loss(candidates, x), logits) for loss in (ascended, exact)
    ]
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-7)


@stateful
def test_any_other_duals_give_less():
    candidates, logits = batch()
    exact = prior_term(PriorAware(PRIOR, dual_rate=None), candidates, logits)
    values = [prior_term(PriorAware(PRIOR, dual_rate=rate), candidates, logits) for rate in (0.01, 0.3, 0.9)]
    assert values == sorted(values)  # from the prior toward the optimum, the maximum comes nearer
    assert values[-1] < exact


@stateful
def test_duals_converge_to_minus_one_over_the_mean_prediction():
    mean = [0.5, 0.1, 0.4]
    loss = PriorAware(PRIOR, dual_rate=0.1, one_against_rest=False)
    distances = []
    for _ in range(60):
        loss(*with_mean(mean))
        distances.append(np.abs(-1 / numpy(loss.mean_prediction) + 1 / np.array(mean)).max())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.05 * distances[0]
    expected = np.array(mean) + 0.9**60 * (np.array(PRIOR) - mean)
    np.testing.assert_allclose(numpy(loss.mean_prediction), expected, rtol=1e-4)
    assert prior_term(loss, *with_mean(mean)) == pytest.approx(divergence(np.array(PRIOR), mean), rel=1e-3)


@stateful
def test_ascent_never_lowers_the_objective_of_a_constant_mean():
    loss, values = PriorAware(PRIOR, dual_rate=0.2), []
    for _ in range(20):
        values.append(prior_term(loss, *with_mean([0.5, 0.1, 0.4])))
        loss(*with_mean([0.5, 0.1, 0.4]))
    assert values == sorted(values)


@stateful
def test_batches_that_differ_but_meet_the_prior_on_average_are_left_alone(value_and_gradient):
    """What the duals are for: the divergence of each batch alone would ask every batch for every organ."""
    batches = [with_mean([0.5, 0.48, 0.02]), with_mean([0.5, 0.02, 0.48])]
    prior = [0.5, 0.25, 0.25]
    running, alone = (
        PriorAware(prior, dual_rate=rate, one_against_rest=False, weight=1.0) for rate in (0.05, None)
    )
    for step in range(200):
        running(*batches[step % 2])

    def prior_gradient(loss, candidates, logits):
        return value_and_gradient(lambda x: loss.values(candidates, x)["prior"], logits)[1]

    pulls = [np.abs(prior_gradient(loss, *batches[0])).max() for loss in (running, alone)]
    assert pulls[0] < 0.1 * pulls[1]


@stateful
def test_the_first_call_pulls_nowhere(value_and_gradient):
    """The running mean starts at the prior, so the duals are all alike, and the softmax feels no difference."""
    loss = PriorAware(PRIOR, dual_rate=1e-6, one_against_rest=False)
    candidates, logits = batch()
    _, gradient = value_and_gradient(lambda x: loss.values(candidates, x)["prior"], logits)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@stateful
def test_only_calls_with_partial_samples_move_the_running_mean():
    candidates, logits = batch()
    loss = PriorAware(PRIOR, dual_rate=0.5)
    loss.values(candidates, logits)
    loss(candidates[2:], logits[2:])
    np.testing.assert_allclose(numpy(loss.mean_prediction), PRIOR, rtol=1e-6)
    loss(candidates, logits)
    expected = (np.array(PRIOR) + softmax(logits)[:2].mean(axis=(0, 1))) / 2
    np.testing.assert_allclose(numpy(loss.mean_prediction), expected, rtol=1e-5)


@stateful
def test_a_batch_that_is_not_finite_leaves_the_running_mean_alone():
    candidates, logits = batch()
    loss = PriorAware(PRIOR, dual_rate=0.5)
    broken = logits.copy()
    broken[0, 0] = np.nan
    assert np.isnan(float(loss(candidates, broken)))  # which a loss scale must see
    np.testing.assert_allclose(numpy(loss.mean_prediction), PRIOR, rtol=1e-6)
    assert np.isfinite(float(loss(candidates, logits)))


def small_model(loss, seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((40, 1)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss=loss)
    return model


def images_of_three_classes(num_samples=4):
    """Grey values 0, 1, 2 for background, liver, spleen; only the liver is annotated. Shares as in PRIOR."""
    rng = np.random.default_rng(0)
    label = np.stack([rng.permutation(np.repeat([0, 1, 2], [28, 8, 4])) for _ in range(num_samples)])
    table = np.array([MERGED, LIVER, MERGED])
    return label[..., np.newaxis].astype("float32"), table[label]


@pytest.mark.parametrize("dual_rate", [pytest.param(0.5, marks=stateful), None])
def test_fit_brings_the_mean_prediction_to_the_prior(dual_rate):
    image, candidates = images_of_three_classes()
    share = {}
    for weight in (0.0, 1.0):
        loss = PriorAware(PRIOR, weight=weight, dual_rate=dual_rate, merged_voxels="marginal")
        model = small_model(loss)
        model.fit(image, candidates, batch_size=2, epochs=40, verbose=0)
        share[weight] = softmax(model.predict(image, verbose=0)).mean(axis=(0, 1))
    errors = {weight: np.abs(mean - PRIOR).max() for weight, mean in share.items()}
    assert errors[1.0] < 0.05
    assert errors[0.0] > 2 * errors[1.0]


@stateful
def test_fit_moves_the_state_and_the_model_file_keeps_it(tmp_path):
    image, candidates = images_of_three_classes()
    loss = PriorAware(PRIOR, dual_rate=0.1)
    model = small_model(loss)
    model.fit(image, candidates, batch_size=2, epochs=2, verbose=0)
    moved = numpy(loss.mean_prediction)
    assert np.abs(moved - PRIOR).max() > 0.01
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").loss
    assert again.get_config() == loss.get_config()
    np.testing.assert_array_equal(numpy(again.mean_prediction), moved)


@stateful
def test_weights_of_another_loss_leave_the_state_alone(tmp_path):
    small_model("categorical_crossentropy").save_weights(tmp_path / "plain.weights.h5")
    loss = PriorAware(PRIOR)
    small_model(loss).load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_allclose(numpy(loss.mean_prediction), PRIOR, rtol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="about the JAX backend")
def test_on_jax_a_state_is_refused_when_called():
    candidates, logits = batch()
    loss = PriorAware(PRIOR)
    with pytest.raises(ValueError, match="dual_rate=None"):
        loss(candidates, logits)
    image, candidates = images_of_three_classes()
    with pytest.raises(ValueError, match="dual_rate=None"):
        small_model(PriorAware(PRIOR)).fit(image, candidates, verbose=0)


def test_config_makes_the_same_loss():
    loss = PriorAware(PRIOR, 0.7, None, "marginal", False, False, False, "sum", "mine")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is PriorAware
    assert again.get_config() == loss.get_config()
    assert keras.saving.get_registered_name(PriorAware) == "partialseg>PriorAware"


@pytest.mark.parametrize(
    "prior",
    [
        {"background": 0.7, "liver": 0.2, "spleen": 0.1},
        {2: 0.1, 0: 0.7, 1: 0.2},
        (0.7, 0.2, 0.1),
        np.array(PRIOR),
        [0.70001, 0.2, 0.1],
    ],
    ids=["names", "numbers", "tuple", "array", "rounded"],
)
def test_prior_may_be_given_in_several_ways(prior):
    candidates, logits = batch()
    expected = prior_term(PriorAware(PRIOR, dual_rate=None), candidates, logits)
    assert prior_term(PriorAware(prior, dual_rate=None), candidates, logits) == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ([0.7, 0.2], "must sum to 1"),
        ([0.9, 0.1, 0.0], "above 0"),
        ([1.2, -0.2], "above 0"),
        ([float("nan"), 0.5, 0.5], "above 0"),
        ([1.0], "two classes"),
        ({}, "two classes"),
        ({"liver": 0.2, "background": 0.8}, "'background' first"),
        ({1: 0.2, 2: 0.8}, "every number from 0"),
    ],
)
def test_priors_that_are_none_are_refused(prior, message):
    with pytest.raises(ValueError, match=message):
        PriorAware(prior)


@pytest.mark.parametrize(
    "wrong", [{"weight": -1}, {"dual_rate": 0}, {"dual_rate": 1.5}, {"merged_voxels": "ignore"}]
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PriorAware(PRIOR, **wrong)


def test_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="3 shares, but y_pred has 4 classes"):
        PriorAware(PRIOR, dual_rate=None)(np.ones((1, 5, 4)), np.ones((1, 5, 4)))


REPLICAS = """
import contextlib, json
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from partialseg.losses.prior_aware import PriorAware

rng = np.random.default_rng(0)
image = rng.normal(size=(4, 6, 6, 1)).astype("float32")
candidates = np.eye(3, dtype=np.uint8)[rng.integers(0, 3, (4, 6, 6))]
for sample in (0, 1, 2):  # the first replica has two partial samples, the second has one
    candidates[sample][candidates[sample, ..., 1] == 0] = [1, 0, 1]

def fit(scope, loss=None):
    with scope:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(3, 3, padding="same")])
        loss = loss or PriorAware([0.7, 0.2, 0.1], weight=1.0, dual_rate=0.2)
        model.compile(optimizer=keras.optimizers.SGD(0.5), loss=loss)
    model.fit(image, candidates, batch_size=4, epochs=8, shuffle=False, verbose=0)
    return [w.tolist() for w in (*model.get_weights(), keras.ops.convert_to_numpy(loss.mean_prediction))]

def two():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope()

one_device, two_devices = fit(contextlib.nullcontext()), fit(two())
try:
    fit(two(), PriorAware([0.7, 0.2, 0.1]))
    said = None
except ValueError as error:
    said = str(error)
print(json.dumps([one_device, two_devices, said]))
"""


@stateful
@pytest.mark.slow
def test_two_replicas_equal_one_and_must_share_the_state():
    done = subprocess.run([sys.executable, "-c", REPLICAS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two, said = json.loads(done.stdout.splitlines()[-1])
    for of_one, of_two in zip(one, two, strict=True):
        np.testing.assert_allclose(of_two, of_one, atol=1e-6)
    assert np.abs(np.array(one[-1]) - PRIOR).max() > 0.01
    assert "strategy.scope()" in said
