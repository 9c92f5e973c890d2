"""Terms class by class: they must come to the terms that training sums."""

import numpy as np
import pytest
from keras import ops

from partialseg.losses import PRESETS, PartialSupervision, preset
from partialseg.losses.class_terms import class_terms

CLASSES = 5


def patches(partial=True, seed=0):
    """Two samples of 6 x 5 x 4 voxels: candidates, and logits."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, CLASSES, (2, 6, 5, 4))
    candidates = np.eye(CLASSES, dtype=np.uint8)[truth]
    if partial:  # class 2 alone is annotated in the first sample
        merged = np.array([1, 1, 0, 1, 1], np.uint8)
        candidates[0][truth[0] != 2] = merged
    candidates[1, 0] = 1  # ignored
    return candidates, random.normal(0, 3, candidates.shape).astype("float32")


def arrays(candidates, logits, **options):
    return {
        term: ops.convert_to_numpy(values)
        for term, values in class_terms(candidates, logits, **options).items()
    }


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("merged_background_excludes", [False, True])
def test_they_come_to_the_terms_of_the_loss(partial, merged_background_excludes):
    candidates, logits = patches(partial)
    options = {"merged_background_excludes": merged_background_excludes}
    found = arrays(candidates, logits, **options)
    loss = PartialSupervision(class_reduction="sum", **options)
    whole = {term: ops.convert_to_numpy(value) for term, value in loss.values(candidates, logits).items()}
    known = candidates.min(axis=-1) == 0
    lowest = candidates.argmax(axis=-1)
    voxels = np.prod(known.shape[1:])
    for sample in range(2):
        labelled = np.array([np.sum((lowest[sample] == k) & known[sample]) for k in range(CLASSES)])
        excluded = (1 - candidates[sample]) * known[sample][..., None]
        if not merged_background_excludes:
            excluded = excluded * (1 - candidates[sample][..., :1])
        excluded = excluded.sum(axis=(0, 1, 2))
        for term, weights in (("mCE", labelled / voxels), ("mDC", 1), ("eCE", excluded / voxels), ("eDC", 1)):
            assert np.isnan(found["mDC"][sample]).sum() == (
                3 if partial and sample == 0 else 0
            )  # none is absent
            total = np.nansum(found[term][sample] * weights)
            assert total == pytest.approx(whole[term][sample], rel=1e-5, abs=1e-6), (term, sample)


def test_an_organ_is_told_by_its_own_voxels():
    candidates, logits = patches(partial=False)
    logits = np.where(candidates > 0, 20.0, 0.0).astype("float32")
    logits[0][candidates[0, ..., 3] > 0] = 0  # the network does not know organ 3 in the first sample
    found = arrays(candidates, logits)
    assert found["mCE"][0, 3] == pytest.approx(np.log(CLASSES), rel=1e-5)
    assert np.delete(found["mCE"][0], 3).max() < 1e-5
    assert found["mDC"][0].argmax() == 3


def test_merged_classes_and_what_nothing_excludes_are_no_numbers():
    found = arrays(*patches())
    assert np.isnan(found["mCE"][0]).tolist() == [False, True, False, True, True]
    assert np.isnan(found["mDC"][0]).tolist() == [False, True, False, True, True]
    assert not np.isnan(found["eDC"][0]).any()
    assert np.isnan(found["eDC"][1]).all()
    assert np.isnan(found["eCE"][1]).all()


def test_an_organ_without_a_voxel_has_no_dice():
    candidates, logits = patches(partial=False)
    absent = candidates[0, ..., 4] > 0
    candidates[0][absent] = np.eye(CLASSES, dtype=np.uint8)[1]
    dice = arrays(candidates, logits)["mDC"]
    assert np.isnan(dice).tolist() == [[False] * 4 + [True], [False] * 5]
    whole = PartialSupervision(class_reduction="sum").values(candidates, logits)["mDC"]
    assert float(whole[0]) == pytest.approx(np.nansum(dice[0]) + 1, rel=1e-5)


def test_background_takes_part_where_the_loss_includes_it():
    candidates, logits = patches()
    loss = PartialSupervision(include_background=False, class_reduction="sum")
    whole, per_class = loss.values(candidates, logits), loss.class_values(candidates, logits)
    for term, values in per_class.items():
        assert np.isnan(ops.convert_to_numpy(values)[:, 0]).all() == (term != "mCE"), term
    for term in ("mDC", "eDC"):
        dice = np.nansum(ops.convert_to_numpy(per_class[term]), axis=1)
        np.testing.assert_allclose(dice, ops.convert_to_numpy(whole[term]), rtol=1e-5)


def test_exclusion_of_all_samples_is_told_where_it_is_summed():
    candidates, logits = patches()
    loss = PartialSupervision(partial_samples_only=False, class_reduction="sum")
    whole, per_class = loss.values(candidates, logits), loss.class_values(candidates, logits)
    dice = ops.convert_to_numpy(per_class["eDC"])
    assert not np.isnan(dice).any()
    np.testing.assert_allclose(dice.sum(axis=1), ops.convert_to_numpy(whole["eDC"]), rtol=1e-5)


def test_an_ignored_sample_has_no_terms():
    candidates, logits = patches()
    candidates[:] = 1
    assert all(np.isnan(values).all() for values in arrays(candidates, logits).values())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_tells_its_terms_by_class(name):
    options = {"prior": [0.6, 0.1, 0.1, 0.1, 0.1], "dual_rate": None} if name == "prior_aware" else {}
    loss, (candidates, logits) = preset(name, **options), patches()
    whole, per_class = loss.values(candidates, logits), loss.class_values(candidates, logits)
    assert list(per_class) == list(whole)
    for term, values in per_class.items():
        values = ops.convert_to_numpy(values)
        assert values.shape == (2, CLASSES)
        assert np.isfinite(values).any(), term


#: Of losses whose cross-entropy is a mean over all voxels of each voxel's -log of its set.
CROSS_ENTROPIES = {
    "target_adaptive": "TAL",
    "naive_background": "CE",
    "leaf_dice": "mCE",
    "label_set_dice": "mCE",
    "published_code_with_summed_logits": "CE",
}


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_cross_entropies_of_the_classes_come_to_the_whole(name):
    candidates, logits = patches()
    options = {"cross_entropy": 1.0} if CROSS_ENTROPIES[name] == "mCE" else {}
    loss, term = preset(name, **options), CROSS_ENTROPIES[name]
    per_class = ops.convert_to_numpy(loss.class_values(candidates, logits)[term])
    known = candidates.min(axis=-1) == 0
    lowest = candidates.argmax(axis=-1)
    labelled = np.array([[np.sum((lowest[s] == k) & known[s]) for k in range(CLASSES)] for s in range(2)])
    total = np.nansum(per_class * labelled, axis=1) / known[0].size
    whole = np.broadcast_to(ops.convert_to_numpy(loss.values(candidates, logits)[term]), (2,))
    np.testing.assert_allclose(total, whole, rtol=1e-5)


def test_sigmoid_cross_entropy_of_an_organ_is_that_of_its_voxels():
    candidates, logits = patches(partial=False)
    found = ops.convert_to_numpy(preset("masked_sigmoid").class_values(candidates, logits)["BCE"])
    known = candidates.min(axis=-1) == 0
    p = 1 / (1 + np.exp(logits[..., :1] - logits.astype("float64")))  # of the organ against background
    nll = -np.where(candidates > 0, np.log(p), np.log1p(-p))
    for sample in range(2):
        np.testing.assert_allclose(found[sample, 1:], nll[sample][known[sample]].mean(axis=0)[1:], rtol=1e-4)


@pytest.mark.parametrize("name", ["leaf_dice", "label_set_dice", "masked_sigmoid"])
def test_terms_of_a_class_sum_to_the_term(name):
    candidates, logits = patches()
    loss = preset(name, class_reduction="sum")
    term = {"leaf_dice": "leafDC", "label_set_dice": "setDC", "masked_sigmoid": "DC"}[name]
    whole = ops.convert_to_numpy(loss.values(candidates, logits)[term])
    per_class = ops.convert_to_numpy(loss.class_values(candidates, logits)[term])
    np.testing.assert_allclose(np.nansum(per_class, axis=1), whole, rtol=1e-5)


def test_prior_of_a_class_sums_to_the_prior_term():
    candidates, logits = patches()
    loss = preset("prior_aware", prior=[0.6, 0.1, 0.1, 0.1, 0.1], dual_rate=None)
    whole = ops.convert_to_numpy(loss.values(candidates, logits)["prior"])
    per_class = ops.convert_to_numpy(loss.class_values(candidates, logits)["prior"])
    np.testing.assert_allclose(per_class.sum(axis=1), whole, rtol=1e-4)


def test_published_terms_of_a_class_are_averaged():
    candidates, logits = patches()
    loss = preset("published_code_with_summed_logits", batch=False)
    whole, per_class = loss.values(candidates, logits), loss.class_values(candidates, logits)
    dice = ops.convert_to_numpy(per_class["DC"])
    np.testing.assert_allclose(np.nanmean(dice, axis=1), ops.convert_to_numpy(whole["DC"]), rtol=1e-5)
    exclusion = ops.convert_to_numpy(per_class["eDC"])
    np.testing.assert_allclose(np.nanmean(exclusion[0]), ops.convert_to_numpy(whole["eDC"])[0], rtol=1e-5)
    assert np.isnan(exclusion[1]).all()


def test_organs_in_background_are_taken_as_the_baselines_take_them():
    candidates, logits = patches()
    naive = preset("naive_background").class_values(candidates, logits)
    ignored = preset("ignore_background").class_values(candidates, logits)
    assert np.isnan(ops.convert_to_numpy(naive["CE"])[0]).tolist() == [False, True, False, True, True]
    assert np.isnan(ops.convert_to_numpy(ignored["CE"])[0]).tolist() == [True, True, False, True, True]
