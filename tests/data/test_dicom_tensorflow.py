"""tensorflow-io's pixels are pydicom's pixels, where they are said to be."""

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tensorflow as tf
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.pixels import apply_modality_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless

from partialseg.data import dicom_tensorflow
from partialseg.data.dicom import hounsfield
from partialseg.data.dicom_series import all_slices
from partialseg.data.dicom_tensorflow import decode_slices, require_tensorflow_io
from partialseg.errors import DataError


def ct_files():
    """Every CT with pixels among pydicom's own files."""
    for name in sorted(filter(os.path.isfile, get_testdata_files())):
        dataset = pydicom.dcmread(name, force=True)
        if dataset.get("Modality") == "CT" and "PixelData" in dataset:
            yield Path(name), dataset


def test_every_ct_of_pydicom_is_exact_or_refused(tmp_path):
    exact, refused = defaultdict(list), []
    for index, (path, dataset) in enumerate(ct_files()):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "a").symlink_to(path)
        (one,) = all_slices(folder).slices
        if dataset.file_meta.TransferSyntaxUID.is_compressed:
            with pytest.raises(DataError, match=r"is compressed \(JPEG 2000"):
                decode_slices([one])
            refused.append(path.name)
        else:
            exact[one.size].append((one, dataset))
    assert refused == ["693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"]
    assert {size: len(files) for size, files in exact.items()} == {(16, 16): 11, (128, 128): 1}
    for files in exact.values():
        found = decode_slices([one for one, _ in files]).as_numpy_iterator()
        for image, (_, dataset) in zip(found, files, strict=True):
            assert image.dtype == np.float32
            np.testing.assert_array_equal(image, apply_modality_lut(dataset.pixel_array, dataset))


@pytest.fixture
def ct():
    return pydicom.dcmread(get_testdata_file("CT_small.dcm"))


@pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("is_signed", [0, 1])
def test_slices_come_in_order_with_their_own_bits_and_rescale(tmp_path, ct, syntax, is_signed):
    pixels = np.random.default_rng(0).integers(0, 2**16, (3, 128, 128)).astype("<u2")
    for index, bits in enumerate((12, 13, 16)):
        ct.BitsStored, ct.HighBit, ct.PixelRepresentation = bits, bits - 1, is_signed
        ct.RescaleSlope, ct.RescaleIntercept = f"{1 / (index + 3):.7f}", index
        ct.file_meta.TransferSyntaxUID = syntax
        big = syntax == ExplicitVRBigEndian
        ct.PixelData = pixels[index].astype(">u2" if big else "<u2").tobytes()
        ct.ImagePositionPatient = [0, 0, index]
        pydicom.dcmwrite(tmp_path / f"{index}", ct, little_endian=not big, implicit_vr=False)
    slices = all_slices(tmp_path).slices[::-1]
    found = list(decode_slices(slices, num_parallel_calls=2).as_numpy_iterator())
    np.testing.assert_array_equal(found, [hounsfield(one) for one in slices])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"RescaleSlope": 0}, "RescaleSlope or RescaleIntercept is no number"),
        (
            {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
            "holds 8 bits a pixel, expected one frame of 16",
        ),
        ({"HighBit": 11, "BitsStored": 10}, "the lower ones used"),
    ],
)
def test_what_would_not_be_exact_is_refused(tmp_path, ct, changes, words):
    for name, value in changes.items():
        setattr(ct, name, value)
    ct.save_as(tmp_path / "a")
    with pytest.raises(DataError, match=words):
        decode_slices(all_slices(tmp_path).slices)


def test_compressed_pixels_are_refused(tmp_path, ct):
    ct.compress(RLELossless)
    ct.save_as(tmp_path / "a")
    with pytest.raises(
        DataError, match=r"is compressed \(RLE Lossless\), expected plain; read the series with"
    ):
        decode_slices(all_slices(tmp_path).slices)


def test_a_file_cut_short_is_an_error(tmp_path, ct):
    ct.PixelData = ct.PixelData[:-200]
    ct.save_as(tmp_path / "a")
    with pytest.raises(tf.errors.InvalidArgumentError, match="not as many pixels as the header says"):
        list(decode_slices(all_slices(tmp_path).slices))


def test_operations_that_do_not_run_are_named_with_their_version(monkeypatch):
    def missing(*_, **__):
        raise NotImplementedError("unable to open file: libtensorflow_io.so")

    monkeypatch.setattr(
        dicom_tensorflow, "_operations", lambda: type("Image", (), {"decode_dicom_data": missing})
    )
    require_tensorflow_io.cache_clear()
    with pytest.raises(
        RuntimeError, match=r"tensorflow-io [\d.]+ does not run on TensorFlow [\d.]+ \(unable to"
    ):
        decode_slices([])
    require_tensorflow_io.cache_clear()
