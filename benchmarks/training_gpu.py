"""Patches per second on a GPU, beside nnU-Net's, as Markdown to keep in results/training_gpu_DEVICE.md.

    python benchmarks/training_gpu.py [--peers-python PYTHON] [--peak-tflops 989]

Needs PyTorch with CUDA and nnunetv2 in the peers' Python, and Keras with JAX or TensorFlow, or both, with CUDA in this
one: what is not installed, or sees no GPU where others do, is left out by a row that says so. The same network, patches
and batch in each framework: to the device, forward, loss, backward, clipped gradient, weight decay, update, in the
precision that is named. On TensorFlow it is the step of `partialseg train` with its callbacks; on JAX, where
TensorFlow may be missing, `model.fit` with the same network, losses and optimiser. Each contender has a process of its
own on the same device; they take turns of `--steps` steps, after one turn that compiles.
Without a GPU, `--sizes 16,32,32 --rounds 1 --steps 2` tries that all of it runs.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys

from training import Contender, Worker, measure

CONTENDERS = (
    Contender("nnU-Net, PyTorch compiled, float16", "nnunet:compiled"),
    Contender("nnU-Net, PyTorch eager, float16", "nnunet"),
    Contender("partialseg, JAX, bfloat16", "jax:bfloat16"),
    Contender("partialseg, JAX, float16", "jax:float16"),
    Contender("partialseg, TensorFlow, bfloat16", "tensorflow:bfloat16"),
    Contender("partialseg, TensorFlow, float32", "tensorflow:float32"),
)
#: 10^12 operations a second of dense products in half precision, of the makers' data sheets.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "V100": 125}
COLUMNS = (
    "| | s a step | quartiles | patches/s | × the first's speed | share of peak | first step, s | peak GB |"
)


def peak_of(device: str) -> float | None:
    """Peak operations a second of a device by its name; None where it is not known."""
    return next((1e12 * peak for name, peak in PEAK_TFLOPS.items() if name in device), None)


def row(worker: Worker, reference: Worker, batch: int, flops: float, peak: float | None) -> str:
    """Figures of a contender, or why there are none."""
    if worker.absent:
        return f"| {worker.contender.label} | {worker.absent} {'| ' * (COLUMNS.count('|') - 3)}|"
    low, median, high = statistics.quantiles(worker.seconds, n=4)
    share = "" if peak is None else f"{flops / median / peak:.1%}"
    return (
        f"| {worker.contender.label} | {median:.4f} | {low:.4f} to {high:.4f} | {batch / median:.2f} "
        f"| {statistics.median(reference.seconds) / median:.2f} | {share} | {worker.first:.1f} "
        f"| {worker.peak_mb / 1024:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--peers-python", default=sys.executable)
    parser.add_argument("--peak-tflops", type=float, help="of the device, where this script does not know it")
    parser.add_argument(
        "--sizes", nargs="+", type=lambda text: tuple(map(int, text.split(","))), default=[(48, 192, 192)]
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], help="contenders whose label holds one of these words"
    )
    parser.add_argument("--verbose", action="store_true", help="show what the workers print")
    arguments = parser.parse_args()
    arguments.threads = 0
    if arguments.rounds * arguments.steps < 2:
        parser.error("quartiles need two steps at least: raise --rounds or --steps")
    contenders = tuple(c for c in CONTENDERS if any(word in c.label for word in arguments.only))
    if not any(c.worker.startswith("nnunet") for c in contenders):
        parser.error("--only leaves nothing of nnU-Net to compare with")
    for size in arguments.sizes:
        workers = measure(contenders, size, arguments, "training_gpu_worker.py")
        reference = next((w for w in workers if "flops" in w.about and not w.absent), None)
        if reference is None:
            raise SystemExit(
                f"nnU-Net: {workers[0].absent}, and nothing is left to compare with; see --peers-python"
            )
        device, flops = reference.about["device"], reference.about["flops"]
        peak = 1e12 * arguments.peak_tflops if arguments.peak_tflops else peak_of(device)
        print(f"## {device}, {' × '.join(map(str, size))}, batch 2\n")
        speed = "not known" if peak is None else f"{peak / 1e12:.0f} · 10^12 a second"
        print(
            f"{datetime.date.today()}, {arguments.rounds} rounds of {arguments.steps} steps, {flops / 1e12:.2f} · "
            f"10^12 operations a step in convolutions, peak {speed}.\n"
        )
        print(f"{COLUMNS}\n{'|---' * (COLUMNS.count('|') - 1)}|")
        print("\n".join(row(worker, reference, 2, flops, peak) for worker in workers))
        versions = [version for worker in workers for version in worker.versions]
        print(f"\n{', '.join(dict.fromkeys(versions))}.\n", flush=True)


if __name__ == "__main__":
    main()
