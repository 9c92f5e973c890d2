"""NIfTI files, whose headers are not believed before they are checked.

nibabel says what a header means. The voxels are read here, so that no more memory is taken and no more is
decompressed than a header promises that the file can keep.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.spatialimages import HeaderDataError

from partialseg.data.voxel_files import (
    ANY_LIMITS,
    MAX_MM,
    Limits,
    StoredVoxels,
    check_affine,
    check_dtype,
    check_shape,
    check_stored_bytes,
    is_html,
    no_traceback,
    read_voxels,
)
from partialseg.errors import DataError

NIFTI_SUFFIXES = (".nii.gz", ".nii")
#: Extensions of a header stay below; voxels that are said to start later do not.
MAX_HEADER_BYTES = 1 << 26
#: How far sform and qform may place the first voxel from one another, and any voxel, in parts of the smallest
#: voxel size. The quaternion of a qform has six digits, which turns a scan by up to 0.001 about its origin.
ORIGIN_TOLERANCE, CORNER_TOLERANCE = 0.1, 1.0

#: The first of these bytes says that extensions follow; programs that leave something else there do not mean it.
_HAS_EXTENSIONS = b"\1\0\0\0"


def read_nifti(path: Path, limits: Limits = ANY_LIMITS) -> StoredVoxels:
    """Read a NIfTI-1 or NIfTI-2 file, gzipped or not, whatever its name says.

    Of a gzipped file hardly more is decompressed than its header promises, so that a gzip bomb is refused early.
    Extensions of the header are passed over.

    Args:
        path: The file.
        limits: How much it may claim.

    Returns:
        Its voxels as stored, and the header without extensions.

    Raises:
        DataError: If it is missing, damaged or not NIfTI; if its header promises what cannot be, or does not
            say where the voxels lie.
    """
    with no_traceback("NIfTI", path), _quiet_nibabel(), _open(path) as (stream, compressed):
        return _read(stream, compressed, path, limits)


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keep nibabel from printing what it thinks of a strange header: one line for each problem is enough."""
    logger = nib.imageglobals.logger
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file's content, and whether it is gzipped; its first bytes say so, its name may be wrong."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if compressed:
            with igzip.IGzipFile(fileobj=file, mode="rb") as stream:
                yield stream, True
        else:
            yield file, False


def _read(stream: BinaryIO, compressed: bool, path: Path, limits: Limits) -> StoredVoxels:
    """Header, then voxels, each checked before it costs memory."""
    header, raw, start = _read_header(stream, path)
    shape = check_shape(raw["dim"][1 : int(raw["dim"][0]) + 1], path, limits)
    dtype = header.get_data_dtype()
    check_dtype(dtype, path)
    if int(raw["bitpix"]) != 8 * dtype.itemsize:
        raise DataError(
            path,
            f"its header says {dtype} voxels of {raw['bitpix']} bits, expected {8 * dtype.itemsize} bits",
            "download or convert it again",
        )
    slope, intercept = _scaling(raw, path)
    affine, notes = _geometry(header, raw, shape, path)
    offset = _voxel_offset(raw, path)
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    stored = os.fstat(stream.fileno()).st_size
    check_stored_bytes(num_bytes, stored, compressed, "NIfTI", path, limits)
    _pass_extensions(stream, start, offset, header, path)
    array = read_voxels(stream, shape, dtype, "NIfTI", path)
    header["vox_offset"] = 0  # there are no extensions now
    return StoredVoxels(array, affine, slope, intercept, header, notes)


def _read_header(stream: BinaryIO, path: Path) -> tuple[nib.Nifti1Header, nib.Nifti1Header, int]:
    """The header with nibabel's corrections, the header as it is, and its length in bytes."""
    block = stream.read(nib.Nifti1Header.sizeof_hdr)
    kind = nib.Nifti1Header
    if nib.Nifti2Header.may_contain_header(block.ljust(nib.Nifti2Header.sizeof_hdr, b"\0")):
        kind = nib.Nifti2Header
        block += stream.read(kind.sizeof_hdr - len(block))
    if not block:
        raise DataError(path, "is empty, expected a NIfTI file", "download it again")
    if len(block) < kind.sizeof_hdr or not kind.may_contain_header(block):
        found = "but an HTML page" if is_html(block) else "(it has no such header)"
        raise DataError(path, f"is not NIfTI {found}", "download or convert it again")
    raw = kind(block, check=False)
    if raw["magic"].item()[:2] != b"n+":
        raise DataError(
            path, "is half of a pair (.hdr, .img), expected NIfTI in one file", "convert it to .nii.gz"
        )
    if not 1 <= int(raw["dim"][0]) <= 7:
        raise DataError(path, f"claims {raw['dim'][0]} axes, expected three", "download or convert it again")
    types = nib.nifti1.data_type_codes
    code = int(raw["datatype"])
    if code not in types.dtype or not types.dtype[code].itemsize:
        raise DataError(path, f"holds voxels of type {code}, expected integers or floats", "convert it again")
    _voxel_offset(raw, path)  # nibabel has other words
    try:
        return kind(block), raw, len(block)
    except HeaderDataError as error:
        raise DataError(
            path, f"its header is damaged ({error}), expected one of NIfTI", "download or convert it again"
        ) from error


