"""Tables of the paper as experiments: which networks a table compares, their training, their scores.

Names are looked up when first used, so that a plan can be listed without TensorFlow.
"""

from __future__ import annotations

from partialseg.lazy import lazy_names

_WHERE = {
    "plan_study": "partialseg.study.plan",
    "run_study": "partialseg.study.runner",
    "keep_single_organs": "partialseg.study.annotation",
}

__all__ = list(_WHERE)

__getattr__ = lazy_names(__name__, _WHERE)
