"""One contender of benchmarks/metrics.py in a process of its own, on one core.

    python benchmarks/metrics_worker.py turns  CONTENDER CASES    scores the cases that each line names (JSON)
    python benchmarks/metrics_worker.py values CONTENDER CASES    scores all cases once, for each definition
    python benchmarks/metrics_worker.py memory CONTENDER CASES    tells the peak of memory as well

CASES is a folder of .npz files with prediction, truth, spacing_mm and organs (values of the label maps). Answers
are lines of JSON. The peers need nothing of this package. Linux only.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threads import use_framework_threads, use_threads

TOLERANCE_MM = 2.0
Metrics = dict[str, float]
#: From two boolean masks and the spacing to the metrics.
MaskMetrics = Callable[[np.ndarray, np.ndarray, tuple[float, ...]], Metrics]


def medpy() -> MaskMetrics:
    from medpy.metric import binary

    def metrics(prediction: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, ...]) -> Metrics:
        return {
            "dice": binary.dc(prediction, truth),
            "hd_mm": binary.hd(prediction, truth, spacing_mm),
            "hd95_mm": binary.hd95(prediction, truth, spacing_mm),
            "assd_mm": binary.assd(prediction, truth, spacing_mm),
        }

    return metrics


def deepmind() -> MaskMetrics:
    import surface_distance

    def metrics(prediction: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, ...]) -> Metrics:
        distances = surface_distance.compute_surface_distances(truth, prediction, spacing_mm)
        means = surface_distance.compute_average_surface_distance(distances)
        areas = [distances[f"surfel_areas_{side}"].sum() for side in ("gt", "pred")]
        return {
            "dice": surface_distance.compute_dice_coefficient(truth, prediction),
            "hd_mm": surface_distance.compute_robust_hausdorff(distances, 100),
            "hd95_mm": surface_distance.compute_robust_hausdorff(distances, 95),
            "assd_mm": float(np.average(means, weights=areas)),
            "nsd": surface_distance.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM),
        }

    return metrics


def monai() -> MaskMetrics:
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_dice,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    use_framework_threads(torch, 1)

    def metrics(prediction: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, ...]) -> Metrics:
        pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
        common = {"include_background": True, "spacing": spacing_mm}
        found = {
            "dice": compute_dice(*pair),
            "hd_mm": compute_hausdorff_distance(*pair, **common),
            "hd95_mm": compute_hausdorff_distance(*pair, percentile=95, **common),
            "assd_mm": compute_average_surface_distance(*pair, symmetric=True, **common),
            "nsd": compute_surface_dice(*pair, [TOLERANCE_MM], **common),
        }
        return {name: float(value) for name, value in found.items()}

    return metrics


def of_masks(mask_metrics: MaskMetrics, case: dict[str, Any]) -> dict[str, Metrics]:
    """The metrics of each organ; the masks were made before."""
    return {str(value): mask_metrics(*masks, case["spacing_mm"]) for value, masks in case["masks"].items()}


def partialseg(hd95: str, case: dict[str, Any]) -> dict[str, Metrics]:
    """The metrics of each organ, from the label maps."""
    from partialseg.evaluation import score

    organs = {str(value): value for value in case["organs"]}
    scores = score(
        case["prediction"],
        case["truth"],
        case["spacing_mm"],
        organs,
        hd95=hd95,
        nsd_tolerance_mm=TOLERANCE_MM,
    )
    return {organ: {k: v for k, v in entry.items() if k != "outcome"} for organ, entry in scores.items()}


PEERS = {"medpy": (medpy, "MedPy"), "deepmind": (deepmind, "surface-distance"), "monai": (monai, "monai")}


def read_cases(folder: Path, with_masks: bool) -> dict[str, dict[str, Any]]:
    cases = {}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as file:
            case = {name: file[name] for name in file.files}
        case["spacing_mm"] = tuple(map(float, case["spacing_mm"]))
        case["organs"] = [int(value) for value in case["organs"]]
        if with_masks:
            labels = (case["prediction"], case["truth"])
            case["masks"] = {value: [label == value for label in labels] for value in case["organs"]}
        cases[path.stem] = case
    return cases


def say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("turns", "values", "memory"))
    parser.add_argument("contender")
    parser.add_argument("cases", type=Path)
    arguments = parser.parse_args()
    use_threads(1)
    warnings.simplefilter("ignore")  # SciPy's and MONAI's about names that go away
    if peer := PEERS.get(arguments.contender):
        mask_metrics = peer[0]()
        packages = [peer[1]]

        def measure(case: dict[str, Any]) -> dict[str, Metrics]:
            return of_masks(mask_metrics, case)

    else:
        packages = ["numba", "scipy", "numpy"]

        def measure(case: dict[str, Any]) -> dict[str, Metrics]:
            return partialseg(arguments.contender, case)

    cases = read_cases(arguments.cases, with_masks=peer is not None)
    versions = [f"{package} {importlib.metadata.version(package)}" for package in packages]
    before_gb = peak_gb()
    say({"versions": versions, "inputs_gb": sum(case["truth"].nbytes * 2 for case in cases.values()) / 1e9})
    if arguments.what == "turns":
        for line in sys.stdin:
            answer = {}
            for name in json.loads(line):
                start = time.perf_counter(), time.process_time()
                measure(cases[name])
                answer[name] = [time.perf_counter() - start[0], time.process_time() - start[1]]
            say(answer)
    else:
        for name, case in cases.items():
            start = time.process_time()
            answer = measure(case)
            say([name, answer, time.process_time() - start, before_gb, peak_gb()])


def peak_gb() -> float:
    """The peak of resident memory; `getrusage` would count that of the process which started this one."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
