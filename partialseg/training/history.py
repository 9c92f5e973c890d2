"""What was logged so far, and where training stands: kept in memory, written whole after each epoch."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from partialseg.files import write_json, write_text

#: `data_wait` came last: rows that were logged before it have none.
LOG_COLUMNS = ("stage", "epoch", "learning_rate", "loss", "seconds", "data_wait")
TERM_COLUMNS = ("stage", "epoch", "dataset", "term", "value")


@dataclass
class Progress:
    """Where training stands, in all that a resume needs beside weights and optimiser.

    Attributes:
        stage: Index of the stage under way.
        epoch: Epochs of that stage that are done.
        learning_rate: In use for the next epoch.
        best: Lowest loss of the stage so far, as the plateau rule counts it.
        wait: Epochs since it was reached, or since the learning rate dropped.
        checkpoint: File name of the checkpoint that belongs to this, in RUN/checkpoint.
        log, terms: The rows of log.csv and terms.csv.
    """

    stage: int = 0
    epoch: int = 0
    learning_rate: float = 0.0
    best: float | None = None
    wait: int = 0
    checkpoint: str = ""
    log: list[list[Any]] = field(default_factory=list)
    terms: list[list[Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write log.csv and terms.csv, then RUN/checkpoint/progress.json, which makes it count."""
        write_text(folder / "log.csv", _csv(LOG_COLUMNS, self.log))
        write_text(folder / "terms.csv", _csv(TERM_COLUMNS, self.terms))
        write_json(folder / "checkpoint" / "progress.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Progress | None:
        """Read it back; None where nothing has been saved."""
        path = folder / "checkpoint" / "progress.json"
        if not path.is_file():
            return None
        progress = cls(**json.loads(path.read_text(encoding="utf-8")))
        progress.log = [row + [None] * (len(LOG_COLUMNS) - len(row)) for row in progress.log]
        return progress


def _csv(columns: tuple[str, ...], rows: list[list[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([columns, *rows])
    return text.getvalue()
