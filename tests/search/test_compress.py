"""A budget in, a student out: what ships holds the budget, a kill changes nothing, bad input is refused."""

import json
import re
import shutil

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.data import Dataset, Split
from keras_distill.deploy import Budgets
from keras_distill.deploy.shipment import Provenance
from keras_distill.scale import Processes
from keras_distill.search import compressing, finishing
from keras_distill.search.cost import Cost, Meter
from keras_distill.search.families import Own
from keras_distill.search.fitting import Fitter
from keras_distill.search.training import Recipe, Training, WeightAverage, score_of
from keras_distill.search.trials import Trial
from keras_distill.search.tuning import Tuned

pytest.importorskip("optuna", reason="Optuna is not installed: pip install keras-distill[tune]")
NUM_CLASSES = 3


def split(num_items, seed):
    """Bars of three directions under noise: a tiny convolution sees them, a pixel does not."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, NUM_CLASSES, num_items).astype("int32")
    images = generator.normal(0.0, 0.4, (num_items, 8, 8, 1)).astype("float32")
    for image, label in zip(images, labels, strict=True):
        place = generator.integers(1, 7)
        for step in range(8):
            row, column = [(place, step), (step, place), (step, (step + place) % 8)][label]
            image[row, column] += 1.5
    return Split(images, labels)


@pytest.fixture(scope="module")
def dataset():
    names = ("row", "column", "diagonal")
    return Dataset("bars", split(512, 0), split(256, 1), split(256, 2), names, "none")


@pytest.fixture(scope="module")
def teacher(dataset):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, activation="relu")(inputs)
    x = layers.MaxPooling2D(2)(layers.Conv2D(32, 3, activation="relu")(x))
    model = keras.Model(inputs, layers.Dense(NUM_CLASSES)(layers.Flatten()(x)))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(dataset.train.inputs, dataset.train.labels, epochs=15, verbose=0)
    return model


class Ruler:
    """A meter of closed form: four bytes a weight in float32, one in int8, and a nanosecond each."""

    def __init__(self, *_):
        pass

    def measure(self, model, precision, family):
        return self.predict(model, precision, family)

    def predict(self, model, precision, family):
        count = model.count_params()
        return Cost(count, count, count * (4 if precision == "float32" else 1) + 100, count * 1e-6)

    def learn(self, *_):
        pass

    def write(self, model, folder, precision):
        return kd.deploy.to_litert(model, folder / "student.tflite")


class Killed(BaseException):
    pass


class NoGate:
    """In place of the ship gate, which has tests of its own."""

    out = "bundle"
    outcomes = ()


def not_tuned(make_student, *_, **__):
    """In place of tuning, which has tests of its own: the student as it begins."""
    student, recipe = make_student(), Recipe(2.0, 0.5, 1e-3)
    return Tuned(recipe, 0.0, student, recipe, 0.0, student, recipe, student, {}, {}, 0, 1, [])


def searched(teacher, dataset, out, monkeypatch, **changes):
    """A search by closed-form costs, without the end."""
    monkeypatch.setattr(compressing, "Meter", Ruler)
    monkeypatch.setattr(finishing, "tune", not_tuned)
    monkeypatch.setattr(finishing, "ship", lambda *_, **__: NoGate())
    settings = {"epochs": 8, "batch_size": 64, "num_trials": 4, "precisions": ["float32"]} | changes
    return kd.compress(teacher, dataset, Budgets(max_size=4000), out, **settings)


@pytest.mark.slow
def test_what_ships_holds_its_budgets_in_the_runtime(teacher, dataset, tmp_path):
    said = []
    found = kd.compress(
        teacher, dataset, Budgets(max_size=9000, max_latency_ms=50.0, max_accuracy_drop=0.05), tmp_path / "out",
        epochs=16, batch_size=64, num_trials=2, precisions=["int8"], on_progress=said.append,
    )  # fmt: skip
    assert found.bundle == tmp_path / "out" / "bundle"
    manifest = json.loads((found.bundle / "manifest.json").read_text())
    (artifact,) = manifest["artifacts"].values()
    assert (found.bundle / artifact["file"]).stat().st_size <= 9000
    assert artifact["latency"]["p50_ms"] <= 50.0
    record = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert record["shipped"]
    assert len(record["trials"]) == 2
    assert record["test_errors"]["student"] < 0.4
    assert found.cost <= 10.0
    saved = keras.models.load_model(tmp_path / "out" / "student.keras")
    np.testing.assert_allclose(saved(dataset.test.inputs), found.student(dataset.test.inputs), rtol=1e-5, atol=1e-5)
    page = (tmp_path / "out" / "report.html").read_text()
    assert len(re.findall(r"<title>\d+: ", page)) == 2 * sum(trial.state != "failed" for trial in found.trials)
    first, second = re.findall(r'<p class="verdict (\w+)">([^<]+)</p>', page.split("<section>")[0])
    assert first[0] == "good"
    assert f"{artifact['bytes']:,} bytes" in first[1]
    assert found.verdict.word in second[1]
    assert "<summary>All 9 columns</summary>" in page
    assert [each.num_ended for each in said] == sorted(each.num_ended for each in said)
    assert not (tmp_path / "out" / "trials").exists()


def test_the_best_on_validation_data_that_holds_is_chosen(teacher, dataset, tmp_path, monkeypatch):
    found = searched(teacher, dataset, tmp_path, monkeypatch, num_trials=10)
    whole = [trial for trial in found.trials if trial.state == "finished"]
    assert found.trial in whole
    assert found.trial.score == min(trial.score for trial in whole)
    assert all(trial.cost.num_bytes <= 4000 for trial in found.trials if trial.cost)
    # Two brackets, of eight and of two, each halved.
    assert sorted(trial.epochs for trial in found.trials if trial.bracket == 0) == [1, 1, 1, 1, 2, 2, 4, 8]
    assert {trial.family for trial in found.trials} == {"pruned", "convnet", "separable_convnet", "mlp"}
    for one in found.front:
        better = [
            t for t in found.trials if t.cost and t.cost.latency_ms <= one.cost.latency_ms and t.score < one.score
        ]
        assert not better


@pytest.mark.slow
def test_killed_at_ten_moments_it_ends_in_the_same_front_and_trains_nothing_twice(
    teacher, dataset, tmp_path, monkeypatch
):
    whole = searched(teacher, dataset, tmp_path / "whole", monkeypatch)
    go_on, done, calls = Training.go_on, [], []
    moments = set(np.random.default_rng(3).choice(np.arange(1, 25), 10, replace=False).tolist())

    def killed(self, distiller, start, stop):
        calls.append((start, stop))
        if len(calls) in moments:
            raise Killed
        part = go_on(self, distiller, start, stop)
        done.append((start, stop))
        return part

    monkeypatch.setattr(Training, "go_on", killed)
    for _ in range(11):
        try:
            again = searched(teacher, dataset, tmp_path / "killed", monkeypatch)
        except Killed:
            continue
        break
    assert [trial.number for trial in again.front] == [trial.number for trial in whole.front]
    for one, other in zip(again.trials, whole.trials, strict=True):
        assert (one.family, one.width, one.cost, one.state) == (other.family, other.width, other.cost, other.state)
        assert one.scores == pytest.approx(other.scores, rel=1e-3)
    # Of the candidates no part that was scored is trained again: epochs that were trained are those that were scored.
    of_candidates = sum(trial.epochs for trial in again.trials)
    calls.clear()
    searched(teacher, dataset, tmp_path / "killed", monkeypatch)
    assert not calls
    assert sum(stop - start for start, stop in done) >= of_candidates


@pytest.mark.slow
def test_workers_find_what_one_process_finds(teacher, dataset, tmp_path, monkeypatch):
    alone, beside = (
        searched(teacher, dataset, tmp_path / str(engine is None), monkeypatch, num_trials=2, engine=engine)
        for engine in (None, Processes(2, threads_per_worker=1))
    )
    for one, other in zip(alone.trials, beside.trials, strict=True):
        assert (one.family, one.width, one.state) == (other.family, other.width, other.state)
        assert one.scores == pytest.approx(other.scores, rel=1e-3)
    assert not (tmp_path / "False" / "trials").exists()


def test_a_candidate_that_breaks_costs_only_itself(teacher, dataset, tmp_path, monkeypatch):
    predict = Ruler.predict

    def broken(self, model, precision, family):
        if family == "mlp":
            raise RuntimeError("the converter died of SIGSEGV while converting.")
        return predict(self, model, precision, family)

    monkeypatch.setattr(Ruler, "predict", broken)
    found = searched(teacher, dataset, tmp_path, monkeypatch)
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert failed
    assert {trial.family for trial in failed} == {"mlp"}
    assert "SIGSEGV" in failed[0].reason
    assert found.trial.family != "mlp"


def test_a_teacher_that_is_no_graph_leaves_the_hand_made_families(dataset, tmp_path, monkeypatch):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(NUM_CLASSES)

        def call(self, x):
            return self.dense(keras.ops.reshape(x, (-1, 64)))

    own = Own()
    own(dataset.train.inputs[:2])
    mine = {"mine": lambda width: keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)])}
    found = searched(own, dataset, tmp_path, monkeypatch, num_trials=4, families=mine, any_teacher=True)
    assert "subclassed" in found.notes[0]
    assert {trial.family for trial in found.trials} <= {"convnet", "separable_convnet", "mlp", "mine"}


def test_an_ensemble_gives_its_best_member(teacher, dataset, tmp_path, monkeypatch):
    poor = keras.models.clone_model(teacher)
    found = searched(kd.Ensemble([poor, teacher]), dataset, tmp_path, monkeypatch, num_trials=2)
    assert "member 2 is cut, the best of 2" in found.notes[0]


def test_stopped_early_it_finishes_the_best_so_far(teacher, dataset, tmp_path, monkeypatch):
    asked = []
    found = searched(teacher, dataset, tmp_path, monkeypatch, is_stopped=lambda: asked.append(1) or len(asked) > 2)
    assert {trial.bracket for trial in found.trials} == {0}
    assert all(trial.epochs < 8 for trial in found.trials)
    assert found.trial.score == min(trial.score for trial in found.trials)


@pytest.mark.parametrize(
    ("budgets", "changes", "message"),
    [
        (Budgets(), {}, "there must be a budget; got none"),
        (Budgets(max_size=100), {}, r"some candidate can hold; got 100 bytes. The nearest is the narrowest \w+ in"),
        (Budgets(max_size=5000), {"runtime": "tensorrt"}, "runtime must be"),
        (Budgets(max_size=5000), {"precisions": ["int4"]}, "precisions must be"),
        (Budgets(max_size=5000), {"num_trials": 0}, "num_trials must be"),
        (Budgets(max_size=5000), {"minutes": -1.0}, "minutes must be"),
    ],
)
def test_bad_input_is_refused(teacher, dataset, tmp_path, monkeypatch, budgets, changes, message):
    monkeypatch.setattr(compressing, "Meter", Ruler)
    with pytest.raises(ValueError, match=message):
        kd.compress(teacher, dataset, budgets, tmp_path / "out", epochs=1, **changes)


def test_a_study_of_other_budgets_or_another_teacher_is_refused(teacher, dataset, tmp_path, monkeypatch):
    searched(teacher, dataset, tmp_path / "out", monkeypatch, num_trials=2)
    with pytest.raises(ValueError, match="must be the study of these settings; got one of another batch_size"):
        searched(teacher, dataset, tmp_path / "out", monkeypatch, num_trials=2, batch_size=32)
    another = keras.models.clone_model(teacher)
    with pytest.raises(ValueError, match="The teacher has changed since"):
        searched(another, dataset, tmp_path / "out", monkeypatch, num_trials=2, any_teacher=True)
    # The store knows the training inputs alone.
    other = Split(dataset.validation.inputs, dataset.validation.labels[::-1])
    relabelled = Dataset("bars", dataset.train, other, dataset.test, dataset.class_names, "none")
    with pytest.raises(ValueError, match="another labels or validation data"):
        searched(teacher, relabelled, tmp_path / "out", monkeypatch, num_trials=2, any_teacher=True)
    with pytest.raises(ValueError, match="another families"):
        searched(teacher, dataset, tmp_path / "out", monkeypatch, num_trials=2, families={"mine": small("relu")})
    shutil.rmtree(tmp_path / "out")


def small(activation):
    def build(width):
        units = max(1, round(16 * width))
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(units, activation),
                keras.layers.Dense(3),
            ]
        )

    return build


def test_a_study_of_another_family_of_the_same_name_is_refused(teacher, dataset, tmp_path, monkeypatch):
    """Weights of one would fit into the other."""
    searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1, families={"mine": small("relu")})
    searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1, families={"mine": small("relu")})
    with pytest.raises(ValueError, match="another families"):
        searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1, families={"mine": small("tanh")})


def test_the_report_says_how_many_were_judged_on_the_test_set(teacher, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(NoGate, "out", None)
    found = searched(teacher, dataset, tmp_path, monkeypatch, num_trials=8, epochs=8)
    num_finished = sum(trial.state == "finished" for trial in found.trials)
    assert json.loads((tmp_path / "compression.json").read_text())["num_judged_on_test"] == num_finished
    told = f"{num_finished} candidates were judged on the test set" in (tmp_path / "report.html").read_text()
    assert told == (num_finished > 1)


def test_a_teacher_of_one_sigmoid_unit_is_refused_with_what_to_do(dataset, tmp_path, monkeypatch):
    inputs = keras.Input((8, 8, 1))
    unit = keras.Model(inputs, layers.Dense(1, activation="sigmoid")(layers.Flatten()(inputs)))
    with pytest.raises(ValueError, match=r"the 3 classes of bars apart; got outputs of 1\. One sigmoid unit"):
        searched(unit, dataset, tmp_path, monkeypatch)


def test_a_teacher_that_knows_nothing_is_refused_unless_somebody_insists(teacher, dataset, tmp_path, monkeypatch):
    moved = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(0.0), teacher])
    with pytest.raises(ValueError, match=r"the teacher must know .* of bars; got .* With any_teacher=True it is taken"):
        searched(moved, dataset, tmp_path / "asked", monkeypatch)
    assert searched(moved, dataset, tmp_path, monkeypatch, any_teacher=True, num_trials=1).teacher_error > 0.5


def test_the_estimate_comes_before_the_first_training(teacher, dataset, tmp_path, monkeypatch):
    timed, said, seconds = Training.timed, [], []
    monkeypatch.setattr(Training, "timed", lambda *arguments: seconds.append(timed(*arguments)) or (1.0, 3.0))
    searched(teacher, dataset, tmp_path, monkeypatch, num_trials=2, on_progress=said.append)
    first = next(each for each in said if each.seconds_left is not None)
    assert first.best is None
    # Two candidates for one epoch, one of them for seven more, and four trainings of eight that tune it; a second for
    # each of the two and of the twelve recipes.
    assert first.seconds_left == pytest.approx((2 + 7 + 4 * 8) * 3.0 + 2 + 12)
    ((to_begin, an_epoch),) = seconds
    assert 0.0 < an_epoch < to_begin


def test_of_several_seeds_the_best_ships_and_the_verdict_is_over_all(teacher, dataset, tmp_path, monkeypatch):
    shipped = []
    monkeypatch.setattr(NoGate, "__init__", lambda self: shipped.append(self))
    found = searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1, seeds=3)
    assert found.verdict.num_seeds == 3
    # One training of one candidate, and two of each recipe.
    assert found.cost == pytest.approx(1.0 + 4.0)
    kept = sorted(path.name for path in (tmp_path / "tuning" / "0-4").iterdir())
    assert kept == ["distilled-1.keras", "distilled-2.keras"]
    scores = []
    for name in kept:
        each = keras.models.load_model(tmp_path / "tuning" / "0-4" / name)
        logits = np.asarray(each(dataset.validation.inputs))
        scores.append(score_of(logits, dataset.validation.labels))
    best = keras.models.load_model(tmp_path / "tuning" / "0-4" / kept[int(np.argmin(scores))])
    np.testing.assert_allclose(found.student(dataset.test.inputs), best(dataset.test.inputs), rtol=1e-5, atol=1e-5)
    # Called again it trains nothing.
    monkeypatch.setattr(Training, "go_on", None)
    again = searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1, seeds=3)
    assert again.test_errors == found.test_errors


def test_what_was_tuned_in_a_hurry_and_at_leisure_is_kept_apart(teacher, dataset, tmp_path, monkeypatch):
    found = searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1, seeds=2)
    hurried = searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1, seeds=2, is_stopped=lambda: True)
    again = searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1, seeds=2)
    assert {path.name for path in (tmp_path / "tuning").iterdir()} == {"0-4", "0-2"}
    assert hurried.cost == found.cost
    assert again.test_errors == found.test_errors


def test_a_student_on_labels_alone_does_not_ship_as_one_that_was_distilled(teacher, dataset, tmp_path, monkeypatch):
    shipped = []
    for weight in (1.0, 0.5):

        def tuned(make_student, *_, weight=weight, **__):
            student, recipe = make_student(), Recipe(2.0, weight, 1e-3)
            return Tuned(recipe, 0.0, student, recipe, 0.0, student, recipe, student, {}, {}, 0, 1, [])

        searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1)
        monkeypatch.setattr(finishing, "tune", tuned)
        monkeypatch.setattr(finishing, "ship", lambda *_, provenance, **__: shipped.append(provenance) or NoGate())
        settings = {"epochs": 8, "batch_size": 64, "num_trials": 1, "precisions": ["float32"]}
        found = kd.compress(teacher, dataset, Budgets(max_size=4000), tmp_path, **settings)
        assert found.verdict is not None
    on_labels, distilled = shipped
    assert on_labels.verdict is None
    assert on_labels.source.endswith("found by compress, trained on labels alone")
    assert distilled.verdict is not None
    assert distilled.source.endswith("found by compress, distilled")


@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="quantisation-aware training is TensorFlow's")
@pytest.mark.parametrize("is_uneven", [False, True])
def test_where_rounding_costs_the_student_is_trained_on_with_it(dataset, tmp_path, monkeypatch, is_uneven):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, activation="relu", name="wide")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3, activation="relu", name="narrow")(x))
    student = keras.Model(inputs, layers.Dense(NUM_CLASSES)(x))
    student.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    student.fit(dataset.train.inputs, dataset.train.labels, epochs=6, verbose=0)
    if is_uneven:
        # The same function, whose channels share no range that 255 steps could divide.
        scales = 10.0 ** np.linspace(-1.5, 1.5, 8)
        (kernel, bias), (after, rest) = (student.get_layer(name).get_weights() for name in ("wide", "narrow"))
        student.get_layer("wide").set_weights([kernel * scales, bias * scales])
        student.get_layer("narrow").set_weights([after / scales[:, None], rest])
    store = kd.targets.label(student, dataset.train.inputs, tmp_path / "targets", progress=False)
    train, validation = ((part.inputs, part.labels) for part in (dataset.train, dataset.validation))
    training = Training(train, validation, store, 40, 64, 0)
    recipe = Recipe(2.0, 0.5, 0.01)
    tuned = Tuned(recipe, 0.0, student, recipe, 0.0, student, recipe, student, {}, {}, 0, 1, [])
    monkeypatch.setattr(finishing, "tune", lambda *_, **__: tuned)
    shipped = []
    monkeypatch.setattr(
        finishing, "ship", lambda model, *_, targets, **__: shipped.append((model, targets)) or NoGate()
    )
    meter = Meter("litert", dataset.validation.inputs[:1], dataset.validation.inputs, {})
    fitter = Fitter(meter, 10_000, None, 0)
    fitter.families = {"mine": Own("mine", lambda width: student, dataset.train.inputs, NUM_CLASSES)}
    (tmp_path / "tuning" / "0-4").mkdir(parents=True)
    finish = finishing.Finish(
        student, dataset, Budgets(max_size=10_000), "litert", training, fitter, meter, tmp_path, 1, Provenance("it")
    )
    found = finish.run(Trial(0, 0, "mine", {}, "int8", 1.0, 1.0), 4.0, lambda _: None)

    def score(model, precision):
        return training.score(meter.logits(model, precision, dataset.validation.inputs))

    in_float, rounded = training.score(training.validation_logits(student)), score(student, "int8")
    if not is_uneven:
        assert rounded < 1.02 * in_float + 0.001
        assert found.quantized is None
        assert shipped == [(student, ["litert-int8"])]
        return
    assert rounded > in_float + 0.1
    assert shipped == [(found.quantized, ["litert"])]
    assert score(found.quantized, "float32") < rounded - 0.5 * (rounded - in_float)
    assert found.num_trainings == pytest.approx(0.25)
    # What is kept is read again, and not trained.
    monkeypatch.setattr(Training, "go_on", None)
    again = finish.run(Trial(0, 0, "mine", {}, "int8", 1.0, 1.0), 4.0, lambda _: None)
    np.testing.assert_array_equal(again.quantized(dataset.test.inputs), found.quantized(dataset.test.inputs))


@pytest.mark.parametrize("name", ["trials/thesis.txt", "bundle/b.txt", "report.html", "student.keras", "study.db"])
def test_files_that_no_search_made_stay(teacher, dataset, tmp_path, monkeypatch, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("somebody's own work")
    with pytest.raises(ValueError, match=f"must be new or hold a search; got {name.split('/')[0]} of another's"):
        searched(teacher, dataset, tmp_path, monkeypatch)
    assert (tmp_path / name).read_text() == "somebody's own work"


def test_two_searches_in_one_folder_are_one_too_many(teacher, dataset, tmp_path, monkeypatch):
    seen = []

    def second(_):
        if not seen:
            seen.append(True)
            with pytest.raises(BlockingIOError, match="one process alone must write to"):
                searched(teacher, dataset, tmp_path, monkeypatch)
            raise Killed

    with pytest.raises(Killed):
        searched(teacher, dataset, tmp_path, monkeypatch, on_progress=second)


def test_the_bundle_is_told_in_which_range_pixels_are(teacher, dataset, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(compressing, "Meter", Ruler)
    monkeypatch.setattr(finishing, "tune", not_tuned)
    monkeypatch.setattr(finishing, "ship", lambda *_, provenance, **__: told.append(provenance) or NoGate())
    settings = {"epochs": 1, "num_trials": 1, "precisions": ["float32"], "pixel_range": "0-255"}
    kd.compress(teacher, dataset, Budgets(max_size=4000), tmp_path, **settings)
    assert told[0].pixel_range == "0-255"


def test_a_folder_whose_name_sqlite_would_cut_is_refused(teacher, dataset, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="must be without a question mark"):
        searched(teacher, dataset, tmp_path / "which?", monkeypatch)
    assert not (tmp_path / "which").exists()


def test_families_have_names_of_their_own(teacher, dataset, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="names of their own; got mlp"):
        searched(teacher, dataset, tmp_path, monkeypatch, families={"mlp": lambda _: teacher})


def test_a_bundle_of_an_earlier_run_goes_where_nothing_ships(teacher, dataset, tmp_path, monkeypatch):
    searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1)
    (tmp_path / "bundle").mkdir()
    monkeypatch.setattr(NoGate, "out", None)
    found = searched(teacher, dataset, tmp_path, monkeypatch, num_trials=1)
    assert found.bundle is None
    assert not (tmp_path / "bundle").exists()


def test_early_scores_do_not_wait_for_moving_statistics(dataset, tmp_path):
    store = kd.targets.label(lambda x: np.zeros((len(x), 3), "float32"), dataset.train.inputs, tmp_path / "targets",
                             teacher_fingerprint="none", progress=False)  # fmt: skip
    train, validation = ((part.inputs, part.labels) for part in (dataset.train, dataset.validation))
    training = Training(train, validation, store, 40, 64, 0)
    keras.utils.set_random_seed(0)
    student = kd.data.networks.separable_convnet((8, 8, 1), NUM_CLASSES, (16, 32))
    distiller = training.begin(student, Recipe(1.0, 1.0, 0.01))
    part = training.go_on(distiller, 0, 5)
    before = student.get_weights()
    assert training.score(training.logits_after(student, part, 5)) < 0.9 * training.score(
        training.validation_logits(student)
    )
    for one, other in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(training.logits_after(student, part, 40), training.validation_logits(student))


def test_the_average_of_weights_is_that_of_the_second_half():
    student = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False)])
    # Seven calls of three steps, the last of them shorter: weights 0 to 6, of which 3 to 6 count.
    average = WeightAverage(student, 20, 3)
    average.set_model(student)
    for call in range(7):
        student.set_weights([np.full((2, 1), float(call))])
        average.on_train_batch_end(3 * call + 2)
    (mean,) = average.weights
    np.testing.assert_allclose(mean, np.full((2, 1), (3 + 4 + 5 + 6) / 4))
