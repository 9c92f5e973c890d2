"""Dice on cases that are held out of training: of patches after each epoch, of whole volumes now and then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import keras
import numpy as np

from partialseg.data.folds import hold_out, in_fixed_order
from partialseg.data.patch_reading import PatchReader
from partialseg.data.prepared import Case, Prepared
from partialseg.data.sampling import fixed_draws
from partialseg.errors import DataError
from partialseg.models.sliding_window import DEFAULT_SETTINGS, SlidingWindow
from partialseg.training.config import TrainingConfig, ValidationConfig

#: Where a Dice comes from.
PATCHES, VOLUMES = "patches", "volumes"


class Score(NamedTuple):
    """One Dice of one validation.

    Attributes:
        source: "patches", all those of a dataset together, or "volumes".
        dataset: Name of the dataset.
        case: The case; "" for patches.
        organ: One that the dataset, or the case, annotates.
        dice: 0 to 1.
    """

    source: str
    dataset: str
    case: str
    organ: str
    dice: float


class Overlap:
    """How often each class was predicted where each set of candidates is: all that Dice needs.

    A voxel counts for an organ where its set says whether it is that organ: it is the only candidate, or none of them.
    Ignored voxels, and those of "left or right kidney" for either kidney, count for neither truth nor prediction.

    Args:
        num_classes: Background included.

    Example:
        >>> overlap = Overlap(3)  # background, liver, spleen; the spleen is not annotated
        >>> overlap.add(np.array([0, 1, 1]), np.array([[1, 0, 1], [0, 1, 0]]), np.array([2, 1, 0]))
        >>> round(overlap.dice(1), 3), np.isnan(overlap.dice(2))
        (0.667, True)
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._counts: dict[bytes, np.ndarray] = {}

    def add(self, label: np.ndarray, table: np.ndarray, predicted: np.ndarray) -> None:
        """Count the voxels of a label map.

        Args:
            label: Values of the table, `(...)`.
            table: uint8 `(values, classes)`: the sets that they stand for.
            predicted: Whole numbers `(...)`: predicted classes.
        """
        joint = np.ravel(label).astype(np.int64) * self.num_classes + np.ravel(predicted)
        counts = np.bincount(joint, minlength=len(table) * self.num_classes).reshape(-1, self.num_classes)
        for row, found in zip(table, counts, strict=True):
            key = row.astype(np.uint8).tobytes()
            self._counts[key] = self._counts.get(key, 0) + found

    def dice(self, organ: int) -> float:
        """Dice of a class over the voxels that count for it; NaN where neither truth nor prediction has it."""
        both = truth = predicted = 0
        for key, counts in self._counts.items():
            candidates = np.frombuffer(key, np.uint8)
            if not candidates[organ]:
                predicted += counts[organ]
            elif candidates.sum() == 1:
                both, truth, predicted = both + counts[organ], truth + counts.sum(), predicted + counts[organ]
        return float(2 * both / (truth + predicted)) if truth + predicted else float("nan")


def check_held_out(kept: Prepared) -> None:
    """Refuse cases of which none is held out.

    Args:
        kept: What `partialseg.data.folds.hold_out` gave.

    Raises:
        DataError: If no dataset has two training cases.
    """
    if not kept.select(split="validation"):
        raise DataError(
            kept.folder,
            "no dataset has two training cases, and validation needs one that can be held out",
            "prepare more cases, or set `validation: null`",
        )


def whole_volumes(kept: Prepared, config: ValidationConfig) -> dict[str, list[Case]]:
    """Of each dataset the held-out cases that are predicted whole: the first in a fixed order.

    Where these lack an organ that a later one has, as many as it takes are chosen for their organs before the others:
    an organ that none has would have no part in the mean that chooses the best weights.

    Args:
        kept: What `partialseg.data.folds.hold_out` gave.
        config: Says how many, at most where these have all organs, or that none ever are.
    """
    held_out = {name: in_fixed_order(kept.select(name, "validation")) for name in kept.datasets}
    return {
        name: [] if config.volumes_every is None else _with_every_organ(kept, cases, config.volumes)
        for name, cases in held_out.items()
        if cases
    }


def _with_every_organ(kept: Prepared, cases: list[Case], number: int | None) -> list[Case]:
    """So many cases, or as many more as it takes to have each organ that any of them has, in their order."""
    organs = [_organs(kept, case) for case in cases]
    missing = set().union(*organs)
    if set().union(*organs[:number]) == missing:
        return cases[:number]
    chosen: list[int] = []
    while missing:
        chosen.append(max(range(len(cases)), key=lambda index: len(organs[index] & missing)))
        missing -= organs[chosen[-1]]
    others = [index for index in range(len(cases)) if index not in chosen]
    return [cases[index] for index in sorted(chosen + others[: max(0, number - len(chosen))])]


def _organs(kept: Prepared, case: Case) -> set[tuple[str, bool]]:
    """The annotated organs of a case with False, and with True those of which it has voxels.

    One that is not there has a Dice only where it is predicted.
    """
    sets = kept.table(case)[[value for value, *_ in case.foreground]]
    found = sets[sets.sum(axis=1) == 1].any(axis=0)
    annotated = _annotated(kept, case)
    there = {organ for organ in annotated if found[kept.classes.index(organ)]}
    return {(organ, False) for organ in annotated} | {(organ, True) for organ in there}


