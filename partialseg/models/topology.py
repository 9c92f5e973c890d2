"""The stages of a U-Net from patch size and voxel size, as nnU-Net's planner derives them. Needs no Keras."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Triple = tuple[int, int, int]

#: Least voxels along an axis of the coarsest stage.
SMALLEST_MAP = 4


class Topology(NamedTuple):
    """What each stage of a network does.

    Attributes:
        patch_size: The patch, rounded up to what the strides divide.
        strides: Per stage, 1 or 2 along each axis.
        kernels: Per stage, 1 or 3 along each axis.
    """

    patch_size: Triple
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]

    @property
    def multiple(self) -> Triple:
        """What each axis of a patch is a multiple of."""
        return tuple(math.prod(stride[axis] for stride in self.strides) for axis in range(3))


def topology(patch_size: Sequence[int], spacing_mm: Sequence[float]) -> Topology:
    """Derive strides and kernels.

    Stage by stage, an axis is halved while its map has at least 8 voxels and these are less than twice as long as
    those of the finest such axis; a last axis alone only while it has 12. Kernels are 1 along an axis whose voxels
    are twice as long as the finest or longer, and 3 from the stage on where they no longer are. So thick slices are
    neither halved nor convolved until the others have caught up.

    Reference:
        Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation",
        Nature Methods 2021, supplementary note on the network topology; the two conditions on small maps as in
        nnU-Net 2.

    Args:
        patch_size: Voxels `(depth, height, width)`.
        spacing_mm: Voxel size `(z, y, x)` in mm.

    Returns:
        The topology; of a patch too small to be halved, one stage.

    Raises:
        ValueError: If a size or a spacing is not above 0.

    Example:
        >>> found = topology((48, 190, 190), (3.0, 1.5, 1.5))
        >>> found.patch_size, found.strides[:3]
        ((48, 192, 192), ((1, 1, 1), (1, 2, 2), (2, 2, 2)))
    """
    if min(patch_size) < 1 or min(spacing_mm) <= 0:
        raise ValueError(
            f"sizes must be above 0, received {tuple(patch_size)} voxels of {tuple(spacing_mm)} mm"
        )
    sizes, spacings = [int(size) for size in patch_size], [float(length) for length in spacing_mm]
    strides, kernels, kernel = [(1, 1, 1)], [], [1, 1, 1]
    while axes := _halved(sizes, spacings):
        kernel = [
            3 if size == 3 or length / min(spacings) < 2 else 1
            for size, length in zip(kernel, spacings, strict=True)
        ]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in axes else 1 for axis in range(3)))
        for axis in axes:
            sizes[axis], spacings[axis] = math.ceil(sizes[axis] / 2), spacings[axis] * 2
    kernels.append((3, 3, 3))
    found = Topology(tuple(patch_size), tuple(strides), tuple(kernels))
    whole = (-(-size // step) * step for size, step in zip(patch_size, found.multiple, strict=True))
    return found._replace(patch_size=tuple(whole))


def _halved(sizes: list[int], spacings: list[float]) -> list[int]:
    """The axes that the next stage halves; none where there is no next stage."""
    large = [axis for axis in range(3) if sizes[axis] >= 2 * SMALLEST_MAP]
    if not large:
        return []
    finest = min(spacings[axis] for axis in large)
    axes = [axis for axis in large if spacings[axis] / finest < 2]
    if len(axes) == 1 and sizes[axes[0]] < 3 * SMALLEST_MAP:
        return []
    return axes
