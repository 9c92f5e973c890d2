"""Candidates: which classes a voxel may be."""

import numpy as np
import pytest

from partialseg.data.labels import annotated_values, candidate_table, candidates, ignored_value

CLASSES = ("background", "liver", "spleen", "left_kidney", "right_kidney")


def test_everything_annotated_is_one_hot():
    table = candidate_table(CLASSES, CLASSES[1:])
    label = np.random.default_rng(0).integers(0, 5, (2, 3, 4))
    np.testing.assert_array_equal(candidates(label, table), np.eye(5)[label])


def test_background_holds_every_organ_that_is_not_annotated():
    table = candidate_table(CLASSES, ["spleen"])
    assert table[0].tolist() == [1, 1, 0, 1, 1]


def test_ignored_voxels_may_be_anything():
    table = candidate_table(CLASSES, ["spleen"])
    assert candidates(np.array([ignored_value(CLASSES)]), table).tolist() == [[1, 1, 1, 1, 1]]


def test_further_sets_come_after_ignored_in_the_order_given():
    sets = [frozenset({"left_kidney", "right_kidney"}), frozenset({"background"})]
    table = candidate_table(CLASSES, CLASSES[1:], sets)
    assert table[ignored_value(CLASSES) + 1 :].tolist() == [[0, 0, 0, 1, 1], [1, 0, 0, 0, 0]]
    assert annotated_values(table) == [1, 2, 3, 4, 6]


def test_candidates_are_uint8_on_the_last_axis():
    table = candidate_table(CLASSES, ["liver"])
    result = candidates(np.zeros((2, 3, 4), np.uint8), table)
    assert (result.shape, result.dtype) == ((2, 3, 4, 5), np.uint8)


def test_an_empty_label_map_has_no_candidates():
    assert candidates(np.zeros((0, 3, 4), np.uint8), candidate_table(CLASSES, ["liver"])).shape == (
        0,
        3,
        4,
        5,
    )


@pytest.mark.parametrize("dtype", [bool, np.float32, np.int64])
def test_whole_numbers_of_any_type_will_do(dtype):
    table = candidate_table(CLASSES, ["liver"])
    label = np.array([[[0, 1], [1, 0]]])
    np.testing.assert_array_equal(candidates(label.astype(dtype), table), candidates(label, table))


def test_other_numbers_are_refused():
    with pytest.raises(ValueError, match="no whole numbers"):
        candidates(np.array([0.5, 1.0]), candidate_table(CLASSES, ["liver"]))


@pytest.mark.parametrize("value", [-1, 6])
def test_a_value_without_a_row_is_refused(value):
    with pytest.raises(ValueError, match="rows for 0 to 5"):
        candidates(np.array([0, value]), candidate_table(CLASSES, ["liver"]))


@pytest.mark.parametrize(("annotated", "sets"), [(["lever"], ()), (["liver"], [frozenset({"lever"})])])
def test_an_unknown_name_is_refused(annotated, sets):
    with pytest.raises(ValueError, match="lever"):
        candidate_table(CLASSES, annotated, sets)
