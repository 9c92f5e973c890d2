"""A folder of inputs with something wrong, each made by one function, and words that its line must hold.

    python tests/data/broken_inputs.py FOLDER     makes the folder, and lists what is in it
    python tests/data/broken_inputs.py --table    makes it, gives each to the command, prints docs/bad_input.md

FOLDER/raw/<dataset>.md, FOLDER/raw/<dataset>/   raw cases, good ones (aa_good, zz_good) among them
FOLDER/cards/<name>.md                           data cards
FOLDER/datasets/<name>/                          nnU-Net raw folders, for `partialseg card new`
FOLDER/prepared/<name>/                          prepared data ("good" is)
FOLDER/configs/<name>.yaml                       configs of a training
FOLDER/canary                                    is made where code in an input was run: never
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import nibabel as nib
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless

SHAPE = (12, 11, 10)
SPACING_MM = (1.0, 1.0, 2.0)
AFFINE = np.diag([*SPACING_MM, 1.0])
GOOD = ("aa_good", "zz_good")
#: What a bomb holds. It is never held in memory, here or there.
BOMB_BYTES = 2 << 30

#: Byte offsets in a NIfTI-1 header (https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h).
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT, MAGIC, EXTENSION = (
    40, 70, 72, 76, 108, 112, 116, 344, 348,
)  # fmt: skip


@dataclass(frozen=True)
class Files:
    """The files of one raw case, good ones to begin with, and the folder that holds all."""

    image: Path
    label: Path
    folder: Path


@dataclass(frozen=True)
class BrokenInput:
    """One input with something wrong.

    Attributes:
        name: What is wrong, in a word.
        kind: What it is; a heading of docs/bad_input.md.
        what: What is wrong, in a sentence.
        path: What its line must name: relative to the folder, a file, or the folder that holds it.
        found, expected, remedy: Words that the line must hold, for what was found, what was expected, and what to
            do; `{raw}` and `{name}` are filled in.
        make: Makes it.
        command: How the command is called, but for raw cases, which one call takes together.
    """

    name: str
    kind: str
    what: str
    path: str
    found: str
    expected: str
    remedy: str
    make: Callable[[Any], None]
    dataset: str | None = None
    command: tuple[str, ...] = ()


INPUTS: dict[str, BrokenInput] = {}


def _add(
    kind: str, path: str, words: tuple[str, str, str], dataset: str | None, command: tuple[str, ...] = ()
):
    def add(make):
        name = make.__name__
        if name in INPUTS:
            raise ValueError(f"two broken inputs are called {name}")
        what = " ".join(make.__doc__.split())
        where = path.format(name=name)
        filled = tuple(part.format(name=name) for part in command)
        INPUTS[name] = BrokenInput(name, kind, what, where, *words, make, dataset, filled)
        return make

    return add


# Good files, which most inputs begin as


def image_array() -> np.ndarray:
    """Soft tissue in air, HU, `(x, y, z)`."""
    array = np.full(SHAPE, -1000, dtype=np.int16)
    array[1:-1, 1:-1] = np.random.default_rng(0).normal(40, 20, SHAPE).astype(np.int16)[1:-1, 1:-1]
    return array


def label_array() -> np.ndarray:
    """One organ, value 1, `(x, y, z)`."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[3:8, 3:8, 3:8] = 1
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = AFFINE) -> None:
    """Write NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def edit(path: Path, *changes: tuple[int, bytes], cut: int | None = None) -> None:
    """Write other bytes into a NIfTI header: `(offset, bytes)`; and cut the file there."""
    packed = path.name.endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    for offset, new in changes:
        content[offset : offset + len(new)] = new
    content = bytes(content[:cut])
    path.write_bytes(gzip.compress(content) if packed else content)


def shorts(*numbers: int) -> bytes:
    """Little-endian int16."""
    return struct.pack(f"<{len(numbers)}h", *numbers)


def floats(*numbers: float) -> bytes:
    """Little-endian float32."""
    return struct.pack(f"<{len(numbers)}f", *numbers)


def header(shape: tuple[int, ...], image: Path) -> bytes:
    """The header of a good file with another shape."""
    content = bytearray(gzip.decompress(image.read_bytes())[:352])
    content[DIM : DIM + 8] = shorts(3, *shape)
    return bytes(content)


@functools.cache
def packed_zeros(size: int) -> bytes:
    """A member of a gzip stream."""
    return gzip.compress(bytes(size))


def bomb(beginning: bytes, size: int = BOMB_BYTES) -> bytes:
    """A gzip stream of some bytes and `size` zeros: members one after another, each of 16 MiB of zeros."""
    block = 16 << 20
    return gzip.compress(beginning) + packed_zeros(block) * (size // block) + packed_zeros(size % block)


def write_slice(path: Path, index: int, shape: tuple[int, int] = (11, 12), **changes: Any) -> None:
    """One CT slice in DICOM, of the image `image_array`, 2 mm above the one before."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = changes.pop("syntax", ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.{index + 1}"
    dataset.Modality, dataset.SeriesInstanceUID, dataset.InstanceNumber = "CT", "1.2.4", index + 1
    dataset.SeriesDescription, dataset.SeriesNumber = "ABDOMEN", 2
    dataset.Rows, dataset.Columns = shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelSpacing, dataset.SliceThickness = [1, 1], 2
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, 2 * index]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    pixels = np.resize(image_array()[..., index % SHAPE[2]].T, shape)
    dataset.PixelData = pixels.astype(np.int16).tobytes()
    for name, value in changes.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path, enforce_file_format=True)


def write_series(folder: Path) -> None:
    """A good series."""
    folder.mkdir(parents=True)
    for index in range(SHAPE[2]):
        write_slice(folder / f"{index:03d}.dcm", index)


def write_pngs(folder: Path, count: int = SHAPE[2]) -> None:
    """One label slice for each image slice."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(label_array()[..., index].T * np.uint8(255)).save(folder / f"{index:03d}.png")


NRRD_HEADER = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: {sizes}
space directions: (1,0,0) (0,1,0) (0,0,2)
space origin: (0,0,0)
kinds: domain domain domain
endian: little
encoding: {encoding}
"""
META_HEADER = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 1 1 2
DimSize = {sizes}
ElementType = MET_SHORT
ElementDataFile = {data}
"""
SIZES = " ".join(map(str, SHAPE))


def voxels() -> bytes:
    """The voxels of the image as NRRD and MetaImage hold them: x fastest."""
    return image_array().tobytes(order="F")


def write_nrrd(path: Path, sizes: str = SIZES, encoding: str = "raw", data: bytes | None = None) -> None:
    """Write NRRD."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = NRRD_HEADER.format(sizes=sizes, encoding=encoding)
    path.write_bytes(text.encode() + b"\n" + (voxels() if data is None else data))


