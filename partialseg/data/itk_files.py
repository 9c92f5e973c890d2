"""NRRD and MetaImage files, read by SimpleITK.

Their headers are text, and are looked at here first: SimpleITK fills in axes, sizes and origins that are not
there, follows the name of a data file anywhere, ignores a slope, and where compressed voxels of a MetaImage are
damaged it prints a line and returns whatever was in memory.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import BinaryIO

import numpy as np

from partialseg.data.voxel_files import (
    MAX_TAIL_BYTES,
    StoredVoxels,
    check_affine,
    check_dtype,
    check_shape,
    check_stored_bytes,
)
from partialseg.errors import DataError

ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")

_MAX_HEADER_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: The spaces of an NRRD that say where left is.
_NRRD_SPACES = {
    "left-posterior-superior",
    "right-anterior-superior",
    "left-anterior-superior",
    "lps",
    "ras",
    "las",
}
_DOWNLOAD, _CONVERT = "download or convert it again", "convert it to .nii.gz"
_PIXEL_TYPE = re.compile(r"(?:vector of )?(\d+)-bit (float|signed integer|unsigned integer)")
_KINDS = {"float": "f", "signed integer": "i", "unsigned integer": "u"}


@dataclass(frozen=True)
class _Payload:
    """Where the voxels of a file lie.

    Attributes:
        path: The file that holds them.
        start: Its first byte that may be theirs.
        encoding: "raw", "gzip" (NRRD) or "zlib" (MetaImage).
        num_bytes: Compressed bytes; for MetaImage alone.
    """

    path: Path
    start: int
    encoding: str
    num_bytes: int = 0

    @property
    def kind(self) -> str:
        """Name of the format."""
        return "NRRD" if self.path.suffix.lower() == ".nrrd" else "MetaImage"


def read_itk(path: Path) -> StoredVoxels:
    """Read an NRRD (`.nrrd`) or a MetaImage (`.mha`; `.mhd` with its data file beside it).

    Args:
        path: The file.

    Returns:
        Its voxels as stored; the affine turned from LPS, as these formats have it, to RAS.

    Raises:
        DataError: If it is missing, damaged or not of its format, names a data file outside of its folder,
            claims more voxels than its file can hold, or does not say how its axes lie; if SimpleITK is not
            installed.
    """
    is_nrrd = path.name.lower().endswith(".nrrd")
    fields, start = _read_fields(path, is_nrrd)
    payload = (_check_nrrd if is_nrrd else _check_meta_image)(fields, start, path)
    simpleitk = _simpleitk(path)
    reader = simpleitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if is_nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        with _quiet_itk(simpleitk):
            reader.ReadImageInformation()
            shape, affine = _check_header(simpleitk, reader, payload, path)
            array = simpleitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[-1].rpartition("[nrrd]")[2] if is_nrrd else "by SimpleITK"
        raise DataError(path, f"cannot be read, or is cut short ({reason.strip()})", _DOWNLOAD) from error
    return StoredVoxels(array.reshape(shape[::-1]).T, affine)


def _simpleitk(path: Path) -> ModuleType:
    """SimpleITK, which not everybody needs."""
    try:
        import SimpleITK
    except ImportError as error:
        raise DataError(
            path, "is read by SimpleITK, which is not installed", 'run: pip install "partialseg[itk]"'
        ) from error
    return SimpleITK


@contextlib.contextmanager
def _quiet_itk(simpleitk: ModuleType) -> Iterator[None]:
    """Keep ITK, and the C libraries under it that know no other way, from printing to standard error."""
    shown = simpleitk.ProcessObject.GetGlobalWarningDisplay()
    simpleitk.ProcessObject.SetGlobalWarningDisplay(False)
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        simpleitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _read_fields(path: Path, is_nrrd: bool) -> tuple[dict[str, str], int]:
    """The fields of a text header, names in lower case, and the first byte after it."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if is_nrrd and not file.readline(_MAX_HEADER_BYTES).startswith(b"NRRD000"):
            raise DataError(path, "is no NRRD file (it has no such header)", _DOWNLOAD)
        while file.tell() < _MAX_HEADER_BYTES:
            line = file.readline(_MAX_HEADER_BYTES).decode("latin-1")
            name, separator, value = line.partition(":" if is_nrrd else "=")
            if is_nrrd and not line.strip():  # the voxels follow, or are missing
                return fields, file.tell()
            if is_nrrd and (line.startswith("#") or value.startswith("=")):  # a comment, a key with its value
                continue
            if not separator:
                break
            fields[name.strip().lower()] = value.strip()
            if not is_nrrd and name.strip() == "ElementDataFile":
                return fields, file.tell()
    kind = "NRRD" if is_nrrd else "MetaImage"
    raise DataError(path, f"is no {kind} file (its header has no end)", _DOWNLOAD)


