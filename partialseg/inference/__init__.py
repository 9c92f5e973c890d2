"""From a trained network to label maps of whole scans, and to an exported model.

Names are looked up when first used, so that importing the package costs nothing. The function that predicts
many scans shares its name with its module: `from partialseg.inference.predict import predict`.
"""

from __future__ import annotations

from partialseg.lazy import lazy_names

_WHERE = {
    "predict_volume": "partialseg.models.sliding_window",
    "predict_scan": "partialseg.inference.predict",
    "Outputs": "partialseg.inference.prediction_files",
    "export": "partialseg.inference.saved_model",
}

__all__ = list(_WHERE)

__getattr__ = lazy_names(__name__, _WHERE)
