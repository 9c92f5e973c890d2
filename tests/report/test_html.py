import html as html_module
import json
import re
from html.parser import HTMLParser

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from partialseg.data.cards import read_card
from partialseg.errors import DataError
from partialseg.evaluation import evaluate, read_scores
from partialseg.evaluation.metrics import HD95_DEFINITIONS
from partialseg.report import NetworkResult, report_run, write_report
from partialseg.report import html as report_html
from partialseg.report import viewer as report_viewer
from partialseg.report.case_volumes import read_case
from partialseg.report.cases import LOWEST_SCORES, choose_cases, worst_scores


class Elements(HTMLParser):
    """Collects what a page refers to, and checks that its elements are closed."""

    VOID = ("meta", "img", "link", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.images, self.links, self.open, self.tables = [], [], [], 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        self.tables += tag == "table"
        self.images += [attributes["src"]] if tag == "img" else []
        self.links += [attributes[name] for name in ("href", "src", "srcset") if name in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def save(path, array_zyx):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array_zyx.T, np.diag([2.0, 2.0, 5.0, 1.0])), path)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two networks scored on three cases of MSD liver; "F alone" misses the last liver. Runs with logs."""
    folder = tmp_path_factory.mktemp("study")
    for case in range(3):
        truth = np.zeros((10, 16, 18), np.uint8)
        truth[3:8, 4:12, 9:16] = 1
        save(folder / f"raw/msd_liver/labelsTr/liver_{case}.nii.gz", truth)
        save(folder / f"raw/msd_liver/imagesTr/liver_{case}.nii.gz", (100 * truth).astype(np.int16))
        save(folder / f"f_alone/predictions/liver_{case}.nii.gz", np.roll(truth, case, 2) * (case < 2))
        save(folder / f"f_and_p/predictions/liver_{case}.nii.gz", truth)
    for name in ("f_alone", "f_and_p"):
        run = folder / name
        evaluate(
            run / "predictions",
            folder / "raw",
            read_card("msd_liver"),
            run / "scores_msd_liver",
            classes="background,liver",
        )
        facts = {"classes": ["background", "liver"], "versions": {"keras": "3.15.1"}}
        (run / "run.json").write_text(json.dumps(facts))
        (run / "config.yaml").write_text("name: <demo> & more\n")
        (run / "log.csv").write_text(
            "stage,epoch,learning_rate,loss,seconds\nF,1,0.001,0.9,3\nF,2,0.001,0.7,3\n"
        )
        (run / "terms.csv").write_text(
            "stage,epoch,dataset,organ,term,value\nF,1,msd_liver,all,mCE,0.9\nF,1,msd_liver,liver,mCE,0.95\n"
            "F,2,msd_liver,all,mCE,0.7\nF,2,msd_liver,liver,mCE,0.75\n"
        )
    networks = {
        "F alone": {"run": "f_alone", "scores": ["f_alone/scores_msd_liver/scores.csv"]},
        "F ∪ P": {"run": "f_and_p", "scores": ["f_and_p/scores_msd_liver/scores.csv"]},
    }
    (folder / "study.json").write_text(json.dumps({"title": "F against F ∪ P", "networks": networks}))
    return folder


def test_a_study_is_one_self_contained_file_with_tables_and_pictures(study):
    path = report_run(study)
    text = path.read_text(encoding="utf-8")
    page = Elements(text)
    assert path == study / "report.html"
    assert len(page.images) == 3 + 2  # the three cases of the dataset, and the curves of two runs
    assert all(image.startswith("data:image/png;base64,iVBOR") for image in page.images)
    assert page.links == page.images
    assert not re.search(r"https?://|url\(|@import", text)
    assert (
        page.tables == 3 + 1 + 3 + 1
    )  # side by side and each network; the cases; one under each picture; the lowest scores
    assert "liver ∈ msd_liver" in text
    assert "<strong>1.000 ±\u00a00.000</strong>" in text  # a narrow cell breaks before the sign alone
    assert len(text) < 3_000_000  # NiiVue is two of them


def test_a_run_reports_its_own_scores_curves_config_and_versions(study):
    text = report_run(study / "f_alone").read_text(encoding="utf-8")
    page = Elements(text)
    assert len(page.images) == 3 + 1
    assert "name: &lt;demo&gt; &amp; more" in text
    assert "keras: 3.15.1" in text
    assert "<td>missed</td>" in text
    lowest = text[text.index('id="worst"') : text.index('id="curves"')]
    assert f"HD95: {HD95_DEFINITIONS['directed_max']}." in html_module.unescape(lowest)
    assert lowest.count("<tr data-shown=") == lowest.count('<td class="quiet">yes</td>') == 3


def test_a_run_without_scores_says_how_to_get_them(study, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    text = report_run(tmp_path).read_text(encoding="utf-8")
    assert "has not been evaluated yet" in text
    assert f"partialseg predict {tmp_path}" in text
    assert Elements(text).images == []


def test_a_picture_whose_file_is_gone_is_left_out_and_said(study):
    scores = read_scores(study / "f_alone/scores_msd_liver/scores.csv")
    scores["prediction"] = scores["prediction"].str.replace("liver_1", "gone")
    path = write_report(study / "gone.html", "title", {"F alone": NetworkResult(scores)})
    text = path.read_text(encoding="utf-8")
    assert len(Elements(text).images) == 2
    assert re.search(r"Left out: .*gone\.nii\.gz", text)


def test_pictures_stop_where_the_file_would_grow_too_large(study, monkeypatch):
    monkeypatch.setattr(report_html, "MAX_PICTURE_BYTES", 10)
    scores = read_scores(study / "f_alone/scores_msd_liver/scores.csv")
    text = write_report(study / "small.html", "t", {"F alone": NetworkResult(scores)}).read_text(
        encoding="utf-8"
    )
    assert Elements(text).images == []
    assert "liver_1: its picture would make this file too large" in text


def test_volumes_stop_where_the_file_would_grow_too_large_and_the_rows_say_so(study, monkeypatch):
    monkeypatch.setattr(report_viewer, "MAX_VOLUME_BYTES", 10)
    scores = read_scores(study / "f_alone/scores_msd_liver/scores.csv")
    text = write_report(study / "small.html", "t", {"F alone": NetworkResult(scores)}).read_text()
    assert "liver_1 in the viewer: the volumes would make this file too large" in text
    assert text.count("not in this file") == 3 + 3, "in the rows of the cases and of the lowest scores"
    assert 'data-shown="' not in re.sub(r"<script.*", "", text, flags=re.DOTALL)
    assert len(Elements(text).images) == 3


def test_scores_without_a_run_are_reported_too(study, tmp_path):
    (tmp_path / "msd").mkdir()
    scores = read_scores(study / "f_alone/scores_msd_liver/scores.csv")
    scores.to_csv(tmp_path / "msd/scores.csv", index=False)
    path = report_run(tmp_path / "msd")
    assert path == tmp_path / "msd/report.html"
    text = path.read_text(encoding="utf-8")
    assert "<title>Scores in msd</title>" in text
    assert "missed: liver" in text
    assert report_run(tmp_path) == tmp_path / "report.html", "and from the folder above"


def test_names_are_escaped(study):
    text = write_report(
        study / "escaped.html", "<b>x</b>", {"<i>": NetworkResult()}, notes=["a < b"]
    ).read_text()
    assert "<b>x" not in text
    assert "<i>" not in text
    assert "a &lt; b" in text


def test_shown_are_the_typical_case_and_the_worst_of_the_last_network(study):
    scores = read_scores(study / "f_alone/scores_msd_liver/scores.csv")
    shown = choose_cases({"F alone": scores})
    assert [(case.case, case.why) for case in shown] == [
        ("liver_1", "Typical: the median Dice of F alone"),
        ("liver_2", "The lowest Dice of F alone"),
        ("liver_0", "Among the lowest of all: liver with Dice 1.000 by F alone"),
    ]
    assert len(choose_cases({"F alone": scores}, worst=1)) == 2
    assert [case.why for case in choose_cases({"F alone": scores[scores["case"] == "liver_0"]})] == [
        "The only case"
    ]


def test_the_lowest_scores_come_first(study):
    networks = {
        name: read_scores(study / name / "scores_msd_liver/scores.csv") for name in ("f_alone", "f_and_p")
    }
    worst = worst_scores(networks, count=2)
    assert worst[["network", "case", "outcome"]].values.tolist() == [
        ["f_alone", "liver_2", "missed"],
        ["f_alone", "liver_1", "scored"],
    ]


def test_two_evaluations_of_a_case_are_refused(study, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    scores = pd.read_csv(study / "f_alone/scores_msd_liver/scores.csv")
    for name in ("scores_a", "scores_b"):
        (tmp_path / name).mkdir()
        scores.to_csv(tmp_path / name / "scores.csv", index=False)
    with pytest.raises(ValueError, match="msd_liver, liver_0, liver is scored in another file as well"):
        report_run(tmp_path)


def test_scores_of_different_settings_are_refused_before_anything_is_drawn(study, tmp_path, monkeypatch):
    scores = pd.read_csv(study / "f_alone/scores_msd_liver/scores.csv")
    for name, dataset, definition in (
        ("scores_a", "btcv", "pooled"),
        ("scores_b", "msd_liver", "directed_max"),
    ):
        (tmp_path / name).mkdir()
        mixed = scores.assign(dataset=dataset, hd95_definition=definition)
        mixed.to_csv(tmp_path / name / "scores.csv", index=False)
    monkeypatch.setattr(report_html, "read_case", lambda case: pytest.fail("a case was read"))
    with pytest.raises(DataError, match=r"mix hd95_definition pooled, directed_max: .* if they are alike"):
        report_run(tmp_path)
    networks = {name: {"scores": [f"{name}/scores.csv"]} for name in ("scores_a", "scores_b")}
    (tmp_path / "study.json").write_text(json.dumps({"networks": networks}))
    with pytest.raises(DataError, match="mix hd95_definition pooled, directed_max"):
        report_run(tmp_path)


@pytest.mark.parametrize(
    ("changed", "shape", "value", "message"),
    [
        ("truth", (9, 16, 18), 1, "truth.nii.gz: has shape (9, 16, 18) (z, y, x), the image (10, 16, 18)"),
        ("prediction", (10, 16, 17), 1, "has shape (10, 16, 17) (z, y, x), the image (10, 16, 18)"),
        ("prediction", (10, 16, 18), 6, "holds value 6, but there are 2 classes"),
    ],
)
def test_a_file_that_is_not_as_it_was_when_scored_is_one_line(
    study, tmp_path, changed, shape, value, message
):
    scores = read_scores(study / "f_alone/scores_msd_liver/scores.csv")
    save(tmp_path / f"{changed}.nii.gz", np.full(shape, value, np.uint8))
    scores[changed] = str(tmp_path / f"{changed}.nii.gz")
    with pytest.raises(DataError, match=re.escape(message)):
        read_case(choose_cases({"F alone": scores})[0])


def test_the_cases_of_all_scores_that_are_listed_are_shown(study):
    scores = read_scores(study / "f_alone/scores_msd_liver/scores.csv")[:1]
    many = pd.concat([scores.assign(case=f"case_{n}", dice=n / 100) for n in range(30)], ignore_index=True)
    listed = worst_scores({"F": many})
    shown = [case.case for case in choose_cases({"F": many})]
    assert len(listed) == LOWEST_SCORES
    assert set(listed["case"]) <= set(shown)
    assert len(shown) == len(set(shown)) == LOWEST_SCORES + 1, "and the typical one"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "neither run.json nor study.json nor scores.csv"),
        ("{", "is not JSON"),
        ("{}", "is not a study"),
        ('{"networks": {"F": {"scores": ["missing.csv"]}}}', "missing.csv: there is no such file of scores"),
    ],
)
def test_what_is_no_run_and_no_study_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        report_run(tmp_path)
    assert "\n" not in str(caught.value)
