"""Fewer annotations: of some training cases of a fully annotated dataset all organs but one are hidden (Table 6)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from partialseg.data.labels import candidate_table, ignored_value
from partialseg.data.prepared import Case, Dataset, Prepared, write_manifest
from partialseg.errors import DataError
from partialseg.files import atomic_path, write_json


def choose_single_organs(
    cases: Iterable[str], organs: Sequence[str], share: float, seed: int = 0
) -> dict[str, str | None]:
    """Choose which cases keep one organ alone, and which organ.

    The organs come in turn, so that their groups are as equal as they can be. A case that keeps a single
    organ at a small share keeps the same one at a larger share. At least one case keeps all organs.

    Args:
        cases: Names of the training cases.
        organs: The organs.
        share: Share of the cases that keep one organ, 0 to below 1.
        seed: Of the choice.

    Returns:
        For each case its organ, or None if it keeps all.

    Example:
        >>> choose_single_organs(["a", "b", "c"], ["liver", "spleen"], share=2 / 3)
        {'a': 'spleen', 'b': None, 'c': 'liver'}
    """
    cases = sorted(cases)
    count = min(int(share * len(cases) + 0.5), len(cases) - 1)
    chosen = np.random.default_rng(seed).permutation(len(cases))[: max(0, count)].tolist()
    kept = {cases[index]: organs[place % len(organs)] for place, index in enumerate(chosen)}
    return {case: kept.get(case) for case in cases}


def keep_single_organs(prepared: Prepared, out: str | Path, share: float, seed: int = 0) -> Prepared:
    """Write a prepared folder in which a share of the training cases keeps one organ alone.

    These cases go to datasets of their own, one for each organ kept ("btcv_liver"), so that each has its own
    table: what was another organ or background is that dataset's background, which may be either. Test cases and
    the other training cases are the same files. What an earlier call wrote is kept.

    Args:
        prepared: A prepared folder with one dataset, fully annotated.
        out: The folder to write.
        share: Share of the training cases that keep one organ, 0 to below 1.
        seed: Which cases, and which organ.

    Returns:
        The new prepared folder.

    Raises:
        DataError: If the dataset is not fully annotated, is not alone, or has no training case.
    """
    out = Path(out)
    (full,) = prepared.datasets.values() if len(prepared.datasets) == 1 else (None,)
    cases = prepared.select(split="train")
    if full is None or not full.fully_annotated or not cases:
        names = ", ".join(prepared.datasets) or "none"
        problem = f"holds the datasets {names}; expected one with all organs annotated, and training cases"
        raise DataError(prepared.folder, problem, "prepare a fully annotated dataset alone")
    kept = choose_single_organs((case.name for case in cases), prepared.organs, share, seed)
    datasets = {full.name: full}
    written = []
    for case in prepared.cases:
        organ = kept.get(case.name) if case.split == "train" else None
        if organ is None:
            written.append(_same_case(prepared, case, out))
            continue
        name = f"{full.name}_{organ}"
        datasets[name] = Dataset(name, (organ,), candidate_table(prepared.classes, [organ]))
        written.append(_single_organ_case(prepared, full, case, organ, name, out))
    in_order = {name: datasets[name] for name in sorted(datasets, key=lambda name: (name != full.name, name))}
    written.sort(key=lambda case: (case.dataset, case.name))
    result = Prepared(out, prepared.classes, prepared.spacing_mm, in_order, tuple(written))
    write_manifest(result)
    return result


def _same_case(prepared: Prepared, case: Case, out: Path) -> Case:
    source, folder = prepared.folder / case.dataset / case.name, out / case.dataset / case.name
    if not _is_there(case, folder):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            for file in source.iterdir():
                _link(file, temporary / file.name)
    return case


def _single_organ_case(
    prepared: Prepared, full: Dataset, case: Case, organ: str, dataset: str, out: Path
) -> Case:
    value = prepared.classes.index(organ)
    parts, voxels, indices = [], [], np.zeros(0, np.int32)
    for part, count in zip(case.foreground, case.voxels, strict=True):
        if part[0] == value:
            indices = np.array(prepared.foreground(case)[part[1] : part[2]])
            parts, voxels = [(value, 0, len(indices))], [count]
    mark = hashlib.sha256(f"{case.fingerprint} {dataset}".encode()).hexdigest()
    single = dataclasses.replace(
        case,
        dataset=dataset,
        foreground=tuple(parts),
        voxels=tuple(voxels),
        fingerprint=mark,
        notes=(*case.notes, f"{organ} alone kept"),
    )
    folder = out / dataset / case.name
    if not _is_there(single, folder):
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            _link(prepared.folder / case.dataset / case.name / "image.npy", temporary / "image.npy")
            label = _kept_values(full.table, prepared.classes, value)[prepared.label(case)]
            np.save(temporary / "label.npy", label)
            np.save(temporary / "foreground.npy", indices)
            write_json(temporary / "case.json", dataclasses.asdict(single))
    return single


def _kept_values(table: np.ndarray, classes: Sequence[str], value: int) -> np.ndarray:
    """For each value of the full table the value in that of one organ (uint8).

    A set of several classes that holds the organ stays open: its voxels are ignored.
    """
    kept = np.where(table[:, value] == 1, ignored_value(classes), 0).astype(np.uint8)
    kept[value] = value
    return kept


def _is_there(case: Case, folder: Path) -> bool:
    entry = folder / "case.json"
    if not entry.is_file():
        return False
    return json.loads(entry.read_text(encoding="utf-8")).get("fingerprint") == case.fingerprint


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy on file systems without hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
