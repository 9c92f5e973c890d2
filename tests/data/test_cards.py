"""Cards: what is accepted, what an error names, which files are cases, how cases are split."""

import pickle

import pytest

from partialseg.data.cards import (
    assign_splits,
    find_cases,
    left_right_pair,
    read_card,
    shipped_cards,
    why_no_case,
)
from partialseg.errors import DataError

CARD = """---
name: toy
title: Toy
source: https://example.org/toy
licence: CC0-1.0
citation: Nobody, 2020.
folders: [toy_data]
files: {image: "img/img*.nii.gz", label: "label/label*.nii.gz"}
labels:
  1: liver
  2: [left_kidney, right_kidney]
  3: background
  9: ignore
annotated: [liver, left_kidney, right_kidney]
split_sides: true
exclude: {img07: "moved"}
splits: {seed: 0, test: 0.25}
---

# Toy
"""


@pytest.fixture
def write_card(tmp_path):
    def write(*replacements):
        text = CARD
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "toy.md"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def _touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("name", "labelled", "organs"),
    [
        ("btcv", 30, {"liver", "spleen", "pancreas", "left_kidney", "right_kidney"}),
        ("msd_liver", 131, {"liver"}),
        ("msd_spleen", 41, {"spleen"}),
        ("msd_pancreas", 281, {"pancreas"}),
        ("kits19", 210, {"left_kidney", "right_kidney"}),
    ],
)
def test_shipped_card_says_what_is_annotated_and_is_prose_for_people(name, labelled, organs):
    card = read_card(name)
    assert (card.name, card.counts["labelled"], set(card.organs)) == (name, labelled, organs)
    prose = card.path.read_text(encoding="utf-8").split("\n---\n")[1]
    for heading in (
        "What it is",
        "Who made it",
        "Licence",
        "How to get it",
        "Layout",
        "Quirks",
        "Not suited",
    ):
        assert heading in prose


def test_btcv_values_are_those_of_the_challenge():
    labels = read_card("btcv").labels
    assert [labels[value] for value in (1, 2, 3, 6, 11)] == [
        ["spleen"],
        ["right_kidney"],
        ["left_kidney"],
        ["liver"],
        ["pancreas"],
    ]
    assert [value for value in range(1, 14) if labels[value] == ["background"]] == [4, 5, 7, 8, 9, 10, 12, 13]


def test_a_card_is_read_by_path_and_crosses_to_other_processes(write_card):
    card = read_card(write_card())
    assert card.labels[2] == ["left_kidney", "right_kidney"]
    assert card.labels[1] == ["liver"]
    assert pickle.loads(pickle.dumps(card)) == card


def test_an_unknown_card_names_those_that_are_there():
    with pytest.raises(DataError, match=r"no such data card.*btcv.*kits19"):
        read_card("nowhere")
    assert len(shipped_cards()) >= 5


