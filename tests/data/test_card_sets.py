"""Card sets: what is accepted, what an error names, and cards and sets on one command line."""

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.card_sets import expand, organ_notes, read_card_set, shipped_card_sets
from partialseg.data.cards import read_card, shipped_cards
from partialseg.data.classes import PAPER_ORGANS
from partialseg.data.prepare import prepare
from partialseg.errors import DataError

SET = """# A set.
name: toys
title: Toys
cards: [toy.md, kits19]
organs:
  - liver
  - left_kidney
  - right_kidney
"""
CARD = """---
name: toy
files: {image: "img/*.nii.gz", label: "label/*.nii.gz"}
labels: {1: liver, 2: spleen}
annotated: [liver, spleen]
---
"""


@pytest.fixture
def write_set(tmp_path):
    def write(*replacements, card=CARD):
        text = SET
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "toy.md").write_text(card, encoding="utf-8")
        path = tmp_path / "toys.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_set_reads_its_cards_beside_it_and_by_name(write_set):
    card_set = read_card_set(write_set())
    assert [card.name for card in card_set.cards] == ["toy", "kits19"]
    assert card_set.organs == ("liver", "left_kidney", "right_kidney")
    assert card_set.title == "Toys"


@pytest.mark.parametrize("name", sorted(shipped_card_sets()))
def test_a_shipped_set_is_whole_and_nothing_about_it_is_odd(name):
    card_set = read_card_set(name)
    assert card_set.name == name
    assert card_set.title
    assert name not in shipped_cards()
    assert organ_notes(card_set.cards, card_set.organs) == []


def test_the_papers_set_is_the_papers():
    assert read_card_set("paper").organs == PAPER_ORGANS
    assert len(shipped_card_sets()) >= 4


@pytest.mark.parametrize(
    ("replacements", "line", "field", "words"),
    [
        ([("name: toys\n", "")], 2, "name", "missing"),
        ([("title: Toys", "titel: Toys")], 3, "titel", "no such field"),
        ([("kits19", "kits18")], 4, "cards.1", "no such data card: kits18"),
        ([("kits19", "toy.md")], 4, "cards.1", "toy is there twice"),
        ([("[toy.md, kits19]", "[]")], 4, "cards", "at least 1 item"),
        ([("kits19", "msd_pancreas")], 7, "organs.1", "left_kidney is annotated by none of the cards"),
        ([("kits19", "kits19, msd_pancreas")], 4, "cards.2", "msd_pancreas annotates none of the organs"),
        ([("- left_kidney", "- liver")], 7, "organs.1", "expected different organs"),
        ([("- liver", "- background")], 6, "organs.0", "neither `background`"),
        ([("- liver", "- livr")], 6, "organs.0", "did you mean liver?"),
        ([("- liver", "- 3")], 6, "organs.0", "found 3, expected text"),
        ([("  - liver", "\n".join(f"  - organ_{i}" for i in range(63)))], 5, "organs", "at most 64 items"),
    ],
)
def test_an_error_names_file_line_and_field(write_set, replacements, line, field, words):
    path = write_set(*replacements)
    with pytest.raises(DataError) as error:
        read_card_set(path)
    message = str(error.value)
    assert message.startswith(f"{path}: line {line}, `{field}`: ")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("replacements", "words"),
    [
        ([("title: Toys", "title: [Toys")], "line 4: is not YAML"),
        ([("title: Toys", "name: toys")], "line 3: `name` is there twice"),
        ([(SET, "- a list\n")], "line 1: expected `field: value`"),
        ([("Toys", "!!python/object/apply:os.getcwd []")], "line 3: is not YAML .*os.getcwd"),
        ([("Toys", "[" * 3000 + "]" * 3000)], "nested too deeply"),
    ],
)
def test_what_is_not_yaml_fields_is_told_by_line(write_set, replacements, words):
    with pytest.raises(DataError, match=words):
        read_card_set(write_set(*replacements))


def test_aliases_that_stand_for_a_billion_words_are_told_at_once(write_set):
    levels = [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 10)]
    path = write_set(("title: Toys", "\n".join(["x0: &x0 [a, a, a, a, a, a, a, a, a]", *levels])))
    with pytest.raises(DataError, match="line 3, `x0`: there is no such field"):
        read_card_set(path)


def test_a_card_that_cannot_be_read_is_named_itself(write_set, tmp_path):
    path = write_set(card=CARD.replace("annotated", "annotatet"))
    with pytest.raises(DataError) as error:
        read_card_set(path)
    assert str(error.value).startswith(f"{tmp_path / 'toy.md'}: line")


