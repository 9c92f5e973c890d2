"""One contender of benchmarks/training_gpu.py in a process of its own, which waits for its turns.

    python benchmarks/training_gpu_worker.py CONTENDER DEPTH,HEIGHT,WIDTH [--batch 2]

Reads a number of training steps from standard input for each turn, and answers with a line of JSON. Where there is no
GPU it runs on the CPU (nnU-Net in float32), to be tried with small patches.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from losses_worker import candidates_of
from training_worker import NUM_CLASSES, Turn, clock_callback, nnunet_parts, patches_of, timed

#: What nnU-Net plans for scans of thick slices, with a patch of (48, 192, 192).
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
KERNELS = ((1, 3, 3), *((3, 3, 3),) * 5)
CHANNELS = (32, 64, 128, 256, 320, 320)


def target_strides() -> list[tuple[int, ...]]:
    """Of each output of deep supervision, by how much its targets are thinned; the finest first."""
    return [tuple(step) for step in np.cumprod(STRIDES[:-1], axis=0).tolist()]


def nnunet(
    batch: int, size: tuple[int, ...], compiled: bool
) -> tuple[Turn, Callable[[], float], dict[str, Any]]:
    """`nnUNetTrainer.train_step`: autocast to float16 with a gradient scaler, and torch.compile as by default."""
    import torch

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    network, loss, optimizer = nnunet_parts(torch, STRIDES, CHANNELS, KERNELS, len(STRIDES) - 1)
    network = network.to(device)
    image, label = patches_of(batch, size)
    data = torch.from_numpy(np.ascontiguousarray(np.moveaxis((image - 50) / 250, -1, 1))).to(device)
    target = [
        torch.from_numpy(label[:, None, ::d, ::h, ::w].astype(np.int16)).to(device)
        for d, h, w in target_strides()
    ]
    about = {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "flops": flops(torch, network, data),
    }
    step_of = torch.compile(network) if compiled else network
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.float16, enabled=on_gpu):
            value = loss(step_of(data), target)
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        return float(value.detach().cpu().numpy())  # waits for the device, as nnU-Net does

    peak = torch.cuda.max_memory_allocated if on_gpu else lambda: 0
    return lambda steps: timed(step, steps), peak, about


def flops(torch: Any, network: Any, data: Any) -> float:
    """Floating-point operations of a training step: products and sums of all convolutions, forward and twice back."""
    found: list[float] = []

    def count(layer: Any, inputs: tuple, output: Any) -> None:
        transposed = isinstance(layer, torch.nn.ConvTranspose3d)
        places = (inputs[0] if transposed else output)[:, 0].numel()
        found.append(2.0 * layer.weight.numel() * places)

    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv3d | torch.nn.ConvTranspose3d)]
    hooks = [layer.register_forward_hook(count) for layer in convolutions]
    with torch.no_grad():
        network(data)
    for hook in hooks:
        hook.remove()
    return 3 * sum(found)


def partialseg(
    batch: int, size: tuple[int, ...], precision: str
) -> tuple[Turn, Callable[[], float], dict[str, Any]]:
    """`model.fit` as `partialseg train` calls it on the JAX backend."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # another process shares the device
    import jax
    import keras

    from partialseg.losses import PartialSupervision
    from partialseg.models import unet

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32" if precision == "float32" else f"mixed_{precision}")
    options = {"strides": STRIDES, "kernels": KERNELS, "base_channels": CHANNELS[0]}
    model = unet(NUM_CLASSES, **options, max_channels=CHANNELS[-1], deep_supervision=True)
    weights = np.array([0.5**k for k in range(len(model.outputs))])
    optimizer: Any = keras.optimizers.SGD(1e-2, momentum=0.99, nesterov=True, global_clipnorm=12)
    if precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer=optimizer,
        loss=[PartialSupervision() for _ in weights],
        loss_weights=(weights / weights.sum()).tolist(),
        jit_compile=True,
    )
    image, label = patches_of(batch, size)
    candidates = candidates_of(label, NUM_CLASSES, partial=False)
    targets = tuple(np.ascontiguousarray(candidates[:, ::d, ::h, ::w]) for d, h, w in target_strides())
    clock = clock_callback(keras)

    def same_batch() -> Any:
        while True:
            yield image, targets

    def turn(steps: int) -> tuple[list[float], list[float], float]:
        clock.seconds, clock.processor = [], []
        history = model.fit(same_batch(), steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[clock])
        return clock.seconds, clock.processor, history.history["loss"][-1]

    device = jax.devices()[0]
    peak = (lambda: device.memory_stats()["peak_bytes_in_use"]) if device.platform != "cpu" else lambda: 0
    return turn, peak, {"device": device.device_kind, "parameters": model.count_params()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("contender", help="nnunet, nnunet:compiled, partialseg:PRECISION")
    parser.add_argument("size", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, help="not used: a GPU computes")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    side, _, option = arguments.contender.partition(":")
    if side == "nnunet":
        turn, peak, about = nnunet(arguments.batch, arguments.size, option == "compiled")
    else:
        turn, peak, about = partialseg(arguments.batch, arguments.size, option or "bfloat16")
    packages = ("torch", "nnunetv2") if side == "nnunet" else ("jax", "keras")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    answers.write(json.dumps({"versions": versions, **about}) + "\n")
    for line in sys.stdin:
        seconds, processor, loss = turn(int(line))
        answer = {"seconds": seconds, "processor": processor, "loss": loss, "peak_mb": peak() / 2**20}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
