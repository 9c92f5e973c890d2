"""A folder of prepared cases: what `prepare` writes and what patches, validation and studies read.

The folder may be in an object store (`s3://bucket/prepared`): arrays are not compressed, so that the part of them
that a patch needs is memory-mapped from a disk, or read by byte ranges from a store.

PREPARED/manifest.json                  classes, spacing, datasets with their tables, one entry per case
PREPARED/<dataset>/<case>/image.npy     int16 HU, (depth, height, width), RAS+
PREPARED/<dataset>/<case>/label.npy     uint8 values of the dataset's table, same shape
PREPARED/<dataset>/<case>/foreground.npy  int32 flat voxel indices, sorted by label value (see `Case`)
PREPARED/<dataset>/<case>/case.json     the case's entry; written last, so a case that has it is whole
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, FiniteFloat, PositiveInt, TypeAdapter, ValidationError

from partialseg.arrays import Cache, RemoteArray, open_array
from partialseg.data.folder_kinds import why_not_prepared
from partialseg.data.front_matter import in_plain_words
from partialseg.errors import DataError
from partialseg.files import write_json
from partialseg.storage import Location, is_remote, list_files, path_or_url, read_bytes
from partialseg.wording import counted

if TYPE_CHECKING:
    from upath import UPath

FORMAT = 2


def _is_folder_name(name: str) -> str:
    """A name out of a manifest must not lead out of the prepared folder."""
    if name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
        raise ValueError("expected the name of one folder")
    return name


_FolderName = Annotated[str, AfterValidator(_is_folder_name)]
_Length = Annotated[FiniteFloat, Field(gt=0)]
_Row = tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]


@dataclass(frozen=True)
class Case:
    """One prepared case.

    Attributes:
        dataset: Name of its dataset.
        name: Name of the case, unique in the dataset.
        split: "train" or "test"; while training, "validation" too (see `partialseg.data.folds`).
        shape: `(depth, height, width)` in voxels.
        affine: 4 x 4, world position in mm (RAS+) of the voxel index `(x, y, z)`.
        foreground: For each annotated label value that is present, `(value, start, stop)`: the part of
            `foreground.npy` that lists its voxels (a seeded choice of at most 10,000 of each).
        voxels: Number of voxels of each of those values, in the same order.
        image_source, label_source: The raw files.
        fingerprint: Of sources, card and settings; a case with another fingerprint is prepared again.
        notes: What was noticed, in words ("kidneys: one side").
        annotated: The organs that are annotated in this case; None for all of its dataset's.
        source_mm: Voxel size `(z, y, x)` of the raw scan in mm; None where an earlier version prepared the case.
    """

    dataset: _FolderName
    name: _FolderName
    split: Literal["train", "validation", "test"]
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    affine: tuple[_Row, _Row, _Row, _Row]
    foreground: tuple[tuple[int, int, int], ...]
    voxels: tuple[int, ...]
    image_source: str
    label_source: str
    fingerprint: str
    notes: tuple[str, ...] = ()
    annotated: tuple[str, ...] | None = None
    source_mm: tuple[_Length, _Length, _Length] | None = None

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Case:
        """Read an entry of the manifest; the inverse of `dataclasses.asdict` through JSON.

        Raises:
            pydantic.ValidationError: If a field is missing or is not what `Case` says.
        """
        return _entry_adapter().validate_python(entry)


@functools.cache
def _entry_adapter() -> TypeAdapter[Case]:
    return TypeAdapter(Case)


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
        folder: Where it lies: a path, or a `UPath` for an object store.
        classes: Background, then the organs.
        spacing_mm: Voxel size `(z, y, x)` in mm.
        datasets: By name.
        cases: All cases, sorted by dataset and name.
        cache: Where copies of files from an object store are kept; None reads the parts that are needed.
    """

    folder: Location
    classes: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    datasets: dict[str, Dataset]
    cases: tuple[Case, ...]
    cache: Cache | None = None
    # What this process has opened in an object store: headers that it need not read again, and local copies.
    _opened: dict[str, RemoteArray | Path] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    # Where the elements begin in the local files whose headers this process has read.
    _first_bytes: dict[tuple[str, str, str], int] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

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

    def image(self, case: Case) -> np.ndarray | RemoteArray:
        """The image, memory-mapped or read in parts: int16 HU, `(depth, height, width)`.

        Raises:
            DataError: If the file is missing, damaged, or not what the manifest says. So for all three arrays.
        """
        return self._array(case, "image")

    def label(self, case: Case) -> np.ndarray | RemoteArray:
        """The label map, likewise: uint8 values of the dataset's table, `(depth, height, width)`."""
        return self._array(case, "label")

    def foreground(self, case: Case) -> np.ndarray | RemoteArray:
        """Flat indices of annotated foreground, likewise: int32; `case.foreground` says which is what."""
        return self._array(case, "foreground")

    def check_files(self, cases: Sequence[Case]) -> None:
        """See whether the files of some cases are there and as long as they must be; nothing is read.

        Raises:
            DataError: For the first that is missing or too short.
        """
        listed = list_files(self.folder) if is_remote(self.folder) else None
        missing = []
        for case in cases:
            for name, (dtype, shape) in _expected_arrays(case).items():
                path, size = self._path(case, name), math.prod(shape) * np.dtype(dtype).itemsize
                inside = f"{case.dataset}/{case.name}/{name}.npy"
                found = _size(path) if listed is None else listed.get(inside, -1)
                if found <= size:  # the header needs some bytes too
                    what = "there is no such file" if found < 0 else f"has {counted(found, 'byte')}"
                    missing.append((path, what, f"expected over {size} bytes"))
        if missing:
            (path, what, expected), more = missing[0], len(missing) - 1
            others = f" (and {more} more)" if more else ""
            raise DataError(path, f"{what}{others}, {expected}", "prepare the data again")

    def _path(self, case: Case, name: str) -> Location:
        return self.folder / case.dataset / case.name / f"{name}.npy"

    def _array(self, case: Case, name: str) -> np.ndarray | RemoteArray:
        path = self._path(case, name)
        dtype, shape = _expected_arrays(case)[name]
        key = case.dataset, case.name, name
        if (first_byte := self._first_bytes.get(key)) is not None:
            # A patch is read in some milliseconds, and to read three headers for it takes half a one.
            with contextlib.suppress(OSError, ValueError):  # what is wrong with the file is said below
                return np.memmap(path, dtype, mode="r", offset=first_byte, shape=shape)
        array = self._open_remote(path) if is_remote(path) else open_array(path)
        if array.dtype != dtype or array.shape != shape:
            raise DataError(
                path,
                f"holds {array.dtype} of shape {array.shape}, expected {np.dtype(dtype)} of shape {shape}",
                "prepare the case again",
            )
        if isinstance(array, np.memmap) and not is_remote(path):
            self._first_bytes[key] = array.offset
        return array

    def _open_remote(self, path: UPath) -> np.ndarray | RemoteArray:
        """A local copy, memory-mapped, where there is a cache with room for it."""
        opened = self._opened.get(str(path))
        if isinstance(opened, RemoteArray):
            return opened
        if self.cache is not None:
            if opened is None or not self.cache.touch(opened):
                opened = self.cache.stage(path)
            if opened is not None:
                self._opened[str(path)] = opened
                return open_array(opened)
        opened = self._opened[str(path)] = open_array(path)
        return opened


