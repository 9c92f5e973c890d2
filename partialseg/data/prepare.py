"""From raw scans and data cards to a folder of prepared cases (see `partialseg.data.prepared`).

The work may be killed at any time and taken up again: a case is kept while the content of its files, what its card
says of it, and the settings are the same. While cases change, the manifest is set aside, so that nobody trains on
half of them; it also tells the next run of the datasets that are not named then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from partialseg.data.cards import (
    Card,
    RawCase,
    assign_splits,
    find_cases,
    is_part_of_published,
    names_found,
    unmatched_names,
    why_no_case,
)
from partialseg.data.classes import PAPER_ORGANS, class_names
from partialseg.data.folder_kinds import check_is_not_prepared
from partialseg.data.label_files import with_missing_masks
from partialseg.data.prepare_case import (
    CannotWriteError,
    PrepareTask,
    annotated_organs,
    fingerprint,
    keep,
    memory_needed,
    prepare_case,
    prepare_case_elsewhere,
    read_entry,
)
from partialseg.data.prepared import Case, Dataset, Prepared, read_prepared, write_manifest
from partialseg.data.raw_files import stamp
from partialseg.data.relabel import prepared_values
from partialseg.data.resample import check_spacing
from partialseg.errors import DataError
from partialseg.files import write_text
from partialseg.locking import locked
from partialseg.machine import jobs_in_memory
from partialseg.parallel import run_tasks
from partialseg.progress import track
from partialseg.storage import Location, is_file, is_remote, path_or_url

_MANIFEST = "manifest.json"
#: Folder of the manifest of before, while cases change; it is gone when the new one is there.
_SET_ASIDE = ".previous"


@dataclass(frozen=True)
class PrepareResult:
    """What `prepare` did.

    Attributes:
        prepared: The prepared cases, those of earlier runs included.
        problems: What was wrong, one for each case, card or folder that was left out.
        done: Number of cases prepared now.
        skipped: Number of cases of these cards that were there already.
        kept: Number of cases of other datasets, which are still listed.
        dropped: Cases ("dataset/case") that were listed before and are not any more, since their raw files are
            gone, their card leaves them out, or something is wrong with them now. Their folders are left. Where
            no case at all is left, all is as it was, and none is dropped.
        notes: What the cards say of cases that are not there, as where a name is misspelt.
    """

    prepared: Prepared
    problems: list[DataError]
    done: int
    skipped: int
    kept: int = 0
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def prepare(
    cards: Sequence[Card],
    raw: str | Path,
    out: str | Path,
    spacing_mm: Sequence[float] = (3.0, 1.5, 1.5),
    organs: Sequence[str] | None = None,
    jobs: int | None = None,
    memory_gb: float | None = None,
    dask: str | None = None,
) -> PrepareResult:
    """Prepare all cases of some datasets.

    A case with a problem is left out and the others go on. The manifest lists the good cases of these cards, and
    the cases of other datasets that were prepared into the same folder before; it is written at the end.

    Args:
        cards: The datasets' cards.
        raw: A folder that holds one or several raw datasets.
        out: The folder to write, or a URL; what is there already and still holds is kept. While a run writes to a
            folder, it is locked. An object store has no locks: see to it that one run at a time writes to a URL.
        spacing_mm: Voxel size `(z, y, x)`; the paper's unless given.
        organs: The organs that become classes 1, 2, …; None for all that any card annotates, or for those of the
            other datasets in `out` where these are among them.
        jobs: Cases at a time; None for one per usable core. Fewer where the memory would not do for the largest
            case. With 1, and no `memory_gb`, everything runs in this process.
        memory_gb: What one worker may take, in 10^9 bytes; a case that needs more is a problem. None for its
            share of what is free. `partialseg.data.prepare_case.memory_needed` says what a case takes.
        dask: Address of a Dask cluster that does the work (see `partialseg.dask_cluster`); its workers see `raw`
            and `out` under the same paths, and `jobs` and `memory_gb` are then its own affair.

    Returns:
        What was prepared, and what was wrong.

    Raises:
        DataError: If two cards have the same name; if `out` is `raw`; if another run writes to the folder `out`; if
            `out` holds datasets that are not named here and were prepared with other settings; if `out` cannot be
            written; if the Dask cluster cannot be used.
        ValueError: If a spacing is not 0.1 to 50 mm, or an organ is named twice.
    """
    out, raw = path_or_url(out), Path(raw).absolute()
    z, y, x = (float(size) for size in spacing_mm)
    check_spacing((z, y, x))
    if organs is not None and len(set(class_names(organs))) < len(organs) + 1:
        raise ValueError(f"expected different organs, received {list(organs)}")
    if not is_remote(out):
        out = out.absolute()
        if out.resolve() == raw.resolve():
            problem = "is the folder of the raw data, expected one for prepared data alone"
            raise DataError(out, problem, "give another folder with --out")
    run = "" if dask is None or is_remote(out) else uuid.uuid4().hex
    with contextlib.nullcontext() if is_remote(out) else locked(out, run):
        return _prepare(cards, raw, out, (z, y, x), organs, _Means(jobs, memory_gb, dask, run))


@dataclass(frozen=True)
class _Means:
    """What does the work; see `prepare`, and for `run` `PrepareTask`."""

    jobs: int | None
    memory_gb: float | None
    dask: str | None
    run: str


def _prepare(
    cards: Sequence[Card],
    raw: Path,
    out: Location,
    spacing_mm: tuple[float, float, float],
    organs: Sequence[str] | None,
    means: _Means,
) -> PrepareResult:
    """`prepare`, while no other run writes to `out`."""
    found, problems = list_raw_cases(cards, raw)
    notes = [note for card, raw_cases in found for note in _unmatched_notes(card, raw_cases, raw)]
    earlier = _read_earlier(out) if found else None
    named = [card for card, _ in found]
    classes = _choose_classes(cards, named, organs, out, earlier, spacing_mm)
    tasks, more_problems = plan(found, out, classes, spacing_mm, means.run)
    problems += more_problems
    _remove_left_overs(out)
    cases = _cases_there(tasks)
    there = {(case.dataset, case.name) for case in cases}
    waiting = [task for task in tasks if (task.raw.dataset, task.raw.name) not in there]
    was_set_aside = bool(waiting) and _set_manifest_aside(out)
    done = 0
    for outcome in _run(waiting, means):
        if isinstance(outcome, DataError):
            problems.append(outcome)
        else:
            case, made = outcome
            cases.append(case)
            done += made
    if not cases:
        problems.append(DataError(out, "no case could be prepared", "correct the problems named before"))
    prepared = _with_earlier(
        Prepared(out, classes, spacing_mm, _datasets(named, classes, cases), tuple(cases)), named, earlier
    )
    dropped = _list_cases(prepared, earlier, was_set_aside)
    skipped, kept = len(cases) - done, len(prepared.cases) - len(cases)
    return PrepareResult(prepared, problems, done, skipped, kept, dropped, tuple(notes))


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
        DataError: If two cards have the same name; or if `raw` is a folder of prepared cases.
    """
    found, problems = [], []
    for number, card in enumerate(cards):
        if card.name in (other.name for other in cards[:number]):
            problem = f"there is another card called {card.name}, expected each once"
            raise DataError(card.path, problem, "give each dataset once")
        raw_cases = find_cases(card, raw)
        if raw_cases:
            found.append((with_missing_masks(card, raw_cases), raw_cases))
        else:
            problems.append(DataError(card.path, *why_no_case(card, raw)))
    if cards and not found:
        remedy = "give the folder with the datasets as downloaded with --raw"
        check_is_not_prepared(Path(raw), "raw scans", remedy)
    return found, problems


