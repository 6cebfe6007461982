"""The top-k loss against dense targets filled in by hand, in float64 by SciPy."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from backend import dtype_of, gradient, under_xla

from keras_distill.losses import SoftTargets, top_k_soft_targets
from keras_distill.losses.soft_targets import soft_targets

POLICIES = ["uniform", "bucket", "renormalise"]


def cut(dense, k, dtype="float64"):
    """The top-k form of dense logits."""
    ids = np.argsort(-dense, axis=-1)[..., :k]
    logits = np.take_along_axis(dense, ids, axis=-1)
    return logits.astype(dtype), ids.astype("int32"), scipy.special.logsumexp(dense, axis=-1).astype(dtype)


def filled(logits, ids, normalizer, num_classes, temperature, tail):
    """The teacher's dense distribution under a policy, float64; for "bucket" only its classes at `ids` count."""
    rest = np.exp(normalizer) - np.exp(logits).sum(axis=-1)
    num_tail = num_classes - ids.shape[-1]
    dense = np.full((*ids.shape[:-1], num_classes), -np.inf)
    if num_tail and tail != "renormalise":
        dense[:] = np.log(rest / num_tail)[..., None]
    np.put_along_axis(dense, ids, logits, axis=-1)
    return scipy.special.softmax(dense / temperature, axis=-1)


def reference(logits, ids, normalizer, student, temperature, tail):
    p = filled(logits, ids, normalizer, student.shape[-1], temperature, tail)
    q = scipy.special.softmax(student / temperature, axis=-1)
    if tail == "bucket":
        p, q = (np.take_along_axis(x, ids, axis=-1) for x in (p, q))
        p, q = (np.concatenate([x, 1 - x.sum(axis=-1, keepdims=True)], axis=-1) for x in (p, q))
    return temperature**2 * scipy.stats.entropy(p, q, axis=-1)


@pytest.fixture
def logits():
    generator = np.random.default_rng(3)
    return generator.normal(scale=2.0, size=(40, 12)), generator.normal(scale=2.0, size=(40, 12))


def test_loss_has_the_value_worked_out_by_hand():
    """Teacher keeps e^(2 - 2.5) = 0.60653; the other two classes share 0.39347; the student gives each a third."""
    loss = top_k_soft_targets([[2.0]], [[0]], [2.5], [[0.0, 0.0, 0.0]], 1.0)
    by_hand = 0.60653 * np.log(0.60653 * 3) + 0.39347 * np.log(0.196735 * 3)
    np.testing.assert_allclose(loss, [by_hand], atol=1e-5)
    bucket = top_k_soft_targets([[2.0]], [[0]], [2.5], [[0.0, 0.0, 0.0]], 1.0, tail="bucket")
    np.testing.assert_allclose(bucket, [0.60653 * np.log(0.60653 * 3) + 0.39347 * np.log(0.39347 * 1.5)], atol=1e-5)
    alone = top_k_soft_targets([[2.0]], [[0]], [2.5], [[0.0, 0.0, 0.0]], 1.0, tail="renormalise")
    np.testing.assert_allclose(alone, [np.log(3.0)], atol=1e-6)


