"""From a trained network to label maps of whole scans, and to an exported model.

Names are looked up when first used, so that importing the package costs nothing. The function that predicts
many scans shares its name with its module: `from partialseg.inference.predict import predict`.
"""

from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    "predict_volume": "partialseg.inference.sliding_window",
    "predict_scan": "partialseg.inference.predict",
    "export": "partialseg.inference.saved_model",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'partialseg.inference' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value
