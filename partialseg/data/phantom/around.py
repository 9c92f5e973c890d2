"""A body around real organs: where spine, trunk and diaphragm must be, judged by the organs that are labelled."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d, maximum_filter1d

from partialseg.data.phantom.torso import Torso

#: Where the centroids of organs lie in the reference layout, body mm (x, y, z), and how far each can be trusted.
_REFERENCE: tuple[tuple[str, tuple[float, float, float], float], ...] = (
    ("left_kidney", (-63, -6, -12), 4.0),
    ("right_kidney", (63, -6, -26), 4.0),
    ("liver", (70, 28, 35), 1.5),
    ("spleen", (-97, -6, 56), 1.5),
    ("pancreas", (-12, 42, 0), 1.5),
    ("stomach", (-40, 55, 45), 0.6),
    ("gallbladder", (50, 68, -8), 0.5),
    ("duodenum", (30, 42, -30), 0.7),
    ("aorta", (-7, 31, 20), 3.0),
    ("vena_cava", (19, 30, 0), 3.0),
    ("adrenal", (0, 4, 25), 1.0),
    ("esophagus", (-14, 46, 110), 0.8),
    ("colon", (0, 55, -60), 0.3),
    ("small_bowel", (0, 60, -95), 0.3),
    ("bladder", (0, 55, -320), 0.4),
    ("femur", (0, 15, -330), 0.4),
)
_ORGAN_PARTS: tuple[tuple[str, str], ...] = (
    (r"left.*kidney|kidney.*left", "left_kidney"),
    (r"right.*kidney|kidney.*right", "right_kidney"),
    (r"kidney", "kidney"),
    (r"liver|hepatic", "liver"),
    (r"spleen", "spleen"),
    (r"pancrea", "pancreas"),
    (r"stomach", "stomach"),
    (r"gall", "gallbladder"),
    (r"duoden", "duodenum"),
    (r"aorta", "aorta"),
    (r"cava|ivc", "vena_cava"),
    (r"portal|splenic", "portal_vein"),
    (r"adrenal", "adrenal"),
    (r"esophagus", "esophagus"),
    (r"colon", "colon"),
    (r"intestin|bowel|jejun|ileum", "small_bowel"),
    (r"bladder", "bladder"),
    (r"femur", "femur"),
)
#: The organs whose tops lie under the diaphragm.
_UPPER = ("liver", "spleen", "stomach")


def organ_of_name(name: str) -> str | None:
    """The reference organ that a name in a label map means, None if it is none of them.

    Example:
        >>> [organ_of_name(name) for name in ("Left kidney", "oesophagus", "tumour")]
        ['left_kidney', 'esophagus', None]
    """
    plain = re.sub(r"[\s\-]+", "_", name.strip().lower())
    return next((organ for part, organ in _ORGAN_PARTS if re.search(part, plain)), None)


@dataclass(frozen=True)
class Surroundings:
    """The body around a label map.

    Attributes:
        torso: The trunk.
        axes_mm: Body coordinates of the map's voxel centres, z, y, x.
        spine_mm: x and y of the spine's centre in each slice, relative to the origin, each `(depth,)`.
        diaphragm_mm: Level of the diaphragm in each column, `(height, width)`, NaN where unknown.
    """

    torso: Torso
    axes_mm: tuple[np.ndarray, np.ndarray, np.ndarray]
    spine_mm: tuple[np.ndarray, np.ndarray]
    diaphragm_mm: np.ndarray


def fit_surroundings(
    label: np.ndarray, spacing_mm: tuple[float, float, float], organs: dict[int, str | None], fat_mm: float
) -> Surroundings:
    """Fit spine, trunk and diaphragm to a label map.

    Args:
        label: `(z, y, x)`, RAS+, on a coarse grid.
        spacing_mm: Of that grid.
        organs: What each value is, as `organ_of_name` says.
        fat_mm: Subcutaneous fat.
    """
    index = np.nonzero(label)
    value = label[index]
    position = np.stack([i * s for i, s in zip(index, spacing_mm, strict=True)]).astype(np.float32)
    middle_x = (label.shape[2] - 1) * spacing_mm[2] / 2
    origin = _origin(position, value, organs, label.shape, spacing_mm, middle_x)
    axes = tuple(np.arange(n) * s - o for n, s, o in zip(label.shape, spacing_mm, origin, strict=True))
    spine = _spine_path(label, axes)
    body = position - np.asarray(origin, np.float32)[:, None]
    body[2] -= spine[0][index[0]]
    body[1] -= spine[1][index[0]]
    soft = np.isin(value, [v for v, organ in organs.items() if organ != "femur"])
    # Only organs that reach the wall can say that a trunk is narrower than usual.
    narrowest = 0.85 if {"liver", "colon", "small_bowel"} & set(organs.values()) else 1.0
    torso = _torso(body[:, soft], _dome_mm(body, value, organs), fat_mm, narrowest)
    return Surroundings(torso, axes, spine, _diaphragm(label, axes[0], organs))


def _origin(
    position: np.ndarray,
    value: np.ndarray,
    organs: dict[int, str | None],
    shape: tuple[int, ...],
    spacing_mm: tuple[float, float, float],
    middle_x: float,
) -> tuple[float, float, float]:
    """Origin of the body in the map's mm (z, y, x): the trusted mean of what each labelled organ suggests."""
    reference = {organ: (np.array(place[::-1]), trust) for organ, place, trust in _REFERENCE}
    guesses, weights = [], []
    for number, organ in organs.items():
        here = position[:, value == number]
        for name, part in _with_sides(organ, here, middle_x):
            if name in reference and part.shape[1] * np.prod(spacing_mm) > 2000:
                place, trust = reference[name]
                guesses.append(part.mean(axis=1) - place)
                weights.append(trust)
    if not guesses:
        centre = [(n - 1) * s / 2 for n, s in zip(shape, spacing_mm, strict=True)]
        return (centre[0], centre[1] - 30, centre[2])
    return tuple(float(c) for c in np.average(guesses, axis=0, weights=weights))


