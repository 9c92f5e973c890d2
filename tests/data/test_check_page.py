"""The page for people: self-contained, escaped, and as large as it may be."""

import re

import pytest

from partialseg.data import check_page
from partialseg.data.check_page import as_html, choose_pictures
from partialseg.data.sides import split_left_right


def entry(name, good=True, notes=(), volume=1500.0):
    return {
        "dataset": "own",
        "name": name,
        "split": "train",
        "image": f"{name}_ct.nii.gz",
        "label": f"{name}_label.nii.gz",
        "good": good,
        "shape": [10, 20, 20] if good else [],
        "spacing_mm": [5.0, 1.0, 1.0] if good else [],
        "axes": "RAS",
        "intensity": {"p1": -1000.0, "p99": 300.0} if good else None,
        "label_type": "uint8",
        "values": [0, 1],
        "annotated": ["liver"],
        "voxels": {"liver": 300} if good else {},
        "volumes_ml": {"liver": volume} if good else {},
        "unsure_ml": 0.0,
        "cut_off": [],
        "notes": list(notes),
        "no_picture": None,
    }


def report(*cases, outliers=(), **changes):
    problems = [
        {"path": f"{case['image']}", "problem": f"own, {case['name']}: is cut short", "remedy": "again"}
        | {"dataset": "own", "case": case["name"]}
        for case in cases
        if not case["good"]
    ]
    cell = {"annotated": True, "cases": len(cases), "with_voxels": len(cases), "voxels": 300}
    cell |= {"mean_ml": 1500.0, "lowest_ml": 1000.0, "highest_ml": 2000.0, "outliers": list(outliers)}
    dataset = {"name": "own", "title": "Ours", "source": "here", "licence": "none", "cases": len(cases)}
    dataset |= {"good_cases": 1, "labelled_as_published": None, "fully_annotated": True, "notes": []}
    return {
        "classes": ["background", "liver"],
        "organs": {"liver": {"datasets": ["own"], "note": None}},
        "datasets": [dataset],
        "coverage": {"liver": {"own": cell}},
        "outlier_rule": "A rule.",
        "duplicates": [],
        "cases": list(cases),
        "problems": problems,
        **changes,
    }


def test_page_of_good_cases_says_so():
    page = as_html(report(entry("a"), entry("b")))
    assert "No problems." in page
    assert "Nothing unusual" in page
    assert "<img" not in page


def test_page_loads_nothing_and_runs_nothing():
    page = as_html(report(entry("a", notes=["odd"])), {("own", "a"): b"\x89PNG"})
    assert page.count("src=") == page.count('src="data:image/png;base64,') == 1
    assert "<script" not in page
    assert "<link" not in page


def test_page_escapes_what_users_wrote():
    page = as_html(report(entry("<b>bold</b>", notes=["<i>odd</i>"])))
    assert "&lt;b&gt;bold" in page
    assert "&lt;i&gt;odd" in page
    assert "<i>odd" not in page


def test_problems_name_file_and_remedy_and_not_the_case_twice():
    page = as_html(report(entry("a", good=False)))
    assert "<li>is cut short<br>" in page
    assert "a_ct.nii.gz" in page
    assert "again" in page


def test_volumes_that_stand_out_are_red():
    page = as_html(report(entry("a"), entry("b", volume=4000.0), outliers=["b"]))
    assert '#d01c1c" fill-opacity="1"><title>own b: 4,000 mL</title>' in page
    assert "<title>own a: 1,500 mL</title>" in page
    assert page.count("#d01c1c") == 1


def test_leakage_is_in_red():
    cases = [
        {"dataset": "own", "case": name, "split": split} for name, split in (("a", "train"), ("b", "test"))
    ]
    found = {"cases": cases, "same": "image", "leakage": True}
    page = as_html(report(entry("a"), entry("b"), duplicates=[found]))
    assert "leakage: in training and in test data" in page
    assert "leak between training and test data" in page


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("one side", "which side it is cannot be told; it counts as"),
        ("fused", "one piece as wide as two organs: they touch, or have grown together; it counts as"),
        ("unclear", "do not lie side by side"),
        ("empty", "nothing is labelled</li>"),
        ("0.25 mL on neither side", "0.25 mL are clearly nearer to neither"),
    ],
)
def test_a_pair_without_a_side_is_told_in_a_sentence(flag, words):
    page = as_html(report(entry("a", notes=[f"left_adrenal_gland/right_adrenal_gland: {flag}"])))
    (line,) = [line for line in page.splitlines() if "left and right adrenal gland: " in line]
    assert words in line
    assert "left_adrenal_gland/" not in page


def test_every_flag_of_a_pair_has_its_sentence():
    flags = re.findall(
        r'"([a-z ]+)"', split_left_right.__doc__.split("what was found: ")[1].split("Raises")[0]
    )
    assert set(flags) - {"split"} == set(check_page._SIDES)


@pytest.fixture
def files(tmp_path):
    found = {}
    for name in "abcd":
        found["own", name] = tmp_path / f"{name}.png"
        found["own", name].write_bytes(name.encode())
    return found


def test_pictures_of_problems_come_first_and_their_number_is_bounded(files, monkeypatch):
    monkeypatch.setattr(check_page, "MAX_PICTURES", 2)
    cases = [entry("a"), entry("b", notes=["odd"]), entry("c", notes=["odd"]), entry("d", good=False)]
    pictures = choose_pictures(report(*cases), files)
    assert pictures == {("own", "d"): b"d", ("own", "b"): b"b"}
    assert "1 flagged case without a picture" in as_html(report(*cases), pictures)


def test_the_bytes_of_pictures_are_bounded(files, monkeypatch):
    monkeypatch.setattr(check_page, "MAX_PICTURE_BYTES", 3)
    cases = [entry(name, notes=["odd"]) for name in "abcd"]
    pictures = choose_pictures(report(*cases), files)
    assert [name for _, name in pictures] == ["a", "b", "c"]
    assert "1 flagged case without a picture" in as_html(report(*cases), pictures)


def test_why_a_picture_could_not_be_written_is_said():
    case = entry("a", notes=["odd"]) | {
        "no_picture": "it could not be written to /tmp: No space left on device"
    }
    assert "no picture: it could not be written to /tmp: No space left on device" in as_html(report(case))


def test_a_case_of_which_nothing_could_be_drawn_has_no_picture(files):
    files["own", "d"].unlink()
    assert choose_pictures(report(entry("d", good=False)), files) == {}
    assert "no picture" in as_html(report(entry("d", good=False)))


def test_dots_are_bounded(monkeypatch):
    monkeypatch.setattr(check_page, "MAX_DOTS", 10)
    cases = [entry(f"{number:03d}", volume=1000.0 + number) for number in range(95)]
    assert as_html(report(*cases)).count("<ellipse") == 10


def test_64_organs_fit():
    organs = [f"organ_{number}" for number in range(64)]
    cell = report(entry("a"))["coverage"]["liver"]["own"] | {"with_voxels": 0, "mean_ml": None}
    page = as_html(
        report(
            entry("a"),
            classes=["background", *organs],
            organs={organ: {"datasets": ["own"], "note": None} for organ in organs},
            coverage={organ: {"own": cell} for organ in organs},
        )
    )
    assert page.count('class="dot"') == 64
