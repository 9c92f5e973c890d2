"""What a prediction writes beside its label map, and whether a prediction that is there need not be made again.

OUT/<case>.nii.gz       the label map; written last, so that all the rest is there where it is
OUT/<case>.json         what was done and found: see docs/prediction.md
OUT/<case>_probabilities/<organ>.nii.gz    see `partialseg.inference.probability_maps`
OUT/<case>.seg.dcm      the same as DICOM segmentation, where it is asked for

What is made anew is taken away first, the label map before the rest: whenever a run is killed, a label map is one with
what lies beside it. A JSON is there all the while, since it says whose the other files are: what lies at these
names without one is not taken away, but refused.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partialseg import __version__
from partialseg.data.dicom_series import SEGMENTATION_SUFFIX
from partialseg.data.organ_codes import is_private, organ_code
from partialseg.data.raw_files import content_hash, stamp
from partialseg.data.volumes import Volume, sidecar_path, stem, write_label_map
from partialseg.errors import DataError
from partialseg.files import atomic_path, write_json
from partialseg.inference.dicom_seg import SourceSeries, write_dicom_seg
from partialseg.inference.out_of_memory import memory_as_problem
from partialseg.inference.plausibility import (
    DICOM_SEG,
    NOT_FOUND,
    SIDES,
    PredictionWarning,
    organ_warnings,
    scan_warnings,
)
from partialseg.inference.postprocessing import Change, OrganRules, middle_of_body, postprocess
from partialseg.inference.probability_maps import ProbabilityMaps
from partialseg.inference.scans import PROBABILITIES, describes_prediction


@dataclass(frozen=True)
class Outputs:
    """What is written of a prediction, beside label map and sidecar of all organs.

    Attributes:
        organs: The organs that are written; None for all. The others are background in the label map, whose values
            stay those of the class list.
        rules: Post-processing of organs; None for none.
        probabilities: Whether the probability of each organ is written too.
        dicom_seg: Whether a DICOM segmentation is written too; scans must be DICOM series then.
    """

    organs: tuple[str, ...] | None = None
    rules: Mapping[str, OrganRules] | None = None
    probabilities: bool = False
    dicom_seg: bool = False

    def values(self, classes: Sequence[str]) -> dict[str, int]:
        """The class index of each organ that is written."""
        wanted = classes[1:] if self.organs is None else self.organs
        return {organ: value for value, organ in enumerate(classes) if value and organ in wanted}

    def as_json(self) -> dict[str, Any]:
        """The settings, as a sidecar holds them."""
        rules = self.rules
        return {
            "organs": None if self.organs is None else list(self.organs),
            "postprocessing": None
            if rules is None
            else {organ: rule.model_dump(exclude_defaults=True) for organ, rule in rules.items()},
            "probabilities": self.probabilities,
            "dicom_seg": self.dicom_seg,
        }


@dataclass(frozen=True)
class Origin:
    """What predictions are made of beside their scans.

    Attributes:
        network: Hash of the network's file, or of those of several networks.
        settings: Everything else that changes a voxel or a file, as JSON has it.
    """

    network: str
    settings: Mapping[str, Any]

    def marks(self, sources: Sequence[Path]) -> dict[str, str]:
        """Marks of a scan and the network; to be taken before the scan is read, so that a later change is seen."""
        return {"stamp": stamp(sources), "scan": content_hash(sources), "network": self.network}


def check_names_are_free(label_map: Path, sources: Collection[Path]) -> None:
    """Refuse to write over a scan, or over files that are no prediction.

    A prediction is what has a JSON beside it that lists classes and says what was found, or one that is damaged.

    Args:
        label_map: The label map that is to be written.
        sources: Resolved paths of the scans.

    Raises:
        DataError: If the label map is one of the scans, or what lies at its name, or at a name of what is written
            beside it, is no prediction.
    """
    remedy = "give another folder for the predictions"
    if label_map.resolve() in sources:
        raise DataError(label_map, "is the scan itself, expected a new file", remedy)
    there = [path for path in _names(label_map) if path.exists()]
    sidecar = sidecar_path(label_map)
    if there and not _is_sidecar(sidecar):
        why = "does not describe one" if sidecar.exists() else "is missing"
        raise DataError(
            there[0],
            f"is there already and is no prediction (its {sidecar.name} {why}), expected a new file",
            remedy,
        )


def _is_sidecar(path: Path) -> bool:
    try:
        return describes_prediction(path)
    except ValueError:
        return True  # it was damaged


def find_prediction(label_map: Path, sources: Sequence[Path], origin: Origin) -> dict[str, Any] | None:
    """The sidecar of a prediction of the same scan, network and settings that is there, with all its files whole.

    A scan whose files have the same sizes and times is not read; one whose files were only moved or touched is.
    """
    sidecar = sidecar_path(label_map)
    if not label_map.is_file() or not sidecar.is_file():
        return None
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        files, made_of, settings = content["files"], content["made_of"], content["settings"]
        for name, size in files.items():
            if (label_map.parent / name).stat().st_size != size:
                return None
            if content["hashes"][name] != content_hash([label_map.parent / name]):
                return None
        same = made_of["network"] == origin.network and settings == json.loads(json.dumps(origin.settings))
        if not same or label_map.name not in files or not {"warnings", "problems"} <= content.keys():
            return None
        is_same_scan = made_of["stamp"] == stamp(sources)
        return content if is_same_scan or made_of["scan"] == content_hash(sources) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # damaged, or of an earlier version: it is made again


def write_prediction(
    out: Path,
    labels: np.ndarray,
    scan: Volume,
    classes: Sequence[str],
    outputs: Outputs,
    facts: Mapping[str, Any],
    source: SourceSeries | None = None,
    maps: ProbabilityMaps | None = None,
) -> dict[str, Any]:
    """Post-process a label map, look at it, and write it with its sidecar.

    Args:
        out: The label map to write.
        labels: uint8 class indices on the grid of the scan.
        scan: The scan.
        classes: Background, then the organs.
        outputs: What is written.
        facts: What else the sidecar says.
        source: The series of the scan, where a DICOM segmentation is written.
        maps: The probabilities, where they are written.

    Returns:
        The content of the sidecar; that no DICOM segmentation could be written is among its problems.
    """
    middle = middle_of_body(scan.array)
    changes = None
    if outputs.rules is not None:
        labels, changes = postprocess(labels, scan.spacing_mm, classes, outputs.rules, middle)
    organs = outputs.values(classes)
    if outputs.organs is not None:
        keep = np.isin(np.arange(len(classes)), list(organs.values()))
        labels = np.where(keep, np.arange(len(classes)), 0).astype(np.uint8)[labels]
    warnings = scan_warnings(scan) + organ_warnings(labels, scan.spacing_mm, organs, middle)
    warnings += _warnings_on_sides(outputs, middle)
    sidecar = {
        "classes": list(classes),
        "organs": list(organs),
        "volumes_ml": _volumes_ml(labels, scan.spacing_mm, organs),
        **facts,
        "partialseg": __version__,
        "postprocessing": None if changes is None else _changes_json(changes, classes, scan.spacing_mm),
    }
    sidecar["warnings"] = [warning._asdict() for warning in warnings]
    _take_away(out, sidecar)
    files = {} if maps is None else maps.write(_probabilities_path(out))
    if source is not None:
        try:
            files |= _write_dicom_seg(out, labels, scan, source, organs, facts, warnings)
        except DataError as error:  # the label map is no worse for it
            sidecar["problems"] = [*sidecar.get("problems", ()), problem_json(error)]
    sidecar["warnings"] = [warning._asdict() for warning in warnings]
    with atomic_path(out) as temporary:
        write_label_map(temporary, labels, like=scan)
        # Before the label map: without the file that says its classes it would be read with others.
        sidecar["files"] = {**files, out.name: temporary.stat().st_size}
        hashes = {name: content_hash([out.parent / name]) for name in files}
        sidecar["hashes"] = {**hashes, out.name: content_hash([temporary])}
        write_json(sidecar_path(out), sidecar)
    return sidecar


def problem_json(error: DataError) -> dict[str, str]:
    """What is wrong, as a sidecar holds it."""
    return {"path": error.path, "problem": error.problem, "remedy": error.remedy}


def _write_dicom_seg(
    out: Path,
    labels: np.ndarray,
    scan: Volume,
    source: SourceSeries,
    organs: Mapping[str, int],
    facts: Mapping[str, Any],
    warnings: list[PredictionWarning],
) -> dict[str, int]:
    """Write a segmentation of the organs that were found; name and size of the file, and warnings are added."""
    missing = {warning.organ for warning in warnings if warning.kind == NOT_FOUND}
    found = {organ: value for organ, value in organs.items() if organ not in missing}
    if not found:
        text = "no organ was found: there is no DICOM segmentation"
        warnings.append(PredictionWarning(None, DICOM_SEG, text))
        return {}
    path = _dicom_seg_path(out)
    remedy = "predict it with --again where there is more, or without --dicom-seg"
    with memory_as_problem(source.folder, remedy):
        write_dicom_seg(path, labels, scan, source, found, Path(facts["run"]).name)
    for organ in found:
        if is_private(organ_code(organ)):
            text = f"{organ} has no code in SNOMED CT: its DICOM segment has one of partialseg's own"
            warnings.append(PredictionWarning(organ, DICOM_SEG, text))
    return {path.name: path.stat().st_size}


def _warnings_on_sides(outputs: Outputs, middle: float | None) -> list[PredictionWarning]:
    """That rules of sides could not be applied."""
    if middle is not None or outputs.rules is None:
        return []
    organs = [organ for organ, rule in outputs.rules.items() if rule.sides]
    text = "not checked for pieces on the wrong side: the scan does not show both sides of the body"
    return [PredictionWarning(organ, SIDES, f"{organ} was {text}") for organ in organs]


def _changes_json(
    changes: Mapping[str, Change], classes: Sequence[str], spacing_mm: Sequence[float]
) -> dict[str, Any]:
    """For each organ what was done to it, and how much it changed; also where that is nothing."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    content = {}
    for organ in classes[1:]:
        change = changes.get(organ, Change((), 0, 0))
        content[organ] = {
            "done": list(change.done),
            "removed_voxels": change.removed,
            "added_voxels": change.added,
            "removed_ml": round(change.removed * voxel_ml, 3),
            "added_ml": round(change.added * voxel_ml, 3),
        }
    return content


