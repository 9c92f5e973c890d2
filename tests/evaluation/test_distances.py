import numpy as np
import pytest

from partialseg.evaluation.distances import HD95_DEFINITIONS, Directed, directed_distances, distance_metrics

THERE = Directed(np.array([0.0, 1.0, 2.0, 10.0]), np.array([4.0, 4.0, 1.0, 1.0]))
BACK = Directed(np.array([3.0, 0.0]), np.array([1.0, 9.0]))


def test_the_largest_distance_is_the_same_by_every_definition():
    assert {distance_metrics(THERE, BACK, hd95, 2.0)["hd_mm"] for hd95 in HD95_DEFINITIONS} == {10.0}


def test_the_three_percentiles_differ_as_their_words_say():
    found = {hd95: distance_metrics(THERE, BACK, hd95, 2.0)["hd95_mm"] for hd95 in HD95_DEFINITIONS}
    assert found == pytest.approx({
        "directed_max": np.percentile([0, 1, 2, 10], 95),
        "pooled": np.percentile([0, 1, 2, 10, 3, 0], 95),
        "area_weighted": 10,  # 9 of 10 mm² lie within 2 mm, and 9 of 10 on the way back
    })  # fmt: skip


def test_weights_count_in_the_mean_and_in_the_share_within_the_tolerance():
    found = distance_metrics(THERE, BACK, "area_weighted", 2.0)
    assert found["assd_mm"] == pytest.approx((0 * 4 + 1 * 4 + 2 + 10 + 3) / 20)
    assert found["nsd"] == pytest.approx((4 + 4 + 1 + 9) / 20)  # a distance of the tolerance is within it


@pytest.mark.parametrize(("hd95", "nsd"), [("directed_max", 1), ("pooled", 1), ("area_weighted", 0.9)])
@pytest.mark.parametrize("spacing_mm", [0.8, float(np.float32(0.8))])
def test_three_voxels_of_08_mm_are_within_24_mm_as_in_monai(hd95, nsd, spacing_mm):
    there = Directed(np.array([3 * spacing_mm, 0.0]), np.ones(2))
    back = Directed(np.zeros(8), np.ones(8))
    assert distance_metrics(there, back, hd95, 2.4)["nsd"] == nsd
    assert distance_metrics(there, back, hd95, 2.399)["nsd"] == 0.9


def test_a_weighted_percentile_leaves_out_a_twentieth_of_the_area():
    there = Directed(np.array([7.0, 1.0, 5.0]), np.array([0.04, 0.9, 0.06]))
    nothing = Directed(np.zeros(1), np.ones(1))
    assert distance_metrics(there, nothing, "area_weighted", 1.0)["hd95_mm"] == 5


def test_each_corner_keeps_the_area_around_it():
    """A flat slab: of its corners most lie on the two large faces, and their elements are the faces of voxels."""
    label = np.zeros((6, 12, 12), np.uint8)
    label[2:4, 1:11, 1:11] = 1
    box = np.array([(2, 1, 1), (4, 11, 11)])
    there, back = directed_distances(label, label, 1, box, (3.0, 2.0, 1.0), by_area=True)
    assert len(there.distances_mm) == 3 * 11 * 11 - 9 * 9
    assert (there.weights == 2.0).sum() == 2 * 9 * 9  # mm², of a voxel seen along z
    assert not there.distances_mm.any()
    assert not back.distances_mm.any()
