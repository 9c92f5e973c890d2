"""Where bfloat16 cannot be trusted."""

from __future__ import annotations

import math
import os

import keras
import tensorflow as tf

from partialseg.errors import DataError
from partialseg.models.stages import kernel_sizes
from partialseg.training.config import TrainingConfig


def check_gradients(config: TrainingConfig) -> None:
    """Refuse to train in bfloat16 where TensorFlow's gradients are wrong.

    On CPUs, oneDNN's gradient of a 3 x 3 x 3 kernel over a map that is 2 voxels deep has, in bfloat16, values up to
    1e36 now and then, for any number of channels: seen with TensorFlow 2.17.1 (oneDNN 3.4.1) on a CPU with
    AVX512-BF16. Of 15 sizes of maps tried, all five that were 2 deep had it, and no other; forward passes were right.

    Args:
        config: What is to be trained.

    Raises:
        DataError: If it is in bfloat16 on a CPU, by oneDNN, and a stage of the network is 2 voxels deep.

    Example:
        >>> check_gradients(TrainingConfig(name="float32", patch_size=(16, 64, 64)))
    """
    is_affected = (
        config.precision == "bfloat16"
        and keras.backend.backend() == "tensorflow"
        and not tf.config.get_visible_devices("GPU")
        and os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0"
    )
    kernels = config.network.kernels or kernel_sizes(config.network.strides)
    is_deep = [kernel[0] > 1 for kernel in kernels]
    if is_affected and (2, True) in zip(stage_depths(config), is_deep, strict=True):
        raise DataError(
            config.name,
            f"trains in bfloat16 on a CPU, and a patch {config.patch_size[0]} voxels deep comes to 2 in a stage of the "
            "network, where TensorFlow's gradients are wrong",
            "train in float32, or give patch_size or strides with which no stage is 2 deep",
        )


def stage_depths(config: TrainingConfig) -> list[int]:
    """Voxels that a patch is deep in each stage of the network, finest first.

    Example:
        >>> network = {"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2))}
        >>> stage_depths(TrainingConfig(name="three stages", patch_size=(30, 64, 64), network=network))
        [32, 16, 8]
    """
    steps = [stride[0] for stride in config.network.strides]
    padded = math.ceil(config.patch_size[0] / math.prod(steps)) * math.prod(steps)
    return [padded // math.prod(steps[: stage + 1]) for stage in range(len(steps))]
