"""What the sections of a training config have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a config: no field that is not known, none that changes, no number that is infinite or none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def some_each_once(entries: Any) -> Any:
    """Return `entries` if there are any, each once.

    Raises:
        ValueError: If there is none, or one of them twice.
    """
    if not entries:
        raise ValueError("at least one is needed")
    if twice := [entry for place, entry in enumerate(entries) if entry in entries[:place]]:
        raise ValueError(f"found {twice[0]!r} twice, expected each once")
    return entries