@pytest.mark.parametrize(
    ("replacements", "line", "field", "words"),
    [
        ([("name: toy\n", "")], 2, "name", "missing"),
        ([("licence: CC0", "license: CC0")], 5, "license", "no such field, did you mean `licence`?"),
        ([("annotated:", "annotatd:")], 14, "annotatd", "did you mean `annotated`? (and 1 more)"),
        ([("{image:", "{imge:")], 8, "files.imge", "did you mean `image`? (and 1 more)"),
        ([("name: toy\n", "colour: red\n")], 2, "colour", "expected one spelt as in the examples"),
        (
            [("  1: liver", "  1: '?'")],
            10,
            "labels.1",
            "nobody has said what 1 is, found '?'; write the organ",
        ),
        ([("split_sides: true", "split_side: true")], 15, "split_side", "no such field"),
        ([("split_sides: true", "split_sides: 'yes'")], 15, "split_sides", "true or false"),
        ([("  1: liver", "  one: liver")], 10, "labels.one", "integer"),
        ([("  1: liver", "  0: liver")], 10, "labels.0", "greater than or equal to 1"),
        ([("  1: liver", "  1: lever")], 10, "labels.1", "lever, which is not listed under `annotated`"),
        ([("  1: liver", "  1: [liver, background]")], 10, "labels.1", "stand alone"),
        ([("  1: liver\n", "")], 13, "annotated", "liver is annotated, but no label value"),
        ([("[liver, left", "[liver, liver, left")], 14, "annotated", "different organs"),
        (
            [("[liver, left", "[all, left"), ("  1: liver", "  1: all")],
            14,
            "annotated",
            "`all` stands for all organs",
        ),
        (
            [("[left_kidney, right_kidney]\n  3", "left_kidney\n  4: right_kidney\n  3")],
            16,
            "split_sides",
            "left_x",
        ),
        ([("img/img*.nii", "img/img.nii")], 8, "files.image", "exactly one"),
        ([("label/label*.nii", "*/label*.nii")], 8, "files.label", "exactly one"),
        ([("img/img*.nii", "../img*.nii")], 8, "files.image", "leaves"),
        ([("[toy_data]", "[../toys]")], 7, "folders.0", "leaves"),
        ([("[toy_data]", "[/toys]")], 7, "folders.0", "leaves"),
        ([("test: 0.25", "test: 1.5")], 17, "splits.test", "a share from 0 to 1, or a list"),
        ([("test: 0.25", "test: [1, 2]")], 17, "splits.test", "names of cases, found [1, 2]; mend"),
        (
            [("test: 0.25", 'test: ["img*"]')],
            17,
            "splits.test",
            "found the pattern 'img*', expected the name",
        ),
        (
            [("split_sides", 'cases: {"a*": {annotated: [liver]}}\nsplit_sides')],
            15,
            "cases.a*",
            "found the pattern 'a*', expected the name of one case",
        ),
        (
            [("split_sides", "cases: {a: }\nsplit_sides")],
            15,
            "cases.a",
            "found nothing, expected `name: value` lines; mend",
        ),
        ([("test: 0.25", "test: [img07]")], 17, "splits.test", "excluded as well"),
        ([("CC0-1.0", "CC0-1.0\nmodality: MR")], 6, "modality", "'CT'"),
        ([("CC0-1.0", "CC0-1.0\npath: x")], 6, "path", "no such field"),
        ([("CC0-1.0", "CC0-1.0\nmasks: [liver]")], 6, "masks", "no such field"),
        (
            [('exclude: {img07: "moved"}', 'exclude: {"img0?": moved}'), ("0.25", "[img07]")],
            17,
            "splits.test",
            "excluded",
        ),
        (
            [("split_sides", "cases: {a: {annotated: [spleen]}}\nsplit_sides")],
            15,
            "cases.a.annotated",
            "spleen is not listed",
        ),
        (
            [("split_sides", "cases: {a: {annotated: []}}\nsplit_sides")],
            15,
            "cases.a.annotated",
            "at least 1",
        ),
        (
            [("split_sides", "cases: {a: {slices: [5, 2]}}\nsplit_sides")],
            15,
            "cases.a.slices",
            r"found [5, 2]",
        ),
        (
            [("split_sides", "cases: {a: {slices: [[1, 2], [3]]}}\nsplit_sides")],
            15,
            "cases.a.slices",
            "found [3]",
        ),
        ([("split_sides", "cases: {a: {slice: [1, 2]}}\nsplit_sides")], 15, "cases.a.slice", "no such field"),
    ],
)
def test_an_error_names_file_line_and_field(write_card, replacements, line, field, words):
    path = write_card(*replacements)
    with pytest.raises(DataError) as error:
        read_card(path)
    message = str(error.value)
    assert message.startswith(f"{path}: line {line}, `{field}`: ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("replacements", "words"),
    [
        ([("---\nname", "name")], "has no front matter"),
        ([("title: Toy", "title: [Toy")], "line 4: is not YAML"),
        ([("  3: background", "  1: background")], "line 12: `1` is there twice"),
        ([("  3: background", "  yes: background")], "line 12: `yes` means the same as `1`"),
        ([("  3: background", "  0x1: background")], "line 12: `0x1` means the same as `1`"),
        ([("title: Toy", "title: {<<: {a: 1}}")], "line 3: found `<<`, expected the fields"),
        ([(CARD.split("---\n")[1], "- a list\n")], "line 2: expected `field: value`"),
        ([("title: Toy", "title: To\x07y")], "not YAML .*character"),
        ([("title: Toy", "title: 2023-02-30")], "not YAML .*day is out of range"),
    ],
)
def test_what_is_not_yaml_fields_is_told_by_line(write_card, replacements, words):
    with pytest.raises(DataError, match=words):
        read_card(write_card(*replacements))


def test_a_mark_of_byte_order_is_no_part_of_a_card(write_card):
    path = write_card()
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert read_card(path).name == "toy"


def test_cases_are_found_in_the_first_folder_that_holds_any(write_card, tmp_path):
    card = read_card(write_card())
    raw = tmp_path / "raw"
    _touch(
        raw / "toy_data", "img/img02.nii.gz", "label/label02.nii.gz", "img/img01.nii.gz", "img/._img01.nii.gz"
    )
    _touch(raw / "toy_data", "img/img07.nii.gz", "img/.img03.nii.gz", "img/readme.txt")
    _touch(raw / "toy", "img/img99.nii.gz")
    cases = find_cases(card, raw)
    assert [case.name for case in cases] == ["img01", "img02"]  # 07 is excluded, hidden files are no cases
    assert cases[1].image == raw / "toy_data/img/img02.nii.gz"
    assert (
        cases[0].label == raw / "toy_data/label/label01.nii.gz"
    )  # listed though missing: reading it says so
    assert [case.name for case in find_cases(card, raw / "toy")] == ["img99"]
    assert find_cases(card, tmp_path / "nothing") == []


