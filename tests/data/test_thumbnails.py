"""Small pictures of raw cases."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from partialseg.data.thumbnails import HEIGHT, WIDTH, thumbnail
from partialseg.data.volumes import Source, Volume

RED = {1: "#ff0000"}


def volume(array, affine=None):
    affine = np.diag([4.0, 4.0, 5.0, 1.0]) if affine is None else affine
    source = Source(Path("x.nii"), array.shape[::-1], affine, np.array([[0, 1], [1, 1], [2, 1]]))
    return Volume(array, affine, source)


def scan():
    image = np.full((30, 40, 40), -1000, np.float32)
    image[:, 10:30, 5:35] = 40
    return volume(image)


def label():
    array = np.zeros((30, 40, 40), np.uint8)
    array[18:26, 15:25, 25:33] = 1  # in the patient's right half, near the head
    return volume(array)


def picture(*args, **kwargs):
    return np.asarray(Image.open(io.BytesIO(thumbnail(*args, **kwargs))).convert("RGB")).astype(int)


def red(pixels):
    return np.argwhere((pixels[..., 0] > 200) & (pixels[..., 1] < 60) & (pixels[..., 2] < 60))


def test_picture_is_small():
    pixels = picture(scan(), label(), RED)
    assert pixels.shape[0] == HEIGHT
    assert pixels.shape[1] <= 2 * WIDTH + 8
    assert len(thumbnail(scan(), label(), RED)) < 30_000


def test_right_is_at_the_left_and_the_head_at_the_top():
    pixels = picture(scan(), label(), RED)
    axial, coronal = pixels[:, :HEIGHT], pixels[:, HEIGHT + 4 :]
    assert red(axial)[:, 1].max() < HEIGHT / 2
    assert red(coronal)[:, 0].mean() < HEIGHT / 2
    assert red(coronal)[:, 1].max() < HEIGHT / 2


def test_the_image_lies_as_its_label_map_does():
    array = np.full((30, 40, 40), -1000, np.float32)
    array[:, 15:25, 25:33] = 300  # in all slices
    drawn, filled = picture(volume(array), None, RED), picture(None, label(), RED)
    bright = np.argwhere(drawn[:, :HEIGHT].min(axis=2) > 240)
    np.testing.assert_allclose(bright.mean(axis=0), red(filled[:, :HEIGHT]).mean(axis=0), atol=2)


def test_labels_are_outlines_on_an_image_and_filled_without_one():
    assert 0 < len(red(picture(scan(), label(), RED))) < len(red(picture(None, label(), RED))) / 2


def test_a_label_map_is_drawn_where_its_affine_puts_it():
    moved = label().affine.copy()
    moved[0, 3] -= 40  # mm to the left of the patient
    shifted = dataclasses.replace(label(), affine=moved)
    here, there = (red(picture(scan(), each, RED)[:, :HEIGHT])[:, 1].mean() for each in (label(), shifted))
    assert there - here == pytest.approx(40 / 160 * HEIGHT, abs=3)


def test_a_label_map_on_a_coarser_grid_is_drawn_in_the_same_place():
    coarse = volume(label().array[::2, ::2, ::2], np.diag([8.0, 8.0, 10.0, 1.0]))
    fine, rough = (red(picture(scan(), each, RED)[:, :HEIGHT]).mean(axis=0) for each in (label(), coarse))
    np.testing.assert_allclose(fine, rough, atol=6)


def test_an_image_alone_shows_its_middle():
    array = scan().array.copy()
    array[15] = 240
    assert picture(volume(array), None, RED)[HEIGHT // 2, HEIGHT // 2].min() > 240


def test_an_image_that_is_not_in_hu_is_stretched():
    image = volume(
        np.linspace(0, 1, 30 * 40 * 40, dtype=np.float32).reshape(30, 40, 40).transpose(0, 2, 1).copy()
    )
    assert np.ptp(picture(image, None, RED)[:, 155:]) < np.ptp(
        picture(image, None, RED, spread=True)[:, 155:]
    )


def test_an_image_that_is_constant_can_be_drawn():
    assert picture(volume(np.full((5, 6, 7), 3, np.float32)), None, RED, spread=True).shape[0] == HEIGHT


def test_nothing_cannot_be_drawn():
    with pytest.raises(ValueError, match="neither"):
        thumbnail(None, None, RED)
