"""Losses under MirroredStrategy, each training in its own process: logical devices come before TensorFlow starts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import contextlib, json, sys
import partialseg
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from partialseg.losses import PartialSupervision
from partialseg.models import unet

network, dice = sys.argv[1:]
whole = PartialSupervision(batch=dice == "batch")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

# A batch of four and one of two samples. Of both the first half is fully annotated, the second partial.
# The dense network has a batch of four and one of a single sample, fully annotated: one replica gets none.
rng = np.random.default_rng(0)
label = rng.integers(0, 4, (6, 4, 4, 4)).repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
image = (100 * label - 100 + rng.normal(0, 10, label.shape)).astype("float32")[..., None]
candidates = np.eye(4, dtype=np.uint8)[label]
for sample, organs in {2: [1], 3: [2, 3], 5: [3]}.items():
    candidates[sample][~np.isin(label[sample], organs)] = [n not in organs for n in range(4)]
if network == "dense":
    image, candidates = image[:5], candidates[:5]

class Halves(keras.losses.Loss):
    "What two replicas compute that know nothing of each other."

    def call(self, y_true, y_pred):
        half = keras.ops.shape(y_pred)[0] // 2
        return (whole(y_true[:half], y_pred[:half]) + whole(y_true[half:], y_pred[half:])) / 2

# Keras takes the mean of each replica's samples, and then of the replicas: what is alone counts half.
half_alone = np.array([1, 1, 1, 1, 0.5]) if network == "dense" else None

def voxel_network():
    hu = keras.Input((None, None, None, 1))
    scaled = keras.layers.Rescaling(0.01)(hu)
    if network == "dense":  # a convolution takes no empty batch on CPUs
        hidden = keras.layers.Dense(16, activation="relu")(scaled)
        return keras.Model(hu, keras.layers.Dense(4)(hidden))
    hidden = keras.layers.Conv3D(16, 1, activation="relu")(scaled)
    return keras.Model(hu, keras.layers.Conv3D(4, 1)(hidden))

def train(scope, loss, sample_weight=None):
    with scope:
        keras.utils.set_random_seed(0)
        strides = ((1, 1, 1), (2, 2, 2))
        options = {"strides": strides, "base_channels": 4, "convolutions_per_stage": 1, "decoder_convolutions": 1}
        model = unet(4, **options) if network == "unet" else voxel_network()
        # Adam would blow up the rounding of gradients that are zero: of biases before instance norm. So does a
        # large network, in which some activation lies so near the kink of its ReLU that rounding decides.
        model.compile(optimizer=keras.optimizers.SGD(0.3 if network == "unet" else 0.1), loss=loss)
    options = {"batch_size": 4, "epochs": 10, "shuffle": False, "verbose": 0}
    losses = model.fit(image, candidates, sample_weight=sample_weight, **options).history["loss"]
    return {"weights": [weights.tolist() for weights in model.get_weights()], "losses": losses}

batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(candidates).batch(4))
is_partial = lambda sample: bool((sample.numpy().sum(axis=-1) > 1).any())
print(json.dumps({
    "partial": [
        [[is_partial(s) for s in of_replica] for of_replica in strategy.experimental_local_results(batch)]
        for batch in batches
    ],
    "one": train(contextlib.nullcontext(), whole, half_alone),
    "two": train(strategy.scope(), whole),
    "halves": train(contextlib.nullcontext(), Halves()) if dice == "batch" and half_alone is None else None,
}))
"""


def largest_difference(found, expected):
    pairs = zip(found["weights"], expected["weights"], strict=True)
    return max(np.abs(np.subtract(a, b)).max() for a, b in pairs)


def trained(network, dice):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, network, dice],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"KERAS_BACKEND": "tensorflow"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("dice", ["per sample", "batch"])
@pytest.mark.parametrize("network", ["voxel network", "unet"])
def test_two_replicas_train_to_the_weights_of_one_device(network, dice):
    result = trained(network, dice)
    # One replica has only full samples, the other only partial ones.
    assert result["partial"] == [[[False, False], [True, True]], [[False], [True]]]
    one = result["one"]
    assert one["losses"][-1] < 0.9 * one["losses"][0]
    assert largest_difference(result["two"], one) < 1e-5
    np.testing.assert_allclose(result["two"]["losses"], one["losses"], rtol=1e-4)
    if dice == "batch":  # it would be seen if the replicas did not add their sums
        assert largest_difference(result["halves"], one) > 1e-2


@pytest.mark.parametrize("dice", ["per sample", "batch"])
def test_a_replica_without_samples_adds_nothing(dice):
    result = trained("dense", dice)
    assert result["partial"] == [[[False, False], [True, True]], [[False], []]]
    one = result["one"]
    assert one["losses"][-1] < 0.9 * one["losses"][0]
    assert largest_difference(result["two"], one) < 1e-5
