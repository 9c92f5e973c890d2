"""One framework of benchmarks/prediction.py in a process of its own, which waits for its turns.

    python benchmarks/prediction_worker.py torch|partialseg unet|pointwise [--threads N] [--windows 27]
    python benchmarks/prediction_worker.py partialseg scan --scan FILE [--base-channels 32]

The first form reads the name of a turn from standard input ("forward", or a sliding window), and answers with a line
of JSON. The second predicts one scan, file in and file out, and says what it took. Linux only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from losses_worker import resident_mb
from threads import use_framework_threads, use_threads

NUM_CLASSES = 6
PATCH_SIZE = (48, 96, 96)
#: How many axes of the volume are twice a patch, and hold three windows of half a patch of overlap, by the windows.
DOUBLED = {3: 1, 9: 2, 27: 3}
STRIDES = ((1, 1, 1), *((2, 2, 2),) * 4)
CHANNELS = (32, 64, 128, 256, 320)


def volume(num_windows: int) -> np.ndarray:
    """HU, float32 `(depth, height, width)`, of so many windows."""
    shape = [size * (2 if axis < DOUBLED[num_windows] else 1) for axis, size in enumerate(PATCH_SIZE)]
    return np.random.default_rng(0).normal(0, 200, shape).astype(np.float32)


# --- PyTorch


def torch_turns(network_name: str, threads: int, num_windows: int) -> dict[str, Callable[[], None]]:
    """The network alone, and in nnU-Net's and MONAI's sliding window."""
    import torch
    from monai.inferers import SlidingWindowInferer
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    use_framework_threads(torch, threads)
    network = torch_network(torch, network_name).eval()
    image = torch.from_numpy(volume(num_windows))[None]
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    # What its plans would say: no plans file is needed for the sliding window itself.
    predictor.network, predictor.allowed_mirroring_axes = network, None
    predictor.configuration_manager = SimpleNamespace(patch_size=PATCH_SIZE)
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=NUM_CLASSES)
    monai = SlidingWindowInferer(PATCH_SIZE, sw_batch_size=1, overlap=0.5, mode="gaussian")
    patch = image[None, :, : PATCH_SIZE[0], : PATCH_SIZE[1], : PATCH_SIZE[2]].contiguous()

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(num_windows):
            network(patch)

    @torch.inference_mode()
    def monai_window() -> None:
        monai(image[None], network)

    def nnunet_window() -> None:
        predictor.predict_sliding_window_return_logits(image)

    return {"forward": forward, "nnunet": nnunet_window, "monai": monai_window}


def torch_network(torch: Any, name: str) -> Any:
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    torch.manual_seed(0)
    if name == "pointwise":
        return torch.nn.Conv3d(1, NUM_CLASSES, 1)
    return PlainConvUNet(
        input_channels=1,
        n_stages=len(STRIDES),
        features_per_stage=CHANNELS,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=3,
        strides=[list(stride) for stride in STRIDES],
        n_conv_per_stage=2,
        num_classes=NUM_CLASSES,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=torch.nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )


# --- partialseg


def partialseg_turns(network_name: str, threads: int, num_windows: int) -> dict[str, Callable[[], None]]:
    """The network alone; blended logits, as the peers return; and probabilities, of the volume and plane by plane.

    Of the U-Net also its convolutions alone, each on the features that it has in the network; and where the processor
    has bfloat16, the network in it.
    """
    import partialseg  # noqa: F401, I001  # sets TensorFlow's environment before its import
    import tensorflow as tf

    from partialseg.inference import predict_volume
    from partialseg.models.forward import forward_pass
    from partialseg.models.sliding_window import DEFAULT_SETTINGS, SlidingWindow
    from partialseg.training.optimizers import computing_in

    use_framework_threads(tf, threads)
    model = keras_network(network_name)
    image = volume(num_windows)
    patch = np.ascontiguousarray(image[None, : PATCH_SIZE[0], : PATCH_SIZE[1], : PATCH_SIZE[2], None])
    predict_patch = forward_pass(model, PATCH_SIZE)

    def forward() -> None:
        for _ in range(num_windows):
            predict_patch(patch)

    def logits() -> None:
        SlidingWindow(model, image, PATCH_SIZE, DEFAULT_SETTINGS).whole_logits()

    def windows() -> None:
        predict_volume(model, image, PATCH_SIZE)

    def planes() -> None:
        for _ in SlidingWindow(model, image, PATCH_SIZE, DEFAULT_SETTINGS).planes():
            pass  # each is let go at once, as by what resamples it

    turns = {"forward": forward, "logits": logits, "windows": windows, "planes": planes}
    if network_name == "unet":
        turns["convolutions"] = convolutions(model, patch, num_windows)
        if has_bfloat16():
            with computing_in("bfloat16"):
                half = keras_network(network_name)
            half.set_weights(model.get_weights())
            turns["bfloat16"] = lambda: predict_volume(half, image, PATCH_SIZE)
    return turns


def has_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16."""
    return any(flag in Path("/proc/cpuinfo").read_text().split() for flag in ("avx512_bf16", "amx_bf16"))