def test_cards_and_sets_may_be_mixed_and_a_card_counts_once(write_set):
    cards, organs = expand([str(write_set()), "btcv", "kits19", "msd_spleen", "paper"])
    assert [card.name for card in cards] == [
        "toy",
        "kits19",
        "btcv",
        "msd_spleen",
        "msd_liver",
        "msd_pancreas",
    ]
    assert organs == ("liver", "left_kidney", "right_kidney", "spleen", "pancreas")
    assert expand(["btcv", "kits19"])[1] is None


def test_a_name_that_is_neither_lists_both():
    with pytest.raises(DataError, match=r"no such data card or card set.*btcv.*paper"):
        expand(["nowhere"])
    with pytest.raises(DataError, match=r"no such card set.*paper"):
        expand(["nowhere.yaml"])


def test_a_misspelt_organ_is_noted(write_set, tmp_path):
    write_set(card=CARD.replace("liver", "livr").replace("spleen", "appendix"))
    notes = organ_notes([read_card(tmp_path / "toy.md"), read_card("btcv")])
    assert notes[0].startswith(f"{tmp_path / 'toy.md'}: `livr` is no known organ; did you mean liver?")
    assert not any("appendix`" in note for note in notes)


def test_an_organ_that_all_cards_misspell_is_noted(write_set, tmp_path):
    write_set(card=CARD.replace("spleen", "splen"))
    card = read_card(tmp_path / "toy.md")
    assert ["did you mean spleen?" in note for note in organ_notes([card, card.model_copy()])] == [True, True]
    (note,) = organ_notes([card, read_card("kits19")])
    assert note.startswith(f"{tmp_path / 'toy.md'}: `splen` is no known organ")


def test_an_organ_that_would_be_lost_in_a_class_list_is_noted(write_set, tmp_path):
    write_set(card=CARD.replace("spleen", "liver_tumour"))
    card = read_card(tmp_path / "toy.md")
    assert organ_notes([card]) == []
    (note,) = organ_notes([card], ["liver"])
    assert "liver_tumour is a part of the class liver, but would be background in toy" in note
    (note,) = organ_notes([read_card("amos22")], ["liver", "prostate"])
    assert "prostate_or_uterus is more than the class prostate" in note


def test_an_organ_that_may_be_another_class_is_noted():
    cards = [read_card("amos22"), read_card("totalsegmentator")]
    (note,) = organ_notes(cards)
    assert "prostate_or_uterus in amos22 may be prostate, which is a class of its own" in note
    assert organ_notes(cards, ["liver", "spleen"]) == []


def test_background_of_a_card_that_may_be_a_class_is_noted():
    (note,) = organ_notes([read_card("btcv")], [*PAPER_ORGANS, "stomach"])
    assert (
        "4, 5, 7, 8, 9, 10, 12, 13 would be none of the classes, but btcv does not annotate stomach" in note
    )


def test_a_tumour_that_is_no_class_is_noted():
    labels = {1: ["liver"], 2: ["tumor"]}
    card = read_card("msd_liver").model_copy(update={"labels": labels, "annotated": ["liver", "tumor"]})
    (note,) = organ_notes([card], ["liver"])
    assert "tumor would be background in msd_liver" in note
    assert organ_notes([card], ["liver", "tumor"]) == []


def test_a_class_list_of_64_organs_is_prepared_and_one_of_65_refused(tmp_path):
    organs = [f"organ_{i}" for i in range(1, 66)]
    labels = "\n".join(f"  {value}: {organ}" for value, organ in enumerate(organs, start=1))
    card = f"---\nname: many\nfiles: {{image: 'img*.nii', label: 'seg*.nii'}}\nlabels:\n{labels}\n"
    (tmp_path / "many.md").write_text(f"{card}annotated: [{', '.join(organs)}]\n---\n")
    values = np.uint8(np.arange(512) % 66).reshape(8, 8, 8)
    nib.save(nib.Nifti1Image(values, 3 * np.eye(4)), tmp_path / "seg1.nii")
    nib.save(nib.Nifti1Image(np.int16(values) - 100, 3 * np.eye(4)), tmp_path / "img1.nii")
    cards, _ = expand([str(tmp_path / "many.md")])
    with pytest.raises(DataError, match="class list: has 65 organs, expected 64 at most"):
        prepare(cards, tmp_path, tmp_path / "refused", (3.0, 3.0, 3.0), jobs=1)
    assert not (tmp_path / "refused" / "manifest.json").exists()
    result = prepare(cards, tmp_path, tmp_path / "prepared", (3.0, 3.0, 3.0), organs[:64], jobs=1)
    assert result.problems == []
    (case,) = result.prepared.cases
    assert len(result.prepared.classes) == 65
    assert result.prepared.table(case).shape[1] == 65
