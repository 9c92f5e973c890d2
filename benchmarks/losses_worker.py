"""One contender of benchmarks/losses.py in a process of its own, which waits for its turns.

    python benchmarks/losses_worker.py CONTENDER SHAPE [--threads N]

Reads a line from standard input for each step, and answers with a line of JSON. Linux only: memory is read
from /proc, and cores are dealt out by affinity.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from threads import use_framework_threads, use_threads

#: A first step on so few voxels loads the framework's code, which is not the loss's memory.
SMALL = (8, 8, 8)


class Contender(NamedTuple):
    """A loss in its framework.

    Attributes:
        prepare: Label map `(batch, depth, height, width)` and number of classes → what `step` takes.
        step: Forward and backward; waits for the gradient and returns the loss.
        packages: Whose versions matter.
    """

    prepare: Callable[[np.ndarray, int], tuple[Any, Any]]
    step: Callable[[Any, Any], float]
    packages: tuple[str, ...]


def label_map(shape: tuple[int, ...], num_classes: int) -> np.ndarray:
    """Organs: class k is an ellipsoid somewhere, wide for class 1 and narrower for the others."""
    rng = np.random.default_rng(0)
    label = np.zeros(shape, dtype=np.uint8)
    grids = np.meshgrid(*(np.linspace(0, 1, n, dtype=np.float32) for n in shape[1:]), indexing="ij")
    for sample in label:
        for value in range(1, num_classes):
            centre = rng.uniform(0.2, 0.8, 3)
            radii = rng.uniform(0.7, 1.3, 3) * (0.35 if value == 1 else 0.4 / num_classes ** (1 / 3))
            distance = sum(((g - c) / r) ** 2 for g, c, r in zip(grids, centre, radii, strict=True))
            sample[distance < 1] = value
    return label


def logits_of(label: np.ndarray, num_classes: int) -> np.ndarray:
    """As of a network that has learned a little; channels last, float32."""
    logits = np.random.default_rng(1).normal(0, 1.5, (*label.shape, num_classes)).astype(np.float32)
    logits[label[..., None] == np.arange(num_classes)] += 2
    return logits


def candidates_of(label: np.ndarray, num_classes: int, partial: bool) -> np.ndarray:
    """Candidates, uint8, channels last, of samples with all organs annotated or with some.

    Partial: even samples annotate class 1 alone (the liver), odd ones the last two classes (the kidneys);
    all else is merged with background. With two classes there is nothing to merge.
    """
    candidates = (label[..., None] == np.arange(num_classes)).astype(np.uint8)
    for index in range(len(label) if partial else 0):
        annotated = [1] if index % 2 == 0 else [num_classes - 2, num_classes - 1]
        merged = np.isin(np.arange(num_classes), annotated, invert=True)
        candidates[index][np.isin(label[index], annotated, invert=True)] = merged
    return candidates


def torch_contender(name: str, threads: int) -> Contender:
    """The losses of nnU-Net and MONAI on channels first, the label as each takes it."""
    import torch

    use_framework_threads(torch, threads)
    if name == "nnunet":
        from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

        # As nnUNetTrainer builds it for 3d_fullres (with 3d_lowres beside it, batch_dice is True). It compiles
        # it on GPUs alone.
        dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
        loss = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    else:
        from monai.losses import DiceCELoss

        loss = DiceCELoss(softmax=True, to_onehot_y=True)
    label_dtype = np.int16 if name == "nnunet" else np.float32

    def prepare(label: np.ndarray, num_classes: int) -> tuple[Any, Any]:
        logits = np.ascontiguousarray(np.moveaxis(logits_of(label, num_classes), -1, 1))
        return torch.from_numpy(label[:, None].astype(label_dtype)), torch.from_numpy(logits).requires_grad_()

    def step(target: Any, logits: Any) -> float:
        logits.grad = None
        value = loss(logits, target)
        value.backward()
        return value.item()

    return Contender(prepare, step, ("torch", "nnunetv2" if name == "nnunet" else "monai"))


def plain_keras(y_true: Any, y_pred: Any) -> Any:
    """Cross-entropy and soft Dice as one writes them where everything is annotated."""
    from keras import ops

    y_true, probabilities = ops.cast(y_true, "float32"), ops.softmax(y_pred)
    axes = tuple(range(1, len(y_pred.shape) - 1))
    overlap = ops.sum(y_true * probabilities, axis=axes)
    dice = 2 * overlap / (ops.sum(y_true, axis=axes) + ops.sum(probabilities, axis=axes) + 1e-7)
    cross_entropy = ops.mean(ops.categorical_crossentropy(y_true, y_pred, from_logits=True))
    return cross_entropy + 1 - ops.mean(dice)


def keras_loss(name: str) -> Callable[[Any, Any], Any]:
    from partialseg.losses import PartialSupervision

    if name == "keras":
        return plain_keras
    return PartialSupervision() if name == "four" else PartialSupervision(terms=("mCE", "mDC"))


def tensorflow_contender(name: str, threads: int, jit_compile: bool) -> Contender:
    """A tf.function, as in model.fit."""
    import partialseg  # noqa: F401  # sets TensorFlow's environment before its import

    os.environ["KERAS_BACKEND"] = "tensorflow"
    import tensorflow as tf

    use_framework_threads(tf, threads)
    loss = keras_loss(name)

    @tf.function(jit_compile=jit_compile)
    def gradient(y_true: tf.Tensor, y_pred: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            value = loss(y_true, y_pred)
        return value, tape.gradient(value, y_pred)

    def prepare(label: np.ndarray, num_classes: int) -> tuple[Any, Any]:
        candidates = candidates_of(label, num_classes, partial=name == "four")
        return tf.constant(candidates), tf.constant(logits_of(label, num_classes))

    def step(y_true: tf.Tensor, y_pred: tf.Tensor) -> float:
        value, slope = gradient(y_true, y_pred)
        slope[0, 0, 0, 0, 0].numpy()
        return float(value)

    return Contender(prepare, step, ("tensorflow", "keras"))


def jax_contender(name: str) -> Contender:
    """Compiled by jax.jit, as Keras does on this backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax

    loss = keras_loss(name)
    gradient = jax.jit(jax.value_and_grad(lambda y_pred, y_true: loss(y_true, y_pred)))

    def prepare(label: np.ndarray, num_classes: int) -> tuple[Any, Any]:
        candidates = candidates_of(label, num_classes, partial=name == "four")
        return jax.numpy.array(candidates), jax.numpy.array(logits_of(label, num_classes))

    def step(y_true: jax.Array, y_pred: jax.Array) -> float:
        value, slope = gradient(y_pred, y_true)
        slope.block_until_ready()
        return float(value)

    return Contender(prepare, step, ("jax", "keras"))


