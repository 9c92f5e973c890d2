"""Cards written from label maps and from `dataset.json`: what they say, and what is refused."""

import json

import nibabel as nib
import numpy as np
import pytest
import yaml

from partialseg.data.card_new import write_new_card
from partialseg.data.cards import find_cases, read_card
from partialseg.data.file_patterns import common_patterns, pair_up
from partialseg.errors import DataError

MSD = {
    "name": "Liver",
    "description": "Liver and cancer: segmentation",
    "reference": "IRCAD Hôpitaux Universitaires",
    "licence": "CC-BY-SA 4.0",
    "tensorImageSize": "3D",
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "liver", "2": "cancer"},
    "numTraining": 2,
    "numTest": 1,
    "training": [
        {"image": f"./imagesTr/liver_{number}.nii.gz", "label": f"./labelsTr/liver_{number}.nii.gz"}
        for number in (0, 12)
    ],
    "test": ["./imagesTs/liver_3.nii.gz"],
}
NNUNET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "Left Kidney": 1, "kidney_right": 2, "spleen": 3, "ignore": 4},
    "numTraining": 2,
    "file_ending": ".nii.gz",
    "license": "CC0",
    "reference": "https://example.org",
}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "card.md"


@pytest.fixture
def write_json(tmp_path):
    def write(content, folder="Dataset017_Kidneys", **changes):
        path = tmp_path / folder / "dataset.json"
        path.parent.mkdir(exist_ok=True)
        kept = {key: value for key, value in {**content, **changes}.items() if value is not None}
        path.write_text(json.dumps(kept), encoding="utf-8")
        return path

    return write


def _write_maps(root, *names, values=(0, 1, 3)):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.resize(np.array(values, dtype=np.uint8), (4, 4, 4))
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)


def _prose(path):
    return path.read_text(encoding="utf-8").split("\n---\n")[1]


def test_the_decathlons_json_becomes_a_card(write_json, out):
    result = write_new_card(write_json(MSD, "Task03_Liver"), out)
    card = read_card(out)
    assert result.card == card
    assert (card.name, card.title, card.source, card.licence) == (
        "liver",
        "Liver and cancer: segmentation",
        "IRCAD Hôpitaux Universitaires",
        "CC-BY-SA 4.0",
    )
    assert (card.files.image, card.files.label) == ("imagesTr/*.nii.gz", "labelsTr/*.nii.gz")
    assert card.labels == {1: ["liver"], 2: ["cancer"]}
    assert card.counts == {"labelled": 2}
    assert card.folders[0] == "Task03_Liver"
    assert any("value 2 is called cancer" in note for note in result.notes)
    for heading in ("What it is", "Licence and citation", "Quirks", "Not suited to"):
        assert f"**{heading}.**" in _prose(out)


def test_nnunets_json_becomes_a_card_that_finds_the_cases(write_json, out, tmp_path):
    path = write_json(NNUNET)
    _write_maps(path.parent, *(f"imagesTr/case_{i}_0000.nii.gz" for i in (1, 2)))
    _write_maps(path.parent, *(f"labelsTr/case_{i}.nii.gz" for i in (1, 2)))
    result = write_new_card(path.parent, out)
    assert result.notes == ()
    card = read_card(out)
    assert card.labels == {1: ["left_kidney"], 2: ["right_kidney"], 3: ["spleen"], 4: ["ignore"]}
    assert card.annotated == ["left_kidney", "right_kidney", "spleen"]
    assert card.counts == {"labelled": 2}
    assert not card.split_sides
    found = find_cases(card, tmp_path)
    assert [(case.name, case.label.name) for case in found] == [
        ("case_1", "case_1.nii.gz"),
        ("case_2", "case_2.nii.gz"),
    ]


def test_a_kidney_without_a_side_is_either(write_json, out):
    write_new_card(write_json(NNUNET, labels={"background": 0, "kidney": 1}), out)
    card = read_card(out)
    assert card.labels == {1: ["left_kidney", "right_kidney"]}
    assert card.split_sides


def test_a_value_belongs_to_the_region_that_is_painted_last(write_json, out):
    regions = {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2, "ignore": 4}
    write_new_card(write_json(NNUNET, labels=regions, regions_class_order=[1, 3, 2]), out)
    card = read_card(out)
    assert card.labels == {1: ["left_kidney", "right_kidney"], 2: ["tumor"], 3: ["masses"], 4: ["ignore"]}


