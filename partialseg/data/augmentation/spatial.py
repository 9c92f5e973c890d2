"""Turning, scaling and mirroring: drawn once for a patch, and one affine map from its voxels to those of the volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from partialseg.data.augmentation.config import AugmentationConfig

AXES = ("z", "y", "x")


@dataclass(frozen=True)
class SpatialTransform:
    """What is done to the place of a patch.

    Attributes:
        degrees: By which the patch is turned about each of the axes `(z, y, x)`.
        factor: By which its field of view grows; along the first axis too unless `in_plane`.
        mirrored: Whether each axis is mirrored.
        in_plane: Whether the first axis is left as it is.
    """

    degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    factor: float = 1.0
    mirrored: tuple[bool, bool, bool] = (False, False, False)
    in_plane: bool = False

    @property
    def resamples(self) -> bool:
        """Whether voxels have to be interpolated."""
        return any(self.degrees) or self.factor != 1

    def matrix(self, spacing_mm: Sequence[float]) -> np.ndarray:
        """The map of directions in voxels, without mirroring: from the patch to the volume.

        Args:
            spacing_mm: Voxel size `(z, y, x)`; the map turns in millimetres.

        Returns:
            float64 `(3, 3)`.

        Example:
            >>> SpatialTransform(degrees=(90, 0, 0)).matrix((3, 1, 2)).round(2).tolist()
            [[1.0, 0.0, 0.0], [0.0, 0.0, -2.0], [0.0, 0.5, 0.0]]
        """
        turned = np.eye(3)
        for axis, degrees in enumerate(self.degrees):
            turned = turned @ _rotation(axis, degrees)
        factors = np.array([1.0 if self.in_plane else self.factor, self.factor, self.factor])
        spacing = np.asarray(spacing_mm, np.float64)
        return turned * (factors * spacing) / spacing[:, np.newaxis]

    def map(
        self, patch_size: Sequence[int], anchor: np.ndarray, at: np.ndarray, spacing_mm: Sequence[float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The whole map: voxel `p` of the patch lies at `matrix @ p + offset` in the volume.

        Args:
            patch_size: `(depth, height, width)`.
            anchor: The voxel of the volume `(z, y, x)` about which is turned and scaled.
            at: Where in the patch it lies, before mirroring.
            spacing_mm: Voxel size `(z, y, x)`.

        Returns:
            float64 `(3, 3)` and `(3,)`.
        """
        matrix = self.matrix(spacing_mm)
        flip = np.where(self.mirrored, -1.0, 1.0)
        last = np.where(self.mirrored, np.array(patch_size) - 1.0, 0.0)
        return matrix * flip, np.asarray(anchor) + matrix @ (last - at)


def draw_spatial(
    config: AugmentationConfig, patch_size: Sequence[int], random: np.random.Generator
) -> SpatialTransform:
    """Draw how a patch is turned, scaled and mirrored.

    The same random numbers are used up whatever happens, so that another probability of one transform leaves the
    others as they were.

    Args:
        config: Probabilities and ranges.
        patch_size: `(depth, height, width)`.
        random: Where the choice comes from.

    Example:
        >>> config = AugmentationConfig(rotation={"probability": 0, "range": (0, 0)}, mirror={"probability": 0})
        >>> draw_spatial(config, (8, 8, 8), np.random.default_rng(0)).mirrored
        (False, False, False)
    """
    chances, degrees, factor = random.random(2), random.random(3), random.random()
    mirrored = random.random(3) < config.mirror.probability
    in_plane = config.is_in_plane(patch_size)
    low, high = config.rotation.range
    degrees = low + degrees * (high - low)
    if in_plane:
        degrees[1:] = 0
    if chances[0] >= config.rotation.probability:
        degrees[:] = 0
    low, high = config.scaling.range
    return SpatialTransform(
        degrees=tuple(degrees.tolist()),
        factor=float(low + factor * (high - low)) if chances[1] < config.scaling.probability else 1.0,
        mirrored=tuple(
            bool(m) and axis in config.mirror.axes for m, axis in zip(mirrored, AXES, strict=True)
        ),
        in_plane=in_plane,
    )


def _rotation(axis: int, degrees: float) -> np.ndarray:
    """Turn about one of the axes (z, y, x); of the other two, the first turns to the second."""
    first, second = (other for other in range(3) if other != axis)
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = cosine
    matrix[first, second], matrix[second, first] = -sine, sine
    return matrix
