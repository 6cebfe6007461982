"""One contract over every public class that Keras saves: models, trainers and layers. `contract/` has the losses'."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill import losses, quantize_aware, schedules, specialists, targets
from keras_distill.losses import Projector, SoftTargets

ROOT = Path(__file__).parents[2]
CLASSES = 5


def net(seed, units=CLASSES, head=None, dtype=None):
    kernel = keras.initializers.RandomNormal(stddev=1.0, seed=seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, "relu", kernel_initializer=kernel, dtype=dtype),
            layers.Dense(units, head, kernel_initializer=kernel, dtype=dtype),
        ],
        name="namesake",
    )


def x(count=7):
    return np.random.default_rng(0).normal(size=(count, 6)).astype("float32")


def combined():
    inputs = keras.Input((6,))
    class_sets = [[0, 1], [1, 2, 3]]
    parts = [layers.Dense(units)(inputs) for units in (CLASSES, 3, 4)]
    return keras.Model(inputs, specialists.SpecialistCombiner(class_sets, CLASSES, steps=2)(parts))


def projected():
    inputs = keras.Input((6,))
    maps = layers.Reshape((3, 2, 1))(inputs)
    return keras.Model(inputs, layers.Flatten()(Projector(4, [1, 2])(maps)))


def integer_student():
    return quantize_aware.quantize_aware(net(3), x(32))


def special():
    return specialists.SpecialistEnsemble(net(1), [net(2, 3), net(3, 4, "softmax")], [[0, 1], [1, 2, 3]], steps=2)


# What has one forward pass.
MODELS = {
    "arithmetic ensemble": lambda: kd.Ensemble([net(1), net(2, head="softmax")], weights=[1, 3]),
    "geometric ensemble": lambda: kd.Ensemble([net(1), net(2)], "geometric"),
    "specialists": special,
    "combiner": combined,
    "projector": projected,
    "quantisation-aware": integer_student,
    "distiller": lambda: kd.Distiller(net(1), net(2), SoftTargets(schedules.Linear(4.0, 2.0, 3))),
    "mutual learning": lambda: kd.DeepMutualLearning([net(1), net(2)]),
}
EXPORTED = [name for name in MODELS if name not in ("distiller", "mutual learning")]
every_model = pytest.mark.parametrize("name", MODELS)


def build(name):
    keras.utils.set_random_seed(0)
    model = MODELS[name]()
    model(x())
    return model


def logits(model, inputs):
    return np.asarray(model(inputs, training=False))


def copied_weights(source, target):
    target.set_weights(source.get_weights())
    return target


@every_model
def test_saved_and_loaded_it_answers_bit_for_bit_the_same(name, tmp_path):
    model = build(name)
    expected = logits(model, x())
    model.save(tmp_path / "model.keras")
    loaded = kd.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(logits(loaded, x()), expected)


@every_model
def test_weights_alone_can_be_saved_and_loaded(name, tmp_path):
    model, other = build(name), build(name)
    other.set_weights([weight * 0 for weight in other.get_weights()])
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(logits(other, x()), logits(model, x()))


@every_model
def test_its_configuration_goes_round_unchanged(name):
    model = build(name)
    config = model.get_config()
    again = type(model).from_config(model.get_config())
    assert keras.saving.serialize_keras_object(again.get_config()) == keras.saving.serialize_keras_object(config)
    # Asked for twice it is the same: nothing in it is the model's own state.
    assert model.get_config() == config
    assert [weight.shape for weight in again.get_weights()] == [weight.shape for weight in model.get_weights()]


@pytest.mark.parametrize("name", EXPORTED)
def test_a_clone_with_the_same_weights_answers_the_same(name):
    model = build(name)
    clone = keras.models.clone_model(model)
    assert not {id(weight) for weight in clone.weights} & {id(weight) for weight in model.weights}
    np.testing.assert_allclose(logits(copied_weights(model, clone), x()), logits(model, x()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "quantisation-aware"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_under_mixed_precision_it_stays_near_its_float32_self(name, policy):
    full = build(name)
    keras.config.set_dtype_policy(policy)
    try:
        half = build(name)
    finally:
        keras.config.set_dtype_policy("float32")
    found = np.asarray(logits(copied_weights(full, half), x()), "float32")
    expected = logits(full, x())
    if name in ("arithmetic ensemble", "geometric ensemble", "specialists", "combiner"):
        assert half(x()).dtype == "float32"
    spread = np.ptp(expected)
    assert np.isfinite(found).all()
    # The merge may amplify a rounding where its optimum is flat; half a per cent of bfloat16 is no more than that.
    assert np.abs(found - expected).max() < (0.02 if policy == "mixed_float16" else 0.1) * max(spread, 1.0)


# XLA takes a quarter of a minute over the merge's unrolled steps.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("specialists", "combiner"))) for name in MODELS],
)
def test_xla_and_an_unknown_batch_size_change_nothing(name):
    model = build(name)
    call = tf.function(
        lambda inputs: model(inputs, training=False),
        input_signature=[tf.TensorSpec([None, 6], tf.float32)],
        jit_compile=True,
    )
    for count in (7, 1, 2):
        np.testing.assert_allclose(call(x(count)), logits(model, x(count)), rtol=1e-4, atol=2e-4)


@every_model
def test_predict_takes_any_number_of_items(name):
    model = build(name)
    expected = logits(model, x())
    for batch_size in (1, 3, 7, 100):
        found = model.predict(x(), batch_size=batch_size, verbose=0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-4)


@every_model
def test_threads_that_ask_at_once_get_what_one_gets(name):
    model = build(name)
    batches = [x() * scale for scale in np.linspace(0.5, 1.5, 24).astype("float32")]
    expected = [logits(model, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: logits(model, batch), batches))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_a_head_taken_off_in_one_thread_is_on_in_another():
    """The stripped model shares its layers with the user's, who goes on calling it."""
    from keras_distill.models.forward_pass import logits_model

    model = net(1, head="softmax")
    stripped = logits_model(model)
    whole, bare = logits(model, x(1)), logits(stripped, x(1))
    calls = [model, stripped] * 150
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda call: logits(call, x(1)), calls))
    for position, answer in enumerate(found):
        np.testing.assert_allclose(answer, bare if position % 2 else whole, rtol=1e-5, atol=1e-6)
    assert model.layers[-1].activation is keras.activations.softmax


