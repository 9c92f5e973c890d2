"""What holds for all networks that are built of these stages."""

import keras
import numpy as np
import pytest
from keras import ops

from partialseg.losses import preset
from partialseg.models.conditioned import conditioned_unet
from partialseg.models.dynamic_head import dynamic_head_unet
from partialseg.models.forward import first_output
from partialseg.models.normalization import InstanceNormLeakyReLU
from partialseg.models.pipo_fan import pipo_fan
from partialseg.models.stages import plan_stages

NETWORKS = (pipo_fan, conditioned_unet, dynamic_head_unet)
CONDITIONED = (conditioned_unet, dynamic_head_unet)
SMALL = {"strides": ((1, 1, 1), (1, 2, 2)), "base_channels": 4}
THREE_STAGES = {"strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)), "base_channels": 4}
networks = pytest.mark.parametrize("network", NETWORKS)


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


def images(batch=2, size=(4, 7, 9)):
    return np.random.default_rng(1).normal(0, 100, (batch, *size, 1)).astype("float32")


def logits_of(model, image):
    return ops.convert_to_numpy(first_output(model(image)))


def strides_of(model):
    """How much coarser each output is, as the layer says that gives it."""
    return [output._keras_history.operation.stride for output in model.outputs]


@networks
@pytest.mark.parametrize("size", [(5, 7, 9), (1, 1, 1)])
def test_any_size_gives_logits_of_that_size(network, size):
    model = network(6, **THREE_STAGES)
    outputs = model(images(2, size))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    expected = [
        tuple(-(-s // step) for s, step in zip(size, stride, strict=True)) for stride in strides_of(model)
    ]
    assert [tuple(output.shape) for output in outputs] == [(2, *coarse, 6) for coarse in expected]
    assert strides_of(model)[0] == (1, 1, 1)
    assert all(np.isfinite(ops.convert_to_numpy(output)).all() for output in outputs)


@networks
def test_samples_of_a_batch_do_not_see_each_other(network):
    model, image = network(4, **SMALL), images()
    alone = [logits_of(model, image[k : k + 1]) for k in range(2)]
    assert np.allclose(logits_of(model, image), np.concatenate(alone), atol=1e-4)
    assert not np.allclose(alone[0], alone[1], atol=1e-2)


@networks
def test_gradient_reaches_every_weight(network):
    model, image = network(4, **THREE_STAGES), images(2, (6, 12, 12))
    weights = np.random.default_rng(2).normal(size=(2, 6, 12, 12, 4)).astype("float32")
    gradients = _gradients(
        model,
        lambda outputs: ops.mean(ops.square(first_output(outputs) - ops.convert_to_tensor(weights))),
        image,
    )
    # Instance norm removes the bias of the convolution before it.
    before_norm = {
        f"{layer.name}_conv/bias".replace("_norm_conv", "_conv") for layer in _instance_norms(model)
    }
    none = {path for path, gradient in gradients.items() if np.abs(gradient).max() < 1e-7}
    assert none <= before_norm
    assert len(gradients) == len(model.trainable_variables)


@networks
@pytest.mark.parametrize("name", ["masked_sigmoid", "partial_supervision"])
def test_network_learns_from_partial_labels(network, name):
    image, candidates = _partly_labelled()
    model = network(4, **SMALL)
    targets = [candidates[:, ::d, ::h, ::w] for d, h, w in strides_of(model)]
    losses = [preset(name, name="loss") for _ in targets]
    eager = keras.backend.backend() == "tensorflow"  # a graph takes longer to build than to run
    model.compile(keras.optimizers.Adam(0.02), losses if len(losses) > 1 else losses[0], run_eagerly=eager)
    history = model.fit(image, targets if len(targets) > 1 else targets[0], epochs=5, verbose=0)
    values = history.history["loss"]
    assert values[-1] < 0.9 * values[0]


@networks
def test_loaded_model_gives_the_same_logits(network, tmp_path):
    model, image = network(4, dropout=0.2, kernels=((1, 3, 3), (3, 3, 3)), **SMALL), images()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert np.allclose(logits_of(model, image), logits_of(again, image), atol=1e-5)
    assert strides_of(again) == strides_of(model)


@networks
def test_mixed_precision_returns_float32_logits(network):
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        model = network(3, **SMALL)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert {output.dtype for output in model.outputs} == {"float32"}
    assert model.get_layer("up0").compute_dtype == "bfloat16"
    assert np.isfinite(logits_of(model, images())).all()


@networks
def test_dropout_acts_in_training_alone(network):
    model, image = network(3, dropout=0.5, **SMALL), images()
    assert np.array_equal(logits_of(model, image), logits_of(model, image))
    first, second = (ops.convert_to_numpy(first_output(model(image, training=True))) for _ in range(2))
    assert not np.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize("network", CONDITIONED)
def test_logit_of_background_is_zero_at_every_stage(network):
    for output in network(4, deep_supervision=True, **THREE_STAGES)(images()):
        logits = ops.convert_to_numpy(output)
        assert (logits[..., 0] == 0).all()
        assert (np.ptp(logits[..., 1:], axis=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("network", CONDITIONED)
def test_a_coarser_stage_is_supervised_without_the_finer_ones(network):
    model, image = network(4, deep_supervision=True, **THREE_STAGES), images(2, (6, 12, 12))
    coarser = {
        path
        for path, gradient in _gradients(
            model, lambda outputs: ops.mean(ops.square(outputs[1])), image
        ).items()
        if gradient is not None and np.abs(gradient).max() > 1e-7
    }
    assert any("decoder1_1_conv/kernel" in path for path in coarser)
    assert any("encoder2_1_conv/kernel" in path for path in coarser)
    assert not any("decoder0" in path or "up0" in path for path in coarser)


@networks
def test_stages_that_cannot_be_built_are_refused(network):
    with pytest.raises(ValueError, match="two stages"):
        network(3, strides=((1, 1, 1),))
    with pytest.raises(ValueError, match="the first"):
        network(3, strides=((1, 2, 2), (2, 2, 2)))
    with pytest.raises(ValueError, match="odd size"):
        network(3, strides=((1, 1, 1), (2, 2, 2)), kernels=((3, 3, 3), (2, 3, 3)))


def test_channels_double_up_to_the_most():
    assert plan_stages(((1, 1, 1), (2, 2, 2), (2, 2, 2)), None, 32, 100, 0.0).channels == (32, 64, 100)
    assert plan_stages(((1, 1, 1), (1, 2, 2), (2, 2, 2)), None, 4, 8, 0.0).coarser(2) == (2, 4, 4)


@pytest.mark.parametrize(
    "network",
    [pytest.param(pipo_fan, marks=pytest.mark.slow), conditioned_unet, dynamic_head_unet],
)
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a SavedModel is made with TensorFlow")
def test_exported_network_takes_any_batch_and_size(network, tmp_path):
    import tensorflow as tf

    from partialseg.inference.saved_model import export

    model = network(4, **SMALL)
    export(model, tmp_path / "exported")
    exported = tf.saved_model.load(tmp_path / "exported")
    for image in (images(1, (3, 5, 6)), images(3, (2, 4, 9))):
        labels = exported.serve(image[..., 0])["labels"].numpy()
        assert (labels == logits_of(model, image).argmax(-1)).mean() > 0.99


def _partly_labelled():
    """Two images with three organs; of the first organ 1 is annotated, of the second organs 2 and 3."""
    labels = np.zeros((2, 4, 8, 8), int)
    for organ in (1, 2, 3):
        labels[:, 1:3, 2 * organ - 1 : 2 * organ + 1, 2:6] = organ
    image = np.array([-80.0, 50.0, 150.0, 250.0])[labels][..., None].astype("float32")
    candidates = np.eye(4, dtype="float32")[labels]
    for sample, unknown in ((0, [0, 2, 3]), (1, [0, 1])):
        merged = candidates[sample][..., unknown].any(-1)
        candidates[sample][merged] = np.isin(np.arange(4), unknown)
    return image, candidates


def _instance_norms(model):
    layers = [layer for outer in model.layers for layer in getattr(outer, "layers", [outer])]
    whole = [x for x in layers if isinstance(x, keras.layers.GroupNormalization) and x.groups != 1]
    return whole + [x for x in layers if isinstance(x, InstanceNormLeakyReLU)]


def _gradients(model, loss, image):
    """Gradient of `loss(outputs)` with respect to each weight, by its path."""
    paths = [variable.path for variable in model.trainable_variables]
    if keras.backend.backend() == "jax":
        import jax

        def value(trainable):
            outputs, _ = model.stateless_call(
                trainable, [v.value for v in model.non_trainable_variables], image
            )
            return loss(outputs)

        found = jax.grad(value)([variable.value for variable in model.trainable_variables])
    elif keras.backend.backend() == "torch":
        model.zero_grad()
        loss(model(image)).backward()
        found = [variable.value.grad for variable in model.trainable_variables]
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss(model(image))
        found = tape.gradient(value, [variable.value for variable in model.trainable_variables])
    return {path: _as_array(gradient) for path, gradient in zip(paths, found, strict=True)}


def _as_array(gradient):
    """A gradient as an array; None where nothing depends on the weight."""
    return None if gradient is None else np.asarray(gradient)
