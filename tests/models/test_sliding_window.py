"""Sliding windows: what comes out must not depend on how the windows lie."""

import itertools
import tracemalloc

import keras
import numpy as np
import pytest

from partialseg.models.sliding_window import SlidingWindow, WindowSettings, predict_volume
from partialseg.models.windows import window_starts

RANDOM = np.random.default_rng(0)


def pointwise(hu):
    """Logits that depend on a voxel's own HU alone."""
    return np.concatenate([hu / 500, -hu / 500, np.zeros_like(hu)], axis=-1)


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(9, 13, 17), (4, 8, 8), (3, 8, 20), (1, 1, 1)])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_pointwise_model_comes_back_unchanged(shape, overlap, batch_size):
    volume = RANDOM.uniform(-1000, 1000, shape).astype(np.float32)
    result = predict_volume(pointwise, volume, (4, 8, 8), overlap, batch_size)
    assert result.shape == (*shape, 3)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, softmax(pointwise(volume[..., np.newaxis])), atol=2e-6)


def test_constant_model_gives_a_constant():
    result = predict_volume(lambda hu: np.zeros((*hu.shape[:-1], 4)), np.zeros((11, 12, 13)), (6, 5, 4))
    np.testing.assert_allclose(result, 0.25, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_blending_is_the_weighted_mean_of_the_windows_logits(batch_size):
    shape, patch, overlap = (11, 13, 9), (4, 6, 5), 0.5
    starts = [window_starts(n, p, overlap) for n, p in zip(shape, patch, strict=True)]
    windows = list(itertools.product(*starts))
    logits = RANDOM.normal(0, 3, (len(windows), *patch, 3)).astype(np.float32)
    results = iter(logits)
    found = predict_volume(
        lambda hu: np.stack([next(results) for _ in hu]), np.zeros(shape), patch, overlap, batch_size
    )
    gaussians = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch]
    weight = np.einsum("i,j,k->ijk", *gaussians)[..., None]
    total, weights = np.zeros((*shape, 3)), np.zeros((*shape, 1))
    for window, values in zip(windows, logits, strict=True):
        place = tuple(slice(start, start + size) for start, size in zip(window, patch, strict=True))
        total[place] += weight * values
        weights[place] += weight
    np.testing.assert_allclose(found, softmax(total / weights), atol=1e-5)


def sided(hu):
    """Bright voxels of a window's lower x are left, of its higher x right: background, left, right."""
    bright = (hu > 0).astype(np.float32)
    lower = np.arange(hu.shape[3])[:, np.newaxis] < hu.shape[3] / 2
    return 4 * np.concatenate([1 - bright, bright * lower, bright * ~lower], axis=-1)


@pytest.mark.parametrize("axes", ["x", "zyx"])
def test_mirroring_exchanges_left_and_right(axes):
    volume = RANDOM.normal(0, 100, (4, 6, 8))
    plain = predict_volume(sided, volume, (4, 6, 8))
    mirrored = predict_volume(sided, volume, (4, 6, 8), mirror_axes=axes, mirrored_classes=(0, 2, 1))
    np.testing.assert_allclose(mirrored, plain, atol=1e-6)
    unaware = predict_volume(sided, volume, (4, 6, 8), mirror_axes=axes, mirrored_classes=(0, 1, 2))
    assert np.abs(unaware - plain).max() > 0.3


@pytest.mark.parametrize("axes", ["z", "y", "zx", "zyx"])
def test_mirroring_is_the_mean_over_the_flips(axes):
    kernel = RANDOM.normal(0, 1, (5, 3)).astype(np.float32)

    def lopsided(hu):
        shifted = [np.roll(hu, (a, b, c), (1, 2, 3)) for a, b, c in np.eye(3, dtype=int)]
        return np.concatenate([hu, *shifted, np.roll(hu, 2, 3)], axis=-1) @ kernel

    volume = RANDOM.normal(0, 1, (5, 6, 7)).astype(np.float32)
    found = predict_volume(lopsided, volume, (5, 6, 7), mirror_axes=axes, mirrored_classes=(0, 2, 1))
    logits = []
    for some in itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(len(axes) + 1)):
        flipped = ["zyx".index(axis) for axis in some]
        one = np.flip(lopsided(np.flip(volume, flipped)[None, ..., None])[0], flipped)
        logits.append(one[..., [0, 2, 1]] if "x" in some else one)
    np.testing.assert_allclose(found, softmax(np.mean(logits, axis=0)), atol=1e-5)


