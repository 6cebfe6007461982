"""Features inside the Distiller: taps, one pass, projectors that stay behind; schedules inside its compiled step."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill import losses, schedules

# A feature loss alone leaves the head as it is, and Keras says so.
pytestmark = pytest.mark.filterwarnings("ignore:Gradients do not exist")


class Counter(layers.Layer):
    """Passes its input on and counts how often it ran."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.count = 0

    def call(self, inputs):
        self.count += 1
        return inputs


def net(width, seed=0, head=None):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4, 4, 2))
    hidden = Counter(name="counter")(inputs)
    hidden = layers.Conv2D(width, 3, padding="same", activation="tanh", name="map")(hidden)
    pooled = layers.GlobalAveragePooling2D(name="pooled")(hidden)
    return keras.Model(inputs, layers.Dense(3, activation=head, name="head")(pooled))


def items(count=16):
    generator = np.random.default_rng(3)
    return generator.normal(size=(count, 4, 4, 2)).astype("float32"), generator.integers(0, 3, count)


def compiled(distiller, **options):
    defaults = {"optimizer": keras.optimizers.SGD(0.1), "jit_compile": False}
    distiller.compile(**defaults | options)
    return distiller


def fit(distiller, *data, **options):
    return distiller.fit(*data, **{"batch_size": 16, "epochs": 1, "verbose": 0} | options).history


def several():
    return [
        losses.SoftTargets(2.0),
        losses.Hint("map"),
        losses.Hint("pooled"),
        losses.AttentionTransfer("map"),
        losses.SimilarityPreserving("pooled"),
    ]


def test_several_taps_cost_one_pass_of_each_model():
    x, y = items()
    teacher, student = net(6), net(3)
    distiller = compiled(kd.Distiller(teacher, student, several()), loss="mse", run_eagerly=True)
    # The first epoch builds, and on JAX compiles the teacher, of which later ones show nothing.
    fit(distiller, x, np.eye(3)[y])
    for model in (teacher, student):
        model.get_layer("counter").count = 0
    history = fit(distiller, x, np.eye(3)[y])
    of_teacher = 0 if keras.config.backend() == "jax" else 1
    assert [model.get_layer("counter").count for model in (teacher, student)] == [of_teacher, 1]
    assert np.isfinite(history["loss"]).all()


def test_terms_are_the_sum_of_what_each_loss_says_of_the_two_layers():
    x, _ = items()
    teacher, student = net(6), net(3)
    terms = several()
    weights = [1.0, 0.5, 2.0, 100.0, 10.0]
    distiller = compiled(kd.Distiller(teacher, student, terms, weights, student_loss_weight=0.0))
    expected = 0.0
    for loss, weight in zip(terms, weights, strict=True):
        pair = (teacher(x), student(x))
        if loss.teacher_layer_name is not None:
            taps = (
                keras.Model(model.input, model.get_layer(loss.teacher_layer_name).output)
                for model in (teacher, student)
            )
            pair = [tap(x) for tap in taps]
        expected += weight * float(loss.compute_loss(*pair))
    np.testing.assert_allclose(fit(distiller, x)["distillation_loss"], expected, rtol=1e-4)


def test_layers_inside_nested_models_can_be_tapped():
    x, _ = items()
    inner = net(6)
    teacher = keras.Sequential([keras.Input((4, 4, 2)), layers.Rescaling(2.0), inner], name="whole")
    student = net(6, seed=1)
    loss = losses.Hint(f"{inner.name}/map", "map")
    expected = float(losses.Hint().compute_loss(inner.layers[2](2.0 * x), student.get_layer("map")(x)))
    history = fit(compiled(kd.Distiller(teacher, student, loss, student_loss_weight=0.0)), x)
    np.testing.assert_allclose(history["distillation_loss"], expected, rtol=1e-4)


def test_teacher_with_its_own_resolution_and_scaling_is_a_model_of_models():
    x, y = items()
    big = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(6, 3, strides=2, padding="same", name="map"),
            layers.Flatten(),
            layers.Dense(3, "softmax"),
        ],
        name="big",
    )
    teacher = keras.Sequential([keras.Input((4, 4, 2)), layers.Rescaling(0.5), layers.Resizing(8, 8), big])
    student = net(3)
    losses_ = [losses.SoftTargets(2.0), losses.Hint("big/map", "map")]
    history = fit(compiled(kd.Distiller(teacher, student, losses_), loss="mse"), x, np.eye(3)[y])
    logits = np.log(np.asarray(teacher(x)))
    assert np.isfinite(history["loss"]).all()
    only = compiled(kd.Distiller(teacher, net(3), losses.SoftTargets(2.0), student_loss_weight=0.0))
    expected = float(losses.SoftTargets(2.0).compute_loss(logits, net(3)(x)))
    np.testing.assert_allclose(fit(only, x)["distillation_loss"], expected, rtol=1e-4)


