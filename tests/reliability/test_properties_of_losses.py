"""What holds of every loss over logits, whatever the numbers: hypothesis looks for the case that breaks it.

The bounds are theorems of others: Gibbs' and Pinsker's inequalities, the data-processing inequality of coarse classes.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from drawn import SHIFTS, TEMPERATURES, logits_of_shape, members, pairs, permutations_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp, softmax

import keras_distill as kd
from keras_distill import losses

LABELS = st.integers(0, 2**31 - 1)
# Each takes (teacher, student, temperature, labels) and gives a value an item; all are zero at equal softmaxes.
OVER_SOFTMAXES = {
    "soft targets": lambda v, z, t, y: losses.soft_targets(v, z, t),
    "top-k of all, uniform": lambda v, z, t, y: losses.top_k_soft_targets(*cut(v, v.shape[-1]), z, t),
    "top-k of all, bucket": lambda v, z, t, y: losses.top_k_soft_targets(*cut(v, v.shape[-1]), z, t, tail="bucket"),
    "a single member": lambda v, z, t, y: losses.member_soft_targets(v[:, None], np.ones((len(v), 1)), z, t),
    "decoupled": lambda v, z, t, y: losses.decoupled_divergence(
        v, z, np.eye(v.shape[-1])[y % v.shape[-1]], t, alpha=1.5, beta=2
    ),
    "standardised": lambda v, z, t, y: losses.LogitStandardization(losses.SoftTargets(t)).per_example(v, z),
    "matched logits": lambda v, z, t, y: losses.logit_matching(v, z),
    "relation of classes": lambda v, z, t, y: losses.inter_class_relation(v, z, t),
}
SHARP = ("soft targets", "top-k of all, uniform", "top-k of all, bucket", "a single member", "decoupled")
every_loss = pytest.mark.parametrize("name", OVER_SOFTMAXES)


def cut(dense, k):
    """The top-k form of dense logits."""
    ids = np.argsort(-dense, axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(dense, ids, axis=-1), ids.astype("int32"), logsumexp(dense, axis=-1)


def value_of(name, teacher, student, temperature, label=0):
    labels = (label + np.arange(len(teacher))) % teacher.shape[-1]
    return np.asarray(OVER_SOFTMAXES[name](teacher, student, temperature, labels))


def spread(logits):
    return float(np.min(np.ptp(logits, axis=-1)))


@every_loss
@given(pair=pairs(), temperature=TEMPERATURES, label=LABELS)
def test_never_negative_and_finite(name, pair, temperature, label):
    values = value_of(name, *pair, temperature, label)
    assert np.isfinite(values).all()
    # 1 − a correlation is a difference of numbers near one.
    assert (values >= (-1e-6 if name == "relation of classes" else 0.0)).all()


@pytest.mark.parametrize("name", SHARP)
@given(pair=pairs(), temperature=TEMPERATURES, label=LABELS)
def test_zero_only_where_the_softmaxes_are_equal(name, pair, temperature, label):
    """Pinsker: KL(p‖q) ≥ ½·‖p − q‖₁². Decoupled weights of at least one only add to it."""
    p, q = (softmax(logits / temperature, axis=-1) for logits in pair)
    bound = 0.5 * temperature**2 * np.abs(p - q).sum(axis=-1) ** 2
    assert (value_of(name, *pair, temperature, label) >= bound * (1 - 1e-6) - 1e-12).all()


@every_loss
@given(pair=pairs(), temperature=TEMPERATURES, shift=SHIFTS, label=LABELS)
def test_zero_where_the_student_is_the_teacher_up_to_a_constant(name, pair, temperature, shift, label):
    teacher = pair[0]
    if name in ("standardised", "relation of classes"):
        # What varies by less than the constants that keep gradients finite counts as not varying.
        assume(spread(softmax(teacher / temperature, axis=-1)) > 1e-2)
        assume(spread(teacher) > 1e-2)
    np.testing.assert_allclose(value_of(name, teacher, teacher + shift, temperature, label), 0.0, atol=1e-6)


@every_loss
@given(pair=pairs(limit=8.0), temperature=TEMPERATURES, shifts=st.tuples(SHIFTS, SHIFTS), label=LABELS)
def test_a_constant_added_to_the_logits_changes_nothing(name, pair, temperature, shifts, label):
    teacher, student = pair
    if name in ("standardised", "relation of classes"):
        assume(min(spread(softmax(logits / temperature, axis=-1)) for logits in pair) > 1e-2)
    expected = value_of(name, teacher, student, temperature, label)
    found = value_of(name, teacher + shifts[0], student + shifts[1], temperature, label)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@every_loss
@given(data=st.data(), pair=pairs(limit=8.0), temperature=TEMPERATURES, label=LABELS)
def test_permuted_classes_and_items_permute_the_values(name, data, pair, temperature, label):
    teacher, student = pair
    if name in ("standardised", "relation of classes"):
        assume(min(spread(softmax(logits / temperature, axis=-1)) for logits in pair) > 1e-2)
    labels = np.random.default_rng(label).integers(0, teacher.shape[-1], len(teacher))
    rows, classes = data.draw(permutations_of(len(teacher))), data.draw(permutations_of(teacher.shape[-1]))
    expected = np.asarray(OVER_SOFTMAXES[name](teacher, student, temperature, labels))[rows]
    # Class c is where `classes` holds c.
    moved = np.argsort(classes)[labels[rows]]
    found = OVER_SOFTMAXES[name](teacher[rows][:, classes], student[rows][:, classes], temperature, moved)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in OVER_SOFTMAXES if name != "relation of classes"])
@given(pair=pairs(limit=8.0), temperature=TEMPERATURES, label=LABELS)
def test_no_gradient_moves_all_logits_alike(name, pair, temperature, label):
    teacher, student = pair
    if name == "standardised":
        assume(spread(student) > 1e-2)
    student = tf.constant(student)
    with tf.GradientTape() as tape:
        tape.watch(student)
        labels = (label + np.arange(len(teacher))) % teacher.shape[-1]
        value = tf.reduce_sum(OVER_SOFTMAXES[name](teacher, student, temperature, labels))
    gradient = tape.gradient(value, student).numpy()
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(axis=-1), 0.0, atol=1e-8 * max(1.0, np.abs(gradient).max()))


@given(pair=pairs(), temperature=TEMPERATURES)
def test_temperature_is_a_scale_of_the_logits_and_of_the_loss(pair, temperature):
    teacher, student = pair
    found = losses.soft_targets(teacher, student, temperature)
    expected = temperature**2 * np.asarray(losses.soft_targets(teacher / temperature, student / temperature, 1.0))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@given(pair=pairs(), temperature=TEMPERATURES)
def test_soft_targets_are_the_divergence_in_float64(pair, temperature):
    log_p, log_q = (log_softmax(logits / temperature, axis=-1) for logits in pair)
    expected = temperature**2 * np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)
    np.testing.assert_allclose(losses.soft_targets(*pair, temperature), expected, rtol=1e-8, atol=1e-10)


@given(pair=pairs(), temperature=TEMPERATURES, label=LABELS)
def test_decoupled_parts_add_up_to_soft_targets(pair, temperature, label):
    """T²·(TCKD + (1 − p)·NCKD), p the teacher's share of the target class."""
    teacher, student = pair
    labels = (label + np.arange(len(teacher))) % teacher.shape[-1]
    targets = np.eye(teacher.shape[-1])[labels]
    of_target, of_others = (
        np.asarray(losses.decoupled_divergence(teacher, student, targets, temperature, alpha=alpha, beta=1.0 - alpha))
        for alpha in (1.0, 0.0)
    )
    rest = 1.0 - np.sum(softmax(teacher / temperature, axis=-1) * targets, axis=-1)
    whole = np.asarray(losses.soft_targets(teacher, student, temperature))
    np.testing.assert_allclose(of_target + rest * of_others, whole, rtol=1e-6, atol=1e-8)


