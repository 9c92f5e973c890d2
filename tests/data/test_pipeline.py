"""The `tf.data` pipeline against crops made by hand."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from partialseg.data.augmentation import AugmentationConfig
from partialseg.data.labels import candidate_table, candidates
from partialseg.data.pipeline import PatchConfig, data_problems, fixed_patches, patches
from partialseg.data.prepared import Case, Dataset, Prepared, write_manifest
from partialseg.data.sampling import PatchPlan
from partialseg.errors import DataError

CLASSES = ("background", "liver", "left_kidney", "right_kidney")
KIDNEY = frozenset(["left_kidney", "right_kidney"])
TABLES = {
    "full": candidate_table(CLASSES, CLASSES[1:]),
    "livers": candidate_table(CLASSES, ["liver"]),
    "kidneys": candidate_table(CLASSES, KIDNEY, [KIDNEY]),  # has one more value
}


def write_case(folder, dataset, name, image, label):
    """Write a prepared case and give its entry."""
    case_folder = folder / dataset / name
    case_folder.mkdir(parents=True)
    np.save(case_folder / "image.npy", image.astype(np.int16))
    np.save(case_folder / "label.npy", label.astype(np.uint8))
    values = [v for v in np.unique(label).tolist() if v < len(TABLES[dataset]) and not TABLES[dataset][v, 0]]
    indices = [np.flatnonzero(label == value) for value in values]
    np.save(case_folder / "foreground.npy", np.concatenate([[], *indices]).astype(np.int32))
    voxels = [len(part) for part in indices]
    stops = np.cumsum(voxels).tolist()
    parts = tuple(zip(values, [0, *stops], stops, strict=False))
    return Case(dataset, name, "train", image.shape, np.eye(4).tolist(), parts, tuple(voxels), "", "", "")


@pytest.fixture
def prepared(tmp_path):
    """Three datasets with two cases each, random HU and labels; one volume is smaller than a patch."""
    random = np.random.default_rng(0)
    cases = []
    for dataset, table in TABLES.items():
        for name, shape in (("a", (9, 10, 11)), ("b", (5, 12, 13))):
            image, label = random.integers(-1000, 2000, shape), random.integers(0, len(table), shape)
            cases.append(write_case(tmp_path, dataset, name, image, label))
    datasets = {name: Dataset(name, (), table) for name, table in TABLES.items()}
    prepared = Prepared(tmp_path, CLASSES, (3.0, 1.5, 1.5), datasets, tuple(cases))
    write_manifest(prepared)
    return prepared


def test_a_case_with_fewer_annotated_organs_has_a_background_of_its_own(tmp_path):
    label = np.zeros((4, 4, 4), int)
    label[1, 1, 1] = 1
    few = dataclasses.replace(
        write_case(tmp_path, "full", "few", np.zeros((4, 4, 4)), label), annotated=("liver", "left_kidney")
    )
    usual = write_case(tmp_path, "full", "usual", np.zeros((4, 4, 4)), label)
    datasets = {"full": Dataset("full", CLASSES[1:], TABLES["full"])}
    prepared = Prepared(tmp_path, CLASSES, (3.0, 1.5, 1.5), datasets, (few, usual))
    write_manifest(prepared)
    config = PatchConfig(patch_size=(4, 4, 4), batch_size=2, batches_per_epoch=2)
    plan = PatchPlan(prepared, config)
    seen = set()
    for index, (_, sets) in enumerate(patches(tmp_path, config).take(2)):
        for draw, one in zip(plan.batch(index), sets.numpy(), strict=True):
            seen.add(draw.case.name)
            assert one[0, 0, 0].tolist() == ([1, 0, 0, 1] if draw.case.name == "few" else [1, 0, 0, 0])
            assert one[1, 1, 1].tolist() == [0, 1, 0, 0]
    assert seen == {"few", "usual"}
    _, sets = fixed_patches(prepared, "full", "train", 2, (4, 4, 4))
    assert sorted(one[0, 0, 0].tolist() for one in sets) == [[1, 0, 0, 0], [1, 0, 0, 1]]


CONFIG = PatchConfig(patch_size=(7, 6, 8), batch_size=3, batches_per_epoch=4, seed=5)


def test_batches_have_static_shapes_and_no_end(prepared):
    image, sets = patches(prepared, CONFIG).element_spec
    assert (image.shape, image.dtype) == ((3, 7, 6, 8, 1), tf.float32)
    assert (sets.shape, sets.dtype) == ((3, 7, 6, 8, 4), tf.uint8)
    assert patches(prepared, CONFIG).cardinality() == tf.data.INFINITE_CARDINALITY


def test_batches_are_the_planned_crops_with_the_candidates_of_their_own_dataset(prepared):
    plan = PatchPlan(prepared, CONFIG)
    mixed = False
    for index, (image, sets) in enumerate(patches(prepared, CONFIG).take(12).as_numpy_iterator()):
        draws = plan.batch(index)
        mixed |= len({draw.case.dataset for draw in draws}) > 1
        for slot, draw in enumerate(draws):
            # Padding by more than a patch on every side makes the crop a plain slice.
            whole_image = np.pad(prepared.image(draw.case), 8, constant_values=-1024)
            whole_label = np.pad(prepared.label(draw.case), 8, constant_values=len(CLASSES))
            crop = tuple(slice(s + 8, s + 8 + p) for s, p in zip(draw.start, CONFIG.patch_size, strict=True))
            np.testing.assert_array_equal(image[slot, ..., 0], whole_image[crop])
            np.testing.assert_array_equal(
                sets[slot], candidates(whole_label[crop], TABLES[draw.case.dataset])
            )
    assert mixed


def test_outside_the_volume_is_air_and_every_class_is_possible(prepared):
    config = CONFIG.model_copy(update={"patch_size": (9, 14, 14), "batch_size": 1, "datasets": ["full"]})
    plan = PatchPlan(prepared, config)
    index = next(index for index in range(9) if plan.batch(index)[0].case.name == "b")
    image, sets = next(patches(prepared, config, index).as_numpy_iterator())
    assert (image[0, :2] == -1024).all()
    assert (sets[0, :2] == 1).all()
    assert (sets[0, 2:7, 1:13, :13].sum(axis=-1) < 4).any()


def test_stream_is_the_same_on_any_number_of_workers_and_from_any_batch_on(prepared):
    one = list(patches(prepared, CONFIG.model_copy(update={"workers": 1})).take(10).as_numpy_iterator())
    four = list(patches(prepared, CONFIG.model_copy(update={"workers": 4})).take(10).as_numpy_iterator())
    resumed = list(patches(prepared, CONFIG, start_batch=6).take(4).as_numpy_iterator())
    tf.nest.map_structure(np.testing.assert_array_equal, one, four)
    tf.nest.map_structure(np.testing.assert_array_equal, one[6:], resumed)


def test_folder_and_plain_dict_will_do(prepared):
    first = next(patches(prepared, CONFIG).as_numpy_iterator())
    again = next(patches(str(prepared.folder), CONFIG.model_dump()).as_numpy_iterator())
    tf.nest.map_structure(np.testing.assert_array_equal, first, again)


def test_value_without_a_row_in_the_dataset_s_own_table_names_the_file(prepared):
    # 5 is a value of the kidneys' table only: with tables joined it must not be read as another dataset's.
    case = prepared.select("livers")[0]
    np.save(prepared.folder / "livers" / case.name / "label.npy", np.full(case.shape, 5, np.uint8))
    config = CONFIG.model_copy(update={"batches_per_epoch": 4})
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"livers/a/label.npy: holds value 5"):
        list(patches(prepared, config).take(4))


def test_missing_file_is_named_before_the_first_batch(prepared):
    (prepared.folder / "full" / "a" / "image.npy").unlink()
    with pytest.raises(DataError, match=r"full/a/image\.npy: there is no such file"):
        patches(prepared, CONFIG)


def test_file_lost_on_the_way_is_named_by_tensorflow_and_in_one_line_where_asked_for(prepared):
    stream = patches(prepared, CONFIG.model_copy(update={"datasets": ["full"]}))
    (prepared.folder / "full" / "a" / "image.npy").unlink()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"full/a/image\.npy: there is no such file"):
        list(stream.take(4))
    with (
        pytest.raises(DataError, match=r"full/a/image\.npy: there is no such file") as error,
        data_problems(),
    ):
        list(stream.take(4))
    assert "\n" not in str(error.value)


def test_other_errors_of_tensorflow_stay_what_they_are():
    with pytest.raises(tf.errors.InvalidArgumentError), data_problems():
        tf.reshape(tf.zeros(3), (2, 2))


def test_changed_shape_names_the_file(prepared):
    np.save(prepared.folder / "full" / "a" / "image.npy", np.zeros((20, 20, 20), np.int16))
    with pytest.raises(DataError, match=r"full/a/image\.npy: holds int16 of shape \(20, 20, 20\)"):
        fixed_patches(prepared, "full", "train", 2, (3, 3, 3))


@pytest.mark.parametrize("voxel", [-1, 9 * 10 * 11])
def test_foreground_outside_the_volume_names_the_file(prepared, voxel):
    indices = np.load(prepared.folder / "full" / "a" / "foreground.npy")
    np.save(prepared.folder / "full" / "a" / "foreground.npy", np.full_like(indices, voxel))
    with pytest.raises(DataError, match=rf"full/a/foreground\.npy: lists voxel {voxel}, expected 0 to 989"):
        fixed_patches(prepared, "full", "train", 2, (3, 3, 3))


def test_fixed_patches_are_centred_on_foreground_and_stay_the_same(prepared):
    image, sets = fixed_patches(prepared, "livers", "train", 4, (3, 5, 5), seed=2)
    assert image.shape == (4, 3, 5, 5, 1)
    assert image.dtype == np.float32
    assert sets.shape == (4, 3, 5, 5, 4)
    assert sets.dtype == np.uint8
    again = fixed_patches(prepared, "livers", "train", 4, (3, 5, 5), seed=2)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(sets, again[1])
    assert not sets[..., 0].all(axis=(1, 2, 3)).any()  # every patch holds voxels that are not background


def test_a_file_that_is_open_may_be_replaced_meanwhile(prepared):
    """As `prepare` does when it makes a case again: it writes under another name and renames."""
    config = CONFIG.model_copy(update={"datasets": ["full"]})
    stream = patches(prepared, config)
    first = next(stream.as_numpy_iterator())
    for path in (prepared.folder / "full").rglob("image.npy"):
        path.unlink()
    again = next(stream.as_numpy_iterator())
    np.testing.assert_array_equal(first[0], again[0])


def test_shards_hold_the_whole_batch_each_part_once(prepared):
    config = CONFIG.model_copy(update={"batch_size": 4, "augmentation": AugmentationConfig()})
    whole = list(patches(prepared, config).take(3).as_numpy_iterator())
    parts = [list(patches(prepared, config, shard=(k, 2)).take(3).as_numpy_iterator()) for k in range(2)]
    for index, batch in enumerate(whole):
        for number, array in enumerate(batch):
            np.testing.assert_array_equal(array, np.concatenate([part[index][number] for part in parts]))
    with pytest.raises(ValueError, match="3 workers cannot share a batch of 4"):
        patches(prepared, config, shard=(0, 3))


def test_a_state_of_the_middle_of_an_epoch_goes_on_there_and_of_another_stream_is_refused(prepared):
    config = CONFIG.model_copy(update={"augmentation": AugmentationConfig()})
    plan = PatchPlan(prepared, config)
    state = json.loads(json.dumps(plan.state(6)))  # epochs have four batches
    whole = list(patches(prepared, config).take(8).as_numpy_iterator())
    rest = list(
        patches(prepared, config.model_copy(update={"workers": 3}), state).take(2).as_numpy_iterator()
    )
    tf.nest.map_structure(np.testing.assert_array_equal, whole[6:], rest)
    tf.nest.map_structure(
        np.testing.assert_array_equal,
        whole[6],
        next(patches(prepared, config, np.int64(6)).as_numpy_iterator()),
    )
    with pytest.raises(ValueError, match="start_batch is -1"):
        patches(prepared, config, -1)
    with pytest.raises(DataError, match="seed is 5, expected 6"):
        patches(prepared, config.model_copy(update={"seed": 6}), state)


def test_augmented_batches_are_the_same_on_any_number_of_workers(prepared):
    config = CONFIG.model_copy(update={"augmentation": AugmentationConfig()})
    one, four = (
        list(patches(prepared, config.model_copy(update={"workers": n})).take(10).as_numpy_iterator())
        for n in (1, 4)
    )
    tf.nest.map_structure(np.testing.assert_array_equal, one, four)


def test_batches_that_are_kept_are_not_written_over(prepared):
    """The memory of a batch is used again, but not before the batch is gone."""
    kept = list(patches(prepared, CONFIG).take(12))
    again = list(patches(prepared, CONFIG).take(12).as_numpy_iterator())
    tf.nest.map_structure(lambda a, b: np.testing.assert_array_equal(a.numpy(), b), kept, again)


def test_a_process_ends_while_batches_are_being_read(prepared):
    code = (
        "from partialseg.data import patches\n"
        "config = {'patch_size': (7, 6, 8), 'batch_size': 3, 'workers': 4}\n"
        f"for index, _ in zip(range(20), patches({str(prepared.folder)!r}, config)): pass\n"
        "print('done')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