def test_windows_that_are_left_out_are_background_and_change_nothing_elsewhere():
    volume = RANDOM.uniform(-1000, 1000, (12, 8, 20)).astype(np.float32)
    seen = []

    def network(hu):
        seen.append(len(hu))
        return pointwise(hu)[..., ::-1]  # the brightest are background's

    def is_wanted(box):
        return box[0].start >= 4 and box[2].start < 6

    settings = WindowSettings()
    windows = SlidingWindow(network, volume, (4, 8, 4), settings, is_wanted=is_wanted, num_classes=3)
    found = np.stack(list(windows.planes()))
    assert sum(seen) == windows.num_windows == 3 * 3
    whole = predict_volume(network, volume, (4, 8, 4))
    # Where no window that was left out reaches, and where no other one does.
    np.testing.assert_array_equal(found[6:, :, :6], whole[6:, :, :6])
    assert (found[:4, ..., 0] > 0.999).all()
    assert (found[:, :, 8:, 0] > 0.999).all()


@pytest.mark.parametrize("shape", [(9, 13, 17), (3, 8, 5)])
def test_whole_logits_are_those_of_the_planes(shape):
    volume = RANDOM.uniform(-1000, 1000, shape).astype(np.float32)
    windows = SlidingWindow(pointwise, volume, (4, 8, 8), WindowSettings())
    found = windows.whole_logits()
    np.testing.assert_array_equal(found, np.stack([plane.copy() for plane in windows.logits()]))
    np.testing.assert_allclose(found, pointwise(volume[..., np.newaxis]), atol=1e-5)


