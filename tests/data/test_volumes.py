"""Volumes: canonical axes, the way back, and every way in which a file can be wrong."""

import gzip
import itertools
import pickle

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.volumes import read_image, read_label, to_source_axes, write_label_map
from partialseg.errors import DataError

AXIS_ORDERS = [
    "".join(axis[sign] for axis, sign in zip(axes, signs, strict=True))
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for signs in itertools.product((0, 1), repeat=3)
]
RAS_AFFINE = np.array([[0.8, 0, 0, -100], [0, 0.9, 0, -120], [0, 0, 2.5, -700], [0, 0, 0, 1.0]])


def _in_axes(array_xyz, affine, codes):
    """The same volume, its axes in the order `codes`."""
    start = nib.orientations.axcodes2ornt("RAS")
    change = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(codes))
    moved = nib.orientations.apply_orientation(array_xyz, change)
    return moved, affine @ nib.orientations.inv_ornt_aff(change, array_xyz.shape)


def _save(path, array, affine=RAS_AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def labels_xyz():
    return np.random.default_rng(0).integers(0, 5, (3, 4, 5)).astype(np.uint8)


def test_there_are_48_axis_orders():
    assert len(set(AXIS_ORDERS)) == 48


@pytest.mark.parametrize("codes", AXIS_ORDERS)
def test_any_axis_order_comes_to_the_same_volume_and_goes_back(tmp_path, labels_xyz, codes):
    array, affine = _in_axes(labels_xyz, RAS_AFFINE, codes)
    path = _save(tmp_path / "in.nii.gz", array, affine)
    for read in (read_image, read_label):
        volume = read(path)
        np.testing.assert_array_equal(volume.array, labels_xyz.T)
        np.testing.assert_allclose(volume.affine, RAS_AFFINE, atol=1e-5)
        assert volume.spacing_mm == pytest.approx((2.5, 0.9, 0.8))
        assert volume.array.flags.c_contiguous
    np.testing.assert_array_equal(to_source_axes(volume.array, volume), array)

    write_label_map(tmp_path / "out.nii.gz", volume.array, volume)
    back = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), array)
    np.testing.assert_array_equal(back.affine, nib.load(path).affine)
    assert nib.aff2axcodes(back.affine) == tuple(codes)


def test_types_are_float32_hu_and_small_whole_numbers(tmp_path, labels_xyz):
    assert read_image(_save(tmp_path / "a.nii", labels_xyz.astype(np.int16))).array.dtype == np.float32
    assert read_label(_save(tmp_path / "b.nii", labels_xyz.astype(np.float64))).array.dtype == np.uint8
    assert read_label(_save(tmp_path / "c.nii", labels_xyz.astype(np.int32) * 100)).array.dtype == np.int16