def _unmatched_notes(card: Card, raw_cases: Sequence[RawCase], raw: Path) -> list[str]:
    """Notes on names in the card that no case has; a part of a published dataset need not have them."""
    names = names_found(card, raw)
    excluded = sum(card.why_excluded(name) is not None for name in names)
    if is_part_of_published(card, len(raw_cases) + excluded):
        return []
    return [f"{card.path}: {note}" for note in unmatched_names(card, names)]


def plan(
    found: Sequence[tuple[Card, Sequence[RawCase]]],
    out: Location,
    classes: tuple[str, ...],
    spacing_mm: tuple[float, float, float],
    run: str = "",
) -> tuple[list[PrepareTask], list[DataError]]:
    """One task for each case of the cards; and what was wrong with a whole card."""
    tasks, problems = [], []
    for card, raw_cases in found:
        if not annotated_organs(card, classes):
            problem = f"{card.name} annotates {', '.join(card.annotated)}, none of {', '.join(classes[1:])}"
            problems.append(DataError(card.path, problem, "leave the card out, or ask for its organs too"))
            continue
        splits = assign_splits(card, [raw_case.name for raw_case in raw_cases])
        tasks += [
            PrepareTask(card, raw_case, classes, spacing_mm, splits[raw_case.name], out, run)
            for raw_case in raw_cases
        ]
    return tasks, problems


