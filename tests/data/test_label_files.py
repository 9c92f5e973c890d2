"""Label maps that are one file, a folder of masks, or a folder of PNG slices."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from partialseg.data.cards import RawCase, read_card
from partialseg.data.label_files import read_case_label, with_missing_masks
from partialseg.data.volumes import read_image
from partialseg.errors import DataError

AFFINE = np.diag([-0.7, -0.9, 2.0, 1.0])
SHAPE = (6, 5, 4)


def write_card(folder, labels, image="*/ct.nii.gz", label="*/masks"):
    """A card whose labels are lines of YAML."""
    annotated = sorted(set(labels.values()) - {"background", "ignore"})
    lines = [
        "---",
        "name: some_set",
        f'files: {{image: "{image}", label: "{label}"}}',
        "labels:",
        *(f"  {key}: {name}" for key, name in labels.items()),
        f"annotated: [{', '.join(annotated)}]",
        "---",
        "",
    ]
    (folder / "some_set.md").write_text("\n".join(lines), encoding="utf-8")
    return read_card(folder / "some_set.md")


def case(folder, label="masks", image="ct.nii.gz"):
    return RawCase("some_set", "case_1", folder / image, folder / label)


def test_a_large_label_map_is_no_problem_where_its_scan_is_damaged(tmp_path):
    (tmp_path / "ct.nii.gz").write_bytes(b"damaged")
    nib.save(nib.Nifti1Image(np.zeros((512, 512, 65), np.uint8), AFFINE), tmp_path / "label.nii.gz")
    card = write_card(tmp_path, {1: "liver"}, label="*/label.nii.gz")
    assert read_case_label(card, case(tmp_path, "label.nii.gz")).array.shape == (65, 512, 512)


def box(*where):
    array = np.zeros(SHAPE, np.uint8)
    array[where] = 1
    return array


def save_mask(path, array, affine=AFFINE):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def canonical(array):
    """An array of `AFFINE`, whose x and y run backwards, as `(z, y, x)` in RAS+."""
    return array[::-1, ::-1].T


LIVER, SPLEEN, BONE = box(slice(0, 3)), box(slice(2, 5)), box(slice(None), 0)


@pytest.fixture
def masks(tmp_path):
    """A folder of three masks that overlap."""
    for name, array in (("liver", LIVER), ("spleen", SPLEEN * 255), ("bone", BONE)):
        save_mask(tmp_path / "masks" / f"{name}.nii.gz", array)
    return tmp_path


def test_one_file_is_read_as_it_is(masks):
    card = write_card(masks, {1: "liver"}, label="*/label.nii.gz")
    volume = read_case_label(card, case(masks, "masks/liver.nii.gz"))
    np.testing.assert_array_equal(volume.array, canonical(LIVER))
    with pytest.raises(DataError, match="there is no such file, expected a label map"):
        read_case_label(card, case(masks, "masks/gone.nii.gz"))


def test_a_voxel_in_several_masks_is_the_one_that_the_card_lists_first(masks):
    for first, second in (("liver", "spleen"), ("spleen", "liver")):
        card = write_card(masks, {first: first, second: second})
        volume = read_case_label(card, case(masks))
        mask = {"liver": LIVER, "spleen": SPLEEN}
        expected = np.where(mask[first], 1, np.where(mask[second], 2, 0))
        np.testing.assert_array_equal(volume.array, canonical(expected))
        assert volume.array.dtype == np.uint8
        assert volume.notes == ()
        np.testing.assert_allclose(volume.affine, read_image(masks / "masks" / "liver.nii.gz").affine)


def test_masks_may_be_stored_in_different_axis_orders_and_formats(masks):
    flipped = nib.Nifti1Image(SPLEEN[::-1, ::-1].transpose(2, 0, 1).copy(), None)
    start = np.array([*AFFINE[:3, :3] @ [SHAPE[0] - 1, SHAPE[1] - 1, 0], 1])
    flipped.set_sform(np.stack([[0, 0, 2, 0], [0.7, 0, 0, 0], [0, 0.9, 0, 0], start], axis=1), 1)
    (masks / "masks" / "spleen.nii.gz").unlink()
    nib.save(flipped, masks / "masks" / "spleen.nii")
    volume = read_case_label(write_card(masks, {"liver": "liver", "spleen": "spleen"}), case(masks))
    np.testing.assert_array_equal(volume.array, canonical(np.where(LIVER, 1, SPLEEN * 2)))


def test_masks_of_background_and_of_ignore_have_values_too(masks):
    card = write_card(masks, {"bone": "background", "liver": "ignore", "spleen": "spleen"})
    volume = read_case_label(card, case(masks))
    np.testing.assert_array_equal(volume.array, canonical(np.where(BONE, 1, np.where(LIVER, 2, SPLEEN * 3))))


def test_masks_of_background_after_all_others_are_not_read(masks):
    (masks / "masks" / "bone.nii.gz").write_bytes(b"damaged")
    card = write_card(
        masks, {"liver": "liver", "spleen": "spleen", "bone": "background", "fat": "background"}
    )
    volume = read_case_label(card, case(masks))
    np.testing.assert_array_equal(volume.array, canonical(np.where(LIVER, 1, SPLEEN * 2)))
    assert volume.notes == ()


def test_a_missing_mask_is_empty_and_noted_and_keeps_its_value(masks):
    (masks / "masks" / "liver.nii.gz").unlink()
    volume = read_case_label(write_card(masks, {"liver": "liver", "spleen": "spleen"}), case(masks))
    np.testing.assert_array_equal(volume.array, canonical(SPLEEN * 2))
    assert volume.notes == ("no mask of liver: taken as empty",)


@pytest.mark.parametrize("annotated", [None, ["spleen"]])
def test_an_organ_of_which_a_part_alone_is_drawn_is_noted(masks, annotated):
    folder = masks / "masks"
    labels = {"livertumor": "liver", "liver": "liver", "spleencyst": "spleen", "spleen": "spleen"}
    card = write_card(masks, labels).model_copy(update={"missing_masks": "not annotated"})
    assert read_case_label(card, case(masks)).notes == ()
    (folder / "liver.nii.gz").rename(folder / "livertumor.nii.gz")
    card = with_missing_masks(card, [case(masks)])
    assert card.annotated_in("case_1") == ("liver", "spleen")
    if annotated:
        override = card.cases["case_1"].model_copy(update={"annotated": annotated})
        card = card.model_copy(update={"cases": {"case_1": override}})
    note = "liver is drawn by livertumor alone: the mask liver itself is missing"
    assert read_case_label(card, case(masks)).notes == (() if annotated else (note,))


def test_more_than_255_masks_have_values_above_255(masks):
    labels = {f"structure {index}": "other" for index in range(300)} | {"liver": "liver"}
    volume = read_case_label(write_card(masks, labels), case(masks))
    np.testing.assert_array_equal(volume.array, canonical(LIVER.astype(int) * 301))
    assert volume.array.dtype == np.int16


def _other_shape(folder):
    save_mask(folder / "spleen.nii.gz", SPLEEN[..., :-1])


def _moved(folder):
    moved = AFFINE.copy()
    moved[0, 3] = 3
    save_mask(folder / "spleen.nii.gz", SPLEEN, moved)


def _several_values(folder):
    save_mask(folder / "spleen.nii.gz", SPLEEN + LIVER * 2)


def _truncated(folder):
    path = folder / "spleen.nii.gz"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            _other_shape,
            "has 6 x 5 x 3 voxels .x, y, z., expected 6 x 5 x 4 as liver.nii.gz has; give all masks .* on one grid",
        ),
        (
            _moved,
            "lies up to 3 mm from liver.nii.gz, expected one place; give all masks of a case on one grid",
        ),
        (_several_values, "holds values [12] and 3, expected a mask: 0 and one other value"),
        (_truncated, "cut short"),
    ],
)
def test_a_mask_that_does_not_fit_is_one_line_that_names_it(masks, spoil, words):
    spoil(masks / "masks")
    with pytest.raises(DataError, match=words) as error:
        read_case_label(write_card(masks, {"liver": "liver", "spleen": "spleen"}), case(masks))
    assert error.value.path == str(masks / "masks" / "spleen.nii.gz")
    assert "\n" not in str(error.value)


def test_a_folder_without_masks_is_one_line(masks):
    card = write_card(masks, {"kidney": "kidney", **{f"rib {index}": "rib" for index in range(9)}})
    with pytest.raises(
        DataError, match=r"none of the masks .*, expected kidney, rib 0, .*, rib 3 and 5 more"
    ):
        read_case_label(card, case(masks))
    with pytest.raises(DataError, match="there is no such folder, expected a folder with a mask for each"):
        read_case_label(card, case(masks, "gone"))
    with pytest.raises(DataError, match="is a file, expected a folder with a mask for each"):
        read_case_label(card, case(masks, "masks/liver.nii.gz"))


def write_slice(path, pixels, z, **changes):
    """One slice in DICOM, `(rows, columns)`, uncompressed."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID = "CT", generate_uid(entropy_srcs=[str(path.parent)])
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelSpacing, dataset.SliceThickness = [0.9, 0.7], 2
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, z]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1000
    for name, value in changes.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def test_masks_may_be_folders_of_dicom_slices(tmp_path):
    """As those of 3D-IRCADb: not of every structure in every case."""
    for name, array in (("liver", LIVER), ("left kidney", SPLEEN)):
        for index in range(SHAPE[2]):
            path = tmp_path / "MASKS_DICOM" / name / f"image_{index}"
            write_slice(path, array[..., index].T * 255, 2 * index)
    card = write_card(tmp_path, {"liver": "liver", "spleen": "spleen", "left kidney": "left_kidney"})
    volume = read_case_label(card, case(tmp_path, "MASKS_DICOM"))
    np.testing.assert_array_equal(volume.array, canonical(np.where(LIVER, 1, SPLEEN * 3)))
    np.testing.assert_allclose(volume.affine[:3, 3], [-0.7 * 5, -0.9 * 4, 0])
    assert volume.notes == ("no mask of spleen: taken as empty",)


