import inspect

import keras
import ml_dtypes
import numpy as np
import pytest
from keras import ops

from partialseg import losses
from partialseg.losses import (
    ExclusionCrossEntropy,
    ExclusionDice,
    MarginalCrossEntropy,
    MarginalDice,
    PartialSupervision,
)

DICE = {"class_reduction": "sum", "include_background": False, "batch": True}
EXCLUDING = {"merged_background_excludes": False, "partial_samples_only": False}
#: Every option of each loss, and a value that is not its default.
OPTIONS = {
    MarginalCrossEntropy: {"from_logits": False},
    MarginalDice: {"from_logits": False, **DICE},
    ExclusionDice: {"from_logits": False, **DICE, **EXCLUDING},
    ExclusionCrossEntropy: {"from_logits": False, "include_background": False, **EXCLUDING},
    PartialSupervision: {
        "marginal": 3.0,
        "exclusion": 0.5,
        "terms": ("mCE", "eDC"),
        "from_logits": False,
        **DICE,
        **EXCLUDING,
    },
}
EXPORTED = list(OPTIONS)


def partial_batch(num_samples=3, size=4, num_classes=4, seed=0):
    """Candidates of as many label sets as samples (the first fully annotated), and logits."""
    rng = np.random.default_rng(seed)
    shape = (num_samples, size, size, size)
    label = rng.integers(0, num_classes, shape)
    candidates = np.eye(num_classes, dtype=np.uint8)[label]
    for sample in range(1, num_samples):
        free = np.ones(num_classes, np.uint8)
        free[1 + sample % (num_classes - 1)] = 0
        candidates[sample][candidates[sample] @ free > 0] = free
    return candidates, rng.normal(0, 2, (*shape, num_classes)).astype("float32")


def test_values_are_those_of_the_four_losses():
    candidates, logits = partial_batch()
    alone = {
        "mCE": MarginalCrossEntropy,
        "mDC": MarginalDice,
        "eCE": ExclusionCrossEntropy,
        "eDC": ExclusionDice,
    }
    values = PartialSupervision(terms=["mCE"]).values(candidates, logits)
    assert list(values) == list(alone)
    for term, make in alone.items():
        assert values[term].shape == (3,)
        np.testing.assert_allclose(values[term], make(reduction="none")(candidates, logits), rtol=1e-6)


@pytest.mark.parametrize("chosen", [("mCE", "mDC", "eCE", "eDC"), ("mDC",), ("eCE", "mCE")])
def test_loss_is_the_weighted_sum_of_the_terms_chosen(chosen):
    candidates, logits = partial_batch()
    loss = PartialSupervision(marginal=0.5, exclusion=3.0, terms=chosen, reduction="none")
    values = loss.values(candidates, logits)
    expected = sum((0.5 if term[0] == "m" else 3.0) * ops.convert_to_numpy(values[term]) for term in chosen)
    np.testing.assert_allclose(loss(candidates, logits), expected, rtol=1e-6)


def test_options_reach_the_terms():
    candidates, logits = partial_batch()
    values = PartialSupervision(**DICE, **EXCLUDING).values(candidates, logits)
    alone = {
        "mDC": MarginalDice(**DICE, reduction="none"),
        "eCE": ExclusionCrossEntropy(include_background=False, **EXCLUDING, reduction="none"),
        "eDC": ExclusionDice(**DICE, **EXCLUDING, reduction="none"),
    }
    for term, loss in alone.items():
        np.testing.assert_allclose(values[term], loss(candidates, logits), rtol=1e-6)


def test_fully_annotated_is_cross_entropy_plus_soft_dice():
    candidates, logits = partial_batch(num_samples=1)
    plain = keras.losses.CategoricalCrossentropy(from_logits=True)(candidates, logits)
    p = ops.convert_to_numpy(ops.softmax(logits[0])).reshape(-1, 4)
    truth = candidates.reshape(-1, 4)
    dice = 2 * (p * truth).sum(0) / (p.sum(0) + truth.sum(0))
    assert float(PartialSupervision()(candidates, logits)) == pytest.approx(
        float(plain) + 1 - dice.mean(), abs=1e-6
    )