def write_meta(path: Path, sizes: str = SIZES, data: str = "LOCAL") -> None:
    """Write MetaImage; the voxels beside it where the name ends in .mhd."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mhd" and data == "LOCAL":
        data = path.with_suffix(".raw").name
        path.with_suffix(".raw").write_bytes(voxels())
    text = META_HEADER.format(sizes=sizes, data=data).encode()
    path.write_bytes(text + (voxels() if data == "LOCAL" else b""))


def _lps() -> np.ndarray:
    """The affine of a label map for an image whose axes run to the left and to the back."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ AFFINE


def _save_label(path: Path) -> None:
    save(path, label_array(), _lps())


def _write_masks(folder: Path) -> None:
    save(folder / "liver.nii.gz", label_array())
    save(folder / "spleen.nii.gz", label_array()[::-1].copy())


#: For each dataset: pattern of the image, of the label map, how each is written, and the card's labels.
DATASETS = {
    "scans": (
        "images/*.nii.gz",
        "labels/*.nii.gz",
        lambda p: save(p, image_array()),
        lambda p: save(p, label_array()),
    ),
    "masks": ("*/ct.nii.gz", "*/masks", lambda p: save(p, image_array()), _write_masks),
    "dicom": ("scans/*", "labels/*.nii.gz", write_series, _save_label),
    "slices": ("scans/*", "labels/*", write_series, write_pngs),
    "nrrd": ("images/*.nrrd", "labels/*.nii.gz", write_nrrd, _save_label),
    "mha": ("images/*.mha", "labels/*.nii.gz", write_meta, _save_label),
    "mhd": ("images/*.mhd", "labels/*.nii.gz", write_meta, _save_label),
}
LABELS = {"masks": "{liver: liver, spleen: spleen}", "slices": "{255: liver}"}
#: What the cards of raw datasets say of single cases.
CASES = {"scans": "{slices_beyond_the_scan: {slices: [3, 40]}}"}


def write_card(path: Path, **changes: str | None) -> None:
    """A good card, with other fields; None leaves one out."""
    fields: dict[str, str | None] = {
        "name": path.stem,
        "files": '{image: "images/*.nii.gz", label: "labels/*.nii.gz"}',
        "labels": "{1: liver}",
        "annotated": "[liver]",
        **changes,
    }
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["---", *lines, "---", ""]), encoding="utf-8")


def write_good_case(raw: Path, dataset: str, name: str) -> Files:
    image_pattern, label_pattern, write_image, write_label = DATASETS[dataset]
    image = raw / dataset / image_pattern.replace("*", name)
    label = raw / dataset / label_pattern.replace("*", name)
    write_image(image)
    write_label(label)
    return Files(image, label, raw.parent)


def scan(found: str, expected: str, remedy: str, suffix: str = ".nii.gz"):
    """A scan in NIfTI with something wrong."""
    return _add("Scans", f"raw/scans/images/{{name}}{suffix}", (found, expected, remedy), "scans")


def label(found: str, expected: str, remedy: str):
    """A label map in NIfTI with something wrong."""
    return _add("Label maps", "raw/scans/labels/{name}.nii.gz", (found, expected, remedy), "scans")


def other(kind: str, dataset: str, path: str, found: str, expected: str, remedy: str):
    """Anything else among the raw data."""
    return _add(kind, f"raw/{dataset}/{path}", (found, expected, remedy), dataset)


# Scans


@scan("has no end", "a whole NIfTI file", "download")
def truncated_gzip(files: Files) -> None:
    """The download stopped half-way through a `.nii.gz`."""
    files.image.write_bytes(files.image.read_bytes()[:-500])


@scan("CRC check failed", "the right checksum", "download")
def wrong_checksum(files: Files) -> None:
    """A byte of the checksum at the end of a `.nii.gz` is another."""
    content = bytearray(files.image.read_bytes())
    content[-8] ^= 255
    files.image.write_bytes(bytes(content))


@scan("is cut short", "a whole NIfTI file", "download")
def truncated_header(files: Files) -> None:
    """The download stopped in the header."""
    files.image.write_bytes(files.image.read_bytes()[:100])


@scan("1000 bytes", "promises 2640 bytes of voxels", "download", suffix=".nii")
def truncated_plain(files: Files) -> None:
    """The download stopped half-way through a `.nii`."""
    files.image.unlink()
    path = files.image.with_suffix("")
    save(path, image_array())
    edit(path, cut=1000)


@scan("HTML", "NIfTI", "download")
def html_page(files: Files) -> None:
    """The page of a failed download under the name of a scan."""
    files.image.write_bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 20)


@scan("HTML", "NIfTI", "download")
def packed_html_page(files: Files) -> None:
    """Such a page, compressed."""
    files.image.write_bytes(gzip.compress(b"<html>404</html>" * 50))


@scan("empty", "NIfTI", "download")
def empty_file(files: Files) -> None:
    """A file of no bytes."""
    files.image.write_bytes(b"")


@scan("no DICOM", "slices of a CT", "folder")
def folder_in_place_of_a_file(files: Files) -> None:
    """An empty folder with the name of a scan."""
    files.image.unlink()
    files.image.mkdir()


@scan("pipe", "file", "put")
def named_pipe(files: Files) -> None:
    """A named pipe, which would be waited for without end."""
    files.image.unlink()
    os.mkfifo(files.image)


@scan("more than the 2640 bytes", "its end", "download")
def bomb_behind_the_voxels(files: Files) -> None:
    """A small scan, and 2 GiB of zeros behind its voxels, in a `.nii.gz` of 2 MB."""
    files.image.write_bytes(bomb(gzip.decompress(files.image.read_bytes())))


@scan("1994005998 bytes", "a scan", "download")
def bomb_of_voxels(files: Files) -> None:
    """A header of 999 x 999 x 999 voxels and 2 GB of zeros to go with it, in a `.nii.gz` of 2 MB."""
    files.image.write_bytes(bomb(header((999, 999, 999), files.image), 2 * 999**3))


