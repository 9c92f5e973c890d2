"""Writing phantom cases as the five datasets are distributed: folders, names, axes and label values."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform

from partialseg.data.classes import PAPER_ORGANS
from partialseg.data.phantom.shapes import Canvas
from partialseg.data.phantom.tumours import SUFFIX
from partialseg.files import atomic_path, write_json


@dataclass(frozen=True)
class RawLayout:
    """How one dataset is distributed.

    Attributes:
        dataset: Name of its data card.
        folder: Its folder.
        image, label: Paths below the folder, `{}` standing for the number of the case.
        numbers: The numbers of its first cases, in their order, as they are written.
        axes: Orientation of the arrays, one per case in turn ("LAS": the first axis grows to the left).
        values: Label value of every organ and tumour that it annotates.
        keeps_origin: Whether the affine says where the patient lay; KiTS19's does not.
        title: Name in `dataset.json`, None where there is no such file.
    """

    dataset: str
    folder: str
    image: str
    label: str
    numbers: tuple[str, ...]
    axes: tuple[str, ...]
    values: dict[str, int]
    keeps_origin: bool = True
    title: str | None = None

    def case_name(self, index: int) -> str:
        """Name of a case: the part of the image's path that holds its number, without suffix."""
        part = next(part for part in self.image.split("/") if "{}" in part)
        return part.removesuffix(".nii.gz").format(self.numbers[index])


_BTCV_VALUES = {
    "spleen": 1,
    "right_kidney": 2,
    "left_kidney": 3,
    "gallbladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "vena_cava": 9,
    "portal_vein": 10,
    "pancreas": 11,
    "right_adrenal": 12,
    "left_adrenal": 13,
}
_KIDNEYS = ("left_kidney", "right_kidney")


def _numbers(first: int, width: int) -> tuple[str, ...]:
    return tuple(f"{number:0{width}d}" for number in range(first, first + 15))


LAYOUTS: tuple[RawLayout, ...] = (
    RawLayout(
        dataset="btcv",
        folder="btcv",
        image="img/img{}.nii.gz",
        label="label/label{}.nii.gz",
        numbers=_numbers(1, 4),
        axes=("LAS",),
        values=_BTCV_VALUES,
    ),
    RawLayout(
        dataset="msd_liver",
        folder="Task03_Liver",
        image="imagesTr/liver_{}.nii.gz",
        label="labelsTr/liver_{}.nii.gz",
        numbers=_numbers(0, 1),
        axes=("LPS", "RAS", "RAS"),
        values={"liver": 1, "liver" + SUFFIX: 2},
        title="Liver",
    ),
    RawLayout(
        dataset="msd_spleen",
        folder="Task09_Spleen",
        image="imagesTr/spleen_{}.nii.gz",
        label="labelsTr/spleen_{}.nii.gz",
        numbers=("2", "3", "6", "8", "9", "10", "12", "13", "14", "16", "17", "18", "19", "20", "21"),
        axes=("RAS",),
        values={"spleen": 1},
        title="Spleen",
    ),
    RawLayout(
        dataset="msd_pancreas",
        folder="Task07_Pancreas",
        image="imagesTr/pancreas_{}.nii.gz",
        label="labelsTr/pancreas_{}.nii.gz",
        numbers=(
            "001",
            "004",
            "005",
            "006",
            "010",
            "012",
            "015",
            "016",
            "018",
            "019",
            "021",
            "024",
            "025",
            "028",
            "029",
        ),
        axes=("RAS",),
        values={"pancreas": 1, "pancreas" + SUFFIX: 2},
        title="Pancreas",
    ),
    RawLayout(
        dataset="kits19",
        folder="kits19",
        image="data/case_{}/imaging.nii.gz",
        label="data/case_{}/segmentation.nii.gz",
        numbers=_numbers(0, 5),
        axes=("IPL",),
        values={**dict.fromkeys(_KIDNEYS, 1), **dict.fromkeys((k + SUFFIX for k in _KIDNEYS), 2)},
        keeps_origin=False,
    ),
)


def organ_labels(canvas: Canvas, values: dict[str, int]) -> np.ndarray:
    """Label map uint8 of what was painted, each organ by its value; 0 where it has none."""
    table = np.zeros(256, np.uint8)
    for organ, index in canvas.organ_names.items():
        table[index] = values.get(organ, 0)
    return table[canvas.organ]


def truth_labels(canvas: Canvas) -> np.ndarray:
    """Label map uint8 with class values 1 to 5 of the paper's organs, tumours counted as their organ."""
    values = {organ: index for index, organ in enumerate(PAPER_ORGANS, start=1)}
    return organ_labels(canvas, {**values, **{organ + SUFFIX: value for organ, value in values.items()}})


def oriented(
    array: np.ndarray,
    spacing_mm: tuple[float, float, float],
    first_mm: tuple[float, float, float],
    axes: str,
    keeps_origin: bool,
) -> nib.Nifti1Image:
    """A canonical array as a NIfTI image with other axes.

    Args:
        array: `(z, y, x)`, RAS+.
        spacing_mm: `(z, y, x)`.
        first_mm: World position of the first voxel, `(z, y, x)`.
        axes: Orientation of the file's array, such as "LAS".
        keeps_origin: Whether the affine keeps the position; otherwise its translation is 0.

    Example:
        >>> image = oriented(np.zeros((2, 3, 4), np.uint8), (5, 1, 1), (0, 0, 0), "IPL", False)
        >>> image.shape, nib.aff2axcodes(image.affine)
        ((2, 3, 4), ('I', 'P', 'L'))
    """
    affine = np.diag([*spacing_mm[::-1], 1.0])
    affine[:3, 3] = first_mm[::-1]
    canonical = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
    image = canonical.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes)))
    affine = image.affine
    if not keeps_origin:
        affine[:3, 3] = 0
    image = nib.Nifti1Image(np.asarray(image.dataobj), affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def write_nifti(path: Path, image: nib.Nifti1Image) -> None:
    """Write `.nii.gz` atomically, weakly compressed (noise hardly shrinks), with no time stamp in it."""
    with (
        atomic_path(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as packed,
    ):
        image.to_file_map({"image": nib.FileHolder(fileobj=packed)})


def write_msd_description(folder: Path, layout: RawLayout, numbers: list[str]) -> None:
    """Write the `dataset.json` of a Medical Segmentation Decathlon task."""
    labels = {"0": "background"}
    labels |= {str(v): "cancer" if name.endswith(SUFFIX) else name for name, v in layout.values.items()}
    training = [
        {"image": f"./{layout.image.format(number)}", "label": f"./{layout.label.format(number)}"}
        for number in numbers
    ]
    write_json(
        folder / "dataset.json",
        {
            "name": layout.title,
            "description": "Synthetic phantom in the layout of the Medical Segmentation Decathlon",
            "licence": "Apache-2.0",
            "release": "1.0",
            "tensorImageSize": "3D",
            "modality": {"0": "CT"},
            "labels": labels,
            "numTraining": len(training),
            "numTest": 0,
            "training": training,
            "test": [],
        },
    )
