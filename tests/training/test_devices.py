"""Training on two devices, in a process of its own: logical devices come before TensorFlow starts."""

import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import sys
import partialseg
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from partialseg.training import train
config, prepared, out = sys.argv[1:]
train(config, prepared, out, devices=["CPU:0", "CPU:1"])
"""


@pytest.mark.slow
def test_two_devices_train_to_the_weights_and_terms_of_one(tiny_prepared, tmp_path):
    import keras

    from partialseg.training import read_config, read_run, train
    from partialseg.training.config import write_config
    from partialseg.training.trainer import build_model

    config = read_config("tiny")
    # Adam would blow up the rounding of gradients that are zero: of biases before instance norm.
    # Large steps would blow up any rounding: halves of a batch are not summed in the order of the whole.
    sgd = config.optimizer.model_copy(update={"name": "sgd", "learning_rate": 1e-4})
    config = config.model_copy(update={"optimizer": sgd})
    write_config(config, tmp_path / "config.yaml")
    arguments = [tmp_path / "config.yaml", tiny_prepared, tmp_path / "two"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = train(config, tiny_prepared, tmp_path / "one"), read_run(tmp_path / "two")
    keras.utils.set_random_seed(config.seed)
    begun = build_model(config, len(one.classes)).get_weights()
    trained = [run.load_model().get_weights() for run in (one, two)]
    for of_one, of_two in zip(*trained, strict=True):
        np.testing.assert_allclose(of_two, of_one, atol=1e-5)
    assert max(np.abs(now - before).max() for now, before in zip(trained[0], begun, strict=True)) > 1e-3
    terms = [
        np.genfromtxt(run.folder / "terms.csv", delimiter=",", skip_header=1)[:, 5] for run in (one, two)
    ]
    np.testing.assert_allclose(*terms, atol=1e-4)
