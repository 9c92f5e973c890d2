"""Raw scans where prepared cases are expected, and the other way round: the error says what was mistaken for what."""

import json
import shutil
from pathlib import Path

import pytest

from partialseg.data.cards import read_card
from partialseg.data.folder_kinds import check_is_not_prepared, first_scan, prepared_around
from partialseg.data.prepare import list_raw_cases
from partialseg.data.prepared import read_prepared
from partialseg.errors import DataError
from partialseg.evaluation.tables import evaluate
from partialseg.inference.scans import list_scans


def test_raw_scans_are_told_with_the_command_that_prepares_them(tiny_raw):
    with pytest.raises(DataError, match="looks like raw scans") as raised:
        read_prepared(tiny_raw)
    assert f"`partialseg prepare CARD... --raw {tiny_raw} --out PREPARED`" in raised.value.remedy


def test_the_folder_above_or_below_the_prepared_one_names_it(tiny_prepared, tmp_path):
    for inside in ("btcv", "btcv/img0001"):
        with pytest.raises(DataError, match="is a part of prepared data") as raised:
            read_prepared(tiny_prepared / inside)
        assert raised.value.remedy == f"give {tiny_prepared}"
    (tmp_path / "prepared").mkdir()
    shutil.copy(tiny_prepared / "manifest.json", tmp_path / "prepared")
    with pytest.raises(DataError, match=f"one in a folder below; give {tmp_path / 'prepared'}"):
        read_prepared(tmp_path)


@pytest.mark.parametrize("inside", [".", "btcv", "btcv/img0001"])
def test_prepared_cases_are_no_raw_scans(tiny_prepared, tmp_path, inside):
    given, card = tiny_prepared / inside, read_card("btcv")
    with pytest.raises(DataError, match=r"holds prepared cases.* expected raw scans"):
        list_raw_cases([card], given)
    with pytest.raises(DataError, match=r"holds prepared cases.* expected the raw dataset"):
        evaluate(tmp_path, given, card, tmp_path / "out")
    for of_card in (None, card):
        problems = []
        assert list_scans([given], of_card, None, problems, []) == []
        assert [problem.problem.split(",")[-1] for problem in problems] == [" expected scans"]


def test_what_is_not_there_is_no_part_of_prepared_data(tiny_prepared, monkeypatch):
    monkeypatch.chdir(tiny_prepared)
    problems = []
    assert list_scans([tiny_prepared / "btcv" / "nowhere", "nowhere"], None, None, problems, []) == []
    assert [problem.problem for problem in problems] == ["there is no such file or folder"] * 2
    with pytest.raises(DataError, match=r"nowhere/manifest\.json: there is no manifest"):
        read_prepared("nowhere")


def test_a_place_of_other_files_is_not_offered_for_prepared_cases(tmp_path):
    (tmp_path / "thesis.tex").touch()
    for given, what in ((tmp_path, "a folder of other files"), (tmp_path / "thesis.tex", "a file")):
        with pytest.raises(DataError, match=f"is {what}, expected prepared cases") as raised:
            read_prepared(given)
        assert raised.value.remedy == "give PREPARED of `partialseg prepare CARD... --raw DIR --out PREPARED`"
    Path(tmp_path / "one" / "case").mkdir(parents=True)
    (tmp_path / "one" / "case" / "case.json").touch()  # of a preparation that was killed
    with pytest.raises(DataError, match=f"there is no manifest; run .* --out {tmp_path}`"):
        read_prepared(tmp_path)


def test_prepared_cases_are_no_predictions(tiny_raw, tiny_prepared, tmp_path):
    with pytest.raises(DataError, match="holds prepared cases, expected predictions"):
        evaluate(tiny_prepared, tiny_raw, read_card("btcv"), tmp_path / "out")


def test_scans_beside_prepared_cases_are_not_taken_for_these(tiny_prepared, tmp_path):
    shutil.copy(tiny_prepared / "manifest.json", tmp_path)
    (tmp_path / "scans").mkdir()
    scans = tmp_path / "scans"
    with pytest.raises(DataError, match="holds prepared cases"):
        check_is_not_prepared(scans, "scans", "")
    (scans / "a.nii.gz").touch()
    check_is_not_prepared(scans, "scans", "")


def test_only_a_manifest_of_cases_makes_a_folder_prepared(tmp_path):
    for content in ("[]", "{", json.dumps({"cases": []})):
        (tmp_path / "manifest.json").write_text(content)
        assert prepared_around(tmp_path) is None


def test_the_first_scan_is_found_below_and_not_among_hidden_files(tmp_path):
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "a.nii.gz").touch()
    assert first_scan(tmp_path) is None
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "one" / "two" / "I0001").write_bytes(bytes(128) + b"DICM")
    assert first_scan(tmp_path) == tmp_path / "one" / "two" / "I0001"
