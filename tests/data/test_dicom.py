"""DICOM series: place, HU, and series that cannot be one volume."""

import os
import struct
from collections import Counter
from pathlib import Path

import gdcm
import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_files
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut, apply_rescale
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, HTJ2KLossless, JPEG2000Lossless, generate_uid

from partialseg.data import dicom
from partialseg.data.dicom import hounsfield, list_series, read_mask, read_series, slice_order
from partialseg.data.dicom_series import all_slices, brief
from partialseg.data.volumes import canonical_volume, read_image, read_label, write_label_map
from partialseg.errors import DataError

SERIES = generate_uid(entropy_srcs=["series"])


def write_slice(path, pixels, position, **changes):
    """One CT slice of uint16 pixels, uncompressed."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Modality, dataset.SeriesInstanceUID = "CT", SERIES
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelSpacing, dataset.SliceThickness = [0.9, 0.7], 3
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = list(position)
    dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1000
    for name, value in changes.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype(np.uint8 if dataset.BitsAllocated == 8 else np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 2000, (4, 3, 5))  # slices, rows, columns


@pytest.fixture
def folder(tmp_path, pixels):
    """Four slices, 2 mm apart, under names that say nothing about their order."""
    for index, name in enumerate(["d.dcm", "b.dcm", "a.dcm", "c.dcm"]):
        write_slice(tmp_path / name, pixels[index], (-10, -20, 5 + 2 * index))
    return tmp_path


def test_slices_become_hu_in_canonical_axes(folder, pixels):
    volume = read_image(folder)
    assert volume.array.dtype == np.float32
    assert volume.spacing_mm == pytest.approx((2, 0.9, 0.7))
    # DICOM rows grow to the back and columns to the left; canonical axes to the front and to the right.
    np.testing.assert_array_equal(volume.array, 2 * pixels[:, ::-1, ::-1] - 1000)
    np.testing.assert_allclose(volume.affine[:3, 3], [10 - 4 * 0.7, 20 - 2 * 0.9, 5])


def test_a_label_map_for_dicom_is_a_nifti_file_at_the_same_place(folder, tmp_path):
    volume = read_image(folder)
    labels = (volume.array > 0).astype(np.uint8)
    write_label_map(tmp_path / "out.nii.gz", labels, volume)
    back = read_label(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(back.array, labels)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-5)
    assert nib.load(tmp_path / "out.nii.gz").header["sform_code"] > 0


def test_hidden_files_notes_and_localizers_are_passed_over(folder, pixels):
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "notes.txt").write_text("not DICOM")
    localizer = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SeriesInstanceUID": generate_uid()}
    write_slice(folder / "scout", pixels[0], (0, 0, 0), **localizer)
    write_slice(folder / "report", pixels[0], (0, 0, 0), Modality="SR", SeriesInstanceUID=generate_uid())
    assert read_image(folder).array.shape == (4, 3, 5)


def test_one_slice_takes_its_thickness(tmp_path, pixels):
    write_slice(tmp_path / "one", pixels[0], (0, 0, 0))
    assert read_image(tmp_path).spacing_mm == pytest.approx((3, 0.9, 0.7))


def test_an_empty_rescale_changes_nothing(tmp_path, pixels):
    write_slice(tmp_path / "a", pixels[0], (0, 0, 0), RescaleSlope=None, RescaleIntercept=None)
    assert read_image(tmp_path).array.max() == pixels[0].max()


@pytest.mark.parametrize(
    ("position", "changes", "words"),
    [
        ((-10, -20, 15), {}, "4.00 mm between c.dcm and e.dcm, elsewhere 2.00 mm: 1 missing; fetch"),
        ((-10, -20, 13.7), {}, "not equally far apart .2.70 mm between c.dcm and e.dcm, elsewhere 2.00 mm"),
        ((-10, -20, 5), {}, "d.dcm and e.dcm lie at the same place"),
        ((-10, -17, 13), {}, "e.dcm: lies .* mm beside the line of the other slices"),
        ((-10, -20, 13), {"SeriesInstanceUID": "1.2.3"}, "holds 2 DICOM series, expected one"),
        (
            (-10, -20, 13),
            {"PixelSpacing": [0.8, 0.8]},
            r"\(0.7 x 0.9 mm\)\" \(4 slices of 5 x 3\); .*\(0.8 x 0.8",
        ),
        ((-10, -20, 13), {"ImageOrientationPatient": [1, 0, 0, 0, 0.8, 0.6]}, "holds 2 DICOM series"),
        ((-10, -20, 13), {"ImageOrientationPatient": None}, "e.dcm: ImageOrientationPatient not given"),
        ((-10, -20, 13), {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "e.dcm: ImageOrientationPatient"),
        ((-10, -20, 13), {"ImagePositionPatient": None}, "e.dcm: ImagePositionPatient not given"),
        ((-10, -20, 13), {"PixelSpacing": [0.9, 0]}, "e.dcm: PixelSpacing not given or no usable numbers"),
        ((-10, -20, 13), {"BitsAllocated": 32}, "e.dcm: its pixels .* cannot be decoded"),
        (
            (-10, -20, 13),
            {"HighBit": 11, "BitsStored": 10},
            "e.dcm: its HighBit is 11, expected BitsStored - 1",
        ),
        ((-10, -20, 13), {"RescaleSlope": 0}, "e.dcm: RescaleSlope or RescaleIntercept is no number"),
        ((-10, -20, 13), {"RescaleType": "Z_EFF"}, "e.dcm: holds Z_EFF values"),
        ((-10, -20, 13), {"NumberOfFrames": 3}, "e.dcm: holds 3 frames that say nothing of their positions"),
    ],
)
def test_slices_that_do_not_make_a_volume_are_one_line(folder, pixels, position, changes, words):
    write_slice(folder / "e.dcm", pixels[0], position, **changes)
    with pytest.raises(DataError, match=words) as error:
        read_series(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


def test_a_tilted_gantry_is_named_in_degrees(tmp_path, pixels):
    for index in range(4):
        write_slice(tmp_path / f"{index}", pixels[index], (0, index * 2 * np.tan(np.radians(12)), 2 * index))
    with pytest.raises(DataError, match=r"12\.0 degrees from upright \(gantry tilt\)"):
        read_series(tmp_path)


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_equally_far_apart(tmp_path, pixels):
    for index in range(4):
        write_slice(tmp_path / f"{index}", pixels[index], (0, 0, round(1.25 * index + 0.02, 1)))
    assert read_series(tmp_path)[1][2, 2] == pytest.approx(1.25, abs=0.02)


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (3, 0), (60000, 60000)])
def test_an_impossible_slice_size_is_one_line(folder, pixels, rows, columns):
    write_slice(folder / "e.dcm", pixels[0], (-10, -20, 13), Rows=rows, Columns=columns)
    with pytest.raises(DataError, match=f"e.dcm: says that it has {columns} columns and {rows} rows"):
        read_series(folder)


def test_a_slice_that_claims_more_pixels_than_it_holds_is_one_line(folder, pixels):
    write_slice(folder / "e.dcm", pixels[0], (-10, -20, 13))
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.Rows = 4096
        dataset.save_as(path)
    with pytest.raises(DataError, match=r"pixels .* cannot be decoded"):
        read_series(folder)


def test_a_truncated_slice_is_one_line(folder):
    whole = (folder / "a.dcm").read_bytes()
    (folder / "a.dcm").write_bytes(whole[:-10])
    with pytest.raises(DataError, match="cannot be"):
        read_image(folder)


def test_a_folder_without_slices_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("not DICOM")
    with pytest.raises(DataError, match=r"holds no DICOM slices of a CT \(1 not DICOM\)"):
        read_image(tmp_path)


def test_one_series_is_chosen_by_description_number_or_uid(folder, pixels):
    other = {"SeriesInstanceUID": "1.2.3", "SeriesNumber": 7, "SeriesDescription": "Abdomen  portal 5.0"}
    write_slice(folder / "e.dcm", pixels[0], (-10, -20, 13), **other)
    with pytest.raises(DataError) as error:
        read_series(folder)
    listed = 'without number "" (4 slices of 5 x 3); 7 "Abdomen portal 5.0" (1 slice of 5 x 3)'
    assert f"holds 2 DICOM series, expected one: {listed}; choose one by `files.series:" in str(error.value)
    for series in ("*portal*", "abdomen PORTAL 5.?", "7", "1.2.3"):
        assert read_series(folder, series)[0].shape == (5, 3, 1)
    assert read_series(folder, SERIES)[0].shape == (5, 3, 4)
    for series, words in (
        ("*native*", "holds no DICOM series that '\\*native\\*' fits"),
        ("*", "holds 2 DICOM"),
    ):
        with pytest.raises(DataError, match=words):
            read_series(folder, series)


def test_only_the_pixels_of_the_chosen_series_are_read(folder, pixels):
    write_slice(folder / "e.dcm", pixels[0], (0, 0, 0), SeriesInstanceUID="1.2.3")
    (folder / "e.dcm").write_bytes((folder / "e.dcm").read_bytes()[:-20])
    assert read_series(folder, SERIES)[0].shape == (5, 3, 4)


def test_series_that_share_a_uid_are_told_apart(folder, pixels):
    reformatted = {"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED"], "SeriesDescription": "Abdomen"}
    for index in range(4):
        write_slice(folder / f"r{index}.dcm", pixels[index], (0, 0, index), **reformatted)
    first, second = list_series(folder)
    assert (first.uid, second.uid) == (f"{SERIES}#1", f"{SERIES}#2")
    assert second.description == "Abdomen (derived secondary reformatted)"
    assert second.size == (5, 3, 4)
    assert second.spacing_mm == pytest.approx((0.7, 0.9, 1))
    assert read_series(folder, "*reformatted*")[1][2, 2] == 1


@pytest.mark.parametrize("field", ["AcquisitionNumber", "TemporalPositionIdentifier"])
def test_repeated_positions_are_told_apart_by_acquisition_or_time(tmp_path, pixels, field):
    for value in (1, 2):
        for index in range(4):
            changes = {field: value, "RescaleIntercept": value}
            write_slice(tmp_path / f"{value}_{index}", pixels[index], (0, 0, index), **changes)
    assert len(list_series(tmp_path)) == 2
    array, _ = read_series(tmp_path, "*2)")
    np.testing.assert_array_equal(array, (2 * pixels + 2).transpose(2, 1, 0))


def test_slices_without_a_place_are_no_series_of_their_own(tmp_path, pixels):
    for value in (1, 2, 3):
        for index in range(4):
            place = (0, 0, index) if value < 3 else ("", "", "")
            write_slice(tmp_path / f"{value}_{index}", pixels[index], place, AcquisitionNumber=value)
    assert [series.description for series in list_series(tmp_path)] == ["(acquisition 1)", "(acquisition 2)"]
    assert read_series(tmp_path, "*2)")[0].shape == (5, 3, 4)
    with pytest.raises(DataError, match="ImagePositionPatient not given or no usable numbers"):
        read_series(tmp_path, "*1)")


def test_a_few_slices_across_a_longer_series_are_a_scout(folder, pixels):
    write_slice(folder / "scout", pixels[0], (0, 0, 0), ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    assert read_series(folder)[0].shape == (5, 3, 4)


def test_slices_may_lie_in_the_only_folder_below(folder, pixels):
    (folder.parent / "top" / "study").mkdir(parents=True)
    top = folder.parent / "top"
    folder.rename(top / "study" / "series")
    (top / "notes").mkdir()
    (top / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert read_series(top)[0].shape == (5, 3, 4)
    write_slice(top / "notes" / "a", pixels[0], (0, 0, 0))
    with pytest.raises(DataError, match=r"2 folders in it hold DICOM files \(notes, study"):
        read_series(top)
    write_slice(top / "a", pixels[0], (0, 0, 0))  # folders below files are not looked into
    assert read_series(top)[0].shape == (5, 3, 1)


def test_links_to_slices_are_slices(folder, tmp_path_factory):
    linked = tmp_path_factory.mktemp("links")
    for path in folder.iterdir():
        (linked / path.name).symlink_to(path)
    assert read_series(linked)[0].shape == (5, 3, 4)


def test_bringing_a_series_to_canonical_axes_copies_nothing(tmp_path, pixels):
    for name, orientation in (("axial", [1, 0, 0, 0, 1, 0]), ("coronal", [1, 0, 0, 0, 0, -1])):
        (tmp_path / name).mkdir()
        for index in range(4):
            place = np.cross(orientation[:3], orientation[3:]) * index
            changes = {"ImageOrientationPatient": orientation}
            write_slice(tmp_path / name / f"{index}", pixels[index], place.tolist(), **changes)
        array, affine = read_series(tmp_path / name)
        volume = canonical_volume(array, affine, tmp_path, np.float32)
        assert volume.array.flags.c_contiguous
        assert np.shares_memory(volume.array, array)
        np.testing.assert_array_equal(array, (2 * pixels - 1000).transpose(2, 1, 0))


def test_every_slice_has_its_own_rescale(tmp_path, pixels):
    for index, slope in enumerate((0.1, 1, 1 / 3)):
        write_slice(tmp_path / f"{index}", pixels[index], (0, 0, index), RescaleSlope=f"{slope:.6f}")
    array, _ = read_series(tmp_path)
    for index in range(3):
        dataset = pydicom.dcmread(tmp_path / f"{index}")
        expected = apply_rescale(dataset.pixel_array, dataset).astype(np.float32)
        np.testing.assert_array_equal(array[:, :, index], expected.T)


def test_twelve_signed_bits_and_monochrome1_are_what_pydicom_says(tmp_path):
    stored = np.array([[-2048, -1, 0, 2047]])
    changes = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}
    write_slice(
        tmp_path / "a", stored & 0xFFF, (0, 0, 0), **changes
    )  # the upper four bits are not of the value
    write_slice(tmp_path / "b", stored, (0, 0, 1), **changes, PhotometricInterpretation="MONOCHROME1")
    array, _ = read_series(tmp_path)
    for index in range(2):
        np.testing.assert_array_equal(array[:, 0, index], 2 * stored[0] - 1000)


def test_eight_bits_are_read(tmp_path):
    stored = np.arange(12, dtype=np.uint8).reshape(3, 4)
    write_slice(tmp_path / "a", stored, (0, 0, 0), BitsAllocated=8, BitsStored=8, HighBit=7)
    np.testing.assert_array_equal(read_series(tmp_path)[0][:, :, 0], 2 * stored.T - 1000.0)


def write_multi_frame(path, pixels):
    """An Enhanced CT file: position and rescale per frame, the rest shared."""
    write_slice(path, pixels[0], (0, 0, 0))
    dataset = pydicom.dcmread(path)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(dataset, name)

    def group(**sequences):
        item = pydicom.Dataset()
        for name, fields in sequences.items():
            inner = pydicom.Dataset()
            for field, value in fields.items():
                setattr(inner, field, value)
            setattr(item, name, [inner])
        return item

    dataset.SharedFunctionalGroupsSequence = [
        group(
            PixelMeasuresSequence={"PixelSpacing": [0.9, 0.7], "SliceThickness": 2},
            PlaneOrientationSequence={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        group(
            PlanePositionSequence={"ImagePositionPatient": [-10, -20, 5 + 2 * index]},
            PixelValueTransformationSequence={"RescaleSlope": index + 1, "RescaleIntercept": -10},
        )
        for index in range(len(pixels))
    ]
    dataset.NumberOfFrames = len(pixels)
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    dataset.save_as(path)


def test_a_multi_frame_file_is_a_series(tmp_path, pixels):
    write_multi_frame(tmp_path / "all.dcm", pixels[[2, 0, 1, 3]])
    array, affine = read_series(tmp_path)
    expected = pixels[[2, 0, 1, 3]] * np.arange(1, 5)[:, None, None] - 10
    np.testing.assert_array_equal(array, expected.transpose(2, 1, 0))
    np.testing.assert_allclose(np.diag(affine), [-0.7, -0.9, 2, 1])
    with pytest.raises(DataError, match=r"all\.dcm: holds many slices, expected one file per slice"):
        slice_order(tmp_path)


def test_a_mask_needs_no_modality_and_no_rescale(tmp_path, pixels):
    inside = pixels > 1000
    for index in (2, 0, 3, 1):
        changes = {"Modality": "OT", "ImageType": ["DERIVED", "SECONDARY"]}
        write_slice(tmp_path / f"{index}", 255 * inside[index], (-10, -20, 2 * index), **changes)
    array, affine = read_mask(tmp_path)
    assert array.dtype == bool
    np.testing.assert_array_equal(array, inside.transpose(2, 1, 0))
    np.testing.assert_allclose(affine[:3, 3], [10, 20, 0])
    with pytest.raises(DataError, match=r"no DICOM slices of a CT \(4 not of modality CT"):
        read_series(tmp_path)
    write_slice(tmp_path / "2", pixels[2], (-10, -20, 4), Modality="OT")
    with pytest.raises(DataError, match="expected 0 and one other"):
        read_mask(tmp_path)


def test_a_mask_without_positions_is_one_line(tmp_path, pixels):
    write_slice(tmp_path / "a", pixels[0], (0, 0, 0), ImagePositionPatient=None)
    with pytest.raises(
        DataError, match=r"holds no DICOM slices \(1 without position, orientation or voxel size"
    ):
        read_mask(tmp_path)


def test_the_order_of_slices_is_read_without_pixels(folder):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-20])
    names, affine, shape = slice_order(folder)
    assert names == ["d.dcm", "b.dcm", "a.dcm", "c.dcm"]
    assert shape == (5, 3, 4)
    np.testing.assert_allclose(affine[:3, 3], [10, 20, 5])


def ct_files():
    """Every CT among pydicom's own files that come with it, and its path."""
    for name in sorted(filter(os.path.isfile, get_testdata_files())):
        dataset = pydicom.dcmread(name, force=True)
        if dataset.get("Modality") == "CT":
            yield Path(name), dataset


