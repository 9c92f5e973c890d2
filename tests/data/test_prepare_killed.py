"""Preparing is killed or stopped, or runs out of disk or memory: what is there then, and after going on."""

import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.cards import read_card
from partialseg.data.prepare import prepare
from partialseg.errors import DataError

CARD = """---
name: small
title: small
source: made by hand
licence: none
citation: none
files: {image: "*_ct.nii.gz", label: "*_label.nii.gz"}
labels: {1: spleen, 2: liver}
annotated: [spleen, liver]
splits: {seed: 0, test: 0.4}
---
"""
FILES = {"image.npy", "label.npy", "foreground.npy", "case.json"}

#: Called as SCRIPT CARD RAW OUT SPACING JOBS; its workers import it.
SCRIPT = """
import sys
from partialseg.data.cards import read_card
from partialseg.data.prepare import prepare

if __name__ == "__main__":
    card, raw, out, spacing, jobs = sys.argv[1:]
    result = prepare([read_card(card)], raw, out, (float(spacing),) * 3, jobs=int(jobs))
    print(result.done, result.skipped, len(result.problems))
    sys.exit(1 if result.problems else 0)
"""

#: Forks a process for each file operation below OUT, which is killed just before that operation.
KILL_AT_EACH = """
import os, shutil, signal, sys
from pathlib import Path
from partialseg.data.cards import read_card
from partialseg.data.prepare import prepare

card, raw, out, before = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]

def run(spacing):
    prepare([read_card(card)], raw, out, (spacing,) * 3, jobs=1)

def kill_before(number):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if not event.startswith(("open", "os.", "shutil.")):
            return
        if not any(isinstance(each, (str, bytes, os.PathLike)) and str(out) in str(each) for each in arguments):
            return
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1
    sys.addaudithook(hook)

number, killed = int(sys.argv[5]), 1
while killed:
    shutil.rmtree(out, ignore_errors=True)
    if before == "other spacing":
        run(4.0)
    child = os.fork()
    if child == 0:
        kill_before(number)
        run(3.0)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    whole = {path.parent: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.glob("small/case*/image.npy")
             if (path.parent / "case.json").is_file()} if before == "nothing" else {}
    readable = (out / "manifest.json").is_file()
    run(3.0)
    same = all(mark == ((path / "image.npy").stat().st_ino, (path / "image.npy").stat().st_mtime_ns)
               for path, mark in whole.items())
    import hashlib
    tree = [(str(path.relative_to(out)), hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(out.rglob("*")) if path.is_file()]
    print(number, killed, len(whole), readable, same, hashlib.sha256(repr(tree).encode()).hexdigest(), flush=True)
    number += int(sys.argv[6])
"""


