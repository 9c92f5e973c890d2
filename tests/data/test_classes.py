"""Class lists of any length up to 64, one name for an organ, and colours that can be told apart."""

import itertools

import numpy as np
import pytest

from partialseg.data.cards import left_right_pair
from partialseg.data.classes import (
    FURTHER_COLOURS,
    KNOWN_ORGANS,
    MAX_ORGANS,
    PAPER_COLOURS,
    PAPER_ORGANS,
    class_names,
    did_you_mean,
    mirrored_classes,
    organ_colours,
    organ_name,
    organs_meant,
    unpaired_classes,
)
from partialseg.errors import DataError

#: sRGB to CIE XYZ (IEC 61966-2-1).
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def _lab(colours):
    rgb = np.array([[int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)] for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def test_sixty_four_organs_have_colours_that_are_far_apart_and_stand_out_from_grey():
    colours = organ_colours([*PAPER_ORGANS, *(f"organ_{i}" for i in range(MAX_ORGANS - len(PAPER_ORGANS)))])
    lab = _lab(colours.values())
    assert len(lab) == MAX_ORGANS == len(PAPER_COLOURS) + len(FURTHER_COLOURS)
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)]
    assert min(distances) > 20  # 2.3 is just noticeable
    assert np.hypot(lab[:, 1], lab[:, 2]).min() > 25
    assert lab[:, 0].min() > 30


def test_the_first_colours_are_farther_apart_than_the_last():
    lab = _lab([*PAPER_COLOURS.values(), *FURTHER_COLOURS[:10]])
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 50


def test_an_organ_has_the_same_colour_in_every_list():
    assert {organ: organ_colours(PAPER_ORGANS)[organ] for organ in PAPER_ORGANS} == PAPER_COLOURS
    alone = organ_colours(["aorta"])["aorta"]
    assert organ_colours(["stomach", "appendix", "aorta"])["aorta"] == alone


def test_unknown_organs_may_take_the_colours_of_known_ones_that_are_not_there():
    colours = organ_colours([f"organ_{i}" for i in range(MAX_ORGANS)])
    assert len(set(colours.values())) == MAX_ORGANS


@pytest.mark.parametrize("function", [class_names, organ_colours])
def test_more_than_64_organs_are_refused(function):
    with pytest.raises(DataError, match="class list: has 65 organs, expected 64 at most; choose some"):
        function([f"organ_{i}" for i in range(65)])


def test_known_organs_fit_one_class_list_and_pairs_are_whole():
    assert len(KNOWN_ORGANS) <= MAX_ORGANS
    for organ in KNOWN_ORGANS:
        assert organ_name(organ) == organ
        if organ.startswith("left_"):
            other = organ.replace("left_", "right_")
            assert left_right_pair([organ, other]) == (organ, other)
            assert other in KNOWN_ORGANS


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Left Kidney", "left_kidney"),
        ("kidney_left", "left_kidney"),
        ("left kidney", "left_kidney"),
        ("L kidney", "left_kidney"),
        ("Kidney (L)", "left_kidney"),
        ("RightKidney", "right_kidney"),
        ("rightkidney", "right_kidney"),
        ("Rt. adrenal", "right_adrenal_gland"),
        ("adrenal_gland_right", "right_adrenal_gland"),
        ("gall bladder", "gallbladder"),
        ("Oesophagus", "esophagus"),
        ("left adrenal gland (LAG)", "left_adrenal_gland"),
        ("Kidney (left)", "left_kidney"),
        ("arota", "aorta"),
        ("postcava", "inferior_vena_cava"),
        ("Inferior Vena Cava (IVC)", "inferior_vena_cava"),
        ("portal vein and splenic vein", "portal_and_splenic_veins"),
        ("prostate/uterus", "prostate_or_uterus"),
        ("Head_of_femur_L", "left_femoral_head"),
        ("iliac_vena_left", "left_iliac_vein"),
        ("spleen", "spleen"),
        ("vertebrae_L5", "vertebrae_l5"),
        ("Left", "left"),
        ("cancer", "cancer"),
    ],
)
def test_spellings_of_others_become_ours(text, name):
    assert organ_name(text) == name


def test_a_name_without_letters_is_refused():
    with pytest.raises(ValueError, match=r"'12' is no name of an organ"):
        organ_name("12")


def test_a_pair_without_a_side_is_either():
    assert organs_meant("Kidney") == ("left_kidney", "right_kidney")
    assert organs_meant("adrenal") == ("left_adrenal_gland", "right_adrenal_gland")
    assert organs_meant("kidney_left") == ("left_kidney",)
    assert organs_meant("kidney tumor") == ("kidney_tumour",)


def test_a_misspelt_organ_is_found_and_a_new_one_let_be():
    assert did_you_mean("pancras") == "pancreas"
    assert did_you_mean("left_kidny") == "left_kidney"
    assert did_you_mean("kidney_left") == "left_kidney"
    assert did_you_mean("appendix") is None
    assert did_you_mean("apendix", others=["appendix"]) == "appendix"
    assert did_you_mean("appendix", others=["appendix"]) is None


@pytest.mark.parametrize(
    "classes",
    [
        ["background", "liver", "left_kidney", "right_kidney"],
        [
            "background",
            "postcava",
            "inferior_vena_cava",
            "aorta",
            "Aorta",
        ],  # one organ by two names: no sides, no pair
        ["background", "kidney_left", "right_kidney", "7"],
        ["background", *KNOWN_ORGANS],
    ],
)
def test_each_class_is_one_class_in_the_mirror_and_itself_in_two(classes):
    mirrored = mirrored_classes(classes)
    assert sorted(mirrored) == list(range(len(classes)))
    assert [mirrored[index] for index in mirrored] == list(range(len(classes)))
    for name, other in zip(classes, mirrored, strict=True):
        assert ("left" in name or "right" in name) == (classes[other] != name)


def test_a_pair_that_is_there_twice_is_no_pair():
    classes = ["background", "kidney_left", "left_kidney", "right_kidney"]
    assert unpaired_classes(classes) == ["kidney_left", "left_kidney", "right_kidney"]
    with pytest.raises(ValueError, match="the other side is not among the classes"):
        mirrored_classes(classes)
