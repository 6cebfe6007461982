"""A teacher made as sure as it is right before it answers, against the temperature that its logits were spoilt by."""

import keras
import numpy as np
import pytest
import scipy.special

import keras_distill as kd
from keras_distill.report import metrics
from keras_distill.targets import calibration_temperature, label
from keras_distill.teachers import Ensemble


def calibrated_problem(num_items=4000, num_classes=4, seed=0):
    """Inputs that are honest logits, and labels drawn from them."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(num_items, num_classes)).astype("float32") * 2.0
    shares = scipy.special.softmax(logits.astype("float64"), axis=-1)
    return logits, (generator.random((num_items, 1)) > shares.cumsum(-1)).sum(-1).astype("int32")


def scaled(factor, head="linear"):
    kernel = keras.initializers.Constant(factor * np.eye(4))
    layer = keras.layers.Dense(4, head, use_bias=False, kernel_initializer=kernel)
    return keras.Sequential([keras.Input((4,)), layer])


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("head", ["linear", "softmax"])
def test_a_teacher_whose_logits_were_multiplied_gets_them_back(factor, head):
    x, y = calibrated_problem()
    found = calibration_temperature(scaled(factor, head), (x, y))
    honest = metrics.best_temperature(x, y)
    assert 0.9 < honest < 1.1
    assert found == pytest.approx(factor * honest, rel=5e-3)


def test_of_one_model_it_is_the_best_temperature_of_the_metrics():
    x, y = calibrated_problem(300, seed=1)
    found = calibration_temperature(lambda x: 2.5 * x, (x, y), batch_size=64)
    assert found == pytest.approx(metrics.best_temperature(2.5 * x, y), rel=5e-3)


def test_members_are_calibrated_together_as_the_mean_of_their_probabilities():
    x, y = calibrated_problem(1500)
    teacher = Ensemble([scaled(2.0), scaled(6.0)], weights=[1, 3])

    def loss(temperature):
        shares = scipy.special.softmax(2.0 * x.astype("float64") / temperature, axis=-1) / 4
        shares += 3 * scipy.special.softmax(6.0 * x.astype("float64") / temperature, axis=-1) / 4
        return -np.log(shares[np.arange(len(y)), y]).mean()

    found = calibration_temperature(teacher, (x, y))
    grid = np.exp(np.linspace(np.log(found / 2), np.log(found * 2), 400))
    assert found == pytest.approx(grid[np.argmin([loss(temperature) for temperature in grid])], rel=1e-2)


def test_items_without_a_label_count_for_nothing():
    x, y = calibrated_problem(500)
    some = np.where(np.arange(500) % 2, y, -1)
    assert calibration_temperature(scaled(3.0), (x, some)) == calibration_temperature(scaled(3.0), (x[1::2], y[1::2]))


def test_a_calibrated_store_is_that_of_the_honest_teacher(tmp_path):
    x, y = calibrated_problem()
    validation = kd.data.Split(x[:2000], y[:2000])
    divisor = calibration_temperature(scaled(3.0), validation)
    store = label(scaled(3.0), x[2000:], tmp_path / "s", dtype="float32", calibrate=validation)
    np.testing.assert_allclose(store.read(np.arange(2000)), 3.0 * x[2000:] / divisor, rtol=1e-5)
    assert store.manifest.teacher_fingerprint == f"{kd.targets.fingerprint(scaled(3.0))}, logits / {divisor:g}"
    plain = kd.targets.SoftTargetStore.open(tmp_path / "s")
    expected = scipy.special.softmax(3.0 * x[2000:] / divisor / 2.0, axis=-1)
    np.testing.assert_allclose(plain.soft_targets(np.arange(2000), temperature=2.0), expected, atol=1e-6)


@pytest.mark.parametrize("options", [{"top_k": 2}, {"members": True}, {"temperature": 2.0}])
def test_every_kind_of_row_is_divided(tmp_path, options):
    x, y = calibrated_problem(600)
    teacher = scaled(3.0) if "top_k" in options else Ensemble([scaled(2.0), scaled(6.0)])
    divisor = calibration_temperature(teacher, (x, y))
    honest = scaled(3.0 / divisor) if "top_k" in options else Ensemble([scaled(2.0 / divisor), scaled(6.0 / divisor)])
    found = label(teacher, (x, y), tmp_path / "s", dtype="float32", calibrate=True, **options).read(np.arange(600))
    expected = label(honest, x, tmp_path / "h", dtype="float32", **options).read(np.arange(600))
    for one, other in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [lambda y: y[:, None], lambda y: y.tolist()], ids=["column", "list"])
def test_labels_in_a_column_or_a_list_are_the_same(labels):
    x, y = calibrated_problem(300)
    assert calibration_temperature(scaled(3.0), (x, labels(y))) == calibration_temperature(scaled(3.0), (x, y))


def test_sigmoids_are_refused():
    x, y = calibrated_problem(100)
    with pytest.raises(ValueError, match="must end in a softmax; got sigmoids"):
        calibration_temperature(scaled(3.0, "sigmoid"), (x, y))
    with pytest.raises(ValueError, match="two classes or more; got one unit"):
        calibration_temperature(lambda x: x[:, :1], (x, y % 2))


def test_what_is_no_examples_is_refused(tmp_path):
    x, y = calibrated_problem(100)
    for calibrate in (0, "yes", [x, y]):
        with pytest.raises(TypeError, match=r"calibrate must be \(inputs, labels\)"):
            label(scaled(3.0), x, tmp_path / "s", calibrate=calibrate)
    with pytest.raises(TypeError, match="got True with a ndarray"):
        label(scaled(3.0), x, tmp_path / "s", calibrate=True)
    assert label(scaled(3.0), x, tmp_path / "s", calibrate=None).manifest.teacher_fingerprint[-1] != "3"


def test_a_store_that_was_begun_without_it_is_anothers(tmp_path):
    x, y = calibrated_problem(300)
    label(scaled(3.0), x, tmp_path / "s")
    with pytest.raises(kd.targets.manifest.StaleTeacherError, match="fingerprint"):
        label(scaled(3.0), x, tmp_path / "s", calibrate=(x, y))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ((np.eye(4, dtype="float32"), None), "no labels"),
        ((np.eye(4, dtype="float32"), np.full(4, -1)), "no labels"),
        ((np.eye(4, dtype="float32"), np.arange(4)), "makes no error on them. Calibrate on data"),
        ((np.eye(4, dtype="float32"), (np.arange(4) + 1) % 4), "no better than guessing"),
        ((np.eye(4, dtype="float32"), np.full(4, 7)), r"labels to calibrate on must be in \[0, 4\)"),
        ((np.eye(4, dtype="float32"), np.zeros((4, 2), "int32")), r"integers of shape \(4,\); got shape \(4, 2\)"),
        ((np.eye(4, dtype="float32"), np.zeros(4)), r"integers of shape \(4,\); got shape \(4,\), dtype float64"),
        ((np.eye(4, dtype="float32"), np.array(list("abcd"))), r"class ids, integers of shape \(4,\)"),
        ((np.eye(4, dtype="float32"), {"a": np.zeros(4, "int32")}), r"class ids, integers of shape \(4,\); got a dict"),
        ((np.zeros((4, 5), "float32"), np.arange(4)), "inputs must have shape"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(tmp_path, examples, message):
    with pytest.raises(ValueError, match=message):
        label(scaled(3.0), np.eye(4, dtype="float32"), tmp_path / "s", calibrate=examples)
    assert not (tmp_path / "s").exists()
