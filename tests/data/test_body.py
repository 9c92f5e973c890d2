"""A window without any of the patient may be left out; one with some of it never."""

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.body import Body
from partialseg.data.resample import resample_image
from partialseg.data.volumes import read_image, read_label

SPACING_MM = (3.0, 3.0, 3.0)
AIR, LUNG, FAT, TABLE = -1000.0, -850.0, -100.0, 50.0


def trunk(shape=(20, 100, 120)):
    """An elliptic trunk with a lung, above a thin table that does not touch it; with noise."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    plane = np.full(shape[1:], AIR)
    plane[((y - 60) / 25) ** 2 + ((x - 60) / 40) ** 2 < 1] = FAT
    plane[((y - 60) / 12) ** 2 + ((x - 45) / 12) ** 2 < 1] = LUNG
    plane[20:22, 10:110] = TABLE
    noise = np.random.default_rng(0).normal(0, 80, shape)
    return np.repeat(plane[np.newaxis], shape[0], axis=0) + noise


def box(z=(0, 20), y=(0, 100), x=(0, 120)):
    return tuple(slice(*part) for part in (z, y, x))


def test_the_trunk_is_met_and_the_air_and_the_table_are_not():
    body = Body(trunk(), SPACING_MM)
    assert body.meets(box())
    assert body.meets(box(y=(55, 65), x=(40, 50)))  # within the lung
    assert body.meets(box(z=(19, 20), y=(80, 100)))
    assert not body.meets(box(y=(0, 25)))
    assert not body.meets(box(y=(92, 100)))
    assert not body.meets(box(x=(0, 12)))


def test_slices_beyond_the_body_are_not_met():
    volume = trunk()
    volume[12:] = AIR
    body = Body(volume, SPACING_MM)
    assert body.meets(box(z=(11, 20)))
    assert not body.meets(box(z=(15, 20)))


def test_both_legs_count():
    volume = np.full((20, 60, 120), AIR)
    volume[:, 20:45, 15:40] = volume[:, 20:45, 80:105] = FAT
    body = Body(volume, SPACING_MM)
    assert body.meets(box(y=(0, 60), x=(10, 20)))
    assert body.meets(box(y=(0, 60), x=(100, 110)))


@pytest.mark.parametrize(
    "volume",
    [
        np.full((6, 30, 30), AIR),
        np.clip(trunk(), -200, 300),
        trunk() + 1024,
        np.random.default_rng(0).uniform(0, 1, (6, 30, 30)),
        np.full((1, 1, 1), AIR),
    ],
    ids=["air", "clipped", "shifted", "0 to 1", "one voxel"],
)
def test_where_air_cannot_be_told_from_a_body_all_of_it_is_met(volume):
    body = Body(volume, SPACING_MM)
    for corner in (0, 1):
        ends = [(0, 1) if corner == 0 else (size - 1, size) for size in volume.shape]
        assert body.meets(box(*ends))


def test_a_scan_cropped_to_an_organ_is_met_everywhere():
    body = Body(np.random.default_rng(0).normal(60, 20, (10, 20, 20)), SPACING_MM)
    assert body.meets(box((9, 10), (19, 20), (19, 20)))


@pytest.mark.parametrize("name", ["totalseg_example_3mm", "lidc0001_upper_abdomen"])
def test_all_that_is_labelled_in_a_real_scan_is_met(real_data, name):
    scan, label = read_image(real_data / f"{name}_ct.nii.gz"), read_label(real_data / f"{name}_label.nii.gz")
    body = Body(scan.array, scan.spacing_mm)
    for z, y, x in np.argwhere(label.array)[::97]:
        assert body.meets(box((z, z + 1), (y, y + 1), (x, x + 1)))


def test_a_real_pelvis_leaves_out_air_and_no_tissue(real_data):
    scan = read_image(real_data / "vhf_pelvis_3mm_no_target_organ_ct.nii.gz")
    image = resample_image(scan.array, scan.spacing_mm, (6.0, 6.0, 6.0))
    body = Body(image, (6.0, 6.0, 6.0))
    inside = np.zeros(image.shape, bool)
    for z, y, x in np.ndindex(*(size // 4 for size in image.shape)):
        part = tuple(slice(4 * i, 4 * i + 4) for i in (z, y, x))
        inside[part] = body.meets(part)
    tissue = image > -200
    assert (tissue & inside).sum() > 0.99 * tissue[
        tuple(slice(0, size // 4 * 4) for size in image.shape)
    ].sum()
    assert nib.affines.voxel_sizes(scan.affine).min() > 0
