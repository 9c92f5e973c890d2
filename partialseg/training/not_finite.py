"""Why a loss is not a number: the step repeated from the last checkpoint, patch by patch and term by term."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from partialseg.data.pipeline import BatchReader
from partialseg.errors import DataError
from partialseg.files import atomic_path, write_json

#: Where in the run folder the report and the patches are.
FOLDER = "not_finite"


class LossIsNotFiniteError(DataError):
    """Training diverged: in which run, what was seen and what to change."""


@dataclass(frozen=True)
class Finding:
    """What was seen when the batch of a step was looked at, before its update.

    Attributes:
        batch: Index of the batch in the stage.
        patches: For each patch of the batch its dataset, case, first voxel `(z, y, x)`, and the value of each term,
            None where it is not finite.
        weights: Names of the variables that were not finite before the step.
    """

    batch: int
    patches: list[dict[str, Any]]
    weights: list[str]

    def culprits(self) -> list[int]:
        """Places in the batch of the patches of which a term is not finite."""
        return [place for place, patch in enumerate(self.patches) if None in patch["terms"].values()]

    def words(self) -> str:
        """What was found, as part of a sentence."""
        if self.weights:
            return (
                f"{self.weights[0]} was not finite before this step: the gradient of the step before was not"
            )
        if not self.culprits():
            return "each patch of the batch alone has a finite loss when the step is repeated"
        patch = self.patches[self.culprits()[0]]
        terms = ", ".join(term for term, value in patch["terms"].items() if value is None)
        start = ", ".join(map(str, patch["start"]))
        return f"{terms} of the patch of {patch['dataset']}, {patch['case']} that begins at voxel (z, y, x) = ({start})"


def look_at(
    model: keras.Model,
    terms: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]],
    reader: BatchReader,
    batch: int,
) -> tuple[Finding, np.ndarray, np.ndarray]:
    """Every term of every patch of a batch, with the weights as they are.

    Args:
        model: Whose weights are looked at.
        terms: From image float32 HU `(1, d, h, w, 1)` and candidates uint8 `(1, d, h, w, C)` to the terms' values.
        reader: Reads the batches of the stage.
        batch: Index of the batch.

    Returns:
        What was found, and the batch: image and candidates.
    """
    image, candidates = reader.read(batch)
    draws = reader.plan.batch(batch)
    patches = []
    for place, draw in enumerate(draws):
        values = terms(image[place : place + 1], candidates[place : place + 1])
        numbers = {name: float(np.sum(value)) for name, value in values.items()}
        patches.append(
            {
                "dataset": draw.case.dataset,
                "case": draw.case.name,
                "start": list(draw.start),
                "terms": {name: n if math.isfinite(n) else None for name, n in numbers.items()},
            }
        )
    weights = [v.path for v in model.variables if not np.isfinite(np.asarray(v.numpy(), np.float64)).all()]
    return Finding(batch, patches, weights), image, candidates


def write_finding(
    folder: Path, finding: Finding, image: np.ndarray, candidates: np.ndarray, where: str
) -> Path:
    """Write RUN/not_finite: report.json, and the batch in patches.npz (image, candidates).

    Args:
        folder: The run folder.
        finding: What was found.
        image: float32 HU `(batch, d, h, w, 1)`.
        candidates: uint8 `(batch, d, h, w, classes)`.
        where: Stage, epoch and step, in words.

    Returns:
        The folder.
    """
    target = folder / FOLDER
    with atomic_path(target) as temporary:
        temporary.mkdir()
        np.savez_compressed(temporary / "patches.npz", image=image, candidates=candidates)
        write_json(
            temporary / "report.json",
            {
                "where": where,
                "found": finding.words(),
                "batch": finding.batch,
                "patches": finding.patches,
                "weights_not_finite": finding.weights,
            },
        )
    return target
