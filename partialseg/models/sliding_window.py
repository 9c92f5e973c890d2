"""Predict a volume of any size window by window, blended with Gaussian weights as nnU-Net does.

Windows are taken slab by slab, from the feet to the head. Their weighted logits are summed in a ring of as many planes
as a window is deep; a plane that no later window touches leaves it as probabilities. So memory grows with the
classes times a slab, not times the volume.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from partialseg.models.blending import MAX_THREADS, BlendedPlanes
from partialseg.models.forward import forward_pass
from partialseg.models.windows import window_starts, window_weights

#: What lies outside the field of view, in HU.
AIR = -1024.0
#: Axes of a volume, in order.
AXES = ("z", "y", "x")


@dataclass(frozen=True)
class WindowSettings:
    """How a volume is cut into windows, and what is done with each.

    Attributes:
        overlap: Share of a window that it has in common with the next one at least, 0 to below 1.
        batch_size: Windows that are predicted together.
        mirror_axes: Of "z", "y" and "x" those along which windows are mirrored too: the result is the mean of the
            logits over all flips, 2, 4 or 8 forward passes for each window. "x" is left and right.
        skip_outside_body: Whether windows without any part of the body are background without being computed; see
            `partialseg.data.body`. Where a volume's voxel size is not known (`predict_volume`) none are skipped.

    Raises:
        ValueError: If a value is not in its range.

    Example:
        >>> WindowSettings(mirror_axes=("x", "y")).flips
        ((False, False, False), (False, False, True), (False, True, False), (False, True, True))
    """

    overlap: float = 0.5
    batch_size: int = 1
    mirror_axes: tuple[str, ...] = ()
    skip_outside_body: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must be from 0 to below 1, received {self.overlap}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, received {self.batch_size}")
        if unknown := sorted(set(self.mirror_axes) - set(AXES)):
            raise ValueError(f"mirror_axes must be of {', '.join(AXES)}, received {', '.join(unknown)}")

    @property
    def flips(self) -> tuple[tuple[bool, bool, bool], ...]:
        """For each forward pass whether the window is mirrored along `(z, y, x)`; first as it is."""
        choices = ((False, True) if axis in self.mirror_axes else (False,) for axis in AXES)
        return tuple(itertools.product(*choices))


#: Half a window of overlap, one window at a time, as it is.
DEFAULT_SETTINGS = WindowSettings()


def predict_volume(
    model: Callable[[Any], Any],
    volume: np.ndarray,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    mirror_axes: Sequence[str] = (),
    mirrored_classes: Sequence[int] | None = None,
) -> np.ndarray:
    """Predict every voxel of a volume.

    The windows are those of nnU-Net (Isensee et al., 2021): as few as the overlap permits, evenly spread,
    each weighted by a Gaussian whose sigma is an eighth of the patch, so that voxels are decided by windows
    in which they lie centrally.

    This holds the probabilities of all classes. `SlidingWindow` gives them plane by plane instead.

    Args:
        model: A Keras model or any callable: float32 HU `(batch, depth, height, width, 1)` to logits
            `(batch, depth, height, width, classes)`. Of several outputs (deep supervision) the first counts.
        volume: HU `(depth, height, width)` at the spacing that the model was trained at.
        patch_size: `(depth, height, width)` of the windows in voxels. A volume that is smaller is surrounded
            by air (-1024 HU).
        overlap: Share of a window that it has in common with the next one at least, 0 to below 1.
        batch_size: Windows that are predicted together.
        progress: Called after each batch with the number of windows done and in all.
        mirror_axes: See `WindowSettings`.
        mirrored_classes: See `SlidingWindow`.

    Returns:
        Probabilities, float32 `(depth, height, width, classes)`: the softmax of the weighted mean over windows of
        the logits.

    Raises:
        ValueError: If the volume is not 3D or empty, or the patch size or the overlap is not in its range; if the
            model's logits are of another shape than its patches, or `mirrored_classes` are not those of the logits.
        FloatingPointError: If a blended logit is NaN or +inf, or all of a voxel are -inf.

    Example:
        >>> brighter_than_zero = lambda hu: np.concatenate([0 * hu, hu], axis=-1)
        >>> volume = np.full((3, 9, 5), -1000.0); volume[1, 4, 2] = 1000.0
        >>> probabilities = predict_volume(brighter_than_zero, volume, (4, 4, 4))
        >>> probabilities.shape, int(probabilities.argmax(axis=-1).sum())
        ((3, 9, 5, 2), 1)
    """
    settings = WindowSettings(overlap, batch_size, tuple(mirror_axes))
    return SlidingWindow(model, volume, patch_size, settings, mirrored_classes).probabilities(progress)


class SlidingWindow:
    """A network's walk over a volume, window by window.

    Args:
        model: As for `predict_volume`.
        volume: HU `(depth, height, width)` at the spacing that the model was trained at.
        patch_size: `(depth, height, width)` of the windows in voxels.
        settings: Overlap, batch size, and the axes along which windows are mirrored.
        mirrored_classes: Which class each class is in the mirror, left and right exchanged
            (`partialseg.data.classes.mirrored_classes`); needed where "x" is among the axes.
        is_wanted: Says of the box of a window whether it is to be computed; another one is background. None:
            all are.
        num_classes: Background included; needed with `is_wanted`.

    Attributes:
        num_windows: Those that are computed.

    Raises:
        ValueError: If the volume is not 3D or empty, or an argument is not in its range or lacks another one.

    Example:
        >>> constant = lambda hu: np.concatenate([0 * hu, 0 * hu], axis=-1)
        >>> windows = SlidingWindow(constant, np.zeros((5, 6, 4)), (4, 4, 4), WindowSettings())
        >>> windows.num_windows, [plane.shape for plane in windows.planes()][:2]
        (4, [(6, 4, 2), (6, 4, 2)])
    """

    def __init__(
        self,
        model: Callable[[Any], Any],
        volume: np.ndarray,
        patch_size: Sequence[int],
        settings: WindowSettings,
        mirrored_classes: Sequence[int] | None = None,
        is_wanted: Callable[[tuple[slice, ...]], bool] | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.patch_size = tuple(int(size) for size in patch_size)
        _check(volume, self.patch_size)
        if "x" in settings.mirror_axes and mirrored_classes is None:
            raise ValueError("to mirror along x, say which classes are left and right: give mirrored_classes")
        if is_wanted is not None and num_classes is None:
            raise ValueError("windows can only be left out where num_classes is known")
        self.settings = settings
        self.num_classes = num_classes
        self._mirrored_classes = mirrored_classes
        self._forward = forward_pass(model, self.patch_size)
        before = [
            max(0, patch - size) // 2 for size, patch in zip(volume.shape, self.patch_size, strict=True)
        ]
        self._inside = tuple(slice(b, b + size) for b, size in zip(before, volume.shape, strict=True))
        self._volume = _pad(volume, self.patch_size, before)
        self._starts, self._weights = [], []
        for size, patch in zip(self._volume.shape, self.patch_size, strict=True):
            starts = window_starts(size, patch, settings.overlap)
            self._starts.append(starts)
            self._weights.append(window_weights(starts, size, patch))
        grid = itertools.product(*(range(len(starts)) for starts in self._starts))
        #: Slab by slab the windows that are computed, and those that are background.
        self._slabs: list[tuple[list, list]] = [([], []) for _ in self._starts[0]]
        for window in grid:
            is_background = is_wanted is not None and not is_wanted(self._box(window))
            self._slabs[window[0]][is_background].append(window)
        self.num_windows = sum(len(wanted) for wanted, _ in self._slabs)

    def planes(self, progress: Callable[[int, int], None] | None = None) -> Iterator[np.ndarray]:
        """Predict, and give the probabilities of each plane of the volume in turn.

        Args:
            progress: Called after each batch with the number of windows done and in all.

        Yields:
            float32 `(height, width, classes)`; the array is the caller's.

        Raises:
            ValueError: If the network's logits are of another shape than its patches, or have other classes than
                `num_classes` or `mirrored_classes`.
            FloatingPointError: If a blended logit is NaN or +inf, or all of a voxel are -inf.
        """
        for planes, sums in self._slabs_in_turn(progress):
            # Of many classes a slab is most of the memory: no second one is held beside it.
            for first in range(0, len(planes), MAX_THREADS):
                some = planes[first : first + MAX_THREADS]
                probabilities = [np.empty(plane.shape, np.float32) for plane in some]
                sums.softmax(some, probabilities)
                while probabilities:
                    yield probabilities.pop(0)

    def logits(self, progress: Callable[[int, int], None] | None = None) -> Iterator[np.ndarray]:
        """Predict, and give the blended logits of each plane in turn: as `planes`, without the softmax.

        Yields:
            float32 `(height, width, classes)`: a view, overwritten once planes of a later slab are asked for.

        Raises:
            ValueError: As `planes`.
            FloatingPointError: If a blended logit is NaN or +inf, or all of a plane are -inf.
        """
        for planes, sums in self._slabs_in_turn(progress):
            sums.check(planes)
            yield from planes

    def whole_logits(self, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Predict, and give the blended logits of the whole volume: in one piece quicker than plane by plane.

        Returns:
            float32 `(depth, height, width, classes)`.

        Raises:
            ValueError: As `planes`.
            FloatingPointError: If a blended logit is NaN or +inf, or all of a plane are -inf.
        """
        logits, sums = self._whole(progress)
        sums.check(logits)
        return logits

    def probabilities(self, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Predict, and give the probabilities of the whole volume; as `whole_logits` otherwise.

        Raises:
            ValueError: As `planes`.
            FloatingPointError: As `planes`.
        """
        logits, sums = self._whole(progress)
        sums.softmax(logits, logits)
        return logits

    def _whole(self, progress: Callable[[int, int], None] | None) -> tuple[np.ndarray, BlendedPlanes]:
        """The logits of the volume, C-contiguous, and the sums that they are of."""
        *_, (_, sums) = self._slab_sums(len(self._volume), progress)
        return np.ascontiguousarray(sums.planes()[self._inside]), sums

    def _slabs_in_turn(
        self, progress: Callable[[int, int], None] | None
    ) -> Iterator[tuple[list[np.ndarray], BlendedPlanes]]:
        """Predict, and give the planes that are finished together.

        Yields:
            The blended logits of each, float32 `(height, width, classes)`, views that are overwritten when the next
            slab is asked for; and the sums, which turn them into probabilities.
        """
        depth, height, width = self._inside
        for finished, sums in self._slab_sums(self.patch_size[0], progress):
            inside = range(max(finished.start, depth.start), min(finished.stop, depth.stop))
            if inside:
                yield [sums.plane(index)[height, width] for index in inside], sums
            sums.clear(finished)

    def _slab_sums(
        self, num_planes: int, progress: Callable[[int, int], None] | None
    ) -> Iterator[tuple[range, BlendedPlanes]]:
        """Add slab after slab to sums of so many planes; gives those planes that no later window touches."""
        sums, done = None, 0
        ends = [*self._starts[0][1:], len(self._volume)]
        for slab, planes in enumerate(map(range, self._starts[0], ends)):
            wanted, background = self._slabs[slab]
            for first in range(0, len(wanted), self.settings.batch_size):
                batch = wanted[first : first + self.settings.batch_size]
                sums = self._add(batch, sums, num_planes)
                done += len(batch)
                if progress:
                    progress(done, self.num_windows)
            sums = sums or self._sums(num_planes, self.num_classes)
            for window in background:
                sums.add_background(self._start_of(window), self._weights_of(window))
            yield planes, sums

    def _add(
        self, batch: Sequence[tuple[int, ...]], sums: BlendedPlanes | None, num_planes: int
    ) -> BlendedPlanes:
        """Predict a batch of windows, and add what comes out to the sums."""
        patches = np.stack([self._patch(window) for window in batch])[..., np.newaxis]
        flips = self.settings.flips
        for flip in flips:
            axes = [axis for axis, mirrored in enumerate(flip, start=1) if mirrored]
            logits = self._forward(np.ascontiguousarray(np.flip(patches, axes)) if axes else patches)
            self._check_logits(logits.shape, patches.shape)
            sums = sums or self._sums(num_planes, logits.shape[-1])
            for window, values in zip(batch, logits, strict=True):
                depth, *others = self._weights_of(window)
                sums.add(values, self._start_of(window), [depth / np.float32(len(flips)), *others], flip)
        return sums

    def _check_logits(self, found: tuple[int, ...], patches: tuple[int, ...]) -> None:
        """Refuse logits that would be added where they do not belong: the loops that add them do not look."""
        if found[:-1] != patches[:-1]:
            raise ValueError(
                f"the network gives logits of shape {found} for patches of shape {patches}, expected "
                f"({', '.join(map(str, patches[:-1]))}, classes)"
            )
        if self.num_classes not in (None, found[-1]):
            raise ValueError(f"the network gives {found[-1]} classes, expected {self.num_classes}")

    def _sums(self, num_planes: int, num_classes: int) -> BlendedPlanes:
        """Sums of no window yet, of so many planes, for as many classes as the network has."""
        mirrored = self._mirrored_classes
        if mirrored is not None and sorted(mirrored) != list(range(num_classes)):
            raise ValueError(
                f"mirrored_classes must name each of the network's {num_classes} classes once, received {mirrored}"
            )
        self.num_classes = num_classes
        shape = (num_planes, *self._volume.shape[1:])
        return BlendedPlanes(shape, num_classes, self.patch_size, self._mirrored_classes)

    def _box(self, window: tuple[int, ...]) -> tuple[slice, ...]:
        """The part of the volume that a window covers."""
        box = []
        for axis, index in enumerate(window):
            start = self._starts[axis][index] - self._inside[axis].start
            size = self._inside[axis].stop - self._inside[axis].start
            box.append(slice(max(0, start), min(size, start + self.patch_size[axis])))
        return tuple(box)

    def _patch(self, window: tuple[int, ...]) -> np.ndarray:
        starts = zip(self._start_of(window), self.patch_size, strict=True)
        box = tuple(slice(start, start + size) for start, size in starts)
        return self._volume[box].astype(np.float32, copy=False)

    def _start_of(self, window: tuple[int, ...]) -> tuple[int, int, int]:
        z, y, x = (self._starts[axis][index] for axis, index in enumerate(window))
        return z, y, x

    def _weights_of(self, window: tuple[int, ...]) -> list[np.ndarray]:
        return [self._weights[axis][index] for axis, index in enumerate(window)]


def _check(volume: np.ndarray, patch_size: tuple[int, ...]) -> None:
    if volume.ndim != 3 or 0 in volume.shape:
        raise ValueError(
            f"the volume must be (depth, height, width) with no axis empty, received {volume.shape}"
        )
    if len(patch_size) != 3 or min(patch_size) < 1:
        raise ValueError(f"patch_size must be three sizes of at least 1, received {patch_size}")


def _pad(volume: np.ndarray, patch_size: Sequence[int], before: Sequence[int]) -> np.ndarray:
    """Surround the volume by air until no axis is shorter than the patch."""
    widths = [
        (b, max(0, patch - size) - b) for size, patch, b in zip(volume.shape, patch_size, before, strict=True)
    ]
    return np.pad(volume, widths, constant_values=AIR) if np.any(widths) else volume
