"""Networks: functional Keras models from HU patches to logits."""

from partialseg.models.conditioned import conditioned_unet
from partialseg.models.dynamic_head import dynamic_head_unet
from partialseg.models.heads import take_over
from partialseg.models.layers import CropToInput, NormalizeHU, PadToMultiple
from partialseg.models.networks import NETWORKS, build_network, output_strides
from partialseg.models.nnunet import unet
from partialseg.models.pipo_fan import pipo_fan
from partialseg.models.stages import PAPER_STRIDES, supervision_strides

__all__ = [
    "NETWORKS",
    "PAPER_STRIDES",
    "CropToInput",
    "NormalizeHU",
    "PadToMultiple",
    "build_network",
    "conditioned_unet",
    "dynamic_head_unet",
    "output_strides",
    "pipo_fan",
    "supervision_strides",
    "take_over",
    "unet",
]
