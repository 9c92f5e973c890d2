import keras
import numpy as np
import pytest
from keras import ops

from partialseg.models.layers import CropToInput
from partialseg.models.pipo_fan import FuseScales, pipo_fan

THREE_STAGES = {"strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)), "base_channels": 4}


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return pipo_fan(4, **THREE_STAGES)


def test_weights_of_the_scales_sum_to_one_for_each_sample(model):
    image = np.random.default_rng(0).normal(0, 100, (3, 5, 9, 8, 1)).astype("float32")
    fusion = keras.Model(model.input, model.get_layer("fusion_weights").output)
    weights = ops.convert_to_numpy(fusion(image))
    assert weights.shape == (3, 3)  # samples, scales
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert (weights > 0).all()
    assert np.ptp(weights) > 1e-3


def test_all_scales_are_supervised_after_the_fused_output(model):
    layers = [output._keras_history.operation for output in model.outputs]
    assert all(isinstance(layer, CropToInput) for layer in layers)
    assert [layer.stride for layer in layers] == [(1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 4, 4)]
    assert len(pipo_fan(4, deep_supervision=False, **THREE_STAGES).outputs) == 1


def test_what_is_joined_has_passed_as_many_convolutions(model):
    joins = [layer for layer in model.layers if layer.name.startswith("join")]
    assert len(joins) == 2
    for layer in joins:
        of_stage, of_image = layer.input
        assert _depth(of_stage) == _depth(of_image)
    assert len({_depth(model.get_layer(f"logits{stage}").output) for stage in range(3)}) == 1


def test_the_image_is_seen_at_each_size(model):
    sizes = [model.get_layer(f"image{stage}").pool_size for stage in (1, 2)]
    assert [tuple(size) for size in sizes] == [(1, 2, 2), (2, 2, 2)]
    assert len([layer for layer in model.layers if layer.name == "stem"]) == 1


def test_fused_map_is_the_weighted_sum_of_constant_maps():
    weights = np.array([[0.5, 0.2, 0.3], [1.0, 0.0, 0.0]], "float32")
    maps = [
        np.full((2, *size, 1), value, "float32")
        for size, value in (((4, 4, 8), 1), ((4, 2, 4), 10), ((2, 1, 2), 100))
    ]
    fused = ops.convert_to_numpy(FuseScales([(1, 2, 2), (2, 2, 2)])([weights, *maps]))
    assert np.allclose(fused[0], 32.5, atol=1e-4)
    assert np.allclose(fused[1], 1)


@pytest.mark.parametrize(("axis", "factor"), [(0, 2), (1, 4), (2, 3)])
def test_coarse_map_is_interpolated_between_centres_of_voxels(axis, factor):
    stride = tuple(factor if k == axis else 1 for k in range(3))
    coarse = np.random.default_rng(1).normal(size=(1, 5, 4, 3, 2)).astype("float32")
    size = coarse.shape[axis + 1]
    finest = np.zeros([n * step for n, step in zip(coarse.shape, (1, *stride, 1), strict=True)], "float32")
    fused = ops.convert_to_numpy(FuseScales([stride])([np.array([[0.0, 1.0]], "float32"), finest, coarse]))
    centres = (np.arange(size * factor) + 0.5) / factor - 0.5
    expected = np.apply_along_axis(lambda line: np.interp(centres, np.arange(size), line), axis + 1, coarse)
    assert np.allclose(fused, expected, atol=1e-5)


def _depth(tensor):
    """The most convolutions between the input and a tensor."""
    layer, node, _ = tensor._keras_history
    own = 2 if layer.name == "stem" else int(layer.name.endswith("_conv"))
    return own + max((_depth(x) for x in layer._inbound_nodes[node].input_tensors), default=0)
