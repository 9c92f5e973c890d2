"""What the sections of a training config have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a config: no field that is not known, none that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def some_each_once(entries: Any) -> Any:
    """Return `entries` if there are any, each once.

    Raises:
        ValueError: If there is none, or one of them twice.
    """
    if not entries or len(set(entries)) < len(entries):
        raise ValueError("at least one is needed, and each once")
    return entries
