"""A table of the predictions in a folder: what a night gave, at one glance.

OUT/summary.csv    a row for each case: its status, the mL of each organ that is written, and the warnings
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partialseg.errors import DataError
from partialseg.files import write_text
from partialseg.inference.plausibility import PredictionWarning, warning_lines
from partialseg.inference.scans import SUMMARY, describes_prediction

#: Of a prediction that the call was not asked for.
THERE = "there"
_FIRST = ("case", "status", "warnings")


def write_summary(folder: Path, statuses: Mapping[str, str], problems: Sequence[DataError]) -> Path:
    """Write the table of all predictions in a folder, with those that failed, atomically.

    Args:
        folder: Of the predictions.
        statuses: What the call did with cases, by name; others were there.
        problems: What was wrong with others; rows without a volume.

    Raises:
        DataError: If a file of this name is there that is no such table.
    """
    path = folder / SUMMARY
    if path.exists() and not path.read_bytes().startswith(",".join(_FIRST).encode()):
        remedy = "give another folder for the predictions, or rename it"
        raise DataError(path, "is no table of predictions, and one would have its name", remedy)
    contents = _predictions(folder)
    organs = list(dict.fromkeys(organ for content in contents.values() for organ in content["volumes_ml"]))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*_FIRST, *(f"{organ} [mL]" for organ in organs)])
    for case, content in contents.items():
        lines = warning_lines(PredictionWarning(**warning) for warning in content["warnings"])
        volumes = (content["volumes_ml"].get(organ, "") for organ in organs)
        table.writerow([case, statuses.get(case, THERE), "; ".join(lines), *volumes])
    for problem in problems:
        table.writerow([problem.path, "problem", problem.problem, *([""] * len(organs))])
    write_text(path, text.getvalue())
    return path


def _predictions(folder: Path) -> dict[str, dict[str, Any]]:
    """The sidecars of the predictions whose label maps are there, by case."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):  # of others, or just taken away by another process
            if describes_prediction(path):
                content = json.loads(path.read_text(encoding="utf-8"))
                if content.get("files") and "warnings" in content and "volumes_ml" in content:
                    found[path.stem] = content
    return found
