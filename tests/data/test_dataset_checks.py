"""What is noted of a whole dataset."""

import numpy as np
import pytest

from partialseg.data.cards import read_card
from partialseg.data.dataset_checks import card_notes, outlier_notes, volume_outliers
from partialseg.data.inspect_case import InspectedCase


def volumes(dataset, *millilitres):
    return {(dataset, str(number)): float(volume) for number, volume in enumerate(millilitres)}


LIVERS = (1200, 1350, 1400, 1500, 1520, 1600, 1750, 1900)


def test_a_volume_that_stands_out_is_found():
    found = volume_outliers(volumes("here", *LIVERS, 4000))
    assert list(found) == [("here", "8")]
    median, low, high = found["here", "8"]
    assert (median, low < 1200, high < 4000) == (pytest.approx(1520), True, True)
    assert list(volume_outliers(volumes("here", *LIVERS, 2))) == [("here", "8")]


def test_ordinary_volumes_do_not_stand_out():
    drawn = np.exp(np.random.default_rng(0).normal(np.log(1500), 0.25, 100))
    assert len(volume_outliers(volumes("here", *drawn))) <= 1
    assert volume_outliers(volumes("here", *[1500] * 8, 2900)) == {}  # less than twice the median


def test_few_cases_are_compared_with_those_of_other_datasets():
    assert volume_outliers(volumes("here", *LIVERS[:6], 4000)) == {}
    both = volumes("here", *LIVERS) | volumes("there", 1500, 4000)
    assert list(volume_outliers(both)) == [("there", "1")]


def test_many_cases_are_compared_with_their_own_dataset():
    both = volumes("adults", *LIVERS) | volumes("children", *(volume / 4 for volume in LIVERS))
    assert volume_outliers(both) == {}


def case(name, millilitres, cut_off=(), dataset="msd_liver", **fields):
    return InspectedCase(dataset, name, volumes_ml={"liver": millilitres}, cut_off=cut_off, **fields)


def test_small_organs_that_are_cut_off_are_not_noted():
    cases = [case(str(number), volume) for number, volume in enumerate(LIVERS)]
    cases += [case("small", 300.0), case("cut", 300.0, ("liver",)), case("large", 5000.0, ("liver",))]
    notes = outlier_notes(cases, ["liver"])
    assert set(notes) == {("msd_liver", "small"), ("msd_liver", "large")}
    assert notes["msd_liver", "small"]["liver"].startswith(
        "liver measures 300 mL; the median is 1500 mL, usual are "
    )
    assert "(and it goes on beyond the scan)" in notes["msd_liver", "large"]["liver"]


@pytest.fixture
def write_card(tmp_path):
    def write(fields="", labels="{1: liver, 2: liver}", annotated="[liver]"):
        path = tmp_path / "own.md"
        path.write_text(
            f'---\nname: own\nfiles: {{image: "*_ct.nii.gz", label: "*_label.nii.gz"}}\nlabels: {labels}\n'
            f"annotated: {annotated}\n{fields}\n---\n"
        )
        for name in ("a", "b"):
            for kind in ("ct", "label"):
                (tmp_path / f"{name}_{kind}.nii.gz").touch()
        return read_card(path)

    return write


CASES = [
    case("a_ct", 1500.0, dataset="own", values=(0, 1, 2)),
    case("b_ct", 0.0, dataset="own", values=(0, 1)),
]


@pytest.mark.parametrize(
    "name", ["exclude: {NAME: why}", "cases: {NAME: {slices: [0, 1]}}", "splits: {test: [NAME]}"]
)
def test_names_that_match_no_case_are_noted(write_card, tmp_path, name):
    (note,) = card_notes(write_card(name.replace("NAME", "c_ct")), tmp_path, CASES)
    assert (
        note
        == f"`{name.split(':')[0].replace('splits', 'splits.test')}` of the card names c_ct: no case here is called so"
    )
    assert card_notes(write_card(name.replace("NAME", "a_ct")), tmp_path, CASES) == []


@pytest.mark.parametrize("field", ["cases: {NAME: {slices: [0, 1]}}", "splits: {test: [NAME]}"])
def test_brackets_are_no_pattern_where_one_case_is_named(write_card, tmp_path, field):
    (note,) = card_notes(write_card(field.replace("NAME", '"[a]_ct"')), tmp_path, CASES)
    assert "names [a]_ct: no case here is called so" in note


def test_patterns_of_excluded_cases_may_match(write_card, tmp_path):
    assert card_notes(write_card('exclude: {"a_*": why}'), tmp_path, CASES[1:]) == [
        "the card lists values that no case has: 2 (liver)",
        "liver is annotated, and no case has a voxel of it",
    ]


def test_counts_are_compared_with_what_is_here(write_card, tmp_path):
    assert card_notes(write_card("counts: {labelled: 2}"), tmp_path, CASES) == []
    assert card_notes(write_card("counts: {labelled: 2}\nexclude: {a_ct: why}"), tmp_path, CASES[:1]) == []
    assert card_notes(write_card("counts: {labelled: 30}"), tmp_path, CASES) == [
        "2 of the 30 published cases are here"
    ]
    assert card_notes(write_card("counts: {labelled: 1}"), tmp_path, CASES) == [
        "2 cases are here, `counts` of the card says 1"
    ]


def test_values_and_organs_in_no_case_are_noted(write_card, tmp_path):
    card = write_card("", "{1: liver, 2: liver, 3: background, 7: spleen}", "[liver, spleen]")
    with_spleen = [InspectedCase("own", "a_ct", volumes_ml={"liver": 1.0, "spleen": 0.0}, values=(0, 1, 2))]
    assert card_notes(card, tmp_path, with_spleen) == [
        "the card lists values that no case has: 7 (spleen)",
        "spleen is annotated, and no case has a voxel of it",
    ]


def test_names_that_look_misspelt_are_noted(write_card, tmp_path):
    (note,) = card_notes(
        write_card("", "{1: livr}", "[livr]"), tmp_path, [InspectedCase("own", "a_ct", values=(0, 1))]
    )
    assert note == "`livr` is no known organ; did you mean liver? Only the same name is the same class"


def test_a_part_of_a_published_dataset_needs_not_have_all_that_its_card_names(tmp_path):
    part = [
        InspectedCase(
            "kits19", "case_00000", volumes_ml={"left_kidney": 1.0, "right_kidney": 1.0}, values=(0, 1)
        )
    ]
    assert card_notes(read_card("kits19"), tmp_path, part) == ["1 of the 210 published cases are here"]


def test_nothing_is_noted_where_no_case_is_here(write_card, tmp_path):
    assert card_notes(write_card("counts: {labelled: 2}"), tmp_path, []) == []
