"""How good predictions are: scores per case and annotated organ, and tables organ × dataset.

Names are looked up when first used, so that `score` alone needs no more than NumPy and SciPy.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "score": "partialseg.evaluation.metrics",
    "evaluate": "partialseg.evaluation.tables",
    "read_scores": "partialseg.evaluation.tables",
    "organ_table": "partialseg.evaluation.summary",
    "compare": "partialseg.evaluation.summary",
    "render_table": "partialseg.evaluation.rendering",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'partialseg.evaluation' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