def test_a_region_that_is_painted_over_has_no_value(write_json, out):
    regions = {"background": 0, "tumor": 2, "liver": [1, 2]}
    write_new_card(write_json(NNUNET, labels=regions, regions_class_order=[2, 1]), out)
    assert read_card(out).labels == {1: ["liver"], 2: ["liver"]}


def test_nnunet_v1_lists_images_without_their_channel(write_json, out, tmp_path):
    path = write_json(MSD, "Task100_Mine")
    _write_maps(path.parent, *(f"imagesTr/liver_{i}_0000.nii.gz" for i in (0, 12)))
    _write_maps(path.parent, *(f"labelsTr/liver_{i}.nii.gz" for i in (0, 12)))
    write_new_card(path, out)
    card = read_card(out)
    assert card.files.image == "imagesTr/*_0000.nii.gz"
    assert [case.name for case in find_cases(card, tmp_path)] == ["liver_0", "liver_12"]


def test_cases_of_nnunet_v2_may_be_listed(write_json, out):
    listed = {f"c{i}": {"images": [f"scans/c{i}.nrrd"], "label": f"maps/c{i}.nrrd"} for i in range(3)}
    write_new_card(write_json(NNUNET, dataset=listed, numTraining=3, file_ending=".nrrd"), out)
    assert read_card(out).files.image == "scans/*.nrrd"
    assert read_card(out).counts == {"labelled": 3}


def test_names_of_ones_own_replace_those_of_the_json(write_json, out, tmp_path):
    names = tmp_path / "names.json"
    names.write_text('{"2": "Liver"}')
    write_new_card(write_json(MSD), out, name="mine", names=names)
    card = read_card(out)
    assert card.name == "mine"
    assert card.labels == {1: ["liver"], 2: ["liver"]}
    assert "2: liver       # cancer" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "changes", "words"),
    [
        (NNUNET, {"channel_names": {"0": "CT", "1": "PET"}}, r"2 channels \(CT, PET\), expected one"),
        (MSD, {"modality": {"0": "MRI"}}, "images are MRI, expected CT"),
        (MSD, {"modality": "CT"}, "`modality`: found .*expected an object"),
        (NNUNET, {"labels": None}, "`labels`: the field is missing"),
        (NNUNET, {"labels": ["liver"]}, r"`labels`: found \[\"liver\"\], expected an object"),
        (NNUNET, {"labels": {"liver": 1}}, "background is not 0"),
        (NNUNET, {"labels": {"background": 0}}, "expected organs"),
        (NNUNET, {"labels": {"background": 0, "liver": "1"}}, '`liver`: found "1", expected a whole number'),
        (NNUNET, {"labels": {"background": 0, "liver": True}}, "`liver`: found true"),
        (NNUNET, {"labels": {"background": 0, "liver": 1, "spleen": 1}}, "1 is the value of several names"),
        (
            NNUNET,
            {"labels": {"background": 0, "kidney": [1, 2], "tumor": 2}},
            "`regions_class_order` is missing",
        ),
        (
            NNUNET,
            {"labels": {"background": 0, "kidney": [1, 2], "tumor": 2}, "regions_class_order": [1]},
            "one value for each of the 2 regions",
        ),
        (
            NNUNET,
            {"labels": {"background": 0, "kidney": [1, 2], "tumor": 2}, "regions_class_order": [1, 1]},
            "1 for tumor, which has the values",
        ),
        (NNUNET, {"labels": {"background": 0, "12": 1, "liver": 2}}, "no name of an organ"),
        (NNUNET, {"file_ending": ".png"}, "`file_ending`: '.png', expected one of"),
        (MSD, {"labels": {"0": "liver", "1": "spleen"}}, "0 is liver, expected background"),
        (MSD, {"labels": {"0": "background"}}, "nothing but background"),
        (MSD, {"labels": {"0": "background", "1": 7}}, "`1`: found 7, expected a name"),
        (MSD, {"training": [{"image": "../x.nii.gz", "label": "y.nii.gz"}]}, "leaves the dataset's folder"),
        (MSD, {"training": [{"image": "x.nii.gz"}]}, "training case 0: expected one image and one label"),
        (MSD, {"training": ["x.nii.gz"]}, "training case 0"),
        (MSD, {"training": [{"image": "a/x.nii.gz", "label": "b/y.nii.gz"}]}, "do not differ in one part"),
    ],
)
def test_a_json_that_is_no_good_is_told_on_one_line(write_json, out, content, changes, words):
    path = write_json(content, **changes)
    with pytest.raises(DataError, match=words) as error:
        write_new_card(path, out)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"labels": {\n', "line 2: is not JSON"),
        ("[1]", "not a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe{}", "is not JSON"),
    ],
)
def test_what_is_no_json_is_told(out, tmp_path, text, words):
    path = tmp_path / "dataset.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words):
        write_new_card(path, out)


