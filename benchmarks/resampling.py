"""Resampling a 512 x 512 x 100 CT to the paper's voxel size, against SciPy: seconds, memory, difference.

    python benchmarks/resampling.py [--rounds 5]

About a minute on 2 cores. Ways take turns, each is run once before, medians count.
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from partialseg.data.resample import resample_back, resample_image, resample_label, resampled_grid

SHAPE, SPACING_MM, NEW_SPACING_MM = (100, 512, 512), (5.0, 0.8, 0.8), (3.0, 1.5, 1.5)


def scan() -> tuple[np.ndarray, np.ndarray]:
    """A noisy image of five balls, and their label map."""
    rng = np.random.default_rng(0)
    z, y, x = (np.arange(n) * s for n, s in zip(SHAPE, SPACING_MM, strict=True))
    label = np.zeros(SHAPE, dtype=np.uint8)
    balls = [((250, 160, 160), 72), ((250, 240, 320), 40), ((300, 80, 80), 32), ((200, 320, 200), 36)]
    for value, ((cz, cy, cx), radius) in enumerate([*balls, ((350, 200, 264), 24)], start=1):
        inside = (z[:, None, None] - cz) ** 2 + (y[:, None] - cy) ** 2 + (x - cx) ** 2 < radius**2
        label[inside] = value
    noise = rng.normal(0, 20, SHAPE).astype(np.float32)
    return noise + np.array([-100, 110, 120, 90, 150, 150], dtype=np.float32)[label], label


def scipy_image(image: np.ndarray) -> np.ndarray:
    """SciPy's cubic spline at the same positions."""
    ratio = np.divide(NEW_SPACING_MM, SPACING_MM)
    new_shape, _ = resampled_grid(SHAPE, np.eye(4), SPACING_MM, NEW_SPACING_MM)
    offset = (np.array(SHAPE) - 1) / 2 - (np.array(new_shape) - 1) / 2 * ratio
    return ndimage.affine_transform(image, np.diag(ratio), offset, new_shape, order=3, mode="nearest")


def timed(ways: dict[str, Callable[[], object]], rounds: int) -> None:
    """Print the median seconds and the peak of extra memory of each way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start, start_processor = time.perf_counter(), time.process_time()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - start_processor)
    for name, way in ways.items():
        tracemalloc.start()
        way()
        peak = tracemalloc.get_traced_memory()[1] / 1e9
        tracemalloc.stop()
        wall, cpu = statistics.median(seconds[name]), statistics.median(processor[name])
        print(f"{name:<28} {wall:6.2f} s  {cpu:6.2f} s of processor time  {peak:5.2f} GB with the result")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    image, label = scan()
    resampled = resample_label(label, SPACING_MM, NEW_SPACING_MM)
    scores = np.eye(6, dtype=np.float32)[resampled]
    ways = {
        "image, matrices": lambda: resample_image(image, SPACING_MM, NEW_SPACING_MM),
        "image, scipy.ndimage": lambda: scipy_image(image),
        "label, matrices": lambda: resample_label(label, SPACING_MM, NEW_SPACING_MM),
        "scores back, 6 classes": lambda: resample_back(scores, NEW_SPACING_MM, SHAPE, SPACING_MM),
    }
    timed(ways, rounds)
    difference = np.abs(ways["image, matrices"]() - ways["image, scipy.ndimage"]()).max()
    print(f"largest difference between the two images: {difference:.4f} HU")
    back = resample_back(scores, NEW_SPACING_MM, SHAPE, SPACING_MM)
    for value in range(1, 6):
        before, after = label == value, resampled == value
        volumes = [
            mask.sum() * np.prod(s) / 1000 for mask, s in ((before, SPACING_MM), (after, NEW_SPACING_MM))
        ]
        dice = 2 * ((back == value) & before).sum() / ((back == value).sum() + before.sum())
        print(
            f"ball {value}: {volumes[0]:.0f} mL, resampled {volumes[1]:.0f} mL, Dice there and back {dice:.4f}"
        )


if __name__ == "__main__":
    main()
