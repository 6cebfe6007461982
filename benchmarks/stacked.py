"""A whole grid of students trained at once: one hidden layer each, their weights stacked, one product for all of them.

Twenty of them cost what two do one after the other, so that a full grid is cheap enough to compare with. The arithmetic
is `Distiller`'s under Adam with a cosine to zero; `tests/search/test_tuning_benchmark.py` holds one against the other.
"""

from collections.abc import Sequence

import numpy as np

from keras_distill.search import Recipe


def train_stacked(
    weights: Sequence[np.ndarray],
    examples: tuple[np.ndarray, np.ndarray, np.ndarray],
    candidates: Sequence[Recipe],
    *,
    num_steps: int,
    batch_size: int = 128,
    seed: int = 0,
) -> list[np.ndarray]:
    """The weights of one student for each candidate, each array with an axis of candidates before its own.

    Args:
        weights: of a rectified hidden layer and of the logits, to begin from.
        examples: inputs `(num_items, size)`, integer labels `(num_items,)`, −1 for none, and the teacher's logits.
        candidates: temperature, weight of the labels and learning rate of each.
        num_steps: of each.
        batch_size: items a step.
        seed: of the order, the same for all.
    """
    import tensorflow as tf

    inputs, labels, teacher_logits = (tf.constant(part) for part in examples)
    num_items, num_classes = teacher_logits.shape
    generator = np.random.default_rng(seed)
    num_epochs = -(-num_steps * batch_size // num_items)
    order = np.concatenate([generator.permutation(num_items) for _ in range(num_epochs)])
    steps = tf.constant(order[: num_steps * batch_size].reshape(num_steps, batch_size))
    # Axes: candidate, item, class.
    temperature = tf.constant([[[each.temperature]] for each in candidates], tf.float32)
    weight = tf.constant([each.student_loss_weight for each in candidates], tf.float32)
    rate = np.array([each.learning_rate for each in candidates], "float32")
    parts = [tf.Variable(np.stack([part] * len(candidates))) for part in weights]
    moments = [[tf.Variable(tf.zeros_like(part)) for part in parts] for _ in range(2)]

    @tf.function
    def train() -> None:
        for step in tf.range(num_steps):
            chosen = steps[step]
            x, y, teacher = (tf.gather(part, chosen) for part in (inputs, labels, teacher_logits))
            with tf.GradientTape() as tape:
                logits = stacked_logits(parts, x)
                has_label = tf.cast(y >= 0, tf.float32)
                wanted = tf.one_hot(y, num_classes)
                of_labels = -tf.reduce_sum(wanted * tf.nn.log_softmax(logits), axis=(1, 2))
                of_labels /= tf.maximum(tf.reduce_sum(has_label), 1.0)
                soft = tf.nn.softmax(teacher / temperature)
                of_teacher = -tf.reduce_sum(soft * tf.nn.log_softmax(logits / temperature), axis=(1, 2)) / batch_size
                of_teacher *= temperature[:, 0, 0] ** 2
                loss = tf.reduce_sum(weight * of_labels + (1.0 - weight) * of_teacher)
            gradients = tape.gradient(loss, parts)
            done = tf.cast(step, tf.float32)
            scale = 0.5 * (1.0 + tf.cos(np.pi * done / num_steps))
            scale *= tf.sqrt(1.0 - 0.999 ** (done + 1.0)) / (1.0 - 0.9 ** (done + 1.0))
            for part, gradient, first, second in zip(parts, gradients, *moments, strict=True):
                first.assign(0.9 * first + 0.1 * gradient)
                second.assign(0.999 * second + 0.001 * gradient**2)
                size = tf.reshape(rate * scale, (-1, *[1] * (len(part.shape) - 1)))
                part.assign_sub(size * first / (tf.sqrt(second) + 1e-7))

    train()
    return [part.numpy() for part in parts]


def stacked_logits(parts: Sequence, inputs: np.ndarray) -> "np.ndarray":
    """Logits `(num_candidates, num_items, num_classes)` of inputs `(num_items, size)`, as a tensor."""
    import tensorflow as tf

    kernel, bias, out_kernel, out_bias = parts
    hidden = tf.nn.relu(tf.einsum("is,csh->cih", inputs, kernel) + bias[:, None])
    return hidden @ out_kernel + out_bias[:, None]
