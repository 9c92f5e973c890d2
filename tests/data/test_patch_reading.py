"""Patches as they are read, with and without augmentation, from hand-made cases."""

import subprocess
import sys

import numpy as np
import pytest

from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.labels import candidate_table, ignored_value
from partialseg.data.patch_reading import PatchReader, mirror_note
from partialseg.data.prepared import Case, Dataset, Prepared
from partialseg.data.sampling import Draw, PatchConfig, PatchPlan
from partialseg.errors import DataError

CLASSES = ("background", "liver", "left_kidney", "right_kidney")
NEVER = {"probability": 0, "range": (1, 1)}
#: Nothing happens by itself; tests turn on what they look at.
STILL = {
    **dict.fromkeys(
        (
            "rotation",
            "scaling",
            "noise",
            "blur",
            "brightness",
            "contrast",
            "low_resolution",
            "inverted_gamma",
            "gamma",
        ),
        NEVER,
    ),
    "mirror": {"probability": 0},
}


def still_but_for(**sections):
    return AugmentationConfig(**{**STILL, **sections})


def make_prepared(folder, image, label, annotated=CLASSES[1:], classes=CLASSES):
    """One dataset with one case, its foreground listed in full."""
    table = candidate_table(classes, annotated)
    values = [v for v in np.unique(label).tolist() if not table[v, 0]]
    indices = [np.flatnonzero(label == value) for value in values]
    stops = np.cumsum([len(part) for part in indices]).tolist()
    case_folder = folder / "some" / "a"
    case_folder.mkdir(parents=True)
    np.save(case_folder / "image.npy", np.asarray(image, np.int16))
    np.save(case_folder / "label.npy", np.asarray(label, np.uint8))
    np.save(case_folder / "foreground.npy", np.concatenate([[], *indices]).astype(np.int32))
    parts = tuple(zip(values, [0, *stops], stops, strict=False))
    case = Case("some", "a", "train", label.shape, (), parts, (), "", "", "")
    return Prepared(folder, classes, (3.0, 1.5, 1.5), {"some": Dataset("some", annotated, table)}, (case,))


@pytest.fixture
def kidneys(tmp_path):
    """A left kidney at small x, a right one at large x, the liver at the top; HU say where a voxel is."""
    label = np.zeros((8, 8, 8), int)
    label[2:5, 3:6, 1:3], label[2:5, 3:6, 5:7], label[6:, 1:4, 3:8] = 2, 3, 1
    return make_prepared(tmp_path, np.arange(512).reshape(8, 8, 8) - 200, label)


def read(prepared, size, augmentation=None, draw=None, key=(0, 0), seed=0):
    image = np.full(size, np.nan, np.float32)
    sets = np.full((*size, len(prepared.classes)), 7, np.uint8)
    draw = draw or Draw(prepared.cases[0], (0, 0, 0))
    done = PatchReader(prepared, size, augmentation, seed).read(draw, key, image, sets)
    return image, sets, done


def test_a_patch_that_is_not_augmented_is_a_crop(kidneys):
    image, sets, done = read(kidneys, (3, 4, 5), draw=Draw(kidneys.cases[0], (2, 3, 1)))
    crop = (slice(2, 5), slice(3, 7), slice(1, 6))
    np.testing.assert_array_equal(image, kidneys.image(kidneys.cases[0])[crop])
    np.testing.assert_array_equal(
        sets, kidneys.table(kidneys.cases[0])[kidneys.label(kidneys.cases[0])[crop]]
    )
    assert not done.spatial.resamples
    assert done.intensity == {}


def test_mirroring_left_and_right_exchanges_their_organs(kidneys):
    plain_image, plain, _ = read(kidneys, (8, 8, 8))
    image, sets, done = read(kidneys, (8, 8, 8), still_but_for(mirror={"probability": 1, "axes": ["x"]}))
    assert done.spatial.mirrored == (False, False, True)
    np.testing.assert_array_equal(image, np.clip(plain_image, -200, 300)[..., ::-1])
    np.testing.assert_array_equal(sets, plain[:, :, ::-1][..., [0, 1, 3, 2]])
    assert sets[3, 4, 2].tolist() == [0, 0, 1, 0]  # what lies at small x is still the left kidney


@pytest.mark.parametrize("axis", ["y", "z"])
def test_mirroring_along_other_axes_leaves_left_and_right(kidneys, axis):
    _, plain, _ = read(kidneys, (8, 8, 8))
    _, sets, _ = read(kidneys, (8, 8, 8), still_but_for(mirror={"probability": 1, "axes": [axis]}))
    np.testing.assert_array_equal(sets, np.flip(plain, "zyx".index(axis)))


def test_a_merged_background_is_mirrored_with_what_it_holds(tmp_path):
    label = np.zeros((2, 2, 4), int)
    label[..., 0] = 2
    prepared = make_prepared(tmp_path, label, label, annotated=("left_kidney",))
    _, sets, _ = read(prepared, (2, 2, 4), still_but_for(mirror={"probability": 1, "axes": ["x"]}))
    assert sets[0, 0, 3].tolist() == [0, 0, 0, 1]  # now a right kidney
    assert sets[0, 0, 0].tolist() == [1, 1, 1, 0]  # and the left one may be anywhere else