@scan("begin at byte", "expected", "download")
def bomb_in_an_extension(files: Files) -> None:
    """A header extension of 2 GB, all zeros, in a `.nii.gz` of 2 MB."""
    size = (BOMB_BYTES - 16) // 16 * 16
    start = bytearray(header(SHAPE, files.image))
    start[VOX_OFFSET : VOX_OFFSET + 4] = floats(EXTENSION + 4 + size)
    start[EXTENSION:] = bytes([1, 0, 0, 0]) + struct.pack("<ii", size, 6)
    files.image.write_bytes(bomb(bytes(start)))


@scan("10000 x 10000 x 10000", "at most 1000000000", "download")
def claims_1e12_voxels(files: Files) -> None:
    """A header that claims 10^12 voxels, in a `.nii.gz` of 2 kB."""
    edit(files.image, (DIM, shorts(3, 10000, 10000, 10000)))


@scan("10000 x 10000 x 10000", "at most 1000000000", "download", suffix=".nii")
def claims_1e12_voxels_plain(files: Files) -> None:
    """The same in a `.nii`."""
    files.image.unlink()
    path = files.image.with_suffix("")
    save(path, image_array())
    edit(path, (DIM, shorts(3, 10000, 10000, 10000)))


@scan("4611686018427387904", "at most 1000000000", "download")
def claims_1e18_voxels_in_nifti2(files: Files) -> None:
    """A NIfTI-2 header that claims 2^62 voxels in a row."""
    nib.save(nib.Nifti2Image(image_array(), AFFINE), files.image)
    edit(files.image, (16, struct.pack("<4q", 3, 1 << 62, 1, 1)))


@scan("size 0", "above 0", "download")
def zero_axis(files: Files) -> None:
    """A header that gives an axis 0 voxels."""
    edit(files.image, (DIM + 6, shorts(0)))


@scan("-12", "above 0", "download")
def negative_axis(files: Files) -> None:
    """A header that gives an axis -12 voxels."""
    edit(files.image, (DIM + 2, shorts(-12)))


@scan("12 x 11 x 10 x 2", "three axes", "keep one 3D volume")
def four_axes(files: Files) -> None:
    """Two volumes in one file."""
    save(files.image, np.stack([image_array()] * 2, axis=-1))


@scan("12 x 11", "three axes", "keep one 3D volume")
def two_axes(files: Files) -> None:
    """One slice."""
    save(files.image, image_array()[..., 5])


@scan("RGB", "numbers", "convert")
def colours(files: Files) -> None:
    """Voxels of red, green and blue."""
    save(files.image, np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]))


@scan("complex", "numbers", "convert")
def complex_numbers(files: Files) -> None:
    """Complex voxels."""
    save(files.image, image_array().astype(np.complex64))


@scan("2 of 1320 voxels are NaN", "HU", "exclude")
def nan_voxels(files: Files) -> None:
    """Two voxels that are no numbers."""
    array = image_array().astype(np.float32)
    array[0, 0, :2] = np.nan
    save(files.image, array)


@scan("1320 of 1320 voxels are", "HU", "exclude")
def all_infinite(files: Files) -> None:
    """Every voxel is infinite."""
    save(files.image, np.full(SHAPE, np.inf, np.float32))


@scan("inf", "finite", "convert")
def infinite_slope(files: Files) -> None:
    """The slope from stored numbers to HU is infinite."""
    edit(files.image, (SLOPE, floats(np.inf)))


@scan("nan", "finite", "convert")
def nan_intercept(files: Files) -> None:
    """The intercept from stored numbers to HU is no number."""
    edit(files.image, (SLOPE, floats(2)), (INTERCEPT, floats(np.nan)))


@scan("neither sform nor qform", "expected one of them", "orientation")
def no_orientation(files: Files) -> None:
    """A header that does not say where left is."""
    save(files.image, image_array(), None)


@scan("degrees off", "right angle", "resample")
def sheared(files: Files) -> None:
    """Axes that are not at right angles."""
    save(files.image, image_array(), AFFINE + 0.4 * np.eye(4, k=1))


@scan("0 mm", "above 0", "convert")
def voxels_of_no_size(files: Files) -> None:
    """An affine with a column of zeros."""
    edit(files.image, (280 + 8, floats(0)), (296 + 8, floats(0)), (312 + 8, floats(0)))


@scan("NaN", "finite", "convert")
def nan_affine(files: Files) -> None:
    """An affine with a number that is none."""
    edit(files.image, (280, floats(np.nan)))


@scan("begin at byte 1000000", "a whole NIfTI file", "download")
def voxels_beyond_the_end(files: Files) -> None:
    """A header that says the voxels begin behind the end of the file."""
    edit(files.image, (VOX_OFFSET, floats(1_000_000)))


@scan("not NIfTI", "NIfTI", "download")
def wrong_magic(files: Files) -> None:
    """A header without the four bytes that say NIfTI."""
    edit(files.image, (MAGIC, b"abc\0"))


@scan("type 77", "integers or floats", "convert")
def unknown_voxel_type(files: Files) -> None:
    """A header with a code for the type of voxels that NIfTI does not have."""
    edit(files.image, (DATATYPE, shorts(77)))


@scan("more than the 2640 bytes", "its end", "download")
def wrong_voxel_type(files: Files) -> None:
    """Voxels of 8 bytes under a header that says 2."""
    save(files.image, image_array().astype(np.float64))
    edit(files.image, (DATATYPE, shorts(4, 16)))


@scan("64 bits", "expected 16 bits", "download")
def wrong_bits(files: Files) -> None:
    """A header that says voxels of 16 bits and of 64."""
    edit(files.image, (BITPIX, shorts(64)))


@scan("may not be read", "read", "permission")
def closed_to_the_user(files: Files) -> None:
    """A file that the user may not read (everyone but root)."""
    files.image.chmod(0)


@scan("a link", "a scan", "put")
def dangling_link(files: Files) -> None:
    """A link to a file that is gone."""
    files.image.unlink()
    files.image.symlink_to("gone.nii.gz")


@scan("half of a pair", "one file", "convert", suffix=".nii")
def header_of_a_pair(files: Files) -> None:
    """The `.hdr` of an Analyze pair under the name of a scan, its `.img` beside it."""
    files.image.unlink()
    path = files.image.with_suffix("")
    pair = path.with_suffix(".hdr")
    nib.save(nib.Nifti1Pair(image_array(), AFFINE), pair)
    pair.rename(path)


@scan("every voxel is 7", "a picture in HU", "exclude")
def constant(files: Files) -> None:
    """Every voxel is the same."""
    save(files.image, np.full(SHAPE, 7, np.int16))


