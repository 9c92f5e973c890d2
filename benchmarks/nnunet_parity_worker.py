"""nnU-Net's side of benchmarks/nnunet_parity.py, for an interpreter that has nnU-Net; needs nothing of partialseg.

python benchmarks/nnunet_parity_worker.py sizes     < PLANS.json > SIZES.json
python benchmarks/nnunet_parity_worker.py exchange FOLDER
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: nnU-Net's: no axis of the coarsest stage is shorter.
SHORTEST_EDGE = 4


def save_weights(path: Path, weights: Mapping[str, np.ndarray], **others: Any) -> None:
    """Write arrays by name; an array that has several names is written once."""
    first, stored_as = {}, {}
    for name, array in weights.items():
        place = (array.__array_interface__["data"][0], array.shape)
        stored_as[name] = first.setdefault(place, name)
    arrays = {name: weights[name] for name in first.values()}
    np.savez_compressed(path, stored_as=json.dumps(stored_as), **arrays, **others)


def load_weights(path: Path) -> dict[str, np.ndarray]:
    """Read what `save_weights` wrote."""
    with np.load(path) as file:
        stored_as = json.loads(str(file["stored_as"]))
        arrays = {name: file[name] for name in set(stored_as.values())}
    return {name: arrays[stored] for name, stored in stored_as.items()}


def topology(spacing_mm: list[float], patch: list[int]) -> dict[str, Any]:
    """Strides and kernels as nnU-Net's planner has them."""
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, _, _ = get_pool_and_conv_props(spacing_mm, patch, SHORTEST_EDGE, 999999)
    return {"strides": [list(map(int, s)) for s in strides], "kernels": [list(map(int, k)) for k in kernels]}


def network(options: Mapping[str, Any], num_classes: int) -> Any:
    """nnU-Net's network for the arguments of `partialseg.models.unet`."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    from torch import nn

    stages = len(options["strides"])
    residual = options["encoder"] == "residual"
    repeats = "n_blocks_per_stage" if residual else "n_conv_per_stage"
    dropout = {"dropout_op": nn.Dropout3d, "dropout_op_kwargs": {"p": options["dropout"]}}
    made = (ResidualEncoderUNet if residual else PlainConvUNet)(
        input_channels=1,
        n_stages=stages,
        features_per_stage=[
            min(options["base_channels"] * 2**stage, options["max_channels"]) for stage in range(stages)
        ],
        conv_op=nn.Conv3d,
        kernel_sizes=options["kernels"],
        strides=options["strides"],
        num_classes=num_classes,
        n_conv_per_stage_decoder=options["decoder_convolutions"],
        conv_bias=options["convolution_bias"],
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=options["deep_supervision"],
        **{repeats: options["convolutions_per_stage"]},
        **(dropout if options["dropout"] else {}),
    )
    return made.apply(made.initialize).eval()


def sizes(plan: dict[str, Any]) -> dict[str, Any]:
    """Number of parameters and shapes of the outputs of a plan's network; nothing is computed."""
    import torch

    options = {**topology(plan["spacing_mm"], plan["patch"]), **plan["options"]}
    # nnU-Net's plans have one number for each stage, and so has the network of the plan's class by default.
    stages = len(options["strides"])
    default = (1, 3, 4, *(6,) * stages)[:stages] if options["encoder"] == "residual" else (2,) * stages
    options.setdefault("convolutions_per_stage", list(default))
    with torch.device("meta"):
        made = network(options, plan["num_classes"])
        outputs = made(torch.zeros(1, 1, *plan["patch"]))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    unused = [] if options["deep_supervision"] else list(made.decoder.seg_layers)[:-1]
    return {
        **plan,
        "options": options,
        "parameters": count(made),
        "parameters_of_unused_logits": sum(map(count, unused)),
        "output_shapes": [list(output.shape) for output in outputs],
    }


def count(module: Any) -> int:
    """Number of parameters; one that is listed several times counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def exchange(folder: Path) -> None:
    """Logits with weights of nnU-Net's own, and with those that were converted for it.

    Reads `plan.json`, `input.npy` `(batch, 1, depth, height, width)` and `converted.npz`. Writes `weights.npz`, and
    the outputs, finest first, to `logits.npz`, `logits_in_float64.npz` and `logits_of_converted.npz`.
    """
    import torch

    plan = json.loads((folder / "plan.json").read_text())
    image = torch.from_numpy(np.load(folder / "input.npy"))
    torch.manual_seed(plan["seed"])
    made = network(plan["options"], plan["num_classes"])
    with torch.no_grad():
        for parameter in made.parameters():
            if (
                parameter.ndim == 1
            ):  # Biases and factors of norms begin as 0 and 1, which would hide a mistake.
                parameter.add_(0.3 * torch.randn_like(parameter))
        np.savez(folder / "logits.npz", *(output.numpy() for output in made(image)))
        exact = made.double()(image.double())
        np.savez(folder / "logits_in_float64.npz", *(output.numpy() for output in exact))
        made.float()
        save_weights(
            folder / "weights.npz", {name: tensor.numpy() for name, tensor in made.state_dict().items()}
        )
        converted = load_weights(folder / "converted.npz")
        made.load_state_dict(
            {name: torch.from_numpy(array) for name, array in converted.items()}, strict=True
        )
        np.savez(folder / "logits_of_converted.npz", *(output.numpy() for output in made(image)))


def main() -> None:
    command, *rest = sys.argv[1:]
    if command == "exchange":
        exchange(Path(rest[0]))
        return
    packages = ("nnunetv2", "dynamic_network_architectures", "torch")
    versions = {package: importlib.metadata.version(package) for package in packages}
    json.dump({"versions": versions, "networks": [sizes(plan) for plan in json.load(sys.stdin)]}, sys.stdout)


if __name__ == "__main__":
    main()
