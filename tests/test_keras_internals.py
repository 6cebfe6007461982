"""Every private part of Keras that the package touches, on the installed version; and no other file touches one."""

import importlib
import re
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_distill
from keras_distill import _keras_internals as internals

PACKAGE = Path(keras_distill.__file__).parent
# Names of Keras's own that begin with an underscore, whatever they are asked of.
NAMES = [
    "_inputs_struct",
    "_outputs_struct",
    "_keras_history",
    "_inbound_nodes",
    "_nodes_by_depth",
    "_flatten_layers",
    "_run_through_graph",
    "_compile_loss",
    "_compile_metrics",
    "_jax_state",
    "jax_state_sync",
    "_initial_epoch",
    "get_keras_mask",
    "set_keras_mask",
]
OWNERS = ["model", "student", "layer", "tensor", "operation", "functional", "graph", "teacher", "network", "keras"]
PRIVATE = re.compile(rf"keras\.src|tensorflow\.python|\b({'|'.join(OWNERS)})\._[a-z]\w*|(?<!\w)({'|'.join(NAMES)})\b")


def two_inputs():
    left, right = keras.Input((3,), name="left"), keras.Input((3,), name="right")
    hidden = layers.Dense(4, name="hidden")(layers.Add(name="add")([left, right]))
    outputs = {"a": layers.Dense(2, name="a")(hidden), "b": ops.relu(hidden)}
    return keras.Model({"left": left, "right": right}, outputs)


def test_no_other_file_touches_a_private_part():
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "_keras_internals.py" and "kit" not in path.relative_to(PACKAGE).parts
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if PRIVATE.search(line)
    ]
    assert found == []


def test_structures_are_nested_as_the_user_wrote_them():
    model = two_inputs()
    assert sorted(internals.input_structure(model)) == ["left", "right"]
    assert sorted(internals.output_structure(model)) == ["a", "b"]
    sequential = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert internals.input_structure(sequential) is sequential.inputs[0]
    assert internals.output_structure(sequential) is sequential.outputs[0]


def test_a_tensor_knows_who_gave_it():
    model = two_inputs()
    operation, node, place = internals.producer(internals.output_structure(model)["a"])
    assert operation is model.get_layer("a")
    assert (node.operation, place) == (operation, 0)
    assert node.input_tensors[0] is model.get_layer("hidden").output
    assert [call.operation for call in internals.calls_of(operation)] == [operation]


def test_calls_come_from_the_inputs_to_the_outputs():
    names = [node.operation.name for node in internals.calls_in_order(two_inputs())]
    assert set(names[:2]) == {"left", "right"}
    assert names[2:4] == ["add", "hidden"]
    sequential = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="one"), layers.Dense(2, name="two")])
    assert [node.operation.name for node in internals.calls_in_order(sequential)][1:] == ["one", "two"]
    assert internals.functional_graph(sequential) is not sequential


def test_a_graph_drawn_again_calls_every_layer_by_our_leave():
    model = two_inputs()
    x = {"left": np.ones((2, 3), "float32"), "right": np.ones((2, 3), "float32")}
    called = []

    def call(operation, *args, **kwargs):
        called.append(operation.name)
        return operation(*args, **kwargs)

    outputs = internals.run_again(model, x, call)
    assert {"add", "hidden", "a"} <= set(called)
    np.testing.assert_allclose(outputs["a"], model(x)["a"], rtol=1e-6)


def test_a_model_run_on_data_by_our_leave_answers_as_its_own_call():
    first, second = keras.Input((3,), name="first"), keras.Input((3,), name="second")
    model = keras.Model({"first": first, "second": second}, keras.layers.Subtract()([second, first]))
    calls = []

    def call(operation, *args, **kwargs):
        calls.append(operation.name)
        return operation(*args, **kwargs)

    batch = {"second": np.full((2, 3), 5.0), "first": np.full((2, 3), 2.0)}
    (output,) = internals.run_on_data(model, batch, call)
    np.testing.assert_array_equal(output, np.full((2, 3), 3.0))
    assert calls == [model.layers[-1].name]


def test_a_subclass_that_runs_otherwise_than_its_graph_is_told_apart():
    class Twice(keras.Sequential):
        def call(self, inputs, training=None, mask=None):
            return 2.0 * super().call(inputs)

    assert internals.has_own_call(two_inputs())
    assert not internals.has_own_call(Twice([keras.Input((3,)), layers.Dense(2)]))


def test_operations_are_no_layers():
    model = two_inputs()
    operation, _, _ = internals.producer(internals.output_structure(model)["b"])
    assert internals.is_operation(operation)
    assert not internals.is_operation(model.get_layer("a"))


def test_layers_of_layers_are_listed():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="deep")])
    outer = keras.Sequential([keras.Input((3,)), layers.Dense(4), inner])
    assert "deep" in {layer.name for layer in internals.all_layers(outer)}


def test_masks_stay_with_their_tensor():
    tensor = ops.convert_to_tensor(np.ones((2, 3), "float32"))
    assert internals.mask_of(tensor) is None
    mask = ops.convert_to_tensor([True, False])
    internals.set_mask(tensor, mask)
    assert internals.mask_of(tensor) is mask


def test_the_compiled_loss_is_keras_own():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert internals.compiled_loss(model) is None
    model.compile("sgd", "mse")
    y, y_pred = np.zeros((4, 2), "float32"), np.full((4, 2), 3.0, "float32")
    assert float(internals.compiled_loss(model)(y, y_pred, np.array([1.0, 0.0, 0.0, 1.0]))) == pytest.approx(4.5)