@scan("0 to 1", "HU", "convert")
def not_hu(files: Files) -> None:
    """Intensities brought to 0 to 1."""
    array = image_array().astype(np.float32)
    save(files.image, (array - array.min()) / (array.max() - array.min()))


class RunsCode:
    """Unpickled, it runs a command that makes the canary."""

    def __init__(self, folder: Path) -> None:
        self.canary = folder / "canary"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


@scan("not NIfTI", "NIfTI", "download")
def pickle_as_scan(files: Files) -> None:
    """A pickle that runs a command, under the name of a scan."""
    files.image.write_bytes(gzip.compress(pickle.dumps(RunsCode(files.folder))))


@_add("Scans", "raw/scans/images/line\\nbreak\\x1b[2J\\udce9.nii.gz", ("HTML", "NIfTI", "download"), "scans")
def control_characters_in_the_name(files: Files) -> None:
    """An HTML page whose file name holds a line break, an escape sequence of terminals and a byte that is no UTF-8."""
    for path in (files.image, files.label):
        path.rename(path.with_name("line\nbreak\x1b[2J\udce9.nii.gz"))
    files.image.with_name("line\nbreak\x1b[2J\udce9.nii.gz").write_bytes(
        gzip.compress(b"<html>404</html>" * 50)
    )


@scan("no such file", "a scan", "exclude")
def missing_scan(files: Files) -> None:
    """A label map without its scan."""
    files.image.unlink()


# Other formats


@other("Scans", "nrrd", "images/{name}.nrrd", "2140 bytes", "promises 2640 bytes", "download")
def truncated_nrrd(files: Files) -> None:
    """An NRRD file without its last voxels."""
    files.image.write_bytes(files.image.read_bytes()[:-500])


@other("Scans", "nrrd", "images/{name}.nrrd", "HTML", "NRRD", "download")
def html_page_as_nrrd(files: Files) -> None:
    """The page of a failed download under the name of an NRRD file."""
    files.image.write_bytes(b"<html>404</html>" * 50)


@other("Scans", "nrrd", "images/{name}.nrrd", "10000 x 10000 x 10000", "at most 1000000000", "download")
def nrrd_claims_1e12_voxels(files: Files) -> None:
    """An NRRD header that claims 10^12 voxels."""
    write_nrrd(files.image, sizes="10000 10000 10000")


@other("Scans", "nrrd", "images/{name}.nrrd", "more than the 2640 bytes", "its end", "download")
def nrrd_bomb(files: Files) -> None:
    """A small NRRD header and 2 GiB of zeros, in a file of 2 MB."""
    write_nrrd(files.image, encoding="gzip", data=bomb(voxels()))


@other("Scans", "nrrd", "images/{name}.nrrd", "../outside.raw", "in this file", "move")
def nrrd_with_voxels_elsewhere(files: Files) -> None:
    """An NRRD header that takes its voxels from `../outside.raw`."""
    (files.image.parents[1] / "outside.raw").write_bytes(voxels())
    text = NRRD_HEADER.format(sizes=SIZES, encoding="raw")
    files.image.write_text(text + "data file: ../outside.raw\n\n", encoding="ascii")


@other("Scans", "mha", "images/{name}.mha", "2140 bytes", "promises 2640 bytes", "download")
def truncated_mha(files: Files) -> None:
    """A MetaImage without its last voxels."""
    files.image.write_bytes(files.image.read_bytes()[:-500])


@other("Scans", "mha", "images/{name}.mha", "10000 x 10000 x 10000", "at most 1000000000", "download")
def mha_claims_1e12_voxels(files: Files) -> None:
    """A MetaImage header that claims 10^12 voxels."""
    write_meta(files.image, sizes="10000 10000 10000")


@other("Scans", "mhd", "images/{name}.mhd", "../outside.raw", "folder", "move")
def mhd_with_voxels_elsewhere(files: Files) -> None:
    """A MetaImage header that takes its voxels from `../outside.raw`."""
    (files.image.parents[1] / "outside.raw").write_bytes(voxels())
    files.image.with_suffix(".raw").unlink()
    write_meta(files.image, data="../outside.raw")


@other("Scans", "mhd", "images/{name}.mhd", "not there", "mhd_without_voxels.raw", "put")
def mhd_without_voxels(files: Files) -> None:
    """A MetaImage header without the file of its voxels."""
    files.image.with_suffix(".raw").unlink()


# Label maps


@label("no such file", "a label map", "exclude")
def missing_label(files: Files) -> None:
    """A scan without its label map."""
    files.label.unlink()


@label("has no end", "a whole NIfTI file", "download")
def truncated_label(files: Files) -> None:
    """A label map whose download stopped."""
    files.label.write_bytes(files.label.read_bytes()[:-10])


@label("999 x 999 x 999", "at most 16777216", "download")
def label_bomb(files: Files) -> None:
    """A label map of 999 x 999 x 999 zeros in a file of 1 MB, for a scan of 12 x 11 x 10."""
    files.label.write_bytes(bomb(header((999, 999, 999), files.label), 999**3))


@label("(12, 11, 9)", "(12, 11, 10)", "one grid")
def other_shape(files: Files) -> None:
    """A label map with a slice less than its scan."""
    save(files.label, label_array()[..., :-1])


@label("3 mm", "its image", "correct the affine")
def other_place(files: Files) -> None:
    """A label map that is moved by 3 mm."""
    moved = AFFINE.copy()
    moved[0, 3] = 3
    save(files.label, label_array(), moved)


@label("value 7", "it lists 1", "add 7 under `labels:`")
def unknown_value(files: Files) -> None:
    """A value that the card does not list."""
    save(files.label, label_array() * np.uint8(7))


@label("0.5", "whole numbers", "nearest neighbour")
def fractions(files: Files) -> None:
    """Values between whole numbers, as linear resampling leaves them."""
    save(files.label, label_array().astype(np.float32) / 2)


@label("-1", "0 to 32767", "small numbers")
def negative_value(files: Files) -> None:
    """A value below 0."""
    save(files.label, -label_array().astype(np.int16))


@label("40000", "0 to 32767", "small numbers")
def large_value(files: Files) -> None:
    """A value above 32767."""
    save(files.label, label_array().astype(np.int32) * 40000)


@label("nan", "whole numbers", "whole numbers")
def nan_label(files: Files) -> None:
    """A value that is no number."""
    array = label_array().astype(np.float32)
    array[0, 0, 0] = np.nan
    save(files.label, array)


@_add("Label maps", "raw/scans/labels/{name}.nii.gz", ("3 to 40", "0 to 9", "`slices`"), "scans")
def slices_beyond_the_scan(files: Files) -> None:
    """A card that says of a scan of 10 slices that those up to 40 are annotated."""


