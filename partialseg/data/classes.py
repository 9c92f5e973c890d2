"""The class list: background is class 0, then the organs; what organs are called, and their colours."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from partialseg.errors import DataError

BACKGROUND = "background"
#: Of tables and curves: all organs at once, and so no organ's name.
ALL_ORGANS = "all"

#: The most organs that a class list may have: as many as there are colours that people can tell apart.
MAX_ORGANS = 64

#: The five organs of Shi et al. (2021), in the order of the paper's tables.
PAPER_ORGANS: tuple[str, ...] = ("liver", "spleen", "pancreas", "left_kidney", "right_kidney")

#: What organs are called in the cards that come with the package, and what is meant. Paired organs begin with
#: `left_` and `right_`, which is how a flip of left and right knows them. A card may name others.
KNOWN_ORGANS: dict[str, str] = {
    "liver": "with its tumours and cysts, unless they have names of their own",
    "spleen": "",
    "pancreas": "with its tumours and cysts, unless they have names of their own",
    "left_kidney": "the patient's left; with its tumours, unless they have a name of their own",
    "right_kidney": "the patient's right",
    "stomach": "",
    "gallbladder": "",
    "esophagus": "",
    "duodenum": "",
    "aorta": "",
    "inferior_vena_cava": "postcava",
    "portal_and_splenic_veins": "one class, as in BTCV",
    "left_adrenal_gland": "",
    "right_adrenal_gland": "",
    "small_bowel": "jejunum and ileum; the duodenum is apart",
    "colon": "whether the rectum is in it differs: see the card",
    "rectum": "",
    "urinary_bladder": "",
    "prostate": "",
    "uterus": "",
    "prostate_or_uterus": "one class, as in AMOS",
    "left_femoral_head": "",
    "right_femoral_head": "",
    "left_femur": "",
    "right_femur": "",
    "left_lung": "",
    "right_lung": "",
    "heart": "",
    "trachea": "",
    "thyroid_gland": "",
    "spinal_cord": "",
    "portal_vein": "alone, with its branches",
    "splenic_vein": "alone",
    "hepatic_vessels": "veins and portal branches inside the liver",
    "superior_vena_cava": "",
    "superior_mesenteric_artery": "",
    "celiac_trunk": "",
    "left_iliac_artery": "",
    "right_iliac_artery": "",
    "left_iliac_vein": "",
    "right_iliac_vein": "",
    "bile_ducts": "",
    "liver_tumour": "where it is a class of its own",
    "pancreas_tumour": "where it is a class of its own",
    "kidney_tumour": "where it is a class of its own",
    "left_psoas": "iliopsoas",
    "right_psoas": "iliopsoas",
}

#: Organs that are parts of others, which is another class in another dataset.
PARTS: dict[str, tuple[str, ...]] = {
    "prostate_or_uterus": ("prostate", "uterus"),
    "portal_and_splenic_veins": ("portal_vein", "splenic_vein"),
    "left_femur": ("left_femoral_head",),
    "right_femur": ("right_femoral_head",),
    "liver": ("liver_tumour",),
    "pancreas": ("pancreas_tumour",),
    "left_kidney": ("kidney_tumour",),
    "right_kidney": ("kidney_tumour",),
}

#: Other words for them, without the side, in the form that `organ_name` brings words to.
_SYNONYMS: dict[str, str] = {
    "adrenal": "adrenal_gland",
    "adrenals": "adrenal_gland",
    "adrenal_glands": "adrenal_gland",
    "arota": "aorta",  # so in the JSON of AMOS
    "bladder": "urinary_bladder",
    "femoral_heads": "femoral_head",
    "femur_head": "femoral_head",
    "femurs": "femur",
    "gall_bladder": "gallbladder",
    "head_of_femur": "femoral_head",
    "hepatic_tumor": "liver_tumour",
    "hepatic_vessel": "hepatic_vessels",
    "iliac_vena": "iliac_vein",
    "iliopsoas": "psoas",
    "ivc": "inferior_vena_cava",
    "kidneys": "kidney",
    "kidney_cancer": "kidney_tumour",
    "kidney_tumor": "kidney_tumour",
    "liver_cancer": "liver_tumour",
    "liver_tumor": "liver_tumour",
    "lungs": "lung",
    "oesophagus": "esophagus",
    "pancreas_cancer": "pancreas_tumour",
    "pancreas_tumor": "pancreas_tumour",
    "portal_vein_and_splenic_vein": "portal_and_splenic_veins",
    "portal_splenic_vein": "portal_and_splenic_veins",
    "portal_veins_and_splenic_veins": "portal_and_splenic_veins",
    "postcava": "inferior_vena_cava",
    "post_cava": "inferior_vena_cava",
    "prostate_uterus": "prostate_or_uterus",
    "small_intestine": "small_bowel",
    "suprarenal_gland": "adrenal_gland",
    "thyroid": "thyroid_gland",
    "vena_cava": "inferior_vena_cava",
    "venacava": "inferior_vena_cava",
}
_SIDES = {"left": "left", "lt": "left", "l": "left", "right": "right", "rt": "right", "r": "right"}

_FINDING = re.compile(r"cancer|tumou?rs?|lesions?|cysts?|mass|masses|metastas[ei]s|nodules?", re.IGNORECASE)

#: Colours of Fig. 1 and Fig. 4: red, yellow, green, blue, cyan.
PAPER_COLOURS: dict[str, str] = {
    "liver": "#ff0000",
    "spleen": "#ffff00",
    "pancreas": "#00ff00",
    "left_kidney": "#0000ff",
    "right_kidney": "#00ffff",
}
# For further organs, each as far from all before it (CIELAB) as there is room; none dark, none grey, since they
# are drawn over a scan.
_FURTHER = """
    #ff00ff #874b69 #2d6900 #0078ff #ffd296 #ff0078 #96ff96 #96c3ff #ff96ff #964b00 #007878 #ffa500
    #ff8787 #872db4 #a5a500 #96c396 #2db400 #3c5a96 #f00fb4 #b40f2d #87783c #ffc3f0 #ff783c #f0ff87
    #5a4bff #b4ff4b #a51e78 #00c387 #9669c3 #ff78b4 #2dc3e1 #00ff78 #78b44b #a55a4b #a50fff #ffd25a
    #00784b #e1964b #0096f0 #e15af0 #ff004b #87ffd2 #1e87b4 #00b4a5 #c31e00 #c34b69 #d2ffb4 #a578ff
    #a5a5ff #c3c369 #b487b4 #00c35a #967800 #ffb4b4 #00ffb4 #ffd200 #96c300 #a5ffff #69875a
