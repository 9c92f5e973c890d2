"""The losses in plain `compile`, `fit`, `evaluate`, save and load, on whichever backend Keras has."""

import keras
import numpy as np
import pytest

import partialseg.losses
from partialseg.losses import MarginalCrossEntropy, PartialSupervision
from partialseg.models import supervision_strides, unet

# Classes background, liver, spleen. Row v of a table: what a voxel of true class v may be.
TABLES = {
    "liver": np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], np.uint8),
    "spleen": np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], np.uint8),
    "both": np.eye(3, dtype=np.uint8),
}
# Options other than the default ones; a loss that is not listed is tested with those.
OPTIONS = {
    "MarginalCrossEntropy": {"reduction": "sum"},
    "MarginalDice": {"class_reduction": "sum", "include_background": False, "batch": True},
    "ExclusionDice": {"class_reduction": "sum", "batch": True, "merged_background_excludes": False},
    "ExclusionCrossEntropy": {"include_background": False, "partial_samples_only": False},
    "PartialSupervision": {
        "marginal": 3.0,
        "exclusion": 0.5,
        "terms": ("eDC", "mCE", "mDC"),
        "class_reduction": "sum",
        "include_background": False,
        "batch": True,
        "merged_background_excludes": False,
        "partial_samples_only": False,
    },
    "IgnoreBackground": {"class_reduction": "sum", "batch": True},
    "LabelSetDice": {"cross_entropy": 0.5, "exponent": 1, "class_reduction": "sum"},
    "LeafDice": {"cross_entropy": 0.5, "exponent": 1, "batch": True},
    "MaskedSigmoid": {"class_reduction": "sum", "batch": True},
    "NaiveBackground": {"include_background": False, "batch": True},
    "PriorAware": {
        "prior": [0.7, 0.2, 0.1],
        "weight": 0.5,
        "merged_voxels": "marginal",
        # Its running mean is a state of the loss, which the saved model has to keep. JAX has none.
        "dual_rate": None if keras.backend.backend() == "jax" else 0.2,
    },
    "PublishedCodeWithSummedLogits": {"exclusion": 0.5, "batch": False},
    "TargetAdaptive": {"reduction": "sum"},
}
EXPORTED = [
    name
    for name in partialseg.losses.__all__
    if isinstance(made := getattr(partialseg.losses, name), type) and issubclass(made, keras.losses.Loss)
]


def labels(num_samples):
    """A liver of 96 voxels and a spleen of 40, each sample turned another way."""
    label = np.zeros((8, 8, 8), int)
    label[1:5, 2:8, 1:5] = 1
    label[5:7, 2:6, 2:7] = 2
    return np.stack([np.rot90(label, sample, (1, 2)) for sample in range(num_samples)])


def annotated_batch(annotated):
    """Image, candidates and true label of samples that each annotate "liver", "spleen" or "both"."""
    label = labels(len(annotated))
    noise = np.random.default_rng(0).normal(0, 0.1, label.shape)
    image = (np.array([-1.0, 0.0, 1.0])[label] + noise).astype("float32")[..., None]
    return (
        image,
        np.stack([TABLES[name][voxels] for name, voxels in zip(annotated, label, strict=True)]),
        label,
    )


def voxel_network():
    """Kernels of one voxel and any size of image: what is learnt follows from the voxel's value alone."""
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, None, 1))
    hidden = keras.layers.Conv3D(16, 1, activation="relu")(image)
    return keras.Model(image, keras.layers.Conv3D(3, 1)(hidden))


def weights_after_fit(loss, data, learning_rate=0.2, accumulate=None, options=(), **fit):
    """Weights after SGD, which unlike Adam keeps differences of rounding as small as they are."""
    model = voxel_network()
    before = model.get_weights()
    optimizer = keras.optimizers.SGD(learning_rate, gradient_accumulation_steps=accumulate)
    model.compile(optimizer=optimizer, loss=loss, **dict(options))
    model.fit(*data, verbose=0, shuffle=False, **{"epochs": 3, "batch_size": 2, **fit})
    assert max(np.abs(a - b).max() for a, b in zip(model.get_weights(), before, strict=True)) > 0.01
    return model.get_weights()


