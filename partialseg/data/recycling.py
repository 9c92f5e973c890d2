"""Memory of batches, used again when a batch is gone: fresh memory has to be cleared by the system first."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np

#: TensorFlow takes an array as a tensor without a copy if it begins at a multiple of so many bytes.
ALIGNMENT = 64


class RecycledMemory:
    """Gives arrays, and takes their memory back when nobody refers to them any more.

    It holds as many blocks as were in use at one time, each a power of two in size; several threads may ask.

    Example:
        >>> memory = RecycledMemory()
        >>> array = memory.empty((2, 3), np.float32)
        >>> array.shape, array.ctypes.data % ALIGNMENT
        ((2, 3), 0)
        >>> place = array.ctypes.data
        >>> del array
        >>> memory.empty((3, 2), np.float32).ctypes.data == place
        True
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, deque[np.ndarray]] = defaultdict(deque)

    def empty(self, shape: Sequence[int], dtype: type) -> np.ndarray:
        """A C-contiguous array of any content, beginning at a multiple of `ALIGNMENT` bytes."""
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        block_bytes = 1 << (num_bytes + ALIGNMENT - 1).bit_length()
        free = self._free[block_bytes]
        try:
            block = free.pop()
        except IndexError:  # all are in use
            block = np.empty(block_bytes, np.uint8)
        memory = np.asarray(_Lease(block, free))
        first = -memory.ctypes.data % ALIGNMENT
        return memory[first : first + num_bytes].view(dtype).reshape(shape)


class _Lease:
    """What an array's memory belongs to: when the last array on it goes, the block is free again."""

    def __init__(self, block: np.ndarray, free: deque[np.ndarray]) -> None:
        self.__array_interface__ = block.__array_interface__
        self._block, self._free = block, free

    def __del__(self) -> None:
        self._free.append(self._block)
