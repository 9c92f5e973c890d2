"""The four terms against a slow NumPy version that says what is meant, on random candidates.

Values and gradients, in the finest precision that the backend has. The gradient of the slow version is its
complex step.
"""

import importlib.util
import itertools
from pathlib import Path

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from partialseg.losses import (
    ExclusionCrossEntropy,
    ExclusionDice,
    MarginalCrossEntropy,
    MarginalDice,
    PartialSupervision,
)

EPSILON = 1e-7
TERMS = ("mCE", "mDC", "eCE", "eDC")


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
    """`{term: one value per sample}`; logits in double precision, real or complex."""
    p = np.apply_along_axis(softmax, -1, logits)
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


CHOICES = {
    "class_reduction": ["mean", "sum"],
    "include_background": [True, False],
    "batch": [False, True],
    "merged_background_excludes": [True, False],
    "partial_samples_only": [True, False],
}
EVERY_OPTION = [dict(zip(CHOICES, chosen, strict=True)) for chosen in itertools.product(*CHOICES.values())]
# Few shapes, since a backend may compile each operation anew for each. With one, two and three spatial axes.
SHAPES = [(1, 1, 2), (1, 2, 3, 3), (2, 3, 4), (3, 2, 1, 2, 6)]
EXAMPLES = 15 if keras.backend.backend() == "jax" else 40


@st.composite
def partitions(draw):
    """Candidates as datasets make them: per sample a partition of the classes, per voxel a part or all."""
    candidates = np.zeros(draw(st.sampled_from(SHAPES)), np.uint8)
    num_classes = candidates.shape[-1]
    for sample in flat(candidates):
        part = np.array(draw(st.lists(st.integers(0, 3), min_size=num_classes, max_size=num_classes)))
        for voxel in sample:
            voxel[:] = draw(st.sampled_from([*(part == i for i in np.unique(part)), np.ones(num_classes)]))
    return candidates


@st.composite
def any_sets(draw):
    """Any candidates at all, also sets that overlap and empty ones."""
    return draw(hnp.arrays(np.uint8, draw(st.sampled_from(SHAPES)), elements=st.integers(0, 1)))


def flat(candidates):
    """`(batch, ..., classes)` as `(batch, voxels, classes)`, of the same memory."""
    return candidates.reshape(len(candidates), -1, candidates.shape[-1])


def weighted(values, chosen=TERMS):
    """The sum of terms and samples, each with a weight of its own, so that none stands in for another."""
    total = 0
    for place, term in enumerate(chosen):
        total = total + sum((1 + place + 0.3 * i) * values[term][i] for i in range(len(values[term])))
    return total


def check(candidates, options, seed, value_and_gradient, complex_step, dtype):
    logits = np.random.default_rng(seed).normal(0, 3, candidates.shape).astype("float32")
    loss = PartialSupervision(**options)
    values = loss.values(candidates, logits)
    for term, expected in reference(flat(candidates), flat(logits).astype("float64"), options).items():
        np.testing.assert_allclose(values[term], expected, rtol=2e-6, atol=2e-6, err_msg=term)

    def slow(logits):
        return weighted(reference(flat(candidates), flat(logits), options))

    precision = 50 * np.finfo(dtype).eps
    value, gradient = value_and_gradient(lambda x: weighted(loss.values(candidates, x)), logits, dtype)
    assert value == pytest.approx(slow(logits.astype("float64")), rel=precision, abs=precision)
    np.testing.assert_allclose(gradient, complex_step(slow, logits), rtol=precision, atol=precision)


@settings(max_examples=EXAMPLES, deadline=None)
@given(partitions(), st.sampled_from(EVERY_OPTION), st.integers(0, 2**31))
def test_terms_equal_the_reference_on_partitions(
    value_and_gradient, complex_step, finest_dtype, candidates, options, seed
):
    check(candidates, options, seed, value_and_gradient, complex_step, finest_dtype)


@settings(max_examples=EXAMPLES, deadline=None)
@given(any_sets(), st.sampled_from(EVERY_OPTION), st.integers(0, 2**31))
def test_terms_equal_the_reference_on_any_sets(
    value_and_gradient, complex_step, finest_dtype, candidates, options, seed
):
    check(candidates, options, seed, value_and_gradient, complex_step, finest_dtype)


