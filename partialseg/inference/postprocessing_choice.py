"""Choose post-processing on cases that training did not see, organ by organ, and keep it in the run folder.

RUN/postprocessing.yaml    for each organ the rules, and the Dice without and with them

Rules are tried in the order in which they are applied, each on top of what was kept before it. One is kept if it raises
the mean Dice of the organ by 0.001 or more: the mean over datasets of the mean over their cases, of those in which the
organ is annotated. A case in which the organ is not and was not found counts as 1, so that a rule which removes what
was made up has its merit. Both organs of a pair get the rule of sides, or neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from partialseg.data.boxes import Box, value_boxes
from partialseg.data.classes import other_side, side_of
from partialseg.data.folds import hold_out
from partialseg.data.front_matter import read_yaml, validation_problem
from partialseg.data.prepared import Case, Prepared
from partialseg.data.raw_files import content_hash
from partialseg.data.volumes import Source, Volume
from partialseg.errors import DataError
from partialseg.files import write_text
from partialseg.inference.labelling import Network, label_scan, load_networks
from partialseg.inference.postprocessing import OrganRules, apply_rules, middle_of_body, postprocess
from partialseg.training.runs import Run

#: A rule is kept if it raises the mean Dice by this much.
MARGIN = 0.001
#: Minimum volumes that are tried, in mL.
MIN_VOLUMES_ML = (0.1, 0.5, 2.0, 10.0)

_HEADER = """\
# Post-processing that `partialseg predict --postprocess` applies, chosen by `partialseg postprocess`: for each organ
# its rules, on how many cases they were chosen, and the mean Dice without and with them. Rules may be changed by hand.
"""


class OrganChoice(BaseModel):
    """What was chosen for one organ.

    Attributes:
        rules: The rules.
        cases: On how many cases it was chosen.
        dice_before, dice_after: Mean Dice without and with the rules.
        tried: The mean Dice of each rule that was tried, on top of those kept before it.
    """

    model_config = ConfigDict(extra="forbid")

    rules: OrganRules = OrganRules()
    cases: int | None = None
    dice_before: float | None = None
    dice_after: float | None = None
    tried: dict[str, float] = {}


class Choice(BaseModel):
    """What was chosen for a run.

    Attributes:
        network: Hash of the network's file that it was chosen for; None for any.
        split: Of which split of the prepared data the cases were.
        organs: For each organ; organs that are not named have no rules.
    """

    model_config = ConfigDict(extra="forbid")

    network: str | None = None
    split: str | None = None
    organs: dict[str, OrganChoice] = {}

    @property
    def rules(self) -> dict[str, OrganRules]:
        """The rules of organs that have some."""
        return {organ: choice.rules for organ, choice in self.organs.items() if choice.rules.names}


def choose_postprocessing(
    run: Run,
    prepared: Prepared,
    split: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """Predict the cases that were held out, try the rules on them, and choose.

    Args:
        run: A finished run.
        prepared: The data it was trained on.
        split: The cases to choose on; None for those that the run's config held out of training.
        progress: Called with the number of cases done and in all.

    Raises:
        DataError: If the data are not those of the run, the run held nothing out, or there is no case.
    """
    cases = _cases(run, prepared, split)
    networks = load_networks([run])
    scores = Scores(run.classes)
    for done, case in enumerate(cases, start=1):
        labels, middle = _predict(networks, run, prepared, case)
        annotated = case.annotated or prepared.datasets[case.dataset].annotated
        truth = np.asarray(prepared.label(case)[:])
        scores.add(case.dataset, labels, truth, prepared.table(case), run.spacing_mm, annotated, middle)
        if progress is not None:
            progress(done, len(cases))
    return Choice(network=content_hash([run.model_path]), split=split or "validation", organs=scores.choose())


def write_choice(run: Run, choice: Choice) -> Path:
    """Write `RUN/postprocessing.yaml`, atomically."""
    content = choice.model_dump(mode="json")
    for organ, chosen in choice.organs.items():
        content["organs"][organ]["rules"] = chosen.rules.model_dump(exclude_defaults=True)
    path = choice_path(run)
    write_text(path, _HEADER + yaml.safe_dump(content, sort_keys=False))
    return path


def read_choice(run: Run) -> Choice:
    """Read `RUN/postprocessing.yaml`.

    Raises:
        DataError: If there is none, it is not understood, names an organ that the run does not have, or was chosen
            for another network than the run's.
    """
    path = choice_path(run)
    if not path.is_file():
        raise DataError(
            path,
            "there is no post-processing",
            f"run `partialseg postprocess {run.folder} --prepared DIR`, or predict without --postprocess",
        )
    content = read_yaml(path)
    remedy = "correct it, or run `partialseg postprocess` again"
    try:
        choice = Choice.model_validate(content.content)
    except ValidationError as error:
        raise validation_problem(error, content, path, remedy) from error
    if strangers := [organ for organ in choice.organs if organ not in run.classes[1:]]:
        known = ", ".join(run.classes[1:])
        raise DataError(path, f"names {', '.join(strangers)}, expected organs among {known}", remedy)
    if choice.network is not None and choice.network != content_hash([run.model_path]):
        raise DataError(
            path,
            "was chosen for another network than the run has now",
            "run `partialseg postprocess` again, or delete its line `network:` to keep the rules",
        )
    return choice


def choice_path(run: Run) -> Path:
    """Where a run's post-processing is."""
    return run.folder / "postprocessing.yaml"


