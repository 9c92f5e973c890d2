"""Optimisers: the mean of the weights by hand, parts of a batch, precisions."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from partialseg.models import NETWORKS, build_network
from partialseg.training.config import OptimizerConfig
from partialseg.training.network_config import NETWORK_CONFIGS
from partialseg.training.optimizers import POLICIES, averaged_weights, computing_in, make_optimizer
from partialseg.training.state import TrainingState

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(6, 3)).astype("float32"), RANDOM.normal(size=(6, 1)).astype("float32")


def line(config, parts=1):
    """A model of one weight vector, compiled as training does."""
    weights = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="line")
    model = keras.Sequential([keras.Input((3,)), weights], name="model")
    model.compile(make_optimizer(config, parts), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, batch=6, epochs=1):
    stream = tf.data.Dataset.from_tensor_slices((X, Y)).batch(batch)
    return model.fit(stream, epochs=epochs, verbose=0, shuffle=False)


def kernel(model):
    return np.array(model.trainable_variables[0].numpy())


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_mean_of_the_weights_is_the_one_by_hand_and_training_goes_on_without_it(name):
    plain = line(OptimizerConfig(name=name, learning_rate=0.01))
    averaging = line(OptimizerConfig(name=name, learning_rate=0.01, ema=0.8))
    seen = []
    for _ in range(4):  # each `fit` ends: its end must not put the mean in the place of the weights
        fit(plain)
        fit(averaging)
        seen.append(kernel(plain))
    np.testing.assert_array_equal(kernel(averaging), kernel(plain))
    mean = seen[0]
    for weights in seen[1:]:
        mean = 0.8 * mean + 0.2 * weights
    with averaged_weights(averaging):
        np.testing.assert_allclose(kernel(averaging), mean, rtol=1e-6)
    np.testing.assert_array_equal(kernel(averaging), kernel(plain))


def test_without_a_mean_or_before_the_first_step_the_weights_stay():
    for config in (OptimizerConfig(), OptimizerConfig(ema=0.9)):
        model = line(config)
        with averaged_weights(model):
            np.testing.assert_array_equal(kernel(model), 1)


def test_weights_are_given_back_after_an_error():
    model = line(OptimizerConfig(ema=0.9, learning_rate=0.1))
    fit(model, epochs=3)
    before = kernel(model)
    seen = []

    def fail_with_the_mean():
        with averaged_weights(model):
            seen.append(kernel(model))
            raise KeyError

    with pytest.raises(KeyError):
        fail_with_the_mean()
    assert (seen[0] != before).any()
    np.testing.assert_array_equal(kernel(model), before)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_parts_of_a_batch_give_the_update_of_the_whole(name):
    config = OptimizerConfig(name=name, learning_rate=0.01, clip_norm=0.5, weight_decay=0.1)
    whole, parts = line(config), line(config, parts=3)
    for _ in range(5):
        fit(whole, batch=6)
        fit(parts, batch=2)
    np.testing.assert_allclose(kernel(parts), kernel(whole), rtol=1e-5)


def test_weight_decay_takes_its_share_of_the_weights_off():
    gradient_free = OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.5)
    model = line(gradient_free)
    stream = tf.data.Dataset.from_tensors((np.zeros((1, 3), "float32"), np.zeros((1, 1), "float32")))
    model.fit(stream, verbose=0, shuffle=False)
    np.testing.assert_allclose(kernel(model), 1 - 0.1 * 0.5, rtol=1e-6)


@pytest.mark.parametrize("precision", POLICIES)
@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_compute_in_the_precision_and_give_float32_logits(kind, precision):
    if (kind, precision) == ("pipo_fan", "float16"):
        pytest.skip("TensorFlow has float16 pooling for GPUs alone")
    options = {"strides": ((1, 1, 1), (2, 2, 2)), "base_channels": 4}
    section = NETWORK_CONFIGS[kind](**options)
    with computing_in(precision):
        model = build_network(num_classes=3, **section.model_dump())
    assert keras.config.dtype_policy().name == "float32"
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv3D)]
    assert precision in {layer.compute_dtype for layer in convolutions}
    image = RANDOM.normal(0, 100, (1, 4, 6, 6, 1)).astype("float32")
    exact = build_network(num_classes=3, **section.model_dump())
    exact.set_weights(model.get_weights())
    found, expected = (m(image) for m in (model, exact))
    found, expected = ((x[0] if isinstance(x, list) else x) for x in (found, expected))
    assert found.dtype == tf.float32
    error = {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.02}[precision]
    np.testing.assert_allclose(found, expected, atol=error * float(np.abs(expected).max()))


def test_float16_scales_the_loss_and_skips_a_step_whose_gradient_is_not_finite():
    with computing_in("float16"):
        model = line(OptimizerConfig(learning_rate=0.1, ema=0.9))
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    scale = float(model.optimizer.dynamic_scale.numpy())
    broken = tf.data.Dataset.from_tensors((np.full((1, 3), 6e4, "float32"), np.zeros((1, 1), "float32")))
    model.fit(broken, verbose=0, shuffle=False)
    np.testing.assert_array_equal(kernel(model), 1)
    assert float(model.optimizer.dynamic_scale.numpy()) == scale / 2
    fit(model, epochs=12)  # the first of them find the scale
    assert (kernel(model) != 1).all()
    assert np.isfinite(kernel(model)).all()


def test_a_checkpoint_has_the_scale_of_the_loss_and_the_mean_of_the_weights():
    with computing_in("float16"):
        model, other = (line(OptimizerConfig(learning_rate=0.1, ema=0.9)) for _ in range(2))
    fit(model, epochs=12)
    TrainingState(other, []).restore(TrainingState(model, []).read(), Path("checkpoint"))
    for mine, theirs in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    with averaged_weights(model), averaged_weights(other):
        np.testing.assert_array_equal(kernel(other), kernel(model))
    assert float(other.optimizer.dynamic_scale.numpy()) < 2**15
