"""The command line: exit status, what is printed where, and what is written."""

import io
import json
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import nibabel
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from partialseg import __version__
from partialseg.cli import app, main
from partialseg.cli_options import Hd95
from partialseg.evaluation.metrics import HD95_DEFINITIONS
from partialseg.inference.precision import load_model

CARDS = ("btcv", "msd_liver", "msd_spleen", "msd_pancreas", "kits19")
COMMANDS = [
    [name, *more]
    for name, command in sorted(typer.main.get_command(app).commands.items())
    for more in [[each] for each in sorted(getattr(command, "commands", []))] or [[]]
]


@dataclass(frozen=True)
class Call:
    """How a call of the command ended."""

    status: int
    out: str
    err: str


def call(*arguments) -> Call:
    """Call the command in this process, by the function that the console script calls."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["partialseg", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return Call(ended.value.code or 0, out.getvalue(), err.getvalue())


def assert_problem(ended: Call, *words) -> None:
    """Exit status 1, one line that says all the words, then the count."""
    assert ended.status == 1, ended
    line, count = ended.err.splitlines()[-2:]
    assert count == "1 problem"
    assert all(str(word) in line for word in words), line
    assert "Traceback" not in ended.err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands below write."""
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def raw(folder):
    ended = call("phantom", folder / "raw", "--preset", "tiny", "--seed", 3)
    assert ended.status == 0, ended
    assert [line.split(":")[0] for line in ended.out.splitlines()] == list(CARDS)
    return folder / "raw"


@pytest.fixture(scope="module")
def prepared(folder, raw):
    out = folder / "prepared"
    ended = call("prepare", *CARDS, "--raw", raw, "--out", out, "--spacing", 6, 6, 6, "--jobs", 1)
    assert ended.status == 0, ended
    assert ended.out.splitlines() == [
        f"12 cases prepared, 0 were there already: {out}",
        f"datasets: {', '.join(sorted(CARDS))}",
        "classes: background, liver, spleen, pancreas, left_kidney, right_kidney",
    ]
    return out


@pytest.fixture(scope="module")
def run(folder, prepared):
    ended = call("train", "tiny", "--prepared", prepared, "--out", folder / "run")
    assert ended.status == 0, ended
    assert f"Network: {folder / 'run' / 'model.keras'}" in ended.out
    return folder / "run"


@pytest.fixture(scope="module")
def predictions(folder, raw, run):
    out = folder / "predictions"
    ended = call("predict", run, raw, "--out", out, "--card", "kits19", "--split", "test")
    assert ended.status == 0, ended
    assert ended.out.split() == [str(out / "case_00001.nii.gz")]
    return out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_says_what_goes_in_and_what_comes_out(command):
    ended = CliRunner().invoke(app, [*command, "--help"])
    assert ended.exit_code == 0
    assert "In: " in ended.output
    assert "Out: " in ended.output


def test_the_page_on_the_parts_lists_every_command():
    page = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `partialseg ([a-z -]+)` \|", page, flags=re.MULTILINE)
    assert sorted(listed) == sorted(" ".join(command) for command in COMMANDS)


