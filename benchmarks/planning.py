"""The planner against nnU-Net's own, for cases like those of well-known datasets.

    python benchmarks/planning.py --peer-python INTERPRETER [--out benchmarks/results/planning.md]

INTERPRETER has nnunetv2. Nothing is read: both are told median size and voxel size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from partialseg.training.config import read_config
from partialseg.training.fingerprint import Fingerprint
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
for shape, spacing in json.loads(sys.argv[1]):
    voxels = 100 * float(np.prod(shape))
    made = planner.get_plans_for_configuration(np.array(spacing), np.array(shape, float), "", voxels, {})
    stages = len(made["architecture"]["arch_kwargs"]["strides"])
    print(json.dumps([[int(size) for size in made["patch_size"]], int(made["batch_size"]), stages]))
"""


def main() -> None:
    """Plan every case on both sides and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/planning.md"))
    options = parser.parse_args()
    request = json.dumps([[shape, spacing] for _, shape, spacing in CASES])
    result = subprocess.run(
        [options.peer_python, "-c", PEER, request], capture_output=True, text=True, check=True
    )
    peers = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[[")]
    lines = [
        "# Plans for 8 GB, against nnU-Net's",
        "",
        "`python benchmarks/planning.py --peer-python INTERPRETER`; 6 classes, plain encoder, 100 cases.",
        "",
        "| cases | median | nnU-Net: patch, batch, stages | ours in float32 | ours in bfloat16 |",
        "|---|---|---|---|---|",
    ]
    for (name, shape, spacing), (patch, batch, stages) in zip(CASES, peers, strict=True):
        found = Fingerprint(spacing, shape, 100 * shape[0] * shape[1] * shape[2], None, ())
        own = []
        for precision in ("float32", "bfloat16"):
            base = read_config("default").model_copy(update={"precision": precision})
            search = _Search(base, "plain", 6, 8.0)
            plan = search.patch(found)
            own.append(f"{_times(plan.patch_size)}, {search.batch(plan, found)}, {len(plan.strides)}")
        lines.append(f"| {name} | {_times(shape)} | {_times(patch)}, {batch}, {stages} | {' | '.join(own)} |")
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def _times(numbers: list[int] | tuple[int, ...]) -> str:
    return "×".join(map(str, numbers))


if __name__ == "__main__":
    main()
