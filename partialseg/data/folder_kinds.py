"""Whether a folder that was given by mistake holds raw scans or prepared cases: for an error that says what to do."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from partialseg.data.dicom_series import is_dicom
from partialseg.data.volumes import SUFFIXES
from partialseg.errors import DataError
from partialseg.files import visible
from partialseg.storage import Location, is_remote

#: So many folders below the given one are looked into, and so many entries in all.
_DEPTH, _MOST_ENTRIES = 4, 5000
#: A file of a case lies so many folders below the one with the manifest.
_PARENTS = 3
#: What a manifest of `partialseg prepare` says, whatever version wrote it.
_OF_MANIFEST = frozenset(["format", "classes", "datasets", "cases"])


def first_scan(folder: Path) -> Path | None:
    """A file of a scan or a label map below a folder, by its name, or a DICOM file; None where there is none.

    A large folder is not searched to its end.

    Example:
        >>> first_scan(Path("no such folder")) is None
        True
    """
    seen = 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            path = Path(place) / name
            with contextlib.suppress(OSError):  # what cannot be read is told where it is needed
                if name.lower().endswith(SUFFIXES) or is_dicom(path):
                    return path
            seen += 1
            if seen == _MOST_ENTRIES:
                return None
        if len(Path(place).relative_to(folder).parts) == _DEPTH:
            folders.clear()
    return None


def prepared_around(path: Path) -> Path | None:
    """The folder of prepared cases that a path is, or lies in as a dataset, a case or a file; None for others.

    Of a path that is not there nothing is said, wherever it would lie.
    """
    if not path.exists():
        return None
    places = [path, *list(path.absolute().parents)[:_PARENTS]]
    return next((folder for folder in places if _is_manifest(folder / "manifest.json")), None)


def check_is_not_prepared(path: Path, expected: str, remedy: str) -> None:
    """Refuse prepared cases where something else is expected and was not found.

    Args:
        path: What was given.
        expected: What it should be.
        remedy: What to give instead.

    Raises:
        DataError: If it is a folder of prepared cases, or lies in one, and holds nothing else.
    """
    prepared = prepared_around(path)
    if prepared is not None and first_scan(path) is None:
        inside = "" if prepared == path else f" (of {prepared})"
        raise DataError(path, f"holds prepared cases{inside}, expected {expected}", remedy)


def why_not_prepared(folder: Location) -> DataError:
    """Says of a folder without a manifest that it is not prepared, and what it is instead where that is known.

    Example:
        >>> str(why_not_prepared(Path("nowhere")))
        'nowhere/manifest.json: there is no manifest; run `partialseg prepare CARD... --raw DIR --out nowhere`'
    """
    path, command = folder / "manifest.json", "partialseg prepare CARD... --raw"
    if is_remote(folder):
        return DataError(path, "there is no manifest", f"run `{command} DIR --out {folder}`")
    if (prepared := prepared_around(folder)) is not None:
        problem = "is a part of prepared data, expected the folder with manifest.json"
        return DataError(folder, problem, f"give {prepared}")
    inside = [below.parent for below in sorted(folder.glob("*/manifest.json"))]
    if len(inside) == 1 and prepared_around(inside[0]) == inside[0]:
        return DataError(path, "there is no manifest, but one in a folder below", f"give {inside[0]}")
    if (scan := first_scan(folder)) is not None:
        problem = f"looks like raw scans ({scan.relative_to(folder)}), expected prepared cases"
        return DataError(folder, problem, f"run `{command} {folder} --out PREPARED` and give PREPARED")
    if not folder.exists() or _is_for_prepared_cases(folder):
        return DataError(path, "there is no manifest", f"run `{command} DIR --out {folder}`")
    problem = f"is {'a folder of other files' if folder.is_dir() else 'a file'}, expected prepared cases"
    return DataError(folder, problem, f"give PREPARED of `{command} DIR --out PREPARED`")


def _is_for_prepared_cases(folder: Path) -> bool:
    """Whether a folder is empty, or holds cases whose manifest is gone: `prepare` may write to it."""
    return folder.is_dir() and (not any(visible(folder)) or any(folder.glob("*/*/case.json")))


def _is_manifest(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= _OF_MANIFEST
