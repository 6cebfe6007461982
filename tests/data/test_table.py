"""Tables: features as scikit-learn makes them, fitted on training rows alone, repeated bit for bit without Keras."""

import csv
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from keras_distill import data
from keras_distill._kit import kit_folder
from keras_distill.data.recombination import recombined
from keras_distill.data.table import feature_names, width_of
from keras_distill.data.table_rows import labels_of

COLOURS = ("red", "green", "blue", "violet")


def people(num_rows=200, seed=0, **changed):
    """Columns as a .csv file has them, all text."""
    rng = np.random.default_rng(seed)
    age = rng.integers(17, 90, num_rows)
    columns = {
        "id": [f"p{number:05}" for number in range(num_rows)],
        "age": [str(each) for each in age],
        "wage": ["" if rng.random() < 0.2 else f"{rng.normal(20.0, 5.0):.2f}" for _ in range(num_rows)],
        "colour": [rng.choice((*COLOURS, "?")) for _ in range(num_rows)],
        "born": [f"{2020 - each}-{rng.integers(1, 13):02}-{rng.integers(1, 29):02}" for each in age],
        "member": [rng.choice(("yes", "no")) for _ in range(num_rows)],
        "income": ["rich" if each + rng.normal(0, 9) > 50 else "poor" for each in age],
        "split": [rng.choice(("train", "train", "validation", "test")) for _ in range(num_rows)],
    }
    return {name: values for name, values in (columns | changed).items() if values is not None}


def written(folder, columns, name="people.csv", delimiter=","):
    path = folder / name
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def reference(columns):
    """The features by scikit-learn, from pandas, `{split: (num_rows, num_features)}`, in the order of the columns."""
    import pandas
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    frame = pandas.DataFrame(columns)
    frame["age"] = frame["age"].astype(float)
    frame["wage"] = pandas.to_numeric(frame["wage"])
    frame["born"] = (pandas.to_datetime(frame["born"]) - pandas.Timestamp("1970-01-01")) / pandas.Timedelta(days=1)
    frame["member"] = (frame["member"] == "yes").astype(float)
    frame["wage is missing"] = frame["wage"].isna().astype(float)
    # Missing is the last place, as it is with us.
    frame["colour"] = frame["colour"].replace("?", "~ missing")
    scale = make_pipeline(SimpleImputer(strategy="mean"), StandardScaler())
    encoder = ColumnTransformer(
        [
            ("age", scale, ["age"]),
            ("wage", scale, ["wage"]),
            ("wage is missing", "passthrough", ["wage is missing"]),
            ("colour", OneHotEncoder(handle_unknown="ignore", sparse_output=False), ["colour"]),
            ("born", scale, ["born"]),
            ("member", scale, ["member"]),
        ]
    )
    encoder.fit(frame[frame["split"] == "train"])
    return {split: encoder.transform(frame[frame["split"] == split]) for split in ("train", "validation", "test")}


def test_features_are_those_of_scikit_learn_fitted_on_the_training_rows(tmp_path):
    columns = people()
    dataset = data.load(written(tmp_path, columns), label="income")
    for split, wanted in reference(columns).items():
        found = getattr(dataset, split).inputs
        assert found.dtype == np.float32
        if split == "train":
            # scikit-learn divides a mean of imputed values by the deviation that they have; ours is of those there.
            present = found[:, 2] == 0
            assert found[present, 1].std() == pytest.approx(1.0, abs=1e-6)
        rest = [place for place in range(found.shape[1]) if place != 1]
        np.testing.assert_allclose(found[:, rest], wanted[:, rest], atol=2e-6)
        ratio = wanted[:, 1] * np.sqrt((reference(columns)["train"][:, 2] == 0).mean())
        np.testing.assert_allclose(found[:, 1], ratio, atol=2e-6)
    assert dataset.class_names == ("poor", "rich")
    in_test = [label for label, split in zip(columns["income"], columns["split"], strict=True) if split == "test"]
    assert [dataset.class_names[label] for label in dataset.test.labels] == in_test
    assert feature_names(dataset.preparation) == [
        "age",
        "wage",
        "wage is missing",
        "colour=blue",
        "colour=green",
        "colour=red",
        "colour=violet",
        "colour is missing",
        "born",
        "member",
    ]


PREPARE = """
import json, sys
sys.path.insert(0, {kit!r})
import numpy
from prepare import prepare, read_table
specification = json.load(open({specification!r}))
numpy.save({out!r}, prepare(specification, read_table({table!r}))["inputs"])
loaded = {{name.split(".")[0] for name in sys.modules}}
assert not loaded & {{"keras", "tensorflow", "pandas", "sklearn", "keras_distill"}}, loaded
"""


