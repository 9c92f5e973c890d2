"""What a training step costs, beside nnU-Net's, as a Markdown table to keep in results/training.md.

    python benchmarks/training.py [--rounds 5] [--peers-python PYTHON]      the comparison, both patch sizes
    python benchmarks/training.py attempts [--rounds 5]                     what was tried to make it faster

About 12 and 20 minutes on 2 cores. Linux with glibc only. The same network, patches and batch in each framework:
forward, loss, backward, clipped gradient, weight decay, update. Each contender has a process of its own, which stays
alive; they take turns of `--steps` steps, after one turn that traces and compiles. For the peers see
benchmarks/losses.py.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

#: Depth, height and width of the patches of a batch of 2.
SIZES = ((32, 64, 64), (48, 96, 96))
#: Processes that are alive at once, so that they fit into memory.
MOST_AT_ONCE = 5
#: Makes glibc keep the pages that it has, where else it hands large ones back and gets them anew, cleared, each step.
KEEP_PAGES = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}


class Contender(NamedTuple):
    """What `training_worker.py` is called with, beside the patch size, and its environment."""

    label: str
    worker: str
    environment: Mapping[str, str] = MappingProxyType({})


NNUNET = Contender("nnU-Net, PyTorch as installed", "nnunet")
COMPARED = (
    NNUNET,
    Contender("nnU-Net, allocator tuned", "nnunet", KEEP_PAGES),
    Contender("partialseg", "partialseg"),
    Contender("partialseg, allocator tuned", "partialseg", KEEP_PAGES),
    Contender("partialseg, Keras' norm and leaky ReLU", "partialseg:keras-norm"),
)
ATTEMPTS = (
    Contender("partialseg", "partialseg"),
    Contender("Keras' norm and leaky ReLU", "partialseg:keras-norm"),
    Contender("the fused norm, not compiled by XLA", "partialseg:graph-norm"),
    Contender("no norm (a bound, not usable)", "partialseg:no-norm"),
    Contender("convolutions without bias", "partialseg:no-bias"),
    Contender("channels 32, 64, 128, 256, 256 in place of … 320", "partialseg:256-channels"),
    Contender("half the channels (a quarter of the products)", "partialseg:16-channels"),
    Contender("allocator tuned", "partialseg", KEEP_PAGES),
    Contender("logits of the finest stage alone", "partialseg:one-output"),
    Contender("the whole step by XLA", "partialseg:whole-xla"),
    Contender("without oneDNN, TensorFlow's default here", "partialseg", {"TF_ENABLE_ONEDNN_OPTS": "0"}),
)
PARTS = {"compare": COMPARED, "attempts": ATTEMPTS}
NOTES = """
- The network: nnU-Net's plain 3D U-Net of 5 stages, 32 to 320 channels, deep supervision, 6 classes, float32,
  batch 2; SGD with Nesterov's momentum, weight decay, gradient clipped by its norm.
- nnU-Net: what `nnUNetTrainer.train_step` does on a CPU, with the network, loss and optimiser that it builds.
- partialseg: the step of `partialseg train` with the same optimiser (its weight decay beside the gradient), and its
  callbacks after each step; `PartialSupervision` on fully annotated patches. The default preset's Adam, and its mean of
  the weights, which nnU-Net does not have, are not in it.
