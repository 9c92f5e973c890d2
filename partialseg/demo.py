"""The whole way on embedded data: phantom scans in, a trained and scored network and a report out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from partialseg.data.cards import Card, read_card
from partialseg.data.phantom import write_phantom
from partialseg.data.prepare import prepare
from partialseg.errors import DataError
from partialseg.evaluation.tables import compare, evaluate
from partialseg.files import write_json
from partialseg.inference.predict import predict
from partialseg.progress import console
from partialseg.report.folders import report_run
from partialseg.training.config import TrainingConfig, read_config
from partialseg.training.runs import Run
from partialseg.training.trainer import train

CARDS = ("btcv", "msd_liver", "msd_spleen", "msd_pancreas", "kits19")

#: Coarser than the paper's 3 x 1.5 x 1.5 mm, so that a patch sees the surroundings of an organ within minutes.
SPACING_MM = (6.0, 4.0, 4.0)

#: More test cases than the cards ask for: the phantom datasets are small.
TEST_SHARE = 1 / 3

F_ALONE, F_AND_P = "F alone", "F ∪ P1…P4"


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        table: Organ × dataset: Dice and HD95 of both networks.
        report: The HTML report.
    """

    table: pd.DataFrame
    report: Path


def demo(out: str | Path, preset: str = "demo", seed: int = 0) -> DemoResult:
    """Go the whole way, once with F alone and once with all five datasets, with the same budget.

    Both networks begin with the same first stage, as in section 4.3 of the paper; the second stage of one
    draws from F again, that of the other from all datasets, with the same number of patches.

    Args:
        out: Folder for everything that is made.
        preset: "demo" (minutes) or "tiny" (seconds; learns next to nothing).
        seed: Of the phantom, the weights and the patches.

    Returns:
        The table and the report.

    Raises:
        DataError: If `out` holds a demo with another preset or seed.
    """
    out = Path(out)
    cards = [_with_test_share(read_card(name), TEST_SHARE) for name in CARDS]
    _write_phantom_once(out / "raw", preset, seed)
    prepared = prepare(cards, out / "raw", out / "prepared", spacing_mm=SPACING_MM)
    _raise_first(prepared.problems)
    runs = train_both(read_config(preset).model_copy(update={"seed": seed}), out / "prepared", out / "runs")
    scores = {name: _score(name, run, cards, out) for name, run in runs.items()}
    write_json(
        out / "study.json",
        {
            "title": "Demo: F alone against F ∪ P1…P4 on phantom CT",
            "networks": {
                name: {
                    "run": str(run.folder.relative_to(out)),
                    "scores": [f"scores/{run.folder.name}/{card.name}/scores.csv" for card in cards],
                }
                for name, run in runs.items()
            },
        },
    )
    return DemoResult(compare(scores), report_run(out))


def train_both(config: TrainingConfig, prepared: Path, runs: Path) -> dict[str, Run]:
    """Train the two networks of the comparison from a config with a first stage on F and a second on all."""
    first_stage, second_stage = config.stages

    def run_one(folder: str, stages: tuple, start_from: Run | None) -> Run:
        console.print(f"[bold]training {folder}[/bold]")
        named = config.model_copy(update={"name": f"{config.name}_{folder}", "stages": stages})
        return train(named, prepared, runs / folder, start_from=start_from)

    first = run_one("first_stage", (first_stage,), None)
    num_datasets = len(first.datasets)
    same_budget = second_stage.model_copy(
        update={
            "name": "F alone",
            "datasets": "full",
            "patches_per_dataset": second_stage.patches_per_dataset * num_datasets,
        }
    )
    return {
        F_ALONE: run_one("f_alone", (same_budget,), first),
        F_AND_P: run_one("f_and_p", (second_stage,), first),
    }


def _score(name: str, run: Run, cards: list[Card], out: Path) -> pd.DataFrame:
    """Predict and evaluate the test cases of every dataset."""
    tables = []
    for card in cards:
        predictions = out / "predictions" / run.folder.name / card.name
        console.print(f"[bold]{name}[/bold]: predicting and scoring the test cases of {card.name}")
        _raise_first(predict(run, [out / "raw"], predictions, card=card, split="test").problems)
        scores = out / "scores" / run.folder.name / card.name
        result = evaluate(predictions, out / "raw", card, scores, split="test")
        _raise_first(result.problems)
        tables.append(result.scores)
    return pd.concat(tables, ignore_index=True)


def _write_phantom_once(raw: Path, preset: str, seed: int) -> None:
    """Keep the scans of an earlier call, so that nothing is prepared or trained twice."""
    record = raw / "phantom.json"
    if not record.is_file():
        write_phantom(raw, preset, seed)
        return
    earlier = json.loads(record.read_text(encoding="utf-8"))
    if (earlier["preset"], earlier["seed"]) != (preset, seed):
        raise DataError(
            raw.parent,
            f"holds a demo of preset {earlier['preset']} and seed {earlier['seed']}, not {preset} and {seed}",
            "give another folder, or delete this one",
        )


def _with_test_share(card: Card, share: float) -> Card:
    return card.model_copy(update={"splits": card.splits.model_copy(update={"test": share})})


def _raise_first(problems: list[DataError]) -> None:
    """The demo makes its own data: a problem with them is a fault that nothing should hide."""
    if problems:
        raise problems[0]


def mean_dice(scores: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """Mean over the cells organ × dataset, as the paper's column "All"."""
    return {
        name: float(table.groupby(["dataset", "organ"])["dice"].mean().mean())
        for name, table in scores.items()
    }