@every_model
def test_pickled_it_answers_the_same(name):
    model = build(name)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(logits(again, x()), logits(model, x()), rtol=1e-6, atol=1e-6)


# What holds a file or a session open


def open_things(folder):
    from tests.export.hand_made import write_bundle

    write_bundle(folder / "bundle")
    store = targets.label(net(1), x(40), folder / "store")
    store.read([0])
    return {"store": store, "onnx teacher": kd.OnnxTeacher(folder / "bundle/student.onnx")}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    sys.path.insert(0, str(ROOT))
    return open_things(tmp_path_factory.mktemp("opened"))


@pytest.mark.parametrize("name", ["store", "onnx teacher"])
def test_what_holds_a_file_open_is_opened_anew_after_pickling(opened, name):
    thing = opened[name]
    again = pickle.loads(pickle.dumps(thing))
    if name == "store":
        np.testing.assert_array_equal(again.read(np.arange(40)), thing.read(np.arange(40)))
    else:
        images = np.random.default_rng(0).uniform(size=(3, 8, 8, 1)).astype("float32")
        np.testing.assert_array_equal(again.logits(images), thing.logits(images))


@pytest.mark.parametrize("name", ["store", "onnx teacher"])
def test_threads_that_read_at_once_read_what_one_reads(opened, name):
    thing = opened[name]
    if name == "store":
        asks = [np.random.default_rng(seed).integers(0, 40, 9) for seed in range(60)]
        run = thing.read
    else:
        asks = [np.random.default_rng(seed).uniform(size=(2, 8, 8, 1)).astype("float32") for seed in range(60)]
        run = thing.logits
    expected = [run(ask) for ask in asks]
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(run, asks), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


