import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.labels import candidate_table
from partialseg.data.prepared import Case, Dataset, Prepared
from partialseg.data.sampling import PatchConfig
from partialseg.errors import DataError
from partialseg.training.config import (
    StageConfig,
    TrainingConfig,
    configs_folder,
    read_config,
    stage_datasets,
    write_config,
)
from partialseg.training.config_page import config_page
from partialseg.training.loss_config import LOSS_CONFIGS

STAGE = "{name: one, datasets: all, epochs: 1, patches_per_dataset: 1}"
CLASSES = ("background", "liver", "spleen")


@pytest.fixture
def prepared(tmp_path):
    datasets = {
        name: Dataset(name, annotated, candidate_table(CLASSES, annotated))
        for name, annotated in {"full": ("liver", "spleen"), "partial": ("liver",)}.items()
    }
    datasets["test_only"] = Dataset("test_only", ("spleen",), candidate_table(CLASSES, ("spleen",)))
    splits = {"full": "train", "partial": "train", "test_only": "test"}
    cases = tuple(
        Case(name, "case", split, (1, 1, 1), ((1.0,),), (), (), "image", "label", "")
        for name, split in splits.items()
    )
    return Prepared(tmp_path, CLASSES, (3.0, 1.5, 1.5), datasets, cases)


