"""Rules on hand-made label maps, whose right answer can be counted."""

import numpy as np
import pytest
from scipy import ndimage

from partialseg.data.volumes import read_image, read_label
from partialseg.inference.postprocessing import OrganRules, apply_rules, middle_of_body, postprocess

CLASSES = ("background", "liver", "left_kidney", "right_kidney")
MM = (1.0, 1.0, 10.0)  # a piece of 2 x 5 x 10 voxels has 1 mL


def empty():
    return np.zeros((12, 12, 12), dtype=np.uint8)


def test_without_rules_nothing_changes():
    labels = np.random.default_rng(0).integers(0, 4, (12, 12, 12)).astype(np.uint8)
    after, changes = postprocess(labels, MM, CLASSES, {}, 6.0)
    np.testing.assert_array_equal(after, labels)
    assert changes == {}


def test_only_the_largest_component_stays_and_the_map_given_is_not_changed():
    labels = empty()
    labels[:3, :3, :3] = labels[5:7, 5:7, 5:7] = 1
    labels[3, 3, 3] = 1  # touches the large piece at a corner
    labels[10, 10, 10] = 2
    before = labels.copy()
    after, changes = postprocess(labels, MM, CLASSES, {"liver": OrganRules(largest_component=True)}, None)
    assert ((after == 1).sum(), (after == 2).sum()) == (28, 1)
    assert (changes["liver"].removed, changes["liver"].added) == (8, 0)
    assert changes.keys() == {"liver"}
    np.testing.assert_array_equal(labels, before)


@pytest.mark.parametrize(("minimum_ml", "left"), [(0.0, 5), (0.03, 3), (0.031, 0), (0.02, 5)])
def test_pieces_below_the_minimum_volume_go_and_one_that_has_it_stays(minimum_ml, left):
    labels = empty()
    labels[0, 0, :3] = 1  # 0.03 mL
    labels[5, 5, :2] = 1  # 0.02 mL
    after, _ = postprocess(labels, MM, CLASSES, {"liver": OrganRules(min_volume_ml=minimum_ml)}, None)
    assert (after == 1).sum() == left


def test_a_hole_is_filled_but_for_another_organ_in_it_and_a_tunnel_is_none():
    labels = empty()
    labels[1:6, 1:6, 1:6] = 1
    labels[2:4, 2:4, 2:4] = 0
    labels[2, 2, 2] = 2
    labels[7:10, 1:4, 1:4] = 3
    labels[7:10, 2, 2] = 0  # open at both ends
    rules = {organ: OrganRules(fill_holes=True) for organ in ("liver", "right_kidney")}
    after, changes = postprocess(labels, MM, CLASSES, rules, None)
    assert (after == 1).sum() == 5**3 - 1
    assert after[2, 2, 2] == 2
    assert not after[7:10, 2, 2].any()
    assert (changes["liver"].added, changes["right_kidney"].added) == (7, 0)


def test_a_left_kidney_on_the_right_side_becomes_the_right_one():
    labels = empty()
    labels[2:6, 2:6, 1:4] = 2  # smaller x: the patient's left
    labels[2:6, 2:6, 8:10] = 3
    labels[2:6, 2:6, 10:12] = 2  # mistaken
    rules = {organ: OrganRules(sides=True) for organ in ("left_kidney", "right_kidney")}
    after, changes = postprocess(labels, MM, CLASSES, rules, 6.0)
    assert (after[..., :6] == 2).sum() == 48
    assert (after[..., 6:] == 3).sum() == 64
    assert not (after[..., 6:] == 2).any()
    assert (changes["left_kidney"].removed, changes["right_kidney"].added) == (32, 32)


def test_two_kidneys_that_were_exchanged_are_changed_back():
    labels = empty()
    labels[2:6, 2:6, 1:4] = 3
    labels[2:6, 2:6, 9:12] = 2
    rules = {organ: OrganRules(sides=True) for organ in ("left_kidney", "right_kidney")}
    after, _ = postprocess(labels, MM, CLASSES, rules, 6.0)
    np.testing.assert_array_equal(after[..., 1:4], np.where(labels[..., 1:4], 2, 0))
    np.testing.assert_array_equal(after[..., 9:12], np.where(labels[..., 9:12], 3, 0))