def test_scale_and_offset_of_the_header_are_applied(tmp_path):
    image = nib.Nifti1Image(np.array([[[0, 1000, 2000]]], dtype=np.int16), RAS_AFFINE)
    image.header.set_slope_inter(2, -1024)
    nib.save(image, tmp_path / "scaled.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "scaled.nii.gz").array.ravel(), [-1024, 976, 2976])


def test_noise_of_a_header_in_whole_labels_is_no_problem(tmp_path):
    path = _save(tmp_path / "noisy.nii.gz", np.full((2, 2, 2), 2.00001, dtype=np.float32))
    np.testing.assert_array_equal(read_label(path).array, 2)


def test_a_single_last_axis_is_dropped(tmp_path, labels_xyz):
    assert read_label(_save(tmp_path / "a.nii.gz", labels_xyz[..., None])).array.shape == (5, 4, 3)


def test_forms_and_codes_are_kept_and_what_dicom_said_of_the_patient_is_not(tmp_path, labels_xyz):
    for qform, sform in ((1, 0), (0, 2), (1, 4), (2, 2)):
        image = nib.Nifti1Image(labels_xyz, RAS_AFFINE)
        image.set_sform(RAS_AFFINE, sform)
        image.set_qform(RAS_AFFINE, qform)
        image.header.set_xyzt_units("mm", "sec")
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of the patient"))
        nib.save(image, tmp_path / "in.nii.gz")
        write_label_map(tmp_path / "out.nii.gz", labels_xyz.T, read_image(tmp_path / "in.nii.gz"))
        old, new = nib.load(tmp_path / "in.nii.gz").header, nib.load(tmp_path / "out.nii.gz").header
        for field in ("qform_code", "sform_code", "xyzt_units", "pixdim", "srow_x", "quatern_d", "qoffset_x"):
            np.testing.assert_array_equal(new[field], old[field])
        assert not new.extensions


def test_oblique_axes_keep_their_direction(tmp_path, labels_xyz):
    angle = np.radians(12)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    array, affine = _in_axes(labels_xyz, turn @ RAS_AFFINE, "PIL")
    volume = read_label(_save(tmp_path / "oblique.nii.gz", array, affine))
    np.testing.assert_array_equal(volume.array, labels_xyz.T)
    np.testing.assert_allclose(volume.affine, turn @ RAS_AFFINE, atol=1e-4)
    assert volume.spacing_mm == pytest.approx((2.5, 0.9, 0.8), rel=1e-5)


def test_a_volume_crosses_to_other_processes(tmp_path, labels_xyz):
    volume = pickle.loads(pickle.dumps(read_label(_save(tmp_path / "a.nii.gz", labels_xyz))))
    write_label_map(tmp_path / "b.nii.gz", volume.array, volume)
    np.testing.assert_array_equal(read_label(tmp_path / "b.nii.gz").array, labels_xyz.T)


def test_labels_of_another_shape_are_refused_and_leave_nothing_behind(tmp_path, labels_xyz):
    volume = read_label(_save(tmp_path / "a.nii.gz", labels_xyz))
    with pytest.raises(ValueError, match="expected the same"):
        write_label_map(tmp_path / "out.nii.gz", labels_xyz, volume)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


def _truncated(path):
    whole = _save(path, np.random.default_rng(0).integers(0, 9, (20, 20, 20)).astype(np.int16)).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _flipped_bytes(path):
    whole = bytearray(
        _save(path, np.random.default_rng(0).integers(0, 9, (20, 20, 20)).astype(np.int16)).read_bytes()
    )
    whole[2000:2040] = bytes(40)
    path.write_bytes(whole)


def _header_edit(path, start, content):
    header = bytearray(gzip.decompress(_save(path, np.zeros((3, 4, 5), np.int16)).read_bytes()))
    header[start : start + len(content)] = content
    path.write_bytes(gzip.compress(bytes(header)))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: None, "there is no such file"),
        (_truncated, "cut short"),
        (_flipped_bytes, "is damaged"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"<html>not found</html>"), "is not NIfTI but an HTML page"),
        (
            lambda path: _save(path, np.zeros((4, 5, 6, 3), np.int16)),
            "4 x 5 x 6 x 3 voxels, expected three axes",
        ),
        (lambda path: _save(path, np.zeros((4, 5), np.int16)), "4 x 5 voxels, expected three axes"),
        (lambda path: _save(path, np.zeros((0, 5, 6), np.int16)), r"axis of size 0 \(0 x 5 x 6\)"),
        (lambda path: _save(path, np.zeros((4, 5, 6), np.int16), None), "neither sform nor qform"),
        (lambda path: _save(path, np.zeros((4, 5, 6), np.complex64)), "complex64 voxels"),
        (lambda path: _save(path, np.full((4, 5, 6), np.nan, np.float32)), "120"),
        (lambda path: _save(path, np.full((4, 5, 6), np.inf, np.float32)), "120"),
        (
            lambda path: _save(path, np.zeros((4, 5, 6), np.int16), RAS_AFFINE + 0.4 * np.eye(4, k=1)),
            "degrees off the right angle",
        ),
        (lambda path: _header_edit(path, 280 + 32, bytes(12)), "voxels measure 0.8 x 0.9 x 0 mm"),
        (lambda path: _header_edit(path, 280, np.float32(np.nan).tobytes()), "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("read", [read_image, read_label])
def test_a_bad_file_is_one_line_that_names_it(tmp_path, capfd, read, spoil, words):
    path = tmp_path / "bad.nii.gz"
    spoil(path)
    with pytest.raises(DataError, match=words) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert error.value.remedy
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.5, "0.5"), (-1, "values -1 to 0"), (40000, "0 to 40000"), (np.nan, "nan"), (np.inf, "expected|inf")],
)
def test_label_values_must_be_whole_and_from_0(tmp_path, value, words):
    array = np.zeros((3, 3, 3), np.float32)
    array[1, 1, 1] = value
    with pytest.raises(DataError, match=words):
        read_label(_save(tmp_path / "label.nii.gz", array))


def test_tiny_shear_is_rounding(tmp_path, labels_xyz):
    affine = RAS_AFFINE.copy()
    affine[0, 1] = affine[1, 2] = 1e-5
    np.testing.assert_array_equal(
        read_label(_save(tmp_path / "a.nii.gz", labels_xyz, affine)).array, labels_xyz.T
    )


def test_real_scans_are_read_with_organs_in_their_places(real_data):
    for case in ("lidc0001_upper_abdomen", "totalseg_example_3mm"):
        image = read_image(real_data / f"{case}_ct.nii.gz")
        label = read_label(real_data / f"{case}_label.nii.gz")
        assert image.array.shape == label.array.shape
        np.testing.assert_allclose(image.affine, label.affine, atol=1e-4)
        assert set(np.unique(label.array)) == {0, 1, 2, 3, 4, 5}
        x = {value: np.argwhere(label.array == value)[:, 2].mean() for value in (1, 2, 4, 5)}
        assert x[1] > x[2]  # liver right of spleen
        assert x[5] > x[4]  # right kidney right of left kidney
        for value in (1, 2, 4, 5):
            assert 0 < np.median(image.array[label.array == value]) < 300


def test_kits19_files_come_from_slice_row_column_to_canonical_axes(real_data):
    volume = read_label(real_data / "kits19_labels" / "case_00038.nii.gz")
    assert volume.source.shape == (32, 512, 512)
    assert volume.array.shape == (32, 512, 512)
    assert volume.spacing_mm == pytest.approx((5, 0.7793, 0.7793), abs=1e-4)
    assert (np.diag(volume.affine)[:3] > 0).all()
    raw = nib.load(volume.source.path)
    np.testing.assert_array_equal(to_source_axes(volume.array, volume), np.asanyarray(raw.dataobj))
