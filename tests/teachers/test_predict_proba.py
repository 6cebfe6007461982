"""PredictProbaTeacher: scikit-learn's own probabilities, as logits, beside a student and through a store."""

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.svm import LinearSVC

import keras_distill as kd
from keras_distill.losses import SoftTargets
from keras_distill.targets import label


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype("float32")
    return x, np.digitize(x[:, 0] + x[:, 1] ** 2, [0.0, 1.0])


@pytest.fixture(scope="module")
def boosted(examples):
    return HistGradientBoostingClassifier(max_iter=10, random_state=0).fit(*examples)


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, "float64"))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def test_softmax_of_its_logits_is_the_classifiers_probabilities(boosted, examples):
    teacher = kd.PredictProbaTeacher(boosted)
    np.testing.assert_allclose(softmax(teacher(examples[0])), boosted.predict_proba(examples[0]), atol=1e-6)
    assert teacher.num_classes == 3


def test_a_store_holds_its_logits(boosted, examples, tmp_path):
    teacher = kd.PredictProbaTeacher(boosted)
    store = label(teacher, examples[0], tmp_path / "store", dtype="float32", progress=False)
    np.testing.assert_array_equal(store.read(np.arange(200)), teacher.logits(examples[0]))
    # The same classifier goes on with it; another one does not.
    label(kd.PredictProbaTeacher(boosted), examples[0], tmp_path / "store", dtype="float32", progress=False)
    other = HistGradientBoostingClassifier(max_iter=11, random_state=0).fit(*examples)
    with pytest.raises(ValueError, match="teacher"):
        label(kd.PredictProbaTeacher(other), examples[0], tmp_path / "store", dtype="float32", progress=False)


def test_it_teaches_beside_the_student(boosted, examples):
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((4,)), layers.Dense(32, "relu"), layers.Dense(3)])
    distiller = kd.Distiller(kd.PredictProbaTeacher(boosted), student, SoftTargets(2.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    distiller.fit(examples[0], epochs=40, batch_size=50, verbose=0)
    agreement = np.mean(student.predict(examples[0], verbose=0).argmax(axis=-1) == boosted.predict(examples[0]))
    # The most frequent answer alone would agree on so many.
    assert agreement > 0.9 > np.bincount(boosted.predict(examples[0])).max() / 200


def test_names_are_brought_into_the_datas_order_and_a_class_never_seen_has_least(examples):
    x, y = examples
    names = np.array(["c", "a", "b"])[y]
    forest = RandomForestClassifier(5, random_state=0).fit(x[y != 2], names[y != 2])
    teacher = kd.PredictProbaTeacher(forest, ["a", "b", "c"], smallest=0.1)
    probabilities = forest.predict_proba(x)
    expected = np.full((200, 3), 0.1)
    expected[:, 0], expected[:, 2] = probabilities[:, 0], probabilities[:, 1]
    np.testing.assert_allclose(np.exp(teacher.logits(x)), np.maximum(expected, 0.1), rtol=1e-6)


def test_named_inputs_go_through_preprocess(boosted, examples):
    x, _ = examples
    teacher = kd.PredictProbaTeacher(boosted, preprocess=lambda parts: np.concatenate([parts["b"], parts["a"]], axis=1))
    expected = kd.PredictProbaTeacher(boosted).logits(x)
    np.testing.assert_array_equal(teacher({"a": x[:, 2:], "b": x[:, :2]}), expected)


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (lambda x, y: LinearSVC().fit(x, y), TypeError, "must have predict_proba; got LinearSVC"),
        (lambda x, y: HistGradientBoostingClassifier(), ValueError, "must be fitted; got no classes_"),
        (
            lambda x, y: RandomForestClassifier(2).fit(x, y.astype(str)),
            ValueError,
            "class ids; got .*Give class_names=",
        ),
        (lambda x, y: RandomForestClassifier(2).fit(x, y - 1), ValueError, "class ids; got .-1"),
    ],
)
def test_what_cannot_teach_is_refused(examples, make, error, sentence):
    with pytest.raises(error, match=sentence):
        kd.PredictProbaTeacher(make(*examples))


def test_a_classifier_of_other_classes_is_refused(examples):
    x, y = examples
    forest = RandomForestClassifier(2).fit(x, np.array(["a", "b", "z"])[y])
    with pytest.raises(ValueError, match="labels must be among a, b; got z"):
        kd.PredictProbaTeacher(forest, ["a", "b"])
