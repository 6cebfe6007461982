"""Ensemble against float64 NumPy."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from keras_distill.teachers import Ensemble, arithmetic_mean, geometric_mean


def dense_member(seed, num_classes=5, name=None):
    kernel = keras.initializers.RandomNormal(stddev=2.0, seed=seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(num_classes, kernel_initializer=kernel)], name=name)


def scaled_member(seed):
    """Another architecture, with preprocessing of its own and a layer that acts differently in training."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Rescaling(0.1, offset=-0.2)(inputs)
    hidden = keras.layers.Dense(6, "tanh", kernel_initializer=keras.initializers.RandomNormal(seed=seed))(hidden)
    hidden = keras.layers.Dropout(0.5, seed=seed)(keras.layers.BatchNormalization()(hidden))
    return keras.Model(
        inputs, keras.layers.Dense(5, kernel_initializer=keras.initializers.RandomNormal(seed=9))(hidden)
    )


@pytest.fixture(scope="module")
def members():
    return [dense_member(1, name="same"), dense_member(2, name="same"), scaled_member(3)]


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).normal(size=(7, 4)).astype("float32")


def logits_of(members, inputs):
    return np.stack([np.asarray(member(inputs, training=False), "float64") for member in members], axis=-2)


def test_arithmetic_call_is_the_log_of_the_weighted_mean_of_probabilities(members, inputs):
    ensemble = Ensemble(members, weights=[1, 2, 5])
    expected = logsumexp(log_softmax(logits_of(members, inputs), -1), -2, b=np.array([0.125, 0.25, 0.625])[:, None])
    np.testing.assert_allclose(ensemble(inputs), expected, atol=1e-5)


