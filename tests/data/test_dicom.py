"""DICOM series: place, HU, and series that cannot be one volume."""

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from partialseg.data.volumes import read_image, read_label, write_label_map
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
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 2000, (4, 3, 5))  # slices, rows, columns


@pytest.fixture
def folder(tmp_path, pixels):
    """Four slices, 2 mm apart, under names that say nothing about their order."""
    for index, name in enumerate("dbca"):
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
        ((-10, -20, 15), {}, "4.00 mm between slices 3 and 4, elsewhere 2.00 mm"),
        ((-10, -20, 5), {}, "at the same place"),
        ((-10, -17, 13), {}, "gantry tilt"),
        ((-10, -20, 13), {"SeriesInstanceUID": "1.2.3"}, "2 DICOM series"),
        ((-10, -20, 13), {"PixelSpacing": [0.8, 0.8]}, "another one"),
        ((-10, -20, 13), {"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "another one"),
        (
            (-10, -20, 13),
            {"ImageOrientationPatient": None},
            "ImageOrientationPatient is None, expected 6 numbers",
        ),
        ((-10, -20, 13), {"BitsAllocated": 32}, "pixels cannot be decoded"),
    ],
)
def test_slices_that_do_not_make_a_volume_are_one_line(folder, pixels, position, changes, words):
    write_slice(folder / "e", pixels[0], position, **changes)
    with pytest.raises(DataError, match=words) as error:
        read_image(folder)
    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)


def test_another_slice_size_is_one_line(folder):
    write_slice(folder / "e", np.zeros((6, 6)), (-10, -20, 13))
    with pytest.raises(DataError, match=r"\(6, 6\) voxels.*another one \(3, 5\)"):
        read_image(folder)


def test_a_truncated_slice_is_one_line(folder):
    whole = (folder / "a").read_bytes()
    (folder / "a").write_bytes(whole[:-10])
    with pytest.raises(DataError, match="cannot be"):
        read_image(folder)


def test_a_folder_without_slices_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("not DICOM")
    with pytest.raises(DataError, match=r"holds no DICOM slices of a CT \(1 other files\)"):
        read_image(tmp_path)


def test_the_real_series_lies_where_its_label_map_lies(real_data):
    image = read_image(real_data / "ts_dicom20")
    label = read_label(real_data / "ts_dicom20_seg_v2ids.nii.gz")
    assert image.array.shape == label.array.shape == (20, 512, 512)
    np.testing.assert_allclose(image.affine, label.affine, atol=1e-4)
    for value in (1, 5, 7):  # spleen, liver, pancreas
        assert 0 < np.median(image.array[label.array == value]) < 250
    liver, spleen = (np.argwhere(label.array == value)[:, 2].mean() for value in (5, 1))
    assert liver > spleen
