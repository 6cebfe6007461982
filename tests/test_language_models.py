"""Causal language models of KerasHub, in tiny configurations, taught by top-k targets of each token."""

import keras
import numpy as np
import pytest
from scipy.special import log_softmax

import keras_distill as kd
from keras_distill.losses import SoftTargets
from keras_distill.targets import attach, label

hub = pytest.importorskip("keras_hub")
# On JAX KerasHub's own `predict` wants another package.
pytestmark = pytest.mark.tensorflow

VOCABULARY, LENGTH, TOP_K = 23, 8, 4


def gpt2(num_layers, width, seed):
    keras.utils.set_random_seed(seed)
    sizes = {"vocabulary_size": VOCABULARY, "intermediate_dim": 2 * width, "max_sequence_length": LENGTH}
    backbone = hub.models.GPT2Backbone(num_layers=num_layers, num_heads=2, hidden_dim=width, dropout=0.0, **sizes)
    return hub.models.GPT2CausalLM(backbone=backbone)


def gemma(num_layers, width, seed):
    keras.utils.set_random_seed(seed)
    backbone = hub.models.GemmaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=num_layers,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=width,
        intermediate_dim=2 * width,
        head_dim=width // 2,
    )
    return hub.models.GemmaCausalLM(backbone=backbone)


def following(ids):
    """The rule of the language: what comes after each token."""
    return (3 * ids + 1) % VOCABULARY


def texts(count, seed=0):
    """Token ids that follow the rule, the mask of those that are no padding, and each next token."""
    generator = np.random.default_rng(seed)
    ids = [generator.integers(0, VOCABULARY, count)]
    for _ in range(LENGTH):
        ids.append(following(ids[-1]))
    ids = np.stack(ids, 1).astype("int32")
    mask = (np.arange(LENGTH) < generator.integers(3, LENGTH + 1, (count, 1))).astype("int32")
    return {"token_ids": ids[:, :LENGTH] * mask, "padding_mask": mask}, ids[:, 1:] * mask, mask.astype("float32")


def rule_teacher(inputs):
    """Ten nats between the token that follows and all others."""
    return 10.0 * keras.ops.one_hot(following(keras.ops.cast(inputs["token_ids"], "int32")), VOCABULARY)


def compiled(distiller, learning_rate):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(learning_rate), loss, jit_compile=False)
    return distiller


@pytest.mark.parametrize("build", [gpt2, gemma])
def test_the_loss_is_that_of_the_k_largest_logits_weighed_token_by_token(build, tmp_path):
    teacher, student = build(2, 12, 0), build(1, 8, 1)
    # Near their beginning all logits are alike.
    teacher.set_weights([8.0 * value for value in teacher.get_weights()])
    x, y, _ = texts(6)
    weights = np.random.default_rng(1).uniform(size=y.shape).astype("float32") * x["padding_mask"]
    store = label(teacher, x, tmp_path / "targets", top_k=TOP_K, dtype="float32", batch_size=6, progress=False)
    theirs, ours = (np.asarray(model(x), "float64") for model in (teacher, student))
    kept = np.argsort(-theirs, axis=-1)[..., :TOP_K]
    p = log_softmax(np.take_along_axis(theirs, kept, -1) / 2.0, axis=-1)
    q = np.take_along_axis(log_softmax(ours / 2.0, axis=-1), kept, -1)
    expected = np.sum(weights * 4.0 * np.sum(np.exp(p) * (p - q), axis=-1)) / y.size
    hard = -np.take_along_axis(log_softmax(ours, axis=-1), y[..., None], -1)[..., 0]
    distiller = compiled(
        kd.Distiller(None, student, SoftTargets(2.0, tail="renormalise"), student_loss_weight=0.5), 0.0
    )
    batches = attach((x, y, weights), store, batch_size=6)
    history = distiller.fit(batches, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["distillation_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(history["student_loss"], np.sum(weights * hard) / y.size, rtol=1e-4)


@pytest.mark.parametrize("build", [gpt2, gemma])
def test_a_student_learns_the_language_and_generates_as_its_logits_say(build, tmp_path):
    x, _, mask = texts(200)
    store = label(
        rule_teacher, x, tmp_path / "targets", top_k=TOP_K, batch_size=50, teacher_fingerprint="rule", progress=False
    )
    student = build(1, 16, 0)
    distiller = compiled(kd.Distiller(None, student, SoftTargets(1.0), student_loss_weight=0.0), 2e-2)
    # No labels: what is at the padding weighs nothing.
    distiller.fit(attach((x, None, mask), store, batch_size=25), epochs=12, shuffle=False, verbose=0)
    test_x, next_ids, is_token = texts(100, seed=1)
    answers = np.argmax(student.predict(test_x, verbose=0), axis=-1)
    assert np.mean((answers == next_ids)[is_token > 0]) > 0.95

    prompt, num_new = np.arange(6, dtype="int32").reshape(3, 2), LENGTH - 2
    student.compile(sampler="greedy")
    padded = {
        "token_ids": np.pad(prompt, ((0, 0), (0, num_new))),
        "padding_mask": np.pad(np.ones_like(prompt), ((0, 0), (0, num_new))),
    }
    generated = np.asarray(student.generate(padded, stop_token_ids=None)["token_ids"])
    by_hand = prompt
    for _ in range(num_new):
        logits = np.asarray(student({"token_ids": by_hand, "padding_mask": np.ones_like(by_hand)}))
        by_hand = np.concatenate([by_hand, np.argmax(logits[:, -1:], axis=-1)], axis=1)
    np.testing.assert_array_equal(generated, by_hand)
