import keras
import numpy as np
import pytest
from keras import layers, ops

from partialseg.models import normalization
from partialseg.models.normalization import InstanceNormLeakyReLU, instance_norm_leaky_relu

GAMMA, BETA = np.array([0.5, -2.0, 1.5]), np.array([0.3, -0.1, 0.0])


def features(shape=(2, 4, 5, 6, 3), mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, shape)


def expected(x, gamma=GAMMA, beta=BETA):
    axes = tuple(range(1, x.ndim - 1))
    x = np.asarray(x, "float64")
    z = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5) * gamma + beta
    return np.where(z > 0, z, 0.01 * z)


def two_layers(x, gamma, beta):
    norm = layers.GroupNormalization(groups=-1, epsilon=1e-5)
    norm.build(x.shape)
    axes = tuple(range(1, len(x.shape) - 1))
    mean, variance = ops.moments(x, axes=axes, keepdims=True)
    z = (x - mean) * ops.rsqrt(variance + norm.epsilon) * gamma + beta
    return layers.LeakyReLU(negative_slope=0.01)(z)


def gradients(function, arguments, weights):
    """Of Σ weights · result by each argument, as arrays."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(arguments)
            value = tf.reduce_sum(weights * function(*arguments))
        found = tape.gradient(value, arguments)
    elif backend == "jax":
        import jax

        found = jax.grad(lambda *a: (weights * function(*a)).sum(), argnums=(0, 1, 2))(*arguments)
    else:
        arguments = [argument.detach().requires_grad_() for argument in arguments]
        (weights * function(*arguments)).sum().backward()
        found = [argument.grad for argument in arguments]
    return [ops.convert_to_numpy(gradient) for gradient in found]


def layer_with_weights(**kwargs):
    layer = InstanceNormLeakyReLU(**kwargs)
    layer.build((None, None, None, None, 3))
    layer.set_weights([GAMMA, BETA])
    return layer


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(2, 4, 5, 6, 3), (1, 7, 3), (3, 1, 8, 3)])
def test_result_is_that_of_the_two_layers(shape, training):
    x = features(shape).astype("float32")
    norm = layers.GroupNormalization(groups=-1, epsilon=1e-5)
    norm.build(shape)
    norm.set_weights([GAMMA, BETA])
    layer = InstanceNormLeakyReLU()
    layer.build(shape)
    layer.set_weights(norm.get_weights())
    assert [w.name for w in layer.weights] == [w.name for w in norm.weights]
    usual = ops.convert_to_numpy(layers.LeakyReLU(negative_slope=0.01)(norm(x)))
    found = ops.convert_to_numpy(layer(x, training=training))
    np.testing.assert_allclose(found, usual, atol=1e-5)
    np.testing.assert_allclose(found, expected(x), atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_are_those_of_automatic_differentiation(compiled):
    arguments = [ops.convert_to_tensor(a.astype("float32")) for a in (features(), GAMMA, BETA)]
    weights = ops.convert_to_tensor(features(seed=1).astype("float32"))
    found = gradients(
        lambda *a: instance_norm_leaky_relu(*a, 1e-5, 0.01, compiled=compiled), arguments, weights
    )
    for gradient, usual in zip(found, gradients(two_layers, arguments, weights), strict=True):
        np.testing.assert_allclose(gradient, usual, atol=1e-5 * max(1, np.abs(usual).max()))


def test_gradients_are_the_finite_differences():
    arguments, weights = [features((2, 3, 4, 3)), GAMMA, BETA], features((2, 3, 4, 3), seed=1)
    tensors = [ops.convert_to_tensor(a.astype("float32")) for a in arguments]
    found = gradients(
        lambda *a: instance_norm_leaky_relu(*a, 1e-5, 0.01),
        tensors,
        ops.convert_to_tensor(weights.astype("float32")),
    )
    for which, gradient in enumerate(found):
        for index in list(np.ndindex(gradient.shape))[::7]:
            values = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in arguments]
                moved[which][index] += step
                values.append((weights * expected(*moved)).sum())
            assert gradient[index] == pytest.approx((values[0] - values[1]) / 2e-6, abs=2e-4)


@pytest.mark.parametrize("training", [False, True])
def test_features_far_from_zero_keep_their_digits(training):
    x = features((1, 8, 32, 32, 3), mean=1000.0).astype("float32")
    found = ops.convert_to_numpy(layer_with_weights()(x, training=training))
    np.testing.assert_allclose(found, expected(x), atol=5e-4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_statistics_are_float32_under_mixed_precision(policy):
    layer = layer_with_weights(dtype=policy)
    x = ops.cast(features(mean=100.0), layer.compute_dtype)
    found = layer(x, training=True)
    assert keras.backend.standardize_dtype(found.dtype) == layer.compute_dtype
    rounded = ops.convert_to_numpy(ops.cast(x, "float32"))
    tolerance = 2e-2 if policy == "mixed_bfloat16" else 3e-3
    found = ops.convert_to_numpy(ops.cast(found, "float32"))
    np.testing.assert_allclose(found, expected(rounded), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_gradients_have_the_dtype_of_what_they_are_of_in_half_precision(policy):
    layer = layer_with_weights(dtype=policy)
    x = ops.cast(features(), policy)
    assert keras.backend.standardize_dtype(layer(x, training=True).dtype) == policy
    weights = features(seed=1)
    arguments = [ops.cast(x, policy), ops.cast(GAMMA, "float32"), ops.cast(BETA, "float32")]
    found = gradients(
        lambda *a: ops.cast(instance_norm_leaky_relu(*a, 1e-5, 0.01), "float32"),
        arguments,
        ops.convert_to_tensor(weights.astype("float32")),
    )
    exact = [ops.cast(argument, "float32") for argument in arguments]
    usual = gradients(two_layers, exact, ops.convert_to_tensor(weights.astype("float32")))
    for gradient, wanted in zip(found, usual, strict=True):
        np.testing.assert_allclose(
            np.asarray(gradient, "float32"), wanted, atol=0.03 * max(1, np.abs(wanted).max())
        )


def test_sums_without_matrix_products_give_the_same(monkeypatch):
    x = features(mean=10.0).astype("float32")
    by_products = ops.convert_to_numpy(layer_with_weights()(x))
    monkeypatch.setattr(normalization, "_products_keep_digits", lambda: False)
    np.testing.assert_allclose(ops.convert_to_numpy(layer_with_weights()(x)), by_products, atol=1e-5)
    arguments = [ops.convert_to_tensor(a.astype("float32")) for a in (x, GAMMA, BETA)]
    weights = ops.convert_to_tensor(features(seed=1).astype("float32"))
    found = gradients(lambda *a: instance_norm_leaky_relu(*a, 1e-5, 0.01), arguments, weights)
    for gradient, usual in zip(found, gradients(two_layers, arguments, weights), strict=True):
        np.testing.assert_allclose(gradient, usual, atol=1e-4 * max(1, np.abs(usual).max()))


def test_constant_features_have_a_finite_gradient():
    arguments = [
        ops.convert_to_tensor(a.astype("float32")) for a in (np.full((1, 2, 2, 3), 7.0), GAMMA, BETA)
    ]
    weights = ops.convert_to_tensor(features((1, 2, 2, 3)).astype("float32"))
    found = gradients(lambda *a: instance_norm_leaky_relu(*a, 1e-5, 0.01), arguments, weights)
    assert all(np.isfinite(gradient).all() for gradient in found)


def test_saved_layer_gives_the_same(tmp_path):
    inputs = keras.Input((None, None, None, 3))
    model = keras.Model(inputs, layer_with_weights(negative_slope=0.2)(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = features().astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(again(x)), ops.convert_to_numpy(model(x)))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a SavedModel and strategies are TensorFlow's"
)
def test_layer_trains_under_a_strategy_and_is_exported(tmp_path):
    import tensorflow as tf

    cpu = tf.config.list_logical_devices("CPU")
    with tf.distribute.MirroredStrategy([device.name for device in cpu]).scope():
        inputs = keras.Input((None, None, None, 3))
        model = keras.Model(inputs, InstanceNormLeakyReLU()(inputs))
        model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
    x = features().astype("float32")
    # A factor below 0 is out of reach: from above, the error rises again at 0.
    wanted = expected(x, gamma=np.abs(GAMMA)).astype("float32")
    history = model.fit(x, wanted, batch_size=2, epochs=30, verbose=0).history["loss"]
    assert history[-1] < 0.01 * history[0]
    model.export(tmp_path / "saved", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(exported.serve(x).numpy(), ops.convert_to_numpy(model(x)), atol=1e-5)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="epsilon must be above 0"):
        InstanceNormLeakyReLU(epsilon=0)
    with pytest.raises(ValueError, match="negative_slope"):
        InstanceNormLeakyReLU(negative_slope=-0.1)
    with pytest.raises(ValueError, match="spatial axis"):
        InstanceNormLeakyReLU().build((None, 3))
