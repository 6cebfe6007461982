"""Keras's augmentation layers as steps: each replays or is refused by name, and none is left out here."""

import keras
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from keras import layers, ops

from keras_distill.targets.augmentation import Augmentation
from keras_distill.targets.draws import Draws
from keras_distill.targets.labelling import label
from keras_distill.targets.manifest import StoreError
from keras_distill.targets.replaying import recipe, replay_of

ON_JAX = keras.config.backend() == "jax"
IMAGES = np.random.default_rng(0).random((37, 8, 10, 3), dtype=np.float32) * np.linspace(1, 255, 37).reshape(
    37, 1, 1, 1
)
IMAGES = IMAGES.astype("float32")
IDS, VIEWS = np.arange(37), np.arange(37) % 5
REPLAYED = {
    "AutoContrast": layers.AutoContrast(),
    "CenterCrop": layers.CenterCrop(5, 5),
    "ContrastLimitedAdaptiveHistogramEqualization": layers.ContrastLimitedAdaptiveHistogramEqualization(),
    "CutMix": layers.CutMix(),
    "Equalization": layers.Equalization(),
    "MixUp": layers.MixUp(),
    "RandAugment": layers.RandAugment(),
    "RandomBrightness": layers.RandomBrightness(0.3),
    "RandomColorDegeneration": layers.RandomColorDegeneration(0.5),
    "RandomColorJitter": layers.RandomColorJitter((0, 255), 0.2, 0.2, 0.3, 0.1),
    "RandomContrast": layers.RandomContrast(0.3),
    "RandomCrop": layers.RandomCrop(6, 7),
    "RandomElasticTransform": layers.RandomElasticTransform(),
    "RandomErasing": layers.RandomErasing(),
    "RandomFlip": layers.RandomFlip(),
    "RandomGaussianBlur": layers.RandomGaussianBlur(),
    "RandomGrayscale": layers.RandomGrayscale(),
    "RandomHue": layers.RandomHue(0.3),
    "RandomInvert": layers.RandomInvert(),
    "RandomPerspective": layers.RandomPerspective(),
    "RandomPosterization": layers.RandomPosterization((2, 6)),
    "RandomRotation": layers.RandomRotation(0.2),
    "RandomSaturation": layers.RandomSaturation(0.4),
    "RandomSharpness": layers.RandomSharpness(0.5),
    "RandomShear": layers.RandomShear((0.0, 0.2), (0.0, 0.2)),
    "RandomTranslation": layers.RandomTranslation(0.2, 0.2),
    "RandomZoom": layers.RandomZoom(0.2),
    "Resizing": layers.Resizing(5, 5),
    "Solarization": layers.Solarization(0.2, 0.5),
}
# Some seconds of tracing each; on JAX, which compiles them, all but a few.
SLOW = {"RandAugment", "RandomElasticTransform", "CutMix"}
if ON_JAX:
    SLOW = set(REPLAYED) - {"CenterCrop", "MixUp", "RandomBrightness", "RandomCrop", "RandomFlip", "RandomInvert"}
REFUSED = {
    "AugMix": (layers.AugMix, "AugMix must make a view again.* got a layer that draws other numbers each time"),
    "RandomShear of a number": (lambda: layers.RandomShear(0.2), "RandomShear must .* out of the configuration"),
    "GaussianNoise": (lambda: layers.GaussianNoise(0.3), "GaussianNoise must .* got another picture"),
    "Dense": (lambda: built(layers.Dense(3)), "Dense must .* a layer with weights"),
}


def built(layer):
    layer.build((None, 8, 10, 3))
    return layer


def run(augmentation, ids, views=None, images=IMAGES):
    views = VIEWS[ids] if views is None else views
    partners = images[np.asarray(augmentation.partners(ids, views, len(images)))] if augmentation.pairs_items else None
    return ops.convert_to_numpy(augmentation(images[ids], ids, views, partners, len(images)))


