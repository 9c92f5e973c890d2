"""The page that `check` writes: one self-contained HTML file with pictures of the cases that were flagged."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from partialseg.data.classes import organ_colours
from partialseg.wording import counted

#: So many pictures are on the page at most, and so many bytes of PNG, which are 4/3 as many in the page: it stays
#: below some 30 MB.
MAX_PICTURES, MAX_PICTURE_BYTES = 1500, 20_000_000
#: So many dots are drawn for an organ at most.
MAX_DOTS = 300

_Case = tuple[str, str]
#: What `partialseg.data.sides.split_left_right` found of a pair, in words for people.
_SIDES = {
    "one side": "one piece alone is labelled, and which side it is cannot be told",
    "fused": "what is labelled is one piece as wide as two organs: they touch, or have grown together",
    "unclear": "the labelled pieces do not lie side by side, so that left and right cannot be told",
    "empty": "nothing is labelled",
}
_STAYS = 'it counts as "left or right"'


def choose_pictures(report: Mapping[str, Any], files: Mapping[_Case, Path | None]) -> dict[_Case, bytes]:
    """Read the pictures of flagged cases, problems first, then notes, as many as the page holds.

    Args:
        report: As in `partialseg.data.coverage.CheckResult`.
        files: Where the picture of each `(dataset, case)` is, if there is one.
    """
    flagged = [case for case in report["cases"] if not case["good"]]
    flagged += [case for case in report["cases"] if case["good"] and case["notes"]]
    pictures: dict[_Case, bytes] = {}
    num_bytes = 0
    for case in flagged:
        key = (case["dataset"], case["name"])
        file = files.get(key)
        if file is None or not file.is_file():
            continue
        num_bytes += file.stat().st_size
        if len(pictures) == MAX_PICTURES or num_bytes > MAX_PICTURE_BYTES:
            break
        pictures[key] = file.read_bytes()
    return pictures


def as_html(report: Mapping[str, Any], pictures: Mapping[_Case, bytes] | None = None) -> str:
    """The report as one page, without scripts and without anything to load.

    Args:
        report: As in `partialseg.data.coverage.CheckResult`.
        pictures: PNG files of cases, by `(dataset, case)`.
    """
    environment = page_environment()
    environment.filters["ml"] = _millilitres
    environment.filters["plain"] = _plain
    shown = {case: base64.b64encode(png).decode("ascii") for case, png in (pictures or {}).items()}
    flagged = sum(bool(case["notes"]) or not case["good"] for case in report["cases"])
    organs = report["classes"][1:]
    problems_of: dict[_Case, list[Mapping[str, Any]]] = {}
    for problem in report["problems"]:
        problems_of.setdefault((problem["dataset"], problem["case"]), []).append(problem)
    return environment.get_template("coverage.html.jinja").render(
        **report,
        pictures=shown,
        no_picture={(case["dataset"], case["name"]): case["no_picture"] for case in report["cases"]},
        pictures_left_out=flagged - len(shown),
        problems_of=problems_of,
        colours=organ_colours(organs),
        strips={organ: _strip(organ, report) for organ in organs},
    )


def page_environment() -> jinja2.Environment:
    """Where the templates of this folder are filled in; what is filled in is escaped.

    Example:
        >>> page_environment().from_string("{{ 2 | count('case') }} of {{ name }}").render(name="<b>")
        '2 cases of &lt;b&gt;'
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("partialseg.data", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count"] = counted
    return environment


def _strip(organ: str, report: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where to draw the volumes of an organ, in percent of a logarithmic axis; None where no case has it."""
    volumes = [
        (case["volumes_ml"][organ], case["dataset"], case["name"])
        for case in report["cases"]
        if case["volumes_ml"].get(organ)
    ]
    if not volumes:
        return None
    cells = report["coverage"][organ]
    outliers = {(dataset, name) for dataset, cell in cells.items() for name in cell["outliers"]}
    out = [entry for entry in volumes if entry[1:] in outliers]
    usual = [entry for entry in volumes if entry[1:] not in outliers]
    usual = sorted(usual)[:: max(1, -(-len(usual) // MAX_DOTS))]
    amounts = np.array([entry[0] for entry in volumes])
    low, high = amounts.min() / 1.25, amounts.max() * 1.25

    def place(volume: float) -> float:
        return round(float(np.log(volume / low) / np.log(high / low) * 100), 2)

    return {
        "lowest": float(amounts.min()),
        "highest": float(amounts.max()),
        "median": place(float(np.median(amounts))),
        "dots": [_dot(entry, place(entry[0]), False) for entry in usual]
        + [_dot(entry, place(entry[0]), True) for entry in out],
    }


def _dot(entry: Sequence[Any], place: float, is_outlier: bool) -> dict[str, Any]:
    volume, dataset, name = entry
    return {"place": place, "outlier": is_outlier, "title": f"{dataset} {name}: {_millilitres(volume)}"}


def _millilitres(volume: float) -> str:
    """A volume for people.

    Example:
        >>> _millilitres(1523.4), _millilitres(2.345)
        ('1,523 mL', '2.3 mL')
    """
    return f"{volume:,.0f} mL" if volume >= 10 else f"{volume:.2g} mL"


def _plain(note: str) -> str:
    """A note for people: what is said of a pair without a side becomes a sentence.

    Example:
        >>> _plain("left_kidney/right_kidney: 1.2 mL on neither side")
        'left and right kidney: 1.2 mL are clearly nearer to neither; it counts as "left or right"'
        >>> _plain("no pancreas")
        'no pancreas'
    """
    pair = re.fullmatch(r"left_(\w+)/right_\1: (.+)", note)
    if pair is None:
        return note
    organ, found = pair[1].replace("_", " "), pair[2]
    if found in _SIDES:
        stays = "" if found == "empty" else f"; {_STAYS}"
        return f"left and right {organ}: {_SIDES[found]}{stays}"
    if found.endswith(" mL on neither side"):
        volume = found.removesuffix(" on neither side")
        return f"left and right {organ}: {volume} are clearly nearer to neither; {_STAYS}"
    return note