def assert_same_weights(found, expected, atol=1e-6):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def losses_of_fit(model, image, target, steps):
    """Loss before and after so many steps on the same batch, in one epoch: beginning an epoch takes longest."""
    before = model.evaluate(image, target, verbose=0, return_dict=True)["loss"]
    repeated = keras.tree.map_structure(lambda values: np.concatenate([values] * steps), (image, target))
    model.fit(*repeated, batch_size=len(image), verbose=0)
    return before, model.evaluate(image, target, verbose=0, return_dict=True)["loss"]


def predicted(logits):
    return np.argmax(keras.ops.convert_to_numpy(logits), axis=-1)


def share_right(model, image, label):
    """Per class the share of its voxels that the network takes for it."""
    prediction = predicted(model(image))
    return [float((prediction[label == value] == value).mean()) for value in range(3)]


@pytest.fixture
def policy(request):
    """A dtype policy for the networks of one test, the former one afterwards."""
    former = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(request.param)
    yield request.param
    keras.mixed_precision.set_dtype_policy(former)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("annotated", [("liver", "spleen"), ("liver", "both", "spleen", "liver")])
def test_organ_that_one_dataset_lacks_is_learnt_from_the_other(annotated, batch):
    image, candidates, label = annotated_batch(annotated)
    model = voxel_network()
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss=PartialSupervision(batch=batch))
    before, after = losses_of_fit(model, image, candidates, steps=60)
    assert after < 0.1 * before
    for sample in range(len(annotated)):  # each sample, also for the organ that its own dataset lacks
        assert min(share_right(model, image[sample : sample + 1], label[sample : sample + 1])) > 0.97


def test_deep_supervision_by_name_trains_both_outputs():
    image, candidates, label = annotated_batch(("liver", "spleen"))
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, None, 1))
    hidden = keras.layers.Conv3D(16, 1, activation="relu")(inputs)
    coarse = keras.layers.Conv3D(16, 1, strides=2, activation="relu")(hidden)
    outputs = {"fine": keras.layers.Conv3D(3, 1)(hidden), "coarse": keras.layers.Conv3D(3, 1)(coarse)}
    model = keras.Model(inputs, outputs)
    target = {"fine": candidates, "coarse": candidates[:, ::2, ::2, ::2]}
    losses = {"fine": PartialSupervision(), "coarse": PartialSupervision(batch=True)}
    weights = {"fine": 1.0, "coarse": 0.5}
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss=losses, loss_weights=weights)
    before, after = losses_of_fit(model, image, target, steps=60)
    logits = model(image)
    assert after == pytest.approx(
        sum(weights[name] * float(losses[name](target[name], logits[name])) for name in outputs), rel=1e-4
    )
    assert after < 0.1 * before
    assert (predicted(logits["fine"]) == label).mean() > 0.99
    assert (predicted(logits["coarse"]) == label[:, ::2, ::2, ::2]).mean() > 0.99


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"], indirect=True)
def test_unet_with_deep_supervision_learns_in_each_precision(policy):
    image, candidates, _ = annotated_batch(("liver", "spleen"))
    strides = ((1, 1, 1), (1, 2, 2), (2, 2, 2))
    keras.utils.set_random_seed(0)
    model = unet(
        3,
        strides=strides,
        base_channels=4,
        convolutions_per_stage=1,
        decoder_convolutions=1,
        deep_supervision=True,
    )
    target = [candidates[:, ::d, ::h, ::w] for d, h, w in supervision_strides(strides)]
    loss = [PartialSupervision() for _ in target]
    model.compile(optimizer=keras.optimizers.Adam(0.03), loss=loss, loss_weights=[2 / 3, 1 / 3])
    assert (policy == "mixed_float16") == isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    hu = 200 * image + 50
    before, after = losses_of_fit(model, hu, target, steps=40)
    assert after < 0.3 * before
    # It sees whole samples and may tell them apart, so each is judged by what its own dataset annotates.
    for possible, logits in zip(target, model(hu), strict=True):
        assert np.take_along_axis(possible, predicted(logits)[..., None], axis=-1).mean() > 0.95


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
@pytest.mark.parametrize("batch", [False, True])
def test_half_precision_logits_train_too(policy, batch):
    image, candidates, label = annotated_batch(("liver", "spleen"))
    loss = PartialSupervision(batch=batch)
    model = voxel_network()
    assert keras.backend.standardize_dtype(model(image).dtype) == policy.removeprefix("mixed_")
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss=loss)
    keras.mixed_precision.set_dtype_policy("float32")
    in_float32 = float(loss(candidates, voxel_network()(image)))
    before, after = losses_of_fit(model, image, candidates, steps=60)
    assert before == pytest.approx(in_float32, rel=2e-2 if policy == "mixed_bfloat16" else 2e-3)
    assert after < 0.1 * before
    assert min(share_right(model, image, label)) > 0.97


