"""What resampling costs and how near to the truth it is, beside nnU-Net's, to keep in results/resampling.md.

    python benchmarks/resampling.py time    [--rounds 5] [--peers-python PYTHON]  a 512 x 512 x 100 CT
    python benchmarks/resampling.py images  [--peers-python PYTHON]  ways to make an image coarser
    python benchmarks/resampling.py labels  [--places 6] [--peers-python PYTHON]  balls, thin sheets and tubes

About 2 minutes in all on 2 cores. Linux only. Each contender has a process of its own, which stays alive; they
take turns. The peers come with the extra `bench`; see benchmarks/losses.py for an environment of their own.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from analytic import (
    Body,
    abdomen,
    ball,
    centres,
    noise,
    painted,
    sheet,
    true_means,
    tube,
)
from scipy import ndimage

from partialseg.data import resample
from partialseg.data.resample import resampled_grid

NEW_SPACING_MM = (3.0, 1.5, 1.5)
#: The grids of the table of times.
SCAN_SHAPE = (100, 512, 512)
SCAN_SPACINGS_MM = ((5.0, 0.8, 0.8), (2.5, 0.7, 0.7))
#: Whole numbers of voxels of all spacings, so that nnU-Net's grid, which stretches to fit, is the same.
FIELD_MM = (90.0, 84.0, 84.0)
IMAGE_SPACINGS_MM = ((5.0, 0.8, 0.8), (2.5, 0.7, 0.7), (1.0, 0.7, 0.7), (1.5, 0.75, 0.75))
LABEL_GRIDS = {
    "5 x 0.8 x 0.8 mm to 3 x 1.5 x 1.5 mm": ((5.0, 0.8, 0.8), NEW_SPACING_MM),
    "2.5 x 0.7 x 0.7 mm to 3 x 1.5 x 1.5 mm": ((2.5, 0.7, 0.7), NEW_SPACING_MM),
    "1 x 0.7 x 0.7 mm to 3 x 1.5 x 1.5 mm": ((1.0, 0.7, 0.7), NEW_SPACING_MM),
    "1.5 x 0.75 x 0.75 mm to 3 x 1.5 x 1.5 mm": ((1.5, 0.75, 0.75), NEW_SPACING_MM),
    "3 x 1.5 x 0.75 mm to 3 x 1.5 x 1.5 mm": ((3.0, 1.5, 0.75), NEW_SPACING_MM),
    "3 x 1.5 x 1.5 mm to 1.5 x 0.75 x 0.75 mm": (NEW_SPACING_MM, (1.5, 0.75, 0.75)),
}
NAMES = {
    "image-partialseg": "image, partialseg",
    "image-spline": "image, partialseg, antialias=False",
    "image-scipy": "image, SciPy's cubic spline",
    "image-nnunet": "image, nnU-Net's default",
    "label-partialseg": "label, partialseg",
    "label-nnunet": "label, nnU-Net's default",
}


class Worker:
    """A contender's process: `ready` is what it says at the start, `turns` what each turn took."""

    def __init__(self, contender: str, folder: Path, arguments: argparse.Namespace) -> None:
        python = arguments.peers_python if contender.endswith("nnunet") else sys.executable
        script = Path(__file__).with_name("preparation_worker.py")
        self.contender, self.folder = contender, folder
        self.process = subprocess.Popen(
            [python, str(script), contender, str(folder), "--threads", str(arguments.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if arguments.verbose else subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self.ready = self.answer()
        self.turns: list[dict[str, float]] = []

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.contender} ended without an answer; --verbose shows what it says")
        return json.loads(line)

    def turn(self) -> None:
        self.process.stdin.write("turn\n")
        self.turns.append(self.answer())

    def result(self) -> dict[str, np.ndarray]:
        """The result of the last turn; ends the process."""
        self.process.stdin.write("save\n")
        self.answer()
        self.process.stdin.close()
        self.process.wait()
        with np.load(self.folder / f"{self.contender}.npz") as file:
            return {name: file[name] for name in file}

    def median(self, figure: str) -> float:
        return statistics.median(turn[figure] for turn in self.turns)

    def extra_mb(self) -> float:
        """How far the peak of resident memory rises over a process that holds code and inputs."""
        return max(turn["peak_mb"] for turn in self.turns) - self.ready["loaded_mb"]


def take_turns(
    contenders: Sequence[str], folder: Path, arguments: argparse.Namespace, rounds: int
) -> dict[str, Worker]:
    workers = {contender: Worker(contender, folder, arguments) for contender in contenders}
    for _ in range(rounds):
        for worker in workers.values():
            worker.turn()
    return workers


def shape_of(field_mm: Sequence[float], spacing_mm: Sequence[float]) -> tuple[int, ...]:
    return tuple(round(size / step) for size, step in zip(field_mm, spacing_mm, strict=True))


def new_shape_of(shape: Sequence[int], spacing_mm: Sequence[float], new: Sequence[float]) -> tuple[int, ...]:
    return resampled_grid(shape, np.eye(4), spacing_mm, new)[0]


def heading(script: str, arguments: argparse.Namespace) -> str:
    """Command, machine, date and load, as they are before anything is started."""
    names = {"--peers-python": "PYTHON", "--data": "FOLDER"}
    words = [names.get(before, word) for before, word in itertools.pairwise(sys.argv)]
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return "\n".join(
        [
            "```",
            " ".join([f"python benchmarks/{script}", *words]),
            "```",
            "",
            f"{datetime.date.today()}, {models[0].split(': ')[1] if models else 'CPU'}, {os.cpu_count()} cores, "
            f"{arguments.threads} thread{'s' if arguments.threads > 1 else ''}, {arguments.rounds} rounds, "
            f"load average at the start {os.getloadavg()[0]:.2f}.",
        ]
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- time


def time_part(arguments: argparse.Namespace) -> None:
    hu, organs = abdomen()
    for spacing in SCAN_SPACINGS_MM:
        label = np.broadcast_to(organs(*centres(SCAN_SHAPE, spacing)), SCAN_SHAPE).astype(np.uint8)
        image = true_means(hu, SCAN_SHAPE, spacing, lattice=1) + noise(SCAN_SHAPE, spacing)
        new_shape = new_shape_of(SCAN_SHAPE, spacing, NEW_SPACING_MM)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.save(folder / "image.npy", image)
            np.savez(folder / "labels.npz", label=label)
            job = {"spacing_mm": spacing, "new_spacing_mm": NEW_SPACING_MM, "new_shape": new_shape}
            job["labels"] = {"label": (new_shape, spacing, NEW_SPACING_MM)}
            (folder / "job.json").write_text(json.dumps(job))
            workers = take_turns(list(NAMES), folder, arguments, arguments.rounds)
            results = {name: worker.result() for name, worker in workers.items()}
        size = " x ".join(f"{n}" for n in new_shape)
        print(f"\n## Time: 100 x 512 x 512 of {spacing[0]} x {spacing[1]} x {spacing[2]} mm to {size}\n")
        print(time_table(workers, results), flush=True)
    print("\n" + ", ".join(dict.fromkeys(v for w in workers.values() for v in w.ready["versions"])) + ".")


def time_table(workers: dict[str, Worker], results: dict[str, dict[str, np.ndarray]]) -> str:
    reference = results["image-scipy"]["image"]
    rows = []
    for name, worker in workers.items():
        peer = workers[f"{name.split('-')[0]}-nnunet"]
        difference = [""]
        if name.startswith("image"):
            difference = [f"{np.abs(results[name]['image'] - reference).max():.4f}"]
        rows.append(
            [
                NAMES[name],
                f"{worker.median('seconds'):.3f}",
                f"1 / {peer.median('seconds') / worker.median('seconds'):.1f}",
                f"{worker.median('processor'):.3f}",
                f"1 / {peer.median('processor') / worker.median('processor'):.1f}",
                f"{worker.extra_mb():.0f}",
                *difference,
            ]
        )
    header = ["", "s", "÷ nnU-Net", "CPU s", "CPU ÷ nnU-Net", "its MB", "most off SciPy, HU"]
    return table(header, rows)


# --- images


def gaussian_matrix(num_in: int, num_out: int, ratio: float) -> np.ndarray:
    """A Gaussian of (ratio - 1) / 2 voxels before the spline: scikit-image's and MONAI's `anti_aliasing`."""
    if ratio <= 1:
        return resample._cubic_matrix(num_in, num_out, ratio)
    blur = ndimage.gaussian_filter1d(np.eye(num_in), (ratio - 1) / 2, axis=0, mode="nearest")
    return (resample._cubic_matrix(num_in, num_out, ratio) @ blur).astype(np.float32)


def box_matrix(num_in: int, num_out: int, ratio: float) -> np.ndarray:
    """The mean of the cubic spline over each new voxel, where it is larger."""
    if ratio <= 1:
        return resample._cubic_matrix(num_in, num_out, ratio)
    points = (np.arange(64) + 0.5) / 64 - 0.5
    positions = resample._positions(num_in, num_out, ratio)[:, None] + points * ratio
    weights = resample._spline_weights(positions.ravel(), num_in)
    return weights.reshape(num_out, 64, num_in).mean(axis=1).astype(np.float32)


def projection_matrix(num_in: int, num_out: int, ratio: float) -> np.ndarray:
    """The cubic spline on the new grid that is nearest to the old one in the least squares (Unser 1995)."""
    if ratio <= 1:
        return resample._cubic_matrix(num_in, num_out, ratio)
    centre = resample._positions(num_in, num_out, ratio)
    knots = centre[0] + np.arange(-8, num_out + 8) * ratio
    fine = np.arange(knots[0] - 2 * ratio, knots[-1] + 2 * ratio, 1 / 32)

    def basis(where: np.ndarray) -> np.ndarray:
        distance = np.abs(where[:, None] - knots) / ratio
        near, far = 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6
        return np.where(distance < 1, near, far)

    spline = resample._spline_weights(fine, num_in)
    inside = (fine > knots[1]) & (fine < knots[-2])
    sampled = basis(fine[inside])
    return (basis(centre) @ np.linalg.lstsq(sampled, spline[inside], rcond=None)[0]).astype(np.float32)


WAYS: dict[str, Callable[[int, int, float], np.ndarray]] = {
    "cubic spline (SciPy; antialias=False)": resample._cubic_matrix,
    "Gaussian before it (scikit-image, MONAI)": gaussian_matrix,
    "mean of the spline": box_matrix,
    "least-squares spline": projection_matrix,
    "mean of the histospline (the default)": resample._mean_matrix,
}


def image_body() -> Body:
    """Fat with an organ, a lesion in it, gas, bone, two vessels of 4 mm and a wall of 3 mm."""
    return painted(
        -100,
        (110, ball(26, (0, -8, -8))),
        (150, ball(9, (10, -14, -2))),
        (-1000, ball(12, (-18, 24, 24))),
        (600, ball(8, (25, 25, 20))),
        (180, tube(4, (0.8, 0.4, 0.45), 40, (0, -30, 20))),
        (180, tube(4, (0.8, 0.4, 0.45), 20, (0, -12, -14))),
        (60, sheet(3, (0, 0.6, 0.8), 20, (0, -15, 25))),
    )


def image_part(arguments: argparse.Namespace) -> None:
    print(IMAGE_NOTES)
    wall = painted(-100, (60, sheet(3, (0, 0.6, 0.8), 1000)))
    for spacing in IMAGE_SPACINGS_MM:
        shape, new_shape = shape_of(FIELD_MM, spacing), shape_of(FIELD_MM, NEW_SPACING_MM)
        scans = {
            "image": true_means(image_body(), shape, spacing),
            "wall": true_means(wall, shape, spacing),
            "ct": noise(shape, spacing),
            "white": np.random.default_rng(1).normal(0, 20, shape).astype(np.float32),
            "fine": stripes(2.0, shape, spacing),
            "coarse": stripes(8.0, shape, spacing),
        }
        truth = {
            "image": true_means(image_body(), new_shape, NEW_SPACING_MM),
            "wall": true_means(wall, new_shape, NEW_SPACING_MM),
            "coarse": stripes(8.0, new_shape, NEW_SPACING_MM),
        }
        rows = []
        for name, interpolation in WAYS.items():
            matrices = resample._matrices(interpolation, shape, spacing, NEW_SPACING_MM)
            made = {
                key: np.einsum("ai,bj,ck,ijk->abc", *matrices, scan, optimize=True)
                for key, scan in scans.items()
            }
            rows.append([name, *image_figures(made, truth, scans["image"])])
        made = nnunet_images(scans, spacing, new_shape, arguments)
        rows.append(["nnU-Net's default", *image_figures(made, truth, scans["image"])])
        print(f"\n### {spacing[0]} x {spacing[1]} x {spacing[2]} to 3 x 1.5 x 1.5 mm\n")
        header = [
            "",
            "no noise",
            "at edges",
            "CT noise",
            "white noise",
            "CT noise left",
            "overshoot",
            "wall",
            "8 mm",
            "2 mm",
        ]
        print(table(header, rows), flush=True)


def image_figures(made: dict[str, np.ndarray], truth: dict[str, np.ndarray], scan: np.ndarray) -> list[str]:
    error = made["image"] - truth["image"]
    edges = ndimage.maximum_filter(truth["image"], 3) - ndimage.minimum_filter(truth["image"], 3) > 40
    overshoot = max(made["image"].max() - scan.max(), scan.min() - made["image"].min(), 0)
    middle = tuple(slice(n // 4, -(n // 4)) for n in error.shape)
    contrast = truth["wall"][middle] + 100
    kept = ((made["wall"][middle] + 100) * contrast).sum() / (contrast**2).sum()
    coarse = (made["coarse"] * truth["coarse"])[middle].sum() / (truth["coarse"][middle] ** 2).sum()
    return [
        f"{rms(error):.2f}",
        f"{rms(error[edges]):.1f}",
        f"{rms(error + made['ct']):.2f}",
        f"{rms(error + made['white']):.2f}",
        f"{rms(made['ct']):.1f}",
        f"{overshoot:.0f}",
        f"{100 * kept:.0f}%",
        f"{100 * coarse:.0f}%",
        f"{rms(made['fine'][middle]) * np.sqrt(2):.1f}",
    ]


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((values.astype(float) ** 2).mean()))


def stripes(period_mm: float, shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray:
    """Stripes of 100 HU across x, as the means over the voxels."""
    x = centres(shape, spacing_mm)[2]
    wave = 100 * np.sinc(spacing_mm[2] / period_mm) * np.sin(2 * np.pi * x / period_mm + 0.5)
    return np.broadcast_to(wave, tuple(shape)).astype(np.float32)


def nnunet_images(
    scans: dict[str, np.ndarray],
    spacing: Sequence[float],
    new_shape: Sequence[int],
    arguments: argparse.Namespace,
) -> dict[str, np.ndarray]:
    made = {}
    for key, scan in scans.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.save(folder / "image.npy", scan)
            job = {"spacing_mm": spacing, "new_spacing_mm": NEW_SPACING_MM, "new_shape": new_shape}
            (folder / "job.json").write_text(json.dumps(job))
            workers = take_turns(["image-nnunet"], folder, arguments, 1)
            made[key] = workers["image-nnunet"].result()["image"]
    return made


IMAGE_HEADER = [
    *("", "no noise", "at edges", "CT noise", "white noise"),
    *("CT noise left", "overshoot", "wall", "8 mm", "2 mm"),
]
IMAGE_NOTES = """
## Images made coarser

Root mean square of the error against the true mean over each new voxel, in HU; each voxel of the scan holds its own
true mean.

- no noise: fat with an organ, a lesion, gas, bone, two vessels of 4 mm and a wall of 3 mm; at edges: where the truth
  changes by more than 40 HU within a voxel.
- CT noise, white noise: the same with 20 HU of noise (see `analytic.noise`; white: independent in each voxel).
- CT noise left: of the 20 HU. Overshoot: how far, in HU, the result leaves the range of the scan.
- wall: contrast of a wall of 3 mm in fat, of the true. 8 mm: of stripes of that period. 2 mm: what is left, in HU, of
  stripes of 100 HU too fine for voxels of 1.5 mm (0 is right)."""


# --- labels


def label_bodies(spacing_mm: Sequence[float]) -> dict[str, list[Body]]:
    """Bodies of one or several organs; "1 voxel" is the scan's voxel in plane."""
    voxel = spacing_mm[2]
    tilted, across = (0.2, 0.4, 0.9), (0.9, 0.2, 0.3)
    large, outer = ball(24), ball(20)
    half = [lambda z, y, x: large(z, y, x) & (x < 0), lambda z, y, x: large(z, y, x) & (x >= 0)]
    core = ball(9)
    return {
        "ball of 24 mm": [large],
        "ball of 8 mm": [ball(8)],
        "halves of a ball": half,
        "ball in a ball": [lambda z, y, x: outer(z, y, x) & ~core(z, y, x), core],
        "sheet of 3 mm": [sheet(3, tilted, 30)],
        "sheet of 1 voxel": [sheet(voxel, tilted, 30)],
        "sheet of 1 voxel, hardly tilted": [sheet(voxel, (0.03, 0.05, 1), 30)],
        "tube of 3 voxels": [tube(3 * voxel, across, 30)],
        "tube of 2 voxels": [tube(2 * voxel, across, 30)],
    }


def moved(body: Body, by: Sequence[float]) -> Body:
    return lambda z, y, x: body(z - by[0], y - by[1], x - by[2])


def label_part(arguments: argparse.Namespace) -> None:
    print(LABEL_NOTES)
    labels, job, shares = {}, {}, {}
    for number, (grid, (spacing, new_spacing)) in enumerate(LABEL_GRIDS.items()):
        shape, new_shape = shape_of(FIELD_MM, spacing), shape_of(FIELD_MM, new_spacing)
        for kind, parts in label_bodies(spacing).items():
            for place in range(arguments.places):
                by = np.random.default_rng([number, place]).uniform(-3, 3, 3)
                name = f"{grid}|{kind}|{place}"
                bodies = [moved(part, by) for part in parts]
                body = painted(0, *enumerate(bodies, start=1))
                labels[name] = np.broadcast_to(body(*centres(shape, spacing)), shape).astype(np.uint8)
                job[name] = (new_shape, spacing, new_spacing)
                shares[name] = [
                    true_means(painted(0, (1, body)), new_shape, new_spacing).astype(np.float16)
                    for body in bodies
                ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez_compressed(folder / "labels.npz", **labels)
        (folder / "job.json").write_text(json.dumps({"labels": job}))
        workers = take_turns(["label-partialseg", "label-nnunet"], folder, arguments, 1)
        results = [worker.result() for worker in workers.values()]
    print_label_tables(shares, results, arguments.places)
    seconds = [worker.median("processor") for worker in workers.values()]
    print(f"\nAll of them took {seconds[0]:.1f} s of processor time, and nnU-Net {seconds[1]:.1f} s.")


def print_label_tables(
    shares: dict[str, list[np.ndarray]], results: list[dict[str, np.ndarray]], places: int
) -> None:
    header = ["", "Dice", "nnU-Net", "volume off", "nnU-Net", "lost", "nnU-Net"]
    for grid in LABEL_GRIDS:
        rows = []
        kinds = dict.fromkeys(name.split("|")[1] for name in shares if name.startswith(f"{grid}|"))
        for kind in kinds:
            names = [f"{grid}|{kind}|{place}" for place in range(places)]
            ours, theirs = (
                np.mean([label_figures(result[name], shares[name]) for name in names], axis=0)
                for result in results
            )
            dice, off, lost = zip(ours, theirs, strict=True)
            better = "**" if dice[0] >= dice[1] - 5e-4 and off[0] <= off[1] + 5e-4 else ""
            figures = [*(f"{d:.3f}" for d in dice), *(f"{100 * part:.1f}%" for part in (*off, *lost))]
            rows.append([f"{better}{kind}{better}", *figures])
        print(f"\n### {grid}\n\n{table(header, rows)}", flush=True)


def label_figures(label: np.ndarray, shares: list[np.ndarray]) -> tuple[float, float, float]:
    """Dice of the labelled boxes with the body, part of the volume that is too much or too little, organs lost."""
    dice, off, lost = [], [], []
    for value, share in enumerate(shares, start=1):
        mask, volume = label == value, share.sum(dtype=float)
        dice.append(2 * share[mask].sum(dtype=float) / (mask.sum() + volume))
        off.append(abs(mask.sum() / volume - 1))
        lost.append(not mask.any())
    return float(np.mean(dice)), float(np.mean(off)), float(np.mean(lost))


LABEL_NOTES = """
## Labels

The label map holds the organ of each voxel's centre. Dice: of the new voxels, taken as boxes, with the body itself, so
that what is thinner than a voxel cannot reach 1. Volume off: from the body's. Lost: organs of which nothing is left.
Means over the places and organs; bold where both Dice and volume are at least as good as nnU-Net's (order 1 for each
label in plane, the nearest slice across where voxels are three times as thick; in 3D elsewhere)."""

PARTS = {"time": time_part, "images": image_part, "labels": label_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--places", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    arguments = parser.parse_args()
    print(heading("resampling.py", arguments), flush=True)
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    main()
