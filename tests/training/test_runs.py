import pytest

from partialseg.errors import DataError
from partialseg.models import unet
from partialseg.training.config import TrainingConfig
from partialseg.training.runs import Run, fields_before_their_time, read_run, write_run


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
    assert fields_before_their_time(run.folder) == {"augmentation": None}


def test_a_run_that_names_its_augmentation_keeps_it(run):
    assert fields_before_their_time(run.folder) == {}
    assert fields_before_their_time(run.folder / "elsewhere") == {}
