"""Dressing real label maps as CT: real shapes, a plausible image, and a perfect ground truth."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_dilation, find_objects

from partialseg.data.phantom.anatomy import Patient, layout_of, paint_patient
from partialseg.data.phantom.around import fit_surroundings, organ_of_name
from partialseg.data.phantom.inside import fill
from partialseg.data.phantom.label_names import names_for, read_names
from partialseg.data.phantom.layouts import write_nifti
from partialseg.data.phantom.scan import render
from partialseg.data.phantom.tissue import TISSUE_ID, draw_appearance, tissue_of_name
from partialseg.data.volumes import read_label, to_source_axes
from partialseg.errors import DataError
from partialseg.files import atomic_path, write_json
from partialseg.progress import console, track

#: Voxel size (z, y, x) in mm at which the body around the organs is painted.
_BODY_GRID_MM = (3.0, 2.0, 2.0)
#: Painted organs that real ones push aside.
_YIELDING = ("liver", "spleen", "pancreas", "bowel_wall", "bowel_content", "stool", "gas", "stomach_wall")
_YIELDING += ("stomach_content", "kidney_cortex", "kidney_medulla", "muscle")


@dataclass(frozen=True)
class DressResult:
    """What `dress_folder` did.

    Attributes:
        written: The images, in the order of the label maps.
        problems: Label maps that could not be used.
    """

    written: list[Path]
    problems: list[DataError]


def dress_label_map(
    label: np.ndarray, spacing_mm: tuple[float, float, float], tissue_of: Mapping[int, str], seed: int = 0
) -> np.ndarray:
    """Turn a label map into a CT-like image.

    Every value gets the HU and texture of its tissue; kidneys, stomach, bowel, bladder and bones get an inner
    structure; around them a body is painted: skin, fat, muscle, ribs, spine, lungs, vessels, and those abdominal
    organs that `tissue_of` does not name. Contrast phase, noise and blur are drawn from the seed.

    Args:
        label: Whole numbers, `(z, y, x)`, RAS+.
        spacing_mm: Voxel size `(z, y, x)`.
        tissue_of: Name of the organ or tissue of each value; a value that is not named is soft tissue.
        seed: Seed.

    Returns:
        float32 HU between -1024 and 3071, `(z, y, x)`.

    Example:
        >>> label = np.zeros((8, 40, 40), np.uint8)
        >>> label[2:6, 15:25, 22:34] = 1
        >>> image = dress_label_map(label, (5.0, 8.0, 8.0), {1: "liver"})
        >>> image.shape, bool(20 < image[label == 1].mean() < 150)
        ((8, 40, 40), True)
    """
    hu = np.empty(label.shape, np.float32)
    for slab, part in _dressed_slabs(label, spacing_mm, tissue_of, seed):
        hu[slab] = part
    return hu


def _dressed_slabs(
    label: np.ndarray, spacing_mm: tuple[float, float, float], tissue_of: Mapping[int, str], seed: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """The image of `dress_label_map` slab by slab, so that large scans need not be held as float32."""
    rng = np.random.default_rng([seed, 7])
    tissue = tissue_map(label, spacing_mm, tissue_of, rng, seed)
    look = draw_appearance(rng, float(rng.choice([1.1, 1.8, 2.0, 2.2])), oral=0.2)
    blur = (0.35 * spacing_mm[0], 0.85, 0.85)
    yield from render(tissue, spacing_mm, look, rng, blur, float(rng.uniform(8, 18)))


def tissue_map(
    label: np.ndarray,
    spacing_mm: tuple[float, float, float],
    tissue_of: Mapping[int, str],
    rng: np.random.Generator,
    seed: int,
) -> np.ndarray:
    """The tissues of `dress_label_map`: uint8 index into `TISSUES`, `(z, y, x)`."""
    tissue = _paint_body(label, spacing_mm, tissue_of, rng, seed)
    objects = find_objects(label if label.dtype.kind in "iu" else label.astype(np.int32))
    for value, box in enumerate(objects, start=1):
        if box is not None:
            # A margin, so that the organ's surface is not taken for its inside.
            margin = [int(np.ceil(6 / s)) for s in spacing_mm]
            wide = tuple(
                slice(max(b.start - m, 0), min(b.stop + m, n))
                for b, m, n in zip(box, margin, label.shape, strict=True)
            )
            mask = label[wide] == value
            kind = tissue_of_name(tissue_of.get(value, "soft_tissue"))
            inside = fill(mask, kind, spacing_mm, rng)
            tissue[wide][mask] = inside[mask]
    return tissue


def _paint_body(
    label: np.ndarray,
    spacing_mm: tuple[float, float, float],
    tissue_of: Mapping[int, str],
    rng: np.random.Generator,
    seed: int,
) -> np.ndarray:
    """The body around the labels, painted on a coarser grid and brought to the map's own."""
    count = [max(2, round(n * s / g)) for n, s, g in zip(label.shape, spacing_mm, _BODY_GRID_MM, strict=True)]
    count = [min(n, c) if n > 1 else 1 for n, c in zip(label.shape, count, strict=True)]
    index = [
        np.minimum((np.arange(c) + 0.5) * n / c, n - 1).astype(int)
        for n, c in zip(label.shape, count, strict=True)
    ]
    coarse = label[np.ix_(*index)]
    spacing = tuple(s * n / c for s, n, c in zip(spacing_mm, label.shape, count, strict=True))
    names = {int(value): organ_of_name(name) for value, name in tissue_of.items()}
    fat_mm = float(rng.uniform(10, 28))
    around = fit_surroundings(coarse, spacing, names, fat_mm)
    without = {organ for organ in names.values() if organ is not None}
    if "kidney" in without:
        without |= {"left_kidney", "right_kidney"}
    layout = layout_of(around.torso, 1.0, {}, 1.0, (seed, 8))
    patient = Patient(around.torso, layout, (0, 0, 0), 1.0, 5.0, None, {})
    canvas = paint_patient(patient, around.axes_mm, frozenset(without), around.spine_mm, around.diaphragm_mm)
    everywhere = (slice(None),) * 3
    beside = binary_dilation(coarse > 0, iterations=1) & canvas.mask(everywhere, *_YIELDING[:-1])
    canvas.tissue[beside] = TISSUE_ID["visceral_fat"]
    back = [np.minimum(np.arange(n) * c // n, c - 1) for n, c in zip(label.shape, count, strict=True)]
    return canvas.tissue[np.ix_(*back)]


def dress_folder(
    labels_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    names: Mapping[int, str] | str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> DressResult:
    """Dress every `*.nii.gz` of a folder.

    Writes `out/images/<case>.nii.gz` (int16 HU, on the map's grid, axes and affine), `out/labels/<case>.nii.gz`
    (the map as it is) and `out/names.json` (what each value was taken for).

    Args:
        labels_dir: Folder of label maps.
        out: Folder to write to.
        names: Name of the organ of each value: a mapping, a YAML or JSON file of one, a data card (`.md`), or the
            name of a set in `label_names.KNOWN`. None: `names.yaml` or `names.json` in the folder, else the set
            that the names of the files suggest, else every value is soft tissue.
        seed: The same seed gives the same voxels.

    Returns:
        What was written, and what could not be used; one bad map does not stop the others.

    Raises:
        DataError: If the folder holds no label maps or is `out` itself, or the names cannot be read.
    """
    folder, out = Path(labels_dir), Path(out)
    # Hidden files are those of the system, and what another process is just writing.
    paths = sorted(path for path in folder.glob("*.nii.gz") if not path.name.startswith("."))
    if not paths:
        raise DataError(folder, "holds no *.nii.gz", "name the folder that holds the label maps")
    if out.resolve() == folder.resolve():  # where there may be scans in `images` already
        raise DataError(out, "is the folder of the label maps, expected another one", "give another folder")
    mapping, origin = names_for(folder, paths) if names is None else (read_names(names), str(names))
    console.print(f"names of label values: {origin}", highlight=False)
    written, problems = [], []
    for path in track(paths, "dress"):
        try:
            written.append(dress_file(path, out, mapping, seed))
        except DataError as error:
            problems.append(error)
    write_json(out / "names.json", {str(value): name for value, name in sorted(mapping.items())})
    return DressResult(written, problems)


def dress_file(path: Path, out: Path, names: Mapping[int, str], seed: int) -> Path:
    """Dress one label map; returns the image's path.

    Raises:
        DataError: If the map cannot be used (see `partialseg.data.volumes.read_label`).
    """
    label = read_label(path)
    hu = np.empty(label.array.shape, np.int16)
    # A map's image depends on its name and the seed alone, not on its neighbours.
    seed = zlib.crc32(f"{seed} {path.name}".encode())
    for slab, part in _dressed_slabs(label.array, label.spacing_mm, names, seed):
        hu[slab] = np.rint(part)
    header = label.source.header.copy()
    header.set_data_dtype(np.int16)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    array = np.ascontiguousarray(to_source_axes(hu, label))
    image = out / "images" / path.name
    with atomic_path(out / "labels" / path.name) as temporary:
        shutil.copyfile(path, temporary)
    write_nifti(image, nib.Nifti1Image(array, label.source.affine, header))
    return image
