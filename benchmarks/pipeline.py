"""How fast patches come, beside nnU-Net's loader and beside plain copies, to keep in results/pipeline.md.

    python benchmarks/pipeline.py [--rounds 5] [--peers-python PYTHON] [--parts plain cold augmented memory]

About 12 minutes on 2 cores with --rounds 3; --quick takes 8 and keeps nothing. Linux only. Each contender has a process
of its own; they take turns, and who does not have the turn is halted. The peers come with the extra `bench`; see
benchmarks/losses.py for an environment of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from analytic import ORGANS, ball, centres, noise, painted
from resampling import Worker, heading, table

from partialseg.data.labels import candidate_table
from partialseg.data.prepare_case import choose_foreground
from partialseg.data.prepared import Case, Dataset, Prepared, write_manifest
from partialseg.files import write_text

SHAPE, SPACING_MM = (130, 220, 220), (3.0, 1.5, 1.5)
NUM_CASES = 10
CLASSES = ("background", *ORGANS)
ANNOTATED = {"full": tuple(ORGANS), "livers": ("liver",)}
PLAIN_PATCHES = ((48, 160, 160), (48, 190, 190))
AUGMENTED_PATCHES = (*PLAIN_PATCHES, (96, 96, 96))
ENTRIES = (10, 10_000)
#: Batches that lie ready before a turn, at most: nnU-Net has two queues of 6, and one in the hands of each process.
AHEAD = 16
NAMES = {
    "partialseg": "partialseg",
    "nnunet": "nnU-Net",
    "delivered": "copies of what is delivered",
    "reused": "the same, into arrays used again",
    "source": "copies of what is stored",
}
NOTES = """
- Cases of 130 x 220 x 220 voxels, half of them with five organs annotated and half with the liver alone; HU with 15
  HU of noise in the body and -1024 around it. Two patches in a batch, one of them centred on foreground: a class
  evenly among those present, then one of its 10,000 listed voxels. nnU-Net reads the same volumes, written as its
  preprocessing does for that patch size, clipped and normalised. They are whole HU, as none of nnU-Net's are that were
  resampled: that makes its files smaller by 2 / 5, but not faster to read.
- A batch of partialseg is the image (float32) and candidates of 6 classes (uint8): 10 bytes a voxel. nnU-Net's is the
  image (float32) and labels (int16): 6 bytes a voxel, from which its loss has yet to make the classes.
- One worker or process has one core, two have two. nnU-Net: `nnUNetDataLoader` in the process itself, and
  `NonDetMultiThreadedAugmenter` with two processes; one thread in each, as its trainer sets them.
- A patch of nnU-Net that is centred on foreground is not moved into the volume at its far side, so that what it reads
  is less by up to half a patch, and the rest is padding.
- Copies: of a batch's image and candidates out of arrays that hold them as they are delivered, into fresh memory, and
  into arrays used again, as partialseg does; the last column and the targets are against the latter.
- ms: of processor time for a patch, of all cores."""


# --- data


def phantom(number: int, grain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HU (int16) and label map (uint8) of a body with five organs, no two of one size and place."""
    random = np.random.default_rng([0, number])
    z, y, x = (
        (axis - random.uniform(-10, 10)) / (size * random.uniform(0.9, 1.1))
        for axis, size in zip(centres(SHAPE, SPACING_MM), (1.0, 0.8, 0.9), strict=True)
    )
    organs = [(hu, ball(radius, centre)) for hu, radius, centre in ORGANS.values()]
    hu = painted(-90, (50, lambda z, y, x: (y / 115) ** 2 + (x / 145) ** 2 + 0 * z < 1), *organs)(z, y, x)
    label = painted(0, *((value, inside) for value, (_, inside) in enumerate(organs, start=1)))(z, y, x)
    body = np.broadcast_to((y / 130) ** 2 + (x / 160) ** 2 < 1, SHAPE)
    image = np.where(body, hu + grain, -1024)
    return np.rint(image).astype(np.int16), label.astype(np.uint8)


def write_prepared(folder: Path, num_cases: int) -> Prepared:
    """Prepared cases of two datasets, one of them partial."""
    tables = {name: candidate_table(CLASSES, organs) for name, organs in ANNOTATED.items()}
    grain = noise(SHAPE, SPACING_MM, 15)
    cases = []
    for number in range(num_cases):
        dataset = tuple(ANNOTATED)[number % 2]
        image, label = phantom(number, grain)
        label[label > len(ANNOTATED[dataset])] = 0  # the liver is the first organ
        cases.append(write_case(folder, dataset, f"case_{number:05}", image, label, tables[dataset]))
    datasets = {name: Dataset(name, organs, tables[name]) for name, organs in ANNOTATED.items()}
    prepared = Prepared(folder, CLASSES, SPACING_MM, datasets, tuple(sorted(cases, key=place)))
    write_manifest(prepared)
    return prepared


