"""The raw files of a case: whether they are still the same, and how large they are, without reading their voxels."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import pydicom
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

_CHUNK_BYTES = 1 << 20
#: In the text header of an NRRD or a MetaImage: the sizes of its axes.
_SIZES = re.compile(rb"^(?:sizes|DimSize)\s*[:=]\s*([\d ]+)", re.MULTILINE)
#: Links are followed, and may lead back to where they are.
_DEPTHS = ("*", "*/*", "*/*/*", "*/*/*/*")
_DATA_FILE = re.compile(rb"^ElementDataFile\s*=\s*(\S.*?)\s*$", re.MULTILINE)


def stamp(paths: Sequence[Path]) -> str:
    """A mark of some files or folders that changes when any of them is written to, and is quick to take.

    It is made of the names in the folders, sizes, and times of the last change: of the content, which may be set
    by hand, and of the entry (`ctime`), which may not.

    Example:
        >>> stamp([Path("no such file")]) == stamp([Path("no such file either")])
        True
    """
    marks = []
    for path in paths:
        entries = [(name, file.stat()) for name, file in _files(path)]
        marks.append([(name, found.st_size, found.st_mtime_ns, found.st_ctime_ns) for name, found in entries])
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()


def content_hash(paths: Sequence[Path]) -> str:
    """A hash of the content of some files or folders, wherever they lie; a missing one has no content.

    Example:
        >>> content_hash([Path("no such file")]) == content_hash([Path("no such file either")])
        True
    """
    marks = [[(name, _hash_of_file(file)) for name, file in _files(path)] for path in paths]
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()


def num_voxels(path: Path) -> int:
    """How many voxels a file, or a folder of slices or masks, holds according to its headers; 0 if they do not say.

    Of a folder one file is looked at, and taken for all where they are slices; masks count once.
    """
    files = [file for _, file in _files(path)]
    if not files:
        return 0
    first = files[len(files) // 2]
    try:
        if first.name.endswith((".nii", ".nii.gz")):
            return _product(nib.load(first).shape)
        if first.suffix in (".nrrd", ".mha", ".mhd"):
            with first.open("rb") as file:
                sizes = _SIZES.search(file.read(1 << 16))
            return _product(map(int, sizes[1].split())) if sizes else 0
        if first.suffix == ".png":
            return 0  # a label map, as large as its image
        header = pydicom.dcmread(first, stop_before_pixels=True)
        frames = int(header.get("NumberOfFrames", 1) or 1)
        return len(files) * frames * int(header.get("Rows", 0)) * int(header.get("Columns", 0))
    except (OSError, ValueError, ImageFileError, HeaderDataError, pydicom.errors.InvalidDicomError):
        return 0  # whoever reads it says what is wrong with it


def _product(sizes: Iterator[int] | Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= int(size)
    return product


def _files(path: Path) -> list[tuple[str, Path]]:
    """The file, with the data file that a MetaImage header names; or the visible files below a folder; with names."""
    if path.is_dir():
        found = [
            Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names
        ]
        return sorted((file.relative_to(path).as_posix(), file) for file in found if file.is_file())
    files = [path] if path.is_file() else []
    if files and path.suffix == ".mhd":
        with path.open("rb") as file:
            named = _DATA_FILE.search(file.read(1 << 16))
        beside = path.parent / os.fsdecode(named[1]) if named else path
        files += [beside] if beside != path and beside.is_file() else []
    return [("" if file == path else file.name, file) for file in files]


def _hash_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