@other("Label maps", "masks", "{name}/masks", "none", "liver", "put")
def folder_without_masks(files: Files) -> None:
    """A folder that should hold a mask for each organ and holds none."""
    shutil.rmtree(files.label)
    files.label.mkdir()


@other(
    "Label maps", "masks", "{name}/masks/spleen.nii.gz", "12 x 11 x 9", "expected 12 x 11 x 10", "one grid"
)
def masks_on_two_grids(files: Files) -> None:
    """Masks of one scan that differ in shape."""
    save(files.label / "spleen.nii.gz", label_array()[..., :-1])


@other("Label maps", "masks", "{name}/masks/spleen.nii.gz", "has no end", "a whole NIfTI file", "download")
def truncated_mask(files: Files) -> None:
    """A mask whose download stopped."""
    path = files.label / "spleen.nii.gz"
    path.write_bytes(path.read_bytes()[:-10])


@other("Label maps", "slices", "labels/{name}", "9", "10", "slice")
def label_slices_are_missing(files: Files) -> None:
    """Nine PNG files for ten DICOM slices."""
    (files.label / "004.png").unlink()


@other("Label maps", "slices", "labels/{name}", "PNG", "PNG", "download")
def label_slice_is_not_png(files: Files) -> None:
    """An HTML page among the PNG files."""
    (files.label / "004.png").write_bytes(b"<html>404</html>" * 50)


@other("Label maps", "slices", "labels/{name}", "30000", "12", "download")
def label_slice_is_a_bomb(files: Files) -> None:
    """A PNG file of 30000 x 30000 pixels among those of 12 x 11."""
    Image.new("1", (30000, 30000)).save(files.label / "004.png")


# DICOM


def dicom(path: str, found: str, expected: str, remedy: str):
    """A DICOM series with something wrong."""
    return other("DICOM series", "dicom", f"scans/{{name}}{path}", found, expected, remedy)


@dicom("", "no DICOM slices", "slices of a CT", "folder")
def empty_series(files: Files) -> None:
    """A folder without any file."""
    shutil.rmtree(files.image)
    files.image.mkdir()


@dicom("", "no DICOM slices", "CT", "folder")
def series_of_notes(files: Files) -> None:
    """A folder with files that are not DICOM."""
    for path in files.image.iterdir():
        path.write_text("see the other folder", encoding="utf-8")


@dicom("", "no DICOM slices", "CT", "folder")
def magnetic_resonance(files: Files) -> None:
    """A series that is not CT."""
    for index, path in enumerate(sorted(files.image.iterdir())):
        write_slice(path, index, Modality="MR")


@dicom("", "4.00 mm", "2.00 mm", "missing slices")
def missing_slice(files: Files) -> None:
    """A series without one of its slices."""
    (files.image / "004.dcm").unlink()


@dicom("", "same place", "one slice for each", "keep one")
def slice_twice(files: Files) -> None:
    """Two slices at one place."""
    write_slice(files.image / "again.dcm", 4, SOPInstanceUID="1.2.3.99")


@dicom("", "gantry tilt", "upright", "resample")
def gantry_tilt(files: Files) -> None:
    """Slices that are shifted against one another."""
    for index, path in enumerate(sorted(files.image.iterdir())):
        write_slice(path, index, ImagePositionPatient=[0, 0.5 * index, 2 * index])


@dicom("/", "9 slices of 12 x 11", "expected one", "choose one")
def slices_of_two_sizes(files: Files) -> None:
    """A slice of another size among the others."""
    write_slice(files.image / "009.dcm", 9, shape=(6, 6))


@dicom("", "2 DICOM series", "one", "series")
def two_series(files: Files) -> None:
    """Two series in a folder, and a card that does not choose."""
    for index in range(SHAPE[2]):
        changes = {"SeriesInstanceUID": "1.2.5", "SeriesDescription": "THORAX", "SeriesNumber": 3}
        write_slice(files.image / f"second{index:03d}.dcm", index, **changes)


@dicom("/004.dcm", "bytes", "expected", "again")
def truncated_slice(files: Files) -> None:
    """A slice whose download stopped."""
    path = files.image / "004.dcm"
    path.write_bytes(path.read_bytes()[:-50])


@dicom("", "no 'Pixel Data'", "decoded", "export")
def slice_without_pixels(files: Files) -> None:
    """A slice without pixels, so that one is missing."""
    write_slice(files.image / "004.dcm", 4, PixelData=None)


@dicom("/004.dcm", "decoded", "JPEG 2000", "export")
def pixels_that_cannot_be_decoded(files: Files) -> None:
    """A slice that says JPEG 2000 and is not."""
    content = pydicom.encaps.encapsulate([b"not a picture at all"])
    write_slice(files.image / "004.dcm", 4, syntax=JPEG2000Lossless, PixelData=content)


@dicom("/", "65535 columns", "1 to 8192", "export")
def slice_claims_4e9_pixels(files: Files) -> None:
    """A slice whose header claims 65535 x 65535 pixels."""
    write_slice(files.image / "004.dcm", 4, Rows=65535, Columns=65535)


@dicom("", "65535 columns", "1 to 8192", "export")
def series_claims_4e10_pixels(files: Files) -> None:
    """A series of which every header claims 65535 x 65535 pixels."""
    for index, path in enumerate(sorted(files.image.iterdir())):
        write_slice(path, index, Rows=65535, Columns=65535)


# Cards


def card(
    found: str, expected: str, remedy: str, path: str = "cards/{name}.md", *, others: tuple[str, ...] = ()
):
    """A card with something wrong."""
    command = ("check", *others, "cards/{name}.md", "--raw", "raw", "--out", "out/{name}")
    return _add("Data cards", path, (found, expected, remedy), None, command)


@card("python/object/apply:os.system", "text, numbers and lists", "line")
def card_that_runs_code(path: Path) -> None:
    """YAML that asks for a Python object, whose making runs a command."""
    write_card(path, title=f"!!python/object/apply:os.system [\"touch '{path.parents[1]}/canary'\"]")


LAUGHS = "\n".join(
    ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)


@card("['ha', 'ha', 'ha', ...]", "a whole number", "mend the card")
def card_of_billion_laughs(path: Path) -> None:
    """YAML of 600 bytes whose aliases stand for 10^12 words."""
    write_card(path, counts="\n  " + LAUGHS.replace("\n", "\n  "))