@pytest.fixture
def slices(tmp_path):
    """DICOM slices whose names run against their place, and a PNG for each, as in CHAOS."""
    label = np.random.default_rng(0).integers(0, 2, (12, 6, 5)).astype(np.uint8)  # in the order of the files
    image = np.random.default_rng(1).integers(0, 2000, label.shape)
    for index in range(12):
        write_slice(tmp_path / "DICOM_anon" / f"i{index:04d},0000b.dcm", image[index], 3 * (11 - index))
        path = tmp_path / "Ground" / f"liver_GT_{index}.png"  # 2 comes before 10
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(label[index] * np.uint8(255)).save(path)
    return tmp_path, label


def chaos(folder):
    card = write_card(folder, {1: "liver", 255: "liver"}, image="*/DICOM_anon", label="*/Ground")
    return card, case(folder, "Ground", "DICOM_anon")


def test_png_slices_lie_where_the_dicom_slices_lie(slices):
    folder, label = slices
    volume = read_case_label(*chaos(folder))
    image = read_image(folder / "DICOM_anon")
    assert volume.array.shape == image.array.shape
    np.testing.assert_array_equal(volume.affine, image.affine)
    np.testing.assert_array_equal(volume.array, 255 * label[::-1, ::-1, ::-1])
    assert volume.array.dtype == np.uint8


