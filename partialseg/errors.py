"""What can be wrong with data, said on one line: which file, what is wrong, what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence


class DataError(ValueError):
    """Something is wrong with a file of the user's, not with the program.

    The message is one line, `file: problem; remedy`, so that a command can print one line per problem. What a
    terminal would not show as it is (a line break or an escape sequence in a file's name) is written as Python does.

    Args:
        path: The file (or folder) concerned.
        problem: What was found and what was expected.
        remedy: What to do about it.

    Example:
        >>> str(DataError("scan.nii.gz", "is empty", "download it again"))
        'scan.nii.gz: is empty; download it again'
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, remedy: str) -> None:
        self.path = _printable(str(path))
        self.problem = _printable(" ".join(problem.split()))
        self.remedy = _printable(" ".join(remedy.split()))
        super().__init__(f"{self.path}: {self.problem}; {self.remedy}")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str, str]]:
        """Let the exception cross from a worker process to its parent."""
        return type(self), (self.path, self.problem, self.remedy)


def _printable(text: str) -> str:
    r"""Escape control characters, and bytes of a file's name that are no text.

    Example:
        >>> print(_printable("a\nb.nii.gz"))
        a\nb.nii.gz
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def first_of(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are.

    Example:
        >>> first_of(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
