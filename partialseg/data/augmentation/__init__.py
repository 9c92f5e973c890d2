"""Augmentation of patches: what nnU-Net does, on image and candidates alike, compiled by Numba."""

from partialseg.data.augmentation.config import AugmentationConfig, Chance, MirrorConfig

__all__ = ["AugmentationConfig", "Chance", "MirrorConfig"]
