"""The probability of each organ at each voxel of a scan, as files that viewers open.

OUT/<case>_probabilities/<organ>.nii.gz    one for each organ that is written, on the scan's own grid and axes

A voxel is kept as a whole number from 0 to 255 with the scale factor 1/255 in the header, so that viewers show
0 to 1, in steps of 0.004. They are what the network says: post-processing does not touch them, and background has
what is left of 1.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from partialseg.data.volumes import Volume, write_probability_map
from partialseg.files import atomic_path, make_folder

#: The whole number that stands for a probability of 1.
FULL = 255


class ProbabilityMaps:
    """Takes the probabilities of a scan plane by plane, and writes them.

    Between the two they lie on the disk: one byte for each voxel and organ, of which memory holds what the system has
    room for.

    Args:
        folder: For what lies on the disk meanwhile; whoever makes it removes it.
        scan: The scan.
        organs: The class index of each organ that is kept.
    """

    def __init__(self, folder: Path, scan: Volume, organs: Mapping[str, int]) -> None:
        self._scan, self._values = scan, list(organs.values())
        shape = scan.array.shape
        self._arrays = {}
        for name, value in zip(file_names(organs), self._values, strict=True):
            _reserve(folder / str(value), math.prod(shape))
            self._arrays[name] = np.memmap(folder / str(value), np.uint8, "r+", shape=shape)

    def add(self, index: int, plane: np.ndarray) -> None:
        """Take the probabilities of one plane: its index, and float32 `(height, width, classes)`."""
        for value, array in zip(self._values, self._arrays.values(), strict=True):
            array[index] = np.rint(plane[..., value] * FULL)

    def write(self, folder: Path) -> dict[str, int]:
        """Write a file for each organ, all or none; their names below the folder's parent, and their sizes."""
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for name, array in self._arrays.items():
                write_probability_map(temporary / name, array, FULL, self._scan)
        return {f"{folder.name}/{path.name}": path.stat().st_size for path in sorted(folder.iterdir())}


def file_names(organs: Iterable[str]) -> list[str]:
    """The file of each organ; what no file's name may have is replaced.

    Raises:
        ValueError: If two organs would share a file.

    Example:
        >>> file_names(["liver", "left kidney"])
        ['liver.nii.gz', 'left_kidney.nii.gz']
    """
    names: dict[str, str] = {}
    for organ in organs:
        first = names.setdefault(re.sub(r"[^\w.-]", "_", organ), organ)
        if first != organ:
            raise ValueError(f"the probabilities of {first!r} and {organ!r} would share a file")
    return [f"{name}.nii.gz" for name in names]


def _reserve(path: Path, size: int) -> None:
    """Make a file of a size, for which the disk has room: else a write to mapped memory would end the process.

    Raises:
        OSError: If the disk is full.
    """
    with path.open("wb") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)


@contextmanager
def probability_maps(beside: Path, scan: Volume, organs: Mapping[str, int]) -> Iterator[ProbabilityMaps]:
    """Maps for a scan; what lies on the disk meanwhile is in a hidden folder beside the given file, and removed.

    A killed process leaves the folder, so it has the same name each time, and what is in it is removed first.
    """
    folder = beside.with_name(f".partial-probabilities-{beside.name}")
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)  # where it could not be removed, its files are written over
    try:
        yield ProbabilityMaps(folder, scan, organs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
