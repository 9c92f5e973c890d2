import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from partialseg.evaluation import difference_plot
from partialseg.evaluation.comparison import compare_runs, comparison_layout, render_comparison
from partialseg.evaluation.score_files import COLUMNS

DICE = np.array([0.80, 0.82, 0.78, 0.90, 0.85, 0.70, 0.88, 0.81])
GAINS = np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08])


def write(make_scores, folder, dice, **settings):
    rows = [
        ("btcv", f"c{i}", "left_kidney", value, 20 * (1 - value) if value else None)
        for i, value in enumerate(dice)
    ]
    texts = dict.fromkeys(["image", "truth", "prediction", "card"], "file")
    scores = make_scores(*rows, **settings).assign(volume_error=0.0, volume_error_ml=0.0, **texts)
    folder.mkdir(parents=True)
    scores[list(COLUMNS)].to_csv(folder / "scores.csv", index=False)
    return folder


@pytest.fixture
def runs(make_scores, tmp_path):
    """B is better in every case but the last, which it misses; one case is in A alone."""
    better = np.where(np.arange(8) < 7, DICE + GAINS, 0)
    return (
        write(make_scores, tmp_path / "plain/scores", [*DICE, 0.5]),
        write(make_scores, tmp_path / "marginal/scores", better),
    )


def test_all_files_say_the_same(runs, tmp_path):
    paired, names = compare_runs(*runs, tmp_path / "out")
    assert names == ("plain", "marginal")
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        *("comparison.csv", "comparison.json", "comparison.md", "comparison.png", "pairs.csv"),
    }
    content = json.loads((out / "comparison.json").read_text())
    assert content["b"] == {"name": "marginal", "scores": str(runs[1])}
    tests = pd.read_csv(out / "comparison.csv")
    assert tests["p"].tolist() == pytest.approx([row["p"] for row in content["tests"]], nan_ok=True)
    assert tests["verdict"].tolist() == paired.tests["verdict"].tolist()
    pairs = pd.read_csv(out / "pairs.csv")
    assert len(pairs) == 8
    for table in (tests, pairs):
        settings = table[["hd95_definition", "nsd_tolerance_mm"]].drop_duplicates()
        assert settings.to_numpy().tolist() == [["directed_max", 2.0]]
    assert content["outcomes"][0]["missed_b"] == 1
    text = (out / "comparison.md").read_text()
    assert text.startswith("# marginal against plain\n")
    assert "| left kidney ∈ btcv | 7 | 1 |" in text
    assert "**marginal better**" in text
    assert "| btcv | c7 | left kidney | 0.810 | missed | -0.810 |" in text
    assert "btcv: cases in plain alone, not compared: c8" in text
    assert "larger of the two directed 95th percentiles" in text


def test_the_picture_is_the_same_each_time(runs, tmp_path):
    for name in ("one", "two"):
        compare_runs(*runs, tmp_path / name)
    first, second = ((tmp_path / name / "comparison.png").read_bytes() for name in ("one", "two"))
    assert first == second
    picture = np.asarray(Image.open(io.BytesIO(first)).convert("RGB")).reshape(-1, 3)
    blue = (picture == (0x00, 0x72, 0xB2)).all(axis=1)
    assert blue.sum() > 100  # HD95 of seven cases: better


def test_of_many_organs_those_with_the_smallest_p_are_drawn(monkeypatch, runs, tmp_path):
    paired, _ = compare_runs(*runs, tmp_path / "out")
    tests = pd.concat(
        [paired.tests.assign(organ=f"organ_{place}", p=p) for place, p in enumerate((0.3, 0.1, np.nan, 0.2))]
    )
    monkeypatch.setattr(difference_plot, "MAX_ROWS", 2)
    assert difference_plot._drawn(tests)["organ"].unique().tolist() == ["organ_1", "organ_3"]


def test_in_brief_what_is_more_than_chance_is_bold(runs, tmp_path):
    paired, names = compare_runs(*runs, tmp_path / "out")
    row = comparison_layout(paired, "hd95_mm", names, brief=True).rows[0]
    assert [cell.text for cell in row if cell.best] == ["marginal"]
    assert not any(cell.best for cell in comparison_layout(paired, "dice", names, brief=True).rows[0])
    assert [table.row_count for table in render_comparison(paired, names)] == [1, 1]


def test_runs_may_be_called_as_the_columns_or_each_other_are(runs, tmp_path):
    paired, _ = compare_runs(*runs, tmp_path / "out", ("B", "A"))
    text = (tmp_path / "out/comparison.md").read_text()
    assert "**A better**" in text
    assert "cases in B alone, not compared: c8" in text
    expected = [[cell.text for cell in row] for row in comparison_layout(paired, "dice", ("one", "two")).rows]
    arranged = comparison_layout(paired, "dice", ("n", "p"))
    assert [[cell.text for cell in row] for row in arranged.rows] == expected
    assert arranged.headers[:5] == ["organ ∈ dataset", "n", "left out", "n", "p"]


def test_runs_with_other_settings_are_refused_by_name(make_scores, runs, tmp_path):
    other = write(make_scores, tmp_path / "pooled", DICE, hd95_definition="pooled")
    with pytest.raises(ValueError, match="mix hd95_definition directed_max, pooled") as error:
        compare_runs(runs[0], other, tmp_path / "out")
    assert str(error.value).startswith(f"{other}: cannot be compared with {runs[0]}")
    assert not (tmp_path / "out").exists()
