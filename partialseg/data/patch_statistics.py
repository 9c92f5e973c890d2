"""Which patches are drawn, in numbers: how often each dataset, case and organ comes, and how much of it is seen.

Labels are read, images are not. The numbers are those of the patches as they are cut, before augmentation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from partialseg.data.patch_reading import mirror_note
from partialseg.data.prepared import Case, Prepared
from partialseg.data.sampling import Draw, PatchPlan
from partialseg.errors import DataError, first_of
from partialseg.wording import counted

#: The classes that a voxel may be, as their numbers in the class list.
ClassSet = tuple[int, ...]


class PatchCounts:
    """Counts patches, batch by batch. It takes as much memory after many batches as after a few.

    Args:
        plan: What is drawn.
    """

    def __init__(self, plan: PatchPlan) -> None:
        self.plan = plan
        self.num_batches = 0
        self._cases: Counter[tuple[str, str]] = Counter()
        # How many patches of a dataset hold a set of classes, are centred on it, and hold annotated foreground.
        self._holding: Counter[tuple[str, ClassSet]] = Counter()
        self._centred: Counter[tuple[str, ClassSet]] = Counter()
        self._with_foreground: Counter[str] = Counter()
        self._voxel_shares: Counter[ClassSet] = Counter()
        self._outside, self._num_reaching_out, self._num_too_few = 0.0, 0, 0
        # Least number in a batch.
        self._least_centred = self._least_foreground = plan.config.batch_size

    def add(self, draws: Sequence[Draw]) -> None:
        """Count the patches of one batch.

        Raises:
            DataError: If a label map is missing, or holds what the manifest does not say.
        """
        num_foreground = sum([self._add_patch(draw) for draw in draws])
        num_centred = sum(draw.forced_value is not None for draw in draws)
        self._least_centred = min(self._least_centred, num_centred)
        self._least_foreground = min(self._least_foreground, num_foreground)
        self._num_too_few += num_centred < self.plan.config.num_forced
        self.num_batches += 1

    def _add_patch(self, draw: Draw) -> bool:
        """Count one patch; returns whether it holds annotated foreground."""
        prepared, dataset = self.plan.prepared, draw.case.dataset
        table = prepared.table(draw.case)
        voxels, inside = count_values(prepared, draw, self.plan.config.patch_size)
        num_voxels = math.prod(self.plan.config.patch_size)
        self._cases[dataset, draw.case.name] += 1
        held = {}
        for value in np.flatnonzero(voxels):
            key = class_set(table[value])
            held[key] = held.get(key, 0) + int(voxels[value])
        for key, count in held.items():
            self._holding[dataset, key] += 1
            self._voxel_shares[key] += count / num_voxels
        if draw.forced_value is not None:
            self._centred[dataset, class_set(table[draw.forced_value])] += 1
        self._outside += 1 - inside / num_voxels
        self._num_reaching_out += inside < num_voxels
        has_foreground = any(0 not in key for key in held)
        self._with_foreground[dataset] += has_foreground
        return has_foreground

    @property
    def num_patches(self) -> int:
        """How many patches were counted."""
        return sum(self._cases.values())

    def report(self) -> dict[str, Any]:
        """What was counted, as plain values, in the form of `inspect.json`.

        Returns:
            - `batches`, `patches`: how many were drawn.
            - `datasets`: for each `name`, `annotated` (organs), `patches`, `quota` (patches that the mix asks for:
              a whole number for whole epochs), `share` (of all patches), `cases`, `cases_drawn`, `centred` and
              `with_foreground` (patches), and names of cases: `never_drawn`, `without_foreground` and
              `smaller_than_patch`.
            - `classes`: for each organ, and for each set of organs that a label may mean, `name` (in words),
              `organs`, `patches` (that hold a voxel of it), `centred` (on it), `share` (of the voxels of all
              patches) and `datasets` (for each, `annotated`, `patches`, `centred`).
            - `other_voxels`: mean shares of the voxels: `background` (certain), `background_or_organ`, `ignored`
              (in the volume), `outside` (of it).
            - `foreground`: shares of the patches of a batch: `asked` (to be centred), `centred` and `annotated`
              (that hold annotated foreground), each with `least` and `mean`.
            - `reaching_out`: `patches` that reach out of the volume; `mean_outside`, of the voxels of all patches.
            - `notes`: what to know, in words.

        Raises:
            ValueError: If no batch was counted.
        """
        if not self.num_batches:
            raise ValueError("no batch was counted, expected one at least")
        datasets = [self._describe_dataset(name, quota) for name, quota in self._quotas().items()]
        classes = [self._describe_set(key) for key in self._organ_sets()]
        return {
            "batches": self.num_batches,
            "patches": self.num_patches,
            "datasets": datasets,
            "classes": classes,
            "other_voxels": self._other_voxels(),
            "foreground": self._foreground(),
            "reaching_out": {
                "patches": self._num_reaching_out,
                "mean_outside": self._outside / self.num_patches,
            },
            "notes": self._notes(datasets, classes),
        }

    def _quotas(self) -> dict[str, float]:
        """What each dataset should have given; of an epoch in part, the same part of its quota."""
        quotas = dict.fromkeys(self.plan.datasets, 0.0)
        for first in range(0, self.num_batches, self.plan.config.batches_per_epoch):
            part = min(1, (self.num_batches - first) / self.plan.config.batches_per_epoch)
            for name, quota in self.plan.quotas(first // self.plan.config.batches_per_epoch).items():
                quotas[name] += part * quota
        return quotas

    def _describe_dataset(self, name: str, quota: float) -> dict[str, Any]:
        """One dataset in the report."""
        cases = self.plan.cases[name]
        patches = sum(self._cases[name, case.name] for case in cases)
        never = [case.name for case in cases if not self._cases[name, case.name]]
        return {
            "name": name,
            "annotated": list(self.plan.prepared.datasets[name].annotated),
            "patches": patches,
            "quota": quota,
            "share": patches / self.num_patches,
            "cases": len(cases),
            "cases_drawn": len(cases) - len(never),
            "centred": sum(count for (dataset, _), count in self._centred.items() if dataset == name),
            "with_foreground": self._with_foreground[name],
            "never_drawn": never,
            "without_foreground": [case.name for case in cases if not case.foreground],
            "smaller_than_patch": [case.name for case in cases if self._is_smaller(case)],
        }

    def _is_smaller(self, case: Case) -> bool:
        """Whether the patch is longer than the volume along an axis."""
        patch_size = self.plan.config.patch_size
        return any(size < patch for size, patch in zip(case.shape, patch_size, strict=True))

    def _organ_sets(self) -> list[ClassSet]:
        """Every organ, then the sets of organs that labels here may mean."""
        organs = [(number,) for number in range(1, len(self.plan.prepared.classes))]
        rows = [row for name in self.plan.datasets for row in self.plan.prepared.datasets[name].table]
        meant = {class_set(row) for row in rows if not row[0]}
        return organs + sorted(meant.difference(organs))

    def _describe_set(self, key: ClassSet) -> dict[str, Any]:
        """An organ, or a set of organs, in the report."""
        names = [self.plan.prepared.classes[number] for number in key]
        cells = {dataset: self._describe_cell(dataset, key, names) for dataset in self.plan.datasets}
        return {
            "name": in_words(names),
            "organs": names,
            "patches": sum(cell["patches"] for cell in cells.values()),
            "centred": sum(cell["centred"] for cell in cells.values()),
            "share": self._voxel_shares[key] / self.num_patches,
            "datasets": cells,
        }

    def _describe_cell(self, dataset: str, key: ClassSet, names: Sequence[str]) -> dict[str, Any]:
        """An organ, or a set of them, in the patches of one dataset."""
        found = self.plan.prepared.datasets[dataset]
        is_annotated = names[0] in found.annotated if len(names) == 1 else key in map(class_set, found.table)
        return {
            "annotated": is_annotated,
            "patches": self._holding[dataset, key],
            "centred": self._centred[dataset, key],
        }

    def _other_voxels(self) -> dict[str, float]:
        """Mean shares of the voxels that are no annotated foreground."""
        all_classes = tuple(range(len(self.plan.prepared.classes)))
        merged = [key for key in self._voxel_shares if 0 in key and key not in ((0,), all_classes)]
        sums = {
            "background": self._voxel_shares[(0,)],
            "background_or_organ": sum(self._voxel_shares[key] for key in merged),
            "ignored": self._voxel_shares[all_classes],
            "outside": self._outside,
        }
        return {name: total / self.num_patches for name, total in sums.items()}

    def _foreground(self) -> dict[str, Any]:
        """The shares of a batch's patches that show annotated foreground."""
        size, num_centred = self.plan.config.batch_size, sum(self._centred.values())
        return {
            "asked": self.plan.config.num_forced / size,
            "centred": {"least": self._least_centred / size, "mean": num_centred / self.num_patches},
            "annotated": {
                "least": self._least_foreground / size,
                "mean": sum(self._with_foreground.values()) / self.num_patches,
            },
        }

    def _notes(self, datasets: Sequence[dict[str, Any]], classes: Sequence[dict[str, Any]]) -> list[str]:
        """What a person should know before training so."""
        config = self.plan.config
        notes = [mirror_note(self.plan.prepared, config.augmentation)]
        if self.num_batches % config.batches_per_epoch:
            notes.append(
                f"datasets give what `mix` asks for over an epoch, which has "
                f"{counted(config.batches_per_epoch, 'batch', 'batches')}; counted were {self.num_batches}"
            )
        if self._num_too_few:
            notes.append(
                f"{self._num_too_few} of {counted(self.num_batches, 'batch', 'batches')} hold fewer than "
                f"{counted(config.num_forced, 'patch', 'patches')} centred on annotated foreground, which "
                "`foreground` asks for: too few of their datasets have any"
            )
        size = " x ".join(map(str, config.patch_size))
        for field, what in (
            ("without_foreground", "without annotated foreground: no patch of theirs is centred on an organ"),
            (
                "smaller_than_patch",
                f"smaller than the patch of {size}: what lies outside is air, and ignored",
            ),
            ("never_drawn", f"not drawn in {counted(self.num_batches, 'batch', 'batches')}"),
        ):
            if names := [f"{dataset['name']}/{case}" for dataset in datasets for case in dataset[field]]:
                notes.append(f"{counted(len(names), 'case')} {what}: {first_of(names)}")
        for organ in classes:
            annotating = [name for name, cell in organ["datasets"].items() if cell["annotated"]]
            if not annotating and len(organ["organs"]) == 1:
                notes.append(f"no dataset drawn from annotates {organ['name']}")
            elif len(organ["organs"]) == 1 and not organ["patches"]:
                notes.append(f"no patch holds {organ['name']}, annotated by {first_of(annotating)}")
        return [note for note in notes if note is not None]