def _check_nrrd(fields: dict[str, str], start: int, path: Path) -> _Payload:
    """Refuse what SimpleITK would guess at."""
    named = fields.get("data file", fields.get("datafile"))
    if named is not None:
        raise DataError(
            path,
            f"takes its voxels from {named}, which may lie outside of its folder; expected them in this file",
            "move them into it",
        )
    encoding = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(fields.get("encoding", "").lower())
    if encoding is None:
        found = fields.get("encoding", "missing")
        raise DataError(path, f"its encoding is {found}, expected raw or gzip", _CONVERT)
    skipped = {fields.get(name, "0") for name in ("byte skip", "byteskip", "line skip", "lineskip")} - {"0"}
    if skipped and encoding == "gzip":
        raise DataError(path, "skips bytes or lines before compressed voxels, expected none", _CONVERT)
    space = fields.get("space", "missing")
    if space.lower() not in _NRRD_SPACES or "space directions" not in fields:
        raise DataError(
            path,
            f"does not say how its axes lie (space: {space}, space directions: "
            f"{fields.get('space directions', 'missing')}), so left and right are not known",
            "convert it again with its orientation",
        )
    _check_vectors(fields["space directions"], path)
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm", "", "???"}
    if units:
        raise DataError(path, f"its lengths are in {', '.join(sorted(units))}, expected mm", _CONVERT)
    return _Payload(path, start, encoding)


def _check_vectors(directions: str, path: Path) -> None:
    """Three directions of three finite numbers; SimpleITK puts others in the place of those that are not."""
    vectors = re.findall(r"\(([^)]*)\)", directions)
    numbers = [_number(text, path) for vector in vectors for text in vector.split(",")]
    if len(vectors) != 3 or len(numbers) != 9 or not np.isfinite(numbers).all():
        raise DataError(
            path,
            f"its space directions are {directions}, expected three of three finite numbers",
            "convert it again with its orientation",
        )


def _check_meta_image(fields: dict[str, str], start: int, path: Path) -> _Payload:
    """Refuse what SimpleITK would guess at, and data files elsewhere."""
    if not {"transformmatrix", "rotation", "orientation"} & fields.keys():
        raise DataError(
            path,
            "has no TransformMatrix, so left and right are not known",
            "convert it again with its orientation",
        )
    if not {"elementspacing", "elementsize"} & fields.keys():
        raise DataError(path, "has no ElementSpacing, so its voxel size is not known", "convert it again")
    for name, usual in (("elementtointensityfunctionslope", 1), ("elementtointensityfunctionoffset", 0)):
        if _number(fields.get(name, str(usual)), path) != usual:
            raise DataError(path, f"has {name} {fields[name]}, expected {usual}", "save the true values")
    named = fields["elementdatafile"]
    data = path
    if named.upper() != "LOCAL":
        data, start = _data_file(named, path), 0
    if fields.get("compresseddata", "").lower()[:1] not in ("t", "1"):
        return _Payload(data, start, "raw")
    size = _number(fields.get("compresseddatasize", "nan"), path)
    stored = data.stat().st_size - start
    if not 0 < size <= stored:
        raise DataError(
            path,
            f"its header says that {fields.get('compresseddatasize', 'no number of')} bytes are compressed voxels, "
            f"{data.name} holds {stored}",
            _DOWNLOAD,
        )
    return _Payload(data, start, "zlib", int(size))