def contender_called(name: str, threads: int) -> Contender:
    """ "nnunet", "monai", or a loss and a way to run it, such as "four-xla"."""
    if name in ("nnunet", "monai"):
        return torch_contender(name, threads)
    loss, way = name.split("-")
    return jax_contender(loss) if way == "jax" else tensorflow_contender(loss, threads, way == "xla")


def resident_mb(field: str) -> float:
    """Resident memory of this process: VmRSS, now, or VmHWM, the peak since it was last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status holds no {field}: memory is measured on Linux only")


def measured(step: Callable[[Any, Any], float], inputs: tuple[Any, Any]) -> dict[str, float]:
    """Seconds, processor seconds and peak of resident memory (MB) of one step, and the loss."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    start, start_processor = time.perf_counter(), time.process_time()
    loss = step(*inputs)
    seconds, processor = time.perf_counter() - start, time.process_time() - start_processor
    return {"seconds": seconds, "processor": processor, "peak_mb": resident_mb("VmHWM"), "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("contender")
    parser.add_argument("shape", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    # What frameworks print goes to standard error, so that the answers stay alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    use_threads(arguments.threads)
    contender = contender_called(arguments.contender, arguments.threads)
    batch, *size, num_classes = arguments.shape
    inputs, small = (
        contender.prepare(label_map((batch, *shape), num_classes), num_classes) for shape in (size, SMALL)
    )
    fresh_mb = resident_mb("VmRSS")
    contender.step(*small)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in contender.packages]
    ready = {"versions": versions, "fresh_mb": fresh_mb, "loaded_mb": resident_mb("VmRSS")}
    answers.write(json.dumps(ready) + "\n")
    for _ in sys.stdin:
        answers.write(json.dumps(measured(contender.step, inputs)) + "\n")


if __name__ == "__main__":
    main()
