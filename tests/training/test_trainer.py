import csv
import inspect
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
import yaml

from partialseg.cli import main
from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.cards import read_card
from partialseg.data.organ_sizes import organ_size_prior
from partialseg.data.prepare import prepare
from partialseg.data.prepared import read_prepared
from partialseg.data.sampling import PatchPlan
from partialseg.errors import DataError
from partialseg.locking import locked
from partialseg.losses import PRESETS
from partialseg.models import NETWORKS
from partialseg.training import beginning, callbacks, read_config, read_run, train, trainer
from partialseg.training.checkpoints import Checkpoints
from partialseg.training.config import StageConfig
from partialseg.training.loss_config import LOSS_CONFIGS, MaskedSigmoidConfig, PriorAwareConfig
from partialseg.training.network_config import NETWORK_CONFIGS
from partialseg.training.not_finite import LossIsNotFiniteError
from partialseg.training.stage_patches import stage_patches


@pytest.fixture(scope="module")
def config():
    return read_config("tiny")


@pytest.fixture(scope="module")
def run(config, tiny_prepared, tmp_path_factory):
    return train(config, tiny_prepared, tmp_path_factory.mktemp("run") / "whole")


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def shorter(config):
    """The same config with one epoch for each stage."""
    return config.model_copy(
        update={"stages": tuple(stage.model_copy(update={"epochs": 1}) for stage in config.stages)}
    )


def stop_after_save(monkeypatch, number):
    """Let training end as by Ctrl-C once so many checkpoints are written; the first is written as it begins."""
    saved, calls = Checkpoints.save, []

    def save_then_stop(*args):
        saved(*args)
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_then_stop)


def weights(run):
    return run.load_model().get_weights()


