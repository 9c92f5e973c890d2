"""What is refused: exactly the maps over which TensorFlow's gradients in bfloat16 are wrong."""

import keras
import pytest

from partialseg.errors import DataError
from partialseg.training.beginning import begin
from partialseg.training.bfloat16 import check_gradients, stage_depths
from partialseg.training.config import TrainingConfig

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="of TensorFlow")


def config(depth, precision="bfloat16", kernels=None):
    network = {"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)), "kernels": kernels}
    return TrainingConfig(name="half", patch_size=(depth, 32, 32), precision=precision, network=network)


@pytest.mark.parametrize("depth", [8, 7])
def test_a_stage_of_two_voxels_is_refused_in_bfloat16_on_a_cpu(depth):
    assert stage_depths(config(depth)) == [8, 4, 2]
    with pytest.raises(DataError, match=rf"half: .*{depth} voxels deep comes to 2.*float32"):
        check_gradients(config(depth))


def test_other_depths_precisions_kernels_and_libraries_are_not(monkeypatch):
    check_gradients(config(8, "float32"))
    check_gradients(config(12))
    check_gradients(config(8, kernels=((3, 3, 3), (3, 3, 3), (1, 3, 3))))
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    check_gradients(config(8))


def test_a_refused_start_leaves_no_folder(tiny_prepared, tmp_path):
    with pytest.raises(DataError, match="trains in bfloat16 on a CPU"):
        begin(config(8), tiny_prepared, tmp_path / "run", None, None)
    assert not (tmp_path / "run").exists()
