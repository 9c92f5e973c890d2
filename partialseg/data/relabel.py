"""From a dataset's own label values to the values of its prepared table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from partialseg.data.cards import IGNORE, Card, left_right_pair
from partialseg.data.checks import order_notes
from partialseg.data.classes import BACKGROUND
from partialseg.data.labels import candidate_table, ignored_value
from partialseg.data.sides import split_left_right
from partialseg.data.volumes import Volume
from partialseg.errors import DataError


def prepared_values(card: Card, classes: Sequence[str]) -> np.ndarray:
    """The table of a dataset: the set of classes that each value of its prepared label maps stands for.

    Args:
        card: The dataset's card.
        classes: Background first, then the organs; an organ of the card that is not among them is background.

    Returns:
        uint8 of 0 and 1, `(values, classes)`; see `partialseg.data.labels.candidate_table`.

    Example:
        >>> from partialseg.data.cards import read_card
        >>> prepared_values(read_card("kits19"), ["background", "left_kidney", "right_kidney"]).tolist()
        [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 1]]
    """
    annotated = [organ for organ in card.annotated if organ in classes]
    return candidate_table(classes, annotated, _further_sets(card, classes))


def to_prepared_values(
    label: Volume, card: Card, classes: Sequence[str], case: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn a dataset's own label values into values of its prepared table, on the same grid.

    Where the card says `split_sides`, voxels of a `[left_x, right_x]` label become left or right; voxels
    whose side is unsure keep the set. An organ that the card says is not annotated in this case becomes the
    case's background (0), which may be that organ; slices that are not annotated become ignored.

    Args:
        label: The raw label map; its values are those that the card lists.
        card: The dataset's card.
        classes: Background first, then the organs.
        case: Name of the case.

    Returns:
        uint8 values, `(z, y, x)`; and what was noticed ("left_kidney/right_kidney: fused").

    Raises:
        DataError: If the card names annotated slices that the label map does not have.
    """
    table = prepared_values(card, classes)
    value_of = {
        frozenset(np.array(classes)[row == 1].tolist()): value for value, row in reversed([*enumerate(table)])
    }
    free = set(card.annotated) - set(card.annotated_in(case))
    lookup = np.zeros(max([0, int(label.array.max()), *card.labels]) + 1, dtype=np.uint8)
    for value, names in card.labels.items():
        if names == [IGNORE]:
            lookup[value] = ignored_value(classes)
        elif not free.issuperset(names):
            lookup[value] = value_of[_meaning(names, classes)]
    result = np.empty(label.array.shape, dtype=np.uint8)
    for plane, raw_plane in zip(result, label.array, strict=True):
        np.take(lookup, raw_plane, out=plane, mode="clip")  # none is out of range; "clip" spares the looking
    notes = order_notes(card, label)
    if card.split_sides:
        sides = {name: 0 if name in free else value_of[_meaning([name], classes)] for name in _sides(card)}
        notes += _split_sides(result, label, card, sides)
    result[~annotated_slices(label, card, case)] = ignored_value(classes)
    return result, notes


def annotated_slices(label: Volume, card: Card, case: str) -> np.ndarray:
    """Which slices of a case are annotated.

    Args:
        label: Its label map.
        card: The dataset's card, which counts slices as the file does.
        case: Name of the case.

    Returns:
        bool, `(depth,)`, in canonical order (from the feet to the head).

    Raises:
        DataError: If the card names slices that the label map does not have.
    """
    ranges, depth = card.slices_in(case), len(label.array)
    if ranges is None:
        return np.ones(depth, dtype=bool)
    annotated = np.zeros(depth, dtype=bool)
    for first, last in ranges:
        if last >= depth:
            raise DataError(
                label.source.path,
                f"{card.name}, {case}: has slices 0 to {depth - 1}, but {card.path} says that slices {first} "
                f"to {last} are annotated",
                f"correct `slices` of {case} under `cases:`",
            )
        annotated[first : last + 1] = True
    orientation = label.source.orientation
    direction = orientation[orientation[:, 0] == 2, 1]
    return annotated[::-1] if direction < 0 else annotated


def _meaning(names: Sequence[str], classes: Sequence[str]) -> frozenset[str]:
    """The classes that a label may be: an organ that is no class here is background."""
    return frozenset(name if name in classes else BACKGROUND for name in names)


def _further_sets(card: Card, classes: Sequence[str]) -> list[frozenset[str]]:
    """Sets that the card's labels mean and that are neither one organ, nor the dataset's own background."""
    partial = not set(classes[1:]) <= set(card.annotated)
    meanings = [card.labels[value] for value in sorted(card.labels)]
    if card.split_sides:  # a side that is no class here is background
        meanings += [[name] for names in meanings for name in left_right_pair(names) or ()]
    sets: list[frozenset[str]] = []
    for names in meanings:
        meaning = _meaning(names, classes)
        is_row = len(meaning) == 1 and not (partial and meaning == {BACKGROUND})
        if names != [IGNORE] and not is_row and meaning not in sets:
            sets.append(meaning)
    return sets


def _sides(card: Card) -> list[str]:
    """The names of all `[left_x, right_x]` labels, each left one followed by its right one."""
    pairs = {pair for names in card.labels.values() if (pair := left_right_pair(names))}
    return [name for pair in sorted(pairs) for name in pair]


def _split_sides(result: np.ndarray, label: Volume, card: Card, value_of: dict[str, int]) -> tuple[str, ...]:
    """Tell left from right in place; says what was found for each pair that was not simply split."""
    notes = []
    names_of_sides = _sides(card)
    for left_name, right_name in zip(names_of_sides[::2], names_of_sides[1::2], strict=True):
        mask = np.zeros(label.array.shape, dtype=bool)
        for value, names in card.labels.items():
            if left_right_pair(names) == (left_name, right_name):
                mask |= label.array == value
        left, right, flag = split_left_right(mask.T, label.affine)
        if flag != "split":
            notes.append(f"{left_name}/{right_name}: {flag}")
            continue
        for side, name in ((left, left_name), (right, right_name)):
            result[side.T] = value_of[name]
        unsure = np.count_nonzero(mask) - np.count_nonzero(left) - np.count_nonzero(right)
        if unsure:
            volume_ml = unsure * np.prod(label.spacing_mm) / 1000
            notes.append(f"{left_name}/{right_name}: {volume_ml:.2g} mL on neither side")
    return tuple(notes)