@card("{", "a whole number", "mend the card")
def card_with_an_alias_of_itself(path: Path) -> None:
    """YAML with a list that holds itself."""
    write_card(path, counts="&a {a: *a}")


@card("too deeply", "a few levels", "without such nesting")
def card_that_is_too_deep(path: Path) -> None:
    """YAML of 2000 lists, each in the one before."""
    write_card(path, counts="[" * 2000 + "]" * 2000)


@card("UTF-8", "UTF-8", "save it as UTF-8")
def card_in_another_encoding(path: Path) -> None:
    """A card in Latin-1."""
    write_card(path, title="Schätze")
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))


@card("there twice", "once", "keep one of the two")
def card_with_a_key_twice(path: Path) -> None:
    """Two meanings for one label value."""
    write_card(path, labels="{1: liver, 1: background}")


@card("no such field", "did you mean `annotated`?", "card")
def card_with_an_unknown_field(path: Path) -> None:
    """A misspelt field."""
    write_card(path, annotate="[liver]")


@card("../../secret/*.nii.gz", "below it", "card")
def card_that_leaves_the_folder(path: Path) -> None:
    """A file pattern with `../..`."""
    write_card(path, files='{image: "../../secret/*.nii.gz", label: "labels/*.nii.gz"}')


@card("/etc/*", "below it", "card")
def card_with_an_absolute_pattern(path: Path) -> None:
    """A file pattern that begins at the root."""
    write_card(path, files='{image: "images/*.nii.gz", label: "/etc/*"}')


@card("../../secret", "below it", "card")
def card_with_a_folder_elsewhere(path: Path) -> None:
    """A name of the dataset's folder with `../..`."""
    write_card(path, folders="[../../secret]")


@card("../../etc", "letters, digits", "card")
def card_whose_name_is_a_path(path: Path) -> None:
    """A dataset called `../../etc`."""
    write_card(path, name="../../etc")


@card("../spleen", "letters, digits", "card")
def card_with_a_mask_elsewhere(path: Path) -> None:
    """A mask called `../spleen`."""
    write_card(path, files='{image: "*/ct.nii.gz", label: "*/masks"}', labels='{"../spleen": liver}')


@card("livr", "`annotated`", "card")
def card_with_a_misspelt_organ(path: Path) -> None:
    """A label of an organ that is not annotated."""
    write_card(path, labels="{1: liver, 2: livr}")


@card("another card called card_twice", "once", "give", others=("cards/other/{name}.md",))
def card_twice(path: Path) -> None:
    """Two cards of one name in one call."""
    write_card(path)
    write_card(path.parent / "other" / path.name)


@card("65 organs", "64", "--organ")
def card_of_65_organs(path: Path) -> None:
    """More organs than a label map of 8 bits and its sets allow."""
    organs = [f"organ_{number}" for number in range(1, 66)]
    labels = ", ".join(f"{number}: {organ}" for number, organ in enumerate(organs, start=1))
    write_card(path, labels=f"{{{labels}}}", annotated=f"[{', '.join(organs)}]")


@card("no front matter", "---", "start the file")
def card_without_front_matter(path: Path) -> None:
    """Prose alone."""
    path.write_text("# A dataset\n", encoding="utf-8")


@card("no front matter", "---", "start the file")
def card_of_zeros(path: Path) -> None:
    """A file of zero bytes, as a crash leaves it."""
    path.write_bytes(bytes(4096))


@card("['liver']", "`name: value` lines", "card")
def card_with_wrong_types(path: Path) -> None:
    """A list where values with names are expected."""
    write_card(path, labels="[liver]")


@card("spleen", "`annotated`", "card")
def card_whose_case_has_a_further_organ(path: Path) -> None:
    """A case of which an organ is annotated that the dataset does not annotate."""
    write_card(path, cases="{aa_good: {annotated: [spleen]}}")


@card("[9, 3]", "[first slice, last slice]", "card")
def card_with_slices_backwards(path: Path) -> None:
    """Annotated slices from 9 to 3."""
    write_card(path, cases="{aa_good: {slices: [9, 3]}}")


@card("no such data card", "or card set", "a .md or a .yaml file", path="cards/{name}.md")
def card_that_is_not_there(path: Path) -> None:
    """A name without a card."""


@card("no file in", "images/*.nii.gz", "--raw")
def card_without_cases(path: Path) -> None:
    """A good card for data that are not there."""
    write_card(path)


# Prepared data


def prepared(path: str, found: str, expected: str, remedy: str):
    """Prepared data with something wrong."""
    command = ("train", "configs/good.yaml", "--prepared", "prepared/{name}", "--out", "out/{name}")
    return _add("Prepared data", f"prepared/{{name}}/{path}", (found, expected, remedy), None, command)


def _edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed), encoding="utf-8")


def _first_array(folder: Path, name: str) -> Path:
    return sorted(folder.glob(f"*/*/{name}*"))[0]


@prepared("", "pickled Python objects", "numbers", "again")
def prepared_image_is_a_pickle(folder: Path) -> None:
    """A pickle that runs a command, in place of an image."""
    array = np.full(SHAPE[::-1], 0, dtype=object)  # as large as an image, so that it is not just too short
    array[0, 0, 0] = RunsCode(folder.parents[1])
    np.save(_first_array(folder, "image"), array, allow_pickle=True)


@prepared("", "(10000, 10000, 10000)", "expected", "again")
def prepared_image_claims_1e12_voxels(folder: Path) -> None:
    """An image whose header claims 10^12 voxels."""
    _write_npy_header(_first_array(folder, "image"), (10000, 10000, 10000))


@prepared("", "(10, 11, 11)", "(10, 11, 12)", "again")
def prepared_image_claims_another_shape(folder: Path) -> None:
    """An image whose header claims another shape than the manifest."""
    _write_npy_header(_first_array(folder, "image"), (10, 11, 11))


@prepared("", "cut short", "expected 2768", "again")
def prepared_image_is_truncated(folder: Path) -> None:
    """An image without its last voxels."""
    path = _first_array(folder, "image")
    path.write_bytes(path.read_bytes()[:-100])


@prepared("", "no such file", "over 1320 bytes", "again")
def prepared_label_is_missing(folder: Path) -> None:
    """A prepared case without its label map."""
    _first_array(folder, "label").unlink()


@prepared("", "value 200", "0 to", "again")
def prepared_label_has_an_unknown_value(folder: Path) -> None:
    """A label map with a value that the dataset's table does not have."""
    path = _first_array(folder, "label")
    array = np.load(path)
    array[:] = 200
    np.save(path, array)