def test_unknown_nested_layer_is_refused_by_name():
    teacher = keras.Sequential([keras.Input((4, 4, 2)), net(6)], name="whole")
    name = teacher.layers[0].name
    for layer_name in (f"{name}/nowhere", "nowhere/map"):
        with pytest.raises(ValueError, match="'nowhere' must name a layer of"):
            kd.Distiller(teacher, net(3), losses.Hint(layer_name, "map"))
    with pytest.raises(
        ValueError, match=r"'map' must name a layer inside 'head' \(Dense\); got none: it has no layers"
    ):
        kd.Distiller(net(6), net(3), losses.Hint("head/map", "map"))


def test_projector_is_trained_with_the_student_and_is_no_part_of_it(tmp_path):
    x, _ = items()
    teacher, student = net(6), net(3)
    num_weights = len(student.weights)
    loss = losses.Hint("map")
    distiller = compiled(kd.Distiller(teacher, student, loss, student_loss_weight=0.0))
    before = loss.projector.dense.kernel.numpy()
    history = fit(distiller, x, epochs=30)
    assert np.abs(loss.projector.dense.kernel.numpy() - before).max() > 1e-3
    assert history["distillation_loss"][-1] < 0.8 * history["distillation_loss"][0]
    assert len(student.weights) == num_weights
    student.save(tmp_path / "student.keras")
    loaded = keras.saving.load_model(tmp_path / "student.keras", custom_objects={"Counter": Counter})
    assert type(loaded) is type(student)
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in student.layers]
    np.testing.assert_array_equal(loaded(x), student(x))


def test_saved_distiller_goes_on_with_its_projector_schedule_and_learnt_temperature(tmp_path):
    x, _ = items()
    teacher = net(6)

    def make(student):
        temperature = schedules.LearntTemperature(reversal=schedules.Linear(0.2, 1.0, 4, unit="steps"))
        objective = [losses.Hint("map"), losses.SoftTargets(temperature)]
        weights = [schedules.Linear(1.0, 0.0, 6, unit="steps"), 2.0]
        return compiled(kd.Distiller(teacher, student, objective, weights), optimizer=keras.optimizers.Adam(0.01))

    distiller = make(net(3))
    # The two begin with the same projector.
    keras.utils.set_random_seed(0)
    twin = make(net(3))
    for mine, theirs in zip(distiller.auxiliary_layers, twin.auxiliary_layers, strict=True):
        mine.set_weights(theirs.get_weights())
    undisturbed = twin
    fit(undisturbed, x, epochs=3, shuffle=False)
    fit(undisturbed, x, epochs=2, shuffle=False)

    fit(distiller, x, epochs=3, shuffle=False)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras", custom_objects={"Counter": Counter})
    loaded.set_teacher(teacher)
    fit(loaded, x, epochs=2, shuffle=False)
    for ours, theirs in zip(loaded.variables, undisturbed.variables, strict=True):
        if "counter" not in ours.path and "seed" not in ours.path:
            np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-5, err_msg=ours.path)


def test_mixed_precision_features_have_a_projector_in_float32():
    x, _ = items()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        student = net(3)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    loss = losses.Hint("map")
    history = fit(compiled(kd.Distiller(net(6), student, loss, student_loss_weight=0.0)), x, epochs=2)
    assert loss.projector.dense.kernel.dtype == "float32"
    assert np.isfinite(history["loss"]).all()


def test_features_of_a_store_are_refused():
    x, _ = items()
    distiller = compiled(kd.Distiller(None, net(3), losses.Hint("map")), run_eagerly=True)
    with pytest.raises(ValueError, match="Features need the teacher beside the student"):
        fit(distiller, x, {"labels": None, "soft_targets": np.zeros((16, 3), "float32")})


def test_one_loss_may_serve_two_teachers_after_each_other():
    """A projector that was made for the first is kept where it fits, and refused where it does not."""
    loss = losses.Hint("map")
    distiller = kd.Distiller(net(6), net(3), loss)
    projector = loss.projector
    distiller.set_teacher(net(6, seed=5))
    assert loss.projector is projector


# Schedules in the compiled step


def soft_loss(teacher, student, temperature, x):
    return float(losses.SoftTargets(temperature).compute_loss(teacher(x), student(x)))


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"jit_compile": False}])
def test_schedules_of_epochs_and_steps_move_inside_a_compiled_fit(options):
    x, _ = items()
    teacher, student = net(6), net(3, seed=1)
    temperature = schedules.Linear(8.0, 2.0, length=3)
    weight = schedules.Linear(1.0, 5.0, length=4, unit="steps")
    distiller = kd.Distiller(teacher, student, losses.SoftTargets(temperature), weight, student_loss_weight=0.0)
    compiled(distiller, optimizer=keras.optimizers.SGD(0.0), **options)
    history = fit(distiller, x, epochs=4)["distillation_loss"]
    expected = [(1.0 + step) * soft_loss(teacher, student, t, x) for step, t in enumerate((8.0, 6.0, 4.0, 2.0))]
    np.testing.assert_allclose(history, expected, rtol=5e-4)


