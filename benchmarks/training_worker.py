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
from typing import Any

import numpy as np
from losses_worker import candidates_of, label_map, resident_mb, use_threads

NUM_CLASSES = 6
#: Five stages of 32 to 320 channels, kernels of 3: 16.5 million parameters.
STRIDES = ((1, 1, 1), *((2, 2, 2),) * 4)
CHANNELS = (32, 64, 128, 256, 320)
#: A turn: takes a number of steps, returns seconds and processor seconds of each, and the last loss.
Turn = Callable[[int], tuple[list[float], list[float], float]]


def patches_of(batch: int, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images, HU float32 `(batch, *size, 1)`, and their label maps, uint8 without the last axis."""
    label = label_map((batch, *size), NUM_CLASSES)
    noise = np.random.default_rng(0).normal(0, 20, label.shape)
    return (noise + 30.0 * label)[..., None].astype(np.float32), label


# --- nnU-Net


def nnunet_turn(batch: int, size: tuple[int, ...], threads: int) -> Turn:
    """`nnUNetTrainer.train_step` on a CPU, with the network, loss and optimiser that the trainer builds."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network, loss, optimizer = nnunet_parts(torch)
    image, label = patches_of(batch, size)
    data = torch.from_numpy(np.ascontiguousarray(np.moveaxis((image - 50) / 250, -1, 1)))
    target = [torch.from_numpy(label[:, None, ::s, ::s, ::s].astype(np.int16)) for s in (1, 2, 4, 8)]

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss(network(data), target)
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        return float(value.detach().numpy())

    return lambda steps: timed(step, steps)


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


def timed(step: Callable[[], float], steps: int) -> tuple[list[float], list[float], float]:
    seconds, processor = [], []
    for _ in range(steps):
        start, start_processor = time.perf_counter(), time.process_time()
        value = step()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    return seconds, processor, value


# --- partialseg


def partialseg_turn(batch: int, size: tuple[int, ...], threads: int, change: str) -> Turn:
    """`model.fit` as `partialseg train` calls it on a CPU, with at most one thing changed."""
    import partialseg  # noqa: F401, I001  # sets TensorFlow's environment before its import
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    keras.utils.set_random_seed(0)
    image, label = patches_of(batch, size)
    candidates = tf.constant(candidates_of(label, NUM_CLASSES, partial=False))
    targets = tuple(candidates[:, ::s, ::s, ::s] for s in (1, 2, 4, 8)[: 1 if change == "one-output" else 4])
    data = tf.data.Dataset.from_tensors((tf.constant(image), targets)).repeat()
    with tf.distribute.MirroredStrategy().scope():
        model = compiled_model(keras, change)
    clock = clock_callback(keras)

    def turn(steps: int) -> tuple[list[float], list[float], float]:
        clock.seconds, clock.processor = [], []
        history = model.fit(data, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[clock])
        return clock.seconds, clock.processor, history.history["loss"][-1]

    return turn


def compiled_model(keras: Any, change: str) -> Any:
    from partialseg.losses import PartialSupervision
    from partialseg.models import unet

    model = unet(
        NUM_CLASSES,
        strides=STRIDES,
        base_channels=16 if change == "16-channels" else CHANNELS[0],
        max_channels=256 if change == "256-channels" else CHANNELS[-1],
        deep_supervision=True,
        convolution_bias=change != "no-bias",
    )
    model = keras.models.clone_model(model, clone_function=lambda layer: changed(keras, layer, change))
    if change == "one-output":
        model = keras.Model(model.inputs, model.outputs[:1])
    weights = np.array([0.5**k for k in range(len(model.outputs))])
    model.compile(
        optimizer=keras.optimizers.SGD(1e-2, momentum=0.99, nesterov=True, global_clipnorm=12),
        loss=[PartialSupervision() for _ in weights],
        loss_weights=(weights / weights.sum()).tolist(),
        jit_compile=change == "whole-xla",
    )
    return model


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


def clock_callback(keras: Any) -> Any:
    """Measures each step between what `fit` says of its begin and end."""

    class Clock(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
            self.start, self.start_processor = time.perf_counter(), time.process_time()

        def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
            float(logs["loss"])
            self.seconds.append(time.perf_counter() - self.start)
            self.processor.append(time.process_time() - self.start_processor)

    return Clock()


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
    if side == "nnunet":
        turn = nnunet_turn(arguments.batch, arguments.size, arguments.threads)
    else:
        turn = partialseg_turn(arguments.batch, arguments.size, arguments.threads, change)
    packages = ("torch", "nnunetv2") if side == "nnunet" else ("tensorflow", "keras")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    answers.write(json.dumps({"versions": versions}) + "\n")
    for line in sys.stdin:
        seconds, processor, loss = turn(int(line))
        answer = {"seconds": seconds, "processor": processor, "loss": loss, "peak_mb": resident_mb("VmHWM")}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