@pytest.mark.parametrize("tail", POLICIES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_loss_equals_scipys_relative_entropy_of_the_filled_row(logits, tail, temperature):
    teacher, student = logits
    top = cut(teacher, 4)
    expected = reference(*top, student, temperature, tail)
    np.testing.assert_allclose(top_k_soft_targets(*top, student, temperature, tail=tail), expected, rtol=1e-8)
    single = [values.astype("float32") if values.dtype == "float64" else values for values in (*top, student)]
    found = top_k_soft_targets(*single, temperature, tail=tail)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
    assert dtype_of(found) == "float32"


@pytest.mark.parametrize("tail", POLICIES)
def test_gradient_is_temperature_times_the_difference_of_the_distributions(logits, tail):
    teacher, student = logits
    top, temperature = cut(teacher, 4), 3.0
    found = gradient(lambda student: top_k_soft_targets(*top, student, temperature, tail=tail), student)
    q = scipy.special.softmax(student / temperature, axis=-1)
    p = filled(*top, 12, temperature, tail)
    if tail == "bucket":
        # Outside the k classes the target follows the student's own division of the bucket.
        in_top = np.zeros_like(p, bool)
        np.put_along_axis(in_top, top[1], True, axis=-1)
        left = np.where(in_top, 0.0, p).sum(axis=-1, keepdims=True)
        p = np.where(in_top, p, q * left / np.where(in_top, 0.0, q).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(found, temperature * (q - p), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("tail", POLICIES)
def test_gradient_is_weighed_by_what_comes_from_above(logits, tail):
    teacher, student = logits
    top = cut(teacher, 4)
    weights = np.linspace(0.0, 2.0, 40)
    each = gradient(lambda student: top_k_soft_targets(*top, student, 2.0, tail=tail), student)
    weighed = gradient(lambda student: top_k_soft_targets(*top, student, 2.0, tail=tail) * weights, student)
    np.testing.assert_allclose(weighed, each * weights[:, None], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tail", POLICIES)
@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_top_k_of_all_classes_is_the_dense_loss(logits, tail, temperature):
    teacher, student = logits
    top = cut(teacher, 12)
    found = top_k_soft_targets(*top, student, temperature, tail=tail)
    np.testing.assert_allclose(found, soft_targets(teacher, student, temperature), rtol=1e-9)


@pytest.mark.parametrize("tail", POLICIES)
@pytest.mark.parametrize("seed", range(5))
def test_loss_is_never_negative_though_stored_logits_are_rounded(tail, seed):
    """float16 rounding may leave the k classes more than everything; a naive sparse divergence goes below zero."""
    generator = np.random.default_rng(seed)
    teacher = generator.normal(scale=[[0.1], [1.0], [5.0], [20.0]], size=(200, 4, 30))
    top, ids, normalizer = cut(teacher, 6)
    top = top.astype("float16").astype("float32")
    assert (np.exp(top - normalizer[..., None]).sum(axis=-1) > 1.0).any()
    for student in (teacher, generator.normal(scale=5.0, size=teacher.shape)):
        for temperature in (0.5, 1.0, 10.0):
            loss = top_k_soft_targets(
                top, ids, normalizer.astype("float32"), student.astype("float32"), temperature, tail=tail
            )
            assert np.all(np.asarray(loss) >= 0.0)
            assert np.all(np.isfinite(loss))


@pytest.mark.parametrize("tail", ["uniform", "bucket"])
def test_loss_is_zero_where_the_student_is_the_filled_teacher(tail):
    teacher = np.array([[3.0, 1.0, -1.0, -1.0, -1.0]])
    for temperature in (1.0, 7.0):
        np.testing.assert_allclose(
            top_k_soft_targets(*cut(teacher, 2), teacher + 9.0, temperature, tail=tail), 0, atol=1e-9
        )


def test_a_bucket_of_almost_nothing_is_not_lost_to_rounding():
    """The student leaves e^-40 to the bucket: float32 shares of the k classes sum to exactly one."""
    student = np.array([[20.0, 20.0, -20.0, -20.0]], "float32")
    top = np.array([[1.0, 1.0]], "float32"), np.array([[0, 1]]), np.array([1.0 + np.log(4.0)], "float32")
    expected = reference(
        *(np.asarray(values, "float64") if i != 1 else values for i, values in enumerate(top)),
        student.astype("float64"),
        1.0,
        "uniform",
    )
    bucket = top_k_soft_targets(*top, student, 1.0, tail="bucket")
    # Half the mass on a bucket that has 2·e^-40 of the student's 2 + 2·e^-40.
    np.testing.assert_allclose(bucket, [0.5 * np.log(0.5) + 0.5 * (np.log(0.5) + 40.0)], rtol=1e-5)
    np.testing.assert_allclose(top_k_soft_targets(*top, student, 1.0), expected, rtol=1e-5)


@pytest.mark.parametrize("tail", POLICIES)
def test_extreme_logits_stay_finite_with_their_gradients(tail):
    student = np.float32([[1e4, -1e4, 0.0, 5.0]])

    def loss(student):
        return top_k_soft_targets([[1e4, 0.0]], [[1, 2]], [1e4], student, 1.0, tail=tail)

    assert np.isfinite(loss(student)).all()
    np.testing.assert_allclose(gradient(loss, student)[0, :2], [1.0, -1.0], atol=1e-6)


@pytest.mark.parametrize("tail", POLICIES)
def test_loss_survives_half_precision_sequences_and_compilation(tail):
    generator = np.random.default_rng(0)
    teacher = generator.normal(size=(2, 3, 9)).astype("float32")
    student = generator.normal(size=(2, 3, 9)).astype("float32")
    logits, ids, normalizer = cut(teacher, 4, "float32")
    expected = reference(
        logits.astype("float64"), ids, normalizer.astype("float64"), student.astype("float64"), 2.0, tail
    )
    function = under_xla(lambda student: top_k_soft_targets(logits, ids, normalizer, student, 2.0, tail=tail))
    np.testing.assert_allclose(function(student), expected, rtol=1e-4, atol=1e-5)
    half = top_k_soft_targets(logits, ids, normalizer, keras.ops.cast(student, "float16"), 2.0, tail=tail)
    assert dtype_of(half) == "float32"
    assert half.shape == (2, 3)
    np.testing.assert_allclose(half, expected, atol=2e-2)


def test_the_object_chooses_by_the_mapping_and_keeps_its_policy(logits):
    teacher, student = logits
    top = dict(zip(["top_k_logits", "top_k_ids", "log_normalizer"], cut(teacher, 4), strict=True))
    for tail in POLICIES:
        loss = SoftTargets.from_config(SoftTargets(2.0, tail=tail).get_config())
        np.testing.assert_allclose(
            loss.per_example(top, student), reference(*top.values(), student, 2.0, tail), rtol=1e-8
        )
    tensors = {name: keras.ops.convert_to_tensor(value) for name, value in top.items()}
    loss.validate_outputs(tensors, keras.ops.convert_to_tensor(student))
    with pytest.raises(ValueError, match="must have 4 classes"):
        loss.validate_outputs(top, student[:, :3])
    with pytest.raises(ValueError, match=r"have rank [23]"):
        loss.validate_outputs(top, student[:, None])


def test_an_unknown_tail_is_refused():
    with pytest.raises(ValueError, match="tail must be one of"):
        SoftTargets(tail="ignore")
    with pytest.raises(ValueError, match="tail must be one of"):
        top_k_soft_targets([[2.0]], [[0]], [2.5], [[0.0, 0.0]], 1.0, tail="ignore")


@pytest.mark.parametrize("tail", POLICIES)
def test_gradient_reaches_a_temperature_that_is_learnt(logits, tail):
    """Against central differences of the float64 reference."""
    teacher, student = logits
    top, step = cut(teacher, 4), 1e-5
    found = gradient(lambda temperature: top_k_soft_targets(*top, student, temperature, tail=tail), np.array(3.0))
    above, below = (reference(*top, student, 3.0 + sign * step, tail).sum() for sign in (1, -1))
    np.testing.assert_allclose(found, (above - below) / (2 * step), rtol=1e-6)


def test_no_class_outside_the_k_is_likelier_than_the_kth_though_it_was_rounded():
    """100.03 is 100 in float16, which leaves the third of three equal classes more than a third."""
    top = np.float64(np.float16([[100.03, 100.03]])), [[0, 1]], [100.03 + np.log(3.0)]
    np.testing.assert_allclose(top_k_soft_targets(*top, np.zeros((1, 3)), 1.0), 0.0, atol=1e-12)


@pytest.mark.parametrize("tail", POLICIES)
def test_where_the_k_have_everything_the_others_get_nothing(tail):
    top, student = (np.log([[0.75, 0.25]]), [[0, 2]], [0.0]), np.log([[0.5, 0.4, 0.1]])
    expected = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.1)
    if tail == "renormalise":
        np.testing.assert_allclose(top_k_soft_targets(*top, student, 1.0, tail=tail), expected, rtol=1e-9)
    np.testing.assert_allclose(top_k_soft_targets(*top, student, 1.0, tail=tail), expected, rtol=1e-6)


# A sure teacher's tail, kept itself.


def sure(tail, dtype="float64"):
    """Dense logits whose classes beyond the first three share `tail` evenly; their top-k form with the tail."""
    generator = np.random.default_rng(5)
    dense = np.zeros((20, 40))
    dense[:, 1:3] = generator.uniform(0.5, 3.0, (20, 2))
    dense[:, 0] = np.log(37 * (1.0 / tail - 1.0) - np.exp(dense[:, 1:3]).sum(axis=-1))
    ids = np.tile(np.int32([0, 1, 2]), (20, 1))
    student = 0.5 * dense + generator.normal(size=dense.shape)
    top = dense[:, :3].astype(dtype), ids, None, student.astype(dtype)
    return dense, student, top, np.full(20, np.log(37.0)).astype(dtype)


@pytest.mark.parametrize("policy", ["uniform", "bucket"])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("tail", [1e-2, 1e-6, 1e-12])
def test_a_tail_of_any_size_is_right_where_it_is_given_itself(policy, temperature, tail):
    """In float64 to eight digits; in float32 within 1 %, but for the rounding of a loss near 0."""
    dense, student, top, log_tail = sure(tail)
    p, q = (scipy.special.softmax(logits / temperature, axis=-1) for logits in (dense, student))
    if policy == "bucket":
        p, q = (np.append(x[:, :3], x[:, 3:].sum(axis=-1, keepdims=True), axis=-1) for x in (p, q))
    expected = temperature**2 * scipy.stats.entropy(p, q, axis=-1)
    found = top_k_soft_targets(*top, temperature, tail=policy, log_tail=log_tail)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
    _, _, top, log_tail = sure(tail, "float32")
    found = top_k_soft_targets(*top, temperature, tail=policy, log_tail=log_tail)
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=5e-7)


@pytest.mark.parametrize("tail", POLICIES)
def test_the_tail_itself_and_the_sum_of_all_say_the_same(logits, tail):
    teacher, student = logits
    top_logits, ids, normalizer = cut(teacher, 4)
    others = teacher.copy()
    np.put_along_axis(others, ids, -np.inf, axis=-1)
    found = top_k_soft_targets(
        top_logits, ids, None, student, 3.0, tail=tail, log_tail=scipy.special.logsumexp(others, axis=-1)
    )
    np.testing.assert_allclose(
        found, top_k_soft_targets(top_logits, ids, normalizer, student, 3.0, tail=tail), rtol=1e-9
    )


@pytest.mark.parametrize("tail", POLICIES)
@pytest.mark.parametrize("nothing", [-np.inf, -1e30])
def test_a_tail_of_nothing_gets_nothing_and_has_a_gradient(tail, nothing):
    top, student = (np.float32(np.log([[0.75, 0.25]])), [[0, 2]], None), np.float32(np.log([[0.5, 0.4, 0.1]]))

    def loss(student, temperature=1.0):
        return top_k_soft_targets(*top, student, temperature, tail=tail, log_tail=np.float32([nothing]))

    np.testing.assert_allclose(loss(student), 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.1), rtol=1e-6)
    np.testing.assert_allclose(gradient(loss, student), [[0.5 - 0.75, 0.4, 0.1 - 0.25]], atol=1e-6)
    assert np.isfinite(gradient(lambda temperature: loss(student, temperature), np.float32(2.0))).all()


def test_the_object_takes_a_stores_rows_with_their_tail():
    _, student, (top_logits, ids, *_), log_tail = sure(1e-9)
    rows = {"top_k_logits": top_logits, "top_k_ids": ids, "log_tail": log_tail}
    for tail in POLICIES:
        expected = top_k_soft_targets(top_logits, ids, None, student, 4.0, tail=tail, log_tail=log_tail)
        np.testing.assert_array_equal(SoftTargets(4.0, tail=tail).per_example(rows, student), expected)


def test_rows_without_anything_about_their_tail_are_refused():
    with pytest.raises(ValueError, match="log_normalizer or log_tail must be given"):
        top_k_soft_targets([[2.0]], [[0]], None, [[0.0, 0.0]], 1.0)
