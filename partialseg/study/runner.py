"""Runs a study: prepares, trains, predicts, scores and writes the table; what is there already is kept.

OUT/settings.json    what all of it was made with
OUT/raw              the phantom, where no raw data were given
OUT/prepared/<data>  prepared cases, one folder per class list or choice of annotations
OUT/runs/<network>   run folders
OUT/predictions/<network>/<dataset>, OUT/scores/<network>/<dataset>
OUT/study.json, table.csv, table.md, report.html
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import pandas as pd

from partialseg.data.cards import read_card
from partialseg.data.phantom import write_phantom
from partialseg.data.prepare import prepare
from partialseg.data.prepared import Prepared
from partialseg.demo import SPACING_MM as PHANTOM_SPACING_MM
from partialseg.errors import DataError
from partialseg.evaluation.score_files import read_all_scores
from partialseg.files import write_json, write_text
from partialseg.progress import console
from partialseg.report.folders import report_run
from partialseg.study.annotation import keep_single_organs
from partialseg.study.notes import table_notes
from partialseg.study.plan import (
    METRICS,
    TITLES,
    Network,
    TrainingData,
    choose_networks,
    plan_study,
)
from partialseg.study.scoring import is_scored, score_network
from partialseg.study.table import study_markdown, study_table
from partialseg.training.config import TrainingConfig, read_config
from partialseg.training.memory import estimate_training
from partialseg.training.not_finite import LossIsNotFiniteError
from partialseg.training.runs import Run, read_run
from partialseg.training.trainer import train
from partialseg.wording import counted

PAPER_SPACING_MM = (3.0, 1.5, 1.5)
PHANTOM_PRESET = "demo"


@dataclass
class StudyResult:
    """What a study made.

    Attributes:
        name: "table3" to "table7".
        table: All numbers, see `partialseg.study.table.study_table`; empty while no row is complete.
        report: The HTML report; None while no row is complete.
        missing: Networks that the rest of the table waits for.
        problems: What was wrong with single cases or networks.
    """

    name: str
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    report: Path | None = None
    missing: list[str] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)


def default_config(raw: str | Path | None) -> str:
    """The config that a study takes unless told otherwise: that of the demo for phantom data."""
    return "demo" if raw is None else "paper"


def run_study(
    name: str,
    out: str | Path,
    raw: str | Path | None = None,
    config: TrainingConfig | str | Path | None = None,
    seed: int = 0,
    spacing_mm: Sequence[float] | None = None,
    only: Collection[str] = (),
) -> StudyResult:
    """Make one table of the paper, or some of its networks.

    Called again, it goes on where it stopped. The folder of one table may be given for another: networks that
    both have are trained once. To share the work, give each machine its own folder and some networks, copy
    their `runs` and `predictions` together, and call once more with all networks.

    Args:
        name: "table3" to "table7".
        out: Folder for everything.
        raw: Folder with the five datasets as downloaded; None makes phantom data.
        config: Network, optimiser and stages; "paper" for raw data and "demo" for the phantom by default.
        seed: Of phantom, weights, patches, and the choice of annotations.
        spacing_mm: Voxel size `(z, y, x)`; the paper's for raw data and the demo's for the phantom by default.
        only: Names of networks; the table then holds the rows that are complete.

    Returns:
        The table, the report, what is missing and what was wrong.

    Raises:
        DataError: If a dataset is missing, the folder belongs to other settings, or the config does not suit a
            study.
        ValueError: If there is no such table or network.
    """
    out, raw = Path(out), None if raw is None else Path(raw)
    config = config if isinstance(config, TrainingConfig) else read_config(config or default_config(raw))
    config = config.model_copy(update={"seed": seed})
    networks = plan_study(name, config)
    chosen = choose_networks(networks, only)
    spacing = tuple(map(float, spacing_mm or (PHANTOM_SPACING_MM if raw is None else PAPER_SPACING_MM)))
    _check_settings(out, raw, seed, spacing)
    study = _Study(out, _raw_data(out, raw, seed), config, spacing)
    for number, network in enumerate(chosen, 1):
        own = config.model_copy(update={"network": network.network(config)})
        memory = estimate_training(own, 1 + len(network.data.organs)).gigabytes
        console.print(f"[bold]{number}/{len(chosen)} {network.name}[/bold], about {memory:.1f} GB")
        study.make(network)
        keras.backend.clear_session()  # dozens of networks in one process would fill the memory
    return _write(name, networks, study)


class _Study:
    """Makes networks one by one; remembers what is prepared and what was wrong."""

    def __init__(
        self, out: Path, raw: Path, config: TrainingConfig, spacing_mm: tuple[float, float, float]
    ) -> None:
        self.out, self.raw, self.config, self.spacing_mm = out, raw, config, spacing_mm
        self.problems: list[DataError] = []
        self._prepared: dict[str, Prepared] = {}

    def make(self, network: Network) -> None:
        """Train, predict and score one network."""
        run = self._train(network)
        if run is None or network.row is None:
            return
        for card in network.scored_on:
            predictions = self.out / "predictions" / network.name / card
            self._note(score_network(run, read_card(card), self.raw, predictions, self.scores(network, card)))

    def scores(self, network: Network, card: str) -> Path:
        """Where the scores of a network on one dataset are."""
        return self.out / "scores" / network.name / card

    def is_scored(self, network: Network) -> bool:
        """Whether a network is trained and scored on all its datasets."""
        folder = self.out / "runs" / network.name
        if not (folder / "model.keras").is_file():
            return False
        run = read_run(folder)
        return all(is_scored(run, self.scores(network, card)) for card in network.scored_on)

    def _train(self, network: Network) -> Run | None:
        """The finished run; None where it, or the one that it starts from, diverged."""
        start = None
        if network.start_from is not None:
            start = read_run(self.out / "runs" / network.start_from)
            if not start.model_path.is_file():
                return None
        prepared = self._prepare(network.data)
        config = network.training_config(self.config, prepared)
        try:
            return train(config, prepared, self.out / "runs" / network.name, start_from=start)
        except LossIsNotFiniteError as error:
            self._note([error])
            return None

    def _prepare(self, data: TrainingData) -> Prepared:
        if data.name not in self._prepared:
            if data.single_organ or len(data.cards) == 1:
                full = self._prepare_cards(data, self.out / "prepared" / data.cards[0])
                folder = self.out / "prepared" / data.name
                prepared = keep_single_organs(full, folder, data.single_organ, self.config.seed)
            else:
                prepared = self._prepare_cards(data, self.out / "prepared" / data.name)
            self._prepared[data.name] = prepared
        return self._prepared[data.name]

    def _prepare_cards(self, data: TrainingData, folder: Path) -> Prepared:
        """Prepare the cases of some cards; single cases may be wrong, a whole dataset may not be missing."""
        cards = [read_card(card) for card in data.cards]
        result = prepare(cards, self.raw, folder, self.spacing_mm, data.organs)
        missing = [card.name for card in cards if not result.prepared.select(card.name, "train")]
        if missing:
            why = f" ({result.problems[0]})" if result.problems else ""
            problem = f"no case of {', '.join(missing)} could be prepared for training{why}"
            raise DataError(self.raw, problem, f"give a folder that holds {', '.join(data.cards)}")
        self._note(result.problems)
        return result.prepared

    def _note(self, problems: Sequence[DataError]) -> None:
        """Keep problems, each once: the same case is read for many networks."""
        known = {str(problem) for problem in self.problems}
        self.problems += [problem for problem in problems if str(problem) not in known]


def _check_settings(out: Path, raw: Path | None, seed: int, spacing_mm: tuple[float, ...]) -> None:
    """Networks and scores that are kept must be of the same data; write down which, or compare."""
    path = out / "settings.json"
    settings = {
        "raw": None if raw is None else str(raw.resolve()),
        "seed": seed,
        "spacing_mm": list(spacing_mm),
    }
    if not path.is_file():
        write_json(path, settings)
        return
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for key, value in settings.items():
        if earlier.get(key) != value:
            problem = f"the study was begun with {key} {earlier.get(key)}, now it is {value}"
            raise DataError(path, problem, "give the same to go on, or another --out")


def _raw_data(out: Path, raw: Path | None, seed: int) -> Path:
    if raw is not None:
        return raw
    phantom = out / "raw"
    if not (phantom / "phantom.json").is_file():  # written last
        write_phantom(phantom, PHANTOM_PRESET, seed)
    return phantom


def _write(name: str, networks: Sequence[Network], study: _Study) -> StudyResult:
    """Write the table of the rows that are complete."""
    rows: dict[str, list[Network]] = {}
    for network in networks:
        if network.row is not None:
            rows.setdefault(network.row, []).append(network)
    missing = [network.name for row in rows.values() for network in row if not study.is_scored(network)]
    complete = {row: nets for row, nets in rows.items() if not any(net.name in missing for net in nets)}
    result = StudyResult(name, missing=missing, problems=study.problems)
    if not complete:
        return result
    folders = {
        row: [study.scores(network, card) for network in nets for card in network.scored_on]
        for row, nets in complete.items()
    }
    result.table = study_table({row: read_all_scores(*paths) for row, paths in folders.items()})
    notes = _notes(name, networks, study, missing)
    write_text(study.out / "table.csv", result.table.to_csv(index=False))
    write_text(study.out / "table.md", study_markdown(TITLES[name], result.table, METRICS[name], notes))
    entries = {}
    for row, nets in complete.items():
        runs = [f"runs/{network.name}" for network in nets]
        scores = [str((path / "scores.csv").relative_to(study.out)) for path in folders[row]]
        # A row of several networks, organ by organ, has no run of its own.
        entries[row] = {"run": runs[0] if len(runs) == 1 else None, "runs": runs, "scores": scores}
    write_json(
        study.out / "study.json",
        {"study": name, "title": TITLES[name], "networks": entries, "notes": notes, "missing": missing},
    )
    result.report = report_run(study.out)
    return result


def _notes(name: str, networks: Sequence[Network], study: _Study, missing: Sequence[str]) -> list[str]:
    config = study.config
    notes = [
        f"Data: {study.raw}; voxels of {' x '.join(f'{size:g}' for size in study.spacing_mm)} mm (z, y, x); "
        f"config {config.name}; seed {config.seed}; the same number of steps for each network."
    ]
    notes += table_notes(name, networks)
    if name == "table6":
        notes += [note for network in networks if (note := _annotation_note(network, study.out))]
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        notes.append(f"Left out are rows that wait for {counted(len(missing), 'network')} ({names}).")
    return notes


def _annotation_note(network: Network, out: Path) -> str | None:
    """How many cases the row has here: 19/05 are the paper's numbers, of 24 cases."""
    manifest = out / "prepared" / network.data.name / "manifest.json"
    if not manifest.is_file():
        return None
    content = json.loads(manifest.read_text(encoding="utf-8"))
    train_cases = [case["dataset"] for case in content["cases"] if case["split"] == "train"]
    full = train_cases.count(network.data.cards[0])
    single = len(train_cases) - full
    organs = full * len(network.data.organs) + single
    return f"{network.row}: cases with all organs: {full}, with one: {single}; annotated organs: {organs}."
