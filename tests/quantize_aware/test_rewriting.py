import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from networks import examples_for, image_network, lively, sequence_network

from keras_distill import Distiller
from keras_distill.losses import SoftTargets
from keras_distill.quantize_aware import FakeQuantize, FreezeRanges, Int8Kernel, freeze, in_float, quantize_aware

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def image_student():
    """A student that no test changes."""
    return image_network()


@pytest.fixture(scope="module")
def image_model(image_student):
    """The same, quantisation-aware, that no test changes."""
    return quantize_aware(image_student, examples_for(image_student))


def test_before_rounding_it_is_the_float_student(image_student, image_model):
    x = examples_for(image_student)
    with in_float(image_model):
        np.testing.assert_allclose(image_model(x), image_student(x), atol=1e-5)


def test_convolutions_over_sequences_are_the_students_before_rounding():
    student = sequence_network()
    x = examples_for(student)
    with in_float(quantize_aware(student, x)) as model:
        np.testing.assert_allclose(model(x), student(x), atol=1e-5)


def test_every_kernel_is_rounded_and_every_batchnorm_folded(image_model):
    kernels = [layer.name for layer in image_model.layers if isinstance(layer, Int8Kernel)]
    # The separable convolution is two.
    assert kernels == ["conv", "depthwise", "wide", "separable_depthwise", "separable", "side", "dense", "logits"]
    assert not any(type(layer) is layers.BatchNormalization for layer in image_model.layers)


def test_rounding_moves_the_logits_a_little_and_not_nothing(image_student, image_model):
    x = examples_for(image_student)
    difference = np.abs(np.asarray(image_model(x)) - np.asarray(image_student(x)))
    assert 0 < difference.max() < 0.1 * np.ptp(image_student(x))


