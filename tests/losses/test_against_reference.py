"""The four terms against a slow NumPy version that says what is meant, on random candidates."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from partialseg.losses import PartialSupervision

EPSILON = 1e-7


def softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def known_voxels(sample):
    return [v for v, voxel in enumerate(sample) if 0 < sum(voxel) < len(voxel)]


def leaders(sample):
    """For each class the lowest class of its merged class."""
    lead = list(range(sample.shape[1]))
    for _ in lead:
        for v in known_voxels(sample):
            lowest = min(lead[n] for n in np.flatnonzero(sample[v]))
            for n in np.flatnonzero(sample[v]):
                lead[n] = lowest
    return lead


def marginal_sums(sample, p):
    """{merged class: [overlap, truth, predicted]}."""
    lead = leaders(sample)
    sums = {m: [0.0, 0.0, 0.0] for m in lead} if known_voxels(sample) else {}
    for v in known_voxels(sample):
        own = lead[np.flatnonzero(sample[v])[0]]
        for m in sums:
            q = sum(p[v, n] for n in range(len(lead)) if lead[n] == m)
            z = float(m == own)
            sums[m] = [sums[m][0] + z * q, sums[m][1] + z, sums[m][2] + q]
    return sums


def excludes(sample, v, n, options):
    if v not in known_voxels(sample) or sample[v, n]:
        return 0.0
    return 0.0 if sample[v, 0] and not options["merged_background_excludes"] else 1.0


def exclusion_sums(sample, p, options):
    """{class: [overlap, excluded, predicted]}, nothing if the sample does not take part."""
    if options["partial_samples_only"] and not is_partial(sample):
        return {}
    sums = {}
    for n in range(sample.shape[1]):
        e = [excludes(sample, v, n, options) for v in range(len(sample))]
        sums[n] = [np.dot(e, p[:, n]), sum(e), sum(p[v, n] for v in known_voxels(sample))]
    return sums


def is_partial(sample):
    return any(sum(sample[v]) > 1 for v in known_voxels(sample))


def reduce_dice(sums, options, sign):
    """Reduce over classes; `sign` -1 for one minus Dice."""
    scores = [
        2 * overlap / (truth + predicted + EPSILON)
        for m, (overlap, truth, predicted) in sums.items()
        if m > 0 or options["include_background"]
    ]
    scores = [1 - score for score in scores] if sign < 0 else scores
    return sum(scores) / (max(len(scores), 1) if options["class_reduction"] == "mean" else 1)


def per_sample_or_batch(all_sums, options, sign):
    if not options["batch"]:
        return [reduce_dice(sums, options, sign) for sums in all_sums]
    total = {m: np.sum([sums[m] for sums in all_sums if m in sums], axis=0) for m in set().union(*all_sums)}
    return [reduce_dice(total, options, sign)] * len(all_sums)


def reference(candidates, logits, options):
    p = np.apply_along_axis(softmax, -1, logits.astype("float64"))
    num_classes, first = candidates.shape[-1], 0 if options["include_background"] else 1
    mce, ece = [], []
    for sample, probability in zip(candidates, p, strict=True):
        known = known_voxels(sample)
        mce.append(-sum(np.log(probability[v] @ sample[v]) for v in known) / len(sample))
        takes_part = is_partial(sample) or not options["partial_samples_only"]
        pairs = itertools.product(range(len(sample)), range(first, num_classes))
        penalty = sum(excludes(sample, v, n, options) * np.log(probability[v, n] + 1) for v, n in pairs)
        ece.append(takes_part * penalty / len(sample))
    marginal = [marginal_sums(sample, probability) for sample, probability in zip(candidates, p, strict=True)]
    exclusion = [
        exclusion_sums(s, probability, options) for s, probability in zip(candidates, p, strict=True)
    ]
    return {
        "mCE": mce,
        "mDC": per_sample_or_batch(marginal, options, -1),
        "eCE": ece,
        "eDC": per_sample_or_batch(exclusion, options, 1),
    }


OPTIONS = st.fixed_dictionaries(
    {
        "class_reduction": st.sampled_from(["mean", "sum"]),
        "include_background": st.booleans(),
        "batch": st.booleans(),
        "merged_background_excludes": st.booleans(),
        "partial_samples_only": st.booleans(),
    }
)


@st.composite
def partitions(draw):
    """Candidates as datasets make them: per sample a partition of the classes, per voxel a part or all."""
    num_samples, num_voxels, num_classes = draw(st.tuples(*[st.integers(1, 3)] * 2, st.integers(2, 6)))
    candidates = np.zeros((num_samples, num_voxels, num_classes), np.uint8)
    for sample in candidates:
        part = np.array(draw(st.lists(st.integers(0, 3), min_size=num_classes, max_size=num_classes)))
        for voxel in sample:
            voxel[:] = draw(st.sampled_from([*(part == i for i in np.unique(part)), np.ones(num_classes)]))
    return candidates


@st.composite
def any_sets(draw):
    """Any candidates at all, also sets that overlap and empty ones."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 6)))
    return draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 1)))


def check(candidates, options, seed):
    logits = np.random.default_rng(seed).normal(0, 3, candidates.shape).astype("float32")
    values = PartialSupervision(**options).values(candidates, logits)
    for term, expected in reference(candidates, logits, options).items():
        np.testing.assert_allclose(values[term], expected, rtol=2e-5, atol=2e-6, err_msg=term)


@settings(max_examples=60, deadline=None)
@given(partitions(), OPTIONS, st.integers(0, 2**31))
def test_terms_equal_the_reference_on_partitions(candidates, options, seed):
    check(candidates, options, seed)


@settings(max_examples=60, deadline=None)
@given(any_sets(), OPTIONS, st.integers(0, 2**31))
def test_terms_equal_the_reference_on_any_sets(candidates, options, seed):
    check(candidates, options, seed)


@pytest.mark.parametrize("term", ["mCE", "mDC", "eCE", "eDC"])
@pytest.mark.parametrize("batch", [False, True])
def test_gradient_equals_finite_differences(term, batch):
    rng = np.random.default_rng(3)
    candidates = np.eye(4)[rng.integers(0, 4, (3, 5))]
    candidates[0, candidates[0, :, 1] == 0] = [1, 0, 1, 1]
    candidates[1, :2], candidates[1, 4] = [0, 1, 1, 0], [1, 1, 1, 1]
    logits = rng.normal(0, 1, candidates.shape)
    loss = PartialSupervision(terms=[term], batch=batch, dtype="float64")
    variable = tf.Variable(logits, dtype="float64")
    with tf.GradientTape() as tape:
        value = loss(candidates, variable)
    gradient = tape.gradient(value, variable).numpy()
    evaluate = tf.function(lambda moved: loss(candidates, moved))
    step, differences = 1e-6, np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        up, down = logits.copy(), logits.copy()
        up[index] += step
        down[index] -= step
        differences[index] = (evaluate(tf.constant(up)) - evaluate(tf.constant(down))) / (2 * step)
    assert np.abs(gradient).max() > 1e-3
    np.testing.assert_allclose(gradient, differences, atol=1e-8)