@pytest.mark.parametrize("path", sorted(configs_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_config_is_understood_and_survives_writing(path, tmp_path):
    config = read_config(path.stem)
    assert config.name == path.stem
    write_config(config, tmp_path / "again.yaml")
    assert read_config(tmp_path / "again.yaml") == config


def test_paper_config_has_the_numbers_of_section_4_3():
    config = read_config("paper")
    assert (config.patch_size, config.batch_size, config.foreground) == ((48, 190, 190), 2, 0.33)
    assert [(s.epochs, s.patches_per_dataset) for s in config.stages] == [(120, 500), (80, 500)]
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adam", 0.1)
    assert (config.schedule.factor, config.schedule.patience, config.schedule.min_delta) == (0.8, 10, 1e-3)
    assert (config.losses.marginal, config.losses.exclusion) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("name: x\nbatch_sise: 2\n", "batch_sise"),
        ("name: x\nbatch_size: 0\n", "batch_size"),
        ("name: x\nlosses: {terms: [mCE, dice]}\n", "losses.terms.1"),
        ("name: x\nlosses: {terms: []}\n", "losses.terms"),
        ("name: x\nlosses: {terms: [mCE, mCE]}\n", "each once"),
        ("name: x\nlosses: {marginl: 2}\n", "`losses.marginl`: "),
        ("name: x\nlosses: {preset: target_adaptive, exclusion: 2}\n", "`losses.exclusion`: "),
        ("name: x\nlosses: {preset: leaf_dice, exponent: 3}\n", "`losses.exponent`: "),
        ("name: x\nlosses: {preset: naive_background, class_reduction: max}\n", "`losses.class_reduction`: "),
        ("name: x\nlosses: {preset: prior_aware, prior: [0.9, 0.2]}\n", "`losses.prior`: "),
        ("name: x\nlosses: {preset: prior_aware, prior: [0.9, 1.2]}\n", "`losses.prior.1`: "),
        (
            "name: x\nlosses: {preset: prior_aware, prior: {background: 1.5, liver: 0.1}}\n",
            "`losses.prior.background`: ",
        ),
        ("name: x\nlosses: {preset: prior_aware, prior: 0.1}\n", "`losses.prior`: prior must be shares by "),
        ("name: x\nlosses: {prior: [0.9, 0.1]}\n", "`losses.prior`: "),
        ("name: x\nlosses: {leaf_dice: {}}\n", "`losses.leaf_dice`: "),
        (
            "name: x\nlosses: {preset: naive}\n",
            "`losses.preset`: found 'naive', expected one of partial_supervision, ",
        ),
        ("name: x\nlosses: [mCE]\n", "`losses`: "),
        ("name: x\nnetwork: {strides: [[1, 1, 1]]}\n", "network.strides"),
        ("name: x\nnetwork: {window_hu: [300, -200]}\n", "network.window_hu"),
        ("name: x\nnetwork: {encoder: vgg}\n", "network.encoder"),
        (
            "name: x\nnetwork: {convolutions_per_stage: [1, 3, 4]}\n",
            "there are 3, and `strides` has 6 stages",
        ),
        ("name: x\nnetwork: {convolutions_per_stage: 0}\n", "network.convolutions_per_stage"),
        ("name: x\nnetwork: {decoder_convolutions: 0}\n", "network.decoder_convolutions"),
        ("name: x\nseed: -1\n", "seed"),
        ("name: x\nseed: 4294967296\n", "`seed`: found 4294967296, expected less than 4294967296"),
        ("name: x\nnetwrok: {}\n", "`netwrok`: there is no such field, did you mean `network`?"),
        ("name: x\nlr: 0.1\n", "there is no such field, expected one of name, description, seed, "),
        (
            "name: x\nvalidation: {volume: 3}\n",
            "`validation.volume`: there is no such field, did you mean `volumes`?",
        ),
        ("name: x\nvalidation: {volumes: 0}\n", "line 2, `validation.volumes`: found 0, expected "),
        ("name: x\nnetwork: {drop_out: 0.1}\n", "did you mean `dropout`?"),
        (
            "name: x\noptimizer: {rate: 0.1}\n",
            "`optimizer.rate`: there is no such field, expected one of name, learning_",
        ),
        ("name: x\naugmentation: {rotate: null}\n", "did you mean `rotation`?"),
        ("name: x\naugmentation: {rotation: {chance: 1}}\n", "expected one of probability, range"),
        (f"name: x\nstages: [{STAGE.replace('epochs: 1', 'epoch: 1')}]\n", "did you mean `epochs`?"),
        ("name: x\nnetwork: {kind: vgg}\n", "line 2, `network.kind`: found 'vgg', expected one of unet, "),
        ("name: x\nlosses: {marginal: 0, exclusion: 0}\n", "the loss would be 0 whatever is predicted"),
        ("name: x\nlosses: {exclusion: 0, terms: [eDC]}\n", "the loss would be 0 whatever is predicted"),
        (
            "name: x\noptimizer: {learning_rate: .inf}\n",
            "`optimizer.learning_rate`: found inf, expected a finite",
        ),
        ("name: x\npatch_size: [32, 32]\n", "`patch_size`: found [32, 32], expected 3 numbers: depth, "),
        (
            f"name: x\nstages: [{STAGE.replace('all', 'btcv')}]\n",
            "found 'btcv', expected full, all, or a list",
        ),
        ("name: x\nstages: []\n", "at least one"),
        (f"name: x\nstages: [{STAGE}, {STAGE}]\n", "`stages`: found 'one' twice, expected each once"),
        (f"name: x\nstages: [{STAGE.replace('all', '[]')}]\n", "stages.0.datasets"),
        ("- a list\n", "line 1: expected `field: value`, found a list"),
        ("name: [\n", "is not YAML"),
    ],
)
def test_a_wrong_config_is_one_line_that_names_file_and_field(tmp_path, text, field):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_config(path)
    assert str(path) in str(error.value)
    assert field in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", LOSS_CONFIGS)
def test_each_preset_can_be_chosen_and_survives_writing(preset, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"name: x\nlosses: {{preset: {preset}}}\n")
    config = read_config(path)
    assert config.losses == LOSS_CONFIGS[preset]()
    write_config(config, tmp_path / "again.yaml")
    assert read_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("prior", ["{background: 0.9, liver: 0.1}", "[0.9, 0.1]"])