def peak_memory(depth, num_classes):
    volume = np.zeros((depth, 24, 24), np.float32)
    windows = SlidingWindow(
        lambda hu: np.zeros((*hu.shape[:-1], num_classes), np.float32),
        volume,
        (8, 24, 24),
        WindowSettings(overlap=0),
    )
    tracemalloc.start()
    for plane in windows.planes():
        assert plane.shape == (24, 24, num_classes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_grows_with_a_slab_of_the_classes_and_not_with_the_volume():
    peak_memory(16, 4)  # compiles
    shallow, deep = peak_memory(16, 30), peak_memory(256, 30)
    assert deep < 1.05 * shallow
    # Logits, a copy that a network outside Keras costs, sums and a plane; the whole volume's probabilities would be 32.
    assert deep < 3.4 * (8 * 24 * 24 * 30 * 4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_without_numbers_is_told_from_one_that_finds_nothing(value):
    def network(hu):
        logits = pointwise(hu)
        logits[0, 2, 3, 4, 1] = value
        return logits

    windows = SlidingWindow(network, np.zeros((4, 8, 8), np.float32), (4, 8, 8), WindowSettings())
    for planes in (windows.planes(), windows.logits()):
        with pytest.raises(FloatingPointError, match="the network gave values that are not numbers"):
            list(planes)


def test_small_volume_sees_air_around_it():
    def seen(hu):
        seen.hu = hu
        return pointwise(hu)

    predict_volume(seen, np.zeros((2, 8, 5), np.int16), (4, 8, 8))
    assert seen.hu.dtype == np.float32
    expected = np.full((4, 8, 8), -1024)
    expected[1:3, :, 1:6] = 0
    np.testing.assert_array_equal(seen.hu[0, ..., 0], expected)


def test_progress_counts_windows():
    calls = []
    predict_volume(
        pointwise, np.zeros((8, 8, 12)), (8, 8, 4), 0.5, 2, lambda done, total: calls.append((done, total))
    )
    assert calls == [(2, 5), (4, 5), (5, 5)]


def conv_model(outputs=1):
    inputs = keras.Input((None, None, None, 1))
    x = keras.layers.Rescaling(1 / 500)(inputs)
    heads = [keras.layers.Conv3D(3, 3, padding="same")(x) for _ in range(outputs)]
    return keras.Model(inputs, heads if outputs > 1 else heads[0])


def test_keras_model_equals_its_forward_pass_where_one_window_covers_all():
    keras.utils.set_random_seed(0)
    model = conv_model()
    volume = RANDOM.uniform(-1000, 1000, (6, 7, 8)).astype(np.float32)
    expected = softmax(keras.ops.convert_to_numpy(model(volume[None, ..., None])))[0]
    np.testing.assert_allclose(predict_volume(model, volume, (6, 7, 8)), expected, atol=1e-6)


def test_first_of_several_outputs_counts():
    keras.utils.set_random_seed(0)
    model = conv_model(outputs=2)
    first = keras.Model(model.inputs, model.outputs[0])
    volume = RANDOM.uniform(-1000, 1000, (6, 7, 8)).astype(np.float32)
    np.testing.assert_array_equal(
        predict_volume(model, volume, (4, 4, 4)), predict_volume(first, volume, (4, 4, 4))
    )


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="JAX compiles per batch size, PyTorch does not"
)
def test_graph_is_built_once_and_sees_new_weights():
    model = conv_model()
    traced = []
    layer = model.layers[-1]
    call = layer.call
    layer.call = lambda x: traced.append(1) or call(x)
    volume = RANDOM.uniform(-1000, 1000, (9, 9, 9)).astype(np.float32)
    before = predict_volume(model, volume, (4, 4, 4), batch_size=4)  # 64 windows and, below, a rest of one
    model.set_weights([2 * w for w in model.get_weights()])
    after = predict_volume(model, volume[:4, :4, :4], (4, 4, 4), batch_size=4)
    assert len(traced) == 1
    assert np.abs(before[:2, :2, :2] - after[:2, :2, :2]).max() > 1e-3


@pytest.mark.parametrize(
    ("volume", "patch_size", "overlap", "message"),
    [
        (np.zeros((4, 4)), (4, 4, 4), 0.5, r"received \(4, 4\)"),
        (np.zeros((0, 4, 4)), (4, 4, 4), 0.5, r"received \(0, 4, 4\)"),
        (np.zeros((4, 4, 4)), (4, 4), 0.5, r"received \(4, 4\)"),
        (np.zeros((4, 4, 4)), (4, 4, 4), 1.0, "received 1.0"),
    ],
)
def test_what_cannot_be_predicted_is_refused(volume, patch_size, overlap, message):
    with pytest.raises(ValueError, match=message):
        predict_volume(pointwise, volume, patch_size, overlap)


def test_arguments_that_need_each_other_are_asked_for():
    volume, patch_size = np.zeros((4, 4, 4)), (4, 4, 4)
    with pytest.raises(ValueError, match="mirrored_classes"):
        predict_volume(pointwise, volume, patch_size, mirror_axes="x")
    with pytest.raises(ValueError, match="received a"):
        predict_volume(pointwise, volume, patch_size, mirror_axes=("a",))
    with pytest.raises(ValueError, match="num_classes"):
        SlidingWindow(pointwise, volume, patch_size, WindowSettings(), is_wanted=lambda box: True)
    with pytest.raises(ValueError, match="3 classes, expected 5"):
        next(SlidingWindow(pointwise, volume, patch_size, WindowSettings(), num_classes=5).planes())
    with pytest.raises(ValueError, match="batch_size"):
        WindowSettings(batch_size=0)


def growing(hu):
    """One class more with each window."""
    growing.classes += 1
    return np.zeros((*hu.shape[:-1], growing.classes), np.float32)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda hu: pointwise(hu)[:, :, 1:], r"\(1, 4, 3, 4, 3\) for .* expected \(1, 4, 4, 4, classes\)"),
        (lambda hu: np.repeat(pointwise(hu), 2, axis=3), r"\(1, 4, 4, 8, 3\) for .* expected \(1, 4, 4, 4"),
        (lambda hu: hu[..., 0], r"\(1, 4, 4, 4\) for .* expected \(1, 4, 4, 4, classes\)"),
        (growing, "gives 2 classes, expected 1"),
    ],
    ids=["smaller", "larger", "no classes", "other classes"],
)
def test_logits_that_do_not_fit_the_window_are_refused(network, message):
    growing.classes = 0
    with pytest.raises(ValueError, match=message):
        predict_volume(network, np.zeros((8, 4, 4), np.float32), (4, 4, 4))


@pytest.mark.parametrize("mirrored", [(0, 1), (0, 1, 3), (0, 1, 1)])
def test_classes_of_the_mirror_that_are_not_the_network_s_are_refused(mirrored):
    with pytest.raises(ValueError, match="each of the network's 3 classes once, received"):
        predict_volume(pointwise, np.zeros((4, 4, 4)), (4, 4, 4), mirror_axes="x", mirrored_classes=mirrored)
