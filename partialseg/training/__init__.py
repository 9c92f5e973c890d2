"""Training: configs, stages, run folders."""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "TrainingConfig": "partialseg.training.config",
    "read_config": "partialseg.training.config",
    "read_run": "partialseg.training.runs",
    "train": "partialseg.training.trainer",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'partialseg.training' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
