"""How a run folder is opened again: what must be as it was."""

import json
import re
from dataclasses import replace

import pytest

from partialseg.data.prepared import read_prepared
from partialseg.errors import DataError
from partialseg.training import read_config, read_run
from partialseg.training.beginning import begin


@pytest.fixture
def prepared(tiny_prepared):
    return read_prepared(tiny_prepared)


def begin_again(prepared, out):
    return begin(read_config("tiny"), prepared, out, None, None)[2]


def test_a_run_lists_its_cases_and_goes_on_with_the_same_in_any_order(prepared, tmp_path):
    run = begin_again(prepared, tmp_path)
    listed = {
        (dataset, name, split)
        for split, datasets in run.cases.items()
        for dataset, names in datasets.items()
        for name in names
    }
    assert listed == {(case.dataset, case.name, case.split) for case in prepared.cases}
    assert read_run(tmp_path) == run
    assert begin_again(replace(prepared, cases=prepared.cases[::-1]), tmp_path) == run


def test_a_run_does_not_go_on_with_a_case_added_dropped_or_moved_to_another_split(prepared, tmp_path):
    first, second = (prepared.select(name, "train")[0] for name in ("btcv", "msd_liver"))
    fewer = replace(prepared, cases=tuple(case for case in prepared.cases if case not in (first, second)))
    moved = replace(prepared, cases=(*fewer.cases, replace(first, split="test"), second))
    two = f"btcv/{first.name}, msd_liver/{second.name}"
    for number, (begun, now, words) in enumerate(
        (
            (prepared, fewer, f"2 cases dropped ({two})"),
            (fewer, prepared, f"2 cases added ({two})"),
            (prepared, moved, f"1 case in another split (btcv/{first.name})"),
        )
    ):
        out = tmp_path / str(number)
        begin_again(begun, out)
        before = (out / "run.json").read_bytes()
        with pytest.raises(DataError, match=f"run with other cases: {re.escape(words)}; give the same cases"):
            begin_again(now, out)
        assert (out / "run.json").read_bytes() == before


def test_a_run_goes_on_where_test_cases_were_added_or_dropped(prepared, tmp_path):
    begin_again(prepared, tmp_path)
    training = tuple(case for case in prepared.cases if case.split == "train")
    assert len(training) < len(prepared.cases)
    begin_again(replace(prepared, cases=training), tmp_path)


def test_a_run_of_an_earlier_version_which_did_not_list_its_cases_goes_on(prepared, tmp_path):
    begin_again(prepared, tmp_path)
    path = tmp_path / "run.json"
    content = json.loads(path.read_text())
    del content["cases"]
    path.write_text(json.dumps(content))
    assert read_run(tmp_path).cases is None
    begin_again(replace(prepared, cases=prepared.cases[1:]), tmp_path)
