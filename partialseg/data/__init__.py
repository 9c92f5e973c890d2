"""From raw scans and data cards to patches with candidates.

Names are looked up when first used, so that what needs no TensorFlow does not import it.
"""

from __future__ import annotations

from partialseg.lazy import lazy_names

_WHERE = {
    "candidates": "partialseg.data.labels",
    "candidate_table": "partialseg.data.labels",
    "read_card": "partialseg.data.cards",
    "split_left_right": "partialseg.data.sides",
    "patches": "partialseg.data.pipeline",
    "PatchConfig": "partialseg.data.sampling",
    "PatchPlan": "partialseg.data.sampling",
    "AugmentationConfig": "partialseg.data.augmentation",
    "read_prepared": "partialseg.data.prepared",
}

__all__ = list(_WHERE)

__getattr__ = lazy_names(__name__, _WHERE)
