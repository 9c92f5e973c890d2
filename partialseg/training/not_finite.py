"""Why a loss is not a number: the step comes again from the last checkpoint, and its patches are looked at."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import keras
import numpy as np
from keras import ops

from partialseg.data.pipeline import BatchReader
from partialseg.data.prepared import Prepared
from partialseg.errors import DataError
from partialseg.files import atomic_path, write_json
from partialseg.models.forward import first_output
from partialseg.training.batches import stage_batches, steps_of_epoch
from partialseg.training.callbacks import Books
from partialseg.training.config import TrainingConfig
from partialseg.training.stage_patches import stage_patches

#: Where in the run folder the report and the patches are.
FOLDER = "not_finite"


class LossIsNotFiniteError(DataError):
    """Training diverged: in which run, what was seen and what to change."""


@dataclass(frozen=True)
class Patch:
    """One patch of the batch.

    Attributes:
        dataset, case: Of which it is.
        start: Its first voxel `(z, y, x)`; negative where it reaches out of the volume.
        terms: Value of each term of the loss; None where that is no finite number.
    """

    dataset: str
    case: str
    start: tuple[int, ...]
    terms: dict[str, float | None]


def explain(
    problem: str, model: keras.Model, config: TrainingConfig, prepared: Prepared, books: Books
) -> LossIsNotFiniteError:
    """Find the patch and the term that made a loss no number, and write both to RUN/not_finite.

    RUN/not_finite/report.json has every patch of the batch, RUN/not_finite/patches.npz its image and candidates.
    The weights are those of the last checkpoint once this is done, trained up to the step before.

    Args:
        problem: What was seen.
        model: In training.
        config: The experiment.
        prepared: The prepared cases.
        books: Of the training, before the step.

    Returns:
        The error to raise.
    """
    progress, stage = books.progress, config.stages[books.progress.stage]
    done = progress.epoch * steps_of_epoch(config, progress.stage, prepared) + progress.step
    _repeat_up_to(done, model, config, prepared, books)
    broken = [v.path for v in model.variables if not np.isfinite(ops.convert_to_numpy(v)).all()]
    # Weights that are no numbers are the work of the step before, whose loss was one.
    step = done - 1 if broken and done else done
    batch = step // config.accumulate
    reader = BatchReader(prepared, stage_patches(config, progress.stage, prepared))
    image, candidates = reader.read(batch)
    patches = [
        Patch(
            draw.case.dataset,
            draw.case.name,
            tuple(int(first) for first in draw.start),
            _terms(model, books.loss, image[place : place + 1], candidates[place : place + 1]),
        )
        for place, draw in enumerate(reader.plan.batch(batch))
    ]
    where = f"stage {stage.name!r}, epoch {progress.epoch + 1}, step {progress.step + 1}"
    found = _in_words(patches, broken)
    folder = books.folder / FOLDER
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        np.savez_compressed(temporary / "patches.npz", image=image, candidates=candidates)
        report = {"where": where, "found": found, "weights_not_finite": broken}
        write_json(temporary / "report.json", {**report, "patches": [asdict(patch) for patch in patches]})
    return LossIsNotFiniteError(
        books.folder,
        f"{where}: {problem}; {found} ({FOLDER} has the patches)",
        "lower `optimizer.learning_rate`, or set `optimizer.clip_norm: 12`, and start in a new run folder",
    )


def _repeat_up_to(
    done: int, model: keras.Model, config: TrainingConfig, prepared: Prepared, books: Books
) -> None:
    """Bring the weights to where they were before the step: those after it are no use."""
    progress = books.progress
    saved, arrays, _ = books.checkpoints.newest()
    if saved is None:
        return
    books.state.restore(arrays, books.checkpoints.folder)
    model.optimizer.learning_rate = (
        progress.learning_rate
    )  # of a stage that has just begun, another than saved
    repeats = progress.steps - saved["steps"]
    if repeats:
        workers, first = books.workers, done - repeats
        stream = stage_batches(model, config, prepared, progress.stage, first, workers.shard)
        stream = workers.share(stream, config.batch_size)
        model.fit(stream, steps_per_epoch=repeats, verbose=0, shuffle=False)


def _terms(
    model: keras.Model, loss: keras.losses.Loss, image: np.ndarray, candidates: np.ndarray
) -> dict[str, float | None]:
    """Every term of a patch; None where it is no finite number."""
    logits = first_output(model(ops.convert_to_tensor(image), training=False))
    values = loss.values(ops.convert_to_tensor(candidates), logits)
    numbers = {name: float(np.sum(ops.convert_to_numpy(value))) for name, value in values.items()}
    return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


def _in_words(patches: list[Patch], broken: list[str]) -> str:
    """What was found, as part of a sentence."""
    if broken:
        cases = ", ".join(f"{patch.dataset} {patch.case}" for patch in patches)
        return f"{broken[0]} was no number any more after the step before, whose patches are of {cases}"
    for patch in patches:
        if terms := [term for term, value in patch.terms.items() if value is None]:
            start = ", ".join(map(str, patch.start))
            return (
                f"{', '.join(terms)} of the patch of {patch.dataset}, case {patch.case}, that begins at voxel "
                f"(z, y, x) = ({start}) is no number"
            )
    return "each patch of the batch alone has a finite loss when the step is repeated"
