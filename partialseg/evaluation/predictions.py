"""Predictions as files: which case a label map is of, and what its values mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from partialseg.data.cards import Card, RawCase, assign_splits
from partialseg.data.classes import BACKGROUND, PAPER_ORGANS, class_names
from partialseg.errors import DataError

_SUFFIXES = (".nii.gz", ".nii")


class PredictedClasses(NamedTuple):
    """What a predicted label map may hold.

    Attributes:
        classes: Background first; a value of the label map is an index into these.
        written: The organs that were written to it: all, or some where the others were not asked for.
    """

    classes: tuple[str, ...]
    written: tuple[str, ...]


def predicted_classes(path: Path) -> PredictedClasses:
    """Read the classes of a predicted label map from the `.json` beside it.

    Without such a file they are background and the paper's five organs, all written.

    Args:
        path: The label map.

    Raises:
        DataError: If the file is damaged, or does not say the classes, or says wrong ones.
    """
    beside = sidecar(path)
    if not beside.is_file():
        classes = class_names(PAPER_ORGANS)
        return PredictedClasses(classes, classes[1:])
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        classes = content["classes"]
        organs = content.get("organs", classes[1:])
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise DataError(beside, f"does not say the classes ({error!r})", "predict the case again") from error
    if not _are_names(classes) or classes[:1] != [BACKGROUND]:
        raise DataError(beside, f"has classes {classes}, expected background first", "correct the list")
    if not _are_names(organs) or not set(organs) <= set(classes[1:]):
        problem = f"has organs {organs}, expected some of {', '.join(classes[1:])}"
        raise DataError(beside, problem, "correct the list, or leave it out where all were written")
    return PredictedClasses(tuple(classes), tuple(organ for organ in classes[1:] if organ in organs))


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def sidecar(path: Path) -> Path:
    """The `.json` beside a label map."""
    return path.with_name(stem_of(path) + ".json")


def stem_of(path: Path) -> str:
    """The name of a NIfTI file without `.nii` or `.nii.gz`.

    Example:
        >>> stem_of(Path("labels/img0001.nii.gz"))
        'img0001'
    """
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def label_maps(folder: Path) -> dict[str, Path]:
    """The NIfTI files in a folder by their names without suffix; hidden ones are none."""
    files = (path for path in sorted(folder.glob("*.nii*")) if path.is_file())
    return {
        stem_of(path): path
        for path in files
        if path.name.endswith(_SUFFIXES) and not path.name.startswith(".")
    }


def matched(
    files: dict[str, Path], cases: dict[str, RawCase], card: Card, split: str | None
) -> tuple[list[tuple[Path, RawCase]], list[DataError], list[str]]:
    """Pair predictions with cases of a dataset, by the name of the case or of its label file.

    Args:
        files: Label maps by their names without suffix, see `label_maps`.
        cases: The dataset's cases by name.
        card: The dataset's card.
        split: The split whose cases are scored, each of which needs a prediction; None for all.

    Returns:
        Pairs of prediction and case, problems, and notes on what is left out on purpose.
    """
    by_label: dict[str, list[RawCase]] = {}
    for case in cases.values():
        by_label.setdefault(stem_of(case.label), []).append(case)
    splits = assign_splits(card, cases) if split is not None else {}
    pairs, problems, notes = {}, [], []
    for stem, path in files.items():
        same_label = by_label.get(stem, [])
        case = cases.get(stem) or (same_label[0] if len(same_label) == 1 else None)
        if (why := card.why_excluded(stem)) is not None:
            notes.append(f"{card.name}, {stem}: not scored, since the card excludes it: {why}")
        elif case is None:
            remedy = "name it after a case, as in " + next(iter(cases))
            problems.append(DataError(path, f"there is no case {stem} of {card.name}", remedy))
        elif case.name in pairs:
            problem = f"{pairs[case.name][0].name} is of the same case"
            problems.append(DataError(path, problem, "keep one of the two"))
        elif split is not None and splits[case.name] != split:
            notes.append(f"{card.name}, {case.name}: not scored, since it is no {split} case")
        else:
            pairs[case.name] = (path, case)
    folder = next(iter(files.values())).parent
    for name in sorted(name for name in splits if splits[name] == split and name not in pairs):
        problem = f"{card.name}, {name}: the {split} case has no prediction"
        problems.append(DataError(folder, problem, "predict it as well"))
    return list(pairs.values()), problems, notes
