"""YAML at the top of a Markdown file, or in a file of its own, and on which line each field stands."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from partialseg.errors import DataError

#: The front matter starts on the second line of a file, after `---`.
FIRST_LINE = 2

#: Writes values from files, which may be endless, on a part of a line.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 2, 3, 3, 60, 60
#: How pydantic's words for what it expected are put for people.
_PLAIN_WORDS = {
    "a valid dictionary": "`name: value` lines",
    "a valid string": "text",
    "a valid list": "a list",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    " after validation": "",
    ", unable to parse string as an integer": "",
    ", unable to parse string as a number": "",
}


@dataclass(frozen=True)
class FrontMatter:
    """What stands between the two `---` lines at the top of a Markdown file, or in a YAML file.

    Attributes:
        content: The fields and their values.
        node: The YAML tree, which knows the lines.
        first_line: The line of the file (from 1) on which the YAML starts.
    """

    content: dict[Any, Any]
    node: yaml.MappingNode
    first_line: int = FIRST_LINE

    def locate(self, location: Iterable[str | int]) -> tuple[int, tuple[str | int, ...]]:
        """Find a field.

        Args:
            location: Keys and list indices, from the outermost on.

        Returns:
            The line of the file (from 1) of the innermost part that is there, and the part of `location`
            that leads to it.
        """
        node, mark, steps = self.node, self.node.start_mark, []
        for step in location:
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == str(step)), None)
                if found is None:
                    break
                mark, node = found[0].start_mark, found[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                mark = node.start_mark
            else:
                break
            steps.append(step)
        return mark.line + self.first_line, tuple(steps)


def read_front_matter(file: Path) -> FrontMatter:
    """Read the front matter of a Markdown file.

    Raises:
        DataError: If there is none, it is not YAML of `field: value` lines, or a field is there twice; names
            the line.
    """
    lines = _read_lines(file)
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        raise DataError(
            file,
            "has no front matter, expected YAML between two lines that hold only `---`",
            "start the file with it; the cards in data_cards are examples",
        )
    return _parse(lines[1 : lines.index("---", 1)], file, FIRST_LINE, "its front matter")


def read_yaml(file: Path) -> FrontMatter:
    """Read a YAML file.

    Raises:
        DataError: If it is not YAML of `field: value` lines, or a field is there twice; names the line.
    """
    return _parse(_read_lines(file), file, 1, "it")


def validation_problem(
    error: ValidationError,
    front: FrontMatter,
    file: Path,
    remedy: str,
    location: Sequence[str | int] | None = None,
    fields: Iterable[str] = (),
    list_fields: bool = False,
) -> DataError:
    """The first problem that pydantic found, with its line and field, on one line.

    Where a field is missing and another is unknown, the unknown one comes first: it may be the other, misspelt.

    Args:
        error: What pydantic raised.
        front: What it was raised for.
        file: Where that stands.
        remedy: What to do.
        location: Where the first problem is, if pydantic's own (or an error's `location`) is not the file's.
        fields: Names of all fields beside the first problem's, of which an unknown one may be a misspelling.
        list_fields: Whether to list them for one that is close to none.
    """
    first = _first_problem(error)
    others = error.errors()[1:]
    location = problem_location(error) if location is None else location
    line, steps = front.locate(location)
    if first["type"] == "missing":
        steps = tuple(
            location
        )  # otherwise, steps that are not there are names that pydantic gives to its types
    field = ".".join(str(step) for step in steps)
    words = in_plain_words(first)
    if first["type"] == "extra_forbidden":
        fields = list(fields)
        known = [*_missing_beside(error, first["loc"]), *fields]
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        if close:
            words = f"there is no such field, did you mean `{close[0]}`?"
        elif fields and list_fields:
            words = f"there is no such field, expected one of {', '.join(fields)}"
    more = f" (and {len(others)} more)" if others else ""
    return DataError(file, f"line {line}, `{field}`: {words}{more}", remedy)


def problem_location(error: ValidationError) -> tuple[str | int, ...]:
    """Where the first problem is that pydantic found; an error may say so itself in its context."""
    first = _first_problem(error)
    return tuple(first.get("ctx", {}).get("location", first["loc"]))


def in_plain_words(error: ErrorDetails) -> str:
    """What pydantic found and expected; of what it found no more than fits a line."""
    if error["type"] == "missing":
        return "the field is missing, expected a value"
    if error["type"] == "extra_forbidden":
        return "there is no such field, expected one spelt as in the examples"
    found = "nothing" if error["input"] is None else _SHORT.repr(error["input"])
    if error["type"] == "string_pattern_mismatch":
        return f"found {found}, expected letters, digits and _ . - (a letter or a digit first)"
    expected, is_pydantics_own = re.subn(r"^\w+ should (be|have) ", "expected ", error["msg"])
    if not is_pydantics_own:  # a rule of ours
        message = error["msg"].removeprefix("Value error, ")
        says_what_it_found = error["type"] == "card" or "found" in message or found in message
        return message if says_what_it_found else f"{message}, found {found}"
    for words, plain in _PLAIN_WORDS.items():
        expected = expected.replace(words, plain)
    expected = re.sub(r" or (an )?instance of \w+", "", expected)  # a class of ours
    return f"found {found}, {expected}"


def _first_problem(error: ValidationError) -> ErrorDetails:
    """The problem to name: the first, but a field that is unknown before one that is missing."""
    problems = error.errors()
    unknown = (problem for problem in problems if problem["type"] == "extra_forbidden")
    return next(unknown, problems[0]) if problems[0]["type"] == "missing" else problems[0]


def _missing_beside(error: ValidationError, location: Sequence[str | int]) -> list[str]:
    """Names of missing fields beside the one at `location`."""
    missing = (problem["loc"] for problem in error.errors() if problem["type"] == "missing")
    return [str(place[-1]) for place in missing if place[:-1] == location[:-1]]


def _read_lines(file: Path) -> list[str]:
    try:
        return [line.rstrip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        byte = f"byte {error.start + 1} is 0x{error.object[error.start]:02x}"
        raise DataError(file, f"is not UTF-8 text ({byte}), expected UTF-8", "save it as UTF-8") from error


def _parse(lines: Sequence[str], file: Path, first_line: int, what: str) -> FrontMatter:
    """Read YAML, and say on one line what is none."""
    try:
        return _parse_mapping("\n".join(lines), file, first_line)
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + first_line if error.problem_mark else first_line
        tag = re.search("tag:yaml.org,2002:([^']+)", error.problem or "")
        asks = f"it asks for {tag[1]}" if tag else error.problem
        raise DataError(
            file,
            f"line {line}: is not YAML that is read here ({asks}), expected text, numbers and lists",
            "mend the line, and do not trust the file",
        ) from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + first_line if error.problem_mark else first_line
        raise DataError(file, f"line {line}: is not YAML ({error.problem})", "mend the line") from error
    except DataError:
        raise
    except RecursionError as error:
        raise DataError(
            file, f"{what} is nested too deeply, expected a few levels", "write it without such nesting"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # a control character; a date that no calendar has
        raise DataError(file, f"{what} is not YAML ({error})", "mend it") from error


def _parse_mapping(text: str, file: Path, first_line: int) -> FrontMatter:
    """Read YAML that must be a mapping without repeated keys."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            found = {yaml.SequenceNode: "a list", yaml.ScalarNode: "text"}.get(type(node), "nothing")
            raise DataError(
                file,
                f"line {first_line}: expected `field: value`, found {found}",
                "write a field on each line",
            )
        _refuse_repeated_keys(node, loader, file, first_line, set())
        return FrontMatter(loader.construct_document(node), node, first_line)
    finally:
        loader.dispose()


def _refuse_repeated_keys(
    node: yaml.Node, loader: yaml.SafeLoader, file: Path, first_line: int, visited: set[int]
) -> None:
    """YAML would let the last of two equal keys win, and one label value would vanish."""
    if id(node) in visited:  # an alias: what it stands for was looked at, and may be nested a billion times
        return
    visited.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: dict[Any, str] = {}
        for key, value in node.value:
            text, line = str(key.value), key.start_mark.line + first_line
            if key.tag == "tag:yaml.org,2002:merge":  # it repeats keys, and a few lines may mean a billion
                raise DataError(
                    file, f"line {line}: found `<<`, expected the fields themselves", "write them out"
                )
            # For YAML, `yes` is true, which for Python is 1, and 0x1 is 1 for both.
            meant = loader.construct_object(key) if isinstance(key, yaml.ScalarNode) else text
            first = seen.get(text, seen.get(meant))
            if first is not None:
                found = "is there twice" if first == text else f"means the same as `{first}`"
                raise DataError(file, f"line {line}: `{text}` {found}, expected once", "keep one of the two")
            seen[text] = seen[meant] = text
            _refuse_repeated_keys(value, loader, file, first_line, visited)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_repeated_keys(child, loader, file, first_line, visited)
