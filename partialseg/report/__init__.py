"""Pictures, and one self-contained HTML file about a run or about several networks side by side.

Names are looked up when first used.
"""

from __future__ import annotations

from partialseg.lazy import lazy_names

_WHERE = {
    "overlay_picture": "partialseg.report.pictures",
    "learning_curves": "partialseg.report.pictures",
    "NetworkResult": "partialseg.report.html",
    "write_report": "partialseg.report.html",
    "report_run": "partialseg.report.folders",
    "choose_cases": "partialseg.report.cases",
    "read_case": "partialseg.report.case_volumes",
    "widget": "partialseg.report.notebook_widget",
}

__all__ = list(_WHERE)

__getattr__ = lazy_names(__name__, _WHERE)
