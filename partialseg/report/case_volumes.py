"""The scan, the truth and the predictions of a shown case, read again from the files that were scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from partialseg.data.cards import Card, RawCase, read_card
from partialseg.data.classes import class_names
from partialseg.data.label_files import with_missing_masks
from partialseg.data.relabel import prepared_values
from partialseg.data.volumes import Volume, read_image
from partialseg.errors import DataError
from partialseg.evaluation.predictions import Given, checked_classes, read_prediction
from partialseg.evaluation.tables import read_truth
from partialseg.report.cases import ShownCase
from partialseg.report.pictures import overlay_picture


@dataclass(frozen=True)
class CaseVolumes:
    """What is drawn of a case; all arrays `(depth, height, width)` in RAS+, on one grid.

    Attributes:
        image: HU.
        truth: uint8 class indices, the annotated organs alone.
        unknown: Voxels that may be one organ or another: a kidney whose side is not known.
        predictions: For each network uint8 class indices.
        classes: Background first, then the organs.
        affine: 4 x 4, world position in mm (RAS+) of the voxel index `(x, y, z)`.
        spacing_mm: Voxel size `(z, y, x)`.
        annotated: The organs that the dataset annotates in this case.
        scored: For each network the organs that it was scored on.
    """

    image: np.ndarray
    truth: np.ndarray
    unknown: np.ndarray
    predictions: dict[str, np.ndarray]
    classes: tuple[str, ...]
    affine: np.ndarray
    spacing_mm: tuple[float, float, float]
    annotated: tuple[str, ...]
    scored: dict[str, tuple[str, ...]]


def read_case(shown: ShownCase) -> CaseVolumes:
    """Read a case's scan, truth and predictions again.

    Raises:
        DataError: If a file is missing or not as it was when it was scored.
    """
    files = {name: rows.iloc[0] for name, rows in shown.rows.items()}
    first = next(iter(files.values()))
    image = read_image(first["image"])
    card = read_card(first["card"])
    case = RawCase(card.name, str(first["case"]), Path(first["image"]), Path(first["truth"]))
    card = with_missing_masks(card, [case])
    of_network = {
        name: read_prediction(Path(row["prediction"]), case, card, _given_classes(row))
        for name, row in files.items()
    }
    organs = dict.fromkeys(organ for _, found in of_network.values() for organ in found.classes[1:])
    classes = class_names(list(organs))
    truth, unknown = _truth(case, card, classes)
    _check_shape(case.label, truth, image, "the truth and its scan must have the same voxels")
    return CaseVolumes(
        image=image.array,
        truth=truth,
        unknown=unknown,
        predictions={
            name: _prediction(row, labels.array, image, found.classes, classes)
            for name, row in files.items()
            for labels, found in [of_network[name]]
        },
        classes=classes,
        affine=image.affine,
        spacing_mm=image.spacing_mm,
        annotated=tuple(organ for organ in card.annotated_in(case.name) if organ in classes),
        scored={name: tuple(rows.index) for name, rows in shown.rows.items()},
    )


def draw_case(case: CaseVolumes) -> bytes:
    """Draw an axial and a coronal slice of it.

    Returns:
        A PNG file, see `partialseg.report.pictures.overlay_picture`.
    """
    return overlay_picture(
        case.image, case.truth, case.predictions, case.spacing_mm, case.classes, case.unknown
    )


def _truth(case: RawCase, card: Card, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    _, values, _ = read_truth(case, card, classes)
    table = prepared_values(card, classes)
    annotated = [index for index, organ in enumerate(classes) if organ in card.annotated_in(case.name)]
    truth = np.where(np.isin(values, annotated), values, 0).astype(np.uint8)
    # Several organs, but neither background nor "ignored": a kidney whose side is not known.
    return truth, ((table[:, 0] == 0) & (table.sum(axis=1) > 1))[values]


def _given_classes(row: pd.Series) -> Given:
    """The classes that `evaluate` was given, if it was."""
    text = row.get("classes")
    return checked_classes(text) if isinstance(text, str) and text else None


def _prediction(
    row: pd.Series, labels: np.ndarray, image: Volume, own_classes: tuple[str, ...], classes: tuple[str, ...]
) -> np.ndarray:
    _check_shape(row["prediction"], labels, image, "evaluate again")
    # The networks may list their classes in different orders.
    return np.array([classes.index(organ) for organ in own_classes], dtype=np.uint8)[labels]


def _check_shape(path: str | Path, labels: np.ndarray, image: Volume, remedy: str) -> None:
    if labels.shape != image.array.shape:
        problem = f"has shape {labels.shape} (z, y, x), the image {image.array.shape}"
        raise DataError(path, problem, remedy)
