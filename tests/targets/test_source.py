"""Whatever `fit` takes, `label` takes: the same rows in the same order, or a sentence that says why not."""

import keras
import numpy as np
import pytest

from keras_distill.targets import label
from keras_distill.targets.manifest import ForeignDatasetError
from keras_distill.targets.store import SoftTargetStore

NUM_ITEMS = 103
X = np.random.default_rng(0).normal(size=(NUM_ITEMS, 6)).astype("float32")
Y = np.arange(NUM_ITEMS) % 3
WEIGHTS = np.random.default_rng(1).normal(size=(6, 3)).astype("float32")
SETTINGS = {"dtype": "float32", "batch_size": 16, "rows_per_shard": 32}


@pytest.fixture(scope="module")
def teacher():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, use_bias=False)])
    model.set_weights([WEIGHTS])
    return model


def assert_rows_of(store, inputs=X):
    np.testing.assert_allclose(store.read(np.arange(len(inputs))), inputs @ WEIGHTS, rtol=1e-4, atol=1e-5)


class Batches(keras.utils.PyDataset):
    """Batches of seven; the last one is of five."""

    def __len__(self):
        return -(-NUM_ITEMS // 7)

    def __getitem__(self, index):
        here = slice(7 * index, 7 * index + 7)
        return X[here], Y[here]


class Table:
    """What a DataFrame shows of itself: `to_numpy`, and columns when it is gone through."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape
        self.inputs = "a column of this name"

    def to_numpy(self):
        return self.values

    def __iter__(self):
        return iter("abcdef")

    def __len__(self):
        return len(self.values)


class Loader:
    """Batches in order whenever it is gone through, as a PyTorch DataLoader gives them: lists of inputs and labels."""

    def __len__(self):
        return len(Batches(workers=1))

    def __iter__(self):
        return ([X[at : at + 7], Y[at : at + 7]] for at in range(0, NUM_ITEMS, 7))


def generator(batch_size=10, num_wanted=NUM_ITEMS):
    for at in range(0, num_wanted, batch_size):
        yield X[at : at + batch_size], Y[at : at + batch_size]


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        (lambda: Batches(workers=1), {}),
        (lambda: Batches(workers=1), {"num_items": 100}),
        (Loader, {}),
        (generator, {"num_items": NUM_ITEMS}),
        (lambda: generator(NUM_ITEMS), {"num_items": 100}),
        (lambda: generator(1), {"num_items": 100}),
        (lambda: Table(X), {}),
        (lambda: (Table(X), Y), {}),
        (lambda: keras.ops.convert_to_tensor(X), {}),
    ],
)
def test_batches_tables_and_tensors_give_the_rows_of_their_arrays(teacher, tmp_path, given, settings):
    store = label(teacher, given(), tmp_path / "s", **SETTINGS, **settings)
    assert_rows_of(store, X[: settings.get("num_items", NUM_ITEMS)])


@pytest.mark.tensorflow
@pytest.mark.parametrize("drop_remainder", [False, True])
@pytest.mark.parametrize("size", [7, 50, 200])
def test_a_batched_stream_gives_the_rows_of_its_examples(teacher, tmp_path, size, drop_remainder):
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices((X, Y)).batch(size, drop_remainder)
    num_items = NUM_ITEMS - NUM_ITEMS % size if drop_remainder else NUM_ITEMS
    if num_items == 0:
        with pytest.raises(ValueError, match="at least one item"):
            label(teacher, stream, tmp_path / "s", **SETTINGS)
        return
    store = label(teacher, stream, tmp_path / "s", **SETTINGS)
    assert len(store) == num_items
    assert_rows_of(store, X[:num_items])


@pytest.mark.tensorflow
def test_sequences_of_single_examples_are_no_batches(tmp_path):
    import tensorflow as tf

    teacher = keras.Sequential([keras.Input((None, 6)), keras.layers.Dense(3, use_bias=False)])
    teacher.set_weights([WEIGHTS])
    sequences = X[:100].reshape(25, 4, 6)
    for stream in (
        tf.data.Dataset.from_tensor_slices(sequences),
        tf.data.Dataset.from_tensor_slices(sequences).batch(4),
    ):
        path = tmp_path / f"of rank {stream.element_spec.shape.rank}"
        store = label(teacher, stream, path, batch_size=8, dtype="float32")
        np.testing.assert_allclose(store.read(np.arange(25)), sequences @ WEIGHTS, rtol=1e-4, atol=1e-5)


def test_several_inputs_are_batched_together_by_name(tmp_path):
    inputs = {name: keras.Input((3,), name=name) for name in ("left", "right")}
    outputs = keras.layers.Dense(3, use_bias=False)(keras.layers.Concatenate()(list(inputs.values())))
    teacher = keras.Model(inputs, outputs)
    teacher.set_weights([WEIGHTS])
    halves = {"right": X[:, 3:], "left": X[:, :3]}
    assert_rows_of(label(teacher, halves, tmp_path / "arrays", **SETTINGS))
    batches = ({name: half[at : at + 10] for name, half in halves.items()} for at in range(0, NUM_ITEMS, 10))
    assert_rows_of(label(teacher, batches, tmp_path / "generator", num_items=NUM_ITEMS, **SETTINGS))


@pytest.mark.tensorflow
def test_a_generator_has_neither_views_nor_partners(teacher, tmp_path):
    from keras_distill.targets import Augmentation

    settings = {**SETTINGS, "num_items": NUM_ITEMS}
    with pytest.raises(ValueError, match="2 views need a dataset of several passes; got a generator"):
        label(
            teacher,
            generator(),
            tmp_path / "s",
            augmentation=Augmentation(keras.layers.RandomFlip("horizontal")),
            views=2,
            **settings,
        )
    with pytest.raises(ValueError, match="MixUp needs a dataset of arrays; got generator"):
        label(teacher, generator(), tmp_path / "s", augmentation=Augmentation(keras.layers.MixUp()), **settings)


@pytest.mark.tensorflow
def test_views_of_batches_are_the_augmented_inputs(tmp_path):
    from keras_distill.targets import Augmentation

    images = np.random.default_rng(1).random((20, 4, 4), dtype=np.float32)
    flip = Augmentation(keras.layers.RandomFlip("horizontal"), seed=3)

    class Images(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return images[8 * index : 8 * index + 8]

    settings = {"augmentation": flip, "views": 3, "batch_size": 16, "dtype": "float32", "teacher_fingerprint": "pixels"}
    store = label(lambda x: x.reshape(len(x), -1), Images(workers=1), tmp_path / "s", **settings)
    for view in range(3):
        seen = flip(images, np.arange(20), np.full(20, view)).numpy()
        np.testing.assert_array_equal(store.read(np.arange(20), view), seen.reshape(20, -1))


def test_workers_share_a_store_of_batches(teacher, tmp_path):
    for worker in (2, 0, 1):
        store = label(teacher, Batches(workers=1), tmp_path / "s", process=worker, num_processes=3, **SETTINGS)
    assert_rows_of(store)
    arrays = label(teacher, X, tmp_path / "arrays", **SETTINGS)
    assert store.manifest.shards == arrays.manifest.shards, "rows and marks are those of the arrays, to the byte"


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        (generator, {}, "length must be known; got generator. Pass num_items="),
        (generator, {"num_items": 104}, "must hold 104 items, as announced; got 103"),
        (lambda: Batches(workers=1), {"num_items": 104}, "must hold 104 items, as announced; got 103"),
        (lambda: generator(num_wanted=10), {"num_items": 104}, "must hold 104 items, as announced; got 10"),
        (generator, {"num_items": 103, "engine": "local"}, "an engine needs a dataset of arrays"),
        (lambda: Table(np.array([["a", 1.0]], object)), {}, "columns of a table must be numbers"),
        (
            lambda: [[1.0, 2.0], [3.0, 4.0]],
            {},
            r"must be arrays, one item a row; got float. Wrap a list in numpy.asarray",
        ),
    ],
)
def test_what_cannot_be_labelled_is_said_in_one_sentence(teacher, tmp_path, given, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        label(teacher, given(), tmp_path / "s", **SETTINGS, **settings)


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_teacher_of_several_outputs_is_refused_with_the_remedy(teacher, tmp_path, as_dict):
    inputs = keras.Input((6,))
    heads = [keras.layers.Dense(3, use_bias=False)(inputs) for _ in range(2)]
    several = keras.Model(inputs, {"one": heads[0], "other": heads[1]} if as_dict else heads)
    with pytest.raises(
        ValueError, match=r"must have one output.*; got 2.*keras\.Model\(teacher\.inputs, teacher\.outputs"
    ):
        label(several, X, tmp_path / "s")
    with pytest.raises(ValueError, match="must have one output"):
        label(lambda x: [x @ WEIGHTS, x @ WEIGHTS], X, tmp_path / "s", teacher_fingerprint="twice")
    several.layers[-1].set_weights([WEIGHTS])
    assert_rows_of(label(keras.Model(several.inputs, several.outputs[1]), X, tmp_path / "s", **SETTINGS))


def test_a_teacher_whose_one_output_has_a_name_labels(tmp_path):
    inputs = keras.Input((6,))
    teacher = keras.Model(inputs, {"answer": keras.layers.Dense(3, use_bias=False)(inputs)})
    teacher.set_weights([WEIGHTS])
    assert_rows_of(label(teacher, X, tmp_path / "s", **SETTINGS))


# Streams that give other items the next time.


def reshuffled(size=NUM_ITEMS, **options):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(size, **options)


class Augmented(Batches):
    """A PyDataset with noise of its own: the items of one pass never come again."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + np.random.default_rng().normal(size=x.shape).astype("float32"), y


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "stream",
    [
        reshuffled,
        lambda: reshuffled(seed=3),
        lambda: reshuffled(10, seed=3),
        lambda: reshuffled().batch(10),
        lambda: Augmented(workers=1),
    ],
)
def test_a_stream_that_gives_other_items_the_second_time_is_refused_and_leaves_its_folder(teacher, tmp_path, stream):
    with pytest.raises(ForeignDatasetError, match=r"the same items in the same order.*reshuffle_each_iteration=False"):
        label(teacher, stream(), tmp_path / "s", **SETTINGS)
    assert_rows_of(label(teacher, X, tmp_path / "s", **SETTINGS))


