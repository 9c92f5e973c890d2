"""The planner: what fits, what is the paper's, what it says and writes."""

import importlib.util
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from partialseg.cli import app
from partialseg.data.prepared import read_prepared
from partialseg.errors import DataError
from partialseg.models import build_network
from partialseg.training import read_config
from partialseg.training.fingerprint import fingerprint
from partialseg.training.memory import estimate
from partialseg.training.network_config import NETWORK_CONFIGS, UNetConfig, network_of_kind
from partialseg.training.network_sizes import network_size
from partialseg.training.planner import MOST_OF_THE_DATA, check_may_write_plan, plan, spacing_line

SMALL_UNET = UNetConfig(base_channels=8, strides=((1, 1, 1), (1, 2, 2), (2, 2, 2)), deep_supervision=True)
OTHER_KINDS = [kind for kind in NETWORK_CONFIGS if kind != "unet"]


@pytest.fixture
def prepared(tiny_prepared):
    return read_prepared(tiny_prepared)


def enlarged(prepared, factor):
    """The manifest as if each case were so much larger along each axis."""
    cases = (replace(c, shape=tuple(factor * size for size in c.shape)) for c in prepared.cases)
    return replace(prepared, cases=tuple(cases))


def test_fingerprint_counts_the_training_cases_and_knows_their_raw_voxels(prepared):
    found = fingerprint(prepared)
    train = prepared.select(split="train")
    assert sum(dataset.cases for dataset in found.datasets) == len(train)
    assert found.voxels == sum(math.prod(case.shape) for case in train)
    btcv = next(dataset for dataset in found.datasets if dataset.name == "btcv")
    assert btcv.organs == 5
    assert all(
        low <= middle <= high for low, middle, high in zip(btcv.low, btcv.median, btcv.high, strict=True)
    )
    assert btcv.source_mm[0] > btcv.source_mm[1] == btcv.source_mm[2]  # thick slices, z first


def test_fingerprint_of_data_that_an_earlier_version_prepared_reads_headers_where_they_are(prepared):
    earlier = tuple(replace(case, source_mm=None) for case in prepared.cases)
    found = fingerprint(prepared)
    of_headers = fingerprint(replace(prepared, cases=earlier))
    assert of_headers.target_mm == pytest.approx(found.target_mm, rel=1e-3)
    assert of_headers.known == found.known == len(prepared.select(split="train"))
    gone = tuple(replace(case, image_source="/nowhere/scan.nii.gz") for case in earlier)
    nothing = fingerprint(replace(prepared, cases=gone))
    assert (nothing.source_mm, nothing.target_mm, nothing.known) == (None, None, 0)
    assert "not known" in spacing_line(nothing)


def test_a_line_says_whether_the_data_have_the_voxels_that_nnunet_would_choose(prepared):
    found = fingerprint(prepared)
    assert spacing_line(found).endswith("the data have 6 6 6: prepare again to train at it")
    assert spacing_line(replace(found, spacing_mm=found.target_mm)).endswith("and the data have it")


def test_several_devices_share_a_batch_and_each_holds_its_part(prepared):
    large = enlarged(prepared, 5)
    one, four = (plan(large, memory_gb=6, devices=n) for n in (1, 4))
    assert four.config.batch_size % 4 == 0
    assert four.memory.gigabytes <= 6
    assert math.prod(four.config.patch_size) > math.prod(one.config.patch_size)
    assert "on each of 4 devices" in four.text()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"preset": "paper"},
            "paper: found batch_size 2, which 4 devices cannot share evenly; give --batch-size 4",
        ),
        ({"batch_size": 6}, "found batch_size 6, which 4 devices cannot share evenly; give --batch-size 8"),
    ],
)
def test_a_batch_that_the_devices_cannot_share_is_refused(prepared, options, problem):
    with pytest.raises(DataError, match=problem):
        plan(prepared, **options, devices=4)


