"""A folder of label maps, or of cases with masks, as the draft of a data card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from partialseg.data.card_text import Draft, Meaning
from partialseg.data.cards import UNNAMED
from partialseg.data.checks import label_values
from partialseg.data.classes import BACKGROUND, KNOWN_ORGANS, PARTS, organs_meant
from partialseg.data.dataset_json import card_name, name_and_folders
from partialseg.data.file_patterns import common_patterns, looks_like_label, pair_up, without_suffix
from partialseg.data.volumes import SUFFIXES, read_label
from partialseg.errors import DataError
from partialseg.parallel import run_tasks
from partialseg.progress import track
from partialseg.wording import counted

_LABEL_FOLDERS = ("labelsTr", "labels", "label", "masks", "segmentations", "seg", "labelmaps")
_IMAGE_FOLDERS = ("imagesTr", "images", "image", "img", "imgs", "ct", "CT", "scans", "volumes", "data")
#: Up to this many label maps are read in this process: starting workers takes longer.
_FEW = 8


def draft_from_masks(folder: Path) -> Draft | None:
    """Describe cases that each have a folder of masks; masks of unknown organs become background.

    Where masks overlap, the first one in a card counts: a tumour comes before its organ, and background last.

    Args:
        folder: Holds a folder for each case.

    Returns:
        The draft; None where there is no folder of masks.

    Raises:
        DataError: If none of the masks is called like an organ of other cards.
    """
    subfolders = _subfolders(folder)
    name = next((name for name in _LABEL_FOLDERS if any(_volumes(case / name) for case in subfolders)), None)
    if name is None:
        return None
    cases = [case for case in subfolders if _volumes(case / name)]
    masks = [{without_suffix(path.name) for path in _volumes(case / name)} for case in cases]
    everywhere, anywhere = set.intersection(*masks), sorted(set.union(*masks))
    meant = {mask: organs_meant(mask) for mask in anywhere}
    known = {
        mask: Meaning(meant[mask], mask)
        for mask in sorted(anywhere, key=lambda mask: _within_others(meant[mask]))
        if KNOWN_ORGANS.keys() >= set(meant[mask])
    }
    others = {mask: Meaning((BACKGROUND,)) for mask in anywhere if mask not in known}
    if not known:
        raise DataError(
            folder,
            f"none of its masks ({', '.join(anywhere[:5])}, ...) is an organ of other cards",
            "write the card",
        )
    images = set.intersection(*({path.name for path in _volumes(case)} for case in cases))
    image = next(iter(sorted(images)), "ct.nii.gz")
    notes = (
        []
        if len(images) == 1
        else [f"{folder}: {len(images)} files may be the image; see `files.image` in the card"]
    )
    if others:
        count = "1 mask is" if len(others) == 1 else f"{len(others)} masks are"
        notes.append(
            f"{folder}: {count} background in the card, since no other card has such an organ: "
            f"{', '.join(list(others)[:5])}{', ...' if len(others) > 5 else ''}"
        )
    if len(everywhere) < len(anywhere):
        lacking = ", ".join([mask for mask in known if mask not in everywhere][:5])
        notes.append(
            f"{folder}: not every case has a mask of {lacking or 'everything'}; see `missing_masks` in the card"
        )
    card, folders = name_and_folders(folder)
    return Draft(
        name=card,
        image=f"*/{image}",
        label=f"*/{name}",
        labels={**known, **others},
        folders=folders,
        labelled=len(cases),
        missing_masks="" if len(everywhere) == len(anywhere) else "not annotated",
        notes=tuple(notes),
    )


def draft_from_label_maps(folder: Path, meanings: Mapping[int, Meaning], jobs: int | None) -> Draft:
    """Describe a folder of label maps, whose values are read.

    Args:
        folder: Holds label maps, or a subfolder or case folders with them.
        meanings: What some or all values are.
        jobs: Label maps read at a time; None for one per core.

    Returns:
        The draft, with `UNNAMED` for values that `meanings` does not list.

    Raises:
        DataError: If there are no label maps, or one of them cannot be read.
    """
    found = _find_files(folder)
    pairs, notes = found.pairs(), []
    if pairs and (patterns := common_patterns(pairs)):
        image, label = patterns
        if alone := len(found.labels) - len(pairs):
            notes.append(f"{found.root}: without image: {counted(alone, 'label map')}")
    else:
        _, label = common_patterns([(path, path) for path in found.labels]) or ("", "")
        if not label:
            raise DataError(
                folder, "the names of its label maps have no part in common", "give them one suffix"
            )
        in_folder, _, file = label.rpartition("/")
        image = f"{in_folder}/imaging.nii.gz" if "*" in in_folder else f"images/{file}"
        notes.append(
            f"{found.root}: no images were found beside the label maps; correct `files.image` in the card"
        )
    values = _read_values([found.root / path for path in found.labels], jobs)
    if not values:
        raise DataError(folder, "its label maps hold nothing but 0, expected organs", "give another folder")
    name, folders = name_and_folders(found.root)
    if found.root != folder and folder.name not in _LABEL_FOLDERS:
        name = card_name(folder.resolve().name)
    return Draft(
        name=name,
        image=image,
        label=label,
        labels={
            value: meanings.get(value, Meaning((UNNAMED,), "write the organ here"))
            for value in sorted(values | set(meanings))
        },
        folders=folders,
        labelled=len(found.labels),
        notes=tuple(notes),
    )


def _within_others(organs: Sequence[str]) -> int:
    """Sorts what may lie in another mask before it: parts of organs, organs, pairs without a side."""
    parts = {part for parts in PARTS.values() for part in parts}
    return 2 if len(organs) > 1 else 0 if organs[0] in parts else 1


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
