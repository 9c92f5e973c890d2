from types import SimpleNamespace

import pytest

from partialseg.data.cards import read_card
from partialseg.errors import DataError
from partialseg.files import write_json
from partialseg.study import scoring


@pytest.fixture
def run(tmp_path):
    model_path = tmp_path / "network" / "model.keras"
    model_path.parent.mkdir()
    model_path.write_bytes(b"weights")
    return SimpleNamespace(folder=model_path.parent, model_path=model_path, load_model=lambda: None)


@pytest.fixture
def score_with_unreadable_scans(run, tiny_raw, tmp_path, monkeypatch):
    def refuse(model, run, scan, label_map):
        raise DataError(scan, "is damaged", "download it again")

    monkeypatch.setattr(scoring, "predict_scan", refuse)
    return lambda: scoring.score_network(
        run, read_card("msd_spleen"), tiny_raw, tmp_path / "predictions", tmp_path / "scores"
    )


def test_where_no_scan_can_be_read_the_problems_are_told_and_nothing_is_scored(
    score_with_unreadable_scans, run, tmp_path
):
    problems = score_with_unreadable_scans()
    assert problems
    assert all("is damaged" in str(problem) for problem in problems)
    assert not scoring.is_scored(run, tmp_path / "scores")


def test_predictions_of_another_network_do_not_stay(score_with_unreadable_scans, tmp_path):
    predictions = tmp_path / "predictions"
    write_json(predictions / "network.json", {"name": "network", "sha256": "of other weights"})
    write_json(predictions / "spleen_3.json", {})
    (predictions / "spleen_3.nii.gz").write_bytes(b"")
    score_with_unreadable_scans()
    assert [path.name for path in predictions.iterdir()] == ["network.json"]