# Layers and numbers that a configuration rebuilds

LAYERS = {
    "linear": lambda: schedules.Linear(4.0, 1.0, 5),
    "cosine": lambda: schedules.Cosine(4.0, 1.0, 5),
    "warm-up": lambda: schedules.WarmUp(2.0, 3),
    "learnt temperature": lambda: schedules.LearntTemperature(3.0),
    "combiner": lambda: specialists.SpecialistCombiner([[0, 2]], 4, steps=3, max_active=1),
    "projector": lambda: Projector(3, [2]),
    "smoothed labels": lambda: losses.SmoothedLabels(0.2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_rebuilt_by_its_configuration(name):
    layer = LAYERS[name]()
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()


@pytest.mark.parametrize("config", [{"max_pixels": 2}, {"max_pixels": 1, "exhaustive": True}])
def test_an_augmentation_is_rebuilt_by_its_configuration_and_draws_the_same(config):
    images = np.random.default_rng(0).uniform(size=(5, 6, 6, 1)).astype("float32")
    augmentation = targets.Augmentation(targets.Shift(**config), seed=3)
    again = targets.Augmentation.from_config(augmentation.get_config())
    ids, views = np.arange(5), np.arange(5) % 3
    np.testing.assert_array_equal(again(images, ids, views), augmentation(images, ids, views))


# Determinism

TRAIN = """
import sys, numpy as np, keras, tensorflow as tf, keras_distill as kd
from keras_distill import losses, specialists, targets
from keras_distill.data import Dataset, Split
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.experimental.enable_op_determinism()
x = np.random.default_rng(0).normal(size=(96, 6)).astype("float32")
y = np.random.default_rng(1).integers(0, 4, 96)
hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
def net(units=4):
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dropout(0.2),
                             keras.layers.Dense(units)])
def distilled(loss):
    distiller = kd.Distiller(net(), net(), loss)
    distiller.compile("adam", hard)
    distiller.fit(x, y, batch_size=16, epochs=2, verbose=0)
    return distiller.student
def mutual():
    learners = kd.DeepMutualLearning([net(), net()])
    learners.compile("adam", hard)
    learners.fit(x, y, batch_size=16, epochs=2, verbose=0)
    return learners
def stored():
    store = targets.label(net(), x, sys.argv[1] + f"/{np.random.randint(10**9)}", teacher_fingerprint="t")
    distiller = kd.Distiller(None, net())
    distiller.compile("adam", hard)
    distiller.fit(targets.attach((x, y), store, batch_size=16, seed=2), epochs=2, verbose=0, shuffle=False)
    return distiller.student
def special():
    return specialists.train(net(), [0, 2], Split(x, y.astype("int32")), num_steps=6, batch_size=16, seed=4)
RUNS = {
    "soft targets": lambda: distilled(losses.SoftTargets(3.0)),
    "hint": lambda: distilled([losses.SoftTargets(3.0), losses.DIST(2.0)]),
    "mutual learning": mutual, "store": stored, "specialist": special,
}
for name, run in RUNS.items():
    weights = []
    for _ in range(2):
        keras.utils.set_random_seed(5)
        weights.append(run().get_weights())
    same = all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    moved = any(np.abs(a).max() > 0 for a in weights[0])
    print(name, "same" if same and moved else "DIFFERS")
"""


@pytest.mark.slow
def test_every_trainer_repeats_itself_bit_for_bit_from_a_seed(tmp_path):
    import os

    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run([sys.executable, "-c", TRAIN, tmp_path], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    ends = dict(line.rsplit(" ", 1) for line in run.stdout.splitlines())
    assert set(ends) == {"soft targets", "hint", "mutual learning", "store", "specialist"}
    assert set(ends.values()) == {"same"}, ends
