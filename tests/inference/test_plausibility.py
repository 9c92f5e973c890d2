"""Warnings on scans and label maps that are odd in one way each."""

from pathlib import Path

import numpy as np
import pytest

from partialseg.data.volumes import Source, Volume
from partialseg.inference.plausibility import PredictionWarning, organ_warnings, scan_warnings, warning_lines

ORGANS = {"liver": 1, "spleen": 2, "left_kidney": 3, "right_kidney": 4}
MM = (2.0, 2.0, 2.0)


def body():
    """Every organ in its place, none at the border; the patient's right has the larger x."""
    labels = np.zeros((40, 40, 80), dtype=np.uint8)
    labels[25:35, 20:30, 50:70] = 1
    labels[25:35, 20:30, 10:20] = 2
    labels[10:20, 10:18, 20:28] = 3
    labels[10:20, 10:18, 52:60] = 4
    return labels


def kinds(labels, middle=40.0):
    return {(warning.organ, warning.kind) for warning in organ_warnings(labels, MM, ORGANS, middle)}


def test_organs_in_their_places_give_no_warning():
    assert kinds(body()) == set()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({2: 0}, {("spleen", "not_found")}),
        ({3: 4, 4: 3}, {("right_kidney", "left_right_swapped")}),
        ({1: 2, 2: 1}, {("liver", "left_right_swapped")}),
    ],
)
def test_what_is_missing_or_exchanged_is_told(change, expected):
    labels = body()
    table = np.arange(5, dtype=np.uint8)
    table[list(change)] = list(change.values())
    assert kinds(table[labels]) == expected


def test_many_organs_share_a_line_and_one_is_told_in_full():
    labels = body()
    labels[:20, 12, 24] = 3
    labels[25:, 25, 60] = 1
    labels[labels == 2] = 0
    lines = warning_lines(organ_warnings(labels, MM, ORGANS, 40.0))
    assert lines[0] == "not found: spleen"
    assert lines[1].startswith("reach the border of the scan")
    assert lines[1].endswith(": liver, left_kidney")
    assert len([line for line in lines if "border" in line]) == 1
    (alone,) = warning_lines([PredictionWarning("liver", "touches_border", "in full")])
    assert alone == "in full"


def test_a_scan_without_a_voxel_size_or_a_place_is_told():
    hu = np.random.default_rng(0).normal(40, 20, (40, 40, 40)).astype(np.float32)
    hu[:, :10] = -1000
    for origin, expected in ((0, 1), (5, 0)):
        affine = np.eye(4)
        affine[0, 3] = origin
        source = Source(Path("scan.nii.gz"), hu.shape, affine, np.array([[0, 1], [1, 1], [2, 1]]))
        said = [warning.text for warning in scan_warnings(Volume(hu, affine, source))]
        assert len([text for text in said if "voxels of 1 mm from the origin on" in text]) == expected


def test_each_end_of_the_scan_is_told():
    labels = body()
    labels[:20, 12, 24] = 3
    labels[25:, 25, 60] = 1
    said = {warning.organ: warning.text for warning in organ_warnings(labels, MM, ORGANS, 40.0)}
    assert "left_kidney reaches the border of the scan (lower end)" in said["left_kidney"]
    assert "liver reaches the border of the scan (upper end)" in said["liver"]


def test_one_organ_alone_is_held_against_the_middle_of_the_body():
    labels = np.zeros((40, 40, 80), dtype=np.uint8)
    labels[10:20, 10:18, 52:60] = 3
    assert ("left_kidney", "left_right_swapped") in kinds(labels)
    assert ("left_kidney", "left_right_swapped") not in kinds(labels, middle=None)


def test_a_piece_far_from_the_rest_is_told():
    labels = body()
    labels[1:6, 30:36, 60:68] = 1
    assert kinds(labels) == {("liver", "in_pieces")}


def volume(array):
    affine = np.diag([2.0, 2, 2, 1])
    source = Source(Path("a.nii"), array.shape[::-1], affine, np.array([[0, 1], [1, 1], [2, 1]]))
    return Volume(array.astype(np.float32), affine, source)


def test_a_scan_that_is_not_in_hu_is_told_and_so_is_an_odd_grid():
    scan = np.full((20, 40, 40), -1000.0)
    scan[:, 10:30, 10:30] = np.random.default_rng(0).normal(50, 150, (20, 20, 20))
    scan[:, 12:14, 12:14] = 900
    assert scan_warnings(volume(scan)) == []
    (lifted,) = scan_warnings(volume(scan + 1024))
    assert (lifted.organ, lifted.kind) == (None, "intensity")
    assert "do not use the result" in lifted.text
    assert [warning.kind for warning in scan_warnings(volume(scan[:3]))] == ["scan"]
