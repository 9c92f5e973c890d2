"""NRRD and MetaImage files of one volume, as the programs of the ITK family write them.

Their headers are text, and their voxels are raw or deflated, so both are read here. SimpleITK reads them too, and
is what the tests compare with, but it trusts its input: where a header has no axes, sizes or origin it makes some
up, damaged voxels become whatever was in memory, and a header with a line too many ends the whole process.

NRRD: http://teem.sourceforge.net/nrrd/format.html. MetaImage: https://itk.org/Wiki/MetaIO/Documentation.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from isal import igzip

from partialseg.data.voxel_files import (
    ANY_LIMITS,
    Limits,
    StoredVoxels,
    check_affine,
    check_shape,
    check_stored_bytes,
    is_html,
    no_traceback,
    read_voxels,
)
from partialseg.errors import DataError

ITK_SUFFIXES = (".nrrd", ".mha", ".mhd")

_MAX_HEADER_BYTES = 1 << 20
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DOWNLOAD, _CONVERT = "download or convert it again", "convert it to .nii.gz"

#: For each space of an NRRD that says where left is, what turns it into RAS.
_NRRD_SPACES = {
    "left-posterior-superior": _LPS_TO_RAS,
    "lps": _LPS_TO_RAS,
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0, 1.0]),
    "right-anterior-superior": np.eye(4),
    "ras": np.eye(4),
}
_NRRD_TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_NRRD_DTYPES = {name: dtype for dtype, names in _NRRD_TYPES.items() for name in names.split(", ")}
#: Without MET_LONG, which has 4 or 8 bytes, depending on who wrote it.
_META_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


@dataclass(frozen=True)
class _Header:
    """What a header says.

    Attributes:
        kind: Name of the format.
        shape: Sizes of all axes, the fastest first.
        dtype: Of a voxel.
        affine: 4 x 4, of the first three axes to world millimetres (RAS+).
        data: The file that holds the voxels.
        start: Their first byte; -1: they are the last bytes of the file.
        encoding: "raw", "gzip" or "zlib".
        num_bytes: Compressed bytes, where the header says so.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    data: Path
    start: int
    encoding: str = "raw"
    num_bytes: int | None = None


def read_itk(path: Path, limits: Limits = ANY_LIMITS) -> StoredVoxels:
    """Read an NRRD (`.nrrd`) or a MetaImage (`.mha`; `.mhd` with its data file beside it).

    Args:
        path: The file.
        limits: How much it may claim.

    Returns:
        Its voxels as stored; the affine turned from LPS, as these formats mostly have it, to RAS.

    Raises:
        DataError: If it is damaged or not of its format, names a data file outside of its folder, claims more
            voxels than its file can hold, or does not say how its axes lie.
    """
    is_nrrd = path.name.lower().endswith(".nrrd")
    kind = "NRRD" if is_nrrd else "MetaImage"
    with no_traceback(kind, path):
        fields = _Fields(path, kind)
        header = _nrrd_header(fields) if is_nrrd else _meta_header(fields)
        shape = check_shape(header.shape, path, limits)
        check_affine(header.affine, path)
        promised = int(np.prod(shape, dtype=np.int64)) * header.dtype.itemsize
        size = header.data.stat().st_size
        start = header.start if header.start >= 0 else max(0, size - promised)
        check_stored_bytes(promised, size - start, header.encoding != "raw", kind, path, limits)
        with header.data.open("rb") as file:
            file.seek(start)
            array = read_voxels(_decoded(file, header), shape, header.dtype, kind, path)
    return StoredVoxels(array, header.affine)


