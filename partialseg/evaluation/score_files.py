"""`scores.csv`: a row per case and annotated organ, as `evaluate` writes it and others read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from partialseg.errors import DataError

#: Distances in each unit. Those in voxels are of the scan's own grid and are there only if they were asked for.
DISTANCES = {
    "mm": ("hd_mm", "hd95_mm", "assd_mm"),
    "voxels": ("hd_voxels", "hd95_voxels", "assd_voxels"),
}
#: Every number that a case can have for an organ.
METRICS = ("dice", *DISTANCES["mm"], *DISTANCES["voxels"], "nsd", "volume_error", "volume_error_ml")
#: Columns of scores.csv that are numbers; all others are text.
NUMBERS = (*METRICS, "nsd_tolerance_mm")
COLUMNS = (
    "dataset", "case", "organ", "dice", "hd_mm", "hd95_mm", "assd_mm", "nsd", "volume_error", "volume_error_ml",
    "outcome", "hd95_definition", "nsd_tolerance_mm", "image", "truth", "prediction", "card",
)  # fmt: skip
#: Scores of earlier versions lack these; they are read as not known.
_NEWER = ("volume_error", "volume_error_ml")
#: Where scores lie in a folder of scores, in a run, and in what `partialseg demo` and `study` make.
_PLACES = ("scores.csv", "*/scores.csv", "*/*/scores.csv")


def columns(unit: str = "mm") -> tuple[str, ...]:
    """The columns of scores.csv; with distances in voxels too they stand behind those in mm.

    Raises:
        ValueError: If the unit is neither "mm" nor "voxels".

    Example:
        >>> columns("voxels")[4:9]
        ('hd_mm', 'hd95_mm', 'assd_mm', 'hd_voxels', 'hd95_voxels')
    """
    if unit not in DISTANCES:
        raise ValueError(f"unit is {unit!r}, expected one of {', '.join(DISTANCES)}")
    place = COLUMNS.index("assd_mm") + 1
    return COLUMNS if unit == "mm" else (*COLUMNS[:place], *DISTANCES[unit], *COLUMNS[place:])


def read_scores(path: str | Path) -> pd.DataFrame:
    """Read a `scores.csv` that `evaluate` wrote.

    Volume errors, which earlier versions did not write, are NaN where they are not there.

    Raises:
        DataError: If it is missing or has other columns.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "there is no such file of scores", "run `partialseg evaluate` first")
    scores = pd.read_csv(
        path,
        dtype={name: str for name in COLUMNS if name not in NUMBERS},
        keep_default_na=False,
        na_values={name: [""] for name in NUMBERS},
    )
    missing = [name for name in COLUMNS if name not in scores.columns and name not in _NEWER]
    if missing:
        raise DataError(path, f"lacks the columns {', '.join(missing)}", "run `partialseg evaluate` again")
    scores = scores.assign(**{name: float("nan") for name in _NEWER if name not in scores.columns})
    voxels = any(name in scores.columns for name in DISTANCES["voxels"])
    known = columns("voxels" if voxels else "mm")
    scores = scores[[*known, *(name for name in scores.columns if name not in known)]]
    return scores.astype({name: float for name in known if name in NUMBERS})


def find_scores(folder: str | Path) -> list[Path]:
    """The files `scores.csv` in a folder and up to two folders below it, those of a run among them."""
    return [file for place in _PLACES for file in sorted(Path(folder).glob(place))]


def read_all_scores(*paths: str | Path) -> pd.DataFrame:
    """Read files of scores, or all that lie in folders or up to two folders below them.

    Args:
        *paths: Each a `scores.csv`, what `evaluate` wrote, or a folder of several such folders, such as a run.

    Raises:
        DataError: If there are none, or a case is scored in two of them.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = find_scores(path) if path.is_dir() else [path]
        if not found:
            raise DataError(path, "holds no scores.csv", "run `partialseg evaluate` first")
        files += found
    scores = pd.concat([read_scores(file).assign(file=str(file)) for file in files], ignore_index=True)
    twice = scores[scores.duplicated(["dataset", "case", "organ"])]
    if len(twice):
        row = twice.iloc[0]
        problem = f"{row['dataset']}, {row['case']}, {row['organ']} is scored in another file as well"
        raise DataError(row["file"], problem, "keep one evaluation of each dataset")
    return scores.drop(columns="file")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON can hold them: NaN becomes null.

    Example:
        >>> records(pd.DataFrame({"organ": ["liver"], "hd_mm": [float("nan")]}))
        [{'organ': 'liver', 'hd_mm': None}]
    """
    return json.loads(frame.to_json(orient="records", double_precision=10))
