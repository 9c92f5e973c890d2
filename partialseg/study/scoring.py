"""Test cases predicted and scored once: what the same network predicted before is kept."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from partialseg.data.cards import Card, assign_splits, find_cases
from partialseg.errors import DataError
from partialseg.evaluation.tables import evaluate
from partialseg.files import write_json
from partialseg.inference.predict import predict_scan
from partialseg.progress import progress_bar
from partialseg.training.runs import Run

#: In a folder of predictions or of scores: which network they are of.
_OF_NETWORK = "network.json"
#: Scores also say this; those of earlier versions, in mm alone, are made again.
_UNIT = {"unit": "voxels"}


def score_network(run: Run, card: Card, raw: Path, predictions: Path, scores: Path) -> list[DataError]:
    """Predict and score the test cases of a dataset, as far as it was not done before.

    Args:
        run: A finished run.
        card: The dataset's card.
        raw: The raw folder.
        predictions: Folder for the label maps.
        scores: Folder for `scores.csv` and the tables.

    Returns:
        What was wrong with single cases. Where no case could be predicted there are no scores.

    Raises:
        DataError: If the dataset has no test case.
    """
    network = _identity(run)
    done, problems = _predict_missing(run, card, raw, predictions, network)
    if problems and not any(predictions.glob("*.nii.gz")):
        return problems
    if done or not _is_of(scores, network | _UNIT) or _read(scores)["problems"]:
        (scores / _OF_NETWORK).unlink(missing_ok=True)
        found = evaluate(predictions, raw, card, scores, split="test", **_UNIT)
        if len(found.scores):
            written = {**network, **_UNIT, "problems": [str(problem) for problem in found.problems]}
            write_json(scores / _OF_NETWORK, written)
        problems += found.problems
    return problems


def is_scored(run: Run, scores: Path) -> bool:
    """Whether a folder holds the scores of this network as it is now."""
    return run.model_path.is_file() and _is_of(scores, _identity(run) | _UNIT)


def _predict_missing(
    run: Run, card: Card, raw: Path, out: Path, network: dict[str, str]
) -> tuple[int, list[DataError]]:
    """Predict the test cases that this network has not predicted yet; how many were, and what was wrong."""
    cases = find_cases(card, raw)
    splits = assign_splits(card, [case.name for case in cases])
    # A case's label map is written after its `.json`.
    there = (
        {path.name.removesuffix(".nii.gz") for path in out.glob("*.nii.gz")}
        if _is_of(out, network)
        else set()
    )
    waiting = [case for case in cases if splits[case.name] == "test" and case.name not in there]
    if not waiting:
        return 0, []
    if not _is_of(out, network):  # of another network: they must not be taken for this one's
        for path in [*out.glob("*.json"), *out.glob("*.nii.gz")]:
            path.unlink()
        write_json(out / _OF_NETWORK, network)
    model, done, problems = run.load_model(), 0, []
    with progress_bar() as bar:
        task = bar.add_task(f"predict {card.name}", total=len(waiting))
        for case in waiting:
            try:
                predict_scan(model, run, case.image, out / f"{case.name}.nii.gz")
                done += 1
            except DataError as error:
                problems.append(error)
            bar.advance(task)
    return done, problems


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / _OF_NETWORK).read_text(encoding="utf-8"))


def _is_of(folder: Path, network: dict[str, str]) -> bool:
    return (folder / _OF_NETWORK).is_file() and network.items() <= _read(folder).items()


def _identity(run: Run) -> dict[str, str]:
    """What tells a trained network from one trained again, also after its folder was copied."""
    return {"name": run.folder.name, "sha256": _digest(run.model_path, run.model_path.stat().st_mtime_ns)}


@functools.lru_cache(maxsize=256)
def _digest(path: Path, _modified_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
