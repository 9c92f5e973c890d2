"""The exported model, in a process that has neither Keras nor this package."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from partialseg.errors import DataError
from partialseg.inference.saved_model import export
from partialseg.models import unet

CLASSES = ("background", "liver", "spleen")
SIZES = [(1, 6, 9, 12), (2, 8, 16, 11)]

CLIENT = """
import sys
import numpy as np
sys.modules["keras"] = sys.modules["partialseg"] = None  # importing them fails
import tensorflow as tf

folder, patches, answers = sys.argv[1:]
model = tf.saved_model.load(folder)
results = {}
for name, hu in np.load(patches).items():
    hu = tf.constant(hu)
    results["labels_" + name] = model.signatures["serve"](hu=hu)["labels"].numpy()
    results["default_" + name] = model.signatures["serving_default"](hu=hu)["labels"].numpy()
    results["probabilities_" + name] = model.probabilities(hu)["probabilities"].numpy()
np.savez(answers, **results)
"""


def test_fresh_process_without_keras_gives_the_same_labels_at_any_size(tmp_path):
    keras.utils.set_random_seed(1)
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    model = unet(3, strides=strides, base_channels=4, deep_supervision=True)
    random = np.random.default_rng(0)
    patches = {str(i): random.uniform(-1000, 1000, size).astype(np.float32) for i, size in enumerate(SIZES)}
    np.savez(tmp_path / "patches.npz", **patches)
    export(model, tmp_path / "exported", (3, 1.5, 1.5), CLASSES)

    files = [str(tmp_path / name) for name in ("exported", "patches.npz", "answers.npz")]
    subprocess.run([sys.executable, "-c", CLIENT, *files], check=True, cwd=tmp_path)
    answers = np.load(tmp_path / "answers.npz")
    for name, hu in patches.items():
        logits = keras.ops.convert_to_numpy(model(hu[..., np.newaxis], training=False)[0])
        labels = answers[f"labels_{name}"]
        assert labels.dtype == np.uint8
        assert len(np.unique(labels)) > 1
        np.testing.assert_array_equal(labels, logits.argmax(axis=-1))
        np.testing.assert_array_equal(labels, answers[f"default_{name}"])
        expected = keras.ops.convert_to_numpy(keras.ops.softmax(logits))
        np.testing.assert_allclose(answers[f"probabilities_{name}"], expected, atol=1e-5)


def tiny_model():
    inputs = keras.Input((None, None, None, 1))
    return keras.Model(inputs, keras.layers.Conv3D(3, 1)(inputs))


def test_metadata_says_classes_and_spacing(tmp_path):
    export(tiny_model(), tmp_path / "exported", (3, 1.5, 1.5), CLASSES)
    metadata = json.loads((tmp_path / "exported" / "assets.extra" / "partialseg.json").read_text())
    assert metadata["classes"] == list(CLASSES)
    assert metadata["num_classes"] == 3
    assert metadata["spacing_mm"] == [3.0, 1.5, 1.5]
    assert metadata["axes"][0].startswith("depth")


def test_export_replaces_what_is_there_and_leaves_nothing_else(tmp_path):
    for _ in range(2):
        export(tiny_model(), tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    assert (tmp_path / "exported" / "saved_model.pb").is_file()


def test_failed_export_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="could not convert"):
        export(tiny_model(), tmp_path / "exported", spacing_mm=["wide", 1, 1])
    assert not list(tmp_path.iterdir())


def test_classes_must_be_as_many_as_the_model_has(tmp_path):
    with pytest.raises(ValueError, match="has 3 classes, received 2"):
        export(tiny_model(), tmp_path / "exported", classes=CLASSES[:2])


def test_names_of_the_package_are_there():
    import partialseg.inference

    assert partialseg.inference.export is export
    assert callable(partialseg.inference.predict_volume)
    assert callable(partialseg.inference.predict_scan)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        partialseg.inference.nothing  # noqa: B018


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    inputs = keras.Input((None, None, None, 1))
    model = keras.Model(inputs, keras.layers.Conv3D(2, 1)(inputs))
    with pytest.raises(DataError, match="is no SavedModel"):
        export(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