def test_a_number_of_cases_that_does_not_fit_is_noted(write_json, out):
    assert any(
        "numTraining is 5" in note for note in write_new_card(write_json(MSD, numTraining=5), out).notes
    )


@pytest.mark.parametrize(
    ("files", "source", "image", "label"),
    [
        (
            ["images/a_1.nii.gz", "images/a_2.nii.gz", "labels/a_1.nii.gz", "labels/a_2.nii.gz"],
            ".",
            "images/*.nii.gz",
            "labels/*.nii.gz",
        ),
        (["img/img01.nii.gz", "label/label01.nii.gz"], "label", "img/img*.nii.gz", "label/label*.nii.gz"),
        (["a_ct.nii", "a_seg.nii", "b_ct.nii", "b_seg.nii"], ".", "*_ct.nii", "*_seg.nii"),
        (
            ["c1/imaging.nii.gz", "c1/segmentation.nii.gz", "c2/imaging.nii.gz", "c2/segmentation.nii.gz"],
            ".",
            "*/imaging.nii.gz",
            "*/segmentation.nii.gz",
        ),
        (["images/x_0000.nii.gz", "my_maps/x.nii.gz"], "my_maps", "images/*_0000.nii.gz", "my_maps/*.nii.gz"),
    ],
)
def test_images_are_found_beside_label_maps(tmp_path, out, files, source, image, label):
    root = tmp_path / "My Data"
    _write_maps(root, *files)
    names = tmp_path / "names.yaml"
    names.write_text(yaml.safe_dump({1: "Liver", 3: ["kidney_left", "kidney_right"]}))
    result = write_new_card(root / source, out, names=names)
    assert result.notes == ()
    card = read_card(out)
    assert (card.files.image, card.files.label) == (image, label)
    assert card.labels == {1: ["liver"], 3: ["left_kidney", "right_kidney"]}
    cases = find_cases(card, tmp_path)
    assert len(cases) == len(files) // 2
    assert all(case.image.is_file() and case.label.is_file() for case in cases)


def test_label_maps_in_folders_of_cases_without_images_make_a_card_that_can_be_read(tmp_path, out):
    _write_maps(tmp_path / "kidneys", "case_1/segmentation.nii.gz", "case_2/segmentation.nii.gz")
    result = write_new_card(tmp_path / "kidneys", out, names="btcv_13")
    assert any("no images were found" in note for note in result.notes)
    assert read_card(out).files.image == "*/imaging.nii.gz"


def test_folders_of_masks_become_a_card_of_masks(tmp_path, out):
    root = tmp_path / "TotalSegmentator"
    for case, masks in {"s1": ["kidney_left", "liver", "rib_left_1"], "s2": ["liver", "rib_left_1"]}.items():
        _write_maps(
            root / case, "ct.nii.gz", *(f"segmentations/{mask}.nii.gz" for mask in masks), values=(0, 1)
        )
    result = write_new_card(root, out)
    card = read_card(out)
    assert (card.files.image, card.files.label) == ("*/ct.nii.gz", "*/segmentations")
    assert card.masks == ("kidney_left", "liver", "rib_left_1")
    assert card.labels == {1: ["left_kidney"], 2: ["liver"], 3: ["background"]}
    assert card.missing_masks == "not annotated"
    assert card.counts == {"labelled": 2}
    assert len(find_cases(card, tmp_path)) == 2
    assert any("1 mask is background in the card" in note and "rib_left_1" in note for note in result.notes)
    assert any("not every case has a mask of kidney_left" in note for note in result.notes)
    with pytest.raises(DataError, match="holds masks that have names"):
        write_new_card(root, tmp_path / "second.md", names="kits19")


def test_a_mask_that_lies_in_others_comes_before_them_and_background_last(tmp_path, out):
    masks = ["body", "kidney", "kidney_left", "liver", "liver_tumor"]
    _write_maps(
        tmp_path / "scans/s1", "ct.nii.gz", *(f"segmentations/{mask}.nii.gz" for mask in masks), values=(0, 1)
    )
    card = write_new_card(tmp_path / "scans", out).card
    assert card.masks == ("liver_tumor", "kidney_left", "liver", "kidney", "body")
    assert card.labels[5] == ["background"]


