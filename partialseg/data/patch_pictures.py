"""Pictures of patches as training gets them: the image, and beside it what each voxel may be."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from partialseg.data.augmentation.spatial import AXES, SpatialTransform
from partialseg.data.classes import organ_colours
from partialseg.data.patch_reading import Augmented, PatchReader
from partialseg.data.patch_statistics import class_set, in_words
from partialseg.data.prepared import Prepared
from partialseg.data.sampling import Draw, PatchConfig
from partialseg.data.thumbnails import WINDOW_HU

#: Largest width and height of one half of a picture, in pixels: the image or the candidates.
WIDTH, HEIGHT = 576, 432
#: What voxels are in that are no organ for certain. The second of two colours is that of the pattern.
BACKGROUND = ("#1e1e1e", "#1e1e1e")
MERGED = ("#5a5a5a", "#8c8c8c")
IGNORED = ("#e6e6e6", "#b4b4b4")
CROSS = "#ffffff"
_GAP = 4
_STRIPE = 4
#: Half the length of the cross, and the room that is left free in its middle, in pixels.
_ARM, _HOLE = 9, 3
_GREYS = 128
_MIRRORED = {"z": "head and feet", "y": "front and back", "x": "left and right"}
_STRENGTHS = {
    "noise": "noise of {:.1f} HU",
    "blur": "blur of {:.1f} voxels",
    "brightness": "brightness × {:.2f}",
    "contrast": "contrast × {:.2f}",
    "low_resolution": "resolution × {:.2f}",
    "inverted_gamma": "inverted gamma {:.2f}",
    "gamma": "gamma {:.2f}",
}


@dataclass(frozen=True)
class Place:
    """A patch, and where it comes in the stream.

    Attributes:
        batch: Index of the batch.
        slot: Place in it.
        draw: The patch.
    """

    batch: int
    slot: int
    draw: Draw


class Chooser:
    """Remembers a few patches of each kind, so that a varied choice can be shown in the end.

    A kind is a dataset, and the label value on which a patch is centred, if it is.

    Args:
        num: How many patches will be shown.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self._places: dict[tuple[str, int | None], list[Place]] = {}

    def add(self, batch: int, draws: Sequence[Draw]) -> None:
        """Look at the patches of one batch."""
        for slot, draw in enumerate(draws):
            kind = self._places.setdefault((draw.case.dataset, draw.forced_value), [])
            if len(kind) < self.num:
                kind.append(Place(batch, slot, draw))

    def chosen(self) -> list[Place]:
        """The patches to show, in the order of the stream: every dataset, centred ones and others, many organs."""
        waiting = {kind: list(places) for kind, places in self._places.items()}
        shown: Counter[tuple[str, object]] = Counter()
        chosen: list[Place] = []
        while len(chosen) < self.num and any(waiting.values()):
            dataset, value = kind = min(
                (kind for kind, places in waiting.items() if places),
                key=lambda kind: (
                    shown["dataset", kind[0]],
                    shown["is centred", kind[1] is None],
                    shown["value", kind[1]],
                    waiting[kind][0].batch,
                    waiting[kind][0].slot,
                ),
            )
            chosen.append(waiting[kind].pop(0))
            shown.update([("dataset", dataset), ("is centred", value is None), ("value", value)])
        return sorted(chosen, key=lambda place: (place.batch, place.slot))


def picture(prepared: Prepared, config: PatchConfig, place: Place) -> tuple[bytes, dict[str, object]]:
    """Read a patch as training does, and draw it.

    Args:
        prepared: The prepared cases.
        config: How patches are drawn.
        place: The patch.

    Returns:
        A PNG file, and what `describe` says of it.

    Raises:
        DataError: If a file is missing, or holds what the manifest does not say.
    """
    reader = PatchReader(prepared, config.patch_size, config.augmentation, config.seed)
    image = np.empty(config.patch_size, np.float32)
    sets = np.empty((*config.patch_size, len(prepared.classes)), np.uint8)
    augmented = reader.read(place.draw, (place.batch, place.slot), image, sets)
    mark = mark_in_patch(place.draw, augmented.spatial, config.patch_size)
    png = draw_patch(image, sets, prepared.spacing_mm, prepared.classes, mark)
    return png, describe(prepared, place, augmented, mark)


