"""The smallest boxes around what is in a volume: most of a scan is background, and need not be looked at twice."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

Box = tuple[slice, ...]


def bounding_box(array: np.ndarray) -> Box | None:
    """The smallest box around all that is not 0; None where everything is.

    Example:
        >>> bounding_box(np.array([[[0, 0, 0]], [[0, 1, 2]]]))
        (slice(1, 2, None), slice(0, 1, None), slice(1, 3, None))
    """
    box: list[slice] = []
    for axis in range(array.ndim):
        # One axis after the other, each time within the box so far, so that a large array is read about once.
        others = tuple(other for other in range(array.ndim) if other != axis)
        filled = np.flatnonzero(array[tuple(box)].any(axis=others))
        if not len(filled):
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def value_boxes(array: np.ndarray) -> list[Box | None]:
    """The smallest box around each value from 1 on; None for one that is not there.

    Equals `scipy.ndimage.find_objects`, which goes through the background far more slowly.

    Example:
        >>> value_boxes(np.array([[[0, 0, 0]], [[0, 1, 3]]]))[1:]
        [None, (slice(1, 2, None), slice(0, 1, None), slice(2, 3, None))]
    """
    whole = bounding_box(array)
    if whole is None:
        return []
    return [box and tuple(map(_moved, box, whole)) for box in ndimage.find_objects(array[whole])]


def _moved(part: slice, start: slice) -> slice:
    """A part of what begins at `start`, counted from where that is counted."""
    return slice(part.start + start.start, part.stop + start.start)
