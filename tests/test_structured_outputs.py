"""Several outputs, tokens with masks, many labels, and maps of classes; students against twins without a teacher."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill import losses


def compiled(distiller, **options):
    defaults = {"optimizer": keras.optimizers.Adam(0.02), "jit_compile": False}
    distiller.compile(**defaults | options)
    return distiller


def fit(model, *data, **options):
    keras.utils.set_random_seed(7)
    return model.fit(*data, **{"batch_size": 64, "epochs": 1, "verbose": 0} | options).history


def copy_of(model):
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return twin


# Several outputs


def two_headed(width, kind, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    hidden = layers.Dense(width, "tanh")(inputs)
    species = layers.Dense(3, "softmax", name="species")(hidden)
    size = layers.Dense(2, name="size")(hidden)
    return keras.Model(inputs, {"species": species, "size": size} if kind == "dict" else [species, size])


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_each_output_has_its_loss_or_none(kind):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32, 5)).astype("float32")
    labels = {"species": generator.integers(0, 3, 32), "size": generator.normal(size=(32, 2)).astype("float32")}
    teacher, student = two_headed(16, kind, 0), two_headed(4, kind, 1)
    theirs, ours = (model(x) for model in (teacher, student))
    key = {"species": "species", "size": "size"} if kind == "dict" else {"species": 0, "size": 1}
    logits = [np.log(out[key["species"]]) for out in (theirs, ours)]
    soft = float(losses.SoftTargets(3.0).compute_loss(*logits))
    decoupled = float(losses.DecoupledKD(3.0).compute_loss(*logits, labels=labels["species"]))
    values = float(losses.RegressionTargets().compute_loss(theirs[key["size"]], ours[key["size"]]))
    y = labels if kind == "dict" else list(labels.values())
    hard = ["sparse_categorical_crossentropy", "mse"]
    hard = dict(zip(labels, hard, strict=True)) if kind == "dict" else hard
    still = {"optimizer": keras.optimizers.SGD(0.0), "loss": hard, "run_eagerly": True}
    for given, weights, expected in (
        ({"species": losses.SoftTargets(3.0), "size": losses.RegressionTargets()}, None, soft + values),
        ({"species": None, "size": losses.RegressionTargets()}, None, values),
        (
            {"size": losses.RegressionTargets(), "species": losses.DecoupledKD(3.0)},
            {"size": 2.0, "species": 0.5},
            2.0 * values + 0.5 * decoupled,
        ),
        (
            [{"species": losses.SoftTargets(3.0)}, {"species": losses.DecoupledKD(3.0)}],
            [1.0, {"species": 0.1}],
            soft + 0.1 * decoupled,
        ),
    ):
        distiller = compiled(kd.Distiller(teacher, student, given, weights), **still)
        history = fit(distiller, x, y)
        np.testing.assert_allclose(history["distillation_loss"], [expected], rtol=1e-4)
        loaded = kd.Distiller.from_config(distiller.get_config())
        assert loaded.get_config()["distillation_losses"] == distiller.get_config()["distillation_losses"]
        np.testing.assert_allclose(loaded.distillation_loss_weights, distiller.distillation_loss_weights)


def test_sample_weights_may_differ_by_output():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(8, 5)).astype("float32")
    y = {"species": generator.integers(0, 3, 8), "size": generator.normal(size=(8, 2)).astype("float32")}
    teacher, student = two_headed(16, "dict", 0), two_headed(4, "dict", 1)
    weight = {"species": np.linspace(0, 2, 8).astype("float32"), "size": np.zeros(8, "float32")}
    given = {"species": losses.SoftTargets(3.0), "size": losses.RegressionTargets()}
    logits = [np.log(model(x)["species"]) for model in (teacher, student)]
    expected = np.mean(weight["species"] * np.asarray(losses.soft_targets(*logits, 3.0)))
    hard = {"species": "sparse_categorical_crossentropy", "size": "mse"}
    distiller = compiled(kd.Distiller(teacher, student, given), loss=hard)
    np.testing.assert_allclose(fit(distiller, x, y, sample_weight=weight)["distillation_loss"], [expected], rtol=1e-4)


def test_one_loss_for_several_outputs_is_refused_by_name():
    with pytest.raises(ValueError, match=r"by name \(\['species', 'size'\]\).*output name: loss or None"):
        kd.Distiller(two_headed(16, "dict", 0), two_headed(4, "dict", 1))
    with pytest.raises(ValueError, match="output 'colour' must be one of"):
        kd.Distiller(two_headed(16, "dict", 0), two_headed(4, "dict", 1), {"colour": losses.SoftTargets()})


# An output without any loss is left as it is, and Keras says so.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_several_outputs_train_from_stored_targets():
    x = np.random.default_rng(0).normal(size=(16, 5)).astype("float32")
    teacher, student = two_headed(16, "dict", 0), two_headed(4, "dict", 1)
    given = {"species": losses.SoftTargets(3.0), "size": None}
    beside = compiled(kd.Distiller(teacher, student, given), optimizer=keras.optimizers.SGD(0.0))
    stored = compiled(kd.Distiller(None, student, given), optimizer=keras.optimizers.SGD(0.0))
    targets = {"species": np.log(np.asarray(teacher(x)["species"])), "size": np.zeros((16, 2), "float32")}
    np.testing.assert_allclose(
        fit(stored, x, {"soft_targets": targets})["distillation_loss"], fit(beside, x)["distillation_loss"], rtol=1e-4
    )


# Text: a hand-made teacher that counts words of one kind against another


def sentences(count, seed):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, 41, (count, 12))
    tokens[np.arange(12) >= generator.integers(4, 13, count)[:, None]] = 0
    return tokens, (np.sum((tokens > 0) & (tokens <= 20), 1) > np.sum(tokens > 20, 1)).astype("int32")


def word_counter():
    inputs = keras.Input((12,), dtype="int32")
    kinds = layers.Embedding(41, 2, mask_zero=True, name="kinds")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(kinds)))
    table = np.zeros((41, 2))
    table[1:21, 1] = table[21:, 0] = 1.0
    # What padding means must not matter: only the mask keeps it out.
    table[0] = [50.0, -50.0]
    model.set_weights([table, 20.0 * np.eye(2), np.zeros(2)])
    return model


def text_student(per_token=False):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12,), dtype="int32")
    hidden = layers.Embedding(41, 4, mask_zero=True)(inputs)
    if not per_token:
        hidden = layers.GlobalAveragePooling1D()(hidden)
    return keras.Model(inputs, layers.Dense(2, "softmax")(hidden))


def accuracy(model, x, y, mask=None):
    right = np.asarray(model(x)).argmax(-1) == y
    return np.mean(right if mask is None else right[mask])


def distilled_and_untaught(teacher, student, x, y, num_labelled, loss, hard, epochs):
    """The student learns from the teacher, without labels; its twin from the few labels, in as many steps."""
    twin = copy_of(student)
    distiller = compiled(kd.Distiller(teacher, student, loss, student_loss_weight=0.0))
    fit(distiller, x, epochs=epochs)
    twin.compile(keras.optimizers.Adam(0.02), hard, jit_compile=False)
    repeats = len(x) // num_labelled
    few = [np.concatenate([part[:num_labelled]] * repeats) for part in (x, y)]
    fit(twin, *few, epochs=epochs)
    return student, twin


def test_text_classifier_with_masks_learns_what_its_untaught_twin_cannot():
    (x, y), (test_x, test_y) = sentences(512, 0), sentences(512, 1)
    teacher = word_counter()
    assert accuracy(teacher, test_x, test_y) > 0.9
    student, twin = distilled_and_untaught(
        teacher, text_student(), x, y, 8, losses.SoftTargets(2.0), "sparse_categorical_crossentropy", epochs=12
    )
    assert accuracy(student, test_x, test_y) > 0.85
    assert accuracy(twin, test_x, test_y) < 0.75


def test_tagger_weighs_tokens_by_mask_and_by_sample_weight():
    (x, _), generator = sentences(64, 0), np.random.default_rng(5)
    inputs = keras.Input((12,), dtype="int32")
    embedded = layers.Embedding(41, 8, mask_zero=True)(inputs)
    teacher = keras.Model(inputs, layers.Dense(2)(layers.Rescaling(40.0)(embedded)))
    student = text_student(per_token=True)
    weight = generator.uniform(0, 2, x.shape).astype("float32")
    mask = x > 0
    values = np.asarray(losses.soft_targets(teacher(x), np.log(student(x)), 2.0))
    distiller = compiled(
        kd.Distiller(teacher, student, losses.SoftTargets(2.0)),
        loss="sparse_categorical_crossentropy",
        optimizer=keras.optimizers.SGD(0.0),
    )
    history = fit(distiller, x, np.zeros_like(x), sample_weight=weight)
    np.testing.assert_allclose(history["distillation_loss"], [np.sum((values * weight)[mask]) / mask.sum()], rtol=1e-4)
    # Losses that relate items leave masked tokens out too.
    relation = compiled(kd.Distiller(teacher, student, losses.DIST(2.0)), optimizer=keras.optimizers.SGD(0.0))
    kept = losses.DIST(2.0).compute_loss(np.asarray(teacher(x))[mask], np.log(np.asarray(student(x))[mask]))
    np.testing.assert_allclose(fit(relation, x)["distillation_loss"], [float(kept)], rtol=1e-4)


# Many labels


def test_multilabel_student_learns_what_its_untaught_twin_cannot():
    generator = np.random.default_rng(0)
    planes = generator.normal(size=(16, 6))
    x, test_x = (generator.normal(size=(512, 16)).astype("float32") for _ in range(2))
    y, test_y = ((values @ planes > 0).astype("float32") for values in (x, test_x))
    teacher = keras.Sequential([keras.Input((16,)), layers.Dense(6, "sigmoid")])
    teacher.set_weights([3.0 * planes, np.zeros(6)])
    keras.utils.set_random_seed(1)
    student = keras.Sequential([keras.Input((16,)), layers.Dense(6, "sigmoid")])
    student, twin = distilled_and_untaught(
        teacher, student, x, y, 8, losses.BinarySoftTargets(4.0), "binary_crossentropy", epochs=12
    )
    right = [np.mean((np.asarray(model(test_x)) > 0.5) == test_y) for model in (student, twin)]
    assert right[0] > 0.9
    assert right[1] < 0.8


# Maps of classes


def test_segmentation_student_learns_what_its_untaught_twin_cannot():
    generator = np.random.default_rng(0)
    x, test_x = (generator.normal(size=(count, 8, 8, 1)).astype("float32") for count in (256, 64))
    inputs = keras.Input((8, 8, 1))
    smooth = layers.Conv2D(1, 3, padding="same", use_bias=False)
    scores = layers.Conv2D(3, 1)
    teacher = keras.Model(inputs, layers.Softmax()(scores(smooth(inputs))))
    smooth.set_weights([np.full((3, 3, 1, 1), 1 / 3)])
    # Three classes by the mean of the neighbourhood: below −0.5, between, above 0.5.
    scores.set_weights([np.array([-12.0, 0.0, 12.0]).reshape(1, 1, 1, 3), np.array([-6.0, 0.0, -6.0])])
    y, test_y = (np.asarray(teacher(values)).argmax(-1) for values in (x, test_x))
    keras.utils.set_random_seed(1)
    student = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.Conv2D(3, 1),
            layers.Softmax(),
        ]
    )
    loss = "sparse_categorical_crossentropy"
    student, twin = distilled_and_untaught(teacher, student, x, y, 1, losses.SoftTargets(2.0), loss, epochs=12)
    # How good the twin happens to be depends on its first weights, which each backend draws in its own way.
    assert accuracy(student, test_x, test_y) > 0.9
    assert accuracy(twin, test_x, test_y) < accuracy(student, test_x, test_y) - 0.03


def test_segmentation_weighs_places():
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 1)).astype("float32")
    nets = [keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(3, 3, padding="same")]) for _ in range(2)]
    weight = np.random.default_rng(1).uniform(0, 2, (4, 6, 6)).astype("float32")
    values = np.asarray(losses.soft_targets(*(net(x) for net in nets), 4.0))
    distiller = compiled(kd.Distiller(*nets), optimizer=keras.optimizers.SGD(0.0))
    history = fit(distiller, x, sample_weight=weight)
    np.testing.assert_allclose(history["distillation_loss"], [np.mean(values * weight)], rtol=1e-4)
