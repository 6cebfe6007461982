"""The logit losses against closed forms, the papers' own figures and independent NumPy in float64."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from backend import gradient, under_xla
from in_numpy import draw, kl, numerical_gradient, softmax
from keras import ops

from keras_distill import losses
from keras_distill.losses.decoupled import target_classes
from keras_distill.losses.logit_loss import LogitLoss, merged_logits

TEACHER, STUDENT = draw(7, 5), draw(7, 5, seed=1)
LABELS = np.random.default_rng(2).integers(0, 5, 7)


# Decoupled


def numpy_decoupled(teacher, student, labels, temperature, alpha, beta):
    values = []
    for v, z, label in zip(softmax(teacher, temperature), softmax(student, temperature), labels, strict=True):
        target = kl([v[label], 1 - v[label]], [z[label], 1 - z[label]])
        others = kl(np.delete(v, label), np.delete(z, label))  # SciPy scales both to sum to one
        values.append(temperature**2 * (alpha * target + beta * others))
    return np.array(values)


def test_decoupled_is_the_two_divergences_with_their_weights():
    expected = numpy_decoupled(TEACHER, STUDENT, LABELS, 3.0, 0.7, 5.0)
    found = losses.decoupled_divergence(TEACHER, STUDENT, np.eye(5)[LABELS], 3.0, alpha=0.7, beta=5.0)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_decoupled_with_the_weights_that_soft_targets_have_is_soft_targets():
    """KD = TCKD + (1 − p)·NCKD, the paper's equation 6."""
    targets = np.eye(5)[LABELS]
    p = softmax(TEACHER, 4.0)[np.arange(7), LABELS]
    found = losses.decoupled_divergence(TEACHER, STUDENT, targets, 4.0, alpha=1.0, beta=1.0 - p)
    np.testing.assert_allclose(found, losses.soft_targets(TEACHER, STUDENT, 4.0), rtol=1e-10)


def test_decoupled_keeps_its_digits_where_the_teacher_is_sure():
    teacher, student = np.array([[60.0, 1.0, 0.0]]), np.array([[50.0, 0.0, 1.0]])
    found = losses.decoupled_divergence(teacher, student, [[1.0, 0.0, 0.0]], 1.0, alpha=0.0, beta=1.0)
    np.testing.assert_allclose(found, kl(softmax([[1.0, 0.0]]), softmax([[0.0, 1.0]])), rtol=1e-10)


def test_decoupled_gradient_is_that_of_the_formula():
    def mean(student):
        return numpy_decoupled(TEACHER, student, LABELS, 2.0, 1.0, 8.0).mean()

    loss = losses.DecoupledKD(2.0)
    found = gradient(lambda student: loss.compute_loss(TEACHER, student, labels=LABELS), STUDENT)
    np.testing.assert_allclose(found, numerical_gradient(mean, STUDENT), atol=1e-8)


def test_decoupled_of_two_classes_has_no_other_classes():
    loss = losses.DecoupledKD(1.0, alpha=0.0, beta=3.0)
    np.testing.assert_allclose(loss.per_example(draw(4, 2), draw(4, 2, seed=1), labels=[0, 1, 0, 1]), 0.0, atol=1e-12)


def test_decoupled_extremes_are_finite():
    teacher, student = np.float32([[1e4, -1e4, 0.0]]), np.float32([[-1e4, 1e4, 0.0]])
    loss = losses.DecoupledKD(4.0)
    assert np.isfinite(loss.per_example(teacher, student, labels=[0])).all()
    assert np.isfinite(gradient(lambda z: loss.compute_loss(teacher, z, labels=[0]), student)).all()


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS[:, None], np.eye(5)[LABELS], np.where(np.eye(5)[LABELS] == 1, 0.6, 0.1)]
)
def test_labels_may_be_indices_columns_or_rows(labels):
    np.testing.assert_array_equal(target_classes(labels, TEACHER), np.eye(5)[LABELS])


