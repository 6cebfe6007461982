"""The Distiller against hand-computed objectives, plain Keras training, and what its contract promises."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from keras import layers

import keras_distill as kd
from keras_distill.losses import SoftTargets

NUM_CLASSES = 3
ON_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def items():
    generator = np.random.default_rng(0)
    return generator.normal(size=(64, 6)).astype("float32"), generator.integers(0, NUM_CLASSES, 64)


def make_net(width=8, head=None, **dense):
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(width, "relu", name="hidden", **dense),
            layers.BatchNormalization(name="norm"),
            layers.Dense(NUM_CLASSES, activation=head, name="head"),
        ]
    )


def copy_of(model):
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return twin


def compiled(distiller, **options):
    # XLA has a test of its own below; compiling each tiny net with it would take most of the time.
    defaults = {"optimizer": keras.optimizers.SGD(0.1), "loss": ON_LOGITS, "jit_compile": False}
    distiller.compile(**defaults | options)
    return distiller


def fit(model, *data, seed=1, **options):
    keras.utils.set_random_seed(seed)
    return model.fit(*data, **{"batch_size": 16, "epochs": 2, "verbose": 0} | options).history


def largest_difference(model, other):
    return max(np.abs(a - b).max() for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


def cross_entropy(logits, labels):
    return scipy.special.logsumexp(logits, axis=-1) - logits[np.arange(len(labels)), labels]


def soft_loss(teacher_logits, student_logits, temperature):
    p = scipy.special.softmax(teacher_logits.astype("float64") / temperature, axis=-1)
    q = scipy.special.softmax(student_logits.astype("float64") / temperature, axis=-1)
    return temperature**2 * scipy.stats.entropy(p, q, axis=-1)


class Spy(layers.Layer):
    """Passes its input on and remembers in which mode it was traced or run."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.modes = []

    def call(self, inputs, training=False):
        self.modes.append(training)
        return inputs


def spied_net(width=8):
    spy = Spy()
    net = make_net(width)
    inputs = keras.Input((6,))
    return keras.Model(inputs, net(spy(inputs))), spy


# The objective


def test_objective_is_the_weighted_sum_worked_out_in_numpy(items):
    x, y = items
    teacher, student = make_net(16), make_net(4)
    sample_weight = np.random.default_rng(1).uniform(0, 2, len(x)).astype("float32")
    teacher_logits = np.asarray(teacher(x), "float64")
    student_logits = np.asarray(copy_of(student)(x, training=True), "float64")
    hard = np.mean(sample_weight * cross_entropy(student_logits, y))
    soft = np.mean(sample_weight * soft_loss(teacher_logits, student_logits, 3.0))
    matched = np.mean(sample_weight * soft_loss(teacher_logits, student_logits, 1.0))

    losses = [SoftTargets(3.0), SoftTargets(1.0)]
    distiller = compiled(kd.Distiller(teacher, student, losses, [0.7, 2.0], student_loss_weight=0.25))
    history = fit(distiller, x, y, sample_weight=sample_weight, batch_size=64, epochs=1)
    np.testing.assert_allclose(history["student_loss"], hard, rtol=1e-5)
    np.testing.assert_allclose(history["distillation_loss"], 0.7 * soft + 2.0 * matched, rtol=1e-4)
    total = 0.25 * hard + 0.75 * (0.7 * soft + 2.0 * matched)
    np.testing.assert_allclose(history["total_loss"], total, rtol=1e-4)
    np.testing.assert_allclose(history["loss"], total, rtol=1e-4)


