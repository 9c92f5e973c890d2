"""The scanner: a map of tissues becomes Hounsfield units, with texture, vessels, blur and noise."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import gaussian_filter

from partialseg.data.phantom.shapes import NoiseField
from partialseg.data.phantom.tissue import Appearance

#: Slices rendered at a time, so that memory stays small on large volumes.
_SLAB_VOXELS = 6_000_000
_TEXTURE_MM, _VESSEL_MM = 3.5, 11.0


def render(
    tissue: np.ndarray,
    spacing_mm: tuple[float, float, float],
    look: Appearance,
    rng: np.random.Generator,
    blur_mm: tuple[float, float, float],
    noise_hu: float,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the scan slab by slab.

    Args:
        tissue: uint8 index into `TISSUES`, `(depth, height, width)`.
        spacing_mm: Voxel size `(z, y, x)`.
        look: How the tissues look.
        rng: Source of texture and noise.
        blur_mm: Standard deviation of the point spread, `(z, y, x)`.
        noise_hu: Standard deviation of the noise in the finished scan.

    Yields:
        The slices concerned, and float32 HU between -1024 and 3071 of shape `(slices, height, width)`.
    """
    sigma = [blur / spacing for blur, spacing in zip(blur_mm, spacing_mm, strict=True)]
    halo = int(np.ceil(3 * sigma[0]))
    size = [n * s for n, s in zip(tissue.shape, spacing_mm, strict=True)]
    texture = NoiseField(rng, (0, 0, 0), size, max(_TEXTURE_MM, 0.75 * min(spacing_mm)))
    vessels = [NoiseField(rng, (0, 0, 0), size, _VESSEL_MM) for _ in range(2)]
    white_hu = noise_hu / _noise_gain(sigma)
    thickness = max(1, _SLAB_VOXELS // int(np.prod(tissue.shape[1:])))
    seeds = rng.integers(2**63, size=-(-tissue.shape[0] // thickness))
    for seed, first in zip(seeds, range(0, tissue.shape[0], thickness), strict=True):
        last = min(first + thickness, tissue.shape[0])
        low, high = max(first - halo, 0), min(last + halo, tissue.shape[0])
        axes = [np.arange(n) * s for n, s in zip(tissue.shape, spacing_mm, strict=True)]
        axes[0] = axes[0][low:high]
        hu = _tissue_hu(tissue[low:high], axes, look, texture, vessels)
        hu += np.float32(white_hu) * np.random.default_rng(seed).standard_normal(hu.shape, dtype=np.float32)
        hu = gaussian_filter(hu, sigma, mode="nearest", truncate=3.0)[first - low : last - low]
        yield slice(first, last), np.clip(hu, -1024, 3071)


def render_whole(
    tissue: np.ndarray,
    spacing_mm: tuple[float, float, float],
    look: Appearance,
    rng: np.random.Generator,
    blur_mm: tuple[float, float, float],
    noise_hu: float,
) -> np.ndarray:
    """The whole scan of `render` in one array: float32 HU, `(depth, height, width)`."""
    hu = np.empty(tissue.shape, np.float32)
    for slab, part in render(tissue, spacing_mm, look, rng, blur_mm, noise_hu):
        hu[slab] = part
    return hu


def _tissue_hu(
    tissue: np.ndarray,
    axes: list[np.ndarray],
    look: Appearance,
    texture: NoiseField,
    vessels: list[NoiseField],
) -> np.ndarray:
    """HU of the tissues with texture and vessels, before the scanner's blur and noise."""
    hu = texture.on(*axes)
    hu *= look.texture[tissue]
    hu += look.hu[tissue]
    # Two smooth noises vanish together along curves: those are the vessels.
    radius = vessels[0].on(*axes) ** 2
    radius += vessels[1].on(*axes) ** 2
    inside = radius < look.vessels[tissue]
    hu[inside] = look.vessel_hu[tissue[inside]]
    return hu


def _noise_gain(sigma: list[float]) -> float:
    """Standard deviation of white unit noise after the blur: root of the sum of squared weights."""
    gain = 1.0
    for width in sigma:
        if width > 0:
            at = np.arange(-int(3 * width + 0.5), int(3 * width + 0.5) + 1)
            kernel = np.exp(-0.5 * (at / width) ** 2)
            gain *= float(np.sqrt(np.sum((kernel / kernel.sum()) ** 2)))
    return gain
