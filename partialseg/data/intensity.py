"""Whether an image holds HU: figures of its intensities, and what they give away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

#: Figures but the lowest and the highest value are taken from about this many voxels, evenly spread.
MAX_SAMPLED = 1_000_000
#: HU of fat, fluid and soft tissue, with contrast medium and noise.
SOFT_HU = (-200, 300)
#: What scanners and converters leave added to HU when the rescale intercept is lost.
OFFSET = 1024
#: Fewer voxels than this part within `SOFT_HU` are no scan of a body.
MIN_SOFT = 0.005
#: More voxels than this part where soft tissue is when `OFFSET` is added: dense bone and metal stay below 5%.
MAX_LIFTED = 0.15
#: Where no value is lower, there is no air at its place.
NO_AIR_HU = -500
#: A narrower range of values than this is no scan: noise alone is as wide.
MIN_RANGE = 50
#: Organs without gas, bone or vessels, and the HU between which their median is, from fat to late contrast.
SOLID_ORGANS = ("liver", "spleen", "pancreas", "left_kidney", "right_kidney")
SOLID_HU = (-50, 350)
#: Fat has more HU than this, and no organ as much of what has less as this part: outlines that stray by a voxel
#: into lung and gas have far below.
NOT_TISSUE_HU, MAX_NOT_TISSUE = -200, 0.1

_AGAIN = "convert the original scan again"


@dataclass(frozen=True)
class Intensity:
    """Figures of an image's voxels, in the image's own unit (HU, if all is well).

    Attributes:
        lowest, highest: Over all voxels.
        p1, median, p99: Percentiles.
        soft: Part of the voxels between -200 and 300 HU.
        lifted: Part of the voxels where soft tissue lies if 1024 was added: 874 to 1324.
        at_highest: Part of the voxels that have the highest value.
        labelled_median: Median of the voxels that carry a label; None where there are none.
    """

    lowest: float
    highest: float
    p1: float
    median: float
    p99: float
    soft: float
    lifted: float
    at_highest: float
    labelled_median: float | None = None


def sampled(array: np.ndarray) -> np.ndarray:
    """A view of about `MAX_SAMPLED` evenly spread voxels, of all where there are fewer.

    Example:
        >>> sampled(np.zeros((300, 200, 200))).shape
        (100, 67, 67)
    """
    return array[(slice(None, None, sampling_step(array.size)),) * array.ndim]


def sampling_step(size: int) -> int:
    """Of an array of so many voxels, along each of three axes every how manieth one `sampled` takes."""
    return max(1, int(np.ceil(np.cbrt(size / MAX_SAMPLED))))


def measure_intensity(image: np.ndarray, label: np.ndarray | None = None) -> Intensity:
    """Measure an image.

    Args:
        image: Finite numbers, `(depth, height, width)`.
        label: A label map of the same shape, 0 where nothing is labelled; None where there is none.

    Example:
        >>> air_and_liver = np.array([[[-1000.0, -1000, 60, 62]]])
        >>> measured = measure_intensity(air_and_liver, air_and_liver > 0)
        >>> measured.lowest, measured.soft, measured.labelled_median
        (-1000.0, 0.5, 61.0)
    """
    some = sampled(image)
    highest = float(image.max())
    p1, median, p99 = (float(value) for value in np.percentile(some, (1, 50, 99)))
    labelled = some[sampled(label) > 0] if label is not None else some[:0].ravel()
    return Intensity(
        lowest=float(image.min()),
        highest=highest,
        p1=p1,
        median=median,
        p99=p99,
        soft=_part(some, *SOFT_HU),
        lifted=_part(some, OFFSET - 150, OFFSET + 300),
        at_highest=float(np.count_nonzero(some == highest) / some.size),
        labelled_median=float(np.median(labelled)) if labelled.size else None,
    )


def intensity_problem(measured: Intensity) -> tuple[str, str] | None:
    """What makes an image useless as it is: values that are not HU, told with certainty.

    A network trained on such an image would learn from a scan in another unit, without anybody noticing.

    Returns:
        What was found with what was expected, and what to do; None where nothing is wrong.

    Example:
        >>> grey = measure_intensity(np.arange(256.0).reshape(4, 8, 8))
        >>> intensity_problem(grey)[0]
        'holds grey values 0 to 255, expected HU (air -1000, fat -100, liver about 60): it was windowed'
    """
    low, high = measured.lowest, measured.highest
    found = f"{low:.5g} to {high:.5g}, expected HU (air -1000, fat -100, liver about 60)"
    if low == high:
        return f"every voxel is {low:.5g}, expected a picture in HU", "download or convert it again"
    if high - low < MIN_RANGE:
        return f"holds values {found}: it was rescaled", f"{_AGAIN}, without rescaling intensities"
    if low >= 0 and high <= 255:
        return f"holds grey values {found}: it was windowed", f"{_AGAIN}, without a window"
    lifted = _is_lifted(measured)
    if low >= 0 or lifted:
        middle = measured.median if measured.labelled_median is None else measured.labelled_median
        which = "all voxels" if measured.labelled_median is None else "labelled voxels"
        guess = f": about {OFFSET} too high" if lifted else ", and none is below 0"
        return (
            f"holds values {found}; the median of {which} is {middle:.5g}{guess}",
            f"{_AGAIN} with its rescale intercept, or subtract it ({OFFSET}, as a rule)",
        )
    if measured.soft < MIN_SOFT:
        return (
            f"holds values {found}; {measured.soft:.2%} of the voxels lie between {SOFT_HU[0]} and "
            f"{SOFT_HU[1]}, where fat and soft tissue are",
            f"{_AGAIN} with its rescale slope and intercept",
        )
    return None


def _is_lifted(measured: Intensity) -> bool:
    """Whether soft tissue lies where it is after `OFFSET` was added."""
    if measured.lifted > MAX_LIFTED:
        return True
    # Labels may be bone, teeth or metal, which lie there in a good scan too, with air or soft tissue in its place.
    is_in_place = measured.lowest <= NO_AIR_HU and measured.soft >= measured.lifted
    median = measured.labelled_median
    return not is_in_place and median is not None and abs(median - OFFSET) < 350


def intensity_notes(measured: Intensity) -> tuple[str, ...]:
    """What is unusual in an image that may be HU."""
    notes = []
    if measured.highest < 200:
        notes.append(
            f"no voxel above {measured.highest:.5g} HU (bone has 300 and more): clipped, or cut to a part"
        )
    elif measured.at_highest > 0.01:
        notes.append(
            f"{measured.at_highest:.1%} of the voxels have the highest value {measured.highest:.5g}: clipped"
        )
    if measured.lowest > NO_AIR_HU:
        notes.append(f"no voxel below {measured.lowest:.5g} HU (air has -1000): clipped, or cut to a part")
    if measured.highest > 20_000 or measured.lowest < -5_000:
        notes.append(
            f"voxels from {measured.lowest:.5g} to {measured.highest:.5g}, far beyond -1024 to 3071 HU: "
            "look at the outermost ones"
        )
    return tuple(notes)


def organ_notes(voxels: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Which solid organs do not look like tissue: the label map may belong to another image, or lie askew.

    Args:
        voxels: HU of some voxels of each organ, by name; organs that are not in `SOLID_ORGANS` are not judged.

    Example:
        >>> organ_notes({"liver": np.full(9, -640.0), "spleen": np.full(9, 110.0), "left_lung": np.full(9, -850.0)})
        ('liver has a median of -640 HU, expected -50 to 350: does the label map belong to this image?',)
    """
    low, high = SOLID_HU
    notes = []
    for organ, values in voxels.items():
        if organ not in SOLID_ORGANS or not values.size:
            continue
        median, light = float(np.median(values)), _part(values, -np.inf, NOT_TISSUE_HU)
        found = None
        if not low <= median <= high:
            found = f"has a median of {median:.0f} HU, expected {low} to {high}"
        elif light > MAX_NOT_TISSUE:
            found = f"has {light:.0%} of its voxels below {NOT_TISSUE_HU} HU, where lung and gas are"
        if found is not None:
            notes.append(f"{organ} {found}: does the label map belong to this image?")
    return tuple(notes)


def _part(values: np.ndarray, low: float, high: float) -> float:
    return float(np.count_nonzero((values >= low) & (values <= high)) / values.size)
