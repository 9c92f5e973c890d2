"""What was logged so far, and where training stands: kept in memory, part of every checkpoint."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from partialseg.data.classes import ALL_ORGANS
from partialseg.files import write_text

#: The last came one by one: rows that were logged before them have none.
LOG_COLUMNS = (
    *("stage", "epoch", "learning_rate", "loss", "seconds"),
    *("data_wait", "dice_patches", "dice_volumes"),
)
VALIDATION_COLUMNS = ("stage", "epoch", "source", "dataset", "case", "organ", "dice")
TERM_COLUMNS = ("stage", "epoch", "dataset", "organ", "term", "value")


@dataclass
class Progress:
    """Where training stands, in all that a resume needs beside the variables.

    Attributes:
        stage: Index of the stage under way.
        epoch: Epochs of that stage that are done.
        step: Steps of the epoch under way that are done.
        steps: Steps of the whole training that are done.
        seconds: That the epoch under way has taken so far.
        learning_rate: In use.
        best: Lowest loss of the stage so far, as the plateau rule counts it.
        wait: Epochs since it was reached, or since the learning rate dropped.
        best_dice: Highest mean Dice of a validation so far, by which the weights that stay are chosen.
        best_steps: Steps of the whole training that were done when it was reached.
        log, terms, validation: The rows of log.csv, terms.csv and validation.csv.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    learning_rate: float = 0.0
    best: float | None = None
    wait: int = 0
    best_dice: float | None = None
    best_steps: int = 0
    log: list[list[Any]] = field(default_factory=list)
    terms: list[list[Any]] = field(default_factory=list)
    validation: list[list[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Rows that were logged before terms were logged by organ have one column less.
        without_organ = len(TERM_COLUMNS) - 1
        self.terms = [
            [*row[:3], ALL_ORGANS, *row[3:]] if len(row) == without_organ else row for row in self.terms
        ]

    def write_tables(self, folder: Path) -> None:
        """Write log.csv and terms.csv, and validation.csv where there was one."""
        write_text(folder / "log.csv", _csv(LOG_COLUMNS, self.log))
        write_text(folder / "terms.csv", _csv(TERM_COLUMNS, self.terms))
        if self.validation:
            write_text(folder / "validation.csv", _csv(VALIDATION_COLUMNS, self.validation))


def _csv(columns: tuple[str, ...], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    return text.getvalue()
