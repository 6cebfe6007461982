"""`attach` for the backend that Keras runs on: TensorFlow has pipelines of its own, the others read NumPy's arrays."""

from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING or keras.config.backend() == "tensorflow":
    from keras_distill.targets.dataset import attach
else:
    from keras_distill.targets.batches import attach

__all__ = ["attach"]
