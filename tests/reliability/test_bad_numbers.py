"""NaN, infinities, huge logits, nothing to learn from: what happens is defined, and is what `docs/reliability.md` says.

What its own room tests is not tested again: the table there names those tests.
"""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill import losses
from keras_distill.specialists import merge
from keras_distill.specialists.clustering import cluster_classes
from keras_distill.specialists.merge import check_class_sets
from keras_distill.targets.labelling import label
from keras_distill.targets.manifest import Manifest
from keras_distill.targets.shards import create, finish, write_shard
from keras_distill.targets.store import SoftTargetStore
from tests.contract import test_every_loss as contract
from tests.contract.test_every_loss import EVERY, OVER_FEATURES, OVER_LOGITS

NUM_CLASSES = 3
ON_LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
every_loss = pytest.mark.parametrize("name", EVERY)


def net(seed=0, num_classes=NUM_CLASSES, dtype=None):
    kernel = keras.initializers.GlorotUniform(seed)
    layer = layers.Dense(num_classes, kernel_initializer=kernel, dtype=dtype)
    return keras.Sequential([keras.Input((4,)), layer])


def items(count=24, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 4)).astype("float32"), generator.integers(0, NUM_CLASSES, count)


def distiller_of(teacher, student, loss=None, optimizer=None, **options):
    distiller = kd.Distiller(teacher, student, loss or losses.SoftTargets(2.0), **options)
    distiller.compile(optimizer or keras.optimizers.SGD(0.1), ON_LOGITS, jit_compile=False)
    return distiller


def fit(distiller, *data, **options):
    return distiller.fit(*data, **{"batch_size": 8, "verbose": 0, "shuffle": False} | options).history


def copies(model):
    return [weight.copy() for weight in model.get_weights()]


def assert_unchanged(model, before):
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def outputs_of(name, values):
    """Teacher's and student's outputs of the kind that a loss takes, filled from two functions of a shape."""
    shape = (6, 2, 2, 3) if name in OVER_FEATURES else (6, 4)
    return [value(shape).astype("float32") for value in values]


