"""A trained network in another precision: the same weights, nearly the same logits."""

import keras
import numpy as np
import pytest

from partialseg.errors import DataError
from partialseg.inference.precision import load_model
from partialseg.models import build_network
from partialseg.training.config import TrainingConfig
from partialseg.training.runs import Run, write_run

PATCHES = np.random.default_rng(0).normal(0, 300, (1, 4, 8, 8, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose training computed in bfloat16; what it ended with computes in float32 all the same."""
    network = {"strides": ((1, 1, 1), (1, 2, 2)), "base_channels": 4}
    config = TrainingConfig(name="small", patch_size=(4, 8, 8), network=network, precision="bfloat16")
    run = Run(tmp_path_factory.mktemp("run"), config, ("background", "liver", "spleen"), (3.0, 1.5, 1.5), {})
    write_run(run, {})
    keras.utils.set_random_seed(0)
    build_network(num_classes=3, **config.network.model_dump()).save(run.model_path)
    return run


def test_the_weights_are_the_same_and_only_digits_are_lost(run):
    usual, half = load_model(run), load_model(run, "bfloat16")
    for one, other in zip(usual.get_weights(), half.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    exact, near = (keras.ops.convert_to_numpy(model(PATCHES)) for model in (usual, half))
    assert near.dtype == np.float32
    assert 0 < np.abs(near - exact).max() < 0.1 * exact.std()


@pytest.mark.parametrize("precision", [None, "float32"])
def test_by_default_and_in_float32_it_is_the_network_as_saved(run, precision):
    assert {layer.compute_dtype for layer in load_model(run, precision).layers} == {"float32"}


def test_a_config_of_another_network_is_refused_with_its_name(run, tmp_path):
    other = Run(tmp_path, TrainingConfig(name="other", patch_size=(4, 8, 8)), run.classes, run.spacing_mm, {})
    write_run(other, {})
    other.model_path.write_bytes(run.model_path.read_bytes())
    with pytest.raises(DataError, match=r"config\.yaml.* describes another network"):
        load_model(other, "bfloat16")