def _read_earlier(out: Location) -> Prepared | None:
    """What earlier runs prepared: from the manifest, or from the one that a killed run had set aside.

    Raises:
        DataError: If the manifest is damaged, or of another format.
    """
    folder = next((folder for folder in (out, out / _SET_ASIDE) if is_file(folder / _MANIFEST)), None)
    try:
        return None if folder is None else read_prepared(folder)
    except DataError as error:
        raise DataError(
            error.path, error.problem, "give another folder, or delete this file to prepare all cases again"
        ) from error


def _choose_classes(
    cards: Sequence[Card],
    named: Sequence[Card],
    organs: Sequence[str] | None,
    out: Location,
    earlier: Prepared | None,
    spacing_mm: tuple[float, float, float],
) -> tuple[str, ...]:
    """The class list: that of the other datasets in the folder, if there are any and it will do.

    Raises:
        DataError: If there are other datasets, of another class list or spacing: one folder has one of each.
    """
    classes = class_names(organs if organs is not None else choose_organs(cards))
    names = [card.name for card in named]
    others = [name for name in earlier.datasets if name not in names] if earlier is not None else []
    if not others:
        return classes
    fits = classes == earlier.classes if organs is not None else set(classes) <= set(earlier.classes)
    if fits and spacing_mm == earlier.spacing_mm:
        return earlier.classes
    before, now = (
        f"{', '.join(names[1:])} at {' x '.join(f'{size:g}' for size in spacing)} mm"
        for names, spacing in ((earlier.classes, earlier.spacing_mm), (classes, spacing_mm))
    )
    raise DataError(
        out,
        f"holds {', '.join(others)}, prepared for {before}, expected {now}",
        "name their cards and raw data as well (what does not change is kept), or give another folder",
    )


def _cases_there(tasks: Sequence[PrepareTask]) -> list[Case]:
    """The cases that an earlier run left whole, and whose files were not touched since."""
    cases = []
    for task in tasks:
        entry = read_entry(task)
        if entry is None or entry.case.fingerprint != fingerprint(task, entry.state.content):
            continue
        if entry.state.stamp == stamp(task.sources):
            cases.append(keep(task, entry, entry.state))
    return cases


