"""The pieces of a mask that is mostly empty, without going through the emptiness between them.

A few specks far away make the bounding box of an organ the whole scan, and to label all of that costs gigabytes and
half a minute. Blocks that hold nothing are told in one pass; what is left are islands, each in a box of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage

from partialseg.data.boxes import Box

#: Edge of a block in voxels.
_BLOCK = 8
TOUCHING = np.ones((3, 3, 3), dtype=bool)


def islands(mask: np.ndarray) -> Iterator[tuple[Box, np.ndarray]]:
    """Parts of a mask between which no voxels touch, not even at corners; each may be several pieces.

    Args:
        mask: bool, 3D.

    Yields:
        The box of an island, and its own part of the mask in it: bool, shape of the box.

    Example:
        >>> mask = np.zeros((40, 8, 8), dtype=bool); mask[1, 1, 1] = mask[38, 2, 3] = True
        >>> [(box[0], int(part.sum())) for box, part in islands(mask)]
        [(slice(0, 8, None), 1), (slice(32, 40, None), 1)]
    """
    blocks = mask
    for axis in range(3):
        blocks = np.logical_or.reduceat(blocks, np.arange(0, mask.shape[axis], _BLOCK), axis=axis)
    numbers, count = ndimage.label(blocks, TOUCHING)
    for number, part in enumerate(ndimage.find_objects(numbers, count), start=1):
        box = tuple(
            slice(p.start * _BLOCK, min(p.stop * _BLOCK, size))
            for p, size in zip(part, mask.shape, strict=True)
        )
        own = numbers[part] == number
        # The box of one island may reach into another's.
        yield box, mask[box] if own.all() else mask[box] & _enlarged(own, mask[box].shape)


def pieces(mask: np.ndarray) -> list[tuple[Box, np.ndarray, np.ndarray]]:
    """The pieces of a mask: voxels that hang together through faces, edges or corners.

    Returns:
        For each island its box; a number for each voxel, shape of the box, 0 where the mask is not; and the number
        of voxels of each, 0 for number 0.

    Example:
        >>> mask = np.zeros((3, 3, 3), dtype=bool); mask[0, 0, 0] = mask[1, 1, 1] = mask[0, 0, 2] = True
        >>> [(numbers.shape, voxels.tolist()) for _, numbers, voxels in pieces(mask)]
        [((3, 3, 3), [0, 3])]
    """
    found = []
    for box, part in islands(mask):
        numbers, _ = ndimage.label(part, TOUCHING)
        voxels = np.bincount(numbers.ravel())
        voxels[0] = 0
        found.append((box, numbers, voxels))
    return found


def _enlarged(blocks: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Each block as many voxels, cut to a shape."""
    for axis, size in enumerate(shape):
        blocks = np.repeat(blocks, _BLOCK, axis=axis).take(range(size), axis=axis)
    return blocks