def _expected_arrays(case: Case) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Type and shape of each array of a case."""
    points = case.foreground[-1][2] if case.foreground else 0
    return {
        "image": (np.int16, case.shape),
        "label": (np.uint8, case.shape),
        "foreground": (np.int32, (points,)),
    }


def _size(path: Path) -> int:
    """Bytes of a local file; -1 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


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


def read_prepared(
    folder: str | os.PathLike[str] | UPath, cache: str | Path | Cache | None = None
) -> Prepared:
    """Read a folder that `partialseg prepare` wrote.

    Args:
        folder: The folder with `manifest.json`, or its URL (`s3://bucket/prepared`, `gs://`, `az://`).
        cache: For a URL, a local folder for copies of the cases' files, each made when it is first needed. By
            default the one that the environment variable PARTIALSEG_CACHE names; without, byte ranges are read.

    Raises:
        DataError: If there is no manifest, one of another format, or one that does not hold what it should.
    """
    folder = path_or_url(folder)
    path = folder / "manifest.json"
    cache = cache or os.environ.get("PARTIALSEG_CACHE")
    if cache is not None and not isinstance(cache, Cache):
        cache = Cache(Path(cache))
    text = read_bytes(path)
    if text is None:
        raise why_not_prepared(folder)
    remedy = "delete it and run `partialseg prepare` again"
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise DataError(path, "is nested too deeply, expected a few levels", remedy) from error
    except ValueError as error:  # also if it is not UTF-8
        raise DataError(path, f"is not JSON ({error})", remedy) from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise DataError(path, f"has format {found!r}, expected {FORMAT}", "prepare the data again")
    try:
        manifest = _Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(path, f"{place}: {in_plain_words(first)}", remedy) from error
    if (problem := _disagreement(manifest)) is not None:
        raise DataError(path, problem, remedy)
    return Prepared(
        folder=folder,
        classes=manifest.classes,
        spacing_mm=manifest.spacing_mm,
        datasets={
            name: Dataset(name, entry.annotated, np.array(entry.table, dtype=np.uint8))
            for name, entry in manifest.datasets.items()
        },
        cases=manifest.cases,
        cache=cache if is_remote(folder) else None,
    )