def mark_in_patch(
    draw: Draw, spatial: SpatialTransform, patch_size: Sequence[int]
) -> tuple[int, int, int] | None:
    """The voxel of the patch in which the one lies on which it is centred; None if it lies anywhere.

    Turning and scaling leave it where it is, mirroring does not.
    """
    if draw.voxel is None:
        return None
    return tuple(
        size - 1 - (voxel - start) if mirrored else voxel - start
        for voxel, start, size, mirrored in zip(
            draw.voxel, draw.start, patch_size, spatial.mirrored, strict=True
        )
    )


def describe(
    prepared: Prepared, place: Place, augmented: Augmented, mark: Sequence[int] | None
) -> dict[str, object]:
    """What a patch is, as plain values.

    Returns:
        `dataset`, `case`, `batch` and `slot` (in the stream), `start` and `voxel` (on which it is centred, or null;
        both `(z, y, x)` in the case), `mark` (the same voxel in the patch), `centred_on` (in words, or null),
        `background_may_be` (the organs that are not annotated), `degrees`, `factor`, `mirrored` and `intensity`
        (see `partialseg.data.patch_reading.Augmented`), and `changes` (the same in words).
    """
    draw, spatial = place.draw, augmented.spatial
    sets = [[prepared.classes[number] for number in class_set(row)] for row in prepared.table(draw.case)]
    return {
        "dataset": draw.case.dataset,
        "case": draw.case.name,
        "batch": place.batch,
        "slot": place.slot,
        "start": list(draw.start),
        "voxel": None if draw.voxel is None else list(draw.voxel),
        "mark": None if mark is None else list(mark),
        "centred_on": None if draw.forced_value is None else in_words(sets[draw.forced_value]),
        "background_may_be": [in_words([organ]) for organ in sets[0][1:]],
        "degrees": list(spatial.degrees),
        "factor": spatial.factor,
        "mirrored": [axis for axis, mirrored in zip(AXES, spatial.mirrored, strict=True) if mirrored],
        "intensity": augmented.intensity,
        "changes": changes(augmented),
    }


def changes(augmented: Augmented) -> list[str]:
    """What augmentation did, in words.

    Example:
        >>> changes(Augmented(SpatialTransform((12, 0, 0), 1.2, (False, False, True)), {"gamma": 1.5}))
        ['turned by 12° about z', 'field of view × 1.20', 'mirrored left and right', 'gamma 1.50']
    """
    spatial = augmented.spatial
    turns = [
        f"{degrees:.0f}° about {axis}" for degrees, axis in zip(spatial.degrees, AXES, strict=True) if degrees
    ]
    words = [f"turned by {', '.join(turns)}"] if turns else []
    if spatial.factor != 1:
        words.append(f"field of view × {spatial.factor:.2f}" + (" in the plane" if spatial.in_plane else ""))
    mirrored = [_MIRRORED[axis] for axis, is_so in zip(AXES, spatial.mirrored, strict=True) if is_so]
    if mirrored:
        words.append(f"mirrored {', '.join(mirrored)}")
    return words + [_STRENGTHS[name].format(strength) for name, strength in augmented.intensity.items()]


