import os
import signal
import subprocess
import sys
import time

import pytest

from partialseg.errors import DataError
from partialseg.parallel import run_tasks


def square(number):
    if number == 3:
        raise DataError("three.nii.gz", "is odd", "leave it out")
    return number**2


def crash_on_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def crash_badly(number):
    """As a fault in a library written in C."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def take_bytes(number):
    return len(bytearray(number))


def wait_long(folder):
    (folder / str(os.getpid())).touch()
    time.sleep(120)


def divide_by_it(number):
    return 1 / number


def threads(_):
    return os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_data_error_is_a_result_and_the_rest_go_on(jobs):
    results = dict(run_tasks(square, [1, 2, 3, 4], where=str, jobs=jobs))
    assert str(results.pop(3)) == "three.nii.gz: is odd; leave it out"
    assert results == {1: 1, 2: 4, 4: 16}


@pytest.mark.parametrize("crash", [crash_on_three, crash_badly])
def test_task_that_kills_its_worker_is_named_and_the_rest_go_on(crash):
    results = dict(run_tasks(crash, [1, 2, 3, 4, 5], where=lambda n: f"case_{n}", jobs=2))
    error = results.pop(3)
    assert isinstance(error, DataError)
    assert str(error).startswith("case_3: its worker process was killed")
    assert results == {1: 1, 2: 2, 4: 4, 5: 5}


@pytest.mark.parametrize("jobs", [1, 2])
def test_error_of_the_program_names_the_task(jobs):
    with pytest.raises(RuntimeError, match="case_0: ZeroDivisionError"):
        list(run_tasks(divide_by_it, [0, 0], where=lambda n: f"case_{n}", jobs=jobs))


def test_workers_have_one_thread_each_and_the_parent_keeps_its_own(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert [result for _, result in run_tasks(threads, [1, 2], where=str, jobs=2)] == [("1", "1")] * 2
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_task_that_takes_too_much_memory_is_named_and_the_rest_go_on():
    results = dict(
        run_tasks(take_bytes, [1000, 2 * 10**9, 2000], where=lambda n: f"case_{n}", jobs=1, memory=10**9)
    )
    problem = results.pop(2 * 10**9)
    assert isinstance(problem, DataError)
    assert str(problem).startswith(
        "case_2000000000: needs more memory than the 1 GB that a worker may take; allow"
    )
    assert results == {1000: 1000, 2000: 2000}


def test_workers_end_at_once_when_nobody_wants_the_results(tmp_path):
    outcomes = run_tasks(take_or_wait, [1, tmp_path], where=str, jobs=2)
    assert next(outcomes) == (1, 1)
    wait_for(lambda: list(tmp_path.iterdir()))
    outcomes.close()
    assert not any(alive(int(path.name)) for path in tmp_path.iterdir())


def take_or_wait(task):
    return take_bytes(task) if isinstance(task, int) else wait_long(task)


def test_no_workers_are_refused():
    with pytest.raises(ValueError, match="received 0"):
        list(run_tasks(square, [1], where=str, jobs=0))


def test_script_without_guard_is_told(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from partialseg.parallel import run_tasks\n"
        "print(list(run_tasks(len, ['a', 'b'], where=str, jobs=2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "__name__ == '__main__'" in done.stderr


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "from partialseg.parallel import run_tasks\n"
        "def write_pid(folder):\n"
        "    (pathlib.Path(folder) / str(os.getpid())).touch()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    list(run_tasks(write_pid, [sys.argv[1]] * 2, where=str, jobs=2))\n"
    )
    pids = tmp_path / "pids"
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, script, pids])
    try:
        wait_for(lambda: len(list(pids.iterdir())) == 2)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not any(alive(int(path.name)) for path in pids.iterdir()))


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:  # a zombie whose new parent does not look is gone as well
        return stat.read().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