def value_and_gradient(loss, teacher, student, **context):
    student = tf.convert_to_tensor(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        values = loss.per_example(teacher, student, **context)
        total = tf.reduce_sum(values)
    gradient = tape.gradient(total, student)
    return np.asarray(values), np.zeros(1) if gradient is None else np.asarray(gradient)


# NaN and infinities


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_bad_input_stops_the_first_batch_and_leaves_the_student_as_it_was(value):
    x, y = items()
    x[3, 1] = value
    student = net(1)
    before = copies(student)
    with pytest.raises(ValueError, match=r"teacher's logits must be finite.*inputs"):
        fit(distiller_of(net(2), student), x, y)
    assert_unchanged(student, before)


def test_a_bad_input_of_a_later_batch_is_named_at_the_end_of_its_epoch():
    x, y = items()
    x[20, 0] = np.nan
    with pytest.raises(ValueError, match="teacher's logits must be finite; got NaN or infinite values"):
        fit(distiller_of(net(2), net(1)), x, y, epochs=3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_student_whose_weights_are_not_finite_is_refused_by_the_name_of_the_weight(value):
    student = net(1)
    kernel, bias = student.get_weights()
    kernel[0, 0] = value
    student.set_weights([kernel, bias])
    with pytest.raises(
        ValueError, match=r"the student's weights must be finite; got NaN or infinite values in .*kernel"
    ):
        fit(distiller_of(net(2), student), *items())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sample_weights_that_are_not_finite_are_refused_before_training(value):
    x, y = items()
    weights = np.ones(len(x), "float32")
    weights[5] = value
    student = net(1)
    before = copies(student)
    with pytest.raises(ValueError, match="sample_weight must be finite; got 1 of 24 values NaN or infinite"):
        fit(distiller_of(net(2), student), x, y, sample_weight=weights)
    assert_unchanged(student, before)


def test_bad_stored_targets_are_named_as_a_teachers():
    x, y = items()
    soft_targets = np.zeros((24, NUM_CLASSES), "float32")
    soft_targets[0, 0] = np.inf
    student = net(1)
    before = copies(student)
    with pytest.raises(ValueError, match="teacher's logits must be finite"):
        fit(distiller_of(None, student), x, {"labels": y, "soft_targets": soft_targets})
    assert_unchanged(student, before)


def test_a_student_that_diverges_is_reported_as_nan_and_keras_own_guard_stops_it():
    x, y = items()
    distiller = distiller_of(net(2), net(1), optimizer=keras.optimizers.SGD(1e38))
    history = fit(distiller, x, y, epochs=5, callbacks=[keras.callbacks.TerminateOnNaN()])
    assert not np.isfinite(history["loss"][-1])
    assert len(history["loss"]) < 5


def test_in_a_graph_a_bad_row_of_a_merge_spoils_itself_alone():
    """Eagerly it is refused; a graph has no values to look at."""
    generator = np.random.default_rng(0)
    class_sets = [[0, 1], [1, 2, 3]]
    parts = [generator.normal(size=(4, width)).astype("float32") for width in (5, 3, 4)]
    compiled = tf.function(lambda *parts: merge(parts[0], parts[1:], class_sets))
    clean = compiled(*parts).numpy()
    for part in parts:
        part[2, 0] = np.nan
    spoilt = compiled(*parts).numpy()
    np.testing.assert_array_equal(spoilt[[0, 1, 3]], clean[[0, 1, 3]])
    assert np.isnan(spoilt[2]).all()


def test_a_member_of_nan_is_named_when_its_ensemble_teaches_and_when_it_labels(tmp_path):
    broken = net(3)
    broken.set_weights([weight * np.nan for weight in broken.get_weights()])
    ensemble = kd.Ensemble([net(2), broken])
    x, y = items()
    with pytest.raises(ValueError, match="teacher's logits must be finite"):
        fit(distiller_of(ensemble, net(1)), x, y)
    with pytest.raises(ValueError, match=r"teacher's logits must be finite.*weights"):
        label(ensemble, x, tmp_path / "store", members=True)
    assert not list((tmp_path / "store" / "shards").iterdir())


# Huge logits, half precision


@every_loss
@pytest.mark.parametrize("scale", [1e4, 4e4])
def test_logits_and_features_of_ten_thousands_are_finite_with_their_gradients(name, scale):
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    signs = lambda shape: scale * generator.choice([-1.0, 1.0], shape)  # noqa: E731
    teacher, student = outputs_of(name, [signs, signs])
    loss = EVERY[name]()
    loss.build(teacher, student)
    values, gradient = value_and_gradient(loss, teacher, student)
    assert np.isfinite(values).all()
    assert (values >= 0.0).all()
    assert np.isfinite(gradient).all()


def test_soft_targets_of_ten_thousands_are_the_value_in_float64():
    teacher = np.float32([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [1e4, 9999.0, 9998.0]])
    student = np.float32([[-1e4, 1e4, 0.0], [1e4, -1e4, 1e4], [9999.0, 1e4, 9998.0]])
    for temperature in (1.0, 20.0):
        log_p, log_q = (scipy.special.log_softmax(z.astype("float64") / temperature, -1) for z in (teacher, student))
        expected = temperature**2 * np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
        # Near 1e4 float32 tells steps of 1e-3 apart.
        np.testing.assert_allclose(losses.soft_targets(teacher, student, temperature), expected, rtol=1e-3)


def mixed_history(teacher, temperature, epochs, rate):
    """A float16 student's losses, its optimizer's final loss scale, and how far its weights moved."""
    x, y = items(64)
    student = net(1, dtype=keras.DTypePolicy("mixed_float16"))
    before = copies(student)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(rate))
    distiller = distiller_of(teacher, student, losses.SoftTargets(temperature), optimizer, student_loss_weight=0.0)
    history = fit(distiller, x, y, batch_size=64, epochs=epochs)["distillation_loss"]
    moved = max(np.abs(a - b).max() for a, b in zip(student.get_weights(), before, strict=True))
    return history, float(optimizer.dynamic_scale.numpy()), moved


def test_a_high_temperature_alone_overflows_nothing_in_float16():
    """T² is 10⁴, and would be beyond float16 with any divergence above 6: but the loss is in float32."""
    history, scale, moved = mixed_history(net(2), temperature=100.0, epochs=30, rate=0.5)
    assert scale == 32768.0
    assert moved > 1e-2
    assert history[-1] < 0.5 * history[0]


def test_gradients_that_overflow_float16_are_skipped_until_the_loss_scale_fits():
    teacher = net(2)
    teacher.set_weights([1e4 * weight for weight in teacher.get_weights()])
    history, scale, moved = mixed_history(teacher, temperature=100.0, epochs=30, rate=1e-2)
    assert np.isfinite(history).all()
    assert scale < 32768.0
    assert 1e-3 < moved < np.inf
    assert history[-1] < history[0]


# Few items


# A loss over features alone leaves the head as it is, and Keras says so.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@every_loss
def test_a_last_batch_of_one_item_counts_as_one_item(name):
    """Nine items in batches of eight: the epoch's figure is the mean over items of what the two batches lose."""
    x, y = contract.items(9)
    loss, teacher, student = contract.built(name), contract.net(1), contract.net(2)
    first, last = (
        contract.expected_over_items(name, loss, teacher, student, x[part], y[part])
        for part in (slice(0, 8), slice(8, 9))
    )
    labels = contract.labels_for(name, y)
    data = labels if name in OVER_FEATURES else {"labels": labels, "soft_targets": np.asarray(teacher(x))}
    distiller = kd.Distiller(teacher, student, loss, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.0), jit_compile=False, run_eagerly=True)
    found = distiller.fit(x, data, batch_size=8, shuffle=False, verbose=0).history["distillation_loss"]
    np.testing.assert_allclose(found, [(8 * first + last) / 9], rtol=1e-4)


