"""The planner against nnU-Net's own, for cases like those of well-known datasets, and its rules for random ones.

    python benchmarks/planning.py --peer-python INTERPRETER [--out benchmarks/results/planning.md] [--record]

INTERPRETER has nnunetv2. Nothing is read: both are told sizes and voxel sizes. `--record` also writes the first
topologies to tests/models/nnunet_topologies.json, for where there is no nnU-Net.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
from pathlib import Path
from typing import Any

from partialseg.models.topology import topology
from partialseg.training.config import read_config
from partialseg.training.fingerprint import Fingerprint, target_spacing
from partialseg.training.planner import _Search

#: Name, median voxels and voxel size in mm of cases as such datasets have them.
CASES = (
    ("BTCV, raw", (148, 512, 512), (3.0, 0.76, 0.76)),
    ("prepared at 3 × 1.5 × 1.5 mm", (150, 260, 260), (3.0, 1.5, 1.5)),
    ("LiTS, raw", (432, 512, 512), (1.0, 0.77, 0.77)),
    ("KiTS, raw", (109, 512, 512), (3.0, 0.78, 0.78)),
    ("MSD spleen, raw", (90, 512, 512), (5.0, 0.79, 0.79)),
    ("isotropic 1.5 mm", (280, 250, 250), (1.5, 1.5, 1.5)),
)
PEER = """
import json, sys
import numpy as np
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner as Planner

planner = Planner.__new__(Planner)
planner.dataset_json = {"channel_names": {"0": "CT"}, "labels": {str(k): k for k in range(6)}}
planner.UNet_base_num_features, planner.UNet_max_features_3d, planner.UNet_max_features_2d = 32, 320, 512
planner.UNet_reference_val_3d, planner.UNet_reference_val_2d = 560000000, 85000000
planner.UNet_reference_val_corresp_GB, planner.UNet_reference_val_corresp_bs_3d = 8, 2
planner.UNet_featuremap_min_edge_length, planner.max_dataset_covered = 4, 0.05
planner.UNet_blocks_per_stage_encoder = planner.UNet_blocks_per_stage_decoder = (2,) * 14
planner.UNet_vram_target_GB, planner.UNet_min_batch_size = 8, 2
from dynamic_network_architectures.architectures.unet import PlainConvUNet
planner.UNet_class, planner.preprocessor_name = PlainConvUNet, ""
planner.determine_resampling = planner.determine_segmentation_softmax_export_fn = lambda *a: (int, {}, int, {})
planner.determine_segmentation_softmax_export_fn = lambda *a: (int, {})
planner.determine_normalization_scheme_and_whether_mask_is_used_for_norm = lambda: ([], [])
planner.overwrite_target_spacing, planner.anisotropy_threshold = None, 3
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
request = json.load(sys.stdin)
for patch, spacing in request["topologies"]:
    _, strides, kernels, patch, _ = get_pool_and_conv_props(spacing, patch, 4, 999999)
    print("topology", json.dumps([[int(size) for size in patch], strides, kernels]))
for spacings, shapes in request["datasets"]:
    planner.dataset_fingerprint = {"spacings": spacings, "shapes_after_crop": shapes}
    print("spacing", json.dumps([float(length) for length in planner.determine_fullres_target_spacing()]))
for shape, spacing in request["cases"]:
    voxels = 100 * float(np.prod(shape))
    made = planner.get_plans_for_configuration(np.array(spacing), np.array(shape, float), "", voxels, {})
    stages = len(made["architecture"]["arch_kwargs"]["strides"])
    print("plan", json.dumps([[int(size) for size in made["patch_size"]], int(made["batch_size"]), stages]))
