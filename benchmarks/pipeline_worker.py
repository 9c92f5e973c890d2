"""One contender of benchmarks/pipeline.py in a process of its own, which waits for its turns.

    python benchmarks/pipeline_worker.py '{"side": "partialseg", "kind": "rate", ...}'

Reads a line from standard input for each turn, and answers with a line of JSON; `job_of` in benchmarks/pipeline.py
says what the argument holds. With nnU-Net it runs in the peers' Python, where there is no partialseg. Linux only.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from losses_worker import resident_mb
from threads import use_threads

Start = Callable[[], Iterator[Any]]

#: Of the organs, as nnU-Net's fingerprint of a dataset gives them: what it clips to and normalises by.
CT_INTENSITIES = {"mean": 80.0, "std": 100.0, "percentile_00_5": -200.0, "percentile_99_5": 300.0}
NUM_CLASSES = 6


def partialseg_side(job: dict[str, Any]) -> Start:
    """The `tf.data` pipeline."""
    from partialseg.data.augmentation import AugmentationConfig
    from partialseg.data.pipeline import PatchConfig, patches

    config = PatchConfig(
        patch_size=job["patch_size"],
        batch_size=job["batch_size"],
        foreground=job["foreground"],
        workers=job["workers"],
        augmentation=AugmentationConfig() if job["augment"] else None,
    )
    return lambda: iter(patches(job["prepared"], config))


def nnunet_side(job: dict[str, Any]) -> Start:
    """The loader as `nnUNetTrainer.get_dataloaders` makes it, in this process or with so many of its own."""
    import torch
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    torch.set_num_threads(1)  # as its own processes do
    labels = LabelManager({"background": 0, **{f"organ {n}": n for n in range(1, NUM_CLASSES)}}, None)
    patch_size, workers = job["patch_size"], job["workers"]
    read_size, transforms = nnunet_augmentation(patch_size, labels) if job["augment"] else (patch_size, None)

    def start() -> Iterator[Any]:
        loader = nnUNetDataLoader(
            nnUNetDatasetBlosc2(job["nnunet"]),
            job["batch_size"],
            read_size,
            patch_size,
            labels,
            oversample_foreground_percent=job["foreground"],
            transforms=transforms,
        )
        if workers == 1:
            return loader
        return NonDetMultiThreadedAugmenter(
            loader, None, num_processes=workers, num_cached=max(6, workers // 2), wait_time=0.002
        )

    return start


def nnunet_augmentation(patch_size: list[int], labels: Any) -> tuple[list[int], Any]:
    """What its trainer reads for a patch of this size, and its transforms; no deep supervision."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=patch_size), print_to_log_file=lambda *_: None
    )
    rotation, in_plane, read_size, mirror_axes = (
        nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
    )
    transforms = nnUNetTrainer.get_training_transforms(
        patch_size,
        rotation,
        None,
        mirror_axes,
        in_plane,
        use_mask_for_norm=[False],
        foreground_labels=labels.foreground_labels,
    )
    return read_size, transforms


def copies_side(job: dict[str, Any]) -> Start:
    """NumPy copies out of memory: what is delivered (float32, candidates), or what is stored (int16, uint8)."""
    folders = sorted(path.parent for path in Path(job["prepared"]).glob("*/*/image.npy"))
    images, labels = ([np.load(f / f"{name}.npy") for f in folders] for name in ("image", "label"))
    if job["form"] == "delivered":
        images = [image.astype(np.float32) for image in images]
        sets = np.eye(NUM_CLASSES, dtype=np.uint8)
        labels = [sets[label] for label in labels]
    random = np.random.default_rng(0)
    size = tuple(job["patch_size"])

    def empty() -> list[np.ndarray]:
        return [np.empty((job["batch_size"], *size, *a.shape[3:]), a.dtype) for a in (images[0], labels[0])]

    kept = [empty() for _ in range(2 * job["workers"] + 1)] if job["reuse"] else None

    def draws() -> Iterator[tuple[int, list[tuple[int, tuple[slice, ...]]]]]:
        for number in itertools.count():
            batch = []
            for _ in range(job["batch_size"]):
                case = int(random.integers(len(images)))
                starts = [
                    int(random.integers(n - p + 1)) for n, p in zip(images[case].shape, size, strict=True)
                ]
                batch.append((case, tuple(slice(s, s + p) for s, p in zip(starts, size, strict=True))))
            yield number, batch

    def copy(number: int, batch: list[tuple[int, tuple[slice, ...]]]) -> list[np.ndarray]:
        out = empty() if kept is None else kept[number % len(kept)]
        for slot, (case, box) in enumerate(batch):
            out[0][slot], out[1][slot] = images[case][box], labels[case][box]
        return out

    def threaded() -> Iterator[list[np.ndarray]]:
        with ThreadPoolExecutor(job["workers"]) as pool:
            ahead: deque = deque()
            for draw in draws():
                ahead.append(pool.submit(copy, *draw))
                if len(ahead) == 2 * job["workers"]:
                    yield ahead.popleft().result()

    return lambda: itertools.starmap(copy, draws()) if job["workers"] == 1 else threaded()


