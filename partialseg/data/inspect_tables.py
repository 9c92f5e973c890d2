"""What is drawn, as tables on a terminal. A report is what `partialseg.data.inspect_page.inspect_patches` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table


def datasets_table(report: Mapping[str, Any]) -> Table:
    """Patches and cases of each dataset."""
    table = Table(title=f"{report['batches']:,} batches of {report['settings']['batch_size']}")
    table.add_column("dataset", overflow="fold", min_width=12)
    for heading in ("patches", "asked", "share", "cases", "centred", "with organs"):
        table.add_column(heading, justify="right")
    for found in report["datasets"]:
        table.add_row(
            escape(found["name"]),
            f"{found['patches']:,}",
            f"{round(found['quota'], 1):.10g}",
            percent(found["share"]),
            f"{found['cases_drawn']} of {found['cases']}",
            f"{found['centred']:,}",
            f"{found['with_foreground']:,}",
        )
    return table


def classes_table(report: Mapping[str, Any]) -> Table:
    """Patches of each organ, and what the other voxels are."""
    table = Table()
    table.add_column("class", overflow="fold")
    for heading in ("patches with it", "centred on it", "share of voxels"):
        table.add_column(heading, justify="right")
    for found in report["classes"]:
        row = (f"{found['patches']:,}", f"{found['centred']:,}", percent(found["share"]))
        table.add_row(escape(found["name"]), *row)
    for name, share in report["other_voxels"].items():
        table.add_row(name.replace("_", " "), "", "", percent(share))
    return table


def foreground_line(report: Mapping[str, Any]) -> str:
    """How much of a batch shows organs, in one line."""
    found = report["foreground"]
    shares = [
        f"{name} {percent(found[key]['least'])} at least, {percent(found[key]['mean'])} on the mean"
        for name, key in (("centred on an organ", "centred"), ("with annotated organs", "annotated"))
    ]
    return f"patches of a batch: {'; '.join(shares)} (asked: {percent(found['asked'])} centred)"


def percent(share: float) -> str:
    """A share for people, with as many digits as it needs.

    Example:
        >>> [percent(share) for share in (0, 0.00012, 0.034, 0.5, 1)]
        ['0', '0.012%', '3.4%', '50%', '100%']
    """
    if share == 0:
        return "0"
    return f"{share * 100:.2g}%" if share < 0.1 else f"{share * 100:.0f}%"