def _list_cases(prepared: Prepared, earlier: Prepared | None, was_set_aside: bool) -> tuple[str, ...]:
    """Write the manifest, if there is a case to list; where there is none, no case was changed either.

    Args:
        prepared: What is there now.
        earlier: What was listed before.
        was_set_aside: Whether this run set the manifest aside. What a killed run had set aside stays so, since
            that run may have changed cases.

    Returns:
        The cases that are no longer listed.
    """
    out = prepared.folder
    if not prepared.cases:
        if was_set_aside:
            write_text(out / _MANIFEST, (out / _SET_ASIDE / _MANIFEST).read_text(encoding="utf-8"))
            _forget_set_aside(out)
        return ()
    write_manifest(prepared)
    _forget_set_aside(out)
    listed = {(case.dataset, case.name) for case in prepared.cases}
    before = earlier.cases if earlier is not None else ()
    return tuple(f"{case.dataset}/{case.name}" for case in before if (case.dataset, case.name) not in listed)


def _set_manifest_aside(out: Location) -> bool:
    """Cases change from here on, so that the manifest would be wrong; whether there was one."""
    if not (out / _MANIFEST).is_file():
        return False
    write_text(out / _SET_ASIDE / _MANIFEST, (out / _MANIFEST).read_text(encoding="utf-8"))
    (out / _MANIFEST).unlink()
    return True


def _forget_set_aside(out: Location) -> None:
    """The manifest is right again."""
    (out / _SET_ASIDE / _MANIFEST).unlink(missing_ok=True)
    if not is_remote(out) and (out / _SET_ASIDE).is_dir():
        (out / _SET_ASIDE).rmdir()


def _run(tasks: Sequence[PrepareTask], means: _Means) -> Iterator[DataError | tuple[Case, bool]]:
    """What becomes of each task, in the order of completion.

    Raises:
        CannotWriteError: At the first case that cannot be written.
    """
    if not tasks:
        return
    jobs, memory = means.jobs, None
    if means.dask is None and (jobs != 1 or means.memory_gb is not None):
        need = max(memory_needed(task.raw, task.spacing_mm) for task in tasks)
        wanted = None if means.memory_gb is None else int(means.memory_gb * 1e9)
        jobs, memory = jobs_in_memory(jobs, need, wanted)
    function = prepare_case
    if means.dask is not None:  # what is not there for this machine either is not the fault of a worker
        complete = [all(path.exists() for path in task.sources) for task in tasks]
        incomplete = [task for task, whole in zip(tasks, complete, strict=True) if not whole]
        yield from (outcome for _, outcome in run_tasks(prepare_case, incomplete, str, jobs=1))
        tasks = [task for task, whole in zip(tasks, complete, strict=True) if whole]
        function = prepare_case_elsewhere
    if not tasks:
        return
    with contextlib.closing(run_tasks(function, tasks, str, jobs, memory, means.dask)) as outcomes:
        for _, outcome in track(outcomes, "prepare", total=len(tasks)):
            if isinstance(outcome, CannotWriteError):
                raise outcome
            yield outcome


def _datasets(cards: Sequence[Card], classes: tuple[str, ...], cases: Sequence[Case]) -> dict[str, Dataset]:
    """The datasets of which there is a case."""
    with_cases = {case.dataset for case in cases}
    return {
        card.name: Dataset(card.name, annotated_organs(card, classes), prepared_values(card, classes))
        for card in cards
        if card.name in with_cases
    }


def _with_earlier(prepared: Prepared, named: Sequence[Card], earlier: Prepared | None) -> Prepared:
    """With the datasets of earlier runs that are not named now, all sorted by name."""
    names = [card.name for card in named]
    others = {} if earlier is None else {n: d for n, d in earlier.datasets.items() if n not in names}
    cases = [*prepared.cases, *(case for case in (earlier.cases if others else ()) if case.dataset in others)]
    return dataclasses.replace(
        prepared,
        datasets=dict(sorted({**others, **prepared.datasets}.items())),
        cases=tuple(sorted(cases, key=lambda case: (case.dataset, case.name))),
    )


def _remove_left_overs(out: Location) -> None:
    """Remove what a killed run left under temporary names."""
    if is_remote(out):  # nothing lies there under a temporary name
        return
    for path in [path for below in ("", "*/", "*/*/") for path in out.glob(f"{below}.partial-*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have gone with its folder
