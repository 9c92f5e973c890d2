import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from partialseg.errors import DataError
from partialseg.losses import PartialSupervision
from partialseg.models import unet
from partialseg.training.data_wait import DataWait

#: Six samples of which some are partially labelled, as image and candidates.
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(0, 100, (6, 8, 8, 8, 1)).astype(np.float32)
CANDIDATES = np.eye(3, dtype=np.uint8)[RANDOM.integers(0, 3, (6, 8, 8, 8))]
CANDIDATES[::2, ..., :2] |= CANDIDATES[::2, ..., :2].max(axis=-1, keepdims=True)


def network(deep=False, **compiled):
    keras.utils.set_random_seed(0)
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    model = unet(
        3,
        strides=strides,
        base_channels=4,
        convolutions_per_stage=1,
        decoder_convolutions=1,
        deep_supervision=deep,
    )
    losses = [PartialSupervision() for _ in model.outputs] if deep else PartialSupervision()
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=losses, **compiled)
    return model


def line(deep=False, samples=6):
    """Batches of two samples, with the coarser target too under deep supervision."""
    target = (CANDIDATES[:samples], CANDIDATES[:samples, ::2, ::2, ::2]) if deep else CANDIDATES[:samples]
    return tf.data.Dataset.from_tensor_slices((IMAGES[:samples], target)).batch(2)


def fit(model, data, *callbacks, **settings):
    return model.fit(data, verbose=0, shuffle=False, callbacks=list(callbacks), **settings).history


@pytest.mark.parametrize(
    "compiled",
    [
        {"jit_compile": False},
        {"run_eagerly": True},
        {"jit_compile": True},
        {"deep": True, "jit_compile": False},
    ],
    ids=["graph", "eager", "xla", "deep supervision"],
)
def test_weights_are_bit_for_bit_those_of_a_fit_without_it(compiled):
    deep = "deep" in compiled
    plain, clocked = network(**compiled), network(**compiled)
    before = fit(plain, line(deep).repeat(), epochs=2, steps_per_epoch=3)
    after = fit(clocked, line(deep).repeat(), DataWait(), epochs=2, steps_per_epoch=3)
    assert after["loss"] == before["loss"]
    for mine, theirs in zip(clocked.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert any(
        np.any(mine != theirs)
        for mine, theirs in zip(clocked.get_weights(), network(deep).get_weights(), strict=True)
    )


@pytest.mark.parametrize("samples", [6, 5], ids=["even", "last batch smaller"])
def test_a_finite_dataset_ends_each_epoch_where_it_ends(samples):
    steps = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: steps.append(batch))
    # A filter hides the number of batches, so that Keras goes on until the data end.
    data = line(samples=samples).filter(lambda *_: True)
    clocked, plain = network(), network()
    history = fit(clocked, data, DataWait(), count, epochs=2)
    assert steps == [0, 1, 2, 0, 1, 2]
    assert len(history["data_wait"]) == 2
    # Not with a plain fit of the same data: there Keras counts a step of the optimiser where it finds no batch.
    assert history["loss"] == fit(plain, data.repeat(), epochs=2, steps_per_epoch=3)["loss"]
    assert clocked.optimizer.iterations == 6


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def go_on(self, seconds):
        self.now += seconds


def slow(clock, seconds):
    """Endless batches, each of which takes so long, and none of which is made before it is asked for."""

    def read(number):
        clock.go_on(seconds)
        return np.float32(number)

    def to_batch(number):
        value = tf.reshape(tf.ensure_shape(tf.numpy_function(read, [number], tf.float32), ()), (1, 1))
        return value, value

    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    return tf.data.Dataset.range(4).map(to_batch).with_options(options)


def trivial():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    return model


def steps_of(clock, seconds):
    return keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: clock.go_on(seconds))


def test_share_is_the_time_in_next_over_the_time_of_the_steps():
    clock = Clock()
    wait = DataWait(clock=clock)
    # A step takes a second beside the three of its batch: of the first epoch, three steps of four count.
    history = fit(trivial(), slow(clock, 3).repeat(), steps_of(clock, 1), wait, epochs=2, steps_per_epoch=4)
    assert history["data_wait"] == [0.75, 0.75]
    assert (wait.share, wait.seconds, wait.first_batch_seconds) == (0.75, 12.0, 3.0)


