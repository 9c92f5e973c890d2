"""From prepared data and the memory of a device to a config: patch, batch and stages, as nnU-Net's planner chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import yaml

from partialseg.data.prepared import Prepared
from partialseg.errors import DataError
from partialseg.models.topology import Topology, topology
from partialseg.training.config import TrainingConfig, read_config
from partialseg.training.fingerprint import Fingerprint, fingerprint
from partialseg.training.memory import Memory, estimate
from partialseg.training.network_config import UNetConfig

#: A batch is no larger than this share of all training voxels.
MOST_OF_THE_DATA = 0.05
#: Voxels of the patch that the search begins with.
_LARGEST_PATCH = 256**3
_SMALLEST_BATCH = 2
#: Least voxels along an axis of a patch: organs are not told apart in less.
_SMALLEST_AXIS = 16


@dataclass(frozen=True)
class Plan:
    """A config, and what led to it.

    Attributes:
        config: Ready to train.
        fingerprint: Of the data.
        memory: Of a training step.
        memory_gb: What the device has.
        notes: What someone should know, a sentence each.
    """

    config: TrainingConfig
    fingerprint: Fingerprint
    memory: Memory
    memory_gb: float
    notes: tuple[str, ...]

    def text(self) -> str:
        """The config as YAML, with what led to it on top."""
        found = self.fingerprint
        about = [
            f"{len(found.datasets)} datasets, {sum(d.cases for d in found.datasets)} training cases of "
            f"{_times(found.median)} voxels (median) at {_times(found.spacing_mm)} mm",
            f"a training step is estimated at {self.memory.gigabytes:.1f} GB of {self.memory_gb:g}",
            *self.notes,
        ]
        lines = "".join(f"# {line}\n" for line in about)
        # What is as by default is left to the default, so that the file says what was planned.
        content = self.config.model_dump(mode="json", exclude_defaults=True)
        return lines + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=110)


def plan(
    prepared: Prepared,
    preset: str = "default",
    memory_gb: float = 8.0,
    encoder: Literal["plain", "residual"] | None = None,
    precision: Literal["float32", "bfloat16", "float16"] | None = None,
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Plan:
    """Choose patch, batch and stages for prepared data.

    The patch begins as large as 256³ voxels in the shape of a cube in mm, but not larger than the median case. The
    axis that covers most of the median case is made smaller until two patches fit into the memory; then the batch
    grows while it fits and stays below 5% of all training voxels. Strides and kernels follow (see `topology`).

    Reference:
        Isensee et al., Nature Methods 2021. What a step needs is estimated in bytes (see `estimate`), where nnU-Net
        compares numbers of map values with those of a network that was measured.

    Args:
        prepared: The prepared cases.
        preset: The config that says all else. "paper" also says patch, batch and stages: those of section 4.3, for
            any data.
        memory_gb: Memory of the device on which a batch, or its part on one of several devices, is computed.
        encoder: Of the network; as the preset says by default.
        precision: In which it computes; as the preset says by default.
        patch_size: Voxels `(depth, height, width)`, instead of the chosen ones; rounded up to what strides divide.
        batch_size: Instead of the chosen one.

    Raises:
        DataError: If there is no training case, the preset has no U-Net, or not even the smallest patch fits.

    Example:
        See docs/planning.md.
    """
    found, base = fingerprint(prepared), read_config(preset)
    if not isinstance(base.network, UNetConfig):
        raise DataError(
            preset, f"has a network of kind {base.network.kind}", "plan with a preset that has a U-Net"
        )
    base = base.model_copy(update={"precision": precision or base.precision})
    if preset == "paper" and encoder not in (None, base.network.encoder):
        raise DataError(
            preset, f"found encoder {encoder}, expected {base.network.encoder}", "leave --encoder out"
        )
    encoder = encoder or base.network.encoder
    search = _Search(base, encoder, len(prepared.classes), memory_gb)
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
    memory = search.memory(chosen.network, chosen.patch_size, chosen.batch_size)
    notes = _notes(found, memory, memory_gb)
    # As a file of it will be read.
    return Plan(TrainingConfig.model_validate(chosen.model_dump()), found, memory, memory_gb, notes)


class _Search:
    """Patches that fit into a memory."""

    def __init__(self, base: TrainingConfig, encoder: str, num_classes: int, memory_gb: float) -> None:
        self.base, self.encoder, self.num_classes, self.memory_gb = base, encoder, num_classes, memory_gb

    def network(self, stages: Topology) -> UNetConfig:
        content = {
            **self.base.network.model_dump(),
            "strides": stages.strides,
            "kernels": stages.kernels,
            "encoder": self.encoder,
        }
        if self.encoder != self.base.network.encoder:  # the numbers of the other encoder say nothing here
            content |= {"convolutions_per_stage": None, "decoder_convolutions": None}
        return UNetConfig.model_validate(content)

    def memory(self, network: UNetConfig, patch_size: Sequence[int], batch_size: int) -> Memory:
        copies = 1 + (2 if self.base.optimizer.name == "adam" else 1) + (self.base.optimizer.ema is not None)
        copies += self.base.accumulate > 1
        at_a_time = -(-batch_size // self.base.accumulate)
        return estimate(network, patch_size, at_a_time, self.num_classes, self.base.precision, copies)

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
        while not self.fits(stages, _SMALLEST_BATCH):
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
                    f"{self.memory_gb:g} GB do not hold a step with two patches of {_times(stages.patch_size)} voxels",
                    "take more, or give --batch-size and --patch-size",
                )
            stages = topology(smaller, spacing)
        return stages

    def batch(self, stages: Topology, found: Fingerprint) -> int:
        """As many patches as fit, at most 5% of the voxels, at least 2."""
        most = round(found.voxels * MOST_OF_THE_DATA / math.prod(stages.patch_size))
        batch = _SMALLEST_BATCH
        while batch < most and self.fits(stages, batch + 1):
            batch += 1
        return batch


def _notes(found: Fingerprint, memory: Memory, memory_gb: float) -> tuple[str, ...]:
    notes = []
    if memory.gigabytes > memory_gb:
        notes.append(
            f"more than the {memory_gb:g} GB given: set accumulate to batch_size, or take a smaller patch"
        )
    if found.source_mm is not None:
        ratios = [prepared / raw for prepared, raw in zip(found.spacing_mm, found.source_mm, strict=True)]
        if max(ratios) >= 2 or min(ratios) <= 0.5:
            notes.append(
                f"the raw scans have voxels of {_times(found.source_mm)} mm (median): to keep more of them, prepare "
                f"with --spacing {' '.join(f'{length:g}' for length in found.source_mm)}"
                if max(ratios) >= 2
                else f"the raw scans have voxels of {_times(found.source_mm)} mm (median), coarser than the prepared"
            )
    return tuple(notes)


def _times(numbers: Sequence[float]) -> str:
    return "×".join(f"{number:g}" for number in numbers)
