"""Pictures for people: truth and prediction over the scan in the paper's colours, and learning curves.

Slices are shown as radiologists look at them: the patient's right is at the left of the picture, the front of an
axial slice is at the top, the head of a coronal slice is at the top.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from partialseg.data.classes import ALL_ORGANS, organ_colours

#: Centre and width of the window in HU.
WINDOW_HU = (40.0, 400.0)
FILL_OPACITY = 0.45
#: The edge of the truth: the organ's colour times this.
EDGE_DEPTH = 0.6
#: Room around the organs.
MARGIN_MM = 25.0
PANEL_INCHES, DOTS_PER_INCH = 4.4, 100
_AXIAL, _CORONAL = 0, 1


def windowed(image: np.ndarray) -> np.ndarray:
    """HU to grey, 0 to 1, in a window of 40 ± 200 HU.

    Example:
        >>> windowed(np.array([-1000.0, -60.0, 40.0, 3000.0])).tolist()
        [0.0, 0.25, 0.5, 1.0]
    """
    centre, width = WINDOW_HU
    return np.clip((image - centre) / width + 0.5, 0, 1)


def fullest_slice(labels: np.ndarray, axis: int) -> int:
    """The slice that shows most of the organs, each organ in parts of its own largest slice.

    So a small pancreas counts as much as a large liver.

    Args:
        labels: Class indices, 0 background, shape `(depth, height, width)`.
        axis: Across which to cut: 0 axial, 1 coronal.

    Returns:
        Index along the axis; the middle where there is no organ.

    Example:
        >>> labels = np.zeros((4, 5, 5), np.uint8)
        >>> labels[2, 1:3] = 1
        >>> fullest_slice(labels, 0), fullest_slice(labels, 1)
        (2, 1)
    """
    others = tuple(other for other in range(labels.ndim) if other != axis)
    shown = np.zeros(labels.shape[axis])
    for value in np.flatnonzero(np.bincount(labels.ravel())):
        if value:
            areas = np.count_nonzero(labels == value, axis=others)
            shown += areas / areas.max()
    return int(shown.argmax()) if shown.any() else labels.shape[axis] // 2


def overlay_picture(
    image: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    spacing_mm: Sequence[float],
    classes: Sequence[str],
    unknown: np.ndarray | None = None,
) -> bytes:
    """Draw an axial and a coronal slice, one column for each network: filled its prediction, as edge the truth.

    Args:
        image: HU, `(depth, height, width)` in RAS+.
        truth: Class indices, same shape: the annotated organs.
        predictions: For each network its class indices, same shape.
        spacing_mm: Voxel size `(z, y, x)` in mm.
        classes: Background first, then the organs.
        unknown: Voxels that may be one organ or another, same shape; their edge is white and dotted.

    Returns:
        A PNG file.

    Raises:
        ValueError: If the shapes differ.
    """
    for name, array in {"truth": truth, **predictions}.items():
        if array.shape != image.shape:
            raise ValueError(f"{name} has shape {array.shape}, the image {image.shape}; expected the same")
    shown = truth if truth.any() else np.maximum.reduce([*predictions.values()])
    present = (truth > 0) | np.logical_or.reduce([labels > 0 for labels in predictions.values()])
    views = []
    for axis in (_AXIAL, _CORONAL):
        index = fullest_slice(shown, axis)
        cut = (slice(None),) * axis + (index,)
        spacing = [size for other, size in enumerate(spacing_mm) if other != axis]
        views.append((axis, index, cut, _crop(present[cut], spacing), spacing))
    heights = [_height_ratio(present[cut].shape, crop, spacing) for _, _, cut, crop, spacing in views]
    figure = Figure(
        figsize=(PANEL_INCHES * len(predictions), (PANEL_INCHES - 0.2) * sum(heights) + 0.5),
        layout="constrained",
    )
    grid = figure.subplots(2, len(predictions), squeeze=False, height_ratios=heights)
    colours = organ_colours(classes[1:])
    for row, (axis, index, cut, crop, spacing) in zip(grid, views, strict=True):
        for axes, (name, labels) in zip(row, predictions.items(), strict=True):
            parts = [np.asarray(array[cut][crop]) for array in (image, truth, labels)]
            doubtful = None if unknown is None else unknown[cut][crop]
            _draw(axes, *parts, doubtful, spacing, [colours[organ] for organ in classes[1:]])
            if axis == _AXIAL:
                axes.set_title(name, fontsize=12)
            for x, side in ((0.015, "R"), (0.965, "L")):
                axes.text(x, 0.02, side, transform=axes.transAxes, color="white", fontsize=9)
        across = "axial" if axis == _AXIAL else "coronal"
        row[0].set_ylabel(f"{across} slice {index}", fontsize=9, color="0.3")
    return _png(figure, [colours[organ] for organ in classes[1:]])


def learning_curves(log: pd.DataFrame, terms: pd.DataFrame | None = None) -> bytes:
    """Draw loss and learning rate over all epochs of all stages, and each loss term dataset by dataset.

    Args:
        log: Columns `stage`, `epoch`, `learning_rate`, `loss`: a row per epoch.
        terms: Columns `stage`, `epoch`, `dataset`, `organ`, `term`, `value`. Of its rows those whose organ is "all"
            are drawn; without that column, all.

    Returns:
        A PNG file.
    """
    if terms is not None and "organ" in terms:
        terms = terms[terms["organ"] == ALL_ORGANS]
    stages = list(dict.fromkeys(log["stage"]))
    number = {key: position + 1 for position, key in enumerate(zip(log["stage"], log["epoch"], strict=True))}
    ends = [max(place for (stage, _), place in number.items() if stage == name) for name in stages]
    names = [] if terms is None else list(dict.fromkeys(terms["term"]))
    columns = 3
    rows = -(-(2 + len(names)) // columns)
    figure = Figure(figsize=(10.5, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    epochs = np.arange(1, len(log) + 1)
    marker = "o" if len(log) < 3 else ""
    axes[0].plot(epochs, log["loss"], color="black", marker=marker)
    axes[0].set_title("loss")
    axes[1].plot(epochs, log["learning_rate"], color="black", marker=marker)
    axes[1].set(title="learning rate", yscale="log")
    datasets = [] if terms is None else list(dict.fromkeys(terms["dataset"]))
    for position, term in enumerate(names):
        for place, dataset in enumerate(datasets):
            rows_of = terms[(terms["term"] == term) & (terms["dataset"] == dataset)]
            where = [number.get(key, np.nan) for key in zip(rows_of["stage"], rows_of["epoch"], strict=True)]
            axes[2 + position].plot(where, rows_of["value"], color=f"C{place}", marker=marker, label=dataset)
        axes[2 + position].set_title(term)
    for used in axes[: 2 + len(names)]:
        used.set_xlabel("epoch")
        used.set_xlim(0.5, max(len(log), 1) + 0.5)
        used.grid(alpha=0.25)
        for end in ends[:-1]:
            used.axvline(end + 0.5, color="0.4", linestyle="--", linewidth=1)
    for unused in axes[2 + len(names) :]:
        unused.set_axis_off()
    if datasets:
        handles, labels = axes[2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    return _png(figure)


def _crop(present: np.ndarray, spacing_mm: Sequence[float]) -> tuple[slice, ...]:
    """The part of a slice around what is marked, with a margin; all of it where nothing is."""
    if not present.any():
        return (slice(None),) * present.ndim
    crop = []
    for axis, size in enumerate(spacing_mm):
        found = np.flatnonzero(present.any(axis=1 - axis))
        margin = round(MARGIN_MM / size)
        crop.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1))
    return tuple(crop)


def _height_ratio(shape: Sequence[int], crop: Sequence[slice], spacing_mm: Sequence[float]) -> float:
    """Height over width in mm, within what still makes a readable row."""
    tall, wide = (
        len(range(*part.indices(count))) * size
        for part, count, size in zip(crop, shape, spacing_mm, strict=True)
    )
    return min(1.3, max(0.3, tall / wide))


def _draw(
    axes: Axes,
    image: np.ndarray,
    truth: np.ndarray,
    labels: np.ndarray,
    unknown: np.ndarray | None,
    spacing_mm: Sequence[float],
    colours: Sequence[str],
) -> None:
    """One panel; rows of the arrays grow upward in the picture, columns toward its left (the patient's right)."""
    tall, wide = (count * size for count, size in zip(image.shape, spacing_mm, strict=True))
    extent = (0.0, wide, 0.0, tall)
    place = {"origin": "lower", "extent": extent, "interpolation": "nearest"}
    axes.imshow(windowed(image), cmap="gray", vmin=0, vmax=1, **{**place, "interpolation": "antialiased"})
    fill = np.zeros((*labels.shape, 4))
    for value, colour in enumerate(colours, 1):
        fill[labels == value] = (*to_rgb(colour), FILL_OPACITY)
    axes.imshow(fill, **place)
    up, left = (
        (np.arange(-1, count + 1) + 0.5) * size for count, size in zip(image.shape, spacing_mm, strict=True)
    )
    for value, colour in enumerate(colours, 1):
        # A frame of zeros closes the edge of an organ that the slice cuts off.
        mask = np.pad(truth == value, 1)
        if mask.any():
            deeper = tuple(EDGE_DEPTH * part for part in to_rgb(colour))
            axes.contour(left, up, mask, levels=[0.5], colors=[deeper], linewidths=1.8)
    if unknown is not None and unknown.any():
        axes.contour(left, up, np.pad(unknown, 1), levels=[0.5], colors="white", linewidths=1, linestyles=":")
    axes.set(xlim=(wide, 0), ylim=(0, tall), aspect="equal", xticks=[], yticks=[])


def _png(figure: Figure, organs: Sequence[str] = ()) -> bytes:
    """The figure as a PNG file; with the colours of organs, in a palette, which makes it three times smaller."""
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(DOTS_PER_INCH)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    if organs:
        palette = Image.new("P", (1, 1))
        palette.putpalette(_palette(organs).ravel().tolist())
        picture = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _palette(organs: Sequence[str]) -> np.ndarray:
    """256 colours: greys, and for each organ its edge and its fill over all greys, as evenly as there is room."""
    tones = min(32, 150 // len(organs))
    greys = np.linspace(0, 1, 256 - len(organs) * (tones + 1))[:, None].repeat(3, axis=1)
    parts = [greys]
    for organ in organs:
        colour = np.array(to_rgb(organ))
        over = np.linspace(0, 1, tones)[:, None]
        parts += [EDGE_DEPTH * colour[None], FILL_OPACITY * colour + (1 - FILL_OPACITY) * over]
    return np.round(255 * np.concatenate(parts)).astype(np.uint8)
