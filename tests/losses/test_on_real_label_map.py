import nibabel
import numpy as np
import pytest

from partialseg.data import candidate_table, candidates
from partialseg.data.classes import PAPER_ORGANS, class_names
from partialseg.losses import PartialSupervision

CLASSES = class_names(PAPER_ORGANS)


@pytest.fixture(scope="module")
def label(real_data):
    volume = nibabel.load(real_data / "totalseg_example_3mm_label.nii.gz")
    return np.asarray(volume.dataobj).astype(int)[::2, ::2, ::2]


def hide_all_but(label, annotated):
    table = candidate_table(CLASSES, annotated)
    kept = [CLASSES.index(organ) for organ in annotated]
    return candidates(np.where(np.isin(label, kept), label, 0), table)[None]


@pytest.mark.parametrize("annotated", [PAPER_ORGANS, *([organ] for organ in PAPER_ORGANS), PAPER_ORGANS[3:]])
def test_the_truth_costs_nothing_whatever_is_annotated(label, annotated):
    logits = 20 * np.eye(len(CLASSES), dtype="float32")[label][None]
    values = PartialSupervision().values(hide_all_but(label, annotated), logits)
    for term, value in values.items():
        assert float(value[0]) == pytest.approx(0, abs=1e-5), term


@pytest.mark.parametrize("organ", PAPER_ORGANS)
def test_an_organ_missed_altogether_costs_only_where_it_is_annotated(label, organ):
    seen = np.where(label == CLASSES.index(organ), 0, label)
    logits = 20 * np.eye(len(CLASSES), dtype="float32")[seen][None]
    for annotated in PAPER_ORGANS:
        values = PartialSupervision(class_reduction="sum").values(hide_all_but(label, [annotated]), logits)
        for term, value in values.items():
            # Taken for background, an annotated organ is a mistake for every term.
            assert (float(value[0]) > 1e-4) == (annotated == organ), term
