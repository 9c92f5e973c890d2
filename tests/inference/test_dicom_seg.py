"""DICOM segmentations, read back by highdicom: the same voxels on the same slices, under the right codes."""

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.sr import _concepts_dict
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, generate_uid

from partialseg.data.classes import KNOWN_ORGANS
from partialseg.data.dicom import hounsfield
from partialseg.data.organ_codes import PRIVATE_SCHEME, organ_code
from partialseg.data.volumes import read_image
from partialseg.errors import DataError
from partialseg.inference.dicom_seg import read_source_series, write_dicom_seg

ORGANS = {"liver": 1, "left_kidney": 4, "right_kidney": 5}
AXIAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1]


def write_series(folder, orientation=AXIAL, **changes):
    """Five slices of 8 x 6, 2 mm apart, under names that say nothing about their order."""
    folder.mkdir(exist_ok=True)
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.Rows, dataset.Columns, dataset.PixelSpacing = 8, 6, [1.5, 1.0]
    dataset.ImageOrientationPatient = orientation
    normal = np.cross(orientation[:3], orientation[3:])
    for index, name in enumerate("cadbe"):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.ImagePositionPatient = [float(value) for value in 2 * index * normal]
        dataset.PixelData = np.full((8, 6), 100 * index, dtype=np.int16).tobytes()
        for key, value in changes.items():
            setattr(dataset, key, value)
        dataset.save_as(folder / name)
    return folder


def some_labels(shape):
    """Every value of ORGANS at places that no turn or mirror maps to themselves, and one that is no organ of it."""
    labels = np.random.default_rng(0).choice([0, 0, 0, 1, 2, 4, 5], shape).astype(np.uint8)
    labels[0] = 0
    return labels


def read_back(path, source):
    """Values of ORGANS `(slices, rows, columns)`, in the order of the source's slices."""
    segmentation = highdicom.seg.segread(path)
    uids = [header.SOPInstanceUID for header in source.headers]
    numbers = segmentation.get_pixels_by_source_instance(uids, combine_segments=True)
    return np.array([0, *ORGANS.values()])[numbers], segmentation


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, [-1, 0, 0, 0, -1, 0]])
def test_voxels_are_the_same_on_the_slices_of_the_series(tmp_path, orientation):
    folder = write_series(tmp_path / "ct", orientation)
    volume, source = read_image(folder), read_source_series(folder)
    labels = some_labels(volume.array.shape)
    write_dicom_seg(tmp_path / "a.seg.dcm", labels, volume, source, ORGANS, "run")
    values, segmentation = read_back(tmp_path / "a.seg.dcm", source)
    expected = np.where(labels == 2, 0, labels)
    # On the slices of the series, each of which has a HU of its own.
    of_slice = [hounsfield(one)[0, 0] for one in source.slices]
    for value in ORGANS.values():
        counted = [int((volume.array[expected == value] == hu).sum()) for hu in of_slice]
        assert [int((plane == value).sum()) for plane in values] == counted
    # In the world, by the segmentation's own geometry.
    back = segmentation.get_volume(combine_segments=True)
    to_voxel = np.linalg.inv(volume.affine) @ np.diag([-1, -1, 1, 1]) @ back.affine
    places = np.argwhere(back.array)
    x, y, z = np.rint(to_voxel[:3, :3] @ places.T + to_voxel[:3, 3:]).astype(int)
    numbers = back.array[tuple(places.T)]
    np.testing.assert_array_equal(expected[z, y, x], np.array([0, *ORGANS.values()])[numbers])
    assert len(places) == np.count_nonzero(expected)


