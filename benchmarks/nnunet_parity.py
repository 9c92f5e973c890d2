"""Our U-Nets beside nnU-Net's: number of parameters, output shapes, and logits with the same weights.

    python benchmarks/nnunet_parity.py --torch-python INTERPRETER [--record]

INTERPRETER is of an environment with nnU-Net (`pip install nnunetv2`), this project need not be in it. Prints what is
kept as benchmarks/results/nnunet_parity.md; `--record` also writes what the tests compare with where there is
no PyTorch: `nnunet_sizes.json`, `nnunet_plain.npz` and `nnunet_residual.npz` in tests/models/.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import partialseg  # noqa: F401  # sets TensorFlow's environment before its import

# isort: split
import keras
import numpy as np
from keras import ops
from nnunet_parity_worker import load_weights, save_weights

from partialseg.files import write_text
from partialseg.models import NormalizeHU, unet
from partialseg.models.nnunet_weights import from_nnunet, to_nnunet

COMMAND = "python benchmarks/nnunet_parity.py --torch-python INTERPRETER --record"
WORKER = Path(__file__).with_name("nnunet_parity_worker.py")
RECORDS = Path(__file__).resolve().parents[1] / "tests" / "models"
CT = {"spacing_mm": [3.0, 1.5, 1.5], "patch": [48, 192, 192], "num_classes": 6}
ISOTROPIC = {"spacing_mm": [1.0, 1.0, 1.0], "patch": [96, 96, 96], "num_classes": 3}
THICK = {"spacing_mm": [6.0, 0.8, 0.8], "patch": [16, 256, 320], "num_classes": 2}


def options(encoder: str, **others: Any) -> dict[str, Any]:
    """Arguments of `unet`, by default nnU-Net's for the encoder."""
    return {
        "encoder": encoder,
        "base_channels": 32,
        "max_channels": 320,
        "decoder_convolutions": 1 if encoder == "residual" else 2,
        "convolution_bias": True,
        "dropout": 0.0,
        "deep_supervision": True,
        **others,
    }


FEW = {"base_channels": 6, "max_channels": 40}
PLANS = [
    {"name": "plain", **CT, "options": options("plain")},
    {"name": "plain, one output", **CT, "options": options("plain", **FEW, deep_supervision=False)},
    {"name": "plain, isotropic", **ISOTROPIC, "options": options("plain")},
    {"name": "plain, thick slices", **THICK, "options": options("plain", **FEW)},
    {
        "name": "plain, no bias, dropout, 1 to 3 convolutions",
        **ISOTROPIC,
        "options": options(
            "plain",
            **FEW,
            convolution_bias=False,
            dropout=0.2,
            convolutions_per_stage=[1, 2, 3, 2, 1],
            decoder_convolutions=1,
        ),
    },
    {"name": "residual", **CT, "options": options("residual")},
    {"name": "residual, isotropic", **ISOTROPIC, "options": options("residual", **FEW)},
    {
        "name": "residual, thick slices, one output",
        **THICK,
        "options": options("residual", **FEW, deep_supervision=False),
    },
    {
        "name": "residual, no bias, dropout, 2 blocks",
        **CT,
        "options": options(
            "residual", **FEW, convolution_bias=False, dropout=0.2, convolutions_per_stage=[2] * 6
        ),
    },
]
FULL_SIZE = {"spacing_mm": [3.0, 1.5, 1.5], "patch": [32, 64, 64], "num_classes": 6}
SMALL = {
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "base_channels": 2,
    "max_channels": 5,
}
SMALL_PATCH = [6, 16, 12]


def ask(python: str, plans: list[dict[str, Any]]) -> dict[str, Any]:
    """What nnU-Net's networks have for these plans."""
    answer = subprocess.run(
        [python, str(WORKER), "sizes"],
        input=json.dumps(plans),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout[answer.stdout.index("{") :])


def size_row(theirs: dict[str, Any]) -> str:
    """A line of the table of sizes."""
    model = unet(theirs["num_classes"], **theirs["options"])
    shapes = model.compute_output_shape((1, *theirs["patch"], 1))
    shapes = shapes if isinstance(shapes, list) else [shapes]
    expected = [(batch, *spatial, classes) for batch, classes, *spatial in theirs["output_shapes"]]
    needed = theirs["parameters"] - theirs["parameters_of_unused_logits"]
    cells = (
        theirs["name"],
        "×".join(map(str, theirs["patch"])),
        len(theirs["options"]["strides"]),
        f"{theirs['parameters']:,}",
        f"{theirs['parameters_of_unused_logits']:,}",
        f"{model.count_params():,}",
        "yes" if model.count_params() == needed else "NO",
        f"{len(expected)}: " + ("yes" if [tuple(shape) for shape in shapes] == expected else "NO"),
    )
    return f"| {' | '.join(map(str, cells))} |"


