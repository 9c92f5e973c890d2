import dataclasses

import numpy as np
import pytest

from partialseg.data.classes import PAPER_ORGANS
from partialseg.data.phantom import tumours
from partialseg.data.phantom.anatomy import paint_patient
from partialseg.data.phantom.cohorts import COHORTS, draw_patient, draw_scan
from partialseg.data.phantom.layouts import truth_labels
from partialseg.data.phantom.tissue import TISSUE_ID

#: The whole abdomen, so that no organ is cut.
AXES = (np.arange(-140.0, 175.0, 6.0), np.arange(-95.0, 160.0, 6.0), np.arange(-174.0, 175.0, 6.0))
ADULT_ML = {
    "liver": (800, 2500),
    "spleen": (80, 450),
    "pancreas": (50, 170),
    "left_kidney": (90, 290),
    "right_kidney": (90, 290),
}


@pytest.fixture(scope="module")
def patients():
    drawn = [
        draw_patient(cohort, (0, *cohort.dataset.encode(), case)) for cohort in COHORTS for case in (0, 1)
    ]
    return [(patient, paint_patient(patient, AXES)) for patient in drawn]


def test_organ_volumes_are_those_of_adults(patients):
    for patient, canvas in patients:
        labels = truth_labels(canvas)
        for value, organ in enumerate(PAPER_ORGANS, start=1):
            volume = int((labels == value).sum()) * 0.216
            low, high = (0, 0) if organ == patient.missing_kidney else ADULT_ML[organ]
            assert low <= volume <= high, (organ, volume)


def test_organs_lie_on_their_side_and_level(patients):
    for patient, canvas in patients:
        x, y, z = canvas.points
        centre = {
            organ: [float(c[canvas.organ_mask(organ)].mean()) for c in (x, y, z)]
            for organ in PAPER_ORGANS
            if organ != patient.missing_kidney
        }
        assert centre["spleen"][0] < -50 < 40 < centre["liver"][0]
        assert centre["liver"][2] < patient.torso.dome_mm
        assert centre["pancreas"][1] > 25
        for side, sign in (("left_kidney", -1), ("right_kidney", 1)):
            if side in centre:
                assert 40 < sign * centre[side][0] < 95
                assert centre[side][1] < 10


def test_spleen_touches_no_air_outside_the_body(patients):
    for _, canvas in patients:
        air = canvas.tissue == TISSUE_ID["air"]
        spleen = canvas.organ_mask("spleen")
        assert not (air[:, 1:] & spleen[:, :-1]).any()
        assert not (air[:, :, 1:] & spleen[:, :, :-1]).any()


def test_distractors_are_there(patients):
    drawn = [set(np.unique(canvas.tissue)) for _, canvas in patients]
    for tissue in (
        "lung",
        "cortical_bone",
        "muscle",
        "aorta",
        "vena_cava",
        "bowel_wall",
        "stomach_wall",
        "bile",
    ):
        assert all(TISSUE_ID[tissue] in tissues for tissues in drawn), tissue


def test_a_missing_kidney_is_missing():
    kits = next(cohort for cohort in COHORTS if cohort.dataset == "kits19")
    patient = draw_patient(kits, (3,), missing_kidney=True)
    canvas = paint_patient(patient, AXES)
    other = "left_kidney" if patient.missing_kidney == "right_kidney" else "right_kidney"
    assert not canvas.organ_mask(patient.missing_kidney).any()
    assert canvas.organ_mask(other).any()


def test_any_grid_samples_the_same_patient():
    patient = draw_patient(COHORTS[0], (5,))
    fine = paint_patient(patient, tuple(axis[10:40] for axis in AXES))
    whole = paint_patient(patient, AXES)
    part = truth_labels(whole)[10:40, 10:40, 10:40]
    # Gas stands at the level of what the scan shows of a loop, so tissues may differ; organs may not.
    assert (truth_labels(fine) == part).mean() > 0.999


def test_the_fully_annotated_cohort_is_narrower_than_the_others():
    first, *others = COHORTS
    assert all(other.warp_mm > first.warp_mm for other in others)
    scans = {c.dataset: [draw_scan(c, (n,), (64, 64)).phase for n in range(20)] for c in COHORTS}
    assert np.ptp(scans["btcv"]) < 0.4
    assert max(scans["kits19"]) < min(scans["btcv"])
    assert np.ptp(scans["msd_liver"]) > 1.5


def test_kidney_tumours_grow_into_no_bone_muscle_or_lung():
    kits = next(cohort for cohort in COHORTS if cohort.dataset == "kits19")
    grown = 0
    for case in range(6):
        patient = draw_patient(kits, (0, *kits.dataset.encode(), case))
        bare = paint_patient(dataclasses.replace(patient, tumours={}), AXES)
        canvas = paint_patient(patient, AXES)
        kept = np.isin(bare.tissue, [TISSUE_ID[name] for name in tumours._BONE if name in TISSUE_ID])
        tumour = (truth_labels(canvas) > 3) & (truth_labels(bare) <= 3)
        grown += int(tumour.sum())
        assert not (tumour & kept).any(), f"case {case}"
    assert grown > 0
