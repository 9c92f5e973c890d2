"""Card sets: some datasets and the class list that a network learns from them, in one YAML file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from partialseg.data.cards import IGNORE, Card, read_card, shipped_cards
from partialseg.data.classes import (
    BACKGROUND,
    MAX_ORGANS,
    PARTS,
    did_you_mean,
    names_a_finding,
    spelling_note,
)
from partialseg.data.front_matter import FrontMatter, read_yaml, validation_problem
from partialseg.errors import DataError

_SUFFIXES = (".yaml", ".yml")
_EXAMPLES = "mend the card set; those in data_cards/sets are examples"
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class _Content(BaseModel):
    """The fields of a card set's file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: _Name
    title: str = ""
    cards: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    organs: Annotated[list[_Name], Field(min_length=1, max_length=MAX_ORGANS)]


class CardSet(BaseModel):
    """Some datasets and a class list; `read_card_set` makes it.

    Attributes:
        name: Short name.
        title: Its name for people.
        cards: The datasets' cards.
        organs: The organs that become classes 1, 2, …; each is annotated by one of the cards at least.
        path: The set's own file.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    cards: tuple[Card, ...]
    organs: tuple[str, ...]
    path: Path


def shipped_card_sets() -> dict[str, Path]:
    """The card sets that come with the package, by name.

    Example:
        >>> "paper" in shipped_card_sets()
        True
    """
    folder = next(iter(shipped_cards().values())).parent / "sets"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_card_set(path: str | Path) -> CardSet:
    """Read and check a card set and its cards.

    Args:
        path: A YAML file, or the name of a set that comes with the package. In the file, `cards` are names of
            cards that come with the package, or files, beside the set's own where they are relative.

    Raises:
        DataError: If there is no such set, or it or one of its cards is not as expected; names line and field.

    Example:
        >>> read_card_set("paper").organs
        ('liver', 'spleen', 'pancreas', 'left_kidney', 'right_kidney')
    """
    file = Path(path)
    if not file.is_file():
        sets = shipped_card_sets()
        if str(path) not in sets:
            raise DataError(
                path, "there is no such card set", f"give a .yaml file, or one of {', '.join(sets)}"
            )
        file = sets[str(path)]
    front = read_yaml(file)
    try:
        content = _Content(**{str(key): value for key, value in front.content.items()})
    except ValidationError as error:
        raise validation_problem(error, front, file, _EXAMPLES) from error
    cards = [_read_card(name, place, front, file) for place, name in enumerate(content.cards)]
    _check_cards(cards, front, file)
    _check_organs(content.organs, cards, front, file)
    return CardSet(
        name=content.name, title=content.title, cards=tuple(cards), organs=tuple(content.organs), path=file
    )


def is_card_set(name: str) -> bool:
    """Whether a name or a path on the command line is a card set's, and not a card's.

    Example:
        >>> is_card_set("paper"), is_card_set("my_set.yaml"), is_card_set("kits19")
        (True, True, False)
    """
    if Path(name).suffix.lower() in _SUFFIXES:
        return True
    return not Path(name).is_file() and name not in shipped_cards() and name in shipped_card_sets()


def expand(names: Sequence[str]) -> tuple[list[Card], tuple[str, ...] | None]:
    """Read cards and card sets by what the command line names.

    Args:
        names: Card files, card set files (`.yaml`), or names of those that come with the package. A card that
            is named twice, alone and in a set, counts once.

    Returns:
        The cards in the order named; and the organs of the sets, each once, or None where no set is named.

    Raises:
        DataError: If one of them is not there or not as expected.

    Example:
        >>> cards, organs = expand(["paper", "chaos_ct", "kits19"])
        >>> [card.name for card in cards]
        ['btcv', 'msd_liver', 'msd_spleen', 'msd_pancreas', 'kits19', 'chaos_ct']
        >>> organs
        ('liver', 'spleen', 'pancreas', 'left_kidney', 'right_kidney')
        >>> expand(["kits19"])[1] is None
        True
    """
    cards: dict[Path, Card] = {}
    organs: dict[str, None] = {}
    for name in names:
        if is_card_set(name):
            card_set = read_card_set(name)
            organs.update(dict.fromkeys(card_set.organs))
            found: Iterable[Card] = card_set.cards
        elif not Path(name).is_file() and name not in shipped_cards():
            known = ", ".join([*shipped_cards(), *shipped_card_sets()])
            raise DataError(
                name,
                "there is no such data card or card set",
                f"give a .md or a .yaml file, or one of {known}",
            )
        else:
            found = [read_card(name)]
        for card in found:
            cards.setdefault(card.path.resolve(), card)
    return list(cards.values()), tuple(organs) or None


def organ_notes(cards: Sequence[Card], organs: Sequence[str] | None = None) -> list[str]:
    """What is odd about the organs of some cards: nothing is wrong by itself, but somebody should look.

    Noted are organs that look misspelt; tumours that are no class; organs that are a part of a class, or have a
    class as a part, where the class list has one of the two, or both and the card does not tell them apart; and
    values that a card calls background (none of the classes) though it does not annotate some of the classes.

    Args:
        cards: The cards.
        organs: The class list; all organs of the cards by default.

    Example:
        >>> organ_notes([read_card("btcv"), read_card("kits19")])
        []
    """
    classes = list(
        organs if organs is not None else dict.fromkeys(o for card in cards for o in card.annotated)
    )
    notes = []
    for card in cards:
        others = {organ for other in cards if other is not card for organ in other.annotated}
        for organ in card.annotated:
            if misspelt := spelling_note(organ, others):
                notes.append(f"{card.path}: {misspelt}")
            if names_a_finding(organ) and organ not in classes:
                notes.append(
                    f"{card.path}: {organ} would be background in {card.name}; if it lies in an organ that is a class, "
                    "write that organ for it"
                )
        notes += _part_notes(card, classes) + _background_notes(card, classes)
    return notes


def _part_notes(card: Card, classes: Sequence[str]) -> list[str]:
    """Organs that would get the wrong class, since a class is more or less the same."""
    notes = []
    for whole, parts in PARTS.items():
        for part in parts:
            if {whole, part} <= {*classes} and whole in card.annotated and part not in card.annotated:
                notes.append(
                    f"{card.path}: {whole} in {card.name} may be {part}, which is a class of its own; "
                    f"leave one of the two out of the classes, or write [{whole}, {part}] for it in a copy of the card"
                )
            for organ, other in ((part, whole), (whole, part)):
                lost = organ in card.annotated and organ not in classes and other in classes
                if lost and (organ == part or other not in card.annotated):
                    kind = "a part of" if organ == part else "more than"
                    notes.append(
                        f"{card.path}: {organ} is {kind} the class {other}, but would be background in {card.name}; "
                        f"write {other} for it in a copy of the card, or leave the card out"
                    )
    return notes


def _background_notes(card: Card, classes: Sequence[str]) -> list[str]:
    if card.masks:  # outside of all masks is background, so that a mask of it says nothing more
        return []
    values = [card.describe_value(value) for value, names in card.labels.items() if names == [BACKGROUND]]
    missing = [organ for organ in classes if organ not in card.annotated]
    if not values or not missing:
        return []
    return [
        f"{card.path}: {_some(values)} would be none of the classes, but {card.name} does not annotate "
        f"{_some(missing)}; see that none of these is among them"
    ]


def _some(names: Sequence[str]) -> str:
    """The names, or the first of many."""
    return ", ".join(names) if len(names) <= 8 else f"{', '.join(names[:7])} and {len(names) - 7} more"


def _read_card(name: str, place: int, front: FrontMatter, file: Path) -> Card:
    """A card of a set: beside it, elsewhere, or one that comes with the package."""
    beside = file.parent / name
    if beside.is_file() or name in shipped_cards():
        return read_card(beside if beside.is_file() else name)
    raise _problem(f"there is no such data card: {name}", ["cards", place], front, file)


def _check_cards(cards: Sequence[Card], front: FrontMatter, file: Path) -> None:
    seen: set[str] = set()
    for place, card in enumerate(cards):
        if card.name in seen:
            raise _problem(f"{card.name} is there twice", ["cards", place], front, file)
        seen.add(card.name)


def _check_organs(organs: Sequence[str], cards: Sequence[Card], front: FrontMatter, file: Path) -> None:
    annotated = list(dict.fromkeys(organ for card in cards for organ in card.annotated))
    for place, organ in enumerate(organs):
        if organ in (BACKGROUND, IGNORE) or organ in organs[:place]:
            message = f"{organ}: expected different organs, neither `background` nor `ignore`"
            raise _problem(message, ["organs", place], front, file)
        if organ not in annotated:
            meant = did_you_mean(organ, annotated)
            hint = f" (did you mean {meant}?)" if meant in annotated else ""
            raise _problem(f"{organ} is annotated by none of the cards{hint}", ["organs", place], front, file)
    for place, card in enumerate(cards):
        if not set(card.annotated) & set(organs):
            message = f"{card.name} annotates none of the organs, so that nothing is learnt from it"
            raise _problem(message, ["cards", place], front, file)


def _problem(message: str, location: Sequence[str | int], front: FrontMatter, file: Path) -> DataError:
    line, steps = front.locate(location)
    return DataError(file, f"line {line}, `{'.'.join(map(str, steps))}`: {message}", _EXAMPLES)
