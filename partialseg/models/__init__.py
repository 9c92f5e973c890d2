"""Networks: functional Keras models from HU patches to logits."""

from partialseg.models.layers import CropToInput, NormalizeHU, PadToMultiple
from partialseg.models.plain_unet import PAPER_STRIDES, supervision_strides, unet

__all__ = ["PAPER_STRIDES", "CropToInput", "NormalizeHU", "PadToMultiple", "supervision_strides", "unet"]
