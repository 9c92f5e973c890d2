"""Predict a volume of any size window by window, blended with Gaussian weights as nnU-Net does."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

#: What lies outside the field of view, in HU.
AIR = -1024.0


def predict_volume(
    model: Callable[[Any], Any],
    volume: np.ndarray,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Predict every voxel of a volume.

    The windows are those of nnU-Net (Isensee et al., 2021): as few as the overlap permits, evenly spread,
    each weighted by a Gaussian whose sigma is an eighth of the patch, so that voxels are decided by windows
    in which they lie centrally.

    Args:
        model: A Keras model or any callable: float32 HU `(batch, depth, height, width, 1)` to logits
            `(batch, depth, height, width, classes)`. Of several outputs (deep supervision) the first counts.
        volume: HU `(depth, height, width)` at the spacing that the model was trained at.
        patch_size: `(depth, height, width)` of the windows in voxels. A volume that is smaller is surrounded
            by air (-1024 HU).
        overlap: Share of a window that it has in common with the next one at least, 0 to below 1.
        batch_size: Windows that are predicted together.
        progress: Called after each batch with the number of windows done and in all.

    Returns:
        Probabilities, float32 `(depth, height, width, classes)`: the weighted mean over windows of the
        softmax of the logits.

    Raises:
        ValueError: If the volume is not 3D or empty, or the patch size or the overlap is not in its range.

    Example:
        >>> brighter_than_zero = lambda hu: np.concatenate([0 * hu, hu], axis=-1)
        >>> volume = np.full((3, 9, 5), -1000.0); volume[1, 4, 2] = 1000.0
        >>> probabilities = predict_volume(brighter_than_zero, volume, (4, 4, 4))
        >>> probabilities.shape, int(probabilities.argmax(axis=-1).sum())
        ((3, 9, 5, 2), 1)
    """
    patch_size = tuple(int(size) for size in patch_size)
    _check(volume, patch_size, overlap)
    before = [max(0, patch - size) // 2 for size, patch in zip(volume.shape, patch_size, strict=True)]
    inside = tuple(slice(b, b + size) for b, size in zip(before, volume.shape, strict=True))
    volume = _pad(volume, patch_size, before)
    axes = []
    for size, patch in zip(volume.shape, patch_size, strict=True):
        starts = window_starts(size, patch, overlap)
        axes.append(list(zip(starts, window_weights(starts, size, patch), strict=True)))
    windows = list(itertools.product(*axes))

    forward = _forward(model, patch_size)
    scores = None
    for done in range(0, len(windows), batch_size):
        batch = windows[done : done + batch_size]
        places = [_place([start for start, _ in window], patch_size) for window in batch]
        patches = np.stack([volume[place] for place in places])[..., np.newaxis].astype(
            np.float32, copy=False
        )
        weights = [np.stack([window[axis][1] for window in batch]) for axis in range(3)]
        weighted = ops.convert_to_numpy(forward(patches, *weights))
        if scores is None:
            scores = np.zeros((*volume.shape, weighted.shape[-1]), np.float32)
        for place, part in zip(places, weighted, strict=True):
            scores[place] += part
        if progress:
            progress(done + len(batch), len(windows))
    return scores[inside]


def window_starts(size: int, patch: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: the last window ends with the axis, steps are even.

    Args:
        size: Voxels along the axis, at least `patch`.
        patch: Voxels of a window.
        overlap: Share of a window that it has in common with the next one at least.

    Example:
        >>> window_starts(10, 4, 0.5), window_starts(11, 4, 0.5), window_starts(4, 4, 0.5)
        ([0, 2, 4, 6], [0, 2, 4, 5, 7], [0])
    """
    steps = math.ceil((size - patch) / max(1.0, patch * (1 - overlap)))
    return [round(step * (size - patch) / max(steps, 1)) for step in range(steps + 1)]


def window_weights(starts: Sequence[int], size: int, patch: int) -> np.ndarray:
    """Gaussian weights of the windows along one axis, scaled to sum to 1 at every voxel.

    The windows of a volume are a grid, so the product of the weights along its axes sums to 1 as well: no
    volume of weights is needed to divide by.

    Args:
        starts: First voxels of the windows, which cover the axis.
        size: Voxels along the axis.
        patch: Voxels of a window.

    Returns:
        float32 `(windows, patch)`.

    Example:
        >>> print(window_weights([0, 2], 6, 4).round(3))
        [[1.    1.    0.982 0.018]
         [0.018 0.982 1.    1.   ]]
    """
    offset = (np.arange(patch) - (patch - 1) / 2) / (patch / 8)
    gaussian = np.exp(-0.5 * offset**2)
    total = np.zeros(size)
    for start in starts:
        total[start : start + patch] += gaussian
    return np.stack([gaussian / total[start : start + patch] for start in starts]).astype(np.float32)


def first_output(outputs: Any) -> Any:
    """The logits at full resolution, where a model with deep supervision returns several."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    return outputs[0] if isinstance(outputs, (list, tuple)) else outputs


def _check(volume: np.ndarray, patch_size: tuple[int, ...], overlap: float) -> None:
    if volume.ndim != 3 or 0 in volume.shape:
        raise ValueError(
            f"the volume must be (depth, height, width) with no axis empty, received {volume.shape}"
        )
    if len(patch_size) != 3 or min(patch_size) < 1:
        raise ValueError(f"patch_size must be three sizes of at least 1, received {patch_size}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be from 0 to below 1, received {overlap}")


def _pad(volume: np.ndarray, patch_size: Sequence[int], before: Sequence[int]) -> np.ndarray:
    """Surround the volume by air until no axis is shorter than the patch."""
    widths = [
        (b, max(0, patch - size) - b) for size, patch, b in zip(volume.shape, patch_size, before, strict=True)
    ]
    return np.pad(volume, widths, constant_values=AIR) if np.any(widths) else volume


def _place(starts: Sequence[int], patch_size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + patch) for start, patch in zip(starts, patch_size, strict=True))


def _forward(model: Callable[[Any], Any], patch_size: tuple[int, ...]) -> Callable[..., Any]:
    """A function of patches and of their weights along each axis that returns weighted probabilities."""
    if not isinstance(model, keras.Model):
        return lambda patches, *weights: _weighted(model(patches), *weights)
    if keras.backend.backend() == "tensorflow":
        return _compiled(model, patch_size)
    return lambda patches, *weights: _weighted(model.predict_on_batch(patches), *weights)


@functools.lru_cache(maxsize=1)
def _compiled(model: keras.Model, patch_size: tuple[int, ...]) -> Callable[..., Any]:
    """One graph for all scans that a model predicts; its variables are shared, so further training is seen.

    `predict_on_batch` would do under TensorFlow too, but under MirroredStrategy it predicts on every replica.
    """
    import tensorflow as tf

    signature = [tf.TensorSpec((None, *patch_size, 1)), *(tf.TensorSpec((None, size)) for size in patch_size)]

    def forward(patches: Any, *weights: Any) -> Any:
        return _weighted(model(patches, training=False), *weights)

    return tf.function(forward, input_signature=signature, autograph=False)


def _weighted(outputs: Any, depth: Any, height: Any, width: Any) -> Any:
    """Softmax of the logits, times the outer product of the weights along the axes."""
    logits = ops.cast(ops.convert_to_tensor(first_output(outputs)), "float32")
    weight = depth[:, :, None, None] * height[:, None, :, None] * width[:, None, None, :]
    return ops.softmax(logits, axis=-1) * weight[..., None]
