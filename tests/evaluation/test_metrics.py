import itertools
import math

import numpy as np
import pytest

from partialseg.evaluation import score
from partialseg.evaluation.distances import HD95_DEFINITIONS
from partialseg.evaluation.surface_area import element_areas

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


def by_area(first, second, spacing_mm):
    """Nikolov et al.'s distances, looking at every pair of corners: distance and area, there and back."""
    areas = element_areas(spacing_mm)

    def corners(mask):
        padded, found = np.pad(mask, 1), []
        for index in np.ndindex(*(size + 1 for size in mask.shape)):
            eight = padded[tuple(slice(i, i + 2) for i in index)].ravel()
            code = sum(int(voxel) << number for number, voxel in enumerate(eight))
            if 0 < code < 255:
                found.append((np.multiply(index, spacing_mm), areas[code]))
        return [np.array(part) for part in zip(*found, strict=True)]

    (a, area_a), (b, area_b) = corners(first), corners(second)
    distances = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return (distances.min(axis=1), area_a), (distances.min(axis=0), area_b)


@pytest.mark.parametrize("density", [0.01, 0.3, 0.8])
def test_distances_weighted_by_area_equal_brute_force_on_random_masks(density):
    random, spacing = np.random.default_rng(int(1000 * density)), (4.0, 0.7, 0.9)
    first, second = random.random((2, 5, 7, 6)) < density
    first[random.integers(5), 0, 5] = second[random.integers(5), 6, 2] = True
    both = by_area(first, second, spacing)
    distance, area = (np.concatenate(part) for part in zip(*both, strict=True))
    result = score(first, second, spacing, LIVER, hd95="area_weighted", nsd_tolerance_mm=1.0)["liver"]
    assert result["hd_mm"] == pytest.approx(distance.max())
    assert result["assd_mm"] == pytest.approx((distance * area).sum() / area.sum())
    assert result["nsd"] == pytest.approx(area[distance <= 1.0].sum() / area.sum())
    for directed, weights in both:  # at least 95% of the area lies within HD95
        assert weights[directed <= result["hd95_mm"] + 1e-9].sum() >= (0.95 - 1e-9) * weights.sum()
    assert any(
        weights[directed < result["hd95_mm"] - 1e-9].sum() < 0.95 * weights.sum()
        for directed, weights in both
    )


#: Of the masks below, on 3 x 1.7 x 0.9 mm, at 2 mm: MONAI 1.6.1, MedPy 0.5.2, surface-distance 0.1.
PEERS = {
    "directed_max": {"hd_mm": 6.8, "hd95_mm": 3.5637059, "assd_mm": 1.65960585, "nsd": 0.70384830},
    "pooled": {"hd_mm": 6.8, "hd95_mm": 3.53574302, "assd_mm": 1.65960585, "nsd": 0.70384830},
    "area_weighted": {"hd_mm": 6.24259561, "hd95_mm": 3.0, "assd_mm": 0.83693665, "nsd": 0.90150757},
}


@pytest.mark.parametrize("hd95", PEERS)
def test_each_definition_gives_the_numbers_of_its_peer(hd95):
    def blobs(seed, share):
        noise = np.random.default_rng(seed).integers(0, 1000, (14, 17, 20))
        smooth = sum(np.roll(noise, steps, (0, 1, 2)) for steps in itertools.product((-1, 0, 1), repeat=3))
        return smooth > np.sort(smooth, axis=None)[int(share * smooth.size)]

    prediction, truth = blobs(1, 0.8), blobs(2, 0.85)
    prediction[3:9, 4:11, 5:14] = truth[4:9, 4:12, 4:13] = True
    result = score(prediction, truth, (3.0, 1.7, 0.9), LIVER, hd95=hd95)["liver"]
    assert (prediction.sum(), truth.sum()) == (1232, 992)
    assert result["dice"] == pytest.approx(0.38848921)
    assert {name: result[name] for name in PEERS[hd95]} == pytest.approx(PEERS[hd95], abs=1e-6)


@pytest.mark.parametrize("hd95", PEERS)
def test_balls_have_the_distance_of_their_surfaces_by_every_definition(hd95):
    spacing = (2.0, 1.0, 1.0)
    result = score(ball(30, spacing), ball(20, spacing), spacing, LIVER, hd95)["liver"]
    assert result["hd_mm"] == pytest.approx(10, abs=1.5)
    assert result["hd95_mm"] == pytest.approx(10, abs=1.0)
    assert result["assd_mm"] == pytest.approx(10, abs=1.0)
    assert result["volume_error"] == pytest.approx((30 / 20) ** 3 - 1, rel=0.02)


def test_the_kind_and_order_of_the_arrays_make_no_difference():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 3, (2, 6, 7, 8)).astype(np.uint8)
    organs, spacing = {"liver": 1, "spleen": 2}, (3.0, 1.5, 1.0)
    expected = score(first, second, spacing, organs)
    frozen = second.copy()
    frozen.flags.writeable = False
    assert score(np.asfortranarray(first), frozen, spacing, organs) == expected
    assert score(first.astype(np.int64), second.astype(">u2"), spacing, organs) == expected
    far = {
        organ: 1000 * value for organ, value in organs.items()
    }  # values beyond 255, as in FreeSurfer's maps
    assert score(first.astype(np.int16) * 1000, second.astype(np.int32) * 1000, spacing, far) == expected
    turned = score(first.transpose(2, 0, 1), second.transpose(2, 0, 1), (1.0, 3.0, 1.5), organs)
    for organ in organs:
        assert turned[organ] == pytest.approx(expected[organ])


def test_values_that_are_no_organs_count_as_background():
    truth = cube((2, 2, 2), 3).astype(np.int16)
    prediction = truth.copy()
    prediction[0, 0, 0], prediction[7, 7, 7], prediction[0, 7, 0] = -1, 257, 255
    assert score(prediction, truth, (1, 1, 1), LIVER) == score(truth, truth, (1, 1, 1), LIVER)


def test_planes_and_lines_are_scored_too():
    truth, prediction = np.zeros((2, 8, 8), np.uint8)
    truth[1:7, 1:7], prediction[1:7, 1:8] = 1, 1
    result = score(prediction, truth, (2.0, 1.5), LIVER)["liver"]
    assert (result["hd_mm"], result["volume_error_ml"]) == (1.5, pytest.approx(6 * 3 / 1000))
    assert result["assd_mm"] == pytest.approx(1.5 * (6 + 4) / (22 + 20))  # 6 of 22 there, 4 of 20 back
    assert score(prediction[3], truth[3], (2.0,), LIVER)["liver"]["hd_mm"] == 2.0


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
        (dict.fromkeys(("prediction", "truth"), np.zeros((2, 2, 2, 2), np.uint8)), "4 axes"),
        (
            {
                **dict.fromkeys(("prediction", "truth"), np.ones((2, 2), np.uint8)),
                "spacing_mm": (1, 1),
                "hd95": "area_weighted",
            },
            "with 3 axes, not 2",
        ),
        ({"organs": {str(value): value for value in range(100, 400)}}, "300 values, expected 255 at most"),
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