def test_masks_of_no_known_organ_are_refused(tmp_path, out):
    _write_maps(tmp_path / "cases", "a/ct.nii.gz", "a/masks/x1.nii.gz", "a/masks/y.nii.gz")
    with pytest.raises(DataError, match=r"none of its masks \(x1, y, \.\.\.\)"):
        write_new_card(tmp_path / "cases", out)


def test_a_dataset_is_found_from_the_folder_above_its_data_too(tmp_path, out):
    _write_maps(tmp_path / "kidneys" / "data", "c1/imaging.nii.gz", "c1/segmentation.nii.gz")
    write_new_card(tmp_path / "kidneys" / "data", out, names="btcv_13")
    card = read_card(out)
    assert card.name == "kidneys"
    for raw in (tmp_path, tmp_path / "kidneys", tmp_path / "kidneys" / "data"):
        assert [case.name for case in find_cases(card, raw)] == ["c1"]


def test_values_without_names_keep_the_card_from_being_read(tmp_path, out):
    _write_maps(tmp_path / "labels", "a.nii.gz", values=(0, 2, 5))
    result = write_new_card(tmp_path / "labels", out)
    assert result.card is None
    assert any("2, 5" in note for note in result.notes)
    assert any("no images were found" in note for note in result.notes)
    with pytest.raises(DataError, match=r"line 11, `labels.2`: .*'\?'"):
        read_card(out)
    out.write_text(out.read_text().replace("annotated: ['?']", "annotated: [liver]").replace("'?'", "liver"))
    assert read_card(out).labels == {2: ["liver"], 5: ["liver"]}


def test_names_may_come_from_a_card(tmp_path, out):
    _write_maps(tmp_path / "labels", "a.nii.gz", values=(0, 1, 2))
    write_new_card(tmp_path / "labels", out, names="kits19")
    assert read_card(out).labels == read_card("kits19").labels
    assert read_card(out).split_sides


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1: liver\none: spleen\n", "line 2: expected a label value and an organ"),
        ("1: 7\n", "line 1: expected a label value"),
        ("1: '-'\n", "expected a label value and an organ"),
        ("- liver\n", "expected `field: value`"),
    ],
)
def test_names_that_are_no_good_are_told_by_line(tmp_path, out, text, words):
    _write_maps(tmp_path / "labels", "a.nii.gz")
    names = tmp_path / "names.yaml"
    names.write_text(text)
    with pytest.raises(DataError, match=words):
        write_new_card(tmp_path / "labels", out, names=names)
    assert not out.exists()


def test_a_card_that_is_there_is_kept_unless_forced(write_json, out):
    out.write_text("mine")
    with pytest.raises(DataError, match="is there already"):
        write_new_card(write_json(MSD), out)
    assert out.read_text() == "mine"
    write_new_card(write_json(MSD), out, force=True)
    assert read_card(out).name == "kidneys"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere", "no such file or folder"),
        ("a.txt", "neither a folder nor JSON"),
        ("empty", "holds no label maps"),
    ],
)
def test_a_source_that_is_none_is_told(tmp_path, out, source, words):
    (tmp_path / "a.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=words):
        write_new_card(tmp_path / source, out)


def test_a_label_map_that_cannot_be_read_is_named(tmp_path, out):
    _write_maps(tmp_path / "labels", "a.nii.gz")
    (tmp_path / "labels" / "b.nii.gz").write_bytes(b"no volume")
    with pytest.raises(DataError, match=r"b\.nii\.gz"):
        write_new_card(tmp_path / "labels", out)
    assert not out.exists()


def test_texts_that_yaml_would_take_for_something_else_come_back(write_json, out):
    text = "yes: no # maybe 'or' \"not\" {x} \u00e9\nsecond line"
    write_new_card(write_json(MSD, description=text, licence="1.0", reference="@home"), out)
    card = read_card(out)
    assert (card.title, card.licence, card.source) == (" ".join(text.split()), "1.0", "@home")


def test_partners_are_found_by_what_is_left_without_words_for_image_and_label():
    assert pair_up(["ct_1_a.nii", "ct_1_b.nii"], ["seg_1_b.nii", "seg_9_b.nii"]) == [
        ("ct_1_b.nii", "seg_1_b.nii")
    ]
    assert common_patterns([("a/x.nii", "b/x.nii"), ("c/y.nii", "b/y.nii")]) is None
