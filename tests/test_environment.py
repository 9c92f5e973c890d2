"""What is on standard error when a loss starts XLA, each time in a process of its own."""

import os
import subprocess
import sys

LOSS = """
from partialseg.losses import MarginalCrossEntropy

MarginalCrossEntropy()([[1, 0, 1]], [[0.0, 0.0, 0.0]])
"""
# XLA is started by the first function of TensorFlow that is made, while standard error is caught.
SPEAKING = """
import os, sys
import partialseg
import tensorflow as tf

make = tf.function

def speak_and_make(*args, **options):
    os.write(2, b"a word of another library\\n")
    tf.function = make
    if "fail" in sys.argv:
        raise OSError("XLA does not start")
    return make(*args, **options)

tf.function = speak_and_make
"""
GREETING = "XLA service"


def run(script, *arguments, **variables):
    kept = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=kept | {"KERAS_BACKEND": "tensorflow"} | variables,
    )


def test_a_loss_is_silent():
    done = run(LOSS)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_greeting_is_there_for_who_wants_to_see_it():
    done = run(LOSS, TF_CPP_MIN_LOG_LEVEL="0")
    assert done.returncode == 0
    assert GREETING in done.stderr


def test_what_others_write_meanwhile_is_passed_on():
    done = run(SPEAKING + LOSS)
    assert (done.returncode, done.stderr) == (0, "a word of another library\n")


def test_standard_error_is_given_back_when_xla_does_not_start():
    done = run(SPEAKING + LOSS, "fail")
    assert done.returncode == 1
    assert done.stderr.startswith("a word of another library\nTraceback")
    assert done.stderr.endswith("OSError: XLA does not start\n")