def test_it_is_said_why_there_is_no_case(write_card, tmp_path):
    card = read_card(write_card())
    problem, _ = why_no_case(card, tmp_path / "nope")
    assert problem == f"toy: no file in {tmp_path / 'nope'}, there is no such folder"
    assert "matches img/img*.nii.gz (looked in toy_data, toy, .)" in why_no_case(card, tmp_path)[0]
    _touch(tmp_path / "toy", "label/label01.nii.gz", "label/label07.nii.gz")
    pattern = tmp_path / "toy" / card.files.label
    assert why_no_case(card, tmp_path) == (
        f"toy: 2 label maps are there ({pattern}), and no image {card.files.image}",
        "fetch the images",
    )
    (tmp_path / "toy" / "label" / "label01.nii.gz").unlink()
    _touch(tmp_path / "toy", "img/img07.nii.gz")  # which the card excludes
    assert why_no_case(card, tmp_path)[0] == f"toy: the card leaves out every case in {tmp_path}"


def test_uncompressed_files_will_do(write_card, tmp_path):
    _touch(
        tmp_path, "img/img1.nii", "img/img2.nii", "img/img2.nii.gz", "label/label1.nii", "label/label2.nii.gz"
    )
    cases = find_cases(read_card(write_card()), tmp_path)
    assert [(case.name, case.image.name, case.label.name) for case in cases] == [
        ("img1", "img1.nii", "label1.nii"),
        ("img2", "img2.nii.gz", "label2.nii.gz"),
    ]


def test_a_label_map_without_its_image_is_a_case(write_card, tmp_path):
    _touch(tmp_path, "img/img1.nii.gz", *(f"label/label{i}.nii.gz" for i in ("1", "2", "07")))
    cases = find_cases(read_card(write_card()), tmp_path)
    assert [case.name for case in cases] == ["img1", "img2"]  # 07 is excluded
    assert cases[1].image == tmp_path / "img/img2.nii.gz"
    assert cases[1].label == tmp_path / "label/label2.nii.gz"


def test_an_image_that_the_label_pattern_matches_too_is_no_label_map(write_card, tmp_path):
    card = read_card(write_card(("img/img*.nii.gz", "*_ct.nii.gz"), ("label/label*.nii.gz", "*.nii.gz")))
    _touch(tmp_path, "anna_ct.nii.gz", "anna.nii.gz")
    assert [(case.name, case.label.name) for case in find_cases(card, tmp_path)] == [
        ("anna_ct", "anna.nii.gz")
    ]


def test_case_names_and_unlabelled_cases_of_kits19(tmp_path):
    _touch(tmp_path, *(f"kits19/data/case_{i:05d}/imaging.nii.gz" for i in (0, 15, 209, 210, 299)))
    cases = find_cases(read_card("kits19"), tmp_path)
    assert [case.name for case in cases] == ["case_00000", "case_00209"]
    assert cases[0].label == tmp_path / "kits19/data/case_00000/segmentation.nii.gz"


def test_a_fifth_of_each_paper_dataset_is_for_testing():
    for name, total, tests in (("btcv", 30, 6), ("msd_spleen", 41, 8), ("msd_pancreas", 280, 56)):
        splits = assign_splits(read_card(name), [f"case{i}" for i in range(total)])
        assert list(splits.values()).count("test") == tests


def test_splits_depend_on_the_names_alone_and_one_more_case_moves_at_most_one_other(write_card):
    card = read_card(write_card())
    names = [f"img{i:02d}" for i in range(40)]
    splits = assign_splits(card, names)
    assert assign_splits(card, reversed(names)) == splits
    more = assign_splits(card, [*names, "img99"])
    assert sum(more[name] != splits[name] for name in names) <= 1
    other = read_card(write_card(("seed: 0", "seed: 1")))
    assert assign_splits(other, names) != splits


def test_few_cases_still_give_one_for_testing_and_one_for_training(write_card):
    card = read_card(write_card(("test: 0.25", "test: 0.1")))
    assert sorted(assign_splits(card, ["a", "b"]).values()) == ["test", "train"]
    assert assign_splits(card, ["a"]) == {"a": "train"}


