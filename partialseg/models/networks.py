"""The networks by the name that a config has for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import keras

from partialseg.models.conditioned import conditioned_unet
from partialseg.models.dynamic_head import dynamic_head_unet
from partialseg.models.layers import CropToInput
from partialseg.models.nnunet import unet
from partialseg.models.pipo_fan import pipo_fan

#: By `kind`: what builds the network.
NETWORKS: Mapping[str, Callable[..., keras.Model]] = MappingProxyType(
    {
        "unet": unet,
        "pipo_fan": pipo_fan,
        "conditioned": conditioned_unet,
        "dynamic_head": dynamic_head_unet,
    }
)


def build_network(kind: str, num_classes: int, **options: Any) -> keras.Model:
    """Build a network by its kind.

    Args:
        kind: One of `NETWORKS`.
        num_classes: Classes including background.
        **options: Arguments of its builder, instead of their defaults.

    Raises:
        ValueError: If there is no such network, or it has no such option.

    Example:
        >>> build_network("unet", 3, strides=((1, 1, 1), (2, 2, 2)), base_channels=4).name
        'unet'
        >>> build_network("vnet", 3)
        Traceback (most recent call last):
        ...
        ValueError: There is no network 'vnet'; there are unet, pipo_fan, conditioned, dynamic_head
    """
    if kind not in NETWORKS:
        raise ValueError(f"There is no network {kind!r}; there are {', '.join(NETWORKS)}")
    known = inspect.signature(NETWORKS[kind]).parameters
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"Network {kind!r} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return NETWORKS[kind](num_classes, **options)


def output_strides(model: keras.Model) -> list[tuple[int, ...]]:
    """How much coarser than the input each output of one of these networks is, so that targets can be made alike.

    Args:
        model: What `build_network` gave, or a network that ends in `CropToInput` layers.

    Raises:
        ValueError: If an output does not come from a `CropToInput` layer.

    Example:
        >>> output_strides(unet(3, strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), base_channels=4, deep_supervision=True))
        [(1, 1, 1), (1, 2, 2)]
    """
    layers = [output._keras_history.operation for output in model.outputs]
    if not all(isinstance(layer, CropToInput) for layer in layers):
        raise ValueError(
            f"Model {model.name!r} does not end in CropToInput layers; it is none of {', '.join(NETWORKS)}"
        )
    return [layer.stride for layer in layers]