def test_segments_say_organ_side_colour_and_who_made_them(tmp_path):
    folder = write_series(tmp_path / "ct")
    volume, source = read_image(folder), read_source_series(folder)
    path = tmp_path / "a.seg.dcm"
    write_dicom_seg(path, some_labels(volume.array.shape), volume, source, ORGANS, "run")
    dataset = pydicom.dcmread(path)
    found = []
    for segment in dataset.SegmentSequence:
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        side = kind.get("SegmentedPropertyTypeModifierCodeSequence")
        found.append((segment.SegmentLabel, kind.CodeValue, side and side[0].CodeValue))
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "partialseg"
        assert len(segment.RecommendedDisplayCIELabValue) == 3
    assert found == [
        ("liver", "10200004", None),
        ("left_kidney", "64033007", "7771000"),
        ("right_kidney", "64033007", "24028007"),
    ]
    scan = source.headers[0]
    assert dataset.StudyInstanceUID == scan.StudyInstanceUID
    assert dataset.FrameOfReferenceUID == scan.FrameOfReferenceUID
    assert dataset.PatientID == scan.PatientID
    referenced = dataset.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == scan.SeriesInstanceUID
    uids = {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence}
    assert uids == {header.SOPInstanceUID for header in source.headers}


def as_one_file(folder, path):
    """The slices of a series as the frames of one Enhanced CT, the second before the first."""
    slices = [pydicom.dcmread(one) for one in sorted(folder.iterdir())]
    slices.sort(key=lambda one: one.ImagePositionPatient[2])
    slices = [slices[1], slices[0], *slices[2:]]
    enhanced, shared = slices[0].copy(), pydicom.Dataset()
    enhanced.SOPClassUID, enhanced.NumberOfFrames = EnhancedCTImageStorage, len(slices)
    measures, orientation = pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = slices[0].PixelSpacing, 2
    orientation.ImageOrientationPatient = slices[0].ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    frames = []
    for one in slices:
        frame, place = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = one.ImagePositionPatient
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    enhanced.SharedFunctionalGroupsSequence, enhanced.PerFrameFunctionalGroupsSequence = [shared], frames
    del enhanced.ImagePositionPatient, enhanced.ImageOrientationPatient, enhanced.PixelSpacing
    enhanced.PixelData = b"".join(one.PixelData for one in slices)
    path.parent.mkdir()
    enhanced.save_as(path)


def test_frames_of_one_file_keep_their_places(tmp_path):
    as_one_file(write_series(tmp_path / "ct"), tmp_path / "enhanced" / "all.dcm")
    volume, source = read_image(tmp_path / "enhanced"), read_source_series(tmp_path / "enhanced")
    assert [one.frame for one in source.slices] == [1, 0, 2, 3, 4]
    labels = some_labels(volume.array.shape)
    write_dicom_seg(tmp_path / "a.seg.dcm", labels, volume, source, ORGANS, "run")
    back = highdicom.seg.segread(tmp_path / "a.seg.dcm").get_pixels_by_source_frame(
        source.headers[0].SOPInstanceUID, [2, 1, 3, 4, 5], combine_segments=True
    )
    # Canonical axes grow to the front and to the right, DICOM's rows and columns to the back and to the left.
    expected = np.where(labels == 2, 0, labels)[:, ::-1, ::-1]
    np.testing.assert_array_equal(np.array([0, *ORGANS.values()])[back], expected)


def test_every_organ_that_cards_name_has_a_code_that_dicom_knows():
    known = {code for codes in _concepts_dict.concepts["SCT"].values() for code in codes}
    not_in_dicom = {"110765007", "68455001"}  # portal and splenic vein, iliopsoas: in SNOMED CT alone
    for organ in KNOWN_ORGANS:
        code = organ_code(organ)
        for part in (code.category, code.kind, code.side, code.region):
            assert part is None or part.scheme == PRIVATE_SCHEME or part.value in known | not_in_dicom
        assert (code.kind.scheme == PRIVATE_SCHEME) == (organ in ("prostate_or_uterus", "hepatic_vessels"))
        assert (code.side is not None) == organ.startswith(("left_", "right_"))
    codes = [organ_code(organ) for organ in KNOWN_ORGANS]
    assert len(set(codes)) == len(codes)


