import keras
import numpy as np
from keras import ops

from partialseg.models.dynamic_head import AppendOrgan, DynamicHead, dynamic_head_unet, head_size

SMALL = {"strides": ((1, 1, 1), (1, 2, 2)), "base_channels": 4}


def test_head_is_three_convolutions_of_each_sample_and_organ():
    rng, channels, organs = np.random.default_rng(0), 3, 2
    features = rng.normal(size=(2, 2, 3, 4, channels)).astype("float32")
    weights = rng.normal(size=(2, organs, head_size(channels))).astype("float32")
    logits = ops.convert_to_numpy(DynamicHead(channels)([features, weights]))
    assert logits.shape == (2, 2, 3, 4, organs)
    for sample in range(2):
        for organ in range(organs):
            own = weights[sample, organ]
            x = features[sample]
            x = np.maximum(x @ own[0:9].reshape(3, 3) + own[9:12], 0)
            x = np.maximum(x @ own[12:21].reshape(3, 3) + own[21:24], 0)
            x = x @ own[24:27] + own[27]
            assert np.allclose(logits[sample, ..., organ], x, atol=1e-5)


def test_controller_gives_other_weights_for_another_organ_and_for_another_image():
    model = dynamic_head_unet(4, **SMALL)
    controller = keras.Model(model.input, model.get_layer("controller").output)
    image = np.random.default_rng(1).gamma([[[[[1.0]]]], [[[[0.1]]]]], 100, (2, 4, 8, 8, 1)).astype("float32")
    weights = ops.convert_to_numpy(controller(image))
    assert weights.shape == (2, 3, head_size(8))
    assert np.abs(weights[0, 0] - weights[0, 1]).max() > 0.01
    assert np.abs(weights[0, 0] - weights[1, 0]).max() > 0.01


def test_an_organ_has_a_one_hot_vector_after_what_all_share():
    tasks = ops.convert_to_numpy(AppendOrgan(3)(np.array([[5.0, 6.0], [7.0, 8.0]])))
    assert tasks.shape == (2, 3, 5)
    assert (tasks[:, :, 2:] == np.eye(3)).all()
    assert (tasks[0, :, :2] == [5, 6]).all()
    assert (tasks[1, :, :2] == [7, 8]).all()


def test_head_of_the_paper_has_nine_weights_more_for_its_second_output():
    assert head_size(8) + (8 + 1) == 162


def test_channels_of_the_head_are_a_choice():
    model = dynamic_head_unet(4, head_channels=5, **SMALL)
    assert model.get_layer("controller").output.shape[-1] == head_size(5)
    assert model(np.zeros((1, 2, 4, 4, 1), "float32")).shape == (1, 2, 4, 4, 4)