def test_teachers_likeliest_class_stands_for_a_missing_label():
    expected = np.eye(5)[TEACHER.argmax(-1)]
    np.testing.assert_array_equal(target_classes(None, TEACHER), expected)
    expected[0] = np.eye(5)[LABELS[0]]
    np.testing.assert_array_equal(target_classes(np.r_[LABELS[:1], [-1] * 6], TEACHER), expected)


def test_decoupled_warms_up_by_the_epoch():
    loss, full = losses.DecoupledKD(4.0, warm_up_epochs=4), losses.DecoupledKD(4.0)
    for epoch, share in ((0, 0.25), (2, 0.75), (3, 1.0), (50, 1.0)):
        loss.warm_up.begin_epoch(epoch)
        expected = share * np.asarray(full.per_example(TEACHER, STUDENT, labels=LABELS))
        np.testing.assert_allclose(loss.per_example(TEACHER, STUDENT, labels=LABELS), expected, rtol=1e-6)


# Relations of predictions


def numpy_dist(teacher, student, temperature, beta, gamma):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    inter = np.array([1 - scipy.stats.pearsonr(a, b)[0] for a, b in zip(p, q, strict=True)])
    intra = np.mean([1 - scipy.stats.pearsonr(a, b)[0] for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


def test_dist_is_one_less_the_correlations_of_rows_and_columns():
    expected = numpy_dist(TEACHER, STUDENT, 4.0, 1.5, 0.5)
    found = losses.DIST(4.0, beta=1.5, gamma=0.5).per_example(TEACHER, STUDENT)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_dist_does_not_ask_for_the_teachers_confidence():
    """Shares that are a linear function of the teacher's cost nothing, unlike in soft targets."""
    p = softmax(TEACHER)
    q = 0.5 * p + 0.5 / 5
    np.testing.assert_allclose(losses.DIST(1.0).per_example(np.log(p), np.log(q)), 0.0, atol=1e-9)
    assert np.all(np.asarray(losses.soft_targets(np.log(p), np.log(q), 1.0)) > 1e-3)


@pytest.mark.parametrize("num_classes", [2, 1_000, 50_000])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_dist_of_identical_predictions_is_zero_for_every_number_of_classes(num_classes, temperature):
    logits = np.random.default_rng(0).normal(size=(8, num_classes)).astype("float32")
    np.testing.assert_allclose(losses.DIST(temperature).per_example(logits, logits), 0.0, atol=1e-4 * temperature**2)


def test_dist_of_many_classes_is_that_of_float64():
    teacher, student = np.random.default_rng(0).normal(size=(2, 8, 50_000))
    p, q = (scipy.special.softmax(logits / 4.0, axis=-1) for logits in (teacher, student))
    rows = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    found = losses.inter_class_relation(teacher.astype("float32"), student.astype("float32"), 4.0)
    np.testing.assert_allclose(found, 1.0 - rows, atol=1e-5)


def test_dist_gradient_is_that_of_the_formula():
    found = gradient(lambda z: losses.DIST(2.0).compute_loss(TEACHER, z), STUDENT)
    expected = numerical_gradient(lambda z: numpy_dist(TEACHER, z, 2.0, 1.0, 1.0).mean(), STUDENT)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_dist_leaves_items_of_weight_zero_out_of_the_batchs_relation():
    weights = np.array([1, 1, 0, 1, 1, 0, 1], "float64")
    kept = weights > 0
    loss = losses.DIST(4.0)
    found = np.asarray(loss.per_example(TEACHER, STUDENT, item_weights=weights))[kept]
    np.testing.assert_allclose(found, numpy_dist(TEACHER[kept], STUDENT[kept], 4.0, 1.0, 1.0), rtol=1e-6)


def test_dist_of_tokens_relates_all_tokens():
    teacher, student = draw(3, 4, 5), draw(3, 4, 5, seed=1)
    expected = numpy_dist(teacher.reshape(12, 5), student.reshape(12, 5), 4.0, 1.0, 1.0).reshape(3, 4)
    np.testing.assert_allclose(losses.DIST(4.0).per_example(teacher, student), expected, rtol=1e-6)
    weights = np.array([1.0, 0.0, 1.0])
    column = losses.DIST(4.0).per_example(
        teacher[:, 0], student[:, 0], item_weights=ops.convert_to_tensor(weights[:, None])
    )
    flat = losses.DIST(4.0).per_example(teacher[:, 0], student[:, 0], item_weights=ops.convert_to_tensor(weights))
    np.testing.assert_array_equal(column, flat)
    kept = losses.DIST(4.0).per_example(teacher[[0, 2]], student[[0, 2]])
    found = np.asarray(losses.DIST(4.0).per_example(teacher, student, item_weights=weights))
    np.testing.assert_allclose(found[[0, 2]], kept, rtol=1e-6)


@pytest.mark.parametrize("student", [np.zeros((4, 3)), draw(1, 3)])
def test_dist_gradient_is_finite_where_nothing_varies(student):
    teacher = draw(len(student), 3)
    assert np.isfinite(gradient(lambda z: losses.DIST(4.0).compute_loss(teacher, z), student)).all()


# Standardisation


def test_standardised_logits_are_z_scores():
    np.testing.assert_allclose(losses.standardized_logits(TEACHER), scipy.stats.zscore(TEACHER, axis=-1), rtol=1e-5)


def test_standardisation_gives_the_toy_case_of_the_paper():
    """Figure 2: its two students get 0.0995 and 0, though the second one's logits are far from the teacher's.

    Its standard deviations divide by 3, the number of classes less one, and its temperature of 1 has no T².
    """
    teacher = [[-1.162, 1.162, 0.387, -0.387]]
    near, far = [[-1.320, 0.660, 0.880, -0.22]], 7.0 * np.array(teacher)
    loss = losses.LogitStandardization(losses.SoftTargets(np.sqrt(4 / 3)))
    np.testing.assert_allclose(np.asarray(loss.per_example(teacher, near)) / (4 / 3), 0.0995, atol=2e-4)
    np.testing.assert_allclose(loss.per_example(teacher, far), 0.0, atol=1e-6)


def test_standardisation_is_the_wrapped_loss_of_z_scores():
    loss = losses.LogitStandardization(losses.DecoupledKD(2.0))
    z_scores = scipy.stats.zscore(TEACHER, axis=-1), scipy.stats.zscore(STUDENT, axis=-1)
    expected = numpy_decoupled(*z_scores, LABELS, 2.0, 1.0, 8.0)
    np.testing.assert_allclose(loss.per_example(TEACHER, STUDENT, labels=LABELS), expected, rtol=1e-5)
    assert loss.reads == ("labels",)


def test_standardisation_of_equal_logits_has_a_finite_gradient():
    loss = losses.LogitStandardization()
    assert np.isfinite(gradient(lambda z: loss.compute_loss(draw(2, 3), z), np.zeros((2, 3)))).all()


def test_standardisation_wraps_losses_over_logits_alone():
    for other in (losses.Hint("layer"), losses.RegressionTargets(), "kl_divergence"):
        with pytest.raises(TypeError, match="loss must be a loss over logits"):
            losses.LogitStandardization(other)


# Matching logits


def test_logit_matching_is_the_limit_of_soft_targets():
    """T²·KL → Σ (z − v)² / 2N with an error of order 1/T: ten times T, a tenth of the error."""
    limit = np.asarray(losses.logit_matching(TEACHER, STUDENT))
    errors = [np.abs(np.asarray(losses.soft_targets(TEACHER, STUDENT, t)) - limit).max() for t in (1e2, 1e3)]
    assert errors[0] < 0.1 * limit.max()
    np.testing.assert_allclose(errors[1], errors[0] / 10, rtol=0.05)


def test_logit_matching_gradient_is_the_papers():
    """(1 / N)·(z − v) for zero-meaned logits; equation 4 of the paper without its 1 / T²."""
    zero_meaned = [logits - logits.mean(-1, keepdims=True) for logits in (TEACHER, STUDENT)]
    found = gradient(lambda z: losses.logit_matching(TEACHER, z), STUDENT)
    np.testing.assert_allclose(found, (zero_meaned[1] - zero_meaned[0]) / 5, rtol=1e-10)


def test_logit_matching_may_match_the_constant_too():
    shifted = TEACHER + 3.0
    np.testing.assert_allclose(losses.LogitMatching().per_example(TEACHER, shifted), 0.0, atol=1e-12)
    np.testing.assert_allclose(losses.LogitMatching(center=False).per_example(TEACHER, shifted), 4.5)


# Sigmoids


def numpy_binary(teacher, student, temperature):
    p, q = (scipy.special.expit(np.asarray(logits, "float64") / temperature) for logits in (teacher, student))
    return temperature**2 * np.mean(scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q), axis=-1)


def test_binary_soft_targets_are_bernoulli_divergences():
    found = losses.binary_soft_targets(TEACHER, STUDENT, 3.0)
    np.testing.assert_allclose(found, numpy_binary(TEACHER, STUDENT, 3.0), rtol=1e-10)


def test_binary_gradient_is_t_times_the_difference():
    found = gradient(lambda z: losses.binary_soft_targets(TEACHER, z, 3.0), STUDENT)
    expected = 3.0 * (scipy.special.expit(STUDENT / 3.0) - scipy.special.expit(TEACHER / 3.0)) / 5
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_one_sigmoid_unit_is_the_softmax_of_it_and_zero():
    with_zero = [np.concatenate([logits[:, :1], np.zeros((7, 1))], axis=-1) for logits in (TEACHER, STUDENT)]
    found = losses.BinarySoftTargets(4.0).per_example(TEACHER[:, :1], STUDENT[:, :1])
    np.testing.assert_allclose(found, losses.soft_targets(*with_zero, 4.0), rtol=1e-9)


def test_binary_extremes_are_finite():
    teacher, student = np.float32([[1e4, -1e4]]), np.float32([[-1e4, 1e4]])
    loss = losses.BinarySoftTargets(1.0)
    np.testing.assert_allclose(loss.per_example(teacher, student), 1e4, rtol=1e-5)
    assert np.isfinite(gradient(lambda z: loss.compute_loss(teacher, z), student)).all()


def test_binary_members_teach_the_mean_of_their_sigmoids():
    members, weights = draw(4, 3, 2), np.tile([0.5, 0.3, 0.2], (4, 1))
    p = np.einsum("bmk,bm->bk", scipy.special.expit(members / 2.0), weights)
    student = draw(4, 2, seed=3)
    found = losses.BinarySoftTargets(2.0).per_example({"member_logits": members, "member_weights": weights}, student)
    np.testing.assert_allclose(found, numpy_binary(2.0 * scipy.special.logit(p), student, 2.0), rtol=1e-6)


@pytest.mark.parametrize(
    "loss", [losses.SoftTargets(), losses.DecoupledKD(), losses.DIST(), losses.LogitStandardization()]
)
def test_one_class_under_a_softmax_is_refused(loss):
    with pytest.raises(ValueError, match=r"have two or more classes; got 1 class.*BinarySoftTargets"):
        loss.validate_outputs(np.zeros((2, 1)), np.zeros((2, 1)))


# Members and stored targets


def test_members_are_merged_at_the_temperature_asked_for():
    members, weights = draw(4, 3, 5), np.tile([0.5, 0.3, 0.2], (4, 1))
    teacher = {"member_logits": members, "member_weights": weights}
    expected = np.einsum("bmk,bm->bk", softmax(members, 3.0), weights)
    np.testing.assert_allclose(softmax(merged_logits(teacher, 3.0), 3.0), expected, rtol=1e-6)
    student, labels = draw(4, 5, seed=9), [0, 1, 2, 3]
    found = losses.DecoupledKD(3.0).per_example(teacher, student, labels=labels)
    np.testing.assert_allclose(found, numpy_decoupled(3.0 * np.log(expected), student, labels, 3.0, 1, 8), rtol=1e-5)


@pytest.mark.parametrize(
    "loss", [losses.DecoupledKD(), losses.DIST(), losses.LogitStandardization(), losses.BinarySoftTargets()]
)
def test_top_k_targets_are_refused_where_all_classes_are_needed(loss):
    top_k = {"top_k_logits": np.ones((2, 1)), "top_k_ids": np.zeros((2, 1), int), "log_normalizer": np.ones(2)}
    with pytest.raises(ValueError, match="the logits of all classes"):
        loss.per_example(top_k, np.zeros((2, 3)))


# Numbers


def test_regression_targets_are_half_the_squared_difference():
    found = losses.RegressionTargets().per_example(TEACHER, STUDENT)
    np.testing.assert_allclose(found, 0.5 * np.mean((TEACHER - STUDENT) ** 2, axis=-1), rtol=1e-10)


def test_regression_targets_with_delta_are_hubers():
    found = losses.RegressionTargets(delta=1.3).per_example(TEACHER, STUDENT)
    np.testing.assert_allclose(found, scipy.special.huber(1.3, TEACHER - STUDENT).mean(-1), rtol=1e-10)


def test_teacher_bounds_only_students_that_are_worse():
    labels = draw(7, 5, seed=4)
    errors = [np.sum((values - labels) ** 2, -1) for values in (TEACHER, STUDENT)]
    found = losses.RegressionTargets(margin=2.0).per_example(TEACHER, STUDENT, labels=labels)
    expected = np.where(errors[1] + 2.0 > errors[0], 0.5 * np.mean((TEACHER - STUDENT) ** 2, -1), 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert 0 < np.count_nonzero(expected) < 7
    mean = losses.RegressionTargets(margin=2.0).compute_loss(TEACHER, STUDENT, labels=labels)
    np.testing.assert_allclose(mean, expected.mean(), rtol=1e-10)
    # On the other side of the label and as far from it: no worse.
    on_par = losses.RegressionTargets(margin=0.0).per_example(*np.array([[[1.0]], [[-1.0]]]), labels=np.zeros((1, 1)))
    np.testing.assert_array_equal(on_par, [0.0])


def test_members_of_a_regression_teach_their_weighted_mean():
    members, weights = draw(4, 3, 2), np.tile([0.5, 0.3, 0.2], (4, 1))
    student = draw(4, 2, seed=1)
    teacher = {"member_logits": members, "member_weights": weights}
    expected = 0.5 * np.mean((np.einsum("bmk,bm->bk", members, weights) - student) ** 2, -1)
    np.testing.assert_allclose(losses.RegressionTargets().per_example(teacher, student), expected, rtol=1e-6)


# Smoothed labels


def test_smoothed_labels_are_keras_own_label_smoothing():
    student = STUDENT.astype("float32")
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3)
    expected = theirs(np.eye(5, dtype="float32")[LABELS], student)
    np.testing.assert_allclose(losses.SmoothedLabels(0.3)(LABELS, student), expected, rtol=1e-5)
    found = losses.SmoothedLabels(0.3, from_logits=False)(LABELS, softmax(student).astype("float32"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_smoothed_labels_leave_items_without_a_label_out_of_the_mean():
    labels = np.where(np.arange(7) < 3, LABELS, -1)
    student = STUDENT.astype("float32")
    kept = losses.SmoothedLabels(0.3)(labels[:3], student[:3])
    for given in (labels, labels[:, None]):
        np.testing.assert_allclose(losses.SmoothedLabels(0.3)(given, student), kept, rtol=1e-6)
    ours = under_xla(losses.SmoothedLabels(0.0))(labels, student)
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    np.testing.assert_allclose(ours, keras_loss(labels, student), rtol=1e-6)


# Plain Keras


def test_losses_train_a_plain_keras_model():
    x, teacher = draw(64, 4).astype("float32"), draw(64, 3, seed=5).astype("float32")
    for loss, head, targets in (
        (losses.SoftTargets(2.0), None, teacher),
        (losses.SoftTargets(2.0, from_logits=False), "softmax", softmax(teacher).astype("float32")),
        (losses.BinarySoftTargets(2.0, from_logits=False), "sigmoid", scipy.special.expit(teacher)),
        (losses.DIST(2.0), None, teacher),
    ):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation=head)])
        logits = np.asarray(ops.matmul(x, model.layers[0].kernel))
        model.compile("sgd", loss=loss, run_eagerly=True)
        weights = np.linspace(0.0, 2.0, 64).astype("float32")
        history = model.fit(x, targets, sample_weight=weights, batch_size=64, epochs=1, verbose=0).history
        reference = type(loss)(2.0).per_example(teacher, logits)
        np.testing.assert_allclose(history["loss"], [np.mean(weights * np.asarray(reference))], rtol=1e-4)