def _number(text: str, path: Path) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(path, f"its header has {text!r}, expected a number", _DOWNLOAD) from None


def _data_file(named: str, path: Path) -> Path:
    """The file that a MetaImage header names; it must be in the same folder or below."""
    parts = PurePosixPath(named.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", named):
        raise DataError(
            path, f"its voxels are said to be in {named}, outside of its folder", "move them beside it"
        )
    if named.upper().startswith("LIST") or "%" in named:
        raise DataError(path, f"its voxels are in several files ({named}), expected one", _CONVERT)
    data = path.parent / parts
    if not data.is_file():
        raise DataError(
            path, f"its voxels are said to be in {named}, a file that is not there", "put it beside it"
        )
    return data


def _check_header(
    simpleitk: ModuleType, reader: object, payload: _Payload, path: Path
) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of what SimpleITK is about to read, and that the file can hold it."""
    shape = check_shape(reader.GetSize(), path)
    channels = reader.GetNumberOfComponents()
    if channels != 1:
        raise DataError(path, f"holds {channels} numbers in each voxel, expected one", "keep one of them")
    pixel_type = simpleitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    found = _PIXEL_TYPE.fullmatch(pixel_type)
    if not found:
        raise DataError(path, f"holds {pixel_type} voxels, expected numbers", _CONVERT)
    dtype = np.dtype(f"{_KINDS[found[2]]}{int(found[1]) // 8}")
    check_dtype(dtype, path)
    promised = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    stored = payload.path.stat().st_size - payload.start
    check_stored_bytes(promised, stored, payload.encoding != "raw", payload.kind, path)
    if payload.encoding != "raw":
        _check_inflates(payload, promised, path)
    affine = np.eye(4)
    dimension = reader.GetDimension()
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[:3, :3]
    affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    affine = _LPS_TO_RAS @ affine
    check_affine(affine, path)
    return shape, affine


def _check_inflates(payload: _Payload, promised: int, path: Path) -> None:
    """Decompress without keeping anything: damaged voxels are an error, and fewer or more than promised, too."""
    done = 0
    try:
        with payload.path.open("rb") as file:
            file.seek(payload.start)
            chunks = _gunzipped(file) if payload.encoding == "gzip" else _inflated(file, payload.num_bytes)
            for chunk in chunks:
                done += len(chunk)
                if done > promised + MAX_TAIL_BYTES:
                    break
    except EOFError:
        done = min(done, promised - 1)
    except (OSError, zlib.error) as error:
        raise DataError(
            path,
            f"its compressed voxels are damaged ({error}), expected a right checksum",
            "download it again",
        ) from error
    if done < promised:
        raise DataError(
            path,
            f"is cut short ({done} bytes of voxels), its header promises {promised} bytes",
            "download it again",
        )
    if done > promised + MAX_TAIL_BYTES:
        raise DataError(
            path,
            f"holds more than the {promised} bytes of voxels that its header promises, expected its end there",
            _DOWNLOAD,
        )


def _gunzipped(file: BinaryIO) -> Iterator[bytes]:
    """The content of a gzip stream."""
    with gzip.GzipFile(fileobj=file) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _inflated(file: BinaryIO, num_bytes: int) -> Iterator[bytes]:
    """The content of a zlib stream of so many bytes."""
    inflater = zlib.decompressobj(47)  # zlib or gzip, as MetaImage allows
    while not inflater.eof:
        packed = inflater.unconsumed_tail
        if not packed:
            packed = file.read(min(_CHUNK_BYTES, num_bytes))
            num_bytes -= len(packed)
        if not packed:
            yield inflater.flush()
            if not inflater.eof:
                raise EOFError
            return
        yield inflater.decompress(packed, _CHUNK_BYTES)
