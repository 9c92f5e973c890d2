import dataclasses
import gzip

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.classes import class_names
from partialseg.report.case_volumes import CaseVolumes
from partialseg.report.notebook_widget import widget
from partialseg.report.packed_volumes import MARGIN_MM, pack_case

ORGANS = ("liver", "spleen")
AFFINE = np.array([[3.0, 0, 0, -40], [0, 3, 0, 7], [0, 0, 6, 100], [0, 0, 0, 1]])


@pytest.fixture
def case():
    """A liver that "good" finds, and a spleen, smaller, of which it finds one half; "bad" finds neither."""
    truth = np.zeros((30, 60, 60), np.uint8)
    truth[10:20, 20:40, 35:45] = 1
    truth[12:16, 20:30, 10:20] = 2
    image = np.where(truth, 80.0, -900.0).astype(np.float32)
    good = np.where(np.arange(60) < 15, truth, truth * (truth == 1)).astype(np.uint8)
    unknown = np.zeros(truth.shape, bool)
    unknown[25:27, 25:27, 25:27] = True
    maps = {"good": good, "bad": 0 * truth}
    return CaseVolumes(
        image,
        truth,
        unknown,
        maps,
        class_names(ORGANS),
        AFFINE,
        (6.0, 3.0, 3.0),
        ORGANS,
        dict.fromkeys(maps, ORGANS),
    )


def read(file):
    image = nib.Nifti1Image.from_bytes(gzip.decompress(file))
    return np.asarray(image.dataobj).T, image


def world(voxel, affine):
    return nib.affines.apply_affine(affine, voxel)


def test_volumes_are_cropped_around_what_is_marked_and_stay_in_place(case):
    packed = pack_case(case)
    truth, image = read(packed.truth)
    assert packed.spacing_mm == case.spacing_mm
    margins = [round(MARGIN_MM / size) for size in case.spacing_mm]
    assert truth.shape == (
        min(30, 27 + margins[0]) - 10 + margins[0],
        20 + 2 * margins[1],
        35 + 2 * margins[2],
    )
    assert np.count_nonzero(truth == 1) == np.count_nonzero(case.truth == 1)
    assert np.count_nonzero(truth == 3) == 8, (
        "voxels that may be one organ or another have a value of their own"
    )
    first = np.argwhere(truth == 1)[0][::-1]
    np.testing.assert_allclose(world(first, image.affine), world((35, 20, 10), AFFINE))


def test_the_scan_is_in_hu_within_its_range(case):
    scan, image = read(pack_case(case).scan)
    truth, _ = read(pack_case(case).truth)
    assert image.get_data_dtype() == np.uint8
    assert (scan[truth == 1] == 80).all()
    assert scan.min() == -200


def test_voxels_become_larger_until_a_volume_is_small_enough(case):
    packed = pack_case(case, max_voxels=5000)
    truth, image = read(packed.truth)
    assert truth.size <= 5000
    size = np.prod(packed.spacing_mm)
    assert np.count_nonzero(truth == 1) * size == pytest.approx(2000 * 54, rel=0.1)
    found, _ = read(packed.predictions["good"])
    assert found.shape == truth.shape
    np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine)[::-1], packed.spacing_mm, rtol=1e-5)


def test_places_lie_in_the_organs_and_in_the_largest_errors(case):
    packed = pack_case(case)
    truth, _ = read(packed.truth)
    found, _ = read(packed.predictions["good"])
    for place, value in zip(packed.organs, (1, 2), strict=True):
        assert truth[place.voxel[::-1]] == value
    error = packed.errors["good"]
    assert (error.organ, error.kind) == ("spleen", "too little")
    assert (truth[error.voxel[::-1]], found[error.voxel[::-1]]) == (2, 0)
    assert "good" not in pack_case(dataclasses.replace(case, scored={"good": ("liver",), "bad": ()})).errors


def test_a_map_of_errors_says_where_a_network_found_too_little_too_much_or_another_organ(case):
    labels = case.truth.copy()
    labels[12:16, 20:30, 10:12] = 0
    labels[12:14, 20:22, 20:22] = 2
    labels[10:12, 20:22, 35:37] = 2
    labels[25, 25, 25] = 1  # where it is not known what is true
    packed = pack_case(dataclasses.replace(case, predictions={"good": labels}))
    errors, _ = read(packed.error_maps["good"])
    assert np.bincount(errors.ravel()).tolist()[1:] == [4 * 10 * 2, 2 * 2 * 2, 2 * 2 * 2]
    of_liver = dataclasses.replace(case, predictions={"good": labels}, scored={"good": ("liver",)})
    assert np.bincount(read(pack_case(of_liver).error_maps["good"])[0].ravel()).tolist()[1:] == [8]


def test_the_edge_is_drawn_of_the_truth_alone(case):
    packed = pack_case(case)
    intents = [
        int(read(file)[1].header["intent_code"]) for file in (packed.truth, packed.predictions["good"])
    ]
    assert intents == [1002, 0]


def test_a_scan_without_marks_is_shown_as_a_whole(case):
    nothing = {"truth": 0 * case.truth, "unknown": case.unknown & False, "predictions": {}}
    empty = dataclasses.replace(case, **nothing)
    packed = pack_case(empty)
    assert read(packed.scan)[0].shape == case.image.shape
    assert (packed.organs, packed.errors) == ([], {})


def test_the_widget_shows_scan_truth_and_one_prediction_in_the_colours_of_the_report(case):
    shown = widget(case, "good", height=300)
    scan, truth, prediction = shown.volumes
    assert [volume.path.is_file() for volume in shown.volumes] == [True] * 3
    assert prediction.colormap_label.lut[4:12] == [255, 0, 0, 255, 255, 255, 0, 255]
    assert prediction.colormap_label.labels == ["background", "liver", "spleen", "one organ or another"]
    np.testing.assert_array_equal(np.asarray(nib.load(prediction.path).dataobj).max(), 2)
    assert (scan.cal_min, scan.cal_max, truth.opacity) == (-160, 240, 0)
    assert shown.opts.is_radiological_convention
    with pytest.raises(ValueError, match="no network 'other', only good, bad"):
        widget(case, "other")