def test_every_ct_of_pydicom_gives_pydicom_s_values_or_a_reason(tmp_path):
    equal, reasons = [], Counter()
    for index, (path, dataset) in enumerate(ct_files()):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / path.name).symlink_to(path)
        try:
            array, _ = read_series(folder)
        except DataError as error:
            reasons[error.problem] += 1
            if "of a scout" not in error.problem:
                continue
            # A localizer is no volume, but its values can be had.
            array = hounsfield(all_slices(folder).slices[0]).T[..., None]
        expected = apply_modality_lut(dataset.pixel_array, dataset)
        np.testing.assert_array_equal(array[:, :, 0], expected.T)
        assert (array == expected.T[..., None]).all()
        equal.append(path.name)
    assert len(equal) == 14
    assert reasons == {
        "holds no DICOM slices of a CT (1 without pixels)": 50,  # headers alone, for a DICOMDIR
        "holds no DICOM slices of a CT (1 of a scout)": 2,
    }


SYNTAXES = ["JPEG2000Lossless", "JPEGLSLossless", "JPEGLosslessProcess14", "JPEGLosslessProcess14_1"]
SYNTAXES += ["RLELossless", "DeflatedExplicitVRLittleEndian", "ImplicitVRLittleEndian", "ExplicitVRBigEndian"]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("is_signed", [False, True])
def test_compressed_transfer_syntaxes_are_read(tmp_path, pixels, syntax, is_signed):
    stored = np.tile(pixels[0], (8, 8)) - 1000 * is_signed
    write_slice(tmp_path / "a.dcm", stored, (0, 0, 0), PixelRepresentation=int(is_signed))
    transcode(tmp_path / "a.dcm", getattr(gdcm.TransferSyntax, syntax))
    assert pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID != ExplicitVRLittleEndian
    np.testing.assert_array_equal(read_series(tmp_path)[0][:, :, 0], 2 * stored.T - 1000)


