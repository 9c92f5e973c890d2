import keras
import pytest

from partialseg.models import NETWORKS, build_network, output_strides

SMALL = {"strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)), "base_channels": 2}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_is_built_by_its_kind_and_says_how_coarse_its_outputs_are(kind):
    model = build_network(kind, 3, **SMALL)
    strides = output_strides(model)
    assert len(strides) == len(model.outputs)
    assert strides[0] == (1, 1, 1)
    shapes = model.compute_output_shape((1, 8, 16, 12, 1))
    shapes = shapes if isinstance(shapes, list) else [shapes]
    assert [shape[1:4] for shape in shapes] == [(8 // d, 16 // h, 12 // w) for d, h, w in strides]


def test_an_option_that_a_network_does_not_have_is_refused():
    with pytest.raises(ValueError, match="Network 'conditioned' has no option encoder; it has num_classes"):
        build_network("conditioned", 3, encoder="residual")


@pytest.mark.parametrize("kind", ["unet", "conditioned", "dynamic_head"])
def test_deep_supervision_gives_logits_of_each_stage_of_the_decoder(kind):
    model = build_network(kind, 3, deep_supervision=True, **SMALL)
    assert output_strides(model) == [(1, 1, 1), (1, 2, 2)]
    assert {output.shape[-1] for output in model.outputs} == {3}


def test_a_model_that_ends_otherwise_has_no_output_strides():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="does not end in CropToInput layers"):
        output_strides(keras.Model(inputs, keras.layers.Dense(2)(inputs)))
