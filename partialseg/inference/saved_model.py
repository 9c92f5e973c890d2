"""Export a trained network as a SavedModel that needs neither Keras nor this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
from keras import ops

from partialseg.errors import DataError
from partialseg.files import atomic_path, write_json
from partialseg.models.forward import first_output

#: Where the metadata lies in the SavedModel; TensorFlow leaves `assets.extra` to its users.
METADATA = Path("assets.extra") / "partialseg.json"


def export(
    model: keras.Model,
    path: str | Path,
    spacing_mm: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Write a SavedModel that takes patches of any size.

    It has two endpoints (and signatures), both of `hu`, float32 `(batch, depth, height, width)`:
    `serve` returns `labels`, uint8 of the same shape; `probabilities` returns `probabilities`, float32
    `(batch, depth, height, width, classes)`. `PATH/assets.extra/partialseg.json` says what they mean.

    Args:
        model: Float32 HU `(batch, depth, height, width, 1)` to logits. Of several outputs the first counts.
        path: Folder to write, as a whole or not at all; a SavedModel that is there is replaced, anything
            else is left alone.
        spacing_mm: Voxel size `(z, y, x)` that the model expects.
        classes: Background, then the organs.

    Raises:
        DataError: If `path` is a file, or a folder that holds something else than a SavedModel.
        ValueError: If Keras does not run on TensorFlow, or `classes` are not as many as the model has.

    Example:
        >>> import tempfile, tensorflow as tf
        >>> inputs = keras.Input((None, None, None, 1))
        >>> model = keras.Model(inputs, keras.layers.Conv3D(2, 1)(inputs))
        >>> folder = Path(tempfile.mkdtemp()) / "exported"
        >>> export(model, folder, classes=["background", "liver"])
        >>> reloaded = tf.saved_model.load(folder)
        >>> reloaded.serve(tf.zeros((1, 4, 5, 6)))["labels"].shape
        TensorShape([1, 4, 5, 6])
    """
    path = Path(path).resolve()
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").is_file()):
        raise DataError(
            path, "is there and is no SavedModel, which alone would be replaced", "give a new folder"
        )
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"a SavedModel is made with Keras on TensorFlow, but it runs on {keras.backend.backend()}: "
            "save the model as .keras, set KERAS_BACKEND=tensorflow, load and export it there"
        )
    num_classes = first_output(model.outputs).shape[-1]
    if classes is not None and len(classes) != num_classes:
        raise ValueError(f"the model has {num_classes} classes, received {len(classes)}: {list(classes)}")
    endpoints = {"serve": _labels(model), "probabilities": _probabilities(model)}
    archive = keras.export.ExportArchive()
    archive.track(model)
    signature = [keras.InputSpec(shape=(None, None, None, None), dtype="float32", name="hu")]
    for name, function in endpoints.items():
        archive.add_endpoint(name, function, input_signature=signature)
    with atomic_path(path) as temporary:
        temporary.mkdir()  # where that cannot be done, TensorFlow has an exception of its own
        archive.write_out(temporary, verbose=False)
        write_json(temporary / METADATA, _metadata(spacing_mm, classes, num_classes))


def _probabilities(model: keras.Model) -> Callable[[Any], dict[str, Any]]:
    def probabilities(hu: Any) -> dict[str, Any]:
        logits = first_output(model(hu[..., None], training=False))
        return {"probabilities": ops.softmax(ops.cast(logits, "float32"), axis=-1)}

    return probabilities


def _labels(model: keras.Model) -> Callable[[Any], dict[str, Any]]:
    def labels(hu: Any) -> dict[str, Any]:
        logits = first_output(model(hu[..., None], training=False))
        return {"labels": ops.cast(ops.argmax(logits, axis=-1), "uint8")}

    return labels


def _metadata(
    spacing_mm: Sequence[float] | None, classes: Sequence[str] | None, num_classes: int
) -> dict[str, Any]:
    """What a client must know to call the model and to read its answer."""
    return {
        "classes": None if classes is None else list(classes),
        "num_classes": num_classes,
        "spacing_mm": None if spacing_mm is None else [float(size) for size in spacing_mm],
        "axes": ["depth, toward the head", "height, toward the front", "width, toward the patient's right"],
        "input": "hu: float32 Hounsfield units (batch, depth, height, width), any size",
        "endpoints": {
            "serve": "labels: uint8 class indices (batch, depth, height, width)",
            "probabilities": "probabilities: float32 (batch, depth, height, width, classes)",
        },
    }
