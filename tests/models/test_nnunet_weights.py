"""Our U-Nets beside what nnU-Net's own networks gave, recorded by benchmarks/nnunet_parity.py."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from partialseg.errors import DataError
from partialseg.models import dynamic_head_unet, unet
from partialseg.models.nnunet_weights import from_nnunet, to_nnunet
from partialseg.models.stages import kernel_sizes

HERE = Path(__file__).parent
SIZES = json.loads((HERE / "nnunet_sizes.json").read_text(encoding="utf-8"))
encoders = pytest.mark.parametrize("encoder", ["plain", "residual"])


class Recorded:
    """nnU-Net's network: its weights under all their names, an image in HU, and its logits, finest first."""

    def __init__(self, encoder):
        with np.load(HERE / f"nnunet_{encoder}.npz") as file:
            stored_as = json.loads(str(file["stored_as"]))
            self.weights = {name: file[stored] for name, stored in stored_as.items()}
            self.hu = file["hu"]
            self.logits = [file["logits0"], file["logits1"]]
            self.options = json.loads(str(file["options"]))

    def network(self, **options):
        return unet(3, **{**self.options, **options})


def logits_of(model, hu):
    outputs = model(hu)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return [ops.convert_to_numpy(output) for output in outputs]


@pytest.mark.parametrize("recorded", SIZES["networks"], ids=lambda recorded: recorded["name"])
def test_parameters_and_output_shapes_are_those_of_nnunet(recorded):
    model = unet(recorded["num_classes"], **recorded["options"])
    assert model.count_params() == recorded["parameters"] - recorded["parameters_of_unused_logits"]
    shapes = model.compute_output_shape((1, *recorded["patch"], 1))
    shapes = shapes if isinstance(shapes, list) else [shapes]
    assert [[n, c, *spatial] for n, *spatial, c in shapes] == recorded["output_shapes"]


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_defaults_are_those_of_nnunet(name):
    """For the patch and the spacing of the paper nothing needs to be said but the encoder."""
    options = next(network["options"] for network in SIZES["networks"] if network["name"] == name)
    few = {"base_channels": 2, "max_channels": 20, "deep_supervision": True}
    as_planned, by_default = unet(6, **{**options, **few}), unet(6, encoder=name, **few)
    shapes = [[(w.path, tuple(w.shape)) for w in model.weights] for model in (as_planned, by_default)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("recorded", SIZES["networks"], ids=lambda recorded: recorded["name"])
def test_kernels_are_those_of_nnunets_planner(recorded):
    assert [list(kernel) for kernel in kernel_sizes(recorded["options"]["strides"])] == (
        recorded["options"]["kernels"]
    )


@encoders
def test_weights_of_nnunet_give_its_logits(encoder):
    recorded = Recorded(encoder)
    model = recorded.network()
    from_nnunet(recorded.weights, model)
    for ours, theirs in zip(logits_of(model, recorded.hu), recorded.logits, strict=True):
        assert ours.std() > 0.5
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@encoders
def test_converted_weights_are_nnunets_entry_by_entry(encoder):
    recorded = Recorded(encoder)
    model = recorded.network()
    from_nnunet(recorded.weights, model)
    converted = to_nnunet(model)
    # PyTorch's strict loading demands exactly these.
    assert converted.keys() == recorded.weights.keys()
    for name, array in recorded.weights.items():
        np.testing.assert_array_equal(converted[name], array, err_msg=name)
        assert converted[name].dtype == np.float32


@encoders
def test_first_names_are_enough(encoder):
    recorded = Recorded(encoder)
    first = {
        name: array
        for name, array in recorded.weights.items()
        if "all_modules" not in name and not name.startswith("decoder.encoder.")
    }
    assert 2 * len(first) < len(recorded.weights)
    model = recorded.network()
    from_nnunet(first, model)
    np.testing.assert_allclose(logits_of(model, recorded.hu)[0], recorded.logits[0], atol=1e-4, rtol=0)


@encoders
def test_logits_of_coarser_stages_are_left_out_without_deep_supervision(encoder):
    recorded = Recorded(encoder)
    model = recorded.network(deep_supervision=False)
    from_nnunet(recorded.weights, model)
    (logits,) = logits_of(model, recorded.hu)
    np.testing.assert_allclose(logits, recorded.logits[0], atol=1e-4, rtol=0)
    missing = recorded.weights.keys() - to_nnunet(model).keys()
    assert missing == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}


def test_dropout_shifts_the_place_of_the_norm():
    strides = ((1, 1, 1), (2, 2, 2))
    options = {"strides": strides, "base_channels": 2, "encoder": "residual", "convolutions_per_stage": 1}
    names = to_nnunet(unet(2, dropout=0.1, **options)).keys()
    block = "encoder.stages.1.blocks.0"
    assert f"{block}.conv1.all_modules.2.weight" in names
    # nnU-Net's second convolution and that of the skip have no dropout; the skip begins with an average.
    assert f"{block}.conv2.all_modules.1.weight" in names
    assert f"{block}.skip.1.all_modules.1.weight" in names
    assert f"{block}.conv1.all_modules.1.weight" in to_nnunet(unet(2, **options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder.stages.1.0.convs.0.conv.weight": None},
            r"^encoder\.stages\.1\.0\.convs\.0\.conv\.weight: is missing, expected an array of shape \(4, 2, 3, 3, 3\)",
        ),
        (
            {"decoder.seg_layers.0.bias": np.zeros(4)},
            r"^decoder\.seg_layers\.0\.bias: has the shape \(4,\), expected \(3,\); build the network",
        ),
        (
            {"encoder.stages.3.0.convs.0.conv.bias": np.zeros(5)},
            r"^encoder\.stages\.3\.0\.convs\.0\.conv\.bias: belongs to no layer of the network 'unet'",
        ),
        (
            {"decoder.seg_layers.2.bias": np.zeros(3)},
            r"^decoder\.seg_layers\.2\.bias: belongs to no layer",
        ),
        (
            {"encoder.stages.0.0.convs.0.all_modules.0.bias": np.ones(2)},
            r"^encoder\.stages\.0\.0\.convs\.0\.all_modules\.0\.bias: is not equal to "
            r"encoder\.stages\.0\.0\.convs\.0\.conv\.bias",
        ),
    ],
)
def test_first_entry_that_does_not_fit_is_named_and_nothing_is_changed(changes, message):
    recorded = Recorded("plain")
    model = recorded.network()
    before = model.get_weights()
    weights = {**recorded.weights, **changes}
    weights = {name: array for name, array in weights.items() if array is not None}
    with pytest.raises(DataError, match=message):
        from_nnunet(weights, model)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_weights_of_the_other_encoder_are_refused():
    with pytest.raises(DataError, match=r"^encoder\.stem\.convs\.0\.conv\.weight: is missing"):
        from_nnunet(Recorded("plain").weights, Recorded("residual").network())
    with pytest.raises(DataError, match=r"^encoder\.stages\.0\.0\.convs\.0\.conv\.weight: is missing"):
        from_nnunet(Recorded("residual").weights, Recorded("plain").network())


def test_networks_that_nnunet_does_not_have_are_refused():
    strides = ((1, 1, 1), (2, 2, 2))
    with pytest.raises(ValueError, match="is none of nnU-Net's"):
        to_nnunet(dynamic_head_unet(3, strides=strides, base_channels=2))
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="Layer 'classify' of model 'other' is none of nnU-Net's"):
        from_nnunet({}, keras.Model(inputs, keras.layers.Dense(2, name="classify")(inputs), name="other"))
