"""A data card as text: the front matter for the program, and a skeleton of the prose for people."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml

from partialseg.data.cards import IGNORE, UNNAMED, left_right_pair
from partialseg.data.classes import BACKGROUND
from partialseg.wording import counted

_WIDTH = 110


@dataclass(frozen=True)
class Meaning:
    """What a label value stands for.

    Attributes:
        organs: As `Card.labels` has them; `UNNAMED` where nobody has said yet.
        said: What the dataset itself calls it.
    """

    organs: tuple[str, ...]
    said: str = ""


@dataclass(frozen=True)
class Draft:
    """What a new card says.

    Attributes:
        name, title, source, licence, citation, folders: As in `Card`.
        image, label: The patterns of `Files`.
        labels: What each value means, or each mask by its name, in the order of the card; 0 is not among them.
        labelled: Number of cases with a label map; None where it is not known.
        missing_masks: As in `Card`; not said where it is empty.
        notes: What somebody should look at.
    """

    name: str
    image: str
    label: str
    labels: Mapping[int, Meaning] | Mapping[str, Meaning]
    title: str = ""
    source: str = ""
    licence: str = ""
    citation: str = ""
    folders: tuple[str, ...] = ()
    labelled: int | None = None
    missing_masks: str = ""
    notes: tuple[str, ...] = ()

    @property
    def annotated(self) -> tuple[str, ...]:
        """All organs, in the order of the labels."""
        organs = dict.fromkeys(organ for meaning in self.labels.values() for organ in meaning.organs)
        return tuple(organ for organ in organs if organ not in (BACKGROUND, IGNORE))

    @property
    def unnamed(self) -> tuple[int | str, ...]:
        """Values for which nobody has said what they are."""
        return tuple(value for value, meaning in self.labels.items() if meaning.organs == (UNNAMED,))


def card_text(draft: Draft) -> str:
    """The text of a card.

    Example:
        >>> draft = Draft("toy", "img/*.nii.gz", "label/*.nii.gz", {1: Meaning(("liver",), "Liver")})
        >>> print(card_text(draft).split("---")[1].strip())
        name: toy
        title: toy
        source: ''
        licence: ''
        citation: ''
        modality: CT
        folders: [toy]
        files: {image: img/*.nii.gz, label: label/*.nii.gz}
        labels:
          1: liver       # Liver
        annotated: [liver]
        splits: {seed: 0, test: 0.2}
    """
    return "\n".join(["---", *_front_matter(draft), "---", "", *_prose(draft)])


def _front_matter(draft: Draft) -> list[str]:
    texts = {"title": draft.title or draft.name, "source": draft.source, "licence": draft.licence}
    lines = [f"name: {_scalar(draft.name)}"]
    lines += [f"{field}: {_scalar(text)}" for field, text in texts.items()]
    lines += _folded("citation", draft.citation)
    files = f"{{image: {_scalar(draft.image)}, label: {_scalar(draft.label)}}}"
    folders = draft.folders or (draft.name,)
    lines += ["modality: CT", f"folders: {_flow(folders)}", f"files: {files}", "labels:"]
    for value, meaning in draft.labels.items():
        line = (
            f"  {value}: {_flow(meaning.organs) if len(meaning.organs) > 1 else _scalar(meaning.organs[0])}"
        )
        said = " ".join(meaning.said.split())
        lines.append(f"{line:<16} # {said}" if said and (said,) != meaning.organs else line)
    start = "annotated: "
    wrapped = textwrap.wrap(_flow(draft.annotated), _WIDTH - len(start), break_on_hyphens=False)
    lines.append(start + f"\n{' ' * len(start)} ".join(wrapped))
    if any(left_right_pair(meaning.organs) for meaning in draft.labels.values()):
        lines.append("split_sides: true")
    if draft.missing_masks:
        lines.append(f"missing_masks: {draft.missing_masks}")
    lines.append("splits: {seed: 0, test: 0.2}")
    if draft.labelled is not None:
        lines.append(f"counts: {{labelled: {draft.labelled}}}")
    return lines


def _prose(draft: Draft) -> list[str]:
    count = "" if draft.labelled is None else f"{counted(draft.labelled, 'label map')}. "
    organs = ", ".join(organ for organ in draft.annotated if organ != UNNAMED) or "?"
    licence = f"{draft.licence}. " if draft.licence else ""
    example = [pattern.replace("*", "NAME") for pattern in (draft.image, draft.label)]
    folder = (draft.folders or (draft.name,))[0]
    paragraphs = [
        (
            "What it is",
            f"{count}Drawn are: {organs}. To be filled in: which patients, which phase, how the labels were made.",
        ),
        ("Who made it", "To be filled in."),
        ("Licence and citation", f"{licence}To be checked."),
        ("How to get it", "To be filled in."),
        ("Layout", f"\n\n```\nRAW/{folder}/{example[0]}\nRAW/{folder}/{example[1]}\n```"),
        (
            "Quirks",
            "To be filled in: values that mean several organs, cases to leave out, scans shared with other datasets.",
        ),
        ("Not suited to", "To be filled in."),
    ]
    lines = [f"# {draft.title or draft.name}"]
    for heading, text in paragraphs:
        lines += ["", f"**{heading}.** {text}".replace(".** \n", ".**\n")]
    return [*lines, ""]


def _scalar(value: str) -> str:
    """A string as YAML on one line, also within brackets."""
    listed = yaml.safe_dump(
        [" ".join(value.split())], default_flow_style=True, allow_unicode=True, width=10**6
    )
    return listed.strip()[1:-1]


def _flow(names: Sequence[str]) -> str:
    return f"[{', '.join(_scalar(name) for name in names)}]"


def _folded(field: str, text: str) -> list[str]:
    """A longer text over several lines."""
    if len(text) < 80:
        return [f"{field}: {_scalar(text)}"]
    return [f"{field}: >-", *(f"  {line}" for line in textwrap.wrap(text, _WIDTH - 2))]
