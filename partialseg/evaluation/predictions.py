"""Predictions as files: which case a label map is of, and what its values mean."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from partialseg.data.cards import Card, RawCase, assign_splits
from partialseg.data.checks import label_values
from partialseg.data.classes import BACKGROUND, class_names
from partialseg.data.nifti import NIFTI_SUFFIXES
from partialseg.data.relabel import to_prepared_values
from partialseg.data.volumes import Volume, read_label, sidecar_path, stem
from partialseg.errors import DataError
from partialseg.files import visible

#: In place of classes: the values are those of the dataset's own label maps.
CARD = "card"
#: See `checked_classes`.
Given = Sequence[str] | str | None


class PredictedClasses(NamedTuple):
    """What a predicted label map may hold.

    Attributes:
        classes: Background first; a value of the label map is an index into these.
        written: The organs that were written to it: all, or some where the others were not asked for.
    """

    classes: tuple[str, ...]
    written: tuple[str, ...]


def checked_classes(given: Given) -> Given:
    """The classes of label maps that have no `.json` beside them, as `evaluate` takes them.

    Args:
        given: Background first, then the organs, in the order of the values; `CARD` where the values are those of the
            dataset's own label maps; or both of these as text, as in "background,liver,spleen"; None for not known.

    Raises:
        ValueError: If they do not begin with background, or name a class twice.

    Example:
        >>> checked_classes("background, liver,spleen")
        ('background', 'liver', 'spleen')
        >>> checked_classes("card")
        'card'
    """
    if given is None or given == CARD:
        return given
    names = tuple(name.strip() for name in (given.split(",") if isinstance(given, str) else given))
    if names[:1] != (BACKGROUND,) or len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise ValueError(
            f"classes are {', '.join(names)}, expected {BACKGROUND} first, then each organ once, or {CARD!r}"
        )
    return names


def read_prediction(
    path: Path, case: RawCase, card: Card, given: Given = None
) -> tuple[Volume, PredictedClasses]:
    """Read a predicted label map; its values become indices into the classes.

    Args:
        path: The label map. The `.json` beside it says its classes, and which organs were written.
        case: The case that it is of.
        card: The dataset's card.
        given: The classes where there is no such file, as `checked_classes` returns them.

    Raises:
        DataError: If the label map cannot be read, it is not known what its values mean, or it holds other values.
    """
    volume = read_label(path)
    if given == CARD and not sidecar_path(path).is_file():
        check_described(path, volume, card)
        classes = class_names(card.annotated)
        values, _ = to_prepared_values(volume, card, classes, case.name)
        values[values >= len(classes)] = 0  # one organ or another, or not annotated
        return dataclasses.replace(volume, array=values), PredictedClasses(classes, classes[1:])
    found = predicted_classes(path, given)
    if (largest := int(volume.array.max())) >= len(found.classes):
        problem = f"holds value {largest}, but there are {len(found.classes)} classes"
        raise DataError(path, problem, f"list the classes in {sidecar_path(path).name} beside it")
    return volume, found


def check_described(path: Path, label: Volume, card: Card) -> None:
    """A label map of a dataset holds no value that its card does not list.

    Raises:
        DataError: If it does.
    """
    unknown = [value for value in label_values(label.array) if value and value not in card.labels]
    if unknown:
        values = ", ".join(map(str, unknown))
        raise DataError(
            path, f"holds value {values}, which {card.path.name} does not describe", f"add {values} there"
        )


def predicted_classes(path: Path, given: Sequence[str] | None = None) -> PredictedClasses:
    """Read the classes of a predicted label map from the `.json` beside it.

    Args:
        path: The label map.
        given: The classes where there is no such file, all written.

    Raises:
        DataError: If there is no such file and none are given; or it is damaged, does not say the classes, or says
            wrong ones.
    """
    beside = sidecar_path(path)
    if not beside.is_file():
        if given is None:
            problem = f"there is no {beside.name} beside it, so it is not known what its values mean"
            raise DataError(path, problem, "give --classes, see docs/evaluation.md")
        return PredictedClasses(tuple(given), tuple(given[1:]))
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


def label_maps(folder: Path) -> dict[str, Path]:
    """The NIfTI files in a folder by their names without suffix; hidden ones are none."""
    files = (path for path in (visible(folder) if folder.is_dir() else ()) if path.is_file())
    return {stem(path): path for path in files if path.name.lower().endswith(NIFTI_SUFFIXES)}


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
        by_label.setdefault(stem(case.label), []).append(case)
    splits = assign_splits(card, cases) if split is not None else {}
    pairs, problems, notes = {}, [], []
    for name, path in files.items():
        same_label = by_label.get(name, [])
        case = cases.get(name) or (same_label[0] if len(same_label) == 1 else None)
        if (why := card.why_excluded(name)) is not None:
            notes.append(f"{card.name}, {name}: not scored, since the card excludes it: {why}")
        elif case is None:
            remedy = "name it after a case, as in " + next(iter(cases))
            problems.append(DataError(path, f"there is no case {name} of {card.name}", remedy))
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