def place(case: Case) -> tuple[str, str]:
    return case.dataset, case.name


def write_case(
    folder: Path, dataset: str, name: str, image: np.ndarray, label: np.ndarray, values: np.ndarray
) -> Case:
    foreground, parts, voxels = choose_foreground(label, values, f"{dataset}/{name}")
    case_folder = folder / dataset / name
    case_folder.mkdir(parents=True)
    for file, array in (("image", image), ("label", label), ("foreground", foreground)):
        np.save(case_folder / f"{file}.npy", array)
    z, y, x = SPACING_MM
    return Case(
        dataset=dataset,
        name=name,
        split="train",
        shape=SHAPE,
        affine=tuple(map(tuple, np.diag([x, y, z, 1.0]).tolist())),
        foreground=parts,
        voxels=voxels,
        image_source="",
        label_source="",
        fingerprint="",
    )


def link_cases(prepared: Prepared, folder: Path, num_entries: int) -> None:
    """A prepared folder of so many entries, whose files are links to those of a few cases."""
    cases = []
    for number in range(num_entries):
        real = prepared.cases[number % len(prepared.cases)]
        case = dataclasses.replace(real, name=f"link_{number:05}")
        (folder / case.dataset / case.name).mkdir(parents=True)
        for file in ("image.npy", "label.npy", "foreground.npy"):
            target = prepared.folder / real.dataset / real.name / file
            (folder / case.dataset / case.name / file).symlink_to(target)
        cases.append(case)
    write_manifest(dataclasses.replace(prepared, folder=folder, cases=tuple(sorted(cases, key=place))))


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in files_of(folder)) / 1e6


def drop_cached(paths: Iterable[Path]) -> float:
    """Drop files from the page cache; the share of their pages that are still there."""
    os.sync()
    pages = kept = 0
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for offset in range(0, os.fstat(file.fileno()).st_size, 1 << 16):
                pages += 1
                with contextlib.suppress(BlockingIOError):  # it would have to be read from the disk
                    kept += os.preadv(file.fileno(), [bytearray(1)], offset, os.RWF_NOWAIT)
    return kept / max(pages, 1)


# --- contenders