- Left out on both sides: reading patches and augmentation, and what is done at the end of an epoch.
- Allocator tuned: glibc keeps its pages (`MALLOC_MMAP_MAX_=0`, `MALLOC_TRIM_THRESHOLD_`, `MALLOC_TOP_PAD_`).
- Seconds: median of the steps after the first turn, and quartiles. CPU: of all threads, kernel's share included.
- GB (2^30 bytes): the peak of resident memory of the whole process, code and framework included.
"""


class Worker:
    """A contender's process and what its steps took."""

    def __init__(
        self,
        contender: Contender,
        size: tuple[int, ...],
        arguments: argparse.Namespace,
        script: str = "training_worker.py",
    ) -> None:
        python = arguments.peers_python if contender.worker.startswith("nnunet") else sys.executable
        self.contender = contender
        self.process = subprocess.Popen(
            [
                python,
                str(Path(__file__).with_name(script)),
                contender.worker,
                ",".join(map(str, size)),
                "--threads",
                str(arguments.threads),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if arguments.verbose else subprocess.DEVNULL,
            env={**os.environ, **contender.environment},
            text=True,
            bufsize=1,
        )
        self.about = self._answer()
        self.versions = self.about["versions"]
        #: Why it is not measured; "" where it is.
        self.absent: str = self.about.get("absent", "")
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self.first, self.peak_mb = 0.0, 0.0

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"{self.contender.label} ended without an answer. Run again with --verbose to see what it says; is "
                "its framework installed (see --help)?"
            )
        return json.loads(line)

    def turn(self, steps: int) -> dict[str, Any]:
        self.process.stdin.write(f"{steps}\n")
        answer = self._answer()
        self.peak_mb = answer["peak_mb"]
        return answer

    def warm_up(self) -> None:
        """Trace and compile, and one step more."""
        self.first = self.turn(2)["seconds"][0]

    def measure(self, steps: int) -> None:
        answer = self.turn(steps)
        self.seconds += answer["seconds"]
        self.processor += answer["processor"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(
    contenders: tuple[Contender, ...],
    size: tuple[int, ...],
    arguments: argparse.Namespace,
    script: str = "training_worker.py",
) -> list[Worker]:
    """Let the contenders take turns, those that cannot be compared here aside."""
    workers = [Worker(contender, size, arguments, script) for contender in contenders]
    present = [worker for worker in workers if not worker.absent]
    if any(worker.about.get("on_gpu") for worker in present):
        for worker in present:
            worker.absent = "" if worker.about["on_gpu"] else "sees no GPU"
        present = [worker for worker in present if not worker.absent]
    for worker in present:
        worker.warm_up()
    for _ in range(arguments.rounds):
        for worker in present:
            time.sleep(0.1)  # lets the threads of the last contender go to sleep
            worker.measure(arguments.steps)
    for worker in workers:
        worker.close()
    return workers


def groups(contenders: tuple[Contender, ...]) -> list[tuple[Contender, ...]]:
    """The first contender with some of the others at a time, so that each is measured beside it."""
    first, *others = contenders
    step = MOST_AT_ONCE - 1
    return [(first, *others[i : i + step]) for i in range(0, max(len(others), 1), step)]


def rows(workers: list[Worker]) -> list[str]:
    """Figures of each contender and their ratios to the first's."""
    reference, lines = workers[0], []
    base = statistics.median(reference.seconds)
    base_processor = statistics.median(reference.processor)
    for worker in workers:
        low, median, high = statistics.quantiles(worker.seconds, n=4)
        processor = statistics.median(worker.processor)
        lines.append(
            f"| {worker.contender.label} | {median:.2f} | {low:.2f} to {high:.2f} | {median / base:.2f} "
            f"| {processor:.2f} | {processor / base_processor:.2f} | {worker.first:.1f} "
            f"| {worker.peak_mb / 1024:.2f} | {worker.peak_mb / reference.peak_mb:.2f} |"
        )
    return lines


def heading(arguments: argparse.Namespace) -> str:
    """Command, machine, date and load, as they are before anything is started."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return "\n".join(
        [
            "```",
            " ".join(["python benchmarks/training.py", *words]),
            "```",
            "",
            f"{datetime.date.today()}, {models[0].split(': ')[1] if models else 'CPU'}, {os.cpu_count()} cores, "
            f"{arguments.threads} threads, {arguments.rounds} rounds of {arguments.steps} steps, load average at the "
            f"start {os.getloadavg()[0]:.2f}.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, default="compare")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument(
        "--sizes", nargs="+", type=lambda text: tuple(map(int, text.split(","))), default=SIZES
    )
    parser.add_argument("--only", nargs="+", help="contenders whose label holds one of these words")
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    arguments = parser.parse_args()
    if arguments.rounds * arguments.steps < 2:
        parser.error("quartiles need two steps at least: raise --rounds or --steps")
    contenders = tuple(
        c
        for c in PARTS[arguments.part]
        if not arguments.only or any(word in c.label for word in arguments.only)
    )
    if not contenders:
        parser.error(f"no contender of {arguments.part} has one of {', '.join(arguments.only)} in its label")
    print(heading(arguments), flush=True)
    print(NOTES, end="", flush=True)
    columns = f"| | s a step | quartiles | ÷ {contenders[0].label} | CPU s | CPU ÷ | first step, s | peak GB | GB ÷ |"
    for size in arguments.sizes:
        print(f"\n## {' × '.join(map(str, size))} (depth, height, width)\n", flush=True)
        print(f"{columns}\n{'|---' * (columns.count('|') - 1)}|", flush=True)
        versions: list[str] = []
        for group in groups(contenders):
            workers = measure(group, size, arguments)
            versions += [version for worker in workers for version in worker.versions]
            print("\n".join(rows(workers)), flush=True)
        print(f"\n{', '.join(dict.fromkeys(versions))}.", flush=True)


if __name__ == "__main__":
    main()
