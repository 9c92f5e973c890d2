"""Layers that the networks share: HU to network units, and padding to what strided convolutions divide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="partialseg")
class NormalizeHU(keras.layers.Layer):
    """Clip Hounsfield units to a window and map it linearly to -1 … 1.

    It is part of the network, so that training, prediction and an exported model cannot disagree about it.

    Args:
        window_hu: Lower and upper end of the window, in HU.

    Call arguments:
        x: HU, any shape, any float dtype.

    Returns:
        Same shape, the layer's compute dtype, -1 … 1.

    Example:
        >>> layer = NormalizeHU((-200.0, 300.0))
        >>> [float(v) for v in layer(ops.array([-1000.0, 50.0, 300.0]))]
        [-1.0, 0.0, 1.0]
    """

    def __init__(self, window_hu: Sequence[float] = (-200.0, 300.0), **kwargs: Any) -> None:
        # HU beyond 2048 are not whole numbers in float16: the input is taken as it comes and cast afterwards.
        super().__init__(autocast=False, **kwargs)
        low, high = (float(value) for value in window_hu)
        if not low < high:
            raise ValueError(f"window_hu must be (low, high) with low < high, received {window_hu}")
        self.window_hu = (low, high)

    def call(self, x: Any) -> Any:
        """Normalise `x`."""
        low, high = self.window_hu
        x = ops.clip(ops.cast(x, "float32"), low, high)
        return ops.cast((x - (low + high) / 2) * (2 / (high - low)), self.compute_dtype)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """The shape stays."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "window_hu": self.window_hu}


@keras.saving.register_keras_serializable(package="partialseg")
class PadToMultiple(keras.layers.Layer):
    """Pad the end of each spatial axis to the next multiple, with the lowest value that `NormalizeHU` gives.

    Padding at the end alone keeps voxel `i` of a map that is `s` times coarser over the voxels
    `s i … s i + s - 1` of the input, so that coarse targets are plain strided slices.

    Args:
        multiple: One whole number for each spatial axis.
    """

    def __init__(self, multiple: Sequence[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.multiple = tuple(int(m) for m in multiple)

    def call(self, x: Any) -> Any:
        """Pad `x` of shape `(batch, *spatial, channels)`."""
        sizes = ops.shape(x)[1:-1]
        after = [(-size) % multiple for size, multiple in zip(sizes, self.multiple, strict=True)]
        return ops.pad(x, [(0, 0), *((0, amount) for amount in after), (0, 0)], constant_values=-1.0)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Each known spatial size is rounded up."""
        spatial = [
            None if size is None else size + (-size) % multiple
            for size, multiple in zip(input_shape[1:-1], self.multiple, strict=True)
        ]
        return (input_shape[0], *spatial, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "multiple": self.multiple}


@keras.saving.register_keras_serializable(package="partialseg")
class CropToInput(keras.layers.Layer):
    """Undo `PadToMultiple`: crop a map that is `stride` times coarser to `ceil(size / stride)`.

    Args:
        stride: How many input voxels one voxel of the map spans, for each spatial axis.
    """

    def __init__(self, stride: Sequence[int] = (1, 1, 1), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stride = tuple(int(s) for s in stride)

    def call(self, inputs: Sequence[Any]) -> Any:
        """Crop; `inputs` is (map, network input), both `(batch, *spatial, channels)`."""
        x, reference = inputs
        sizes = ops.shape(reference)[1:-1]
        d, h, w = (-(-size // stride) for size, stride in zip(sizes, self.stride, strict=True))
        return x[:, :d, :h, :w, :]

    def compute_output_shape(self, input_shape: Sequence[tuple]) -> tuple:
        """Spatial sizes of the network input, divided by the stride and rounded up."""
        x, reference = input_shape
        spatial = [
            None if size is None else -(-size // stride)
            for size, stride in zip(reference[1:-1], self.stride, strict=True)
        ]
        return (x[0], *spatial, x[-1])

    def get_config(self) -> dict[str, Any]:
        """What rebuilds the layer."""
        return {**super().get_config(), "stride": self.stride}
