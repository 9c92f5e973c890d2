"""Where in a scan the patient is, so that the air around need not be predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

#: What has more HU may be tissue: fat has -100, lung and the foam of a table less than this.
TISSUE_HU = -300.0
#: The body is looked for in blocks of about this size, in which noise and thin sheets have little share.
BLOCK_MM = 6.0
#: Share of a block that must be tissue.
MIN_TISSUE = 0.25
#: A part of the body has, somewhere, this much tissue to all sides. Tables, tubes and blankets are thinner.
CORE_MM = 12.0


class Body:
    """The part of a volume that the patient takes up: of each slice the smallest box around it.

    It is generous: what lies between two parts of the body, such as lungs, bowel gas or the gap between the legs,
    belongs to it, as does whatever touches it, and a block around. Where nothing in the volume is like a body, all of
    it counts as one: a network that is asked about such a volume shall see it.

    Args:
        volume: HU `(depth, height, width)`.
        spacing_mm: Voxel size `(z, y, x)`.

    Example:
        >>> volume = np.full((8, 40, 40), -1000.0); volume[:, 20:36, 4:24] = 50
        >>> body = Body(volume, (6, 3, 3))
        >>> body.meets((slice(0, 8), slice(10, 30), slice(0, 40)))
        True
        >>> body.meets((slice(0, 8), slice(0, 16), slice(0, 40)))
        False
    """

    def __init__(self, volume: np.ndarray, spacing_mm: Sequence[float]) -> None:
        blocks = [max(1, round(BLOCK_MM / size)) for size in spacing_mm]
        tissue = _shares(volume > TISSUE_HU, blocks) >= MIN_TISSUE
        reach = [round(CORE_MM / (block * size)) for block, size in zip(blocks, spacing_mm, strict=True)]
        parts = _thick_parts(tissue, reach)
        if not parts.any():
            parts[...] = True
        parts = ndimage.binary_dilation(parts, np.ones((3, 3, 3)))
        # One row for each slice of the volume: first row, row after the last, first column, column after the last.
        self._extents = np.repeat(_extents(parts), blocks[0], axis=0)[: len(volume)]
        self._extents *= np.repeat(blocks[1:], 2)

    def meets(self, box: tuple[slice, ...]) -> bool:
        """Whether any of the body is within a box of voxels, as far as that lies in the volume."""
        depth, height, width = box
        top, bottom, left, right = self._extents[depth].T
        in_rows = (top < height.stop) & (bottom > height.start)
        return bool(np.any(in_rows & (left < width.stop) & (right > width.start)))


def _shares(mask: np.ndarray, blocks: Sequence[int]) -> np.ndarray:
    """The share of each block that is in the mask; the last blocks of an axis go on with its last voxel."""
    shares = mask
    for axis, block in enumerate(blocks):
        size = shares.shape[axis]
        padded = np.pad(shares, [(0, -size % block if a == axis else 0) for a in range(3)], mode="edge")
        new_shape = (*shares.shape[:axis], -1, block, *shares.shape[axis + 1 :])
        shares = padded.reshape(new_shape).mean(axis=axis + 1, dtype=np.float32)
    return shares


def _thick_parts(tissue: np.ndarray, reach: Sequence[int]) -> np.ndarray:
    """The connected parts that are thick somewhere; beyond the ends of the volume tissue goes on."""
    box = np.ones([2 * r + 1 for r in reach])
    cores = ndimage.binary_erosion(tissue, box, border_value=1) if box.size > 1 else tissue
    numbers, _ = ndimage.label(tissue)
    kept = np.unique(numbers[cores])
    return np.isin(numbers, kept[kept > 0])


def _extents(parts: np.ndarray) -> np.ndarray:
    """The box of each slice: int64 `(depth, 4)`; zeros where it is empty."""
    extents = np.zeros((len(parts), 4), np.int64)
    for index, plane in enumerate(parts):
        rows, columns = np.flatnonzero(plane.any(axis=1)), np.flatnonzero(plane.any(axis=0))
        if len(rows):
            extents[index] = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return extents
