"""Data cards: what a dataset's files are called, what its label values mean, and which organs it annotates.

A card is a Markdown file: YAML front matter between two `---` lines for the program, prose for people.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from partialseg.data.classes import ALL_ORGANS, BACKGROUND
from partialseg.data.front_matter import (
    FrontMatter,
    problem_location,
    read_front_matter,
    validation_problem,
)
from partialseg.errors import DataError, first_of

IGNORE = "ignore"
#: Stands for the organ of a value that nobody has named; no card with it can be read.
UNNAMED = "?"

_PACKAGE = Path(__file__).resolve().parents[1]
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
#: Fields of `Card` that are no fields of a card's file.
_DERIVED = ("path", "masks")
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
_Text = Annotated[str, Field(min_length=1)]
_MASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_. +-]*")


def _problem(message: str, *location: str | int) -> PydanticCustomError:
    """An error of a rule that spans fields; `location` says which line of the card it is about."""
    return PydanticCustomError("card", "{message}", {"message": message, "location": location})


def _stays_inside(path: str) -> str:
    """A path of a card is one below the folder that the user names."""
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{path!r} leaves the dataset's folder, expected a path below it")
    return path


def _one_case(name: str) -> str:
    """Only `exclude` and `unlabelled` take patterns; elsewhere one would be the name of no case."""
    if "*" in name or "?" in name:
        raise ValueError(f"found the pattern {name!r}, expected the name of one case")
    return name


_CaseName = Annotated[_Text, AfterValidator(_one_case)]


class _Part(BaseModel):
    """Strict: an unknown field or a number in quotes is an error rather than a guess."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Files(_Part):
    """Where images and label maps lie in the dataset's folder; `*` stands for the case's name.

    Attributes:
        image: Pattern of a file, or of a folder of DICOM slices.
        label: Pattern of a file, or of a folder: of one mask for each organ where `labels` gives names of masks,
            else of one PNG for each DICOM slice.
        series: Where a folder holds several DICOM series, a pattern of the description (or the UID) of the one
            to take.
    """

    image: _Text
    label: _Text
    series: _Text | None = None

    @field_validator("image", "label")
    @classmethod
    def _one_star(cls, pattern: str) -> str:
        if pattern.count("*") != 1:
            raise ValueError(
                f"{pattern!r} holds {pattern.count('*')} `*`, expected exactly one for the case's name"
            )
        return _stays_inside(pattern)


class Splits(_Part):
    """Which cases are for testing: a fraction drawn by `seed`, or a list of case names."""

    seed: int = 0
    test: float | list[_Text] = 0.2

    @field_validator("test", mode="before")
    @classmethod
    def _share_or_names(cls, test: Any) -> Any:
        is_share = isinstance(test, int | float) and not isinstance(test, bool) and 0 <= test <= 1
        is_names = isinstance(test, list) and all(isinstance(name, str) and name for name in test)
        if not is_share and not is_names:
            raise ValueError("expected a share from 0 to 1, or a list of names of cases")
        for name in test if is_names else ():
            _one_case(name)
        return test


class Override(_Part):
    """How one case differs from the rest of its dataset.

    Attributes:
        annotated: The organs that are annotated in this case, where not all of the dataset's are.
        slices: First and last annotated slice, or several such pairs; counted from 0, in the order of the file,
            along the axis that is closest to the patient's long axis. The others are ignored.
    """

    annotated: Annotated[list[_Name], Field(min_length=1)] | None = None
    slices: Annotated[list[list[Annotated[int, Field(ge=0)]]], Field(min_length=1)] | None = None

    @field_validator("slices", mode="before")
    @classmethod
    def _one_pair_as_list(cls, slices: Any) -> Any:
        is_pair = isinstance(slices, list) and slices and all(isinstance(number, int) for number in slices)
        return [slices] if is_pair else slices

    @field_validator("slices")
    @classmethod
    def _first_and_last(cls, slices: list[list[int]]) -> list[list[int]]:
        for pair in slices:
            if len(pair) != 2 or pair[0] > pair[1]:
                raise ValueError(f"expected [first slice, last slice], found {pair}")
        return slices


