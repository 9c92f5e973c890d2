"""From a drawn patch to arrays: its box is read, turned, scaled, mirrored and written out with its candidates."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from partialseg.arrays import RemoteArray, read_boxes
from partialseg.data.augmentation.config import AugmentationConfig
from partialseg.data.augmentation.intensity import augment_intensity
from partialseg.data.augmentation.kernels import box_of, cut, resample, row_table
from partialseg.data.augmentation.spatial import AXES, SpatialTransform, draw_spatial
from partialseg.data.classes import mirrored_classes, unpaired_classes
from partialseg.data.labels import ignored_value
from partialseg.data.prepared import Case, Prepared
from partialseg.data.recycling import RecycledMemory
from partialseg.data.sampling import Draw
from partialseg.errors import DataError

#: What lies outside the field of view, in HU.
AIR = -1024

#: Part of a seed, so that augmentation shares no random numbers with the choice of patches.
_AUGMENTATION = 5

#: So many cases are kept open. What was read of them counts as memory of this process, though the system may take it.
_MOST_OPEN = 16

#: A turned patch lies in a larger box, which is read: a few GB of memory at most.
_MOST_BOX_VOXELS = 2**28

_ANY_HU = (-np.inf, np.inf)


@dataclass(frozen=True)
class Augmented:
    """What was done to a patch.

    Attributes:
        spatial: How it was turned, scaled and mirrored.
        intensity: The strength of each transform of the intensities that was applied, by name.
    """

    spatial: SpatialTransform = field(default_factory=SpatialTransform)
    intensity: dict[str, float] = field(default_factory=dict)


class PatchReader:
    """Reads patches of prepared cases, augmented or as they are.

    Voxels outside the volume are air (-1024 HU, or the lower end of the augmentation's window) and ignored: every
    class is a candidate. A patch that is mirrored across x has left and right organs exchanged; where a class has a
    side and the other side is no class (`partialseg.data.classes.unpaired_classes`), patches are not mirrored so.

    Args:
        prepared: The prepared cases.
        patch_size: `(depth, height, width)` in voxels.
        augmentation: What is drawn; None leaves patches as they are.
        seed: Of what is drawn.
    """

    def __init__(
        self,
        prepared: Prepared,
        patch_size: Sequence[int],
        augmentation: AugmentationConfig | None = None,
        seed: int = 0,
    ) -> None:
        self.prepared = prepared
        self.patch_size = tuple(patch_size)
        self.seed = seed
        self.augmentation = augmentation
        if augmentation is not None and unpaired_classes(prepared.classes):
            mirror = augmentation.mirror
            axes = tuple(axis for axis in mirror.axes if axis != "x")
            mirror = mirror.model_copy(update={"axes": axes})
            self.augmentation = augmentation.model_copy(update={"mirror": mirror})
        self.memory = RecycledMemory()
        self._opening = threading.Lock()
        self._opened: dict[tuple[str, str], tuple[np.ndarray | RemoteArray, np.ndarray | RemoteArray]] = {}
        self._rows: dict[tuple[str, tuple[str, ...] | None, bool], np.ndarray] = {}

    def read(self, draw: Draw, key: tuple[int, ...], image: np.ndarray, candidates: np.ndarray) -> Augmented:
        """Read one patch into arrays.

        Args:
            draw: The patch.
            key: Of the patch in its stream, such as its batch and its place there: with the seed it decides how
                the patch is augmented.
            image: float32 HU `(depth, height, width)`, C-contiguous, written to.
            candidates: uint8 of 0 and 1 `(depth, height, width, classes)`, C-contiguous, written to.

        Returns:
            What was done to it.

        Raises:
            DataError: If a file is missing or holds what the manifest does not say.
            ValueError: If an array is not C-contiguous.
        """
        if not image.flags.c_contiguous or not candidates.flags.c_contiguous:
            raise ValueError("image and candidates must be C-contiguous to be written to")
        flat_candidates = candidates.reshape(*self.patch_size, -1).reshape(*self.patch_size[:2], -1)
        config = self.augmentation
        if config is None:
            rows = self._row_table(draw.case, mirrored=False)
            box = self.read_box(draw.case, draw.start, self.patch_size)
            found = cut(*box, (False, False, False), _ANY_HU, rows, image, flat_candidates)
            self._check_value(draw.case, found)
            return Augmented()
        random = np.random.Generator(np.random.SFC64([self.seed, _AUGMENTATION, *key]))
        spatial = draw_spatial(config, self.patch_size, random)
        rows = self._row_table(draw.case, spatial.mirrored[AXES.index("x")])
        if spatial.resamples:
            found = self._read_resampled(draw, spatial, config.window_hu, rows, image, flat_candidates)
        else:
            box = self.read_box(draw.case, draw.start, self.patch_size)
            found = cut(*box, spatial.mirrored, config.window_hu, rows, image, flat_candidates)
        self._check_value(draw.case, found)
        strengths = augment_intensity(image, config, spatial.in_plane, random)
        return Augmented(spatial, strengths)

    def read_values(self, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Read one patch as it is stored, not augmented: three bytes a voxel, however many classes there are.

        Args:
            draw: The patch.

        Returns:
            int16 HU and uint8 values of the case's table, `(depth, height, width)`.

        Raises:
            DataError: If a file is missing or holds what the manifest does not say.
        """
        image, values = self.read_box(draw.case, draw.start, self.patch_size)
        highest = int(values.max())
        self._check_value(draw.case, highest if highest >= len(self.prepared.table(draw.case)) else -1)
        return image, values

    def read_box(
        self, case: Case, start: Sequence[int], size: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read a box that may reach out of the volume, where it is air and ignored.

        Args:
            case: The case.
            start: First voxel `(z, y, x)`; may be negative.
            size: `(depth, height, width)`.

        Returns:
            int16 HU and uint8 values of the case's table, both of this size, C-contiguous.

        Raises:
            DataError: If a file is missing or holds what the manifest does not say.
        """
        inside, source = [], []
        for first, length, voxels in zip(start, size, case.shape, strict=True):
            low, high = min(max(first, 0), voxels), max(min(first + length, voxels), 0)
            source.append(slice(low, max(low, high)))
            inside.append(slice(low - first, max(low, high) - first))
        parts = read_boxes(self._arrays(case), tuple(source))
        image, label = self.memory.empty(size, np.int16), self.memory.empty(size, np.uint8)
        if parts[0].shape != tuple(size):
            image.fill(AIR)
            label.fill(ignored_value(self.prepared.classes))
        image[tuple(inside)], label[tuple(inside)] = parts
        return image, label

    def _read_resampled(
        self,
        draw: Draw,
        spatial: SpatialTransform,
        window_hu: tuple[float, float],
        rows: np.ndarray,
        image: np.ndarray,
        flat_candidates: np.ndarray,
    ) -> int:
        """Turn and scale about the voxel on which the patch is centred, so that it keeps it; else about its middle."""
        start, middle = np.array(draw.start), (np.array(self.patch_size) - 1) / 2
        anchor = start + middle if draw.voxel is None else np.array(draw.voxel)
        matrix, offset = spatial.map(self.patch_size, anchor, anchor - start, self.prepared.spacing_mm)
        first, size = box_of(matrix, offset, self.patch_size)
        if math.prod(size.tolist()) > _MOST_BOX_VOXELS:
            raise DataError(
                "patch_size",
                f"a patch of {' x '.join(map(str, self.patch_size))} that is turned in space lies in a box of "
                f"{' x '.join(map(str, size.tolist()))} voxels, expected {_MOST_BOX_VOXELS} at most",
                "take a smaller patch, or turn it in its planes alone (`in_plane: true` under `augmentation`)",
            )
        box = self.read_box(draw.case, first.tolist(), size.tolist())
        scratch = self.memory.empty((box[0].size,), np.float32), self.memory.empty((box[0].size,), np.uint8)
        return resample(*box, matrix, offset - first, window_hu, rows, scratch, image, flat_candidates)

    def _arrays(self, case: Case) -> tuple[np.ndarray | RemoteArray, np.ndarray | RemoteArray]:
        """Image and label map of a case, kept open for a while: the system finds its pages anew in each new mapping."""
        key = case.dataset, case.name
        with self._opening:
            arrays = self._opened.get(key)
        if arrays is None:
            arrays = (
                self.prepared.image(case),
                self.prepared.label(case),
            )  # may take long: copies from an object store
            with self._opening:
                while len(self._opened) >= _MOST_OPEN:
                    del self._opened[next(iter(self._opened))]
                self._opened[key] = arrays
        return arrays

    def _check_value(self, case: Case, found: int) -> None:
        """Refuse a label value that the case's table has not (-1 if there is none)."""
        if found >= 0:
            num_values = len(self.prepared.datasets[case.dataset].table)
            raise DataError(
                self.prepared.folder / case.dataset / case.name / "label.npy",
                f"holds value {found}, but the dataset's table has 0 to {num_values - 1}",
                "prepare the case again",
            )

    def _row_table(self, case: Case, mirrored: bool) -> np.ndarray:
        """The row table of a case (see `kernels`), with left and right organs exchanged where it is mirrored."""
        key = case.dataset, case.annotated, mirrored
        if key not in self._rows:
            table = self.prepared.table(case)
            if mirrored:
                table = table[:, mirrored_classes(self.prepared.classes)]
            self._rows[key] = row_table(table, self.patch_size[2])
        return self._rows[key]


def mirror_note(prepared: Prepared, augmentation: AugmentationConfig | None) -> str | None:
    """Why patches are not mirrored across left and right although that is asked for; None where they are.

    Example:
        >>> prepared = Prepared(None, ("background", "left_kidney"), (3, 1.5, 1.5), {}, ())
        >>> mirror_note(prepared, AugmentationConfig())
        'patches are not mirrored across left and right: left_kidney has no other side in the class list'
    """
    if augmentation is None or not augmentation.mirror.probability or "x" not in augmentation.mirror.axes:
        return None
    unpaired = unpaired_classes(prepared.classes)
    if not unpaired:
        return None
    have = "has" if len(unpaired) == 1 else "have"
    without = f"{', '.join(unpaired)} {have} no other side in the class list"
    return f"patches are not mirrored across left and right: {without}"
