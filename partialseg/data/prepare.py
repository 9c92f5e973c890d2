"""From raw scans and data cards to a folder of prepared cases (see `partialseg.data.prepared`).

Each case is written under a temporary name and renamed when it is whole, so the work may be killed at any
time and taken up again: a case is skipped while its files, what its card says of them, and the settings are
the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partialseg.data.cards import Card, RawCase, assign_splits, find_cases
from partialseg.data.checks import read_case
from partialseg.data.classes import PAPER_ORGANS, class_names
from partialseg.data.labels import annotated_values
from partialseg.data.prepared import FORMAT, Case, Dataset, Prepared, write_manifest
from partialseg.data.relabel import prepared_values, to_prepared_values
from partialseg.data.resample import resample_image, resample_label, resampled_grid
from partialseg.errors import DataError
from partialseg.files import atomic_path, write_json
from partialseg.parallel import run_tasks
from partialseg.progress import track

#: Voxels of each annotated value that are listed for patches to centre on.
MAX_FOREGROUND = 10_000

_ARRAYS = ("image.npy", "label.npy", "foreground.npy")


@dataclass(frozen=True)
class PrepareResult:
    """What `prepare` did.

    Attributes:
        prepared: The prepared cases, those of earlier runs included.
        problems: What was wrong, one for each case, card or folder that was left out.
        done: Number of cases prepared now.
        skipped: Number of cases that were there already.
    """

    prepared: Prepared
    problems: list[DataError]
    done: int
    skipped: int


@dataclass(frozen=True)
class PrepareTask:
    """Everything that is needed to prepare one case, on whatever machine.

    Attributes:
        card: Its dataset's card.
        raw: Its raw files.
        classes: Background, then the organs.
        spacing_mm: Voxel size `(z, y, x)` wanted.
        split: "train" or "test".
        folder: Where the case is written.
        fingerprint: Of sources, card and settings.
    """

    card: Card
    raw: RawCase
    classes: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    split: str
    folder: Path
    fingerprint: str


def prepare(
    cards: Sequence[Card],
    raw: str | Path,
    out: str | Path,
    spacing_mm: Sequence[float] = (3.0, 1.5, 1.5),
    organs: Sequence[str] | None = None,
    jobs: int | None = None,
) -> PrepareResult:
    """Prepare all cases of some datasets.

    A case with a problem is left out and the others go on. The manifest lists the good cases of these cards,
    and is written at the end.

    Args:
        cards: The datasets' cards.
        raw: A folder that holds one or several raw datasets.
        out: The folder to write; what is there already and still holds is kept.
        spacing_mm: Voxel size `(z, y, x)`; the paper's unless given.
        organs: The organs that become classes 1, 2, …; None for all that any card annotates.
        jobs: Cases at a time; None for one per usable core.

    Returns:
        What was prepared, and what was wrong.

    Raises:
        DataError: If two cards have the same name.
        ValueError: If a spacing is not above 0, or an organ is named twice.
    """
    out = Path(out)
    z, y, x = (float(size) for size in spacing_mm)
    if min(z, y, x) <= 0:
        raise ValueError(f"spacing_mm must be above 0, received {tuple(spacing_mm)}")
    classes = class_names(organs if organs is not None else choose_organs(cards))
    if len(set(classes)) < len(classes):
        raise ValueError(f"expected different organs, received {list(classes[1:])}")
    _remove_left_overs(out)
    tasks, problems = plan(cards, raw, out, classes, (z, y, x))
    cases = [case for task in tasks if (case := _prepared_before(task)) is not None]
    skipped = {(case.dataset, case.name) for case in cases}
    waiting = [task for task in tasks if (task.raw.dataset, task.raw.name) not in skipped]
    if any(task.folder.exists() for task in waiting):  # these change, so that the manifest would be wrong
        (out / "manifest.json").unlink(missing_ok=True)
    outcomes = run_tasks(prepare_case, waiting, _where, jobs)
    for _, outcome in track(outcomes, "prepare", total=len(waiting)):
        (problems if isinstance(outcome, DataError) else cases).append(outcome)
    cases.sort(key=lambda case: (case.dataset, case.name))
    datasets = {
        card.name: Dataset(card.name, _annotated(card, classes), prepared_values(card, classes))
        for card in cards
        if any(case.dataset == card.name for case in cases)
    }
    prepared = Prepared(out, classes, (z, y, x), datasets, tuple(cases))
    if cases:
        write_manifest(prepared)
    else:  # a manifest of other cards that is there still describes them
        problems.append(DataError(out, "no case could be prepared", "correct the problems named before"))
    return PrepareResult(prepared, problems, len(cases) - len(skipped), len(skipped))


def choose_organs(cards: Sequence[Card]) -> tuple[str, ...]:
    """All organs that any card annotates: the paper's in its order, then others as they come.

    Example:
        >>> from partialseg.data.cards import read_card
        >>> choose_organs([read_card("kits19"), read_card("msd_spleen")])
        ('spleen', 'left_kidney', 'right_kidney')
    """
    annotated = dict.fromkeys(organ for card in cards for organ in card.annotated)
    paper = [organ for organ in PAPER_ORGANS if organ in annotated]
    return (*paper, *(organ for organ in annotated if organ not in PAPER_ORGANS))


def list_raw_cases(
    cards: Sequence[Card], raw: str | Path
) -> tuple[list[tuple[Card, list[RawCase]]], list[DataError]]:
    """Find the raw cases of each card; a card without any is a problem.

    Raises:
        DataError: If two cards have the same name.
    """
    found, problems = [], []
    for number, card in enumerate(cards):
        if card.name in (other.name for other in cards[:number]):
            raise DataError(card.path, f"there is another card called {card.name}", "give each dataset once")
        raw_cases = find_cases(card, raw)
        if raw_cases:
            found.append((card, raw_cases))
        else:
            folders = ", ".join(dict.fromkeys([*card.folders, card.name, "."]))
            problem = f"{card.name}: no file in {raw} matches {card.files.image} (looked in {folders})"
            problems.append(
                DataError(card.path, problem, "name the folder that holds the dataset with --raw")
            )
    return found, problems


def plan(
    cards: Sequence[Card],
    raw: str | Path,
    out: Path,
    classes: tuple[str, ...],
    spacing_mm: tuple[float, float, float],
) -> tuple[list[PrepareTask], list[DataError]]:
    """One task for each case of the cards; and what was wrong with a whole card."""
    found, problems = list_raw_cases(cards, raw)
    tasks = []
    for card, raw_cases in found:
        if not _annotated(card, classes):
            problem = f"{card.name} annotates {', '.join(card.annotated)}, none of {', '.join(classes[1:])}"
            problems.append(DataError(card.path, problem, "leave the card out, or ask for its organs too"))
            continue
        splits = assign_splits(card, [raw_case.name for raw_case in raw_cases])
        for raw_case in raw_cases:
            folder = out / card.name / raw_case.name
            mark = fingerprint(card, raw_case, classes, spacing_mm)
            split = splits[raw_case.name]
            tasks.append(PrepareTask(card, raw_case, classes, spacing_mm, split, folder, mark))
    return tasks, problems


def fingerprint(card: Card, raw_case: RawCase, classes: Sequence[str], spacing_mm: Sequence[float]) -> str:
    """A hash of all that a prepared case depends on: raw files, label values in the card, and settings."""
    content = {
        "format": FORMAT,
        "card": card.model_dump(mode="json", include={"name", "labels", "masks", "annotated", "split_sides"}),
        "series": card.files.series,
        "case": [card.annotated_in(raw_case.name), card.slices_in(raw_case.name)],
        "sources": [_stamp(raw_case.image), _stamp(raw_case.label)],
        "classes": list(classes),
        "spacing_mm": list(spacing_mm),
        "max_foreground": MAX_FOREGROUND,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def prepare_case(task: PrepareTask) -> Case:
    """Prepare one case and write its folder.

    Raises:
        DataError: If something is wrong with its files; nothing is written then.
    """
    image, label = read_case(task.card, task.raw)
    values, notes = to_prepared_values(label, task.card, task.classes, task.raw.name)
    shape, affine = resampled_grid(image.array.shape, image.affine, image.spacing_mm, task.spacing_mm)
    hu = resample_image(image.array, image.spacing_mm, task.spacing_mm)
    limits = np.iinfo(np.int16)
    hu = np.clip(np.rint(hu, out=hu), limits.min, limits.max, out=hu).astype(np.int16)
    values = resample_label(values, image.spacing_mm, task.spacing_mm)
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
        fingerprint=task.fingerprint,
        notes=(*notes, *_absent(task, table, parts)),
        annotated=_annotated_in_case_alone(task),
    )
    (task.folder / "case.json").unlink(missing_ok=True)  # what is there now goes away, and no longer counts
    with atomic_path(task.folder) as temporary:
        temporary.mkdir()
        for name, array in zip(_ARRAYS, (hu, values, indices), strict=True):
            np.save(temporary / name, array)
        write_json(temporary / "case.json", dataclasses.asdict(case))
    return case


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
    chosen, parts, voxels, start = [], [], [], 0
    for value in annotated_values(table):
        found = np.flatnonzero(values == value).astype(np.int32)
        if not len(found):
            continue
        voxels.append(len(found))
        if len(found) > MAX_FOREGROUND:
            rng = np.random.default_rng(zlib.crc32(f"{seed}/{value}".encode()))
            found = np.sort(rng.choice(found, MAX_FOREGROUND, replace=False))
        chosen.append(found)
        parts.append((value, start, start + len(found)))
        start += len(found)
    return np.concatenate([np.zeros(0, dtype=np.int32), *chosen]), tuple(parts), tuple(voxels)


def _annotated(card: Card, classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(organ for organ in card.annotated if organ in classes)


def _annotated_in_case_alone(task: PrepareTask) -> tuple[str, ...] | None:
    """The annotated organs of a case that has fewer of them than its dataset; None for any other."""
    of_case = task.card.annotated_in(task.raw.name)
    annotated = tuple(organ for organ in of_case if organ in task.classes)
    return None if set(annotated) == set(_annotated(task.card, task.classes)) else annotated


def _absent(task: PrepareTask, table: np.ndarray, parts: Sequence[tuple[int, int, int]]) -> list[str]:
    """A note for each annotated organ of which no voxel is left."""
    present = table[[value for value, _, _ in parts]].any(axis=0)
    annotated = [organ for organ in task.card.annotated_in(task.raw.name) if organ in task.classes]
    return [f"no {organ}" for organ in annotated if not present[task.classes.index(organ)]]


def _where(task: PrepareTask) -> str:
    return f"{task.raw.image} ({task.raw.dataset}, {task.raw.name})"


def _stamp(path: Path) -> list[Any]:
    """Size and time of a file, or of each file in a folder: another content has another stamp."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return [str(path.absolute()), *stamps]


def _prepared_before(task: PrepareTask) -> Case | None:
    """The case as an earlier run left it, if it is whole and has the same fingerprint."""
    entry = task.folder / "case.json"
    if not all((task.folder / name).is_file() for name in ("case.json", *_ARRAYS)):
        return None
    try:
        content = json.loads(entry.read_text(encoding="utf-8"))
    except ValueError:  # a machine that lost its power may leave a file empty
        return None
    if content.get("fingerprint") != task.fingerprint:
        return None
    return dataclasses.replace(Case.from_json(content), split=task.split)


def _remove_left_overs(out: Path) -> None:
    """Remove what a killed run left under temporary names."""
    for path in [*out.glob(".partial-*"), *out.glob("*/.partial-*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
