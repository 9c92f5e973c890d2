"""Pixels of uncompressed DICOM slices, decoded by tensorflow-io inside `tf.data`.

For input pipelines that must be all graph: no Python runs per slice, so none waits for the interpreter's lock, and
the dataset can be sent to a tf.data service. It is not the fast way: pydicom, which `partialseg.data.dicom` uses,
takes a twelfth of the processor time, and no 10 s and 600 MB to import TensorFlow in each worker process
(benchmarks/results/dicom.md). Nothing else in the package uses it. The headers are read by pydicom before.

tensorflow-io 0.37 has two operations. `decode_dicom_image` gives neither HU nor stored values but something in
between, whose gain depends on the file, and refuses signed pixels as such; it is not used. `decode_dicom_data`
gives the pixel data of uncompressed files as hexadecimal words, exactly; that is what is decoded here. What it
cannot give exactly is refused before it starts.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from importlib import metadata

import numpy as np
import pydicom
import tensorflow as tf
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from partialseg.data.dicom import check_rescale
from partialseg.data.dicom_series import Slice
from partialseg.errors import DataError

#: Transfer syntaxes whose pixels `decode_dicom_data` gives exactly.
EXACT_TRANSFER_SYNTAXES = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)
_PIXEL_DATA = 0x7FE00010
_NIBBLES = np.zeros(256, dtype=np.int32)
_NIBBLES[[ord(digit) for digit in "0123456789abcdef"]] = np.arange(16)
_NIBBLES[[ord(digit) for digit in "ABCDEF"]] = np.arange(10, 16)


def decode_slices(
    slices: Sequence[Slice], num_parallel_calls: int | None = tf.data.AUTOTUNE
) -> tf.data.Dataset:
    """HU of slices, decoded in parallel in the order given.

    Args:
        slices: At least one, all of one size, as `Series.slices` has them; their headers are read already.
        num_parallel_calls: How many are decoded at the same time.

    Returns:
        A dataset of float32 HU `(rows, columns)`, to the last bit what `partialseg.data.dicom.hounsfield`
        gives. While it runs, `tf.errors.OpError` is raised for a file that cannot be read or is cut short.

    Raises:
        DataError: If a slice is compressed, not of 16 bits, one frame of many, or not in HU; if sizes differ.
        RuntimeError: If the operations of tensorflow-io do not run in this environment.
    """
    require_tensorflow_io()
    for one in slices:
        _check_exact(one, slices[0].size)
    columns, rows = slices[0].size
    decode_data = _operations().decode_dicom_data

    def decode(path: tf.Tensor, bits: tf.Tensor, signed: tf.Tensor, rescale: tf.Tensor) -> tf.Tensor:
        text = decode_data(tf.io.read_file(path), tags=tf.constant(_PIXEL_DATA, tf.uint32))
        # Word by word: four digits and a backslash.
        digits = tf.io.decode_raw(tf.reshape(text, []) + "\\", tf.uint8)
        whole = tf.equal(tf.size(digits), 5 * rows * columns)
        with tf.control_dependencies([tf.Assert(whole, ["not as many pixels as the header says:", path])]):
            digits = tf.reshape(digits, (rows, columns, 5))[..., :4]
        nibbles = tf.gather(tf.constant(_NIBBLES), tf.cast(digits, tf.int32))
        words = tf.reduce_sum(nibbles * tf.constant([4096, 256, 16, 1]), axis=-1)
        # Bits above the stored ones do not count; the highest stored one is the sign of signed pixels.
        kept = tf.bitwise.bitwise_and(words, tf.bitwise.left_shift(1, bits) - 1)
        is_negative = tf.bitwise.right_shift(kept, bits - 1) * signed
        stored = tf.cast(kept - tf.bitwise.left_shift(is_negative, bits), tf.float64)
        return tf.cast(stored * rescale[0] + rescale[1], tf.float32)

    columns_of_header = (
        [str(one.path) for one in slices],
        np.array([one.bits_stored for one in slices], dtype=np.int32),
        np.array([one.is_signed for one in slices], dtype=np.int32),
        np.array([(one.slope, one.intercept) for one in slices], dtype=np.float64),
    )
    return tf.data.Dataset.from_tensor_slices(columns_of_header).map(decode, num_parallel_calls)


@functools.cache
def require_tensorflow_io() -> None:
    """Try an operation of tensorflow-io on a slice made in memory.

    Raises:
        RuntimeError: If it does not run, as on TensorFlow 2.18 and later, where the import still succeeds.
    """
    stream = io.BytesIO()
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = pydicom.uid.CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.BitsAllocated, dataset.PixelData = 16, b"\xcd\xab\x34\x12"
    dataset.save_as(stream, enforce_file_format=True)
    try:
        found = _operations().decode_dicom_data(
            tf.constant(stream.getvalue()), tags=tf.constant(_PIXEL_DATA, tf.uint32)
        )
        words = found.numpy().lower()
    except (AttributeError, ImportError, NotImplementedError, RuntimeError, tf.errors.OpError) as error:
        raise RuntimeError(_does_not_run(str(error))) from error
    if words != b"abcd\\1234":
        raise RuntimeError(_does_not_run(f"it read {words!r} where abcd\\1234 stands"))


def _does_not_run(why: str) -> str:
    try:
        version = metadata.version("tensorflow-io")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    return (
        f"tensorflow-io {version} does not run on TensorFlow {tf.__version__} ({' '.join(why.split())[:200]}); "
        "install tensorflow 2.17 and tensorflow-io 0.37, or read the series with partialseg.data.dicom.read_series"
    )


def _operations() -> object:
    """Imported when needed: it takes time, and warns where it will not run."""
    import tensorflow_io

    return tensorflow_io.image


def _check_exact(one: Slice, size: tuple[int, int]) -> None:
    """Refuse what would not be exact."""
    remedy = "read the series with partialseg.data.dicom.read_series"
    if one.transfer_syntax not in EXACT_TRANSFER_SYNTAXES:
        raise DataError(one.path, f"is compressed ({one.encoding}), expected plain", remedy)
    if one.bits_allocated != 16 or one.frame is not None or one.high_bit != one.bits_stored - 1:
        raise DataError(
            one.path,
            f"holds {one.bits_allocated} bits a pixel, expected one frame of 16, the lower ones used",
            remedy,
        )
    if one.size != size:
        raise DataError(
            one.path, f"has {one.size} columns and rows, the first slice {size}", "give one series"
        )
    check_rescale(one)