@pytest.mark.parametrize(("mode", "factor"), [("1", 1), ("L", 7), ("I;16", 300)])
def test_png_slices_of_1_8_and_16_bits(slices, mode, factor):
    folder, label = slices
    for index in range(12):
        values = label[index].astype(np.uint16) * factor
        array = values.astype({"1": bool, "L": np.uint8, "I;16": np.uint16}[mode])
        Image.fromarray(array).save(folder / "Ground" / f"liver_GT_{index}.png")
    (folder / "Ground" / ".hidden.png").write_bytes(b"")
    (folder / "Ground" / "notes.txt").write_bytes(b"")
    volume = read_case_label(*chaos(folder))
    np.testing.assert_array_equal(volume.array, factor * label[::-1, ::-1, ::-1].astype(int))
    assert volume.array.dtype == (np.uint8 if factor < 256 else np.int16)


def _save_png(mode, size=(5, 6), color=0):
    return lambda path: Image.new(mode, size, color).save(path)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def _bomb(path):
    content = path.read_bytes()
    path.write_bytes(content[:16] + (30000).to_bytes(4, "big") * 2 + content[24:])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.unlink(), "holds 11 PNG files, .* has 12 slices, expected one for each slice"),
        (
            lambda path: path.write_bytes(b"<html>404</html>" * 9),
            "is not PNG, expected the PNG file of a slice",
        ),
        (lambda path: path.write_bytes(b""), "is not PNG"),
        (_cut, "cannot be read as PNG"),
        (_save_png("L", (6, 5)), "has 6 x 5 pixels, its DICOM slice 5 x 6"),
        (_bomb, "has 30000 x 30000 pixels, its DICOM slice 5 x 6"),
        (_save_png("RGB"), "its pixels are RGB, expected one whole number each"),
        (_save_png("I;16", color=40000), "holds value 40000, expected 0 to 32767"),
    ],
)
def test_a_png_slice_that_does_not_fit_is_one_line_that_names_it(slices, spoil, words):
    folder, _ = slices
    spoil(folder / "Ground" / "liver_GT_4.png")
    with pytest.raises(DataError, match=words) as error:
        read_case_label(*chaos(folder))
    assert str(error.value).startswith(str(folder / "Ground"))
    assert "\n" not in str(error.value)


def test_a_folder_of_something_else_is_one_line(slices):
    folder, _ = slices
    card, _ = chaos(folder)
    with pytest.raises(
        DataError, match="is a folder without PNG files, expected a file with the label map, or"
    ):
        read_case_label(card, case(folder, "DICOM_anon", "DICOM_anon"))
    with pytest.raises(DataError, match=r"holds PNG files, and ct.nii.gz is no folder, expected one PNG for"):
        read_case_label(card, case(folder, "Ground", "ct.nii.gz"))
