"""`keras-distill label`: a finished store, told in one line; bad input is one clear error."""

import keras
import numpy as np
import pytest

from keras_distill import data
from keras_distill.cli import main
from keras_distill.cli.label_folds import Anew
from keras_distill.report import metrics
from keras_distill.targets import SoftTargetStore, assign_folds


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    for name in ("a", "b"):
        keras.utils.set_random_seed(ord(name))
        model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")])
        model.save(folder / f"{name}.keras")
    return folder


def run(teachers, tmp_path, *options, names=("a",)):
    paths = [str(teachers / f"{name}.keras") for name in names]
    # They were never trained.
    options = ("--any-teacher", *options)
    return main(["label", "--teacher", *paths, "--data", "digits", "--out", str(tmp_path / "store"), *options])


def test_a_teacher_that_knows_nothing_is_refused_before_anything_is_labelled(teachers, tmp_path, capsys):
    # One that was never trained may know a little by luck; this one always says the same.
    model = keras.models.load_model(teachers / "a.keras")
    model.set_weights([0 * weight for weight in model.get_weights()])
    model.save(teachers / "nothing.keras")
    argv = ["--teacher", str(teachers / "nothing.keras"), "--data", "digits", "--out", str(tmp_path / "store")]
    assert main(["label", *argv]) == 2
    assert "nothing.keras must know the validation data of digits; got" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_label_writes_the_training_splits_targets(teachers, tmp_path, capsys):
    assert run(teachers, tmp_path, "--dtype", "float32") == 0
    store = SoftTargetStore.open(tmp_path / "store")
    split = data.load("digits").train
    teacher = keras.models.load_model(teachers / "a.keras")
    expected = keras.ops.convert_to_numpy(teacher(split.inputs))
    np.testing.assert_allclose(store.soft_targets(np.arange(len(split)), 1.0), expected, rtol=1e-4, atol=1e-6)
    captured = capsys.readouterr()
    assert "dense 10, float32) finished" in captured.out
    assert f"{len(split)} rows × 40 bytes" in " ".join(captured.err.split())


@pytest.mark.tensorflow
def test_top_k_shift_and_workers_reach_the_store(teachers, tmp_path, capsys):
    options = ("--top-k", "3", "--shift", "1")
    assert run(teachers, tmp_path, *options, "--process", "1/2") == 0
    assert "others are yet to finish" in capsys.readouterr().out
    assert run(teachers, tmp_path, *options, "--process", "0/2") == 0
    manifest = SoftTargetStore.open(tmp_path / "store").manifest
    assert (manifest.kind, manifest.top_k, manifest.num_views) == ("top_k", 3, 9)


def test_calibrate_asks_the_validation_split(teachers, tmp_path, capsys):
    dataset = data.load("digits")
    teacher = keras.models.load_model(teachers / "a.keras")
    teacher.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    teacher.fit(dataset.train.inputs, dataset.train.labels, epochs=5, verbose=0)
    teacher.save(teachers / "trained.keras")
    assert run(teachers, tmp_path, "--calibrate", "--dtype", "float32", names=("trained",)) == 0
    store = SoftTargetStore.open(tmp_path / "store")
    logits = np.log(keras.ops.convert_to_numpy(teacher(dataset.validation.inputs)))
    divisor = metrics.best_temperature(logits, dataset.validation.labels)
    expected = np.log(keras.ops.convert_to_numpy(teacher(dataset.train.inputs))) / divisor
    kept = store.read(np.arange(len(dataset.train)))
    np.testing.assert_allclose(kept - kept[:, :1], expected - expected[:, :1], rtol=1e-2, atol=1e-3)
    capsys.readouterr()
    assert main(["store", str(tmp_path / "store")]) == 0
    assert f"logits / {divisor:.3g}" in capsys.readouterr().out


def test_classes_are_drawn_at_a_temperature_by_a_seed(teachers, tmp_path, capsys):
    assert run(teachers, tmp_path, "--sample", "4", "--temperature", "2", "--seed", "5") == 0
    assert "4 sampled of 10" in capsys.readouterr().out
    manifest = SoftTargetStore.open(tmp_path / "store").manifest
    assert (manifest.sample, manifest.sampling_temperature, manifest.sampling_seed) == (4, 2.0, 5)
    assert main(["store", str(tmp_path / "store")]) == 0
    told = capsys.readouterr().out
    assert "format 3" in told
    assert "serves the temperature 2 alone" in told
    assert "4 classes drawn (this one)" in told
    # A loss of another temperature is refused before anything is trained.
    options = ["--store", str(tmp_path / "store"), "--student", str(teachers / "b.keras"), "--data", "digits"]
    out = ["--out", str(tmp_path / "student.keras"), "--any-teacher"]
    assert main(["distill", *options, *out, "--temperature", "4"]) == 2
    assert "temperature must be 2.0, at which the rows were sampled; got 4.0" in capsys.readouterr().err