def write_case(folder, name, size, seed):
    """Noise with two blocks, in (x, y, z)."""
    folder.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).normal(50, 20, size).astype(np.float32)
    label = np.zeros(size, dtype=np.uint8)
    label[tuple(slice(n // 8, n // 3) for n in size)] = 1
    label[tuple(slice(n // 2, 4 * n // 5) for n in size)] = 2
    for array, kind in ((image, "ct"), (label, "label")):
        nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 2.0, 1.0])), folder / f"{name}_{kind}.nii.gz")


def make(folder, cases, size):
    """A card and its raw data."""
    for number in range(cases):
        write_case(folder / "raw", f"case{number}", size, number)
    (folder / "small.md").write_text(CARD)
    (folder / "script.py").write_text(SCRIPT)
    return folder


def command(folder, out, spacing=3.0, jobs=2):
    return [
        sys.executable,
        folder / "script.py",
        folder / "small.md",
        folder / "raw",
        out,
        str(spacing),
        str(jobs),
    ]


def tree(out):
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def finished(out):
    """The folders of cases that are there under their names, and their inode and time."""
    return {
        path.name: [((path / name).stat().st_ino, (path / name).stat().st_mtime_ns) for name in sorted(FILES)]
        for path in out.glob("small/case*")
        if (path / "case.json").is_file()
    }


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def children(pid):
    """Process ids below a process, from `/proc`."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found + [each for child in found for each in children(child)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(("before", "cases"), [("nothing", 2), ("other spacing", 1)])
def test_killed_before_any_file_operation_and_run_again_the_output_is_the_same(tmp_path, before, cases):
    folder = make(tmp_path, cases, (16, 16, 8))
    (tmp_path / "kill.py").write_text(KILL_AT_EACH)
    out = tmp_path / "out"
    # The operations of both cases and of the manifest; the last line is of a run that was not killed any more.
    done = subprocess.run(
        [sys.executable, tmp_path / "kill.py", folder / "small.md", folder / "raw", out, before, "0", "1"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) > 20
    assert {line[1] for line in lines[:-1]} == {"True"}
    assert lines[-1][1] == "False"
    assert {line[4] for line in lines} == {"True"}, "a finished case was written again"
    assert len({line[5] for line in lines}) == 1, "the output differs"
    if before == "nothing":
        assert {int(line[2]) for line in lines} == {0, 1, 2}


@pytest.mark.slow
def test_killed_at_random_moments_the_output_is_that_of_a_run_that_was_not(tmp_path):
    cases, kills = 30, 10
    folder, out = make(tmp_path, cases, (64, 64, 48)), tmp_path / "out"
    subprocess.run(command(folder, out), check=True, capture_output=True)
    expected = tree(out)
    shutil.rmtree(out)
    rng = random.Random(0)
    done = []
    for number in range(kills):
        if len(finished(out)) == cases:  # a fast machine does all of them before the last kill: begin anew
            shutil.rmtree(out)
        before = finished(out)
        process = subprocess.Popen(
            command(folder, out), start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        wanted = len(before) + rng.randrange(3)
        wait_for(
            lambda: (len(finished(out)) >= wanted and (out / ".lock").exists()) or process.poll() is not None  # noqa: B023
        )
        time.sleep(rng.uniform(0, 0.05))
        victims = children(process.pid)
        if process.poll() is not None:
            assert process.returncode == 0  # it was done before it could be killed
        elif number % 3 == 0:
            os.killpg(process.pid, signal.SIGKILL)
        elif number % 3 == 1 or not victims:
            process.kill()
        else:  # a worker first: the parent is then starting others
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(rng.choice(victims), signal.SIGKILL)
            time.sleep(rng.uniform(0, 0.5))
            victims += children(process.pid)
            process.kill()
        process.communicate(timeout=60)
        wait_for(lambda: not any(map(alive, victims)))  # noqa: B023
        after = finished(out)
        assert before.items() <= after.items(), "a finished case was written again, or is gone"
        for case in after:
            assert {path.name for path in (out / "small" / case).iterdir()} == FILES
        done.append(len(after))
    last = finished(out)
    subprocess.run(command(folder, out), check=True, capture_output=True)
    assert last.items() <= finished(out).items()
    assert tree(out) == expected
    assert len({number for number in done if 0 < number < cases}) >= 3, (
        f"killed too early or too late: {done}"
    )


@pytest.mark.slow
def test_worker_that_is_killed_costs_nothing(tmp_path):
    folder = make(tmp_path, 4, (96, 96, 48))
    process = subprocess.Popen(command(folder, tmp_path / "out"), stdout=subprocess.PIPE, text=True)
    wait_for(lambda: finished(tmp_path / "out") or process.poll() is not None)
    for victim in children(process.pid):
        if "spawn_main" in Path(f"/proc/{victim}/cmdline").read_text():
            os.kill(victim, signal.SIGKILL)
            break
    assert process.communicate(timeout=60)[0].split()[0] == "4"
    assert process.returncode == 0


@pytest.mark.slow
def test_stop_by_ctrl_c_is_quick_and_leaves_no_process(tmp_path):
    folder = make(tmp_path, 6, (128, 128, 96))
    out = tmp_path / "out"
    arguments = ["prepare", folder / "small.md", "--raw", folder / "raw", "--out", out, "--jobs", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "partialseg.cli", *arguments, "--spacing", "1", "1", "1"],
        start_new_session=True,
        # What a shell starts in the background ignores Ctrl-C, and so would what is started here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: list(out.glob("small/*")) or process.poll() is not None)
    victims = children(process.pid)
    assert len(victims) >= 2
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to all of them
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert error.splitlines()[-1] == "stopped; run again to go on"
    assert "Traceback" not in error
    wait_for(lambda: not any(map(alive, victims)), 10)
    assert not (out / "manifest.json").exists()
    assert not (out / ".lock").exists()


def test_two_runs_into_one_folder(tmp_path):
    folder = make(tmp_path, 1, (16, 16, 8))
    out = tmp_path / "out"
    out.mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time\nfrom partialseg.locking import locked\n"
            "with locked(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(120)",
            out,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DataError, match=f"{out}: is in use by process {holder.pid} on .*; wait until"):
            prepare([read_card(folder / "small.md")], folder / "raw", out, jobs=1)
    finally:
        holder.kill()
        holder.communicate()
    assert (out / ".lock").exists()  # left by the one that was killed; it holds nobody up
    assert prepare([read_card(folder / "small.md")], folder / "raw", out, jobs=1).done == 1
    assert not (out / ".lock").exists()


def test_lock_is_that_of_the_kernel(tmp_path):
    from partialseg.locking import locked

    with locked(tmp_path), open(tmp_path / ".lock") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def full_disk_command(folder, out, room):
    """Mount a file system of 400 kB, prepare there, make room, prepare again; in a name space of its own."""
    once = " ".join(f"'{part}'" for part in command(folder, out, spacing=2.0, jobs=2))
    script = f"""
        mount -t tmpfs -o size=400k tmpfs '{out}' || exit 77
        PYTHONPATH='{Path(__file__).parents[2]}' '{sys.executable}' -m partialseg.cli prepare '{folder}/small.md' \
            --raw '{folder}/raw' --out '{out}' --spacing 2 2 2 --jobs 1
        echo "status $?"
        ls -A '{out}'/small
        mount -o remount,size=50m '{out}'
        {once}
        cp -r '{out}'/. '{room}'
    """
    return ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]


@pytest.mark.slow
def test_full_disk_is_said_with_the_case_and_after_room_is_made_it_goes_on(tmp_path):
    folder = make(tmp_path, 4, (64, 64, 32))
    out, room = tmp_path / "out", tmp_path / "room"
    out.mkdir()
    room.mkdir()
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare, which gives a file system of its own")
    done = subprocess.run(
        full_disk_command(folder, out, room), capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    lines = done.stdout.splitlines()
    assert lines[0] == "status 1"
    assert "Traceback" not in done.stderr
    message = next(line for line in done.stderr.splitlines() if "cannot be written" in line)
    assert message.startswith(f"{out}/small/case")
    assert "No space left on device; 0" in message
    assert message.endswith("make room, or mend what is wrong there, and run the same command again to go on")
    cases = [line for line in lines[1:-1]]
    assert 1 <= len(cases) < 4, "some are done, and nothing half-written is left"
    assert all(case.startswith("case") for case in cases)
    assert lines[-1] == f"{4 - len(cases)} {len(cases)} 0"
    subprocess.run(command(folder, tmp_path / "whole", spacing=2.0), check=True, capture_output=True)
    assert {name: mark for name, mark in tree(room).items() if not name.endswith("case.json")} == {
        name: mark for name, mark in tree(tmp_path / "whole").items() if not name.endswith("case.json")
    }


@pytest.mark.slow
def test_files_that_may_not_grow(tmp_path):
    """A limit to the size of a file, as a quota, for where no file system can be mounted."""
    folder = make(tmp_path, 2, (64, 64, 32))
    out = tmp_path / "out"
    limited = ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", sys.executable, "-m", "partialseg.cli", "prepare"]
    arguments = [folder / "small.md", "--raw", folder / "raw", "--out", out, "--spacing", "2", "2", "2"]
    done = subprocess.run([*limited, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "small/case" in done.stderr
    assert "cannot be written (File too large; " in done.stderr
    assert not list(out.rglob("*.npy"))
    assert not (out / "manifest.json").exists()
    subprocess.run(command(folder, out, spacing=2.0), check=True, capture_output=True)
    subprocess.run(command(folder, tmp_path / "whole", spacing=2.0), check=True, capture_output=True)
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.slow
def test_case_that_needs_more_memory_than_allowed_is_named_and_the_rest_go_on(tmp_path):
    folder = make(tmp_path, 2, (32, 32, 16))
    write_case(folder / "raw", "huge", (512, 512, 160), 0)
    result = prepare(
        [read_card(folder / "small.md")], folder / "raw", tmp_path / "out", jobs=2, memory_gb=0.35
    )
    assert result.done == 2
    assert [problem.problem for problem in result.problems] == [
        "needs more memory than the 0.35 GB that a worker may take"
    ]
    assert "huge_ct.nii.gz (small, huge_ct)" in result.problems[0].path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "dtype", "spacing", "organ_fills_it"),
    [
        ((512, 512, 40), "int16", 3.0, False),
        ((256, 256, 100), "float64", 3.0, False),
        ((96, 96, 60), "float32", 0.6, False),
        ((96, 96, 100), "int16", 0.6, True),
    ],
)
def test_worker_takes_no_more_memory_than_stated(tmp_path, size, dtype, spacing, organ_fills_it):
    folder = make(tmp_path, 0, size)
    write_case(folder / "raw", "case", size, 0)
    for kind in ("ct", "label"):
        path = folder / "raw" / f"case_{kind}.nii.gz"
        image = nib.load(path)
        array = np.asarray(image.dataobj).astype(dtype)
        if kind == "label" and organ_fills_it:
            array[:] = 1
        nib.save(nib.Nifti1Image(array, image.affine), path)
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom partialseg.data.cards import find_cases, read_card\n"
        "from partialseg.data.prepare_case import PrepareTask, memory_needed, prepare_case\n"
        "card, spacing = read_card(sys.argv[1]), (float(sys.argv[4]),) * 3\n"
        "raw = find_cases(card, sys.argv[2])[0]\n"
        "prepare_case(PrepareTask(card, raw, ('background', 'spleen', 'liver'), spacing, 'train', Path(sys.argv[3])))\n"
        "peak = re.search(r'VmHWM:\\s*(\\d+) kB', Path('/proc/self/status').read_text())[1]\n"
        "print(int(peak) * 1024, memory_needed(raw, spacing))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "small.md", folder / "raw", tmp_path / "out", str(spacing)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    peak, stated = map(int, done.stdout.split())
    assert peak < stated
    assert stated < 4 * peak
