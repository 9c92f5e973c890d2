"""Weights of nnU-Net's networks in PyTorch for ours, and ours for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from partialseg.errors import DataError

#: Keras's names of weights and PyTorch's.
_WEIGHT_NAMES = {"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}
_REMEDY = "build the network with the strides, kernels, channels and encoder of the weights' own plan"


class _Entry(NamedTuple):
    """A weight of ours, and the names that it has in nnU-Net's state dict: the first, and repetitions of it."""

    names: tuple[str, ...]
    variable: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of nnU-Net's array."""
        shape = tuple(self.variable.shape)
        return (shape[4], shape[3], *shape[:3]) if len(shape) == 5 else shape


def from_nnunet(state_dict: Mapping[str, np.ndarray], model: keras.Model) -> None:
    """Give a network the weights of nnU-Net's, in place.

    The state dict is that of a `PlainConvUNet` or a `ResidualEncoderUNet` (with `BasicBlockD`) of
    `dynamic_network_architectures` with 3D convolutions, one input channel, instance norm with factors and leaky
    ReLU: what nnU-Net's planners plan. A checkpoint of nnU-Net has it under `"network_weights"`; make arrays of
    its tensors in PyTorch:

        weights = torch.load("checkpoint_final.pth", map_location="cpu", weights_only=False)["network_weights"]
        np.savez("weights.npz", **{name: tensor.numpy() for name, tensor in weights.items()})

    PyTorch's network lists a weight up to four times, since a convolution is also in `all_modules` and the encoder
    also in the decoder; only the first name is needed, and repetitions must be equal to it. nnU-Net has logits at
    all stages, used or not: those of coarser stages are ignored where the network has no deep supervision.

    nnU-Net's network sees what comes after the layer `normalize` here, which maps HU of the window to -1 … 1.
    nnU-Net's own normalisation of CT is another: HU clipped to `[low, high]`, less their mean, by their standard
    deviation. Both are linear inside their windows: for the same logits, scan and window must be such that the values
    after `normalize` are those that nnU-Net's network was trained with, or the network must be trained further.

    Args:
        state_dict: nnU-Net's names to float arrays; anything that NumPy makes an array of.
        model: What `unet` built, with the same stages and classes.

    Raises:
        DataError: Naming the first entry that is missing, has another shape, is not equal to its repetition or
            belongs to no layer; the model is then as it was.
        ValueError: If the model has layers with weights that nnU-Net's networks do not have.

    Example:
        >>> from partialseg.models import unet
        >>> options = {"strides": ((1, 1, 1), (2, 2, 2)), "base_channels": 2}
        >>> trained, fresh = (unet(3, **options) for _ in range(2))
        >>> from_nnunet(to_nnunet(trained), fresh)
        >>> all(np.array_equal(a, b) for a, b in zip(trained.get_weights(), fresh.get_weights()))
        True
    """
    entries = list(_entries(model))
    arrays = [_array_of(entry, state_dict) for entry in entries]
    known = {name for entry in entries for name in entry.names}
    for name in state_dict:
        if name not in known and not _is_unused_head(name, entries):
            raise DataError(name, f"belongs to no layer of the network {model.name!r}", _REMEDY)
    for entry, array in zip(entries, arrays, strict=True):
        entry.variable.assign(_to_keras(array))


def to_nnunet(model: keras.Model) -> dict[str, np.ndarray]:
    """Weights of a network by nnU-Net's names, in PyTorch's layout.

    Each weight comes under all its names, so that `load_state_dict` takes it with `strict=True`:

        network.load_state_dict({name: torch.from_numpy(array) for name, array in to_nnunet(model).items()})

    nnU-Net has logits at all stages, used or not. Where the network has no deep supervision, those of coarser stages
    (`decoder.seg_layers`, all but the last) are left out: then `strict=False`, which leaves them as they are.
    About what nnU-Net's network must be given see `from_nnunet`.

    Args:
        model: What `unet` built.

    Returns:
        Float arrays, names of the same weight sharing one.

    Raises:
        ValueError: If the model has layers with weights that nnU-Net's networks do not have.

    Example:
        >>> from partialseg.models import unet
        >>> weights = to_nnunet(unet(3, strides=((1, 1, 1), (2, 2, 2)), base_channels=2))
        >>> weights["encoder.stages.1.0.convs.0.conv.weight"].shape, weights["decoder.seg_layers.0.bias"].shape
        ((4, 2, 3, 3, 3), (3,))
    """
    weights = {}
    for entry in _entries(model):
        array = _to_torch(ops.convert_to_numpy(entry.variable))
        weights.update(dict.fromkeys(entry.names, array))
    return weights