# Bad input


def test_what_is_not_given_is_what_the_papers_take():
    """DKD's best weights, RKD's for classes, AT's square, DIST's ones; 4 is CIFAR-100's temperature in most of them."""
    published = {
        losses.SoftTargets: {"temperature": 4.0, "from_logits": True},
        losses.DecoupledKD: {"temperature": 4.0, "alpha": 1.0, "beta": 8.0, "warm_up_epochs": 0.0},
        losses.DIST: {"temperature": 4.0, "beta": 1.0, "gamma": 1.0},
        losses.BinarySoftTargets: {"temperature": 4.0},
        losses.RelationalKD: {"distance_weight": 25.0, "angle_weight": 50.0},
        losses.AttentionTransfer: {"power": 2.0},
        losses.SmoothedLabels: {"smoothing": 0.1},
    }
    for loss, numbers in published.items():
        config = loss().get_config()
        assert {name: config[name] for name in numbers} == numbers
    assert losses.LogitStandardization().loss.temperature == 2.0
    targets = np.eye(5)[LABELS]
    expected = numpy_decoupled(TEACHER, STUDENT, LABELS, 3.0, 1.0, 8.0)
    np.testing.assert_allclose(losses.decoupled_divergence(TEACHER, STUDENT, targets, 3.0), expected, rtol=1e-10)
    maps = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    np.testing.assert_allclose(losses.attention_transfer(*maps), losses.attention_transfer(*maps, 2.0), rtol=1e-12)
    np.testing.assert_allclose(losses.attention_map(maps[0]), losses.attention_map(maps[0], 2.0), rtol=1e-12)


