"""The demo with its smallest preset: the whole way, from no files at all to a table and a report."""

import functools
import re
import shutil
from html.parser import HTMLParser

import keras
import pandas as pd
import pytest
import yaml

from partialseg.data.cards import assign_splits, find_cases, read_card
from partialseg.data.prepare import prepare
from partialseg.demo import CARDS, F_ALONE, F_AND_P, demo, mean_dice
from partialseg.errors import DataError
from partialseg.evaluation import read_scores
from partialseg.training import read_config, read_run
from partialseg.training.config import TrainingConfig

pytestmark = pytest.mark.slow

RUNS = {F_ALONE: "f_alone", F_AND_P: "f_and_p"}
CELLS = [(organ, name) for name in CARDS for organ in read_card(name).annotated]


class Fits:
    """Counts the gradient steps that Keras is asked for."""

    def __init__(self):
        self.steps = []
        self.original = keras.Model.fit

    def __call__(self, model, *arguments, **settings):
        epochs = settings["epochs"] - settings["initial_epoch"]
        self.steps.append(epochs * settings["steps_per_epoch"])
        return self.original(model, *arguments, **settings)


def counted_demo(out, **settings):
    """The demo's result, and the steps of each training that it did."""
    fits = Fits()
    with pytest.MonkeyPatch.context() as patch:
        # Coarser than the demo's voxels, so that the windows of a prediction are few.
        patch.setattr("partialseg.demo.SPACING_MM", (9.0, 6.0, 6.0))
        # Starting further processes takes longer than preparing twelve tiny cases.
        patch.setattr("partialseg.demo.prepare", functools.partial(prepare, jobs=1))
        patch.setattr(keras.Model, "fit", lambda model, *a, **k: fits(model, *a, **k))
        result = demo(out, preset="tiny", **settings)
    return result, fits.steps


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder, result, and the steps of the trainings: first stage, F alone, F and P."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, *counted_demo(out)


def test_table_has_every_annotated_organ_of_every_dataset_for_both_networks(made):
    _, result, _ = made
    rows = list(zip(result.table["organ"], result.table["dataset"], strict=True))
    assert sorted(rows[:-1]) == sorted(CELLS)
    assert rows[-1] == ("all", "")
    for name in RUNS:
        assert result.table[f"{name}: dice_mean"].between(0, 1).all()
        assert (result.table[f"{name}: n"] >= 1).all()
        assert f"{name}: hd95_mm_mean" in result.table


def test_table_is_the_mean_of_the_scores_on_the_test_cases(made):
    out, result, _ = made
    for name, folder in RUNS.items():
        tables = {card: read_scores(out / "scores" / folder / card / "scores.csv") for card in CARDS}
        for card, scores in tables.items():
            cases = assign_splits(read_card(card), [c.name for c in find_cases(read_card(card), out / "raw")])
            assert set(scores["case"]) == {case for case, split in cases.items() if split == "test"}
            means = result.table[result.table["dataset"] == card].set_index("organ")[f"{name}: dice_mean"]
            assert means.to_dict() == pytest.approx(scores.groupby("organ")["dice"].mean().to_dict())
        together = {name: pd.concat(tables.values())}
        assert result.table[f"{name}: dice_mean"].iloc[-1] == pytest.approx(mean_dice(together)[name])


def test_both_networks_begin_alike_and_take_the_same_number_of_steps(made):
    out, _, (first_stage, f_alone, f_and_p) = made
    assert first_stage > 0
    assert f_alone == f_and_p > 0
    lines = {folder: (out / "runs" / folder / "log.csv").read_text().splitlines() for folder in RUNS.values()}
    assert len(lines["f_alone"]) == len(lines["f_and_p"]) > 1


def test_networks_differ_in_the_datasets_of_their_second_stage_alone(made):
    out, _, _ = made
    runs = {name: read_run(out / "runs" / folder) for name, folder in RUNS.items()}
    stages = {name: run.config.stages for name, run in runs.items()}
    assert [stage.datasets for stage in stages[F_ALONE]] == ["full"]
    assert [stage.datasets for stage in stages[F_AND_P]] == ["all"]
    same = {"name", "stages"}
    assert runs[F_ALONE].config.model_dump(exclude=same) == runs[F_AND_P].config.model_dump(exclude=same)
    assert all(set(run.datasets) == set(CARDS) for run in runs.values())


def test_every_run_says_its_whole_config(made):
    out, _, _ = made
    configs = sorted((out / "runs").glob("*/config.yaml"))
    assert [path.parent.name for path in configs] == ["f_alone", "f_and_p", "first_stage"]
    for path in configs:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert set(content) == set(TrainingConfig.model_fields)
        assert read_config(path).model_dump(mode="json") == content
        assert content["network"] == read_config("tiny").model_dump(mode="json")["network"]
        assert (path.parent / "model.keras").is_file()


class References(HTMLParser):
    """All that a page loads or links to, and its images."""

    def __init__(self, text):
        super().__init__()
        self.found, self.images = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.images += tag == "img"
        self.found += [
            value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")
        ]


def test_report_is_one_file_that_needs_no_other(made):
    out, result, _ = made
    assert result.report == out / "report.html"
    text = result.report.read_text(encoding="utf-8")
    references = References(text)
    assert references.images >= len(CARDS)
    assert [found for found in references.found if not found.startswith(("data:", "#"))] == []
    assert not re.search(r"@import|url\((?!['\"]?data:)", text)
    assert all(name in text for name in (F_ALONE, F_AND_P, *CARDS))


def test_a_second_call_trains_nothing_and_says_the_same(made):
    out, first, _ = made
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/model.keras")}
    second, steps = counted_demo(out)
    assert steps == []
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/model.keras")} == before
    assert second.table.equals(first.table)


def test_another_seed_in_the_same_folder_is_refused(made, tmp_path):
    out, _, _ = made
    (tmp_path / "copy" / "raw").mkdir(parents=True)
    shutil.copy(out / "raw" / "phantom.json", tmp_path / "copy" / "raw")
    with pytest.raises(DataError, match="seed 0, not tiny and 1"):
        counted_demo(tmp_path / "copy", seed=1)
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["raw"]