@prepared("", "manifest", "manifest", "run `partialseg prepare")
def manifest_is_missing(folder: Path) -> None:
    """A folder without a manifest."""
    (folder / "manifest.json").unlink()


@prepared("manifest.json", "not JSON", "JSON", "again")
def manifest_is_not_json(folder: Path) -> None:
    """A manifest that was cut off."""
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:100])


@prepared("manifest.json", "too deeply", "a few levels", "again")
def manifest_is_too_deep(folder: Path) -> None:
    """JSON of 100000 lists, each in the one before."""
    (folder / "manifest.json").write_text("[" * 100_000 + "]" * 100_000)


@prepared("manifest.json", "format None", "expected 2", "again")
def manifest_is_a_list(folder: Path) -> None:
    """JSON of something else."""
    (folder / "manifest.json").write_text("[1, 2]")


@prepared("manifest.json", "format 99", "expected", "again")
def manifest_of_another_format(folder: Path) -> None:
    """A manifest that a later version wrote."""
    _edit_manifest(folder, lambda content: content.update(format=99))


@prepared("manifest.json", "datasets: the field is missing", "a value", "again")
def manifest_without_datasets(folder: Path) -> None:
    """A manifest without one of its fields."""
    _edit_manifest(folder, lambda content: content.pop("datasets") and None)


@prepared("manifest.json", "../../etc", "expected", "again")
def manifest_whose_case_leaves_the_folder(folder: Path) -> None:
    """A case called `../../etc`."""
    _edit_manifest(folder, lambda content: content["cases"][0].update(name="../../etc"))


@prepared("manifest.json", "unheard_of", "one of scans", "again")
def manifest_with_an_unknown_dataset(folder: Path) -> None:
    """A case of a dataset that the manifest does not describe."""
    _edit_manifest(folder, lambda content: content["cases"][0].update(dataset="unheard_of"))


@prepared("manifest.json", "'ten'", "a whole number", "again")
def manifest_with_wrong_types(folder: Path) -> None:
    """A shape of words."""
    _edit_manifest(folder, lambda content: content["cases"][0].update(shape=["ten", 11, 12]))


def _write_npy_header(path: Path, shape: tuple[int, ...]) -> None:
    """Give a `.npy` file another shape, and leave its voxels."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<i2", "fortran_order": False, "shape": shape})
    path.write_bytes(stream.getvalue() + np.load(path).tobytes())


# nnU-Net datasets


def dataset(found: str, expected: str, remedy: str):
    """A dataset.json with something wrong, for `partialseg card new`."""
    path = "datasets/{name}/dataset.json"
    return _add(
        "nnU-Net datasets",
        path,
        (found, expected, remedy),
        None,
        ("card", "new", path, "--out", "out/{name}.md"),
    )


def write_dataset(path: Path, **changes: Any) -> None:
    """A good dataset.json of nnU-Net, with other fields; None leaves one out."""
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
        **changes,
    }
    content = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(content), encoding="utf-8")


@dataset("is not JSON", "JSON", "mend")
def dataset_is_an_html_page(path: Path) -> None:
    """The page of a failed download in place of dataset.json."""
    path.write_text("<html>404</html>", encoding="utf-8")


@dataset("too deeply", "a few levels", "mend")
def dataset_is_too_deep(path: Path) -> None:
    """JSON of 100000 lists, each in the one before."""
    path.write_text("[" * 100_000 + "]" * 100_000, encoding="utf-8")


@dataset("missing", "`labels`", "nnU-Net's dataset format")
def dataset_without_labels(path: Path) -> None:
    """A dataset.json that does not say what the values are."""
    write_dataset(path, labels=None)


@dataset('"one"', "a whole number", "mend")
def dataset_with_a_value_in_words(path: Path) -> None:
    """A value that is no number."""
    write_dataset(path, labels={"background": 0, "liver": "one"})


@dataset("background", "a whole number", "mend")
def dataset_with_an_odd_digit(path: Path) -> None:
    """A key that is a digit to Unicode and no number."""
    write_dataset(path, labels={"0": "background", "\u00b2": "liver"})


@dataset("1 is the value of several names", "expected", "give each its own")
def dataset_with_a_value_twice(path: Path) -> None:
    """Two organs of one value."""
    write_dataset(path, labels={"background": 0, "liver": 1, "spleen": 1})


@dataset("`regions_class_order` is missing", "a list", "add it")
def dataset_of_regions_without_their_order(path: Path) -> None:
    """nnU-Net's regions, and nothing that says which of them lies in front."""
    write_dataset(path, labels={"background": 0, "liver": [1, 2], "spleen": 2})


@dataset("MRI", "CT", "CT alone")
def dataset_of_magnetic_resonance(path: Path) -> None:
    """A dataset of another modality."""
    write_dataset(path, channel_names={"0": "MRI"})


@dataset("../../secret/1.nii.gz", "the dataset's folder", "relative to dataset.json")
def dataset_with_a_path_elsewhere(path: Path) -> None:
    """A training case outside of the folder."""
    write_dataset(path, training=[{"image": "../../secret/1.nii.gz", "label": "labelsTr/1.nii.gz"}])


# Configs


def config(found: str, expected: str, remedy: str):
    """A config with something wrong."""
    command = ("train", "configs/{name}.yaml", "--prepared", "prepared/good", "--out", "out/{name}")
    return _add("Configs", "configs/{name}.yaml", (found, expected, remedy), None, command)


@config("python/object/apply:os.system", "text, numbers and lists", "line")
def config_that_runs_code(path: Path) -> None:
    """YAML that asks for a Python object, whose making runs a command."""
    path.write_text(f"name: !!python/object/apply:os.system [\"touch '{path.parents[1]}/canary'\"]\n")


@config("[[", "text", "correct the config")
def config_of_billion_laughs(path: Path) -> None:
    """YAML of 600 bytes whose aliases stand for 10^12 words."""
    path.write_text(f"{LAUGHS}\nname: *a11\n")


@config("too deeply", "a few levels", "without such nesting")
def config_that_is_too_deep(path: Path) -> None:
    """YAML of 2000 lists, each in the one before."""
    path.write_text("name: " + "[" * 2000 + "]" * 2000 + "\n")


@config("there twice", "once", "keep one of the two")
def config_with_a_key_twice(path: Path) -> None:
    """Two seeds."""
    path.write_text("name: twice\nseed: 1\nseed: 2\n")


