"""How far the four loss terms are from double precision on each backend, as tables for results/loss_precision.md.

    python benchmarks/loss_precision.py [--python torch=INTERPRETER ...]

About two minutes on 2 cores. Each backend has a process of its own. JAX comes with the extra `test`; PyTorch with the
extra `torch`, or in another environment that --python names. A backend that is not installed is named as missing.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401, lets NumPy know bfloat16 by its name
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TERMS = ("mCE", "mDC", "eCE", "eDC")
DTYPES = ("float32", "bfloat16", "float16")
WAYS = {"tensorflow": ("eager", "graph", "jit_compile"), "jax": ("eager", "jit"), "torch": ("eager",)}
EPSILON = 1e-7
NOTES = """
- Value: largest difference of a sample's value. Gradient: largest difference of an entry, over the largest entry of
  the sample's gradient.
- Reference: NumPy in float64 with gradients derived by hand, at the same logits, that is, after their rounding to the
  dtype of the row. The losses compute in float32 whatever the dtype of the logits; a gradient has the dtype of the
  logits, so in half precision it is wrong by its rounding, up to 2^-8 (3.9e-03) of an entry in bfloat16 and 2^-11
  (4.9e-04) in float16.
- The loss is scaled by a power of two near the number of voxels, as mixed precision training scales it, lest
  gradients underflow in float16.
"""


def volume() -> tuple[np.ndarray, np.ndarray]:
    """A batch of two patches of 48 x 96 x 96 with a ball for each organ; one annotates the liver, one the kidneys."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in (48, 96, 96)), indexing="ij"), axis=-1)
    label = np.zeros((48, 96, 96), int)
    balls = [(1, (24, 35, 65), 22), (2, (28, 30, 20), 12), (3, (20, 55, 50), 8), (4, (16, 75, 25), 9)]
    for organ, centre, radius in [*balls, (5, (16, 75, 70), 9)]:
        label[((grid - centre) ** 2).sum(-1) < radius**2] = organ
    liver = np.array([[1, 0, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0]], np.uint8)[[0, 1, 0, 0, 0, 0]]
    kidneys = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]], np.uint8)[[0, 0, 0, 0, 1, 1]]
    candidates = np.stack([liver[label], kidneys[label]])
    candidates[:, :2] = 1  # two slices that nobody looked at
    logits = 4 * np.eye(6)[label] + rng.normal(0, 1.5, (2, *label.shape, 6))
    return candidates, logits


def partitions() -> tuple[np.ndarray, np.ndarray]:
    """256 samples of 12 voxels, each with a random partition of the classes; some voxels are ignored."""
    rng = np.random.default_rng(1)
    candidates = np.ones((256, 12, 6), np.uint8)
    for sample in candidates:
        part = rng.integers(0, rng.integers(2, 7), 6)
        for voxel in sample[: rng.integers(6, 13)]:
            voxel[:] = part == part[rng.integers(0, 6)]
    return candidates, rng.normal(0, 3, candidates.shape)


CASES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "Logits (2, 48, 96, 96, 6)": volume,
    "Random partitions, logits (256, 12, 6)": partitions,
}


