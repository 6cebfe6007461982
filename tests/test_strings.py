"""Texts for models with a preprocessor: `fit`, `evaluate`, `predict` and `label` do what they do with its arrays."""

import keras
import numpy as np
import pytest

import keras_distill as kd
from keras_distill.models.strings import holds_strings
from keras_distill.targets.manifest import ForeignDatasetError

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
            ValueError,
            match=r"texts must be read by a model with a preprocessor, or with an input of dtype string; got neither",
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


# Models that take the texts themselves


def vectorised(seed, width, head=None, words=WORDS[1:], shape=()):
    """A classifier that begins with a `TextVectorization`."""
    keras.utils.set_random_seed(seed)
    ids = keras.layers.TextVectorization(output_sequence_length=6)
    ids.adapt(words)
    layers = [keras.layers.Embedding(len(WORDS) + 1, width), keras.layers.GlobalAveragePooling1D()]
    return keras.Sequential([keras.Input(shape, dtype="string"), ids, *layers, keras.layers.Dense(2, activation=head)])


def behind_ids(model):
    """The same layers, given what the vectorisation makes."""
    outputs = inputs = keras.Input((6,), dtype="int64")
    for layer in model.layers[1:]:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def forms_of_texts():
    import tensorflow as tf

    arrays = {"array": TEXTS, "list": TEXTS.tolist(), "object": TEXTS.astype(object), "bytes": TEXTS.astype("S")}
    return {**arrays, "column": TEXTS[:, None], "tensor": tf.constant(TEXTS)}


@pytest.mark.tensorflow
@pytest.mark.parametrize("form", ["array", "list", "object", "bytes", "column", "tensor", "stream"])
def test_models_that_take_texts_train_as_on_the_ids_that_they_make_of_them(form):
    import tensorflow as tf

    one, other = compiled(vectorised(0, 8, "softmax"), vectorised(1, 3)), vectorised(1, 3)
    ids = np.asarray(other.layers[0](TEXTS))
    expected = compiled(behind_ids(vectorised(0, 8, "softmax")), behind_ids(other))
    history = expected.fit(ids, LABELS, 4, 2, verbose=0, shuffle=False, validation_data=(ids, LABELS)).history
    if form == "stream":
        given = (tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(4),)
    else:
        given = forms_of_texts()[form], LABELS, 4
    told = one.fit(*given, epochs=2, verbose=0, shuffle=False, validation_data=(TEXTS, LABELS)).history
    assert told.keys() == history.keys()
    for name, values in told.items():
        np.testing.assert_allclose(values, history[name], rtol=1e-5)
    # A stream's batches are of open size, and its sums of another order.
    for ours, theirs in zip(one.student.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.predict(TEXTS, verbose=0), expected.predict(ids, verbose=0), rtol=1e-5, atol=1e-7)


@pytest.mark.tensorflow
@pytest.mark.parametrize("shape", [(), (1,)])
def test_labels_alone_train_a_model_of_texts_as_keras_does(shape):
    ours, theirs = vectorised(1, 3, shape=shape), vectorised(1, 3, shape=shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs.compile(keras.optimizers.SGD(0.5), loss)
    theirs.fit(TEXTS.astype(object), LABELS, 4, 2, verbose=0, shuffle=False)
    distiller = kd.Distiller(vectorised(0, 8), ours, student_loss_weight=1.0)
    distiller.compile(keras.optimizers.SGD(0.5), loss)
    distiller.fit(TEXTS, LABELS, 4, 2, verbose=0, shuffle=False)
    for mine, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.tensorflow
def test_a_store_of_texts_for_models_that_take_them_holds_their_logits_and_knows_its_texts(tmp_path):
    import tensorflow as tf

    teacher, beside = vectorised(0, 8), compiled(vectorised(0, 8), vectorised(1, 3))
    expected = beside.fit(TEXTS, LABELS, 4, 2, verbose=0, shuffle=False).history
    for form, texts in forms_of_texts().items():
        store = kd.targets.label(teacher, texts, tmp_path / form, dtype="float32", progress=False)
        np.testing.assert_allclose(store.read(range(16)), teacher(tf.constant(TEXTS)), atol=1e-6)
        # However the texts are held, they meet the store of the first form.
        stored = kd.targets.attach((texts, LABELS), tmp_path / "array", batch_size=4, shuffle=False)
    told = compiled(None, vectorised(1, 3)).fit(stored, epochs=2, verbose=0, shuffle=False).history
    np.testing.assert_allclose(told["loss"], expected["loss"], rtol=1e-6)
    stream = tf.data.Dataset.from_tensor_slices(TEXTS).batch(4)
    of_stream = kd.targets.label(teacher, stream, tmp_path / "stream", dtype="float32", progress=False)
    np.testing.assert_array_equal(of_stream.read(range(16)), store.read(range(16)))
    with pytest.raises(ForeignDatasetError, match="the data set's fingerprint"):
        kd.targets.attach((np.where(np.arange(16) == 3, "the card", TEXTS), LABELS), store)


@pytest.mark.tensorflow
def test_texts_beside_numbers_are_labelled_and_trained_on(tmp_path):
    import tensorflow as tf

    def of_both(seed, width):
        inner = vectorised(seed, width)
        texts, ages = keras.Input((), dtype="string", name="text"), keras.Input((3,), name="age")
        outputs = keras.layers.Concatenate()([inner(texts), ages])
        return keras.Model({"text": texts, "age": ages}, keras.layers.Dense(2)(outputs))

    ages = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    teacher, data = of_both(0, 8), {"text": TEXTS, "age": ages}
    store = kd.targets.label(teacher, data, tmp_path / "store", dtype="float32", progress=False)
    expected = teacher({"text": tf.constant(TEXTS), "age": tf.constant(ages)})
    np.testing.assert_allclose(store.read(range(16)), expected, atol=1e-6)
    beside, stored = compiled(teacher, of_both(1, 3)), compiled(None, of_both(1, 3))
    one = beside.fit(data, LABELS, 4, verbose=0, shuffle=False).history
    batches = kd.targets.attach((data, LABELS), store, batch_size=4, shuffle=False)
    other = stored.fit(batches, verbose=0, shuffle=False).history
    np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-6)


@pytest.mark.tensorflow
def test_texts_beside_a_model_of_ids_are_refused_and_told_to_cut_the_vectorisation_off():
    import tensorflow as tf

    distiller = compiled(behind_ids(vectorised(0, 8)), vectorised(1, 3))
    for given in ((TEXTS, LABELS), (tf.data.Dataset.from_tensor_slices((TEXTS, LABELS)).batch(4),)):
        with pytest.raises(ValueError, match=r"must read a text alike; got texts by sequential.* and int64 by .* Cut"):
            distiller.fit(*given, verbose=0)


@pytest.mark.tensorflow
def test_a_teacher_of_other_words_is_another_teacher():
    one, same, other = (vectorised(0, 8, words=words) for words in (WORDS[1:], WORDS[1:], [*WORDS[1:-1], "there"]))
    assert kd.targets.fingerprint(one) == kd.targets.fingerprint(same) != kd.targets.fingerprint(other)


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
