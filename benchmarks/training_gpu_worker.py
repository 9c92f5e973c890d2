"""One contender of benchmarks/training_gpu.py in a process of its own, which waits for its turns.

    python benchmarks/training_gpu_worker.py CONTENDER DEPTH,HEIGHT,WIDTH [--batch 2]

Reads a number of training steps from standard input for each turn, and answers with a line of JSON. Where there is no
GPU it runs on the CPU (nnU-Net in float32), to be tried with small patches. A contender whose framework is
not installed says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from losses_worker import candidates_of
from training_worker import NUM_CLASSES, Steps, nnunet_parts, patches_of, step_callbacks

#: What nnU-Net plans for scans of thick slices, with a patch of (48, 192, 192).
STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
KERNELS = ((1, 3, 3), *((3, 3, 3),) * 5)
CHANNELS = (32, 64, 128, 256, 320, 320)


def target_strides() -> list[tuple[int, ...]]:
    """Of each output of deep supervision, by how much its targets are thinned; the finest first."""
    return [tuple(step) for step in np.cumprod(STRIDES[:-1], axis=0).tolist()]


#: Runs the steps that are asked for, and the peak of memory in bytes.
Contender = tuple[Callable[[Steps], None], Callable[[], float], dict[str, Any]]


def nnunet(batch: int, size: tuple[int, ...], compiled: bool) -> Contender:
    """`nnUNetTrainer.train_step`: autocast to float16 with a gradient scaler, and torch.compile as by default."""
    import torch

    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    network, loss, optimizer = nnunet_parts(torch, STRIDES, CHANNELS, KERNELS, len(STRIDES) - 1)
    network = network.to(device)
    image, label = patches_of(batch, size)

    def of_the_loader(array: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory() if on_gpu else tensor

    data = of_the_loader(np.moveaxis((image - 50) / 250, -1, 1))
    targets = [of_the_loader(label[:, None, ::d, ::h, ::w].astype(np.int16)) for d, h, w in target_strides()]
    about = {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "on_gpu": on_gpu,
        "flops": flops(torch, network, data.to(device)),
    }
    step_of = torch.compile(network) if compiled else network
    scaler = torch.amp.GradScaler(device.type, enabled=on_gpu)

    def step() -> float:
        own, target = data.to(device, non_blocking=True), [t.to(device, non_blocking=True) for t in targets]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.float16, enabled=on_gpu):
            value = loss(step_of(own), target)
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()
        return float(value.detach().cpu().numpy())  # waits for the device, as nnU-Net does

    peak = torch.cuda.max_memory_allocated if on_gpu else lambda: 0
    return lambda steps: steps.repeat(step), peak, about


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


def our_patches(batch: int, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Images and candidates."""
    image, label = patches_of(batch, size)
    return image, candidates_of(label, NUM_CLASSES, partial=False)


def on_jax(batch: int, size: tuple[int, ...], precision: str) -> Contender:
    """`model.fit` with the network, losses and optimiser of `partialseg train`, also where there is no TensorFlow."""
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
    # On one device the same as `partialseg.training.optimizers` has, which needs TensorFlow.
    optimizer: Any = keras.optimizers.SGD(
        1e-2, momentum=0.99, nesterov=True, weight_decay=3e-3, global_clipnorm=12
    )
    if precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(
        optimizer=optimizer,
        loss=[PartialSupervision() for _ in weights],
        loss_weights=(weights / weights.sum()).tolist(),
        jit_compile=True,
    )
    image, candidates = our_patches(batch, size)
    targets = tuple(np.ascontiguousarray(candidates[:, ::d, ::h, ::w]) for d, h, w in target_strides())

    def same_batch() -> Any:
        while True:
            yield image, targets

    def run(steps: Steps) -> None:
        if steps.asked():
            callbacks = list(step_callbacks(keras, steps))
            model.fit(same_batch(), steps_per_epoch=10**6, verbose=0, shuffle=False, callbacks=callbacks)

    device = jax.devices()[0]
    on_gpu = device.platform != "cpu"
    peak = (lambda: device.memory_stats()["peak_bytes_in_use"]) if on_gpu else lambda: 0
    return run, peak, {"device": device.device_kind, "on_gpu": on_gpu}


def on_tensorflow(batch: int, size: tuple[int, ...], precision: str) -> Contender:
    """The step of `partialseg train`; its callbacks after each step are part of it."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import partialseg  # noqa: F401, I001  # sets TensorFlow's environment before its import
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:  # another process shares the device
        tf.config.experimental.set_memory_growth(gpu, True)
    from partialseg_steps import configured, train_steps

    network = {
        **{"strides": STRIDES, "kernels": KERNELS},
        **{"base_channels": CHANNELS[0], "max_channels": CHANNELS[-1]},
    }
    config = configured(size, network, precision)

    def run(steps: Steps) -> None:
        train_steps(config, *our_patches(batch, size), steps)

    peak = (lambda: tf.config.experimental.get_memory_info("GPU:0")["peak"]) if gpus else lambda: 0
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU"
    return run, peak, {"device": name, "on_gpu": bool(gpus)}


#: What runs a contender, and the packages that it needs.
SIDES: dict[str, tuple[Callable[[int, tuple[int, ...], str], Contender], tuple[str, ...]]] = {
    "nnunet": (lambda batch, size, option: nnunet(batch, size, option == "compiled"), ("torch", "nnunetv2")),
    "jax": (on_jax, ("jax", "keras")),
    "tensorflow": (on_tensorflow, ("tensorflow", "keras")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("contender", help="nnunet, nnunet:compiled, jax:PRECISION, tensorflow:PRECISION")
    parser.add_argument("size", type=lambda text: tuple(map(int, text.split(","))))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, help="not used: a GPU computes")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    side, _, option = arguments.contender.partition(":")
    contender, packages = SIDES[side]
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        answers.write(json.dumps({"versions": [], "absent": f"{', '.join(missing)} not installed"}) + "\n")
        return
    run, peak, about = contender(arguments.batch, arguments.size, option)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    answers.write(json.dumps({"versions": versions, **about}) + "\n")
    run(Steps(answers, lambda: peak() / 2**20))


if __name__ == "__main__":
    main()
