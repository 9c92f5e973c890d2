"""Everything in the folder of `broken_inputs`, through the command: one line each, the others go on."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from partialseg.data.cards import read_card
from partialseg.data.prepare import prepare
from partialseg.data.prepared import read_prepared
from partialseg.data.raw_files import extent
from partialseg.data.voxel_files import MAX_VOXELS

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "bad_input.md"

#: A call reads bombs of 2 GiB and headers that claim 10^12 voxels, and needs no more memory than for small scans.
MOST_MEGABYTES = 700

_spec = importlib.util.spec_from_file_location("broken_inputs", HERE / "broken_inputs.py")
broken_inputs = sys.modules["broken_inputs"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(broken_inputs)

INPUTS = broken_inputs.INPUTS
RAW = [broken.name for broken in INPUTS.values() if broken.dataset is not None]
OTHERS = [name for name in INPUTS if name not in RAW]
GOOD_CASES = {(dataset, name) for dataset in broken_inputs.DATASETS for name in broken_inputs.GOOD}

#: Runs a command and says how much memory it took. It is small itself, since a process begins with the peak of the
#: one that starts it.
MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[2:]).returncode
kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
open(sys.argv[1], "w").write(str(kilobytes // 1024))
sys.exit(status)
"""


@dataclass(frozen=True)
class Measured:
    """How a call of the command in a process of its own ended."""

    status: int
    out: str
    lines: list[str]
    megabytes: int