class Gated(layers.Layer):
    """Has an attribute `activation`, and does something else with it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.activation = keras.activations.relu

    def call(self, inputs):
        return inputs * keras.ops.sigmoid(inputs) + self.activation(-inputs)


def test_a_layer_of_the_users_own_is_no_rectifier_for_having_an_attribute_activation():
    gated = Gated(name="gated")
    student = lively(keras.Sequential([keras.Input((6,)), layers.Dense(8), gated, layers.Dense(3, name="logits")]))
    x = examples_for(student)
    with pytest.warns(UserWarning, match=r"These stay float32: 'gated' \(Gated\)"):
        model = quantize_aware(student, x)
    with in_float(model):
        np.testing.assert_allclose(model(x), student(x), atol=1e-5)


def test_one_dense_layer_is_what_integer_arithmetic_says():
    student = lively(keras.Sequential([keras.Input((6,)), layers.Dense(4, name="logits")]))
    x = examples_for(student)
    model = quantize_aware(student, x)
    kernel, bias = (np.asarray(weights, "float64") for weights in student.get_weights())
    ranges = [(float(layer.minimum), float(layer.maximum)) for layer in model.layers if isinstance(layer, FakeQuantize)]
    (in_scale, in_zero), (out_scale, out_zero) = [
        ((high - low) / 255, np.floor(-low * 255 / (high - low) + 0.5)) for low, high in ranges
    ]
    kernel_scale = np.abs(kernel).max(0) / 127
    integers = np.clip(np.floor(x / in_scale + in_zero + 0.5), 0, 255) - in_zero
    sums = integers @ np.round(kernel / kernel_scale) * (in_scale * kernel_scale) + bias
    expected = (np.clip(np.floor(sums / out_scale + out_zero + 0.5), 0, 255) - out_zero) * out_scale
    # A sum within float32's rounding of a half may fall to either side.
    assert (np.abs(np.asarray(model(x)) - expected) < out_scale / 2).mean() > 0.999


def test_students_weights_and_graph_stay_as_they_were():
    student = image_network(head="softmax")
    before, num_nodes = student.get_weights(), [len(layer._outbound_nodes) for layer in student.layers]
    model = quantize_aware(student, examples_for(student))
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(examples_for(student, 32), np.arange(32) % 5, verbose=0)
    for old, new in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert [len(layer._outbound_nodes) for layer in student.layers] == num_nodes


def test_what_is_concatenated_shares_one_range(image_model):
    ranges = image_model.get_layer("residual_int8")
    # The residual's sum, the side branch, and the average of both.
    assert len(ranges._inbound_nodes) == 3
    assert ranges.holds_peaks


def test_logits_are_not_clipped_by_their_range(image_student, image_model):
    ranges, logits = image_model.get_layer("logits_int8"), np.asarray(image_student(examples_for(image_student)))
    assert float(ranges.minimum) < logits.min()
    assert float(ranges.maximum) > logits.max()


def test_softmax_head_is_kept_in_float_behind_rounded_logits():
    student = lively(keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")]))
    x = examples_for(student)
    model = quantize_aware(student, x)
    np.testing.assert_allclose(np.sum(model(x), -1), 1.0, atol=1e-5)
    assert isinstance(model.layers[-2], FakeQuantize)


def test_saved_and_loaded_it_answers_the_same(image_model, tmp_path):
    image_model.save(tmp_path / "student.keras")
    x = examples_for(image_model)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "student.keras")(x), image_model(x))


def test_folding_uses_the_statistics_of_the_batch_in_training_as_plain_batchnorm_does():
    student = lively(keras.Sequential([
        keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(), layers.Flatten(),
        layers.Dense(3),
    ]))  # fmt: skip
    x = examples_for(student)
    model = quantize_aware(student, x)
    kernel = model.get_layer("conv")
    with in_float(model):
        before_activation = kernel(x, training=True)
    expected = student.layers[1](student.layers[0](x), training=True)
    np.testing.assert_allclose(before_activation, expected, atol=2e-5)
    bias = student.layers[0].bias.numpy()
    norm, plain = kernel.batch_normalization, student.layers[1]
    # The bias went into the mean, so the moving mean lacks it.
    np.testing.assert_allclose(norm.moving_mean + bias, plain.moving_mean, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, plain.moving_variance, rtol=1e-4)


def test_folded_training_has_the_gradient_of_plain_batchnorm():
    student = lively(
        keras.Sequential([keras.Input((5,)), layers.Dense(4, use_bias=False), layers.BatchNormalization()])
    )
    x = examples_for(student)
    model = quantize_aware(student, x)
    kernel, norm = model.layers[2].layer.kernel, model.layers[2].batch_normalization
    theirs = [student.layers[0].kernel, student.layers[1].gamma, student.layers[1].beta]
    weights = np.random.default_rng(0).normal(size=(256, 4))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(student(x, training=True) * weights)
    expected = tape.gradient(loss, [variable.value for variable in theirs])
    with in_float(model), tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True) * weights)
    actual = tape.gradient(loss, [variable.value for variable in (kernel, norm.gamma, norm.beta)])
    for ours, reference in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=1e-3, atol=1e-3)


def test_frozen_training_computes_what_ships():
    model = quantize_aware(sequence_network(), examples_for(sequence_network()))
    x = examples_for(model)
    assert np.abs(np.asarray(model(x, training=True)) - np.asarray(model(x, training=False))).max() > 1e-3
    freeze(model)
    np.testing.assert_array_equal(model(x, training=True), model(x, training=False))


@pytest.mark.parametrize("ranges", ["tracked", "learnt", "frozen"])
def test_callback_freezes_ranges_and_statistics_for_the_last_epochs(ranges):
    model = quantize_aware(sequence_network(), examples_for(sequence_network()), ranges=ranges)
    x, y = examples_for(model, 64), np.arange(64) % 5
    seen = []

    def note(epoch, logs):
        moving = [
            variable for variable in model.weights if not variable.path.endswith(("kernel", "bias", "gamma", "beta"))
        ]
        seen.append([float(np.sum(variable)) for variable in moving])

    model.compile("adam", LOSS, jit_compile=False)
    callbacks = [FreezeRanges(num_last_epochs=2), keras.callbacks.LambdaCallback(on_epoch_end=note)]
    history = model.fit(x, y, epochs=4, verbose=0, callbacks=callbacks).history["loss"]
    assert seen[0] != seen[1]
    assert seen[1] == seen[2] == seen[3]
    assert history[3] < history[0]


def test_distiller_trains_it_like_any_student_and_saves_it(tmp_path):
    student = sequence_network()
    x, y = examples_for(student), np.arange(256) % 5
    teacher = lively(sequence_network(), seed=3)
    model = quantize_aware(student, x)
    distiller = Distiller(teacher, model, SoftTargets(temperature=2.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(3e-3), loss=LOSS)
    losses = distiller.fit(x, y, epochs=6, verbose=0, callbacks=[FreezeRanges(2)]).history["distillation_loss"]
    assert losses[-1] < 0.8 * losses[0]
    distiller.save(tmp_path / "distiller.keras")
    restored = keras.models.load_model(tmp_path / "distiller.keras").student
    np.testing.assert_array_equal(restored(x), model(x))


def test_nested_models_are_opened():
    block = keras.Sequential([keras.Input((6,)), layers.Dense(6, name="inner"), layers.ReLU()], name="block")
    inputs = keras.Input((6,))
    student = lively(keras.Model(inputs, layers.Dense(3, name="logits")(block(block(inputs)))))
    x = examples_for(student)
    model = quantize_aware(student, x)
    assert len([layer for layer in model.layers if isinstance(layer, Int8Kernel)]) == 2
    with in_float(model):
        np.testing.assert_allclose(model(x), student(x), atol=1e-5)


def test_structures_of_inputs_and_outputs_are_kept():
    inputs = {"left": keras.Input((4,), name="left"), "right": keras.Input((4,), name="right")}
    hidden = layers.Add()([layers.Dense(5)(inputs["left"]), layers.Dense(5)(inputs["right"])])
    student = keras.Model(inputs, {"logits": layers.Dense(3)(hidden), "hidden": hidden})
    x = {name: np.random.default_rng(0).normal(size=(64, 4)).astype("float32") for name in inputs}
    model = quantize_aware(student, x)
    with in_float(model):
        outputs = model(x)
    for name, values in student(x).items():
        np.testing.assert_allclose(outputs[name], values, atol=1e-5)


def test_layers_that_stay_float_are_named_with_what_that_costs():
    inputs = keras.Input((10, 4))
    hidden = layers.LSTM(6, name="memory")(layers.Conv1D(4, 3, activation="tanh", name="conv")(inputs))
    student = keras.Model(inputs, layers.Dense(3)(hidden))
    x = examples_for(student)
    with pytest.warns(UserWarning, match=r"'conv_activation' \(Activation\), 'memory' \(LSTM\).*four times"):
        model = quantize_aware(student, x)
    with in_float(model):
        np.testing.assert_allclose(model(x), student(x), atol=1e-5)
    assert np.abs(np.asarray(model(x)) - np.asarray(student(x))).max() > 0


def test_shared_layer_is_not_folded_with_the_batchnorm_of_one_call():
    shared, inputs = layers.Dense(4, name="shared"), keras.Input((4,))
    hidden = shared(layers.BatchNormalization(name="norm")(shared(inputs)))
    student = lively(keras.Model(inputs, layers.Dense(3)(hidden)))
    with pytest.warns(UserWarning, match="'norm'"):
        model = quantize_aware(student, examples_for(student))
    with in_float(model):
        np.testing.assert_allclose(model(examples_for(student)), student(examples_for(student)), atol=1e-5)
    assert len([layer for layer in model.layers if isinstance(layer, Int8Kernel)]) == 2


def test_regulariser_of_a_kernel_still_counts():
    regulariser = keras.regularizers.L2(0.1)
    student = keras.Sequential([keras.Input((4,)), layers.Dense(3, kernel_regularizer=regulariser)])
    model = quantize_aware(student, examples_for(student))
    np.testing.assert_allclose(sum(model.losses), 0.1 * np.sum(student.get_weights()[0] ** 2), rtol=1e-5)


def small_student(**options):
    return keras.Sequential([keras.Input((4,)), layers.Dense(6, "relu", name="hidden", **options), layers.Dense(3)])


def test_quantised_student_is_not_quantised_again():
    model = quantize_aware(small_student(), np.eye(4, dtype="float32"))
    with pytest.raises(ValueError, match=r"must be a float model; got layer .* quantised already"):
        quantize_aware(model, np.eye(4, dtype="float32"))


def test_bfloat16_student_is_refused():
    with pytest.raises(ValueError, match="policy float32; got layer 'hidden' with mixed_bfloat16"):
        quantize_aware(small_student(dtype="mixed_bfloat16"), np.eye(4, dtype="float32"))


@pytest.mark.parametrize("calibration_data", [None, np.zeros((0, 4), "float32")])
def test_calibration_needs_examples(calibration_data):
    with pytest.raises(ValueError, match="calibration_data must hold"):
        quantize_aware(small_student(), calibration_data)


def test_calibration_data_with_nan_are_refused():
    with pytest.raises(ValueError, match="calibration_data must be finite; got 1 of 4"):
        quantize_aware(small_student(), np.array([[1.0, np.nan, 0.0, 0.0]], "float32"))


def test_activations_with_nan_are_refused_by_name():
    student = small_student()
    student.layers[0].bias.assign(np.full(6, np.nan))
    with pytest.raises(ValueError, match="the activations at 'hidden_int8'"):
        quantize_aware(student, np.eye(4, dtype="float32"))


def test_constant_activation_is_refused_by_name():
    student = small_student()
    student.layers[0].bias.assign(np.full(6, -1e3))
    with pytest.raises(ValueError, match=r"'hidden_int8' must be wider than 0; got always 0.0. Its layer is dead"):
        quantize_aware(student, np.eye(4, dtype="float32"))


def test_model_without_a_kernel_and_one_that_cannot_be_read_are_refused():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="a layer that int8 can speed up"):
        quantize_aware(keras.Model(inputs, layers.ReLU()(inputs)), np.eye(4, dtype="float32"))
    with pytest.raises(ValueError, match="Functional or Sequential"):
        quantize_aware(Subclassed(), np.eye(4, dtype="float32"))
    with pytest.raises(TypeError, match=r"student must be a keras.Model"):
        quantize_aware("student", np.eye(4, dtype="float32"))


def test_tf_data_calibrates_as_arrays_do():
    student = small_student()
    x = examples_for(student, 64)
    batches = tf.data.Dataset.from_tensor_slices((x, np.zeros(64))).batch(64)
    np.testing.assert_array_equal(quantize_aware(student, batches)(x), quantize_aware(student, x)(x))


def test_float_model_cannot_be_frozen():
    with pytest.raises(ValueError, match="must be quantised"):
        freeze(small_student())


class Scaled(layers.Layer):
    """Of a class of the user's own: a factor that the configuration gives back or does not, and a weight."""

    def __init__(self, factor=1.0, table=None, **kwargs):
        super().__init__(**kwargs)
        self.factor, self.table = factor, table

    def build(self, shape):
        self.offset = self.add_weight(shape=(shape[-1],), initializer="random_normal")

    def call(self, inputs):
        return inputs * self.factor + self.offset