def test_update_is_the_gradient_of_the_objective_with_t_squared(items):
    """A linear student's gradient is x ⊗ (w·(q₁ − y) + (1 − w)·T·(q_T − p_T)) / N."""
    x, y = items
    temperature, weight, rate = 4.0, 0.3, 0.5
    teacher = make_net(16)
    student = keras.Sequential([keras.Input((6,)), layers.Dense(NUM_CLASSES)])
    before = student.layers[0].kernel.numpy().astype("float64")
    teacher_logits, student_logits = np.asarray(teacher(x), "float64"), np.asarray(student(x), "float64")
    hard = scipy.special.softmax(student_logits, -1) - np.eye(NUM_CLASSES)[y]
    soft = temperature * (
        scipy.special.softmax(student_logits / temperature, -1)
        - scipy.special.softmax(teacher_logits / temperature, -1)
    )
    expected = before - rate * x.T @ (weight * hard + (1 - weight) * soft) / len(x)

    distiller = kd.Distiller(teacher, student, SoftTargets(temperature), student_loss_weight=weight)
    compiled(distiller, optimizer=keras.optimizers.SGD(rate))
    fit(distiller, x, y, batch_size=64, epochs=1)
    np.testing.assert_allclose(student.layers[0].kernel.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_student_weight_of_one_is_plain_keras_training(items):
    x, y = items
    plain = make_net()
    student = copy_of(plain)
    plain.compile(keras.optimizers.Adam(), ON_LOGITS, metrics=["accuracy"])
    expected = fit(plain, x, y)
    distiller = compiled(
        kd.Distiller(make_net(), student, student_loss_weight=1.0), optimizer="adam", metrics=["accuracy"]
    )
    history = fit(distiller, x, y)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-6)
    assert largest_difference(plain, student) < 1e-6
    assert "distillation_loss" not in history


def test_softmax_heads_give_the_same_training_as_logits(items):
    x, y = items
    teacher, student = make_net(16), make_net(4)
    with_heads = make_net(16, "softmax"), make_net(4, "softmax")
    for model, twin in zip((teacher, student), with_heads, strict=True):
        twin.set_weights(model.get_weights())
    fit(compiled(kd.Distiller(teacher, student)), x, y)
    fit(compiled(kd.Distiller(*with_heads), loss="sparse_categorical_crossentropy"), x, y)
    assert largest_difference(student, with_heads[1]) < 1e-5
    np.testing.assert_allclose(np.sum(with_heads[1](x), axis=-1), 1.0, rtol=1e-5)


def test_students_regularisers_count_in_full(items):
    x, y = items
    student = make_net(4, kernel_regularizer=keras.regularizers.L2(0.1))
    penalty = 0.1 * np.sum(student.get_layer("hidden").kernel.numpy() ** 2)
    history = fit(compiled(kd.Distiller(make_net(), student, student_loss_weight=0.5)), x, y, batch_size=64, epochs=1)
    without = 0.5 * history["student_loss"][0] + 0.5 * history["distillation_loss"][0]
    np.testing.assert_allclose(history["loss"][0] - without, penalty, rtol=1e-4)


# Weights and masks


def test_items_of_weight_zero_are_as_if_absent(items):
    x, y = items
    kept, weight = slice(0, 32), np.r_[np.full(32, 2.0), np.zeros(32)].astype("float32")
    student = keras.Sequential([keras.Input((6,)), layers.Dense(NUM_CLASSES)])
    twin = copy_of(student)
    teacher = make_net(16)
    fit(compiled(kd.Distiller(teacher, student)), x, y, sample_weight=weight, batch_size=64, epochs=1)
    fit(compiled(kd.Distiller(teacher, twin)), x[kept], y[kept], batch_size=32, epochs=1)
    assert largest_difference(student, twin) < 1e-6


@pytest.mark.tensorflow
@pytest.mark.parametrize("source", ["teacher", "arrays", "dataset"])
def test_class_weights_weigh_both_terms(items, source):
    import tensorflow as tf

    x, y = items
    teacher, student = make_net(16), make_net(4)
    twin = copy_of(student)
    class_weight = {0: 3.0, 1: 0.0}
    sample_weight = np.array([3.0, 0.0, 1.0], "float32")[y]
    expected = fit(compiled(kd.Distiller(teacher, twin)), x, y, sample_weight=sample_weight, shuffle=False)
    targets = {"labels": y, "soft_targets": np.asarray(teacher(x))}
    if source == "teacher":
        history = fit(compiled(kd.Distiller(teacher, student)), x, y, class_weight=class_weight, shuffle=False)
    elif source == "arrays":
        history = fit(compiled(kd.Distiller(None, student)), x, targets, class_weight=class_weight, shuffle=False)
    else:
        dataset = tf.data.Dataset.from_tensor_slices((x, targets)).batch(16)
        distiller = compiled(kd.Distiller(None, student))
        history = fit(distiller, dataset, class_weight=class_weight, shuffle=False, batch_size=None)
    np.testing.assert_allclose(history["distillation_loss"], expected["distillation_loss"], rtol=1e-5)
    np.testing.assert_allclose(history["student_loss"], expected["student_loss"], rtol=1e-5)


