"""The YAML front matter of a Markdown file, and on which line each field stands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from partialseg.errors import DataError

#: The front matter starts on the second line of a file, after `---`.
FIRST_LINE = 2


@dataclass(frozen=True)
class FrontMatter:
    """What stands between the two `---` lines at the top of a Markdown file.

    Attributes:
        content: The fields and their values.
        node: The YAML tree, which knows the lines.
    """

    content: dict[Any, Any]
    node: yaml.MappingNode

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
        return mark.line + FIRST_LINE, tuple(steps)


def read_front_matter(file: Path) -> FrontMatter:
    """Read the front matter of a Markdown file.

    Raises:
        DataError: If there is none, it is not YAML of `field: value` lines, or a field is there twice; names
            the line.
    """
    try:
        lines = [line.rstrip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(file, f"is not UTF-8 text ({error})", "save it as UTF-8") from error
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        raise DataError(
            file, "has no front matter", "start the file with YAML between two lines that hold only `---`"
        )
    try:
        return _parse("\n".join(lines[1 : lines.index("---", 1)]), file)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + FIRST_LINE if error.problem_mark else FIRST_LINE
        raise DataError(file, f"line {line}: is not YAML ({error.problem})", "mend the line") from error
    except DataError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # a control character; a date that no calendar has
        raise DataError(file, f"its front matter is not YAML ({error})", "mend it") from error


def _parse(text: str, file: Path) -> FrontMatter:
    """Read YAML that must be a mapping without repeated keys."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise DataError(
                file,
                f"line {FIRST_LINE}: expected `field: value`",
                "see the cards in data_cards for examples",
            )
        _refuse_repeated_keys(node, file)
        return FrontMatter(loader.construct_document(node), node)
    finally:
        loader.dispose()


def _refuse_repeated_keys(node: yaml.Node, file: Path) -> None:
    """YAML would let the last of two equal keys win, and one label value would vanish."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                line = key.start_mark.line + FIRST_LINE
                raise DataError(file, f"line {line}: `{key.value}` is there twice", "keep one of the two")
            seen.add(str(key.value))
            _refuse_repeated_keys(value, file)
    elif isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_repeated_keys(child, file)