class Card(_Part):
    """One dataset, as its card describes it; `read_card` makes it.

    Attributes:
        name: Short name, used in folders and tables.
        title: Its name for people.
        source, licence, citation: Where it comes from and what it may be used for.
        modality: "CT".
        folders: Names under which people keep it in their folder of raw data, tried in turn.
        files: Patterns of the image and the label map of a case.
        labels: For each value of the label maps except 0, the organs that it may be. One name: that organ;
            several: one of them, not said which; `background`: none of the organs; `ignore`: not looked at.
            0 is always the dataset's own background. Where the card gives names of masks instead of values,
            they are numbered from 1 on in its order.
        masks: Those names; empty where the card gives values. A voxel in several masks is the one that the card
            lists first.
        annotated: The organs that are annotated wherever they are in the scan.
        cases: Cases that differ, by name.
        missing_masks: What it means that a case has no mask of an organ: `empty` (the organ is not there), or
            `not annotated` (nobody drew it).
        split_sides: Whether a `[left_x, right_x]` label is told apart by its place.
        exclude: Cases to leave out (names or patterns of names), with the reason.
        unlabelled: Patterns of case names that were published without label maps; left out too.
        splits: Which cases are for testing.
        counts: Numbers to compare with ("labelled": 131).
        unsuited: What the dataset is not suited to.
        path: The card's own file.
    """

    name: _Name
    title: str = ""
    source: str = ""
    licence: str = ""
    citation: str = ""
    modality: Literal["CT"] = "CT"
    folders: list[Annotated[_Text, AfterValidator(_stays_inside)]] = []
    files: Files
    labels: dict[Annotated[int, Field(ge=1, le=32767)], list[_Name]]
    masks: tuple[str, ...] = ()
    annotated: Annotated[list[_Name], Field(min_length=1)]
    cases: dict[_CaseName, Override] = {}
    missing_masks: Literal["empty", "not annotated"] = "empty"
    split_sides: bool = False
    exclude: dict[_Text, _Text] = {}
    unlabelled: list[_Text] = []
    splits: Splits = Splits()
    counts: dict[str, Annotated[int, Field(ge=0)]] = {}
    unsuited: str = ""
    path: Path = Field(exclude=True)

    @property
    def organs(self) -> tuple[str, ...]:
        """The annotated organs."""
        return tuple(self.annotated)

    def annotated_in(self, case: str) -> tuple[str, ...]:
        """The organs that are annotated in a case."""
        override = self.cases.get(case)
        return tuple(self.annotated if override is None or override.annotated is None else override.annotated)

    def slices_in(self, case: str) -> tuple[tuple[int, int], ...] | None:
        """First and last slice of each annotated part of a case; None where all slices are annotated."""
        override = self.cases.get(case)
        return None if override is None or override.slices is None else tuple(map(tuple, override.slices))

    def why_excluded(self, case: str) -> str | None:
        """Why the card leaves a case out; None where it does not."""
        return next(
            (why for pattern, why in self.exclude.items() if fnmatch.fnmatchcase(case, pattern)), None
        )

    def describe_value(self, value: int) -> str:
        """A label value for people: its number, or the name of its mask."""
        return self.masks[value - 1] if self.masks else str(value)

    @model_validator(mode="before")
    @classmethod
    def _number_masks(cls, content: Any) -> Any:
        labels = content.get("labels") if isinstance(content, dict) else None
        names = [key for key in labels if isinstance(key, str)] if isinstance(labels, dict) else []
        if not names:
            return content
        if len(names) < len(labels):
            raise _problem(
                f"{names[0]!r} is the name of a mask, other keys are values (integers); expected either",
                "labels",
                names[0],
            )
        for name in names:
            if not _MASK_NAME.fullmatch(name):
                raise _problem(
                    f"{name!r} cannot be the name of a mask, expected letters, digits, spaces and _ . + -",
                    "labels",
                    name,
                )
        numbered = dict(enumerate(labels.values(), start=1))
        return {**content, "labels": numbered, "masks": tuple(names)}

    @field_validator("labels", mode="before")
    @classmethod
    def _names_as_lists(cls, labels: Any) -> Any:
        if not isinstance(labels, dict):
            return labels
        as_lists = {value: [names] if isinstance(names, str) else names for value, names in labels.items()}
        if as_lists.get(0) == [BACKGROUND]:  # harmless, and many write it
            del as_lists[0]
        return as_lists

    @field_validator("labels")
    @classmethod
    def _special_names_stand_alone(cls, labels: dict[int, list[str]]) -> dict[int, list[str]]:
        for value, names in labels.items():
            if not names or len(set(names)) != len(names):
                raise _problem("expected one or several different names", "labels", value)
            if len(names) > 1 and {BACKGROUND, IGNORE} & set(names):
                raise _problem(f"`{BACKGROUND}` and `{IGNORE}` stand alone, not in a list", "labels", value)
        return labels

    @model_validator(mode="after")
    def _labels_fit_annotated(self) -> Card:
        annotated = set(self.annotated)
        if len(annotated) != len(self.annotated) or annotated & {BACKGROUND, IGNORE}:
            raise _problem("expected different organs, neither `background` nor `ignore`", "annotated")
        if ALL_ORGANS in annotated:
            raise _problem(
                f"`{ALL_ORGANS}` stands for all organs in tables, expected another name", "annotated"
            )
        for value, names in self.labels.items():
            for name in names:
                if name not in annotated | {BACKGROUND, IGNORE}:
                    raise _problem(
                        f"{self.describe_value(value)} is {name}, which is not listed under `annotated`",
                        "labels",
                        value,
                    )
        mapped = {name for names in self.labels.values() for name in names}
        for organ in self.annotated:
            if organ not in mapped:
                raise _problem(f"{organ} is annotated, but no label value stands for it", "annotated")
        if self.split_sides and not any(left_right_pair(names) for names in self.labels.values()):
            raise _problem(
                "there is no label `[left_x, right_x]` (the same x) whose sides could be told apart",
                "split_sides",
            )
        return self

    @model_validator(mode="after")
    def _tested_cases_are_not_excluded(self) -> Card:
        listed = self.splits.test if isinstance(self.splits.test, list) else []
        both = sorted(name for name in set(listed) if self.why_excluded(name) is not None)
        if both:
            raise _problem(f"{', '.join(both)} is a test case and excluded as well", "splits", "test")
        return self

    @model_validator(mode="after")
    def _cases_differ_in_what_is_there(self) -> Card:
        for case, override in self.cases.items():
            for organ in override.annotated or ():
                if organ not in self.annotated:
                    raise _problem(
                        f"{organ} is not listed under `annotated` of the dataset", "cases", case, "annotated"
                    )
        return self