def test_help_names_the_promised_commands_and_the_exit_status():
    promised = {
        "demo",
        "phantom",
        "check",
        "prepare",
        "train",
        "predict",
        "evaluate",
        "compare",
        "table",
        "export",
        "study",
        "report",
    }
    assert {name for name, *_ in COMMANDS} >= promised
    ended = CliRunner().invoke(app, ["--help"])
    assert ended.exit_code == 0
    assert "Exit status: 0 done; 1" in ended.output
    assert call("--version") == Call(0, f"partialseg {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("segment scan.nii.gz", "No such command 'segment'"),
        ("prepare btcv --raw raw", "Missing option '--out'"),
        ("prepare --raw raw --out out", "Missing argument"),
        ("prepare btcv --raw raw --out out --spacing 1e9 1 1", "must be 0.1 to 50 mm"),
        ("prepare btcv --raw raw --out out --spacing 3 nan 1", "received 3 nan 1"),
        ("prepare btcv --raw raw --out out --spacing 3 1.5", "requires 3 arguments"),
        ("prepare btcv --raw raw --out out --organ liver --organ liver", "different organs"),
        ("check btcv --raw raw --jobs 0", "greater than or equal to 1"),
        ("phantom out --preset huge", "'huge' is not one of"),
        ("phantom out --names word", "goes with --from-labels"),
        ("predict run scan.nii.gz --out out --split test", "goes with --card"),
        ("predict run scan.nii.gz --out out --overlap 1", "less than or equal to 0.9"),
        ("evaluate predictions --truth raw --out out", "Missing option '--card'"),
        ("study table2", "'NAME': 'table2' is not one of 'table3', 'table4', 'table5', 'table6', 'table7'"),
        (
            "evaluate predictions --truth raw --card kits19 --out out --hd95 foo",
            "'--hd95': 'foo' is not one of 'directed_max', 'pooled', 'area_weighted'",
        ),
        ("demo --seed 4294967296", "less than or equal to 4294967295"),
        ("inspect prepared --stage 1", "goes with --config"),
        ("inspect prepared --config tiny --seed 1", "goes without --config"),
        ("inspect prepared --config tiny --patch-size 8 8 8", "goes without --config"),
        ("inspect prepared --patch-size 8 8 0", "must be above 0"),
        ("inspect prepared --batches 0", "greater than or equal to 1"),
    ],
)
def test_wrong_call_ends_with_2_before_anything_is_written(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = call(*arguments.split())
    assert ended.status == 2
    assert said in " ".join(ended.err.split())
    assert ended.out == ""
    assert not any(tmp_path.iterdir())


def test_without_a_command_the_help_is_shown():
    ended = call()
    assert ended.status == 2
    assert "prepare" in ended.out + ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "amos", "--raw", "raw"),
        ("prepare", "btcv", "amos", "--raw", "raw", "--out", "out"),
        ("evaluate", "predictions", "--truth", "raw", "--card", "amos", "--out", "out"),
        ("predict", "run", "raw", "--out", "out", "--card", "amos"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_unknown_card_is_a_problem(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_problem(call(*arguments), "amos: there is no such data card", "btcv", "kits19", "msd_liver")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("prepare btcv --raw nowhere --out out --jobs 1", "no case could be prepared"),
        ("train amos --prepared prepared --out out", "amos: there is no such config"),
        ("train tiny --prepared prepared --out out", "there is no manifest"),
        ("predict run scan.nii.gz --out out", "run: there is no such folder, expected a run"),
        ("evaluate predictions --truth raw --card btcv --out out", "holds no case of btcv"),
        ("export run --out out", "run: there is no such folder, expected a run"),
        ("report folder", "holds neither run.json nor study.json"),
        ("inspect prepared", "there is no manifest"),
        ("inspect prepared --config amos", "amos: there is no such config"),
    ],
)
def test_a_folder_that_is_not_what_it_should_be_is_a_problem(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = call(*arguments.split())
    assert ended.status == 1
    *_, line, count = ended.err.splitlines()
    assert said in line
    assert count in ("1 problem", "2 problems")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_phantom_of_the_same_seed_is_the_same(raw, tmp_path):
    name = Path("btcv") / "img" / "img0001.nii.gz"
    assert call("phantom", tmp_path / "again", "--seed", 3).status == 0
    arrays = [np.asarray(nibabel.load(root / name).dataobj) for root in (raw, tmp_path / "again")]
    assert np.array_equal(*arrays)


def test_phantom_dresses_label_maps(tmp_path):
    label = np.zeros((24, 24, 12), np.uint8)
    label[6:18, 6:18, 3:9] = 7
    (tmp_path / "labels").mkdir()
    nibabel.save(nibabel.Nifti1Image(label, np.diag([4.0, 4, 5, 1])), tmp_path / "labels" / "one.nii.gz")
    (tmp_path / "names.yaml").write_text("7: liver\n")
    out = tmp_path / "dressed"
    ended = call("phantom", out, "--from-labels", tmp_path / "labels", "--names", tmp_path / "names.yaml")
    assert ended.status == 0, ended
    (image,) = ended.out.split()
    hu = nibabel.load(image).get_fdata()
    assert hu.shape == label.shape
    assert hu[8:16, 8:16, 4:8].mean() > 20  # HU of liver, in whatever contrast phase


def test_check_writes_the_coverage(raw, folder):
    ended = call("check", "btcv", "kits19", "--raw", raw, "--out", folder / "check", "--jobs", 1)
    assert ended.status == 0, ended
    coverage = json.loads((folder / "check" / "check.json").read_text())["coverage"]
    assert [coverage["liver"][card]["annotated"] for card in ("btcv", "kits19")] == [True, False]
    assert "<html" in (folder / "check" / "check.html").read_text()


def test_check_says_what_is_wrong_with_which_case(raw, tmp_path):
    shutil.copytree(raw / "kits19", tmp_path / "kits19")
    label = tmp_path / "kits19" / "data" / "case_00000" / "segmentation.nii.gz"
    label.unlink()
    ended = call("check", "kits19", "--raw", tmp_path, "--out", tmp_path / "check", "--jobs", 1)
    assert_problem(ended, label)
    assert len(json.loads((tmp_path / "check" / "check.json").read_text())["problems"]) == 1


def test_prepare_again_keeps_what_is_there(raw, prepared):
    before = (prepared / "manifest.json").read_bytes()
    again = call("prepare", *CARDS, "--raw", raw, "--out", prepared, "--spacing", 6, 6, 6, "--jobs", 1)
    assert again.status == 0
    assert again.out.startswith(f"0 cases prepared, 12 were there already: {prepared}\n")
    assert (prepared / "manifest.json").read_bytes() == before


def test_prepare_goes_on_after_a_broken_case(raw, tmp_path):
    shutil.copytree(raw / "btcv", tmp_path / "raw" / "btcv")
    images = tmp_path / "raw" / "btcv" / "img"
    whole = (images / "img0002.nii.gz").read_bytes()
    (images / "img0002.nii.gz").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "prepared"
    ended = call(
        "prepare", "btcv", "--raw", tmp_path / "raw", "--out", out, "--spacing", 6, 6, 6, "--jobs", 1
    )
    assert_problem(ended, images / "img0002.nii.gz")
    assert ended.out.startswith("2 cases prepared, 0 were there already")
    manifest = json.loads((out / "manifest.json").read_text())
    assert [case["name"] for case in manifest["cases"]] == ["img0001", "img0003"]
    assert sorted(path.name for path in (out / "btcv").iterdir()) == ["img0001", "img0003"]


def test_prepare_counts_each_broken_case(raw, tmp_path):
    shutil.copytree(raw / "btcv", tmp_path / "raw" / "btcv")
    for name in ("img0001", "img0003"):
        (tmp_path / "raw" / "btcv" / "img" / f"{name}.nii.gz").write_bytes(b"no scan")
    ended = call(
        "prepare", "btcv", "--raw", tmp_path / "raw", "--out", tmp_path / "out", "--jobs", 1,
        "--spacing", 6, 6, 6,
    )  # fmt: skip
    assert ended.status == 1
    *_, first, second, count = ended.err.splitlines()
    assert count == "2 problems"
    first, second = sorted((first, second))
    assert "img0001" in first
    assert "img0003" in second


def test_inspect_shows_the_patches_of_a_stage(prepared, tmp_path):
    ended = call("inspect", prepared, "--config", "tiny", "--stage", 1, "--pictures", 1, "--out", tmp_path)
    assert ended.status == 0, ended
    assert ended.out.endswith(f"Patches: {tmp_path / 'inspect.html'}\n")
    report = json.loads((tmp_path / "inspect.json").read_text())
    assert report["training"] == {"config": "tiny", "stage": "fully annotated"}
    assert [(entry["name"], entry["patches"]) for entry in report["datasets"]] == [("btcv", 4)]
    assert len(report["pictures"]) == 1
    assert (tmp_path / "inspect.html").read_text().count("data:image/png") == 1


def test_inspect_without_a_config_draws_from_all_datasets(prepared, tmp_path):
    ended = call(
        "inspect", prepared, "--patch-size", 16, 32, 32, "--batches", 10, "--pictures", 0, "--out", tmp_path,
        "--seed", 3, "--no-augment",
    )  # fmt: skip
    assert ended.status == 0, ended
    report = json.loads((tmp_path / "inspect.json").read_text())
    assert [entry["name"] for entry in report["datasets"]] == sorted(CARDS)
    assert (report["batches"], report["patches"], report["pictures"]) == (10, 20, [])
    settings = report["settings"]
    assert (settings["patch_size"], settings["seed"], settings["augmentation"]) == ([16, 32, 32], 3, None)


def test_inspect_names_the_stages_where_there_is_no_such_one(prepared, tmp_path):
    ended = call("inspect", prepared, "--config", "tiny", "--stage", "third", "--out", tmp_path / "out")
    assert ended.status == 2
    assert "1 (fully annotated), 2 (all datasets)" in " ".join(ended.err.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_inspect_says_which_case_cannot_be_read(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "prepared")
    label = next((tmp_path / "prepared" / "btcv").rglob("label.npy"))
    label.unlink()
    ended = call("inspect", tmp_path / "prepared", "--out", tmp_path / "out")
    assert_problem(ended, label)
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_not_trained_again(run, prepared):
    before = (run / "model.keras").read_bytes()
    ended = call("train", "tiny", "--prepared", prepared, "--out", run)
    assert ended.status == 0
    assert (run / "model.keras").read_bytes() == before


def test_a_run_of_another_config_is_not_overwritten(run, prepared):
    before = (run / "config.yaml").read_bytes()
    assert_problem(call("train", "demo", "--prepared", prepared, "--out", run), run, "another config")
    assert (run / "config.yaml").read_bytes() == before


def test_predict_takes_a_file_and_keeps_its_grid(run, raw, tmp_path):
    scan = raw / "btcv" / "img" / "img0003.nii.gz"
    ended = call("predict", run, scan, "--out", tmp_path, "--overlap", 0)
    assert ended.status == 0, ended
    assert ended.out.split() == [str(tmp_path / "img0003.nii.gz")]
    image, label = nibabel.load(scan), nibabel.load(tmp_path / "img0003.nii.gz")
    assert label.shape == image.shape
    assert np.allclose(label.affine, image.affine, atol=1e-4)
    said = json.loads((tmp_path / "img0003.json").read_text())
    voxel_ml = np.prod(image.header.get_zooms()[:3]) / 1000
    for value, organ in enumerate(said["classes"][1:], 1):
        voxels = np.count_nonzero(np.asarray(label.dataobj) == value)
        assert said["volumes_ml"][organ] == pytest.approx(voxels * voxel_ml, rel=1e-3, abs=1e-3)


def test_predict_goes_on_after_a_broken_scan(run, raw, tmp_path):
    scan = raw / "btcv" / "img" / "img0003.nii.gz"
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(scan.read_bytes()[:5000])
    out = tmp_path / "out"
    ended = call("predict", run, broken, scan, "--out", out, "--overlap", 0)
    assert_problem(ended, broken)
    assert sorted(path.name for path in out.iterdir()) == ["img0003.json", "img0003.nii.gz", "summary.csv"]


def test_predict_called_again_keeps_what_is_there_and_organs_limit_what_is_written(run, raw, tmp_path):
    scan = raw / "btcv" / "img" / "img0003.nii.gz"
    arguments = ("predict", run, scan, "--out", tmp_path, "--overlap", 0, "--organs", "spleen, liver")
    first = call(*arguments)
    assert first.status == 0, first
    notes = [line for line in first.err.splitlines() if "note:" in line]
    assert notes, first.err
    assert all(line.startswith("note: img0003: ") for line in notes)
    assert json.loads((tmp_path / "img0003.json").read_text())["organs"] == ["liver", "spleen"]
    assert set(np.unique(nibabel.load(tmp_path / "img0003.nii.gz").dataobj)) <= {0, 1, 2}
    assert (
        call(*arguments).out
        == f"0 predicted, 1 there already, 1 of them with warnings: {tmp_path}/summary.csv\n"
    )
    assert call(*arguments, "--again").out == first.out
    wrong = call(*arguments[:-1], "liver,lung")
    assert wrong.status == 2
    assert "the network has no 'lung', expected some of liver, spleen" in " ".join(wrong.err.split())


def test_predict_computes_in_the_precision_that_is_asked_for(run, raw, tmp_path):
    arguments = ("predict", run, raw / "btcv" / "img" / "img0003.nii.gz", "--out", tmp_path, "--overlap", 0)
    with mock.patch("partialseg.inference.labelling.load_model", wraps=load_model) as loading:
        for more, precision in (((), None), (("--precision", "bfloat16"), "bfloat16")):
            ended = call(*arguments, *more)
            assert ended.out == f"{tmp_path / 'img0003.nii.gz'}\n", ended  # made again in the other precision
            assert loading.call_args.args[1] == precision
            said = json.loads((tmp_path / "img0003.json").read_text())["settings"]["precision"]
            assert said == (precision or "float32")


def test_post_processing_is_chosen_and_applied(run, raw, prepared, tmp_path):
    scan = raw / "btcv" / "img" / "img0003.nii.gz"
    predict = ("predict", run, scan, "--out", tmp_path, "--overlap", 0, "--postprocess")
    assert_problem(call(*predict), "postprocessing.yaml", "there is no post-processing")
    assert_problem(call("postprocess", run, "--prepared", prepared), run, "--split test")
    chosen = call("postprocess", run, "--prepared", prepared, "--split", "test")
    assert chosen.status == 0, chosen
    assert f"Post-processing: {run / 'postprocessing.yaml'}" in chosen.out
    assert call(*predict).status == 0
    done = json.loads((tmp_path / "img0003.json").read_text())["postprocessing"]
    assert done.keys() == {"liver", "spleen", "pancreas", "left_kidney", "right_kidney"}
    (run / "postprocessing.yaml").unlink()


def evaluate_kits19(predictions, raw, out, *options) -> None:
    """Score the predictions, in this process."""
    ended = call(
        "evaluate", predictions, "--truth", raw, "--card", "kits19", "--out", out, "--jobs", 1, *options
    )
    assert ended.status == 0, ended


def test_evaluate_scores_the_annotated_organs(predictions, raw, tmp_path):
    ended = call(
        "evaluate", predictions, "--truth", raw, "--card", "kits19", "--out", tmp_path, "--split", "test"
    )
    assert ended.status == 0, ended
    assert "kits19" in ended.out
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert [(row["case"], row["organ"]) for row in scores] == [
        ("case_00001", "left_kidney"),
        ("case_00001", "right_kidney"),
    ]
    assert {path.name for path in tmp_path.iterdir()} >= {"scores.csv", "table.csv", "table.json", "table.md"}


def test_evaluate_without_predictions_is_a_problem(raw, tmp_path):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    ended = call("evaluate", tmp_path / "empty", "--truth", raw, "--card", "kits19", "--out", out)
    assert_problem(ended, tmp_path / "empty", "holds no label map")
    assert not out.exists()


def test_evaluate_asks_for_a_prediction_of_every_case_of_the_split(predictions, raw, tmp_path):
    ended = call(
        "evaluate", predictions, "--truth", raw, "--card", "kits19", "--out", tmp_path, "--split", "train"
    )
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == "2 problems"
    assert "case_00000" in ended.err
    assert "no case was scored" in ended.err
    assert not any(tmp_path.iterdir())
    assert "case_00002" in ended.err


def test_evaluate_takes_definition_unit_and_tolerances(predictions, raw, tmp_path):
    common = ("evaluate", predictions, "--truth", raw, "--card", "kits19", "--out", tmp_path, "--jobs", 1)
    tolerances = ("--nsd-tolerance", "3", "--nsd-tolerance", "left_kidney=1")
    ended = call(*common, "--hd95", "pooled", "--unit", "voxels", *tolerances)
    assert ended.status == 0, ended
    assert "HD95 voxels" in ended.out
    rows = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert [(row["nsd_tolerance_mm"], row["hd95_definition"]) for row in rows] == [
        (1, "pooled"),
        (3, "pooled"),
    ]
    for text, said in (
        ("liver=x", "received 'liver=x'"),
        ("livre=2", "livre is no organ"),
        ("-1", "from 0 on"),
    ):
        ended = call(*common, f"--nsd-tolerance={text}")
        assert ended.status == 2
        assert said in " ".join(ended.err.split())


def test_the_definitions_of_hd95_are_those_of_the_evaluation():
    assert [each.value for each in Hd95] == list(HD95_DEFINITIONS)


def test_compare_says_what_differs_between_two_runs(predictions, raw, tmp_path):
    for name in ("plain", "marginal"):
        evaluate_kits19(predictions, raw, tmp_path / name / "kits19", "--hd95", "pooled")
    ended = call("compare", tmp_path / "plain", tmp_path / "marginal", "--out", tmp_path / "out")
    assert ended.status == 0, ended
    assert "Dice: marginal less plain" in ended.out
    assert "95th percentile of the distances of both directions together" in " ".join(ended.out.split())
    assert ended.out.splitlines()[-1] == f"Comparison: {tmp_path / 'out' / 'comparison.md'}"
    assert (tmp_path / "out" / "comparison.png").is_file()
    same = call(
        "compare", tmp_path / "plain", tmp_path / "marginal", "--out", tmp_path / "out", "--names", "x", "x"
    )
    assert (same.status, "two different names" in same.err) == (2, True)


def test_table_joins_scores(predictions, raw, tmp_path):
    evaluate_kits19(predictions, raw, tmp_path / "scores")
    ended = call("table", tmp_path / "scores", "--out", tmp_path / "table")
    assert ended.status == 0, ended
    assert ended.out.splitlines()[-1] == f"Table: {tmp_path / 'table' / 'table.md'}"
    assert (tmp_path / "table/table.md").read_text() == (tmp_path / "scores/table.md").read_text()
    again = call("table", tmp_path / "scores", tmp_path / "scores/scores.csv", "--out", tmp_path / "table")
    assert_problem(again, "is scored in another file as well")


def test_compare_without_scores_is_a_problem(tmp_path):
    ended = call("compare", tmp_path, tmp_path, "--out", tmp_path / "out")
    assert_problem(ended, tmp_path, "holds no scores.csv")
    assert not (tmp_path / "out").exists()


def test_export_writes_a_saved_model(run, tmp_path):
    ended = call("export", run, "--out", tmp_path / "saved")
    assert ended.status == 0, ended
    assert ended.out.splitlines()[-1] == f"SavedModel: {tmp_path / 'saved'}"
    assert (tmp_path / "saved" / "saved_model.pb").is_file()


def test_report_of_a_run_is_one_file(run):
    ended = call("report", run)
    assert ended.status == 0, ended
    assert ended.out.strip() == f"Report: {run / 'report.html'}"
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")


def in_new_process(*arguments):
    return subprocess.run([*map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)


def test_the_module_is_a_program(tmp_path):
    ended = in_new_process(sys.executable, "-m", "partialseg.cli", "check", "amos", "--raw", tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "1 problem"
    assert "there is no such data card" in ended.stderr.splitlines()[-2]


def test_the_console_script_is_installed_and_says_help_without_tensorflow():
    script = Path(sys.executable).with_name("partialseg")
    ended = in_new_process(script, "--help")
    assert ended.returncode == 0
    assert "Commands:" in ended.stdout
    loaded = in_new_process(
        sys.executable, "-c", "import partialseg.cli, sys; print('tensorflow' in sys.modules)"
    )
    assert loaded.stdout.strip() == "False"


def test_an_output_folder_that_is_a_file_is_one_line(tmp_path, prepared):
    (tmp_path / "file").touch()
    ended = call("train", "tiny", "--prepared", prepared, "--out", tmp_path / "file")
    assert_problem(ended, tmp_path / "file", "is a file, expected a folder")


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="only Linux has a folder that takes no file at all"
)
@pytest.mark.parametrize("command", ["phantom", "plan PREPARED --out", "export RUN --out"])
def test_an_output_that_cannot_be_made_says_where_and_what_to_do(command, run, prepared):
    command = [{"RUN": run, "PREPARED": prepared}.get(word, word) for word in command.split()]
    assert_problem(call(*command, "/proc/out"), "/proc/out: cannot be made in /proc", "; give a place")


def test_a_patch_that_cannot_be_halved_is_a_problem(prepared, tmp_path):
    ended = call("plan", prepared, "--patch-size", 7, 7, 7, "--out", tmp_path / "plan.yaml")
    assert_problem(ended, "a patch of 7×7×7 voxels cannot be halved", "give a larger --patch-size")


def test_a_card_set_stands_for_its_cards_and_gives_the_class_list(raw, tmp_path):
    card_set = tmp_path / "two.yaml"
    card_set.write_text("name: two\ncards: [msd_spleen, btcv]\norgans: [spleen, liver]\n")
    ended = call("prepare", card_set, "--raw", raw, "--out", tmp_path / "out", "--spacing", 8, 8, 8)
    assert ended.status == 0, ended.err
    assert "datasets: btcv, msd_spleen\nclasses: background, spleen, liver\n" in ended.out


@pytest.mark.parametrize("out", [("--out", ""), ("--out=",)])
def test_an_empty_argument_is_a_wrong_call_and_not_the_current_folder(out, raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = call("prepare", "kits19", "--raw", raw, *out)
    assert (ended.status, "an argument is empty" in ended.err) == (2, True)
    assert not any(tmp_path.iterdir())