def _volumes_ml(
    labels: np.ndarray, spacing_mm: Sequence[float], organs: Mapping[str, int]
) -> dict[str, float]:
    voxels = sum(np.bincount(plane.ravel(), minlength=256) for plane in labels)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    return {organ: round(int(voxels[value]) * voxel_ml, 3) for organ, value in organs.items()}


def _take_away(label_map: Path, sidecar: Mapping[str, Any]) -> None:
    """Remove a prediction that is there, the label map first, and what a killed process left of one.

    The new sidecar, of no file yet, is there from now on: what is written beside it is told from the files of others.
    """
    label_map.unlink(missing_ok=True)
    own = "|".join(re.escape(path.name) for path in _names(label_map))
    for path in label_map.parent.glob(".partial-*"):
        if re.fullmatch(rf"(\.partial-[0-9a-f]{{8}}-)+({own})", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(sidecar_path(label_map), {**sidecar, "files": {}})
    _dicom_seg_path(label_map).unlink(missing_ok=True)
    shutil.rmtree(_probabilities_path(label_map), ignore_errors=True)


def _names(label_map: Path) -> tuple[Path, ...]:
    """All that a prediction may write."""
    return (label_map, sidecar_path(label_map), _dicom_seg_path(label_map), _probabilities_path(label_map))


def _dicom_seg_path(label_map: Path) -> Path:
    return label_map.with_name(f"{stem(label_map)}{SEGMENTATION_SUFFIX}")


def _probabilities_path(label_map: Path) -> Path:
    return label_map.with_name(f"{stem(label_map)}{PROBABILITIES}")