def processor_seconds() -> float:
    """Of this process and its children, which are still running."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime, stime
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def rate_turns(start: Start, job: dict[str, Any]) -> Iterator[dict[str, float]]:
    """Each turn: what was read ahead is thrown away, then so many batches are timed."""
    stream = start()
    next(stream)
    yield {}
    while True:
        for _ in range(job["ahead"]):
            next(stream)
        begin, processor = time.perf_counter(), processor_seconds()
        for _ in range(job["batches"]):
            next(stream)
        num = job["batches"] * job["batch_size"]
        seconds = time.perf_counter() - begin
        yield {"rate": num / seconds, "processor_ms": 1000 * (processor_seconds() - processor) / num}


def first_turn(start: Start, job: dict[str, Any]) -> Iterator[dict[str, float]]:
    """From setting the stream up, with all code imported."""
    yield {}
    begin = time.perf_counter()
    stream = start()
    next(stream)
    first = time.perf_counter() - begin
    for _ in range(job["batches"] - 1):
        next(stream)
    seconds = time.perf_counter() - begin
    yield {"first": first, "rate": job["batches"] * job["batch_size"] / seconds}


def memory_turn(job: dict[str, Any]) -> Iterator[dict[str, float]]:
    """Seconds of each part of a start, and resident memory beyond that of TensorFlow after a trivial `tf.data`."""
    import partialseg  # noqa: F401  # sets TensorFlow's environment before its import

    yield {}
    times = {}
    begin = time.perf_counter()

    def lap(name: str) -> None:
        times[name] = time.perf_counter() - begin - sum(times.values())

    import tensorflow as tf

    list(tf.data.Dataset.range(8).map(lambda x: x + 1, num_parallel_calls=2).batch(2).prefetch(1))
    lap("tensorflow")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    base = resident_mb("VmRSS")
    start = partialseg_side(job)
    lap("code")
    stream = start()
    lap("stream")
    next(stream)
    lap("first")
    peak_first = resident_mb("VmHWM")
    for _ in range(job["batches"] - 1):
        next(stream)
    memory = {
        "tensorflow_mb": base,
        "peak_first_mb": peak_first - base,
        "peak_mb": resident_mb("VmHWM") - base,
        "last_mb": resident_mb("VmRSS") - base,
        "last_files_mb": resident_mb("RssFile"),
    }
    yield {**times, **memory, "start": times["code"] + times["stream"] + times["first"]}


def write_turn(job: dict[str, Any]) -> Iterator[dict[str, float]]:
    """Write the prepared cases as nnU-Net's preprocessing does, without resampling them."""
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    yield {}
    out = Path(job["nnunet"])
    out.mkdir(parents=True)
    normalization = CTNormalization(use_mask_for_norm=False, intensityproperties=CT_INTENSITIES)
    for path in sorted(Path(job["prepared"]).glob("*/*/image.npy")):
        data = normalization.run(np.load(path)[None].astype(np.float32))
        seg = np.load(path.with_name("label.npy"))[None].astype(np.int8)
        places = DefaultPreprocessor._sample_foreground_locations(seg, list(range(1, NUM_CLASSES)))
        properties = {"spacing": job["spacing_mm"], "class_locations": places}
        block, chunk = comp_blosc2_params(data.shape, job["patch_size"], data.itemsize)
        block_seg, chunk_seg = comp_blosc2_params(seg.shape, job["patch_size"], seg.itemsize)
        nnUNetDatasetBlosc2.save_case(
            data,
            seg,
            properties,
            str(out / f"{path.parts[-3]}_{path.parts[-2]}"),
            chunks=chunk,
            blocks=block,
            chunks_seg=chunk_seg,
            blocks_seg=block_seg,
        )
    yield {}


SIDES = {"partialseg": partialseg_side, "nnunet": nnunet_side, "copies": copies_side}
PACKAGES = {
    "partialseg": ("tensorflow", "numpy", "numba"),
    "nnunet": ("nnunetv2", "batchgeneratorsv2", "blosc2", "torch", "numpy"),
    "copies": ("numpy",),
}


def turns_of(job: dict[str, Any]) -> Iterator[dict[str, float]]:
    if job["kind"] == "write":
        return write_turn(job)
    if job["kind"] == "memory":
        return memory_turn(job)
    kind = {"rate": rate_turns, "cold": first_turn}[job["kind"]]
    return kind(SIDES[job["side"]](job), job)


def main() -> None:
    job = json.loads(sys.argv[1])
    # What libraries print goes to standard error, so that the answers stay alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    cores = sorted(os.sched_getaffinity(0))[: job["workers"]]
    use_threads(1)  # of each library's pool for arithmetic, as nnU-Net sets in its processes
    os.sched_setaffinity(0, cores)
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        del os.environ[name]  # TensorFlow takes the cores that it is given
    turns = turns_of(job)
    next(turns)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES[job["side"]]]
    answers.write(json.dumps({"versions": versions}) + "\n")
    for _ in sys.stdin:
        answers.write(json.dumps(next(turns)) + "\n")


if __name__ == "__main__":
    main()
