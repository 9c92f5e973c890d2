"""What preparing a whole case costs beside nnU-Net's preprocessing, to keep in results/prepare.md.

    python benchmarks/prepare.py [--rounds 3] [--peers-python PYTHON] [--data FOLDER]

Read the .nii.gz files, reorient, resample image and label map to 1.5 x 1.5 x 3 mm, index the foreground, write.
About 2 minutes on 2 cores. Linux only. Each contender has a process of its own; they take turns. FOLDER may hold
pairs of real files called NAME_ct.nii.gz and NAME_label.nii.gz.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from analytic import ORGANS, Body, abdomen, centres, noise, true_means
from resampling import NEW_SPACING_MM, SCAN_SHAPE, SCAN_SPACINGS_MM, Worker, heading, table, take_turns

CONTENDERS = {"case-partialseg": "partialseg", "case-nnunet": "nnU-Net"}
NOTES = """
- nnU-Net: `DefaultPreprocessor.run_case_save` with the plans of its default planner: SimpleITK, crop to what is not 0,
  resampling, class locations, Blosc2. Intensities are left in HU (mean 0, deviation 1), so that they can be compared.
- partialseg: `prepare_case`, with the hash of the raw files by which a changed file is noticed, and with the written
  files brought to the disk.
- The synthetic CT has 20 HU of noise and five organs. Off: absolute difference from the true mean of each new voxel,
  nnU-Net's on its own grid, which stretches by up to half a voxel to fit a whole number of voxels."""


def write_case(folder: Path, name: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> None:
    """Raw files in the axes `(x, y, z)` of NIfTI, and a card."""
    (folder / "raw").mkdir()
    for kind, array in (("ct", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, affine), folder / "raw" / f"{name}_{kind}.nii.gz")
    write_card(folder)


def write_card(folder: Path) -> None:
    labels = "\n".join(f"  {value}: {organ}" for value, organ in enumerate(ORGANS, start=1))
    fields = [
        *("name: bench", "title: benchmark", "source: made here", "licence: none", "citation: none"),
        *("files: {image: '*_ct.nii.gz', label: '*_label.nii.gz'}", f"labels:\n{labels}"),
        f"annotated: [{', '.join(ORGANS)}]",
        "splits: {seed: 0, test: 0.0}",
    ]
    (folder / "card.md").write_text("\n".join(["---", *fields, "---", "A benchmark.", ""]))
    job = {"new_spacing_mm": NEW_SPACING_MM, "organs": list(ORGANS)}
    (folder / "job.json").write_text(json.dumps(job))


def synthetic_case(folder: Path, spacing_mm: tuple[float, float, float]) -> tuple[Body, Body]:
    """A scan as most are stored: int16, right to left and front to back (LPS)."""
    hu, organs = abdomen()
    image = true_means(hu, SCAN_SHAPE, spacing_mm, lattice=1) + noise(SCAN_SHAPE, spacing_mm)
    label = np.broadcast_to(organs(*centres(SCAN_SHAPE, spacing_mm)), SCAN_SHAPE).astype(np.uint8)
    z, y, x = spacing_mm
    arrays = (np.rint(image).astype(np.int16), label)
    flipped = [array[:, ::-1, ::-1].transpose(2, 1, 0) for array in arrays]
    write_case(folder, "synthetic", *flipped, np.diag([-x, -y, z, 1.0]))
    return hu, organs


def accuracy(worker: Worker, scan: tuple[Body, Body], spacing_mm: tuple[float, float, float]) -> list[str]:
    """Mean and largest difference of the image from the truth, and Dice of the labels, averaged over the organs."""
    result = worker.result()
    image, label = result["image"].astype(np.float32), result["label"]
    own_mm = NEW_SPACING_MM
    if worker.contender == "case-nnunet":
        image, label = image[:, ::-1, ::-1], label[:, ::-1, ::-1]  # it keeps the axes of the file
        own_mm = tuple(n * s / m for n, s, m in zip(SCAN_SHAPE, spacing_mm, image.shape, strict=True))
    off = np.abs(image - true_means(scan[0], image.shape, own_mm, lattice=1))
    body = np.broadcast_to(scan[1](*centres(image.shape, own_mm)), image.shape)
    dice = [
        2 * np.count_nonzero((label == v) & (body == v)) / (np.count_nonzero(label == v) + (body == v).sum())
        for v in range(1, len(ORGANS) + 1)
    ]
    return [f"{off.mean():.2f}", f"{off.max():.0f}", f"{np.mean(dice):.4f}"]


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Worker]:
    sizes = ", ".join(f"{path.stat().st_size / 1e6:.1f} MB" for path in sorted((folder / "raw").iterdir()))
    print(f"Raw files: {sizes}.\n")
    return take_turns(list(CONTENDERS), folder, arguments, arguments.rounds)


def times(worker: Worker, peer: Worker) -> list[str]:
    """Seconds, processor seconds and the process's peak of memory, each with its ratio."""
    cells = []
    for figure in (lambda w: w.median("seconds"), lambda w: w.median("processor"), peak_mb):
        value, other = figure(worker), figure(peer)
        cells += [f"{value:.0f}" if figure is peak_mb else f"{value:.2f}", f"1 / {other / value:.1f}"]
    return cells


def peak_mb(worker: Worker) -> float:
    return max(turn["peak_mb"] for turn in worker.turns)


HEADER = ["", "s", "÷ nnU-Net", "CPU s", "÷ nnU-Net", "peak MB", "÷ nnU-Net"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--data", type=Path, help="a folder of real files")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    arguments = parser.parse_args()
    print(heading("prepare.py", arguments), flush=True)
    print(NOTES)
    for spacing in SCAN_SPACINGS_MM:
        with tempfile.TemporaryDirectory() as name:
            print(f"\n## Synthetic, 512 x 512 x 100 of {spacing[2]} x {spacing[1]} x {spacing[0]} mm\n")
            scan = synthetic_case(Path(name), spacing)
            workers = measure(Path(name), arguments)
            rows = [
                [CONTENDERS[key], *times(worker, workers["case-nnunet"]), *accuracy(worker, scan, spacing)]
                for key, worker in workers.items()
            ]
            print(table([*HEADER, "off, mean HU", "most", "label Dice"], rows), flush=True)
    for image in sorted(arguments.data.glob("*_ct.nii.gz")) if arguments.data else []:
        label = image.with_name(image.name.replace("_ct", "_label"))
        if not label.exists():
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "raw").mkdir()
            for path in (image, label):
                shutil.copy(path, folder / "raw")
            write_card(folder)
            shape = " x ".join(map(str, nib.load(image).shape))
            print(f"\n## {image.name.removesuffix('_ct.nii.gz')}, {shape}\n")
            workers = measure(folder, arguments)
            rows = [[CONTENDERS[key], *times(w, workers["case-nnunet"])] for key, w in workers.items()]
            print(table(HEADER, rows), flush=True)
    print("\n" + ", ".join(dict.fromkeys(v for w in workers.values() for v in w.ready["versions"])) + ".")


if __name__ == "__main__":
    main()
