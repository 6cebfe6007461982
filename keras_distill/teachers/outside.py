"""`OutsideTeacher`: what teachers share that compute outside of Keras's backend, on NumPy's arrays."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_distill._types import TensorTree


class OutsideTeacher(ABC):
    """A teacher that takes and gives NumPy's arrays, beside a student of any backend.

    Args:
        from_logits: whether it gives logits, or (`False`) probabilities, of a softmax or of sigmoids, whose logits are
            then taken.

    Attributes:
        fingerprint: 32 hexadecimal digits of what it is made of; a store keeps it.
    """

    #: A step that calls another runtime cannot be compiled by XLA; the `Distiller` looks here.
    supports_jit = False
    fingerprint: str

    def __init__(self, from_logits: bool):
        self.from_logits = bool(from_logits)
        # What made its probabilities, softmax or sigmoid: the first batch shows it.
        self._activation: str | None = None

    @abstractmethod
    def logits(self, inputs: TensorTree) -> np.ndarray:
        """The same for NumPy arrays alone: float32 `(batch, …, num_classes)`."""

    @abstractmethod
    def _logits_shape(self, inputs: TensorTree) -> Sequence[int | None] | None:
        """The shape of the logits of `inputs`, tensors of a graph, as far as it is known before there is a batch."""

    def __call__(self, inputs: TensorTree) -> Any:
        """The logits of a batch.

        Args:
            inputs: `(batch, …)`, or a dict or list of such; NumPy arrays or tensors, also inside a `tf.function`.

        Returns:
            A float32 tensor `(batch, …, num_classes)`.
        """
        import keras

        if keras.config.backend() != "tensorflow":
            # There it runs between the compiled steps, on whole batches.
            arrays = keras.tree.map_structure(_as_array, inputs)
            return keras.ops.convert_to_tensor(self.logits(arrays))
        import tensorflow as tf

        flat = [tf.convert_to_tensor(values) for values in keras.tree.flatten(inputs)]

        def run(*arrays: np.ndarray) -> np.ndarray:
            return self.logits(keras.tree.pack_sequence_as(inputs, [np.asarray(array) for array in arrays]))

        if tf.executing_eagerly():
            return tf.convert_to_tensor(run(*[tensor.numpy() for tensor in flat]))
        logits = tf.numpy_function(run, flat, tf.float32, stateful=False)
        # A graph knows nothing of what another runtime returns.
        shape = self._logits_shape(inputs)
        if shape is not None:
            logits.set_shape([flat[0].shape[0], *shape[1:]])
        return logits

    def _as_logits(self, outputs: np.ndarray, who: str) -> np.ndarray:
        """The logits of what it gave, float32; `who` names the output in errors."""
        if self.from_logits:
            return outputs
        if self._activation is None:
            from keras_distill.models.probabilities import promised_activation

            self._activation = promised_activation(who, outputs, from_logits=False)
        logits = np.log(np.maximum(outputs, np.float32(1e-30)))
        if self._activation == "sigmoid":
            # 1 − p has no numbers between 0 and 2⁻²⁴.
            logits -= np.log(np.maximum(1.0 - outputs, np.float32(2.0**-24)))
        return logits


def _as_array(values: Any) -> np.ndarray:
    import keras

    # `convert_to_numpy` knows the backend's own tensors, wherever they lie.
    return keras.ops.convert_to_numpy(values) if keras.ops.is_tensor(values) else np.asarray(values)
