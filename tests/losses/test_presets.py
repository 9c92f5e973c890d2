"""Every preset behaves as one loss: the same arguments, the same shapes, in `fit` and in a `.keras` file."""

import inspect
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from partialseg.losses import PRESETS, PartialSupervision, preset

#: What must be given; a state is no matter of all backends, and tested with the loss.
GIVEN = {"prior_aware": {"prior": [0.4, 0.3, 0.2, 0.1], "dual_rate": None}}
#: Other options than the default ones.
OPTIONS = {
    "partial_supervision": {"exclusion": 0.5, "terms": ("mCE", "eDC")},
    "target_adaptive": {"from_logits": False},
    "prior_aware": {"weight": 0.5, "merged_voxels": "marginal", "one_against_rest": False},
    "masked_sigmoid": {"class_reduction": "sum", "batch": True},
    "leaf_dice": {"cross_entropy": 0.5, "exponent": 1},
    "label_set_dice": {"cross_entropy": 0.5, "batch": True},
    "naive_background": {"class_reduction": "sum", "include_background": False},
    "ignore_background": {"from_logits": False, "batch": True},
    "published_code_with_summed_logits": {"exclusion": 1.0, "batch": False},
}
each_preset = pytest.mark.parametrize("name", PRESETS)


def partial_batch():
    """Image and candidates of a sample that annotates all of three organs, and of two that annotate one."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (3, 4, 4, 4))
    candidates = np.eye(4, dtype="uint8")[label]
    for sample, organ in ((1, 1), (2, 2)):
        free = np.ones(4, "uint8")
        free[organ] = 0
        candidates[sample][label[sample] != organ] = free
    image = (label + rng.normal(0, 0.3, label.shape)).astype("float32")[..., np.newaxis]
    return image, candidates


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def make(name, /, **options):
    return preset(name, **GIVEN.get(name, {}), **options)


def small_network(loss):
    keras.utils.set_random_seed(0)
    image = keras.Input((4, 4, 4, 1))
    hidden = keras.layers.Conv3D(8, 1, activation="relu")(image)
    model = keras.Model(image, keras.layers.Conv3D(4, 1)(hidden))
    model.compile(optimizer=keras.optimizers.Adam(0.02), loss=loss)
    return model


@each_preset
def test_call_returns_one_value_per_sample_and_values_its_terms(name):
    _, candidates = partial_batch()
    logits = np.random.default_rng(1).normal(0, 2, candidates.shape).astype("float32")
    loss = make(name)
    assert isinstance(loss, PRESETS[name])
    each = numpy(loss.call(candidates, logits))
    assert each.shape == (3,)
    assert float(loss(candidates, logits)) == pytest.approx(each.mean(), rel=1e-5)
    values = {term: numpy(value) for term, value in loss.values(candidates, logits).items()}
    assert {value.shape for value in values.values()} == {(3,)}


@each_preset
def test_config_makes_the_same_loss_again(name):
    loss = make(name, **OPTIONS[name], reduction="sum", name="mine", dtype="float64")
    config = keras.saving.serialize_keras_object(loss)
    assert config["registered_name"] == f"partialseg>{PRESETS[name].__name__}"
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is PRESETS[name]
    assert again.get_config() == loss.get_config()
    given = {**OPTIONS[name], "reduction": "sum", "name": "mine", "dtype": "float64"}
    given["terms"] = list(given.get("terms", ()))
    assert loss.get_config().items() >= {key: value for key, value in given.items() if value != []}.items()
    assert loss.get_config().keys() == inspect.signature(PRESETS[name]).parameters.keys()


@each_preset
def test_a_preset_is_called_by_its_name(name):
    assert make(name).name == name


@each_preset
def test_fit_lowers_the_loss_and_the_saved_network_keeps_it(name, tmp_path):
    image, candidates = partial_batch()
    model = small_network(make(name))
    before = model.evaluate(image, candidates, verbose=0)
    model.fit(image, candidates, epochs=15, batch_size=3, verbose=0)
    after = model.evaluate(image, candidates, verbose=0)
    assert after < before - 0.02
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.loss) is PRESETS[name]
    assert again.loss.get_config() == model.loss.get_config()
    assert again.evaluate(image, candidates, verbose=0) == pytest.approx(after, rel=1e-5)


@each_preset
@pytest.mark.parametrize(("dtype", "precision"), [("float16", 5e-3), ("bfloat16", 3e-2)])
def test_half_precision_agrees(name, dtype, precision):
    _, candidates = partial_batch()
    logits = np.random.default_rng(1).normal(0, 2, candidates.shape).astype("float32")
    expected = float(make(name)(candidates, logits))
    assert float(make(name)(candidates, ops.cast(logits, dtype))) == pytest.approx(expected, abs=precision)


@each_preset
def test_compiled_equals_eager(name, compiled):
    _, candidates = partial_batch()
    logits = np.random.default_rng(1).normal(0, 2, candidates.shape).astype("float32")
    loss = make(name)
    value = compiled(lambda y_true, y_pred: loss(y_true, y_pred))(ops.cast(candidates, "float32"), logits)
    assert float(value) == pytest.approx(float(loss(candidates, logits)), rel=1e-5)


def test_the_first_preset_is_the_loss_of_the_package():
    assert next(iter(PRESETS)) == "partial_supervision"
    assert preset("partial_supervision").get_config() == PartialSupervision().get_config()


def test_an_unknown_preset_names_those_that_there_are():
    with pytest.raises(
        ValueError, match=r"no preset 'naive'; there are partial_supervision, .*naive_background"
    ):
        preset("naive")


def test_an_unknown_option_names_those_that_there_are():
    with pytest.raises(ValueError, match=r"'target_adaptive' has no option exclusion; it has from_logits, "):
        preset("target_adaptive", exclusion=2)


def test_what_a_preset_must_be_given_is_said():
    with pytest.raises(ValueError, match="'prior_aware' must be given prior; see PriorAware"):
        preset("prior_aware")


SCRIPT = """
import contextlib, json, sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from partialseg.losses import preset

rng = np.random.default_rng(0)
image = rng.normal(size=(4, 6, 6, 1)).astype("float32")
candidates = np.eye(4, dtype=np.uint8)[rng.integers(0, 4, (4, 6, 6))]
candidates[1][candidates[1, ..., 1] == 0] = [1, 0, 1, 1]
candidates[2][candidates[2, ..., 2] == 0] = [1, 1, 0, 1]

def weights_after_training(name, scope):
    with scope:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(4, 3, padding="same")])
        model.compile(optimizer=keras.optimizers.SGD(0.5), loss=preset(name, batch=True))
    model.fit(image, candidates, batch_size=4, epochs=4, shuffle=False, verbose=0)
    return [weights.tolist() for weights in model.get_weights()]

two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
scopes = (contextlib.nullcontext, two.scope)
print(json.dumps({name: [weights_after_training(name, scope()) for scope in scopes] for name in sys.argv[1:]}))
"""
WITH_BATCH_DICE = [name for name in PRESETS if "batch" in inspect.signature(PRESETS[name]).parameters]


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="MirroredStrategy is TensorFlow's")
def test_batch_dice_on_two_replicas_equals_one():
    assert len(WITH_BATCH_DICE) == 7
    command = [sys.executable, "-c", SCRIPT, *WITH_BATCH_DICE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (one, two) in json.loads(done.stdout.splitlines()[-1]).items():
        for weights_of_one, weights_of_two in zip(one, two, strict=True):
            np.testing.assert_allclose(weights_of_two, weights_of_one, atol=1e-6, err_msg=name)