def test_no_layer_of_keras_is_left_out():
    base = layers.RandomFlip.__mro__[1]
    augmentations = {name for name, each in vars(layers).items() if isinstance(each, type) and issubclass(each, base)}
    # Boxes of objects, which a soft target has none of.
    assert augmentations - {"MaxNumBoundingBoxes"} == set(REPLAYED) | {"AugMix"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in REPLAYED]
)
def test_a_view_is_the_same_bit_for_bit_in_other_batches(name):
    augmentation = Augmentation(REPLAYED[name], seed=3)
    together = run(augmentation, IDS)
    assert np.isfinite(together).all()
    again = Augmentation.from_config(augmentation.get_config())
    # Backwards, and a batch of one.
    np.testing.assert_array_equal(run(again, IDS[::-1].copy())[::-1], together)
    np.testing.assert_array_equal(run(again, IDS[[20]])[0], together[20])
    is_random = augmentation.steps[0].plan((8, 10, 3)).num_draws > 0
    assert is_random == (not np.array_equal(run(again, IDS, VIEWS + 5), together))


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["MixUp", "RandomErasing", "RandomHue", "RandomRotation", "RandomCrop"])
def test_a_view_is_the_same_bit_for_bit_in_a_pipeline(name):
    """Of these TensorFlow moves products and sums about, in other ways in a pipeline than outside."""
    import tensorflow as tf

    augmentation = Augmentation(REPLAYED[name], seed=3)
    partners = IMAGES[np.asarray(augmentation.partners(IDS, VIEWS, 37))]

    def view(images, ids, views, partner_images):
        return augmentation(images, ids, views, partner_images if augmentation.pairs_items else None, 37)

    pipeline = tf.data.Dataset.from_tensor_slices((IMAGES, IDS, VIEWS, partners)).batch(7).map(view)
    np.testing.assert_array_equal(np.concatenate(list(pipeline.as_numpy_iterator())), run(augmentation, IDS))


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_does_not_replay_is_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        Augmentation(layers.RandomFlip(), make()).check((8, 10, 3), "float32")


# The views of a sample, hashed on TensorFlow: pixels that move, or are drawn, are the same on every backend.
@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (layers.RandomFlip(), "0d5122b22baeb7e233539f657f4c1187"),
        (layers.RandomCrop(6, 7), "9e9c7c18f55e78fe80e4787b23cd98bd"),
        (layers.RandomInvert(), "6ec0d76adff08b5fc4740d72dd876ed9"),
    ],
)
def test_views_are_the_same_in_other_processes_and_on_other_backends(layer, expected):
    assert Augmentation(layer, seed=3).check((8, 10, 3), "float32") == expected


def test_flips_are_mirrors_of_about_half():
    flipped = run(Augmentation(layers.RandomFlip("horizontal")), IDS)
    mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, IMAGES, strict=True)])
    same = np.array([np.array_equal(a, b) for a, b in zip(flipped, IMAGES, strict=True)])
    np.testing.assert_array_equal(mirrored, ~same)
    assert 8 < mirrored.sum() < 29


def test_translations_are_scipys_and_uniform():
    image = np.zeros((400, 16, 16), np.float32)
    image[:, 6:10, 6:10] = np.random.default_rng(1).random((4, 4))
    layer = layers.RandomTranslation(0.25, 0.25, fill_mode="constant")
    moved = np.asarray(Augmentation(layer)(image, np.arange(400), np.zeros(400, int)))
    # Bilinear moves by fractions keep the sum, and move its centre by as much.
    centre = [scipy.ndimage.center_of_mass(each) for each in moved]
    moves = np.array(centre) - scipy.ndimage.center_of_mass(image[0])
    for axis in range(2):
        assert scipy.stats.kstest(moves[:, axis], scipy.stats.uniform(-4, 8).cdf).pvalue > 1e-3
    for each, move in zip(moved[:5], moves[:5], strict=True):
        expected = scipy.ndimage.shift(image[0], move, order=1, mode="constant", prefilter=False)
        np.testing.assert_allclose(each, expected, atol=1e-4)