class LoaderWorker(Worker):
    """A contender's process, and those that it starts: halted when it does not have the turn."""

    def __init__(self, job: dict[str, Any], arguments: argparse.Namespace) -> None:
        python = arguments.peers_python if job["side"] == "nnunet" else sys.executable
        self.contender = " ".join(str(part) for part in job.values())
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("pipeline_worker.py")), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if arguments.verbose else subprocess.DEVNULL,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self.turns: list[dict[str, float]] = []
        try:
            self.ready = self.answer()
            self.halt()
        except BaseException:
            self.end()
            raise

    def halt(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def turn(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)
        super().turn()
        self.halt()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def figures(self, name: str) -> list[float]:
        return [turn[name] for turn in self.turns]


@contextlib.contextmanager
def contenders(jobs: Iterable[dict[str, Any]], arguments: argparse.Namespace) -> Iterator[list[LoaderWorker]]:
    workers: list[LoaderWorker] = []
    try:
        for job in jobs:
            workers.append(LoaderWorker(job, arguments))
        yield workers
    finally:
        for worker in workers:
            worker.end()


def job_of(
    folder: Path, side: str, kind: str, patch: Sequence[int], workers: int, **others: Any
) -> dict[str, Any]:
    """What a process has to do; others are `batches` of a turn, `augment`, and for copies `form` and `reuse`."""
    return {
        "side": side,
        "kind": kind,
        "patch_size": list(patch),
        "workers": workers,
        "prepared": str(folder / "prepared"),
        "nnunet": str(folder / f"nnunet-{'x'.join(map(str, patch))}"),
        "spacing_mm": SPACING_MM,
        "batch_size": 2,
        "foreground": 0.33,
        "augment": False,
        "ahead": AHEAD,
        **others,
    }


class Report:
    """Lines that are printed at once, and kept; and what the contenders found and were."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.versions: dict[str, None] = {}
        self.targets: list[list[str]] = []

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.lines.append(text)

    def used(self, side: str, worker: LoaderWorker) -> None:
        beside = " beside nnU-Net" if side == "nnunet" else ""
        self.versions.update(dict.fromkeys(f"{version}{beside}" for version in worker.ready["versions"]))

    def target(self, what: str, wanted: str, found: float, met: bool, unit: str = "") -> None:
        self.targets.append([what, wanted, f"{found:.3g}{unit}", "yes" if met else "**no**"])


def size_name(patch: Sequence[int]) -> str:
    return " x ".join(map(str, patch))


def spread(values: Sequence[float], digits: int = 0) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median over the rounds, of which each has its own ratio."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


# --- A, B: patches per second


def plain_part(folder: Path, arguments: argparse.Namespace, report: Report) -> None:
    report.say("\n## Without augmentation, files in the page cache")
    for patch in PLAIN_PATCHES:
        jobs = {}
        for workers in (1, 2):
            for side in ("partialseg", "nnunet"):
                jobs[side, workers] = job_of(folder, side, "rate", patch, workers)
            for name, form, reuse in (
                ("delivered", "delivered", False),
                ("reused", "delivered", True),
                ("source", "source", False),
            ):
                others = {"form": form, "reuse": reuse}
                jobs[name, workers] = job_of(folder, "copies", "rate", patch, workers, **others)
        compare(jobs, patch, arguments.batches, arguments, report)
        report.say(
            f"\nOn the disk: partialseg {megabytes(folder / 'prepared'):.0f} MB, nnU-Net "
            f"{megabytes(Path(jobs['nnunet', 1]['nnunet'])):.0f} MB."
        )


def augmented_part(folder: Path, arguments: argparse.Namespace, report: Report) -> None:
    report.say("\n## With the default augmentation of each")
    for patch in AUGMENTED_PATCHES:
        jobs = {
            (side, workers): job_of(folder, side, "rate", patch, workers, augment=True)
            for workers in (1, 2)
            for side in ("partialseg", "nnunet")
        }
        compare(jobs, patch, arguments.augmented_batches, arguments, report)


def compare(
    jobs: dict[tuple[str, int], dict[str, Any]],
    patch: Sequence[int],
    batches: int,
    arguments: argparse.Namespace,
    report: Report,
) -> None:
    """Let contenders take turns, and print the table of one patch size."""
    with contenders(({**job, "batches": batches} for job in jobs.values()), arguments) as workers:
        for _ in range(arguments.rounds):
            for worker in workers:
                worker.turn()
    found = dict(zip(jobs, workers, strict=True))
    with_copies = ("delivered", 1) in found
    rows = []
    for (name, num), worker in found.items():
        report.used(jobs[name, num]["side"], worker)
        rates, peer = worker.figures("rate"), found["nnunet", num].figures("rate")
        milliseconds = worker.median("processor_ms")
        row = [
            NAMES[name],
            f"{num}",
            f"{worker.median('rate'):.0f}",
            spread(rates),
            f"{ratio(rates, peer):.2f}",
        ]
        row += [
            f"{milliseconds:.1f}",
            f"1 / {found['nnunet', num].median('processor_ms') / milliseconds:.2f}",
        ]
        if with_copies:
            row.append(f"{ratio(found['reused', num].figures('rate'), rates):.2f}")
        rows.append(row)
    header = ["", "workers", "patches/s", "least to most", "× nnU-Net", "ms", "÷ nnU-Net"]
    report.say(f"\n### {size_name(patch)}, {arguments.rounds} rounds of {2 * batches} patches\n")
    report.say(table([*header, "time ÷ copies"] if with_copies else header, rows))
    note_targets(found, patch, report)


def note_targets(found: dict[tuple[str, int], LoaderWorker], patch: Sequence[int], report: Report) -> None:
    plain = ("delivered", 1) in found
    for num in (1, 2):
        rates = found["partialseg", num].figures("rate")
        least, aim = (3, 5) if plain else (2, 3)
        times = ratio(rates, found["nnunet", num].figures("rate"))
        kind = "without augmentation" if plain else "augmented"
        what = f"{size_name(patch)}, {kind}, {num} worker{'s' if num > 1 else ''}"
        report.target(what, f"at least {least} × nnU-Net, {aim} × the aim", times, times >= least, " ×")
        if plain:
            slower = ratio(found["reused", num].figures("rate"), rates)
            report.target(what, "at most 1.5 × the time of copies", slower, slower <= 1.5, " ×")


# --- A: cold start


def cold_part(folder: Path, arguments: argparse.Namespace, report: Report) -> None:
    """Fresh processes each time, since a file that is still mapped somewhere is not dropped."""
    report.say("\n## Cold start: files dropped from the page cache, two workers\n")
    rows, kept = [], 0.0
    for patch in PLAIN_PATCHES:
        turns: dict[str, list[dict[str, float]]] = {"partialseg": [], "nnunet": []}
        for _ in range(arguments.rounds):
            for side, found in turns.items():
                job = job_of(folder, side, "cold", patch, 2, batches=20)
                with contenders([job], arguments) as (worker,):
                    kept = max(
                        kept, drop_cached(files_of(Path(job["prepared" if side == "partialseg" else side])))
                    )
                    worker.turn()
                found += worker.turns
                report.used(side, worker)
        for side, found in turns.items():
            first, rate = ([turn[name] for turn in found] for name in ("first", "rate"))
            peer = [turn["rate"] for turn in turns["nnunet"]]
            row = [size_name(patch), NAMES[side], f"{statistics.median(first):.2f}", spread(first, 2)]
            rows.append([*row, f"{statistics.median(rate):.0f}", spread(rate), f"{ratio(rate, peer):.2f}"])
    report.say(
        "From setting the loader up, with all code imported; patches/s over the first 20 batches. Of the pages "
        f"dropped, at most {100 * kept:.1f}% were still there; what the disk itself or the host of a virtual "
        "machine keeps is not seen.\n"
    )
    header = ["", "", "first batch, s", "least to most", "patches/s", "least to most", "× nnU-Net"]
    report.say(table(header, rows))


# --- C: memory


def memory_part(folder: Path, arguments: argparse.Namespace, report: Report) -> None:
    patch = PLAIN_PATCHES[1]
    report.say(f"\n## Memory and start, patches of {size_name(patch)}, two workers\n")
    report.say(
        "MB beyond a process that has imported TensorFlow and run a trivial `tf.data`. Pages of mapped files "
        "are part of them, as long as they are mapped. Start: code other than TensorFlow's, the manifest, the "
        "files' lengths, the first batch.\n"
    )
    rows, starts, peaks = [], [], []
    for augment in (False, True):
        for entries in ENTRIES:
            prepared = folder / f"linked-{entries}" / "prepared"
            job = job_of(prepared.parent, "partialseg", "memory", patch, 2, batches=200, augment=augment)
            found = []
            for _ in range(arguments.rounds):
                with contenders([job], arguments) as (worker,):
                    worker.turn()
                found += worker.turns
                report.used("partialseg", worker)
            middle = {name: statistics.median(turn[name] for turn in found) for name in found[0]}
            rows.append(memory_row(entries, augment, middle))
            starts.append(middle["start"])
            peaks.append(middle["peak_mb"])
    header = [
        "entries",
        "augmented",
        "TensorFlow's import, s",
        "code, s",
        "set-up, s",
        "first batch, s",
        "start, s",
    ]
    report.say(table([*header, "peak at the first batch, MB", "peak of 200, MB", "after 200, MB"], rows))
    report.target(
        "start, 10,000 entries", "under 5 s", max(starts[1], starts[3]), max(starts[1], starts[3]) < 5, " s"
    )
    report.target("memory, 10,000 entries", "under 1000 MB", max(peaks), max(peaks) < 1000, " MB")
    more = max(peaks[1] - peaks[0], peaks[3] - peaks[2]) / (ENTRIES[1] - ENTRIES[0]) * 1000
    report.target("memory for each entry", "a few kB", more, more < 10, " kB")


def memory_row(entries: int, augment: bool, middle: dict[str, float]) -> list[str]:
    seconds = (f"{middle[name]:.2f}" for name in ("tensorflow", "code", "stream", "first", "start"))
    memory = (f"{middle[name]:.0f}" for name in ("peak_first_mb", "peak_mb", "last_mb"))
    return [f"{entries:,}", "yes" if augment else "no", *seconds, *memory]


PARTS = {"plain": plain_part, "cold": cold_part, "augmented": augmented_part, "memory": memory_part}


def write_data(folder: Path, arguments: argparse.Namespace) -> None:
    prepared = write_prepared(folder / "prepared", NUM_CASES)
    if "memory" in arguments.parts:
        for entries in ENTRIES:
            link_cases(prepared, folder / f"linked-{entries}" / "prepared", entries)
    patches = AUGMENTED_PATCHES if "augmented" in arguments.parts else PLAIN_PATCHES
    if set(arguments.parts) - {"memory"}:
        with contenders((job_of(folder, "nnunet", "write", p, 1) for p in patches), arguments) as workers:
            for worker in workers:
                worker.turn()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--quick", action="store_true", help="2 short rounds, to see that it works; nothing is kept"
    )
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    parser.set_defaults(threads=2, batches=100, augmented_batches=40)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.batches, arguments.augmented_batches = 2, 30, 15
    report = Report()
    report.say(
        f"# Patches: how fast they come, and in how much memory\n\n{heading('pipeline.py', arguments)}\n{NOTES}"
    )
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name), arguments)
        for part in arguments.parts:
            PARTS[part](Path(name), arguments, report)
    if report.targets:
        report.say(f"\n## Targets\n\n{table(['', 'wanted', 'found', 'met'], report.targets)}")
    report.say(f"\n{', '.join(report.versions)}.")
    if not arguments.quick:
        write_text(Path(__file__).parent / "results" / "pipeline.md", "\n".join(report.lines) + "\n")


if __name__ == "__main__":
    main()
