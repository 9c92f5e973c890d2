"""How good predictions are: scores per case and annotated organ, and tables organ × dataset.

Names are looked up when first used, so that `score` alone needs no more than NumPy, SciPy and Numba.
"""

from __future__ import annotations

from partialseg.lazy import lazy_names

_WHERE = {
    "score": "partialseg.evaluation.metrics",
    "evaluate": "partialseg.evaluation.tables",
    "read_scores": "partialseg.evaluation.tables",
    "organ_table": "partialseg.evaluation.summary",
    "compare": "partialseg.evaluation.summary",
    "render_table": "partialseg.evaluation.rendering",
    "pair_scores": "partialseg.evaluation.paired",
    "compare_runs": "partialseg.evaluation.comparison",
}

__all__ = list(_WHERE)

__getattr__ = lazy_names(__name__, _WHERE)