def test_the_kit_repeats_the_features_bit_for_bit_without_keras_or_pandas(tmp_path):
    columns = people()
    path = written(tmp_path, columns)
    dataset = data.load(path, label="income")
    (tmp_path / "preparation.json").write_text(json.dumps(dataset.preparation.to_json()))
    places = {"kit": str(kit_folder()), "specification": str(tmp_path / "preparation.json"), "table": str(path)}
    out = tmp_path / "features.npy"
    subprocess.run([sys.executable, "-c", PREPARE.format(**places, out=str(out))], check=True, cwd=tmp_path)
    found = np.load(out)
    for split in ("train", "validation", "test"):
        rows = [row for row, name in enumerate(columns["split"]) if name == split]
        np.testing.assert_array_equal(found[rows], getattr(dataset, split).inputs)


def test_the_kinds_of_file_give_the_same(tmp_path):
    pytest.importorskip("pandas")
    import pandas

    columns = people()
    frame = pandas.DataFrame(columns)
    frame.to_parquet(tmp_path / "text.parquet")
    frame["age"] = frame["age"].astype(int)
    frame["wage"] = pandas.to_numeric(frame["wage"])
    frame["born"] = pandas.to_datetime(frame["born"])
    frame["member"] = frame["member"] == "yes"
    frame["colour"] = frame["colour"].astype("category")
    frame.to_parquet(tmp_path / "typed.parquet")
    wanted = data.load(written(tmp_path, columns), label="income")
    others = [
        written(tmp_path, columns, "people.csv.gz"),
        written(tmp_path, columns, "people.tsv", "\t"),
        written(tmp_path, columns, "semicolons.csv", ";"),
        tmp_path / "text.parquet",
        tmp_path / "typed.parquet",
    ]
    for path in others:
        found = data.load(path, label="income")
        np.testing.assert_array_equal(found.test.inputs, wanted.test.inputs, err_msg=str(path))
        np.testing.assert_array_equal(found.train.labels, wanted.train.labels)
    found = data.from_table(frame, "income", name="people")
    np.testing.assert_array_equal(found.validation.inputs, wanted.validation.inputs)


# Values that training did not have


def prepared(train, row):
    labels = ["a", "b"] * (len(next(iter(train.values()))) // 2)
    dataset = data.from_table(train | {"label": labels}, "label")
    return dict(zip(feature_names(dataset.preparation), dataset.preparation([row])[0].tolist(), strict=True))


def test_a_category_never_seen_is_all_zeros():
    assert prepared({"c": ["x", "y"] * 20}, {"c": "z"}) == {"c=x": 0.0, "c=y": 0.0}


def test_a_missing_category_is_a_value_where_training_had_it_else_all_zeros():
    assert prepared({"c": ["x", ""] * 20}, {"c": None}) == {"c=x": 0.0, "c is missing": 1.0}
    assert prepared({"c": ["x", "y"] * 20}, {"c": ""}) == {"c=x": 0.0, "c=y": 0.0}


def test_rare_categories_share_a_place_with_those_never_seen_as_in_scikit_learn():
    from sklearn.preprocessing import OneHotEncoder

    values = [f"v{min(at, 69):02}" for at in range(70) for _ in range(2 if at < 63 else 1)] * 4
    table = {
        "c": values,
        "split": ["train"] * (len(values) - 8) + ["test"] * 8,
        "label": ["a", "b"] * (len(values) // 2),
    }
    dataset = data.from_table(table, "label")
    preparation = dataset.preparation
    kept = preparation.specification["columns"][0]["values"]
    assert (len(kept), feature_names(preparation)[-1]) == (64, "c is another")
    encoder = OneHotEncoder(max_categories=65, handle_unknown="infrequent_if_exist", sparse_output=False)
    rows = [*sorted(set(values)), "never"]
    fitted = encoder.fit([[value] for value in kept * 9 + sorted(set(values))])
    wanted = fitted.transform([[value] for value in rows])
    np.testing.assert_array_equal(preparation({"c": rows}), wanted)


def test_a_missing_number_is_the_mean_and_said_where_training_had_any():
    row = prepared({"n": ["1", "3", "", "3"] * 20}, {"n": "nan"})
    assert row == {"n": 0.0, "n is missing": 1.0}
    assert prepared({"n": [1.0, 3.0] * 20}, {"n": None}) == {"n": 0.0}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"n": "many"}, "the column 'n' must hold a number; got 'many' in row 1. Leave the value empty"),
        ({"n": "inf"}, "the column 'n' must hold a number; got 'inf'"),
        ({"m": 1.0}, "there must be a column 'n' in row 1 among the data's; got m. Did you mean"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(row, sentence):
    preparation = data.from_table({"n": [1.0, 3.0] * 20, "label": ["a", "b"] * 20}, "label").preparation
    with pytest.raises(ValueError, match=sentence.removesuffix(" Did you mean")):
        preparation([row])


# What is left out, and what is refused


def test_columns_that_teach_nothing_are_left_out_and_said():
    dataset = data.from_table(
        people(
            number=[*range(1, 201)], country=["here"] * 200, empty=["?"] * 200, note=[f"n{i // 2}" for i in range(200)]
        ),
        "income",
    )
    left_out = {note.split("'")[1]: note for note in dataset.preparation.notes}
    assert set(left_out) == {"id", "number", "country", "empty", "note"}
    assert (
        left_out["id"] == "The column 'id' is left out: it has a value of its own in every row, as an id or a name has."
    )
    assert "whole number of its own in every row" in left_out["number"]
    assert "the same value in every row of the training split, 'here'" in left_out["country"]
    assert "no value in the training split" in left_out["empty"]
    assert "different values in" in left_out["note"]


def test_columns_are_left_out_by_name():
    dataset = data.from_table(people(), "income", leave_out=["age", "born", "member", "colour"])
    assert feature_names(dataset.preparation) == ["wage", "wage is missing"]


def test_a_number_of_its_own_in_every_row_is_kept_where_it_is_a_measurement():
    heights = np.random.default_rng(0).normal(170.0, 10.0, 40)
    incomes = np.random.default_rng(0).permutation(np.arange(40) ** 3 * 100)
    table = {"height": heights, "wealth": incomes, "label": ["a", "b"] * 20}
    assert feature_names(data.from_table(table, "label").preparation) == ["height", "wealth"]


def test_rows_without_a_split_column_are_split_the_same_way_each_time_every_class_in_proportion():
    columns = people(split=None, income=["poor"] * 150 + ["rich"] * 50)
    first, second = (data.from_table(columns, "income") for _ in range(2))
    assert [len(split) for split in (first.train, first.validation, first.test)] == [144, 16, 40]
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, name).inputs, getattr(second, name).inputs)
        assert getattr(first, name).labels.mean() == pytest.approx(0.25, abs=0.01)