def test_an_organ_across_the_middle_stays_and_so_does_all_where_the_middle_is_unknown():
    labels = empty()
    labels[2:6, 2:6, 3:11] = 2  # a horseshoe kidney: its centre is 10 mm beyond the middle
    labels[8:10, 2:6, 9:12] = 2
    rules = {"left_kidney": OrganRules(sides=True)}
    after, changes = postprocess(labels, MM, CLASSES, rules, 6.0)
    assert (after == 3).sum() == 24
    unknown, changes = postprocess(labels, MM, CLASSES, rules, None)
    np.testing.assert_array_equal(unknown, labels)
    assert changes["left_kidney"].done == ()


def test_without_the_other_side_among_the_classes_a_misplaced_piece_becomes_background():
    labels = empty()
    labels[2:6, 2:6, 9:12] = 1
    rules = {"left_lung": OrganRules(sides=True)}
    after, _ = postprocess(labels, MM, ("background", "left_lung"), rules, 6.0)
    assert not after.any()


def test_a_moved_piece_counts_as_part_of_its_new_organ():
    labels = empty()
    labels[2:6, 2:6, 8:10] = 3
    labels[2:6, 2:6, 10:12] = 2
    both = OrganRules(sides=True, largest_component=True)
    after, _ = postprocess(labels, MM, CLASSES, {"left_kidney": both, "right_kidney": both}, 6.0)
    assert (after == 3).sum() == 64


def test_rules_for_an_organ_that_is_no_class_are_refused():
    with pytest.raises(ValueError, match="rules for spleen, expected organs among liver, left_kidney"):
        postprocess(empty(), MM, CLASSES, {"spleen": OrganRules()}, None)


def test_the_middle_is_told_with_an_arm_at_one_side_and_not_in_a_scan_without_body():
    scan = np.full((4, 30, 100), -1000.0)
    scan[:, 5:25, 30:70] = 40
    assert middle_of_body(scan) == pytest.approx(50, abs=1)
    scan[:, 12:16, 90:94] = 40
    assert middle_of_body(scan) == pytest.approx(50, abs=2)
    assert middle_of_body(np.full((4, 30, 100), -1000.0)) is None


def test_the_middle_of_a_narrow_scan_of_many_slices_is_told_from_every_fourth_column():
    scan = np.broadcast_to(np.array([-1000, 40, 40, 40, 40, 40, 40, 40, -1000], np.int16), (2000, 2000, 9))
    assert middle_of_body(scan) == 4


def plain_rules(mask, rule):
    """The same by one labelling of the whole box."""
    numbers, count = ndimage.label(mask, np.ones((3, 3, 3)))
    voxels = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    kept = voxels * np.prod(MM) / 1000 >= rule.min_volume_ml
    if rule.largest_component:
        kept &= np.arange(count) == voxels.argmax()
    mask = np.isin(numbers, np.flatnonzero(kept) + 1)
    return ndimage.binary_fill_holes(mask) if rule.fill_holes else mask


@pytest.mark.parametrize("share", [0.001, 0.02, 0.2, 0.8])
@pytest.mark.parametrize(
    "rule",
    [
        OrganRules(largest_component=True),
        OrganRules(min_volume_ml=0.021),
        OrganRules(fill_holes=True),
        OrganRules(largest_component=True, min_volume_ml=0.05, fill_holes=True),
    ],
    ids=lambda rule: "-".join(rule.names),
)
def test_going_by_islands_is_the_same_as_labelling_the_whole_box(rule, share):
    random = np.random.default_rng(int(1000 * share))
    mask = random.random((41, 23, 30)) < share
    mask[5:12, 3:10, 20:29] = True
    mask[7:10, 5:8, 22:26] = False
    mask[8, 6, 24] = True  # a speck in the hole
    np.testing.assert_array_equal(apply_rules(mask, MM, rule), plain_rules(mask, rule))


def test_real_kidneys_that_were_exchanged_are_changed_back_and_right_ones_are_left(real_data):
    name = "totalseg_example_3mm"
    scan, truth = (
        read_image(real_data / f"{name}_ct.nii.gz"),
        read_label(real_data / f"{name}_label.nii.gz").array,
    )
    classes = ("background", "liver", "spleen", "pancreas", "left_kidney", "right_kidney")
    rules = {organ: OrganRules(sides=True) for organ in classes[4:]}
    middle = middle_of_body(scan.array)
    exchanged = np.array([0, 1, 2, 3, 5, 4], np.uint8)[truth]
    for labels in (truth, exchanged):
        after, _ = postprocess(labels, scan.spacing_mm, classes, rules, middle)
        np.testing.assert_array_equal(after, truth)