def test_a_store_of_one_item_over_a_batch_holds_its_last_row(tmp_path):
    teacher, (x, _) = net(2), items(9)
    store = label(teacher, x, tmp_path / "store", batch_size=8, dtype="float32")
    np.testing.assert_allclose(store.read(np.arange(9)), teacher(x), rtol=1e-5, atol=1e-6)


def test_one_example_is_enough_to_train_to_label_and_to_be_read(tmp_path):
    x, y = items(1)
    teacher, student = net(2), net(1)
    store = label(teacher, x, tmp_path / "store", dtype="float32")
    assert store.read([0]).shape == (1, NUM_CLASSES)
    history = fit(distiller_of(teacher, student), x, y, epochs=20)["distillation_loss"]
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize("num_items", [0, 1])
def test_groups_of_classes_need_two_items(num_items):
    with pytest.raises(ValueError, match=f"those of at least 2 items; got {num_items}"):
        cluster_classes(np.zeros((num_items, 5)), 2)


# Nothing that counts


@every_loss
def test_weights_of_zero_lose_nothing_and_move_nothing(name):
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    teacher, student = outputs_of(name, [lambda shape: generator.normal(size=shape)] * 2)
    loss = EVERY[name]()
    loss.build(teacher, student)
    context = {"item_weights": tf.zeros(6)} if "item_weights" in loss.reads else {}
    values, gradient = value_and_gradient(loss, teacher, student, **context)
    assert np.isfinite(values).all()
    assert np.isfinite(gradient).all()
    x, y = items()
    if name in OVER_FEATURES or "regression" in name:
        return
    model = net(1, 4)
    before = copies(model)
    zero = np.zeros(len(x), "float32")
    distiller = distiller_of(net(2, 4), model, EVERY[name]())
    history = fit(distiller, x, y, sample_weight=zero)
    assert history["loss"] == [0.0]
    assert history["distillation_loss"] == [0.0]
    assert_unchanged(model, before)


def tagger(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,), dtype="int32")
    hidden = layers.Embedding(7, 6, mask_zero=True)(inputs)
    return keras.Model(inputs, layers.Dense(NUM_CLASSES)(hidden))


@pytest.mark.parametrize(
    "loss", [losses.SoftTargets(2.0), losses.DIST(2.0), losses.DecoupledKD(2.0)], ids=lambda loss: type(loss).__name__
)
def test_a_batch_whose_tokens_are_all_masked_loses_nothing_and_moves_nothing(loss):
    tokens, labels = np.zeros((8, 5), "int32"), np.zeros((8, 5), "int32")
    student = tagger(1)
    before = copies(student)
    history = fit(distiller_of(tagger(2), student, loss), tokens, labels)
    assert history["loss"] == [0.0]
    assert history["distillation_loss"] == [0.0]
    assert_unchanged(student, before)


def test_an_item_whose_tokens_are_all_masked_is_as_if_absent():
    tokens = np.random.default_rng(0).integers(1, 7, (4, 5)).astype("int32")
    labels = tokens % NUM_CLASSES
    found = []
    for padded in (tokens, np.concatenate([tokens, np.zeros_like(tokens[:2])])):
        student = tagger(1)
        targets = np.concatenate([labels, np.zeros((len(padded) - 4, 5), "int32")])
        fit(distiller_of(tagger(2), student), padded, targets, batch_size=8)
        found.append(student.get_weights())
    for alone, beside in zip(*found, strict=True):
        np.testing.assert_allclose(beside, alone, rtol=1e-5, atol=1e-7)


# One class


