"""`kd.tune`: what it costs, what it chooses, and that a kill changes nothing."""

import shutil

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.report import metrics
from keras_distill.search import training, tuning

optuna = pytest.importorskip("optuna", reason="Optuna is not installed: pip install keras-distill[tune]")
EPOCHS, BATCH, NUM_ITEMS = 8, 32, 96
STEPS = EPOCHS * NUM_ITEMS // BATCH


def noisy(num_items, seed, noise=0.35):
    """A linear problem of three classes; of the training labels a third is wrong."""
    generator = np.random.default_rng(seed)
    kernel = np.random.default_rng(0).normal(size=(6, 3))
    x = generator.normal(size=(num_items, 6)).astype("float32")
    truth = (x @ kernel).argmax(-1)
    wrong = generator.uniform(size=num_items) < noise
    return x, np.where(wrong, generator.integers(0, 3, num_items), truth).astype("int32"), kernel


def make():
    keras.utils.set_random_seed(5)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    x, y, kernel = noisy(NUM_ITEMS, 1)
    store = kd.targets.label(
        lambda x: x @ (4 * kernel).astype("float32"), x, folder / "t", teacher_fingerprint="kernel"
    )
    validation = noisy(200, 2, noise=0.0)[:2]
    return (x, y), validation, store


def tune(problem, out, **changes):
    options = {"epochs": EPOCHS, "batch_size": BATCH, "learning_rate": 0.01} | changes
    return kd.tune(make, *problem, out, **options)


@pytest.fixture(scope="module")
def tuned(problem, tmp_path_factory):
    """One tuning, its folder, and the steps that were really made."""
    made = []
    fit = tuning.Distiller.fit

    def counting(self, *arguments, **options):
        before = int(self.optimizer.iterations)
        history = fit(self, *arguments, **options)
        made.append(int(self.optimizer.iterations) - before)
        return history

    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.Distiller, "fit", counting)
        found = tune(problem, folder)
    return found, folder, sum(made)


def test_it_costs_no_more_than_four_trainings_and_labels_once_more(tuned):
    found, _, made = tuned
    assert found.steps_of_one == STEPS
    num_more = sum(trial["study"] == "labels" for trial in found.trials) - 4
    assert num_more in (0, 1)
    assert made == found.num_steps == sum(trial["steps"] for trial in found.trials) <= (4 + num_more) * STEPS


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 7, 9, 20, 667])
@pytest.mark.parametrize("max_cost", [2.0, 3.0, 4.0])
def test_no_length_of_training_costs_more_than_was_allowed(epochs, max_cost):
    training = tuning.Training(((), np.zeros(10)), ((), ()), None, epochs, 5, 0)
    sizes = next(sizes for sizes in tuning._SIZES if training.cost(*sizes) <= max_cost)
    for size in sizes:
        rungs = training.rungs(size)
        assert rungs[-1] == (epochs, 1)
        assert rungs[0][1] == size
    if epochs >= 8 and max_cost == 4.0:
        assert sizes == (4, 8)


def test_what_is_chosen_is_the_best_that_was_trained_to_its_end(problem, tuned):
    found, _, _ = tuned
    whole = [trial for trial in found.trials if trial["state"] == "complete"]
    assert sorted({trial["study"] for trial in whole}) == ["distilled", "labels"]
    assert all(trial["steps"] == STEPS for trial in whole)
    assert found.score == min(trial["score"] for trial in whole)
    # With a third of the labels wrong and a teacher that knows better, the teacher.
    assert found.candidate.student_loss_weight < 1.0 == found.labels_candidate.student_loss_weight
    inputs, labels = problem[1]
    for student, score in ((found.student, found.score), (found.labels_student, found.labels_score)):
        logits = np.asarray(student(inputs), "float64")
        nll = min(metrics.negative_log_likelihood(logits, labels, t) for t in np.geomspace(0.05, 50, 400))
        assert score == pytest.approx(nll, abs=1e-3)


def test_the_history_is_that_of_the_students(problem, tuned):
    found, _, _ = tuned
    inputs, labels = problem[1]
    for student, history in ((found.student, found.history), (found.labels_student, found.labels_history)):
        assert {len(values) for values in history.values()} == {EPOCHS}
        assert history["loss"][-1] < history["loss"][0]
        logits = np.asarray(student(inputs), "float64")
        assert history["val_accuracy"][-1] == pytest.approx((logits.argmax(-1) == labels).mean(), abs=1e-6)
        nll = metrics.negative_log_likelihood(logits, labels)
        assert history["val_loss"][-1] == pytest.approx(nll, rel=1e-4)