def test_logit_matching_merges_members_as_at_temperature_one():
    members, weights = draw(4, 3, 5), np.tile([0.5, 0.3, 0.2], (4, 1))
    logits, student = np.log(np.einsum("bmk,bm->bk", softmax(members), weights)), draw(4, 5, seed=1)
    expected = losses.LogitMatching().per_example(logits, student)
    teacher = {"member_logits": members, "member_weights": weights}
    np.testing.assert_allclose(losses.LogitMatching().per_example(teacher, student), expected, rtol=1e-6)


def test_losses_that_leave_something_out_say_what():
    class Unfinished(losses.PerExampleLoss):
        pass

    class WithoutFormula(LogitLoss):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished must implement per_example"):
        Unfinished().compute_loss(TEACHER, STUDENT)
    with pytest.raises(NotImplementedError, match="Unfinished must implement get_config"):
        Unfinished().get_config()
    with pytest.raises(NotImplementedError, match="WithoutFormula must implement of_logits"):
        WithoutFormula().compute_loss(TEACHER, STUDENT)


def test_plain_keras_checks_outputs_before_it_compares_them():
    for loss in (losses.SoftTargets(), losses.DIST(), losses.BinarySoftTargets(), losses.RegressionTargets()):
        with pytest.raises(ValueError, match="have 5 classes, as the teacher's do; got 4 classes"):
            loss(TEACHER, STUDENT[:, :4])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: losses.DecoupledKD(-1.0), "temperature must be > 0"),
        (lambda: losses.DecoupledKD(alpha=-1.0), "alpha and beta must be >= 0"),
        (lambda: losses.DecoupledKD(warm_up_epochs=-3), "length must be > 0"),
        (lambda: losses.DIST(gamma=-1.0), "beta and gamma must be >= 0"),
        (lambda: losses.BinarySoftTargets(0.0), "temperature must be > 0"),
        (lambda: losses.RegressionTargets(delta=0.0), "delta must be > 0"),
        (lambda: losses.RegressionTargets(margin=-1.0), "margin must be >= 0"),
        (lambda: losses.SmoothedLabels(1.5), "smoothing must be between 0 and 1"),
    ],
)
def test_numbers_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