def reference(candidates: np.ndarray, logits: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
    """Value and gradient of each term for one sample, with the options that `PartialSupervision` has by default.

    Args:
        candidates: 0 or 1, `(voxels, classes)`.
        logits: float64, same shape.
    """
    sets, num_voxels = candidates.astype("float64"), len(candidates)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    size = sets.sum(-1, keepdims=True)
    known = ((size > 0) & (size < sets.shape[-1])).astype("float64")
    excluded = known * (1 - sets) * ((size * known).max() > 1)
    takes_part = known * (excluded.max() > 0)

    q = (p * sets).sum(-1, keepdims=True)
    q = np.where(known > 0, q, 1)
    merged = merged_classes(sets * known)
    truth = known * (sets @ merged > 0)
    marginal, of_merged = _dice(truth, (p @ merged) * known, known)
    exclusion, of_p = _dice(excluded, p * takes_part, takes_part)
    num_merged = merged.shape[1] if known.any() else 0
    return {
        "mCE": (-np.log(q).sum() / num_voxels, known * p * (1 - sets / q) / num_voxels),
        "mDC": (
            (1 - marginal).sum() / max(num_merged, 1) if num_merged else 0.0,
            _through_softmax(-of_merged @ merged.T / max(num_merged, 1), p),
        ),
        "eCE": (
            (excluded * np.log1p(p)).sum() / num_voxels,
            _through_softmax(excluded / (1 + p) / num_voxels, p),
        ),
        "eDC": (exclusion.mean(), _through_softmax(of_p / p.shape[-1], p)),
    }


def merged_classes(sets: np.ndarray) -> np.ndarray:
    """0 or 1, `(classes, merged classes)`: classes that share a set, also through others, are one."""
    together = (sets.T @ sets > 0) | np.eye(sets.shape[-1], dtype=bool)
    for _ in range(sets.shape[-1]):
        together = together @ together
    return np.unique(together, axis=0).T.astype("float64")


def _dice(truth: np.ndarray, predicted: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Soft Dice per class over `(voxels, classes)`, and its derivative by each prediction that `mask` lets in."""
    overlap, total = (truth * predicted).sum(0), truth.sum(0) + predicted.sum(0) + EPSILON
    return 2 * overlap / total, mask * (2 * truth / total - 2 * overlap / total**2)


def _through_softmax(of_p: np.ndarray, p: np.ndarray) -> np.ndarray:
    return p * (of_p - (of_p * p).sum(-1, keepdims=True))


def differentiate(backend: str, way: str, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A function of candidates and logits that gives `function`'s values per sample, and the gradient of their sum."""
    if backend == "tensorflow":
        import tensorflow as tf

        def with_tape(candidates: Any, logits: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(logits)
                values = function(candidates, logits)
            return values, tape.gradient(values, logits)

        return with_tape if way == "eager" else tf.function(with_tape, jit_compile=way == "jit_compile")
    if backend == "jax":
        import jax

        def summed(logits: Any, candidates: Any) -> Any:
            values = function(candidates, logits)
            return values.sum(), values

        gradient = jax.grad(summed, has_aux=True)
        gradient = jax.jit(gradient) if way == "jit" else gradient
        return lambda candidates, logits: gradient(logits, candidates)[::-1]

    def with_autograd(candidates: Any, logits: Any) -> Any:
        logits = logits.detach().requires_grad_(True)
        values = function(candidates, logits)
        values.sum().backward()
        return values.detach(), logits.grad

    return with_autograd


def loss_scale(shape: tuple[int, ...]) -> float:
    """A power of two near the number of voxels of a sample."""
    return 2.0 ** round(np.log2(np.prod(shape[1:-1])))


def work(folder: Path) -> None:
    """In the process of one backend: compute each case in each dtype and way, and leave the results in `folder`."""
    import keras

    from partialseg.losses import PartialSupervision

    backend = keras.backend.backend()
    for number, make in enumerate(CASES.values()):
        candidates, logits = make()
        candidates, scale = keras.ops.convert_to_tensor(candidates), loss_scale(logits.shape)
        for dtype in DTYPES:
            # Rounded once, by NumPy, so that all backends and the reference have the same logits.
            rounded = keras.ops.cast(logits.astype(dtype).astype("float32"), dtype)
            for way in WAYS[backend]:
                results = {}
                for term in TERMS:
                    loss = PartialSupervision(1.0, 1.0, terms=(term,), reduction=None)
                    scaled = differentiate(backend, way, lambda c, x, loss=loss, s=scale: s * loss(c, x))
                    values, gradient = scaled(candidates, rounded)
                    results[f"{term} value"] = keras.ops.convert_to_numpy(values)
                    gradient = keras.ops.convert_to_numpy(keras.ops.cast(gradient, "float32"))
                    results[f"{term} gradient"] = gradient
                np.savez(folder / f"{backend} {way} {dtype} {number}.npz", **results)


def differences(
    results: dict[str, np.ndarray], exact: list[dict[str, tuple[float, np.ndarray]]], scale: float
) -> list[float]:
    """Largest difference of each term's value, then of each term's gradient."""
    of_values, of_gradients = [], []
    for term in TERMS:
        values, gradients = results[f"{term} value"] / scale, results[f"{term} gradient"]
        of_values.append(
            max(abs(value - sample[term][0]) for value, sample in zip(values, exact, strict=True))
        )
        relative = [0.0]
        for gradient, sample in zip(gradients, exact, strict=True):
            expected = sample[term][1] * scale
            error = np.abs(gradient.reshape(expected.shape) - expected).max()
            largest = np.abs(expected).max()
            # Where a gradient is 0 (exclusion of a full sample), any other is a full difference.
            relative.append(error / largest if largest > 0 else float(error > 0))
        of_gradients.append(max(relative))
    return [*of_values, *of_gradients]


def table(folder: Path, number: int, make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """One case as a Markdown table."""
    candidates, logits = make()
    scale, lines = loss_scale(logits.shape), []
    heads = [f"{term}: {what}" for what in ("value", "gradient") for term in TERMS]
    lines += [f"| logits | backend | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for dtype in DTYPES:
        rounded = logits.astype(dtype).astype("float64")
        exact = [
            reference(c.reshape(-1, c.shape[-1]), x.reshape(-1, x.shape[-1]))
            for c, x in zip(candidates, rounded, strict=True)
        ]
        for backend, ways in WAYS.items():
            for way in ways:
                file = folder / f"{backend} {way} {dtype} {number}.npz"
                if file.exists():
                    found = differences(dict(np.load(file)), exact, scale)
                    cells = " | ".join(f"{value:.1e}" for value in found)
                    lines.append(f"| {dtype} | {backend}, {way} | {cells} |")
    return lines


def version(python: str, package: str) -> str | None:
    """The version of a package that an interpreter has, None if it has not."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def main() -> None:
    """Run each backend and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", action="append", default=[], metavar="BACKEND=INTERPRETER")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    interpreters = dict(choice.split("=", 1) for choice in arguments.python)
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for backend in WAYS:
            python = interpreters.get(backend, sys.executable)
            found = version(python, backend)
            names.append(f"{backend} {found or 'is missing'}")
            if found:
                environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
                subprocess.run([python, __file__, "--work", folder], env=environment, check=True)
        print(f"{datetime.date.today()}, CPU: {', '.join(names)}, keras {version(sys.executable, 'keras')}.")
        for number, (title, make) in enumerate(CASES.items()):
            print(f"\n## {title}\n")
            print("\n".join(table(Path(folder), number, make)))
    print(NOTES, end="")


if __name__ == "__main__":
    main()
