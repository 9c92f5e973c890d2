"""Against a real scheduler and real workers on loopback, each a process of its own."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from partialseg import dask_cluster
from partialseg.data.cards import read_card
from partialseg.data.prepare import prepare
from partialseg.errors import DataError
from partialseg.parallel import run_tasks

pytest.importorskip("distributed")

ROOT = Path(__file__).resolve().parents[1]


def do(number):
    if number == 3:
        raise DataError("three.nii.gz", "is odd", "leave it out")
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def divide_by(number):
    return 1 / number


def fail_once(path):
    """As a network that is away for a moment."""
    if not path.exists():
        path.touch()
        raise OSError("away for a moment")
    return "done"


@contextlib.contextmanager
def started(folder, *command):
    """A process of Dask's command line, ended with all its children when the block ends."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    }
    with open(folder / "log.txt", "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def scheduler(folder):
    options = [
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        folder / "scheduler.json",
    ]
    return started(folder, "distributed.cli.dask_scheduler", *options)


def workers(folder, count=1):
    options = ["--scheduler-file", folder / "scheduler.json", "--nworkers", str(count), "--nthreads", "1"]
    return started(folder, "distributed.cli.dask_worker", *options, "--no-dashboard", "--host", "127.0.0.1")


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The scheduler file of two workers that may die twice each for one task."""
    folder = tmp_path_factory.mktemp("dask")
    with scheduler(folder):
        wait_for((folder / "scheduler.json").exists)
        with workers(folder, 2):
            yield str(folder / "scheduler.json")


def test_results_errors_and_a_task_that_kills_its_workers(cluster):
    results = dict(run_tasks(do, range(1, 9), where=lambda n: f"case_{n}", dask=cluster))
    assert str(results.pop(3)) == "three.nii.gz: is odd; leave it out"
    killed = results.pop(5)
    assert isinstance(killed, DataError)
    assert str(killed).startswith("case_5: its worker process was killed")
    assert results == {n: n**2 for n in (1, 2, 4, 6, 7, 8)}


def test_task_that_fails_for_a_moment_is_tried_again(cluster, tmp_path):
    tasks = [tmp_path / "one", tmp_path / "two"]
    assert dict(run_tasks(fail_once, tasks, where=str, dask=cluster)) == dict.fromkeys(tasks, "done")


def test_error_of_the_program_names_the_task(cluster):
    with pytest.raises(RuntimeError, match="case_0: ZeroDivisionError"):
        list(run_tasks(divide_by, [0], where=lambda n: f"case_{n}", dask=cluster))


def test_workers_of_another_version_are_refused(cluster, monkeypatch):
    monkeypatch.setattr(dask_cluster, "__version__", "99.0")
    with pytest.raises(
        DataError, match=r"worker tcp://\S+ has .*expected .*99\.0.*; install the same versions"
    ):
        list(run_tasks(do, [1], where=str, dask=cluster))


def test_address_at_which_nothing_answers(monkeypatch):
    monkeypatch.setattr(dask_cluster, "PATIENCE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(DataError, match=f"{address}: no Dask scheduler answers .*start `dask scheduler`"):
            list(run_tasks(do, [1], where=str, dask=address))


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "there is no such scheduler file"), ("{}", "is no scheduler file")]
)
def test_scheduler_file_that_is_none(tmp_path, content, problem):
    path = tmp_path / "scheduler.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=f"{path}: {problem}"):
        list(run_tasks(do, [1], where=str, dask=str(path)))


def test_unknown_kind_of_address():
    with pytest.raises(DataError, match=r"no Dask scheduler answers .*unknown address scheme"):
        list(run_tasks(do, [1], where=str, dask="nonsense://host"))


def test_cluster_without_dask_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(
        DataError, match=r"not installed \(distributed\); run `pip install \"partialseg\[dask\]\"`"
    ):
        list(run_tasks(do, [1], where=str, dask="tcp://127.0.0.1:8786"))


def test_cluster_that_has_no_worker_and_one_that_goes_away(tmp_path, monkeypatch):
    monkeypatch.setattr(dask_cluster, "PATIENCE_S", 1.0)
    file = tmp_path / "scheduler.json"
    with scheduler(tmp_path):
        wait_for(file.exists)
        monkeypatch.setattr(dask_cluster, "PATIENCE_S", 2.0)
        with pytest.raises(DataError, match="the Dask cluster has no worker after 2 s; start `dask worker"):
            list(run_tasks(do, [1], where=str, dask=str(file)))
        monkeypatch.setattr(dask_cluster, "PATIENCE_S", 20.0)
        with workers(tmp_path) as process:
            outcomes = run_tasks(
                slow_second, [tmp_path / "first", tmp_path / "second"], where=str, dask=str(file)
            )
            assert next(outcomes) == (tmp_path / "first", "done")
            wait_for((tmp_path / "second").exists)
            os.killpg(process.pid, signal.SIGKILL)
            monkeypatch.setattr(dask_cluster, "PATIENCE_S", 2.0)
        with pytest.raises(DataError, match="the Dask cluster has no workers any more"):
            next(outcomes)


def slow_second(path):
    path.touch()
    if path.name == "second":
        time.sleep(120)
    return "done"


def test_prepare_on_a_cluster_writes_what_one_machine_writes(cluster, tiny_raw, tmp_path):
    cards, settings = [read_card("msd_spleen"), read_card("kits19")], {"spacing_mm": (6.0, 6.0, 6.0)}
    there = prepare(cards, tiny_raw, tmp_path / "there", dask=cluster, **settings)
    # In processes of their own, which have one thread for products as Dask's workers do: on some processors the last
    # bit of a product depends on the number of threads.
    here = prepare(cards, tiny_raw, tmp_path / "here", jobs=2, **settings)
    assert there.problems == []
    assert there.done == here.done > 1
    contents = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (tmp_path / "there", tmp_path / "here")
    ]
    assert contents[0] == contents[1]
    assert prepare(cards, tiny_raw, tmp_path / "there", dask=cluster, **settings).done == 0


def test_damaged_case_is_named_and_the_rest_are_prepared(cluster, tiny_raw, tmp_path):
    shutil.copytree(tiny_raw, tmp_path / "raw")
    damaged = next((tmp_path / "raw").rglob("imagesTr/spleen_*.nii.gz"))
    damaged.write_bytes(damaged.read_bytes()[:2000])
    result = prepare([read_card("msd_spleen")], tmp_path / "raw", tmp_path / "out", (6.0,) * 3, dask=cluster)
    assert [problem.path for problem in result.problems] == [str(damaged)]
    assert result.done >= 1


def test_command_says_on_one_line_that_no_cluster_answers(tiny_raw, tmp_path):
    arguments = ["--raw", tiny_raw, "--out", tmp_path / "out", "--dask", tmp_path / "no.json"]
    done = subprocess.run(
        [sys.executable, "-m", "partialseg.cli", "prepare", "msd_spleen", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "no.json" in line] == [
        f"{tmp_path}/no.json: there is no such scheduler file; give the scheduler's address (tcp://host:8786), or the "
        "file of `dask scheduler --scheduler-file`"
    ]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