def test_data_that_are_ready_cost_no_wait():
    clock = Clock()
    data = slow(clock, 3).cache().repeat()
    history = fit(trivial(), data, steps_of(clock, 1), DataWait(clock=clock), epochs=2, steps_per_epoch=4)
    assert history["data_wait"] == [0.75, 0.0]


def test_what_comes_after_the_steps_of_an_epoch_is_no_part_of_it():
    clock, lines = Clock(), []
    wait = DataWait(report=lines.append, clock=clock)
    validate = keras.callbacks.LambdaCallback(on_test_begin=lambda logs: clock.go_on(1000))
    data = slow(clock, 3)
    settings = {"epochs": 2, "validation_data": data.take(1)}
    history = fit(trivial(), data, steps_of(clock, 3), wait, validate, **settings)
    assert history["data_wait"] == [0.5, 0.5]
    assert lines[1] == "epoch 2: waited for data 12.0 of 24.0 s, 50%"


def test_an_epoch_that_is_the_first_step_alone_has_no_share():
    clock = Clock()
    wait = DataWait(clock=clock)
    history = fit(trivial(), slow(clock, 3).repeat(), steps_of(clock, 1), wait, epochs=2, steps_per_epoch=1)
    assert history["data_wait"] == [0.0, 0.75]


def test_the_model_gets_its_own_function_back():
    model = trivial()
    data = slow(Clock(), 0)
    fit(model, data)
    own = model.train_function
    fit(model, data, DataWait())
    assert model.train_function is own


def test_a_fit_that_ended_by_an_exception_is_followed_by_others():
    def stop(batch, logs):
        raise KeyboardInterrupt

    model, data = trivial(), slow(Clock(), 0)
    fit(model, data)
    own = model.train_function
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(model, data, DataWait(), keras.callbacks.LambdaCallback(on_train_batch_end=stop))
    assert "data_wait" not in fit(model, data)
    assert len(fit(model, data, DataWait(), epochs=3)["data_wait"]) == 3
    assert model.train_function is own


def test_a_damaged_batch_ends_the_fit_with_the_words_of_who_read_it():
    def read(_):
        raise ValueError("liver_3 is too short")

    data = tf.data.Dataset.range(2).map(lambda n: tf.numpy_function(read, [n], tf.float32))
    data = data.map(lambda v: (tf.reshape(v, (1, 1)), tf.reshape(v, (1, 1))))
    with pytest.raises(tf.errors.InvalidArgumentError, match="liver_3 is too short"):
        fit(trivial(), data, DataWait())


def test_several_steps_in_one_call_are_refused():
    model = trivial()
    model.compile(loss="mse", steps_per_execution=4)
    with pytest.raises(DataError, match="steps_per_execution=4, expected 1"):
        fit(model, slow(Clock(), 0), DataWait())


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(DataError, match="Keras runs on jax, expected TensorFlow"):
        DataWait().on_train_begin()


SCRIPT = """
import sys
import partialseg
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
sys.path.insert(0, sys.argv[2])
from test_data_wait import DataWait, fit, line, network

replicas, deep, endless = int(sys.argv[1]), sys.argv[3] == "deep", sys.argv[4] == "endless"
strategy = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(replicas)])
data = line(deep).unbatch().batch(4)
ends = {"epochs": 2}
goes_on = {"epochs": 2, "steps_per_epoch": 2}
found = []
for callbacks in ([], [DataWait()]):
    with strategy.scope():
        model = network(deep, jit_compile=False)
    finite = callbacks and not endless
    history = fit(model, data if finite else data.repeat(), *callbacks, **(ends if finite else goes_on))
    found.append((history["loss"], model.get_weights()))
assert 0 <= min(history["data_wait"]) <= max(history["data_wait"]) <= 1 and len(history["data_wait"]) == 2
assert found[0][0] == found[1][0], (found[0][0], found[1][0])
for plain, clocked in zip(found[0][1], found[1][1], strict=True):
    np.testing.assert_array_equal(clocked, plain)
"""


@pytest.mark.slow
@pytest.mark.parametrize("data", ["endless", "finite"])
@pytest.mark.parametrize("outputs", ["one", "deep"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_replicas_train_to_the_bits_of_a_fit_without_it(replicas, outputs, data):
    here = os.path.dirname(os.path.abspath(__file__))
    arguments = [str(replicas), here, outputs, data]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
