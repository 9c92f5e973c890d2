import json
import sys

import pandas as pd
import pytest

from partialseg.cli import main
from partialseg.errors import DataError
from partialseg.training.config import read_config

DODNET = "DoDNet's dynamic head, masked sigmoid"


@pytest.fixture(scope="module")
def config():
    """The tiny config, shorter still."""
    tiny = read_config("tiny")
    short = {"epochs": 1, "patches_per_dataset": 2}
    return tiny.model_copy(update={"stages": tuple(stage.model_copy(update=short) for stage in tiny.stages)})


def command(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["partialseg", "study", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.slow
def test_networks_are_trained_scored_and_tabulated_once(tiny_raw, config, tmp_path):
    from partialseg.study.runner import run_study

    settings = {"raw": tiny_raw, "config": config, "spacing_mm": (6, 6, 6)}
    only = ["f-24-0", "f-14-10"]
    result = run_study("table6", tmp_path, only=only, **settings)
    assert not result.problems
    assert result.missing == ["f-19-5", "f-9-15", "f-4-20"]
    table = pd.read_csv(tmp_path / "table.csv")
    assert list(table["network"].unique()) == ["24/00", "14/10"]
    assert set(table["dataset"].dropna()) == {"btcv"}
    assert len(table) == 2 * (5 + 1)
    study = json.loads((tmp_path / "study.json").read_text())
    assert study["networks"]["14/10"]["run"] == "runs/f-14-10"
    assert any("14/10: cases with all organs: 1, with one: 1" in note for note in study["notes"])
    assert "14/10" in (tmp_path / "report.html").read_text()
    run = json.loads((tmp_path / "runs" / "f-14-10" / "run.json").read_text())
    assert len(run["datasets"]) == 2

    kept = [*tmp_path.glob("runs/*/model.keras"), *tmp_path.glob("predictions/**/*.nii.gz")]
    kept += tmp_path.glob("scores/**/scores.csv")
    assert len(kept) == 2 + 2 + 2
    before = [path.stat().st_mtime_ns for path in kept]
    again = run_study("table6", tmp_path, only=only, **settings)
    assert [path.stat().st_mtime_ns for path in kept] == before
    pd.testing.assert_frame_equal(again.table, result.table)

    with pytest.raises(DataError, match="begun with seed 0, now it is 1"):
        run_study("table6", tmp_path, only=only, seed=1, **settings)


@pytest.mark.slow
def test_a_network_trained_again_is_predicted_again(tiny_raw, config, tmp_path):
    from partialseg.study.runner import run_study

    def run(seed):
        own = config.model_copy(
            update={"optimizer": config.optimizer.model_copy(update={"learning_rate": seed})}
        )
        settings = {"raw": tiny_raw, "config": own, "spacing_mm": (6, 6, 6)}
        return run_study("table3", tmp_path, only=["p2-dice"], **settings)

    result = run(1e-3)
    assert result.report is None  # the row waits for the other organs' networks
    assert "p2-dice" not in result.missing
    assert {path.name for path in (tmp_path / "scores" / "p2-dice").iterdir()} == {"btcv", "msd_spleen"}
    scores = pd.read_csv(tmp_path / "scores" / "p2-dice" / "btcv" / "scores.csv")
    assert set(scores["organ"]) == {"spleen"}
    predictions = sorted((tmp_path / "predictions").glob("**/*.nii.gz"))
    before = [path.stat().st_mtime_ns for path in predictions]
    with pytest.raises(DataError, match="another config"):
        run(1e-2)
    for path in (tmp_path / "runs" / "p2-dice").glob("*.*"):
        path.unlink()
    run(1e-2)
    assert all(path.stat().st_mtime_ns > time for path, time in zip(predictions, before, strict=True))


def test_a_missing_dataset_ends_the_study(tiny_raw, config, tmp_path):
    from partialseg.study.runner import run_study

    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "btcv").symlink_to(tiny_raw / "btcv")
    settings = {"raw": tmp_path / "raw", "config": config, "spacing_mm": (6, 6, 6)}
    with pytest.raises(DataError, match="no case of msd_liver could be prepared for training"):
        run_study("table3", tmp_path / "out", only=["p1-ce"], **settings)


def test_list_prints_networks_and_steps_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(monkeypatch, "table5", "--list", "--raw", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "first-ce+dice: 30,000 steps; no row of its own"
    assert "all-ce+dice+exclusion-1to2: 100,000 steps after first-ce+dice; 1:2" in lines
    assert lines[-1] == "930,000 steps in all"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_table_7_trains_with_other_losses_and_networks_and_says_what_is_compared(tiny_raw, config, tmp_path):
    from partialseg.study.runner import run_study
    from partialseg.training.runs import read_run

    only = ["all-prior-aware", "all-target-adaptive", "all-dynamic-head"]
    result = run_study("table7", tmp_path, raw=tiny_raw, config=config, spacing_mm=(6, 6, 6), only=only)
    assert not result.problems
    assert "all-ce+dice+exclusion-1to2" in result.missing
    assert list(result.table["network"].unique()) == ["PaNN's loss", "PIPO-FAN's loss", DODNET]
    text = (tmp_path / "table.md").read_text()
    assert "are their losses, not the methods" in text
    terms = {name: pd.read_csv(tmp_path / "runs" / name / "terms.csv")["term"] for name in only}
    assert {name: set(found) for name, found in terms.items()} == {
        "all-prior-aware": {"CE", "prior"},
        "all-target-adaptive": {"TAL"},
        "all-dynamic-head": {"BCE", "DC"},
    }
    runs = {name: read_run(tmp_path / "runs" / name) for name in (*only, "first-dynamic-head")}
    assert {name: run.config.network.kind for name, run in runs.items()} == {
        "all-prior-aware": "unet",
        "all-target-adaptive": "unet",
        "all-dynamic-head": "dynamic_head",
        "first-dynamic-head": "dynamic_head",
    }
    assert runs["all-dynamic-head"].started_from == "../first-dynamic-head"
    assert DODNET.partition("'")[0] in (tmp_path / "report.html").read_text()


def test_unknown_networks_and_tables_exit_with_2(monkeypatch, capsys):
    assert command(monkeypatch, "table3", "--only", "p9-ce") == 2
    assert "there is no network p9-ce" in capsys.readouterr().err
    assert command(monkeypatch, "table8") == 2
