"""Forward and backward of the losses against nnU-Net's and MONAI's: time, ratios, memory. As Markdown.

    python benchmarks/losses.py          [--rounds 15] [--threads N] [--peers-python PYTHON]

Linux only. Each contender has a process of its own, which stays alive; they take turns, a step each. The peers
come with the extra `bench`. Their dependencies bring a CUDA build of PyTorch and a NumPy that TensorFlow does
not take, so give them an environment of their own, and its interpreter by --peers-python:

    python -m venv peers && peers/bin/pip install nnunetv2 monai
    peers/bin/pip uninstall torch torchvision       # and the packages called nvidia-* and cuda-*
    peers/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
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
from pathlib import Path

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
PEERS = ("nnunet", "monai")
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
        self.ready: dict[str, float | str] = {}
        self.steps: list[dict[str, float]] = []

    def answer(self) -> dict[str, float | str]:
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

    def median_ms(self, field: str = "seconds") -> float:
        return 1000 * statistics.median(step[field] for step in self.steps[1:])

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


def loss_table(shape: tuple[int, ...], workers: list[Worker]) -> str:
    """Medians of time; memory as the rise of the peak over what was resident before."""
    by_name = {worker.contender: worker for worker in workers}
    lines = [
        f"## {shape}",
        "",
        "| | ms | quartiles | ÷ nnU-Net | ÷ plain alike | CPU ms | CPU ÷ nnU-Net | first step, s "
        "| MB, first | MB, later | MB ÷ plain alike |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for worker in workers:
        milliseconds = [1000 * step["seconds"] for step in worker.steps[1:]]
        low, _, high = statistics.quantiles(milliseconds, n=4)
        plain = by_name.get(worker.contender.replace("four", "plain")) if "four" in worker.contender else None
        cells = [
            CONTENDERS[worker.contender],
            f"{worker.median_ms():.1f}",
            f"{low:.1f} to {high:.1f}",
            ratio(worker.median_ms(), by_name.get("nnunet") and by_name["nnunet"].median_ms()),
            ratio(worker.median_ms(), plain and plain.median_ms()),
            f"{worker.median_ms('processor'):.1f}",
            ratio(
                worker.median_ms("processor"),
                by_name.get("nnunet") and by_name["nnunet"].median_ms("processor"),
            ),
            f"{worker.steps[0]['seconds']:.2f}",
            f"{worker.steps[0]['peak_mb'] - worker.ready['fresh_mb']:.0f}",
            f"{later_mb(worker):.0f}",
            ratio(later_mb(worker), plain and later_mb(plain)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(value: float, reference: float | None) -> str:
    return f"{value / reference:.2f}" if reference else ""


def later_mb(worker: Worker) -> float:
    """The peak of the later steps, over what was resident once the framework's code was loaded."""
    return statistics.median(step["peak_mb"] for step in worker.steps[1:]) - worker.ready["loaded_mb"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    arguments = parser.parse_args()
    print(heading(arguments), flush=True)
    for shape in SHAPES:
        workers = measure(arguments.contenders, shape, arguments)
        print("\n" + loss_table(shape, workers), flush=True)


if __name__ == "__main__":
    main()