def _annotated(kept: Prepared, case: Case) -> tuple[str, ...]:
    return case.annotated or kept.datasets[case.dataset].annotated


def left_out_note(prepared: Prepared, config: ValidationConfig | None) -> str | None:
    """A line on the held-out cases that are never predicted whole, though others are; None where there are none.

    Args:
        prepared: The prepared cases, none of them held out yet.
        config: What is held out.
    """
    if config is None or config.volumes_every is None:
        return None
    kept = hold_out(prepared, config)
    counts = {
        name: (len(cases), len(kept.select(name, "validation")))
        for name, cases in whole_volumes(kept, config).items()
    }
    fewer = [
        f"{some} of the {all_} held-out cases of {name}"
        for name, (some, all_) in counts.items()
        if some < all_
    ]
    if not fewer:
        return None
    return f"validation predicts {', '.join(fewer)} whole (validation.volumes); run.json names them"


class Validation:
    """Tries a network on the held-out cases of every dataset.

    Args:
        config: The experiment; its `validation` says what is held out.
        prepared: The prepared cases, none of them held out yet.

    Raises:
        DataError: If no case can be held out.
    """

    def __init__(self, config: TrainingConfig, prepared: Prepared) -> None:
        self.config = config
        self.prepared = hold_out(prepared, config.validation)
        check_held_out(self.prepared)
        reader = PatchReader(self.prepared, config.patch_size)
        # As they are stored: as candidates those of many datasets and classes would take gigabytes.
        self._patches: dict[str, list[tuple[Case, np.ndarray, np.ndarray]]] = {}
        for name in self.datasets:
            number, size = config.validation.patches, config.patch_size
            draws = fixed_draws(self.prepared, name, "validation", number, size, config.seed)
            self._patches[name] = [(draw.case, *reader.read_values(draw)) for draw in draws]

    @property
    def datasets(self) -> list[str]:
        """Those of which cases are held out."""
        return [name for name in self.prepared.datasets if self.prepared.select(name, "validation")]

    def by_patches(self, model: keras.Model) -> list[Score]:
        """Dice of each dataset's organs, over fixed patches of its held-out cases taken together."""
        scores = []
        for name, patches in self._patches.items():
            overlap = Overlap(len(self.prepared.classes))
            for case, image, values in patches:
                predicted = self._predict(model, image.astype(np.float32), f"{case.dataset} {case.name}")
                overlap.add(values, self.prepared.table(case), predicted)
            organs = self.prepared.datasets[name].annotated
            scores += self._scores(PATCHES, name, "", organs, overlap)
        return scores

    def by_volumes(
        self, model: keras.Model, progress: Callable[[int, int], None] | None = None
    ) -> list[Score]:
        """Dice of the annotated organs of held-out cases, predicted whole: those of `whole_volumes`.

        Args:
            model: The network.
            progress: Called with the number of cases done and in all.
        """
        scores: list[Score] = []
        chosen = whole_volumes(self.prepared, self.config.validation)
        cases = [case for of_dataset in chosen.values() for case in of_dataset]
        for done, case in enumerate(cases, start=1):
            scores += self._of_volume(model, case)
            if progress is not None:
                progress(done, len(cases))
        return scores

    def _of_volume(self, model: keras.Model, case: Case) -> list[Score]:
        image, label = (
            np.asarray(array[:]) for array in (self.prepared.image(case), self.prepared.label(case))
        )
        overlap = Overlap(len(self.prepared.classes))
        predicted = self._predict(model, image.astype(np.float32), f"{case.dataset} {case.name}")
        overlap.add(label, self.prepared.table(case), predicted)
        organs = _annotated(self.prepared, case)
        return self._scores(VOLUMES, case.dataset, case.name, organs, overlap)

    def _predict(self, model: keras.Model, volume: np.ndarray, of: str) -> np.ndarray:
        windows = SlidingWindow(model, volume, self.config.patch_size, DEFAULT_SETTINGS)
        try:
            return np.stack([np.argmax(plane, axis=-1).astype(np.uint8) for plane in windows.logits()])
        except FloatingPointError as error:
            remedy = "lower `optimizer.learning_rate`, and start in a new run folder"
            raise DataError(f"validation on {of}", str(error), remedy) from error

    def _scores(
        self, source: str, dataset: str, case: str, organs: Iterable[str], overlap: Overlap
    ) -> list[Score]:
        """A score for each organ that is there, in truth or in prediction."""
        dice = {organ: overlap.dice(self.prepared.classes.index(organ)) for organ in organs}
        return [
            Score(source, dataset, case, organ, value) for organ, value in dice.items() if not np.isnan(value)
        ]


def mean_dice(scores: Sequence[Score]) -> float | None:
    """Mean over organs of the mean over the datasets of the mean over their cases; None where there is no score.

    So an organ weighs the same whether one dataset annotates it or five do.

    Example:
        >>> mean_dice([
        ...     Score(PATCHES, "btcv", "", "liver", 0.9), Score(PATCHES, "lits", "", "liver", 0.7),
        ...     Score(PATCHES, "btcv", "", "spleen", 0.5),
        ... ])
        0.65
    """
    cells: dict[str, dict[str, list[float]]] = {}
    for score in scores:
        cells.setdefault(score.organ, {}).setdefault(score.dataset, []).append(score.dice)
    if not cells:
        return None
    organs = [np.mean([np.mean(dice) for dice in datasets.values()]) for datasets in cells.values()]
    return round(float(np.mean(organs)), 6)