NOT_ON_TORCH = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="no XLA and no steps_per_execution on PyTorch"
)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"run_eagerly": True}, id="eager"),
        pytest.param({"jit_compile": True}, id="XLA", marks=NOT_ON_TORCH),
        pytest.param({"steps_per_execution": 2}, id="two steps at once", marks=NOT_ON_TORCH),
    ],
)
def test_other_ways_to_run_train_to_the_same_weights(how, batch):
    data = annotated_batch(("liver", "spleen", "both", "liver"))[:2]
    expected = weights_after_fit(PartialSupervision(batch=batch), data)
    assert_same_weights(weights_after_fit(PartialSupervision(batch=batch), data, options=how), expected)


def test_accumulated_gradients_of_single_samples_equal_those_of_the_batch():
    data = annotated_batch(("liver", "spleen", "both", "liver"))[:2]
    single = weights_after_fit(PartialSupervision(), data, batch_size=1, accumulate=2)
    assert_same_weights(single, weights_after_fit(PartialSupervision(), data))


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_dtype_of_candidates_changes_nothing(dtype):
    image, candidates, _ = annotated_batch(("liver", "spleen"))
    found = weights_after_fit(PartialSupervision(), (image, candidates.astype(dtype)))
    assert_same_weights(found, weights_after_fit(PartialSupervision(), (image, candidates)), atol=0)


def test_tf_data_of_uint8_candidates_trains_like_arrays():
    tf = pytest.importorskip("tensorflow", reason="tf.data is TensorFlow's")
    image, candidates, _ = annotated_batch(("liver", "spleen", "both"))
    stream = tf.data.Dataset.from_tensor_slices((image, candidates)).batch(2)
    assert stream.element_spec[1].dtype == tf.uint8
    assert stream.element_spec[1].shape[0] is None
    found = weights_after_fit(PartialSupervision(), (stream,), batch_size=None)
    assert_same_weights(found, weights_after_fit(PartialSupervision(), (image, candidates)))


