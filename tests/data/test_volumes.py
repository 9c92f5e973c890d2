"""Volumes: canonical axes, the way back, and every way in which a file can be wrong."""

import gzip
import itertools
import os
import pickle
import struct
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.volumes import canonical_volume, read_image, read_label, to_source_axes, write_label_map
from partialseg.data.voxel_files import MAX_TAIL_BYTES
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


@pytest.mark.parametrize("codes", ["RAS", "PIL", "SRA"])
@pytest.mark.parametrize(
    ("slope", "intercept"), [(2, -1024), (0.1, 0), (1 / 3, -1024.3), (-1, 100), (1, 0.5), (0, 7)]
)
def test_scaling_is_exact(tmp_path, codes, slope, intercept):
    stored = np.random.default_rng(0).integers(-32768, 32767, (9, 10, 11)).astype(np.int16)
    array, affine = _in_axes(stored, RAS_AFFINE, codes)
    path = _save(tmp_path / "scaled.nii", array, affine)
    _edit(path, SLOPE, struct.pack("<ff", slope, intercept))
    slope, intercept = np.float32(slope).astype(float), np.float32(intercept).astype(float)
    expected = stored * slope + intercept if slope else stored  # 0 means: not scaled
    np.testing.assert_array_equal(read_image(path).array, expected.astype(np.float32).T)


def test_scaled_labels_are_whole_numbers_or_an_error(tmp_path, labels_xyz):
    path = _save(tmp_path / "label.nii", labels_xyz)
    _edit(path, SLOPE, struct.pack("<ff", 100, 3))
    volume = read_label(path)
    np.testing.assert_array_equal(volume.array, labels_xyz.T * 100.0 + 3)
    assert volume.array.dtype == np.int16
    _edit(path, SLOPE, struct.pack("<ff", 0.5, 0))
    with pytest.raises(DataError, match=r"voxels are not whole numbers, the first is \d.5"):
        read_label(path)


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_numbers_of_any_type_byte_order_and_version_are_read(
    tmp_path, labels_xyz, dtype, kind, endianness, suffix
):
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(endianness))
    nib.save(kind(labels_xyz.astype(dtype), RAS_AFFINE, header), tmp_path / f"in{suffix}")
    image, label = read_image(tmp_path / f"in{suffix}"), read_label(tmp_path / f"in{suffix}")
    np.testing.assert_array_equal(image.array, labels_xyz.T)
    np.testing.assert_array_equal(label.array, labels_xyz.T)
    assert (image.array.dtype, label.array.dtype) == (np.float32, np.uint8)
    write_label_map(tmp_path / "out.nii.gz", label.array, label)
    back = nib.load(tmp_path / "out.nii.gz")
    assert type(back) is kind
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), labels_xyz)
    np.testing.assert_array_equal(back.affine, image.affine)


def test_content_says_whether_a_file_is_gzipped_not_its_name(tmp_path, labels_xyz):
    plain = _save(tmp_path / "a.nii", labels_xyz).read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(plain)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain))
    (tmp_path / "members.NII.GZ").write_bytes(gzip.compress(plain[:400]) + gzip.compress(plain[400:]))
    for name in ("plain.nii.gz", "packed.nii", "members.NII.GZ"):
        np.testing.assert_array_equal(read_label(tmp_path / name).array, labels_xyz.T)


def test_extensions_are_passed_over_and_a_block_may_be_filled_up(tmp_path, labels_xyz):
    image = nib.Nifti1Image(labels_xyz, RAS_AFFINE)
    for text in (b"one", b"another one " * 50):
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", text))
    nib.save(image, tmp_path / "a.nii")
    with (tmp_path / "a.nii").open("ab") as file:
        file.write(bytes(MAX_TAIL_BYTES))
    np.testing.assert_array_equal(read_label(tmp_path / "a.nii").array, labels_xyz.T)


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


#: Byte offsets in a NIfTI-1 header (nifti1.h).
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT, UNITS, QFORM_CODE, SFORM_CODE, QUATERNION, EXTENSION = (
    40, 70, 72, 76, 108, 112, 116, 123, 252, 254, 256, 348,
)  # fmt: skip


