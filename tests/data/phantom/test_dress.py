import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.phantom import dress_folder, dress_label_map
from partialseg.data.phantom.inside import deeper_than, fill
from partialseg.data.phantom.label_names import KNOWN, read_names
from partialseg.data.phantom.tissue import TISSUE_ID
from partialseg.errors import DataError

SPACING = (5.0, 4.0, 4.0)
NAMES = {1: "liver", 2: "spleen", 3: "right_kidney", 4: "left_kidney"}


def ball(label, centre_mm, radius_mm, value):
    axes = [np.arange(n) * s for n, s in zip(label.shape, SPACING, strict=True)]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    cz, cy, cx = centre_mm
    label[(z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < radius_mm**2] = value


@pytest.fixture(scope="module")
def label():
    """A patient made of four balls: 200 mm high, 360 mm wide; the spine is at x = 180 mm."""
    label = np.zeros((40, 80, 90), np.uint8)
    ball(label, (120, 150, 250), 60, 1)
    ball(label, (140, 130, 90), 32, 2)
    ball(label, (75, 115, 243), 30, 3)
    ball(label, (85, 115, 117), 30, 4)
    return label


@pytest.fixture(scope="module")
def image(label):
    return dress_label_map(label, SPACING, NAMES, seed=0)


def test_every_organ_has_the_hu_of_its_tissue(label, image):
    ranges = {1: (55, 140), 2: (85, 150), 3: (90, 200), 4: (90, 200)}
    for value, (low, high) in ranges.items():
        assert low < np.median(image[label == value]) < high


def test_a_body_lies_around_the_organs_and_air_around_the_body(image):
    middle = image[20]
    for edge in (middle[-1], middle[:, 0], middle[:, -1]):
        assert np.median(edge) < -950
    # From the liver outward: fat or muscle before there is air.
    row = middle[37]
    body = np.flatnonzero(row > -300)
    assert body[0] * 4 < 90 - 32
    assert body[-1] * 4 > 250 + 60
    assert ((row > -140) & (row < -70)).any()


def test_there_is_a_spine_between_the_kidneys(image):
    assert (image[16, 15:40, 42:48] > 200).sum() > 10


def test_the_same_seed_gives_the_same_image_and_another_seed_another(label, image):
    np.testing.assert_array_equal(dress_label_map(label, SPACING, NAMES, seed=0), image)
    assert np.abs(dress_label_map(label, SPACING, NAMES, seed=1) - image).mean() > 5


def test_an_unnamed_value_is_soft_tissue(label):
    image = dress_label_map(label, SPACING, {}, seed=0)
    assert 30 < np.median(image[label == 1]) < 100


def test_an_empty_map_is_a_body_without_labelled_organs():
    image = dress_label_map(np.zeros((20, 60, 60), np.uint8), (8.0, 6.0, 6.0), {1: "liver"}, seed=0)
    assert np.isfinite(image).all()
    assert (image > -300).mean() > 0.1


def test_depth_is_measured_in_millimetres():
    label = np.zeros((40, 80, 90), np.uint8)
    ball(label, (100, 160, 180), 50, 1)
    volume = deeper_than(label == 1, 10.0, SPACING).sum() * np.prod(SPACING)
    assert volume == pytest.approx(4 / 3 * np.pi * 40**3, rel=0.15)


@pytest.mark.parametrize(
    ("kind", "tissues"),
    [
        ("liver", {"liver"}),
        ("kidney", {"kidney_cortex", "kidney_medulla"}),
        ("stomach", {"stomach_wall", "stomach_content", "gas"}),
        ("bone", {"cortical_bone", "marrow"}),
        ("bladder", {"muscle", "urine"}),
        ("colon", {"bowel_wall", "stool", "gas"}),
        ("bowel", {"bowel_wall", "bowel_content", "gas"}),
    ],
)
def test_composite_organs_are_filled_with_their_tissues(kind, tissues):
    label = np.zeros((40, 80, 90), np.uint8)
    ball(label, (100, 160, 180), 50, 1)
    found = np.unique(fill(label == 1, kind, SPACING, np.random.default_rng(1))[label == 1])
    assert set(found) <= {TISSUE_ID[name] for name in tissues}
    assert len(found) >= min(len(tissues), 2)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="marzipan"):
        fill(np.ones((2, 2, 2), bool), "marzipan", SPACING, np.random.default_rng(0))


def write_map(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([4.0, 4.0, 5.0, 1.0]) if affine is None else affine), path)