class _DatasetEntry(BaseModel):
    """A dataset in the manifest."""

    annotated: tuple[str, ...]
    table: Annotated[list[list[Literal[0, 1]]], Field(min_length=1, max_length=256)]


class _Manifest(BaseModel):
    """The manifest; what its parts say of one another is checked by `_disagreement`."""

    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    spacing_mm: tuple[_Length, _Length, _Length]
    datasets: dict[_FolderName, _DatasetEntry]
    cases: tuple[Case, ...]


def _disagreement(manifest: _Manifest) -> str | None:
    """What does not fit together in the tables, datasets and cases of a manifest."""
    num_classes = len(manifest.classes)
    for name, dataset in manifest.datasets.items():
        if not all(len(row) == num_classes and any(row) for row in dataset.table):
            return f"datasets.{name}.table: expected rows of {num_classes} zeros and ones, one at least"
        if len(dataset.table) <= num_classes:
            return f"datasets.{name}.table: has {len(dataset.table)} rows, expected over {num_classes}"
    seen = set()
    for number, case in enumerate(manifest.cases):
        where = f"cases.{number} ({case.dataset}, {case.name})"
        if case.dataset not in manifest.datasets:
            return f"{where}: found dataset {case.dataset}, expected one of {', '.join(manifest.datasets)}"
        if (case.dataset, case.name) in seen:
            return f"{where}: is there twice, expected once"
        seen.add((case.dataset, case.name))
        if math.prod(case.shape) >= 2**31:
            return f"{where}: shape {case.shape} has too many voxels, expected below 2^31"
        ends = [0]
        for value, start, stop in case.foreground:
            if not 0 <= value < len(manifest.datasets[case.dataset].table) or not ends[-1] == start < stop:
                return f"{where}: foreground {value, start, stop} is no value of its table, or no next part"
            ends.append(stop)
        if extra := set(case.annotated or ()) - set(manifest.datasets[case.dataset].annotated):
            return f"{where}: annotated has {', '.join(sorted(extra))}, which its dataset does not annotate"
        if len(case.voxels) != len(case.foreground):
            return f"{where}: voxels has {len(case.voxels)} entries, expected {len(case.foreground)}"
    return None