class Batches(keras.utils.PyDataset):
    """Batches as they are given."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def test_batches_of_several_sizes_and_shapes_train_together():
    image, candidates, label = annotated_batch(("liver", "spleen", "both", "liver"))
    crops = [np.s_[:2], np.s_[2:3, 1:7, 1:, :7], np.s_[3:, :, 2:, 1:8]]
    batches = Batches([(image[crop], candidates[crop]) for crop in crops])
    model = voxel_network()
    loss = PartialSupervision()
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss=loss)
    values = [float(loss(candidates[crop], model(image[crop]))) for crop in crops]
    before = model.evaluate(batches, verbose=0)
    assert before == pytest.approx(np.average(values, weights=[2, 1, 1]), rel=1e-5)
    model.fit(Batches(20 * batches.batches), shuffle=False, verbose=0)
    assert model.evaluate(batches, verbose=0) < 0.1 * before
    assert min(share_right(model, image, label)) > 0.97


def test_evaluate_is_the_mean_over_samples_also_where_the_last_batch_is_smaller():
    image, candidates, _ = annotated_batch(("liver", "spleen", "both", "liver", "spleen"))
    model = voxel_network()
    model.compile(loss=PartialSupervision())
    each = PartialSupervision(reduction="none")(candidates, model(image))
    each = keras.ops.convert_to_numpy(each)
    assert each.shape == (5,)
    assert model.evaluate(image, candidates, batch_size=2, verbose=0) == pytest.approx(each.mean(), rel=1e-5)
    weights = np.array([0.0, 3.0, 1.0, 2.0, 0.5], "float32")
    weighted = model.evaluate(image, candidates, sample_weight=weights, batch_size=5, verbose=0)
    assert weighted == pytest.approx((each * weights).mean(), rel=1e-5)


@pytest.mark.parametrize("loss", [PartialSupervision, MarginalCrossEntropy])
def test_sample_of_weight_zero_teaches_nothing(loss):
    image, candidates, _ = annotated_batch(("liver", "spleen"))
    weighted = weights_after_fit(loss(), (image, candidates), sample_weight=np.array([0.0, 2.0]))
    assert_same_weights(weighted, weights_after_fit(loss(), (image[1:], candidates[1:])))


def test_sum_over_samples_trains_like_the_mean_at_a_higher_rate():
    data = annotated_batch(("liver", "spleen"))[:2]
    summed = weights_after_fit(PartialSupervision(reduction="sum"), data, learning_rate=0.1)
    assert_same_weights(summed, weights_after_fit(PartialSupervision(), data, learning_rate=0.2))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others differentiate scalars alone")
def test_without_reduction_the_samples_are_added():
    data = annotated_batch(("liver", "spleen"))[:2]
    one_each = weights_after_fit(PartialSupervision(reduction="none"), data, learning_rate=0.1)
    assert_same_weights(one_each, weights_after_fit(PartialSupervision(), data, learning_rate=0.2))


@pytest.mark.parametrize("name", EXPORTED)
def test_saved_model_goes_on_to_the_same_weights(name, tmp_path):
    data = annotated_batch(("liver", "spleen", "both"))[:2]
    loss = getattr(partialseg.losses, name)(**OPTIONS.get(name, {}))
    model = voxel_network()
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=loss)
    model.fit(*data, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.loss) is type(loss)
    assert again.loss.get_config() == loss.get_config()
    assert_same_weights(again.get_weights(), model.get_weights(), atol=0)
    saved = model.get_weights()
    for trained in (model, again):
        trained.fit(*data, epochs=3, shuffle=False, verbose=0)
    assert max(np.abs(a - b).max() for a, b in zip(model.get_weights(), saved, strict=True)) > 0.01
    assert_same_weights(again.get_weights(), model.get_weights())


def test_model_with_a_loss_for_each_output_keeps_them_when_saved(tmp_path):
    image, candidates, _ = annotated_batch(("liver", "spleen"))
    strides = ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    keras.utils.set_random_seed(0)
    model = unet(
        3,
        strides=strides,
        base_channels=2,
        convolutions_per_stage=1,
        decoder_convolutions=1,
        deep_supervision=True,
    )
    loss = [PartialSupervision(exclusion=0.5), PartialSupervision(batch=True, terms=("mDC",))]
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss, loss_weights=[0.75, 0.25])
    target = [candidates[:, ::d, ::h, ::w] for d, h, w in supervision_strides(strides)]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [of_output.get_config() for of_output in again.loss] == [each.get_config() for each in loss]
    for trained in (model, again):
        trained.fit(200 * image, target, epochs=2, verbose=0)
    assert_same_weights(again.get_weights(), model.get_weights())
