"""The cards that come with the package, each against its dataset's official layout, written small."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from partialseg.data.cards import find_cases, read_card, shipped_cards
from partialseg.data.classes import BACKGROUND, KNOWN_ORGANS, class_names
from partialseg.data.label_files import read_case_label, with_missing_masks
from partialseg.data.prepare import prepare
from partialseg.data.relabel import to_prepared_values
from partialseg.data.volumes import read_image

SIZE = 8
SPACING_MM = 3.0
#: Image, label map and name of a case, as the dataset's makers lay them out.
LAYOUTS = {
    "abdomenatlas": (
        "AbdomenAtlas1.0Mini/BDMAP_00000001/ct.nii.gz",
        "AbdomenAtlas1.0Mini/BDMAP_00000001/segmentations/",
        "BDMAP_00000001",
    ),
    "amos22": ("amos22/imagesTr/amos_0001.nii.gz", "amos22/labelsTr/amos_0001.nii.gz", "amos_0001"),
    "amos22_val": ("amos22/imagesVa/amos_0008.nii.gz", "amos22/labelsVa/amos_0008.nii.gz", "amos_0008"),
    "btcv": ("RawData/Training/img/img0001.nii.gz", "RawData/Training/label/label0001.nii.gz", "img0001"),
    "btcv_13": (
        "Abdomen/RawData/Training/img/img0040.nii.gz",
        "Abdomen/RawData/Training/label/label0040.nii.gz",
        "img0040",
    ),
    "chaos_ct": (
        "CHAOS_Train_Sets/Train_Sets/CT/1/DICOM_anon/",
        "CHAOS_Train_Sets/Train_Sets/CT/1/Ground/",
        "1",
    ),
    "flare22": (
        "FLARE22Train/images/FLARE22_Tr_0001_0000.nii.gz",
        "FLARE22Train/labels/FLARE22_Tr_0001.nii.gz",
        "FLARE22_Tr_0001",
    ),
    "ircadb": ("3Dircadb1/3Dircadb1.1/PATIENT_DICOM/", "3Dircadb1/3Dircadb1.1/MASKS_DICOM/", "3Dircadb1.1"),
    "kits19": (
        "kits19/data/case_00000/imaging.nii.gz",
        "kits19/data/case_00000/segmentation.nii.gz",
        "case_00000",
    ),
    "lits": ("LITS17/volume-0.nii", "LITS17/segmentation-0.nii", "volume-0"),
    "msd_liver": ("Task03_Liver/imagesTr/liver_0.nii.gz", "Task03_Liver/labelsTr/liver_0.nii.gz", "liver_0"),
    "msd_pancreas": (
        "Task07_Pancreas/imagesTr/pancreas_001.nii.gz",
        "Task07_Pancreas/labelsTr/pancreas_001.nii.gz",
        "pancreas_001",
    ),
    "msd_spleen": (
        "Task09_Spleen/imagesTr/spleen_2.nii.gz",
        "Task09_Spleen/labelsTr/spleen_2.nii.gz",
        "spleen_2",
    ),
    "totalsegmentator": (
        "Totalsegmentator_dataset_v201/s0000/ct.nii.gz",
        "Totalsegmentator_dataset_v201/s0000/segmentations/",
        "s0000",
    ),
    "word": ("WORD-V0.1.0/imagesTr/word_0002.nii.gz", "WORD-V0.1.0/labelsTr/word_0002.nii.gz", "word_0002"),
    "word_val": (
        "WORD-V0.1.0/imagesVal/word_0001.nii.gz",
        "WORD-V0.1.0/labelsVal/word_0001.nii.gz",
        "word_0001",
    ),
    "word_test": (
        "WORD-V0.1.0/imagesTs/word_0014.nii.gz",
        "WORD-V0.1.0/labelsTs/word_0014.nii.gz",
        "word_0014",
    ),
}
#: Masks of 3D-IRCADb that the tests write; no case has all of them.
IRCADB_MASKS = ("liver", "livertumor01", "tumor", "spleen", "rightkidney", "kidneys", "surrenalgland", "bone")
HEADINGS = (
    "What it is",
    "Who made it",
    "Licence and citation",
    "How to get it",
    "Layout",
    "Quirks",
    "Not suited to",
)


def _write_nifti(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1]))
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _write_slices(folder, array, name, from_the_head=False):
    """DICOM slices of an array `(x, y, z)`; CHAOS numbers them from the head on."""
    folder.mkdir(parents=True, exist_ok=True)
    series, frame = generate_uid(), generate_uid()
    for index in range(array.shape[2]):
        z = array.shape[2] - 1 - index if from_the_head else index
        slice_ = pydicom.Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid()
        slice_.Modality, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = "CT", series, frame
        slice_.Rows, slice_.Columns = array.shape[1], array.shape[0]
        slice_.PixelSpacing, slice_.SliceThickness = [SPACING_MM, SPACING_MM], SPACING_MM
        slice_.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
        slice_.ImagePositionPatient = [0, 0, z * SPACING_MM]
        slice_.InstanceNumber = index + 1
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation = 15, 1
        slice_.RescaleIntercept, slice_.RescaleSlope = 0, 1
        slice_.PixelData = np.ascontiguousarray(array[:, :, z].T).astype("<i2").tobytes()
        slice_.save_as(folder / name(index), enforce_file_format=True)


def _write_masks(folder, card, array):
    for value in np.unique(array[array > 0]):
        name = card.masks[value - 1]
        if card.name == "ircadb":
            _write_slices(folder / name, np.where(array == value, 255, 0), lambda index: f"image_{index}")
        else:
            _write_nifti(folder / f"{name}.nii.gz", (array == value).astype(np.uint8))


def _write_case(raw, card, masks=None):
    """A case that has a voxel or more of every value; returns the label values, `(x, y, z)`."""
    masks = masks or (IRCADB_MASKS if card.name == "ircadb" else card.masks)
    values = np.array([0, *(value for value in card.labels if not masks or card.masks[value - 1] in masks)])
    labels = values[np.arange(SIZE**3) % len(values)].reshape(SIZE, SIZE, SIZE)
    scan = np.random.default_rng(0).integers(-200, 200, labels.shape).astype(np.int16)
    image, label, _ = (raw / part for part in LAYOUTS[card.name])
    if card.name == "chaos_ct":
        _write_slices(image, scan, lambda index: f"i{index:04d},0000b.dcm", from_the_head=True)
        label.mkdir(parents=True)
        for index in range(SIZE):
            pixels = labels[:, :, SIZE - 1 - index].T.astype(np.uint8)
            Image.fromarray(pixels).save(label / f"liver_GT_{index:03d}.png")
        return labels
    if card.name == "ircadb":
        _write_slices(image, scan, lambda index: f"image_{index}")
    else:
        _write_nifti(image, scan)
    if card.masks:
        _write_masks(label, card, labels)
    else:
        _write_nifti(label, labels.astype(np.uint8))
    return labels


def test_every_card_has_its_layout_here():
    assert set(LAYOUTS) == set(shipped_cards())


@pytest.mark.parametrize("name", sorted(shipped_cards()))
def test_a_shipped_card_says_what_people_need(name):
    card = read_card(name)
    assert card.name == name
    assert all([card.title, card.source, card.licence, card.citation, card.unsuited, card.counts["labelled"]])
    assert set(card.organs) <= set(KNOWN_ORGANS)
    prose = card.path.read_text(encoding="utf-8").split("\n---\n")[1]
    for heading in HEADINGS:
        assert f"**{heading}.**" in prose


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_case_in_the_official_layout_is_found_read_and_relabelled(name, tmp_path):
    card = read_card(name)
    values = _write_case(tmp_path, card)
    (case,) = find_cases(card, tmp_path)
    assert case.name == LAYOUTS[name][2]
    assert read_image(case.image, card.files.series).array.shape == (SIZE, SIZE, SIZE)
    label = read_case_label(card, case)
    ends_with_background = [card.labels[value] == [BACKGROUND] for value in sorted(card.labels)]
    unread = len(card.labels) - ends_with_background[::-1].index(False) if card.masks else 10**6
    expected = np.where(values > unread, 0, values)  # masks of background that come last are not read
    np.testing.assert_array_equal(label.array, expected.T)

    classes = class_names(card.organs)
    prepared, _ = to_prepared_values(label, card, classes, case.name)
    for organ in card.organs:
        alone = [value for value, names in card.labels.items() if names == [organ]]
        if alone:
            is_organ = np.isin(label.array, alone)
            np.testing.assert_array_equal(prepared[is_organ], classes.index(organ))


def test_all_cards_are_prepared_together(tmp_path):
    cards = [read_card(name) for name in sorted(LAYOUTS)]
    for card in cards:
        _write_case(tmp_path / card.name, card)
        result = prepare(
            [card], tmp_path / card.name, tmp_path / "prepared" / card.name, (3.0, 3.0, 3.0), jobs=1
        )
        assert result.problems == []
        assert [case.name for case in result.prepared.cases] == [LAYOUTS[card.name][2]]


def test_cases_that_a_card_leaves_out_are_left_out(tmp_path):
    files = {
        "amos22": ("amos22/imagesTr/amos_{}.nii.gz", ["0001", "0410"], ["0507", "0600"]),
        "lits": ("LITS17/volume-{}.nii", ["0", "27", "48", "130"], ["28", "39", "47"]),
        "kits19": ("kits19/data/case_{}/imaging.nii.gz", ["00000", "00209"], ["00015", "00210", "00299"]),
    }
    for name, (pattern, kept, left_out) in files.items():
        for star in (*kept, *left_out):
            path = tmp_path / pattern.format(star)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        found = [case.image for case in find_cases(read_card(name), tmp_path)]
        assert sorted(found) == sorted(tmp_path / pattern.format(star) for star in kept)


def test_compressed_files_of_lits_will_do(tmp_path):
    for name in (
        "volume-0.nii.gz",
        "segmentation-0.nii.gz",
        "volume-1.nii",
        "volume-1.nii.gz",
        "segmentation-1.nii",
    ):
        (tmp_path / name).touch()
    cases = find_cases(read_card("lits"), tmp_path)
    assert [(case.name, case.image.name, case.label.name) for case in cases] == [
        ("volume-0", "volume-0.nii.gz", "segmentation-0.nii.gz"),
        ("volume-1", "volume-1.nii", "segmentation-1.nii"),
    ]


def test_a_png_belongs_to_the_dicom_slice_of_the_same_place_in_the_order_of_names(tmp_path):
    card = read_card("chaos_ct")
    _write_case(tmp_path, card)
    ground = tmp_path / LAYOUTS["chaos_ct"][1]
    for index in range(SIZE):
        Image.fromarray(np.full((SIZE, SIZE), index == 0, dtype=np.uint8)).save(
            ground / f"liver_GT_{index:03d}.png"
        )
    label = read_case_label(card, *find_cases(card, tmp_path)).array
    assert label[-1].all()  # the first file is the slice at the head
    assert not label[:-1].any()


def test_an_organ_without_a_mask_in_3d_ircadb_is_not_annotated_in_that_case(tmp_path):
    card = read_card("ircadb")
    _write_case(tmp_path, card, masks=("liver", "livertumor", "rightkidney", "pancreas"))
    cases = find_cases(card, tmp_path)
    of_case = with_missing_masks(card, cases).annotated_in(cases[0].name)
    assert of_case == ("liver", "pancreas", "right_kidney")
    assert with_missing_masks(read_card("totalsegmentator"), cases).cases == {}
    result = prepare([card], tmp_path, tmp_path / "prepared", (3.0, 3.0, 3.0), jobs=1)
    (case,) = result.prepared.cases
    assert case.annotated == of_case
    of_background = result.prepared.table(case)[0]
    free = {name for name, may_be in zip(result.prepared.classes, of_background, strict=True) if may_be}
    assert free == set(result.prepared.classes) - set(of_case)


def test_totalsegmentator_lists_all_117_masks_of_version_2():
    card = read_card("totalsegmentator")
    assert len(card.masks) == 117
    assert sum(name.startswith("vertebrae_") for name in card.masks) == 25
    assert sum(name.startswith("rib_") for name in card.masks) == 24
    assert len(card.organs) == 18


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("btcv_13", {1: "spleen", 2: "right_kidney", 3: "left_kidney", 10: "portal_and_splenic_veins"}),
        ("amos22", {2: "right_kidney", 3: "left_kidney", 10: "pancreas", 14: "urinary_bladder"}),
        ("word", {1: "liver", 3: "left_kidney", 4: "right_kidney", 11: "small_bowel"}),
        ("flare22", {2: "right_kidney", 3: "spleen", 12: "duodenum", 13: "left_kidney"}),
    ],
)
def test_values_that_are_easily_confused(name, values):
    labels = read_card(name).labels
    assert {value: labels[value] for value in values} == {value: [organ] for value, organ in values.items()}


def test_adrenal_glands_of_word_are_told_apart(real_data):
    from partialseg.data.cards import RawCase

    card = read_card("word")
    for path in sorted((real_data / "word_labels").glob("*.nii.gz"))[:1]:
        case = RawCase("word", path.name, path, path)
        _, notes = to_prepared_values(read_case_label(card, case), card, class_names(card.organs), case.name)
        assert notes == ()
