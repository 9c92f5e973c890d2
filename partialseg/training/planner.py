"""From prepared data and the memory of a device to a config: patch, batch and stages, as nnU-Net's planner chooses."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from partialseg.data.prepared import Prepared
from partialseg.errors import DataError
from partialseg.models.topology import Topology, topology
from partialseg.training.config import TrainingConfig, read_config
from partialseg.training.fingerprint import Fingerprint, fingerprint
from partialseg.training.memory import Memory, estimate_training
from partialseg.training.network_config import NetworkConfig, UNetConfig
from partialseg.wording import counted, times

#: A batch is no larger than this share of all training voxels.
MOST_OF_THE_DATA = 0.05
#: Voxels of the patch that the search begins with.
_LARGEST_PATCH = 256**3
_SMALLEST_BATCH = 2
#: How the file of a plan begins, see `Plan.text`.
_HEAD = re.compile(r"# [\d,]+ datasets?, [\d,]+ training cases? of .*\n# a training step is estimated at ")
_LONGEST_HEAD = 1000
#: Least voxels along an axis of a patch: organs are not told apart in less.
_SMALLEST_AXIS = 16


@dataclass(frozen=True)
class Plan:
    """A config, and what led to it.

    Attributes:
        config: Ready to train.
        fingerprint: Of the data.
        memory: Of a training step.
        memory_gb: What a device has.
        devices: How many share a batch.
        notes: What someone should know, a sentence each.
    """

    config: TrainingConfig
    fingerprint: Fingerprint
    memory: Memory
    memory_gb: float
    devices: int
    notes: tuple[str, ...]

    def text(self) -> str:
        """The config as YAML, with what led to it on top."""
        found = self.fingerprint
        about = [
            f"{counted(len(found.datasets), 'dataset')}, "
            f"{counted(sum(d.cases for d in found.datasets), 'training case')} of "
            f"{times(found.median)} voxels (median) at {times(found.spacing_mm)} mm",
            f"a training step is estimated at {self.memory.gigabytes:.1f} GB of {self.memory_gb:g}"
            + (f" on each of {self.devices} devices" if self.devices > 1 else ""),
            spacing_line(found),
            *self.notes,
        ]
        lines = "".join(f"# {line}\n" for line in about)
        # What is as by default is left to the default, so that the file says what was planned.
        content = self.config.model_dump(mode="json", exclude_defaults=True)
        # What a section is comes first; it is the default of that section, though another one is the config's.
        for section, choice in (("network", "kind"), ("losses", "preset")):
            chosen = getattr(getattr(self.config, section), choice)
            if chosen != getattr(TrainingConfig.model_fields[section].default, choice):
                content[section] = {choice: chosen, **content[section]}
        return lines + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)


def check_may_write_plan(path: Path) -> None:
    """Refuse to write a plan over a file that is something else; an earlier plan may be replaced.

    Raises:
        DataError: If something is there that `Plan.text` did not make, or that can no longer be read as a config.

    Example:
        >>> check_may_write_plan(Path("no such file"))
    """
    if not path.exists():
        return
    why = None if path.is_file() else "no file"
    if why is None:
        with path.open(encoding="utf-8", errors="replace") as file:
            why = None if _HEAD.match(file.read(_LONGEST_HEAD)) else "no config that `partialseg plan` wrote"
    if why is None:
        try:
            read_config(path)
        except DataError as error:
            why = f"no config that can be read ({error.problem})"
    if why is not None:
        remedy = "give another file with --out, or move it away"
        raise DataError(path, f"is there already and is {why}, which is not written over", remedy)


def plan(
    prepared: Prepared,
    preset: str = "default",
    memory_gb: float = 8.0,
    encoder: Literal["plain", "residual"] | None = None,
    precision: Literal["float32", "bfloat16", "float16"] | None = None,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    devices: int = 1,
) -> Plan:
    """Choose patch, batch and stages for prepared data.

    The patch begins as large as 256³ voxels in the shape of a cube in mm, but not larger than the median case. The
    axis that covers most of the median case is made smaller until two patches fit into the memory; then the batch
    grows while it fits and stays below 5% of all training voxels. Strides and kernels follow (see `topology`). Of
    several devices each has its part of the batch, which is a multiple of their number.

    The voxel size is that of the prepared data; `spacing_line` says which nnU-Net would choose for the raw scans.

    Reference:
        Isensee et al., Nature Methods 2021. What a step needs is estimated in bytes (see `estimate`), where nnU-Net
        compares numbers of map values with those of a network that was measured.

    Args:
        prepared: The prepared cases.
        preset: The config that says all else. "paper" also says patch, batch and stages: those of section 4.3, for
            any data.
        memory_gb: Memory of the device on which a batch, or its part on one of several devices, is computed.
        encoder: Of a U-Net; as the preset says by default.
        precision: In which it computes; as the preset says by default.
        patch_size: Voxels `(depth, height, width)`, instead of the chosen ones; rounded up to what strides divide.
        batch_size: Instead of the chosen one.
        devices: How many share a batch.

    Raises:
        DataError: If there is no training case, an encoder is chosen of a network that is no U-Net, not even the
            smallest patch fits, or the batch, or its parts, are not for so many devices.

    Example:
        See docs/planning.md.
    """
    found, base = fingerprint(prepared), read_config(preset)
    own_encoder = getattr(base.network, "encoder", None)
    if encoder is not None and own_encoder is None:
        problem = (
            f"found encoder {encoder}, and a network of kind {base.network.kind} has no encoder to choose"
        )
        raise DataError(preset, problem, "leave --encoder out, or plan with a preset that has a U-Net")
    base = base.model_copy(update={"precision": precision or base.precision})
    if preset == "paper" and encoder not in (None, own_encoder):
        raise DataError(preset, f"found encoder {encoder}, expected {own_encoder}", "leave --encoder out")
    search = _Search(base, encoder or own_encoder, len(prepared.classes), memory_gb, devices)
    if preset == "paper":
        chosen = base.model_copy(
            update={
                "patch_size": tuple(patch_size or base.patch_size),
                "batch_size": batch_size or base.batch_size,
            }
        )
    else:
        stages = topology(patch_size, found.spacing_mm) if patch_size else search.patch(found)
        batch = batch_size or search.batch(stages, found)
        chosen = base.model_copy(
            update={"patch_size": stages.patch_size, "batch_size": batch, "network": search.network(stages)}
        )
    _check_devices(chosen, preset, devices)
    memory = search.memory(chosen.network, chosen.patch_size, chosen.batch_size)
    notes = _notes(memory, memory_gb, devices)
    # As a file of it will be read.
    return Plan(TrainingConfig.model_validate(chosen.model_dump()), found, memory, memory_gb, devices, notes)


def _check_devices(chosen: TrainingConfig, preset: str, devices: int) -> None:
    """Refuse what `train` would refuse on so many devices."""
    if chosen.batch_size % devices:
        more = -(-chosen.batch_size // devices) * devices
        raise DataError(
            preset,
            f"found batch_size {chosen.batch_size}, which {devices} devices cannot share evenly",
            f"give --batch-size {more}",
        )
    if chosen.accumulate > 1 and devices > 1:
        raise DataError(
            preset,
            f"found accumulate {chosen.accumulate}, which is for one device, and --devices {devices}",
            "set `accumulate: 1` in it: each device has a part of the batch already",
        )


class _Search:
    """Patches that fit into the memory of each device."""

    def __init__(
        self, base: TrainingConfig, encoder: str | None, num_classes: int, memory_gb: float, devices: int = 1
    ) -> None:
        self.base, self.encoder, self.num_classes, self.memory_gb = base, encoder, num_classes, memory_gb
        self.devices = devices
        self.smallest_batch = -(-_SMALLEST_BATCH // devices) * devices

    def network(self, stages: Topology) -> NetworkConfig:
        if len(stages.strides) < 2:
            problem = f"a patch of {times(stages.patch_size)} voxels cannot be halved, as the network does"
            raise DataError("patch size", problem, "give a larger --patch-size")
        own = self.base.network
        content = {**own.model_dump(), "strides": stages.strides, "kernels": stages.kernels}
        if isinstance(own, UNetConfig) and self.encoder != own.encoder:
            # The numbers of the other encoder say nothing here.
            content |= {
                "encoder": self.encoder,
                "convolutions_per_stage": None,
                "decoder_convolutions": None,
            }
        return type(own).model_validate(content)

    def memory(self, network: NetworkConfig, patch_size: Sequence[int], batch_size: int) -> Memory:
        chosen = {"network": network, "patch_size": tuple(patch_size), "batch_size": batch_size}
        return estimate_training(self.base.model_copy(update=chosen), self.num_classes, self.devices)

    def fits(self, stages: Topology, batch_size: int) -> bool:
        if len(stages.strides) < 2:
            return False
        return self.memory(self.network(stages), stages.patch_size, batch_size).gigabytes <= self.memory_gb

    def patch(self, found: Fingerprint) -> Topology:
        """The largest patch in the shape of the median case of which two fit."""
        spacing = found.spacing_mm
        edge_mm = (_LARGEST_PATCH * math.prod(spacing)) ** (1 / 3)
        cube = [round(edge_mm / length) for length in spacing]
        stages = topology([min(pair) for pair in zip(cube, found.median, strict=True)], spacing)
        while not self.fits(stages, self.smallest_batch):
            shares = [size / median for size, median in zip(stages.patch_size, found.median, strict=True)]
            axis = max(range(3), key=shares.__getitem__)
            smaller = list(stages.patch_size)
            smaller[axis] -= stages.multiple[axis]
            if smaller[axis] > 0:
                # A smaller axis may be halved less often, and then a smaller step keeps more of it.
                smaller[axis] = stages.patch_size[axis] - topology(smaller, spacing).multiple[axis]
            if smaller[axis] < min(_SMALLEST_AXIS, found.median[axis]):
                raise DataError(
                    "memory",
                    f"{self.memory_gb:g} GB do not hold a step with two patches of {times(stages.patch_size)} voxels",
                    "take more, or give --batch-size and --patch-size",
                )
            stages = topology(smaller, spacing)
        return stages

    def batch(self, stages: Topology, found: Fingerprint) -> int:
        """As many patches as fit, at most 5% of the voxels, at least 2; a multiple of the devices."""
        most = round(found.voxels * MOST_OF_THE_DATA / math.prod(stages.patch_size))
        batch = self.smallest_batch
        while batch + self.devices <= most and self.fits(stages, batch + self.devices):
            batch += self.devices
        return batch


def spacing_line(found: Fingerprint) -> str:
    """Which voxel size nnU-Net's rule gives for the raw scans, and whether the prepared data have it.

    Args:
        found: Of the data.

    Example:
        >>> print(spacing_line(Fingerprint((3.0, 1.5, 1.5), (90, 260, 260), 1, None, (), (5.0, 0.8, 0.8), 7)))
        nnU-Net's rule gives --spacing 5 0.8 0.8 for 7 raw scans; the data have 3 1.5 1.5: prepare again to train at it
    """
    if found.target_mm is None:
        return "the voxel sizes of the raw scans are not known: prepare again to have one suggested"
    wanted, there = (
        " ".join(f"{length:g}" for length in lengths) for lengths in (found.target_mm, found.spacing_mm)
    )
    rule = f"nnU-Net's rule gives --spacing {wanted} for {counted(found.known, 'raw scan')}"
    if all(math.isclose(*pair, rel_tol=0.02) for pair in zip(found.target_mm, found.spacing_mm, strict=True)):
        return f"{rule}, and the data have it"
    return f"{rule}; the data have {there}: prepare again to train at it"


def _notes(memory: Memory, memory_gb: float, devices: int) -> tuple[str, ...]:
    if memory.gigabytes <= memory_gb:
        return ()
    remedy = (
        "take a smaller patch" if devices > 1 else "set accumulate to batch_size, or take a smaller patch"
    )
    return (f"more than the {memory_gb:g} GB given: {remedy}",)