@dataclass(frozen=True)
class RawCase:
    """The files of one raw case.

    Attributes:
        dataset: Name of its card.
        name: Name of the case.
        image: A file, or a folder of DICOM slices.
        label: A file, or a folder of masks or of slices; it may be missing.
    """

    dataset: str
    name: str
    image: Path
    label: Path


def left_right_pair(names: Iterable[str]) -> tuple[str, str] | None:
    """The two names of `[left_x, right_x]`, left first; None for anything else.

    Example:
        >>> left_right_pair(["right_kidney", "left_kidney"])
        ('left_kidney', 'right_kidney')
        >>> left_right_pair(["left_kidney", "right_lung"]) is None
        True
    """
    left, right, *rest = [*sorted(names), "", ""]
    if rest == ["", ""] and left.startswith("left_") and right == "right_" + left.removeprefix("left_"):
        return left, right
    return None


def shipped_cards() -> dict[str, Path]:
    """The cards that come with the package, by name.

    Example:
        >>> "kits19" in shipped_cards()
        True
    """
    installed = _PACKAGE / "data_cards"
    folder = installed if installed.is_dir() else _PACKAGE.parent / "data_cards"
    return {path.stem: path for path in sorted(folder.glob("*.md"))}


def read_card(path: str | Path) -> Card:
    """Read and check a data card.

    Args:
        path: A Markdown file, or the name of a card that comes with the package.

    Raises:
        DataError: If there is no such card, or its front matter is not as expected; names line and field.

    Example:
        >>> read_card("msd_spleen").organs
        ('spleen',)
    """
    shipped = shipped_cards()
    file = Path(path)
    if not file.is_file():
        if str(path) not in shipped:
            raise DataError(
                path,
                "there is no such data card, expected a file or a name",
                f"give a .md file, or one of {', '.join(shipped)}",
            )
        file = shipped[str(path)]
    front = read_front_matter(file)
    for name in _DERIVED:
        if name in front.content:
            line, _ = front.locate([name])
            raise DataError(file, f"line {line}, `{name}`: there is no such field", "remove the line")
    try:
        return Card(**{str(key): value for key, value in front.content.items()}, path=file)
    except ValidationError as error:
        raise _card_error(error, front, file) from error


