import pytest
import yaml

from partialseg.errors import DataError
from partialseg.models import unet
from partialseg.training.config import (
    ScheduleConfig,
    TrainingConfig,
    ValidationConfig,
    configs_folder,
    read_config,
)
from partialseg.training.runs import BEFORE_THERE_WAS_A_FIELD, Run, as_begun, read_run, write_run


@pytest.fixture
def run(tmp_path):
    run = Run(tmp_path, TrainingConfig(name="x"), ("background", "liver"), (3.0, 1.5, 1.5), {"p": ("liver",)})
    write_run(run, {"keras": "3"})
    return run


def test_a_run_survives_writing(run):
    assert read_run(run.folder) == run


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"classes": null}'])
def test_a_damaged_description_is_one_line_that_names_it(run, text):
    (run.folder / "run.json").write_text(text)
    with pytest.raises(DataError, match=r"run\.json: does not describe a run") as error:
        read_run(run.folder)
    assert "\n" not in str(error.value)


def test_a_network_is_missing_until_training_ends(run):
    with pytest.raises(DataError, match="there is no trained network"):
        run.load_model()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_network_that_was_cut_off_is_one_line_that_names_it(run, share):
    unet(2, strides=((1, 1, 1), (2, 2, 2)), base_channels=2).save(run.model_path)
    whole = run.model_path.read_bytes()
    run.model_path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"model\.keras: cannot be read as a network") as error:
        run.load_model()
    assert "\n" not in str(error.value)


def test_a_run_that_began_before_there_was_augmentation_has_none(run):
    path = run.folder / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if line.startswith("augmentation:"))
    last = next(n for n, line in enumerate(lines) if n > first and not line.startswith(" "))
    path.write_text("".join(lines[:first] + lines[last:]))
    assert run.config.augmentation is not None
    assert read_run(run.folder).config == run.config.model_copy(update={"augmentation": None})
    assert as_begun(run.config, run.folder) == read_run(run.folder).config


def test_a_polynomial_that_began_in_each_stage_goes_on_so(run):
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("  over: all_stages\n", "", 1))
    begun = read_run(run.folder).config
    assert begun.schedule == ScheduleConfig(over="each_stage")
    assert as_begun(run.config, run.folder) == begun
    asked = run.config.model_copy(update={"schedule": ScheduleConfig(over="all_stages")})
    assert as_begun(asked, run.folder) == asked


def test_a_run_that_began_to_predict_every_held_out_case_goes_on_so(tmp_path):
    config = TrainingConfig(name="x", validation=ValidationConfig(folds=3))
    run = Run(tmp_path, config, ("background", "liver"), (3.0, 1.5, 1.5), {"p": ("liver",)})
    write_run(run, {})
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("  volumes: 10\n", "", 1))
    begun = read_run(tmp_path).config
    assert begun.validation == ValidationConfig(folds=3, volumes=None)
    assert as_begun(config, tmp_path) == begun
    without = config.model_copy(update={"validation": None})
    assert as_begun(without, tmp_path) == without


@pytest.mark.parametrize("field", BEFORE_THERE_WAS_A_FIELD, ids=".".join)
@pytest.mark.parametrize("name", sorted(path.stem for path in configs_folder().glob("*.yaml")))
def test_a_run_of_a_shipped_config_that_began_before_there_was_a_field_goes_on(name, field, tmp_path):
    config = read_config(name)
    write_run(Run(tmp_path, config, ("background", "liver"), (3.0, 1.5, 1.5), {"p": ("liver",)}), {})
    path = tmp_path / "config.yaml"
    content = yaml.safe_load(path.read_text())
    section = content if len(field) == 1 else content[field[0]]
    if section is not None:
        del section[field[-1]]
    path.write_text(yaml.safe_dump(content))
    assert as_begun(config, tmp_path) == read_run(tmp_path).config


def test_a_run_that_names_all_its_fields_keeps_them(run):
    assert as_begun(run.config, run.folder) == run.config
    assert as_begun(run.config, run.folder / "elsewhere") == run.config