def test_without_validation_rows_a_tenth_of_train_is_carved_off():
    columns = people(split=["train"] * 150 + ["test"] * 50)
    dataset = data.from_table(columns, "income")
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [135, 15, 50]


def test_a_split_column_of_other_words_is_a_column():
    dataset = data.from_table(people(split=["half", "double"] * 100), "income")
    assert feature_names(dataset.preparation)[-2:] == ["split=double", "split=half"]


def test_classes_that_are_whole_numbers_are_ordered_by_size():
    names, labels = labels_of("grade", [10, 9.0, "2", 10])
    assert names == ("2", "9", "10")
    assert labels.tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize(
    ("changed", "label", "sentence"),
    [
        ({}, "incom", "a column 'incom' among the data's; got id, age, .*Did you mean income?"),
        ({}, "wage", "label column 'wage' must have a value in every row; got none in [0-9]+ of 200"),
        ({"wage": np.linspace(0.0, 1.0, 200)}, "wage", "classes, no continuous number; got 200 different numbers"),
        ({"wage": [*range(200)]}, "wage", "classes, no continuous number"),
        ({"income": ["poor"] * 200}, "income", "at least two classes; got 'poor' in every row"),
        ({}, "id", "label column 'id' must hold classes; got 200 different values in 200 rows"),
        (
            {"born": ["12/31/2020"] * 100 + ["1/2/2021"] * 100},
            "income",
            "'born' must hold dates such as 2020-12-31; got '12",
        ),
        (
            {"age": ["old", *map(str, range(199))]},
            "income",
            "'age' must hold numbers alone; got 'old' among them .1 of",
        ),
        ({"split": ["train"] * 200}, "income", "split of .* must mark 2 rows as test; got 0"),
        ({"age": [1, 2]}, "income", "as many values; got 200 of 'id', 2 of 'age'"),
    ],
)
def test_a_table_that_is_none_is_refused(changed, label, sentence):
    with pytest.raises(ValueError, match=sentence):
        data.from_table(people(**changed), label)


