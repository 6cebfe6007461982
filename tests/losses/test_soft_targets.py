"""Soft targets against the closed form, SciPy, and the paper's high-temperature limit."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from backend import gradient

from keras_distill.losses import SoftTargets, member_soft_targets, soft_targets

TEACHER = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
STUDENT = np.array([[1.0, 1.0, 0.0], [0.5, 0.2, 0.1]])


def reference(teacher, student, temperature):
    """T²·KL in float64 by SciPy's relative entropy of two softmaxes."""
    p = scipy.special.softmax(np.asarray(teacher, "float64") / temperature, axis=-1)
    q = scipy.special.softmax(np.asarray(student, "float64") / temperature, axis=-1)
    return temperature**2 * scipy.stats.entropy(p, q, axis=-1)


def test_loss_has_the_value_worked_out_by_hand():
    loss = soft_targets(TEACHER.astype("float32"), STUDENT.astype("float32"), 3.0)
    assert loss.shape == (2,)
    np.testing.assert_allclose(np.mean(loss), 1.364872, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_loss_equals_scipys_relative_entropy(temperature):
    generator = np.random.default_rng(1)
    teacher, student = generator.normal(scale=3.0, size=(2, 50, 7))
    np.testing.assert_allclose(
        soft_targets(teacher, student, temperature), reference(teacher, student, temperature), rtol=1e-9
    )
    np.testing.assert_allclose(
        soft_targets(teacher.astype("float32"), student.astype("float32"), temperature),
        reference(teacher, student, temperature),
        rtol=1e-3,
        atol=2e-4,
    )


def test_gradient_is_temperature_times_the_difference_of_softmaxes_over_the_batch():
    temperature = 3.0
    found = gradient(lambda student: SoftTargets(temperature).compute_loss(TEACHER, student), STUDENT)
    p = scipy.special.softmax(TEACHER / temperature, axis=-1)
    q = scipy.special.softmax(STUDENT / temperature, axis=-1)
    np.testing.assert_allclose(found, temperature * (q - p) / len(STUDENT), rtol=1e-9)


def test_high_temperature_limit_matches_logits():
    """Paper, section 2.1: for centred logits the loss tends to mean((z_student − z_teacher)²) / 2 over the classes."""
    teacher = TEACHER - TEACHER.mean(axis=-1, keepdims=True)
    student = STUDENT - STUDENT.mean(axis=-1, keepdims=True)
    limit = np.mean((teacher - student) ** 2, axis=-1) / 2
    np.testing.assert_allclose(soft_targets(teacher, student, 1e4), limit, rtol=1e-3)
    np.testing.assert_allclose(
        soft_targets(teacher.astype("float32"), student.astype("float32"), 100.0), limit, rtol=2e-2
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_loss_is_zero_when_logits_differ_by_a_constant(dtype):
    teacher = keras.ops.cast(TEACHER, dtype)
    loss = soft_targets(teacher, teacher + keras.ops.cast(4.0, dtype), 20.0)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert np.all(np.asarray(loss) >= 0.0)
    np.testing.assert_allclose(loss, 0.0, atol=1e-3 if dtype == "float32" else 0.05)


def test_extreme_logits_stay_finite_and_right():
    teacher = np.array([[1e4, -1e4, 0.0]], "float32")
    student = np.array([[-1e4, 1e4, 0.0]], "float32")
    np.testing.assert_allclose(
        soft_targets(teacher, student, 1.0), reference_of_point_mass(teacher, student), rtol=1e-6
    )
    found = gradient(lambda student: soft_targets(teacher, student, 1.0), student)
    np.testing.assert_allclose(found, [[-1.0, 1.0, 0.0]], atol=1e-6)


def reference_of_point_mass(teacher, student):
    """KL from a teacher that is certain of one class is the student's surprise at it."""
    return scipy.special.logsumexp(student, axis=-1) - student[np.arange(len(student)), teacher.argmax(-1)]


def test_one_class_and_one_example_have_no_loss():
    np.testing.assert_array_equal(soft_targets([[3.0]], [[-7.0]], 2.0), [0.0])


def test_tokens_and_pixels_keep_their_axes():
    teacher, student = np.random.default_rng(2).normal(size=(2, 4, 5, 6, 3))
    np.testing.assert_allclose(soft_targets(teacher, student, 2.0), reference(teacher, student, 2.0), rtol=1e-9)


def test_members_are_averaged_after_their_softmax():
    generator = np.random.default_rng(3)
    members, student = generator.normal(scale=2.0, size=(10, 3, 4)), generator.normal(size=(10, 4))
    weights = np.broadcast_to([0.5, 0.3, 0.2], (10, 3))
    for temperature in (1.0, 5.0):
        p = np.einsum("bm,bmc->bc", weights, scipy.special.softmax(members / temperature, axis=-1))
        q = scipy.special.softmax(student / temperature, axis=-1)
        expected = temperature**2 * scipy.stats.entropy(p, q, axis=-1)
        np.testing.assert_allclose(member_soft_targets(members, weights, student, temperature), expected, rtol=1e-9)


def test_member_of_weight_zero_counts_for_nothing():
    members = np.stack([TEACHER, 100.0 * TEACHER], axis=1)
    weights = np.array([[1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(
        member_soft_targets(members, weights, STUDENT, 3.0), reference(TEACHER, STUDENT, 3.0), rtol=1e-9
    )


def test_object_takes_members_as_a_mapping():
    members = {"member_logits": np.stack([TEACHER, TEACHER], 1), "member_weights": np.full((2, 2), 0.5)}
    np.testing.assert_allclose(SoftTargets(3.0).per_example(members, STUDENT), reference(TEACHER, STUDENT, 3.0))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_that_is_no_positive_number_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature must be .*; got .*Hinton et al\. use 1 to 20"):
        SoftTargets(temperature)


def test_temperature_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="temperature must be a number; got 'hot'"):
        SoftTargets("hot")


def test_outputs_of_different_classes_or_rank_are_refused():
    with pytest.raises(ValueError, match="have 3 classes, as the teacher's do; got 4 classes"):
        SoftTargets().validate_outputs(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"have rank 3; got \(2, 3\)"):
        SoftTargets().validate_outputs(np.zeros((2, 5, 3)), np.zeros((2, 3)))
    members = {"member_logits": np.zeros((2, 7, 3)), "member_weights": np.zeros((2, 7))}
    SoftTargets().validate_outputs(members, np.zeros((2, 3)))


def test_configuration_survives_a_round_trip():
    loss = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(SoftTargets(2.5)))
    assert isinstance(loss, SoftTargets)
    assert loss.temperature == 2.5
