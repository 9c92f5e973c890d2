"""NRRD and MetaImage: the same volume as NIfTI, and one line for each way in which a file can be wrong."""

import bz2
import gzip
import os
import sys
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.volumes import read_image, read_label, write_label_map
from partialseg.errors import DataError

simpleitk = pytest.importorskip("SimpleITK")

#: Numbers that float32 and short decimals hold exactly, so that formats can be compared bit by bit.
RAS_AFFINE = np.array([[0.75, 0, 0, -100], [0, 0.875, 0, -120.5], [0, 0, 2.5, -700], [0, 0, 0, 1.0]])
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
VOXELS = np.arange(120, dtype="<i2").tobytes()

NRRD = """NRRD0004
# a comment
type: short
dimension: 3
space: left-posterior-superior
sizes: 6 5 4
space directions: (0.75,0,0) (0,0.875,0) (0,0,2.5)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (1,2,3)
a key:=its value
"""
META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 1 2 3
ElementSpacing = 0.75 0.875 2.5
DimSize = 6 5 4
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


def nrrd(*changes, data=VOXELS):
    """An NRRD file with other lines."""
    return _changed(NRRD, changes).encode() + b"\n" + data


def meta(*changes, data=VOXELS):
    """A MetaImage with other lines."""
    return _changed(META, changes).encode() + data


def _changed(text, changes):
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


def zlib_meta(packed, num_bytes=None):
    """A MetaImage whose voxels are compressed."""
    size = len(packed) if num_bytes is None else num_bytes
    lines = ("CompressedData = False", f"CompressedData = True\nCompressedDataSize = {size}")
    return meta(lines, data=packed)


