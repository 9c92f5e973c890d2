"""One raw case becomes one folder of prepared arrays; whether that was done before is told by hashes.

The folder is written under a temporary name, brought to the disk, and renamed when it is whole, so the work may be
killed at any time. Besides the case's entry in the manifest, `case.json` keeps the state of the raw files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import socket
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partialseg.data.cards import IGNORE, Card, RawCase
from partialseg.data.checks import read_case
from partialseg.data.dicom_series import choose_series
from partialseg.data.labels import annotated_values
from partialseg.data.prepared import FORMAT, Case
from partialseg.data.raw_files import content_hash, extent, stamp
from partialseg.data.relabel import prepared_values, to_prepared_values
from partialseg.data.resample import resample_image, resample_label, resampled_grid
from partialseg.errors import DataError
from partialseg.files import atomic_path, sync_folder, write_json
from partialseg.locking import LOCK_NAME, is_held_by
from partialseg.storage import Location, is_remote, read_bytes

#: Voxels of each annotated value that are listed for patches to centre on.
MAX_FOREGROUND = 10_000
ARRAYS = ("image.npy", "label.npy", "foreground.npy")
#: What a worker takes to prepare a case: for Python and its libraries, ...
BASE_BYTES = 300_000_000
#: ... and for each raw and each prepared voxel, until the image is resampled, and while the label map is (with an
#: organ that fills the scan).
BYTES_PER_VOXEL = ((14, 8), (2, 26))


class CannotWriteError(DataError):
    """The output cannot be written (the disk is full, say), so that no further case can be prepared either."""


@dataclass(frozen=True)
class PrepareTask:
    """Everything that is needed to prepare one case, on whatever machine.

    Attributes:
        card: Its dataset's card.
        raw: Its raw files.
        classes: Background, then the organs.
        spacing_mm: Voxel size `(z, y, x)` wanted.
        split: "train" or "test".
        out: The folder of all prepared cases, or its URL.
        run: Where workers may outlive the run that asks for the case, its name (see `partialseg.locking.locked`);
            empty otherwise, and for a URL, which has no lock.
    """

    card: Card
    raw: RawCase
    classes: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    split: str
    out: Location
    run: str = ""

    @property
    def folder(self) -> Location:
        """Where the case is written."""
        return self.out / self.raw.dataset / self.raw.name

    @property
    def sources(self) -> tuple[Path, Path]:
        """The image and the label map."""
        return self.raw.image, self.raw.label

    def __str__(self) -> str:
        """The raw file and the case, for messages."""
        return f"{self.raw.image} ({self.raw.dataset}, {self.raw.name})"


@dataclass(frozen=True)
class RawState:
    """The raw files of a case as they were when it was prepared.

    Attributes:
        stamp: See `partialseg.data.raw_files.stamp`; while it is the same, nothing is read.
        content: Hash of what they hold, of a DICOM folder its series alone; while it is the same, they may have been
            moved, copied or touched.
    """

    stamp: str
    content: str


def prepare_case(task: PrepareTask) -> tuple[Case, bool]:
    """Prepare one case and write its folder, unless it is there already, made of the same content.

    Returns:
        The case; and whether it was made now.

    Raises:
        DataError: If something is wrong with its files, or its run has ended; nothing is written then.
        CannotWriteError: If its folder cannot be written.
    """
    _check_own_folder(task.folder)
    first_stamp = stamp(task.sources)  # before anything is listed or read, so that a later change is seen
    series = _series_files(task)
    state = RawState(first_stamp, content_hash(task.sources, series))
    _check_run(task)
    before = read_entry(task)
    if before is not None and before.case.fingerprint == fingerprint(task, state.content):
        return keep(task, before, state), False
    if before is not None and series:
        # Earlier versions took all that lies in the folder of a series: what they prepared is kept by that too.
        whole = dataclasses.replace(state, content=content_hash(task.sources))
        if before.case.fingerprint == fingerprint(task, whole.content):
            return keep(task, before, whole), False
    case, arrays = _compute(task, fingerprint(task, state.content))
    if stamp(task.sources) != state.stamp:
        raise DataError(
            task.raw.image,
            f"{task.raw.dataset}, {task.raw.name}: its files changed while they were read",
            "run again when nothing writes to them any more",
        )
    _check_run(task)
    _write_case(task.folder, case, state, arrays)
    return case, True


def _series_files(task: PrepareTask) -> dict[Path, set[Path]]:
    """Of a folder of DICOM slices the files of the series: what else lies there, such as predictions, is not read."""
    if not task.raw.image.is_dir():
        return {}
    try:
        series = choose_series(task.raw.image, task.card.files.series)
    except DataError:  # who reads it says so
        return {}
    return {task.raw.image: {one.path for one in series.slices}}


def prepare_case_elsewhere(task: PrepareTask) -> tuple[Case, bool]:
    """`prepare_case` on another machine, which may not see the same files.

    Raises:
        DataError: As `prepare_case`; and if this machine does not see the raw files, or the output folder.
    """
    machine = socket.gethostname()
    for path in task.sources:
        if not path.exists():
            raise DataError(
                path,
                f"{task.raw.dataset}, {task.raw.name}: the worker on {machine} does not see it",
                "give all workers the raw data under the same path",
            )
    if not is_remote(task.out) and not (task.out / LOCK_NAME).exists():
        raise DataError(
            task.out,
            f"{task.raw.dataset}, {task.raw.name}: the worker on {machine} does not see this folder",
            "give a folder that all workers share, under the same path, or a URL",
        )
    return prepare_case(task)


def _check_run(task: PrepareTask) -> None:
    """Give up what a run left behind that was stopped: the folder may belong to another one now.

    A cluster goes on with what it has begun, whatever becomes of the machine that asked for it.
    """
    if task.run and not is_held_by(task.out, task.run):
        raise DataError(
            task.out,
            f"{task.raw.dataset}, {task.raw.name}: the run that asked for it has ended",
            "run the same command again to go on",
        )


def memory_needed(raw_case: RawCase, spacing_mm: Sequence[float]) -> int:
    """Bytes that a worker takes at most to prepare a case, from the header of its scan.

    It is 0.3 GB for Python and its libraries, 14 bytes for each voxel of the scan, and 8 for each prepared one (2 and
    26 where that is more, since voxels become smaller): 4.2 GB for 512 x 512 x 1000 voxels of 0.8 x 0.8 x 1 mm. What
    workers really take was measured to stay below.

    Args:
        raw_case: The case.
        spacing_mm: Voxel size `(z, y, x)` wanted.
    """
    scan = extent(raw_case.image)
    prepared_voxels = scan.volume_mm3 / math.prod(spacing_mm)
    steps = (raw * scan.voxels + prepared * prepared_voxels for raw, prepared in BYTES_PER_VOXEL)
    return int(BASE_BYTES + max(steps))


def fingerprint(task: PrepareTask, content: str) -> str:
    """A hash of all that the arrays of a prepared case depend on: its raw files, its card, and the settings.

    The class list counts as far as the case's label values depend on it, so that a further organ at its end
    changes nothing for a dataset whose labels mean single organs.

    Args:
        task: The case.
        content: Hash of its raw files.
    """
    card, case, classes = task.card, task.raw.name, list(task.classes)
    table = prepared_values(card, classes)
    beyond_organs = len(table) > len(classes) + 1 or [IGNORE] in card.labels.values() or card.slices_in(case)
    parts = {
        "format": FORMAT,
        "card": card.model_dump(mode="json", include={"name", "labels", "masks", "annotated", "split_sides"}),
        "series": card.files.series,
        "case": [case, card.annotated_in(case), card.slices_in(case)],
        "content": content,
        "organs": {organ: classes.index(organ) for organ in card.annotated if organ in classes},
        "classes": classes if beyond_organs else None,
        "spacing_mm": list(task.spacing_mm),
        "max_foreground": MAX_FOREGROUND,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def choose_foreground(
    values: np.ndarray, table: np.ndarray, seed: str
) -> tuple[np.ndarray, tuple[tuple[int, int, int], ...], tuple[int, ...]]:
    """Choose voxels of each annotated value for patches to centre on.

    Args:
        values: uint8 values of the table, `(depth, height, width)`.
        table: The dataset's candidate table.
        seed: The same choice is made for the same words.

    Returns:
        Flat voxel indices (int32), sorted by value; `(value, start, stop)` for each value that is present;
        and how many voxels it has.

    Example:
        >>> table = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
        >>> choose_foreground(np.array([[[0, 1, 1, 3]]]), table, "case")
        (array([1, 2], dtype=int32), ((1, 0, 2),), (2,))
    """
    indices = np.flatnonzero(values)  # most voxels are background, so that the rest is looked at alone
    of_index = values.ravel()[indices]
    chosen, parts, voxels, start = [], [], [], 0
    for value in annotated_values(table):
        found = indices[of_index == value].astype(np.int32)
        if not len(found):
            continue
        voxels.append(len(found))
        if len(found) > MAX_FOREGROUND:
            rng = np.random.default_rng(zlib.crc32(f"{seed}/{value}".encode(errors="surrogateescape")))
            found = np.sort(rng.choice(found, MAX_FOREGROUND, replace=False))
        chosen.append(found)
        parts.append((value, start, start + len(found)))
        start += len(found)
    return np.concatenate([np.zeros(0, dtype=np.int32), *chosen]), tuple(parts), tuple(voxels)


def annotated_organs(card: Card, classes: Sequence[str], case: str | None = None) -> tuple[str, ...]:
    """The organs among the classes that a dataset, or one case of it, has annotated."""
    organs = card.annotated if case is None else card.annotated_in(case)
    return tuple(organ for organ in organs if organ in classes)


@dataclass(frozen=True)
class Entry:
    """What `case.json` says of a case that was prepared before.

    Attributes:
        case: Its entry in the manifest.
        state: The raw files as they were.
    """

    case: Case
    state: RawState


def read_entry(task: PrepareTask) -> Entry | None:
    """What an earlier run left of a case, if it is whole."""
    text = read_bytes(task.folder / "case.json")
    if text is None:
        return None
    if not is_remote(task.folder) and not all((task.folder / name).is_file() for name in ARRAYS):
        return None  # in a store it is written last
    try:
        content = json.loads(text)
        state = RawState(**content.pop("raw"))
        return Entry(Case.from_json(content), state)
    except (
        ValueError,
        KeyError,
        TypeError,
    ):  # emptied by a machine that lost its power, or of another version
        return None


def keep(task: PrepareTask, entry: Entry, state: RawState) -> Case:
    """Take over a case that was prepared before, with what may have changed without touching its arrays."""
    case = dataclasses.replace(
        entry.case, split=task.split, image_source=str(task.raw.image), label_source=str(task.raw.label)
    )
    if (case, state) != (entry.case, entry.state):
        with _naming(task.folder):
            write_json(task.folder / "case.json", _entry(case, state))
    return case


def _compute(task: PrepareTask, mark: str) -> tuple[Case, tuple[np.ndarray, ...]]:
    """The entry of a case, and its arrays in the order of `ARRAYS`."""
    image, label = read_case(task.card, task.raw)
    spacing_mm = image.spacing_mm
    shape, affine = resampled_grid(image.array.shape, image.affine, spacing_mm, task.spacing_mm)
    values, notes = to_prepared_values(label, task.card, task.classes, task.raw.name)
    del label  # here and below, what is not needed any more makes room
    hu = resample_image(image.array, spacing_mm, task.spacing_mm)
    del image
    limits = np.iinfo(np.int16)
    hu = np.clip(np.rint(hu, out=hu), limits.min, limits.max, out=hu).astype(np.int16)
    values = resample_label(values, spacing_mm, task.spacing_mm)
    table = prepared_values(task.card, task.classes)
    indices, parts, voxels = choose_foreground(values, table, f"{task.raw.dataset}/{task.raw.name}")
    case = Case(
        dataset=task.raw.dataset,
        name=task.raw.name,
        split=task.split,
        shape=shape,
        affine=tuple(map(tuple, affine.tolist())),
        foreground=parts,
        voxels=voxels,
        image_source=str(task.raw.image),
        label_source=str(task.raw.label),
        fingerprint=mark,
        notes=(*notes, *_absent(task, table, parts)),
        annotated=_annotated_in_case_alone(task),
        source_mm=tuple(float(length) for length in spacing_mm),
    )
    return case, (hu, values, indices)


def _write_case(folder: Location, case: Case, state: RawState, arrays: Sequence[np.ndarray]) -> None:
    """Write the folder of a case; `case.json` comes last, and after a loss of power either all is there or none."""
    with _naming(folder):
        if not is_remote(folder):
            (folder / "case.json").unlink(
                missing_ok=True
            )  # what is there now goes away, and no longer counts
        with atomic_path(folder, last="case.json") as temporary:
            temporary.mkdir()
            for name, array in zip(ARRAYS, arrays, strict=True):
                _write_array(temporary / name, array)
            text = json.dumps(_entry(case, state), indent=2) + "\n"
            _write_bytes(temporary / "case.json", text.encode())
            sync_folder(temporary)
        if not is_remote(folder):
            sync_folder(folder.parent)


def _check_own_folder(folder: Location) -> None:
    """Refuse a folder that would be replaced although it holds what `prepare` did not write: raw data, say."""
    if is_remote(folder) or not folder.is_dir():
        return
    own = {*ARRAYS, "case.json"}
    others = sorted(p.name for p in folder.iterdir() if p.name not in own and not p.name.startswith("."))
    if others:
        raise DataError(
            folder,
            f"holds {others[0]}{f' and {len(others) - 1} more' if others[1:] else ''}, expected a folder that holds "
            "a prepared case alone",
            "give another folder with --out",
        )


def _entry(case: Case, state: RawState) -> dict[str, Any]:
    return {**dataclasses.asdict(case), "raw": dataclasses.asdict(state)}


@contextlib.contextmanager
def _naming(folder: Location) -> Iterator[None]:
    """Say of what cannot be written where it is, and what room is left there."""
    try:
        yield
    except DataError as error:  # what an object store answered
        raise CannotWriteError(folder, f"cannot be written, {error.problem}", error.remedy) from error
    except OSError as error:
        room = ""
        if not is_remote(folder):
            disk = next(path for path in (folder, *folder.parents) if path.is_dir())
            room = f"; {shutil.disk_usage(disk).free / 1e9:.3g} GB are free there"
        raise CannotWriteError(
            folder,
            f"cannot be written ({error.strerror or error}{room})",
            "make room, or mend what is wrong there, and run the same command again to go on",
        ) from error


def _write_array(path: Path, array: np.ndarray) -> None:
    """An `.npy` file; unlike `np.save` it says why where the disk does not take it."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def _write_bytes(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _annotated_in_case_alone(task: PrepareTask) -> tuple[str, ...] | None:
    """The annotated organs of a case that has fewer of them than its dataset; None for any other."""
    annotated = annotated_organs(task.card, task.classes, task.raw.name)
    return None if set(annotated) == set(annotated_organs(task.card, task.classes)) else annotated


def _absent(task: PrepareTask, table: np.ndarray, parts: Sequence[tuple[int, int, int]]) -> list[str]:
    """A note for each annotated organ of which no voxel is left."""
    present = table[[value for value, _, _ in parts]].any(axis=0)
    annotated = annotated_organs(task.card, task.classes, task.raw.name)
    return [f"no {organ}" for organ in annotated if not present[task.classes.index(organ)]]
