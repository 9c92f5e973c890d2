"""Which scans the inputs of a prediction hold: files, folders of files, DICOM series, the cases of a card."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from partialseg.data.cards import Card, assign_splits, find_cases
from partialseg.data.dicom_series import Series, choose_series, holds_dicom, list_series
from partialseg.data.folder_kinds import check_is_not_prepared
from partialseg.data.volumes import SUFFIXES, sidecar_path, stem
from partialseg.errors import DataError, first_of
from partialseg.files import visible

#: Of these the JSON beside a prediction has one at least, whatever version wrote it.
_FOUND = ("volumes_ml", "made_of")
#: How the name of the folder of a case's probabilities ends.
PROBABILITIES = "_probabilities"
#: The table of the predictions in a folder.
SUMMARY = "summary.csv"
#: So many folders below the given one are looked into for scans that are not read.
_DEPTH = 3
#: File names that do not tell cases apart; the folder's name does.
GENERIC_NAMES = frozenset(["imaging", "image", "ct", "img", "volume", "scan"])


@dataclass(frozen=True)
class Scan:
    """One scan to predict.

    Attributes:
        name: Name of its prediction.
        path: A file, or a folder with the slices of DICOM series.
        series: Which series of the folder, where there are several; see `partialseg.data.dicom`.
        files: The files of that series, without what else lies in the folder; empty where `path` is a file, or they are
            not listed yet (see `with_files`).
    """

    name: str
    path: Path
    series: str | None = None
    files: tuple[Path, ...] = ()

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files, or the folder, that the scan is read from."""
        return self.files or (self.path,)


def case_name(path: str | Path) -> str:
    """The name under which the prediction of a file or folder is written.

    Example:
        >>> case_name("scans/liver_7.mha"), case_name("kits/case_00000/imaging.nii.gz")
        ('liver_7', 'case_00000')
    """
    path = Path(path)
    name = stem(path)
    if name.lower() in GENERIC_NAMES:
        return path.resolve().parent.name or name
    return name or path.resolve().name


def describes_prediction(sidecar: Path) -> bool:
    """Whether a file is there and is the JSON of a prediction: it lists classes and says what was found.

    Raises:
        ValueError: If it cannot be parsed.
    """
    if not sidecar.is_file():
        return False
    content = json.loads(sidecar.read_text(encoding="utf-8"))
    return isinstance(content, dict) and "classes" in content and not content.keys().isdisjoint(_FOUND)


def list_scans(
    inputs: Iterable[str | Path],
    card: Card | None,
    split: str | None,
    problems: list[DataError],
    notes: list[str],
) -> list[Scan]:
    """Every scan of the inputs, each name once.

    Args:
        inputs: See `partialseg.inference.predict.predict`.
        card: The card of the dataset that the inputs are; None where they are no dataset.
        split: With a card: "train" or "test" cases alone.
        problems: What is wrong with an input is added to them, and the others are listed.
        notes: What was passed over is added to them.
    """
    scans, entries = [], [Path(entry) for entry in inputs]
    for entry in entries:
        for part, name in [(entry, None)] if card else _parts(entry):
            try:
                scans += _scans_of(part, name, card, split)
            except DataError as error:
                problems.append(error)
    told = [path for scan in scans for path in (scan.path, *scan.files[:1])]
    told += [Path(problem.path) for problem in problems]
    for entry in entries:
        if card is None and (names := _folders_not_read(entry, told)):
            notes.append(
                f"{entry}: not read, though there are scans in it: {first_of(names)}; give them as inputs"
            )
    return _unique(scans, problems)


def _scans_of(part: Path, name: str | None, card: Card | None, split: str | None) -> list[Scan]:
    try:
        return _card_scans(part, card, split) if card else _plain_scans(part, name)
    except DataError:
        check_is_not_prepared(part, "scans", "give the raw scans: training alone needs prepared ones")
        raise


def _parts(entry: Path) -> list[tuple[Path, str | None]]:
    """An input; or, of a folder with several folders of DICOM slices below it, each of these and its name."""
    if entry.is_dir() and not _volume_files(entry):
        found = _dicom_folders(entry, "")
        if len(found) == 1:
            return [(found[0][0], case_name(entry))]
        if found:
            return found
    return [(entry, None)]


def _folders_not_read(entry: Path, told: Iterable[Path]) -> list[str]:
    """Of a folder the folders in it that hold scans, none of which is told of; not those of predictions."""
    read = {place for path in told for place in (path, *path.parents)}
    return [path.name for path in _entries(entry) if path not in read and _holds_scans(path, _DEPTH)]


