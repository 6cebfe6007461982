"""MNIST, and copies of its training digits moved, turned, stretched and bent: what the teachers of `mnist_paper` see.

The paper moves digits by up to two pixels; ours are turned, stretched and bent too. Copies are made once and kept, so
that every teacher, every store and every student reads the same ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from keras import ops
from scipy.ndimage import map_coordinates

import keras_distill as kd
from keras_distill.targets import Augmentation, Shift

SIDE = 28


@dataclass(frozen=True)
class Digits:
    """MNIST as pixels 0 to 255, uint8 `(num_items, 28, 28, 1)`, with int32 labels: 60,000 to train, 10,000 to test."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits(*, quick: bool = False) -> Digits:
    """MNIST with its validation examples back among the training ones, as the paper has it; `quick`: a part of it."""
    mnist = kd.data.load("mnist")
    inputs = np.concatenate([mnist.train.inputs, mnist.validation.inputs])
    labels = np.concatenate([mnist.train.labels, mnist.validation.labels])
    num_train, num_test = (3000, 1000) if quick else (len(labels), len(mnist.test))
    return Digits(
        _pixels(inputs[:num_train]),
        labels[:num_train],
        _pixels(mnist.test.inputs[:num_test]),
        mnist.test.labels[:num_test],
    )


def jittered_copies(images: np.ndarray, num_copies: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Copies of all images, uint8 like them: the first is the images themselves, the others are deformed."""
    yield images
    generator = np.random.default_rng(seed)
    for _ in range(num_copies - 1):
        batches = [deform(images[start : start + 1000], generator) for start in range(0, len(images), 1000)]
        yield np.concatenate(batches)


def deform(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Turns each image by up to 12°, stretches either axis by up to 12 %, shears by up to 0.1, moves it by up to one
    pixel, and bends it by a smooth field of about one pixel.

    Args:
        images: uint8 `(batch, 28, 28, 1)`.
        generator: of the random numbers.

    Returns:
        uint8, the same shape.
    """
    batch = len(images)

    def draw(largest: float) -> np.ndarray:
        return generator.uniform(-largest, largest, (batch, 1, 1)).astype("float32")

    down, right = np.meshgrid(*[np.arange(SIDE, dtype="float32") - (SIDE - 1) / 2] * 2, indexing="ij")
    angle, shear = np.deg2rad(draw(12.0)), draw(0.1)
    tall, wide = np.exp(draw(0.12)), np.exp(draw(0.12))
    bends = generator.normal(0.0, 0.7, (batch, 5, 5, 2)).astype("float32")
    bends = ops.convert_to_numpy(
        ops.image.resize(bends, (SIDE, SIDE), interpolation="bicubic", data_format="channels_last")
    )
    rows = tall * (np.cos(angle) * down - np.sin(angle) * right) + draw(1.0) + bends[..., 0]
    columns = wide * (np.sin(angle) * down + (np.cos(angle) + shear) * right) + draw(1.0) + bends[..., 1]
    which = np.broadcast_to(np.arange(batch, dtype="float32")[:, None, None], rows.shape)
    places = np.stack([which, rows + (SIDE - 1) / 2, columns + (SIDE - 1) / 2])
    # SciPy comes with scikit-learn, and is six times faster here than the gathers of `keras.ops.image`.
    return map_coordinates(images[..., 0], places, order=1)[..., None]


def open_copies(path: Path) -> np.ndarray:
    """The kept copies, uint8 `(num_copies, num_items, 28, 28, 1)`, read from disk as they are needed."""
    return np.load(path, mmap_mode="r")


def training_batches(
    copies: np.ndarray, labels: np.ndarray, batch_size: int, epochs: int, seed: int
) -> tf.data.Dataset:
    """Endless enough batches for `epochs`: of each item one of its copies, moved by up to one pixel more."""
    num_copies, num_items = copies.shape[:2]
    pixels = tf.constant(copies.reshape(num_copies * num_items, SIDE, SIDE, 1))
    classes = tf.constant(labels)
    move = Augmentation(Shift(1), seed=seed)

    def batch(places: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        drawn = tf.random.stateless_uniform(tf.shape(ids), [seed, places[0]], maxval=num_copies, dtype=tf.int64)
        images = tf.gather(pixels, drawn * num_items + ids)
        return move(images, ids, places), tf.gather(classes, ids)

    ids = tf.data.Dataset.range(num_items).shuffle(num_items, seed=seed).repeat(epochs)
    return ids.enumerate().batch(batch_size, drop_remainder=True).map(batch).prefetch(2)


def _pixels(inputs: np.ndarray) -> np.ndarray:
    return (inputs * 255.0).round().astype("uint8")