def exchange(python: str, plan: dict[str, Any], record: Path | None = None) -> str:
    """A line of the table of logits: weights of theirs in our network, and of ours in theirs."""
    rng = np.random.default_rng(plan["seed"])
    hu = np.round(rng.uniform(-400, 500, (1, *plan["patch"], 1))).astype("float32")
    keras.utils.set_random_seed(plan["seed"])
    model = unet(plan["num_classes"], **plan["options"])
    for variable in model.trainable_variables:
        if len(variable.shape) == 1:
            variable.assign_add(rng.normal(0, 0.3, variable.shape))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_text(folder / "plan.json", json.dumps(plan))
        np.save(folder / "input.npy", np.moveaxis(ops.convert_to_numpy(NormalizeHU()(hu)), -1, 1))
        save_weights(folder / "converted.npz", to_nnunet(model))
        ours = logits_of(model, hu)
        subprocess.run([python, str(WORKER), "exchange", str(folder)], check=True)
        of_converted = read_logits(folder / "logits_of_converted.npz")
        theirs = read_logits(folder / "logits.npz")
        exact = read_logits(folder / "logits_in_float64.npz")
        weights = load_weights(folder / "weights.npz")
    from_nnunet(weights, model)
    if record is not None:
        recorded = {f"logits{k}": logits for k, logits in enumerate(theirs)}
        save_weights(record, weights, hu=hu, options=json.dumps(plan["options"]), **recorded)
    differences = (
        difference(logits_of(model, hu), theirs),
        difference(ours, of_converted),
        difference(theirs, exact),
    )
    spread = max(float(np.abs(logits).max()) for logits in theirs)
    cells = (plan["name"], f"{model.count_params():,}", *(f"{d:.1e}" for d in differences), f"{spread:.1f}")
    return f"| {' | '.join(cells)} |"


def logits_of(model: keras.Model, hu: np.ndarray) -> list[np.ndarray]:
    return [ops.convert_to_numpy(output) for output in model(hu)]


def read_logits(path: Path) -> list[np.ndarray]:
    """nnU-Net's logits, channels last."""
    with np.load(path) as file:
        return [np.moveaxis(file[f"arr_{k}"], 1, -1) for k in range(len(file.files))]


def difference(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


def exchanges(python: str, record: bool) -> list[str]:
    """Lines of the table of logits."""
    lines = []
    for seed, encoder in enumerate(("plain", "residual")):
        plan = {**FULL_SIZE, "name": f"{encoder}, 32 to 320 channels, 32×64×64", "options": options(encoder)}
        plan["options"] = ask(python, [plan])["networks"][0]["options"]
        lines.append(exchange(python, {**plan, "seed": seed}))
        small = {"patch": SMALL_PATCH, "num_classes": 3, "seed": seed}
        repeats = [1, 2, 2] if encoder == "residual" else [2, 2, 2]
        plan = {**small, "name": f"{encoder}, 2 to 5 channels, 6×16×12"}
        plan["options"] = options(encoder, **SMALL, convolutions_per_stage=repeats)
        lines.append(exchange(python, plan, RECORDS / f"nnunet_{encoder}.npz" if record else None))
        others = {"convolution_bias": False, "dropout": 0.2, "decoder_convolutions": 3}
        plan["name"] += ", no bias, dropout, 3 convolutions of the decoder"
        plan["options"] = {**plan["options"], **others}
        lines.append(exchange(python, plan))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", required=True, help="interpreter of an environment with nnU-Net")
    parser.add_argument("--record", action="store_true", help="also write what the tests compare with")
    arguments = parser.parse_args()
    answer = ask(arguments.torch_python, PLANS)
    if arguments.record:
        record = {"command": COMMAND, **answer}
        write_text(RECORDS / "nnunet_sizes.json", json.dumps(record, indent=1) + "\n")
    ours = {name: importlib.metadata.version(name) for name in ("keras", keras.backend.backend())}
    versions = ", ".join(f"{name} {version}" for name, version in {**ours, **answer["versions"]}.items())
    heading = (
        f"# The same networks as nnU-Net's\n\n```\n{COMMAND}\n```\n\n{datetime.date.today()}, CPU, "
        f"{os.cpu_count()} cores: {versions}.\n\n## Sizes\n\n"
        "| network | patch | stages | nnU-Net's parameters | of them in unused logits | ours | same "
        "| outputs: same shapes |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    print(heading, *map(size_row, answer["networks"]), sep="\n")
    print(
        "\n## Logits\n\nLargest difference of a logit, over all outputs of deep supervision.\n\n"
        "| network | parameters | nnU-Net's weights in ours | our weights in nnU-Net's "
        "| nnU-Net's in float32 and in float64 | largest logit |\n"
        "|---|---|---|---|---|---|",
        *exchanges(arguments.torch_python, arguments.record),
        sep="\n",
    )
    print(NOTES)


NOTES = """
- Strides and kernels are what nnU-Net's planner gives for the spacing and the patch.
- nnU-Net has logits at each stage of the decoder also where only the finest are used; ours has those that it returns.
- Float32 and float64: how far nnU-Net's own logits are from those that PyTorch computes in double precision.
- Weights: of nnU-Net's own initialisation and of ours, with noise on biases and on factors of norms, which
  otherwise begin as 0 and 1. Our weights are loaded with `strict=True`.
- nnU-Net's network is given what comes after our layer `normalize`."""


if __name__ == "__main__":
    main()
