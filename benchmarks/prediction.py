"""What sliding-window prediction costs beside nnU-Net's and MONAI's, as Markdown to keep in results/prediction.md.

    python benchmarks/prediction.py [--rounds 5] [--peers-python PYTHON]    time, 25 to 30 minutes on 2 cores
    python benchmarks/prediction.py memory [--base-channels 32]             peak memory of a whole prediction

Time: a volume of 27 windows, or fewer by `--windows`, in the same network in PyTorch and here; then in a network of one
pointwise convolution, around which the blending is what takes the time. Each framework has a process of its own, and
they take turns. Linux with glibc only. For the peers, an environment with nnunetv2 and monai.

Memory: a scan of 512 x 512 x 1000 voxels of 0.8 x 0.8 x 1 mm with 6 classes, file in and file out, in a process of its
own; it needs 2 GB of free disk.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from prediction_worker import DOUBLED, PATCH_SIZE

WORKER = Path(__file__).with_name("prediction_worker.py")
SHAPE, VOXEL_MM = (512, 512, 1000), (0.8, 0.8, 1.0)


class Turn(NamedTuple):
    """What a worker is asked for, and its row of the table."""

    framework: str
    name: str
    label: str


OUR_FORWARD = Turn("partialseg", "forward", "TensorFlow, the forward passes alone")
OUR_LOGITS = Turn(
    "partialseg", "logits", "partialseg's `SlidingWindow.whole_logits`: no softmax, as the peers"
)
OURS = Turn("partialseg", "windows", "partialseg's `predict_volume`")
OUR_PLANES = Turn(
    "partialseg", "planes", "partialseg's `SlidingWindow.planes`, what `partialseg predict` walks"
)
OUR_CONVOLUTIONS = Turn("partialseg", "convolutions", "TensorFlow, the network's convolutions alone")
HALF = Turn("partialseg", "bfloat16", "partialseg's `predict_volume` in bfloat16")
THEIR_FORWARD = Turn("torch", "forward", "PyTorch, the forward passes alone")
NNUNET = Turn("torch", "nnunet", "nnU-Net's predictor")
MONAI = Turn("torch", "monai", "MONAI's SlidingWindowInferer")
TURNS = (THEIR_FORWARD, NNUNET, MONAI, OUR_CONVOLUTIONS, OUR_FORWARD, OUR_LOGITS, OURS, OUR_PLANES, HALF)
NETWORKS = {
    "unet": "nnU-Net's plain 3D U-Net, 5 stages of 32 to 320 channels",
    "pointwise": "one 1 × 1 × 1 convolution: the blending",
}


class Worker:
    """A framework's process, which waits for its turns."""

    def __init__(self, framework: str, network: str, arguments: argparse.Namespace) -> None:
        python = arguments.peers_python if framework == "torch" else sys.executable
        self.process = subprocess.Popen(
            [
                *(python, str(WORKER), framework, network),
                *("--threads", str(arguments.threads), "--windows", str(arguments.windows)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if arguments.verbose else subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        ready = self._answer()
        self.versions, self.turns = ready["versions"], ready["turns"]

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended without an answer; run again with --verbose to see what it says")
        return json.loads(line)

    def turn(self, name: str) -> dict[str, Any]:
        self.process.stdin.write(f"{name}\n")
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(network: str, arguments: argparse.Namespace, rounds: int) -> tuple[dict[Turn, list], list[str]]:
    """What each turn took in each round, after one that traces and warms up."""
    workers = {framework: Worker(framework, network, arguments) for framework in ("torch", "partialseg")}
    turns = [turn for turn in TURNS if turn.name in workers[turn.framework].turns]
    answers = defaultdict(list)
    for number in range(rounds + 1):
        first = number % len(turns)
        for turn in turns[first:] + turns[:first]:  # each has each place in the order
            answer = workers[turn.framework].turn(turn.name)
            if number:
                answers[turn].append(answer)
    versions = [version for worker in workers.values() for version in worker.versions]
    for worker in workers.values():
        worker.close()
    return answers, versions


def table(answers: dict[Turn, list]) -> list[str]:
    """A row for each turn."""
    medians = {turn: statistics.median(a["seconds"] for a in found) for turn, found in answers.items()}
    lines = [
        "| | seconds | quartiles | CPU s | ÷ its forward passes | ÷ nnU-Net's predictor | ÷ MONAI's |",
        "|---|---|---|---|---|---|---|",
    ]
    for turn in filter(answers.get, TURNS):
        seconds = [answer["seconds"] for answer in answers[turn]]
        low, median, high = statistics.quantiles(seconds, n=4)
        processor = statistics.median(answer["processor"] for answer in answers[turn])
        forward = OUR_FORWARD if turn.framework == "partialseg" else THEIR_FORWARD
        ratios = (median / medians[other] for other in (forward, NNUNET, MONAI))
        lines.append(
            f"| {turn.label} | {median:.3g} | {low:.3g} to {high:.3g} | {processor:.3g} | "
            + " | ".join(f"{ratio:.2f}" for ratio in ratios)
            + " |"
        )
    by_round = [
        ours["seconds"] / forward["seconds"]
        for ours, forward in zip(answers[OURS], answers[OUR_FORWARD], strict=True)
    ]
    lines += [
        "",
        f"partialseg ÷ its forward passes, median of the rounds: {statistics.median(by_round):.3f} "
        f"({min(by_round):.2f} to {max(by_round):.2f}).",
    ]
    return lines


def write_scan(path: Path) -> None:
    """A body in air, in the sizes of a large scan; its voxels are noisy where the body is."""
    import nibabel as nib
    import numpy as np

    x, y = (np.arange(n) - n / 2 for n in SHAPE[:2])
    body = (x[:, None] / 230) ** 2 + (y / 150) ** 2 < 1
    noise = np.random.default_rng(0).normal(40, 20, body.shape).astype(np.int16)
    array = np.full(SHAPE, -1000, np.int16)
    for z in range(SHAPE[2]):
        array[..., z][body] = np.roll(noise, 37 * z, axis=0)[body]
    affine = np.diag([*VOXEL_MM, 1.0])
    image = nib.Nifti1Image(array, affine)
    nib.openers.Opener.default_compresslevel = 1
    nib.save(image, path)


def memory(arguments: argparse.Namespace) -> None:
    """Predict a large scan, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.nii.gz"
        write_scan(path)
        command = [sys.executable, str(WORKER), "partialseg", "scan", "--scan", str(path)]
        command += ["--threads", str(arguments.threads), "--base-channels", str(arguments.base_channels)]
        output = None if arguments.verbose else subprocess.DEVNULL
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=output, text=True, check=True)
        found = json.loads(answer.stdout)
    if found["problems"]:
        raise SystemExit("\n".join(found["problems"]))
    size = " × ".join(map(str, SHAPE))
    print(
        f"\n## Memory\n\n{size} voxels of {' × '.join(map(str, VOXEL_MM))} mm, 6 classes, windows of "
        f"{' × '.join(map(str, PATCH_SIZE))} at 3 × 1.5 × 1.5 mm, a network of 5 stages from {arguments.base_channels} "
        f"channels on with random weights; .nii.gz in, label map out.\n\n"
        f"Peak resident memory of the process: **{found['peak_mb'] / 1024:.2f} GB** (2^30 bytes), "
        f"{found['seconds']:.0f} s."
    )


def heading(arguments: argparse.Namespace) -> str:
    words = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return (
        f"```\n{' '.join(['python benchmarks/prediction.py', *words])}\n```\n\n"
        f"{datetime.date.today()}, {models[0].split(': ')[1] if models else 'CPU'}, {os.cpu_count()} cores, "
        f"{arguments.threads} threads, load average at the start {os.getloadavg()[0]:.2f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("time", "memory"), default="time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--windows", type=int, choices=tuple(DOUBLED), default=27, help="of the volume")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=tuple(NETWORKS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument(
        "--base-channels", type=int, default=32, help="of the network that memory is measured with"
    )
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    arguments = parser.parse_args()
    print(heading(arguments), flush=True)
    if arguments.part == "memory":
        memory(arguments)
        return
    for network in arguments.networks:
        # The blending takes a fraction of a second: more rounds cost nothing.
        rounds = arguments.rounds if network == "unet" else max(arguments.rounds, 15)
        answers, versions = measure(network, arguments, rounds)
        print(f"\n## Around {NETWORKS[network]}\n", flush=True)
        size = " × ".join(map(str, PATCH_SIZE))
        print(f"{arguments.windows} windows of {size} (depth, height, width), {rounds} rounds.\n", flush=True)
        print("\n".join(table(answers)), flush=True)
    print(f"\n{', '.join(versions)}.")


if __name__ == "__main__":
    main()