def test_run_folder_holds_config_network_and_logs(run, config, tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    again = read_run(run.folder)
    assert again == run
    assert again.config == config
    assert again.classes == prepared.classes
    log = rows(run.folder / "log.csv")
    assert [(r["stage"], r["epoch"]) for r in log] == [
        (s.name, str(e + 1)) for s in config.stages for e in range(s.epochs)
    ]
    assert all(float(r["loss"]) > 0 for r in log)
    assert all(0 <= float(r["data_wait"]) <= 1 for r in log)
    terms = rows(run.folder / "terms.csv")
    assert {r["dataset"] for r in terms} == set(prepared.datasets)
    assert {r["term"] for r in terms} == {"mCE", "mDC", "eCE", "eDC"}
    whole = [r for r in terms if r["organ"] == "all"]
    assert len(whole) == len(log) * len(prepared.datasets) * 4
    assert {r["organ"] for r in terms} <= {"all", *prepared.classes}
    for name, dataset in prepared.datasets.items():
        of_dataset = {r["organ"] for r in terms if r["dataset"] == name and r["term"] == "mDC"}
        # An organ without a voxel in the patches has no Dice.
        assert {"all", "background"} < of_dataset <= {"all", "background", *dataset.annotated}
    assert not (run.folder / "checkpoint").exists()


def test_fully_annotated_dataset_has_no_exclusion_loss(run):
    terms = [r for r in rows(run.folder / "terms.csv") if r["organ"] == "all"]
    assert {float(r["value"]) for r in terms if r["dataset"] == "btcv" and r["term"] in ("eCE", "eDC")} == {
        0.0
    }
    assert all(float(r["value"]) > 0 for r in terms if r["dataset"] == "msd_liver" and r["term"] == "eDC")


def test_configs_have_the_presets_and_their_options_with_the_same_defaults():
    assert LOSS_CONFIGS.keys() == PRESETS.keys()
    own_to_keras = {"from_logits", "reduction", "name", "dtype"}
    for name, section in LOSS_CONFIGS.items():
        parameters = inspect.signature(PRESETS[name]).parameters
        defaults = {
            option: None if parameter.default is parameter.empty else parameter.default
            for option, parameter in parameters.items()
            if option not in own_to_keras
        }
        assert section().model_dump(exclude={"preset"}) == defaults, name


#: Another option of each preset than its default, and the terms in its log.
OPTIONS_AND_TERMS = {
    "partial_supervision": ({"exclusion": 1.0}, {"mCE", "mDC", "eCE", "eDC"}),
    "target_adaptive": ({}, {"TAL"}),
    "masked_sigmoid": ({"batch": True}, {"BCE", "DC"}),
    "prior_aware": ({"dual_rate": 0.1}, {"CE", "prior"}),
    "leaf_dice": ({"cross_entropy": 0.5}, {"leafDC", "mCE"}),
    "label_set_dice": ({"exponent": 1}, {"setDC", "mCE"}),
    "naive_background": ({"class_reduction": "sum"}, {"CE", "DC"}),
    "ignore_background": ({"include_background": False}, {"CE", "DC"}),
    "published_code_with_summed_logits": ({"exclusion": 1.0}, {"CE", "DC", "eDC"}),
}
IN_SHORT_RUNS = ("masked_sigmoid", "prior_aware", "leaf_dice")


@pytest.mark.parametrize(
    "name",
    [name if name in IN_SHORT_RUNS else pytest.param(name, marks=pytest.mark.slow) for name in LOSS_CONFIGS],
)
def test_train_takes_the_preset_that_the_config_names(name, config, tiny_prepared, tmp_path, monkeypatch):
    options, terms = OPTIONS_AND_TERMS[name]
    losses = {"preset": name, **options}
    content = {**shorter(config).model_dump(mode="json"), "losses": losses}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    arguments = ["train", tmp_path / "config.yaml", "--prepared", tiny_prepared, "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["partialseg", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    run = read_run(tmp_path / "run")
    assert run.config.losses.model_dump().items() >= losses.items()
    assert {row["term"] for row in rows(run.folder / "terms.csv")} == terms
    assert run.model_path.is_file()


@pytest.mark.parametrize("kind", [kind for kind in NETWORK_CONFIGS if kind != "unet"])
def test_a_network_of_another_kind_trains_and_comes_back(kind, config, tiny_prepared, tmp_path):
    stages = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    network = NETWORK_CONFIGS[kind](strides=stages, base_channels=2)
    stage = config.stages[1].model_copy(update={"epochs": 1, "patches_per_dataset": 1})
    config = config.model_copy(
        update={"network": network, "stages": (stage,), "losses": MaskedSigmoidConfig()}
    )
    run = train(config, tiny_prepared, tmp_path / "run")
    assert read_run(run.folder).config.network == network
    logits = run.load_model()(np.zeros((1, 5, 9, 7, 1), "float32"))
    assert (logits[0] if isinstance(logits, list) else logits).shape == (1, 5, 9, 7, len(run.classes))


def test_configs_have_the_networks_and_their_options_with_the_same_defaults():
    assert list(NETWORK_CONFIGS) == list(NETWORKS)
    for kind, section in NETWORK_CONFIGS.items():
        parameters = inspect.signature(NETWORKS[kind]).parameters
        options = {name: p.default for name, p in parameters.items() if name not in ("num_classes", "name")}
        assert options == {
            name: field.default for name, field in section.model_fields.items() if name != "kind"
        }, kind


def test_a_finished_run_is_returned_as_it_is(run, config, tiny_prepared):
    before = run.model_path.stat().st_mtime_ns
    assert train(config, tiny_prepared, run.folder) == run
    assert run.model_path.stat().st_mtime_ns == before


@pytest.mark.parametrize("stop_after", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 5)), 4])
def test_a_stopped_run_goes_on_to_the_same_weights(
    run, config, tiny_prepared, tmp_path, monkeypatch, stop_after
):
    stop_after_save(monkeypatch, stop_after)
    with pytest.raises(KeyboardInterrupt):
        train(config, tiny_prepared, tmp_path / "run")
    monkeypatch.undo()
    resumed = train(config, tiny_prepared, tmp_path / "run")
    for mine, theirs in zip(weights(resumed), weights(run), strict=True):
        assert np.allclose(mine, theirs, atol=1e-5)
    columns = ("stage", "epoch", "learning_rate")
    assert [[r[c] for c in columns] for r in rows(resumed.folder / "log.csv")] == [
        [r[c] for c in columns] for r in rows(run.folder / "log.csv")
    ]


