"""Which image belongs to which label map, from their names; and the pattern that says so for all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from partialseg.data.volumes import SUFFIXES

#: What nnU-Net adds to the name of an image for its first channel.
CHANNEL = "_0000"
#: Words by which names of images and of label maps differ.
_LABEL_WORDS = frozenset(
    {"gt", "label", "labelmap", "labels", "mask", "masks", "seg", "segmentation", "segmentations", "truth"}
)
_WORDS = _LABEL_WORDS | {"ct", "image", "images", "imaging", "img", "scan", "vol", "volume"}


def common_patterns(pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The two patterns, with `*` for the case, that give all these files.

    Args:
        pairs: Image and label map of each case, relative paths with `/`.

    Returns:
        Patterns of image and label map; None where there are none with the same `*` in both.

    Example:
        >>> common_patterns([("img/img01.nii.gz", "label/label01.nii.gz"), ("img/img2.nii.gz", "label/label2.nii.gz")])
        ('img/img*.nii.gz', 'label/label*.nii.gz')
        >>> common_patterns([("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")])
        ('imagesTr/*_0000.nii.gz', 'labelsTr/*.nii.gz')
    """
    images, labels = [image for image, _ in pairs], [label for _, label in pairs]
    for image_ends in _ends(images):
        stars = _stars(images, *image_ends)
        for label_ends in _ends(labels):
            if stars is not None and stars == _stars(labels, *label_ends):
                return "*".join(image_ends), "*".join(label_ends)
    return None


def pair_up(images: Iterable[str], labels: Iterable[str]) -> list[tuple[str, str]]:
    """Give each label map the image whose name is the same but for words such as "img" and "seg".

    Returns:
        Image and label map of each pair, sorted; those without a partner, or with several, are left out.

    Example:
        >>> pair_up(["scan_7.nii.gz", "scan_8.nii.gz"], ["seg_7.nii.gz"])
        [('scan_7.nii.gz', 'seg_7.nii.gz')]
    """
    by_key: dict[tuple[str, ...], list[str]] = {}
    for image in images:
        by_key.setdefault(_key(image), []).append(image)
    found = ((by_key.get(_key(label), []), label) for label in labels)
    return sorted((partners[0], label) for partners, label in found if len(partners) == 1)


def looks_like_label(name: str) -> bool:
    """Whether a file's name says that it is a label map.

    Example:
        >>> looks_like_label("case_1_seg.nii.gz"), looks_like_label("case_1_ct.nii.gz")
        (True, False)
    """
    words = {
        "label",
        "labels",
        "labelmap",
        "mask",
        "masks",
        "seg",
        "segmentation",
        "segmentations",
        "gt",
        "truth",
    }
    return bool(words & set(_words(name)))


def without_suffix(name: str) -> str:
    """The name without the suffix of a volume's file."""
    suffix = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", without_suffix(name).removesuffix(CHANNEL).lower())


def _key(name: str) -> tuple[str, ...]:
    return tuple(word for word in _words(name) if word not in _WORDS)


def _ends(paths: Sequence[str]) -> list[tuple[str, str]]:
    """What may stand before and after the `*`: the shortest that is possible, the folder and the suffix, first."""
    if len(set(paths)) == 1:
        path = paths[0]
        digits = [match.span() for match in re.finditer("[0-9]+", without_suffix(path).removesuffix(CHANNEL))]
        before, after = (path[: digits[0][0]], path[digits[-1][1] :]) if digits else (path, "")
    else:
        before = _common_start(paths).rstrip("0123456789")
        after = _common_start([path[::-1] for path in paths])[::-1].lstrip("0123456789")
    folder = before[: before.rfind("/") + 1] if len(set(paths)) > 1 else path[: path.rfind("/") + 1]
    suffixes = [path[len(without_suffix(path)) :] for path in paths]
    afters = [suffixes[0]] if len(set(suffixes)) == 1 else []
    afters += [
        CHANNEL + suffix for suffix in afters if all(path.endswith(CHANNEL + suffix) for path in paths)
    ]
    return [
        (start, end) for start in dict.fromkeys([folder, before]) for end in dict.fromkeys([*afters, after])
    ]


def _common_start(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((i for i, letter in enumerate(first) if last[i : i + 1] != letter), len(first))]


def _stars(paths: Sequence[str], before: str, after: str) -> list[str] | None:
    """What the `*` stands for in each path; None where that is no part of a name."""
    stars = []
    for path in paths:
        star = path[len(before) : len(path) - len(after)]
        if not star or "/" in star or not (path.startswith(before) and path.endswith(after)):
            return None
        stars.append(star)
    return stars