def test_names_are_kept_in_letters_that_the_series_cannot_have(tmp_path):
    procedure = pydicom.Dataset()
    procedure.CodeValue, procedure.CodingSchemeDesignator, procedure.CodeMeaning = "1", "99X", "Röntgen"
    folder = write_series(
        tmp_path / "ct",
        SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg", ProcedureCodeSequence=[procedure],
    )  # fmt: skip
    volume, source = read_image(folder), read_source_series(folder)
    path, organs = tmp_path / "a.seg.dcm", {"Leber_肝": 1}
    write_dicom_seg(path, some_labels(volume.array.shape), volume, source, organs, "läufe\\0" + 64 * "x")
    dataset = pydicom.dcmread(path)
    assert dataset.SegmentSequence[0].SegmentLabel == "Leber_肝"
    assert dataset.ManufacturerModelName == "läufe_0" + 56 * "x"
    assert dataset.PatientName == "Müller^Jörg"
    assert dataset.ProcedureCodeSequence[0].CodeMeaning == "Röntgen"
    assert dataset.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == PRIVATE_SCHEME


def test_the_number_of_the_series_stays_one_that_dicom_can_hold(tmp_path):
    folder = write_series(tmp_path / "ct", SeriesNumber=2**31 - 1)
    volume, source = read_image(folder), read_source_series(folder)
    write_dicom_seg(tmp_path / "a", some_labels(volume.array.shape), volume, source, ORGANS, "run")
    assert pydicom.dcmread(tmp_path / "a").SeriesNumber == 2**31 - 1


def test_a_file_that_is_no_dicom_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no folder of DICOM slices"):
        read_source_series(tmp_path / "a.nii.gz")


def test_a_series_without_identifiers_is_refused(tmp_path):
    folder = write_series(tmp_path / "ct", FrameOfReferenceUID="")
    with pytest.raises(
        DataError, match="FrameOfReferenceUID not given, by which a DICOM segmentation refers"
    ):
        read_source_series(folder)


@pytest.mark.parametrize(
    ("raised", "expected"), [(ValueError("odd"), DataError), (OSError(28, "full"), OSError)]
)
def test_what_fails_in_writing_is_of_the_headers_or_of_the_place(tmp_path, monkeypatch, raised, expected):
    def fail(*_):
        raise raised

    folder = write_series(tmp_path / "ct")
    volume, source = read_image(folder), read_source_series(folder)
    monkeypatch.setattr(highdicom.seg.Segmentation, "save_as", fail)
    with pytest.raises(expected, match=r"headers cannot be taken over|full"):
        write_dicom_seg(
            tmp_path / "a.seg.dcm", some_labels(volume.array.shape), volume, source, ORGANS, "run"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["ct"]


def test_an_organ_without_a_voxel_gets_no_segment(tmp_path):
    folder = write_series(tmp_path / "ct")
    volume, source = read_image(folder), read_source_series(folder)
    with pytest.raises(ValueError, match="expected a voxel of each organ"):
        write_dicom_seg(tmp_path / "a", np.zeros(volume.array.shape, np.uint8), volume, source, ORGANS, "run")


def test_a_real_series_comes_back_voxel_by_voxel(real_data, tmp_path):
    with pytest.raises(DataError, match="SOPInstanceUID not given"):
        read_source_series(real_data / "ts_dicom20")  # its identifiers were taken away
    study, series, folder = generate_uid(), generate_uid(), tmp_path / "ct"
    folder.mkdir()
    for path in sorted((real_data / "ts_dicom20").iterdir())[5:11]:
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
        dataset.save_as(folder / path.name)
    volume, source = read_image(folder), read_source_series(folder)
    labels = np.select([volume.array > 300, volume.array > 60, volume.array > 0], [5, 4, 1]).astype(np.uint8)
    write_dicom_seg(tmp_path / "a.seg.dcm", labels, volume, source, ORGANS, "run")
    values, _ = read_back(tmp_path / "a.seg.dcm", source)
    pixels = np.stack([pydicom.dcmread(one.path).pixel_array for one in source.slices])
    hu = pixels * source.slices[0].slope + source.slices[0].intercept
    np.testing.assert_array_equal(values, np.select([hu > 300, hu > 60, hu > 0], [5, 4, 1]))
