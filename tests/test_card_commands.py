"""`partialseg card`: what it prints, and how it ends."""

import json

import pytest
from typer.testing import CliRunner

from partialseg.cli import app, main
from partialseg.data.cards import read_card, shipped_cards


@pytest.fixture
def run(monkeypatch):
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, ["card", *map(str, arguments)], env={"COLUMNS": "400"})


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "Task01_Toy" / "dataset.json"
    path.parent.mkdir()
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "Livr", "2": "spleen"},
        "numTraining": 1,
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
    }
    path.write_text(json.dumps(content))
    return path


def test_new_writes_a_card_and_notes_a_misspelt_organ(run, source, tmp_path):
    out = tmp_path / "toy.md"
    result = run("new", source, "--out", out, "--name", "toy_set")
    assert result.exit_code == 0, result.output
    assert read_card(out).name == "toy_set"
    assert f"Card: {out}" in result.output
    assert f"note: {out}: `livr` is no known organ; did you mean liver?" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["new", "nowhere.json", "--out", "x.md"], "no such file or folder"),
        (["show", "nowhere"], "no such data card or card set"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_1(arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["partialseg", "card", *arguments])
    with pytest.raises(SystemExit) as ending:
        main()
    lines = capsys.readouterr().err.strip().splitlines()
    assert ending.value.code == 1
    assert len(lines) == 2
    assert words in lines[0]
    assert lines[1] == "1 problem"
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_call_has_status_2(run):
    assert run("new", "x").exit_code == 2
    assert run("nothing").exit_code == 2


def test_list_names_every_card_and_set(run):
    result = run("list")
    assert result.exit_code == 0
    for name in shipped_cards():
        assert name in result.output
    for words in ("5195", "CC-BY-NC-SA-4.0", "abdomen_15", "prostate_or_uterus"):
        assert words in result.output


@pytest.mark.parametrize(("name", "words"), [("kits19", "# KiTS19"), ("paper", "cards: [btcv")])
def test_show_prints_a_card_or_a_set(run, name, words):
    result = run("show", name)
    assert result.exit_code == 0
    assert words in result.output


@pytest.mark.parametrize("command", ["new", "list", "show"])
def test_help_says_what_goes_in_and_comes_out(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Out:" in result.output