# Top-k


@pytest.mark.parametrize("tail", ["uniform", "bucket", "renormalise"])
@given(pair=pairs(), temperature=TEMPERATURES)
def test_top_k_of_all_classes_is_the_dense_loss(tail, pair, temperature):
    teacher, student = pair
    found = losses.top_k_soft_targets(*cut(teacher, teacher.shape[-1]), student, temperature, tail=tail)
    expected = losses.soft_targets(teacher, student, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


@given(data=st.data(), pair=pairs(min_classes=3, limit=8.0))
def test_coarser_targets_ask_for_less(data, pair):
    """At T = 1 the bucket is the dense loss of merged classes: no more than it, by the data-processing inequality."""
    teacher, student = pair
    k = data.draw(st.integers(1, teacher.shape[-1] - 1))
    bucket = np.asarray(losses.top_k_soft_targets(*cut(teacher, k), student, 1.0, tail="bucket"))
    uniform = np.asarray(losses.top_k_soft_targets(*cut(teacher, k), student, 1.0, tail="uniform"))
    dense = np.asarray(losses.soft_targets(teacher, student, 1.0))
    assert (bucket <= dense + 1e-9).all()
    assert (bucket <= uniform + 1e-9).all()


@pytest.mark.parametrize("tail", ["uniform", "bucket", "renormalise"])
@given(data=st.data(), pair=pairs(min_classes=3, limit=8.0), temperature=TEMPERATURES, shift=SHIFTS)
def test_top_k_targets_do_not_see_constants_or_the_order_of_the_k(tail, data, pair, temperature, shift):
    teacher, student = pair
    k = data.draw(st.integers(1, teacher.shape[-1] - 1))
    kept, ids, normalizer = cut(teacher, k)
    expected = np.asarray(losses.top_k_soft_targets(kept, ids, normalizer, student, temperature, tail=tail))
    assert (expected >= 0.0).all()
    order = data.draw(permutations_of(k))
    found = losses.top_k_soft_targets(
        kept[:, order] + shift, ids[:, order], normalizer + shift, student - shift, temperature, tail=tail
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


# Members


@given(drawn=members(), temperature=TEMPERATURES)
def test_members_teach_the_mean_of_their_softmaxes(drawn, temperature):
    logits, weights, student = drawn
    target = np.einsum("m,nmc->nc", weights, softmax(logits / temperature, axis=-1))
    log_target = logsumexp(log_softmax(logits / temperature, axis=-1) + np.log(weights)[:, None], axis=1)
    expected = temperature**2 * np.sum(target * (log_target - log_softmax(student / temperature, axis=-1)), axis=-1)
    per_row = np.broadcast_to(weights, logits.shape[:2])
    found = losses.member_soft_targets(logits, per_row, student, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


@given(data=st.data(), drawn=members(), temperature=TEMPERATURES)
def test_members_have_no_order_and_one_of_weight_zero_is_absent(data, drawn, temperature):
    logits, weights, student = drawn
    per_row = np.broadcast_to(weights, logits.shape[:2])
    expected = losses.member_soft_targets(logits, per_row, student, temperature)
    order = data.draw(permutations_of(len(weights)))
    found = losses.member_soft_targets(logits[:, order], per_row[:, order], student, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)
    stranger = data.draw(logits_of_shape((len(logits), 1, logits.shape[-1])))
    with_stranger = np.concatenate([logits, stranger], axis=1), np.pad(per_row, ((0, 0), (0, 1)))
    found = losses.member_soft_targets(*with_stranger, student, temperature)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11)


@given(drawn=members(), temperature=TEMPERATURES)
def test_an_ensembles_loss_is_no_more_than_the_mean_of_its_members(drawn, temperature):
    """KL(·‖q) is convex in its first argument."""
    logits, weights, student = drawn
    together = losses.member_soft_targets(logits, np.broadcast_to(weights, logits.shape[:2]), student, temperature)
    alone = [np.asarray(losses.soft_targets(logits[:, m], student, temperature)) for m in range(len(weights))]
    bound = np.einsum("m,mn->n", weights, alone)
    assert (np.asarray(together) <= bound * (1 + 1e-9) + 1e-9).all()


# Sigmoids, numbers


@given(pair=pairs(min_classes=1), temperature=TEMPERATURES)
def test_binary_targets_are_bounded_from_below_and_zero_at_equality(pair, temperature):
    teacher, student = pair
    values = np.asarray(losses.binary_soft_targets(teacher, student, temperature))
    p, q = (1.0 / (1.0 + np.exp(-logits / temperature)) for logits in pair)
    # Pinsker for two classes: ‖·‖₁ is twice the difference.
    bound = temperature**2 * np.mean(2.0 * (p - q) ** 2, axis=-1)
    assert (values >= bound * (1 - 1e-6) - 1e-12).all()
    np.testing.assert_allclose(losses.binary_soft_targets(teacher, teacher, temperature), 0.0, atol=1e-12)
    flipped = losses.binary_soft_targets(-teacher, -student, temperature)
    np.testing.assert_allclose(flipped, values, rtol=1e-7, atol=1e-9)


@given(pair=pairs(min_classes=1), delta=st.floats(0.1, 50.0))
def test_hubers_regression_lies_between_its_square_and_its_line(pair, delta):
    teacher, student = pair
    difference = np.abs(teacher - student)
    values = np.asarray(losses.regression_targets(teacher, student, delta))
    squares = np.asarray(losses.regression_targets(teacher, student))
    np.testing.assert_allclose(squares, 0.5 * np.mean(difference**2, axis=-1), rtol=1e-9, atol=1e-12)
    assert (values <= squares + 1e-9).all()
    assert (values >= np.mean(delta * difference - 0.5 * delta**2, axis=-1) - 1e-9).all()


# Items that relate to each other


def features_of(pair):
    return pair[0][:, :3], pair[1]


RELATIONS = {
    "distances": losses.distance_relation,
    "angles": losses.angle_relation,
    "similarities": losses.similarity_preserving,
}


@pytest.mark.parametrize("name", RELATIONS)
@settings(max_examples=settings().max_examples // 3)
@given(data=st.data(), pair=pairs(min_rows=3, max_rows=6, min_classes=3, limit=4.0))
def test_relations_follow_the_order_of_the_items_and_leave_out_weights_of_zero(name, data, pair):
    relation, (teacher, student) = RELATIONS[name], features_of(pair)
    count = len(teacher)
    values = np.asarray(relation(teacher, student))
    assert np.isfinite(values).all()
    assert (values >= 0.0).all()
    order = data.draw(permutations_of(count))
    # Whether two items count as equal is a threshold on rounding: stay away from it.
    distances = [np.linalg.norm(part[:, None] - part[None], axis=-1) for part in (teacher, student)]
    assume(all(each[~np.eye(count, dtype=bool)].min() > 1e-2 * max(each.max(), 1e-2) for each in distances))
    np.testing.assert_allclose(relation(teacher[order], student[order]), values[order], rtol=1e-5, atol=1e-7)
    num_kept = data.draw(st.integers(2, count))
    weights = np.float64([1.0] * num_kept + [0.0] * (count - num_kept))
    weighed = np.asarray(relation(teacher, student, weights))[:num_kept]
    np.testing.assert_allclose(weighed, relation(teacher[:num_kept], student[:num_kept]), rtol=1e-5, atol=1e-7)


# Weights of items, through the Distiller


# Built once, and not while the module is imported.
@functools.cache
def distiller_of(name):
    student = keras.Sequential([keras.Input((4,)), keras.layers.Activation("linear")])
    distiller = kd.Distiller(None, student, WEIGHED[name], student_loss_weight=0.3)
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("sgd", hard, jit_compile=False)
    return distiller


WEIGHED = {
    "soft targets": losses.SoftTargets(3.0),
    "decoupled": losses.DecoupledKD(2.0),
    "standardised": losses.LogitStandardization(),
    "matched logits": losses.LogitMatching(),
}


def summed(name, teacher, student, labels, weights):
    """The objective times the number of items: what all items add to the gradient."""
    y = {"labels": labels, "soft_targets": teacher.astype("float32")}
    distiller = distiller_of(name)
    outputs = distiller(student.astype("float32"), training=True)
    loss = distiller.compute_loss(student.astype("float32"), y, outputs, weights, training=True)
    return float(loss) * len(teacher)


@pytest.mark.parametrize("name", WEIGHED)
@given(data=st.data(), pair=pairs(min_rows=2, max_rows=5, min_classes=4, max_classes=4, limit=6.0))
def test_weight_zero_is_an_item_removed_and_weight_two_an_item_twice(name, data, pair):
    teacher, student = pair
    count = len(teacher)
    labels = np.arange(count) % 4
    times = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    weighed = summed(name, teacher, student, labels, times.astype("float32"))
    if not times.sum():
        assert weighed == 0.0
        return
    repeated = np.repeat(np.arange(count), times)
    apart = summed(name, teacher[repeated], student[repeated], labels[repeated], None)
    np.testing.assert_allclose(weighed, apart, rtol=2e-4, atol=1e-5)