def _edit(path, start, content):
    """Write other bytes into an uncompressed file."""
    whole = bytearray(path.read_bytes())
    whole[start : start + len(content)] = content
    path.write_bytes(whole)


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
    ("changes", "words"),
    [
        ([(DIM, struct.pack("<4h", 3, -3, 4, 5))], "claims -3 x 4 x 5 voxels, expected sizes above 0"),
        (
            [(DIM, struct.pack("<4h", 3, 10000, 10000, 10000))],
            "claims 10000 x 10000 x 10000 voxels, expected at",
        ),
        ([(DIM, struct.pack("<5h", 4, 3, 4, 5, 32767))], "3 x 4 x 5 x 32767 voxels, expected three axes"),
        (
            [(DIM, struct.pack("<4h", 3, 900, 900, 900))],
            "header promises 1458000000 bytes|1458000000 bytes that its NIfTI header promises",
        ),
        ([(DATATYPE, struct.pack("<2h", 77, 16))], "voxels of type 77, expected integers or floats"),
        ([(DATATYPE, struct.pack("<2h", 1, 1))], "voxels of type 1, expected integers or floats"),
        ([(DATATYPE, struct.pack("<2h", 128, 24))], "holds RGB voxels, expected numbers"),
        ([(DATATYPE, struct.pack("<2h", 1536, 128))], "voxels of type 1536, expected integers or floats"),
        ([(BITPIX, struct.pack("<h", 8))], "int16 voxels of 8 bits, expected 16 bits"),
        ([(VOX_OFFSET, struct.pack("<f", -352))], "begin at byte -352, expected 352 to"),
        ([(VOX_OFFSET, struct.pack("<f", 351))], "begin at byte 351, expected 352 to"),
        ([(VOX_OFFSET, struct.pack("<f", 352.5))], "begin at byte 352.5, expected 352 to"),
        ([(VOX_OFFSET, struct.pack("<f", np.nan))], "begin at byte nan, expected 352 to"),
        ([(VOX_OFFSET, struct.pack("<f", 1e12))], r"begin at byte 9.99\d*e\+11, expected"),
        ([(VOX_OFFSET, struct.pack("<f", 1_000_000))], "cut short .* begin at byte 1000000"),
        ([(VOX_OFFSET, struct.pack("<f", 368))], "cut short"),
        ([(SLOPE, struct.pack("<ff", np.nan, 0))], "slope and intercept are nan and 0, expected finite"),
        ([(SLOPE, struct.pack("<ff", np.inf, 0))], "slope and intercept are inf and 0, expected finite"),
        ([(SLOPE, struct.pack("<ff", 1, -np.inf))], "slope and intercept are 1 and -inf, expected finite"),
        (
            [(EXTENSION, bytes([1, 0, 0, 0]))],
            "an extension of its header claims 0 bytes, expected at most the 0",
        ),
        (
            [
                (EXTENSION, struct.pack("<4B2i", 1, 0, 0, 0, 1 << 30, 6)),
                (VOX_OFFSET, struct.pack("<f", 368)),
            ],
            "an extension of its header claims 1073741824 bytes, expected at most the 16",
        ),
        ([(344, b"ni1")], "is half of a pair .*, expected NIfTI in one file"),
        ([(344, b"abc")], "is not NIfTI"),
        ([(DIM, struct.pack("<h", 9))], "axes, expected three"),
        (
            [(QFORM_CODE, struct.pack("<2h", 1, 0)), (PIXDIM + 4, struct.pack("<f", 0))],
            "its qform cannot be used .* voxels of 0 x",
        ),
        (
            [(QFORM_CODE, struct.pack("<2h", 1, 0)), (PIXDIM + 4, struct.pack("<f", -1))],
            "its qform cannot be used .* voxels of -1 x",
        ),
        (
            [(QFORM_CODE, struct.pack("<2h", 1, 0)), (QUATERNION, struct.pack("<3f", 1, 1, 1))],
            "its qform cannot be used .quaternion 1, 1, 1",
        ),
        (
            [(QFORM_CODE, struct.pack("<2h", 1, 0)), (QUATERNION, struct.pack("<3f", 0, np.nan, 0))],
            "its qform cannot be used",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_lies_is_one_line_and_takes_no_memory(tmp_path, capfd, suffix, changes, words):
    path = _save(tmp_path / "lies.nii", np.ones((3, 4, 5), np.int16))
    for start, content in changes:
        _edit(path, start, content)
    if suffix == ".nii.gz":
        path = tmp_path / "lies.nii.gz"
        path.write_bytes(gzip.compress((tmp_path / "lies.nii").read_bytes()))
    tracemalloc.start()
    with pytest.raises(DataError, match=words) as error:
        read_image(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 << 20
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_a_gzip_bomb_is_left_after_what_its_header_promises(tmp_path):
    scan = _save(tmp_path / "a.nii", np.ones((30, 40, 50), np.int16)).read_bytes()
    # 256 MiB of zeros, and then what would be an error: it is not come to.
    zeros = gzip.compress(bytes(16 << 20)) * 16
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(scan) + zeros + b"\x1f\x8b is no gzip stream")
    tracemalloc.start()
    with pytest.raises(
        DataError, match="holds more than the 120000 bytes of voxels that its header promises"
    ):
        read_image(tmp_path / "bomb.nii.gz")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


def test_a_wrong_checksum_is_found(tmp_path, labels_xyz):
    path = _save(tmp_path / "a.nii.gz", labels_xyz)
    whole = bytearray(path.read_bytes())
    whole[-8] ^= 255
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"is damaged \(CRC check failed"):
        read_label(path)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to("gone.nii.gz")
    (tmp_path / "scan.img").write_bytes(b"")
    for name, words in (
        ("pipe.nii.gz", "is a named pipe, expected a file; put the scan there"),
        ("link.nii.gz", "is a link that leads to no such file, expected a scan"),
        ("none.img", "there is no such file, expected a scan"),
        (
            "scan.img",
            "of a format that is not read, expected .nii.gz, .nii, .nrrd, .mha, .mhd or a folder of",
        ),
    ):
        with pytest.raises(DataError, match=words):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match="is a folder, expected one file with the label map"):
        read_label(tmp_path)


