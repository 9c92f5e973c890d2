"""A card for a dataset that has none: from its label maps, or from a `dataset.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from partialseg.data.card_text import UNNAMED, Draft, Meaning, card_text
from partialseg.data.cards import Card, read_card, shipped_cards
from partialseg.data.checks import label_values
from partialseg.data.classes import organs_meant
from partialseg.data.dataset_json import card_name, draft_from_json, vague_notes
from partialseg.data.file_patterns import common_patterns, looks_like_label, pair_up
from partialseg.data.front_matter import read_yaml
from partialseg.data.volumes import SUFFIXES, read_label
from partialseg.errors import DataError
from partialseg.files import atomic_path
from partialseg.parallel import run_tasks
from partialseg.progress import track

JSON_NAME = "dataset.json"
_LABEL_FOLDERS = ("labelsTr", "labels", "label", "masks", "segmentations", "seg", "labelmaps")
_IMAGE_FOLDERS = ("imagesTr", "images", "image", "img", "imgs", "ct", "CT", "scans", "volumes", "data")
#: Up to this many label maps are read in this process: starting workers takes longer.
_FEW = 8


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
            maps (in it, in a subfolder such as `labels`, or one in each case's folder), whose values are read.
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
        notes.append(
            f"{out}: nobody has said what {values} are; write the organ for each `{UNNAMED}`, or give --names"
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
        return _draft_from_label_maps(source, meanings, jobs)
    if source.suffix.lower() != ".json" or not source.is_file():
        found = "there is no such file or folder" if not source.exists() else "is neither a folder nor JSON"
        raise DataError(source, f"{found}, expected label maps or a {JSON_NAME}", "give another path")
    draft = draft_from_json(source)
    unused = sorted(set(meanings) - set(draft.labels))
    if unused:
        values = ", ".join(map(str, unused))
        raise DataError(source, f"has no values {values}, which the names list", "correct the names")
    said = {value: replace(meaning, said=draft.labels[value].said) for value, meaning in meanings.items()}
    labels = {**draft.labels, **said}
    return replace(draft, labels=labels, notes=(*draft.notes, *vague_notes(source, labels)))


def _draft_from_label_maps(folder: Path, meanings: Mapping[int, Meaning], jobs: int | None) -> Draft:
    """A card for a folder of label maps, whose values are read."""
    found = _find_files(folder)
    pairs, notes = found.pairs(), []
    if pairs and (patterns := common_patterns(pairs)):
        image, label = patterns
        if len(pairs) < len(found.labels):
            notes.append(f"{found.root}: {len(found.labels) - len(pairs)} label maps have no image")
    else:
        _, label = common_patterns([(path, path) for path in found.labels]) or ("", "")
        if not label:
            raise DataError(
                folder, "the names of its label maps have no part in common", "give them one suffix"
            )
        image = f"images/{label.split('/')[-1]}"
        notes.append(
            f"{found.root}: no images were found beside the label maps; correct `files.image` in the card"
        )
    values = _read_values([found.root / path for path in found.labels], jobs)
    if not values:
        raise DataError(folder, "its label maps hold nothing but 0, expected organs", "give another folder")
    return Draft(
        name=card_name(found.root.resolve().name if folder.name in _LABEL_FOLDERS else folder.resolve().name),
        image=image,
        label=label,
        labels={
            value: meanings.get(value, Meaning((UNNAMED,), "write the organ here"))
            for value in sorted(values | set(meanings))
        },
        folders=(found.root.resolve().name,),
        labelled=len(found.labels),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Found:
    """Files of a dataset, relative to its folder, with `/`."""

    root: Path
    labels: list[str]
    images: list[str]

    def pairs(self) -> list[tuple[str, str]]:
        """Image and label map of each case for which there is one image."""
        images, labels = _by_short_name(self.images), _by_short_name(self.labels)
        return [(images[image], labels[label]) for image, label in pair_up(images, labels)]


def _by_short_name(paths: Sequence[str]) -> dict[str, str]:
    """The paths by what is left of them without the folder that all are in."""
    folders = {path.rpartition("/")[0] for path in paths}
    return {path.rpartition("/")[2] if len(folders) == 1 else path: path for path in paths}


def _find_files(folder: Path) -> _Found:
    """Label maps and images, in the ways in which people keep them."""
    if not any(_volumes(folder)):
        labels = next((name for name in _LABEL_FOLDERS if any(_volumes(folder / name))), None)
        if labels is not None:
            return _Found(folder, _below(folder, labels), _images_of(folder))
        files = [f"{case.name}/{path.name}" for case in _subfolders(folder) for path in _volumes(case)]
        found = _Found(folder, *_apart(files))
        if not found.labels:
            raise DataError(
                folder,
                f"holds no label maps, expected files ({', '.join(SUFFIXES)}) in it, in a subfolder such as labels, "
                "or called segmentation in the folder of each case",
                "give the folder with the label maps",
            )
        return found
    labels, images = _apart([path.name for path in _volumes(folder)])
    if labels and images:
        return _Found(folder, labels, images)
    root = folder.resolve().parent
    return _Found(root, _below(root, folder.resolve().name), _images_of(root))


def _apart(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Label maps and images by their names."""
    labels = [file for file in files if looks_like_label(file.split("/")[-1])]
    return labels, [file for file in files if file not in set(labels)]


def _images_of(root: Path) -> list[str]:
    return next((files for name in _IMAGE_FOLDERS if (files := _below(root, name))), [])


def _below(root: Path, name: str) -> list[str]:
    return [f"{name}/{path.name}" for path in _volumes(root / name)]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _volumes(folder: Path) -> list[Path]:
    """Files of volumes in a folder; hidden ones are none."""
    if not folder.is_dir():
        return []
    named = (path for path in sorted(folder.iterdir()) if path.name.lower().endswith(SUFFIXES))
    return [path for path in named if path.is_file() and not path.name.startswith(".")]


def _read_values(paths: Sequence[Path], jobs: int | None) -> set[int]:
    """All values but 0 that occur in some label maps."""
    jobs = 1 if len(paths) <= _FEW else jobs
    values: set[int] = set()
    for _, found in track(run_tasks(values_of, paths, str, jobs), "read", total=len(paths)):
        if isinstance(found, DataError):
            raise found
        values |= found
    return values - {0}


def values_of(path: Path) -> set[int]:
    """The values that occur in a label map.

    Raises:
        DataError: If it cannot be read.
    """
    return set(label_values(read_label(path).array))