"""
FURTHER_COLOURS: tuple[str, ...] = tuple(_FURTHER.split())


def class_names(organs: Sequence[str]) -> tuple[str, ...]:
    """Background followed by the organs.

    Raises:
        DataError: If there are more than `MAX_ORGANS`.

    Example:
        >>> class_names(["liver", "spleen"])
        ('background', 'liver', 'spleen')
    """
    _check_number(organs)
    return (BACKGROUND, *organs)


def organ_colours(organs: Sequence[str]) -> dict[str, str]:
    """A colour for each organ, no two alike: the paper's where it has one.

    Each of `KNOWN_ORGANS` has its own colour, the same in every class list; other organs take what is left, as
    they come.

    Args:
        organs: Names, `MAX_ORGANS` at most.

    Returns:
        The colours as `#rrggbb`, in the order of `organs`.

    Raises:
        DataError: If there are more organs than `MAX_ORGANS`.

    Example:
        >>> organ_colours(["spleen", "stomach", "appendix"])
        {'spleen': '#ffff00', 'stomach': '#ff00ff', 'appendix': '#1e87b4'}
    """
    _check_number(organs)
    further = [organ for organ in KNOWN_ORGANS if organ not in PAPER_COLOURS]
    fixed = {**PAPER_COLOURS, **dict(zip(further, FURTHER_COLOURS, strict=False))}
    colours = {organ: fixed[organ] for organ in organs if organ in fixed}
    in_reserve = [colour for colour in FURTHER_COLOURS if colour not in fixed.values()]
    left = iter([*in_reserve, *(colour for colour in fixed.values() if colour not in colours.values())])
    return {organ: colours[organ] if organ in colours else next(left) for organ in dict.fromkeys(organs)}


def organ_name(text: str) -> str:
    """The name by which the package's cards call an organ, from another's spelling of it.

    Words are joined by `_` in lower case, the side comes first, and other words for `KNOWN_ORGANS` are
    replaced. Nothing is guessed: an unknown organ keeps its words.

    Raises:
        ValueError: If the text has no letters.

    Example:
        >>> [organ_name(text) for text in ("Left Kidney", "kidney_left", "L kidney", "postcava", "Appendix")]
        ['left_kidney', 'left_kidney', 'left_kidney', 'inferior_vena_cava', 'appendix']
    """
    spelled = re.sub(r"\((?!left|right)[^()]{2,}\)", " ", text, flags=re.IGNORECASE)  # an abbreviation: (IVC)
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", spelled)  # LeftKidney
    words = re.findall(r"[a-z]+[0-9]*|[0-9]+", spaced.lower())
    if not re.search("[a-z]", "".join(words)):
        raise ValueError(f"{text!r} is no name of an organ: it has no letters")
    words = [part for word in words for part in _side_apart(word)]
    sides = [word for word in words if word in ("left", "right")]
    if not sides and len(words) > 1:  # a lone letter counts where it stands first or last
        sides = [_SIDES[word] for word in (words[0], words[-1]) if word in _SIDES]
        words = words[1:] if words[0] in _SIDES else words[:-1] if words[-1] in _SIDES else words
    base = "_".join(word for word in words if word not in ("left", "right"))
    base = _SYNONYMS.get(base, base)
    return "_".join(part for part in (*sides[:1], base) if part)


def organs_meant(text: str) -> tuple[str, ...]:
    """What `organ_name` gives, or both of a pair where the side is not said.

    Example:
        >>> organs_meant("kidneys"), organs_meant("Spleen")
        (('left_kidney', 'right_kidney'), ('spleen',))
    """
    name = organ_name(text)
    if f"left_{name}" in KNOWN_ORGANS:
        return f"left_{name}", f"right_{name}"
    return (name,)


def mirrored_classes(classes: Sequence[str]) -> tuple[int, ...]:
    """Which class each class becomes in the mirror, left and right exchanged.

    A pair are two names that differ in their side alone, in the spelling of `organ_name`.

    Returns:
        Each class's number once: of the other side, or its own where it has no side.

    Raises:
        ValueError: If a class has a side, and the other side of it is no class (see `unpaired_classes`).

    Example:
        >>> mirrored_classes(["background", "liver", "left_kidney", "right_kidney"])
        (0, 1, 3, 2)
    """
    others = [other_side(name, classes) for name in classes]
    if unpaired := unpaired_classes(classes):
        raise ValueError(f"{', '.join(unpaired)}: the other side is not among the classes {list(classes)}")
    return tuple(classes.index(other) for other in others)


def side_of(name: str) -> str | None:
    """The side that the name of an organ says.

    Example:
        >>> side_of("left_kidney"), side_of("lung_middle_lobe_right"), side_of("liver")
        ('left', 'right', None)
    """
    first = _spelled(name).partition("_")[0]
    return first if first in ("left", "right") and first != _spelled(name) else None


def other_side(name: str, classes: Sequence[str]) -> str | None:
    """The class of a pair's other organ; of one without a side its own; None if there is none, or more than one.

    Example:
        >>> classes = ["background", "liver", "left_kidney", "right_kidney", "left_lung"]
        >>> [other_side(name, classes) for name in ("left_kidney", "liver", "left_lung")]
        ['right_kidney', 'liver', None]
    """
    spelled = _spelled(name)
    for side, other in (("left_", "right_"), ("right_", "left_")):
        if spelled.startswith(side):
            found = [one for one in classes if _spelled(one) == other + spelled.removeprefix(side)]
            return found[0] if len(found) == 1 else None
    return name


def unpaired_classes(classes: Sequence[str]) -> list[str]:
    """The classes that have a side, but not their other side in the list, once: in a mirror they would be no class.

    Example:
        >>> unpaired_classes(["background", "left_kidney", "right_kidney", "left_lung", "lung_middle_lobe_right"])
        ['left_lung', 'lung_middle_lobe_right']
    """
    others = {name: other_side(name, classes) for name in classes}
    return [name for name in classes if others[name] is None or others[others[name]] != name]


def _spelled(name: str) -> str:
    """As `organ_name` spells it; a name without letters as it is."""
    return organ_name(name) if re.search("[a-zA-Z]", name) else name


def names_a_finding(text: str) -> bool:
    """Whether words say what is in an organ, and not in which.

    Example:
        >>> names_a_finding("tumor"), names_a_finding("liver_tumor")
        (True, False)
    """
    return _FINDING.fullmatch(text.strip()) is not None


def did_you_mean(name: str, others: Iterable[str] = ()) -> str | None:
    """The organ that a name was probably meant to be; None where it is known, or like no other.

    Args:
        name: As a card has it.
        others: Further names that count as known, such as those of other cards.

    Example:
        >>> did_you_mean("livr"), did_you_mean("gall_bladder"), did_you_mean("liver"), did_you_mean("appendix")
        ('liver', 'gallbladder', None, None)
    """
    known = list(dict.fromkeys([*KNOWN_ORGANS, *others]))
    if name in known:
        return None
    meant = organ_name(name)
    if meant in known:
        return meant
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)
    return close[0] if close else None


def spelling_note(name: str, others: Iterable[str] = ()) -> str | None:
    """A note on an organ whose name is probably misspelt, however many cards misspell it.

    Args:
        name: As a card has it.
        others: Organs of other cards, which may be meant as well.

    Example:
        >>> spelling_note("splen", ["splen"])
        '`splen` is no known organ; did you mean spleen? Only the same name is the same class'
        >>> spelling_note("spleen") is None, spelling_note("appendix") is None
        (True, True)
    """
    meant = did_you_mean(name) or did_you_mean(name, others)
    if meant is None:
        return None
    return f"`{name}` is no known organ; did you mean {meant}? Only the same name is the same class"


def _side_apart(word: str) -> list[str]:
    """`leftkidney` as two words."""
    for side in ("left", "right"):
        if word.startswith(side) and len(word) > len(side) + 2:
            return [side, word.removeprefix(side)]
    return [word]


def _check_number(organs: Sequence[str]) -> None:
    if len(organs) > MAX_ORGANS:
        raise DataError(
            "class list",
            f"has {len(organs)} organs, expected {MAX_ORGANS} at most",
            "choose some with --organ, or in a card set",
        )
