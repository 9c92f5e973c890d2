"""NRRD and MetaImage: the same volume as NIfTI, and one line for each way in which a file can be wrong."""

import bz2
import gzip
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
        ("a.nrrd", nrrd(("encoding: raw", "ENCODING: RAW"), ("short", "Short"), ("little", "Little"))),
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
        ("a.mha", zlib_meta(gzip.compress(VOXELS))),
        ("a.mha", meta(("DimSize", "HeaderSize = -1\nDimSize"), data=b"more of a header" + VOXELS)),
        ("a.nrrd", nrrd(("encoding: raw", "encoding: raw\nbyte skip: -1"), data=b"anything" + VOXELS)),
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
PACKED, PACKED_ZLIB = gzip.compress(VOXELS), zlib.compress(VOXELS)
RAW, GZIP = "encoding: raw", "encoding: gzip"
LPS_SPACE, X, Y = "left-posterior-superior", "(0.75,0,0)", "(0,0.875,0)"
MATRIX, SPACING, OFFSET = "1 0 0 0 1 0 0 0 1", "0.75 0.875 2.5", "Offset = 1 2 3"
CHANNELS = [("dimension: 3", "dimension: 4"), ("sizes: 6", "sizes: 3 6"), ("directions:", "directions: none")]
SLOPE = "ElementToIntensityFunctionSlope"

