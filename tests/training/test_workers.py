"""Two processes on this host that train together, each test with processes of its own: a failed one spoils the next."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from partialseg.errors import DataError
from partialseg.training import read_config, read_run, train
from partialseg.training.config import write_config
from partialseg.training.devices import Workers, make_strategy

#: A hang shall fail.
LONGEST_S = 300


@pytest.fixture(scope="module")
def config():
    config = read_config("tiny")
    # Adam would blow up the rounding of gradients that are zero: of biases before instance norm.
    sgd = config.optimizer.model_copy(update={"name": "sgd", "learning_rate": 1e-3})
    return config.model_copy(
        update={"optimizer": sgd, "deterministic": True, "checkpoint_minutes": 0, "patch_size": (8, 16, 16)}
    )


@pytest.fixture(scope="module")
def config_file(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    write_config(config, path)
    return path


def free_ports():
    """Two ports in a row, as Slurm's tasks on one host have them."""
    for port in range(20000 + os.getpid() % 5000, 30000):
        with contextlib.ExitStack() as stack:
            try:
                for offset in range(2):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port
    raise RuntimeError("no free ports")


def by_tf_config(port, index):
    cluster = {"worker": [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})}


def by_slurm(port, index):
    return {
        "SLURM_JOB_ID": str(port - 20000),
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def start(config_files, prepared, out, described=by_tf_config):
    """The same command in two processes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TF_CONFIG"))}
    port = free_ports()
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "partialseg.cli", "train", str(config_file)),
                *("--prepared", str(prepared), "--out", str(out)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**kept, "TF_CPP_MIN_LOG_LEVEL": "3", **described(port, index)},
        )
        for index, config_file in enumerate(config_files)
    ]


def finish(processes):
    """Exit status and lines of each; none outlives this."""
    try:
        return [(p.returncode, errors) for p in processes for errors in [p.communicate(timeout=LONGEST_S)[1]]]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def trained(processes):
    ended = finish(processes)
    assert [status for status, _ in ended] == [0, 0], "\n".join(errors[-2000:] for _, errors in ended)
    return ended


def steps_saved(out):
    files = sorted((out / "checkpoint").glob("step*.npz"))
    return int(files[-1].stem.removeprefix("step")) if files else -1


def wait_for_step(processes, out, step):
    deadline = time.monotonic() + LONGEST_S
    while steps_saved(out) < step and all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def weights(out):
    return read_run(out).load_model().get_weights()


@pytest.fixture(scope="module")
def uninterrupted(config_file, tiny_prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "whole"
    ended = trained(start([config_file] * 2, tiny_prepared, out, by_slurm))
    return out, [errors for _, errors in ended]


@pytest.mark.slow
def test_two_workers_of_slurm_train_to_the_weights_of_one_process(
    uninterrupted, config, tiny_prepared, tmp_path
):
    out, (of_chief, of_other) = uninterrupted
    alone = train(config, tiny_prepared, tmp_path / "alone")
    for mine, theirs in zip(weights(out), weights(alone.folder), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    names = {path.name for path in out.iterdir()}
    assert names == {path.name for path in alone.folder.iterdir()}
    assert len(list((out / "tensorboard").iterdir())) == 1
    assert "epoch 1 of 2: loss" in of_chief
    assert "epoch" not in of_other


@pytest.mark.slow
def test_workers_with_the_dice_of_the_batch_train_to_the_weights_of_one_process(
    config, tiny_prepared, tmp_path
):
    losses = config.losses.model_copy(update={"batch": True})
    config = config.model_copy(update={"losses": losses, "stages": config.stages[1:]})
    write_config(config, tmp_path / "config.yaml")
    trained(start([tmp_path / "config.yaml"] * 2, tiny_prepared, tmp_path / "two"))
    train(config, tiny_prepared, tmp_path / "alone")
    for mine, theirs in zip(weights(tmp_path / "two"), weights(tmp_path / "alone"), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.slow
def test_workers_that_are_stopped_and_killed_go_on_to_the_same_bits(
    uninterrupted, config_file, tiny_prepared, tmp_path
):
    out = tmp_path / "run"
    for step, victim, number in (
        (1, 1, signal.SIGTERM),
        (6, 1, signal.SIGKILL),
        (12, 0, signal.SIGKILL),
        (16, 0, signal.SIGUSR1),
    ):
        processes = start([config_file] * 2, tiny_prepared, out)
        wait_for_step(processes, out, step)
        processes[victim].send_signal(number)
        ended = finish(processes)
        lost, other = ended[victim], ended[1 - victim]
        if number == signal.SIGKILL:
            assert lost[0] == -signal.SIGKILL
            assert other[0] == 1, other[1][-2000:]
            assert "another worker has ended, or is not reached any more" in " ".join(other[1].split())
        else:  # one was told, and all have stopped at the same step
            assert [status for status, _ in ended] == [128 + number] * 2, lost[1][-2000:] + other[1][-2000:]
        assert steps_saved(out) >= step
    trained(start([config_file] * 2, tiny_prepared, out))
    for mine, theirs in zip(weights(out), weights(uninterrupted[0]), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (out / "terms.csv").read_text() == (uninterrupted[0] / "terms.csv").read_text()


@pytest.mark.slow
def test_a_worker_with_another_config_ends_all_of_them(config, config_file, tiny_prepared, tmp_path):
    write_config(config.model_copy(update={"seed": 7}), tmp_path / "other.yaml")
    of_chief, of_other = finish(
        start([config_file, tmp_path / "other.yaml"], tiny_prepared, tmp_path / "run")
    )
    assert (of_chief[0], of_other[0]) == (1, 1)
    assert "worker 0 of 2: another worker could not go on" in of_chief[1]
    assert "holds a run with another config" in of_other[1]


def test_a_process_alone_agrees_with_itself_and_reads_all_of_each_batch(tmp_path):
    workers = Workers(make_strategy(["CPU:0"]))
    assert (workers.is_chief, workers.shard, workers.most(15, 0)) == (True, (0, 1), [15, 0])
    with workers.chief_first(), workers.own_folder(tmp_path) as folder:
        assert folder == tmp_path
    workers.check_same(3, tmp_path)
    with pytest.raises(DataError, match="lost"), workers.chief_first():
        raise DataError("file", "lost", "find it")


def test_a_tf_config_of_one_worker_is_no_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", by_tf_config(2000, 0)["TF_CONFIG"].replace(', "127.0.0.1:2001"', ""))
    assert make_strategy().num_replicas_in_sync == 1


def test_devices_are_not_named_in_a_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", by_tf_config(2000, 0)["TF_CONFIG"])
    with pytest.raises(DataError, match="CPU:0 are named, and this is one of 2 processes"):
        make_strategy(["CPU:0"])
