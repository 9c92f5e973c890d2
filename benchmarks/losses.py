"""What the losses cost, beside nnU-Net's and MONAI's, as a Markdown table to keep in results/losses.md.

    python benchmarks/losses.py          [--rounds 15] [--peers-python PYTHON]   the loss alone, and its memory
    python benchmarks/losses.py classes  [--rounds 15]                           as the number of classes grows
    python benchmarks/losses.py steps    [--rounds 15] [--networks demo paper]   in a whole training step

About 4, 4 and 10 minutes on 2 cores. Linux only. Each contender has a process of its own, which stays alive;
they take turns, a step each. JAX comes with the extra `test`, the peers with the extra `bench`:

    pip install -c constraints.txt -e '.[bench]'

That fits beside TensorFlow, but nnU-Net brings torchvision (through timm), and that a CUDA build of PyTorch of
several GB. To keep it away, make another environment and name its interpreter by --peers-python; there
PyTorch's CPU build may take its place, since nothing here needs torchvision:

    python -m venv peers
    peers/bin/pip install nnunetv2 monai
    peers/bin/pip uninstall torch torchvision       # and the packages nvidia-* and cuda-*
    peers/bin/pip install torch                     # a CPU build, from where pytorch.org says
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES = ((2, 48, 96, 96, 6), (1, 48, 190, 190, 6))
NUM_CLASSES, CLASSES_SIZE = (2, 6, 16, 64), (1, 24, 64, 64)

CONTENDERS = {
    "nnunet": "nnU-Net DC_and_CE_loss",
    "monai": "MONAI DiceCELoss",
    "keras-graph": "handwritten CE + Dice, Keras on TensorFlow",
    "keras-xla": "handwritten CE + Dice, Keras on TensorFlow, jit_compile",
    "plain-graph": "plain CE + Dice, TensorFlow",
    "plain-xla": "plain CE + Dice, TensorFlow, jit_compile",
    "plain-jax": "plain CE + Dice, JAX",
    "four-graph": "four terms, TensorFlow",
    "four-xla": "four terms, TensorFlow, jit_compile",
    "four-jax": "four terms, JAX",
}
NOTES = """
- nnU-Net: as its trainer builds the loss for 3d_fullres. MONAI: `DiceCELoss(softmax=True, to_onehot_y=True)`.
- Plain CE + Dice: `PartialSupervision(terms=("mCE", "mDC"))`, all organs annotated. Handwritten: softmax, Keras'
  categorical cross-entropy and soft Dice, which know of no partial labels.
- Four terms: `PartialSupervision()`; even samples annotate the liver alone, odd ones the kidneys.
- TensorFlow: a `tf.function` of loss and gradient, as in `model.fit`. The losses of this package compile their passes
  themselves in every row; jit_compile compiles the little around them as well. Handwritten without jit_compile is
  the only row of TensorFlow without XLA.
- A step is forward and backward to the logits, until the gradient is there. The time of the first step, with tracing
  and compiling, is of a process that has done one on few voxels. ÷ plain: alike in framework and compilation.
- MB: how far the peak of resident memory rises in the first step over a process that holds the inputs; and in later
  steps over one that has also done the step on few voxels, so that code is not counted.
