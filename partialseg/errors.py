"""What can be wrong with data, said on one line: which file, what is wrong, what to do."""

from __future__ import annotations

import os


class DataError(ValueError):
    """Something is wrong with a file of the user's, not with the program.

    The message is one line, `file: problem; remedy`, so that a command can print one line per problem.

    Args:
        path: The file (or folder) concerned.
        problem: What was found and what was expected.
        remedy: What to do about it.

    Example:
        >>> str(DataError("scan.nii.gz", "is empty", "download it again"))
        'scan.nii.gz: is empty; download it again'
    """

    def __init__(self, path: str | os.PathLike[str], problem: str, remedy: str) -> None:
        self.path = str(path)
        self.problem = " ".join(problem.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.path}: {self.problem}; {self.remedy}")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str, str]]:
        """Let the exception cross from a worker process to its parent."""
        return type(self), (self.path, self.problem, self.remedy)