def draw_patch(
    image: np.ndarray,
    candidates: np.ndarray,
    spacing_mm: Sequence[float],
    classes: Sequence[str],
    mark: Sequence[int] | None = None,
) -> bytes:
    """Draw an axial slice, and right of it a coronal and a sagittal one; then the candidates in the same slices.

    As radiologists look at them: what is right in the patch is at the left, the front at the top (of the sagittal
    slice at the left), the head at the top. All slices are to the same scale in mm. Organs have their colours; what
    may be one of several has stripes of them; for what may be background, see the constants of this module.

    Args:
        image: float32 HU `(depth, height, width)`.
        candidates: uint8 of 0 and 1 `(depth, height, width, classes)`.
        spacing_mm: Voxel size `(z, y, x)`.
        classes: Background, then the organs.
        mark: A voxel `(z, y, x)` that gets a cross, in slices through it; None shows those in the middle.

    Returns:
        A PNG file of at most about 1160 x 440 pixels.
    """
    cut = mark if mark is not None else tuple(size // 2 for size in image.shape)
    colours = _Palette(classes)
    lengths = [size * spacing for size, spacing in zip(image.shape, spacing_mm, strict=True)]
    scale = _scale(lengths)
    pixels = [max(1, round(length * scale)) for length in lengths]
    corners = {0: (0, 0), 1: (pixels[2] + _GAP, 0), 2: (pixels[2] + _GAP, pixels[0] + _GAP)}
    half = (pixels[2] + _GAP + max(pixels[2], pixels[1]), max(pixels[1], 2 * pixels[0] + _GAP))
    sheet = Image.new("P", (2 * half[0] + 3 * _GAP, half[1]), colours.index("#ffffff"))
    sheet.putpalette(colours.palette)
    pen = ImageDraw.Draw(sheet)
    for axis, (left, top) in corners.items():
        rows, columns = (other for other in range(3) if other != axis)
        size = (pixels[columns], pixels[rows])
        # Both axes of a slice grow away from where the picture begins.
        seen = np.ascontiguousarray(image.take(cut[axis], axis)[::-1, ::-1])
        sets = candidates.take(cut[axis], axis)[::-1, ::-1]
        for first, panel in ((0, _grey(seen, size)), (half[0] + 3 * _GAP, colours.paint(sets, size))):
            sheet.paste(panel, (first + left, top))
            if mark is not None:
                at = [(image.shape[a] - mark[a] - 0.5) / image.shape[a] * pixels[a] for a in (columns, rows)]
                _cross(pen, first + left + at[0], top + at[1], colours)
        for x, letter in zip((left + 3, left + size[0] - 9), "AP" if axis == 2 else "RL", strict=True):
            pen.text((x, top + size[1] - 13), letter, fill=colours.index("#ffffff"))
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _scale(lengths_mm: Sequence[float]) -> float:
    """Pixels for each mm, so that the image takes its half of the picture."""
    tall, deep, wide = lengths_mm
    return min((WIDTH - _GAP) / (wide + max(wide, deep)), (HEIGHT - _GAP) / max(deep, 2 * tall))


def _grey(plane: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A slice of the image as indices of a palette that begins with greys."""
    low, high = WINDOW_HU
    grey = np.clip((plane - low) / (high - low), 0, 1) * 255
    resized = Image.fromarray(grey.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    return Image.fromarray(np.asarray(resized) // (256 // _GREYS))


def _cross(pen: ImageDraw.ImageDraw, x: float, y: float, colours: _Palette) -> None:
    """A cross with a hole in its middle, light on a dark edge, so that it is seen on everything."""
    for width, colour in ((3, "#000000"), (1, CROSS)):
        for way in (-1, 1):
            ends = way * _HOLE, way * _ARM
            pen.line([(x + ends[0], y), (x + ends[1], y)], fill=colours.index(colour), width=width)
            pen.line([(x, y + ends[0]), (x, y + ends[1])], fill=colours.index(colour), width=width)


class _Palette:
    """Greys, then the colours of organs and of what is no organ for certain: exact, however many there are."""

    def __init__(self, classes: Sequence[str]) -> None:
        organs = organ_colours(classes[1:])
        self._organs = [organs[name] for name in classes[1:]]
        others = [*BACKGROUND, *MERGED, *IGNORED, CROSS, "#000000"]
        self._indices = {
            colour: _GREYS + place for place, colour in enumerate(dict.fromkeys([*self._organs, *others]))
        }
        greys = np.linspace(0, 255, _GREYS).round().astype(int).repeat(3).tolist()
        self.palette = greys + [part for colour in self._indices for part in ImageColor.getrgb(colour)]

    def index(self, colour: str) -> int:
        """Where a colour is in the palette."""
        return self._indices[colour]

    def paint(self, candidates: np.ndarray, size: tuple[int, int]) -> Image.Image:
        """A slice of candidates `(rows, columns, classes)` at this size, as indices of the palette."""
        height, width, num_classes = candidates.shape
        found, numbers = np.unique(candidates.reshape(-1, num_classes), axis=0, return_inverse=True)
        rows, columns = (
            np.minimum(np.arange(count) * length // count, length - 1)
            for count, length in ((size[1], height), (size[0], width))
        )
        shown = numbers.reshape(height, width)[np.ix_(rows, columns)]
        y, x = np.indices(shown.shape)
        painted = np.zeros(shown.shape, np.uint8)
        for number, row in enumerate(found):
            painted = np.where(shown == number, self._pattern(row, y, x), painted)
        return Image.fromarray(painted)

    def _pattern(self, row: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The colours of a set of classes at each pixel: plain, in stripes, or with dots."""
        if not row[0]:
            own = [self.index(self._organs[number]) for number in np.flatnonzero(row[1:])]
            return np.array(own, np.uint8)[(x + y) // _STRIPE % len(own)]
        if row.all():
            plain, other = (self.index(colour) for colour in IGNORED)
            return np.where((x % 6 < 2) & (y % 6 < 2), other, plain).astype(np.uint8)
        plain, other = (self.index(colour) for colour in (BACKGROUND if row.sum() == 1 else MERGED))
        return np.where((x + y) % 8 < 2, other, plain).astype(np.uint8)