def token_net(width):
    tokens = keras.Input((5,), dtype="int32")
    hidden = layers.Embedding(20, width, mask_zero=True, embeddings_initializer="random_normal")(tokens)
    hidden = layers.Rescaling(30.0)(hidden)
    return keras.Model(tokens, layers.Dense(NUM_CLASSES)(hidden))


def test_masked_tokens_count_in_neither_term():
    generator = np.random.default_rng(2)
    tokens = generator.integers(1, 20, (8, 5))
    tokens[:, 3:] = 0
    labels = generator.integers(0, NUM_CLASSES, (8, 5))
    teacher, student = token_net(6), token_net(3)
    teacher_logits, student_logits = np.asarray(teacher(tokens)), np.asarray(student(tokens))
    soft = soft_loss(teacher_logits[:, :3], student_logits[:, :3], 4.0).mean()
    hard = cross_entropy(student_logits[:, :3].reshape(-1, NUM_CLASSES), labels[:, :3].ravel()).mean()
    history = fit(compiled(kd.Distiller(teacher, student)), tokens, labels, epochs=1)
    np.testing.assert_allclose(history["distillation_loss"], soft, rtol=1e-3)
    np.testing.assert_allclose(history["student_loss"], hard, rtol=1e-4)


def test_weight_of_a_sequence_weighs_each_of_its_tokens():
    tokens = np.random.default_rng(3).integers(1, 20, (8, 5))
    teacher, student = token_net(6), token_net(3)
    weight = np.linspace(0, 2, 8).astype("float32")
    values = soft_loss(np.asarray(teacher(tokens)), np.asarray(student(tokens)), 4.0)
    history = fit(compiled(kd.Distiller(teacher, student), loss=None), tokens, sample_weight=weight, epochs=1)
    np.testing.assert_allclose(history["distillation_loss"], np.mean(values * weight[:, None]), rtol=1e-3)


# Labels or none


def test_labels_are_not_needed(items):
    x, _ = items
    student = make_net(4)
    history = fit(compiled(kd.Distiller(make_net(), student), loss=None), x, epochs=8)
    assert set(history) == {"loss", "distillation_loss", "total_loss"}
    assert history["distillation_loss"][-1] < 0.7 * history["distillation_loss"][0]


def test_items_without_label_teach_by_soft_targets_alone(items):
    x, y = items
    partly = np.where(np.arange(len(y)) < 20, y, -1)
    teacher, student = make_net(16), make_net(4)
    student_logits = np.asarray(copy_of(student)(x, training=True))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    history = fit(compiled(kd.Distiller(teacher, student), loss=loss), x, partly, batch_size=64, epochs=1)
    np.testing.assert_allclose(history["student_loss"], cross_entropy(student_logits[:20], y[:20]).mean(), rtol=1e-5)
    soft = soft_loss(np.asarray(teacher(x)), student_logits, 4.0).mean()
    np.testing.assert_allclose(history["distillation_loss"], soft, rtol=1e-3)


def test_stored_soft_targets_train_the_same_student_as_the_teacher_beside_it(items):
    x, y = items
    teacher, student = make_net(16), make_net(4)
    twin = copy_of(student)
    beside = fit(compiled(kd.Distiller(teacher, student)), x, y)
    stored = fit(compiled(kd.Distiller(None, twin)), x, {"labels": y, "soft_targets": np.asarray(teacher(x))})
    np.testing.assert_allclose(stored["loss"], beside["loss"], rtol=1e-5)
    assert largest_difference(student, twin) < 1e-5


# Who runs, how often, in which mode