def test_geometric_call_is_the_weighted_mean_of_logits(members, inputs):
    ensemble = Ensemble(members, "geometric", weights=[1, 2, 5])
    expected = np.einsum("bmc,m->bc", logits_of(members, inputs), [0.125, 0.25, 0.625])
    np.testing.assert_allclose(ensemble(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
def test_arithmetic_soft_targets_give_the_mean_of_softened_members_at_every_temperature(members, inputs, temperature):
    targets = Ensemble(members, weights=[1, 2, 5]).soft_targets(inputs)
    member_logits, member_weights = (np.asarray(targets[name]) for name in ("member_logits", "member_weights"))
    assert member_weights.shape == (7, 3)
    found = (softmax(member_logits / temperature, -1) * member_weights[..., None]).sum(-2)
    softened = softmax(logits_of(members, inputs) / temperature, -1)
    np.testing.assert_allclose(found, np.einsum("bmc,m->bc", softened, [0.125, 0.25, 0.625]), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
def test_geometric_soft_targets_give_the_geometric_mean_at_every_temperature(members, inputs, temperature):
    targets = np.asarray(Ensemble(members, "geometric").soft_targets(inputs))
    product = softmax(logits_of(members, inputs) / temperature, -1).prod(-2) ** (1 / 3)
    np.testing.assert_allclose(softmax(targets / temperature, -1), product / product.sum(-1, keepdims=True), atol=1e-6)


def test_call_and_soft_targets_agree_at_temperature_one(members, inputs):
    ensemble = Ensemble(members)
    targets = ensemble.soft_targets(inputs)
    merged = arithmetic_mean(targets["member_logits"], targets["member_weights"])
    np.testing.assert_allclose(ensemble(inputs, training=False), merged, atol=1e-6)


def test_ensemble_of_one_says_what_its_member_says(members, inputs):
    logits = logits_of(members[:1], inputs)[:, 0]
    np.testing.assert_allclose(Ensemble(members[:1], "geometric")(inputs), logits, atol=1e-6)
    np.testing.assert_allclose(Ensemble(members[:1])(inputs), log_softmax(logits, -1), atol=1e-6)


def test_order_of_members_changes_nothing(members, inputs):
    forwards, backwards = Ensemble(members, weights=[1, 2, 5]), Ensemble(members[::-1], weights=[5, 2, 1])
    np.testing.assert_allclose(forwards(inputs), backwards(inputs), atol=1e-6)


@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_means_survive_extreme_logits(scale):
    member_logits = np.random.default_rng(0).normal(size=(3, 4, 6)) * scale
    member_weights = np.array([0.1, 0.2, 0.3, 0.4])
    expected = logsumexp(log_softmax(member_logits, -1), -2, b=member_weights[:, None])
    found = arithmetic_mean(member_logits.astype("float32"), member_weights.astype("float32"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    found = geometric_mean(member_logits.astype("float32"), member_weights.astype("float32"))
    np.testing.assert_allclose(found, member_weights @ member_logits, rtol=1e-5, atol=1e-6 * scale)


def test_half_precision_members_are_averaged_in_float32(inputs):
    member = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, dtype="mixed_float16")])
    ensemble = Ensemble([member, dense_member(2)])
    assert ensemble(inputs).dtype == "float32"
    assert ensemble.soft_targets(inputs)["member_logits"].dtype == "float32"


@pytest.mark.parametrize("combine", ["arithmetic", "geometric"])
def test_ensemble_survives_a_save_and_a_load(members, inputs, combine, tmp_path):
    ensemble = Ensemble(members, combine, weights=[1, 2, 5])
    ensemble.save(tmp_path / "ensemble.keras")
    again = keras.saving.load_model(tmp_path / "ensemble.keras")
    assert isinstance(again, Ensemble)
    np.testing.assert_array_equal(again(inputs), ensemble(inputs))
    for found, expected in zip(
        keras.tree.flatten(again.soft_targets(inputs)), keras.tree.flatten(ensemble.soft_targets(inputs)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_softmax_heads_are_taken_off_and_come_back_from_a_file(members, inputs, tmp_path):
    head = keras.layers.Dense(5, "softmax", kernel_initializer=keras.initializers.RandomNormal(stddev=2.0, seed=1))
    with_head = keras.Sequential([keras.Input((4,)), head])
    ensemble, expected = Ensemble([with_head, members[1]]), Ensemble([members[0], members[1]])
    np.testing.assert_allclose(ensemble(inputs), expected(inputs), atol=1e-5)
    assert ensemble.models[0] is with_head
    ensemble.save(tmp_path / "ensemble.keras")
    again = keras.saving.load_model(tmp_path / "ensemble.keras")
    np.testing.assert_allclose(again(inputs), expected(inputs), atol=1e-5)


def test_soft_targets_run_members_in_inference_mode_and_leave_them_as_they_were(inputs):
    member = scaled_member(3)
    ensemble = Ensemble([member, dense_member(1)])
    before = [weight.numpy().copy() for weight in member.weights]
    first, second = (np.asarray(ensemble.soft_targets(inputs)["member_logits"]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for weight, old in zip(member.weights, before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert member.trainable


def test_predict_evaluate_and_a_batch_of_one(members, inputs):
    ensemble = Ensemble(members)
    np.testing.assert_allclose(ensemble.predict(inputs, verbose=0), ensemble(inputs, training=False), atol=1e-6)
    np.testing.assert_allclose(ensemble(inputs[:1]), ensemble(inputs)[:1], atol=1e-6)
    ensemble.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    labels = np.arange(7) % 5
    expected = -log_softmax(np.asarray(ensemble(inputs), "float64"), -1)[np.arange(7), labels].mean()
    np.testing.assert_allclose(ensemble.evaluate(inputs, labels, verbose=0), expected, rtol=1e-5)


def test_members_may_take_several_named_inputs():
    def member(seed):
        inputs = {"left": keras.Input((2,), name="left"), "right": keras.Input((3,), name="right")}
        joined = keras.layers.Concatenate()([inputs["left"], inputs["right"]])
        return keras.Model(
            inputs, keras.layers.Dense(4, kernel_initializer=keras.initializers.RandomNormal(seed=seed))(joined)
        )

    members = [member(1), member(2)]
    batch = {"left": np.ones((5, 2), "float32"), "right": np.zeros((5, 3), "float32")}
    np.testing.assert_allclose(Ensemble(members, "geometric")(batch), logits_of(members, batch).mean(-2), atol=1e-6)


def test_positions_keep_their_own_targets():
    inputs = keras.Input((6, 4))
    member = keras.Model(inputs, keras.layers.Dense(3)(inputs))
    targets = Ensemble([member, member]).soft_targets(np.zeros((2, 6, 4), "float32"))
    assert targets["member_logits"].shape == (2, 6, 2, 3)
    assert targets["member_weights"].shape == (2, 6, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"models": []}, ValueError, "at least one"),
        ({"models": [len]}, TypeError, r"models\[0\] must be a keras.Model"),
        ({"combine": "harmonic"}, ValueError, "'arithmetic', 'geometric'"),
        ({"weights": [1.0]}, ValueError, "there must be 2 weights"),
        ({"weights": [1.0, 0.0]}, ValueError, r"weights\[1\] must be > 0"),
        ({"weights": [1.0, float("nan")]}, ValueError, "NaN"),
        ({"models": [dense_member(1), dense_member(1, num_classes=4)]}, ValueError, "have 5 classes"),
        ({"models": [keras.Sequential([keras.layers.Dense(3)])]}, ValueError, "whose inputs are known"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        Ensemble(**{"models": [dense_member(1), dense_member(2)], **arguments})
