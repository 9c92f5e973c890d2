"""Batch Dice under MirroredStrategy, in its own process: logical devices come before TensorFlow starts."""

import json
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import contextlib, json
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from partialseg.losses import PartialSupervision

rng = np.random.default_rng(0)
image = rng.normal(size=(4, 6, 6, 1)).astype("float32")
candidates = np.eye(4, dtype=np.uint8)[rng.integers(0, 4, (4, 6, 6))]
candidates[1][candidates[1, ..., 1] == 0] = [1, 0, 1, 1]
candidates[2][candidates[2, ..., 2] == 0] = [1, 1, 0, 1]

def weights_after_training(scope):
    with scope:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Conv2D(4, 3, padding="same")])
        loss = PartialSupervision(batch=True, terms=["mDC", "eDC"])
        model.compile(optimizer=keras.optimizers.SGD(0.5), loss=loss)
    model.fit(image, candidates, batch_size=4, epochs=4, shuffle=False, verbose=0)
    return [weights.tolist() for weights in model.get_weights()]

one = weights_after_training(contextlib.nullcontext())
two = weights_after_training(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
print(json.dumps([one, two]))
"""


@pytest.mark.slow
def test_batch_dice_on_two_replicas_equals_one():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = json.loads(done.stdout.splitlines()[-1])
    for weights_of_one, weights_of_two in zip(one, two, strict=True):
        np.testing.assert_allclose(weights_of_two, weights_of_one, atol=1e-6)