def test_a_column_to_leave_out_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"a column 'ages' among the data's; .* Did you mean age?"):
        data.from_table(people(), "income", leave_out=["ages"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must begin with a line of columns' names; got nothing there"),
        ("a,b\n", "must hold a header and rows under it; got no row"),
        ("a,b\n1,2\n1,2,3\n", "must have 2 values a line, as its header; got 3 in line 3"),
        ("a,b\n1,2\n1\n", "must have 2 values a line, as its header; got 1 in line 3"),
        ("a,b,a\n1,2,3\n", "must name each column once; got 'a' twice"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, sentence):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        data.load(tmp_path / "t.csv", label="a")


def test_files_of_other_bytes_are_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n\xff\xfe\x00,1\n")
    (tmp_path / "t.csv.gz").write_bytes(b"no gzip")
    (tmp_path / "t.parquet").write_bytes(b"no parquet")
    for name in ("t.csv", "t.csv.gz", "t.parquet"):
        with pytest.raises(ValueError, match="must be a readable"):
            data.load(tmp_path / name, label="a")


def test_a_table_needs_its_label_and_nothing_else_takes_one(tmp_path):
    with pytest.raises(ValueError, match=r"needs the name of its label column; got none. Name one: id, age"):
        data.load(written(tmp_path, people()))
    with pytest.raises(ValueError, match="a label column must be a table's; got 'digits'"):
        data.load("digits", label="income")
    for misspelt in ("none.csv", "none.cvs", "folder/none"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            data.load(tmp_path / misspelt, label="a")
    with pytest.raises(ValueError, match=r"must be one of digits.* Did you mean digits\?"):
        data.load("digit", label="a")


def test_a_pixel_range_is_refused_for_a_table(tmp_path):
    with pytest.raises(ValueError, match="hold images in one array; got 2 numbers"):
        data.load(written(tmp_path, people(born=None, member=None, colour=None)), label="income", pixel_range="0-1")


# Pieces


def test_pieces_are_the_piecewise_linear_encoding_of_quantiles():
    sizes = np.random.default_rng(0).exponential(3.0, 400).round(2)
    table = {"size": sizes, "label": ["a", "b"] * 200, "split": ["train"] * 300 + ["test"] * 100}
    dataset = data.from_table(table, "label", pieces=4)
    edges = np.array(dataset.preparation.specification["columns"][0]["edges"])
    assert dataset.train.inputs.shape == (270, 5)
    # About a quarter of the rows in each piece.
    assert np.histogram(sizes[:300], edges)[0] == pytest.approx(75, abs=15)
    # NumPy's interpolation, from each edge's place to the next.
    wanted = np.clip(np.interp(sizes[300:], edges, np.arange(5.0))[:, None] - np.arange(4.0), 0.0, 1.0)
    np.testing.assert_allclose(dataset.test.inputs[:, 1:], wanted, atol=1e-6)


def test_a_number_that_is_mostly_one_value_is_cut_among_the_others():
    gains = [0.0] * 180 + [float(each) for each in range(100, 120)]
    dataset = data.from_table({"gain": gains, "label": ["a", "b"] * 100}, "label", pieces=8)
    names = feature_names(dataset.preparation)
    assert names[:2] == ["gain", "gain over 0"]
    assert len(names) >= 8
    assert dataset.preparation([{"gain": 1e9}]).tolist()[0][1:] == [1.0] * (len(names) - 1)
    assert dataset.preparation([{"gain": 0}]).tolist()[0][1:] == [0.0] * (len(names) - 1)


def test_pieces_of_a_missing_number_are_those_of_the_mean():
    numbers = [None, *map(float, range(39))] * 2
    preparation = data.from_table({"n": numbers, "label": ["a", "b"] * 40}, "label", pieces=4).preparation
    mean = preparation.specification["columns"][0]["mean"]
    missing, there = preparation([{"n": None}, {"n": mean}]).tolist()
    assert missing[:-1] == there[:-1]
    assert (missing[-1], there[-1]) == (1.0, 0.0)


# Rows for a teacher


def test_recombined_rows_have_whole_columns_of_others_and_the_columns_own_shares():
    dataset = data.from_table(people(), "income", pieces=8)
    inputs = dataset.train.inputs
    rows = recombined(dataset, 20, share=0.3)
    assert rows.shape == (21 * len(inputs), inputs.shape[1])
    np.testing.assert_array_equal(rows[: len(inputs)], inputs)
    start = 0
    for column in dataset.preparation.specification["columns"]:
        stop = start + width_of(column)
        own = {tuple(row) for row in inputs[:, start:stop].tolist()}
        assert {tuple(row) for row in rows[:, start:stop].tolist()} <= own
        np.testing.assert_allclose(rows[:, start:stop].mean(axis=0), inputs[:, start:stop].mean(axis=0), atol=0.1)
        start = stop
    # Three of ten ages are another row's, of which some are alike.
    copies = rows[len(inputs) :].reshape(20, *inputs.shape)
    assert 0.25 < (copies[:, :, 0] != inputs[:, 0]).mean() <= 0.31


def test_recombined_rows_need_a_table():
    with pytest.raises(ValueError, match="'digits' must be made of a table; got none"):
        recombined(data.load("digits"))


def test_without_pandas_a_csv_is_read_and_parquet_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert len(data.load(written(tmp_path, people()), label="income").train) > 0
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"needs pandas; .* pip install 'keras-distill\[tables\]'; or save"):
        data.load(tmp_path / "t.parquet", label="income")