class _Fields(Mapping[str, str]):
    """The fields of a text header, names in lower case, whose values are checked when they are asked for.

    Attributes:
        path: The file.
        kind: Name of the format.
        end: The first byte after the header.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind, self.end = path, kind, 0
        self._fields: dict[str, str] = {}
        with path.open("rb") as file:
            start = file.read(256)
            file.seek(0)
            if not start or is_html(start):
                found = "but an HTML page" if start else "(it is empty)"
                raise DataError(path, f"is no {kind} file {found}", _DOWNLOAD)
            (self._read_nrrd if kind == "NRRD" else self._read_meta)(file)

    def __getitem__(self, name: str) -> str:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def problem(self, text: str, remedy: str = _DOWNLOAD) -> DataError:
        """An error about the file."""
        return DataError(self.path, text, remedy)

    def required(self, *names: str, unknown: str) -> str:
        """The value of a field that has these names; `unknown` is what is not known without it."""
        for name in names:
            if name in self._fields:
                return self._fields[name]
        raise self.problem(f"has no `{names[0]}`, so {unknown} not known", "convert it again")

    def numbers(self, *names: str, count: int, unknown: str) -> np.ndarray:
        """So many finite numbers."""
        text = self.required(*names, unknown=unknown)
        return self.to_numbers(names[0], text, text.split(), count)

    def to_numbers(self, name: str, text: str, words: list[str], count: int) -> np.ndarray:
        """The words of a field as finite numbers."""
        try:
            numbers = np.array([float(word) for word in words])
        except ValueError:
            numbers = np.array([np.nan])
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise self.problem(f"its `{name}` is {text[:100]}, expected {count} finite numbers")
        return numbers

    def sizes(self, *names: str, count: int) -> tuple[int, ...]:
        """The sizes of the axes."""
        numbers = self.numbers(*names, count=count, unknown="its size is")
        if (numbers != np.rint(numbers)).any() or numbers.max() > 2**62:
            raise self.problem(f"its `{names[0]}` is {self[names[0]]}, expected whole numbers")
        return tuple(int(number) for number in numbers)

    def one_of(
        self, name: str, choices: Mapping[str, str], usual: str | None = None, any_case: bool = False
    ) -> str:
        """What the value of a field stands for; with `any_case`, in capital letters, too."""
        text = self._fields.get(name, usual)
        if any_case and text is not None:
            text = text.lower()
        if text not in choices:
            found = f"is {text[:100]}" if text is not None else "is missing"
            raise self.problem(f"its `{name}` {found}, expected {', '.join(list(choices)[:12])}", _CONVERT)
        return choices[text]

    def _read_nrrd(self, file: BinaryIO) -> None:
        if not file.readline(_MAX_HEADER_BYTES).startswith(b"NRRD000"):
            raise self.problem("is no NRRD file (it has no such header)")
        while file.tell() < _MAX_HEADER_BYTES:
            line = file.readline(_MAX_HEADER_BYTES).decode("latin-1")
            if not line:
                break
            if not line.strip():  # the voxels follow
                self.end = file.tell()
                return
            name, separator, value = line.partition(":")
            if not line.startswith("#") and not value.startswith(
                "="
            ):  # neither a comment nor a key with its value
                self._add(name, separator, value)
        raise self.problem("is no NRRD file (its header has no end)")

    def _read_meta(self, file: BinaryIO) -> None:
        while file.tell() < _MAX_HEADER_BYTES:
            line = file.readline(_MAX_HEADER_BYTES).decode("latin-1")
            if not line:
                break
            name, separator, value = line.partition("=")
            self._add(name, separator, value)
            if name.strip() == "ElementDataFile":
                self.end = file.tell()
                return
        raise self.problem("is no MetaImage file (its header has no end)")

    def _add(self, name: str, separator: str, value: str) -> None:
        name = name.strip().lower()
        if not separator:
            raise self.problem(f"is no {self.kind} file (its header has a line {name[:40]!r})")
        if name in self._fields:
            raise self.problem(f"its header has two lines `{name[:40]}`, expected one")
        self._fields[name] = value.strip()


def _nrrd_header(fields: _Fields) -> _Header:
    """The header of an NRRD."""
    named = fields.get("data file", fields.get("datafile"))
    if named is not None:
        raise fields.problem(
            f"takes its voxels from {named}, which may lie outside of its folder, expected them in this file",
            "move them into it",
        )
    dtype = np.dtype(fields.one_of("type", _NRRD_DTYPES, any_case=True))
    if dtype.itemsize > 1:
        dtype = dtype.newbyteorder(fields.one_of("endian", {"little": "<", "big": ">"}, any_case=True))
    encoding = fields.one_of("encoding", {"raw": "raw", "gzip": "gzip", "gz": "gzip"}, any_case=True)
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))) - {"mm", "", "???"}
    if units:
        raise fields.problem(f"its lengths are in {', '.join(sorted(units))}, expected mm", _CONVERT)
    shape, affine = _nrrd_geometry(fields)
    skip = fields.get("byte skip", fields.get("byteskip", "0"))
    line_skip = fields.get("line skip", fields.get("lineskip", "0"))
    if line_skip != "0" or not re.fullmatch(r"-1|\d{1,15}", skip) or (encoding == "gzip" and skip != "0"):
        raise fields.problem(
            f"skips {line_skip} lines and {skip} bytes before its voxels, expected none", _CONVERT
        )
    start = -1 if skip == "-1" else fields.end + int(skip)
    return _Header("NRRD", shape, dtype, affine, fields.path, start, encoding)


def _nrrd_geometry(fields: _Fields) -> tuple[tuple[int, ...], np.ndarray]:
    """Sizes of the axes that have a direction, and the affine."""
    lost = "left and right are"
    space = fields.required("space", unknown=lost)
    to_ras = _NRRD_SPACES.get(space.lower())
    if to_ras is None:
        raise fields.problem(
            f"its `space` is {space}, expected left-posterior-superior or right-anterior-superior; so {lost} not known",
            "convert it again with its orientation",
        )
    directions = re.findall(r"none|\([^)]*\)", fields.required("space directions", unknown=lost))
    dimension = int(fields.one_of("dimension", {str(number): str(number) for number in range(1, 17)}))
    sizes = fields.sizes("sizes", count=dimension)
    if len(directions) != dimension:
        raise fields.problem(
            f"its `space directions` are {fields['space directions'][:100]}, expected {dimension}: one for each axis"
        )
    if not set(directions) - {"none"}:
        raise fields.problem(
            "its `space directions` are all none, so the place of its voxels is not known",
            "convert it again with its geometry",
        )
    channels = [size for size, direction in zip(sizes, directions, strict=True) if direction == "none"]
    if any(size != 1 for size in channels):
        raise fields.problem(
            f"holds {np.prod(channels)} numbers in each voxel, expected one", "keep one of them"
        )
    shape = tuple(size for size, direction in zip(sizes, directions, strict=True) if direction != "none")
    check_shape(shape, fields.path)
    vectors = [direction.strip("()").split(",") for direction in directions if direction != "none"]
    text = fields["space directions"]
    affine = np.eye(4)
    for axis, words in enumerate(vectors):
        affine[:3, axis] = fields.to_numbers("space directions", text, words, 3)
    origin = fields.required("space origin", unknown="its place is")
    affine[:3, 3] = fields.to_numbers("space origin", origin, origin.strip("()").split(","), 3)
    return shape, to_ras @ affine


def _meta_header(fields: _Fields) -> _Header:
    """The header of a MetaImage."""
    yes_or_no = {"true": "yes", "false": "no", "True": "yes", "False": "no", "1": "yes", "0": "no"}
    if fields.one_of("binarydata", yes_or_no, "False") != "yes":
        raise fields.problem("its voxels are text, expected BinaryData = True", _CONVERT)
    num_axes = int(fields.one_of("ndims", {"2": "2", "3": "3", "4": "4"}))
    shape = fields.sizes("dimsize", count=num_axes)
    channels = fields.get("elementnumberofchannels", "1")
    if channels != "1":
        raise fields.problem(f"holds {channels} numbers in each voxel, expected one", "keep one of them")
    dtype = np.dtype(fields.one_of("elementtype", _META_DTYPES))
    order = "binarydatabyteordermsb" if "binarydatabyteordermsb" in fields else "elementbyteordermsb"
    dtype = dtype.newbyteorder(">" if fields.one_of(order, yes_or_no, "False") == "yes" else "<")
    for name, usual in (("elementtointensityfunctionslope", 1), ("elementtointensityfunctionoffset", 0)):
        if name in fields and fields.numbers(name, count=1, unknown="")[0] != usual:
            # The programs of the ITK family do not apply it, so nobody knows what is meant.
            raise fields.problem(f"its `{name}` is {fields[name]}, expected {usual}", "save the true values")
    if fields.get("distanceunits", "mm") not in ("mm", "?", ""):
        raise fields.problem(f"its lengths are in {fields['distanceunits']}, expected mm", _CONVERT)
    affine = _meta_affine(fields, num_axes)
    named = fields["elementdatafile"]
    data, start = (fields.path, fields.end) if named.upper() == "LOCAL" else (_data_file(named, fields), 0)
    skipped = fields.get("headersize", "0")
    if skipped not in ("0", "-1"):
        raise fields.problem(f"its `headersize` is {skipped}, expected 0 or -1", _CONVERT)
    if fields.one_of("compresseddata", yes_or_no, "False") == "no":
        start = -1 if skipped == "-1" else start
        return _Header("MetaImage", shape, dtype, affine, data, start)
    num_bytes = fields.numbers("compresseddatasize", count=1, unknown="the size of its voxels is")[0]
    stored = data.stat().st_size - start
    if not 0 < num_bytes <= stored:
        raise fields.problem(
            f"its header promises {num_bytes:.0f} compressed bytes, {data.name} holds {stored}"
        )
    return _Header("MetaImage", shape, dtype, affine, data, start, "zlib", int(num_bytes))


def _meta_affine(fields: _Fields, num_axes: int) -> np.ndarray:
    """The affine; each row of a `TransformMatrix` is the direction of an axis."""
    lost = "left and right are"
    rows = fields.numbers("transformmatrix", "rotation", "orientation", count=num_axes**2, unknown=lost)
    spacing = fields.numbers("elementspacing", "elementsize", count=num_axes, unknown="its voxel size is")
    origin = fields.numbers("offset", "position", "origin", count=num_axes, unknown="its place is")
    if (spacing <= 0).any():
        raise fields.problem(f"its voxels measure {spacing[:3]} mm, expected sizes above 0")
    affine = np.eye(4)
    used = min(num_axes, 3)  # two axes are refused by their number
    affine[:used, :used] = rows.reshape(num_axes, num_axes)[:used, :used].T * spacing[:used]
    affine[:used, 3] = origin[:used]
    return _LPS_TO_RAS @ affine


def _data_file(named: str, fields: _Fields) -> Path:
    """The file that a MetaImage header names; it must be in the same folder or below."""
    parts = PurePosixPath(named.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", named):
        raise fields.problem(
            f"its voxels are said to be in {named}, outside of its folder", "move them beside it"
        )
    data = fields.path.parent / parts
    if data.is_file():
        return data
    if named.upper().startswith("LIST") or "%" in named:
        raise fields.problem(f"its voxels are in several files ({named}), expected one", _CONVERT)
    raise fields.problem(
        f"its voxels are said to be in {named}, a file that is not there", "put it beside it"
    )


def _decoded(file: BinaryIO, header: _Header) -> BinaryIO:
    """The voxels of a file that stands at their first byte."""
    if header.encoding == "gzip":
        return igzip.IGzipFile(fileobj=file, mode="rb")
    return io.BufferedReader(_Inflated(file, header.num_bytes)) if header.encoding == "zlib" else file


class _Inflated(io.RawIOBase):
    """The content of a zlib stream (or gzip stream, as MetaImage allows) of so many bytes."""

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self._file, self._left, self._inflater = file, num_bytes, zlib.decompressobj(47)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        content = b""
        while not content and not self._inflater.eof:
            packed = self._inflater.unconsumed_tail
            if not packed:
                packed = self._file.read(min(1 << 20, self._left))
                self._left -= len(packed)
            # Once nothing comes, what is left inside is asked for; if there is none, the stream was cut.
            content = self._inflater.decompress(packed, len(buffer))
            if not packed and not content and not self._inflater.eof:
                raise EOFError("its zlib stream has no end")
        buffer[: len(content)] = content
        return len(content)
