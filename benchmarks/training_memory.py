"""Peak memory of a training step against the planner's estimate.

    python benchmarks/training_memory.py [--out benchmarks/results/training_memory.md]

Each row is a process of its own: it builds and compiles the network as training does, fits three steps, and reports its
peak resident memory. On a CPU that is all memory there is; on a GPU the estimate is of the device's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROWS = (
    ("plain", (32, 64, 64), 5),
    ("plain", (48, 96, 96), 5),
    ("plain", (32, 128, 128), 6),
    ("residual", (32, 64, 64), 5),
    ("residual", (48, 96, 96), 5),
    ("pipo_fan", (32, 64, 64), 5),
    ("pipo_fan", (48, 96, 96), 5),
    ("conditioned", (32, 64, 64), 5),
    ("conditioned", (32, 96, 96), 5),
    ("dynamic_head", (32, 64, 64), 5),
    ("dynamic_head", (48, 96, 96), 5),
)
STEP = """
import json, resource, sys
import partialseg  # before TensorFlow, whose environment it sets
import numpy as np, tensorflow as tf
from partialseg.models import output_strides
from partialseg.training.config import OptimizerConfig, TrainingConfig
from partialseg.training.devices import make_strategy
from partialseg.training.loss_config import LOSS_CONFIGS
from partialseg.training.memory import estimate
from partialseg.training.network_config import UNetConfig, network_of_kind
from partialseg.training.trainer import build_model, compile_model

name, patch, stages = json.loads(sys.argv[1])
strides = ((1, 1, 1), *[(2, 2, 2)] * (stages - 1))
if name in ("plain", "residual"):
    network = UNetConfig(encoder=name, strides=strides)
else:  # as the shipped configs have them
    network = network_of_kind(name, UNetConfig(strides=strides, deep_supervision=True))
loss = {"pipo_fan": "target_adaptive"}.get(name, "masked_sigmoid" if network.kind != "unet" else "partial_supervision")
config = TrainingConfig(
    name=name, network=network, losses=LOSS_CONFIGS[loss](), optimizer=OptimizerConfig(name="sgd")
)
with make_strategy().scope():
    model = build_model(config, 6)
    compile_model(model, config)
outputs = output_strides(model)
random = np.random.default_rng(0)
image = random.normal(0, 100, (2, *patch, 1)).astype("float32")
target = np.eye(6, dtype="uint8")[random.integers(0, 6, (2, *patch))]
targets = tuple(target[:, ::d, ::h, ::w] for d, h, w in outputs)
target = targets if len(outputs) > 1 else target
model.fit(tf.data.Dataset.from_tensors((image, target)).repeat(3), verbose=0, shuffle=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
print(json.dumps([peak, estimate(network, patch, 2, 6, copies=2).gigabytes]))
"""


def main() -> None:
    """Measure every row and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training_memory.md"))
    options = parser.parse_args()
    lines = [
        "# Peak memory of a training step, measured and estimated",
        "",
        "`python benchmarks/training_memory.py`; CPU, float32, batch 2, SGD, base 32 channels. `plain` and "
        "`residual` are U-Nets by their encoder; the others have deep supervision.",
        "",
        "| network | patch | stages | measured, GB | estimated, GB | measured / estimated |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        result = subprocess.run(
            [sys.executable, "-c", STEP, json.dumps(row)], capture_output=True, text=True, check=True
        )
        measured, estimated = json.loads(result.stdout.splitlines()[-1])
        name, patch, stages = row
        size = "×".join(map(str, patch))
        lines.append(
            f"| {name} | {size} | {stages} | {measured:.2f} | {estimated:.2f} | {measured / estimated:.2f} |"
        )
        print(lines[-1], flush=True)
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
