"""KerasHub's ViT as an int8 network: what cannot be copied or has no integers stays float and is named."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.quantize_aware import quantize_aware

keras_hub = pytest.importorskip("keras_hub")
pytestmark = pytest.mark.tensorflow


@pytest.mark.filterwarnings("ignore")
def test_a_vision_transformer_trains_with_its_own_layers_in_float():
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(16, 16, 3), patch_size=4, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32
    )
    hidden = layers.Dense(16, activation="relu", name="hidden")(backbone.output[:, 0])
    student = keras.Model(backbone.input, layers.Dense(3, name="head")(hidden))
    images = np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype("float32")
    own = np.asarray(student(images))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quantized = quantize_aware(student, images)
    said = " ".join(str(warning.message) for warning in caught)
    for layer in backbone.layers[1:]:
        assert repr(layer.name) in said
    kinds = [type(layer).__name__ for layer in quantized.layers]
    assert kinds.count("Int8Kernel") == 2
    # Seven and a half bits a weight and a value, through two layers: a few hundredths of how much the logits vary.
    assert np.abs(np.asarray(quantized(images)) - own).max() < 0.1 * own.std()
    quantized.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    quantized.fit(images, np.arange(32) % 3, verbose=0)
    assert np.isfinite(np.asarray(quantized(images))).all()
