"""Specialists of a generalist whose inputs are a dict of arrays, from Python and on the command line."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill import specialists
from keras_distill.cli import main
from keras_distill.data import Split
from keras_distill.models.saving import load_model
from keras_distill.specialists.frozen import frozen_features

NUM_CLASSES = 4


def examples(count, seed=0):
    """The word says which pair of classes it is, one number which of the pair."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % NUM_CLASSES
    extra = generator.normal(size=(count, 3)).astype("float32")
    extra[:, 0] += np.where(labels % 2, 1.5, -1.5)
    word = generator.integers(0, 5, (count, 4)) + 5 * (labels // 2)[:, None]
    return {"word": word.astype("int32"), "extra": extra}, labels


def generalist(late=False):
    """A network of two inputs; `late`: the second comes in behind the last hidden layer."""
    keras.utils.set_random_seed(0)
    word, extra = keras.Input((4,), dtype="int32", name="word"), keras.Input((3,), name="extra")
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(10, 6)(word))
    if not late:
        hidden = layers.Concatenate()([hidden, layers.Dense(6, "relu")(extra)])
    hidden = layers.Dense(8, "relu", name="hidden")(hidden)
    if late:
        hidden = layers.Concatenate()([hidden, extra])
    model = keras.Model({"word": word, "extra": extra}, layers.Dense(NUM_CLASSES, "softmax")(hidden))
    x, y = examples(200)
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=3, verbose=0)
    return model


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("trained", ["head", "last_block", "all"])
def test_each_part_can_be_trained_and_the_merge_takes_the_same_inputs(trained, late):
    model, (x, y) = generalist(late), examples(200)
    split = Split(x, y)
    features = frozen_features(model, x, trained)
    class_sets = [[0, 1], [2, 3]]
    experts = [
        specialists.train(
            model,
            class_set,
            split,
            trained=trained,
            num_steps=30,
            batch_size=32,
            learning_rate=0.02,
            features=None if position else features,
        )
        for position, class_set in enumerate(class_sets)
    ]
    assert {tensor.name for tensor in experts[0].inputs} == {"word", "extra"}
    merged = specialists.SpecialistEnsemble(model, experts, class_sets)
    test_x, test_y = examples(400, seed=1)
    right = {
        each.name: np.mean(np.argmax(each.predict(test_x, verbose=0), axis=-1) == test_y) for each in (model, merged)
    }
    assert right[merged.name] > 0.9
    assert right[merged.name] >= right[model.name] - 0.01


def test_the_command_takes_arrays_by_name(tmp_path):
    arrays = {}
    for seed, (split, count) in enumerate((("train", 200), ("validation", 40), ("test", 100))):
        x, y = examples(count, seed)
        arrays |= {f"x_{split}/{name}": values for name, values in x.items()} | {f"y_{split}": y}
    np.savez(tmp_path / "data.npz", **arrays)
    model = generalist()
    model.save(tmp_path / "generalist.keras")
    command = ["specialists", "--generalist", str(tmp_path / "generalist.keras"), "--data", str(tmp_path / "data.npz")]
    options = ["--num-clusters", "2", "--steps", "30", "--learning-rate", "0.02", "--batch-size", "32"]
    out = tmp_path / "out"
    assert main([*command, *options, "--trained", "last_block", "--distill-back", "1", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())["models"]
    merged, (x, y) = load_model(out / "ensemble.keras", compile=False), examples(100, 2)
    errors = int((np.argmax(merged.predict(x, verbose=0), axis=-1) != y).sum())
    assert results["merged"]["errors"] == errors < 15


@pytest.mark.tensorflow
def test_images_moved_and_mirrored_are_one_array():
    from keras_distill.targets import Augmentation, Shift

    model, (x, y) = generalist(), examples(80)
    with pytest.raises(ValueError, match=r"one array of images; got inputs by name \(word, extra\)"):
        specialists.train(model, [0, 1], Split(x, y), num_steps=2, augmentation=Augmentation(Shift(1)))