def test_one_class_is_a_sigmoids_affair_everywhere(tmp_path):
    x, _ = items()
    one = net(2, 1)
    with pytest.raises(ValueError, match="BinarySoftTargets"):
        kd.Distiller(one, net(1, 1), losses.SoftTargets(2.0))
    assert kd.Ensemble([one, net(3, 1)])(x).shape == (24, 1)
    np.testing.assert_array_equal(kd.Ensemble([one, net(3, 1)])(x), np.zeros((24, 1)))
    store = label(one, x, tmp_path / "store", dtype="float32")
    np.testing.assert_allclose(store.read(np.arange(24)), one(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(store.soft_targets([0, 1], 2.0), np.ones((2, 1)))
    with pytest.raises(ValueError, match="leave out at least one of the 1 classes"):
        check_class_sets([[0]], 1)


# A hundred thousand classes

MANY = 100_000


def many_logits(rows, seed):
    return np.random.default_rng(seed).normal(scale=3.0, size=(rows, MANY)).astype("float32")


@pytest.mark.parametrize("name", OVER_LOGITS)
def test_a_hundred_thousand_classes_have_finite_losses_and_gradients(name):
    loss = OVER_LOGITS[name]()
    values, gradient = value_and_gradient(loss, many_logits(2, 0), many_logits(2, 1))
    assert np.isfinite(values).all()
    assert (values >= 0.0).all()
    assert np.isfinite(gradient).all()


def test_soft_targets_of_a_hundred_thousand_classes_are_the_value_in_float64():
    teacher, student = many_logits(3, 0), many_logits(3, 1)
    log_p, log_q = (scipy.special.log_softmax(z.astype("float64") / 4.0, -1) for z in (teacher, student))
    expected = 16.0 * np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
    np.testing.assert_allclose(losses.soft_targets(teacher, student, 4.0), expected, rtol=1e-4)
    ids = np.argsort(-teacher, axis=-1)[:, :16].astype("int32")
    kept = np.take_along_axis(teacher, ids, axis=-1)
    normalizer = scipy.special.logsumexp(teacher.astype("float64"), axis=-1)
    left = np.log1p(-np.exp(kept.astype("float64") - normalizer[:, None]).sum(-1)) + normalizer - np.log(MANY - 16)
    dense = np.repeat(left[:, None], MANY, axis=1)
    np.put_along_axis(dense, ids, kept, axis=-1)
    log_p = scipy.special.log_softmax(dense / 4.0, -1)
    expected = 16.0 * np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
    found = losses.top_k_soft_targets(kept, ids, normalizer.astype("float32"), student, 4.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_store_keeps_the_last_of_a_hundred_thousand_classes(tmp_path):
    manifest = Manifest(kind="top_k", num_items=2, num_classes=MANY, top_k=2)
    create(tmp_path / "store", manifest)
    rows = np.zeros(2, manifest.row_dtype)
    rows["top_k_ids"] = [[MANY - 1, 0], [65_536, MANY - 2]]
    rows["top_k_logits"], rows["log_tail"] = [[3.0, 1.0], [2.0, 1.0]], [12.0, 12.0]
    write_shard(tmp_path / "store", manifest, 0, rows)
    finish(tmp_path / "store", manifest)
    store = SoftTargetStore.open(tmp_path / "store")
    np.testing.assert_array_equal(store.read([0, 1])["top_k_ids"], [[MANY - 1, 0], [65_536, MANY - 2]])
    asked = store.soft_targets([0], temperature=2.0)
    total = asked["probabilities"].sum(-1) + asked["tail_probability"]
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_sets_of_half_of_a_hundred_thousand_classes_are_checked_and_merged_at_once():
    """Counting each class by going through the set again would take hours."""
    half = list(range(0, MANY, 2))
    assert check_class_sets([half], MANY) == [half]
    with pytest.raises(ValueError, match="hold each class once; got 7 2 times"):
        check_class_sets([[*range(MANY // 2), 7]], MANY)
    generalist = many_logits(1, 0)
    specialist = np.random.default_rng(1).normal(size=(1, len(half) + 1)).astype("float32")
    found = np.asarray(merge(generalist, [specialist], [half]), "float64")[0]
    p, s = (
        scipy.special.softmax(generalist[0].astype("float64")),
        scipy.special.softmax(specialist[0].astype("float64")),
    )
    inside = (p[half] + s[:-1]) / 2
    np.testing.assert_allclose(np.exp(found[half]), inside, rtol=1e-3)
    np.testing.assert_allclose(np.exp(found).sum(), 1.0, rtol=1e-4)


def test_similarities_that_no_memory_holds_are_refused_before_they_are_made():
    with pytest.raises(ValueError, match=r"num_classes.*got 1000000.*8,000 GB"):
        cluster_classes(np.zeros((2, 1_000_000), "float32"), 2)