@pytest.mark.tensorflow
def test_a_stream_in_an_order_of_its_own_that_stays_is_labelled(teacher, tmp_path):
    stream = reshuffled(seed=3, reshuffle_each_iteration=False)
    store = label(teacher, stream, tmp_path / "s", **SETTINGS)
    assert_rows_of(store, np.stack([x for x, _ in stream.as_numpy_iterator()]))


@pytest.mark.tensorflow
def test_a_second_view_of_other_items_is_refused(tmp_path):
    """The first batch agrees with the first pass, and the second pass is another."""
    import tensorflow as tf

    from keras_distill.targets import Augmentation

    images = np.random.default_rng(1).random((NUM_ITEMS, 4, 4), dtype=np.float32)
    passes = iter([images, images, images[::-1]])
    stream = tf.data.Dataset.from_generator(lambda: next(passes), output_signature=tf.TensorSpec((4, 4), tf.float32))
    settings = {
        **SETTINGS,
        "num_items": NUM_ITEMS,
        "augmentation": Augmentation(keras.layers.RandomFlip("horizontal")),
        "views": 2,
    }
    with pytest.raises(ForeignDatasetError, match="others the second time"):
        label(lambda x: x.reshape(len(x), -1), stream, tmp_path / "s", teacher_fingerprint="pixels", **settings)


