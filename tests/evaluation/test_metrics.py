import math

import numpy as np
import pytest

from partialseg.evaluation import score
from partialseg.evaluation.distances import HD95_DEFINITIONS

LIVER = {"liver": 1}


def cube(start, size, shape=(8, 8, 8)):
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(s, s + size) for s in start)] = 1
    return label


def ball(radius_mm, spacing_mm, half_extent_mm=40.0):
    axes = [np.arange(-half_extent_mm, half_extent_mm + size / 2, size) for size in spacing_mm]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    return (z**2 + y**2 + x**2 <= radius_mm**2).astype(np.uint8)


def brute_force(first, second, spacing_mm):
    """Directed distances by comparing every pair of surface voxels; surface by looking at each neighbour."""

    def points(mask):
        padded = np.pad(mask, 1)
        found = []
        for index in np.argwhere(padded):
            neighbours = [tuple(index + step) for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
            if not all(padded[neighbour] for neighbour in neighbours):
                found.append((index - 1) * np.asarray(spacing_mm))
        return np.array(found)

    a, b = points(first), points(second)
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return distances.min(axis=1), distances.min(axis=0)


def test_a_label_map_scored_against_itself_is_perfect():
    label = cube((1, 2, 3), 4)
    assert score(label, label, (3.0, 1.5, 1.5), LIVER)["liver"] == {
        "dice": 1.0,
        "hd_mm": 0.0,
        "hd95_mm": 0.0,
        "assd_mm": 0.0,
        "nsd": 1.0,
        "volume_error": 0.0,
        "volume_error_ml": 0.0,
        "outcome": "scored",
    }


@pytest.mark.parametrize(("axis", "step_mm"), [(0, 3.0), (1, 1.5), (2, 0.5)])
def test_a_shift_by_one_voxel_is_one_spacing_of_that_axis(axis, step_mm):
    truth = cube((2, 2, 2), 3)
    result = score(np.roll(truth, 1, axis), truth, (3.0, 1.5, 0.5), LIVER)["liver"]
    assert result["dice"] == pytest.approx(2 / 3)
    assert result["hd_mm"] == step_mm


def test_known_answers_for_two_rods():
    truth, prediction = np.zeros((1, 1, 8), np.uint8), np.zeros((1, 1, 8), np.uint8)
    truth[..., 0:4] = 1  # every voxel is surface: the volume is one voxel thick
    prediction[..., 2:8] = 1
    result = score(prediction, truth, (1.0, 1.0, 2.0), LIVER)["liver"]
    there, back = [0, 0, 2, 4, 6, 8], [4, 2, 0, 0]  # prediction to truth, truth to prediction, in mm
    assert result["dice"] == pytest.approx(2 * 2 / (4 + 6))
    assert result["hd_mm"] == 8
    assert result["hd95_mm"] == pytest.approx(np.percentile(there, 95))
    assert result["assd_mm"] == pytest.approx(np.mean(there + back))
    assert result["nsd"] == pytest.approx(6 / 10)
    pooled = score(prediction, truth, (1.0, 1.0, 2.0), LIVER, hd95="pooled")["liver"]
    assert pooled["hd95_mm"] == pytest.approx(np.percentile(there + back, 95))
    assert pooled["hd95_mm"] != pytest.approx(result["hd95_mm"])


def test_concentric_balls_are_apart_by_the_difference_of_their_radii():
    spacing = (2.0, 1.0, 1.0)
    result = score(ball(30, spacing), ball(24, spacing), spacing, LIVER)["liver"]
    assert result["hd_mm"] == pytest.approx(6, abs=1.5)
    assert result["assd_mm"] == pytest.approx(6, abs=0.5)
    assert result["dice"] == pytest.approx(2 * 24**3 / (24**3 + 30**3), abs=0.01)
    assert result["nsd"] == 0


@pytest.mark.parametrize("density", [0.003, 0.2, 0.7])
def test_distances_equal_brute_force_on_random_masks(density):
    random = np.random.default_rng(int(1000 * density))
    for spacing in [(1.0, 1.0, 1.0), (5.0, 0.7, 0.9)]:
        first, second = random.random((2, 7, 9, 10)) < density
        first[random.integers(7), 0, 9] = second[random.integers(7), 8, 3] = True
        expected = brute_force(first, second, spacing)
        result = score(first.astype(np.uint8), second.astype(np.uint8), spacing, LIVER)["liver"]
        assert result["hd_mm"] == pytest.approx(max(d.max() for d in expected))
        assert result["hd95_mm"] == pytest.approx(max(np.percentile(d, 95) for d in expected))


def test_exchanging_prediction_and_truth_changes_no_number():
    first, second = np.random.default_rng(1).integers(0, 3, (2, 6, 7, 8)).astype(np.uint8)
    organs, spacing = {"liver": 1, "spleen": 2}, (3.0, 1.5, 1.5)
    for hd95 in HD95_DEFINITIONS:
        there, back = (score(*pair, spacing, organs, hd95) for pair in ((first, second), (second, first)))
        for organ in organs:
            assert there[organ].pop("volume_error") == pytest.approx(
                1 / (1 + back[organ].pop("volume_error")) - 1
            )
            assert there[organ].pop("volume_error_ml") == -back[organ].pop("volume_error_ml")
            assert there[organ] == pytest.approx(back[organ])


def test_missed_has_dice_0_hallucinated_too_and_both_empty_has_none():
    organs = {"liver": 1, "spleen": 2, "pancreas": 3}
    result = score(2 * cube((0, 0, 0), 2), cube((0, 0, 0), 2), (1, 1, 1), organs)
    assert [result[organ]["outcome"] for organ in organs] == ["missed", "hallucinated", "both empty"]
    assert [result[organ]["dice"] for organ in ("liver", "spleen")] == [0, 0]
    assert [result[organ]["nsd"] for organ in ("liver", "spleen")] == [0, 0]
    assert math.isnan(result["pancreas"]["dice"])
    assert all(math.isnan(result[organ]["hd_mm"]) for organ in organs)


def test_volume_error_has_a_sign_and_is_known_for_missed_and_hallucinated_organs():
    organs = {"liver": 1, "spleen": 2, "pancreas": 3}
    truth, larger = cube((1, 1, 1), 3), cube((1, 1, 1), 4)
    result = score(larger, truth, (3.0, 2.0, 1.0), LIVER)["liver"]
    assert result["volume_error"] == pytest.approx((64 - 27) / 27)
    assert result["volume_error_ml"] == pytest.approx((64 - 27) * 6 / 1000)
    result = score(2 * cube((0, 0, 0), 2), truth, (1, 1, 1), organs)
    assert result["liver"]["volume_error"] == -1
    assert math.isnan(result["spleen"]["volume_error"])
    assert [result[organ]["volume_error_ml"] for organ in ("liver", "spleen")] == [-0.027, 0.008]
    assert all(math.isnan(result["pancreas"][name]) for name in ("volume_error", "volume_error_ml"))


def test_each_organ_may_have_a_tolerance_of_its_own():
    truth = cube((1, 1, 1), 3)
    truth[5:8, 5:8, 5:8] = 2
    organs, prediction = {"liver": 1, "spleen": 2}, np.roll(truth, 1, 0)
    tight, loose = (score(prediction, truth, (2, 1, 1), organs, nsd_tolerance_mm=mm) for mm in (1.0, 2.0))
    mixed = score(prediction, truth, (2, 1, 1), organs, nsd_tolerance_mm={"liver": 1.0, "spleen": 2.0})
    assert tight["liver"]["nsd"] < loose["liver"]["nsd"]
    assert (mixed["liver"], mixed["spleen"]) == (tight["liver"], loose["spleen"])


def test_a_far_speck_moves_hd_but_hardly_hd95():
    truth = cube((4, 4, 4), 12, (32, 32, 32))
    prediction = truth.copy()
    prediction[30, 30, 30] = 1
    result = score(prediction, truth, (1, 1, 1), LIVER)["liver"]
    assert result["hd_mm"] == pytest.approx(math.sqrt(3) * 15)
    assert result["hd95_mm"] == 0


def test_ignored_voxels_count_on_neither_side():
    truth = cube((1, 1, 1), 3)
    prediction = truth.copy()
    prediction[6:8, 6:8, 6:8] = 1  # where nobody knows
    ignore = np.zeros(truth.shape, bool)
    ignore[5:, 5:, 5:] = True
    assert score(prediction, truth, (1, 1, 1), LIVER)["liver"]["dice"] < 0.9
    for mask in (ignore, {"liver": ignore}):
        result = score(prediction, truth, (1, 1, 1), LIVER, ignore=mask)["liver"]
        assert (result["dice"], result["hd_mm"], result["nsd"]) == (1, 0, 1)
    assert score(prediction, truth, (1, 1, 1), LIVER, ignore={"spleen": ignore})["liver"]["dice"] < 0.9


def test_the_edge_of_an_ignored_region_makes_no_distance():
    truth, prediction = cube((1, 1, 1), 3), cube((1, 1, 1), 3)
    prediction[1:4, 1:4, 4:8] = 1  # continues into the ignored region
    ignore = np.zeros(truth.shape, bool)
    ignore[..., 4:] = True
    assert score(prediction, truth, (1, 1, 1), LIVER, ignore=ignore)["liver"]["hd_mm"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": np.zeros((8, 8, 7), np.uint8)}, r"\(8, 8, 7\), but the truth has \(8, 8, 8\)"),
        ({"prediction": np.zeros((8, 8, 8))}, "prediction holds float64"),
        ({"spacing_mm": (1, 1)}, "expected 3 positive sizes"),
        ({"spacing_mm": (1, 1, 0)}, "expected 3 positive sizes"),
        ({"hd95": "mean"}, "'mean', expected one of directed_max, pooled, area_weighted"),
        ({"nsd_tolerance_mm": {"spleen": 1.0}}, "no tolerance of liver"),
        ({"nsd_tolerance_mm": -1.0}, "of liver is -1.0"),
        ({"nsd_tolerance_mm": math.nan}, "of liver is nan"),
        ({"organs": {"background": 0}}, "0 is background"),
        ({"ignore": np.zeros((2, 2, 2), bool)}, "ignore"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    arguments = {"prediction": cube((0, 0, 0), 2), "truth": cube((0, 0, 0), 2), "spacing_mm": (1, 1, 1)}
    with pytest.raises(ValueError, match=message):
        score(**{**arguments, "organs": LIVER, **change})


def test_a_perturbed_real_label_map_scores_plausibly(real_data):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.load(real_data / "totalseg_example_3mm_label.nii.gz")
    truth = np.asarray(image.dataobj).astype(np.uint8)
    organs = {"liver": 1, "spleen": 2, "pancreas": 3, "left_kidney": 4, "right_kidney": 5}
    result = score(np.roll(truth, 1, 0), truth, image.header.get_zooms(), organs)
    assert all(entry["outcome"] == "scored" for entry in result.values())
    assert all(0.7 < entry["dice"] < 1 for entry in result.values())
    assert all(0 < entry["assd_mm"] < entry["hd_mm"] <= 3.01 for entry in result.values())
