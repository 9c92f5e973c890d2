"""What the values of a folder of label maps mean: given, found beside the maps, or known by the files' names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import yaml

from partialseg.data.cards import read_card
from partialseg.errors import DataError

#: Label values of public datasets, and how their files' names begin.
KNOWN: dict[str, tuple[tuple[str, ...], dict[int, str]]] = {
    "word": (
        ("word_",),
        {
            1: "liver",
            2: "spleen",
            3: "left_kidney",
            4: "right_kidney",
            5: "stomach",
            6: "gallbladder",
            7: "esophagus",
            8: "pancreas",
            9: "duodenum",
            10: "colon",
            11: "intestine",
            12: "adrenal",
            13: "rectum",
            14: "bladder",
            15: "head_of_left_femur",
            16: "head_of_right_femur",
        },
    ),
    "kits19": (("case_",), {1: "kidney", 2: "kidney_tumour"}),
    "btcv": (
        ("label0", "img0"),
        {
            1: "spleen",
            2: "right_kidney",
            3: "left_kidney",
            4: "gallbladder",
            5: "esophagus",
            6: "liver",
            7: "stomach",
            8: "aorta",
            9: "vena_cava",
            10: "portal_vein",
            11: "pancreas",
            12: "right_adrenal",
            13: "left_adrenal",
        },
    ),
    "msd_liver": (("liver_",), {1: "liver", 2: "liver_tumour"}),
    "msd_spleen": (("spleen_",), {1: "spleen"}),
    "msd_pancreas": (("pancreas_",), {1: "pancreas", 2: "pancreas_tumour"}),
}
_BESIDE = ("names.yaml", "names.yml", "names.json")


def read_names(names: Mapping[int, str] | str | os.PathLike[str]) -> dict[int, str]:
    """Read a mapping of label values to names.

    Args:
        names: The mapping itself, the name of a set in `KNOWN`, a data card (`.md`), or a YAML or JSON file.

    Raises:
        DataError: If the file cannot be read as such a mapping.

    Example:
        >>> read_names("kits19")
        {1: 'kidney', 2: 'kidney_tumour'}
    """
    if isinstance(names, Mapping):
        return {int(value): str(name) for value, name in names.items()}
    if str(names) in KNOWN:
        return dict(KNOWN[str(names)][1])
    path = Path(names)
    if path.suffix == ".md":
        return {int(value): _of_card(organs) for value, organs in read_card(path).labels.items()}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML, too
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        sets = ", ".join(KNOWN)
        raise DataError(
            path, f"cannot be read ({error})", f"give a YAML file, a data card, or one of {sets}"
        ) from error
    try:
        return {int(value): str(name) for value, name in content.items() if int(value) != 0}
    except (AttributeError, ValueError, TypeError) as error:
        raise DataError(
            path, "is not a mapping of label values to names", "write lines such as `1: liver`"
        ) from error


def _of_card(organs: object) -> str:
    """The name of a card's value: "kidney" for a set of both kidneys, soft tissue for background."""
    names = [organs] if isinstance(organs, str) else list(organs)
    if not names:
        return "soft_tissue"
    return names[0] if len(names) == 1 else names[0].split("_")[-1]


def names_for(folder: Path, paths: list[Path]) -> tuple[dict[int, str], str]:
    """Names of the values in a folder for which none were given, and in words where they come from."""
    for beside in _BESIDE:
        if (folder / beside).is_file():
            return read_names(folder / beside), str(folder / beside)
    for name, (starts, mapping) in KNOWN.items():
        if all(path.name.startswith(starts) for path in paths):
            return dict(mapping), f"those of {name}, as the files' names suggest"
    return {}, "none were given or found: every value is drawn as soft tissue"
