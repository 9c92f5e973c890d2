import numpy as np
import pandas as pd
import pytest

from partialseg.evaluation.score_files import COLUMNS, columns, read_all_scores, read_scores


@pytest.fixture
def written(scores, tmp_path):
    """Scores of two datasets, a folder for each."""
    texts = dict.fromkeys(["image", "truth", "prediction", "card"], "file")
    whole = scores.assign(volume_error=0.5, volume_error_ml=10.0, **texts)[list(COLUMNS)]
    for dataset, part in whole.groupby("dataset"):
        (tmp_path / "scores" / dataset).mkdir(parents=True)
        part.to_csv(tmp_path / "scores" / dataset / "scores.csv", index=False)
    return tmp_path


def test_a_file_its_folder_and_folders_above_are_read_alike(written):
    one = read_scores(written / "scores/msd/scores.csv")
    assert read_all_scores(written / "scores/msd").equals(one)
    for folder in (written / "scores", written):
        both = read_all_scores(folder)
        assert tuple(both.columns) == COLUMNS
        assert both["case"].tolist() == ["a", "a", "b", "c", "d"]


def test_scores_of_an_earlier_version_have_no_volume_errors(written):
    path = written / "scores/msd/scores.csv"
    pd.read_csv(path).drop(columns=["volume_error", "volume_error_ml"]).to_csv(path, index=False)
    scores = read_scores(path)
    assert tuple(scores.columns) == COLUMNS
    assert np.isnan(scores["volume_error"]).all()


def test_voxels_are_read_where_they_are(written):
    path = written / "scores/msd/scores.csv"
    pd.read_csv(path).assign(hd_voxels=3, hd95_voxels=2, assd_voxels=1).to_csv(path, index=False)
    scores = read_scores(path)
    assert tuple(scores.columns) == columns("voxels")
    assert scores["hd95_voxels"].dtype == float


def test_a_case_that_is_scored_twice_is_refused(written):
    (written / "again").mkdir()
    (written / "again/scores.csv").write_bytes((written / "scores/msd/scores.csv").read_bytes())
    with pytest.raises(ValueError, match="msd, d, liver is scored in another file as well"):
        read_all_scores(written)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"holds no scores\.csv; run `partialseg evaluate` first"):
        read_all_scores(tmp_path)
    with pytest.raises(ValueError, match="no such file of scores"):
        read_all_scores(tmp_path / "nothing.csv")
    (tmp_path / "scores.csv").write_text("dataset,case\nbtcv,a\n")
    with pytest.raises(ValueError, match="lacks the columns organ, dice"):
        read_all_scores(tmp_path)
    with pytest.raises(ValueError, match="unit is 'cm', expected one of mm, voxels"):
        columns("cm")
