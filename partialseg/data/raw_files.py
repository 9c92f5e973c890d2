"""The raw files of a case: whether they are still the same, and how large they are, without reading their voxels."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import math
import os
import re
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from partialseg.data.dicom_series import DAMAGED
from partialseg.data.voxel_files import MAX_VOXELS
from partialseg.errors import DataError

_CHUNK_BYTES = 1 << 20
#: In the text header of an NRRD or a MetaImage: the sizes of its axes, and of its voxels in mm. Letters may be large
#: or small.
_FIELD = re.MULTILINE | re.IGNORECASE
_SIZES = re.compile(rb"^(?:sizes|DimSize)\s*[:=]\s*(\d[\d ]*)", _FIELD)
_SPACINGS = re.compile(rb"^(?:spacings|ElementSpacing)\s*[:=]\s*(\d[-+.\deE ]*)", _FIELD)
_DIRECTIONS = re.compile(rb"^space directions\s*:\s*((?:\([-+.\deE, ]+\)\s*){3})", _FIELD)
#: Links are followed, and may lead back to where they are.
_DEPTHS = ("*", "*/*", "*/*/*", "*/*/*/*")
_DATA_FILE = re.compile(rb"^ElementDataFile\s*=\s*(\S.*?)\s*$", re.MULTILINE)


def stamp(paths: Sequence[Path]) -> str:
    """A mark of some files or folders that changes when any of them is written to, and is quick to take.

    It is made of the names in the folders, sizes, and times of the last change: of the content, which may be set
    by hand, and of the entry (`ctime`), which may not. A file that goes away between listing and look counts as
    one without these, so that the next mark is another one.

    Example:
        >>> stamp([Path("no such file")]) == stamp([Path("no such file either")])
        True
    """
    marks = []
    for path in paths:
        marks.append([(name, *_size_and_times(file)) for name, file in _files(path)])
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()


def _size_and_times(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def content_hash(paths: Sequence[Path], of_folder: Mapping[Path, Collection[Path]] | None = None) -> str:
    """A hash of the content of some files or folders, wherever they lie; a missing one has no content.

    Args:
        paths: The files and folders.
        of_folder: The files of a folder that count; of one that it does not name, all visible ones.

    Raises:
        DataError: If a file may not or cannot be read.

    Example:
        >>> content_hash([Path("no such file")]) == content_hash([Path("no such file either")])
        True
    """
    of_folder = of_folder or {}
    marks = [
        [
            (name, _hash_of_file(file))
            for name, file in _files(path)
            if path not in of_folder or file in of_folder[path]
        ]
        for path in paths
    ]
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()


@dataclass(frozen=True)
class Extent:
    """How large a scan is, according to its headers.

    Attributes:
        voxels: Number of voxels; 0 if the headers do not say.
        volume_mm3: What they cover; 0 if the headers do not say.
    """

    voxels: int = 0
    volume_mm3: float = 0.0


def extent(path: Path) -> Extent:
    """How large the scan in a file, or in a folder of slices, is, without reading its voxels.

    Of a folder the first file, the middle one and the last are looked at, since one may be a scout or no slice at
    all: all files are taken for as large as the largest of these, and for what the middle one of their voxel sizes
    covers. A header that claims what no reader accepts says nothing.

    Example:
        >>> extent(Path("no such file"))
        Extent(voxels=0, volume_mm3=0.0)
    """
    files = [file for _, file in _files(path)]
    if not files:
        return Extent()
    if not path.is_dir():
        return _extent_of_file(path, 1)
    chosen = {0, len(files) // 2, len(files) - 1}
    found = [_extent_of_file(files[index], len(files)) for index in sorted(chosen)]
    # The thickness of a scout is that of the patient, which would make a hundred times the volume.
    volumes = [each.volume_mm3 for each in found if each.volume_mm3 > 0]
    return Extent(max(each.voxels for each in found), statistics.median_high(volumes) if volumes else 0.0)


def _extent_of_file(path: Path, count: int) -> Extent:
    """How large so many files like this one are together."""
    try:
        if path.name.lower().endswith((".nii", ".nii.gz")):
            voxels, voxel_mm3 = _extent_of_nifti(path)
        elif path.suffix.lower() in (".nrrd", ".mha", ".mhd"):
            voxels, voxel_mm3 = _extent_of_text_header(path)
        else:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            frames = count * int(header.get("NumberOfFrames", 1) or 1)
            voxels = frames * int(header.get("Rows", 0)) * int(header.get("Columns", 0))
            voxel_mm3 = math.prod(header.get("PixelSpacing", [0])) * float(
                header.get("SliceThickness", 0) or 0
            )
    except (*DAMAGED, ImageFileError, HeaderDataError, pydicom.errors.InvalidDicomError):
        return Extent()  # whoever reads it says what is wrong with it
    if not 0 < voxels <= MAX_VOXELS:  # nobody takes memory for what a header cannot mean
        return Extent()
    return Extent(int(voxels), float(voxels * voxel_mm3)) if math.isfinite(voxel_mm3) else Extent(int(voxels))


def _extent_of_nifti(path: Path) -> tuple[int, float]:
    """Number of voxels and volume of one; no more is read than the header itself, without its extensions."""
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if is_packed else file
        block = stream.read(nib.Nifti2Header.sizeof_hdr)
    kind = nib.Nifti2Header if nib.Nifti2Header.may_contain_header(block) else nib.Nifti1Header
    if len(block) < kind.sizeof_hdr:
        raise EOFError("the file ends in its header")
    header = kind(block[: kind.sizeof_hdr], check=False)
    with np.errstate(invalid="ignore"):  # what is not finite covers nothing
        voxel_mm3 = abs(np.linalg.det(header.get_best_affine()[:3, :3]))
    return math.prod(map(int, header.get_data_shape())), voxel_mm3


def _extent_of_text_header(path: Path) -> tuple[int, float]:
    """Number of voxels and volume of one, of an NRRD or a MetaImage; 0 where the header does not say."""
    with path.open("rb") as file:
        header = file.read(1 << 16)
    sizes, spacings, directions = (pattern.search(header) for pattern in (_SIZES, _SPACINGS, _DIRECTIONS))
    voxels = math.prod(map(int, sizes[1].split())) if sizes else 0
    if directions:
        numbers = np.array(re.findall(rb"[-+.\deE]+", directions[1]), dtype=float)
        return voxels, abs(np.linalg.det(numbers.reshape(3, 3)))
    return voxels, math.prod(map(float, spacings[1].split())) if spacings else 0.0


def _files(path: Path) -> list[tuple[str, Path]]:
    """The file, with the data file that a MetaImage header names; or the visible files below a folder; with names."""
    if path.is_dir():
        below = [file for pattern in _DEPTHS for file in path.glob(pattern) if file.is_file()]
        names = [(file.relative_to(path).as_posix(), file) for file in below]
        return sorted((name, file) for name, file in names if not re.search(r"(^|/)\.", name))
    files = [path] if path.is_file() else []
    if files and path.suffix.lower() == ".mhd":
        with _readable(path), path.open("rb") as file:
            named = _DATA_FILE.search(file.read(1 << 16))
        name = os.fsdecode(named[1]) if named else ""
        # What leaves the folder is not read.
        stays = not Path(name).is_absolute() and ".." not in Path(name).parts
        beside = path.parent / name if name and stays else path
        files += [beside] if beside != path and beside.is_file() else []
    return [("" if file == path else file.name, file) for file in files]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say on one line which file the user or the disk does not let be read."""
    try:
        yield
    except PermissionError as error:
        problem = "may not be read, expected a file that you can read"
        raise DataError(path, problem, "give yourself the permission") from error
    except FileNotFoundError as error:
        problem = "is gone: the files of its case changed while they were read"
        raise DataError(path, problem, "run again when nothing writes to them any more") from error
    except OSError as error:
        problem = f"cannot be read ({error.strerror}), expected a file on a sound disk"
        raise DataError(path, problem, "copy it again") from error


def _hash_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with _readable(path), path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