def _array_of(entry: _Entry, state_dict: Mapping[str, Any]) -> np.ndarray:
    """A weight's array, checked."""
    name = entry.names[0]
    if name not in state_dict:
        raise DataError(name, f"is missing, expected an array of shape {entry.shape}", _REMEDY)
    array = np.asarray(state_dict[name])
    if array.shape != entry.shape:
        raise DataError(name, f"has the shape {array.shape}, expected {entry.shape}", _REMEDY)
    for repetition in entry.names[1:]:
        if repetition in state_dict and not np.array_equal(np.asarray(state_dict[repetition]), array):
            raise DataError(
                repetition,
                f"is not equal to {name}, expected the same array",
                "take the state dict as PyTorch wrote it",
            )
    return array


def _is_unused_head(name: str, entries: list[_Entry]) -> bool:
    """Whether an entry gives the logits of a stage of nnU-Net's decoder that has none in ours."""
    match = re.fullmatch(r"decoder\.seg_layers\.(\d+)\.(weight|bias)", name)
    stages = {entry.names[0].rsplit(".", 1)[0] for entry in entries if ".transpconvs." in entry.names[0]}
    return match is not None and int(match[1]) < len(stages)


def _to_torch(array: np.ndarray) -> np.ndarray:
    """Kernels `(depth, height, width, in, out)` to `(out, in, depth, height, width)`, transposed ones alike."""
    return np.ascontiguousarray(array.transpose(4, 3, 0, 1, 2)) if array.ndim == 5 else array.copy()


def _to_keras(array: np.ndarray) -> np.ndarray:
    """What `_to_torch` did, undone."""
    return array.transpose(2, 3, 4, 1, 0) if array.ndim == 5 else array


def _entries(model: keras.Model) -> Iterator[_Entry]:
    """Every weight of a network, in the order of its layers."""
    layers = {layer.name for layer in model.layers}
    decoder_stages = sum(re.fullmatch(r"up\d+", name) is not None for name in layers)
    for layer in model.layers:
        if not layer.weights:
            continue
        modules = _modules(layer.name, layers, decoder_stages)
        if not modules or any(variable.name not in _WEIGHT_NAMES for variable in layer.weights):
            raise ValueError(
                f"Layer {layer.name!r} of model {model.name!r} is none of nnU-Net's; expected a model of `unet`"
            )
        for variable in layer.weights:
            yield _Entry(tuple(f"{module}.{_WEIGHT_NAMES[variable.name]}" for module in modules), variable)


def _modules(layer: str, layers: set[str], decoder_stages: int) -> tuple[str, ...]:
    """Names of nnU-Net's module for a layer with weights; none if there is no such module.

    Args:
        layer: Its name.
        layers: Names of all layers.
        decoder_stages: nnU-Net counts the stages of the decoder from the coarsest, we from the finest.

    Example:
        >>> _modules("decoder0_1_norm", set(), 3)
        ('decoder.stages.2.convs.1.norm', 'decoder.stages.2.convs.1.all_modules.1')
        >>> _modules("controller", set(), 3)
        ()
    """
    if match := re.fullmatch(r"(up|logits)(\d+)", layer):
        modules = {"up": "transpconvs", "logits": "seg_layers"}[match[1]]
        return (f"decoder.{modules}.{decoder_stages - 1 - int(match[2])}",)
    match = re.fullmatch(r"(\w+)_(conv|norm)", layer)
    block = _block(match[1], layers, decoder_stages) if match else None
    if match is None or block is None:
        return ()
    # `all_modules` are convolution, dropout if any, norm, leaky ReLU if any.
    position = 0 if match[2] == "conv" else 2 if f"{match[1]}_dropout" in layers else 1
    modules = (f"{block}.{match[2]}", f"{block}.all_modules.{position}")
    if block.startswith("encoder."):
        modules += tuple(f"decoder.{module}" for module in modules)
    return modules


def _block(name: str, layers: set[str], decoder_stages: int) -> str | None:
    """nnU-Net's name of a convolution with its norm.

    Example:
        >>> _block("encoder1_0_skip", {"encoder1_0_skip_pool"}, 3)
        'encoder.stages.1.blocks.0.skip.1'
    """
    if name == "stem":
        return "encoder.stem.convs.0"
    match = re.fullmatch(r"(encoder|decoder)(\d+)_(\d+)(?:_(1|2|skip))?", name)
    if match is None or (match[1] == "decoder" and match[4]):
        return None
    part, stage, repeat, inside = match[1], int(match[2]), match[3], match[4]
    if part == "decoder":
        return f"decoder.stages.{decoder_stages - 1 - stage}.convs.{repeat}"
    if inside is None:
        return f"encoder.stages.{stage}.0.convs.{repeat}"
    # Before the convolution of a skip comes the average over a stride, if there is one.
    module = f"skip.{int(f'{name}_pool' in layers)}" if inside == "skip" else f"conv{inside}"
    return f"encoder.stages.{stage}.blocks.{repeat}.{module}"
