"""Augmentations against NumPy and SciPy; above all: the same view is the same, bit for bit, in any company."""

import keras
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from keras import ops

from keras_distill.targets.augmentation import Augmentation, Crop, Shift
from keras_distill.targets.hashes import hashes, uniform

IDS = np.arange(37)
IMAGES = np.random.default_rng(0).random((37, 9, 8, 2), dtype=np.float32)
FLIP = keras.layers.RandomFlip("horizontal")
PIPELINES = {
    "shift": (Shift(2),),
    "every shift": (Shift(1, exhaustive=True),),
    "crop": (Crop(7, 6, padding=2),),
    "flip": (FLIP,),
    "all": (Shift(1), Crop(8, 8, padding=1), FLIP, keras.layers.RandomRotation(0.1), keras.layers.MixUp(0.4)),
}


def run(augmentation, ids, views, images=IMAGES):
    partners = None
    if augmentation.pairs_items:
        partners = images[np.asarray(augmentation.partners(ids, views, len(images)))]
    return ops.convert_to_numpy(augmentation(images[ids], ids, views, partners, len(images)))


def splitmix(seed, ids, views, num_draws):
    """The same hash in NumPy's own 64-bit arithmetic."""
    with np.errstate(over="ignore"):
        increment, first, second = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

        def mix(z):
            z = (z ^ (z >> np.uint64(30))) * first
            z = (z ^ (z >> np.uint64(27))) * second
            return z ^ (z >> np.uint64(31))

        state = mix(np.uint64(ids) * increment + mix(np.array([seed + 1], np.uint64)))
        state = mix(state + np.uint64(views) * first + increment)
        return mix(state[:, None] + np.arange(1, num_draws + 1).astype(np.uint64) * increment)


def test_hashes_are_splitmix_in_numpys_arithmetic():
    views = IDS % 3
    np.testing.assert_array_equal(hashes(12345, IDS, views, 4), splitmix(12345, IDS, views, 4))


def test_draws_are_uniform_and_unrelated_between_ids_views_seeds_and_draws():
    ids, views = np.arange(20_000), np.zeros(20_000, int)
    draws = np.asarray(uniform(1, ids, views, 2)).astype("float64")
    others = [
        draws[:, 1],
        uniform(2, ids, views, 1)[:, 0],
        uniform(1, ids, views + 1, 1)[:, 0],
        np.roll(draws[:, 0], 1),
    ]
    assert scipy.stats.kstest(draws[:, 0], "uniform").pvalue > 1e-3
    assert draws.min() >= 0.0
    assert draws.max() < 1.0
    for other in others:
        assert abs(np.corrcoef(draws[:, 0], np.asarray(other, "float64"))[0, 1]) < 4 / np.sqrt(len(ids))


@pytest.mark.parametrize("name", PIPELINES)
def test_a_view_is_the_same_bit_for_bit_alone_in_any_batch_and_in_a_pipeline(name):
    augmentation = Augmentation(*PIPELINES[name], seed=9)
    views = (IDS * 7) % 9
    together = run(augmentation, IDS, views)
    order = np.random.default_rng(1).permutation(37)
    np.testing.assert_array_equal(run(augmentation, order, views[order]), together[order])
    for item in (0, 36):
        np.testing.assert_array_equal(run(augmentation, IDS[[item]], views[[item]])[0], together[item])
    again = Augmentation.from_config(augmentation.get_config())
    np.testing.assert_array_equal(run(again, IDS[30:], views[30:]), together[30:])
    if keras.config.backend() != "tensorflow":
        return
    import tensorflow as tf

    def in_graph(ids, views):
        partners = tf.gather(IMAGES, again.partners(ids, views, 37)) if again.pairs_items else None
        return again(tf.gather(IMAGES, ids), ids, views, partners, 37)

    piped = tf.data.Dataset.from_tensor_slices((IDS, views)).batch(5).map(in_graph)
    np.testing.assert_array_equal(np.concatenate(list(piped.as_numpy_iterator())), together)


