"""Texts for models with a preprocessor: `fit`, `evaluate`, `predict` and `label` do what they do with its arrays."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.models.strings import holds_strings

TEXTS = np.array(["where is my card", "what is the fee", "is my card here", "the fee"] * 4)
LABELS = np.array([0, 1, 0, 1] * 4)
WORDS = ["[PAD]", "where", "is", "my", "card", "what", "the", "fee", "here"]


class Words:
    """The least preprocessor there is: words to ids, and a mask, for texts in a list."""

    def __init__(self, length=6, words=WORDS):
        self.length, self.words = length, words

    def __call__(self, texts):
        assert isinstance(texts, list)
        ids = np.zeros((len(texts), self.length), "int32")
        for row, text in enumerate(texts):
            found = [self.words.index(word) for word in text.split() if word in self.words][: self.length]
            ids[row, : len(found)] = found
        return {"token_ids": keras.ops.convert_to_tensor(ids), "padding_mask": keras.ops.convert_to_tensor(ids > 0)}


def network(seed, width, preprocessor="own", length=6):
    """A classifier as KerasHub's tasks are: a functional model of named inputs with a preprocessor beside it."""
    keras.utils.set_random_seed(seed)
    ids = keras.Input((length,), dtype="int32", name="token_ids")
    mask = keras.Input((length,), dtype="bool", name="padding_mask")
    vectors = keras.layers.Embedding(len(WORDS), width)(ids) * keras.ops.expand_dims(
        keras.ops.cast(mask, "float32"), -1
    )
    model = keras.Model({"token_ids": ids, "padding_mask": mask}, keras.layers.Dense(2)(keras.ops.sum(vectors, axis=1)))
    model.preprocessor = Words(length) if preprocessor == "own" else preprocessor
    return model


def compiled(teacher, student):
    distiller = kd.Distiller(teacher, student, kd.losses.SoftTargets(2.0), student_loss_weight=0.5)
    distiller.compile(
        keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    return distiller


ARRAYS = {name: np.asarray(array) for name, array in Words()(TEXTS.tolist()).items()}


@pytest.mark.parametrize(
    "texts", [TEXTS, TEXTS.tolist(), TEXTS.astype(object), TEXTS.astype("S")], ids=["array", "list", "object", "bytes"]
)
def test_training_on_texts_is_training_on_what_the_preprocessor_makes(texts):
    one, other = compiled(network(0, 8), network(1, 3)), compiled(network(0, 8), network(1, 3))
    told = one.fit(texts, LABELS, 4, 2, verbose=0, shuffle=False, validation_data=(texts, LABELS)).history
    expected = other.fit(ARRAYS, LABELS, 4, 2, verbose=0, shuffle=False, validation_data=(ARRAYS, LABELS)).history
    assert told.keys() == expected.keys()
    for name, values in told.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-6)
    for ours, theirs in zip(one.student.get_weights(), other.student.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(one.predict(texts, verbose=0), other.predict(ARRAYS, verbose=0))
    assert one.evaluate(texts, LABELS, verbose=0) == other.evaluate(ARRAYS, LABELS, verbose=0)


def test_either_models_preprocessor_will_do_and_a_callable_teacher_has_none():
    for teacher, student in (
        (network(0, 8), network(1, 3, preprocessor=None)),
        (network(0, 8, preprocessor=None), network(1, 3)),
        (network(0, 8).__call__, network(1, 3)),
    ):
        compiled(teacher, student).fit(TEXTS, LABELS, 8, 1, verbose=0)


def test_a_store_of_texts_is_a_store_of_their_arrays(tmp_path):
    teacher = network(0, 8)
    of_texts = kd.targets.label(teacher, TEXTS, tmp_path / "texts", dtype="float32", progress=False)
    of_arrays = kd.targets.label(teacher, ARRAYS, tmp_path / "arrays", dtype="float32", progress=False)
    np.testing.assert_array_equal(of_texts.read(range(16)), of_arrays.read(range(16)))
    assert of_texts.manifest == of_arrays.manifest
    np.testing.assert_allclose(of_texts.read(range(16)), teacher.predict(ARRAYS, verbose=0), atol=1e-6)
    labelled = kd.targets.label(teacher, (TEXTS.tolist(), LABELS), tmp_path / "both", dtype="float32", progress=False)
    np.testing.assert_array_equal(labelled.read(range(16)), of_arrays.read(range(16)))
    # Training reads the store with the same arrays.
    arrays = kd.models.preprocess_strings(TEXTS, teacher)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }
    kd.targets.attach((arrays, LABELS), of_texts, batch_size=4)


def test_models_that_read_texts_otherwise_are_refused():
    distiller = compiled(network(0, 8), network(1, 3, preprocessor=Words(6, WORDS[::-1])))
    with pytest.raises(ValueError, match=r"teacher and student must read a text alike; got token_ids \(8, 6\)"):
        distiller.fit(TEXTS, LABELS, verbose=0)


def test_texts_without_a_preprocessor_are_one_sentence(tmp_path):
    plain = network(0, 8, preprocessor=None)
    for call in (
        lambda: compiled(plain, network(1, 3, preprocessor=None)).fit(TEXTS, LABELS, verbose=0),
        lambda: compiled(plain, network(1, 3, preprocessor=None)).predict(TEXTS, verbose=0),
        lambda: kd.targets.label(plain, TEXTS, tmp_path / "store"),
    ):
        with pytest.raises(
            ValueError, match=r"texts must be read by a model with a preprocessor; got none that has one"
        ):
            call()
    assert not (tmp_path / "store").exists()


@pytest.mark.tensorflow
def test_a_stream_of_texts_is_told_how_to_be_mapped(tmp_path):
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(4)
    with pytest.raises(ValueError, match=r"must give what the models read; got texts. Map them first: dataset.map"):
        compiled(network(0, 8), network(1, 3)).fit(stream, verbose=0)
    with pytest.raises(ValueError, match="must give what the models read"):
        kd.targets.label(network(0, 8), stream, tmp_path / "store")
    # What is not text passes.
    compiled(network(0, 8), network(1, 3)).fit(
        tf.data.Dataset.from_tensor_slices((ARRAYS, LABELS)).batch(4), verbose=0, shuffle=False
    )


@pytest.mark.parametrize("inputs", [np.zeros((2, 3)), [1.0, 2.0], {"a": np.zeros(2)}, None, [], np.array([None, 1])])
def test_numbers_and_nothing_are_no_texts(inputs):
    assert not holds_strings(inputs)


@pytest.mark.tensorflow
def test_a_bert_of_kerashub_takes_texts():
    keras_hub = pytest.importorskip("keras_hub")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[1:]]

    def task(seed, width):
        keras.utils.set_random_seed(seed)
        tokenizer = keras_hub.models.BertTokenizer(vocabulary=words, lowercase=True)
        return keras_hub.models.BertTextClassifier(
            backbone=keras_hub.models.BertBackbone(
                vocabulary_size=len(words), num_layers=1, num_heads=2, hidden_dim=width, intermediate_dim=8,
                max_sequence_length=8,
            ),
            num_classes=2,
            preprocessor=keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=8),
        )  # fmt: skip

    student = task(1, 4)
    distiller = compiled(task(0, 8), student)
    distiller.fit(TEXTS, LABELS, 8, 1, verbose=0)
    # KerasHub's own way gives the same answers.
    np.testing.assert_allclose(distiller.predict(TEXTS, verbose=0), student.predict(TEXTS, verbose=0), atol=1e-6)