def test_teacher_and_student_run_once_a_step_in_their_own_mode(items):
    x, y = items
    (teacher, teacher_spy), (student, student_spy) = spied_net(16), spied_net(4)
    distiller = compiled(kd.Distiller(teacher, student), run_eagerly=True)
    # The first epoch builds, and on JAX compiles the teacher, of which later ones show nothing.
    fit(distiller, x, y, epochs=1)
    on_jax = keras.config.backend() == "jax"
    assert not any(teacher_spy.modes)
    assert not on_jax or len(teacher_spy.modes) <= 2, "once drawn, once compiled"
    teacher_spy.modes.clear()
    student_spy.modes.clear()
    fit(distiller, x, y, epochs=1)
    assert [bool(mode) for mode in teacher_spy.modes] == [False] * (0 if on_jax else 4)
    assert [bool(mode) for mode in student_spy.modes if mode] == [True] * 4


def test_evaluate_runs_no_teacher_and_moves_no_statistic(items):
    x, y = items
    (teacher, teacher_spy), (student, student_spy) = spied_net(16), spied_net(4)
    distiller = compiled(kd.Distiller(teacher, student), metrics=["accuracy"], run_eagerly=True)
    fit(distiller, x, y, epochs=1)
    teacher_spy.modes.clear()
    student_spy.modes.clear()
    before = [weight.copy() for weight in student.get_weights()]
    results = distiller.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    assert teacher_spy.modes == []
    assert [bool(mode) for mode in student_spy.modes] == [False] * 4
    assert all(np.array_equal(a, b) for a, b in zip(before, student.get_weights(), strict=True))
    logits = np.asarray(student(x))
    np.testing.assert_allclose(results["loss"], cross_entropy(logits, y).mean(), rtol=1e-5)
    np.testing.assert_allclose(results["accuracy"], np.mean(logits.argmax(-1) == y), rtol=1e-6)
    assert set(results) == {"loss", "student_loss", "accuracy"}


def test_evaluate_tells_the_distillation_loss_when_asked(items):
    x, y = items
    teacher, student = make_net(16), make_net(4)
    distiller = compiled(kd.Distiller(teacher, student, student_loss_weight=0.4, evaluate_distillation=True))
    results = distiller.evaluate(x, y, verbose=0, return_dict=True)
    soft = soft_loss(np.asarray(teacher(x)), np.asarray(student(x)), 4.0).mean()
    hard = cross_entropy(np.asarray(student(x)), y).mean()
    np.testing.assert_allclose(results["distillation_loss"], soft, rtol=1e-4)
    np.testing.assert_allclose(results["total_loss"], 0.4 * hard + 0.6 * soft, rtol=1e-4)


def test_labels_without_a_weight_cost_nothing_in_training_and_count_in_evaluation(items):
    x, y = items
    asked = []

    def counted(labels, logits):
        asked.append(labels)
        return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    student = make_net(4)
    distiller = kd.Distiller(make_net(16), student, student_loss_weight=0.0, evaluate_distillation=True)
    distiller.compile("sgd", counted, metrics=["accuracy"])
    history = distiller.fit(x, y, verbose=0).history
    # Before it trains, Keras on JAX asks once for shapes alone.
    assert len(asked) == (1 if keras.config.backend() == "jax" else 0)
    assert set(history) == {"loss", "total_loss", "distillation_loss", "accuracy"}
    results = distiller.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(results["student_loss"], cross_entropy(np.asarray(student(x)), y).mean(), rtol=1e-4)


def test_teacher_keeps_its_weights_statistics_and_trainable_flag(items):
    x, y = items
    teacher = make_net(16)
    before = [weight.copy() for weight in teacher.get_weights()]
    distiller = compiled(kd.Distiller(teacher, make_net(4)))
    fit(distiller, x, y)
    assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights(), strict=True))
    assert teacher.trainable
    assert all(layer.trainable for layer in teacher.layers)
    teachers = {id(variable) for variable in teacher.variables}
    assert not any(id(variable) in teachers for variable in distiller.variables)