@pytest.mark.slow
def test_a_stopped_run_with_a_loss_that_has_a_state_goes_on_with_that_state(
    config, tiny_prepared, tmp_path, monkeypatch
):
    losses = PriorAwareConfig(prior=(0.5, 0.1, 0.1, 0.1, 0.1, 0.1), dual_rate=0.5, weight=1.0)
    config = config.model_copy(update={"losses": losses, "stages": config.stages[1:]})
    whole = train(config, tiny_prepared, tmp_path / "whole")
    stop_after_save(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(config, tiny_prepared, tmp_path / "run")
    monkeypatch.undo()
    resumed = train(config, tiny_prepared, tmp_path / "run")
    for mine, theirs in zip(weights(resumed), weights(whole), strict=True):
        assert np.allclose(mine, theirs, atol=1e-6)
    losses = [[row["loss"] for row in rows(run.folder / "log.csv")] for run in (resumed, whole)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("prior", "words"),
    [
        ((0.9, 0.1), "losses.prior has 2 shares"),
        ({"background": 0.9, "spleen": 0.1}, "losses.prior has background, spleen, and the classes"),
    ],
)
def test_a_prior_of_other_classes_is_refused_and_leaves_no_folder(
    prior, words, config, tiny_prepared, tmp_path
):
    other = config.model_copy(update={"losses": PriorAwareConfig(prior=prior)})
    with pytest.raises(DataError, match=words):
        train(other, tiny_prepared, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_measured_prior_is_kept_with_the_run(config, tiny_prepared, tmp_path, monkeypatch, capsys):
    measured = []

    def measure(*args):
        measured.append(organ_size_prior(*args, num_patches=60))
        return measured[-1]

    def measure_again(*args):
        raise AssertionError("measured again")

    stop_after_save(monkeypatch, 2)
    monkeypatch.setattr(beginning, "organ_size_prior", measure)
    config = config.model_copy(update={"losses": PriorAwareConfig(), "stages": shorter(config).stages[1:]})
    with pytest.raises(KeyboardInterrupt):
        train(config, tiny_prepared, tmp_path / "run")
    assert [read_run(tmp_path / "run").config.losses.prior] == measured
    monkeypatch.undo()
    monkeypatch.setattr(beginning, "organ_size_prior", measure_again)
    run = train(config, tiny_prepared, tmp_path / "run")
    assert run.model_path.is_file()
    assert [run.config.losses.prior] == measured
    capsys.readouterr()
    assert train(config, tiny_prepared, tmp_path / "run") == run
    assert capsys.readouterr().out == ""


def test_a_run_of_before_goes_on_without_augmentation(config, tiny_prepared, tmp_path, monkeypatch, capsys):
    stop_after_save(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(config, tiny_prepared, tmp_path / "run")
    monkeypatch.undo()
    path = tmp_path / "run" / "config.yaml"
    written = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({k: v for k, v in written.items() if k != "augmentation"}))

    left_open = read_config(tmp_path / "run" / "config.yaml")
    assert left_open.augmentation is not None
    with pytest.raises(DataError, match="another config"):
        train(
            config.model_copy(update={"augmentation": AugmentationConfig()}), tiny_prepared, tmp_path / "run"
        )
    more_workers = left_open.model_copy(update={"workers": 1, "checkpoint_minutes": 0})
    run = train(more_workers, tiny_prepared, tmp_path / "run")
    assert run.model_path.is_file()
    assert run.config.augmentation is None
    lines = [line for line in capsys.readouterr().err.splitlines() if ", epoch " in line]
    assert [line.partition(":")[0] for line in lines] == [
        f"{stage}, epoch {epoch} of 2" for stage, epoch in zip(STAGES[1:], EPOCHS[1:], strict=True)
    ]


STAGES, EPOCHS = ("fully annotated",) * 2 + ("all datasets",) * 2, (1, 2, 1, 2)


def test_a_line_says_what_to_do_where_the_device_waited_much():
    stage = StageConfig(name="all [datasets]", datasets="all", epochs=80, patches_per_dataset=1)
    assert callbacks.epoch_line(stage, 3, 1.2341, 12.34, 0.1, 2).endswith("12.3 s, waited for data 10%")
    assert callbacks.epoch_line(stage, 3, 1.2341, 12.34, 0.4, 2) == (
        "all [datasets], epoch 3 of 80: loss 1.234, 12.3 s, waited for data 40%: raise workers (2), or feed from "
        "other machines (data_service)"
    )


def test_another_config_in_the_same_folder_is_refused(run, config, tiny_prepared):
    other = config.model_copy(update={"seed": 7})
    with pytest.raises(DataError, match="another config: seed was 0, and is 7"):
        train(other, tiny_prepared, run.folder)


def test_a_lost_file_is_named_and_leaves_no_folder(config, tiny_prepared, tmp_path):
    shutil.copytree(tiny_prepared, tmp_path / "prepared")
    case = read_prepared(tiny_prepared).select(split="train")[-1]
    (tmp_path / "prepared" / case.dataset / case.name / "image.npy").unlink()
    with pytest.raises(DataError, match=rf"{case.name}/image\.npy: there is no such file"):
        train(config, tmp_path / "prepared", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_found_damaged_in_training_is_named_in_one_line(
    config, tiny_prepared, tmp_path, monkeypatch
):
    shutil.copytree(tiny_prepared, tmp_path / "prepared")
    for path in (tmp_path / "prepared").rglob("label.npy"):
        np.save(path, np.full_like(np.load(path), 200))
    monkeypatch.setattr(trainer, "_monitor_patches", lambda *_: {})  # they are read before
    with pytest.raises(DataError, match=r"label\.npy: holds value 200, but the dataset's table has") as error:
        train(config, tmp_path / "prepared", tmp_path / "run")
    assert "\n" not in str(error.value)


def test_starting_from_a_run_takes_its_weights(run, config, tiny_prepared, tmp_path):
    still = config.model_copy(
        update={
            "name": "still",
            "stages": (config.stages[0].model_copy(update={"epochs": 1}),),
            "optimizer": config.optimizer.model_copy(update={"learning_rate": 1e-12}),
        }
    )
    second = train(still, tiny_prepared, tmp_path / "run", start_from=run)
    for mine, theirs in zip(weights(second), weights(run), strict=True):
        assert np.allclose(mine, theirs, atol=1e-6)
    assert train(still, tiny_prepared, second.folder, start_from=run) == second
    with pytest.raises(DataError, match="another started_from"):
        train(still, tiny_prepared, second.folder)


def test_a_run_with_another_network_is_no_start_and_leaves_no_folder(run, config, tiny_prepared, tmp_path):
    wider = config.model_copy(update={"network": config.network.model_copy(update={"base_channels": 5})})
    with pytest.raises(DataError, match="another network: base_channels 4, where the config has 5"):
        train(wider, tiny_prepared, tmp_path / "run", start_from=run)
    assert not (tmp_path / "run").exists()


def test_deep_supervision_trains(config, tiny_prepared, tmp_path):
    deep = config.model_copy(
        update={
            "network": config.network.model_copy(update={"deep_supervision": True}),
            "stages": (config.stages[0].model_copy(update={"epochs": 1}),),
        }
    )
    run = train(deep, tiny_prepared, tmp_path / "run")
    assert len(run.load_model().outputs) == 2


def test_a_loss_that_is_not_finite_stops_the_run_and_says_what_to_do(config, tiny_prepared, tmp_path):
    wild = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 1e30})}
    )
    with pytest.raises(LossIsNotFiniteError, match="learning_rate") as error:
        train(wild, tiny_prepared, tmp_path / "run")
    assert isinstance(error.value, DataError)  # which every command prints on one line
    assert str(error.value).startswith(str(tmp_path / "run"))