def test_a_run_that_goes_on_with_a_stream_in_another_order_is_refused(teacher, tmp_path):
    def failing(inputs):
        if (inputs == X[40]).all(axis=1).any():
            raise RuntimeError("the device is gone")
        return inputs @ WEIGHTS

    settings = {**SETTINGS, "teacher_fingerprint": "t", "num_items": NUM_ITEMS}
    with pytest.raises(RuntimeError):
        label(failing, generator(), tmp_path / "s", **settings)
    others = (X[::-1][at : at + 10] for at in range(0, NUM_ITEMS, 10))
    with pytest.raises(ForeignDatasetError, match="data set's fingerprint must be 'stream:"):
        label(teacher, others, tmp_path / "s", **settings)
    assert_rows_of(label(teacher, generator(), tmp_path / "s", **settings))


def test_items_that_changed_anywhere_are_another_dataset(teacher, tmp_path):
    """Two of 1,000 items changed places, and neither is among the 256 that are looked at whole."""
    many = np.random.default_rng(2).normal(size=(1000, 6)).astype("float32")
    unseen = sorted(set(range(1000)) - set(np.linspace(0, 999, 256).astype(int).tolist()))[100:102]
    swapped = many.copy()
    swapped[unseen] = many[unseen[::-1]]
    label(teacher, many, tmp_path / "s", **SETTINGS)
    with pytest.raises(ForeignDatasetError, match="fingerprint of every item"):
        label(teacher, swapped, tmp_path / "s", **SETTINGS)


def test_a_map_of_a_file_is_the_same_dataset_as_its_array(teacher, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    label(teacher, mapped, tmp_path / "s", **SETTINGS)
    assert_rows_of(label(teacher, X, tmp_path / "s", **SETTINGS))
    assert SoftTargetStore.open(tmp_path / "s").manifest.every_item_fingerprint == "", "a disk is not read twice"


@pytest.mark.parametrize("batch_size", [16, 6, 5])
def test_a_teacher_of_a_fixed_batch_size_labels_any_number_of_items(tmp_path, batch_size):
    inputs = keras.Input((4,), batch_size=6)
    # It asks for exactly so many.
    halves = keras.ops.reshape(inputs, (6, 2, 2))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.ops.reshape(halves, (6, 4))))
    x = np.random.default_rng(0).normal(size=(25, 4)).astype("float32")
    kernel, bias = model.layers[-1].get_weights()
    store = label(model, x, tmp_path / "s", dtype="float32", batch_size=batch_size)
    np.testing.assert_allclose(store.read(np.arange(25)), x.astype("float64") @ kernel + bias, atol=1e-5)


def test_items_of_other_sizes_than_the_teachers_are_refused_in_a_sentence(tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    message = r"must have shape \('batch', 6, 6, 3\), as it was built; got \('batch', 8, 8, 3\)\. Wrap it .*Resizing"
    with pytest.raises(ValueError, match=message):
        label(model, np.zeros((5, 8, 8, 3), "float32"), tmp_path / "s")
    assert list(tmp_path.iterdir()) == []
