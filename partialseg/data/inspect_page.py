"""What training draws, for people: numbers over many batches, pictures of a few patches, and one page of both."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partialseg.data import patch_pictures
from partialseg.data.check_page import page_environment
from partialseg.data.classes import organ_colours
from partialseg.data.inspect_tables import percent
from partialseg.data.patch_pictures import Chooser, picture
from partialseg.data.patch_statistics import PatchCounts
from partialseg.data.prepared import Prepared
from partialseg.data.sampling import PatchConfig, PatchPlan
from partialseg.files import write_json, write_text
from partialseg.progress import track

#: So many batches are counted by default, if the epoch is no shorter.
MOST_BATCHES = 250
#: So many names are in a list of the page; all of them are in `inspect.json`.
MOST_NAMES = 20


def inspect_patches(
    prepared: Prepared,
    config: PatchConfig,
    out: str | Path | None = None,
    batches: int | None = None,
    num_pictures: int = 6,
    stage: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Draw the first batches of a stream of patches, and say what is in them.

    Args:
        prepared: The prepared cases.
        config: How patches are drawn.
        out: Where to write `inspect.json` and `inspect.html`; None for nowhere.
        batches: How many, from the first; None for an epoch, or 250 if that is less.
        num_pictures: So many patches are drawn as pictures at most.
        stage: Of a training, `config` and `stage` (their names), for the page.

    Returns:
        What is in `inspect.json`: what `partialseg.data.patch_statistics.PatchCounts.report` says, and `prepared`
        (the folder), `training` (as `stage` is given), `settings` (of the patches), `classes_in_order`,
        `spacing_mm` and `pictures` (a list of what `partialseg.data.patch_pictures.describe` says).

    Raises:
        DataError: If there is nothing to draw from, or a file is missing, or holds what the manifest does not say.
    """
    plan = PatchPlan(prepared, config)
    prepared.check_files([case for cases in plan.cases.values() for case in cases])
    counts, chooser = PatchCounts(plan), Chooser(num_pictures)
    if batches is None:
        batches = min(config.batches_per_epoch, MOST_BATCHES)
    for index in track(range(batches), "count"):
        draws = plan.batch(index)
        counts.add(draws)
        chooser.add(index, draws)
    drawn = [picture(prepared, config, place) for place in track(chooser.chosen(), "draw")]
    report = {
        "prepared": str(prepared.folder),
        "training": None if stage is None else dict(stage),
        "settings": config.model_dump(mode="json"),
        "classes_in_order": list(prepared.classes),
        "spacing_mm": list(prepared.spacing_mm),
        **counts.report(),
        "pictures": [said for _, said in drawn],
    }
    if out is not None:
        page = as_html(report, [png for png, _ in drawn])
        write_json(Path(out) / "inspect.json", report)
        write_text(Path(out) / "inspect.html", page)
    return report


def as_html(report: Mapping[str, Any], pictures: Sequence[bytes]) -> str:
    """The report as one page, without scripts and without anything to load.

    Args:
        report: What `inspect_patches` returns.
        pictures: A PNG file for each of the report's `pictures`.
    """
    environment = page_environment()
    environment.filters["percent"] = percent
    environment.filters["colour"] = organ_colours(report["classes_in_order"][1:]).__getitem__
    return environment.get_template("inspect.html.jinja").render(
        **report,
        png=[base64.b64encode(content).decode("ascii") for content in pictures],
        tints={name: getattr(patch_pictures, name) for name in ("BACKGROUND", "MERGED", "IGNORED")},
        most_names=MOST_NAMES,
    )
