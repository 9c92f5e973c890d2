"""One contender of benchmarks/training.py in a process of its own, which waits for its turns.

    python benchmarks/training_worker.py CONTENDER DEPTH,HEIGHT,WIDTH [--threads N] [--batch 2]

Reads a number of training steps from standard input for each turn, and answers with a line of JSON. Linux only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np
from losses_worker import candidates_of, label_map, resident_mb
from threads import use_framework_threads, use_threads

NUM_CLASSES = 6
#: Five stages of 32 to 320 channels, kernels of 3: 16.5 million parameters.
STRIDES = ((1, 1, 1), *((2, 2, 2),) * 4)
CHANNELS = (32, 64, 128, 256, 320)


class Steps:
    """The steps that are asked for on standard input, a line for each turn, and what they took.

    Args:
        answers: Where a line of JSON goes after each turn.
        peak_mb: Tells the memory that was in use at most.
    """

    def __init__(self, answers: TextIO, peak_mb: Callable[[], float]) -> None:
        self.answers, self.peak_mb = answers, peak_mb
        self.number = 0
        self.seconds: list[float] = []
        self.processor: list[float] = []
        self._began = (0.0, 0.0)

    def asked(self) -> bool:
        """Wait for the next turn; False where there is none any more."""
        line = sys.stdin.readline()
        if line:
            self.number, self.seconds, self.processor = int(line), [], []
        return bool(line)

    def begin(self) -> None:
        """Start the clocks for a step."""
        self._began = time.perf_counter(), time.process_time()

    def end(self, loss: float) -> bool:
        """Stop them; after a turn answer and wait for the next, False where there is none any more."""
        self.seconds.append(time.perf_counter() - self._began[0])
        self.processor.append(time.process_time() - self._began[1])
        if len(self.seconds) < self.number:
            return True
        answer = {
            "seconds": self.seconds,
            "processor": self.processor,
            "loss": loss,
            "peak_mb": self.peak_mb(),
        }
        self.answers.write(json.dumps(answer) + "\n")
        return self.asked()

    def repeat(self, step: Callable[[], float]) -> None:
        """Take a step, which returns its loss, as often as is asked."""
        going = self.asked()
        while going:
            self.begin()
            going = self.end(step())


def patches_of(batch: int, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images, HU float32 `(batch, *size, 1)`, and their label maps, uint8 without the last axis."""
    label = label_map((batch, *size), NUM_CLASSES)
    noise = np.random.default_rng(0).normal(0, 20, label.shape)
    return (noise + 30.0 * label)[..., None].astype(np.float32), label


# --- nnU-Net


def nnunet_steps(steps: Steps, batch: int, size: tuple[int, ...], threads: int) -> None:
    """`nnUNetTrainer.train_step` on a CPU, with the network, loss and optimiser that the trainer builds."""
    import torch

    use_framework_threads(torch, threads)
    torch.manual_seed(0)
    network, loss, optimizer = nnunet_parts(torch)
    image, label = patches_of(batch, size)
    device = torch.device("cpu")
    data = torch.from_numpy(np.ascontiguousarray(np.moveaxis((image - 50) / 250, -1, 1)))
    targets = [torch.from_numpy(label[:, None, ::s, ::s, ::s].astype(np.int16)) for s in (1, 2, 4, 8)]

    def step() -> float:
        own, target = data.to(device, non_blocking=True), [t.to(device, non_blocking=True) for t in targets]
        optimizer.zero_grad(set_to_none=True)
        value = loss(network(own), target)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        return float(value.detach().cpu().numpy())

    steps.repeat(step)


