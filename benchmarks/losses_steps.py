"""What the exclusion terms add to a whole training step; the part `steps` of benchmarks/losses.py.

Three networks that share nothing take turns in an order drawn anew each round: plain CE + Dice (the marginal
terms), the same once more, and the four terms. The second shows how far the difference of two equals is from 0.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import numpy as np
from losses_worker import candidates_of, label_map
from threads import use_threads

import partialseg  # noqa: F401  # sets TensorFlow's environment before its import

NUM_CLASSES = 6
#: The network, patch and batch of the demo; and nnU-Net's full network on a patch that a CPU bears.
PATCHES = {"demo": None, "paper": (48, 96, 96)}


def print_steps(arguments: argparse.Namespace) -> None:
    """Medians of seconds, and of the differences within a round in percent of the first network's median."""
    use_threads(arguments.threads)
    header = (
        "network | patch | plain CE + Dice, s | four terms, s | extra, % | extra CPU, % "
        "| plain against itself, % | its CPU, %"
    )
    print(f"| {header} |\n" + "|---" * (header.count("|") + 1) + "|", flush=True)
    for network in arguments.networks:
        shape, wall, processor = measure(network, arguments.rounds)
        cells = [
            network,
            " x ".join(map(str, shape)),
            f"{statistics.median(wall['plain']):.3f}",
            f"{statistics.median(wall['four']):.3f}",
            extra(wall, "four"),
            extra(processor, "four"),
            extra(wall, "again"),
            extra(processor, "again"),
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


def measure(
    network: str, rounds: int
) -> tuple[tuple[int, ...], dict[str, list[float]], dict[str, list[float]]]:
    """Batch and patch size, seconds and processor seconds of each step, per network."""
    import keras

    config, batch = training_of(network)
    wall: dict[str, list[float]] = {"plain": [], "again": [], "four": []}
    processor: dict[str, list[float]] = {name: [] for name in wall}
    models = {}
    for name in wall:
        keras.utils.set_random_seed(config.seed)
        models[name] = compiled(config, ("mCE", "mDC", "eCE", "eDC") if name == "four" else ("mCE", "mDC"))
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(list(models), len(models)):
            start, start_processor = time.perf_counter(), time.process_time()
            models[name].train_on_batch(*batch)  # the function that model.fit runs; waits for the loss
            if number:  # the first round traces
                wall[name].append(time.perf_counter() - start)
                processor[name].append(time.process_time() - start_processor)
    return (config.batch_size, *config.patch_size), wall, processor


def training_of(network: str):
    """The config, and a batch of images and partly annotated candidates for all outputs of its network."""
    import tensorflow as tf

    from partialseg.models import supervision_strides
    from partialseg.training.config import read_config

    config = read_config(network)
    if PATCHES[network]:
        config = config.model_copy(update={"patch_size": PATCHES[network]})
    label = label_map((config.batch_size, *config.patch_size), NUM_CLASSES)
    noise = np.random.default_rng(0).normal(0, 20, label.shape)
    candidates = tf.constant(candidates_of(label, NUM_CLASSES, partial=True))
    strides = supervision_strides(config.network.strides) if config.network.deep_supervision else [(1, 1, 1)]
    targets = [candidates[:, ::d, ::h, ::w] for d, h, w in strides]
    return config, (tf.constant((noise + 30.0 * label)[..., None], tf.float32), one_or_all(targets))


def compiled(config, terms: tuple[str, ...]):
    """The network of a config, compiled as for training on a CPU, with some of the loss's terms."""
    import keras

    from partialseg.losses import PartialSupervision
    from partialseg.training.trainer import build_model

    model = build_model(config, NUM_CLASSES)
    weights = np.array([0.5**k for k in range(len(model.outputs))])
    losses = [PartialSupervision(terms=terms, class_reduction=config.losses.class_reduction) for _ in weights]
    model.compile(
        optimizer=keras.optimizers.Adam(1e-4),  # small, so that every number stays finite
        loss=one_or_all(losses),
        loss_weights=one_or_all((weights / weights.sum()).tolist()),
        jit_compile=False,
    )
    return model


def one_or_all(values: list):
    """Keras takes a list for several outputs, and for one output what would be in it."""
    return values if len(values) > 1 else values[0]


def extra(seconds: dict[str, list[float]], name: str) -> str:
    """Median and quartiles of the differences from "plain", round by round."""
    usual = statistics.median(seconds["plain"])
    differences = [100 * (a - b) / usual for a, b in zip(seconds[name], seconds["plain"], strict=True)]
    low, middle, high = statistics.quantiles(differences, n=4)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"