"""


RECORD = Path(__file__).resolve().parents[1] / "tests" / "models" / "nnunet_topologies.json"
NUM_TOPOLOGIES, NUM_RECORDED, NUM_DATASETS = 3000, 30, 300


def random_request() -> dict[str, list]:
    """Patches with voxel sizes, and datasets of some scans, the same at every call."""
    draw = random.Random(0)
    topologies = [
        ([draw.randint(16, 320) for _ in range(3)], [round(draw.uniform(0.5, 6), 2) for _ in range(3)])
        for _ in range(NUM_TOPOLOGIES)
    ]
    datasets = []
    for _ in range(NUM_DATASETS):
        thick = draw.choice([1, 3, 5, 8])
        scans = [
            (round(thick * draw.uniform(0.5, 1.2), 2), *[round(draw.uniform(0.6, 1), 2)] * 2)
            for _ in range(draw.randint(1, 15))
        ]
        shapes = [(draw.randint(20, 300), 512, 512) for _ in scans]
        datasets.append((scans, shapes))
    return {"topologies": topologies, "datasets": datasets, "cases": [[shape, mm] for _, shape, mm in CASES]}


def asked(python: str, request: dict[str, list]) -> dict[str, list[Any]]:
    """What nnU-Net answers, by kind."""
    result = subprocess.run(
        [python, "-c", PEER], input=json.dumps(request), capture_output=True, text=True, check=True
    )
    answers: dict[str, list[Any]] = {"topology": [], "spacing": [], "plan": []}
    for line in result.stdout.splitlines():
        kind, _, content = line.partition(" ")
        if kind in answers:
            answers[kind].append(json.loads(content))
    return answers


def own_plans(shape: tuple[int, ...], spacing: tuple[float, ...]) -> list[str]:
    """Our patch, batch and number of stages, in float32 and in bfloat16."""
    found, own = Fingerprint(spacing, shape, 100 * shape[0] * shape[1] * shape[2], None, ()), []
    for precision in ("float32", "bfloat16"):
        base = read_config("default").model_copy(update={"precision": precision})
        search = _Search(base, "plain", 6, 8.0)
        plan = search.patch(found)
        own.append(f"{_times(plan.patch_size)}, {search.batch(plan, found)}, {len(plan.strides)}")
    return own


def rules(request: dict[str, list], answers: dict[str, list[Any]]) -> list[str]:
    """How often our rules give what nnU-Net's give."""
    same = sum(
        json.loads(json.dumps(topology(patch, spacing))) == theirs
        for (patch, spacing), theirs in zip(request["topologies"], answers["topology"], strict=True)
    )
    alike = sum(
        all(abs(a - b) < 2e-3 for a, b in zip(target_spacing(*dataset), theirs, strict=True))
        for dataset, theirs in zip(request["datasets"], answers["spacing"], strict=True)
    )
    return [
        f"- Patch, strides and kernels equal nnU-Net's for {same} of {NUM_TOPOLOGIES} random patches and voxel sizes.",
        f"- The voxel size to prepare at is nnU-Net's for {alike} of {NUM_DATASETS} random datasets.",
    ]


def record(request: dict[str, list], answers: dict[str, list[Any]]) -> None:
    """Write what the tests compare with."""
    plans = [
        {"patch": patch, "spacing_mm": spacing, "strides": strides, "kernels": kernels, "patch_size": whole}
        for (patch, spacing), (whole, strides, kernels) in zip(
            request["topologies"][:NUM_RECORDED], answers["topology"][:NUM_RECORDED], strict=True
        )
    ]
    lines = ",\n".join(json.dumps(plan) for plan in plans)
    made = "python benchmarks/planning.py --record: get_pool_and_conv_props(spacing, patch, 4, 999999) of nnunetv2"
    RECORD.write_text(f'{{"made": "{made}",\n"plans": [\n{lines}\n]}}\n', encoding="utf-8")


def main() -> None:
    """Plan every case on both sides and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/planning.md"))
    parser.add_argument("--record", action="store_true", help="also write what the tests compare with")
    options = parser.parse_args()
    request = random_request()
    answers = asked(options.peer_python, request)
    lines = [
        "# Plans for 8 GB, against nnU-Net's",
        "",
        "`python benchmarks/planning.py --peer-python INTERPRETER`; 6 classes, plain encoder, 100 cases.",
        "",
        "| cases | median | nnU-Net: patch, batch, stages | ours in float32 | ours in bfloat16 |",
        "|---|---|---|---|---|",
    ]
    for (name, shape, spacing), (patch, batch, stages) in zip(CASES, answers["plan"], strict=True):
        own = own_plans(shape, spacing)
        lines.append(f"| {name} | {_times(shape)} | {_times(patch)}, {batch}, {stages} | {' | '.join(own)} |")
    lines += ["", *rules(request, answers)]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.record:
        record(request, answers)
    print("\n".join(lines))


def _times(numbers: list[int] | tuple[int, ...]) -> str:
    return "×".join(map(str, numbers))


if __name__ == "__main__":
    main()