def nnunet_parts(
    torch: Any,
    strides: tuple = STRIDES,
    channels: tuple[int, ...] = CHANNELS,
    kernels: Any = 3,
    num_outputs: int = 4,
) -> tuple[Any, Any, Any]:
    """Network, loss and optimiser."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from dynamic_network_architectures.initialization.weight_init import InitWeights_He
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    network = PlainConvUNet(
        input_channels=1,
        n_stages=len(strides),
        features_per_stage=channels,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=kernels,
        strides=[list(stride) for stride in strides],
        n_conv_per_stage=2,
        num_classes=NUM_CLASSES,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )
    network.apply(InitWeights_He(1e-2))
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    weights = np.array([0.5**k for k in range(num_outputs - 1)] + [0])
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    return network, DeepSupervisionWrapper(loss, weights / weights.sum()), optimizer


# --- partialseg


def partialseg_steps(steps: Steps, batch: int, size: tuple[int, ...], threads: int, change: str) -> None:
    """The steps of `partialseg train` on a CPU, with at most one thing changed."""
    import partialseg  # noqa: F401, I001  # sets TensorFlow's environment before its import
    import keras
    import tensorflow as tf

    use_framework_threads(tf, threads)
    from partialseg_steps import configured, train_steps

    network = {
        "strides": STRIDES,
        "base_channels": 16 if change == "16-channels" else CHANNELS[0],
        "max_channels": 256 if change == "256-channels" else CHANNELS[-1],
        "convolution_bias": change != "no-bias",
    }

    def changed_model(model: Any) -> Any:
        model = keras.models.clone_model(model, clone_function=lambda layer: changed(keras, layer, change))
        return keras.Model(model.inputs, model.outputs[:1]) if change == "one-output" else model

    image, label = patches_of(batch, size)
    train_steps(
        configured(size, network),
        image,
        candidates_of(label, NUM_CLASSES, partial=False),
        steps,
        changed_model,
        whole_xla=change == "whole-xla",
    )


def changed(keras: Any, layer: Any, change: str) -> Any:
    """A copy of a layer, or, in place of an InstanceNormLeakyReLU, what a change wants there."""
    from partialseg.models.normalization import InstanceNormLeakyReLU

    class TwoLayers(keras.layers.Layer):
        """Keras' own layers."""

        def __init__(self, name: str) -> None:
            super().__init__(name=name)
            self.norm = keras.layers.GroupNormalization(groups=-1, epsilon=1e-5)
            self.relu = keras.layers.LeakyReLU(negative_slope=0.01)

        def build(self, shape: tuple) -> None:
            self.norm.build(shape)

        def call(self, x: Any) -> Any:
            return self.relu(self.norm(x))

    class NotCompiled(InstanceNormLeakyReLU):
        """The layer as in prediction."""

        def call(self, x: Any, training: bool | None = None) -> Any:
            return super().call(x, training=False)

    if isinstance(layer, InstanceNormLeakyReLU):
        if change == "keras-norm":
            return TwoLayers(layer.name)
        if change == "graph-norm":
            return NotCompiled.from_config(layer.get_config())
        if change == "no-norm":
            return keras.layers.LeakyReLU(negative_slope=0.01)
    return type(layer).from_config(layer.get_config())


def step_callbacks(keras: Any, steps: Steps) -> tuple[Any, Any]:
    """The first and the last of the callbacks of a `fit` of which each step is measured, the others' work included."""

    class Begin(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
            steps.begin()

    class End(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            if not steps.end(float(logs["loss"])):
                self.model.stop_training = True

    return Begin(), End()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("contender")
    parser.add_argument("size", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    use_threads(arguments.threads)
    side, _, change = arguments.contender.partition(":")
    packages = ("torch", "nnunetv2") if side == "nnunet" else ("tensorflow", "keras")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    answers.write(json.dumps({"versions": versions}) + "\n")
    steps = Steps(answers, lambda: resident_mb("VmHWM"))
    if side == "nnunet":
        nnunet_steps(steps, arguments.batch, arguments.size, arguments.threads)
    else:
        partialseg_steps(steps, arguments.batch, arguments.size, arguments.threads, change)


if __name__ == "__main__":
    main()
