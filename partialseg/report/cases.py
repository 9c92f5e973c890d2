"""Which cases a report shows: of each dataset a typical one and the worst, and the lowest scores of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from partialseg.data.cards import RawCase, read_card
from partialseg.data.classes import class_names
from partialseg.data.label_files import with_missing_masks
from partialseg.data.relabel import prepared_values
from partialseg.data.volumes import read_image, read_label
from partialseg.errors import DataError
from partialseg.evaluation.tables import prediction_classes, read_truth
from partialseg.report.pictures import overlay_picture


@dataclass(frozen=True)
class ShownCase:
    """A case to show.

    Attributes:
        dataset, case: Its names.
        why: Why it was chosen, in words.
        rows: For each network that has scores of it, these scores, indexed by organ.
    """

    dataset: str
    case: str
    why: str
    rows: dict[str, pd.DataFrame]


def choose_cases(networks: Mapping[str, pd.DataFrame], per_dataset: int = 2) -> list[ShownCase]:
    """Choose what to show of each dataset: the typical case, then the worst ones, by the last network's Dice.

    Args:
        networks: For each network its scores, as `partialseg.evaluation.evaluate` makes them.
        per_dataset: At most so many cases of each dataset.

    Returns:
        The cases, dataset by dataset.
    """
    chosen = []
    datasets = dict.fromkeys(dataset for scores in networks.values() for dataset in scores["dataset"])
    for dataset in datasets:
        of = {name: scores[scores["dataset"] == dataset] for name, scores in networks.items()}
        last = [name for name, scores in of.items() if len(scores)][-1]
        # A case in which nothing is annotated and nothing was found has no Dice; it comes last.
        ranked = of[last].groupby("case")["dice"].mean().sort_values(kind="stable").index.tolist()
        typical = ranked[len(ranked) // 2]
        worst = [case for case in ranked if case != typical]
        named = [(typical, f"Typical: the median Dice of {last}" if worst else "The only case")]
        named += [
            (case, f"The lowest Dice of {last}" if not i else f"Low Dice of {last}")
            for i, case in enumerate(worst)
        ]
        for case, why in named[:per_dataset]:
            rows = {name: scores[scores["case"] == case].set_index("organ") for name, scores in of.items()}
            chosen.append(
                ShownCase(dataset, case, why, {name: found for name, found in rows.items() if len(found)})
            )
    return chosen


def draw_case(shown: ShownCase) -> bytes:
    """Read a case's scan, truth and predictions again and draw them.

    Returns:
        A PNG file, see `partialseg.report.pictures.overlay_picture`.

    Raises:
        DataError: If a file is missing or not as it was when it was scored.
    """
    files = {name: rows.iloc[0] for name, rows in shown.rows.items()}
    first = next(iter(files.values()))
    of_network = {name: prediction_classes(Path(row["prediction"])) for name, row in files.items()}
    organs = dict.fromkeys(organ for classes in of_network.values() for organ in classes[1:])
    classes = class_names(list(organs))
    card = read_card(first["card"])
    image = read_image(first["image"])
    case = RawCase(card.name, str(first["case"]), Path(first["image"]), Path(first["truth"]))
    card = with_missing_masks(card, [case])
    _, values, _ = read_truth(case, card, classes)
    predictions = {}
    for name, row in files.items():
        labels = read_label(row["prediction"]).array
        if labels.shape != image.array.shape:
            problem = f"has shape {labels.shape} (z, y, x), the image {image.array.shape}"
            raise DataError(row["prediction"], problem, "evaluate again")
        # The networks may list their classes in different orders.
        predictions[name] = np.array([classes.index(organ) for organ in of_network[name]], dtype=np.uint8)[
            labels
        ]
    table = prepared_values(card, classes)
    annotated = [index for index, organ in enumerate(classes) if organ in card.annotated_in(case.name)]
    truth = np.where(np.isin(values, annotated), values, 0).astype(np.uint8)
    # Several organs, but neither background nor "ignored": a kidney whose side is not known.
    unknown = ((table[:, 0] == 0) & (table.sum(axis=1) > 1))[values]
    return overlay_picture(image.array, truth, predictions, image.spacing_mm, classes, unknown)


def worst_scores(networks: Mapping[str, pd.DataFrame], count: int = 10) -> pd.DataFrame:
    """The lowest Dice over all networks, cases and organs, lowest first.

    Returns:
        At most `count` rows with the columns `network`, `dataset`, `case`, `organ`, `dice`, `hd95_mm`, `outcome`.
    """
    frames = [scores.assign(network=name) for name, scores in networks.items()]
    everything = pd.concat(frames, ignore_index=True).dropna(subset="dice")
    columns = ["network", "dataset", "case", "organ", "dice", "hd95_mm", "outcome"]
    return everything.sort_values("dice", kind="stable")[columns].head(count).reset_index(drop=True)