def test_test_cases_may_be_listed(write_card):
    card = read_card(write_card(("test: 0.25", "test: [img02]")))
    assert assign_splits(card, ["img01", "img02", "img03"]) == {
        "img01": "train",
        "img02": "test",
        "img03": "train",
    }


@pytest.mark.parametrize(
    "names", [[], ["left_kidney"], ["left_kidney", "liver"], ["left_a", "right_a", "spleen"]]
)
def test_only_a_left_and_a_right_of_the_same_make_a_pair(names):
    assert left_right_pair(names) is None


def test_a_card_of_ones_own_needs_little(tmp_path):
    path = tmp_path / "own.md"
    path.write_text(
        "---\nname: own\nfiles: {image: 'ct/*.nii.gz', label: 'label/*.nii.gz'}\n"
        "labels: {0: background, 1: liver}\nannotated: [liver]\n---\n"
    )
    card = read_card(path)
    assert card.labels == {1: ["liver"]}
    assert (card.splits.seed, card.splits.test) == (0, 0.2)


MASKS = [
    ("  1: liver\n", "  liver: liver\n"),
    ("  2: [left", "  kidneys: [left"),
    ("  3: background", "  stomach: background"),
    ("  9: ignore", "  unsure: ignore"),
]


def test_names_of_masks_stand_for_values_in_the_order_of_the_card(write_card):
    card = read_card(write_card(*MASKS))
    assert card.masks == ("liver", "kidneys", "stomach", "unsure")
    assert card.labels == {1: ["liver"], 2: ["left_kidney", "right_kidney"], 3: ["background"], 4: ["ignore"]}
    assert [card.describe_value(value) for value in (1, 4)] == ["liver", "unsure"]
    assert read_card(write_card()).masks == ()
    assert read_card(write_card()).describe_value(9) == "9"


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "words"),
    [
        (
            "kidneys: [left_kidney",
            "kidneys: [spleen",
            11,
            "labels.kidneys",
            "kidneys is spleen, which is not",
        ),
        ("kidneys: [left_kidney", "kidneys: [ignore", 11, "labels.kidneys", "stand alone"),
        ("stomach: background", "stomach: [1, 2]", 12, "labels.stomach.0", "text"),
        ("  stomach: background", "  ../stomach: background", 12, "labels.../stomach", "expected letters"),
        ("  stomach: background", "  3: background", 10, "labels.liver", "other keys are values"),
    ],
)
def test_an_error_about_a_mask_names_it(write_card, old, new, line, field, words):
    path = write_card(*MASKS, (old, new))
    with pytest.raises(DataError) as error:
        read_card(path)
    assert str(error.value).startswith(f"{path}: line {line}, `{field}`: ")
    assert words in str(error.value)


def test_one_case_may_differ_from_its_dataset(write_card):
    cases = "cases: {img03: {annotated: [liver], slices: [2, 9]}, img04: {slices: [[0, 3], [7, 7]]}}"
    card = read_card(write_card(("split_sides", f"{cases}\nsplit_sides")))
    assert card.annotated_in("img03") == ("liver",)
    assert card.annotated_in("img04") == card.annotated_in("img05") == card.organs
    assert card.slices_in("img03") == ((2, 9),)
    assert card.slices_in("img04") == ((0, 3), (7, 7))
    assert card.slices_in("img05") is None


def test_cases_may_be_left_out_by_a_pattern(write_card, tmp_path):
    card = read_card(write_card(('{img07: "moved"}', '{"img0[5-9]": MRI, img11: moved}')))
    assert (card.why_excluded("img06"), card.why_excluded("img11"), card.why_excluded("img04")) == (
        "MRI",
        "moved",
        None,
    )
    for number in ("04", "06", "11"):
        _touch(tmp_path, f"toy_data/img/img{number}.nii.gz", f"toy_data/label/label{number}.nii.gz")
    assert [case.name for case in find_cases(card, tmp_path)] == ["img04"]


def test_image_and_label_may_be_folders(write_card, tmp_path):
    files = 'files: {image: "CT/*/DICOM", label: "CT/*/Ground", series: "*portal*"}'
    card = read_card(write_card(('files: {image: "img/img*.nii.gz", label: "label/label*.nii.gz"}', files)))
    _touch(tmp_path, "toy_data/CT/7/DICOM/1.dcm", "toy_data/CT/7/Ground/1.png", "toy_data/CT/8/DICOM/1.dcm")
    first, second = find_cases(card, tmp_path)
    root = tmp_path / "toy_data" / "CT"
    assert (first.name, first.image, first.label) == ("7", root / "7" / "DICOM", root / "7" / "Ground")
    assert (second.name, second.label) == (
        "8",
        root / "8" / "Ground",
    )  # not there: reading it gives the error
    assert card.files.series == "*portal*"