BAD_NRRD = [
    (b"", r"is no NRRD file \(it is empty\)"),
    (b"<html>404</html>", "is no NRRD file but an HTML page"),
    (b"\x89PNG", r"is no NRRD file \(it has no such header\)"),
    (b"NRRD0004\n" + b"x" * (2 << 20), "is no NRRD file"),
    (b"NRRD0004\n" + (b"# " + b"x" * 1000 + b"\n") * 1100, "its header has no end"),
    (b"NRRD0004\ntype: short", "its header has no end"),
    (nrrd(data=VOXELS[:-1]), r"cut short \(239 bytes\), its NRRD header promises 240 bytes"),
    (nrrd(data=VOXELS + bytes(5000)), "holds more than the 240 bytes"),
    (nrrd(("6 5 4", "10000 10000 10000")), "claims 10000 x 10000 x 10000 voxels, expected at most"),
    (nrrd(("6 5 4", "900 900 900")), r"cut short \(240 bytes\), its NRRD header promises 1458000000"),
    (
        nrrd((RAW, GZIP), ("6 5 4", "900 900 900"), data=PACKED),
        "which cannot be the 1458000000 bytes that its NRRD",
    ),
    (nrrd(("6 5 4", "6 5 0")), "an axis of size 0"),
    (nrrd(("6 5 4", "6 -5 4")), "claims 6 x -5 x 4 voxels, expected sizes above 0"),
    (nrrd(("6 5 4", "6 5.5 4")), "its `sizes` is 6 5.5 4, expected whole numbers"),
    (nrrd(("6 5 4", "6 5 1e300")), "its `sizes` is 6 5 1e300, expected whole numbers"),
    (nrrd(("6 5 4", "6 5")), "its `sizes` is 6 5, expected 3 finite numbers"),
    (nrrd((RAW, GZIP), data=PACKED + BOMB), "holds more than the 240 bytes"),
    (nrrd((RAW, GZIP), data=PACKED[:-9]), "is cut short"),
    (nrrd((RAW, GZIP), data=PACKED[:-8] + bytes(8)), r"damaged \(CRC check failed"),
    (nrrd((RAW, GZIP), data=VOXELS), "is damaged"),
    (
        nrrd((RAW, GZIP + "\nbyte skip: 9"), data=gzip.compress(bytes(9) + VOXELS)),
        "skips 0 lines and 9 bytes",
    ),
    (nrrd((RAW, RAW + "\nline skip: 2")), "skips 2 lines and 0 bytes"),
    (nrrd((RAW, RAW + "\nbyte skip: -7")), "skips 0 lines and -7 bytes"),
    (nrrd((RAW, "encoding: bzip2"), data=bz2.compress(VOXELS)), "`encoding` is bzip2, expected raw, gzip"),
    (nrrd((RAW + "\n", "")), "`encoding` is missing, expected raw, gzip"),
    (nrrd((RAW, RAW + "\n" + RAW)), "its header has two lines `encoding`, expected one"),
    (
        nrrd((RAW, RAW + "\ndata file: ../a.raw")),
        "takes its voxels from ../a.raw, which may lie outside of its folder",
    ),
    (nrrd((RAW, RAW + "\ndatafile: LIST")), "takes its voxels from LIST"),
    (nrrd(("type: short", "type: block")), "its `type` is block, expected"),
    (nrrd(("endian: little\n", "")), "its `endian` is missing, expected little, big"),
    (
        nrrd((f"space: {LPS_SPACE}\n", "space dimension: 3\n")),
        "has no `space`, so left and right are not known",
    ),
    (nrrd((LPS_SPACE, "scanner-xyz")), "its `space` is scanner-xyz, expected left-posterior-superior or"),
    (
        nrrd((f"space directions: {X} {Y} (0,0,2.5)\n", "")),
        "has no `space directions`, so left and right are not",
    ),
    (nrrd(("space origin: (1,2,3)\n", "")), "has no `space origin`, so its place is not known"),
    (nrrd((X, "(0.75,0.4,0)")), "degrees off the right angle"),
    (nrrd((X, "(0,0,0)")), "expected sizes above 0"),
    (nrrd((X, "(nan,nan,nan)")), "expected 3 finite numbers"),
    (nrrd((X, "(0.75,0)")), "expected 3 finite numbers"),
    (nrrd((X, "(0.75,0,x)")), "expected 3 finite numbers"),
    (nrrd((X + " ", "")), "expected 3: one for each axis"),
    (
        nrrd(("sizes: 6 5 4", "sizes: 1 1 1"), (f"{X} {Y} (0,0,2.5)", "none none none")),
        "are all none, so the place",
    ),
    (nrrd((X, "none")), "holds 6 numbers in each voxel, expected one"),
    (nrrd(*CHANNELS, data=VOXELS * 3), "holds 3 numbers in each voxel, expected one"),
    (nrrd((RAW, 'space units: "m" "m" "m"\n' + RAW)), "lengths are in m, expected mm"),
]
BAD_META = [
    (b"", r"is no MetaImage file \(it is empty\)"),
    (b"<html>404</html>", "is no MetaImage file but an HTML page"),
    (b"\x89PNG", r"is no MetaImage file \(its header has a line"),
    (b"x = 1\n", r"is no MetaImage file \(its header has no end\)"),
    (meta(data=VOXELS[:-1]), r"cut short \(239 bytes\), its MetaImage header promises 240 bytes"),
    (meta(data=VOXELS + bytes(5000)), "holds more than the 240 bytes"),
    (meta(("6 5 4", "10000 10000 10000")), "claims 10000 x 10000 x 10000 voxels, expected at most"),
    (meta(("6 5 4", "900 900 900")), r"cut short \(240 bytes\), its MetaImage header promises"),
    (meta(("6 5 4", "6 5 0")), "an axis of size 0"),
    (meta(("6 5 4", "6 -5 4")), "claims 6 x -5 x 4 voxels, expected sizes above 0"),
    (meta(("6 5 4", "6 5")), "its `dimsize` is 6 5, expected 3 finite numbers"),
    (meta(("NDims = 3", "NDims = 99")), "its `ndims` is 99, expected 2, 3, 4"),
    (meta(("NDims = 3", "NDims = 99\nNDims = 3")), "two lines `ndims`"),
    (meta((f"TransformMatrix = {MATRIX}\n", "")), "no `transformmatrix`, so left and right are not known"),
    (meta((f"ElementSpacing = {SPACING}\n", "")), "no `elementspacing`, so its voxel size is not known"),
    (meta((OFFSET + "\n", "")), "no `offset`, so its place is not known"),
    (meta((OFFSET, "Offset = 1")), "its `offset` is 1, expected 3 finite numbers"),
    (meta((OFFSET, "Offset = nan 2 3")), "its `offset` is nan 2 3, expected 3 finite numbers"),
    (meta((MATRIX, "1 0 0")), "its `transformmatrix` is 1 0 0, expected 9 finite numbers"),
    (meta((MATRIX, "1 0.5 0 0 1 0 0 0 1")), "degrees off the right angle"),
    (meta((MATRIX, "0 0 0 0 0 0 0 0 0")), "expected sizes above 0"),
    (meta((SPACING, "0 0.875 2.5")), "expected sizes above 0"),
    (meta((SPACING, "-0.75 0.875 2.5")), "expected sizes above 0"),
    (meta(("DimSize", "DistanceUnits = um\nDimSize")), "its lengths are in um, expected mm"),
    (
        meta(("DimSize", "ElementNumberOfChannels = 3\nDimSize"), data=VOXELS * 3),
        "holds 3 numbers in each voxel",
    ),
    (meta(("DimSize", f"{SLOPE} = 2\nDimSize")), "its `elementtointensityfunctionslope` is 2, expected 1"),
    (meta(("DimSize", f"{SLOPE} = no\nDimSize")), "functionslope` is no, expected 1 finite numbers"),
    (meta(("DimSize", "HeaderSize = 10\nDimSize")), "its `headersize` is 10, expected 0 or -1"),
    (meta(("MET_SHORT", "MET_LONG")), "its `elementtype` is MET_LONG, expected MET_CHAR"),
    (meta(("BinaryData = True", "BinaryData = False")), "its voxels are text"),
    (
        zlib_meta(zlib.compress(VOXELS[:-2])),
        r"cut short \(238 bytes of voxels\), its MetaImage header promises 240",
    ),
    (zlib_meta(PACKED_ZLIB[:-9]), "is cut short"),
    (zlib_meta(PACKED_ZLIB[:-4] + bytes(4)), "damaged .* incorrect data check"),
    (zlib_meta(zlib.compress(VOXELS + bytes(64 << 20))), "holds more than the 240 bytes"),
    (zlib_meta(PACKED_ZLIB, 10**12), "promises 1000000000000 compressed bytes, a.mha holds"),
    (zlib_meta(PACKED_ZLIB, 100), "is cut short"),
    (zlib_meta(PACKED_ZLIB, -5), "promises -5 compressed bytes"),
    (meta(("CompressedData = False", "CompressedData = True")), "has no `compresseddatasize`"),
    (meta(("LOCAL", "../a.raw"), data=b""), "in ../a.raw, outside of its folder; move them beside it"),
    (meta(("LOCAL", "/etc/hostname"), data=b""), "in /etc/hostname, outside of its folder"),
    (meta(("LOCAL", r"b\..\..\a.raw"), data=b""), "outside of its folder"),
    (meta(("LOCAL", "C:a.raw"), data=b""), "outside of its folder"),
    (meta(("LOCAL", "gone.raw"), data=b""), "in gone.raw, a file that is not there"),
    (meta(("LOCAL", "LIST"), data=b"a.raw\nb.raw\n"), r"in several files \(LIST\), expected one"),
    (meta(("LOCAL", "slice%03d.raw 1 4 1"), data=b""), "in several files"),
]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("a.nrrd", *bad) for bad in BAD_NRRD] + [("a.mha", *bad) for bad in BAD_META],
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


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
def test_numbers_of_any_type_are_those_that_simpleitk_reads(tmp_path, dtype):
    array = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(dtype)
    for suffix in ("nrrd", "mha"):
        path = tmp_path / f"a.{suffix}"
        simpleitk.WriteImage(simpleitk.GetImageFromArray(array), str(path))
        np.testing.assert_array_equal(read_image(path).array, array[:, ::-1, ::-1])


def test_the_other_byte_order_is_read(tmp_path):
    swapped = np.arange(120, dtype=">i2").tobytes()
    (tmp_path / "a.nrrd").write_bytes(nrrd(("endian: little", "endian: big"), data=swapped))
    (tmp_path / "a.mha").write_bytes(meta(("OrderMSB = False", "OrderMSB = True"), data=swapped))
    (tmp_path / "b.mha").write_bytes(meta(("BinaryDataByteOrderMSB = False\n", "")))
    for name in ("a.nrrd", "a.mha", "b.mha"):
        np.testing.assert_array_equal(
            read_image(tmp_path / name).array,
            simpleitk.GetArrayFromImage(simpleitk.ReadImage(str(tmp_path / name)))[:, ::-1, ::-1],
        )


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(DataError, match="there is no such file, expected a label map"):
        read_label(tmp_path / "a.nrrd")