def write_all(folder, array, affine, compressed):
    """One volume, `(i, j, k)` with an affine to RAS, in every format."""
    lps = LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    image = simpleitk.GetImageFromArray(array.T)
    image.SetSpacing(sizes.tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    paths = [folder / f"volume.{suffix}" for suffix in ("nrrd", "mha", "mhd")]
    for path in paths:
        simpleitk.WriteImage(image, str(path), compressed)
    nib.save(nib.Nifti1Image(array, affine), folder / "volume.nii.gz")
    return folder / "volume.nii.gz", paths


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIL", "SRA", "ALI", "IPR"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("compressed", [True, False])
def test_every_format_gives_the_volume_that_nifti_gives(tmp_path, codes, dtype, compressed):
    labels = np.random.default_rng(0).integers(0, 5, (5, 6, 7)).astype(dtype)
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    array = nib.orientations.apply_orientation(labels, change)
    affine = RAS_AFFINE @ nib.orientations.inv_ornt_aff(change, labels.shape)
    nifti, others = write_all(tmp_path, array, affine, compressed)
    for read in (read_image, read_label):
        expected = read(nifti)
        for path in others:
            volume = read(path)
            np.testing.assert_array_equal(volume.array, expected.array)
            assert volume.array.dtype == expected.array.dtype
            np.testing.assert_array_equal(volume.affine, expected.affine)
            np.testing.assert_array_equal(volume.source.affine, expected.source.affine)
            assert volume.source.shape == expected.source.shape
            assert volume.notes == ()


def test_oblique_axes_keep_their_direction(tmp_path):
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, -0.1, 0.05))
    array = np.random.default_rng(0).integers(-1000, 1000, (5, 6, 7)).astype(np.int16)
    nifti, others = write_all(tmp_path, array, turn @ RAS_AFFINE, True)
    for path in others:
        np.testing.assert_allclose(read_image(path).affine, read_image(nifti).affine, atol=1e-4)
        np.testing.assert_array_equal(read_image(path).array, read_image(nifti).array)


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mhd"])
def test_a_label_map_is_nifti_in_the_same_place(tmp_path, suffix):
    array = np.random.default_rng(0).integers(0, 5, (5, 6, 7)).astype(np.uint8)
    affine = np.diag([-1.0, 1, -1, 1]) @ RAS_AFFINE
    write_all(tmp_path, array, affine, True)
    volume = read_label(tmp_path / f"volume.{suffix}")
    write_label_map(tmp_path / "out.nii.gz", volume.array, volume)
    back = nib.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(back.dataobj), array)
    np.testing.assert_array_equal(back.affine, affine)
    assert (int(back.header["sform_code"]), int(back.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(back.get_qform(), affine, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nrrd", nrrd()),
        ("a.nrrd", nrrd(("left-posterior-superior", "LPS"))),
        ("a.nrrd", nrrd(("encoding: raw", "encoding: gzip"), data=gzip.compress(VOXELS))),
        (
            "a.nrrd",
            nrrd(("raw", "gzip"), data=gzip.compress(VOXELS[:50]) + gzip.compress(VOXELS[50:])),
        ),
        ("a.nrrd", nrrd(("encoding: raw", "encoding: raw\nbyte skip: 10"), data=bytes(10) + VOXELS)),
        (
            "a.nrrd",
            nrrd(
                ("dimension: 3", "dimension: 4"),
                ("sizes: 6 5 4", "sizes: 1 6 5 4"),
                ("space directions:", "space directions: none"),
                ("kinds:", "kinds: list"),
            ),
        ),
        ("a.mha", meta()),
        ("a.mha", meta(("TransformMatrix", "Rotation"))),
        ("a.mha", zlib_meta(zlib.compress(VOXELS))),
        (
            "a.mha",
            meta(
                ("NDims = 3", "NDims = 4"),
                ("DimSize = 6 5 4", "DimSize = 6 5 4 1"),
                ("= 1 0 0 0 1 0 0 0 1", "= 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"),
                ("0.75 0.875 2.5", "0.75 0.875 2.5 1"),
                ("Offset = 1 2 3", "Offset = 1 2 3 0"),
            ),
        ),
    ],
)
def test_headers_that_others_write_are_understood(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    volume = read_image(tmp_path / name)
    expected = np.arange(120).reshape(4, 5, 6)[:, ::-1, ::-1]
    np.testing.assert_array_equal(volume.array, expected)
    np.testing.assert_array_equal(volume.affine[:3, 3], [-1 - 5 * 0.75, -2 - 4 * 0.875, 3])
    assert volume.spacing_mm == (2.5, 0.875, 0.75)


def test_other_spaces_of_nrrd_are_turned(tmp_path):
    for space, signs in (("right-anterior-superior", (1, 1)), ("LAS", (-1, 1))):
        (tmp_path / "a.nrrd").write_bytes(nrrd(("left-posterior-superior", space)))
        volume = read_image(tmp_path / "a.nrrd")
        expected = np.arange(120).reshape(4, 5, 6)[:, :: signs[1], :: signs[0]]
        np.testing.assert_array_equal(volume.array, expected)
        x = 1 if signs[0] > 0 else -1 - 5 * 0.75
        np.testing.assert_array_equal(volume.affine[:3, 3], [x, 2, 3])


BOMB = gzip.compress(bytes(16 << 20)) * 4
CHANNELS = (("dimension: 3", "dimension: 4"), ("sizes: 6 5 4", "sizes: 3 6 5 4"), ("kinds:", "kinds: vector"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.nrrd", b"", "is no NRRD file"),
        ("a.nrrd", b"<html>404</html>", "is no NRRD file"),
        ("a.nrrd", b"NRRD0004\n" + b"x" * (2 << 20), "its header has no end"),
        ("a.nrrd", nrrd(data=VOXELS[:-1]), "cut short .239 bytes., its NRRD header promises 240 bytes"),
        (
            "a.nrrd",
            nrrd(("6 5 4", "10000 10000 10000")),
            "claims 10000 x 10000 x 10000 voxels, expected at most",
        ),
        (
            "a.nrrd",
            nrrd(("6 5 4", "900 900 900")),
            "cut short .240 bytes., its NRRD header promises 1458000000",
        ),
        (
            "a.nrrd",
            nrrd(("raw", "gzip"), ("6 5 4", "900 900 900"), data=gzip.compress(VOXELS)),
            "which cannot be the 1458000000 bytes that its NRRD header promises",
        ),
        ("a.nrrd", nrrd(("raw", "gzip"), data=gzip.compress(VOXELS) + BOMB), "holds more than the 240 bytes"),
        ("a.nrrd", nrrd(("raw", "gzip"), data=gzip.compress(VOXELS)[:-9]), "is cut short"),
        (
            "a.nrrd",
            nrrd(("raw", "gzip"), data=gzip.compress(VOXELS)[:-8] + bytes(8)),
            "damaged .CRC check failed",
        ),
        ("a.nrrd", nrrd(("raw", "gzip"), data=VOXELS), "compressed voxels are damaged"),
        (
            "a.nrrd",
            nrrd(("encoding: raw", "encoding: gzip\nbyte skip: 9"), data=gzip.compress(bytes(9) + VOXELS)),
            "skips bytes or lines before compressed voxels",
        ),
        (
            "a.nrrd",
            nrrd(("raw", "bzip2"), data=bz2.compress(VOXELS)),
            "encoding is bzip2, expected raw or gzip",
        ),
        ("a.nrrd", nrrd(("encoding: raw\n", "")), "encoding is missing, expected raw or gzip"),
        ("a.nrrd", nrrd(("raw", "raw\ndata file: ../a.raw")), "takes its voxels from ../a.raw"),
        ("a.nrrd", nrrd(("raw", "raw\ndatafile: LIST")), "takes its voxels from LIST"),
        (
            "a.nrrd",
            nrrd(("space: left-posterior-superior\n", "space dimension: 3\n")),
            "left and right are not",
        ),
        (
            "a.nrrd",
            nrrd(("left-posterior-superior", "scanner-xyz")),
            r"how its axes lie \(space: scanner-xyz",
        ),
        ("a.nrrd", nrrd(("(0.75,0,0)", "(0.75,0.4,0)")), "degrees off the right angle"),
        ("a.nrrd", nrrd(("(0.75,0,0)", "(nan,nan,nan)")), "expected three of three finite numbers"),
        ("a.nrrd", nrrd(("(0.75,0,0)", "(0,0,0)")), "affine holds NaN or infinite"),
        ("a.nrrd", nrrd(("(0.75,0,0)", "none")), "expected three of three finite numbers"),
        ("a.nrrd", nrrd(("(0.75,0,0)", "(0.75,0)")), "expected three of three finite numbers"),
        ("a.nrrd", nrrd(("(0.75,0,0)", "(0.75,0,x)")), "its header has 'x', expected a number"),
        ("a.nrrd", nrrd(("encoding", 'space units: "m" "m" "m"\nencoding')), "lengths are in m, expected mm"),
        (
            "a.nrrd",
            nrrd(*CHANNELS, ("directions:", "directions: none"), data=VOXELS * 3),
            "holds 3 numbers in",
        ),
        ("a.nrrd", nrrd(("6 5 4", "6 -5 4")), "cannot be read"),
        ("a.mha", b"", "is no MetaImage file"),
        ("a.mha", b"<html>404</html>", "is no MetaImage file"),
        ("a.mha", meta(data=VOXELS[:-1]), "cut short .239 bytes., its MetaImage header promises 240 bytes"),
        (
            "a.mha",
            meta(("6 5 4", "10000 10000 10000")),
            "claims 10000 x 10000 x 10000 voxels, expected at most",
        ),
        ("a.mha", meta(("6 5 4", "900 900 900")), "cut short .240 bytes., its MetaImage header promises"),
        ("a.mha", meta(("6 5 4", "6 5 0")), "size 0|cannot be read"),
        ("a.mha", meta(("6 5 4", "6 -5 4")), "expected sizes above 0|cannot be read|expected at most"),
        (
            "a.mha",
            meta(("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "")),
            "no TransformMatrix, so left and right",
        ),
        ("a.mha", meta(("ElementSpacing = 0.75 0.875 2.5\n", "")), "no ElementSpacing, so its voxel size"),
        ("a.mha", meta(("DimSize", "ElementNumberOfChannels = 3\nDimSize"), data=VOXELS * 3), "3 numbers in"),
        (
            "a.mha",
            meta(("DimSize", "ElementToIntensityFunctionSlope = 2\nDimSize")),
            "has elementtointensityfunctionslope 2, expected 1",
        ),
        (
            "a.mha",
            meta(("DimSize", "ElementToIntensityFunctionOffset = no\nDimSize")),
            "its header has 'no', expected a number",
        ),
        ("a.mha", meta(("BinaryData = True", "BinaryData = False")), "cannot be read"),
        (
            "a.mha",
            zlib_meta(zlib.compress(VOXELS[:-2])),
            "cut short .238 bytes of voxels., its header promises 240",
        ),
        ("a.mha", zlib_meta(zlib.compress(VOXELS)[:-9]), "is cut short"),
        ("a.mha", zlib_meta(zlib.compress(VOXELS)[:-4] + bytes(4)), "damaged .* incorrect data check"),
        ("a.mha", zlib_meta(zlib.compress(VOXELS + bytes(16 << 20))), "holds more than the 240 bytes"),
        ("a.mha", zlib_meta(zlib.compress(VOXELS), 10**12), "says that 1000000000000 bytes are compressed"),
        (
            "a.mha",
            meta(("CompressedData = False", "CompressedData = True")),
            "says that no number of bytes are",
        ),
        (
            "a.mhd",
            meta(("LOCAL", "../a.raw"), data=b""),
            "in ../a.raw, outside of its folder; move them beside it",
        ),
        ("a.mhd", meta(("LOCAL", "/etc/hostname"), data=b""), "in /etc/hostname, outside of its folder"),
        ("a.mhd", meta(("LOCAL", r"b\..\..\a.raw"), data=b""), "outside of its folder"),
        ("a.mhd", meta(("LOCAL", "C:a.raw"), data=b""), "outside of its folder"),
        ("a.mhd", meta(("LOCAL", "gone.raw"), data=b""), "in gone.raw, a file that is not there"),
        ("a.mhd", meta(("LOCAL", "LIST"), data=b"a.raw\nb.raw\n"), "in several files .LIST., expected one"),
        ("a.mhd", meta(("LOCAL", "slice%03d.raw 1 4 1"), data=b""), "in several files"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it_and_takes_no_memory(tmp_path, capfd, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=words) as error:
        read_image(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8 << 20
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert error.value.remedy
    assert capfd.readouterr() == ("", "")


def test_two_axes_are_not_a_volume(tmp_path):
    for suffix in ("nrrd", "mha"):
        path = tmp_path / f"a.{suffix}"
        simpleitk.WriteImage(simpleitk.GetImageFromArray(np.zeros((5, 6), np.int16)), str(path))
        with pytest.raises(DataError, match=r"6 x 5 voxels, expected three axes|are not known"):
            read_image(path)


def test_complex_numbers_are_refused(tmp_path):
    image = simpleitk.GetImageFromArray(np.zeros((4, 5, 6), np.complex64))
    simpleitk.WriteImage(image, str(tmp_path / "a.mha"))
    with pytest.raises(DataError, match="expected"):
        read_image(tmp_path / "a.mha")


def test_reading_leaves_standard_error_and_the_settings_of_itk_alone(tmp_path, capfd):
    shown = simpleitk.ProcessObject.GetGlobalWarningDisplay()
    (tmp_path / "a.nrrd").write_bytes(nrrd())
    read_image(tmp_path / "a.nrrd")
    assert simpleitk.ProcessObject.GetGlobalWarningDisplay() == shown
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


def test_without_simpleitk_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "a.nrrd").write_bytes(nrrd())
    with pytest.raises(DataError, match=r'not installed; run: pip install "partialseg\[itk\]"'):
        read_image(tmp_path / "a.nrrd")


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="there is no such file, expected a label map"):
        read_label(tmp_path / "a.nrrd")
