"""A folder of prepared cases: what `prepare` writes and what patches, validation and studies read.

PREPARED/manifest.json                  classes, spacing, datasets with their tables, one entry per case
PREPARED/<dataset>/<case>/image.npy     int16 HU, (depth, height, width), RAS+
PREPARED/<dataset>/<case>/label.npy     uint8 values of the dataset's table, same shape
PREPARED/<dataset>/<case>/foreground.npy  int32 flat voxel indices, sorted by label value (see `Case`)
PREPARED/<dataset>/<case>/case.json     the case's entry; written last, so a case that has it is whole
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partialseg.errors import DataError
from partialseg.files import write_json

FORMAT = 1


@dataclass(frozen=True)
class Case:
    """One prepared case.

    Attributes:
        dataset: Name of its dataset.
        name: Name of the case, unique in the dataset.
        split: "train" or "test".
        shape: `(depth, height, width)` in voxels.
        affine: 4 x 4, world position in mm (RAS+) of the voxel index `(x, y, z)`.
        foreground: For each annotated label value that is present, `(value, start, stop)`: the part of
            `foreground.npy` that lists its voxels (a seeded choice of at most 10,000 of each).
        voxels: Number of voxels of each of those values, in the same order.
        image_source, label_source: The raw files.
        fingerprint: Of sources, card and settings; a case with another fingerprint is prepared again.
        notes: What was noticed, in words ("kidneys: one side").
        annotated: The organs that are annotated in this case; None for all of its dataset's.
    """

    dataset: str
    name: str
    split: str
    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    foreground: tuple[tuple[int, int, int], ...]
    voxels: tuple[int, ...]
    image_source: str
    label_source: str
    fingerprint: str
    notes: tuple[str, ...] = ()
    annotated: tuple[str, ...] | None = None

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Case:
        """Read an entry of the manifest; the inverse of `dataclasses.asdict` through JSON."""
        return cls(
            **{
                **entry,
                "shape": tuple(entry["shape"]),
                "affine": tuple(map(tuple, entry["affine"])),
                "foreground": tuple(map(tuple, entry["foreground"])),
                "voxels": tuple(entry["voxels"]),
                "notes": tuple(entry["notes"]),
                "annotated": None if entry.get("annotated") is None else tuple(entry["annotated"]),
            }
        )


@dataclass(frozen=True)
class Dataset:
    """What all cases of a dataset share.

    Attributes:
        name: Its name.
        annotated: Its annotated organs.
        table: uint8 `(values, classes)`, see `partialseg.data.labels.candidate_table`.
    """

    name: str
    annotated: tuple[str, ...]
    table: np.ndarray

    @property
    def fully_annotated(self) -> bool:
        """Whether its background is background alone."""
        return int(self.table[0].sum()) == 1


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared cases.

    Attributes:
        folder: Where it lies.
        classes: Background, then the organs.
        spacing_mm: Voxel size `(z, y, x)` in mm.
        datasets: By name.
        cases: All cases, sorted by dataset and name.
    """

    folder: Path
    classes: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    datasets: dict[str, Dataset]
    cases: tuple[Case, ...]

    @property
    def organs(self) -> tuple[str, ...]:
        """The classes without background."""
        return self.classes[1:]

    def select(self, dataset: str | None = None, split: str | None = None) -> list[Case]:
        """The cases of one dataset and one split; None stands for all."""
        return [c for c in self.cases if dataset in (None, c.dataset) and split in (None, c.split)]

    def table(self, case: Case) -> np.ndarray:
        """The sets that the values of a case's label map stand for: uint8 `(values, classes)`.

        It is its dataset's table, but for the first row where the case has fewer organs annotated: its background
        may be every class that is not annotated in it.
        """
        table = self.datasets[case.dataset].table
        if case.annotated is None:
            return table
        background = [name not in case.annotated for name in self.classes]
        return np.concatenate([np.array([background], dtype=np.uint8), table[1:]])

    def fully_annotated(self, case: Case) -> bool:
        """Whether the background of a case is background alone."""
        return int(self.table(case)[0].sum()) == 1

    def image(self, case: Case) -> np.ndarray:
        """The image, memory-mapped: int16 HU, `(depth, height, width)`."""
        return np.load(self.folder / case.dataset / case.name / "image.npy", mmap_mode="r")

    def label(self, case: Case) -> np.ndarray:
        """The label map, memory-mapped: uint8 values of the dataset's table, `(depth, height, width)`."""
        return np.load(self.folder / case.dataset / case.name / "label.npy", mmap_mode="r")

    def foreground(self, case: Case) -> np.ndarray:
        """Flat indices of annotated foreground, int32, memory-mapped; `case.foreground` says which is what."""
        return np.load(self.folder / case.dataset / case.name / "foreground.npy", mmap_mode="r")


def write_manifest(prepared: Prepared) -> None:
    """Write `PREPARED/manifest.json` atomically."""
    write_json(
        prepared.folder / "manifest.json",
        {
            "format": FORMAT,
            "classes": prepared.classes,
            "spacing_mm": prepared.spacing_mm,
            "datasets": {
                name: {"annotated": dataset.annotated, "table": dataset.table.tolist()}
                for name, dataset in prepared.datasets.items()
            },
            "cases": [dataclasses.asdict(case) for case in prepared.cases],
        },
    )


def read_prepared(folder: str | Path) -> Prepared:
    """Read a folder that `partialseg prepare` wrote.

    Args:
        folder: The folder with `manifest.json`.

    Raises:
        DataError: If there is no manifest, or one of another format.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataError(
            path, "there is no manifest", f"run `partialseg prepare CARD... --raw DIR --out {folder}`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(
            path, f"is not JSON ({error})", "delete it and run `partialseg prepare` again"
        ) from error
    if content.get("format") != FORMAT:
        raise DataError(
            path, f"has format {content.get('format')}, expected {FORMAT}", "prepare the data again"
        )
    datasets = {
        name: Dataset(name, tuple(entry["annotated"]), np.array(entry["table"], dtype=np.uint8))
        for name, entry in content["datasets"].items()
    }
    return Prepared(
        folder=folder,
        classes=tuple(content["classes"]),
        spacing_mm=tuple(content["spacing_mm"]),
        datasets=datasets,
        cases=tuple(Case.from_json(entry) for entry in content["cases"]),
    )
