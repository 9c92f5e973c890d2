"""The same scan twice: told by what the voxels hold, whatever the file is called and however it is stored."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_LOW, _HIGH = np.iinfo(np.int16).min, np.iinfo(np.int16).max
#: An image with fewer different values than this has a histogram that another one may well share.
_MIN_VALUES = 64


@dataclass(frozen=True)
class Content:
    """What the voxels of an array hold; equal where they are the same.

    Attributes:
        ordered: Of shape and voxels in canonical axes; empty where all voxels are alike, which says nothing.
        histogram: Of how often each value occurs, whatever the order of the voxels and whatever was added to
            all: it tells a scan that was flipped, turned or moved to another zero. Empty where there are too
            few values.
    """

    ordered: str = ""
    histogram: str = ""


#: Of an array that could not be read; like no other.
NO_CONTENT = Content()


@dataclass(frozen=True)
class Duplicate:
    """Cases that hold the same.

    Attributes:
        cases: `(dataset, case)`, two or more, sorted.
        same: What is the same: "image", "label map", "image and label map", or "image (perhaps turned, or
            with other HU)".
        leakage: Whether some of them are for training and others for testing. Images decide: two scans without
            any organ may have the same label map.
    """

    cases: tuple[tuple[str, str], ...]
    same: str
    leakage: bool


def content_of(array: np.ndarray) -> Content:
    """Hash the voxels of an image or a label map.

    Values are rounded to whole numbers within int16, so that neither container, data type nor compression of
    the file matters.

    Args:
        array: Finite numbers, `(z, y, x)` in canonical axes.

    Example:
        >>> image = np.arange(120).reshape(4, 5, 6)
        >>> content_of(image) == content_of(image.astype(np.float32))
        True
        >>> content_of(image).histogram == content_of(image[::-1] + 1024).histogram
        True
    """
    ordered = hashlib.blake2b(str(array.shape).encode(), digest_size=16)
    counts = np.zeros(_HIGH - _LOW + 1, dtype=np.int64)
    for plane in array:
        whole = plane if plane.dtype.kind in "iu" else np.rint(plane)
        whole = np.clip(whole, _LOW, _HIGH).astype(np.int16)
        ordered.update(np.ascontiguousarray(whole))
        found = np.bincount(whole.ravel().astype(np.intp) - _LOW, minlength=len(counts))
        counts += found
    present = np.flatnonzero(counts)
    histogram = ""
    if len(present) >= _MIN_VALUES:
        trimmed = counts[present[0] : present[-1] + 1]
        histogram = hashlib.blake2b(trimmed.astype("<i8").tobytes(), digest_size=16).hexdigest()
    return Content(ordered.hexdigest() if len(present) > 1 else "", histogram)


def find_duplicates(
    images: Mapping[tuple[str, str], Content],
    labels: Mapping[tuple[str, str], Content],
    splits: Mapping[tuple[str, str], str],
) -> list[Duplicate]:
    """Sets of cases that hold the same image or the same label map, within a dataset or across datasets.

    Args:
        images: Content of each case's image, by `(dataset, case)`.
        labels: Content of each case's label map.
        splits: "train" or "test" for each case.

    Returns:
        The sets, sorted by their first cases.
    """
    same_image = _groups({case: content.ordered for case, content in images.items()})
    same_label = _groups({case: content.ordered for case, content in labels.items()})
    like = _groups({case: content.histogram for case, content in images.items()})
    found = []
    for cases in sorted(same_image | same_label | (like - same_image)):
        parts = [
            name for name, groups in (("image", same_image), ("label map", same_label)) if cases in groups
        ]
        is_like = cases in like and cases not in same_image
        parts += ["image (perhaps turned, or with other HU)"] if is_like else []
        both = {splits[case] for case in cases} == {"train", "test"}
        found.append(Duplicate(cases, " and ".join(parts), both and (is_like or cases in same_image)))
    return found


def _groups(marks: Mapping[tuple[str, str], str]) -> set[tuple[tuple[str, str], ...]]:
    """Two or more cases with the same mark, sorted; an empty mark is like no other."""
    groups: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for case, mark in marks.items():
        if mark:
            groups[mark].append(case)
    return {tuple(sorted(cases)) for cases in groups.values() if len(cases) > 1}
