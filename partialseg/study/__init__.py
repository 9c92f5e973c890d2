"""Tables of the paper as experiments: which networks a table compares, their training, their scores.

Names are looked up when first used, so that a plan can be listed without TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "plan_study": "partialseg.study.plan",
    "run_study": "partialseg.study.runner",
    "keep_single_organs": "partialseg.study.annotation",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'partialseg.study' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
