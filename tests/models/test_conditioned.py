import keras
import numpy as np
import pytest
from keras import ops

from partialseg.models.conditioned import (
    AppendValue,
    OrgansToChannels,
    RepeatSamples,
    conditioned_unet,
    organ_values,
)

SMALL = {"strides": ((1, 1, 1), (1, 2, 2)), "base_channels": 4}


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(0, 100, (2, 4, 8, 8, 1)).astype("float32")


def test_another_organ_gives_another_map_also_where_padding_cannot_tell_them_apart(image):
    """With kernels of 1 nothing but the value can: instance norm after it would make all maps the same."""
    keras.utils.set_random_seed(0)
    model = conditioned_unet(4, kernels=((1, 1, 1), (1, 1, 1)), **SMALL)
    logits = ops.convert_to_numpy(model(image))[..., 1:]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        difference = logits[..., one] - logits[..., other]
        assert (difference.std(axis=(1, 2, 3)) > 0.02 * logits.std()).all()


def test_the_value_alone_makes_the_difference_between_organs(image):
    model = conditioned_unet(4, **SMALL)
    model.get_layer("condition0").values = (0.3, 0.3, -0.3)
    logits = ops.convert_to_numpy(model(image))
    assert np.allclose(logits[..., 1], logits[..., 2], atol=1e-5)
    assert not np.allclose(logits[..., 1], logits[..., 3], atol=1e-3)


def test_every_stage_of_the_decoder_is_told_the_organ():
    model = conditioned_unet(4, strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), base_channels=4)
    told = [layer for layer in model.layers if isinstance(layer, AppendValue)]
    assert [layer.values for layer in told] == [organ_values(3)] * 2


def test_repeated_samples_come_back_as_channels(image):
    repeated = RepeatSamples(3)(image)
    assert repeated.shape == (6, 4, 8, 8, 1)
    organs = ops.convert_to_numpy(OrgansToChannels(3)(repeated))
    assert np.array_equal(organs, np.repeat(image, 3, axis=-1))


def test_value_of_each_organ_stands_at_every_voxel_of_every_sample(image):
    values = organ_values(3)
    x = AppendValue(values)(RepeatSamples(3)(image))
    organs = ops.convert_to_numpy(OrgansToChannels(3)(x[..., 1:]))
    assert np.array_equal(organs, np.broadcast_to(values, organs.shape))


def test_values_of_organs_are_one_apart_around_zero():
    for organs in range(1, 20):
        values = organ_values(organs)
        assert np.allclose(np.diff(values), 1)
        assert sum(values) == 0
