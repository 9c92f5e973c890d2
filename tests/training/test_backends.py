"""Training on each backend, in a process of its own: Keras takes one when it is imported."""

import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from partialseg.cli import main
from partialseg.training.backends import jit_compile

TRAIN = """
import sys
import numpy as np
from partialseg.training import read_config, read_run, train
from partialseg.training.checkpoints import Checkpoints

prepared, out = sys.argv[1:]
config = read_config("tiny").model_dump()
config["stages"] = [{**stage, "epochs": 1} for stage in config["stages"]]
config |= {
    "deterministic": True, "checkpoint_minutes": 0, "accumulate": 2,
    "optimizer": {"ema": 0.9}, "validation": {"folds": 2, "patches": 1, "volumes_every": 2},
}
config["network"] |= {"deep_supervision": True, "dropout": 0.1}
config = type(read_config("tiny")).model_validate(config)
whole = train(config, prepared, out + "/whole")

save, saved = Checkpoints.save, []

def save_then_stop(*arguments):
    save(*arguments)
    saved.append(arguments)
    if len(saved) == 4:
        raise KeyboardInterrupt

Checkpoints.save = save_then_stop
try:
    train(config, prepared, out + "/stopped")
except KeyboardInterrupt:
    Checkpoints.save = save
again = train(config, prepared, out + "/stopped")
assert len(saved) == 4
for one, other in zip(whole.load_model().get_weights(), again.load_model().get_weights(), strict=True):
    np.testing.assert_array_equal(one, other)
"""


def on_backend(backend, code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_run_goes_on_as_if_it_had_not_stopped_and_serves_tensorflow(backend, tiny_prepared, tmp_path):
    pytest.importorskip(backend)
    result = on_backend(backend, TRAIN, tiny_prepared, tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    versions = json.loads((tmp_path / "whole" / "run.json").read_text())["versions"]
    assert backend in versions
    assert (tmp_path / "whole" / "validation.csv").is_file()
    # The network is a Keras file like any other: this process, on TensorFlow, predicts with it.
    from partialseg.training import read_run

    assert len(read_run(tmp_path / "whole").load_model().outputs) == 2


def test_tensorflow_compiles_no_whole_step_by_xla_with_a_gpu_either(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *_: ["GPU"])
    assert jit_compile() is False


def test_devices_cannot_be_named_where_there_are_no_strategies(tiny_prepared, tmp_path):
    code = (
        "import sys; from partialseg.training import train; train('tiny', *sys.argv[1:], devices=['GPU:1'])"
    )
    result = on_backend("jax", code, tiny_prepared, tmp_path / "run")
    assert "the jax backend: found devices GPU:1, expected none" in result.stderr
    assert result.returncode == 1


def test_a_backend_that_keras_does_not_have_is_a_wrong_call(monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "cntk")
    monkeypatch.setattr(sys, "argv", ["partialseg", "train", "tiny", "--prepared", "x", "--out", "y"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "KERAS_BACKEND is 'cntk', expected tensorflow, jax or torch" in capsys.readouterr().err
