"""A card for a dataset that has none: from its label maps, or from a `dataset.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from partialseg.data.card_text import Draft, Meaning, card_text
from partialseg.data.cards import UNNAMED, Card, read_card, shipped_cards
from partialseg.data.classes import organs_meant
from partialseg.data.dataset_json import draft_from_json, vague_notes
from partialseg.data.front_matter import read_yaml
from partialseg.data.label_folders import draft_from_label_maps, draft_from_masks
from partialseg.errors import DataError
from partialseg.files import atomic_path

JSON_NAME = "dataset.json"


@dataclass(frozen=True)
class NewCard:
    """What `write_new_card` did.

    Attributes:
        path: The card.
        draft: What it says.
        card: The card as read back; None while values have no names.
        notes: What somebody should look at.
    """

    path: Path
    draft: Draft
    card: Card | None
    notes: tuple[str, ...]


def write_new_card(
    source: str | Path,
    out: str | Path,
    name: str | None = None,
    names: str | Path | None = None,
    force: bool = False,
    jobs: int | None = None,
) -> NewCard:
    """Write a data card for a dataset.

    Args:
        source: A `dataset.json` of the Decathlon or of nnU-Net; a folder that holds one; or a folder with label
            maps (in it, in a subfolder such as `labels`, or one in each case's folder), whose values are read; or a
            folder of cases that each have a folder of masks, named after organs.
        out: The Markdown file to write; nothing is written if anything is wrong.
        name: The card's name; the folder's by default.
        names: What the values are, instead of what the dataset says: a YAML or JSON file `{value: organ}`, or
            a data card.
        force: Replace `out` where it is there.
        jobs: Label maps read at a time; None for one per core.

    Returns:
        What was written. Where nobody says what a value is, the card has a placeholder for it, and cannot be
        used until it is filled in.

    Raises:
        DataError: If the source or the names are not as expected, or `out` is there.
    """
    source, out = Path(source), Path(out)
    if out.exists() and not force:
        raise DataError(
            out, "is there already, expected a new file", "give another name, or --force to replace it"
        )
    meanings = {} if names is None else read_meanings(names)
    draft = _draft(source, meanings, jobs)
    if name is not None:
        draft = replace(draft, name=name, folders=tuple(dict.fromkeys([*draft.folders, name])))
    with atomic_path(out) as temporary:
        temporary.write_text(card_text(draft), encoding="utf-8")
        try:
            card = None if draft.unnamed else read_card(temporary)
        except DataError as error:
            raise DataError(source, f"makes no good card: {error.problem}", "correct the names") from error
    notes = []
    if draft.unnamed:
        values = ", ".join(map(str, draft.unnamed))
        verb = "is" if len(draft.unnamed) == 1 else "are"
        notes.append(
            f"{out}: nobody has said what {values} {verb}; write the organ for each `{UNNAMED}`, or give --names"
        )
    card = card if card is None else card.model_copy(update={"path": out})
    return NewCard(out, draft, card, (*draft.notes, *notes))


def read_meanings(names: str | Path) -> dict[int, Meaning]:
    """Read what label values are.

    Args:
        names: A YAML or JSON file `{value: organ}` (or a list of organs that it may be), or a data card.

    Raises:
        DataError: If the file cannot be read as such, or is a card of masks.

    Example:
        >>> read_meanings("msd_spleen")
        {1: Meaning(organs=('spleen',), said='')}
    """
    path = Path(names)
    if path.suffix.lower() == ".md" or (not path.exists() and str(names) in shipped_cards()):
        card = read_card(names)
        if card.masks:
            raise DataError(card.path, "gives names of masks, expected label values", "give another card")
        return {value: Meaning(tuple(organs)) for value, organs in card.labels.items()}
    if not path.is_file():
        known = ", ".join(shipped_cards())
        raise DataError(names, "there is no such file", f"give a YAML or JSON file, or a card: {known}")
    front = read_yaml(path)
    try:
        content = TypeAdapter(dict[int, str | list[str]]).validate_python(front.content)
        return {value: Meaning(_organs(said)) for value, said in content.items() if value != 0}
    except (ValidationError, ValueError) as error:
        line, steps = front.locate(
            [str(error.errors()[0]["loc"][0])] if isinstance(error, ValidationError) else []
        )
        where = f"line {line}" if steps else "it"
        raise DataError(
            path, f"{where}: expected a label value and an organ", "write lines such as `1: liver`"
        ) from error


def _organs(said: str | Sequence[str]) -> tuple[str, ...]:
    return (
        organs_meant(said)
        if isinstance(said, str)
        else tuple(organ for each in said for organ in organs_meant(each))
    )


def _draft(source: Path, meanings: Mapping[int, Meaning], jobs: int | None) -> Draft:
    if source.is_dir() and (source / JSON_NAME).is_file():
        source = source / JSON_NAME
    if source.is_dir():
        masks = draft_from_masks(source)
        if masks is None:
            return draft_from_label_maps(source, meanings, jobs)
        if meanings:
            raise DataError(
                source, "holds masks that have names, expected none with --names", "edit the card instead"
            )
        return masks
    if source.suffix.lower() != ".json" or not source.is_file():
        found = "there is no such file or folder" if not source.exists() else "is neither a folder nor JSON"
        raise DataError(source, f"{found}, expected label maps or a {JSON_NAME}", "give another path")
    draft = draft_from_json(source)
    unused = sorted(set(meanings) - set(draft.labels))
    if unused:
        values = ", ".join(map(str, unused))
        raise DataError(source, f"has no values {values}, which the names list", "correct the names")
    said = {value: replace(meaning, said=draft.labels[value].said) for value, meaning in meanings.items()}
    labels = dict(sorted({**draft.labels, **said}.items()))
    return replace(draft, labels=labels, notes=(*draft.notes, *vague_notes(source, labels)))
