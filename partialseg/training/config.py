"""An experiment as a YAML file: what is trained on what, and for how long. Checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from partialseg.data.augmentation import AugmentationConfig, Chance
from partialseg.data.folds import Fold
from partialseg.data.front_matter import FrontMatter, problem_location, read_yaml, validation_problem
from partialseg.data.mixing import Mix
from partialseg.data.prepared import Prepared
from partialseg.errors import DataError
from partialseg.files import write_text
from partialseg.training.loss_config import LOSS_CONFIGS, LossConfig, PartialSupervisionConfig
from partialseg.training.network_config import NETWORK_CONFIGS, NetworkConfig, UNetConfig
from partialseg.training.sections import Section, some_each_once


class OptimizerConfig(Section):
    """How weights are updated.

    Attributes:
        name: "adam", or "sgd" with Nesterov's momentum.
        learning_rate: With which training begins, and each stage whose schedule does not go on from the one before.
        momentum: Of "sgd".
        weight_decay: Share of each weight, times the learning rate, that is taken off at each update, beside the
            gradient (Loshchilov and Hutter, 2019); 0 for none. nnU-Net adds 3e-5 of the weight to the gradient
            instead, which a momentum of 0.99 makes about 3e-3 of it.
        clip_norm: Largest Euclidean norm of all gradients together; larger ones are scaled down to it.
        ema: Share of the running mean of the weights that stays at each update, such as 0.999; the mean is what
            validation sees and what the run ends with. None: the weights themselves are.
    """

    name: Literal["adam", "sgd"] = "adam"
    learning_rate: PositiveFloat = 1e-3
    momentum: float = Field(0.99, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: PositiveFloat | None = None
    ema: float | None = Field(None, gt=0, lt=1)


class ScheduleConfig(Section):
    """How the learning rate falls.

    Attributes:
        kind: "plateau", the paper's: times `factor` when the loss has not fallen by `min_delta` in `patience`
            epochs; each stage begins with the rate of the config. "polynomial", nnU-Net's: times
            `(1 - epoch / epochs) ** power`, with the epochs of what `over` says.
        factor, patience, min_delta: Of "plateau".
        power: Of "polynomial".
        over: Of "polynomial": "all_stages", one fall over all stages without a schedule of their own, or
            "each_stage", where each begins with the rate of the config again. A stage's own schedule falls over the
            epochs of that stage.
    """

    kind: Literal["plateau", "polynomial"] = "plateau"
    factor: float = Field(0.8, gt=0, lt=1)
    patience: PositiveInt = 10
    min_delta: float = Field(1e-3, ge=0)
    power: PositiveFloat = 0.9
    over: Literal["all_stages", "each_stage"] = "all_stages"


class ValidationConfig(Fold):
    """What is held out of training, and how the network is tried on it.

    Attributes:
        folds, fold: Which cases are held out: see `partialseg.data.folds.Fold`.
        patches: Patches of each dataset that are predicted after each epoch.
        volumes_every: After so many epochs whole held-out cases are predicted; None for never.
        volumes: Of each dataset at most so many, the same each time: a large dataset would take hours. More are
            taken only where so many cannot have every organ of the held-out cases between them. The held-out cases
            beyond them serve for patches alone. None: all of them.
        keep: Which weights the run ends with: "best", those with the highest mean Dice over organs (of whole
            volumes, where they are predicted), or the "last".
    """

    patches: PositiveInt = 8
    volumes_every: PositiveInt | None = 10
    volumes: PositiveInt | None = 10
    keep: Literal["best", "last"] = "best"


class StageConfig(Section):
    """One stage of training.

    Attributes:
        name: Shown in logs.
        datasets: "full" for the fully annotated ones, "all", or names.
        epochs: How many.
        patches_per_dataset: Patches drawn from each dataset in each epoch; on average, where `mix` is not "equal".
        schedule, mix: Of this stage, instead of that of the whole config.
    """

    name: str
    datasets: Literal["full", "all"] | tuple[str, ...]
    epochs: PositiveInt
    patches_per_dataset: PositiveInt
    schedule: ScheduleConfig | None = None
    mix: Mix | None = None

    @field_validator("datasets", mode="before")
    @classmethod
    def _a_list_where_they_are_named(cls, datasets: Any) -> Any:
        if isinstance(datasets, str) and datasets not in ("full", "all"):
            raise ValueError(
                f"found {datasets!r}, expected full, all, or a list of names, such as [{datasets}]"
            )
        return datasets

    @field_validator("datasets")
    @classmethod
    def _some_datasets_each_once(cls, datasets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return datasets if isinstance(datasets, str) else some_each_once(datasets)


class TrainingConfig(Section):
    """A whole experiment.

    What a config does not name is as the paper's section 4.3 has it (patch, batch, network, Adam, plateaus, stages),
    but for a learning rate that trains well, nnU-Net's augmentation, and losses that are the mean over classes instead
    of their sum. `configs/paper.yaml` is the paper's in all of it, `configs/default.yaml` what trains better.

    Attributes:
        name: Of the experiment.
        description: What it shows, how long it takes, what to expect.
        seed: Of weights and patches.
        patch_size: `(depth, height, width)` in voxels.
        batch_size: Patches in a batch, over all devices.
        foreground: Least share of a batch's patches that are centred on annotated foreground.
        mix: What share of the patches each dataset gives: "equal", "proportional" to its number of cases, or
            "inverse_sqrt", in proportion to the square root of that number. See `partialseg.data.mixing`.
        network, losses, optimizer, schedule: See their classes.
        augmentation: How patches are changed at random, nnU-Net's way unless told otherwise; None for not at all. Of
            a transform, probability or range alone may be given. Its `window_hu` is the network's.
        stages: In order.
        monitor_patches: Patches of each dataset on which every loss term is logged after each epoch.
        validation: Which cases are held out, and how the network is tried on them; None: none are.
        precision: In which the network computes; weights, logits and losses are float32 always. float16 scales the
            loss.
        accumulate: An update is made of the gradients of so many parts of a batch, one after the other: less memory,
            the same batch.
        deterministic: Whether the same run gives the same weights to the bit, at the price of slower operations.
        checkpoint_minutes: A checkpoint is written after each epoch, and within it when so much time has passed since
            the last one; 0: after each step.
        workers: Batches read at the same time.
        data_service: Address `grpc://host:port` of the dispatcher of a tf.data service, on whose machines patches
            are read; None: on this one.
    """

    name: str
    description: str = ""
    seed: int = Field(0, ge=0, lt=2**32)
    patch_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (48, 190, 190)
    batch_size: PositiveInt = 2
    foreground: float = Field(0.33, ge=0, le=1)
    mix: Mix = "equal"
    network: NetworkConfig = UNetConfig()
    losses: LossConfig = PartialSupervisionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augmentation: AugmentationConfig | None = Field(AugmentationConfig(), validate_default=True)
    stages: tuple[StageConfig, ...] = (
        StageConfig(name="fully annotated", datasets="full", epochs=120, patches_per_dataset=500),
        StageConfig(name="all datasets", datasets="all", epochs=80, patches_per_dataset=500),
    )
    monitor_patches: PositiveInt = 2
    validation: ValidationConfig | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: PositiveInt = 1
    deterministic: bool = False
    checkpoint_minutes: float = Field(10.0, ge=0)
    workers: PositiveInt = 2
    data_service: str | None = None

    @field_validator("patch_size", mode="before")
    @classmethod
    def _three_numbers(cls, patch_size: Any) -> Any:
        if isinstance(patch_size, list | tuple) and len(patch_size) != 3:
            raise ValueError(f"found {list(patch_size)}, expected 3 numbers: depth, height, width (z, y, x)")
        return patch_size

    @field_validator("stages")
    @classmethod
    def _some_stages_with_names_of_their_own(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        some_each_once([stage.name for stage in stages])  # logs and curves tell stages apart by name
        return stages

    @field_validator("augmentation", mode="before")
    @classmethod
    def _transforms_in_part(cls, augmentation: Any) -> Any:
        """What a transform does not say is as by default, so that `noise: {probability: 0}` switches it off."""
        if not isinstance(augmentation, dict):
            return augmentation
        defaults = {
            name: field.default.model_dump()
            for name, field in AugmentationConfig.model_fields.items()
            if isinstance(field.default, Chance)
        }
        return {
            name: {**defaults[name], **given} if name in defaults and isinstance(given, dict) else given
            for name, given in augmentation.items()
        }

    @field_validator("augmentation")
    @classmethod
    def _clips_as_the_network_does(
        cls, augmentation: AugmentationConfig | None, info: ValidationInfo
    ) -> AugmentationConfig | None:
        window = info.data["network"].window_hu if "network" in info.data else None
        if augmentation is None or window in (None, augmentation.window_hu):
            return augmentation
        if "window_hu" in augmentation.model_fields_set:
            raise PydanticCustomError(
                "window",
                "found {own}, but `network.window_hu` is {network}, expected the same, or none here",
                {
                    "own": list(augmentation.window_hu),
                    "network": list(window),
                    "location": ("augmentation", "window_hu"),
                },
            )
        return augmentation.model_copy(update={"window_hu": window})

    @field_validator("accumulate")
    @classmethod
    def _divides_the_batch(cls, parts: int, info: ValidationInfo) -> int:
        if "batch_size" in info.data and info.data["batch_size"] % parts:
            raise ValueError(f"batch_size {info.data['batch_size']} cannot be split into {parts} even parts")
        return parts

    @field_validator("data_service")
    @classmethod
    def _address_of_a_dispatcher(cls, address: str | None) -> str | None:
        parts = re.fullmatch(r"grpc://(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", address or "", re.ASCII)
        if address is not None and not (parts and 0 < int(parts[1]) < 2**16):
            raise ValueError("expected an address like grpc://host:5000")
        return address


def stage_datasets(stage: StageConfig, prepared: Prepared) -> list[str]:
    """Names of the datasets that a stage draws from: under "full" and "all" those that have training cases.

    Raises:
        DataError: If the prepared folder lacks one, has no training case of it, or has no fully annotated one where
            that is asked for.
    """
    to_train_on = {case.dataset for case in prepared.select(split="train")}
    if not to_train_on:
        raise DataError(
            prepared.folder, "has no training case", "prepare a card whose `splits` leave some for training"
        )
    if stage.datasets == "all":
        return [name for name in prepared.datasets if name in to_train_on]
    if stage.datasets == "full":
        names = [n for n, d in prepared.datasets.items() if d.fully_annotated and n in to_train_on]
        if not names:
            raise DataError(
                prepared.folder,
                f"no dataset with training cases annotates all of {', '.join(prepared.organs)}, and stage "
                f"{stage.name!r} needs one",
                "prepare a fully annotated dataset too, or set the stage's `datasets` to all",
            )
        return names
    missing = [name for name in stage.datasets if name not in prepared.datasets]
    if missing:
        raise DataError(
            prepared.folder,
            f"stage {stage.name!r} names {', '.join(missing)}, which is not among {', '.join(prepared.datasets)}",
            "correct the stage's `datasets`, or prepare it",
        )
    if empty := [name for name in stage.datasets if name not in to_train_on]:
        raise DataError(
            prepared.folder,
            f"stage {stage.name!r} names {', '.join(empty)}, of which there is no training case",
            "leave it out of the stage's `datasets`, or let its card's `splits` leave some for training",
        )
    return list(stage.datasets)


def configs_folder() -> Path:
    """Where the configs that come with the package lie: in it once installed, else at the repository's top."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def read_config(
    path_or_name: str | Path, absent: Mapping[tuple[str, ...], Any] | None = None
) -> TrainingConfig:
    """Read a config file, or one that comes with the package by its name ("default", "paper", "pipo_fan", …).

    Args:
        path_or_name: The file, or the name.
        absent: Values of fields that the file does not name, where they are others than the defaults; a field is
            given by its path, such as `("schedule", "over")`.

    Raises:
        DataError: If there is no such file, or it says something that is not understood; names line and field.
    """
    path = Path(path_or_name)
    if not path.is_file() and path.suffix == "" and (configs_folder() / f"{path}.yaml").is_file():
        path = configs_folder() / f"{path}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in configs_folder().glob("*.yaml")))
        raise DataError(path, "there is no such config", f"give a YAML file, or one of {shipped}")
    content = read_yaml(path)
    try:
        return TrainingConfig.model_validate(_with_absent(content.content, absent or {}))
    except ValidationError as error:
        remedy = "correct the config; those in configs are examples"
        if (problem := _unknown_choice(error, content, path, remedy)) is not None:
            raise problem from error
        location = problem_location(error)
        place, fields = _place_in_file(location), _fields_beside(location)
        raise validation_problem(error, content, path, remedy, place, fields, list_fields=True) from error


