"""Shares of datasets and exact quotas; no TensorFlow."""

import math
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from partialseg.data.mixing import EpochQuotas, dataset_shares, dataset_weights

NUM_CASES = {"btcv": 24, "liver": 104, "pancreas": 225}
WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=12).map(
    lambda weights: {f"dataset{index}": weight for index, weight in enumerate(weights)}
)


def test_equal_shares_do_not_depend_on_the_cases():
    assert dataset_shares(NUM_CASES, "equal") == dict.fromkeys(NUM_CASES, 1 / 3)


def test_proportional_shares_give_every_case_the_same():
    shares = dataset_shares(NUM_CASES, "proportional")
    assert {name: share / NUM_CASES[name] for name, share in shares.items()} == pytest.approx(
        dict.fromkeys(NUM_CASES, 1 / 353)
    )


def test_inverse_sqrt_weighs_every_case_by_one_over_the_root():
    shares = dataset_shares(NUM_CASES, "inverse_sqrt")
    per_case = {name: share / NUM_CASES[name] for name, share in shares.items()}
    for name, num in NUM_CASES.items():
        assert per_case[name] / per_case["btcv"] == pytest.approx(math.sqrt(24 / num))


def test_inverse_sqrt_lies_between_the_two_others():
    equal, root, proportional = (
        dataset_shares(NUM_CASES, mix) for mix in ("equal", "inverse_sqrt", "proportional")
    )
    assert proportional["btcv"] < root["btcv"] < equal["btcv"]
    assert equal["pancreas"] < root["pancreas"] < proportional["pancreas"]


@pytest.mark.parametrize("mix", ["equal", "proportional", "inverse_sqrt"])
def test_shares_add_up_to_one(mix):
    assert sum(dataset_shares(NUM_CASES, mix).values()) == pytest.approx(1)


@pytest.mark.parametrize("mix", ["equal", "proportional", "inverse_sqrt"])
def test_datasets_with_as_many_cases_weigh_exactly_the_same(mix):
    weights = dataset_weights({"a": 7, "b": 11, "c": 7}, mix)
    assert weights["a"] == weights["c"]


@pytest.mark.parametrize("num_cases", [{}, {"a": 3, "b": 0}])
def test_a_dataset_without_cases_is_refused(num_cases):
    with pytest.raises(ValueError, match="expected datasets with at least one case"):
        dataset_weights(num_cases, "equal")


def test_an_unknown_mix_is_refused():
    with pytest.raises(ValueError, match="mix is 'sqrt', expected equal"):
        dataset_weights(NUM_CASES, "sqrt")


@settings(max_examples=200, deadline=None)
@given(weights=WEIGHTS, num_patches=st.integers(1, 40), epochs=st.integers(1, 60))
# Without the tie-breaks, these two go wrong within some epochs.
@example(weights={"a": 3, "b": 3, "c": 3, "d": 1, "e": 1}, num_patches=10, epochs=11)
@example(weights={"a": 2, "b": 4, "c": 1, "d": 5}, num_patches=11, epochs=12)
def test_every_epoch_is_full_and_no_dataset_is_ever_a_patch_from_its_share(weights, num_patches, epochs):
    quotas, total = EpochQuotas(weights, num_patches), sum(weights.values())
    given = dict.fromkeys(weights, 0)
    for epoch in range(epochs):
        numbers = quotas.of_epoch(epoch)
        assert sum(numbers.values()) == num_patches
        for name, weight in weights.items():
            wanted = num_patches * weight
            assert numbers[name] in (wanted // total, -(-wanted // total))
            given[name] += numbers[name]
            assert abs(given[name] * total - (epoch + 1) * wanted) < total
        assert quotas.before(epoch + 1) == given


@settings(max_examples=50, deadline=None)
@given(num_cases=WEIGHTS, num_patches=st.integers(1, 40), epoch=st.integers(0, 10**7))
@pytest.mark.parametrize("mix", ["equal", "proportional"])
def test_an_epoch_however_far_on_is_where_its_share_says(mix, num_cases, num_patches, epoch):
    weights = dataset_weights(num_cases, mix)
    before, total = EpochQuotas(weights, num_patches).before(epoch), sum(weights.values())
    assert sum(before.values()) == epoch * num_patches
    for name, weight in weights.items():
        assert abs(before[name] * total - epoch * num_patches * weight) < total


def test_thousands_of_epochs_with_a_share_far_below_one_patch():
    weights = dataset_weights({"huge": 9000, "large": 900, "small": 9, "one": 1}, "proportional")
    quotas = EpochQuotas(weights, num_patches=4)
    numbers = [quotas.of_epoch(epoch)["one"] for epoch in range(9910)]
    assert set(numbers) == {0, 1}
    assert sum(numbers) == 4  # its exact share of 4 x 9910 patches
    assert sum(numbers[:4955]) == 2


def test_roots_are_kept_to_over_thousands_of_epochs():
    num_cases = {f"dataset{index}": 10 + 37 * index for index in range(20)}
    shares = dataset_shares(num_cases, "inverse_sqrt")
    before = EpochQuotas(dataset_weights(num_cases, "inverse_sqrt"), num_patches=500).before(5000)
    for name, share in shares.items():
        assert abs(before[name] - 5000 * 500 * share) < 1


def test_equal_datasets_take_turns():
    quotas = EpochQuotas(dict.fromkeys("abc", 1), num_patches=1)
    assert [max(quotas.of_epoch(epoch), key=quotas.of_epoch(epoch).get) for epoch in range(6)] == [*"abcabc"]


def test_quotas_do_not_depend_on_what_was_asked_before():
    weights = dataset_weights(NUM_CASES, "inverse_sqrt")
    asked = EpochQuotas(weights, num_patches=7)
    backwards = [asked.of_epoch(epoch) for epoch in reversed(range(30))]
    assert backwards[::-1] == [EpochQuotas(weights, num_patches=7).of_epoch(epoch) for epoch in range(30)]


def test_mixing_needs_no_tensorflow():
    code = "import sys, partialseg.data.mixing; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
