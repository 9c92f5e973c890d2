"""The stream of a stage: from any step on, in parts, with a target for each output."""

import numpy as np
import pytest

from partialseg.data.pipeline import patches
from partialseg.data.prepared import read_prepared
from partialseg.models import build_network
from partialseg.training import batches, read_config
from partialseg.training.batches import stage_batches, steps_of_epoch
from partialseg.training.stage_patches import stage_patches


@pytest.fixture
def config():
    return read_config("tiny")


def network(config, prepared, **options):
    return build_network(num_classes=len(prepared.classes), **{**config.network.model_dump(), **options})


def test_patches_come_from_where_the_config_says(config, tiny_prepared, monkeypatch):
    asked = []
    monkeypatch.setattr(batches, "patches", lambda *arguments, **options: asked.append((arguments, options)))
    config = config.model_copy(update={"data_service": "grpc://reader:5000"})
    prepared = read_prepared(tiny_prepared)
    stage_batches(network(config, prepared), config, prepared, 1, 30, (1, 2))
    options = {"shard": (1, 2), "service": "grpc://reader:5000"}
    assert asked == [((prepared, stage_patches(config, 1, prepared), 30), options)]


@pytest.mark.parametrize("step", [0, 5])
def test_parts_laid_together_are_the_batches(step, config, tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    config = config.model_copy(update={"accumulate": 2})
    assert steps_of_epoch(config, 1, prepared) == 2 * stage_patches(config, 1, prepared).batches_per_epoch
    stream = stage_batches(network(config, prepared), config, prepared, 1, step)
    parts = list(stream.take(4).as_numpy_iterator())
    whole = patches(prepared, stage_patches(config, 1, prepared)).take(5).as_numpy_iterator()
    image, candidates = (np.concatenate(of_batches) for of_batches in zip(*whole, strict=True))
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), image[step : step + 4])
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), candidates[step : step + 4])


def test_coarser_outputs_have_every_other_voxel_as_their_target(config, tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    model = network(config, prepared, deep_supervision=True)
    _, targets = next(stage_batches(model, config, prepared, 0, 0).as_numpy_iterator())
    assert len(targets) == len(model.outputs) == 2
    np.testing.assert_array_equal(targets[1], targets[0][:, :, ::2, ::2])
