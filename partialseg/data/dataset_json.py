"""`dataset.json` of the Medical Segmentation Decathlon and of nnU-Net, as the draft of a data card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from partialseg.data.card_text import Draft, Meaning
from partialseg.data.cards import IGNORE
from partialseg.data.classes import BACKGROUND, names_a_finding, organs_meant
from partialseg.data.file_patterns import CHANNEL, common_patterns
from partialseg.data.volumes import SUFFIXES
from partialseg.errors import DataError

_NOT_CT = re.compile(r"\b(MRI?|T1\w*|T2\w*|FLAIR|ADC|DWI|PET|US)\b", re.IGNORECASE)
#: Folders that say nothing about a dataset.
_NO_NAMES = frozenset({"data", "dataset", "raw", "train", "training", "nifti"})


def draft_from_json(file: Path) -> Draft:
    """Read a `dataset.json`: of the Decathlon and nnU-Net v1 (values as keys), or of nnU-Net v2 (names as keys).

    nnU-Net's `ignore` label becomes `ignore`. Of its regions (`kidney: [1, 2]`, `tumor: 2`), a value belongs to
    the one that is painted last in the order of `regions_class_order`, which is the innermost. A pair without a
    side ("kidney") becomes `[left_kidney, right_kidney]`.

    Args:
        file: The JSON file, beside its `imagesTr` and `labelsTr`.

    Raises:
        DataError: If the file is not JSON or not such a description, or is not about one channel of CT.
    """
    content = _read_json(file)
    labels = _field(file, content, "labels", dict)
    notes = _check_channels(file, content)
    is_v2 = not all(re.fullmatch("[0-9]{1,9}", key.strip()) for key in labels)
    meanings = _meanings_by_name(file, content, labels) if is_v2 else _meanings_by_value(file, labels)
    image, label, count = _patterns(file, content)
    stated = content.get("numTraining")
    if isinstance(stated, int) and stated != count:
        notes.append(f"{file}: numTraining is {stated}, but {count} training cases are there")
    name, folders = name_and_folders(file.parent)
    return Draft(
        name=name,
        image=image,
        label=label,
        labels=dict(sorted(meanings.items())),
        title=_text(content, "description", "name"),
        source=_text(content, "reference"),
        licence=_text(content, "licence", "license"),
        citation=_text(content, "citation"),
        folders=folders,
        labelled=count,
        notes=tuple(notes),
    )


def vague_notes(file: Path, labels: Mapping[int, Meaning]) -> list[str]:
    """Values that are called a tumour, and not of which organ."""
    return [
        f"{file}: value {value} is called {meaning.said}; if it counts as an organ, write that organ for it"
        for value, meaning in labels.items()
        if names_a_finding(meaning.said) and meaning.organs == organs_meant(meaning.said)
    ]


def name_and_folders(root: Path) -> tuple[str, tuple[str, ...]]:
    """A name for the card of a dataset, and under what it will be looked for.

    Example:
        >>> name_and_folders(Path("/scans/kits19/data"))
        ('kits19', ('data', 'kits19/data'))
    """
    root = root.resolve()
    above = root.parent.name
    named = above if above and root.name.lower() in _NO_NAMES else root.name
    return card_name(named), tuple(filter(None, (root.name, f"{above}/{root.name}" if above else "")))


def card_name(text: str) -> str:
    """A name for a card from a folder's: without nnU-Net's and the Decathlon's numbers, in lower case.

    Example:
        >>> card_name("Dataset218_AMOS 2022"), card_name("Task09_Spleen")
        ('amos_2022', 'spleen')
    """
    bare = re.sub(r"^(Dataset|Task)\d+_", "", text)
    return re.sub(r"[^a-z0-9.-]+", "_", bare.lower()).strip("_.-") or "dataset"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(file, f"cannot be read ({error.strerror})", "give another file") from error
    except json.JSONDecodeError as error:
        raise DataError(file, f"line {error.lineno}: is not JSON ({error.msg})", "mend the line") from error
    except RecursionError as error:
        raise DataError(file, "is nested too deeply, expected a few levels", "mend it") from error
    except ValueError as error:  # no UTF-8, or a number of thousands of digits
        raise DataError(file, f"is not JSON ({error})", "mend it") from error
    if not isinstance(content, dict):
        raise DataError(file, "is not a JSON object with `labels`", "give a dataset.json")
    return content


def _field(file: Path, content: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(content.get(name), kind) or not content[name]:
        found = "the field is missing" if name not in content else f"found {json.dumps(content[name])[:60]}"
        expected = {dict: "an object with entries", list: "a list with entries"}[kind]
        raise DataError(file, f"`{name}`: {found}, expected {expected}", "see nnU-Net's dataset format")
    return content[name]


def _text(content: Mapping[str, Any], *names: str) -> str:
    return next((text for name in names if isinstance(text := content.get(name), str) and text.strip()), "")


def _check_channels(file: Path, content: Mapping[str, Any]) -> list[str]:
    """CT has one channel; says so where the name leaves doubt."""
    name = "channel_names" if "channel_names" in content else "modality"
    channels = content.get(name, {})
    channels = {str(i): entry for i, entry in enumerate(channels)} if isinstance(channels, list) else channels
    if not isinstance(channels, dict):
        raise DataError(
            file, f"`{name}`: found {json.dumps(channels)[:60]}, expected an object", 'write {"0": "CT"}'
        )
    words = ", ".join(str(channel) for channel in channels.values())
    if len(channels) > 1:
        raise DataError(
            file,
            f"has {len(channels)} channels ({words}), expected one: CT has one",
            "make a dataset of the CT alone",
        )
    if _NOT_CT.search(words):
        raise DataError(file, f"its images are {words}, expected CT", "this package is for CT alone")
    if words.strip().upper() != "CT":
        called = f"called {words!r}" if words else "not named"
        return [f"{file}: its channel is {called}; see that the images are CT in HU"]
    return []


def _meanings_by_value(file: Path, labels: Mapping[str, Any]) -> dict[int, Meaning]:
    """`{"0": "background", "1": "liver"}`, of the Decathlon and of nnU-Net v1."""
    meanings = {}
    for key, said in labels.items():
        if not isinstance(said, str):
            raise DataError(
                file, f"`labels`, `{key}`: found {json.dumps(said)[:60]}, expected a name", "mend it"
            )
        if int(key) != 0:
            meanings[int(key)] = _meaning(file, said)
        elif said.strip().lower() not in ("background", "bg", "clear label"):
            raise DataError(
                file, f"`labels`: 0 is {said}, expected background", "give the organ another value"
            )
    if not meanings:
        raise DataError(file, "`labels`: there is nothing but background", "list the organs' values")
    return meanings


def _meanings_by_name(
    file: Path, content: Mapping[str, Any], labels: Mapping[str, Any]
) -> dict[int, Meaning]:
    """`{"background": 0, "kidney": [1, 2], "tumor": 2, "ignore": 3}`, of nnU-Net v2."""
    values_of = {name: _values(file, name, values) for name, values in labels.items()}
    background = next((name for name in values_of if name.lower() == BACKGROUND), None)
    if background is None or values_of[background] != (0,):
        raise DataError(file, "`labels`: background is not 0", 'write "background": 0')
    ignored = values_of.get(IGNORE, ())
    if len(ignored) > 1:
        raise DataError(file, "`labels`, `ignore`: expected one value", "mend it")
    painted = {name: values for name, values in values_of.items() if name not in (background, IGNORE)}
    _check_regions(file, content, painted)
    meanings: dict[int, Meaning] = {}
    for name, values in painted.items():  # nnU-Net paints one region over the other: the last one stays
        meanings.update(dict.fromkeys(values, _meaning(file, name)))
    meanings.update(dict.fromkeys(ignored, Meaning((IGNORE,))))
    if not painted or 0 in meanings:
        raise DataError(file, "`labels`: expected organs, none of them with value 0", "mend the values")
    return dict(sorted(meanings.items()))


def _values(file: Path, name: str, values: Any) -> tuple[int, ...]:
    as_list = values if isinstance(values, list) else [values]
    if not as_list or not all(type(value) is int and value >= 0 for value in as_list):
        raise DataError(
            file,
            f"`labels`, `{name}`: found {json.dumps(values)[:60]}, expected a whole number or a list of them",
            "mend it",
        )
    return tuple(as_list)


def _check_regions(file: Path, content: Mapping[str, Any], painted: Mapping[str, tuple[int, ...]]) -> None:
    """Regions need an order; without regions no value may be there twice."""
    if all(len(values) == 1 for values in painted.values()):
        values = [value for (value,) in painted.values()]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise DataError(
                file, f"`labels`: {twice[0]} is the value of several names, expected one", "give each its own"
            )
        return
    order = content.get("regions_class_order")
    if not isinstance(order, list) or len(order) != len(painted):
        found = "is missing" if order is None else f"is {json.dumps(order)[:60]}"
        raise DataError(
            file,
            f"`regions_class_order` {found}, expected a list with one value for each of the {len(painted)} regions",
            "add it as nnU-Net wants it",
        )
    for (name, values), value in zip(painted.items(), order, strict=True):
        if value not in values:
            raise DataError(
                file,
                f"`regions_class_order`: {value} for {name}, which has the values {list(values)}",
                "mend it",
            )


def _meaning(file: Path, said: str) -> Meaning:
    try:
        organs = organs_meant(said)
    except ValueError as error:
        raise DataError(file, f"`labels`: {error}", "give it a name") from error
    if organs[0] in (IGNORE, BACKGROUND):
        return Meaning((organs[0],), said)
    return Meaning(organs, said)


def _patterns(file: Path, content: Mapping[str, Any]) -> tuple[str, str, int]:
    """Patterns of image and label map, and the number of training cases."""
    pairs = _listed_pairs(file, content)
    if pairs:
        on_disk = (file.parent / pairs[0][0]).exists()
        with_channel = [(_with_channel(image), label) for image, label in pairs]
        if not on_disk and (file.parent / with_channel[0][0]).exists():  # so lists nnU-Net v1
            pairs = with_channel
        patterns = common_patterns(pairs)
        if patterns is None:
            raise DataError(
                file,
                "`training`: names of images and label maps do not differ in one part alone",
                "rename them so that `*` can stand for the same in both",
            )
        return *patterns, len(pairs)
    ending = content.get("file_ending", ".nii.gz")
    if ending not in SUFFIXES:
        raise DataError(
            file, f"`file_ending`: {ending!r}, expected one of {', '.join(SUFFIXES)}", "convert the files"
        )
    found = sorted((file.parent / "labelsTr").glob(f"*{ending}"))
    count = sum(not path.name.startswith(".") for path in found)
    stated = content.get("numTraining")
    number = count or (stated if isinstance(stated, int) and stated > 0 else 0)
    return f"imagesTr/*{CHANNEL}{ending}", f"labelsTr/*{ending}", number


def _listed_pairs(file: Path, content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Image and label map of each training case, relative to the file; empty where none are listed."""
    entries = content.get("training", [])
    if isinstance(content.get("dataset"), dict):  # nnU-Net v2 may say where each case lies
        entries = list(content["dataset"].values())
    pairs = []
    for place, entry in enumerate(entries):
        images = entry.get("images", [entry.get("image")]) if isinstance(entry, dict) else []
        paths = [*images, entry.get("label")] if images else []
        if len(paths) != 2 or not all(isinstance(path, str) and path for path in paths):
            raise DataError(
                file,
                f"training case {place}: expected one image and one label",
                'write {"image": ..., "label": ...}',
            )
        pairs.append(tuple(_inside(file, path) for path in paths))
    return pairs


def _inside(file: Path, path: str) -> str:
    pure = PurePosixPath(path.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts:
        raise DataError(
            file, f"the path {path!r} leaves the dataset's folder", "write it relative to dataset.json"
        )
    return str(pure)


def _with_channel(image: str) -> str:
    suffix = next((suffix for suffix in SUFFIXES if image.endswith(suffix)), "")
    return f"{image.removesuffix(suffix)}{CHANNEL}{suffix}"
