"""Changes of a patch's HU, as in nnU-Net's default trainer: noise, blur, brightness, contrast, resolution and gamma.

Every transform works in place on a float32 array `(depth, height, width)`, C-contiguous, in HU. nnU-Net applies them
to normalised values; in HU they are the same with `mean_hu` as zero and `std_hu` as unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from partialseg.data.augmentation.config import AugmentationConfig, Chance
from partialseg.data.augmentation.filters import coarse_taps, filter_axes, gaussian_taps, no_taps
from partialseg.data.augmentation.kernels import compiled

#: In the order in which they are applied.
TRANSFORMS = ("noise", "blur", "brightness", "contrast", "low_resolution", "inverted_gamma", "gamma")
#: Half of their strengths are drawn below 1, and half above.
_AROUND_ONE = frozenset({"brightness", "contrast", "inverted_gamma", "gamma"})
#: Angles of pairs of normal numbers; the two tables fit into the processor's first cache.
_ANGLES = (np.arange(4096) + 0.5) * (2 * np.pi / 4096)
_COSINES, _SINES = np.cos(_ANGLES).astype(np.float32), np.sin(_ANGLES).astype(np.float32)


def augment_intensity(
    image: np.ndarray, config: AugmentationConfig, in_plane: bool, random: np.random.Generator
) -> dict[str, float]:
    """Draw which transforms a patch gets, and apply them in place, in the order of `TRANSFORMS`.

    The same numbers are drawn from `random` whatever happens, so that a transform which is turned off, or happens
    more often, changes nothing about the others.

    Args:
        image: float32 HU `(depth, height, width)`, C-contiguous; clipped to `config.window_hu` by who reads it.
        config: Probabilities and ranges.
        in_plane: Whether the patch keeps its resolution along the first axis, see `AugmentationConfig.is_in_plane`.
        random: Generator.

    Returns:
        The transforms that were applied, with their strengths: the standard deviation of noise in HU, that of blur in
        voxels (the mean of the three axes'), the factors and exponents of the others.

    Raises:
        ValueError: If the image has another dtype or layout.

    Example:
        >>> config = AugmentationConfig(gamma={"probability": 1, "range": (2, 2)})
        >>> augment_intensity(np.zeros((2, 3, 4), np.float32), config, False, np.random.default_rng(0))
        {'inverted_gamma': 0.7745699658997384, 'gamma': 2.0}
    """
    strengths = draw_strengths(config, random)
    # The voxels' noise comes from a generator of its own: how much is drawn from `random` stays the same without it.
    noise_random = np.random.Generator(np.random.SFC64(random.integers(2**63)))
    for name, strength in strengths.items():
        if name == "noise":
            add_noise(image, strength[0], noise_random)
        elif name == "blur":
            blur(image, strength)
        elif name == "brightness":
            scale_brightness(image, strength[0], config.mean_hu)
        elif name == "contrast":
            scale_contrast(image, strength[0])
        elif name == "low_resolution":
            lower_resolution(image, strength[0], in_plane)
        else:
            apply_gamma(image, strength[0], inverted=name == "inverted_gamma")
    return {name: sum(strength) / len(strength) for name, strength in strengths.items()}


def draw_strengths(config: AugmentationConfig, random: np.random.Generator) -> dict[str, tuple[float, ...]]:
    """Draw which transforms happen and how strong they are, in the order of `TRANSFORMS`.

    Returns:
        One strength for each transform that happens, and three `(z, y, x)` for blur; that of noise in HU. Always 28
        numbers are drawn.

    Example:
        >>> config = AugmentationConfig(blur={"probability": 1, "range": (0.5, 0.5)})
        >>> draw_strengths(config, np.random.default_rng(0))["blur"]
        (0.5, 0.5, 0.5)
    """
    strengths = {}
    for name in TRANSFORMS:
        happens, *shares = random.random(4).tolist()
        chance: Chance = getattr(config, name)
        if happens < chance.probability:
            place = around_one if name in _AROUND_ONE else evenly
            unit = config.std_hu if name == "noise" else 1.0
            used = shares if name == "blur" else shares[:1]
            strengths[name] = tuple(unit * place(chance.range, share) for share in used)
    return strengths


def evenly(range: tuple[float, float], share: float) -> float:
    """The strength that lies so far up a range.

    Example:
        >>> evenly((10, 20), 0.25)
        12.5
    """
    return range[0] + (range[1] - range[0]) * share


def around_one(range: tuple[float, float], share: float) -> float:
    """The strength that lies so far up a range of which the part below 1 counts as much as the part above.

    With shares drawn evenly, half of the strengths make less of something and half more, as in nnU-Net, however far
    the range reaches to either side. A range that lies on one side of 1 is drawn from evenly.

    Example:
        >>> [around_one((0.5, 3), share) for share in (0, 0.25, 0.5, 0.75, 1)]
        [0.5, 0.75, 1.0, 2.0, 3.0]
        >>> around_one((2, 3), 0.25)
        2.25
    """
    if not range[0] < 1 < range[1]:
        return evenly(range, share)
    return evenly((range[0], 1.0), 2 * share) if share < 0.5 else evenly((1.0, range[1]), 2 * share - 1)


def add_noise(image: np.ndarray, std: float, random: np.random.Generator) -> None:
    """Add Gaussian noise, each voxel its own, in place.

    Pairs of normal numbers are made from a radius and an angle (Box and Muller, 1958), several times as fast as
    NumPy's own. The angle is one of 4096, which changes no moment of the numbers below the 4096th; none is beyond 5.8
    standard deviations, since the radius comes from 24 bits.

    Args:
        image: float32 HU `(depth, height, width)`, C-contiguous.
        std: Standard deviation in HU, 0 or more.
        random: Generator; the fastest is `SFC64`.

    Raises:
        ValueError: If the image has another dtype or layout.

    Example:
        >>> image = np.zeros((20, 20, 20), np.float32)
        >>> add_noise(image, 5.0, np.random.default_rng(0))
        >>> round(float(image.std()))
        5
    """
    _check(image)
    planes = image.reshape(image.shape[0], -1)
    half = (planes.shape[1] + 1) // 2
    radius = np.empty(half, np.float32)
    for plane in planes:
        bits = random.integers(2**64, size=half, dtype=np.uint64)
        _unit_interval(bits, radius)
        np.log(radius, out=radius)
        np.sqrt(np.multiply(radius, np.float32(-2 * std * std), out=radius), out=radius)
        _add_pairs(radius, bits, _COSINES, _SINES, plane[:half], plane[half:])


@compiled
def _unit_interval(bits: np.ndarray, numbers: np.ndarray) -> None:
    """Numbers above 0, up to 1, from the 24 highest of 64 bits."""
    for i in range(bits.size):
        numbers[i] = np.float32(np.int32(bits[i] >> np.uint64(40)) + np.int32(1)) * np.float32(2.0**-24)


@compiled
def _add_pairs(
    radius: np.ndarray,
    bits: np.ndarray,
    cosines: np.ndarray,
    sines: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
) -> None:
    """Add a radius times cosine and sine of an angle, which is the lowest bits; `second` may be shorter by one."""
    lowest = np.uint64(cosines.size - 1)
    for i in range(first.size):
        first[i] += radius[i] * cosines[bits[i] & lowest]
    for i in range(second.size):
        second[i] += radius[i] * sines[bits[i] & lowest]


def blur(image: np.ndarray, sigmas: Sequence[float]) -> None:
    """Blur with a Gaussian along each axis, in place; beyond its ends a row goes on mirrored.

    Args:
        image: float32 HU `(depth, height, width)`, C-contiguous.
        sigmas: Standard deviations `(z, y, x)` in voxels, 0 or more; with 0 an axis is left as it is.

    Raises:
        ValueError: If the image has another dtype or layout.

    Example:
        >>> image = np.float32([[[0, 0, 1000, 0, 0]]])
        >>> blur(image, (0, 0, 0.5))
        >>> image.round().tolist()
        [[[0.0, 107.0, 787.0, 107.0, 0.0]]]
    """
    _check(image)
    filter_axes(image, [gaussian_taps(size, sigma) for size, sigma in zip(image.shape, sigmas, strict=True)])


def scale_brightness(image: np.ndarray, factor: float, mean_hu: float) -> None:
    """Multiply the distance from `mean_hu`, in place.

    Args:
        image: float32 HU `(depth, height, width)`, C-contiguous.
        factor: Above 0; 1 changes nothing.
        mean_hu: HU that stays as it is, the zero of normalised values.

    Raises:
        ValueError: If the image has another dtype or layout.

    Example:
        >>> image = np.float32([[[80, 180]]])
        >>> scale_brightness(image, 1.5, 80.0)
        >>> image.tolist()
        [[[80.0, 230.0]]]
    """
    _check(image)
    _scale(image, factor, (1 - factor) * mean_hu, -np.inf, np.inf)


def scale_contrast(image: np.ndarray, factor: float) -> None:
    """Multiply the distance from the patch's mean, in place; no voxel leaves the range that the patch had.

    Args:
        image: float32 HU `(depth, height, width)`, C-contiguous.
        factor: Above 0; 1 changes nothing.

    Raises:
        ValueError: If the image has another dtype or layout.

    Example:
        >>> image = np.float32([[[0, 40, 60, 100]]])
        >>> scale_contrast(image, 1.5)
        >>> image.tolist()
        [[[0.0, 35.0, 65.0, 100.0]]]
    """
    _check(image)
    low, high, mean, _ = _summary(image)
    _scale(image, factor, (1 - factor) * mean, low, high)


def lower_resolution(image: np.ndarray, factor: float, in_plane: bool) -> None:
    """Sample down to the nearest voxels and interpolate linearly up again, in place.

    Args:
        image: float32 HU `(depth, height, width)`, C-contiguous.
        factor: Above 0, at most 1: an axis of n voxels keeps `round(n * factor)`, at least one. 1 changes nothing.
        in_plane: Whether the first axis is left as it is.

    Raises:
        ValueError: If the image has another dtype or layout.

    Example:
        >>> image = np.float32([[[0, 40, 80, 100]]])
        >>> lower_resolution(image, 0.5, in_plane=True)
        >>> image.tolist()
        [[[40.0, 55.0, 85.0, 100.0]]]
    """
    _check(image)
    taps = [coarse_taps(size, max(1, round(size * factor))) for size in image.shape]
    filter_axes(image, [no_taps(image.shape[0]), *taps[1:]] if in_plane else taps)


def apply_gamma(image: np.ndarray, exponent: float, inverted: bool) -> None:
    """Raise the patch's range, as 0 to 1, to a power, in place; mean and standard deviation are as before.

    Args:
        image: float32 HU `(depth, height, width)`, C-contiguous.
        exponent: Above 0; 1 changes nothing but rounding, above 1 spreads what is bright, below 1 what is dark.
        inverted: Whether the range is turned upside down before, and back afterwards.

    Raises:
        ValueError: If the image has another dtype or layout.

    Example:
        >>> image = np.float32([[[0, 10, 20]]])
        >>> apply_gamma(image, 2.0, inverted=False)
        >>> image.round().tolist()
        [[[2.0, 7.0, 21.0]]]
    """
    _check(image)
    low, high, mean, std = _summary(image)
    if low == high:
        return
    start, length = (high, low - high) if inverted else (low, high - low)
    for plane in image:  # a plane stays in the cache
        plane -= start
        plane /= length
        np.power(plane, np.float32(exponent), out=plane)
    _, _, power_mean, power_std = _summary(image)
    factor = (-std if inverted else std) / power_std
    _scale(image, factor, mean - factor * power_mean, -np.inf, np.inf)


def _check(image: np.ndarray) -> None:
    """Refuse what could not be changed in place."""
    if image.ndim != 3 or image.dtype != np.float32 or not image.flags.c_contiguous or not image.size:
        raise ValueError(
            f"image: found {image.dtype} {image.shape}{'' if image.flags.c_contiguous else ', not C-contiguous'}; "
            "it must be float32 (depth, height, width), C-contiguous and not empty"
        )


def _summary(image: np.ndarray) -> tuple[np.float32, np.float32, float, float]:
    """Least and greatest value, mean and standard deviation.

    Example:
        >>> [float(value) for value in _summary(np.float32([[[1, 3], [5, 7]]]))]
        [1.0, 7.0, 4.0, 2.23606797749979]
    """
    low, high, total, squares = _sums(image)
    mean = total / image.size
    return low, high, mean, max(0.0, squares / image.size - mean * mean) ** 0.5


@compiled
def _sums(image: np.ndarray) -> tuple[np.float32, np.float32, float, float]:
    """Least and greatest value, sum and sum of squares.

    Each column is summed up by itself, in float64: columns side by side are what the processor adds at once.
    """
    low, high = image[0, 0].copy(), image[0, 0].copy()
    total, squares = np.zeros(image.shape[2]), np.zeros(image.shape[2])
    for z in range(image.shape[0]):
        for y in range(image.shape[1]):
            row = image[z, y]
            for x in range(row.size):
                low[x] = row[x] if row[x] < low[x] else low[x]
                high[x] = row[x] if row[x] > high[x] else high[x]
            for x in range(row.size):
                value = np.float64(row[x])
                total[x] += value
                squares[x] += value * value
    return low.min(), high.max(), total.sum(), squares.sum()


def _scale(image: np.ndarray, factor: float, offset: float, low: float, high: float) -> None:
    """Multiply, add, and clip, in place."""
    _scale_voxels(image.reshape(-1), *np.float32([factor, offset, low, high]))


@compiled
def _scale_voxels(
    voxels: np.ndarray, factor: np.float32, offset: np.float32, low: np.float32, high: np.float32
) -> None:
    for i in range(voxels.size):
        value = factor * voxels[i] + offset
        value = low if value < low else value
        voxels[i] = high if value > high else value
