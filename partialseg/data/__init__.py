"""From raw scans and data cards to patches with candidates.

Names are looked up when first used, so that what needs no TensorFlow does not import it.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "candidates": "partialseg.data.labels",
    "candidate_table": "partialseg.data.labels",
    "read_card": "partialseg.data.cards",
    "split_left_right": "partialseg.data.sides",
    "patches": "partialseg.data.pipeline",
    "read_prepared": "partialseg.data.prepared",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'partialseg.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