def test_layers_that_teacher_and_student_share_are_read_as_the_step_holds_them(items):
    x, y = items

    def nets():
        keras.utils.set_random_seed(3)
        shared = layers.Dense(8, "relu", trainable=False)
        inputs = keras.Input((6,))
        features = shared(inputs)
        return [keras.Model(inputs, layers.Dense(NUM_CLASSES)(features)) for _ in range(2)]

    teacher, student = nets()
    another, apart = nets()
    fit(compiled(kd.Distiller(teacher, student, SoftTargets(2.0))), x, y)
    fit(compiled(kd.Distiller(copy_of(another), apart, SoftTargets(2.0))), x, y)
    assert largest_difference(student, apart) < 1e-6
    if keras.config.backend() == "jax":
        several = compiled(kd.Distiller(teacher, student, SoftTargets(2.0)), steps_per_execution=2)
        with pytest.raises(
            ValueError, match="steps_per_execution must be 1 on JAX for a teacher that follows its student or shares"
        ):
            fit(several, x, y)


def test_any_callable_can_teach(items):
    x, y = items
    kernel = np.random.default_rng(5).normal(size=(6, NUM_CLASSES)).astype("float32")
    student = make_net(4)
    student_logits = np.asarray(copy_of(student)(x, training=True))
    history = fit(compiled(kd.Distiller(lambda inputs: inputs @ kernel, student)), x, y, batch_size=64, epochs=1)
    np.testing.assert_allclose(
        history["distillation_loss"], soft_loss(x @ kernel, student_logits, 4.0).mean(), rtol=1e-4
    )


def test_ensemble_teaches_the_mean_of_its_members_softened_predictions(items):
    x, y = items
    members = [make_net(8), make_net(16, "softmax")]
    logits = [np.asarray(members[0](x), "float64"), np.log(np.asarray(members[1](x), "float64"))]
    student = make_net(4)
    student_logits = np.asarray(copy_of(student)(x, training=True), "float64")
    p = np.mean([scipy.special.softmax(z / 5.0, -1) for z in logits], axis=0)
    expected = 25.0 * scipy.stats.entropy(p, scipy.special.softmax(student_logits / 5.0, -1), axis=-1).mean()
    distiller = compiled(kd.Distiller(kd.teachers.Ensemble(members), student, SoftTargets(5.0)))
    history = fit(distiller, x, y, batch_size=64, epochs=1)
    np.testing.assert_allclose(history["distillation_loss"], expected, rtol=1e-3)


# Compiled steps, precision


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"jit_compile": False}, {"steps_per_execution": 3}])
def test_compiled_steps_train_the_same_student(items, options):
    x, y = items
    teacher, student = make_net(16), make_net(4)
    twin = copy_of(student)
    fit(compiled(kd.Distiller(teacher, student), run_eagerly=True), x, y)
    fit(compiled(kd.Distiller(teacher, twin), **options), x, y)
    assert largest_difference(student, twin) < 1e-5


def test_mixed_precision_scales_the_loss_and_computes_it_in_float32(items):
    x, y = items
    teacher = make_net(16)
    student = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, dtype="mixed_float16"), layers.Dense(NUM_CLASSES, dtype="mixed_float16")]
    )
    inputs = keras.Input((6,))
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        student = keras.Model(inputs, student(inputs))
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    expected = soft_loss(np.asarray(teacher(x)), np.asarray(student(x), "float64"), 20.0).mean()
    distiller = compiled(kd.Distiller(teacher, student, SoftTargets(20.0)))
    history = fit(distiller, x, y, batch_size=64, epochs=1)
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    np.testing.assert_allclose(history["distillation_loss"], expected, rtol=5e-2)
    assert all(np.isfinite(weight).all() for weight in student.get_weights())


# Saving