def find_cases(card: Card, raw: str | Path) -> list[RawCase]:
    """List the cases of a dataset, sorted by name, without those that the card leaves out.

    Looked at are `raw/<folder>` for each of the card's folders, `raw/<name of the card>` and `raw` itself;
    the first in which the image pattern matches counts. Hidden files are not cases. Where the card says
    `.nii.gz`, `.nii` will do, and the other way round. A case whose image or label map alone is there is
    listed, so that reading it gives the error.

    Args:
        card: The dataset's card.
        raw: A folder that holds one or several datasets.

    Returns:
        The cases; empty where none is found.
    """
    for folder in [*card.folders, card.name, "."]:
        root = Path(raw) / folder
        images = dict(_matches(root, card.files.image))
        if images:
            break
    else:
        return []
    scans = set(images.values())  # a label pattern such as `*.nii.gz` may match these too
    labels = {star: path for star, path in _matches(root, card.files.label) if path not in scans}
    cases = []
    for star in images.keys() | labels.keys():
        name = _case_name(card.files.image, star)
        if card.why_excluded(name) is not None or any(
            fnmatch.fnmatchcase(name, pattern) for pattern in card.unlabelled
        ):
            continue
        image, label = (
            found.get(star, root / pattern.replace("*", star))
            for found, pattern in ((images, card.files.image), (labels, card.files.label))
        )
        cases.append(RawCase(card.name, name, image, label))
    return sorted(cases, key=lambda case: case.name)


def count_label_maps(card: Card, raw: str | Path) -> int:
    """How many label maps of a dataset there are, with scans or without, in the first folder that has any."""
    counts = (
        len(dict(_matches(Path(raw) / folder, card.files.label)))
        for folder in [*card.folders, card.name, "."]
    )
    return next(filter(None, counts), 0)


def names_found(card: Card, raw: str | Path) -> list[str]:
    """Names of all cases of a dataset that are there, with those that the card leaves out."""
    return [case.name for case in find_cases(card.model_copy(update={"exclude": {}, "unlabelled": []}), raw)]


def why_no_case(card: Card, raw: str | Path) -> tuple[str, str]:
    """Why `find_cases` finds nothing, and what to do: for an error.

    Args:
        card: The dataset's card.
        raw: The folder that was looked in.
    """
    with_raw = "name the folder that holds the dataset with --raw"
    if not Path(raw).is_dir():
        return f"{card.name}: no file in {raw}, there is no such folder", with_raw
    if names_found(card, raw):
        return f"{card.name}: the card leaves out every case in {raw}", "see its `exclude` and `unlabelled`"
    folders = list(dict.fromkeys([*card.folders, card.name, "."]))
    for folder in folders:
        if count := sum(1 for _ in _matches(Path(raw) / folder, card.files.label)):
            there = "1 label map is" if count == 1 else f"{count} label maps are"
            return (
                f"{card.name}: {there} there ({Path(raw) / folder / card.files.label}), and no image "
                f"{card.files.image}",
                "fetch the images",
            )
    return (
        f"{card.name}: no file in {raw} matches {card.files.image} (looked in {', '.join(folders)})",
        with_raw,
    )


def is_part_of_published(card: Card, found: int) -> bool:
    """Whether less than a published dataset is there, of which a card that comes with the package speaks.

    Args:
        card: The dataset's card.
        found: How many labelled cases are there, with those that the card excludes.
    """
    published = card.counts.get("labelled")
    return published is not None and found < published and card.path in shipped_cards().values()


