"""Families of students: every width builds, wider is bigger, and what is cut keeps the teacher's weights."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.search.cost import Cost
from keras_distill.search.families import Own, Pruned, for_texts, hand_made
from keras_distill.search.fitting import Fitter
from keras_distill.search.trials import Trial

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: pip install keras-distill[tune]")
X = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype("float32")


def teacher():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(32, 3, activation="relu", name="second")(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten()(x)))


def families():
    return [Pruned(teacher(), X), *hand_made((8, 8, 1), 3), *for_texts(12, 500, 3)]


@pytest.mark.parametrize("place", range(6))
def test_wider_students_have_more_weights_whatever_the_shape(place):
    family = families()[place]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(3):
        shape = family.suggest(study.ask())
        counts = [family.build(shape, width).count_params() for width in (1 / 512, 0.05, 0.3, 1.0)]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1]


def test_a_whole_width_is_the_teacher_and_a_part_keeps_its_weights():
    whole = teacher()
    family = Pruned(whole, X)
    np.testing.assert_allclose(family.build(family.default(), 1.0)(X), whole(X), rtol=1e-5, atol=1e-5)
    half = family.build(family.default(), 0.5)
    assert half.get_layer("first").filters == 8
    kept = half.get_layer("first").get_weights()[0]
    original = whole.get_layer("first").get_weights()[0]
    assert all(any(np.array_equal(kept[..., i], original[..., j]) for j in range(16)) for i in range(8))


def test_stages_share_the_width_out():
    cut = Pruned(teacher(), X).build({"stage1": 0.25, "stage2": 1.0}, 0.5)
    assert cut.get_layer("first").filters == 2
    assert cut.get_layer("second").filters == 16


def test_a_teacher_of_one_layer_cannot_be_cut():
    with pytest.raises(ValueError, match="must have channels that can be cut"):
        Pruned(keras.Sequential([keras.Input((4,)), layers.Dense(3)]), X)


def test_a_users_own_family_gets_the_width():
    build = lambda width: keras.Sequential([keras.Input((4,)), layers.Dense(round(100 * width)), layers.Dense(3)])  # noqa: E731
    assert Own("mine", build, np.zeros((8, 4), "float32"), 3).build({}, 0.5).layers[0].units == 50


def raises(width):
    raise RuntimeError("no such width")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (raises, "the family mine must build a model; got RuntimeError: no such width at width 0.5"),
        (lambda _: None, r"from \(4,\) to 3 logits; got NoneType"),
        (lambda _: keras.Sequential([layers.Dense(3)]), "got one that is not built. Begin it with"),
        (lambda _: keras.Sequential([keras.Input((4,)), layers.Dense(7)]), r"to 3 logits; got outputs of shape \(7,\)"),
        (lambda _: keras.Sequential([keras.Input((5,)), layers.Dense(3)]), "the family mine must build a model from"),
    ],
)
def test_a_users_family_that_is_none_is_refused_with_its_name(build, message):
    with pytest.raises(ValueError, match=message):
        Own("mine", build, np.zeros((8, 4), "float32"), 3).build({}, 0.5)


def residual_teacher():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    for number in range(4):
        y = layers.BatchNormalization(name=f"norm{number}")(x)
        y = layers.Conv2D(8, 3, padding="same", activation="relu", name=f"branch{number}")(y)
        x = layers.Add(name=f"sum{number}")([x, y])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def test_blocks_are_dropped_and_images_made_smaller():
    family = Pruned(residual_teacher(), X)
    assert family.entries["dropped"].high == 4
    assert family.entries["scale"].low == 0.5
    whole = family.build(family.default(), 1.0)
    fewer = family.build(family.default() | {"dropped": 2, "scale": 0.5}, 1.0)
    names = {layer.name for layer in fewer.layers}
    assert {layer.name for layer in whole.layers} - names >= {"branch1", "branch3"}
    assert fewer.get_layer("input_resizing").output.shape[1:3] == (4, 4)
    assert fewer(X).shape == (64, 3)


def test_a_training_begins_with_the_statistics_of_the_data():
    family = Pruned(residual_teacher(), X)
    student = family.begin(family.default(), 0.5)
    first = student.get_layer("stem")(X).numpy()
    np.testing.assert_allclose(student.get_layer("norm0").moving_mean, first.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    assert "dropped" not in Pruned(teacher(), X).entries


def test_a_users_family_is_known_by_what_it_builds():
    def family(activation="relu", least=4):
        def build(width):
            units = max(least, round(32 * width))
            return keras.Sequential([keras.Input((6,)), keras.layers.Dense(units, activation), keras.layers.Dense(3)])

        return Own("mine", build, np.zeros((2, 6), "float32"), 3)

    assert family().identity == family().identity
    assert len({family().identity, family("tanh").identity, family(least=5).identity}) == 3


def test_a_study_goes_on_with_the_families_that_it_began_with(tmp_path):
    pytest.importorskip("optuna")
    from keras_distill.search.trials import Trials

    every = {family.name: family for family in hand_made((8, 8, 1), 3)}
    fewer = {name: every[name] for name in every if name != "convnet"}
    for kept in (every, fewer):
        trials = Trials(tmp_path / "study.db", {}, kept, ["float32"], 0)
        assert list(trials.keep_families(every)) == list(every)
        # Optuna refuses a choice among others than before.
        trials.propose(0)
    assert len(trials.all()) == 2


def test_a_study_that_cannot_be_written_says_so_in_a_sentence(tmp_path):
    optuna = pytest.importorskip("optuna")
    from keras_distill.search.training import optuna_quiet

    with (
        pytest.raises(OSError, match=r"can be written; got unable to open database file\. Make room"),
        optuna_quiet("compress"),
    ):
        optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/none/study.db")


class Steep:
    """A meter whose predictions are too low by a fifth, always."""

    def measure(self, model, precision, family):
        return Cost(model.count_params(), 0, round(5 * model.count_params()), 1.0)

    def predict(self, model, precision, family):
        return Cost(model.count_params(), 0, 4 * model.count_params(), 1.0)


def test_a_width_that_holds_is_found_though_what_is_predicted_does_not():
    fitter = Fitter(Steep(), 20_000, None, 0)
    fitter.within_reach(hand_made((8, 8, 1), 3), ["float32"])
    width, cost = fitter.fit(Trial(0, 0, "mlp", {"depth": 1, "growth": 1.0}, "float32", 1.0))
    assert 0.7 * 20_000 < cost.num_bytes <= 20_000
    assert width < 1.0
