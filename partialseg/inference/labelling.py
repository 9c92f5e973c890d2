"""A scan in, its label map out: resample, predict in windows, and go back to the scan's grid plane by plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from partialseg.data.body import Body
from partialseg.data.classes import mirrored_classes, unpaired_classes
from partialseg.data.resample import resample_image
from partialseg.data.resample_back import PlaneConsumer, ScanLabels
from partialseg.data.volumes import Volume
from partialseg.errors import DataError
from partialseg.inference.precision import load_model
from partialseg.models.sliding_window import AXES, DEFAULT_SETTINGS, SlidingWindow, WindowSettings
from partialseg.training.runs import Run


class Network(NamedTuple):
    """A network that predicts.

    Attributes:
        model: A Keras model or any callable: float32 HU `(batch, depth, height, width, 1)` to logits.
        patch_size: `(depth, height, width)` of its windows in voxels.
        precision: In which it computes, as `partialseg predict --precision` names it.
    """

    model: Callable[[Any], Any]
    patch_size: tuple[int, int, int]
    precision: str = "float32"


def check_ensemble(runs: Sequence[Run]) -> None:
    """Check that runs can predict together: the same classes and voxel size; their patch sizes may differ.

    Raises:
        DataError: If a run's classes or voxel size are not those of the first, or a run is given twice.
    """
    first = runs[0]
    folders = [run.folder.resolve() for run in runs]
    for index, run in enumerate(runs):
        if folders[index] in folders[:index]:
            raise DataError(run.folder, "is given twice, expected different runs", "give each run once")
    for run in runs[1:]:
        for what, found, expected in (
            ("classes", run.classes, first.classes),
            ("voxel size", run.spacing_mm, first.spacing_mm),
        ):
            if found != expected:
                raise DataError(
                    run.folder,
                    f"its {what} {_listed(found)} differ from {_listed(expected)} of {first.folder}",
                    "predict with each by itself, or give runs that were trained on the same prepared data",
                )


def load_networks(runs: Sequence[Run], precision: str | None = None) -> list[Network]:
    """Load the networks of runs that predict together, such as those of the folds of a cross-validation.

    Args:
        runs: One or more.
        precision: See `partialseg.inference.precision.load_model`.

    Raises:
        DataError: As for `check_ensemble`, and for `load_model`.
    """
    check_ensemble(runs)
    return [Network(load_model(run, precision), run.patch_size, precision or "float32") for run in runs]


def trained_mirror_axes(runs: Sequence[Run]) -> tuple[str, ...]:
    """The axes along which the patches of all runs were mirrored in training, of "z", "y" and "x".

    "x" is left out, as in training, where the other side of a class is no class.

    Raises:
        DataError: If a run was trained without mirroring: what is mirrored would be strange to it.
    """
    axes = set(AXES)
    for run in runs:
        augmentation = run.config.augmentation
        if augmentation is None or not augmentation.mirror.probability:
            own = set()
        else:
            own = set(augmentation.mirror.axes) - ({"x"} if unpaired_classes(run.classes) else set())
        if not own:
            raise DataError(
                run.folder,
                "was trained without mirrored patches, and mirrored windows would be strange to it",
                "predict without mirroring, or train with `augmentation: {mirror: {probability: 0.5}}`",
            )
        axes &= own
    return tuple(axis for axis in AXES if axis in axes)


def label_scan(
    networks: Sequence[Network],
    scan: Volume,
    spacing_mm: Sequence[float],
    classes: Sequence[str],
    settings: WindowSettings = DEFAULT_SETTINGS,
    progress: Callable[[int, int], None] | None = None,
    on_probabilities: PlaneConsumer | None = None,
) -> np.ndarray:
    """Label a scan on its own grid.

    The probabilities of several networks are averaged. Memory grows with the classes times some planes, not times the
    volume: each plane's probabilities become labels as soon as they are final.

    Args:
        networks: One or more, which walk over the scan in step.
        scan: HU, see `read_image`.
        spacing_mm: Voxel size `(z, y, x)` that the networks expect.
        classes: Background, then the organs: the order of the logits.
        settings: Of the windows.
        progress: Called with the number of windows done and in all, over all networks.
        on_probabilities: Called with each plane of the scan, from the feet to the head: its index, and float32
            `(height, width, classes)`. It costs an interpolation of all classes at every voxel.

    Returns:
        uint8 class indices on the grid of `scan.array`.

    Raises:
        DataError: If a network gives values that are not numbers.
        ValueError: If windows are to be mirrored along x, and the other side of a class is no class; or a network has
            another number of classes.
    """
    image = resample_image(scan.array, scan.spacing_mm, spacing_mm)
    is_wanted = Body(image, spacing_mm).meets if settings.skip_outside_body else None
    mirrored = mirrored_classes(classes) if "x" in settings.mirror_axes else None
    walks = [
        SlidingWindow(network.model, image, network.patch_size, settings, mirrored, is_wanted, len(classes))
        for network in networks
    ]
    result = ScanLabels(image.shape, spacing_mm, scan.array.shape, scan.spacing_mm, on_probabilities)
    reports = _reports(walks, progress)
    streams = [walk.planes(report) for walk, report in zip(walks, reports, strict=True)]
    try:
        for planes in zip(*streams, strict=True):
            mean = planes[0]
            for plane in planes[1:]:
                mean += plane
            if len(planes) > 1:
                mean /= len(planes)
            result.add(mean)
    except FloatingPointError as error:
        raise DataError(scan.source.path, str(error), _numbers_again(networks)) from error
    return result.labels


def _numbers_again(networks: Sequence[Network]) -> str:
    """What to do about values that are not numbers: float16 ends at 65504, where float32 goes on."""
    remedy = "train the run again with a lower `optimizer.learning_rate`"
    asked = [network.precision for network in networks if network.precision != "float32"]
    if not asked:
        return remedy
    return f"predict in float32, without `--precision {asked[0]}`; where that gives none either, {remedy}"


def _reports(
    walks: Sequence[SlidingWindow], progress: Callable[[int, int], None] | None
) -> list[Callable[[int, int], None] | None]:
    """For each walk what tells the windows done of all walks together."""
    if progress is None:
        return [None] * len(walks)
    done, total = [0] * len(walks), sum(walk.num_windows for walk in walks)

    def report(index: int, windows: int) -> None:
        done[index] = windows
        progress(sum(done), total)

    return [lambda windows, _, index=index: report(index, windows) for index in range(len(walks))]


def _listed(values: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, values)) + ")"