def _holds_scans(folder: Path, depth: int) -> bool:
    if not folder.is_dir():
        return False
    if folder.name.endswith(PROBABILITIES) and sidecar_path(folder.with_name(_case_of(folder))).exists():
        return False
    if _volume_files(folder):
        return True
    try:
        holds = holds_dicom(folder)
    except DataError:  # several folders in it do
        holds = True
    return holds or (depth > 0 and any(_holds_scans(path, depth - 1) for path in _entries(folder)))


def _case_of(folder: Path) -> str:
    return folder.name.removesuffix(PROBABILITIES)


def _dicom_folders(folder: Path, name: str) -> list[tuple[Path, str]]:
    """The folders of DICOM slices below one, named by the way to them: `patient_study`."""
    try:
        return [(folder, name)] if holds_dicom(folder) else []
    except DataError:  # several folders in it hold DICOM, or one cannot be listed: who reads it says so
        below = [path for path in _entries(folder) if path.is_dir()]
    parts = [_dicom_folders(path, f"{name}_{path.name}" if name else path.name) for path in below]
    return [found for part in parts for found in part] or [(folder, name)]


def _volume_files(folder: Path) -> list[Path]:
    """The files of volumes in a folder, without predictions that were written into it."""
    found = []
    for path in _entries(folder):
        if path.name.lower().endswith(SUFFIXES):
            is_prediction = False
            with contextlib.suppress(ValueError, OSError):
                is_prediction = describes_prediction(sidecar_path(path))
            found += [] if is_prediction or not path.is_file() else [path]
    return found


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where it cannot be listed: who reads it says so."""
    with contextlib.suppress(OSError):
        return visible(folder)
    return []


def _plain_scans(entry: Path, name: str | None) -> list[Scan]:
    """The scans of one input: of a file itself, of a folder its files of volumes, else the DICOM series in it."""
    if not entry.exists():
        raise DataError(entry, "there is no such file or folder", "correct the path")
    if not entry.is_dir():
        return [Scan(case_name(entry), entry)]
    inside = [path for path in _entries(entry) if path.is_file()]
    files = _volume_files(entry)
    if files:
        return [Scan(case_name(path), path) for path in files]
    if not inside and not holds_dicom(entry):
        raise DataError(
            entry,
            f"holds no scan, neither a file that ends in {', '.join(SUFFIXES)} nor DICOM",
            "give the folder of the scans; for a raw dataset name its --card",
        )
    return _dicom_scans(entry, name or case_name(entry))


def _dicom_scans(folder: Path, case: str) -> list[Scan]:
    """The series of a folder of DICOM slices, named after it; several also after their numbers."""
    found = list_series(folder)
    if len(found) == 1:
        return [Scan(case, folder, None, files_of(found[0]))]
    scans, seen = [], Counter()
    for series in found:
        name = f"{case}_series{series.number or 0}"
        seen[name] += 1
        again = f"_{seen[name]}" if seen[name] > 1 else ""
        scans.append(Scan(name + again, folder, series.uid, files_of(series)))
    return scans


def with_files(scan: Scan) -> Scan:
    """The scan with the files of its series, where it is a folder of which they were not listed.

    What is written into the folder later, such as a prediction, is then no part of the scan.

    Raises:
        DataError: If the folder holds no series, or several and not the one that is meant.
    """
    if scan.files or not scan.path.is_dir():
        return scan
    return dataclasses.replace(scan, files=files_of(choose_series(scan.path, scan.series)))


def files_of(series: Series) -> tuple[Path, ...]:
    """The files of a series, each once, sorted."""
    return tuple(sorted({one.path for one in series.slices}))


def _card_scans(entry: Path, card: Card, split: str | None) -> list[Scan]:
    """The cases of a folder of raw data."""
    if not entry.is_dir():
        raise DataError(entry, "is not a folder", f"with the card {card.name}, give its folder of raw data")
    cases = find_cases(card, entry)
    splits = assign_splits(card, [case.name for case in cases])
    scans = [
        Scan(case.name, case.image, card.files.series) for case in cases if split in (None, splits[case.name])
    ]
    if not scans:
        which = f"{split} cases" if split else "cases"
        raise DataError(
            entry,
            f"holds no {which} of {card.name} (expected {card.files.image})",
            "give the folder that holds the dataset",
        )
    return scans


def _unique(scans: list[Scan], problems: list[DataError]) -> list[Scan]:
    """Scans of different names; a second one of a name is a problem, the same scan given twice is not."""
    unique: dict[str, Scan] = {}
    for scan in scans:
        first = unique.setdefault(scan.name, scan)
        if (first.path.resolve(), first.series) != (scan.path.resolve(), scan.series):
            problems.append(
                DataError(
                    scan.path,
                    f"its prediction would be named {scan.name}, like that of {first.path}",
                    "rename one of the two, or predict them into different folders",
                )
            )
    return list(unique.values())
