"""Specialists on a small problem whose posterior is known."""

from dataclasses import dataclass

import keras
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from keras_distill.backup import Backup
from keras_distill.specialists import train, train_control
from keras_distill.specialists import training as training_module
from keras_distill.specialists.frozen import frozen_features
from keras_distill.specialists.specialist import collapse, dustbin_correction, specialist_model


@dataclass
class Examples:
    inputs: np.ndarray
    labels: np.ndarray


CENTRES = np.random.default_rng(7).normal(size=(6, 4))


def drawn(num_items, seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(6, num_items, p=[0.3, 0.3, 0.2, 0.1, 0.05, 0.05]).astype("int32")
    return Examples((CENTRES[labels] + generator.normal(size=(num_items, 4))).astype("float32"), labels)


@pytest.fixture(scope="module")
def examples():
    return drawn(4000, 0)


@pytest.fixture(scope="module")
def generalist(examples):
    """Bayes's rule for equal spherical classes is linear: this is the optimum, not an estimate."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, "softmax")])
    prior = np.log([0.3, 0.3, 0.2, 0.1, 0.05, 0.05])
    model.layers[-1].set_weights([CENTRES.T, prior - 0.5 * (CENTRES**2).sum(1)])
    return model


def test_collapsed_logits_sum_the_generalists_probabilities():
    logits = np.random.default_rng(0).normal(size=(5, 6)) * 10
    found = softmax(collapse(logits, [4, 1]), axis=1)
    probabilities = softmax(logits, axis=1)
    expected = np.c_[probabilities[:, 4], probabilities[:, 1], probabilities[:, [0, 2, 3, 5]].sum(1)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_correction_is_bayess_rule_for_the_changed_prior():
    share, special_share = 0.2, 0.5
    likelihood_ratio = 3.0  # of the dustbin over the special class
    in_training = np.log(likelihood_ratio * (1 - special_share) / special_share)
    in_the_world = np.log(likelihood_ratio * (1 - share) / share)
    assert in_training + dustbin_correction(share, special_share) == pytest.approx(in_the_world)


def logits_of(generalist, inputs):
    return inputs @ generalist.layers[-1].kernel.numpy() + generalist.layers[-1].bias.numpy()


def test_specialist_starts_as_what_the_generalist_says_with_its_other_classes_summed(generalist):
    specialist = specialist_model(generalist, [2, 0])
    inputs = drawn(10, 1).inputs
    np.testing.assert_allclose(specialist(inputs), collapse(logits_of(generalist, inputs), [2, 0]), atol=1e-5)
    assert specialist.output_shape == (None, 3)


def test_dustbin_of_one_unit_starts_from_the_mean_of_the_others_as_often_as_they_are(generalist):
    specialist = specialist_model(generalist, [2, 0], "unit")
    inputs = drawn(10, 1).inputs
    logits, found = logits_of(generalist, inputs), np.asarray(specialist(inputs))
    np.testing.assert_allclose(found[:, :2], logits[:, [2, 0]], atol=1e-5)
    np.testing.assert_allclose(found[:, 2], logits[:, [1, 3, 4, 5]].mean(1) + np.log(4), atol=1e-5)
    assert specialist.get_layer("specialist_logits").units == 3


@pytest.mark.parametrize("dustbin", ["sum", "unit"])
@pytest.mark.parametrize("soft_target_weight", [0.0, 0.5, 1.0])
def test_trained_specialist_gives_the_true_posterior_of_its_classes_and_the_dustbin(
    generalist, examples, soft_target_weight, dustbin
):
    # From random weights: the generalist is the optimum already.
    start = keras.models.clone_model(generalist)
    specialist = train(
        start,
        [3, 4],
        examples,
        num_steps=400,
        learning_rate=0.03,
        soft_target_weight=soft_target_weight,
        dustbin=dustbin,
        generalist_logits=logits_of(generalist, examples.inputs),
    )
    fresh = drawn(2000, 5)
    found = softmax(np.asarray(specialist(fresh.inputs), "float64"), axis=1)
    expected = softmax(collapse(logits_of(generalist, fresh.inputs), [3, 4]), axis=1)
    # The mean of each output is the prior; without the correction the dustbin's would be near one half.
    np.testing.assert_allclose(found.mean(0), expected.mean(0), atol=0.03)


def test_specialist_of_an_optimal_generalist_stays_it(generalist, examples):
    """Training on another share of special examples and back again must not move what is right already."""
    specialist = train(generalist, [3, 4], examples, num_steps=200, learning_rate=0.003, soft_target_weight=1.0)
    fresh = drawn(500, 6)
    expected = softmax(collapse(logits_of(generalist, fresh.inputs), [3, 4]), axis=1)
    np.testing.assert_allclose(softmax(np.asarray(specialist(fresh.inputs)), axis=1), expected, atol=0.005)


def test_generalist_is_left_as_it_was_and_the_specialist_is_trainable(generalist, examples):
    before = [weight.copy() for weight in generalist.get_weights()]
    specialist = train(generalist, [0, 1], examples, trained="head", num_steps=3)
    for weight, old in zip(generalist.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    assert all(layer.trainable for layer in specialist.layers)
    assert generalist.trainable


def deep():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, "relu", name="first")(inputs)
    hidden = keras.layers.Dense(8, name="second")(hidden)
    hidden = keras.layers.ReLU()(keras.layers.BatchNormalization(name="norm")(hidden))
    return keras.Model(inputs, keras.layers.Dense(6)(hidden))


@pytest.mark.parametrize(
    ("trained", "changed"),
    [("head", set()), ("last_block", {"second", "norm"}), ("all", {"first", "second", "norm"})],
)
def test_only_what_was_asked_for_is_trained(examples, trained, changed):
    model = deep()
    specialist = train(model, [0, 1], examples, trained=trained, num_steps=3, learning_rate=0.01)
    moved = {
        layer.name
        for layer in model.layers[1:-1]
        if layer.weights
        and any(
            not np.array_equal(new, old)
            for new, old in zip(specialist.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True)
        )
    }
    assert moved == changed


@pytest.mark.parametrize("trained", ["head", "last_block"])
def test_frozen_part_gives_the_same_features_once_or_in_every_step(examples, trained):
    model, settings = deep(), {"trained": trained, "num_steps": 6, "learning_rate": 0.01}
    once = train(model, [0, 1], examples, **settings)
    every_step = train(model, [0, 1], examples, **settings, augmentation=lambda inputs, ids, views: inputs)
    handed_in = train(
        model, [0, 1], examples, **settings, features=frozen_features(model, examples.inputs, trained=trained)
    )
    for first, *others in zip(*(part.get_weights() for part in (once, every_step, handed_in)), strict=True):
        for other in others:
            np.testing.assert_allclose(other, first, atol=1e-5)
    assert all(layer.trainable for layer in every_step.layers)


def test_features_are_what_crosses_from_the_frozen_part_also_past_a_shortcut():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, "relu", name="first")(inputs)
    summed = keras.layers.Add()([hidden, keras.layers.Dense(5, "relu", name="second")(hidden)])
    model = keras.Model(inputs, keras.layers.Dense(6)(summed))
    batch = drawn(7, 0).inputs
    first = np.maximum(batch @ model.get_layer("first").kernel.numpy(), 0)
    np.testing.assert_allclose(frozen_features(model, batch, "last_block"), first, atol=1e-5)
    second = first + np.maximum(first @ model.get_layer("second").kernel.numpy(), 0)
    np.testing.assert_allclose(frozen_features(model, batch, "head"), second, atol=1e-5)
    assert frozen_features(model, batch, "all") is batch


def test_augmented_training_is_training_on_the_augmented_inputs_soft_targets_and_all(generalist, examples):
    mirrored = Examples(-examples.inputs, examples.labels)
    expected = train(generalist, [0, 1], mirrored, num_steps=5)
    found = train(generalist, [0, 1], examples, num_steps=5, augmentation=lambda inputs, ids, views: -inputs)
    for weight, other in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-6)


def test_augmentation_is_asked_for_a_new_view_in_every_step(generalist, examples):
    asked = []

    def note(inputs, ids, views):
        np.testing.assert_array_equal(inputs, examples.inputs[ids])
        asked.extend(zip(ids.tolist(), views.tolist(), strict=True))
        return inputs

    for seed in (0, 1):
        train(generalist, [0], examples, num_steps=8, batch_size=64, seed=seed, augmentation=note)
    # Keras may look at a batch twice; it is the same one then.
    assert len(set(asked)) == 2 * 8 * 64


def test_same_seed_trains_the_same_specialist(generalist, examples):
    first, second = (train(generalist, [0, 1], examples, num_steps=5, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.get_weights()[0], second.get_weights()[0])


def test_killed_training_goes_on_where_it_was_also_with_dropout(generalist, examples, tmp_path, monkeypatch):
    net = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.3), keras.layers.Dense(6)])
    net.set_weights(generalist.get_weights())
    generalist = net
    settings = {"num_steps": 20, "learning_rate": 0.01, "seed": 1}
    expected = train(generalist, [0, 1], examples, **settings)
    end_epoch = Backup.on_epoch_end

    def back_up_and_die(backup, epoch, logs=None):
        end_epoch(backup, epoch, logs)
        if epoch == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Backup, "on_epoch_end", back_up_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(generalist, [0, 1], examples, **settings, backup_dir=tmp_path / "backup")
    steps = []
    fit = training_module.Distiller.fit

    def fit_and_count(distiller, batches, **options):
        count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: steps.append(step))
        return fit(distiller, batches, **{**options, "callbacks": [*options["callbacks"], count]})

    monkeypatch.setattr(training_module.Distiller, "fit", fit_and_count)
    found = train(generalist, [0, 1], examples, **settings, backup_dir=tmp_path / "backup")
    assert len(steps) == 20 - 8
    for weight, old in zip(found.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(weight, old, atol=1e-6)
    assert not (tmp_path / "backup").exists()


def test_control_has_all_classes_and_takes_as_many_steps(generalist, examples):
    control = train_control(generalist, examples, num_steps=5)
    assert control.output_shape == (None, 6)
    inputs = drawn(10, 1).inputs
    untouched = train_control(generalist, examples, num_steps=1, learning_rate=1e-12)
    logits = inputs @ generalist.layers[-1].kernel.numpy() + generalist.layers[-1].bias.numpy()
    np.testing.assert_allclose(untouched(inputs), logits, atol=1e-4)
    assert logsumexp(np.asarray(control(inputs)) - logits) != 0


def test_another_teacher_is_distilled_into_the_generalists_architecture(generalist, examples):
    start = keras.models.clone_model(generalist)
    student = train_control(
        start, examples, teacher=generalist, num_steps=1000, learning_rate=0.05, soft_target_weight=1.0, temperature=1.0
    )
    fresh = drawn(500, 6).inputs
    expected = softmax(logits_of(generalist, fresh), axis=1)
    np.testing.assert_allclose(softmax(np.asarray(student(fresh)), axis=1), expected, atol=0.02)
    assert np.abs(start.get_weights()[0] - generalist.get_weights()[0]).max() > 0.1


def test_teacher_of_other_class_count_is_refused(generalist, examples):
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    with pytest.raises(ValueError, match="teacher must have 6 classes; got 5"):
        train_control(generalist, examples, teacher=other)


@pytest.mark.parametrize(
    ("class_set", "arguments", "words"),
    [
        ([], {}, "at least one class"),
        ([0, 6], {}, "got 6"),
        ([0, 0], {}, "each class once"),
        ([0, 1], {"trained": "body"}, "'head', 'last_block', 'all'"),
        ([0, 1], {"special_share": 0.0}, "special_share must be > 0"),
        ([0, 1], {"special_share": 1.0}, "special_share must be < 1"),
        ([0, 1], {"soft_target_weight": 1.5}, "soft_target_weight must be between 0 and 1"),
        ([0, 1], {"num_steps": 0}, "num_steps must be >= 1"),
        ([0, 1], {"dustbin": "bin"}, "'sum', 'unit'"),
    ],
)
def test_bad_arguments_are_refused(generalist, examples, class_set, arguments, words):
    with pytest.raises(ValueError, match=words):
        train(generalist, class_set, examples, **{"num_steps": 1, **arguments})


def test_set_without_an_example_is_refused(generalist, examples):
    some = Examples(examples.inputs[examples.labels != 5], examples.labels[examples.labels != 5])
    with pytest.raises(ValueError, match="0 inside"):
        train(generalist, [5], some, num_steps=1)


def test_generalist_without_a_dense_end_is_refused():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="last Dense layer"):
        specialist_model(keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs)), [0])