def unmatched_names(card: Card, names: Sequence[str], most: int = 5) -> list[str]:
    """Notes on names of cases in a card that no case has, so that what the card says of them has no effect.

    Args:
        card: The dataset's card.
        names: Names of all its cases, see `names_found`.
        most: How many are named in a note; of the others it says how many they are.

    Example:
        >>> card = read_card("msd_spleen").model_copy(update={"exclude": {"spleen_1*": "blurred"}})
        >>> unmatched_names(card, ["spleen_10"])
        []
        >>> unmatched_names(card, ["spleen_20"])
        ['`exclude` of the card names spleen_1*: no case here is called so']
    """
    tested = card.splits.test if isinstance(card.splits.test, list) else []
    there = set(names)
    unmatched = {  # only `exclude` takes patterns; in any other name a bracket is a bracket
        "exclude": [pattern for pattern in card.exclude if not fnmatch.filter(names, pattern)],
        "cases": [name for name in card.cases if name not in there],
        "splits.test": [name for name in tested if name not in there],
    }
    notes = []
    for field, missing in unmatched.items():
        if missing:
            notes.append(f"`{field}` of the card names {first_of(missing, most)}: no case here is called so")
    return notes


def assign_splits(card: Card, names: Iterable[str]) -> dict[str, Literal["train", "test"]]:
    """Say for every case whether it is for training or for testing.

    Cases are ranked by a hash of seed and name, and the first ones test, so that the order of `names` does
    not matter and a further case moves at most one other case. Where there are two cases or more and the
    fraction is not 0, at least one tests.

    Args:
        card: The dataset's card.
        names: Names of its cases.

    Example:
        >>> splits = assign_splits(read_card("btcv"), [f"img{i:04d}" for i in range(1, 31)])
        >>> sum(split == "test" for split in splits.values())
        6
    """
    names = sorted(set(names))
    test = card.splits.test
    if isinstance(test, list):
        chosen = set(test)
    else:
        count = round(test * len(names))
        if test > 0 and len(names) > 1:
            count = max(1, count)
        ranked = sorted(
            names,
            key=lambda name: hashlib.sha256(
                f"{card.splits.seed} {name}".encode(
                    errors="surrogateescape"
                )  # a file's name need not be UTF-8
            ).digest(),
        )
        chosen = set(ranked[:count])
    return {name: "test" if name in chosen else "train" for name in names}


def _matches(root: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """What the `*` of the pattern stands for, and the path, for every visible match."""
    bare = pattern.removesuffix(".gz")
    other = f"{bare}.gz" if pattern == bare else bare
    for each in (
        [other, pattern] if bare.endswith(".nii") else [pattern]
    ):  # where both are there, the last counts
        expression = re.compile(re.escape(each).replace(r"\*", "([^/]+)"))
        for path in sorted(root.glob(each)):
            relative = path.relative_to(root).as_posix()
            found = expression.fullmatch(relative)
            if found and not any(part.startswith(".") for part in relative.split("/")):
                yield found[1], path


def _case_name(pattern: str, star: str) -> str:
    """The first part of the path that holds the `*`, filled in; without its suffix, and nnU-Net's channel."""
    part = next(part for part in pattern.split("/") if "*" in part)
    for suffix in _SUFFIXES:
        part = part.removesuffix(suffix)
    if part.endswith("*_0000"):
        part = part.removesuffix("_0000")
    part = part.replace("*", star)
    for suffix in _SUFFIXES:
        part = part.removesuffix(suffix)
    return part


def _card_error(error: ValidationError, front: FrontMatter, file: Path) -> DataError:
    """The first problem of a card, with its line and field, on one line."""
    location = problem_location(error)
    labels = front.content.get("labels")
    unnamed = [key for key, said in labels.items() if said == UNNAMED] if isinstance(labels, dict) else []
    if unnamed:
        line, _ = front.locate(["labels", unnamed[0]])
        verb = "is" if len(unnamed) == 1 else "are"
        return DataError(
            file,
            f"line {line}, `labels.{unnamed[0]}`: nobody has said what {', '.join(map(str, unnamed))} {verb}, "
            f"found {UNNAMED!r}",
            "write the organ there, and under `annotated`",
        )
    if location[:1] == ("labels",) and len(location) > 1 and isinstance(labels, dict):
        names = [key for key in labels if isinstance(key, str)]
        if names and isinstance(location[1], int):  # masks, which `Card` numbers
            location = ("labels", names[location[1] - 1], *location[2:])
    remedy = "mend the card; those in data_cards are examples"
    fields = Card.model_fields if len(problem_location(error)) == 1 else ()
    return validation_problem(error, front, file, remedy, location, fields)