def test_metrics_count_what_they_are_told_to_count():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse", metrics=["mae"], weighted_metrics=[keras.metrics.MeanAbsoluteError(name="weighted")])
    y, y_pred = np.zeros((4, 1), "float32"), np.array([[1.0], [2.0], [3.0], [4.0]], "float32")
    counted = np.array([1.0, 1.0, 0.0, 1.0], "float32")
    weights = ops.convert_to_tensor(np.array([1.0, 0.0, 5.0, 1.0], "float32"))
    internals.update_compiled_metrics(model, y, y_pred, weights, lambda target, output: (target, counted))
    results = model.get_metrics_result()
    assert float(results["mae"]) == pytest.approx((1 + 2 + 4) / 3)
    assert float(results["weighted"]) == pytest.approx((1 + 4) / 2)


def test_metrics_are_chosen_anew_for_other_labels_once_the_first_are_forgotten():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, "softmax")])
    model.compile("sgd", "mse", metrics=["accuracy"])
    y_pred = np.eye(3, dtype="float32")
    internals.update_compiled_metrics(model, np.eye(3), y_pred, None, lambda target, output: (target, None))
    internals.forget_compiled_data(model)
    internals.update_compiled_metrics(model, np.arange(3), y_pred, None, lambda target, output: (target, None))
    assert float(model.get_metrics_result()["accuracy"]) == 1.0


def test_a_fit_begins_at_the_epoch_that_it_is_told_and_once():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    x = np.ones((4, 3), "float32")
    internals.begin_at(model, 2)
    assert model.fit(x, x[:, :2], epochs=3, verbose=0).epoch == [2]
    internals.begin_at(model, None)
    assert model.fit(x, x[:, :2], epochs=3, verbose=0).epoch == [0, 1, 2]


def test_a_state_taken_by_a_step_is_given_back():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    internals.sync_variables(model)  # nothing to do outside of a step
    if keras.config.backend() != "jax":
        return
    values = [np.ones(variable.shape, "float32") for variable in model.trainable_variables]
    state = {"trainable_variables": values, "non_trainable_variables": [], "metrics_variables": []}
    internals.give_back_variables(model, state)
    assert all(np.all(weight == 1.0) for weight in model.get_weights())


@pytest.mark.parametrize(("version", "warns"), [("3.12.0", False), ("3.15.1", False), ("3.99.0", True), ("4.0", True)])
def test_a_newer_keras_than_was_tried_is_named_once(monkeypatch, version, warns):
    monkeypatch.setattr(keras, "__version__", version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        importlib.reload(internals)
    messages = [str(warning.message) for warning in caught]
    assert bool(messages) is warns
    assert all(f"Keras {version}" in message for message in messages)
    monkeypatch.undo()
    importlib.reload(internals)


def test_a_twin_shares_weights_and_no_losses():
    layer = layers.Dense(3, "softmax", activity_regularizer=keras.regularizers.L2(1.0))
    x = np.ones((2, 4), "float32")
    layer(x)
    losses = [float(loss) for loss in layer.losses]
    twin = internals.twin_of(layer, activation=keras.activations.linear, activity_regularizer=None)
    np.testing.assert_allclose(ops.softmax(twin(x)), layer(x), rtol=1e-6)
    layer.kernel.assign(ops.zeros((4, 3)))
    np.testing.assert_array_equal(twin(x), np.zeros((2, 3)))
    assert len(losses) == 1
    assert [float(loss) for loss in layer.losses] == losses


@pytest.mark.tensorflow
@pytest.mark.parametrize("is_built", [True, False])
def test_a_step_is_traced_once_where_all_that_is_trained_is_known(is_built):
    traces = []

    class Counted(keras_distill.Distiller):
        def compute_loss(self, *arguments, **options):
            traces.append(1)
            return super().compute_loss(*arguments, **options)

    hidden = [layers.Dense(4), layers.Dense(3)]
    student = keras.Sequential([keras.Input((5,)), *hidden] if is_built else hidden)
    teacher = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    distiller = Counted(teacher, student)
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    x = np.random.default_rng(0).normal(size=(12, 5)).astype("float32")
    distiller.fit(x, np.arange(12) % 3, batch_size=4, epochs=2, verbose=0)
    assert len(traces) == (1 if is_built else 2)
    assert len(distiller.optimizer.variables) == 2 + 2 * 4


def test_inputs_of_a_call_come_by_the_names_and_in_the_order_of_the_signature():
    query, value, key, mask = (keras.Input(shape) for shape in ((5, 4), (6, 4), (6, 4), (5, 6)))
    output = layers.MultiHeadAttention(2, 3)(query, key=key, attention_mask=mask, value=value)
    found = internals.inputs_by_argument(internals.producer(output)[1])
    expected = {"query": query, "value": value, "key": key, "attention_mask": mask}
    assert [name for name, _ in found] == list(expected)
    assert all(tensor is expected[name] for name, tensor in found)
    merged = internals.producer(layers.Concatenate()([query, query]))[1]
    assert internals.inputs_by_argument(merged) == [("inputs", query), ("inputs", query)]


def test_an_optimizer_is_built_for_what_is_trained_and_only_once():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4), layers.Dense(3)])
    model.layers[0].trainable = False
    model.compile("adam", "mse")
    internals.build_optimizer(model)
    assert [variable.shape for variable in model.optimizer.variables][2:] == [(4, 3)] * 2 + [(3,)] * 2
    before = list(model.optimizer.variables)
    internals.build_optimizer(model)
    assert all(a is b for a, b in zip(model.optimizer.variables, before, strict=True))


def test_an_optimizer_is_not_built_before_the_layers_are():
    model = keras.Sequential([layers.Dense(4), layers.Dense(3)])
    model.compile("adam", "mse")
    internals.build_optimizer(model)
    assert not model.optimizer.built