def test_steps_are_counted_one_by_one_with_several_steps_per_execution():
    x, _ = items()
    weight = schedules.Linear(0.0, 8.0, length=8, unit="steps")
    distiller = kd.Distiller(net(6), net(3), losses.SoftTargets(2.0), weight)
    compiled(distiller, steps_per_execution=2)
    fit(distiller, x, batch_size=4)
    assert float(weight.current) == 4.0


def test_weight_of_the_hard_labels_may_be_scheduled_or_a_variable():
    x, y = items()
    teacher, student = net(6), net(3, seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    hard = float(loss(y, student(x)))
    soft = soft_loss(teacher, student, 4.0, x)
    for weight in (schedules.Steps([0.2, 0.9], boundaries=[1]), keras.Variable(0.2, trainable=False)):
        distiller = kd.Distiller(teacher, student, student_loss_weight=weight)
        compiled(distiller, optimizer=keras.optimizers.SGD(0.0), loss=loss)
        totals = fit(distiller, x, y)["total_loss"]
        if isinstance(weight, keras.Variable):
            weight.assign(0.9)
        totals += fit(distiller, x, y, initial_epoch=1, epochs=2)["total_loss"]
        np.testing.assert_allclose(totals, [0.2 * hard + 0.8 * soft, 0.9 * hard + 0.1 * soft], rtol=1e-4)


def test_numbers_of_a_compiled_step_cannot_be_set_in_silence():
    with pytest.raises(AttributeError):
        kd.Distiller(net(6), net(3)).student_loss_weight = 0.5


def test_learnt_temperature_climbs_while_the_student_descends():
    x, _ = items()
    temperature = schedules.LearntTemperature(reversal=1.0)
    student = net(3, seed=1)
    distiller = kd.Distiller(net(6), student, losses.SoftTargets(temperature), student_loss_weight=0.0)
    before = float(temperature.theta.numpy())
    teacher_logits, student_logits = distiller.teacher(x), student(x)
    small = [float(losses.SoftTargets(t).compute_loss(teacher_logits, student_logits)) for t in (15.6, 15.7)]
    fit(compiled(distiller), x)
    climbs = float(temperature.theta.numpy()) - before
    assert climbs != 0.0
    assert np.sign(climbs) == np.sign(small[1] - small[0])
    assert all(variable is not temperature.theta for variable in student.variables)


def test_warm_up_of_decoupled_grows_with_the_epochs_of_fit():
    x, y = items()
    teacher, student = net(6), net(3, seed=1)
    full = float(losses.DecoupledKD(4.0).compute_loss(teacher(x), student(x), labels=y))
    distiller = kd.Distiller(teacher, student, losses.DecoupledKD(4.0, warm_up_epochs=2), student_loss_weight=0.0)
    compiled(distiller, optimizer=keras.optimizers.SGD(0.0))
    np.testing.assert_allclose(fit(distiller, x, y, epochs=3)["distillation_loss"], [full / 2, full, full], rtol=1e-4)


# Heads


def test_softmaxs_loss_on_a_sigmoid_head_is_refused():
    for teacher, student in ((net(6), net(3, head="sigmoid")), (net(6, head="sigmoid"), net(3))):
        with pytest.raises(ValueError, match=r"must be softmax; got sigmoid.*BinarySoftTargets"):
            kd.Distiller(teacher, student)
    with pytest.raises(ValueError, match=r"must be sigmoid; got softmax.*SoftTargets"):
        kd.Distiller(net(6), net(3, head="softmax"), losses.BinarySoftTargets())


def test_a_single_sigmoid_unit_is_pointed_to_the_binary_loss():
    models = [keras.Sequential([keras.Input((2,)), layers.Dense(1)]) for _ in range(2)]
    with pytest.raises(ValueError, match=r"have two or more classes; got 1 class.*BinarySoftTargets"):
        kd.Distiller(*models)


@pytest.mark.parametrize("wrap", [lambda loss: loss, losses.LogitStandardization])
def test_losses_of_probabilities_are_refused(wrap):
    with pytest.raises(ValueError, match="hands on logits"):
        kd.Distiller(net(6), net(3), wrap(losses.SoftTargets(from_logits=False)))


def test_a_layer_that_both_models_have_is_read_in_each_where_it_is_called():
    shared = layers.Dense(8, name="shared")
    models = []
    for _ in range(2):
        inputs = keras.Input((6,))
        models.append(keras.Model(inputs, layers.Dense(3)(shared(inputs))))
    teacher, student = models
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    for first, second in ((teacher, student), (student, teacher)):
        distiller = kd.Distiller(first, second, kd.losses.Hint("shared"), student_loss_weight=0.0)
        distiller.compile("sgd")
        assert distiller.fit(x, batch_size=8, verbose=0).history["distillation_loss"] == [0.0]


def test_a_layer_that_is_called_twice_is_refused_as_it_says_not_which_call():
    twice = layers.Dense(6, name="twice")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dense(3)(twice(twice(inputs))))
    with pytest.raises(ValueError, match=r"'twice' must be called once in '.*'; got 2 calls\. Give the call"):
        kd.Distiller(model, keras.models.clone_model(model), kd.losses.Hint("twice"))