def count_values(prepared: Prepared, draw: Draw, patch_size: Sequence[int]) -> tuple[np.ndarray, int]:
    """Count the label values in a patch.

    Args:
        prepared: The prepared cases.
        draw: The patch.
        patch_size: `(depth, height, width)` in voxels.

    Returns:
        Voxels of each value of the case's table, int64 `(values,)`, and how many there are: those in the volume.

    Raises:
        DataError: If the label map is missing, or holds what the manifest does not say.
    """
    box = tuple(
        slice(max(start, 0), start + length) for start, length in zip(draw.start, patch_size, strict=True)
    )
    num_values = len(prepared.datasets[draw.case.dataset].table)
    label = np.asarray(prepared.label(draw.case)[box])
    voxels = np.bincount(label.ravel(), minlength=num_values)
    if len(voxels) > num_values:
        raise DataError(
            prepared.folder / draw.case.dataset / draw.case.name / "label.npy",
            f"holds value {len(voxels) - 1}, but the dataset's table has 0 to {num_values - 1}",
            "prepare the case again",
        )
    return voxels, label.size


def class_set(row: Iterable[int]) -> ClassSet:
    """The classes of a row of a candidate table.

    Example:
        >>> class_set([1, 0, 1])
        (0, 2)
    """
    return tuple(number for number, is_in in enumerate(row) if is_in)


def in_words(organs: Sequence[str]) -> str:
    """A set of organs for people; of a pair, the side alone differs.

    Example:
        >>> in_words(["left_kidney", "right_kidney"]), in_words(["left_kidney"]), in_words(["liver", "colon"])
        ('left or right kidney', 'left kidney', 'liver or colon')
    """
    if len(organs) == 2 and organs[0].startswith("left_") and organs[1] == f"right_{organs[0][5:]}":
        organs = ["left", organs[1]]
    return " or ".join(organs).replace("_", " ")