def test_several_teachers_are_kept_or_merged(teachers, tmp_path):
    assert run(teachers, tmp_path, "--members", names=("a", "b")) == 0
    assert SoftTargetStore.open(tmp_path / "store").manifest.member_weights == (0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--process", "2/2"), "--process must be I/N"),
        (("--process", "half"), "--process must be I/N"),
        (("--top-k", "11"), "--top-k must be <= 10"),
        (("--sample", "11"), "sample must be <= 10"),
        (("--sample", "4", "--top-k", "3"), "--sample must be given alone; got --top-k 3."),
        (("--learning-rate", "0.1"), "--learning-rate must be given with --folds; got no --folds"),
        (("--epochs", "3"), "--epochs must be given with --folds; got no --folds"),
        (("--temperature", "2"), "unless the teacher is an arithmetic ensemble"),
    ],
)
def test_bad_options_are_one_clear_error(teachers, tmp_path, capsys, options, message):
    assert run(teachers, tmp_path, *options) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("keras-distill label: error: ")
    assert message in printed
    assert "user code" not in printed
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_several_teachers_without_a_choice_and_another_teacher_are_refused(teachers, tmp_path, capsys):
    assert run(teachers, tmp_path, names=("a", "b")) == 2
    assert "Pass --members, or the temperature" in capsys.readouterr().err
    assert run(teachers, tmp_path) == 0
    assert run(teachers, tmp_path, names=("b",)) == 2
    assert "The teacher has changed since" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused_and_left_alone(teachers, tmp_path, capsys):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "holiday.jpg").write_bytes(b"mountains")
    assert run(teachers, tmp_path) == 2
    assert "got a folder of something else. Name a new folder" in " ".join(capsys.readouterr().err.split())
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--folds", "1", "--teacher", "a"), "--folds must be >= 2; got 1. 5 is usual."),
        (("--folds", "3"), "one of --teacher and, with --folds, --make-teacher must be given; got none"),
        (("--make-teacher", "a:b", "--teacher", "a"), "--make-teacher must be given with --folds"),
        (("--folds", "3", "--make-teacher", "a:b", "--teacher", "a"), "must be given; got both"),
        (
            ("--folds", "3", "--make-teacher", "math:pi"),
            "must be a function (inputs, labels, fold); got a float",
        ),
        (
            ("--folds", "3", "--teacher", "a", "b"),
            "which must be one Keras model; got 2 teachers",
        ),
        (
            ("--folds", "3", "--make-teacher", "math:sin"),
            "math:sin must be a function (inputs, labels, fold); got one of (x, /). It is called once a fold",
        ),
        (
            ("--folds", "3", "--teacher", "a", "--workers", "2"),
            "--folds must be given without --engine and --workers; got --workers 2. Start the processes yourself",
        ),
    ],
)
def test_options_of_folds_that_do_not_go_together_are_one_clear_error(teachers, tmp_path, capsys, options, message):
    options = [str(teachers / f"{option}.keras") if option in ("a", "b") else option for option in options]
    assert main(["label", *options, "--data", "digits", "--out", str(tmp_path / "store")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "store").exists()


def test_folds_train_the_teacher_anew_and_say_what_it_knows_of_what_it_has_not_seen(teachers, tmp_path, capsys):
    """The architecture `a`, by plain Keras with the same seeds, answers the same of the fold that it has not seen."""
    out = tmp_path / "store"
    argv = ["label", "--teacher", str(teachers / "a.keras"), "--data", "digits", "--out", str(out)]
    options = ["--dtype", "float32", "--folds", "3", "--epochs", "4", "--learning-rate", "0.01", "--seed", "4"]
    assert main([*argv, *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    store, split = SoftTargetStore.open(out), data.load("digits").train
    probabilities = store.soft_targets(np.arange(len(split)), 1.0)
    right = np.count_nonzero(probabilities.argmax(-1) == split.labels)
    assert f"the teachers, on items that they had not seen: {right:,} of {len(split):,} right" in printed
    seen = assign_folds(split.labels, 3, seed=4) != 1
    loaded = keras.models.load_model(teachers / "a.keras")
    keras.utils.set_random_seed(4001)
    twin = keras.models.clone_model(loaded)
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 4 * -(-int(seen.sum()) // 128))
    twin.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    twin.fit(split.inputs[seen], split.labels[seen], batch_size=128, epochs=4, verbose=0)
    np.testing.assert_allclose(probabilities[~seen], twin.predict(split.inputs[~seen], verbose=0), rtol=1e-3, atol=1e-5)
    assert main(["store", str(out)]) == 0
    assert "each of 3 folds by one that was trained without it" in " ".join(capsys.readouterr().out.split())


def test_what_is_frozen_in_a_teacher_stays_as_it_is():
    inputs = keras.Input((4,))
    normalised = keras.layers.Normalization(mean=None, variance=None)
    normalised.adapt(np.random.default_rng(0).normal(3.0, 2.0, (50, 4)).astype("float32"))
    encoder = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu")], name="encoder")
    encoder.trainable = False
    teacher = keras.Model(inputs, keras.layers.Dense(2)(encoder(normalised(inputs))))
    before = [weight.copy() for weight in teacher.get_weights()]
    x, y = np.random.default_rng(1).normal(size=(40, 4)).astype("float32"), np.arange(40) % 2
    fresh = Anew(teacher, 1, 1e-3, seed=0)(x, y, 2)
    for name in ("normalization", "encoder"):
        for old, new in zip(_layer(teacher, name).get_weights(), _layer(fresh, name).get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
    assert not np.allclose(fresh.layers[-1].get_weights()[0], before[-2], atol=1e-2)
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    teacher.trainable = False
    with pytest.raises(ValueError, match="must have weights to train; got none"):
        Anew(teacher, 1, 1e-3, seed=0)


def _layer(model, name):
    return next(layer for layer in model.layers if layer.name.startswith(name))
