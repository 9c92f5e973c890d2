"""What a run folder says about itself: its learning curves, run.json in words, its config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from partialseg.errors import DataError
from partialseg.report.pictures import learning_curves

#: Entries of run.json that list cases, which may be hundreds.
_NAMES_OF_CASES = ("cases", "held_out", "predicted_whole")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(path, f"is not JSON ({error})", "make it again") from error


def run_curves(run: Path) -> bytes | None:
    """The learning curves of a run.

    Returns:
        A PNG file; None where no epoch has been logged.

    Raises:
        DataError: If a log cannot be read.
    """
    log, terms = (_read_log(run / name) for name in ("log.csv", "terms.csv"))
    if log is None or not len(log):
        return None
    return learning_curves(log, terms)


def _read_log(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        return pd.read_csv(path)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(path, f"cannot be read ({error})", "let the training write it again") from error


def run_facts(run: Path) -> dict[str, Any]:
    """What a run folder says about itself.

    Returns:
        `folder`; `facts`, run.json entry by entry in words, with numbers of cases for their names; `config`, the text
        of its config.

    Raises:
        DataError: If run.json is not JSON.
    """
    facts = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    config = run / "config.yaml"
    return {
        "folder": str(run),
        "facts": {
            key.replace("_", " "): _in_numbers(value) if key in _NAMES_OF_CASES else _in_words(value)
            for key, value in facts.items()
        },
        "config": config.read_text(encoding="utf-8") if config.is_file() else "",
    }


def _in_numbers(value: Any) -> str:
    """How many entries the lists of a dictionary have, for each of its keys.

    Example:
        >>> _in_numbers({"train": {"btcv": ["img1", "img2"], "kits19": ["case_7"]}, "test": {"btcv": ["img3"]}})
        'train: btcv 2, kits19 1; test: btcv 1'
    """
    if not isinstance(value, dict) or not value:
        return "none"
    if any(isinstance(entry, dict) for entry in value.values()):
        return "; ".join(f"{key}: {_in_numbers(entry)}" for key, entry in value.items())
    return ", ".join(f"{key} {len(entry):,}" for key, entry in value.items())


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_in_words(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(_in_words(entry) for entry in value)
    return str(value)