@pytest.mark.parametrize("terms", [("mCE", "mce"), (), "mCE", ("mCE", "mCE")])
def test_unknown_terms_are_refused(terms):
    with pytest.raises(ValueError, match=r"each once\. Received: terms="):
        PartialSupervision(terms=terms)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"Received: marginal=1.0, exclusion=-2"):
        PartialSupervision(exclusion=-2)


@pytest.mark.parametrize("make", EXPORTED)
def test_config_makes_the_same_loss_again(make):
    options = {**OPTIONS[make], "reduction": "sum", "name": "mine", "dtype": "float64"}
    defaults = {name: option.default for name, option in inspect.signature(make).parameters.items()}
    assert options.keys() == defaults.keys()
    assert not [name for name in options if options[name] == defaults[name]]
    loss = make(**options)
    config = keras.saving.serialize_keras_object(loss)
    assert config["registered_name"] == f"partialseg>{make.__name__}"
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is make
    assert again.get_config() == loss.get_config()
    for option, value in options.items():
        assert getattr(again, option) == value


def test_config_of_every_exported_loss_has_all_its_arguments():
    makes = [getattr(losses, name) for name in losses.__all__ if isinstance(getattr(losses, name), type)]
    assert set(makes) > set(EXPORTED)
    for make in makes:
        needed = {"prior": [0.5, 0.3, 0.2]} if make is losses.PriorAware else {}
        assert make(**needed).get_config().keys() == inspect.signature(make).parameters.keys(), make


@pytest.mark.parametrize("make", EXPORTED)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_value_is_exact_but_for_the_rounding_to_the_dtype_of_the_loss(make, dtype):
    candidates, logits = partial_batch()
    rounded = ops.cast(logits, dtype)
    expected = float(make()(candidates, ops.cast(rounded, "float32")))
    assert float(make()(candidates, rounded)) == pytest.approx(expected, rel=1e-6)
    value = make(dtype=dtype)(candidates, rounded)
    assert keras.backend.standardize_dtype(value.dtype) == dtype
    assert float(value) == pytest.approx(expected, rel=float(ml_dtypes.finfo(dtype).eps))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="dynamic shapes are of TensorFlow's graphs"
)
@pytest.mark.parametrize("make", EXPORTED)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_graph_with_dynamic_shapes_equals_eager(make, jit_compile):
    import tensorflow as tf

    candidates, logits = partial_batch()
    loss = make()
    anything = tf.TensorSpec((None, None, None, None, 4))
    compiled = tf.function(loss, jit_compile=jit_compile, input_signature=[anything, anything])
    value = compiled(tf.cast(candidates, "float32"), logits)
    assert float(value) == pytest.approx(float(loss(candidates, logits)), rel=1e-5)


@pytest.mark.parametrize("make", EXPORTED)
def test_sample_weights_weigh_samples(make):
    candidates, logits = partial_batch()
    each = ops.convert_to_numpy(make(reduction="none")(candidates, logits))
    weighted = make()(candidates, logits, sample_weight=np.array([0.0, 1.0, 2.0]))
    assert float(weighted) == pytest.approx((each[1] + 2 * each[2]) / 3, rel=1e-5)


def small_model(loss, policy="float32"):
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, None, 1))
    hidden = keras.layers.Conv3D(8, 3, padding="same", activation="relu", dtype=policy)(image)
    model = keras.Model(image, keras.layers.Conv3D(4, 1, dtype=policy)(hidden))
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=loss)
    return model


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_fit_lowers_the_loss(policy):
    candidates, _ = partial_batch()
    image = np.random.default_rng(1).normal(size=(3, 4, 4, 4, 1)).astype("float32")
    history = small_model(PartialSupervision(), policy).fit(
        image, candidates, epochs=8, batch_size=3, verbose=0
    )
    losses = history.history["loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.98 * losses[0]


def test_saved_model_keeps_its_loss(tmp_path):
    candidates, _ = partial_batch()
    image = np.random.default_rng(1).normal(size=(3, 4, 4, 4, 1)).astype("float32")
    model = small_model(PartialSupervision(exclusion=0.5, terms=("mCE", "eDC"), class_reduction="sum"))
    model.fit(image, candidates, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again.loss, PartialSupervision)
    assert again.loss.get_config() == model.loss.get_config()
    value = model.evaluate(image, candidates, verbose=0)
    assert again.evaluate(image, candidates, verbose=0) == pytest.approx(value, rel=1e-6)