def _unknown_choice(
    error: ValidationError, content: FrontMatter, path: Path, remedy: str
) -> DataError | None:
    """What is wrong with the field that chooses a network or a loss, if that is the first problem."""
    section, field = next(
        (
            pair
            for pair in (("network", "kind"), ("losses", "preset"))
            if error.errors()[0]["type"] == pair[1]
        ),
        (None, None),
    )
    if section is None or not isinstance(content.content[section], dict):
        return None
    choices = NETWORK_CONFIGS if field == "kind" else LOSS_CONFIGS
    found = content.content[section].get(field)
    line, _ = content.locate((section, field))
    words = f"line {line}, `{section}.{field}`: found {found!r}, expected one of {', '.join(choices)}"
    return DataError(path, words, remedy)


def _fields_beside(location: tuple[int | str, ...]) -> list[str]:
    """The fields of the section in which a problem is."""
    named = {
        "network": NETWORK_CONFIGS,
        "losses": LOSS_CONFIGS,
        "optimizer": OptimizerConfig,
        "schedule": ScheduleConfig,
        "validation": ValidationConfig,
        "augmentation": {
            name: type(field.default) for name, field in AugmentationConfig.model_fields.items()
        },
        "stages": StageConfig,
    }
    steps = [step for step in location[:-1] if isinstance(step, str)]
    if steps[:1] == ["stages"] and steps[1:]:
        steps = steps[1:]
    section: Any = TrainingConfig if not steps else named.get(steps[0])
    if isinstance(section, dict):
        section = section.get(steps[1]) if len(steps) > 1 else AugmentationConfig
    return list(getattr(section, "model_fields", ()))


def _with_absent(content: Mapping[str, Any], absent: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """What a file says, with values for fields that it does not name in sections that it has."""
    content = dict(content)
    for (first, *rest), value in absent.items():
        if not rest:
            content.setdefault(first, value)
        elif isinstance(content.get(first), dict):
            content[first] = _with_absent(content[first], {tuple(rest): value})
    return content


def _place_in_file(place: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The place of an error without what pydantic adds and the file does not have: preset, and form of a prior."""
    if place[:1] == ("losses",):
        place = place[:1] + place[2:]
    if place[:1] == ("network",):
        place = place[:1] + place[2:]
    if place[:2] == ("losses", "prior"):
        place = place[:2] + place[3:]
    return place


def write_config(config: TrainingConfig, path: Path) -> None:
    """Write the config with every value spelled out."""
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
