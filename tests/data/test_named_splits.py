"""Splits and data sets of named inputs: alike in every way, or refused in a sentence."""

import numpy as np
import pytest

from keras_distill import data
from keras_distill.data.dataset import Dataset, Split, carve


def split(num_items=6, **changed):
    inputs = {"ids": np.arange(num_items * 3).reshape(-1, 3), "age": np.arange(float(num_items))[:, None]}
    return Split(inputs | changed, np.arange(num_items) % 2)


def dataset(**changed):
    splits = {"train": split(), "validation": split(4), "test": split(4)} | changed
    return Dataset("mine", *splits.values(), ("a", "b"), "mine")


def test_rows_are_taken_of_every_input():
    taken = split().take(np.array([4, 1]))
    assert taken.inputs["ids"].tolist() == [[12, 13, 14], [3, 4, 5]]
    assert taken.inputs["age"].tolist() == [[4.0], [1.0]]
    assert taken.labels.tolist() == [0, 1]


def test_length_and_text_are_those_of_the_rows():
    assert len(split()) == 6
    assert repr(split()) == "Split(inputs={ids: int64[6, 3], age: float64[6, 1]}, labels=int64[6])"


def test_carving_keeps_the_rows_of_all_inputs_together():
    remains, taken = carve(split(10), 4)
    for part in (remains, taken):
        assert (part.inputs["ids"][:, 0] == 3 * part.inputs["age"][:, 0]).all()
    assert sorted([*remains.inputs["age"][:, 0], *taken.inputs["age"][:, 0]]) == list(range(10))


def test_shape_of_an_example_is_by_name():
    assert dataset().input_shape == {"ids": (3,), "age": (1,)}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: split(age=np.zeros((5, 1))), "as many rows; got 6 of 'ids', 5 of 'age'"),
        (lambda: Split({}, np.zeros(0, int)), "as many rows; got none"),
        (lambda: Split({"ids": np.zeros((3, 2))}, np.zeros(2, int)), "got 3 inputs and 2 labels"),
        (
            lambda: dataset(test=split(4, mask=np.ones(4))),
            "same names; got ids, age in train and ids, age, mask in test",
        ),
        (
            lambda: dataset(validation=Split(np.zeros((2, 3)), np.array([0, 1]))),
            "one array without a name in validation",
        ),
        (
            lambda: dataset(test=split(4, ids=np.zeros((4, 5)))),
            r"examples of one shape, those of 'ids' too; got \(3,\) and \(5,\)",
        ),
    ],
)
def test_inputs_that_are_not_alike_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# .npz


def saved(tmp_path, **changed):
    arrays = {"y_train": np.arange(20) % 2, "y_test": np.arange(6) % 2}
    for name, num_items in (("train", 20), ("test", 6)):
        arrays[f"x_{name}/ids"] = np.arange(num_items * 2).reshape(-1, 2)
        arrays[f"x_{name}/photo"] = np.full((num_items, 4, 4), 255, "uint8")
    arrays |= changed
    path = tmp_path / "mine.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_npz_has_inputs_by_name(tmp_path):
    loaded = data.load(saved(tmp_path))
    assert loaded.input_shape == {"ids": (2,), "photo": (4, 4, 1)}
    assert {name: array.dtype.name for name, array in loaded.test.inputs.items()} == {
        "ids": "int32",
        "photo": "float32",
    }
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (18, 2, 6)
    np.testing.assert_array_equal(loaded.test.inputs["ids"], np.arange(12).reshape(6, 2))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"x_test/photo": None}, "same names; got ids, photo in train and ids in test"),
        ({"x_test/more": np.zeros((6, 1))}, "got ids, photo in train and ids, photo, more in test"),
        ({"x_test/ids": np.zeros((5, 2), int)}, "as many rows; got 5 of 'ids', 6 of 'photo'"),
        ({"x_train": np.zeros((20, 2))}, r"either x_train or x_train/NAME; got both"),
        (
            {"x_test/ids": None, "x_test/photo": None},
            "must be an .npz file that holds x_train, y_train, x_test, y_test",
        ),
        ({"x_train/": np.zeros((20, 2))}, "a name after x_train/"),
    ],
)
def test_npz_of_unlike_names_is_refused(tmp_path, changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        data.load(saved(tmp_path, **changed))


def test_pixel_range_is_refused_for_named_inputs(tmp_path):
    with pytest.raises(ValueError, match=r"hold images in one array; got \{ids: int32"):
        data.load(saved(tmp_path), pixel_range="0-255")