"""
PEERS = ("nnunet", "monai")
CLASSES_CONTENDERS = ("plain-graph", "plain-xla", "four-graph", "four-xla")
#: A pause lets the threads of the last contender go to sleep.
PAUSE_SECONDS = 0.02


class Worker:
    """A contender's process: `ready` is what it says at the start, `step()` what each step took."""

    def __init__(self, contender: str, shape: tuple[int, ...], arguments: argparse.Namespace) -> None:
        python = arguments.peers_python if contender in PEERS else sys.executable
        script = Path(__file__).with_name("losses_worker.py")
        command = [python, str(script), contender, ",".join(map(str, shape))]
        self.contender = contender
        self.process = subprocess.Popen(
            [*command, "--threads", str(arguments.threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if arguments.verbose else subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self.ready: dict[str, Any] = {}
        self.steps: list[dict[str, float]] = []

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"{self.contender} ended without an answer. Run again with --verbose to see what it says; is "
                "its framework installed (see --help)? --contenders leaves contenders out."
            )
        return json.loads(line)

    def step(self) -> None:
        self.process.stdin.write("step\n")
        self.steps.append(self.answer())

    def median_ms(self) -> float:
        return 1000 * statistics.median(step["seconds"] for step in self.steps[1:])

    def median_cpu_ms(self) -> float:
        """Processor time, of all threads: what a loaded machine disturbs less."""
        return 1000 * statistics.median(step["processor"] for step in self.steps[1:])

    def first_mb(self) -> float:
        """The peak of the first step, code, tracing and compiling with it, over a process with its inputs."""
        return self.steps[0]["peak_mb"] - self.ready["fresh_mb"]

    def later_mb(self) -> float:
        """The peak of the later steps, over what was resident once a small step had loaded the code."""
        return statistics.median(step["peak_mb"] for step in self.steps[1:]) - self.ready["loaded_mb"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(contenders: list[str], shape: tuple[int, ...], arguments: argparse.Namespace) -> list[Worker]:
    """Let the contenders take turns; the first step of each, which traces and compiles, stands first."""
    workers = [Worker(contender, shape, arguments) for contender in contenders]
    for worker in workers:
        worker.ready = worker.answer()
    for _ in range(arguments.rounds + 1):
        for worker in workers:
            time.sleep(PAUSE_SECONDS)
            worker.step()
    for worker in workers:
        worker.close()
    return workers


def heading(arguments: argparse.Namespace) -> str:
    """Command, machine, date and load, as they are before anything is started."""
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    load = os.getloadavg()[0]
    lines = [
        "```",
        " ".join(["python benchmarks/losses.py", *words]),
        "```",
        "",
        f"{datetime.date.today()}, {models[0].split(': ')[1] if models else 'CPU'}, {os.cpu_count()} cores, "
        f"{arguments.threads} threads, {arguments.rounds} rounds, load average at the start {load:.2f}.",
    ]
    if load > 0.25 * os.cpu_count():
        lines += ["", "**The machine was busy: trust the ratios of processor time, not the digits.**"]
    return "\n".join(lines)


def loss_part(arguments: argparse.Namespace) -> None:
    print(NOTES, end="")
    for shape in SHAPES:
        workers = measure(arguments.contenders, shape, arguments)
        print(f"\n## {shape}\n\n{loss_table(workers)}\n\n{versions(workers)}", flush=True)


def loss_table(workers: list[Worker]) -> str:
    """Medians of time; memory as the rise of the peak over what was resident before."""
    by_name = {worker.contender: worker for worker in workers}
    nnunet = by_name.get("nnunet")
    header = (
        "loss, framework | ms | quartiles | ÷ nnU-Net | ÷ plain | CPU ms | CPU ÷ nnU-Net | CPU ÷ plain "
        "| first step, s | its MB | later MB | ÷ plain"
    )
    lines = [f"| {header} |", "|---" * (header.count("|") + 1) + "|"]
    for worker in workers:
        plain = by_name.get(worker.contender.replace("four", "plain"))
        plain = plain if plain is not worker else None
        low, _, high = statistics.quantiles([1000 * step["seconds"] for step in worker.steps[1:]], n=4)
        cells = [
            CONTENDERS[worker.contender],
            f"{worker.median_ms():.1f}",
            f"{low:.1f} to {high:.1f}",
            ratio(worker, nnunet, Worker.median_ms),
            ratio(worker, plain, Worker.median_ms),
            f"{worker.median_cpu_ms():.1f}",
            ratio(worker, nnunet, Worker.median_cpu_ms),
            ratio(worker, plain, Worker.median_cpu_ms),
            f"{worker.steps[0]['seconds']:.2f}",
            f"{worker.first_mb():.0f}",
            f"{worker.later_mb():.0f}",
            ratio(worker, plain, Worker.later_mb),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(worker: Worker, reference: Worker | None, figure: Callable[[Worker], float]) -> str:
    return f"{figure(worker) / figure(reference):.2f}" if reference else ""


def classes_part(arguments: argparse.Namespace) -> None:
    """A table of milliseconds, and of processor time for each voxel and class, constant if cost is linear."""
    contenders = [name for name in CLASSES_CONTENDERS if name in arguments.contenders]
    voxels = math.prod(CLASSES_SIZE)
    print(f"\n## {CLASSES_SIZE}, and classes\n")
    print("In brackets nanoseconds of processor time for each voxel and class.\n")
    print("| classes | " + " | ".join(CONTENDERS[name] for name in contenders) + " |")
    print("|---" * (len(contenders) + 1) + "|", flush=True)
    for num_classes in NUM_CLASSES:
        workers = measure(contenders, (*CLASSES_SIZE, num_classes), arguments)
        cells = [
            f"{w.median_ms():.2f} ms ({1e6 * w.median_cpu_ms() / (voxels * num_classes):.1f})"
            for w in workers
        ]
        print(f"| {num_classes} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{versions(workers)}", flush=True)


def steps_part(arguments: argparse.Namespace) -> None:
    """A table of what the exclusion terms add; in this process, with networks that take turns."""
    from losses_steps import print_steps

    print("\n## A training step\n\nMedians, and quartiles in brackets.\n")
    print_steps(arguments)


def versions(workers: list[Worker]) -> str:
    return (
        ", ".join(dict.fromkeys(version for worker in workers for version in worker.ready["versions"])) + "."
    )


PARTS = {"loss": loss_part, "classes": classes_part, "steps": steps_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS, default="loss")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--networks", nargs="+", choices=("demo", "paper"), default=["demo", "paper"])
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    arguments = parser.parse_args()
    print(heading(arguments), flush=True)
    PARTS[arguments.part](arguments)


if __name__ == "__main__":
    main()
