"""How many weights a network has, and how many values its maps hold in a training step. Needs no Keras."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from partialseg.models.stages import kernel_sizes
from partialseg.training.network_config import (
    ConditionedConfig,
    DynamicHeadConfig,
    NetworkConfig,
    PipoFanConfig,
    UNetConfig,
)

#: Maps that stay for the backward pass of a convolution, its norm and its leaky ReLU, which are one layer.
MAPS_OF_A_CONVOLUTION = 2
#: Of a convolution with group norm and a leaky ReLU of their own.
MAPS_OF_GROUP_NORM = 3
#: As many times more stay of a residual block of the U-Net: norms without a leaky ReLU, what is pooled and added.
RESIDUAL = 1.4


class NetworkSize(NamedTuple):
    """What a network has for one patch.

    Attributes:
        weights: Number of weights, to a few percent.
        maps: Values that stay for the backward pass.
        logits: Values of all logits, background included.
        largest: Values of the largest map.
    """

    weights: float
    maps: float
    logits: float
    largest: float


def network_size(network: NetworkConfig, patch_size: Sequence[int], num_classes: int) -> NetworkSize:
    """Count weights and values of a network of any kind.

    Args:
        network: The network.
        patch_size: Voxels `(depth, height, width)`.
        num_classes: Background included.

    Example:
        >>> size = network_size(UNetConfig(strides=((1, 1, 1), (2, 2, 2))), (16, 16, 16), 6)
        >>> round(size.weights / 1000), round(size.logits)
        (294, 24576)
    """
    count = _Count(network, patch_size)
    _COUNTED[network.kind](count, network, num_classes)
    return NetworkSize(count.weights, count.maps, count.logits, count.largest)


class _Count:
    """Adds up, as the functions that build the networks walk through their layers."""

    def __init__(self, network: NetworkConfig, patch_size: Sequence[int]) -> None:
        self.stages = len(network.strides)
        self.strides = network.strides
        self.kernels = [math.prod(kernel) for kernel in network.kernels or kernel_sizes(network.strides)]
        self.channels = [
            min(network.base_channels * 2**stage, network.max_channels) for stage in range(self.stages)
        ]
        sizes, self.voxels = list(patch_size), []
        for stride in network.strides:
            sizes = [-(-size // step) for size, step in zip(sizes, stride, strict=True)]
            self.voxels.append(math.prod(sizes))
        self.weights = self.maps = self.logits = self.largest = 0.0

    def keep(self, stage: int, channels: float, maps: float = 1) -> None:
        """Maps of a stage stay."""
        self.maps += self.voxels[stage] * channels * maps
        self.largest = max(self.largest, self.voxels[stage] * channels)

    def convolution(self, stage: int, before: int, width: int, repeats: int = 1) -> None:
        """A convolution with its norm, of so many copies of each patch."""
        self.weights += self.kernels[stage] * before * width
        self.keep(stage, width * repeats, MAPS_OF_A_CONVOLUTION)

    def upsampling(self, stage: int, repeats: int = 1) -> None:
        """From the stage below to this one, and joined with the skip: twice the channels."""
        width = self.channels[stage]
        self.weights += math.prod(self.strides[stage + 1]) * self.channels[stage + 1] * width
        self.keep(stage, width * repeats)
        self.maps += self.voxels[stage] * 2 * width * repeats

    def encoder(self) -> None:
        """Two convolutions for each stage."""
        for stage, width in enumerate(self.channels):
            self.convolution(stage, self.channels[stage - 1] if stage else 1, width)
            self.convolution(stage, width, width)

    def block(self, stage: int, before: int, width: int) -> int:
        """PIPO-FAN's: two convolutions, and the input added; the channels after it."""
        self.convolution(stage, before, width)
        self.convolution(stage, width, width)
        self.keep(stage, width)
        if before != width:
            self.weights += before * width
            self.keep(stage, width)
        return width

    def supervised(self, network: NetworkConfig) -> range:
        """The stages of the decoder that give logits."""
        return range(self.stages - 1 if network.deep_supervision else 1)