def test_the_tables_beside_nnunet_have_the_plans_that_are_made_now():
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location("planning", root / "benchmarks" / "planning.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    tables = [(root / name).read_text() for name in ("docs/planning.md", "benchmarks/results/planning.md")]
    for name, shape, spacing in benchmark.CASES:
        own = " | ".join(benchmark.own_plans(shape, spacing))
        for table in tables:
            (row,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
            assert row.endswith(f"| {own} |")


def test_the_tables_of_measured_memory_have_the_estimates_that_are_made_now():
    root = Path(__file__).resolve().parents[2]
    tables = [
        [
            line
            for line in (root / name).read_text().splitlines()
            if re.match(r"\| \w+ \| \d+×\d+×\d+ \| \d \|", line)
        ]
        for name in ("docs/planning.md", "benchmarks/results/training_memory.md")
    ]
    assert tables[0] == tables[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[0]]
    assert {row[0] for row in rows} == {"plain", "residual", *OTHER_KINDS}
    for name, patch, stages, measured, estimated, _ in rows:
        strides = ((1, 1, 1), *[(2, 2, 2)] * (int(stages) - 1))
        if name in OTHER_KINDS:
            network = network_of_kind(name, UNetConfig(strides=strides, deep_supervision=True))
        else:
            network = UNetConfig(strides=strides, encoder=name)
        made = estimate(network, tuple(map(int, patch.split("×"))), 2, 6, copies=2).gigabytes
        assert f"{made:.2f}" == estimated
        assert float(measured) == pytest.approx(made, rel=0.2)


@pytest.mark.parametrize("encoder", ["plain", "residual"])
@pytest.mark.parametrize("memory_gb", [2, 6, 24])
def test_a_plan_fits_and_more_memory_gives_more(prepared, encoder, memory_gb):
    large = enlarged(prepared, 5)
    made = plan(large, "default", memory_gb, encoder)
    assert made.memory.gigabytes <= memory_gb
    assert made.config.network.encoder == encoder
    assert made.config.batch_size >= 2
    twice = plan(large, "default", 2 * memory_gb, encoder)
    per_batch = [math.prod(p.config.patch_size) * p.config.batch_size for p in (made, twice)]
    assert per_batch[1] >= 1.2 * per_batch[0]
    median = made.fingerprint.median
    assert all(size < 2 * middle for size, middle in zip(made.config.patch_size, median, strict=True))


def test_a_batch_is_a_small_part_of_the_data_but_two_patches_at_least(prepared):
    assert plan(prepared, memory_gb=64).config.batch_size == 2
    large = plan(enlarged(prepared, 2), memory_gb=200, patch_size=(32, 32, 32)).config
    voxels = fingerprint(enlarged(prepared, 2)).voxels
    assert large.batch_size == round(MOST_OF_THE_DATA * voxels / 32**3)


def test_the_paper_has_its_own_patch_and_network_for_any_data(prepared):
    made = plan(prepared, "paper", memory_gb=8)
    paper = read_config("paper")
    assert made.config == paper
    assert any("more than the 8 GB" in note for note in made.notes)
    with pytest.raises(DataError, match="paper: found encoder residual, expected plain"):
        plan(prepared, "paper", encoder="residual")


def test_memory_in_which_no_patch_fits_is_said(prepared):
    with pytest.raises(DataError, match=r"0.61 GB do not hold a step with two patches"):
        plan(enlarged(prepared, 4), memory_gb=0.61)


def test_half_precision_holds_a_larger_patch(prepared):
    sizes = [
        math.prod(plan(enlarged(prepared, 5), memory_gb=8, precision=precision).config.patch_size)
        for precision in ("float32", "bfloat16")
    ]
    assert sizes[1] > 1.5 * sizes[0]


@pytest.mark.parametrize(
    "network",
    [
        UNetConfig(),
        UNetConfig(encoder="residual"),
        UNetConfig(base_channels=8, strides=((1, 1, 1), (2, 2, 2))),
        *(network_of_kind(kind, SMALL_UNET) for kind in OTHER_KINDS),
    ],
)
def test_weights_are_counted_to_a_few_percent(network):
    copies = estimate(network, (32, 32, 32), 1, 6, copies=0).weights / 4
    model = build_network(num_classes=6, **network.model_dump())
    assert copies == pytest.approx(model.count_params(), rel=0.03)


@pytest.mark.parametrize("kind", ["unet", *OTHER_KINDS])
def test_logits_of_all_outputs_are_counted(kind):
    network = SMALL_UNET if kind == "unet" else network_of_kind(kind, SMALL_UNET)
    model = build_network(num_classes=6, **network.model_dump())
    outputs = model(np.zeros((1, 8, 16, 16, 1), "float32"))
    assert len(outputs) > 1
    assert network_size(network, (8, 16, 16), 6).logits == sum(math.prod(o.shape) for o in outputs)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_plan_for_another_network_fits_and_keeps_its_kind(prepared, kind):
    large = enlarged(prepared, 5)
    made, twice = (plan(large, kind, memory_gb) for memory_gb in (8, 16))
    preset = read_config(kind)
    assert made.memory.gigabytes <= 8
    assert math.prod(twice.config.patch_size) > 1.2 * math.prod(made.config.patch_size)
    planned = {"strides", "kernels"}
    assert made.config.network.model_dump(exclude=planned) == preset.network.model_dump(exclude=planned)
    assert made.config.losses == preset.losses
    of_unet = plan(large, "default", 8).config.patch_size
    assert math.prod(made.config.patch_size) < math.prod(of_unet)


@pytest.mark.parametrize(
    ("kind", "least", "most"), [("conditioned", 3, 4), ("dynamic_head", 1, 2), ("pipo_fan", 1, 1)]
)
def test_maps_of_the_conditioned_decoder_grow_with_the_organs(kind, least, most):
    network = network_of_kind(kind, UNetConfig())
    few, many = (network_size(network, (64, 64, 64), organs + 1).maps for organs in (4, 16))
    assert least <= many / few <= most


def test_an_encoder_is_refused_where_there_is_none_to_choose(prepared):
    with pytest.raises(
        DataError, match="pipo_fan: found encoder residual, and a network of kind pipo_fan has no"
    ):
        plan(prepared, "pipo_fan", encoder="residual")


def planned_by_command(prepared, out, *options):
    """What `partialseg plan` prints, for 2 GB."""
    result = CliRunner().invoke(app, ["plan", str(prepared), "--out", str(out), "--memory", "2", *options])
    assert result.exit_code == 0, result.output
    return result


def test_command_plans_for_another_network(tiny_prepared, tmp_path):
    out = tmp_path / "plan.yaml"
    result = planned_by_command(tiny_prepared, out, "--preset", "dynamic_head")
    assert "network dynamic_head, float32: about" in result.stdout
    made = read_config(out)
    assert (made.network.kind, made.losses.preset) == ("dynamic_head", "masked_sigmoid")
    assert made == plan(read_prepared(tiny_prepared), "dynamic_head", memory_gb=2).config


def test_a_plan_replaces_plans_alone(prepared, tiny_prepared, tmp_path):
    out, text = tmp_path / "plan.yaml", plan(prepared, memory_gb=2).text()
    out.write_text(text.replace("name: default", "name: mine"))
    check_may_write_plan(out)
    for other, found in (
        ("#!/bin/sh\nrm -r x\n", "no config that `partialseg plan` wrote"),
        ("name: mine\n", "no config that `partialseg plan` wrote"),
        (text + "batch: 2\n", "no config that can be read"),
    ):
        out.write_text(other)
        result = CliRunner().invoke(app, ["plan", str(tiny_prepared), "--out", str(out)])
        assert isinstance(result.exception, DataError)
        assert f"plan.yaml: is there already and is {found}" in str(result.exception)
        assert result.exception.remedy == "give another file with --out, or move it away"
        assert out.read_text() == other
    with pytest.raises(DataError, match="is no file"):
        check_may_write_plan(tmp_path)


def test_command_writes_a_config_that_trains_and_says_how_it_came_about(tiny_prepared, tmp_path):
    out = tmp_path / "plan.yaml"
    result = planned_by_command(tiny_prepared, out, "--encoder", "residual")
    assert "msd_liver" in result.stdout
    assert "residual encoder" in result.stdout
    assert "nnU-Net's rule gives --spacing" in result.stdout
    text = out.read_text()
    assert text.startswith("# 5 datasets, 7 training cases")
    assert yaml.safe_load(text)["network"]["encoder"] == "residual"
    assert read_config(out) == plan(read_prepared(tiny_prepared), memory_gb=2, encoder="residual").config