def _with_sides(
    organ: str | None, position: np.ndarray, middle_x: float
) -> list[tuple[str | None, np.ndarray]]:
    """Tell the kidneys of a value "kidney" apart by the middle of the scan; others are as they are."""
    if organ != "kidney":
        return [(organ, position)]
    right = position[2] > middle_x
    return [("right_kidney", position[:, right]), ("left_kidney", position[:, ~right])]


def _spine_path(label: np.ndarray, axes: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """In each slice, the place of a vertebra near the origin that labelled organs leave free; smooth along z."""
    z, y, x = axes
    shifts = [(dx, dy) for dx in range(-18, 19, 6) for dy in range(-24, 25, 6)]
    cost = np.zeros((len(shifts), len(z)), np.float32)
    for row, (dx, dy) in enumerate(shifts):
        column = (np.abs(y - dy + 16)[:, None] < 40) & (np.abs(x - dx)[None, :] < 23)
        area = max(int(column.sum()), 1)
        taken = (label[:, column] > 0).sum(axis=1) / area
        cost[row] = taken + 0.0004 * (dx * dx + dy * dy)
    step = float(z[1] - z[0]) if len(z) > 1 else 1.0
    cost = gaussian_filter1d(cost, 20 / step, axis=1, mode="nearest")
    best = np.array(shifts, dtype=np.float64)[cost.argmin(axis=0)]
    path = gaussian_filter1d(best, 20 / step, axis=0, mode="nearest")
    # Below the last lumbar vertebra the spine turns backward.
    sacrum = np.minimum(0.006 * np.clip(-z - 115, 0, None) ** 2, 65)
    return path[:, 0], path[:, 1] - sacrum


def _dome_mm(body: np.ndarray, value: np.ndarray, organs: dict[int, str | None]) -> float:
    """Level of the top of the diaphragm: just above the liver, where that is labelled."""
    for number, organ in organs.items():
        top = body[0][value == number]
        if organ == "liver" and top.size:
            return float(np.clip(top.max() + 3, 60, 160))
    return 112.0


def _torso(body: np.ndarray, dome_mm: float, fat_mm: float, narrowest: float) -> Torso:
    """A trunk of adult form that holds the labelled soft organs closely, smooth along z."""
    levels = np.arange(-420.0, 260.0, 20.0)
    half = np.interp(
        levels, [-420, -330, -240, -170, -110, 0, 100, 200], [40, 78, 104, 114, 120, 122, 122, 114]
    )
    front = np.interp(levels, [-420, -330, -200, -100, 0, 100, 200], [40, 80, 100, 98, 100, 98, 90])
    back = np.interp(levels, [-420, -330, -200, -100, 0, 60, 120], [10, 15, 30, 38, 40, 48, 56])
    trunk = np.interp(levels, [-420, -330, -200, -110, 100, 200], [172, 172, 150, 137, 137, 130])
    slices = [body[1:, np.abs(body[0] - level) < 15] for level in levels]
    front_needs = [_quantile(y, 0.995) + 6 for y, _ in slices]
    front = _hold(levels, front, np.array(front_needs), narrowest)
    back = _hold(levels, back, np.array([_quantile(-y[np.abs(x) > 35], 0.995) + 4 for y, x in slices]), 0.95)
    width_needs = [_width_need(y, x, f, b) for (y, x), f, b in zip(slices, front, back, strict=True)]
    wide = _hold(levels, half, np.array(width_needs), narrowest)
    return Torso(
        z_mm=tuple(levels),
        half_width_mm=tuple(wide),
        front_mm=tuple(front),
        back_mm=tuple(back),
        muscle_mm=tuple(np.maximum(trunk * wide.max() / half.max() - wide, 13)),
        fat_mm=fat_mm,
        dome_mm=dome_mm,
    )


def _quantile(values: np.ndarray, share: float) -> float:
    """A quantile, NaN for too few values to say."""
    return float(np.quantile(values, share)) if values.size > 50 else float("nan")


def _width_need(y: np.ndarray, x: np.ndarray, front: float, back: float) -> float:
    """Half-width of a cavity that holds the points, given how far it reaches forward and back."""
    v2 = np.minimum(((y - (front - back) / 2) / ((front + back) / 2)) ** 2, 0.75)
    # Solve u^4 + v^4 + 1.3 u^2 v^2 = 0.9 for u (see `torso.rounded_distance`).
    u2 = (-1.3 * v2 + np.sqrt(1.69 * v2**2 + 4 * (0.9 - v2**2))) / 2
    return _quantile(np.abs(x) / np.sqrt(u2), 0.995)


def _hold(levels: np.ndarray, usual: np.ndarray, needs: np.ndarray, smallest: float) -> np.ndarray:
    """The usual profile, scaled to what is needed in the abdomen, and widened where more is needed."""
    belly = needs[(levels > -100) & (levels < 100) & ~np.isnan(needs)]
    scale = (
        max(smallest, float(np.quantile(belly, 0.6) / usual[np.abs(levels) < 100].max()))
        if belly.size
        else 1.0
    )
    profile = np.fmax(usual * min(scale, 1.5), np.minimum(needs, usual * 1.6))
    return gaussian_filter1d(maximum_filter1d(profile, 2), 1.2, mode="nearest")


def _diaphragm(label: np.ndarray, z: np.ndarray, organs: dict[int, str | None]) -> np.ndarray:
    """Tops of the upper organs in each column, where they are near the highest of their neighbourhood."""
    upper = np.isin(label, [value for value, organ in organs.items() if organ in _UPPER])
    columns = upper.any(axis=0)
    top = np.where(columns, z[label.shape[0] - 1 - upper[::-1].argmax(axis=0)], np.nan)
    # Lower tops lie under other organs, not under the lung; at the end of the scan there is no top.
    low = ~(top > (np.nanmax(top) - 75 if columns.any() else 0)) | (top >= z[-1])
    return np.where(low, np.nan, top + 1.5)