@dataclass
class Scores:
    """The Dice of every organ under every combination of rules, case by case.

    Attributes:
        classes: Background, then the organs.
    """

    classes: Sequence[str]
    _dice: dict[tuple[str, OrganRules], dict[str, list[float]]] = field(default_factory=dict)

    def add(
        self,
        dataset: str,
        labels: np.ndarray,
        truth: np.ndarray,
        table: np.ndarray,
        spacing_mm: Sequence[float],
        annotated: Sequence[str],
        middle: float | None,
    ) -> None:
        """Try all combinations on one case.

        Args:
            dataset: The dataset of the case.
            labels: Predicted class indices `(depth, height, width)`.
            truth: Label map of the same shape, with the values of `table`.
            table: uint8 `(values, classes)`: the candidates that each value stands for.
            spacing_mm: Voxel size `(z, y, x)`.
            annotated: The organs that are annotated in the case.
            middle: See `partialseg.inference.postprocessing.postprocess`.
        """
        sided = {
            organ: OrganRules(sides=True) for organ in self.classes[1:] if _is_paired(organ, self.classes)
        }
        moved = postprocess(labels, spacing_mm, self.classes, sided, middle)[0] if sided else labels
        voxels = np.bincount(truth.ravel(), minlength=len(table))
        maps = ((False, labels, value_boxes(labels)), (True, moved, value_boxes(moved)))
        for organ in (organ for organ in self.classes[1:] if organ in annotated):
            value = self.classes.index(organ)
            is_true = (table[:, value] == 1) & (table.sum(axis=1) == 1)
            is_known = is_true | (table[:, value] == 0)
            num_true = int(voxels[is_true].sum())
            for sides, predicted, boxes in maps[: 2 if organ in sided else 1]:
                box = boxes[value - 1] if value <= len(boxes) else None
                for rule in _combinations(sides):
                    dice = _dice(predicted, truth, box, value, rule, spacing_mm, is_true, is_known, num_true)
                    self._dice.setdefault((organ, rule), {}).setdefault(dataset, []).append(dice)

    def choose(self) -> dict[str, OrganChoice]:
        """The rules of each organ that was annotated in some case."""
        scored = [organ for organ in self.classes[1:] if (organ, OrganRules()) in self._dice]
        return {organ: self._choose(organ, scored) for organ in scored}

    def _choose(self, organ: str, scored: Sequence[str]) -> OrganChoice:
        kept, tried = OrganRules(), {}
        before = self._mean(organ, kept)
        if _is_paired(organ, self.classes):
            pair = [one for one in (organ, other_side(organ, self.classes)) if one in scored]
            sides = OrganRules(sides=True)
            gain = float(np.mean([self._mean(one, sides) - self._mean(one, kept) for one in pair]))
            tried["sides"] = self._mean(organ, sides)
            kept = sides if gain >= MARGIN else kept
        for options in (
            [{"largest_component": True}],
            [{"min_volume_ml": volume} for volume in MIN_VOLUMES_ML],
            [{"fill_holes": True}],
        ):
            means = {}
            for option in options:
                rule = kept.model_copy(update=option)
                means[rule] = self._mean(organ, rule)
                (name, setting), *_ = option.items()
                tried[name if setting is True else f"{name}: {setting:g}"] = means[rule]
            best = max(means, key=means.__getitem__)
            kept = best if means[best] >= self._mean(organ, kept) + MARGIN else kept
        return OrganChoice(
            rules=kept,
            cases=sum(map(len, self._dice[organ, kept].values())),
            dice_before=round(before, 4),
            dice_after=round(self._mean(organ, kept), 4),
            tried={name: round(value, 4) for name, value in tried.items()},
        )

    def _mean(self, organ: str, rule: OrganRules) -> float:
        """Over datasets, of the mean over their cases."""
        return float(np.mean([np.mean(dice) for dice in self._dice[organ, rule].values()]))