class WithConfig(Scaled):
    def get_config(self):
        return super().get_config() | {"factor": self.factor}


class WithoutFactor(Scaled):
    """What is saved of it is another layer, of the factor 1."""

    def get_config(self):
        return layers.Layer.get_config(self)


class WithStrangeKey(Scaled):
    def get_config(self):
        return super().get_config() | {"invented": 1}


class WithMoreWeights(WithoutFactor):
    """A copy builds fewer weights."""

    def build(self, shape):
        super().build(shape)
        if self.factor != 1.0:
            self.more = self.add_weight(shape=(2,))


def with_own_layer(layer):
    inputs = keras.Input((6,), name="inputs")
    hidden = layer(layers.Dense(8, activation="relu", name="hidden")(inputs))
    return lively(keras.Model(inputs, layers.Dense(4, name="logits")(hidden)))


STAY_FLOAT = "ignore:These stay float32"


@pytest.mark.filterwarnings(STAY_FLOAT)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: WithoutFactor(2.0, name="own"),
        lambda: WithStrangeKey(2.0, name="own"),
        lambda: WithMoreWeights(2.0, name="own"),
        # No configuration at all: an array is none of its values.
        lambda: Scaled(2.0, table=np.zeros(3), name="own"),
    ],
    ids=["a part is left out", "a key that the constructor does not know", "other weights", "no configuration"],
)
def test_a_layer_that_its_configuration_does_not_give_back_stays_the_students_and_is_named(layer):
    student = with_own_layer(layer())
    x = examples_for(student)
    expected = np.asarray(student(x))
    with pytest.warns(
        UserWarning, match=r"cannot be copied.*'own' \((Scaled|With\w+)\)\. .*trains these of the student"
    ):
        model = quantize_aware(student, x)
    assert model.get_layer("own") is student.get_layer("own")
    with in_float(model):
        np.testing.assert_allclose(model(x), expected, atol=1e-5)
    np.testing.assert_allclose(student(x), expected, atol=1e-6)


@pytest.mark.filterwarnings(STAY_FLOAT)
def test_a_layer_that_its_configuration_gives_back_is_copied():
    student = with_own_layer(WithConfig(2.0, name="own"))
    x = examples_for(student)
    model = quantize_aware(student, x)
    own, copied = student.get_layer("own"), model.get_layer("own")
    assert own is not copied
    before = np.array(own.offset)
    copied.offset.assign(before + 1.0)
    np.testing.assert_array_equal(own.offset, before)


@pytest.mark.filterwarnings(STAY_FLOAT)
def test_an_error_of_the_call_itself_is_that_error():
    class Broken(Scaled):
        def call(self, inputs):
            if hasattr(self, "broken"):
                raise RuntimeError("broken by hand")
            return super().call(inputs)

    student = with_own_layer(Broken(2.0, name="own"))
    student.get_layer("own").broken = True
    with pytest.raises(RuntimeError, match="broken by hand"):
        quantize_aware(student, examples_for(student))
