import os

import nibabel as nib
import numpy as np
import pydicom
import pytest

from partialseg.data import raw_files
from partialseg.data.raw_files import Extent, content_hash, extent, stamp
from partialseg.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Two folders of masks and a file."""
    for name in ("liver/a.dcm", "liver/b.dcm", "spleen/a.dcm"):
        path = tmp_path / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    (tmp_path / "scan.nii").write_bytes(b"scan")
    return tmp_path


def marks(folder):
    paths = [folder / "scan.nii", folder / "masks"]
    return stamp(paths), content_hash(paths)


def test_touched_files_have_another_stamp_and_the_same_content(folder):
    first = marks(folder)
    assert marks(folder) == first
    os.utime(folder / "masks" / "liver" / "b.dcm", (1, 1))
    second = marks(folder)
    assert (second[0] == first[0], second[1] == first[1]) == (False, True)


@pytest.mark.parametrize("change", ["content", "new", "gone", "renamed", "swapped"])
def test_changed_files_have_another_content(folder, change):
    first = marks(folder)
    path = folder / "masks" / "liver" / "b.dcm"
    if change == "content":
        path.write_bytes(b"LIVER/b.dcm")
    elif change == "new":
        path.with_name("c.dcm").touch()
    elif change == "gone":
        path.unlink()
    elif change == "renamed":
        path.rename(path.with_name("d.dcm"))
    else:
        path.rename(path.with_name("x"))
        path.with_name("a.dcm").rename(path)
        path.with_name("x").rename(path.with_name("a.dcm"))
    second = marks(folder)
    assert second[0] != first[0]
    assert second[1] != first[1]


def test_hidden_files_and_places_do_not_count(folder, tmp_path):
    first = marks(folder)
    (folder / "masks" / ".DS_Store").touch()
    assert marks(folder) == first
    (folder / "elsewhere").mkdir()
    (folder / "masks").rename(folder / "elsewhere" / "masks")
    (folder / "scan.nii").rename(folder / "elsewhere" / "scan.nii")
    assert marks(folder / "elsewhere")[1] == first[1]


def test_data_file_beside_a_header_counts(tmp_path):
    (tmp_path / "scan.mhd").write_text(
        "DimSize = 2 3 4\nElementSpacing = 1 2 3\nElementDataFile = voxels.raw\n"
    )
    (tmp_path / "voxels.raw").write_bytes(bytes(24))
    first = content_hash([tmp_path / "scan.mhd"])
    (tmp_path / "voxels.raw").write_bytes(bytes(23) + b"1")
    assert content_hash([tmp_path / "scan.mhd"]) != first
    assert extent(tmp_path / "scan.mhd").voxels == 24
    assert extent(tmp_path / "scan.mhd").volume_mm3 == 24 * 6


def test_suffixes_and_fields_may_be_in_other_letters(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), tmp_path / "scan.nii.gz")
    (tmp_path / "scan.nii.gz").rename(tmp_path / "SCAN.NII.GZ")
    (tmp_path / "SCAN.NRRD").write_text("NRRD0004\nSizes: 4 5 6\nSpacings: 1 1 1\n\n")
    for suffix in ("NII.GZ", "NRRD"):
        assert extent(tmp_path / f"SCAN.{suffix}") == Extent(120, 120)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd", ".nii.gz", ".nii"])
def test_extent_is_read_from_headers(tmp_path, suffix):
    simpleitk = pytest.importorskip("SimpleITK")
    image = simpleitk.GetImageFromArray(np.zeros((10, 20, 30), np.int16))
    image.SetSpacing((0.5, 0.5, 2.0))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    path = tmp_path / f"scan{suffix}"
    simpleitk.WriteImage(image, str(path))
    assert extent(path).voxels == 6000
    assert extent(path).volume_mm3 == pytest.approx(3000)


def test_extent_of_a_dicom_series(real_data):
    found = extent(real_data / "ts_dicom20")
    assert found.voxels % 20 == 0
    assert found.volume_mm3 > 0


def write_slice(path, rows, spacing_mm, thickness_mm):
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.CTImageStorage, pydicom.uid.generate_uid()
    dataset.Rows = dataset.Columns = rows
    dataset.PixelSpacing = [spacing_mm, spacing_mm]
    dataset.SliceThickness = thickness_mm
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)


@pytest.mark.parametrize("odd", [0, 2, 4])
@pytest.mark.parametrize("kind", ["scout", "text"])
def test_one_odd_file_makes_a_series_no_smaller(tmp_path, odd, kind):
    for number in range(5):
        if number != odd:
            write_slice(tmp_path / f"{number}.dcm", 20, 0.5, 2)
        elif kind == "scout":
            write_slice(tmp_path / f"{number}.dcm", 4, 1, 400)
        else:
            (tmp_path / f"{number}.dcm").write_text("no slice")
    assert extent(tmp_path) == Extent(5 * 20 * 20, 5 * 20 * 20 * 0.5)


def test_file_that_goes_away_before_it_is_looked_at(folder, monkeypatch):
    gone = folder / "masks" / "liver" / "b.dcm"
    files = raw_files._files(folder / "masks")
    gone.unlink()
    after = stamp([folder / "masks"])
    monkeypatch.setattr(raw_files, "_files", lambda path: files)
    assert stamp([folder / "masks"]) != after
    with pytest.raises(
        DataError, match=f"{gone}: is gone: the files of its case changed while they were read"
    ):
        content_hash([folder / "masks"])


@pytest.mark.parametrize("content", [b"", b"no header at all", b"NRRD0004\nsizes: a b c\n"])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.nrrd", "scan.mha", "scan.dcm"])
def test_file_that_does_not_say_its_size_has_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert extent(tmp_path / name).voxels == 0


def test_nifti_of_one_channel(tmp_path):
    nib.save(
        nib.Nifti1Image(np.zeros((4, 5, 6, 1), np.uint8), np.diag([2.0, 1, 1, 1])), tmp_path / "a.nii.gz"
    )
    assert (extent(tmp_path / "a.nii.gz").voxels, extent(tmp_path / "a.nii.gz").volume_mm3) == (120, 240)