def convolutions(model: Any, patch: np.ndarray, num_windows: int) -> Callable[[], None]:
    """The convolutions of a network, one after the other, on what each is given when the network sees a patch."""
    import keras
    import tensorflow as tf

    kinds = (keras.layers.Conv3D, keras.layers.Conv3DTranspose)
    layers = [layer for layer in model.layers if isinstance(layer, kinds)]
    inputs = keras.Model(model.input, [layer.input for layer in layers])(patch)
    calls = [
        tf.function(layer, autograph=False).get_concrete_function(x)
        for layer, x in zip(layers, inputs, strict=True)
    ]

    def run() -> None:
        for _ in range(num_windows):
            for call, features in zip(calls, inputs, strict=True):
                call(features)

    return run


def keras_network(name: str, base_channels: int = CHANNELS[0]) -> Any:
    import keras

    from partialseg.models import unet

    keras.utils.set_random_seed(0)
    if name == "pointwise":
        inputs = keras.Input((None, None, None, 1))
        return keras.Model(inputs, keras.layers.Conv3D(NUM_CLASSES, 1)(inputs))
    return unet(
        NUM_CLASSES,
        strides=STRIDES,
        base_channels=base_channels,
        max_channels=CHANNELS[-1],
        convolution_bias=True,
    )


def predict_scan(scan: Path, base_channels: int) -> dict[str, Any]:
    """`partialseg predict` on one scan with random weights: seconds, peak memory, windows."""
    import partialseg  # noqa: F401
    from partialseg.inference.predict import predict
    from partialseg.training.config import TrainingConfig
    from partialseg.training.runs import Run, write_run

    classes = ("background", "liver", "spleen", "pancreas", "left_kidney", "right_kidney")
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(name="benchmark", patch_size=PATCH_SIZE)
        run = Run(Path(folder) / "run", config, classes, (3.0, 1.5, 1.5), {"btcv": classes[1:]})
        write_run(run, {})
        keras_network("unet", base_channels).save(run.model_path)
        start = time.perf_counter()
        result = predict(run, [scan], Path(folder) / "out", progress=False)
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "peak_mb": resident_mb("VmHWM"),
            "problems": list(map(str, result.problems)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("framework", choices=("torch", "partialseg"))
    parser.add_argument("network", choices=("unet", "pointwise", "scan"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--windows", type=int, choices=tuple(DOUBLED), default=27)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--base-channels", type=int, default=CHANNELS[0])
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    use_threads(arguments.threads)
    if arguments.network == "scan":
        answers.write(json.dumps(predict_scan(arguments.scan, arguments.base_channels)) + "\n")
        return
    is_torch = arguments.framework == "torch"
    prepare = torch_turns if is_torch else partialseg_turns
    turns = prepare(arguments.network, arguments.threads, arguments.windows)
    packages = ("torch", "nnunetv2", "monai") if is_torch else ("tensorflow", "keras")
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    answers.write(json.dumps({"versions": versions, "turns": list(turns)}) + "\n")
    for line in sys.stdin:
        start, start_processor = time.perf_counter(), time.process_time()
        turns[line.strip()]()
        seconds, processor = time.perf_counter() - start, time.process_time() - start_processor
        answer = {"seconds": seconds, "processor": processor, "peak_mb": resident_mb("VmHWM")}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