# Background, liver, spleen, pancreas, left kidney, right kidney: what each dataset's voxels may be.
LABEL_SETS = {
    "all organs": np.eye(6, dtype=np.uint8)[[1, 0, 4]],
    "liver": [[1, 0, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]],
    "kidney, left or right": [[1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]],
    "all but pancreas, left or right kidney": [[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0]],
    "kidneys merged, no background seen": [[0, 0, 0, 0, 1, 1], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]],
    "nothing": np.ones((3, 6), np.uint8),
}
MIXED = np.array(list(LABEL_SETS.values()), np.uint8)

float64_in_keras = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="finite differences need float64, which Keras' operations turn into float32 on this backend",
)


@pytest.mark.parametrize("options", EVERY_OPTION, ids=lambda o: "-".join(str(value) for value in o.values()))
def test_every_option_equals_the_reference_on_mixed_label_sets(options, value_and_gradient, finest_dtype):
    rng, precision = np.random.default_rng(3), 50 * np.finfo(finest_dtype).eps
    logits, directions = rng.normal(0, 1, MIXED.shape), rng.normal(0, 1, (3, *MIXED.shape))
    loss = PartialSupervision(**options)

    def slow(logits):
        return weighted(reference(MIXED, logits, options))

    value, gradient = value_and_gradient(lambda x: weighted(loss.values(MIXED, x)), logits, finest_dtype)
    slopes = [np.imag(slow(logits + 1e-30j * direction)) * 1e30 for direction in directions]
    assert value == pytest.approx(slow(logits), rel=precision)
    np.testing.assert_allclose((directions * gradient).sum((1, 2, 3)), slopes, atol=10 * precision)


#: The terms of each loss, with their weights.
WEIGHTS = {
    MarginalCrossEntropy: {"mCE": 1},
    MarginalDice: {"mDC": 1},
    ExclusionCrossEntropy: {"eCE": 1},
    ExclusionDice: {"eDC": 1},
    PartialSupervision: {"mCE": 1, "mDC": 1, "eCE": 2, "eDC": 2},
}


def mean_over_samples(candidates, logits, make):
    terms = reference(candidates, logits, EVERY_OPTION[0])
    return sum(weight * np.sum(terms[term]) for term, weight in WEIGHTS[make].items()) / len(candidates)


@pytest.mark.parametrize("make", WEIGHTS)
def test_each_loss_equals_the_reference_in_every_way_of_running(
    make, compiled, value_and_gradient, complex_step, finest_dtype
):
    loss, precision = make(dtype=finest_dtype), 50 * np.finfo(finest_dtype).eps
    logits = np.random.default_rng(8).normal(0, 2, MIXED.shape)
    value, gradient = value_and_gradient(compiled(lambda x: loss(MIXED, x)), logits, finest_dtype)
    assert value == pytest.approx(mean_over_samples(MIXED, logits, make), rel=precision)
    expected = complex_step(lambda x: mean_over_samples(MIXED, x, make), logits)
    np.testing.assert_allclose(gradient, expected, atol=precision)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="dynamic shapes are of TensorFlow's graphs"
)
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("make", WEIGHTS)
def test_a_loss_of_unknown_sizes_takes_other_numbers_of_classes(
    make, jit_compile, value_and_gradient, complex_step
):
    import tensorflow as tf

    rng, loss = np.random.default_rng(9), make(dtype="float64")
    for num_classes in (3, 4, 6, 3):
        candidates = MIXED[:4, :, :num_classes].reshape(4, 1, 3, 1, num_classes).astype("float64")
        sizes = tf.TensorSpec((None, None, None, None, num_classes), tf.float64)
        graph = tf.function(loss, jit_compile=jit_compile, input_signature=[sizes, sizes])
        logits = rng.normal(0, 2, (4, 3, num_classes))
        value, gradient = value_and_gradient(
            lambda x, graph=graph, candidates=candidates: graph(candidates, x),
            logits.reshape(candidates.shape),
            "float64",
        )

        def slow(logits, candidates=candidates):
            return mean_over_samples(flat(candidates), logits, make)

        assert value == pytest.approx(slow(logits), rel=1e-13)
        np.testing.assert_allclose(flat(gradient), complex_step(slow, logits), atol=1e-13)