def _unet(count: _Count, network: UNetConfig, num_classes: int) -> None:
    down, up = _convolutions(network)
    residual = RESIDUAL if network.encoder == "residual" else 1
    for stage, width in enumerate(count.channels):
        before = count.channels[stage - 1] if stage else 1
        count.weights += count.kernels[stage] * width * (before + (down[stage] - 1) * width)
        count.keep(stage, width, MAPS_OF_A_CONVOLUTION * down[stage] * residual)
    for stage, width in enumerate(count.channels[:-1]):
        count.upsampling(stage)
        count.convolution(stage, 2 * width, width)
        for _ in range(up - 1):
            count.convolution(stage, width, width)
    for stage in count.supervised(network):
        count.weights += num_classes * count.channels[stage]
        count.logits += count.voxels[stage] * num_classes


def _convolutions(network: UNetConfig) -> tuple[list[int], int]:
    """Convolutions of each stage on the way down, and of a stage on the way up."""
    stages, given = len(network.strides), network.convolutions_per_stage
    residual = network.encoder == "residual"
    if given is None:
        given = [1, 3, 4, *[6] * stages][:stages] if residual else 2
    down = [given] * stages if isinstance(given, int) else list(given)
    if residual:  # a block has two; the first stage has the stem as well
        down = [2 * blocks + (stage == 0) for stage, blocks in enumerate(down)]
    return down, network.decoder_convolutions or (1 if residual else 2)


def _pipo_fan(count: _Count, network: PipoFanConfig, num_classes: int) -> None:
    channels = count.channels
    for stage in range(count.stages):  # the image at each size passes the stem, whose weights all share
        weights = count.weights
        count.convolution(stage, 1, channels[0])
        count.convolution(stage, channels[0], channels[0])
        if stage:
            count.weights = weights
            width = channels[0]
            for block in range(1, stage):
                width = count.block(stage, width, channels[block])
            count.keep(stage, channels[stage - 1])  # pooled
            joined = channels[stage - 1] + width
            count.keep(stage, joined)
            count.block(stage, joined, channels[stage])
    for stage, width in enumerate(channels[:-1]):
        count.upsampling(stage)
        count.block(stage, 2 * width, width)
    for stage, width in enumerate(channels):
        for finer in reversed(range(stage)):
            width = count.block(stage, width, channels[finer])
        count.weights += num_classes * width
        count.logits += count.voxels[stage] * num_classes
    count.logits += count.voxels[0] * num_classes  # fused


def _conditioned(count: _Count, network: ConditionedConfig, num_classes: int) -> None:
    organs = num_classes - 1
    count.encoder()
    for stage, width in enumerate(count.channels[:-1]):
        # Features repeated for each organ and joined do not stay: they are joined once more, with the organ's value.
        count.upsampling(stage, organs)
        count.convolution(stage, 2 * width + 1, width, organs)
        count.keep(stage, width * organs, MAPS_OF_GROUP_NORM - MAPS_OF_A_CONVOLUTION)
        count.convolution(stage, width, width, organs)
    for stage in count.supervised(network):
        count.logits += count.voxels[stage] * num_classes


def _dynamic_head(count: _Count, network: DynamicHeadConfig, num_classes: int) -> None:
    organs, head = num_classes - 1, network.head_channels
    count.encoder()
    for stage, width in enumerate(count.channels[:-1]):
        count.upsampling(stage)
        count.convolution(stage, 2 * width, width)
        count.convolution(stage, width, width)
    count.weights += (2 * (head + 1) * head + head + 1) * (count.channels[-1] + organs)
    for stage in count.supervised(network):
        count.weights += count.channels[stage] * head
        count.keep(stage, head)
        count.keep(stage, organs * head, 2)  # of the two hidden layers what their ReLU gave
        count.logits += count.voxels[stage] * num_classes


_COUNTED: dict[str, Callable] = {
    "unet": _unet,
    "pipo_fan": _pipo_fan,
    "conditioned": _conditioned,
    "dynamic_head": _dynamic_head,
}