def transcode(path, syntax):
    """Write a file again in another transfer syntax."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    is_read = reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    is_changed = change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert (is_read, is_changed, writer.Write()) == (True, True, True)


@pytest.mark.parametrize(
    ("syntax", "marker", "offset", "form"),
    [
        ("JPEG2000Lossless", b"\xff\x4f\xff\x51", 8, ">2I"),
        ("JPEGLosslessProcess14_1", b"\xff\xc3", 5, ">2H"),
        ("JPEGLSLossless", b"\xff\xf7", 5, ">2H"),
    ],
)
def test_compressed_pixels_that_claim_another_size_are_refused_undecoded(
    tmp_path, pixels, monkeypatch, syntax, marker, offset, form
):
    path = tmp_path / "a.dcm"
    write_slice(path, np.tile(pixels[0], (8, 8)), (0, 0, 0))
    transcode(path, getattr(gdcm.TransferSyntax, syntax))
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(marker) + offset, 60000, 60000)
    path.write_bytes(data)
    monkeypatch.setattr(dicom, "pixel_array", None)
    with pytest.raises(DataError, match=r"they claim \(60000, 60000\) columns and rows, expected \(40, 24\)"):
        read_series(tmp_path)


def test_a_jpeg_2000_codestream_in_a_jp2_file_has_a_size(tmp_path, pixels):
    write_slice(tmp_path / "a.dcm", np.tile(pixels[0], (8, 8)), (0, 0, 0))
    transcode(tmp_path / "a.dcm", gdcm.TransferSyntax.JPEG2000Lossless)
    frame = get_frame(pydicom.dcmread(tmp_path / "a.dcm").PixelData, 0, number_of_frames=1)
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\0jp2c"
    assert dicom._codestream_size(boxes + frame) == dicom._codestream_size(frame) == (40, 24)
    assert dicom._codestream_size(b"\0\1\2\3" * 9) is None


def test_every_frame_of_a_compressed_file_is_read(tmp_path, pixels):
    pixels = np.tile(pixels, (1, 8, 8))
    (tmp_path / "series").mkdir()
    write_multi_frame(tmp_path / "series" / "a.dcm", pixels)
    expected, _ = read_series(tmp_path / "series")
    frames = []
    for stored in pixels:
        write_slice(tmp_path / "one.dcm", stored, (0, 0, 0))
        transcode(tmp_path / "one.dcm", gdcm.TransferSyntax.JPEG2000Lossless)
        frames.append(get_frame(pydicom.dcmread(tmp_path / "one.dcm").PixelData, 0, number_of_frames=1))
    dataset = pydicom.dcmread(tmp_path / "series" / "a.dcm")
    dataset.file_meta.TransferSyntaxUID, dataset.PixelData = JPEG2000Lossless, encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "series" / "a.dcm")
    np.testing.assert_array_equal(read_series(tmp_path / "series")[0], expected)


def test_what_pydicom_quotes_of_a_damaged_file_is_cut_short():
    assert brief(ValueError("first\n" + 1000 * "x")) == "first " + 194 * "x" + "…"


def test_a_transfer_syntax_without_decoder_is_one_line(tmp_path, pixels):
    write_slice(tmp_path / "a.dcm", pixels[0], (0, 0, 0))
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51"])
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(
        DataError, match=r"a\.dcm: its pixels \(High-Throughput JPEG 2000.*cannot be decoded"
    ) as error:
        read_series(tmp_path)
    assert "\n" not in str(error.value)


def test_the_real_series_lies_where_its_label_map_lies(real_data):
    image = read_image(real_data / "ts_dicom20")
    label = read_label(real_data / "ts_dicom20_seg_v2ids.nii.gz")
    assert image.array.shape == label.array.shape == (20, 512, 512)
    np.testing.assert_allclose(image.affine, label.affine, atol=1e-4)
    for value in (1, 5, 7):  # spleen, liver, pancreas
        assert 0 < np.median(image.array[label.array == value]) < 250
    liver, spleen = (np.argwhere(label.array == value)[:, 2].mean() for value in (5, 1))
    assert liver > spleen
