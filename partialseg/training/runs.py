"""The run folder: all that a resume, a prediction, a report or an export needs.

RUN/config.yaml        the resolved config
RUN/run.json           classes, spacing, patch size, datasets, cases, those held out and those predicted whole, versions
RUN/model.keras        the trained network
RUN/log.csv            a row per epoch: stage, epoch, learning_rate, loss, seconds, data_wait, Dice of the validation
RUN/terms.csv          a row per epoch, dataset, organ ("all": the term itself) and loss term: stage, epoch, dataset,
                       organ, term, value
RUN/validation.csv     a row per Dice: stage, epoch, source (patches, volumes), dataset, case, organ, dice
RUN/not_finite/        after a loss that is no number: what was found, and the patches
RUN/tensorboard/       the same for TensorBoard
RUN/checkpoint/        while it trains: the newest two checkpoints, each with every variable and where it stands
RUN/best/              while it trains: the weights with the best validation
RUN/.lock              while it trains: keeps another training out; a killed one leaves it, and it holds nobody up
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partialseg.data.front_matter import read_yaml
from partialseg.errors import DataError
from partialseg.files import write_json
from partialseg.training.config import TrainingConfig, read_config, write_config

if TYPE_CHECKING:
    import keras

#: What runs did before a config had a field for it, by the field's path: what one that does not name it began with.
BEFORE_THERE_WAS_A_FIELD = {
    ("augmentation",): None,
    ("schedule", "over"): "each_stage",
    ("validation", "volumes"): None,
}


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: Where it lies.
        config: What it was trained with.
        classes: Background, then the organs: the order of the logits.
        spacing_mm: Voxel size `(z, y, x)` in mm that the network expects.
        datasets: Names of the datasets and their annotated organs.
        started_from: The run whose weights it began with, as a path from its own folder; None: random ones.
        cases: Names of the prepared cases of each dataset, by split ("train", "test"); None where an earlier version
            began the run.
    """

    folder: Path
    config: TrainingConfig
    classes: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    datasets: dict[str, tuple[str, ...]]
    started_from: str | None = None
    cases: dict[str, dict[str, tuple[str, ...]]] | None = None

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """`(depth, height, width)` in voxels."""
        return self.config.patch_size

    @property
    def model_path(self) -> Path:
        """Where the trained network is."""
        return self.folder / "model.keras"

    def load_model(self) -> keras.Model:
        """Load the trained network, without its optimiser.

        Raises:
            DataError: If training has not ended, or the file is damaged.
        """
        if not self.model_path.is_file():
            raise DataError(
                self.model_path,
                "there is no trained network",
                f"let `partialseg train CONFIG --prepared DIR --out {self.folder}` end; it goes on where it stopped",
            )
        if not zipfile.is_zipfile(self.model_path):
            raise DataError(
                self.model_path,
                "cannot be read as a network (it is cut short, or no zip file)",
                "copy it again from where it was trained",
            )
        import keras

        import partialseg.models  # noqa: F401  (registers the layers that the file names)

        try:
            return keras.saving.load_model(self.model_path, compile=False)
        except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
            problem = f"cannot be read as a network ({error})"
            raise DataError(self.model_path, problem, "copy it again from where it was trained") from error


#: What training writes into the run folder itself, each under a temporary name first.
_WRITTEN = (
    *("config.yaml", "run.json", "model.keras", "not_finite"),
    *("log.csv", "terms.csv", "validation.csv"),
)


def left_overs(folder: Path) -> list[Path]:
    """What a killed training left under temporary names, and of a finished one its checkpoints."""
    patterns = [f".partial-*-{name}" for name in _WRITTEN] + ["checkpoint/.partial-*", "best/.partial-*"]
    if (folder / "model.keras").is_file():
        patterns += ["checkpoint", "best"]
    return [path for pattern in patterns for path in folder.glob(pattern)]


def remove_left_overs(folder: Path) -> None:
    """Remove them. No other process may be training in the folder."""
    for path in left_overs(folder):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have gone with its folder


def write_run(
    run: Run,
    versions: dict[str, str],
    held_out: Mapping[str, Sequence[str]] | None = None,
    predicted_whole: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write `config.yaml` and `run.json`.

    Args:
        run: What to write, and where.
        versions: Of the packages that decide what is computed.
        held_out: Names of the cases of each dataset that are held out of training.
        predicted_whole: Those of them that validation predicts whole.
    """
    write_config(run.config, run.folder / "config.yaml")
    write_json(
        run.folder / "run.json",
        {
            "classes": run.classes,
            "spacing_mm": run.spacing_mm,
            "patch_size": run.patch_size,
            "datasets": run.datasets,
            "started_from": run.started_from,
            "cases": run.cases,
            "held_out": held_out or {},
            "predicted_whole": predicted_whole or {},
            "versions": versions,
        },
    )


def read_run(folder: str | Path) -> Run:
    """Read a run folder.

    A run that began before configs had a field has the value that says what was done then, whatever the default is
    now: no augmentation, a polynomial fall of the learning rate in each stage, and every held-out case predicted whole.

    Raises:
        DataError: If it is not one, or its files are damaged.
    """
    folder = Path(folder)
    path = folder / "run.json"
    if not folder.is_dir():
        remedy = "correct the path, or make a run by `partialseg train`"
        raise DataError(folder, "there is no such folder, expected a run", remedy)
    if not path.is_file():
        remedy = "give the folder that `partialseg train` wrote"
        raise DataError(folder, "is no run folder (it has no run.json)", remedy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Run(
            folder=folder,
            config=read_config(folder / "config.yaml", absent=BEFORE_THERE_WAS_A_FIELD),
            classes=tuple(content["classes"]),
            spacing_mm=tuple(content["spacing_mm"]),
            datasets={name: tuple(organs) for name, organs in content["datasets"].items()},
            started_from=content.get("started_from"),
            cases=_cases(content.get("cases")),
        )
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            path, f"does not describe a run ({error!r})", "copy the run folder again, or train anew"
        ) from error


def _cases(content: Any) -> dict[str, dict[str, tuple[str, ...]]] | None:
    """The cases that run.json lists."""
    if content is None:
        return None
    return {
        split: {dataset: tuple(names) for dataset, names in of_split.items()}
        for split, of_split in content.items()
    }


def as_begun(config: TrainingConfig, folder: Path) -> TrainingConfig:
    """The config; fields that it leaves to the default are as the run in the folder began, if they are newer.

    Args:
        config: To continue the run with.
        folder: Of the run, or where one will be.
    """
    path = folder / "config.yaml"
    if not (path.is_file() and (folder / "run.json").is_file()):
        return config
    named = read_yaml(path).content
    for (field, *rest), value in BEFORE_THERE_WAS_A_FIELD.items():
        if not rest:
            if field not in named and field not in config.model_fields_set:
                config = config.model_copy(update={field: value})
        elif isinstance(named.get(field), dict) and rest[0] not in named[field]:
            section = getattr(config, field)
            if section is not None and rest[0] not in section.model_fields_set:
                section = section.model_copy(update={rest[0]: value})
                config = config.model_copy(update={field: section})
    return config
