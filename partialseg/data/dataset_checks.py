"""What is unusual in a dataset: its card against the cases that are there, and volumes that stand out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from partialseg.data.cards import Card, is_part_of_published, names_found, unmatched_names
from partialseg.data.classes import spelling_note
from partialseg.data.inspect_case import InspectedCase
from partialseg.errors import first_of

#: An organ's volumes are compared where this many cases have it.
MIN_CASES = 8
#: A volume stands out if its logarithm is further from the median than this many standard deviations, as
#: estimated by the median absolute deviation (times 1.4826), and ...
MAX_DEVIATIONS = 3.0
#: ... the volume itself is this many times larger or smaller than the median.
MIN_FACTOR = 2.0

_Case = tuple[str, str]


def card_notes(card: Card, raw: str | Path, cases: Sequence[InspectedCase]) -> list[str]:
    """What a card says that the files do not show.

    Args:
        card: The dataset's card.
        raw: The folder in which its cases were looked for.
        cases: Its cases, as inspected; nothing is noted where there are none.

    Returns:
        Notes on: fewer or more cases than published, names of cases that match none, label values and organs
            that are in no case, and names of organs that look misspelt. In a part of a published dataset, a
            card that comes with the package speaks of cases and values that need not be there: these are not
            noted.
    """
    if not cases:
        return []
    names = names_found(card, raw)
    here = len(cases) + sum(card.why_excluded(name) is not None for name in names)
    published = card.counts.get("labelled")
    notes = []
    if published is not None and here < published:
        notes.append(f"{here} of the {published} published cases are here")
    elif published is not None and here > published:
        notes.append(f"{here} cases are here, `counts` of the card says {published}")
    if not is_part_of_published(card, here):
        notes += unmatched_names(card, names) + _absent_values(card, cases)
    good = [case for case in cases if not case.problems]
    for organ in card.annotated:
        absent = any(organ in case.volumes_ml for case in good)
        absent &= all(not case.volumes_ml.get(organ) and not case.unsure_ml for case in good)
        if absent:
            notes.append(f"{organ} is annotated, and no case has a voxel of it")
        if misspelt := spelling_note(organ):
            notes.append(misspelt)
    return notes


def volume_outliers(volumes_ml: Mapping[_Case, float]) -> dict[_Case, tuple[float, float, float]]:
    """Find volumes of one organ that stand out.

    A case is compared with its dataset, or with all datasets where its own has fewer than 8 cases with the
    organ; where all have fewer, nothing is said. The rule rests on medians, so that what stands out does not
    move it.

    Args:
        volumes_ml: Volume in mL, above 0, by `(dataset, case)`.

    Returns:
        For each case that stands out, the median of those it is compared with, and the range that is usual
        among them.

    Example:
        >>> volumes = {("here", str(number)): 1400.0 + 50 * number for number in range(9)}
        >>> volumes["here", "9"] = 4000.0
        >>> [(case, round(median)) for case, (median, low, high) in volume_outliers(volumes).items()]
        [(('here', '9'), 1625)]
    """
    groups: dict[str, list[float]] = {}
    for (dataset, _), volume in volumes_ml.items():
        groups.setdefault(dataset, []).append(volume)
    usual = {dataset: _usual_range(peers) for dataset, peers in groups.items() if len(peers) >= MIN_CASES}
    of_all = _usual_range([*volumes_ml.values()]) if len(volumes_ml) >= MIN_CASES else None
    found = {}
    for (dataset, name), volume in volumes_ml.items():
        known = usual.get(dataset, of_all)
        if known is not None and not known[1] <= volume <= known[2]:
            found[dataset, name] = known
    return found


def _usual_range(volumes_ml: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the lowest and the highest volume that do not stand out."""
    logs = np.log(volumes_ml)
    middle = float(np.median(logs))
    deviation = 1.4826 * float(np.median(np.abs(logs - middle)))
    limit = max(MAX_DEVIATIONS * deviation, float(np.log(MIN_FACTOR)))
    low, median, high = (float(np.exp(value)) for value in (middle - limit, middle, middle + limit))
    return median, low, high


def outlier_notes(cases: Sequence[InspectedCase], organs: Sequence[str]) -> dict[_Case, dict[str, str]]:
    """Notes on volumes that stand out, for each case and organ; small ones of organs that are cut off do not."""
    notes: dict[_Case, dict[str, str]] = {}
    for organ in organs:
        with_organ = {(case.dataset, case.name): case for case in cases if case.volumes_ml.get(organ, 0) > 0}
        volumes = {key: case.volumes_ml[organ] for key, case in with_organ.items()}
        for key, (median, low, high) in volume_outliers(volumes).items():
            cut_off = organ in with_organ[key].cut_off
            if cut_off and volumes[key] < low:
                continue
            cut = " (and it goes on beyond the scan)" if cut_off else ""
            notes.setdefault(key, {})[organ] = (
                f"{organ} measures {_shown(volumes[key])} mL{cut}; the median is {_shown(median)} mL, "
                f"usual are {_shown(low)} to {_shown(high)}"
            )
    return notes


def _shown(volume_ml: float) -> str:
    return f"{volume_ml:.0f}" if volume_ml >= 10 else f"{volume_ml:.2g}"


def _absent_values(card: Card, cases: Sequence[InspectedCase]) -> list[str]:
    """Values of organs that the card lists and no label map holds."""
    seen = {value for case in cases for value in case.values}
    absent = [
        f"{card.describe_value(value)} ({' or '.join(names)})"
        for value, names in sorted(card.labels.items())
        if value not in seen and set(names) & set(card.annotated)
    ]
    return [f"the card lists values that no case has: {first_of(absent)}"] if absent and seen else []
