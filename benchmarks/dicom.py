"""Pixels of DICOM slices to HU: pydicom alone, in threads, and the two operations of tensorflow-io in tf.data.

    python benchmarks/dicom.py [--rounds 5] [--real FOLDER]

About 8 minutes on 2 cores. Each way has a process of its own, as workers have, which reports the seconds and
memory of its start; ways take turns, the first round warms up, medians count. Headers are read before.
decode_dicom_image does not give HU and is here for its speed alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np

NUM_SLICES, SIDE = 100, 512
WAYS = ("pydicom", "pydicom, threads", "decode_dicom_data", "decode_dicom_image")
PACKAGES = ("pydicom", "python-gdcm", "pillow", "tensorflow", "tensorflow-io")
SYNTAXES = {"uncompressed": None, "RLE": "RLELossless", "JPEG 2000": "JPEG2000Lossless"}


def write_slices(folder: Path, syntax: str | None) -> None:
    """A noisy ball in air, one file per slice."""
    import gdcm
    import pydicom
    from pydicom.data import get_testdata_file

    rng = np.random.default_rng(0)
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.Rows = dataset.Columns = SIDE
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    for index in range(NUM_SLICES):
        radius = 200 * np.sin(np.pi * (index + 0.5) / NUM_SLICES)
        mean = np.where(x**2 + y**2 < radius**2, 1074, 24)
        dataset.PixelData = np.rint(rng.normal(mean, 12)).astype(np.int16).tobytes()
        dataset.ImagePositionPatient, dataset.SOPInstanceUID = [0, 0, 2 * index], f"1.2.{index + 1}"
        path = folder / f"{index:03d}.dcm"
        dataset.save_as(path)
        if syntax is None:
            continue
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        change.SetInput(reader.GetImage())
        change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.Write()


def way(name: str, slices: list) -> Callable[[], object]:
    """A function that decodes all slices once."""
    if name.startswith("pydicom"):
        from partialseg.data.dicom import hounsfield

        decode = ThreadPoolExecutor(os.cpu_count()).map if "threads" in name else map
        return lambda: [image.shape for image in decode(hounsfield, slices)]
    import tensorflow as tf

    from partialseg.data.dicom_tensorflow import decode_slices, require_tensorflow_io

    require_tensorflow_io()
    if name == "decode_dicom_data":
        dataset = decode_slices(slices)
        return lambda: [image.shape for image in dataset]
    import tensorflow_io as tfio

    def decode_image(path: tf.Tensor) -> tf.Tensor:
        return tfio.image.decode_dicom_image(
            tf.io.read_file(path), color_dim=False, on_error="strict", scale="preserve", dtype=tf.float32
        )

    paths = tf.data.Dataset.from_tensor_slices([str(one.path) for one in slices])
    images = paths.map(decode_image, num_parallel_calls=tf.data.AUTOTUNE)
    return lambda: [image.shape for image in images]


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(name: str, folder: Path, num_slices: int) -> None:
    """A worker: what its imports cost, then what each round costs that is asked for."""
    from partialseg.data.dicom_series import all_slices
    from partialseg.errors import DataError

    slices = sorted(all_slices(folder).slices, key=lambda one: str(one.path))[:num_slices]
    start = time.perf_counter(), time.process_time()
    try:
        run = way(name, slices)
    except DataError:
        print("refused", flush=True)
        return
    print(time.perf_counter() - start[0], time.process_time() - start[1], peak_mb(), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - start[0], time.process_time() - start[1], peak_mb(), flush=True)


def compare(title: str, folder: Path, rounds: int) -> None:
    """One table: every way on the slices of one folder."""
    available = len(list(folder.iterdir()))
    workers, costs = {}, {}
    for name in WAYS:
        command = [sys.executable, __file__, "--serve", name, str(folder), str(available)]
        workers[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        costs[name] = [workers[name].stdout.readline().split()]
    running = [name for name in WAYS if costs[name] != [["refused"]]]
    for _ in range(rounds + 1):
        for name in running:
            print("go", file=workers[name].stdin, flush=True)
            costs[name].append([float(value) for value in workers[name].stdout.readline().split()])
    print(f"\n## {title}: {available} slices of {SIDE} x {SIDE}\n")
    print("| way | ms a slice | processor ms a slice | peak MB | start: s | start: processor s | start: MB |")
    print("|---|---|---|---|---|---|---|")
    for name in WAYS:
        if name not in running:
            print(f"| {name} | refused: not exact | | | | | |")
            continue
        start, _, *measured = costs[name]
        wall, processor = (1000 * statistics.median(r[i] for r in measured) / available for i in (0, 1))
        begin = " | ".join(
            f"{float(value):.{digits}f}" for value, digits in zip(start, (1, 1, 0), strict=True)
        )
        print(f"| {name} | {wall:.1f} | {processor:.1f} | {measured[-1][2]:.0f} | {begin} |", flush=True)
    for worker in workers.values():
        worker.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--real", type=Path, metavar="FOLDER", help="slices of a real series")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        name, folder, num_slices = arguments.serve
        return serve(name, Path(folder), int(num_slices))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    print(f"{os.cpu_count()} cores; {versions}")
    if arguments.real:
        compare("A real series, JPEG 2000", arguments.real, arguments.rounds)
    for title, syntax in SYNTAXES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_slices(Path(folder), syntax)
            compare(title, Path(folder), arguments.rounds)


if __name__ == "__main__":
    main()
