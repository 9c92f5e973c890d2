"""Small pictures of a raw case, so that a person sees at a glance what was noted."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from partialseg.data.volumes import Volume

#: HU that are black and white.
WINDOW_HU = (-160.0, 240.0)
#: Height of a picture, and the largest width of each of its two parts, in pixels.
HEIGHT, WIDTH = 126, 186
_AXIAL, _CORONAL = 0, 1
_DARK, _LIGHT = (18, 18, 18), (235, 235, 235)


def thumbnail(
    image: Volume | None, label: Volume | None, colours: Mapping[int, str], spread: bool = False
) -> bytes:
    """Draw an axial and a coronal slice with the outlines of what is labelled.

    Shown are the slices with most label, or those in the middle. As radiologists look at them: the patient's
    right is at the left. A label map on another grid is drawn where its affine puts it; without an image,
    labels are filled.

    Args:
        image: The image; None where it cannot be read.
        label: The label map; None where it cannot be read.
        colours: Colour (`"#rrggbb"`) of each label value; other values are white.
        spread: Whether to stretch the image from its lowest to its highest value instead of the window of
            -160 to 240 HU: for one that is not in HU.

    Returns:
        A PNG file of at most about 376 x 126 pixels.

    Raises:
        ValueError: If there is neither image nor label map.
    """
    base = image if image is not None else label
    if base is None:
        raise ValueError("expected an image, a label map or both; received neither")
    low, high = WINDOW_HU
    if image is not None and spread:
        low, high = (float(value) for value in np.percentile(image.array[::4, ::4, ::4], (1, 99)))
    panels = []
    for axis in (_AXIAL, _CORONAL):
        index = _slice_to_show(image, label, axis)
        grey = None if image is None else _grey(image.array.take(index, axis), low, high)
        values = None if label is None else _label_on(base, label, axis, index)
        spacing = [size for other, size in enumerate(base.spacing_mm) if other != axis]
        panels.append(_panel(grey, values, spacing, colours))
    return _png(panels)


def _slice_to_show(image: Volume | None, label: Volume | None, axis: int) -> int:
    """The slice of the image (without one, of the label map) that shows most of what is labelled."""
    base = image if image is not None else label
    middle = base.array.shape[axis] // 2
    if label is None:
        return middle
    filled = np.count_nonzero(label.array, axis=tuple(other for other in range(3) if other != axis))
    if not filled.any():
        return middle
    fullest = np.array(label.array.shape) // 2
    fullest[axis] = filled.argmax()
    world = label.affine[:3, :3] @ fullest[::-1] + label.affine[:3, 3]
    place = np.linalg.solve(base.affine[:3, :3], world - base.affine[:3, 3])[::-1]
    return int(np.clip(round(place[axis]), 0, base.array.shape[axis] - 1))


def _label_on(base: Volume, label: Volume, axis: int, index: int) -> np.ndarray:
    """The label map on one slice of another grid, by the nearest voxel; 0 outside of it."""
    if label is base:
        return label.array.take(index, axis)
    shape = [size if other != axis else 1 for other, size in enumerate(base.array.shape)]
    zyx = np.indices(shape).reshape(3, -1)
    zyx[axis] = index
    to_label = np.linalg.solve(label.affine, base.affine)
    xyz = np.rint(to_label[:3, :3] @ zyx[::-1] + to_label[:3, 3:]).astype(np.intp)
    inside = np.all((xyz >= 0) & (xyz < np.array(label.array.shape[::-1])[:, None]), axis=0)
    values = np.zeros(zyx.shape[1], dtype=label.array.dtype)
    x, y, z = xyz[:, inside]
    values[inside] = label.array[z, y, x]
    return values.reshape([size for other, size in enumerate(base.array.shape) if other != axis])


def _grey(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 grey values."""
    return np.clip((plane - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)


def _panel(
    grey: np.ndarray | None,
    values: np.ndarray | None,
    spacing_mm: Sequence[float],
    colours: Mapping[int, str],
) -> Image.Image:
    """One slice: the image grey, labels as outlines (filled where there is no image)."""
    shape = grey.shape if grey is not None else values.shape
    tall, wide = (size * spacing for size, spacing in zip(shape, spacing_mm, strict=True))
    scale = min(HEIGHT / tall, WIDTH / wide)
    size = (max(1, round(wide * scale)), max(1, round(tall * scale)))
    if grey is None:
        picture = np.full((size[1], size[0], 3), _DARK, dtype=np.uint8)
    else:
        resized = Image.fromarray(np.ascontiguousarray(grey[::-1, ::-1])).resize(size, Image.Resampling.BOX)
        picture = np.repeat(np.asarray(resized)[..., None], 3, axis=2)
    if values is not None:
        rows, columns = (
            np.minimum(np.arange(count) * length // count, length - 1)
            for count, length in zip(size[::-1], shape, strict=True)
        )
        shown = values[::-1, ::-1][np.ix_(rows, columns)]
        marked = shown > 0 if grey is None else _edges(shown)
        for value in np.unique(shown[marked]):
            picture[marked & (shown == value)] = ImageColor.getrgb(colours.get(int(value), "#ffffff"))
    return Image.fromarray(picture)


def _edges(values: np.ndarray) -> np.ndarray:
    """Labelled pixels that have a neighbour of another value."""
    edge = np.zeros(values.shape, dtype=bool)
    for axis in (0, 1):
        differ = np.diff(values.astype(np.int32), axis=axis) != 0
        first, second = (slice(None),) * axis + (slice(1, None),), (slice(None),) * axis + (slice(None, -1),)
        edge[first] |= differ
        edge[second] |= differ
    return edge & (values > 0)


def _png(panels: Sequence[Image.Image]) -> bytes:
    """The parts side by side, with R and L where the patient's sides are."""
    sheet = Image.new("RGB", (sum(panel.width for panel in panels) + 4, HEIGHT), _DARK)
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, (HEIGHT - panel.height) // 2))
        draw = ImageDraw.Draw(sheet)
        draw.text((left + 3, HEIGHT - 13), "R", fill=_LIGHT)
        draw.text((left + panel.width - 9, HEIGHT - 13), "L", fill=_LIGHT)
        left += panel.width + 4
    stream = io.BytesIO()
    sheet.quantize(64, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()
