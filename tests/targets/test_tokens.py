"""Sequences of different length: on disk without padding, padded again when they are joined."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.losses import SoftTargets
from keras_distill.targets import attach, label, shard_queue
from keras_distill.targets.batches import StoredBatches
from keras_distill.targets.manifest import ForeignDatasetError
from keras_distill.targets.shards import write_shard
from tests.targets.test_store import tree

NUM_CLASSES, LENGTH = 7, 9


def sequences(count=40, seed=0):
    """Token ids, 0 at padding, of 1 to 9 tokens; in some the padding is in front."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, LENGTH + 1, (count, 1))
    mask = np.arange(LENGTH) < lengths
    mask[::5] = mask[::5, ::-1]
    return {"ids": (generator.integers(1, 20, mask.shape) * mask).astype("int32"), "mask": mask.astype("int32")}


def token_model(width, seed):
    keras.utils.set_random_seed(seed)
    ids, mask = keras.Input((None,), dtype="int32", name="ids"), keras.Input((None,), dtype="int32", name="mask")
    x = keras.layers.Embedding(20, width, embeddings_initializer="random_normal")(ids)
    x = 20.0 * x * keras.ops.expand_dims(keras.ops.cast(mask, x.dtype), -1)
    return keras.Model({"ids": ids, "mask": mask}, keras.layers.Dense(NUM_CLASSES, "softmax")(x))


def logits_of(model, x):
    return np.log(np.asarray(model(x)).astype("float64"))


def centred(logits):
    return logits - logits.mean(-1, keepdims=True)


def first(batches):
    return batches[0] if isinstance(batches, keras.utils.PyDataset) else next(iter(batches))


@pytest.fixture(scope="module")
def teacher():
    return token_model(6, 0)


def labelled(teacher, x, path, **options):
    return label(teacher, x, path, mask="mask", **{"batch_size": 8, "dtype": "float32", "progress": False} | options)


def test_rows_are_the_real_tokens_and_nothing_else(teacher, tmp_path):
    x = sequences()
    store = labelled(teacher, x, tmp_path / "s")
    is_token = x["mask"] == 1
    assert len(store) == store.manifest.num_rows == is_token.sum() < is_token.size
    assert (store.manifest.bytes_per_row, store.manifest.id_scheme) == (4 * NUM_CLASSES, "token")
    # In the order of the sequences, and in each of its tokens.
    expected = logits_of(teacher, x)[is_token]
    np.testing.assert_allclose(centred(store.read(np.arange(len(store)))), centred(expected), rtol=1e-4, atol=1e-5)
    padded = label(teacher, x, tmp_path / "padded", dtype="float32", progress=False)
    assert padded.manifest.num_bytes == store.manifest.num_bytes * is_token.size / is_token.sum()


@pytest.mark.tensorflow
@pytest.mark.parametrize("top_k", [None, 3])
def test_joined_the_targets_stand_where_their_tokens_do_and_padding_weighs_nothing(teacher, tmp_path, top_k):
    x = sequences()
    store = labelled(teacher, x, tmp_path / "s", top_k=top_k, rows_per_shard=32)
    weights = np.random.default_rng(1).uniform(size=40).astype("float32")
    seen = []
    for inputs, y, weight in attach((x, np.arange(40), weights), store, batch_size=7, mask="mask", seed=3):
        inputs, rows = {name: np.asarray(values) for name, values in inputs.items()}, np.asarray(y["labels"])
        np.testing.assert_array_equal(x["ids"][rows], inputs["ids"])
        is_token, logits = inputs["mask"] == 1, logits_of(teacher, inputs)
        targets = y["soft_targets"]
        if top_k is None:
            assert targets.shape == logits.shape
            given, expected = np.asarray(targets), logits
        else:
            places = np.argsort(-logits, axis=-1)[..., :top_k]
            np.testing.assert_array_equal(np.asarray(targets["top_k_ids"])[is_token], places[is_token])
            given, expected = np.asarray(targets["top_k_logits"]), np.take_along_axis(logits, places, -1)
        np.testing.assert_allclose(centred(given[is_token]), centred(expected[is_token]), rtol=1e-4, atol=1e-5)
        assert np.isfinite(given).all()
        np.testing.assert_array_equal(np.asarray(weight)[~is_token], 0.0)
        np.testing.assert_array_equal(np.asarray(weight), is_token * weights[rows][:, None])
        seen += rows.tolist()
    assert sorted(seen) == list(range(40))
    assert seen != sorted(seen)