@config("UTF-8", "UTF-8", "save it as UTF-8")
def config_in_another_encoding(path: Path) -> None:
    """A config in UTF-16."""
    path.write_bytes("name: tiny\n".encode("utf-16"))


@config("`stages.0.epoch`: there is no such field", "did you mean `epochs`?", "correct")
def config_with_an_unknown_field(path: Path) -> None:
    """A misspelt field."""
    path.write_text(
        "name: misspelt\nstages: [{name: all, datasets: all, epoch: 2, patches_per_dataset: 1}]\n"
    )


@config("nothing", "`field: value`", "write a field")
def config_of_nothing(path: Path) -> None:
    """An empty file."""
    path.write_bytes(b"")


# The folder, the command, the page


def possible(broken: BrokenInput) -> bool:
    """Whether this user can make the input: to root no file is closed."""
    return broken.name != "closed_to_the_user" or os.geteuid() != 0


def raw_inputs() -> list[BrokenInput]:
    """The inputs that one call of `prepare` or `check` takes together."""
    return [broken for broken in INPUTS.values() if broken.dataset is not None and possible(broken)]


def raw_arguments(folder: Path) -> list[str]:
    """The cards of all raw datasets, and where the data are."""
    return [*(str(folder / "raw" / f"{dataset}.md") for dataset in DATASETS), "--raw", str(folder / "raw")]


def make_folder(folder: Path) -> None:
    """Make every broken input, and good ones beside them."""
    folder = Path(folder).resolve()
    raw = folder / "raw"
    for dataset, (image, label, _, _) in DATASETS.items():
        for name in GOOD:
            write_good_case(raw, dataset, name)
        write_card(
            raw / f"{dataset}.md",
            folders=f"[{dataset}]",
            files=f'{{image: "{image}", label: "{label}"}}',
            labels=LABELS.get(dataset, "{1: liver}"),
            annotated="[liver, spleen]" if dataset == "masks" else "[liver]",
            cases=CASES.get(dataset, "{}"),
        )
    (folder / "configs").mkdir()
    _make_good_prepared(folder)
    for broken in INPUTS.values():
        if not possible(broken):
            continue
        if broken.dataset is not None:
            broken.make(write_good_case(raw, broken.dataset, broken.name))
        elif broken.kind == "Prepared data":
            path = folder / "prepared" / broken.name
            shutil.copytree(folder / "prepared" / "good", path)
            broken.make(path)
        else:
            (folder / broken.path).parent.mkdir(parents=True, exist_ok=True)
            broken.make(folder / broken.path)


def _make_good_prepared(folder: Path) -> None:
    """Prepared data and a config that go together."""
    from partialseg.data.cards import read_card
    from partialseg.data.prepare import prepare

    raw = folder / "prepared" / "raw"
    for name in GOOD:
        write_good_case(raw, "scans", name)
    write_card(raw / "scans.md")
    prepare([read_card(raw / "scans.md")], raw, folder / "prepared" / "good", SPACING_MM[::-1], jobs=1)
    (folder / "configs" / "good.yaml").write_text(
        "name: good\npatch_size: [8, 8, 8]\nnetwork: {strides: [[1, 1, 1], [2, 2, 2]], base_channels: 2}\n"
        "stages: [{name: all, datasets: all, epochs: 1, patches_per_dataset: 2}]\nmonitor_patches: 1\n"
    )


@dataclass(frozen=True)
class Call:
    """How a call of the command ended."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines about files; progress, and the count of problems, are not."""
        return [line for line in self.err.splitlines() if line.startswith("/")]


def call(arguments: list[str], folder: Path) -> Call:
    """Call the command in this process, by the function that the console script calls; paths are in FOLDER."""
    from partialseg.cli import main

    parts = ("cards/", "configs/", "datasets/", "prepared/", "out/")
    absolute = [str(folder / part) if part.startswith(parts) or part == "raw" else part for part in arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["partialseg", *absolute]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    return Call(status, out.getvalue(), err.getvalue())


def line_of(broken: BrokenInput, lines: list[str], folder: Path) -> str | None:
    """The one line that names the input; None where there is none, or more than one."""
    named = str(folder / broken.path)
    found = [line for line in lines if line.startswith(named)]
    return found[0] if len(found) == 1 else None


def table(folder: Path) -> Iterator[str]:
    """docs/bad_input.md: every input, and the line that it gives now."""
    arguments = ["prepare", *raw_arguments(folder), "--out", str(folder / "out"), "--spacing", "2", "1", "1"]
    raw_lines = call(arguments, folder).lines
    yield from PAGE.splitlines()
    for kind in dict.fromkeys(broken.kind for broken in INPUTS.values()):
        yield from ["", f"## {kind}", "", "| input | what is wrong | the line |", "|---|---|---|"]
        for broken in INPUTS.values():
            if broken.kind == kind:
                yield f"| `{broken.name}` | {broken.what} | {_shown(broken, raw_lines, folder)} |"


PAGE = """# Bad input

What the command says of files with something wrong: one line each, with the file, what was found, what was expected,
and what to do. It ends with exit status 1, without a traceback; the good cases of the same call are prepared, and
nothing half-written stays behind. No input is believed before it was measured: what unpacks to more than it should, or
claims more voxels than there are bytes, is refused before memory is taken for it; code in YAML or in a pickle is not
run; paths do not leave their folder.

`python tests/data/broken_inputs.py FOLDER` makes these inputs, and
`python tests/data/broken_inputs.py --table > docs/bad_input.md` this page. `tests/data/test_bad_input.py` gives each of
them to the command.
"""


def _shown(broken: BrokenInput, raw_lines: list[str], folder: Path) -> str:
    if not possible(broken):
        return "(not made by root, to whom no file is closed)"
    lines = raw_lines if broken.dataset is not None else call(list(broken.command), folder).lines
    line = line_of(broken, lines, folder)
    if line is None:
        raise RuntimeError(f"{broken.name}: expected one line that names {broken.path}, found {lines}")
    shown = line.replace(str(folder), "FOLDER").replace("|", "\\|")
    return f"`{shown}`" if "`" not in shown else f"`` {shown} ``"


def main(arguments: list[str]) -> None:
    """Make the folder, or the page."""
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        sys.exit(__doc__)
    if arguments[0] == "--table":
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary).resolve() / "bad"
            make_folder(folder)
            print("\n".join(table(folder)))
        return
    make_folder(Path(arguments[0]))
    for broken in INPUTS.values():
        print(f"{broken.path}: {broken.what}")


if __name__ == "__main__":
    main(sys.argv[1:])