def _scaling(raw: nib.Nifti1Header, path: Path) -> tuple[float, float]:
    """Slope and intercept; a slope of 0 means that nothing is scaled (NIfTI-1, nifti1.h)."""
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0:
        return 1.0, 0.0
    if not (np.isfinite(slope) and np.isfinite(intercept)):
        raise DataError(
            path,
            f"its slope and intercept are {slope:g} and {intercept:g}, expected finite numbers",
            "convert it again; if the stored values are the true ones, set them to 1 and 0",
        )
    return slope, intercept


def _voxel_offset(raw: nib.Nifti1Header, path: Path) -> int:
    """Where the voxels start."""
    found = float(raw["vox_offset"])
    least = raw.single_vox_offset
    if found == 0:
        return least
    if not (least <= found <= MAX_HEADER_BYTES and found.is_integer()):
        raise DataError(
            path,
            f"its voxels are said to begin at byte {found:.10g}, expected {least} to {MAX_HEADER_BYTES}",
            "download or convert it again",
        )
    return int(found)


def _pass_extensions(stream: BinaryIO, start: int, offset: int, header: nib.Nifti1Header, path: Path) -> None:
    """Read on to the voxels; the extensions between must be as long as they say."""
    between = stream.read(offset - start)
    if len(between) < offset - start:
        raise DataError(
            path,
            f"is cut short ({start + len(between)} bytes), its voxels begin at byte {offset}, expected a whole "
            "NIfTI file",
            "download it again",
        )
    at = 4
    while between[:4] == _HAS_EXTENSIONS and (at == 4 or at + 8 <= len(between)):
        room = len(between) - at
        size = int.from_bytes(
            between[at : at + 4], "big" if header.endianness == ">" else "little", signed=True
        )
        if not 8 <= size <= room:
            raise DataError(
                path,
                f"an extension of its header claims {size} bytes, expected at most the {room} before its voxels",
                "download or convert it again",
            )
        at += size


def _geometry(
    header: nib.Nifti1Header, raw: nib.Nifti1Header, shape: tuple[int, int, int], path: Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The affine, and what is odd about the header's two forms; the sform counts where there are both."""
    if not (int(header["sform_code"]) or int(header["qform_code"])):
        raise DataError(
            path,
            "has neither sform nor qform, expected one of them: left and right are not known",
            "convert it again with its orientation",
        )
    notes = []
    if int(raw["xyzt_units"]) & 7 in (1, 3):
        unit = {1: "metres", 3: "micrometres"}[int(raw["xyzt_units"]) & 7]
        notes.append(f"the header says that lengths are in {unit}; they are read as mm")
    qform = _qform(header, raw)
    if int(header["sform_code"]):
        affine = header.get_sform()
        check_affine(affine, path)
        if int(header["qform_code"]):
            notes += _form_notes(affine, qform, shape)
    elif qform is None:
        sizes = " x ".join(f"{size:g}" for size in raw["pixdim"][1:4])
        raise DataError(
            path,
            f"its qform cannot be used (quaternion {header['quatern_b']:g}, {header['quatern_c']:g}, "
            f"{header['quatern_d']:g}, voxels of {sizes} mm)",
            "convert it again with its orientation",
        )
    else:
        affine = qform
        check_affine(affine, path)
    return affine, tuple(notes)


def _qform(header: nib.Nifti1Header, raw: nib.Nifti1Header) -> np.ndarray | None:
    """The qform's affine; None where its numbers make none. nibabel would take 1 mm for a voxel size of 0."""
    sizes = raw["pixdim"][1:4]
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        return None
    try:
        qform = header.get_qform()
    except (HeaderDataError, ValueError):  # no quaternion has such numbers
        return None
    return qform if (np.abs(qform) <= MAX_MM).all() else None


def _form_notes(sform: np.ndarray, qform: np.ndarray | None, shape: tuple[int, int, int]) -> list[str]:
    """A note where qform and sform place voxels differently."""
    if qform is None:
        return ["its qform cannot be used; the sform counts"]
    corners = np.array(np.meshgrid(*([0, size - 1] for size in shape))).reshape(3, -1)
    difference = sform - qform
    apart_mm = np.linalg.norm(difference[:3, :3] @ corners + difference[:3, 3:], axis=0).max()
    origin_mm = np.linalg.norm(difference[:3, 3])
    voxel_mm = nib.affines.voxel_sizes(sform).min()
    if origin_mm <= ORIGIN_TOLERANCE * voxel_mm and apart_mm <= CORNER_TOLERANCE * voxel_mm:
        return []
    codes = ["".join(code or "?" for code in nib.aff2axcodes(affine)) for affine in (sform, qform)]
    axes = f", axes {codes[0]} and {codes[1]}" if codes[0] != codes[1] else ""
    return [f"sform and qform place voxels up to {apart_mm:.3g} mm apart{axes}; the sform counts"]