def _with_forms(path, sform, qform):
    image = nib.Nifti1Image(np.zeros((300, 300, 80), np.uint8), sform)
    image.set_sform(sform, 1)
    image.set_qform(qform, 1)
    nib.save(image, path)
    return path


@pytest.mark.parametrize("codes", AXIS_ORDERS[::5])
def test_rounding_in_a_quaternion_is_not_noted(tmp_path, codes):
    _, affine = _in_axes(np.zeros((300, 300, 80)), RAS_AFFINE, codes)
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.02, 1e-5, 0.03))
    for sform in (affine, turn @ affine):
        path = _with_forms(tmp_path / "a.nii", sform + 1e-5 * np.eye(4, k=3), sform)
        assert read_label(path).notes == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.diag([-1.0, -1, 1, 1]), "axes RAS and LPS; the sform counts"),
        (nib.affines.from_matvec(np.eye(3), [0, 0, 2.5]), "up to 2.5 mm apart; the sform counts"),
        (nib.affines.from_matvec(nib.eulerangles.euler2mat(0.05)), "mm apart; the sform counts"),
    ],
)
def test_forms_at_odds_are_noted_and_the_sform_counts(tmp_path, change, words):
    path = _with_forms(tmp_path / "a.nii", RAS_AFFINE, change @ RAS_AFFINE)
    volume = read_label(path)
    np.testing.assert_allclose(volume.affine, RAS_AFFINE, atol=1e-5)
    (note,) = volume.notes
    assert note.startswith("sform and qform place voxels up to")
    assert words in note


def test_an_unusable_qform_beside_an_sform_and_a_wrong_unit_are_noted(tmp_path, labels_xyz):
    path = _save(tmp_path / "a.nii", labels_xyz)
    _edit(path, QFORM_CODE, struct.pack("<h", 1))
    _edit(path, QUATERNION, struct.pack("<3f", 1, 1, 1))
    _edit(path, UNITS, b"\x01")
    assert read_image(path).notes == (
        "the header says that lengths are in metres; they are read as mm",
        "its qform cannot be used; the sform counts",
    )


@pytest.mark.filterwarnings("error")
def test_absurd_numbers_in_the_affine_are_one_line_and_no_warning(tmp_path, labels_xyz):
    path = _save(tmp_path / "a.nii", labels_xyz)
    _edit(path, 280, struct.pack("<f", 1e30))
    with pytest.raises(DataError, match=r"its affine holds 1e\+30, expected numbers below 1e\+06 mm"):
        read_label(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content", [struct.pack("<3f", 1e30, 1, 1), struct.pack("<3f", np.nan, 1, 1)])
def test_an_absurd_qform_beside_an_sform_is_noted(tmp_path, labels_xyz, content):
    path = _save(tmp_path / "a.nii", labels_xyz)
    _edit(path, QFORM_CODE, struct.pack("<h", 1))
    _edit(path, PIXDIM + 4, content)
    assert read_label(path).notes == ("its qform cannot be used; the sform counts",)


@pytest.mark.filterwarnings("error")
def test_a_damaged_header_is_read_or_is_one_line(tmp_path, labels_xyz):
    image = nib.Nifti1Image(labels_xyz.astype(np.int16), RAS_AFFINE)
    image.set_qform(RAS_AFFINE, 1)
    whole = image.to_bytes()
    random = np.random.default_rng(0)
    words = [np.float32(x).tobytes() for x in (0, np.nan, np.inf, 1e30, -1)] + [
        b"\xff" * 4,
        b"\xff\xff\xff\x7f",
    ]
    outcomes = []
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            start = 4 * random.integers(0, 87)
            content[start : start + 4] = words[random.integers(len(words))]
        (tmp_path / "a.nii").write_bytes(content)
        try:
            outcomes.append(bool(np.isfinite(read_label(tmp_path / "a.nii").affine).all()))
        except DataError as error:
            outcomes.append("\n" in str(error))
    assert set(outcomes) == {True, False}  # read, and refused on one line


def test_voxels_without_a_header_become_a_volume_in_canonical_axes(tmp_path, labels_xyz):
    array, affine = _in_axes(labels_xyz, RAS_AFFINE, "LPS")
    volume = canonical_volume(array, affine, tmp_path, np.float32)
    np.testing.assert_array_equal(volume.array, labels_xyz.T)
    np.testing.assert_allclose(volume.affine, RAS_AFFINE)
    np.testing.assert_array_equal(to_source_axes(volume.array, volume), labels_xyz)


def test_reading_takes_little_more_memory_than_the_volume(tmp_path):
    stored = np.random.default_rng(0).integers(0, 4, (100, 200, 150)).astype(np.int16)
    path = _save(tmp_path / "a.nii.gz", *_in_axes(stored, RAS_AFFINE, "PIL"))
    tracemalloc.start()
    read_image(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1.2 * stored.size * (2 + 4)  # as stored, and as float32


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
