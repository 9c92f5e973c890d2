"""A trained network with other organs: old organs as they were, new ones out of background."""

import numpy as np
import pytest
from keras import ops

from partialseg.models import build_network, take_over

OLD = ("background", "liver", "spleen")
NEW = ("background", "gallbladder", "spleen", "liver", "stomach")
SMALL = {"strides": ((1, 1, 1), (2, 2, 2)), "base_channels": 4}
HU = np.random.default_rng(0).normal(0, 100, (1, 6, 8, 8, 1)).astype("float32")


def logits(model):
    found = model(HU)
    return ops.convert_to_numpy(found[0] if isinstance(found, list) else found)


def softmax(values):
    exponents = np.exp(values - values.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def moved(model):
    """Weights as training leaves them: no bias is 0 any more."""
    random = np.random.default_rng(1)
    model.set_weights([w + random.normal(0, 0.1, w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("options", [{}, {"deep_supervision": True}])
def test_a_new_organ_begins_with_a_hundredth_of_background_and_the_others_stay(options):
    trained = moved(build_network("unet", len(OLD), **SMALL, **options))
    model = build_network("unet", len(NEW), **SMALL, **options)
    take_over(trained, OLD, model, NEW)
    before, after = logits(trained), logits(model)
    for name in OLD:
        np.testing.assert_allclose(
            after[..., NEW.index(name)], before[..., OLD.index(name)], rtol=1e-4, atol=1e-4
        )
    shares = softmax(after)
    np.testing.assert_allclose(shares[..., 1], 0.01 * shares[..., 0], rtol=1e-3)
    np.testing.assert_array_equal(np.array(OLD)[before.argmax(axis=-1)], np.array(NEW)[after.argmax(axis=-1)])


@pytest.mark.parametrize("kind", ["unet", "pipo_fan", "dynamic_head"])
def test_the_same_organs_in_another_order_have_the_same_logits(kind):
    trained, model = (build_network(kind, 3, **SMALL) for _ in range(2))
    moved(trained)
    order = ("background", "spleen", "liver")
    take_over(trained, OLD, model, order)
    np.testing.assert_allclose(logits(model)[..., [0, 2, 1]], logits(trained), rtol=1e-3, atol=1e-4)


def test_dynamic_head_keeps_its_organs_when_it_learns_more():
    trained, model = (moved(build_network("dynamic_head", len(c), **SMALL)) for c in (OLD, NEW))
    # What organs share may say "here" while what each has of its own says "not here": a row of its own is needed.
    kernel, bias = trained.get_layer("controller").get_weights()
    kernel[-2:, -1] -= 20
    bias[-1] += 20
    trained.get_layer("controller").set_weights([kernel, bias])
    take_over(trained, OLD, model, NEW)
    before, after = logits(trained), logits(model)
    for name in OLD[1:]:
        np.testing.assert_allclose(
            after[..., NEW.index(name)], before[..., OLD.index(name)], rtol=1e-3, atol=1e-4
        )
    # A new organ begins as the first one that is known, with a hundredth of its odds: it takes no voxel over.
    for name in set(NEW) - set(OLD):
        np.testing.assert_allclose(
            after[..., NEW.index(name)], before[..., 1] + np.log(0.01), rtol=1e-3, atol=1e-3
        )
    np.testing.assert_array_equal(np.array(OLD)[before.argmax(axis=-1)], np.array(NEW)[after.argmax(axis=-1)])


def test_pipo_fan_weighs_its_scales_as_before_when_it_learns_more():
    trained, model = (moved(build_network("pipo_fan", len(c), **SMALL)) for c in (OLD, NEW))
    take_over(trained, OLD, model, NEW)
    before, after = logits(trained), logits(model)
    for name in OLD:
        np.testing.assert_allclose(
            after[..., NEW.index(name)], before[..., OLD.index(name)], rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("kind", ["unet", "conditioned", "dynamic_head"])
@pytest.mark.parametrize("deep_at_first", [True, False])
def test_deep_supervision_may_come_or_go_and_the_finest_logits_stay(deep_at_first, kind):
    deeper = {"strides": (*SMALL["strides"], (2, 2, 2)), "base_channels": 4, "dropout": 0.1}
    trained = moved(build_network(kind, 3, **deeper, deep_supervision=deep_at_first))
    model = build_network(kind, 3, **{**deeper, "dropout": 0.0}, deep_supervision=not deep_at_first)
    take_over(trained, OLD, model, OLD)
    assert len(trained.outputs) + len(model.outputs) == 3
    np.testing.assert_allclose(logits(model), logits(trained), rtol=1e-4, atol=1e-4)


def test_organs_may_be_left_out():
    trained, model = moved(build_network("unet", 3, **SMALL)), build_network("unet", 2, **SMALL)
    take_over(trained, OLD, model, ("background", "spleen"))
    np.testing.assert_allclose(logits(model), logits(trained)[..., [0, 2]], rtol=1e-4, atol=1e-4)


def test_another_network_is_refused():
    trained = build_network("unet", 3, **SMALL)
    wider = build_network("unet", 3, **{**SMALL, "base_channels": 8})
    with pytest.raises(ValueError, match="encoder0_0_conv/kernel would have the shape"):
        take_over(trained, OLD, wider, NEW[:3])
    with pytest.raises(ValueError, match=r"the networks have other weights: .* are in one alone"):
        take_over(trained, OLD, build_network("pipo_fan", 3, **SMALL), OLD)