def test_a_folder_keeps_axes_affine_and_labels(label, tmp_path):
    ipl = np.array([[0, 0, -4.0, 0], [0, -4.0, 0, 0], [-5.0, 0, 0, 0], [0, 0, 0, 1.0]])
    ras = nib.Nifti1Image(label.transpose(2, 1, 0), np.diag([4.0, 4.0, 5.0, 1.0]))
    write_map(tmp_path / "in" / "a.nii.gz", np.ascontiguousarray(label[::-1, ::-1, ::-1]), ipl)
    nib.save(ras, tmp_path / "in" / "b.nii.gz")
    result = dress_folder(tmp_path / "in", tmp_path / "out", NAMES)
    assert [path.name for path in result.written] == ["a.nii.gz", "b.nii.gz"]
    assert result.problems == []
    for name in ("a.nii.gz", "b.nii.gz"):
        source, image = nib.load(tmp_path / "in" / name), nib.load(tmp_path / "out" / "images" / name)
        assert image.get_data_dtype() == np.int16
        assert image.shape == source.shape
        np.testing.assert_array_equal(image.affine, source.affine)
        assert (tmp_path / "out" / "labels" / name).read_bytes() == (tmp_path / "in" / name).read_bytes()
        hu = np.asarray(image.dataobj)
        assert 55 < np.median(hu[np.asarray(source.dataobj) == 1]) < 140


def test_bad_maps_are_reported_and_the_others_dressed(label, tmp_path):
    folder = tmp_path / "in"
    write_map(folder / "good.nii.gz", label.transpose(2, 1, 0))
    write_map(folder / "float.nii.gz", np.full((4, 4, 4), 0.5, np.float32))
    write_map(folder / "four.nii.gz", np.zeros((4, 4, 4, 2), np.uint8))
    write_map(folder / "negative.nii.gz", np.full((4, 4, 4), -1, np.int16))
    whole = (folder / "good.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[:300])
    (folder / "flipped_bit.nii.gz").write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    header = bytearray(gzip.decompress(whole))
    header[70:72] = b"\xff\x7f"  # no such type of voxels
    (folder / "header.nii.gz").write_bytes(gzip.compress(bytes(header)))
    result = dress_folder(folder, tmp_path / "out", NAMES)
    assert [path.name for path in result.written] == ["good.nii.gz"]
    assert sorted(problem.path.rsplit("/", 1)[1] for problem in result.problems) == [
        "cut.nii.gz",
        "flipped_bit.nii.gz",
        "float.nii.gz",
        "four.nii.gz",
        "header.nii.gz",
        "negative.nii.gz",
    ]
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["good.nii.gz"]


def test_a_folder_without_maps_is_an_error(tmp_path):
    with pytest.raises(DataError, match="holds no"):
        dress_folder(tmp_path, tmp_path / "out")


def test_names_come_from_mappings_files_and_sets(tmp_path):
    (tmp_path / "names.yaml").write_text("1: liver\n2: spleen\n0: background\n")
    (tmp_path / "names.json").write_text(json.dumps({"1": "liver"}))
    assert read_names({"1": "liver"}) == {1: "liver"}
    assert read_names(tmp_path / "names.yaml") == {1: "liver", 2: "spleen"}
    assert read_names(tmp_path / "names.json") == {1: "liver"}
    assert read_names("word") == KNOWN["word"][1]
    (tmp_path / "list.yaml").write_text("- liver\n")
    for bad in ("list.yaml", "missing.yaml"):
        with pytest.raises(DataError, match=r"names|cannot be read"):
            read_names(tmp_path / bad)


def test_names_beside_the_maps_are_found(label, tmp_path):
    write_map(tmp_path / "in" / "word_1.nii.gz", label.transpose(2, 1, 0)[::2, ::2, ::2])
    assert json.loads((dressed(tmp_path) / "names.json").read_text())["5"] == "stomach"
    (tmp_path / "in" / "names.yaml").write_text("1: spleen\n")
    assert json.loads((dressed(tmp_path) / "names.json").read_text()) == {"1": "spleen"}


def test_hidden_files_are_no_maps(label, tmp_path):
    write_map(tmp_path / "in" / "word_1.nii.gz", label.transpose(2, 1, 0)[::2, ::2, ::2])
    (tmp_path / "in" / "._word_1.nii.gz").write_bytes(b"of the system")
    result = dress_folder(tmp_path / "in", tmp_path / "out")
    assert ([path.name for path in result.written], result.problems) == (["word_1.nii.gz"], [])
    assert json.loads((tmp_path / "out" / "names.json").read_text())["1"] == "liver"


def dressed(tmp_path):
    dress_folder(tmp_path / "in", tmp_path / "out")
    return tmp_path / "out"


def test_a_real_kits_map_becomes_a_scan_with_bright_kidneys(real_data, tmp_path):
    source = real_data / "kits19_labels" / "case_00038.nii.gz"
    (tmp_path / "in").mkdir()
    # Every fourth row and column: the same kidneys, quickly.
    whole = nib.load(source)
    affine = whole.affine @ np.diag([1.0, 4.0, 4.0, 1.0])
    write_map(tmp_path / "in" / "case_00038.nii.gz", np.asarray(whole.dataobj)[:, ::4, ::4], affine)
    (image,) = dress_folder(tmp_path / "in", tmp_path / "out").written
    hu, labels = np.asarray(nib.load(image).dataobj), np.asarray(whole.dataobj)[:, ::4, ::4]
    assert "".join(nib.aff2axcodes(nib.load(image).affine)) == "IPL"
    assert 90 < np.median(hu[labels == 1]) < 200
    assert np.median(hu[:, 0]) < -950
