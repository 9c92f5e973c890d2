"""Forward passes for prediction: arrays in, logits out, on whatever backend Keras runs."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from partialseg.models.normalization import norms_compiled_in_prediction

#: Voxels of a patch from which on it is worth the second or two that XLA takes to compile a network's norms. It takes
#: them once for each number of patches in a batch: where `batch_size` does not divide the windows of a slab, the rest
#: batch is compiled for too.
LARGE_PATCH = 2**17
#: Graphs of the networks that are alive, by the shape of what they take.
_graphs: weakref.WeakKeyDictionary[keras.Model, dict[tuple[int, ...], Any]] = weakref.WeakKeyDictionary()


def forward_pass(
    model: Callable[[Any], Any], patch_size: tuple[int, int, int]
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from patches to logits.

    Args:
        model: A Keras model or any callable: float32 HU `(batch, depth, height, width, 1)` to logits
            `(batch, depth, height, width, classes)`. Of several outputs (deep supervision) the first counts.
        patch_size: `(depth, height, width)` of the patches; their number may differ from call to call.

    Returns:
        A function of float32 `(batch, *patch_size, 1)` that gives float32 `(batch, *patch_size, classes)`, which may
        be memory of the backend: it is not to be written to. It stays as it is when the next patches are computed.
    """
    if not isinstance(model, keras.Model):
        return lambda patches: _to_numpy(model(patches))
    if keras.backend.backend() != "tensorflow":
        return lambda patches: _to_numpy(model.predict_on_batch(patches))
    graphs = _graphs.setdefault(model, {})
    if patch_size not in graphs:
        graphs[patch_size] = _graph(model, patch_size)
    graph = graphs[patch_size]
    import tensorflow as tf

    # An array would be bound to the graph's signature three times over; and TensorFlow's own way from a tensor to
    # NumPy copies. The tensor's buffer is the result itself.
    return lambda patches: np.asarray(memoryview(graph(tf.convert_to_tensor(patches))))


def first_output(outputs: Any) -> Any:
    """The logits at full resolution, where a model with deep supervision returns several."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return outputs[0] if isinstance(outputs, (list, tuple)) else outputs


def _graph(model: keras.Model, patch_size: tuple[int, int, int]) -> Callable[[Any], Any]:
    """One graph for all scans that a model predicts; its variables are shared, so further training is seen.

    `predict_on_batch` would do under TensorFlow too, but under MirroredStrategy it predicts on every replica.
    """
    import tensorflow as tf

    alive = weakref.ref(model)  # else the graph would keep its own key alive
    is_large = math.prod(patch_size) >= LARGE_PATCH

    def forward(patches: Any) -> Any:
        with norms_compiled_in_prediction() if is_large else contextlib.nullcontext():
            return ops.cast(first_output(alive()(patches, training=False)), "float32")

    signature = [tf.TensorSpec((None, *patch_size, 1))]
    return tf.function(forward, input_signature=signature, autograph=False).get_concrete_function()


def _to_numpy(outputs: Any) -> np.ndarray:
    return np.ascontiguousarray(ops.convert_to_numpy(first_output(outputs)), dtype=np.float32)