def test_saved_distiller_holds_no_teacher_and_goes_on_where_it_was(items, tmp_path):
    x, y = items
    teacher, student = make_net(512), make_net(4)
    twin = copy_of(student)
    adam = {"optimizer": keras.optimizers.Adam(0.01), "metrics": ["accuracy"]}
    undisturbed = compiled(kd.Distiller(teacher, twin), **adam)
    fit(undisturbed, x, y, shuffle=False)
    fit(undisturbed, x, y, shuffle=False)

    distiller = compiled(kd.Distiller(teacher, student), **adam | {"optimizer": keras.optimizers.Adam(0.01)})
    fit(distiller, x, y, shuffle=False)
    path = tmp_path / "distiller.keras"
    distiller.save(path)
    assert path.stat().st_size < 0.5 * 4 * teacher.count_params() + 40_000
    loaded = keras.saving.load_model(path)
    assert loaded.teacher is None
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), distiller.predict(x, verbose=0))
    with pytest.raises(ValueError, match=r"the teacher must be given before fit; got None.*set_teacher"):
        loaded.fit(x, y, verbose=0)
    loaded.set_teacher(teacher)
    fit(loaded, x, y, shuffle=False)
    assert largest_difference(loaded.student, twin) < 1e-6


def test_student_of_a_saved_distiller_is_a_plain_keras_model(items, tmp_path):
    x, _ = items
    student = make_net(4, "softmax")
    kd.Distiller(make_net(16), student).student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert type(loaded) is keras.Sequential
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(student(x)))


def test_weights_files_hold_the_student_alone(items, tmp_path):
    x, y = items
    distiller = compiled(kd.Distiller(make_net(512), make_net(4)))
    path = tmp_path / "distiller.weights.h5"
    fit(distiller, x, y, epochs=1, callbacks=[keras.callbacks.ModelCheckpoint(path, save_weights_only=True)])
    other = compiled(kd.Distiller(make_net(16), make_net(4)))
    other.load_weights(path)
    assert largest_difference(distiller.student, other.student) == 0.0


