import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from partialseg.data.classes import PAPER_ORGANS, class_names
from partialseg.data.volumes import read_image, read_label
from partialseg.report.pictures import fullest_slice, learning_curves, overlay_picture

CLASSES = class_names(PAPER_ORGANS)
READ = ((read_image, "ct"), (read_label, "label"))


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def volume(*organs):
    """A grey block with one box for each (value, z, y, x) slices."""
    image, labels = np.full((12, 20, 24), 40, np.float32), np.zeros((12, 20, 24), np.uint8)
    for value, *where in organs:
        labels[tuple(slice(*part) for part in where)] = value
    return image, labels


def centre_of(picture, kind):
    """Mean column and row, as shares of the picture, of pixels in which the channels look like `kind`."""
    red, green, blue = np.moveaxis(picture, -1, 0)
    found = {
        "red": (red > green + 60) & (red > blue + 60),
        "yellow": (red > blue + 60) & (green > blue + 60),
        "blue": (blue > red + 60) & (blue > green + 60),
    }[kind]
    rows, columns = np.nonzero(found)
    return columns.mean() / picture.shape[1], rows.mean() / picture.shape[0], len(rows)


def test_the_liver_of_the_patients_right_is_drawn_at_the_left():
    image, truth = volume((1, (4, 8), (8, 12), (16, 22)), (2, (4, 8), (8, 12), (2, 8)))
    picture = pixels(overlay_picture(image, truth, {"network": truth}, (3, 1.5, 1.5), CLASSES))
    assert centre_of(picture, "red")[0] < 0.5 < centre_of(picture, "yellow")[0]


def test_the_front_of_an_axial_slice_and_the_head_of_a_coronal_one_are_at_the_top():
    image, truth = volume((1, (2, 6), (14, 18), (8, 16)), (2, (2, 6), (2, 6), (8, 16)))  # liver in front
    upper = pixels(overlay_picture(image, truth, {"network": truth}, (1, 1.5, 1.5), CLASSES))
    upper = upper[: round(0.65 * len(upper))]  # the coronal slice below is 12 mm high, this one 30 mm
    assert centre_of(upper, "red")[1] < centre_of(upper, "yellow")[1]
    image, truth = volume((1, (8, 11), (8, 12), (8, 16)), (2, (1, 4), (8, 12), (8, 16)))  # liver above
    lower = pixels(overlay_picture(image, truth, {"network": truth}, (3, 1.5, 1.5), CLASSES))
    lower = lower[len(lower) // 2 :]
    assert centre_of(lower, "red")[1] < centre_of(lower, "yellow")[1]


def test_a_missed_organ_is_an_edge_and_a_found_one_is_filled():
    image, truth = volume((1, (4, 8), (6, 14), (8, 18)))
    found = pixels(overlay_picture(image, truth, {"network": truth}, (3, 1.5, 1.5), CLASSES))
    missed = pixels(overlay_picture(image, truth, {"network": 0 * truth}, (3, 1.5, 1.5), CLASSES))
    assert 0 < centre_of(missed, "red")[2] < 0.2 * centre_of(found, "red")[2]


def test_each_network_is_a_column():
    image, truth = volume((1, (4, 8), (6, 14), (8, 18)))
    one = pixels(overlay_picture(image, truth, {"a": truth}, (3, 1.5, 1.5), CLASSES))
    three = pixels(
        overlay_picture(image, truth, {"a": truth, "b": 0 * truth, "c": truth}, (3, 1.5, 1.5), CLASSES)
    )
    assert three.shape[1] == pytest.approx(3 * one.shape[1], abs=3)
    middle = three[:, one.shape[1] : 2 * one.shape[1]]
    assert centre_of(middle, "red")[2] < 0.3 * centre_of(one, "red")[2]


def test_a_real_scan_is_drawn_the_right_way_round(real_data):
    image, truth = (read(real_data / f"totalseg_example_3mm_{what}.nii.gz") for read, what in READ)
    picture = pixels(overlay_picture(image.array, truth.array, {"a": truth.array}, image.spacing_mm, CLASSES))
    assert centre_of(picture, "red")[0] < 0.5 < centre_of(picture, "yellow")[0]


def test_a_scan_without_any_organ_is_drawn_too():
    image, nothing = volume()
    assert pixels(overlay_picture(image, nothing, {"network": nothing}, (3, 1.5, 1.5), CLASSES)).size


def test_arrays_of_different_shape_are_refused():
    image, truth = volume()
    with pytest.raises(ValueError, match=r"network has shape \(11, 20, 24\)"):
        overlay_picture(image, truth, {"network": truth[1:]}, (3, 1.5, 1.5), CLASSES)


def test_a_small_organ_counts_as_much_as_a_large_one():
    labels = volume(
        (1, (0, 6), (0, 20), (0, 12)), (1, (6, 9), (0, 19), (0, 12)), (3, (7, 8), (5, 8), (16, 20))
    )[1]
    assert fullest_slice(labels, 0) == 7
    assert fullest_slice(0 * labels, 0) == 6


@pytest.mark.parametrize("epochs", [1, 7])
def test_learning_curves_have_a_panel_for_each_term(epochs):
    log = pd.DataFrame(
        [[stage, epoch, 1e-3, 1 / (epoch + 1)] for stage in ("F", "all") for epoch in range(epochs)],
        columns=["stage", "epoch", "learning_rate", "loss"],
    )
    terms = pd.DataFrame(
        [
            [row.stage, row.epoch, "btcv", organ, term, row.loss * scale]
            for row in log.itertuples()
            for organ, scale in (("all", 1), ("liver", 3))
            for term in ("mCE", "mDC")
        ],
        columns=["stage", "epoch", "dataset", "organ", "term", "value"],
    )
    alone, both = pixels(learning_curves(log)), pixels(learning_curves(log, terms))
    whole = terms[terms["organ"] == "all"].drop(columns="organ")
    np.testing.assert_array_equal(both, pixels(learning_curves(log, whole)))
    assert both.shape[0] > 1.5 * alone.shape[0]  # four panels take a second row
    assert centre_of(both, "blue")[2] > 0 == np.count_nonzero(np.ptp(alone, axis=-1) > 60)