def test_a_prior_has_two_forms_and_survives_writing(prior, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"name: x\nlosses: {{preset: prior_aware, prior: {prior}}}\n")
    config = read_config(path)
    assert config.losses.prior in ({"background": 0.9, "liver": 0.1}, (0.9, 0.1))
    write_config(config, tmp_path / "again.yaml")
    assert read_config(tmp_path / "again.yaml") == config


def test_losses_are_those_of_the_package_unless_a_preset_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: x\nlosses: {exclusion: 3, terms: [mCE, eDC]}\n")
    losses = read_config(path).losses
    assert (losses.preset, losses.exclusion, losses.terms) == ("partial_supervision", 3, ("mCE", "eDC"))
    assert TrainingConfig(name="x").losses == LOSS_CONFIGS["partial_supervision"]()


def test_the_page_of_all_fields_is_the_one_that_is_made_now_and_says_what_each_means():
    page = (Path(__file__).parents[2] / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == config_page(), "make it again: python -m partialseg.training.config_page > docs/config.md"
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    without = [row for row in rows if row.endswith("|  |") and not row.startswith(("| `kind`", "| `preset`"))]
    assert not without


def test_an_unknown_config_lists_those_that_there_are():
    with pytest.raises(DataError, match="paper"):
        read_config("papre")


def test_stage_datasets(prepared):
    def stage(datasets):
        return StageConfig(name="s", datasets=datasets, epochs=1, patches_per_dataset=1)

    assert stage_datasets(stage("all"), prepared) == ["full", "partial"]
    assert stage_datasets(stage("full"), prepared) == ["full"]
    assert stage_datasets(stage(("partial",)), prepared) == ["partial"]
    with pytest.raises(DataError, match="names other"):
        stage_datasets(stage(("other",)), prepared)
    without = replace(prepared, cases=tuple(prepared.select("full")))
    with pytest.raises(DataError, match="names partial, of which there is no training case"):
        stage_datasets(stage(("full", "partial")), without)
    with pytest.raises(DataError, match="has no training case"):
        stage_datasets(stage("all"), replace(prepared, cases=()))


def test_defaults_are_the_paper_numbers_with_a_learning_rate_that_trains():
    config = TrainingConfig(name="x")
    assert config.optimizer.learning_rate == 1e-3
    assert config.model_copy(update={"name": "paper"}).stages[1].epochs == 80


def read(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text("name: x\n" + text)
    return read_config(path)


def test_patches_are_augmented_unless_a_config_says_none(tmp_path):
    assert read(tmp_path, "").augmentation == AugmentationConfig()
    assert read(tmp_path, "augmentation: {}\n").augmentation == AugmentationConfig()
    assert read(tmp_path, "augmentation: null\n").augmentation is None
    assert {name: read_config(name).augmentation for name in ("paper", "demo", "tiny")} == dict.fromkeys(
        ("paper", "demo", "tiny")
    )


def test_a_transform_may_be_given_in_part(tmp_path):
    text = "augmentation: {noise: {probability: 0}, rotation: {range: [-5, 5]}, mirror: {axes: [x]}}\n"
    augmentation = read(tmp_path, text).augmentation
    assert augmentation.noise == AugmentationConfig().noise.model_copy(update={"probability": 0})
    assert augmentation.rotation == AugmentationConfig().rotation.model_copy(update={"range": (-5, 5)})
    assert (augmentation.mirror.axes, augmentation.mirror.probability) == (("x",), 0.5)
    assert augmentation.gamma == AugmentationConfig().gamma


@pytest.mark.parametrize("convolutions", ["null", "3", "[1, 1, 2, 2, 2, 2]"])
def test_nnunets_residual_encoder_can_be_chosen_and_survives_writing(convolutions, tmp_path):
    text = (
        f"network: {{encoder: residual, convolutions_per_stage: {convolutions}, convolution_bias: false}}\n"
    )
    config = read(tmp_path, text)
    assert config.network.encoder == "residual"
    assert not config.network.convolution_bias
    write_config(config, tmp_path / "again.yaml")
    assert read_config(tmp_path / "again.yaml") == config


def test_patches_are_clipped_to_the_window_of_the_network(tmp_path):
    network = "network: {window_hu: [-100, 250]}\n"
    for text in ("", "augmentation: {}\n", "augmentation: {window_hu: [-100, 250]}\n"):
        config = read(tmp_path, network + text)
        assert config.augmentation.window_hu == (-100, 250)
        write_config(config, tmp_path / "again.yaml")
        assert read_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "network: {window_hu: [-100, 250]}\naugmentation:\n  window_hu: [-100, 300]\n",
            r"line 4, `augmentation\.window_hu`: found \[-100\.0, 300\.0\], but `network\.window_hu` is "
            r"\[-100\.0, 250\.0\], expected",
        ),
        (
            "augmentation:\n  noise: {probability: 2}\n",
            r"line 3, `augmentation\.noise\.probability`: found 2",
        ),
        (
            "augmentation:\n  nois: {probability: 1}\n",
            r"line 3, `augmentation\.nois`: there is no such field",
        ),
        (
            "augmentation:\n  gamma: {range: [2, 1]}\n",
            r"line 3, `augmentation\.gamma\.range`: the least must",
        ),
        ("augmentation: true\n", r"line 2, `augmentation`: found True, expected"),
        (
            "augmentation:\n  rotation: {range: [-180, 180]}\n",
            r"line 2, `augmentation`: rotation by more than 90 degrees",
        ),
        ("mix: even\n", r"line 2, `mix`: found 'even', expected"),
        (f"stages: [{STAGE.replace('}', ', mix: even}')}]\n", r"line 2, `stages\.0\.mix`: found 'even'"),
        ("data_service: localhost:5000\n", r"line 2, `data_service`: expected an address like grpc://"),
        ("data_service: grpc://reader:0\n", r"line 2, `data_service`: expected an address like grpc://"),
        ("data_service: grpc://reader\n", r"line 2, `data_service`: expected an address like grpc://"),
    ],
)
def test_what_is_wrong_with_patches_is_said_in_the_words_of_the_file(text, words, tmp_path):
    with pytest.raises(DataError, match=words) as error:
        read(tmp_path, text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("host", ["reader-0.cluster.local", "10.0.0.1", "[::1]"])
def test_a_data_service_has_a_host_and_a_port(host, tmp_path):
    assert read(tmp_path, f'data_service: "grpc://{host}:5000"\n').data_service == f"grpc://{host}:5000"


def test_mixes_are_those_of_patches():
    assert TrainingConfig.model_fields["mix"].annotation == PatchConfig.model_fields["mix"].annotation


def test_the_page_on_prediction_names_the_shipped_configs_that_do_not_mirror_or_hold_nothing_out():
    page = (Path(__file__).resolve().parents[2] / "docs" / "prediction.md").read_text(encoding="utf-8")
    configs = [read_config(path.stem) for path in configs_folder().glob("*.yaml")]
    for words, names in (
        (
            r"refuses \(of the shipped configs ([^)]*) do not mirror\)",
            {c.name for c in configs if c.augmentation is None},
        ),
        (
            r"without `validation:` \(of the shipped configs ([^)]*)\)",
            {c.name for c in configs if c.validation is None},
        ),
    ):
        found = re.search(words, " ".join(page.split()))
        assert set(re.findall(r"`(\w+)`", found[1])) == names


def test_the_page_on_augmentation_gives_the_defaults():
    page = (Path(__file__).resolve().parents[2] / "docs" / "augmentation.md").read_text(encoding="utf-8")
    written = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    defaults = TrainingConfig(name="defaults")
    assert TrainingConfig(name="defaults", **written) == defaults
    sections = set(type(defaults.augmentation).model_fields) - {"window_hu"}
    assert sections == set(written["augmentation"])