def test_mixup_blends_with_the_partner_by_beta_distributed_shares():
    images = np.eye(2000, dtype="float32").reshape(2000, 1, 2000)[:, :, :1].repeat(4, 1)
    ids, views = np.arange(2000), np.zeros(2000, int)
    augmentation = Augmentation(layers.MixUp(0.4), seed=4)
    partners = np.asarray(augmentation.partners(ids, views, 2000))
    assert 1200 < len(set(partners.tolist())) < 1330  # 1 - 1/e of them
    classes = np.stack([np.ones(2000), np.zeros(2000)], axis=1).astype("float32")
    parts = images, ids, views, images[partners], 2000, classes, classes[:, ::-1].copy()
    _, labels = augmentation.with_labels(*parts)
    shares = np.asarray(labels)[:, 0]
    assert scipy.stats.kstest(shares, scipy.stats.beta(0.4, 0.4).cdf).statistic < 0.035


@pytest.mark.parametrize(
    ("draw", "distribution"),
    [
        (lambda draws: draws.uniform((3000, 1), -2.0, 3.0), scipy.stats.uniform(-2, 5)),
        (lambda draws: draws.normal((3000, 1), 1.0, 2.0), scipy.stats.norm(1, 2)),
        (lambda draws: draws.gamma((3000,), 0.3), scipy.stats.gamma(0.3)),
        (lambda draws: draws.gamma((3000,), 4.0), scipy.stats.gamma(4)),
        (lambda draws: draws.beta((3000,), 0.2, 0.2), scipy.stats.beta(0.2, 0.2)),
        (lambda draws: draws.beta((3000,), 2.0, 0.5), scipy.stats.beta(2, 0.5)),
    ],
)
def test_draws_have_the_distributions_of_keras_random(draw, distribution):
    draws = Draws()
    draws.begin(ops.convert_to_tensor(np.random.default_rng(2).random((3000, 64), dtype=np.float32)), False)
    found = np.asarray(draw(draws)).reshape(-1).astype("float64")
    assert scipy.stats.kstest(found, distribution.cdf).pvalue > 1e-3


def test_whole_numbers_are_drawn_equally_often():
    draws = Draws()
    draws.begin(ops.convert_to_tensor(np.random.default_rng(2).random((3000, 1), dtype=np.float32)), False)
    counts = np.bincount(np.asarray(draws.randint((3000,), 2, 7)), minlength=8)
    assert counts[2:7].sum() == 3000
    assert scipy.stats.chisquare(counts[2:7]).pvalue > 1e-3


def test_a_store_keeps_the_recipe_and_is_held_to_its_sample(tmp_path):
    images = IMAGES[:20]
    augmentation = Augmentation(layers.RandomFlip(seed=9), layers.RandomTranslation(0.1, 0.1), seed=6)
    settings = {"augmentation": augmentation, "views": 2, "dtype": "float32", "teacher_fingerprint": "pixels"}
    store = label(lambda x: ops.reshape(x, (len(x), -1)), images, tmp_path / "s", **settings)
    again = replay_of(store)
    for view in range(2):
        seen = ops.convert_to_numpy(again(images, np.arange(20), np.full(20, view)))
        np.testing.assert_array_equal(store.read(np.arange(20), view), seen.reshape(20, -1))
    # Another process names its layers otherwise: it goes on with the store all the same.
    settings["augmentation"] = Augmentation(layers.RandomFlip(name="b"), layers.RandomTranslation(0.1, 0.1), seed=6)
    label(lambda x: ops.reshape(x, (len(x), -1)), images, tmp_path / "s", **settings)
    kept = store.manifest.augmentation
    kept["sample"][2] = "0" * 32
    kept["made_by"]["keras"] = "3.99"
    with pytest.raises(StoreError, match=r"made by Keras 3\.99 on .*; got others by Keras .* or label again"):
        replay_of(store)


def test_pictures_that_a_layer_does_not_take_are_refused_with_its_reason():
    with pytest.raises(ValueError, match=r"such as RandomHue takes; got images of shape \(8, 8, 1\), of which it says"):
        recipe(Augmentation(layers.RandomHue(0.2)), np.zeros((1, 8, 8, 1), np.float32))
