"""The label map of a raw case, in whichever way its dataset keeps it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from partialseg.data.cards import Card, Override, RawCase
from partialseg.data.classes import BACKGROUND, organs_meant
from partialseg.data.dicom import read_mask, slice_order
from partialseg.data.raw_files import extent
from partialseg.data.volumes import SUFFIXES, Volume, canonical_volume, read_label
from partialseg.data.voxel_files import MAX_VOXELS
from partialseg.errors import DataError
from partialseg.wording import counted

#: How far masks of one case may lie apart, in parts of the smallest voxel size; rounding stays below it.
PLACE_TOLERANCE = 0.05
#: Label maps of so many voxels are read even if their scan has fewer, so that both shapes can be told.
_ALWAYS_READ = 1 << 24

_PNG_START = b"\x89PNG\r\n\x1a\n"
#: Pillow's modes of one whole number a pixel: 1, 8 and 16 bits (older versions of Pillow call these "I").
_PNG_MODES = ("1", "L", "I;16", "I;16B", "I")


def read_case_label(card: Card, raw_case: RawCase) -> Volume:
    """Read the label map of a raw case; its values are those of `card.labels`.

    A dataset keeps its label maps in one of three ways:

    - One file for a case; see `partialseg.data.volumes.read_label`.
    - A folder of masks, where the card gives names of masks: `<name>.nii.gz` (or another suffix) or a folder
      `<name>` of DICOM slices. A voxel in several masks is the one that the card lists first. A mask that is
      not there is taken as empty, and noted, as long as another one is there. Where the card says that it means
      "not annotated", noted is an organ of which the mask of a part alone is there. Masks of `background` that
      come after all others are not read, since voxels outside of all masks are background, too.
    - A folder of PNG files, one for each DICOM slice of the image. As in CHAOS, both are paired in the order of
      their names, and a slice lies where its DICOM file says.

    Args:
        card: The dataset's card.
        raw_case: One of its cases.

    Returns:
        A volume whose array is uint8, or int16 where a value is above 255.

    Raises:
        DataError: If a file is missing or cannot be read, masks lie on different grids or hold several values,
            or PNG files do not fit the image.
    """
    path = raw_case.label
    if card.masks:
        return _read_masks(card, raw_case, _most_voxels(raw_case))
    if not path.is_dir():
        return read_label(path, _most_voxels(raw_case))
    return _read_slices(path, raw_case.image, card.files.series)


def with_missing_masks(card: Card, cases: Iterable[RawCase]) -> Card:
    """Let a card say of each case which organs are not annotated in it, where a missing mask means that.

    Args:
        card: A dataset's card.
        cases: Its cases; only names in the folders are looked at.

    Returns:
        The card, with an override for each case that lacks all masks of an organ; the same card unless it says
        `missing_masks: not annotated`.
    """
    if not card.masks or card.missing_masks == "empty":
        return card
    overrides = dict(card.cases)
    for case in cases:
        there = [value for value, name in enumerate(card.masks, start=1) if _mask_path(case.label, name)]
        drawn = {organ for value in there for organ in card.labels[value]}
        annotated = [organ for organ in card.annotated_in(case.name) if organ in drawn]
        if annotated:  # otherwise there is nothing to read, which reading it says
            override = overrides.get(case.name, Override())
            overrides[case.name] = override.model_copy(update={"annotated": annotated})
    return card.model_copy(update={"cases": overrides})


def _most_voxels(raw_case: RawCase) -> int:
    """What a label map may claim: what its scan has, and room for one that is somewhat off, which is told later."""
    voxels = extent(raw_case.image).voxels
    return (
        max(_ALWAYS_READ, 2 * voxels) if voxels else MAX_VOXELS
    )  # a scan that does not say is a problem itself


def _read_masks(card: Card, raw_case: RawCase, most_voxels: int) -> Volume:
    """One label map of a folder of masks; one mask at a time is in memory."""
    folder = raw_case.label
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "there is no such folder"
        raise DataError(
            folder,
            f"{found}, expected a folder with a mask for each of {_listed(card.masks)}",
            "put it there, or list the case under `exclude:` in the card",
        )
    paths = {name: _mask_path(folder, name) for name in _masks_that_matter(card)}
    missing = [name for name, path in paths.items() if path is None]
    if len(missing) == len(paths):
        raise DataError(
            folder,
            f"holds none of the masks that {card.path} lists, expected {_listed(missing)}",
            "put them there under these names",
        )
    labels: Volume | None = None
    for value, path in enumerate(paths.values(), start=1):
        if path is None:
            continue
        mask = _read_one_mask(path, most_voxels)
        if labels is None:
            first, dtype = path, np.uint8 if len(card.masks) <= 255 else np.int16
            labels = Volume(np.zeros(mask.array.shape, dtype), mask.affine, mask.source, mask.notes)
        _check_same_grid(path, mask, first, labels)
        for plane, mask_plane in zip(labels.array, mask.array, strict=True):
            plane[(mask_plane != 0) & (plane == 0)] = value
    if card.missing_masks == "empty":
        notes = [f"no mask of {_listed(missing)}: taken as empty"] if missing else []
    else:
        notes = _part_notes(card, raw_case.name, {name for name, path in paths.items() if path is not None})
    return Volume(labels.array, labels.affine, labels.source, (*labels.notes, *notes))


def _part_notes(card: Card, case: str, there: set[str]) -> list[str]:
    """Organs that count as annotated in a case by the mask of a part alone, such as a tumour.

    The mask of an organ itself is one that is named after it.
    """
    meanings = {name: card.labels[value] for value, name in enumerate(card.masks, start=1)}
    notes = []
    for organ in card.annotated_in(case):
        masks = [name for name, organs in meanings.items() if organ in organs]
        whole = [name for name in masks if list(organs_meant(name)) == meanings[name]]
        parts = [name for name in masks if name in there]
        if whole and parts and not there.intersection(whole):
            notes.append(f"{organ} is drawn by {_listed(parts)} alone: the mask {whole[0]} itself is missing")
    return notes


def _masks_that_matter(card: Card) -> list[str]:
    """The masks up to the last one that is more than background."""
    matters = [card.labels[value] != [BACKGROUND] for value in range(1, len(card.masks) + 1)]
    return [name for index, name in enumerate(card.masks) if any(matters[index:])]


def _mask_path(folder: Path, name: str) -> Path | None:
    """The file, or the folder of DICOM slices, of a mask; None where there is neither."""
    candidates = [*(folder / f"{name}{suffix}" for suffix in SUFFIXES), folder / name]
    return next((path for path in candidates if path.exists() or path.is_symlink()), None)


def _read_one_mask(path: Path, most_voxels: int) -> Volume:
    """A mask: 0 and one other value."""
    if path.is_dir():
        array, affine = read_mask(path)
        return canonical_volume(array, affine, path, np.uint8)
    mask = read_label(path, most_voxels)
    highest = mask.array.max()
    for plane in mask.array:
        other = plane[(plane != 0) & (plane != highest)]
        if other.size:
            raise DataError(
                path,
                f"holds values {other[0]} and {highest}, expected a mask: 0 and one other value",
                "give it as a label map: list its values under `labels:` in the card",
            )
    return mask


def _check_same_grid(path: Path, mask: Volume, first: Path, labels: Volume) -> None:
    """All masks of a case lie on the grid of the first one."""
    shapes = [" x ".join(map(str, volume.array.shape[::-1])) for volume in (mask, labels)]
    if shapes[0] != shapes[1]:
        raise DataError(
            path,
            f"has {shapes[0]} voxels (x, y, z), expected {shapes[1]} as {first.name} has",
            "give all masks of a case on one grid",
        )
    corners = np.array([*itertools.product(*((0, size - 1) for size in mask.array.shape[::-1]))])
    difference = mask.affine - labels.affine
    apart_mm = float(np.linalg.norm(corners @ difference[:3, :3].T + difference[:3, 3], axis=1).max())
    if apart_mm > PLACE_TOLERANCE * min(labels.spacing_mm):
        raise DataError(
            path,
            f"lies up to {apart_mm:.3g} mm from {first.name}, expected one place",
            "give all masks of a case on one grid",
        )


def _read_slices(folder: Path, image: Path, series: str | None) -> Volume:
    """A label map of one PNG file for each slice of the image."""
    files = sorted((path for path in folder.iterdir() if path.suffix.lower() == ".png"), key=_natural)
    files = [path for path in files if not path.name.startswith(".")]
    if not files:
        raise DataError(
            folder,
            "is a folder without PNG files, expected a file with the label map, or one PNG for each DICOM slice",
            "if it holds one mask for each organ, give their names under `labels:` in the card",
        )
    if not image.is_dir():
        raise DataError(
            folder,
            f"holds PNG files, and {image.name} is no folder, expected one PNG for each DICOM slice",
            "give the image as a DICOM series, or the label map as one file",
        )
    names, affine, (columns, rows, depth) = slice_order(image, series)
    if len(files) != depth:
        raise DataError(
            folder,
            f"holds {counted(len(files), 'PNG file')}, {image} has {counted(depth, 'slice')}, "
            "expected one for each slice",
            "add what is missing, or take away what belongs to no slice",
        )
    png_of = dict(zip(sorted(names, key=_natural_name), files, strict=True))
    array = np.stack([_read_png(png_of[name], columns, rows).T for name in names], axis=-1)
    dtype = np.uint8 if array.max() <= 255 else np.int16
    return canonical_volume(array, affine, folder, dtype)


def _read_png(path: Path, columns: int, rows: int) -> np.ndarray:
    """The values of a PNG file, `(rows, columns)`; its size is checked before it is decompressed."""
    with path.open("rb") as file:
        start = file.read(24)
    if len(start) < 24 or not start.startswith(_PNG_START):
        raise DataError(path, "is not PNG, expected the PNG file of a slice", "download it again")
    width, height = int.from_bytes(start[16:20], "big"), int.from_bytes(start[20:24], "big")
    if (width, height) != (columns, rows):
        raise DataError(
            path,
            f"has {width} x {height} pixels, its DICOM slice {columns} x {rows}",
            "download it again, or give the label map of this image",
        )
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()  # the checksums of all parts; what was verified cannot be decoded
        with Image.open(path, formats=["PNG"]) as image:
            if image.mode not in _PNG_MODES:
                raise DataError(
                    path,
                    f"its pixels are {image.mode}, expected one whole number each",
                    "save it in shades of grey",
                )
            values = np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(path, f"cannot be read as PNG ({error})", "download it again") from error
    if values.max() > np.iinfo(np.int16).max:
        raise DataError(path, f"holds value {values.max()}, expected 0 to 32767", "give organs small numbers")
    return values.astype(np.int16)


def _natural(path: Path) -> tuple[tuple[int | str, ...], str]:
    return _natural_name(path.name)


def _natural_name(name: str) -> tuple[tuple[int | str, ...], str]:
    """A key that sorts numbers in names by their value: 2 before 10, 002 before 010.

    Example:
        >>> sorted(["slice10.png", "slice9.png"], key=_natural_name)
        ['slice9.png', 'slice10.png']
    """
    parts = re.split(r"(\d+)", name)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts)), name


def _listed(names: list[str] | tuple[str, ...]) -> str:
    """Names for people, not more than five."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
