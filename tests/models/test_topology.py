"""Strides and kernels from patch and spacing: nnU-Net's own, and what must hold for any."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from partialseg.models.topology import SMALLEST_MAP, topology

#: Recorded from nnU-Net 2.8.1 by benchmarks/planning.py; the file says by which call.
PLANS = json.loads((Path(__file__).parent / "nnunet_topologies.json").read_text())["plans"]


def triples(rows):
    return tuple(tuple(row) for row in rows)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"{plan['patch']} {plan['spacing_mm']}")
def test_stages_are_those_of_nnunet(plan):
    found = topology(plan["patch"], plan["spacing_mm"])
    assert found == (tuple(plan["patch_size"]), triples(plan["strides"]), triples(plan["kernels"]))


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(*[st.integers(1, 400)] * 3),
    st.tuples(*[st.floats(0.3, 10)] * 3),
)
def test_any_patch_is_divided_down_to_small_maps_and_not_below(patch, spacing):
    found = topology(patch, spacing)
    for size, whole, step in zip(patch, found.patch_size, found.multiple, strict=True):
        assert 0 <= whole - size < step
        assert whole % step == 0
        assert step == 1 or whole // step >= SMALLEST_MAP
    assert len(found.kernels) == len(found.strides)
    assert found.strides[0] == (1, 1, 1)


def test_what_is_no_size_is_refused():
    with pytest.raises(ValueError, match="must be above 0"):
        topology((0, 8, 8), (1, 1, 1))
