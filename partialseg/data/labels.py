"""Candidates: for every voxel the set of classes that it may be. The one tensor that joins data and losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from partialseg.data.classes import BACKGROUND


def candidates(label: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Turn a label map into the sets of classes that each voxel may be.

    Args:
        label: Whole numbers, shape `(depth, height, width)` (any shape will do), each below `len(table)`.
        table: uint8 of 0 and 1, shape `(values, classes)`: row `v` is the set that value `v` stands for.

    Returns:
        uint8 of 0 and 1, shape `label.shape + (classes,)`.

    Raises:
        ValueError: If a label value is no whole number, or has no row in the table.

    Example:
        >>> liver_only = np.array([[1, 0, 1], [0, 1, 0]])  # classes: background, liver, spleen
        >>> candidates(np.array([[[0, 1]]]), liver_only).tolist()
        [[[[1, 0, 1], [0, 1, 0]]]]
    """
    label = np.asarray(label)
    table = np.asarray(table, dtype=np.uint8)
    if label.dtype.kind not in "iu":  # NumPy would take a mask for a choice of rows, and refuse whole floats
        whole = label.astype(np.int64)
        if (whole != label).any():
            raise ValueError("the label map holds values that are no whole numbers: read it with read_label")
        label = whole
    if label.size and (label.min() < 0 or label.max() >= len(table)):
        raise ValueError(
            f"the label map holds values {label.min()} to {label.max()}, but the table has rows for 0 to "
            f"{len(table) - 1}: prepare the case again, or give the table of its own dataset"
        )
    return table[label]


def candidate_table(
    classes: Sequence[str], annotated: Iterable[str], sets: Iterable[frozenset[str]] = ()
) -> np.ndarray:
    """The table of one dataset: which set of classes each value of its prepared label maps stands for.

    Rows, with C classes: 0 is the dataset's background (background and every organ that is not annotated);
    1 to C-1 are the organs one by one, so that a value is its class; C is "ignored" (all classes);
    C+1 onwards are `sets` in the order given.

    Args:
        classes: Background first, then the organs.
        annotated: The organs that the dataset annotates.
        sets: Further sets of class names that the dataset's labels mean.

    Returns:
        uint8 of 0 and 1, shape `(C + 1 + number of sets, C)`.

    Raises:
        ValueError: If a name is not in `classes`.

    Example:
        >>> candidate_table(["background", "liver", "spleen"], ["liver"]).tolist()
        [[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    """
    annotated, sets = frozenset(annotated), list(sets)
    unknown = annotated.union(*sets) - set(classes)
    if unknown:
        raise ValueError(f"{sorted(unknown)} are not among the classes {list(classes)}")
    free = {name for name in classes if name not in annotated} | {BACKGROUND}
    rows = [free, *({name} for name in classes[1:]), set(classes), *sets]
    return np.array([[name in row for name in classes] for row in rows], dtype=np.uint8)


def ignored_value(classes: Sequence[str]) -> int:
    """The value of ignored voxels in prepared label maps with these classes (see `candidate_table`)."""
    return len(classes)


def annotated_values(table: np.ndarray) -> list[int]:
    """Values that are annotated foreground: organs and sets of organs, neither background nor ignored.

    Example:
        >>> annotated_values(candidate_table(["background", "liver", "spleen"], ["liver"]))
        [1, 2]
    """
    return [value for value, row in enumerate(np.asarray(table)) if not row[0]]
