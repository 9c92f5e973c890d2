"""Pictures of patches pixel by pixel, and the page that shows them."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageColor

from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.augmentation.spatial import SpatialTransform
from partialseg.data.classes import organ_colours
from partialseg.data.inspect_page import as_html, inspect_patches
from partialseg.data.inspect_tables import classes_table, datasets_table, foreground_line
from partialseg.data.patch_pictures import (
    BACKGROUND,
    IGNORED,
    MERGED,
    Chooser,
    Place,
    draw_patch,
    mark_in_patch,
    picture,
)
from partialseg.data.patch_reading import PatchReader
from partialseg.data.prepared import Case, read_prepared
from partialseg.data.sampling import Draw, PatchConfig, PatchPlan

CLASSES = ("background", "liver", "left_kidney", "right_kidney")
COLOURS = organ_colours(CLASSES[1:])
SIZE = (16, 32, 32)


def drawn(sets, spacing=(1.0, 1.0, 1.0), mark=None):
    """The picture of a patch of `(z, y, x)` sets of class numbers, as RGB."""
    sets = np.array(sets, dtype=object)
    candidates = np.zeros((*sets.shape, len(CLASSES)), np.uint8)
    for place in np.ndindex(sets.shape):
        candidates[place][list(sets[place])] = 1
    png = draw_patch(np.zeros(sets.shape, np.float32), candidates, spacing, CLASSES, mark)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def uniform(numbers):
    sets = np.empty((2, 2, 2), dtype=object)
    for place in np.ndindex(sets.shape):
        sets[place] = numbers
    return drawn(sets)


def colours_of(pixels):
    return {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}


def rgb(*names):
    return {ImageColor.getrgb(name) for name in names}


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((1,), [COLOURS["liver"]]),
        ((2, 3), [COLOURS["left_kidney"], COLOURS["right_kidney"]]),
        ((0,), BACKGROUND[:1]),
        ((0, 2, 3), MERGED),
        ((0, 1, 2, 3), IGNORED),
    ],
)
def test_each_set_of_classes_has_its_own_look(numbers, expected):
    right_half = uniform(numbers)
    right_half = right_half[:, right_half.shape[1] // 2 + 8 :]
    assert colours_of(right_half) - rgb("#ffffff") == rgb(*expected)


def test_looks_of_what_is_no_organ_differ_from_every_organ():
    others = rgb(*BACKGROUND, *MERGED, *IGNORED)
    assert len(others) == 5
    assert not others & rgb(*organ_colours([f"organ_{number}" for number in range(64)]).values())


def test_right_is_at_the_left_and_front_at_the_top():
    sets = np.empty((2, 4, 4), dtype=object)
    for z, y, x in np.ndindex(sets.shape):
        sets[z, y, x] = (1,) if y >= 2 and x >= 2 else (0,)  # front right of the patient
    pixels = drawn(sets)
    reds = (pixels == ImageColor.getrgb(COLOURS["liver"])).all(axis=-1)
    half = pixels.shape[1] // 2
    axial = reds[: pixels.shape[0], half:][:, : half // 2]
    rows, columns = np.nonzero(axial)
    assert rows.min() == 0
    assert columns.max() < half // 4 + 8
    assert rows.max() < pixels.shape[0] // 2 + 1


def test_a_picture_keeps_the_proportions_in_mm():
    png = draw_patch(np.zeros((4, 10, 20), np.float32), np.ones((4, 10, 20, 4), np.uint8), (5, 2, 1), CLASSES)
    width, height = Image.open(io.BytesIO(png)).size
    # 20 mm in every direction: two panels side by side in each half, one above the other in the second.
    assert width / height == pytest.approx(4 / 2, rel=0.03)


def test_the_mark_follows_the_mirror():
    draw = Draw(None, (5, 5, 5), 1, (6, 7, 8))
    assert mark_in_patch(draw, SpatialTransform(), (10, 10, 10)) == (1, 2, 3)
    mirrored = SpatialTransform(degrees=(20, 0, 0), factor=1.2, mirrored=(True, False, True))
    assert mark_in_patch(draw, mirrored, (10, 10, 10)) == (8, 2, 6)
    assert mark_in_patch(Draw(None, (0, 0, 0)), mirrored, (10, 10, 10)) is None


def test_the_marked_voxel_is_one_of_the_organ_however_it_is_augmented(tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    config = PatchConfig(patch_size=SIZE, augmentation=AugmentationConfig())
    plan, mirrors = PatchPlan(prepared, config), set()
    reader = PatchReader(prepared, SIZE, config.augmentation)
    image, sets = np.empty(SIZE, np.float32), np.empty((*SIZE, 6), np.uint8)
    for index in range(30):
        for slot, draw in enumerate(plan.batch(index)):
            if draw.forced_value is not None:
                spatial = reader.read(draw, (index, slot), image, sets).spatial
                mark = mark_in_patch(draw, spatial, SIZE)
                expected = np.array(prepared.table(draw.case)[draw.forced_value])
                if spatial.mirrored[2]:
                    expected = expected[[0, 1, 2, 3, 5, 4]]
                assert sets[mark].tolist() == expected.tolist()
                mirrors.add(spatial.mirrored)
    assert len(mirrors) > 4


def test_the_cross_is_drawn_in_pictures_of_centred_patches_alone():
    sets = np.empty((9, 9, 9), dtype=object)
    for place in np.ndindex(sets.shape):
        sets[place] = (0,)
    without, centred = drawn(sets), drawn(sets, mark=(4, 4, 4))
    changed = np.argwhere((without != centred).any(axis=-1))
    assert len(changed)
    assert rgb("#ffffff") <= colours_of(centred[tuple(changed.T)])


def places(*kinds):
    chooser = Chooser(4)
    for index, (dataset, value) in enumerate(kinds):
        case = Case(dataset, "a", "train", (9, 9, 9), (), (), (), "", "", "")
        chooser.add(index, [Draw(case, (0, 0, 0), value, None)])
    return [(place.draw.case.dataset, place.draw.forced_value) for place in chooser.chosen()]


def test_patches_are_chosen_to_show_every_dataset_centred_and_not():
    found = places(*[("a", 1)] * 20, ("a", None), ("b", 1), ("b", 2), ("c", None))
    assert len(found) == 4
    assert {dataset for dataset, _ in found} == {"a", "b", "c"}
    assert {value for _, value in found} >= {1, None}


def test_fewer_patches_than_pictures_are_all_shown():
    assert places(("a", 1), ("b", None)) == [("a", 1), ("b", None)]


@pytest.fixture(scope="module")
def inspected(tiny_prepared, tmp_path_factory):
    out = tmp_path_factory.mktemp("inspect")
    config = PatchConfig(patch_size=SIZE, augmentation=AugmentationConfig())
    report = inspect_patches(read_prepared(tiny_prepared), config, out, batches=15)
    return report, out


def test_page_and_json_are_written_and_nothing_else(inspected):
    report, out = inspected
    assert sorted(path.name for path in out.iterdir()) == ["inspect.html", "inspect.json"]
    assert json.loads((out / "inspect.json").read_text()) == report


def test_page_shows_every_dataset_class_and_picture_without_loading_anything(inspected):
    report, out = inspected
    page = (out / "inspect.html").read_text()
    assert page.count("data:image/png;base64,") == len(report["pictures"]) == 6
    assert {shown["dataset"] for shown in report["pictures"]} == {
        entry["name"] for entry in report["datasets"]
    }
    for entry in (*report["datasets"], *report["classes"]):
        assert entry["name"] in page
    for shown in report["pictures"]:
        assert shown["case"] in page
        assert all(change in page for change in shown["changes"])
    assert "<script" not in page
    assert "http" not in page


def test_pictures_say_what_was_drawn_in_the_stream_of_training(inspected, tiny_prepared):
    report, _ = inspected
    plan = PatchPlan(read_prepared(tiny_prepared), PatchConfig(patch_size=SIZE))
    for shown in report["pictures"]:
        draw = plan.batch(shown["batch"])[shown["slot"]]
        assert (shown["dataset"], shown["case"]) == (draw.case.dataset, draw.case.name)
        assert shown["start"] == list(draw.start)
        assert (shown["centred_on"] is None) == (draw.forced_value is None)
    assert {shown["centred_on"] is None for shown in report["pictures"]} == {True, False}


def test_a_partly_annotated_case_says_what_its_background_may_be(tiny_prepared):
    prepared = read_prepared(tiny_prepared)
    liver = prepared.select("msd_liver", "train")[0]
    _, said = picture(prepared, PatchConfig(patch_size=SIZE), Place(0, 0, Draw(liver, (0, 0, 0))))
    assert said["background_may_be"] == ["spleen", "pancreas", "left kidney", "right kidney"]
    assert (said["changes"], said["centred_on"], said["mark"]) == ([], None, None)


def test_names_are_escaped(inspected):
    report, _ = inspected
    bad = json.loads(json.dumps(report).replace("msd_liver", "<b>x"))
    page = as_html(bad, [b""] * 6)
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page


def test_terminal_tables_show_names_as_they_are(inspected):
    from rich.console import Console

    report, _ = inspected
    report = json.loads(json.dumps(report).replace("msd_liver", "[red]x"))
    console = Console(file=io.StringIO(), width=100)
    console.print(datasets_table(report))
    console.print(classes_table(report))
    said = console.file.getvalue()
    assert "[red]x" in said
    assert "left kidney" in said
    assert foreground_line(report).startswith("patches of a batch: centred on an organ 50% at least, ")