def test_items_without_a_label_teach_by_their_soft_targets_alone(problem, tmp_path, monkeypatch):
    (x, y), validation, store = problem
    # Were the labels of the others read, they would teach class 0 alone.
    hidden = np.where(np.arange(NUM_ITEMS) < 24, y, -1)
    seen = []
    attach = training.attach

    def watched(examples, *arguments, **options):
        seen.append(np.asarray(examples[1]))
        return attach(examples, *arguments, **options)

    monkeypatch.setattr(training, "attach", watched)
    found = tune(((x, hidden), validation, store), tmp_path / "s", max_cost=2.0, epochs=2)
    # Labels alone see the labelled items, four times each; distilled candidates all of them.
    np.testing.assert_array_equal(seen[0], np.tile(y[:24], 4))
    np.testing.assert_array_equal(seen[-1], hidden)
    assert found.steps_of_one == 2 * 3
    assert found.candidate.student_loss_weight < 1.0
    with pytest.raises(ValueError, match="some of the training examples must have a label; got −1 for all"):
        tune(((x, np.full(NUM_ITEMS, -1)), validation, store), tmp_path / "none")


def test_half_of_each_study_goes_on_at_each_rung(tuned):
    found, _, _ = tuned
    for study, steps in (("labels", [1, 1, 2, 8]), ("distilled", [1, 1, 1, 1, 2, 2, 4, 8])):
        # Labels once more, if they were, are last.
        of_study = [trial for trial in found.trials if trial["study"] == study][: len(steps)]
        assert sorted(trial["steps"] for trial in of_study) == [n * NUM_ITEMS // BATCH for n in steps]


def test_labels_alone_try_a_greater_rate_where_the_greatest_began_best(problem, tmp_path):
    found = tune(problem, tmp_path, learning_rate=1e-4)
    rates = [trial["learning_rate"] for trial in found.trials if trial["study"] == "labels"]
    assert sorted(rates[:4]) == pytest.approx([1e-4, 3e-4, 1e-3, 3e-3])
    assert found.is_rate_too_low


def test_labels_are_trained_once_more_at_the_rate_of_a_distilled_student_that_is_better(tmp_path):
    """The teacher says what the labels say: all that a greater rate brings would be taken for distilling's."""
    x, y, _ = noisy(NUM_ITEMS, 1, noise=0.0)
    store = kd.targets.label(
        lambda x: x @ (4 * np.random.default_rng(0).normal(size=(6, 3))).astype("float32"),
        x,
        tmp_path / "t",
        teacher_fingerprint="kernel",
    )
    problem = (x, y), noisy(200, 2, noise=0.0)[:2], store
    found = tune(problem, tmp_path / "s", learning_rate=1e-4)
    distilled = [trial for trial in found.trials if trial["study"] == "distilled" and trial["state"] == "complete"]
    (rate,) = {trial["learning_rate"] for trial in distilled}
    whole = [trial for trial in found.trials if trial["study"] == "labels" and trial["state"] == "complete"]
    assert rate > whole[0]["learning_rate"]
    assert [trial["learning_rate"] for trial in whole[1:]] == [rate]
    assert found.labels_candidate.learning_rate == rate
    assert found.labels_score == whole[1]["score"] < whole[0]["score"]
    assert found.num_steps <= 5 * STEPS
    # Killed or not, it goes on with what is there.
    again = tune(problem, tmp_path / "s", learning_rate=1e-4)
    assert (again.labels_score, again.score, again.trials) == (found.labels_score, found.score, found.trials)
    np.testing.assert_array_equal(again.labels_student(x), found.labels_student(x))


def test_labels_alone_win_where_the_teacher_knows_nothing(problem, tmp_path):
    (x, _), validation, _ = problem
    truth = noisy(NUM_ITEMS, 1, noise=0.0)[1]
    store = kd.targets.label(lambda x: 0 * x[:, :3] + [[3.0, 0.0, 0.0]], x, tmp_path / "t", teacher_fingerprint="none")
    found = tune(((x, truth), validation, store), tmp_path / "s", max_cost=2.0, student_loss_weight=0.0)
    assert found.candidate == found.labels_candidate
    assert found.candidate.student_loss_weight == 1.0
    assert found.num_steps <= 2 * STEPS


class Killed(BaseException):
    pass


def test_a_tuning_that_is_killed_again_and_again_ends_in_the_same_student(problem, tuned, tmp_path, monkeypatch):
    found, _, _ = tuned
    go_on, calls = tuning.Training.go_on, []

    def killed(self, *arguments):
        calls.append(arguments)
        if len(calls) in (3, 14):
            raise Killed
        return go_on(self, *arguments)

    monkeypatch.setattr(tuning.Training, "go_on", killed)
    for _ in range(2):
        with pytest.raises(Killed):
            tune(problem, tmp_path / "s")
    again = tune(problem, tmp_path / "s")
    assert again.candidate == found.candidate
    assert again.history["loss"] == pytest.approx(found.history["loss"], rel=1e-4)
    assert again.score == pytest.approx(found.score, rel=1e-5)
    assert again.trials == [trial | {"score": pytest.approx(trial["score"], rel=1e-5)} for trial in found.trials]
    for a, b in zip(again.student.get_weights(), found.student.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_finished_study_is_read_and_one_of_other_settings_refused(problem, tuned, tmp_path, monkeypatch):
    found, folder, _ = tuned
    shutil.copytree(folder, tmp_path / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(tuning.Training, "begin", None)
        assert tune(problem, tmp_path / "copy").candidate == found.candidate
    with pytest.raises(
        ValueError, match=r"copy must be the study of these settings; got one of another batch_size, seed"
    ):
        tune(problem, tmp_path / "copy", seed=1, batch_size=16)
    # Fewer candidates leave other students behind, and other labels make other ones.
    with pytest.raises(ValueError, match=r"got one of another max_cost"):
        tune(problem, tmp_path / "copy", max_cost=2.0)
    ((x, y), validation, store) = problem
    with pytest.raises(ValueError, match=r"got one of another labels or validation data"):
        tune(((x, y[::-1]), validation, store), tmp_path / "copy")
    with pytest.raises(ValueError, match=r"max_cost must be >= 2 trainings; got 1"):
        tune(problem, tmp_path / "new", max_cost=1)


def test_of_a_single_epoch_the_best_is_kept_and_not_the_last(problem, tmp_path):
    found = tune(problem, tmp_path, epochs=1, max_cost=12.0, learning_rate=0.03)
    inputs, labels = problem[1]
    for student, score in ((found.student, found.score), (found.labels_student, found.labels_score)):
        logits = np.asarray(student(inputs))
        assert metrics.negative_log_likelihood(logits, labels, metrics.best_temperature(logits, labels)) == (
            pytest.approx(score, rel=1e-4)
        )
    # NumPy's whole numbers are whole numbers, rows of classes are classes, and the study goes on with them.
    (x, y), (validation_x, validation_y), store = problem
    same = (x, np.eye(3, dtype="float32")[y]), (validation_x, validation_y[:, None]), store
    assert tune(same, tmp_path, epochs=np.int64(1), max_cost=12.0, learning_rate=0.03).score == found.score


@pytest.mark.parametrize("what", ["an architecture", "weights", "rows", "a file"])
def test_a_folder_of_another_student_or_other_rows_is_refused(problem, tuned, tmp_path, what):
    """Its students' weights would fit: nothing but the study's word says whose they are."""
    folder = tmp_path / "study"
    shutil.copytree(tuned[1], folder)
    train, validation, store = problem
    match = {"rows": "one of another kind of rows", "a file": "must be the student that the study knows"}

    def another():
        keras.utils.set_random_seed(6 if what == "weights" else 5)
        activation = "tanh" if what == "an architecture" else "relu"
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(16, activation), keras.layers.Dense(3)])

    if what == "rows":
        logits = lambda x: x @ np.zeros((6, 3), "float32")  # noqa: E731
        store = kd.targets.label(logits, train[0], tmp_path / "t", teacher_fingerprint="kernel", top_k=2)
    elif what == "a file":
        another().save(folder / "labels.keras")
    with pytest.raises(ValueError, match=match.get(what, "one of another student")):
        kd.tune(another, train, validation, store, folder, epochs=EPOCHS, batch_size=BATCH, learning_rate=0.01)


def test_labels_that_the_teacher_does_not_know_are_refused_with_whose_they_are(problem, tmp_path):
    (x, y), (validation_x, validation_y), store = problem
    for train, validation, message in (
        ((x, y + 1), problem[1], r"the training labels must be in \[-1, 3\); got 3"),
        ((x, y), (validation_x, validation_y - 1), r"the validation labels must be in \[0, 3\); got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            kd.tune(make, train, validation, store, tmp_path / "s", epochs=2)
    named = np.array(["a", "b", "c"])[y]
    with pytest.raises(ValueError, match=r"the training labels must be whole numbers; got <U1\. Number them"):
        kd.tune(make, (x, named), problem[1], store, tmp_path / "s", epochs=2)
    assert not (tmp_path / "s").exists()
    one = kd.targets.label(lambda x: x[:, :1], x, tmp_path / "one", teacher_fingerprint="first column")
    with pytest.raises(ValueError, match="One sigmoid unit of logit z is the two logits 0 and z"):
        kd.tune(make, (x, y), problem[1], one, tmp_path / "s", epochs=2)


def test_a_store_whose_views_blend_items_is_refused(tmp_path):
    x, y = np.random.default_rng(0).random((16, 4, 4, 1), dtype="float32"), np.arange(16) % 3
    blended = kd.targets.Augmentation(keras.layers.MixUp(), seed=1)
    logits = lambda x: np.asarray(x).reshape(-1, 16)[:, :3]  # noqa: E731
    store = kd.targets.label(logits, x, tmp_path / "t", teacher_fingerprint="pixels", augmentation=blended, views=2)
    with pytest.raises(ValueError, match="must be one that blends no items; got MixUp"):
        kd.tune(make, (x, y), (x, y), store, tmp_path / "s", epochs=2)


def test_soft_targets_by_name_are_what_is_tuned_without_a_name(problem, tuned, tmp_path):
    found = tune(problem, tmp_path, distillation_losses=lambda temperature: kd.losses.SoftTargets(temperature))
    assert found.candidate == tuned[0].candidate
    for one, other in zip(found.distilled_student.weights, tuned[0].distilled_student.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_loss_is_tuned_at_each_candidates_temperature(problem, tmp_path):
    asked = []

    def losses(temperature):
        asked.append(temperature)
        return kd.losses.DIST(temperature)

    found = tune(problem, tmp_path, distillation_losses=losses, max_cost=2.0)
    assert {trial["temperature"] for trial in found.trials} <= set(asked)
    with pytest.raises(ValueError, match="one of another losses"):
        tune(problem, tmp_path, max_cost=2.0)


@pytest.mark.parametrize(
    ("losses", "received"),
    [(kd.losses.DIST(4.0), "a DIST"), ("DIST", "a str"), (kd.losses.LogitMatching, "LogitMatching, whose first")],
)
def test_what_makes_no_loss_of_a_temperature_is_refused(problem, tmp_path, losses, received):
    with pytest.raises(TypeError, match=f"must make losses of a temperature; got {received}"):
        tune(problem, tmp_path, distillation_losses=losses)


def test_a_loss_that_reads_layers_has_the_teacher_beside_it(problem, tmp_path):
    (x, y), validation, store = problem

    def with_hidden(units):
        keras.utils.set_random_seed(5)
        hidden = keras.layers.Dense(units, "relu", name="hidden")
        return keras.Sequential([keras.Input((6,)), hidden, keras.layers.Dense(3)])

    def tuned_beside(teacher):
        return kd.tune(
            lambda: with_hidden(4),
            (x, y),
            validation,
            store,
            tmp_path,
            epochs=EPOCHS,
            batch_size=BATCH,
            learning_rate=0.01,
            max_cost=2.0,
            distillation_losses=lambda temperature: [kd.losses.SoftTargets(temperature), kd.losses.Hint("hidden")],
            distillation_loss_weights=[1.0, 0.5],
            teacher=teacher,
        )

    teacher = with_hidden(8)
    found = tuned_beside(teacher)
    assert found.num_steps == 2 * STEPS
    teacher.set_weights([2 * weight for weight in teacher.get_weights()])
    with pytest.raises(ValueError, match="one of another losses"):
        tuned_beside(teacher)
    assert np.isfinite(found.score)