def test_a_batch_that_devices_cannot_share_is_refused(config, tiny_prepared, tmp_path):
    odd = config.model_copy(update={"batch_size": 3})
    with pytest.raises(DataError, match="shared evenly by 2 devices"):
        train(odd, tiny_prepared, tmp_path / "run", devices=["CPU:0", "CPU:1"])
    assert not (tmp_path / "run").exists()


def test_patches_that_no_memory_holds_and_a_file_as_run_folder_are_refused(config, tiny_prepared, tmp_path):
    large = config.model_copy(update={"patch_size": (4096, 4096, 4096)})
    with pytest.raises(
        DataError, match=r"2 patches of 4096×4096×4096 voxels take 1,\d+\.\d GB as they are read"
    ):
        train(large, tiny_prepared, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file, expected a folder for the run"):
        train(config, tiny_prepared, tmp_path / "file")


def test_validation_where_no_case_can_be_held_out_is_refused_and_leaves_no_folder(
    config, tiny_prepared, tmp_path
):
    prepared = read_prepared(tiny_prepared)
    single = [prepared.select(name, "train")[0] for name in prepared.datasets]
    with pytest.raises(DataError, match="no dataset has two training cases"):
        train(with_options(config, validation={}), replace(prepared, cases=tuple(single)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_killed_run_is_swept_and_one_that_trains_or_has_no_whole_checkpoint_is_left_alone(
    config, tiny_prepared, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    stop_after_save(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        train(config, tiny_prepared, out)
    whole = out / "checkpoint" / "step000000000.npz"
    left = [out / ".partial-0a1b2c3d-log.csv", out / "checkpoint" / f".partial-0a1b2c3d-{whole.name}"]
    for path in left:
        path.write_text("half")
    with locked(out), pytest.raises(DataError, match="is in use by process"):
        train(config, tiny_prepared, out)
    assert all(path.exists() for path in left)
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"is not a whole checkpoint.* delete it to begin the training anew"):
        train(config, tiny_prepared, out)
    assert not any(path.exists() for path in left)
    assert not (out / ".lock").exists()


OPTIONS = {
    "held out cases": {"validation": {"folds": 2, "patches": 2, "volumes_every": 2}},
    "all the rest": {
        "optimizer": {"name": "sgd", "learning_rate": 1e-2, "ema": 0.9, "weight_decay": 1e-3},
        "accumulate": 2,
        "precision": "bfloat16",
        "validation": {"folds": 2, "patches": 1, "volumes_every": None, "keep": "last"},
    },
    # Convolutions in float16 are slow on CPUs: five steps.
    "float16": {
        "precision": "float16",
        "stages": [{"name": "all", "datasets": "all", "epochs": 1, "patches_per_dataset": 2}],
    },
}


def with_options(config, **options):
    """The config with other sections, as a file would have them."""
    return type(config).model_validate({**shorter(config).model_dump(), **options})


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_a_run_with_any_option_goes_on_as_if_it_had_not_stopped(
    options, config, tiny_prepared, tmp_path, monkeypatch
):
    config = with_options(config, deterministic=True, checkpoint_minutes=0, **options)
    whole = train(config, tiny_prepared, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after_save(patch, 4)  # in the middle of the first epoch
        with pytest.raises(KeyboardInterrupt):
            train(config, tiny_prepared, tmp_path / "stopped")
    again = train(config, tiny_prepared, tmp_path / "stopped")
    for one, other in zip(weights(whole), weights(again), strict=True):
        np.testing.assert_array_equal(one, other)
    assert whole.load_model().dtype_policy.name == "float32"
    assert sorted(path.name for path in whole.folder.iterdir()) == sorted(
        path.name for path in again.folder.iterdir()
    )


def test_tensorboard_has_every_row_of_the_tables(run):
    files = (run.folder / "tensorboard").iterdir()
    tags = set()
    for file in files:
        for record in tf.data.TFRecordDataset(str(file)):
            tags |= {value.tag for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value}
    terms = rows(run.folder / "terms.csv")
    assert tags >= {"loss", "learning_rate", "data_wait"}
    assert tags >= {f"{r['term']}/{r['dataset']}" for r in terms if r["organ"] == "all"}
    by_organ = {f"{r['term']}/{r['dataset']}/{r['organ']}" for r in terms if r["organ"] != "all"}
    assert by_organ
    assert tags >= by_organ


@pytest.mark.slow
def test_stages_share_the_fall_of_the_rate_also_in_a_run_that_stopped_between_them(
    config, tiny_prepared, tmp_path, monkeypatch
):
    falling = {"schedule": {"kind": "polynomial", "power": 1.0}}
    config = type(config).model_validate({**config.model_dump(), **falling})
    epochs = sum(stage.epochs for stage in config.stages)
    between = 1 + config.stages[0].epochs  # saves: one at the start, one after each epoch
    whole = train(config, tiny_prepared, tmp_path / "whole")
    stop_after_save(monkeypatch, between)
    with pytest.raises(KeyboardInterrupt):
        train(config, tiny_prepared, tmp_path / "stopped")
    monkeypatch.undo()
    again = train(config, tiny_prepared, tmp_path / "stopped")
    for run in (whole, again):
        rates = [float(r["learning_rate"]) for r in rows(run.folder / "log.csv")]
        assert rates == pytest.approx(
            [config.optimizer.learning_rate * (1 - k / epochs) for k in range(epochs)]
        )
    for one, other in zip(weights(whole), weights(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_parts_of_batches_train_the_same_network_as_whole_ones(config, tiny_prepared, tmp_path):
    sgd = {"name": "sgd", "learning_rate": 1e-2, "momentum": 0.9}
    whole, parts = (
        train(with_options(config, optimizer=sgd, accumulate=n), tiny_prepared, tmp_path / str(n))
        for n in (1, 2)
    )
    for one, other in zip(weights(whole), weights(parts), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_held_out_cases_are_scored_each_epoch_and_the_best_weights_stay(
    config, tiny_prepared, tmp_path, monkeypatch
):
    means = iter([0.2, 0.1])
    monkeypatch.setattr(callbacks, "mean_dice", lambda scores: next(means, 0.0) if scores else None)
    kept = []
    keep = callbacks.Books.keep_if_best
    monkeypatch.setattr(
        callbacks.Books,
        "keep_if_best",
        lambda books, dice, weights: (keep(books, dice, weights), kept.append(weights))[0],
    )
    options = {"folds": 2, "patches": 1, "volumes_every": None}
    run = train(with_options(config, validation=options), tiny_prepared, tmp_path / "run")
    assert len(kept) == 2
    for one, best in zip(weights(run), kept[0], strict=True):
        np.testing.assert_array_equal(one, best)
    assert any((best != last).any() for best, last in zip(*kept, strict=True))
    found = rows(run.folder / "validation.csv")
    assert {(r["epoch"], r["source"]) for r in found} == {("1", "patches")}
    assert {r["stage"] for r in found} == {stage.name for stage in config.stages}
    assert not (run.folder / "best").exists()


def test_whole_volumes_are_scored_every_so_many_epochs_and_at_the_end(config, tiny_prepared, tmp_path):
    prepared = read_prepared(tiny_prepared)
    options = {"folds": 2, "patches": 1, "volumes_every": 3, "volumes": 1}
    run = train(with_options(config, validation=options), prepared, tmp_path / "run")
    volumes = [r for r in rows(run.folder / "validation.csv") if r["source"] == "volumes"]
    assert {r["stage"] for r in volumes} == {config.stages[-1].name}
    log = rows(run.folder / "log.csv")
    assert [bool(r["dice_volumes"]) for r in log] == [False, True]
    assert all(0 <= float(r["dice_patches"]) <= 1 for r in log)
    trained_on = {draw.case.name for draw in _all_draws(run.config, prepared)}
    assert not trained_on & {r["case"] for r in volumes}
    described = json.loads((run.folder / "run.json").read_text())
    predicted = {(r["dataset"], r["case"]) for r in volumes}
    assert predicted == {(name, case) for name, (case,) in described["predicted_whole"].items()}
    for name, cases in described["held_out"].items():
        assert set(described["predicted_whole"][name]) <= set(cases)
        assert not trained_on & set(cases)


def _all_draws(config, prepared):
    for stage in range(len(config.stages)):
        patch_config = stage_patches(config, stage, prepared)
        plan = PatchPlan(prepared, patch_config)
        for batch in range(patch_config.batches_per_epoch * config.stages[stage].epochs):
            yield from plan.batch(batch)


def test_parts_and_several_devices_are_refused_together(config, tiny_prepared, tmp_path):
    with pytest.raises(DataError, match="accumulate 2 is for one device, and there are 2"):
        train(with_options(config, accumulate=2), tiny_prepared, tmp_path / "run", devices=["CPU:0", "CPU:1"])
    assert not (tmp_path / "run").exists()


def test_parts_on_another_device_than_the_first_are_refused(config, tiny_prepared, tmp_path):
    with pytest.raises(DataError, match=r"accumulate 2 trains on CPU:0, the first device, and found .*CPU:1"):
        train(with_options(config, accumulate=2), tiny_prepared, tmp_path / "run", devices=["CPU:1"])
    assert not (tmp_path / "run").exists()


def test_a_run_that_knows_fewer_organs_is_a_start_for_one_that_knows_more(
    config, tiny_raw, tiny_prepared, tmp_path, capsys
):
    result = prepare(
        [read_card("msd_liver")], tiny_raw, tmp_path / "liver", (6.0, 6.0, 6.0), organs=["liver"]
    )
    assert not result.problems
    liver = train(shorter(config), tmp_path / "liver", tmp_path / "first")
    still = with_options(config, optimizer={"learning_rate": 1e-12})
    both = train(still, tiny_prepared, tmp_path / "second", start_from=liver)
    assert "new organs: spleen" in capsys.readouterr().err
    one, other = (run.load_model().get_layer("logits0").get_weights()[0] for run in (liver, both))
    index = both.classes.index("liver")
    np.testing.assert_allclose(other[..., [0, index]], one, atol=1e-6)
