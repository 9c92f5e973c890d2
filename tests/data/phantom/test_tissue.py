import numpy as np
import pytest

from partialseg.data.phantom.tissue import (
    ARTERIAL,
    COMPOSITES,
    LATE,
    NON_CONTRAST,
    PORTAL_VENOUS,
    TISSUE_ID,
    TISSUES,
    draw_appearance,
    tissue_of_name,
)


def mean_hu(phase):
    look = draw_appearance(np.random.default_rng(0), phase, spread=0.0)
    return {tissue.name: float(look.hu[TISSUE_ID[tissue.name]]) for tissue in TISSUES}


def test_kidney_cortex_is_brighter_than_medulla_in_the_arterial_phase_alone():
    assert mean_hu(ARTERIAL)["kidney_cortex"] > mean_hu(ARTERIAL)["kidney_medulla"] + 50
    assert abs(mean_hu(NON_CONTRAST)["kidney_cortex"] - mean_hu(NON_CONTRAST)["kidney_medulla"]) < 5


def test_liver_and_spleen_are_close_in_the_portal_venous_phase():
    hu = mean_hu(PORTAL_VENOUS)
    assert abs(hu["liver"] - hu["spleen"]) < 20


def test_urine_is_brightest_in_the_late_phase():
    assert mean_hu(LATE)["urine"] > 200 > mean_hu(PORTAL_VENOUS)["urine"]


def test_a_phase_between_two_lies_between_them():
    assert mean_hu(NON_CONTRAST)["liver"] < mean_hu(0.5)["liver"] < mean_hu(ARTERIAL)["liver"]


def test_an_unknown_phase_is_refused():
    with pytest.raises(ValueError, match="got 4"):
        draw_appearance(np.random.default_rng(0), 4.0)


@pytest.mark.parametrize(
    ("name", "tissue"),
    [
        ("liver", "liver"),
        ("Right Kidney", "kidney"),
        ("kidney_tumour", "kidney_tumour"),
        ("liver-cancer", "liver_tumour"),
        ("pancreas lesion", "pancreas_tumour"),
        ("gallbladder", "bile"),
        ("bladder", "bladder"),
        ("oesophagus", "esophagus"),
        ("duodenum", "bowel"),
        ("rectum", "colon"),
        ("head of left femur", "bone"),
        ("inferior vena cava", "vena_cava"),
        ("something else", "soft_tissue"),
    ],
)
def test_names_of_organs_mean_their_tissue(name, tissue):
    assert tissue_of_name(name) == tissue
    assert tissue in TISSUE_ID or tissue in COMPOSITES
