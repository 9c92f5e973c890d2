"""Training on two devices, in a process of its own: logical devices come before TensorFlow starts."""

import json
import subprocess
import sys

import numpy as np
import pytest

TWO_DEVICES = """
import sys
import partialseg
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""
TRAIN = """
from partialseg.training import train
config, prepared, out = sys.argv[1:]
train(config, prepared, out, devices=["CPU:0", "CPU:1"])
"""
#: One weight is trained on one device, then on two, whose second has a gradient too large for float16 at first.
SCALE_THE_LOSS = """
import json
import keras
import numpy as np
from partialseg.training.config import OptimizerConfig
from partialseg.training.optimizers import computing_in, make_optimizer
image, target = np.array([[1.0], [0.1], [2.0], [4.0]], "float32"), np.zeros((4, 1), "float32")
found = []
for devices in (["CPU:0"], ["CPU:0", "CPU:1"]):
    with tf.distribute.MirroredStrategy(devices).scope(), computing_in("float16"):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
        config = OptimizerConfig(name="sgd", learning_rate=0.1, clip_norm=0.5, ema=0.8)
        model.compile(make_optimizer(config), "mse", jit_compile=False)
    model.fit(tf.data.Dataset.from_tensors((image, target)).repeat(6), verbose=0)
    found.append([float(weight.sum()) for weight in model.get_weights()])
print(json.dumps(found))
"""


def with_two_devices(script, *arguments):
    """What a script prints."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_DEVICES + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def column(run, table, index):
    return np.genfromtxt(run.folder / table, delimiter=",", skip_header=1)[:, index]


@pytest.mark.slow
def test_two_devices_train_to_the_weights_and_terms_of_one_with_the_options_of_the_default(
    tiny_prepared, tmp_path
):
    import keras

    from partialseg.training import read_config, read_run, train
    from partialseg.training.config import write_config
    from partialseg.training.trainer import build_model

    default, tiny = read_config("default"), read_config("tiny")
    assert default.network.deep_supervision
    assert default.schedule.kind == "polynomial"
    # Adam would blow up the rounding of gradients that are zero: of biases before instance norm.
    # Large steps would blow up any rounding: halves of a batch are not summed in the order of the whole.
    sgd = {"name": "sgd", "learning_rate": 1e-4, "weight_decay": 1e-2}
    # The gradients are longer than that, and so few steps would hardly show in the mean of the default.
    assert None not in (default.optimizer.clip_norm, default.optimizer.ema)
    sgd |= {"clip_norm": 0.1, "ema": 0.9}
    config = tiny.model_copy(
        update={
            "network": tiny.network.model_copy(update={"deep_supervision": True}),
            "losses": default.losses,
            "optimizer": default.optimizer.model_copy(update=sgd),
            "schedule": default.schedule,
            "validation": default.validation.model_copy(update={"folds": 2, "patches": 1}),
        }
    )
    write_config(config, tmp_path / "config.yaml")
    with_two_devices(TRAIN, tmp_path / "config.yaml", tiny_prepared, tmp_path / "two")
    one, two = train(config, tiny_prepared, tmp_path / "one"), read_run(tmp_path / "two")
    keras.utils.set_random_seed(config.seed)
    begun = build_model(config, len(one.classes)).get_weights()
    trained = [run.load_model().get_weights() for run in (one, two)]
    for of_one, of_two in zip(*trained, strict=True):
        np.testing.assert_allclose(of_two, of_one, atol=1e-6)
    assert max(np.abs(now - before).max() for now, before in zip(trained[0], begun, strict=True)) > 1e-4
    np.testing.assert_allclose(*(column(run, "terms.csv", 5) for run in (one, two)), atol=1e-4)
    np.testing.assert_allclose(*(column(run, "validation.csv", 6) for run in (one, two)), atol=1e-4)


@pytest.mark.slow
def test_float16_leaves_an_update_out_where_one_of_two_devices_has_no_finite_gradient():
    one, two = json.loads(with_two_devices(SCALE_THE_LOSS))
    np.testing.assert_allclose(two, one, rtol=1e-3)
    assert one[0] < 0.99