@pytest.mark.parametrize("shape", [(3,), (1, 3, 1)], ids=str)
@pytest.mark.parametrize("options", EVERY_OPTION[::5], ids=lambda o: "-".join(map(str, o.values())))
def test_probabilities_equal_the_reference_and_their_logarithms(
    options, shape, value_and_gradient, complex_step, finest_dtype
):
    shape, precision = (len(MIXED), *shape, 6), 50 * np.finfo(finest_dtype).eps
    probabilities = 0.9 * np.random.default_rng(7).dirichlet(np.ones(6), MIXED.shape[:2]) + 0.1 / 6
    probabilities = probabilities.astype(finest_dtype).astype("float64")
    loss = PartialSupervision(**options, from_logits=False)

    def fast(probabilities):
        return weighted(loss.values(MIXED.reshape(shape), probabilities))

    def slow(probabilities):
        return weighted(reference(MIXED, np.log(flat(probabilities)), options))

    value, gradient = value_and_gradient(fast, probabilities.reshape(shape), finest_dtype)
    assert value == pytest.approx(slow(probabilities), rel=precision)
    expected = complex_step(slow, probabilities).reshape(shape)
    np.testing.assert_allclose(gradient, expected, rtol=precision, atol=precision * np.abs(expected).max())


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_gradient_is_exact_but_for_the_rounding_to_the_dtype_of_the_logits(
    batch, dtype, value_and_gradient, complex_step
):
    options = {**EVERY_OPTION[0], "batch": batch}
    logits = np.random.default_rng(5).normal(0, 3, MIXED.shape).astype(dtype).astype("float64")
    loss = PartialSupervision(**options)
    for term in TERMS:
        value, gradient = value_and_gradient(
            lambda x, term=term: weighted(loss.values(MIXED, x), [term]), logits, dtype
        )

        def slow(logits, term=term):
            return weighted(reference(MIXED, logits, options), [term])

        expected = complex_step(slow, logits)
        assert value == pytest.approx(slow(logits), rel=2e-6), term
        largest_error = np.abs(gradient - expected).max() / np.abs(expected).max()
        # Rounded to nearest, an entry is wrong by half of eps; float32 is also computed in.
        assert largest_error < float(ml_dtypes.finfo(dtype).eps) * (10 if dtype == "float32" else 0.51), term


@float64_in_keras
@pytest.mark.parametrize("options", EVERY_OPTION, ids=lambda o: "-".join(str(value) for value in o.values()))
def test_gradient_of_every_option_equals_finite_differences(options, value_and_gradient):
    rng, step = np.random.default_rng(3), 1e-5
    logits, direction = rng.normal(0, 1, MIXED.shape), rng.normal(0, 1, MIXED.shape)
    loss = PartialSupervision(**options)
    _, gradient = value_and_gradient(lambda x: weighted(loss.values(MIXED, x)), logits, "float64")
    ahead, behind = (
        float(weighted(loss.values(MIXED, logits + side * step * direction))) for side in (1, -1)
    )
    assert (gradient * direction).sum() == pytest.approx((ahead - behind) / (2 * step), rel=1e-7)


@float64_in_keras
@pytest.mark.parametrize("term", TERMS)
def test_gradient_at_probabilities_equals_finite_differences(term, value_and_gradient):
    rng, step = np.random.default_rng(4), 1e-6
    probabilities, direction = rng.dirichlet(np.ones(6), MIXED.shape[:2]), rng.normal(0, 1, MIXED.shape)
    probabilities = 0.9 * probabilities + 0.1 / 6  # clear of the clip at 1e-7
    loss = PartialSupervision(terms=[term], from_logits=False, dtype="float64")
    _, gradient = value_and_gradient(lambda x: loss(MIXED, x), probabilities, "float64")
    ahead, behind = (float(loss(MIXED, probabilities + side * step * direction)) for side in (1, -1))
    assert (gradient * direction).sum() == pytest.approx((ahead - behind) / (2 * step), rel=1e-6)


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "loss_precision.py"
    spec = importlib.util.spec_from_file_location("loss_precision", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_of_the_benchmark_is_this_one(benchmark):
    candidates, logits = benchmark.partitions()
    direction = np.random.default_rng(6).normal(0, 1, logits.shape[1:])
    for sample, x in [*zip(candidates[:20], logits, strict=False), *zip(MIXED, logits[:, :3], strict=False)]:
        moved = x[None] + 1e-30j * direction[: len(x)]
        exact = reference(sample[None], moved, EVERY_OPTION[0])
        for term, (value, gradient) in benchmark.reference(sample, x).items():
            assert value == pytest.approx(np.real(exact[term][0]), rel=1e-12, abs=1e-14), term
            slope = np.imag(exact[term][0]) * 1e30
            assert (gradient * direction[: len(x)]).sum() == pytest.approx(slope, rel=1e-10, abs=1e-14), term