def test_keras_callbacks_work(items, tmp_path):
    x, y = items
    distiller = compiled(kd.Distiller(make_net(), make_net(4)))
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_loss", save_best_only=True),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        keras.callbacks.EarlyStopping(monitor="val_student_loss", mode="min", patience=3),
    ]
    if keras.config.backend() == "tensorflow":
        callbacks.append(keras.callbacks.TensorBoard(tmp_path / "logs"))
    history = fit(distiller, x, y, validation_data=(x, y), callbacks=callbacks, epochs=3)
    assert len(history["val_loss"]) == 3
    assert keras.saving.load_model(tmp_path / "best.keras").teacher is None
    assert bool(list((tmp_path / "logs").rglob("events*"))) == (keras.config.backend() == "tensorflow")


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_interrupted_training_goes_on_from_its_backup(items, tmp_path):
    x, y = items
    teacher, student = make_net(16), make_net(4)
    twin, untrained = copy_of(student), copy_of(student)
    fit(compiled(kd.Distiller(teacher, twin), optimizer="adam"), x, y, epochs=4, shuffle=False)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    distiller = compiled(kd.Distiller(teacher, student), optimizer="adam")
    with pytest.raises(KeyboardInterrupt):
        fit(distiller, x, y, epochs=4, shuffle=False, callbacks=[backup, Interrupt()])
    resumed = compiled(kd.Distiller(teacher, untrained), optimizer="adam")
    fit(resumed, x, y, epochs=4, shuffle=False, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    assert largest_difference(resumed.student, twin) < 1e-6


# Keras's own distillation


def test_losses_of_keras_work_here_and_ours_there(items):
    x, y = items
    teacher, student = make_net(16), make_net(4)
    twin = copy_of(student)
    theirs = keras.distillation.LogitsDistillation(3.0, loss=keras.losses.KLDivergence())
    expected = soft_loss(np.asarray(teacher(x)), np.asarray(copy_of(student)(x, training=True)), 3.0).mean()
    history = fit(compiled(kd.Distiller(teacher, student, theirs)), x, y, batch_size=64, epochs=1)
    np.testing.assert_allclose(history["distillation_loss"], expected, rtol=1e-4)

    other = keras.distillation.Distiller(teacher, twin, SoftTargets(3.0), student_loss_weight=0.1)
    other.compile(keras.optimizers.SGD(0.1), ON_LOGITS)
    history = fit(other, x, y, batch_size=64, epochs=1)
    np.testing.assert_allclose(history["distillation_loss"], expected, rtol=1e-4)


def test_features_are_distilled_from_the_same_pass(items):
    x, y = items
    teacher, student = make_net(4), make_net(4)
    expected = np.mean((np.asarray(teacher.layers[0](x)) - np.asarray(student.layers[0](x))) ** 2)
    loss = keras.distillation.FeatureDistillation("mse", teacher_layer_name="hidden", student_layer_name="hidden")
    history = fit(compiled(kd.Distiller(teacher, student, loss)), x, y, batch_size=64, epochs=1)
    np.testing.assert_allclose(history["distillation_loss"], expected, rtol=1e-4)


def test_default_of_keras_own_loss_is_warned_of():
    with pytest.warns(UserWarning, match=r"compares raw logits without softmax or T².*KLDivergence\(\)"):
        kd.Distiller(make_net(), make_net(4), keras.distillation.LogitsDistillation())


def test_scalar_loss_beside_sample_weights_is_warned_of(items):
    x, y = items
    loss = keras.distillation.LogitsDistillation(3.0, loss=keras.losses.KLDivergence())
    with pytest.warns(UserWarning, match="sample weights cannot weigh it"):
        fit(compiled(kd.Distiller(make_net(), make_net(4), loss)), x, y, sample_weight=np.ones(64), epochs=1)


# Bad input


class Subclassed(keras.Model):
    def __init__(self, activation=None):
        super().__init__()
        self.head = layers.Dense(NUM_CLASSES, activation=activation)

    def build(self, input_shape):
        self.head.build(input_shape)

    def call(self, inputs):
        return self.head(inputs)


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_probabilities_of_a_subclassed_model_are_caught_at_the_first_batch(items, who):
    x, y = items
    squashed, plain = Subclassed("softmax"), make_net()
    teacher, student = (squashed, plain) if who == "teacher" else (plain, squashed)
    loss = ON_LOGITS if who == "teacher" else "sparse_categorical_crossentropy"
    student.build((None, 6))
    before = student.get_weights()
    with pytest.raises(ValueError, match=f"the {who}'s outputs must be logits; got probabilities.*from_logits=False"):
        fit(compiled(kd.Distiller(teacher, student), loss=loss), x, y)
    assert all(np.array_equal(a, b) for a, b in zip(before, student.get_weights(), strict=True))
    history = fit(compiled(kd.Distiller(teacher, student, from_logits=False), loss=loss), x, y, epochs=1)
    assert np.isfinite(history["loss"]).all()


def test_subclassed_student_of_logits_trains(items):
    x, y = items
    history = fit(compiled(kd.Distiller(make_net(), Subclassed())), x, y, epochs=5)
    assert history["distillation_loss"][-1] < history["distillation_loss"][0]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_numbers_of_the_teacher_are_named_at_the_first_batch(items, value):
    x, y = items
    teacher, student = make_net(), make_net(4)
    teacher.get_layer("head").bias.assign([value, 0.0, 0.0])
    before = student.get_weights()
    with pytest.raises(ValueError, match=r"the teacher's logits must be finite; got NaN or infinite"):
        fit(compiled(kd.Distiller(teacher, student)), x, y)
    assert all(np.array_equal(a, b) for a, b in zip(before, student.get_weights(), strict=True))


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_student_weight_outside_its_range_is_refused(weight):
    with pytest.raises(ValueError, match="student_loss_weight must be"):
        kd.Distiller(make_net(), make_net(), student_loss_weight=weight)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [-1.0], [float("nan")], [float("inf")]])
def test_loss_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="must be"):
        kd.Distiller(make_net(), make_net(), SoftTargets(), weights)


def test_models_of_different_classes_are_refused():
    other = keras.Sequential([keras.Input((6,)), layers.Dense(NUM_CLASSES + 1)])
    with pytest.raises(ValueError, match="have 4 classes, as the teacher's do; got 3 classes"):
        kd.Distiller(other, make_net())


