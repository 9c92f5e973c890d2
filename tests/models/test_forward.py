"""Forward passes on the backend at hand: arrays in, float32 logits out."""

import gc
import weakref

import keras
import numpy as np
import pytest

from partialseg.models import forward as forward_module
from partialseg.models import normalization
from partialseg.models.forward import first_output, forward_pass
from partialseg.models.normalization import InstanceNormLeakyReLU

PATCHES = np.random.default_rng(0).normal(0, 1, (2, 3, 4, 5, 1)).astype(np.float32)


def pointwise_model(dtype="float32"):
    inputs = keras.Input((None, None, None, 1))
    return keras.Model(inputs, keras.layers.Conv3D(2, 1, dtype=dtype)(inputs))


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_a_network_gives_float32_logits_of_any_number_of_patches(dtype):
    model = pointwise_model(dtype)
    expected = keras.ops.convert_to_numpy(model(PATCHES))
    forward = forward_pass(model, (3, 4, 5))
    for count in (1, 2):
        logits = forward(PATCHES[:count])
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[:count], atol=1e-3)


def normalised_model():
    inputs = keras.Input((None, None, None, 1))
    features = InstanceNormLeakyReLU()(keras.layers.Conv3D(3, 3, padding="same")(inputs))
    return keras.Model(inputs, keras.layers.Conv3D(2, 1)(features))


@pytest.fixture
def compiled_passes(monkeypatch):
    """What is compiled meanwhile; it is forgotten before and after, so that the next test compiles its own."""
    real, passes = normalization.compiled_alone, []
    monkeypatch.setattr(normalization, "compiled_alone", lambda pass_: passes.append(pass_) or real(pass_))
    normalization._passes.cache_clear()
    yield passes
    normalization._passes.cache_clear()


# Features are rounded to the 8 bits of bfloat16, now and then to the other side.
@pytest.mark.parametrize(("policy", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.05)])
def test_norms_are_compiled_for_large_patches_alone_and_give_the_same(
    policy, tolerance, compiled_passes, monkeypatch
):
    keras.config.set_dtype_policy(policy)
    try:
        model = normalised_model()
    finally:
        keras.config.set_dtype_policy("float32")
    found = {}
    for least in (1000, 0):
        monkeypatch.setattr(forward_module, "LARGE_PATCH", least)
        forward_module._graphs.clear()
        forward = forward_pass(model, (3, 4, 5))
        found[least] = [forward(PATCHES[:count]) for count in (1, 2)]
        assert bool(compiled_passes) == (least == 0 and keras.backend.backend() == "tensorflow")
    for compiled, as_it_is in zip(found[0], found[1000], strict=True):
        np.testing.assert_allclose(compiled, as_it_is, atol=tolerance)


def test_what_was_built_for_a_network_goes_when_the_network_goes():
    model = pointwise_model()
    forward_pass(model, (3, 4, 5))(PATCHES)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_of_several_outputs_the_first_counts():
    logits = forward_pass(lambda hu: {"fine": hu + 1, "coarse": hu[:, ::2]}, (3, 4, 5))(PATCHES)
    np.testing.assert_array_equal(logits, PATCHES + 1)
    assert first_output(["fine", "coarse"]) == first_output("fine") == "fine"
