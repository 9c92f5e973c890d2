"""Pictures, and one self-contained HTML file about a run or about several networks side by side.

Names are looked up when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "overlay_picture": "partialseg.report.pictures",
    "learning_curves": "partialseg.report.pictures",
    "NetworkResult": "partialseg.report.html",
    "write_report": "partialseg.report.html",
    "report_run": "partialseg.report.html",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'partialseg.report' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