def test_on_other_backends_the_batches_are_the_same_in_numpy(teacher, tmp_path):
    x = sequences()
    store = labelled(teacher, x, tmp_path / "s")
    batches = StoredBatches((x, np.arange(40)), store, batch_size=7, mask="mask", seed=3)
    rows = []
    for index in range(len(batches)):
        inputs, y, weight = batches[index]
        is_token = inputs["mask"] == 1
        np.testing.assert_array_equal(x["ids"][y["labels"]], inputs["ids"])
        expected = centred(logits_of(teacher, inputs))[is_token]
        np.testing.assert_allclose(centred(y["soft_targets"])[is_token], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(weight, inputs["mask"])
        rows += y["labels"].tolist()
    assert sorted(rows) == list(range(40))
    with pytest.raises(ValueError, match="holds tokens, and must be joined so"):
        StoredBatches((x, None), store)


def test_a_student_has_the_loss_that_it_has_beside_the_teacher(teacher, tmp_path):
    x = sequences(16)
    store = labelled(teacher, x, tmp_path / "s")
    reported = []
    beside = (x, None, x["mask"].astype("float32"))
    for source, given in ((teacher, beside), (None, attach((x, None), store, batch_size=16, mask="mask"))):
        distiller = kd.Distiller(source, token_model(3, 1), SoftTargets(2.0), student_loss_weight=0.0)
        distiller.compile(keras.optimizers.SGD(0.0), jit_compile=False)
        if source is None:
            history = distiller.fit(given, shuffle=False, verbose=0)
        else:
            history = distiller.fit(given[0], sample_weight=given[2], batch_size=16, verbose=0)
        reported.append(history.history["distillation_loss"][0])
    np.testing.assert_allclose(reported[1], reported[0], rtol=1e-5)


def test_a_mask_may_be_an_array_of_its_own(teacher, tmp_path):
    x = sequences()
    named, given = (
        labelled(teacher, x, tmp_path / "a"),
        label(teacher, x, tmp_path / "b", mask=x["ids"] != 0, batch_size=8, dtype="float32", progress=False),
    )
    assert tree(named.path) == tree(given.path)
    assert first(attach(x, given, mask=x["ids"] != 0))[1]["soft_targets"].shape == (40, LENGTH, NUM_CLASSES)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("num_written", [0, 1, 4])
def test_killed_and_resumed_it_ends_byte_for_byte_as_undisturbed(teacher, tmp_path, monkeypatch, num_written):
    x = sequences(60)
    # Shards that end in the midst of a sequence, and of a batch.
    whole = labelled(teacher, x, tmp_path / "whole", rows_per_shard=40)
    written = []

    def dies(*arguments):
        if len(written) == num_written:
            raise Killed
        written.append(write_shard(*arguments))
        return written[-1]

    with monkeypatch.context() as patch:
        patch.setattr(shard_queue, "write_shard", dies)
        with pytest.raises(Killed):
            labelled(teacher, x, tmp_path / "killed", rows_per_shard=40)
    assert len(list((tmp_path / "killed" / "shards").iterdir())) == num_written < whole.manifest.num_shards
    labelled(teacher, x, tmp_path / "killed", rows_per_shard=40)
    assert tree(tmp_path / "killed") == tree(whole.path)


def test_two_processes_write_the_same_store(teacher, tmp_path):
    x = sequences(60)
    whole = labelled(teacher, x, tmp_path / "whole", rows_per_shard=40)
    assert labelled(teacher, x, tmp_path / "shared", rows_per_shard=40, process=1, num_processes=2) is None
    labelled(teacher, x, tmp_path / "shared", rows_per_shard=40, process=0, num_processes=2)
    assert tree(tmp_path / "shared") == tree(whole.path)


@pytest.mark.slow
def test_workers_of_an_engine_write_it_too(teacher, tmp_path):
    x = sequences(60)
    whole = labelled(teacher, x, tmp_path / "whole", rows_per_shard=40)
    labelled(teacher, x, tmp_path / "local", rows_per_shard=40, engine="local")
    assert tree(tmp_path / "local") == tree(whole.path)


def test_other_sequences_and_other_masks_are_refused(teacher, tmp_path):
    x = sequences()
    store = labelled(teacher, x, tmp_path / "s")
    with pytest.raises(ForeignDatasetError, match="number of items must be"):
        attach(sequences(40, seed=1), store, mask="mask")
    swapped = {name: np.roll(values, 1, axis=0) for name, values in x.items()}
    with pytest.raises(ForeignDatasetError, match="data set's fingerprint must be"):
        attach(swapped, store, mask="mask")
    flipped = x["mask"][:, ::-1]
    with pytest.raises(ForeignDatasetError, match="data set's fingerprint must be"):
        attach(x, store, mask=flipped)
    assert first(attach(swapped, store, mask="mask", check_items=False))[1]["soft_targets"].shape[0] == 40


def one_decision():
    return keras.Sequential([keras.Input((LENGTH,)), keras.layers.Dense(NUM_CLASSES)])


def test_what_is_no_store_of_tokens_is_refused_in_a_sentence(teacher, tmp_path):
    x = sequences()
    store, plain = labelled(teacher, x, tmp_path / "s"), label(teacher, x, tmp_path / "p", progress=False)
    for act, message in (
        (lambda: attach(x, store), "holds tokens, and must be joined so; got no mask. Give arrays and mask"),
        (lambda: attach(x, plain, mask="mask"), "holds whole items, and must be joined so; got a mask"),
        (lambda: attach(x, store, mask="mask", ids=np.arange(40)), "ids must be left out with a mask"),
        (
            lambda: label(teacher, x, tmp_path / "n", mask="msk"),
            "must name an input, or be an array; got 'msk'; the inputs are 'ids', 'mask'",
        ),
        (lambda: label(teacher, x, tmp_path / "n", mask=np.ones(40)), r"mask must have shape \(40, tokens\)"),
        (
            lambda: label(teacher, x, tmp_path / "n", mask=np.full((40, 9), np.nan)),
            "finite numbers; got NaN or infinite",
        ),
        (lambda: label(teacher, x, tmp_path / "n", mask=np.full((40, 9), "0")), "finite numbers; got dtype <U1"),
        (lambda: label(teacher, x, tmp_path / "n", mask=0 * x["mask"]), "padding alone"),
        (lambda: labelled(teacher, iter([x]), tmp_path / "n", num_items=40), "num_items must be left out"),
        (lambda: labelled(teacher, iter([x]), tmp_path / "n"), "a mask needs a dataset of arrays"),
        (
            lambda: label(one_decision(), x["ids"], tmp_path / "n", mask=x["mask"], progress=False),
            r"shape \(batch, 9, num_classes\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            act()


@pytest.mark.tensorflow
def test_sequences_have_no_views(teacher, tmp_path):
    from keras_distill.targets import Augmentation, Shift

    with pytest.raises(ValueError, match="augmentation must be left out with a mask"):
        labelled(teacher, sequences(), tmp_path / "n", augmentation=Augmentation(Shift(1)), views=2)
