"""The class list: background is class 0, then the organs; and the colours in which they are drawn."""

from __future__ import annotations

from collections.abc import Sequence

BACKGROUND = "background"

#: The five organs of Shi et al. (2021), in the order of the paper's tables.
PAPER_ORGANS: tuple[str, ...] = ("liver", "spleen", "pancreas", "left_kidney", "right_kidney")

#: Colours of Fig. 1 and Fig. 4 (red, yellow, green, blue, cyan); further organs take from FURTHER_COLOURS.
PAPER_COLOURS: dict[str, str] = {
    "liver": "#ff0000",
    "spleen": "#ffff00",
    "pancreas": "#00ff00",
    "left_kidney": "#0000ff",
    "right_kidney": "#00ffff",
}
FURTHER_COLOURS: tuple[str, ...] = (
    "#ff00ff",
    "#ff8000",
    "#8000ff",
    "#00ff80",
    "#ff80c0",
    "#804000",
    "#808080",
)


def class_names(organs: Sequence[str]) -> tuple[str, ...]:
    """Background followed by the organs.

    Example:
        >>> class_names(["liver", "spleen"])
        ('background', 'liver', 'spleen')
    """
    return (BACKGROUND, *organs)


def organ_colours(organs: Sequence[str]) -> dict[str, str]:
    """The paper's colours where it has one, further colours in turn for other organs.

    Example:
        >>> organ_colours(["spleen", "stomach"])
        {'spleen': '#ffff00', 'stomach': '#ff00ff'}
    """
    others = [organ for organ in organs if organ not in PAPER_COLOURS]
    further = {organ: FURTHER_COLOURS[i % len(FURTHER_COLOURS)] for i, organ in enumerate(others)}
    return {organ: PAPER_COLOURS.get(organ, further.get(organ, "")) for organ in organs}