def _combinations(sides: bool) -> Iterator[OrganRules]:
    """All rules that may be chosen for one organ."""
    for largest, volume, holes in product((False, True), (0.0, *MIN_VOLUMES_ML), (False, True)):
        yield OrganRules(sides=sides, largest_component=largest, min_volume_ml=volume, fill_holes=holes)


def _dice(
    labels: np.ndarray,
    truth: np.ndarray,
    box: Box | None,
    value: int,
    rule: OrganRules,
    spacing_mm: Sequence[float],
    is_true: np.ndarray,
    is_known: np.ndarray,
    num_true: int,
) -> float:
    """Of one organ in one case; 1 where neither prediction nor truth has it."""
    both = predicted = 0
    if box is not None:
        here = labels[box]
        mask = apply_rules(here == value, spacing_mm, rule) & ((here == value) | (here == 0))
        of_truth = truth[box][mask]
        both, predicted = int(is_true[of_truth].sum()), int(is_known[of_truth].sum())
    return 2 * both / (num_true + predicted) if num_true + predicted else 1.0


def _is_paired(organ: str, classes: Sequence[str]) -> bool:
    return side_of(organ) is not None and other_side(organ, classes) is not None


def _cases(run: Run, prepared: Prepared, split: str | None) -> list[Case]:
    """The cases to choose on."""
    for what, found, expected in (
        ("classes", prepared.classes, run.classes),
        ("voxel size", prepared.spacing_mm, run.spacing_mm),
    ):
        if found != expected:
            raise DataError(
                str(prepared.folder),
                f"its {what} are {', '.join(map(str, found))}, those of {run.folder} {', '.join(map(str, expected))}",
                "give the prepared data that the run was trained on",
            )
    if split is None and run.config.validation is None:
        raise DataError(
            run.folder,
            "held no cases out of training (`validation: null` in its config)",
            "name the cases by --split test, which makes scores on them no longer fair, or train with `validation:`",
        )
    held_out = hold_out(prepared, run.config.validation if split is None else None)
    cases = held_out.select(split=split or "validation")
    if not cases:
        raise DataError(
            str(prepared.folder),
            f"has no {split or 'validation'} case",
            "give the data that the run was trained on",
        )
    return cases


def _predict(
    networks: Sequence[Network], run: Run, prepared: Prepared, case: Case
) -> tuple[np.ndarray, float | None]:
    """Labels of one case on its prepared grid, and the middle of its body."""
    image = np.asarray(prepared.image(case)[:]).astype(np.float32)
    affine = np.array(case.affine)
    source = Source(Path(case.image_source), image.shape[::-1], affine, np.array([[0, 1], [1, 1], [2, 1]]))
    labels = label_scan(networks, Volume(image, affine, source), run.spacing_mm, run.classes)
    return labels, middle_of_body(image)