@pytest.mark.parametrize("name", PIPELINES)
def test_another_seed_or_view_is_another_picture(name):
    augmentation = Augmentation(*PIPELINES[name], seed=9)
    ids, views = IDS, np.zeros_like(IDS)
    first = run(augmentation, ids, views)
    assert not np.array_equal(run(augmentation, ids, views + 1), first)
    if name != "every shift":
        assert not np.array_equal(run(Augmentation(*PIPELINES[name], seed=10), ids, views), first)


def test_exhaustive_shifts_are_scipys_shifts_in_rows_of_moves():
    augmentation = Augmentation(Shift(2, exhaustive=True))
    assert augmentation.num_views == 25
    for view in range(25):
        move = (view // 5 - 2, view % 5 - 2, 0)
        expected = scipy.ndimage.shift(IMAGES[3], move, order=0, mode="constant", prefilter=False)
        np.testing.assert_array_equal(run(augmentation, np.array([3]), np.array([view]))[0], expected)


def test_random_shifts_are_all_moves_equally_often():
    image = np.zeros((5000, 5, 5), np.float32)
    image[:, 2, 2] = 1.0
    moved = np.asarray(Augmentation(Shift(1))(image, np.arange(5000), np.zeros(5000, int)))
    counts = moved.sum(axis=0)
    assert counts[1:4, 1:4].sum() == 5000
    assert scipy.stats.chisquare(counts[1:4, 1:4].reshape(-1)).pvalue > 1e-3


def test_crops_are_windows_of_the_padded_image():
    cropped = run(Augmentation(Crop(7, 6, padding=2)), IDS, IDS * 0)
    padded = np.pad(IMAGES, [(0, 0), (2, 2), (2, 2), (0, 0)])
    corners = set()
    for image, around in zip(cropped, padded, strict=True):
        found = [(t, c) for t in range(7) for c in range(7) if np.array_equal(around[t : t + 7, c : c + 6], image)]
        assert found
        corners.add(found[0])
    assert len(corners) > 10


def test_pixels_keep_their_type_where_they_only_move():
    images = (IMAGES[..., 0] * 255).astype("uint8")
    moved = ops.convert_to_numpy(Augmentation(Shift(1), Crop(8, 8))(images, IDS, IDS * 0))
    assert moved.dtype == np.uint8
    assert moved.shape == (37, 8, 8)


def test_layers_of_a_pipeline_are_steps_of_their_own():
    layers = [keras.layers.RandomFlip(), keras.layers.RandomInvert(1.0, value_range=(0, 1))]
    as_pipeline = Augmentation(keras.layers.Pipeline(layers), seed=5)
    np.testing.assert_array_equal(run(as_pipeline, IDS, IDS), run(Augmentation(*layers, seed=5), IDS, IDS))


def old(step, **settings):
    return lambda: Augmentation.from_config({"seed": 0, "steps": [{"step": step, **settings}]})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augmentation(), "at least one"),
        (lambda: Augmentation(keras.layers.MixUp(), FLIP), r"must come last among the steps; got \['MixUp', 'RandomFl"),
        (lambda: Augmentation(Shift(1, True), Shift(2, True)), "the same number of views"),
        (lambda: Shift(0), "max_pixels must be >= 1"),
        (lambda: Augmentation(Crop(20, 3))(IMAGES, IDS, IDS), "the crop must be no larger"),
        (lambda: Augmentation(FLIP)(np.zeros((2, 5)), [0, 1], [0, 0]), "images"),
        (lambda: Augmentation(keras.layers.MixUp())(IMAGES, IDS, IDS), "partner_inputs must be given for MixUp"),
        (old("Cutout"), "Cutout"),
        # What an earlier version had of its own.
        (old("Flip"), 'RandomFlip."horizontal".* took its place and draws otherwise: label again'),
        (old("Rotation", max_degrees=9.0), "keras.layers.RandomRotation took its place"),
        (old("Mixup", alpha=1.0), "keras.layers.MixUp took its place"),
    ],
)
def test_what_means_nothing_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
