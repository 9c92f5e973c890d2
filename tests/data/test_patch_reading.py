"""Patches as they are read, with and without augmentation, from hand-made cases."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.labels import candidate_table, ignored_value
from partialseg.data.patch_reading import PatchReader, mirror_note
from partialseg.data.prepared import Case, Dataset, Prepared
from partialseg.data.sampling import Draw, PatchConfig, PatchPlan, patch_start, random_draw
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


def test_a_patch_that_is_turned_and_mirrored_has_its_sides_exchanged_too(kidneys):
    config = still_but_for(
        rotation={"probability": 1, "range": (1, 1)}, mirror={"probability": 1, "axes": ["x"]}, in_plane=True
    )
    _, sets, done = read(kidneys, (8, 8, 8), config)
    assert done.spatial.resamples
    assert sets[3, 4, 2].tolist() == [0, 0, 1, 0]
    assert sets[3, 4, 5].tolist() == [0, 0, 0, 1]


def positions_by_hand(draw, size, spatial, spacing_mm):
    """Where each voxel of a patch lies in the volume: `(depth, height, width, 3)`."""
    turn = np.eye(3)
    for axis, degrees in enumerate(spatial.degrees):
        first, second = [other for other in range(3) if other != axis]
        one = np.eye(3)
        one[first, first] = one[second, second] = np.cos(np.deg2rad(degrees))
        one[second, first] = np.sin(np.deg2rad(degrees))
        one[first, second] = -one[second, first]
        turn = turn @ one
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).astype(float)
    for axis in np.flatnonzero(spatial.mirrored):
        index[..., axis] = size[axis] - 1 - index[..., axis]
    start = np.array(draw.start, float)
    about = (np.array(size) - 1) / 2 if draw.voxel is None else np.array(draw.voxel) - start
    factors = np.array([1 if spatial.in_plane else spatial.factor, spatial.factor, spatial.factor])
    millimetres = (index - about) * spacing_mm * factors
    return millimetres @ turn.T / spacing_mm + start + about


@pytest.mark.parametrize("trial", range(12))
def test_all_together_equals_scipy_at_positions_found_by_hand(tmp_path, trial):
    """Turned, scaled and mirrored; volumes of one plane, patches larger than the volume, with and without a centre."""
    random = np.random.default_rng(trial)
    shape = (1 if trial % 4 == 0 else int(random.integers(2, 20)), *random.integers(3, 20, 2).tolist())
    size = tuple(random.integers(1, 20, 3).tolist())
    label = np.kron(random.integers(0, 4, [-(-n // 3) for n in shape]), np.ones((3, 3, 3), int))
    label = label[tuple(slice(n) for n in shape)]
    image = random.integers(-300, 400, shape)
    prepared = make_prepared(tmp_path, image, label, annotated=("left_kidney",))
    case = prepared.cases[0]
    if trial % 2:
        voxel = tuple(int(random.integers(n)) for n in shape)
        start = tuple(patch_start(v - n // 2, m, n) for v, m, n in zip(voxel, shape, size, strict=True))
        draw = Draw(case, start, 2, voxel)
    else:
        draw = random_draw(case, size, random)
    config = still_but_for(
        rotation={"probability": 1, "range": (-30, 30)},
        scaling={"probability": 1, "range": (0.7, 1.4)},
        mirror={"probability": 0.5},
        in_plane=(True, False, None)[trial % 3],
    )
    found, sets, done = read(prepared, size, config, draw, key=(trial,))
    places = np.moveaxis(
        positions_by_hand(draw, size, done.spatial, np.array(prepared.spacing_mm)) + 80, -1, 0
    )
    padded = np.clip(np.pad(image, 80, constant_values=-1024).astype(float), *config.window_hu)
    np.testing.assert_allclose(found, ndimage.map_coordinates(padded, places, order=1), atol=0.05)
    padded = np.pad(label, 80, constant_values=ignored_value(CLASSES))
    weights = np.stack(
        [ndimage.map_coordinates((padded == value).astype(float), places, order=1) for value in range(5)]
    )
    table = prepared.table(case)[:, [0, 1, 3, 2] if done.spatial.mirrored[2] else slice(None)]
    clear = np.sort(weights, axis=0)[-1] - np.sort(weights, axis=0)[-2] > 1e-3
    np.testing.assert_array_equal(sets[clear], table[weights.argmax(axis=0)][clear])


def test_arrays_that_cannot_be_written_in_place_are_refused(kidneys):
    image, sets = np.empty((4, 4, 4), np.float32), np.empty((4, 4, 4, 4), np.uint8)
    reader, draw = PatchReader(kidneys, (4, 4, 4)), Draw(kidneys.cases[0], (0, 0, 0))
    with pytest.raises(ValueError, match="C-contiguous"):
        reader.read(draw, (0, 0), image, sets.transpose(1, 0, 2, 3))
    with pytest.raises(ValueError, match="C-contiguous"):
        reader.read(draw, (0, 0), image.T, sets)


def test_a_patch_whose_box_would_fill_the_memory_is_refused(kidneys):
    config = still_but_for(rotation={"probability": 1, "range": (30, 30)})
    with pytest.raises(
        DataError, match=r"patch_size: a patch of 2000 x 8 x 2 .* turn it in its planes alone"
    ):
        read(kidneys, (2000, 8, 2), config)
