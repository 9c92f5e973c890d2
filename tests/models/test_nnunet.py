import keras
import numpy as np
import pytest
from keras import ops

from partialseg.models import (
    PAPER_STRIDES,
    CropToInput,
    NormalizeHU,
    PadToMultiple,
    supervision_strides,
    unet,
)
from partialseg.models.blocks import convolution, residual_block

SMALL = {"strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)), "base_channels": 4}


encoders = pytest.mark.parametrize("encoder", ["plain", "residual"])


@encoders
@pytest.mark.parametrize("size", [(8, 16, 16), (5, 7, 9), (1, 1, 1), (2, 190 // 10, 33)])
def test_any_input_size_gives_logits_of_that_size(encoder, size):
    model = unet(6, encoder=encoder, convolutions_per_stage=(1, 2, 1), **SMALL)
    logits = model(np.zeros((2, *size, 1), "float32"))
    assert logits.shape == (2, *size, 6)
    assert np.isfinite(ops.convert_to_numpy(logits)).all()


def test_an_image_that_strides_do_not_divide_has_the_logits_of_one_with_the_lowest_value_behind_it():
    model = unet(3, **SMALL)
    image = np.random.default_rng(0).normal(0, 100, (1, 15, 30, 31, 1)).astype("float32")
    padded = np.pad(image, ((0, 0), (0, 1), (0, 2), (0, 1), (0, 0)), constant_values=-200)
    logits, of_padded = (ops.convert_to_numpy(model(x)) for x in (image, padded))
    np.testing.assert_allclose(logits, of_padded[:, :15, :30, :31], atol=1e-5)


def test_paper_topology_takes_the_paper_patch_and_has_the_depth_of_nnunet():
    model = unet(6, strides=PAPER_STRIDES, base_channels=4)
    assert len([layer for layer in model.layers if layer.name.startswith("up")]) == 5
    assert model(np.zeros((1, 48, 190, 190, 1), "float32")).shape == (1, 48, 190, 190, 6)


def test_deep_supervision_returns_each_decoder_stage_rounded_up():
    model = unet(6, deep_supervision=True, **SMALL)
    outputs = model(np.zeros((1, 5, 9, 9, 1), "float32"))
    assert [tuple(o.shape[1:4]) for o in outputs] == [(5, 9, 9), (5, 5, 5)]
    strides = supervision_strides(SMALL["strides"])
    target = np.zeros((1, 5, 9, 9, 6))
    assert [target[:, ::d, ::h, ::w].shape[1:4] for d, h, w in strides] == [(5, 9, 9), (5, 5, 5)]


@encoders
def test_saved_model_gives_the_same_logits(encoder, tmp_path):
    model = unet(4, encoder=encoder, **SMALL)
    image = np.random.default_rng(1).normal(0, 300, (1, 6, 10, 10, 1)).astype("float32")
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert np.allclose(ops.convert_to_numpy(model(image)), ops.convert_to_numpy(again(image)), atol=1e-6)


@encoders
def test_network_learns_one_batch(encoder):
    keras.utils.set_random_seed(0)
    label = np.zeros((1, 8, 16, 16), int)
    label[:, 2:6, 4:12, 4:12] = 1
    image = np.where(label, 120.0, -50.0)[..., None].astype("float32")
    model = unet(2, encoder=encoder, convolutions_per_stage=1, **SMALL)
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(image, label, epochs=60, verbose=0)
    prediction = ops.convert_to_numpy(model(image)).argmax(-1)
    assert 2 * (prediction & label).sum() / (prediction.sum() + label.sum()) > 0.9


@encoders
@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_mixed_precision_returns_float32_logits(encoder, half):
    keras.mixed_precision.set_dtype_policy(f"mixed_{half}")
    try:
        model = unet(3, encoder=encoder, convolutions_per_stage=1, **SMALL)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert model.output.dtype == "float32"
    assert {layer.compute_dtype for layer in model.layers if "conv" in layer.name} == {half}
    assert np.isfinite(ops.convert_to_numpy(model(np.zeros((1, 4, 8, 8, 1), "float32")))).all()


def test_window_is_clipped_and_centred():
    layer = NormalizeHU((-100.0, 300.0))
    values = ops.convert_to_numpy(layer(np.array([-1024.0, -100.0, 100.0, 300.0, 3000.0])))
    assert values.tolist() == [-1, -1, 0, 1, 1]
    assert NormalizeHU.from_config(layer.get_config()).window_hu == (-100.0, 300.0)
    with pytest.raises(ValueError, match="low < high"):
        NormalizeHU((1, 1))


def test_pad_and_crop_are_inverse():
    image = np.arange(2 * 3 * 5 * 7, dtype="float32").reshape(2, 3, 5, 7, 1)
    padded = PadToMultiple((2, 4, 8))(image)
    assert padded.shape == (2, 4, 8, 8, 1)
    assert float(padded[0, -1, -1, -1, 0]) == -1.0
    assert np.array_equal(ops.convert_to_numpy(CropToInput()([padded, image])), image)


def test_kernels_can_be_given_for_each_stage():
    model = unet(2, kernels=((1, 3, 3), (3, 5, 5), (3, 3, 1)), **SMALL)
    kernels = [model.get_layer(f"encoder{stage}_0_conv").kernel.shape[:3] for stage in range(3)]
    assert kernels == [(1, 3, 3), (3, 5, 5), (3, 3, 1)]


def test_dropout_sets_whole_channels_to_zero_in_training_alone():
    model = unet(2, dropout=0.5, **SMALL)
    image = np.random.default_rng(0).normal(0, 100, (1, 8, 16, 16, 1)).astype("float32")
    kept, dropped = (
        ops.convert_to_numpy(
            keras.Model(model.input, model.get_layer("encoder0_0_dropout").output)(image, training=t)
        )
        for t in (False, True)
    )
    alive = np.any(dropped != 0, axis=(0, 1, 2, 3))
    assert np.any(kept != 0, axis=(0, 1, 2, 3)).all()
    np.testing.assert_allclose(dropped[..., alive], 2 * kept[..., alive], rtol=1e-5)
    assert (dropped[..., ~alive] == 0).all()
    np.testing.assert_array_equal(ops.convert_to_numpy(model(image)), ops.convert_to_numpy(model(image)))


@pytest.mark.parametrize("size", [(4, 9, 8), (1, 1, 1)])
def test_coarse_voxels_are_centred_on_those_that_strided_targets_are_taken_from(size):
    inputs = keras.Input((None, None, None, 1))
    normed = convolution(inputs, 1, (1, 3, 5), "first", stride=(1, 2, 2))
    layers = keras.Model(inputs, normed).layers
    model = keras.Model(inputs, next(layer.output for layer in layers if layer.name == "first_conv"))
    centre = np.zeros((1, 3, 5, 1, 1), "float32")
    centre[0, 1, 2] = 1
    model.set_weights([centre, np.zeros(1, "float32")])
    image = np.random.default_rng(0).normal(size=(1, *size, 1)).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(model(image)), image[:, :, ::2, ::2])


def test_fresh_residual_block_hands_on_what_goes_around_it():
    inputs = keras.Input((None, None, None, 2))
    block = keras.Model(inputs, residual_block(inputs, 2, (3, 3, 3), "block", stride=(1, 2, 1)))
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 5, 2)).astype("float32")
    average = image.reshape(1, 3, 2, 2, 5, 2).mean(3)
    expected = np.where(average > 0, average, 0.01 * average)
    np.testing.assert_allclose(ops.convert_to_numpy(block(image)), expected, atol=1e-6)


def test_convolutions_of_each_stage_can_be_given():
    def convolutions(**options):
        names = [layer.name for layer in unet(2, **options, **SMALL).layers if layer.name.endswith("_conv")]
        return [
            sum(name.startswith(f"{part}{stage}") for name in names)
            for part, stages in (("encoder", 3), ("decoder", 2))
            for stage in range(stages)
        ]

    assert convolutions() == [2, 2, 2, 2, 2]
    assert convolutions(convolutions_per_stage=(1, 2, 3), decoder_convolutions=1) == [1, 2, 3, 1, 1]
    # Two convolutions a block, and one on the skip where the channels change.
    assert convolutions(encoder="residual") == [2, 7, 9, 1, 1]
    assert convolutions(encoder="residual", convolutions_per_stage=1, decoder_convolutions=3) == [
        2,
        3,
        3,
        3,
        3,
    ]


@encoders
def test_without_bias_only_norms_and_logits_have_one(encoder):
    model = unet(2, encoder=encoder, convolution_bias=False, deep_supervision=True, **SMALL)
    biased = {w.path.split("/")[-2] for w in model.weights if w.name == "bias"}
    assert biased == {"logits0", "logits1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "vgg"}, "encoder must be 'plain' or 'residual', received 'vgg'"),
        ({"convolutions_per_stage": (1, 2)}, "one number or 3, received"),
        ({"convolutions_per_stage": 0}, "must be 1 at least"),
        ({"convolutions_per_stage": (2, 0, 2)}, "must be 1 at least"),
        ({"decoder_convolutions": 0}, "decoder_convolutions must be 1 at least, received 0"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        unet(2, **options, **SMALL)