def test_an_organ_without_its_other_side_keeps_patches_from_being_mirrored_across(tmp_path):
    label = np.zeros((4, 4, 4), int)
    label[:, :, 0] = 1
    prepared = make_prepared(tmp_path, label, label, ("left_lung",), ("background", "left_lung"))
    config = still_but_for(mirror={"probability": 1})
    _, sets, done = read(prepared, (4, 4, 4), config)
    assert done.spatial.mirrored == (True, True, False)
    assert (sets[:, :, 0] == [0, 1]).all()
    assert "left_lung has no other side" in mirror_note(prepared, config)
    assert mirror_note(prepared, still_but_for(mirror={"probability": 1, "axes": ["y"]})) is None
    assert mirror_note(prepared, None) is None


def test_outside_the_volume_is_air_and_every_class_is_possible(kidneys):
    turn = {"probability": 1, "range": (45, 45)}
    image, sets, _ = read(kidneys, (8, 8, 8), still_but_for(rotation=turn, in_plane=True))
    assert (image[:, 0, 0] == -200).all()
    assert (sets[:, 0, 0] == 1).all()
    assert (sets[:, 3:5, 3:5].sum(axis=-1) == 1).all()  # the middle stays
    image, sets, _ = read(kidneys, (12, 8, 8), draw=Draw(kidneys.cases[0], (-2, 0, 0)))
    assert (image[[0, 1, 10, 11]] == -1024).all()
    assert (sets[[0, 1, 10, 11]] == 1).all()


def test_a_box_far_outside_is_all_air(kidneys):
    reader = PatchReader(kidneys, (4, 4, 4))
    for start in ((-9, 0, 0), (0, 20, 0)):
        image, label = reader.read_box(kidneys.cases[0], start, (4, 4, 4))
        assert (image == -1024).all()
        assert (label == ignored_value(CLASSES)).all()


def test_the_voxel_on_which_a_patch_is_centred_stays_in_it_whatever_is_done(tmp_path):
    """Or a batch would not hold the share of foreground that was asked for."""
    label = np.zeros((20, 24, 24), int)
    label[1, 2, 22] = label[18, 20, 3] = label[10, 12, 11] = 1  # single voxels, two of them near the edge
    prepared = make_prepared(tmp_path, label * 100, label)
    config = AugmentationConfig(
        rotation={"probability": 1, "range": (-90, 90)}, scaling={"probability": 1, "range": (0.7, 1.4)}
    )
    plan = PatchPlan(prepared, PatchConfig(patch_size=(9, 11, 10), batch_size=2, foreground=1))
    seen = set()
    for index in range(60):
        for slot, draw in enumerate(plan.batch(index)):
            _, sets, done = read(prepared, (9, 11, 10), config, draw, (index, slot))
            place = np.array(draw.voxel) - draw.start
            place = np.where(done.spatial.mirrored, np.array([8, 10, 9]) - place, place)
            assert sets[tuple(place)].tolist() == [0, 1, 0, 0]
            seen.add(draw.voxel)
    assert len(seen) == 3


def test_candidates_of_different_values_never_mix(kidneys):
    config = still_but_for(
        rotation={"probability": 1, "range": (-30, 30)}, scaling={"probability": 1, "range": (0.7, 1.4)}
    )
    rows = {tuple(row) for row in kidneys.table(kidneys.cases[0]).tolist()}
    for key in range(20):
        _, sets, _ = read(kidneys, (8, 8, 8), config, key=(key,))
        assert {tuple(row) for row in sets.reshape(-1, 4).tolist()} <= rows


def test_scaling_by_two_takes_in_twice_as_much(tmp_path):
    label = np.zeros((16, 16, 16), int)
    label[6:10, 6:10, 6:10] = 1
    prepared = make_prepared(tmp_path, label, label)
    twice = still_but_for(scaling={"probability": 1, "range": (2, 2)})
    _, sets, _ = read(prepared, (16, 16, 16), twice)
    assert sets[..., 1].astype(bool)[7:9, 7:9, 7:9].all()
    assert sets[4:12, 4:12, 4:12, 1].sum() == 8
    assert (sets[0] == 1).all()  # half of the field of view lies outside


def test_the_key_decides_what_is_done_and_nothing_else(kidneys):
    config = AugmentationConfig()
    one, two = (read(kidneys, (8, 8, 8), config, key=(3, 1), seed=4) for _ in range(2))
    for first, second in zip(one, two, strict=True):
        assert first == second if not isinstance(first, np.ndarray) else (first == second).all()
    others = [read(kidneys, (8, 8, 8), config, key=(k, 1), seed=4)[2] for k in range(20)]
    assert any(other != one[2] for other in others)


def test_intensity_is_changed_in_the_image_alone(kidneys):
    _, plain, _ = read(kidneys, (8, 8, 8))
    image, sets, done = read(kidneys, (8, 8, 8), still_but_for(noise={"probability": 1, "range": (0.1, 0.1)}))
    assert list(done.intensity) == ["noise"]
    np.testing.assert_array_equal(sets, plain)
    off = image - np.clip(kidneys.image(kidneys.cases[0]), -200, 300)
    assert 8 < off.std() < 12  # a tenth of 100 HU, 512 voxels


def test_a_value_that_the_table_has_not_is_named(tmp_path):
    label = np.zeros((4, 4, 4), int)
    prepared = make_prepared(tmp_path, label, label)
    label[3, 3, 3] = 9
    np.save(tmp_path / "some" / "a" / "label.npy", label.astype(np.uint8))
    with pytest.raises(DataError, match=r"some/a/label.npy.*holds value 9.*0 to 4"):
        read(prepared, (4, 4, 4))


def test_reading_needs_no_tensorflow():
    code = "import sys, partialseg.data.patch_reading; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