def test_outputs_of_different_rank_are_refused():
    other = keras.Sequential([keras.Input((5, 6)), layers.Dense(NUM_CLASSES)])
    with pytest.raises(ValueError, match="have rank 3"):
        kd.Distiller(other, make_net())


@pytest.mark.tensorflow
def test_empty_set_is_refused():
    import tensorflow as tf

    distiller = compiled(kd.Distiller(make_net(), make_net()))
    with pytest.raises(ValueError, match="the training set must not be empty; got 0 items"):
        distiller.fit(np.zeros((0, 6)), np.zeros(0, "int64"))
    with pytest.raises(ValueError, match="the training set must not be empty"):
        distiller.fit(tf.data.Dataset.from_tensor_slices((np.zeros((0, 6)), np.zeros(0, "int64"))).batch(2))


@pytest.mark.parametrize("label", [-1, NUM_CLASSES])
def test_labels_out_of_range_are_refused(items, label):
    x, y = items
    with pytest.raises(ValueError, match=rf"labels must be in \[0, 3\); got {label} \(1 such\)"):
        compiled(kd.Distiller(make_net(), make_net())).fit(x, np.r_[y[:-1], label], verbose=0)


@pytest.mark.parametrize("kind", [str, object, bytes], ids=["str", "object", "bytes"])
def test_labels_of_texts_are_told_how_to_be_numbered(items, kind):
    x, y = items
    names = np.array(["cat", "dog", "eel"])[y].astype(kind)
    distiller = compiled(kd.Distiller(make_net(), make_net()))
    sentence = r"labels must be numbers, those of classes integers; got texts\. Number the classes: numpy\.unique\("
    for call in (
        lambda: distiller.fit(x, names, verbose=0),
        lambda: distiller.fit(x, y, validation_data=(x, names), verbose=0),
        lambda: distiller.evaluate(x, names, verbose=0),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    distiller.fit(x, np.unique(names, return_inverse=True)[1], verbose=0)


def test_loss_of_probabilities_on_a_student_of_logits_is_refused(items):
    x, y = items
    for loss in ("sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()):
        distiller = compiled(kd.Distiller(make_net(), make_net()), loss=loss)
        with pytest.raises(ValueError, match=r"SparseCategoricalCrossentropy\(from_logits=True\)"):
            distiller.fit(x, y, verbose=0)


def test_things_that_are_no_models_or_losses_are_refused():
    with pytest.raises(TypeError, match=r"student must be a keras\.Model; got str"):
        kd.Distiller(make_net(), "student")
    with pytest.raises(TypeError, match="teacher must be a Keras model or a callable; got int"):
        kd.Distiller(3, make_net())
    with pytest.raises(TypeError, match="a distillation loss must be"):
        kd.Distiller(make_net(), make_net(), "kl_divergence")
    with pytest.raises(ValueError, match="an empty list"):
        kd.Distiller(make_net(), make_net(), [])


def test_a_policy_of_its_own_comes_back_with_the_configuration():
    student = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    distiller = kd.Distiller(None, student, dtype="mixed_float16")
    again = kd.Distiller.from_config(distiller.get_config())
    assert again.dtype_policy.name == "mixed_float16"
    assert again.student.dtype_policy.name == student.dtype_policy.name


@pytest.mark.parametrize("kept", [{"top_k": 4}, {"sample": 4, "temperature": 2.0}])
@pytest.mark.parametrize("num_classes", [10, 30])
def test_a_student_of_other_classes_than_a_store_that_keeps_a_few_is_refused(tmp_path, kept, num_classes):
    x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    kernel = np.random.default_rng(1).normal(size=(5, 20)).astype("float32")
    store = kd.targets.label(lambda x: x @ kernel, x, tmp_path / "s", teacher_fingerprint="kernel", **kept)
    student = keras.Sequential([keras.Input((5,)), keras.layers.Dense(num_classes)])
    distiller = kd.Distiller(None, student, SoftTargets(2.0))
    distiller.compile("adam")
    with pytest.raises(ValueError, match=f"must have 20 classes, as the teacher's do; got {num_classes} classes"):
        distiller.fit(kd.targets.attach((x, None), store), shuffle=False, verbose=0)
