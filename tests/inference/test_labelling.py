"""The whole way from a scan to labels on its own grid, with networks that are formulas."""

import itertools
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from partialseg.data.augmentation.config import AugmentationConfig
from partialseg.data.volumes import Source, Volume
from partialseg.errors import DataError
from partialseg.inference import labelling
from partialseg.inference.labelling import (
    Network,
    check_ensemble,
    label_scan,
    load_networks,
    trained_mirror_axes,
)
from partialseg.inference.predict import predict_scan
from partialseg.models.sliding_window import WindowSettings
from partialseg.training.config import TrainingConfig
from partialseg.training.runs import Run

CLASSES = ("background", "left_kidney", "right_kidney")
SPACING_MM = (3.0, 2.0, 2.0)
PATCH_SIZE = (8, 16, 16)
ORIENTATIONS = [
    np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def lopsided(hu):
    """Logits that change when an axis is turned round or exchanged for another."""
    return np.concatenate(
        [0 * hu, hu - np.roll(hu, 1, 1), hu - 2 * np.roll(hu, 1, 3) + np.roll(hu, 2, 2)], -1
    )


def make_run(folder, **config):
    config = {"name": "formula", "patch_size": PATCH_SIZE, **config}
    return Run(folder, TrainingConfig(**config), CLASSES, SPACING_MM, {"btcv": CLASSES[1:]})


def volume(array, spacing_mm=SPACING_MM):
    affine = np.diag([*spacing_mm[::-1], 1.0])
    source = Source(None, array.shape[::-1], affine, np.array([[0, 1], [1, 1], [2, 1]]))
    return Volume(array.astype(np.float32), affine, source)


def phantom(shape=(30, 60, 70)):
    """A body of noisy soft tissue with two bright organs in a lot of air."""
    array = np.full(shape, -1000.0)
    array[4:26, 25:50, 20:60] = 0
    array[10:18, 30:40, 26:36] = 300
    array[10:18, 30:40, 44:54] = 300
    return array + np.random.default_rng(0).normal(0, 5, shape)


def bright(hu):
    """Left kidney above 150 HU."""
    return np.concatenate([0 * hu, hu - 150, 0 * hu - 1000], axis=-1)


def test_all_axis_orders_give_the_same_labels_in_the_world_and_keep_the_geometry(tmp_path):
    canonical = np.random.default_rng(1).normal(0, 300, (15, 13, 9)).astype(np.int16)
    affine = np.array([[1.7, 0, 0, -20], [0, 1.6, 0, 35], [0, 0, 3.4, -700], [0, 0, 0, 1.0]])
    run, results = make_run(tmp_path), []
    for number, orientation in enumerate(ORIENTATIONS):
        array = nib.apply_orientation(canonical, orientation)
        image = nib.Nifti1Image(array, affine @ nib.orientations.inv_ornt_aff(orientation, canonical.shape))
        image.set_sform(image.affine, code=2)
        image.set_qform(image.affine, code=1)
        nib.save(image, tmp_path / f"{number}.nii")
        predict_scan(lopsided, run, tmp_path / f"{number}.nii", tmp_path / f"{number}_labels.nii")
        found, stored = nib.load(tmp_path / f"{number}_labels.nii"), nib.load(tmp_path / f"{number}.nii")
        assert found.shape == array.shape
        for form in ("get_sform", "get_qform"):
            (matrix, code), (expected, expected_code) = (
                getattr(f, form)(coded=True) for f in (found, stored)
            )
            np.testing.assert_array_equal(matrix, expected)
            assert code == expected_code
        results.append(np.asarray(nib.as_closest_canonical(found).dataobj))
    assert len(results) == 48
    assert np.unique(results[0]).tolist() == [0, 1, 2]
    for labels in results[1:]:
        np.testing.assert_array_equal(labels, results[0])


def test_skipping_outside_the_body_changes_no_label_of_an_organ_and_saves_windows():
    scan, networks = volume(phantom()), [Network(bright, PATCH_SIZE)]

    def labelled(settings):
        totals = []
        labels = label_scan(
            networks, scan, SPACING_MM, CLASSES, settings, lambda done, total: totals.append(total)
        )
        assert set(totals) == {len(totals)}
        return labels, len(totals)

    found, num_windows = labelled(WindowSettings())
    everywhere, num_everywhere = labelled(WindowSettings(skip_outside_body=False))
    np.testing.assert_array_equal(found, everywhere)
    assert (found == 1).sum() == 2 * 8 * 10 * 10
    assert num_windows < num_everywhere


def test_what_a_network_sees_in_air_far_from_the_body_is_not_labelled():
    def everywhere(hu):
        return np.concatenate([0 * hu, 0 * hu + 5, 0 * hu], axis=-1)

    scan = volume(phantom())
    labels = label_scan([Network(everywhere, PATCH_SIZE)], scan, SPACING_MM, CLASSES)
    assert (labels[4:26, 25:50, 20:60] == 1).all()
    assert not labels[:, :5].any()
    everything = WindowSettings(skip_outside_body=False)
    assert label_scan([Network(everywhere, PATCH_SIZE)], scan, SPACING_MM, CLASSES, everything).all()


def test_an_ensemble_averages_probabilities():
    scan = volume(np.zeros((9, 20, 24)), (2.0, 1.5, 1.5))

    def certain(*probabilities):
        logits = np.log(np.array(probabilities, np.float32))
        return Network(lambda hu: np.zeros_like(hu) + logits, PATCH_SIZE)

    # Of the logits' mean, the first two classes would be equal.
    networks = [certain(0.90, 0.09, 0.01), certain(0.2, 0.5, 0.3), certain(0.2, 0.5, 0.3)]
    planes = {}
    labels = label_scan(networks, scan, SPACING_MM, CLASSES, on_probabilities=planes.__setitem__)
    assert sorted(planes) == list(range(9))
    np.testing.assert_allclose(planes[4], np.broadcast_to([1.3, 1.09, 0.61], (20, 24, 3)) / 3, atol=1e-6)
    assert not labels.any()


def test_networks_of_an_ensemble_may_have_windows_of_different_sizes():
    scan, seen = volume(phantom()), []
    networks = [Network(bright, PATCH_SIZE), Network(bright, (12, 20, 32))]
    labels = label_scan(
        networks, scan, SPACING_MM, CLASSES, progress=lambda done, total: seen.append((done, total))
    )
    np.testing.assert_array_equal(labels, label_scan(networks[:1], scan, SPACING_MM, CLASSES))
    assert [done for done, _ in seen] == list(range(1, seen[0][1] + 1))


def test_mirroring_keeps_left_and_right():
    def sided(hu):
        bright = (hu > 150).astype(np.float32)
        lower = np.arange(hu.shape[3])[:, np.newaxis] < hu.shape[3] / 2
        return 4 * np.concatenate([1 - bright, bright * lower, bright * ~lower], axis=-1)

    scan = volume(phantom())
    networks = [Network(sided, scan.array.shape)]
    plain = label_scan(networks, scan, SPACING_MM, CLASSES)
    assert np.unique(plain).tolist() == [0, 1, 2]
    mirrored = label_scan(networks, scan, SPACING_MM, CLASSES, WindowSettings(mirror_axes=("z", "x")))
    np.testing.assert_array_equal(mirrored, plain)
    with pytest.raises(ValueError, match="left_kidney: the other side"):
        label_scan(networks, scan, SPACING_MM, CLASSES[:2], WindowSettings(mirror_axes=("x",)))


def test_of_values_that_are_no_numbers_a_precision_that_was_asked_for_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setattr(
        labelling, "load_model", lambda run, precision: lambda hu: np.repeat(hu * np.nan, 3, -1)
    )
    for precision, remedy in (
        (None, "; train the run again"),
        (
            "float16",
            "; predict in float32, without `--precision float16`; where that gives none either, train",
        ),
    ):
        networks = load_networks([make_run(tmp_path)], precision)
        with pytest.raises(DataError, match=remedy):
            label_scan(networks, volume(phantom()), SPACING_MM, CLASSES)


def peak_memory(depth, num_classes):
    scan = volume(np.zeros((depth, 40, 40)), (2.0, 2.0, 2.0))
    network = Network(lambda hu: np.zeros((*hu.shape[:-1], num_classes), np.float32), (8, 32, 32))
    classes = ["background", *(f"organ_{k}" for k in range(1, num_classes))]
    tracemalloc.start()
    label_scan([network], scan, SPACING_MM, classes, WindowSettings(skip_outside_body=False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_classes_times_the_volume():
    peak_memory(16, 2)  # compiles
    few, many, deep = peak_memory(32, 2), peak_memory(32, 40), peak_memory(320, 40)
    slab = 8 * 40 * 40 * 40 * 4
    # The sum, the logits of the window that is added and of the next one, some planes.
    assert many - few < 4 * slab
    # Ten times the scan: its image and its labels, 9 bytes a voxel, and no probabilities.
    assert deep - many < 10 * 288 * 40 * 40


def test_runs_that_do_not_fit_together_are_refused(tmp_path):
    first = make_run(tmp_path / "a")
    other = Run(tmp_path / "b", first.config, CLASSES[:2], SPACING_MM, {})
    coarser = Run(tmp_path / "c", first.config, CLASSES, (5.0, 2.0, 2.0), {})
    with pytest.raises(DataError, match=r"b: its classes \(background, left_kidney\) differ from"):
        check_ensemble([first, other])
    with pytest.raises(DataError, match=r"c: its voxel size \(5.0, 2.0, 2.0\) differ"):
        check_ensemble([first, coarser])


def test_windows_are_mirrored_as_patches_were_in_training(tmp_path):
    def run(**mirror):
        return make_run(tmp_path, augmentation=AugmentationConfig(mirror=mirror))

    assert trained_mirror_axes([run()]) == ("z", "y", "x")
    assert trained_mirror_axes([run(), run(axes=("y", "x"))]) == ("y", "x")
    one_sided = Run(tmp_path, run().config, CLASSES[:2], SPACING_MM, {})
    assert trained_mirror_axes([one_sided]) == ("z", "y")
    with pytest.raises(DataError, match="without mirrored patches"):
        trained_mirror_axes([run(), run(probability=0)])
    with pytest.raises(DataError, match="without mirrored patches"):
        trained_mirror_axes([make_run(tmp_path, augmentation=None)])
