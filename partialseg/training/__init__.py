"""Training: configs, stages, run folders."""

from __future__ import annotations

from partialseg.lazy import lazy_names

_WHERE = {
    "DataWait": "partialseg.training.data_wait",
    "TrainingConfig": "partialseg.training.config",
    "read_config": "partialseg.training.config",
    "read_run": "partialseg.training.runs",
    "train": "partialseg.training.trainer",
}

__all__ = list(_WHERE)

__getattr__ = lazy_names(__name__, _WHERE)
