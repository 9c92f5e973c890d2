"""Trainings that are killed, told to stop, or find a torn checkpoint, each in a process of its own."""

import csv
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from partialseg.training import read_config, read_run
from partialseg.training.config import ValidationConfig, write_config

#: Of the whole training.
STEPS = 24


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """Dropout and augmentation, whose random state must come back too; means of weights, the best of them kept."""
    config = read_config("tiny")
    config = config.model_copy(
        update={
            "network": config.network.model_copy(update={"dropout": 0.2, "deep_supervision": True}),
            "optimizer": config.optimizer.model_copy(update={"ema": 0.9}),
            "validation": ValidationConfig(folds=2, patches=1, volumes_every=2),
            "augmentation": type(config).model_fields["augmentation"].default,
            "deterministic": True,
            "checkpoint_minutes": 0,
        }
    )
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    write_config(config, path)
    return path


def start(config_file, prepared, out):
    """The command that a user gives, whose exit status and lines are looked at."""
    command = [sys.executable, "-m", "partialseg.cli", "train", str(config_file)]
    return subprocess.Popen(
        [*command, "--prepared", str(prepared), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def finish(process, status=0):
    errors = process.communicate()[1]
    assert process.returncode == status, errors[-2000:]
    return errors


def steps_saved(out):
    files = sorted((out / "checkpoint").glob("step*.npz"))
    return int(files[-1].stem.removeprefix("step")) if files else -1


def wait_for_step(process, out, step):
    while steps_saved(out) < step and process.poll() is None:
        time.sleep(0.005)


def results(out):
    """The weights, the log without what a clock measured, the other tables, and what lies in the folder."""
    with open(out / "log.csv", newline="") as file:
        measured = ("seconds", "data_wait")
        log = [{k: v for k, v in row.items() if k not in measured} for row in csv.DictReader(file)]
    tables = [(out / name).read_text() for name in ("terms.csv", "validation.csv")]
    names = sorted(path.name for path in out.iterdir())
    return read_run(out).load_model().get_weights(), log, tables, names


@pytest.fixture(scope="module")
def uninterrupted(config_file, tiny_prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "whole"
    finish(start(config_file, tiny_prepared, out))
    return results(out)


def assert_same(found, expected):
    for mine, theirs in zip(found[0], expected[0], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert found[1:] == expected[1:]


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_same_bits(
    config_file, tiny_prepared, uninterrupted, tmp_path
):
    out, seed = tmp_path / "run", random.randrange(2**32)
    chance = random.Random(seed)
    # Shown by `pytest -s`, and by pytest itself where it fails: the moments are others each time.
    print(
        f"\nseed {seed}\n\n| kill | saved at the start, step | saved at the kill, step | seconds |\n|---|---|---|---|"
    )
    kills = 0
    for kill in range(10):
        began, first = time.monotonic(), steps_saved(out)
        process = start(config_file, tiny_prepared, out)
        # The first before a step is done, the last when all are and the network is written; those between leave
        # some steps to go, so that a fast machine does not end before them.
        until = 0 if kill == 0 else STEPS if kill == 9 else min(first + chance.randint(0, 2), STEPS - 6)
        wait_for_step(process, out, until)
        time.sleep(chance.uniform(0, 0.2) if kill == 9 else chance.uniform(0, 0.05))
        if process.poll() is not None:  # a fast machine
            break
        process.kill()
        process.wait()
        kills += 1
        print(f"| {kill + 1} | {first} | {steps_saved(out)} | {time.monotonic() - began:.2f} |")
    assert kills >= 9
    finish(process if kills < 10 else start(config_file, tiny_prepared, out))
    assert_same(results(out), uninterrupted)


@pytest.mark.slow
def test_a_run_told_to_stop_saves_says_where_it_stands_and_goes_on(
    config_file, tiny_prepared, uninterrupted, tmp_path
):
    out = tmp_path / "run"
    for number, step in ((signal.SIGTERM, 1), (signal.SIGINT, 6)):
        process = start(config_file, tiny_prepared, out)
        wait_for_step(process, out, step)
        process.send_signal(number)
        errors = finish(process, status=128 + number)
        assert "the same command goes on from there" in errors
        assert "Traceback" not in errors
    newest = sorted((out / "checkpoint").glob("step*.npz"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    errors = finish(start(config_file, tiny_prepared, out))
    assert f"{newest.name}: is not a whole checkpoint, the one before it is used" in " ".join(errors.split())
    assert_same(results(out), uninterrupted)