def run_measured(arguments, report):
    command = [sys.executable, "-c", MEASURE, report, sys.executable, "-m", "partialseg.cli", *arguments]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    return Measured(ended.returncode, ended.stdout, ended.stderr.splitlines(), int(report.read_text()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad").resolve() / "bad"
    broken_inputs.make_folder(folder)
    return folder


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """The result of `prepare` on all raw datasets, and where it wrote."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    arguments = [*broken_inputs.raw_arguments(folder), "--out", out, "--spacing", 2, 1, 1, "--jobs", 1]
    return run_measured(["prepare", *arguments], out.with_name("megabytes")), out


@pytest.fixture(scope="module")
def checked(folder, tmp_path_factory):
    """The result of `check` on all raw datasets, and where it wrote."""
    out = tmp_path_factory.mktemp("checked") / "out"
    arguments = [*broken_inputs.raw_arguments(folder), "--out", out, "--jobs", 1]
    return run_measured(["check", *arguments], out.with_name("megabytes")), out


def assert_one_good_line(broken, lines, folder):
    """One line with the file, what was found, what was expected, and what to do, in this order."""
    line = broken_inputs.line_of(broken, lines, folder)
    assert line is not None, f"expected one line on {broken.path}, found {lines}"
    said, _, todo = line.removeprefix(str(folder / broken.path)).partition("; ")
    assert broken.found in said, line
    assert broken.expected in said, line
    assert broken.remedy in todo, line


def skip_where_impossible(broken):
    if not broken_inputs.possible(broken):
        pytest.skip("to root no file is closed")


def test_there_are_forty_at_least_that_differ():
    assert len(INPUTS) >= 40
    assert len({(broken.kind, broken.what) for broken in INPUTS.values()}) == len(INPUTS)
    for broken in INPUTS.values():
        assert broken.what.endswith(".")
        assert broken.found
        assert broken.expected
        assert broken.remedy


@pytest.mark.parametrize("command", ["prepared", "checked"])
def test_the_call_ends_with_1_and_without_a_traceback(command, request):
    call, _ = request.getfixturevalue(command)
    assert call.status == 1
    assert not [line for line in call.lines if "Traceback" in line or "Error:" in line or "Warning" in line]
    assert call.lines[-1] == f"{len(problem_lines(call))} problems"


def test_memory_is_not_planned_by_headers_that_lie(folder):
    """How many cases run at a time depends on the largest scan, as far as headers can be true."""
    paths = [path for part in ("images", "scans") for path in (folder / "raw").glob(f"*/{part}/*")]
    voxels = {path.name: extent(path).voxels for path in paths}
    assert voxels["aa_good.nii.gz"] == voxels["aa_good.mha"] == voxels["aa_good"] == 12 * 11 * 10
    assert voxels["claims_1e12_voxels.nii.gz"] == voxels["mha_claims_1e12_voxels.mha"] == 0
    assert voxels["bomb_of_voxels.nii.gz"] == 999**3
    assert max(voxels.values()) <= MAX_VOXELS


@pytest.mark.parametrize("command", ["prepared", "checked"])
def test_no_memory_is_taken_for_what_a_file_only_claims(command, request):
    call, _ = request.getfixturevalue(command)
    assert call.megabytes < MOST_MEGABYTES


@pytest.mark.parametrize("name", RAW)
def test_prepare_says_what_is_wrong_with_a_raw_case_on_one_line(name, folder, prepared):
    skip_where_impossible(INPUTS[name])
    assert_one_good_line(INPUTS[name], problem_lines(prepared[0]), folder)


@pytest.mark.parametrize("name", RAW)
def test_check_says_it_too(name, folder, checked):
    skip_where_impossible(INPUTS[name])
    assert_one_good_line(INPUTS[name], problem_lines(checked[0]), folder)


def test_there_are_no_further_lines(prepared):
    assert len(problem_lines(prepared[0])) == len(broken_inputs.raw_inputs())


def test_good_cases_are_prepared(prepared):
    found = read_prepared(prepared[1])
    assert {(case.dataset, case.name) for case in found.cases} == GOOD_CASES
    assert all(found.image(case).shape == case.shape for case in found.cases)
    assert f"{len(GOOD_CASES)} cases prepared" in prepared[0].out


def test_nothing_half_written_stays_behind(prepared):
    _, out = prepared
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]
    assert {path.name for path in out.iterdir() if path.is_dir()} == set(broken_inputs.DATASETS)
    for dataset in broken_inputs.DATASETS:
        assert {path.name for path in (out / dataset).iterdir()} == set(broken_inputs.GOOD)


def test_the_report_of_check_lists_the_problems(checked):
    call, out = checked
    report = json.loads((out / "check.json").read_text(encoding="utf-8"))
    lines = {f"{each['path']}: {each['problem']}; {each['remedy']}" for each in report["problems"]}
    assert lines == set(problem_lines(call))
    assert (out / "check.html").stat().st_size


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_raw_case_is_one_line_too(name, folder):
    broken = INPUTS[name]
    call = broken_inputs.call(broken.command, folder)
    assert call.status == 1, call
    assert "Traceback" not in call.err
    assert len(call.lines) == 1, call.lines
    assert_one_good_line(broken, call.lines, folder)
    assert call.err.endswith("\n1 problem\n")
    assert not (folder / "canary").exists()
    left_behind = [path for path in folder.rglob(".partial-*")]
    assert not left_behind


def test_code_in_raw_data_is_not_run(prepared, checked, folder):
    assert not (folder / "canary").exists()


def test_a_folder_elsewhere_is_not_looked_into(folder, prepared):
    """What lies outside of the folders that the user named is as it was."""
    assert sorted(path.name for path in folder.parent.iterdir()) == ["bad"]


def test_a_case_that_is_mended_is_prepared_by_the_next_run(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    files = [broken_inputs.write_good_case(raw, "scans", name) for name in ("aa_good", "mended")]
    broken_inputs.write_card(raw / "scans.md")
    INPUTS["truncated_label"].make(files[1])
    cards = [read_card(raw / "scans.md")]
    first = prepare(cards, raw, out, (2.0, 1.0, 1.0), jobs=1)
    broken_inputs.write_good_case(raw, "scans", "mended")
    second = prepare(cards, raw, out, (2.0, 1.0, 1.0), jobs=1)
    assert (first.done, first.skipped, len(first.problems)) == (1, 0, 1)
    assert (second.done, second.skipped, second.problems) == (1, 1, [])


def test_a_file_that_may_not_be_read_is_one_line_to_root_as_well(tmp_path, monkeypatch):
    """No file is closed to root, so that opening one is made to fail as it fails for everybody else."""
    raw = tmp_path / "raw"
    for name in ("aa_good", "closed"):
        broken_inputs.write_good_case(raw, "scans", name)
    broken_inputs.write_card(raw / "scans.md")
    opened = Path.open

    def open_what_is_not_closed(path, *arguments, **options):
        if path.name == "closed.nii.gz":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_what_is_not_closed)
    result = prepare([read_card(raw / "scans.md")], raw, tmp_path / "out", (2.0, 1.0, 1.0), jobs=1)
    (line,) = map(str, result.problems)
    assert line.startswith(str(raw / "scans" / "images" / "closed.nii.gz") + ": may not be read, expected")
    assert line.endswith("; give yourself the permission")
    assert result.done == 1


def test_the_page_has_a_row_for_each_input():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    shown = {row.split("`")[1]: row for row in rows}
    assert list(shown) == list(INPUTS)
    for name, broken in INPUTS.items():
        assert f"| {broken.what} |" in shown[name]
    assert len(rows) == len(INPUTS)


def problem_lines(call):
    """The lines before the count that are about files: progress and notes are not."""
    return [line for line in call.lines if line.startswith("/")]
