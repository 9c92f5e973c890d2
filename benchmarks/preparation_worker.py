"""One contender of benchmarks/resampling.py or benchmarks/prepare.py, in a process that waits for its turns.

    python benchmarks/preparation_worker.py CONTENDER FOLDER [--threads N]

Reads a line from standard input for each turn, and answers with a line of JSON; the line "save" asks for the
result of the last turn as FOLDER/CONTENDER.npz. FOLDER/job.json says what to do. Linux only.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from losses_worker import measured, resident_mb
from threads import use_threads

Turn = Callable[[], dict[str, np.ndarray]]


def image_turn(way: str, job: dict[str, Any], folder: Path) -> Turn:
    """Resample FOLDER/image.npy."""
    image = np.load(folder / "image.npy")
    spacing, new_spacing = job["spacing_mm"], job["new_spacing_mm"]
    if way == "partialseg":
        from partialseg.data.resample import resample_image

        return lambda: {"image": resample_image(image, spacing, new_spacing)}
    if way == "spline":
        from partialseg.data.resample import resample_image

        return lambda: {"image": resample_image(image, spacing, new_spacing, antialias=False)}
    if way == "scipy":
        from scipy import ndimage

        ratio = np.divide(new_spacing, spacing)
        shape = job["new_shape"]
        offset = (np.array(image.shape) - 1) / 2 - (np.array(shape) - 1) / 2 * ratio
        return lambda: {
            "image": ndimage.affine_transform(
                image, np.diag(ratio), offset, tuple(shape), order=3, mode="nearest"
            )
        }
    resample = nnunet_resampling(is_seg=False, order=3)
    return lambda: {"image": resample(image[None], job["new_shape"], spacing, new_spacing)[0]}


def label_turn(way: str, job: dict[str, Any], folder: Path) -> Turn:
    """Resample the label maps in FOLDER/labels.npz, each from its spacing to its new one."""
    with np.load(folder / "labels.npz") as file:
        labels = {name: file[name] for name in file}
    if way == "partialseg":
        from partialseg.data.resample import resample_label

        def resample(label: np.ndarray, _: Any, spacing: Any, new_spacing: Any) -> np.ndarray:
            return resample_label(label, spacing, new_spacing)
    else:
        nnunet = nnunet_resampling(is_seg=True, order=1)

        def resample(label: np.ndarray, shape: Any, spacing: Any, new_spacing: Any) -> np.ndarray:
            return nnunet(label[None].astype(np.int16), shape, spacing, new_spacing)[0].astype(np.uint8)

    def turn() -> dict[str, np.ndarray]:
        return {name: resample(label, *job["labels"][name]) for name, label in labels.items()}

    return turn


def nnunet_resampling(is_seg: bool, order: int) -> Callable[..., np.ndarray]:
    """As the plans of nnU-Net's default planner call it."""
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    return functools.partial(
        resample_data_or_seg_to_shape, is_seg=is_seg, order=order, order_z=0, force_separate_z=None
    )


def case_turn(way: str, job: dict[str, Any], folder: Path) -> Turn:
    """Prepare a whole case: read, resample, index the foreground, write."""
    out = folder / f"out-{way}"
    return partialseg_case(job, folder, out) if way == "partialseg" else nnunet_case(job, folder, out)


def partialseg_case(job: dict[str, Any], folder: Path, out: Path) -> Turn:
    import shutil

    from partialseg.data.cards import find_cases, read_card
    from partialseg.data.prepare_case import PrepareTask, prepare_case

    card = read_card(folder / "card.md")
    (raw,) = find_cases(card, folder / "raw")
    classes = ("background", *card.annotated)
    task = PrepareTask(card, raw, classes, tuple(job["new_spacing_mm"]), "train", out)

    def turn() -> dict[str, np.ndarray]:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        prepare_case(task)
        return {}

    def saved() -> dict[str, np.ndarray]:
        return {name: np.load(task.folder / f"{name}.npy") for name in ("image", "label")}

    turn.saved = saved
    return turn


def nnunet_case(job: dict[str, Any], folder: Path, out: Path) -> Turn:
    """`run_case_save` of the default preprocessor, as `nnUNetv2_preprocess` calls it for each case."""
    import blosc2
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    (image,), (label,) = (list((folder / "raw").rglob(f"*{kind}.nii.gz")) for kind in ("_ct", "_label"))
    out.mkdir(exist_ok=True)
    plans = PlansManager(nnunet_plans(job["new_spacing_mm"]))
    labels = {"background": 0, **{organ: value for value, organ in enumerate(job["organs"], start=1)}}
    dataset = {"labels": labels, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    preprocessor = DefaultPreprocessor(verbose=False)

    def turn() -> dict[str, np.ndarray]:
        for old in out.iterdir():
            old.unlink()
        configuration = plans.get_configuration("3d_fullres")
        preprocessor.run_case_save(str(out / "case"), [str(image)], str(label), plans, configuration, dataset)
        return {}

    def saved() -> dict[str, np.ndarray]:
        image, label = (blosc2.open(urlpath=str(out / f"case{kind}.b2nd"))[0] for kind in ("", "_seg"))
        return {"image": image, "label": label}

    turn.saved = saved
    return turn


def nnunet_plans(spacing_mm: list[float]) -> dict[str, Any]:
    """What the default planner writes, as far as preprocessing reads it; intensities are left in HU."""
    resampling = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [64, 160, 160],
        "spacing": spacing_mm,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **resampling},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **resampling},
        "architecture": {},
    }
    hu = {"mean": 0.0, "std": 1.0, "percentile_00_5": -1100.0, "percentile_99_5": 3100.0}
    return {
        "dataset_name": "Dataset001_Benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {"0": hu},
        "label_manager": "LabelManager",
    }


TURNS = {"image": image_turn, "label": label_turn, "case": case_turn}
PACKAGES = {"nnunet": ("nnunetv2", "numpy", "scipy")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("contender")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    # What libraries print goes to standard error, so that the answers stay alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    use_threads(arguments.threads)
    for name in ("OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
        os.environ[name] = str(arguments.threads)
    kind, way = arguments.contender.split("-")
    turn = TURNS[kind](way, json.loads((arguments.folder / "job.json").read_text()), arguments.folder)
    turn()  # loads the code, fills the disk cache
    packages = PACKAGES.get(way, ("numpy", "scipy"))
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    answers.write(json.dumps({"versions": versions, "loaded_mb": resident_mb("VmRSS")}) + "\n")
    result: dict[str, np.ndarray] = {}

    def step() -> float:
        result.clear()
        result.update(turn())
        return 0.0

    for line in sys.stdin:
        if line.strip() == "save":
            saved = turn.saved() if hasattr(turn, "saved") else result
            np.savez(arguments.folder / f"{arguments.contender}.npz", **saved)
            answers.write("{}\n")
        else:
            answers.write(json.dumps(measured(step, ())) + "\n")


if __name__ == "__main__":
    main()
