"""`SavedModelTeacher`: a TensorFlow SavedModel as a teacher, whether Keras 2, Keras 3 or TensorFlow wrote it.

It runs in TensorFlow: on that backend inside the student's step, on another one between the steps, on NumPy arrays.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import TensorTree
from keras_distill.teachers.outside import OutsideTeacher

_DEFAULT_SIGNATURE = "serving_default"


class SavedModelTeacher(OutsideTeacher):
    """A SavedModel folder as a teacher: beside the student in a `Distiller`, or through a store by `targets.label`.

    Args:
        path: the folder that holds `saved_model.pb`.
        output_name: which output holds the logits or probabilities; `None` takes the only float one of rank ≥ 2.
        signature: which signature is called; `None` takes `serving_default`, or the only one.
        from_logits: whether that output is logits, or (`False`) probabilities, of a softmax or of sigmoids, whose
            logits are then taken.
        preprocess: a function of a NumPy batch: another resolution, another scaling than the student's.
        input_names: for inputs given as a dict, `{name in the signature: name in the dict}`; `None` takes equal names.

    Attributes:
        num_classes: the width of its output, or `None` where the signature does not say.
        fingerprint: 32 hexadecimal digits of the hash of the folder's files and the settings; a store keeps it.

    Raises:
        FileNotFoundError: there is no SavedModel in that folder.
        ValueError: TensorFlow cannot load it; no signature of that name; no output, or several, could hold logits.
        ImportError: TensorFlow is not installed.

    Example:
        >>> import keras, tempfile
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> path = tempfile.mkdtemp()
        >>> model.export(path, verbose=False)
        >>> x = np.float32([[1, 2]])
        >>> bool(np.allclose(SavedModelTeacher(path).logits(x), model(x)))
        True
    """

    def __init__(
        self,
        path: str | os.PathLike,
        output_name: str | None = None,
        *,
        signature: str | None = None,
        from_logits: bool = True,
        preprocess: Callable[[Any], Any] | None = None,
        input_names: Mapping[str, str] | None = None,
    ):
        super().__init__(from_logits)
        self.path = Path(path)
        if not (self.path / "saved_model.pb").is_file():
            expectation = "a SavedModelTeacher's path must be a folder with saved_model.pb"
            raise FileNotFoundError(error_message(expectation, f"{self.path}, which has none"))
        self.preprocess = preprocess
        self.input_names = dict(input_names) if input_names else None
        self._open(signature, output_name)
        settings = (self.signature, self.output_name, self.from_logits, _name_of(preprocess), self.input_names)
        digest = hashlib.sha256(repr(settings).encode())
        for file in sorted(self.path.rglob("*")):
            # Keras writes a fingerprint of its own, which differs from export to export.
            if file.is_file() and file.name != "fingerprint.pb":
                digest.update(file.relative_to(self.path).as_posix().encode())
                digest.update(file.read_bytes())
        self.fingerprint = digest.hexdigest()[:32]

    def __call__(self, inputs: TensorTree) -> Any:
        """The logits of a batch.

        Args:
            inputs: `(batch, …)`, or a dict or list of such; NumPy arrays or tensors, also inside a `tf.function`.

        Returns:
            A float32 tensor `(batch, …, num_classes)`.
        """
        import keras

        if keras.config.backend() != "tensorflow" or self.preprocess is not None:
            return super().__call__(inputs)
        import tensorflow as tf

        from keras_distill.models.probabilities import logits_of

        # In the graph itself: a function of TensorFlow's inside a Python function inside a step may wait for the very
        # thread that it runs in.
        outputs = self._run({name: tf.convert_to_tensor(each) for name, each in self._feeds(inputs).items()})
        if self.from_logits:
            return outputs
        if self._activation is None:
            self._look_at_zeros()
        return logits_of(outputs, self._activation or "softmax")

    def logits(self, inputs: TensorTree) -> np.ndarray:
        """The same for NumPy arrays alone: float32 `(batch, …, num_classes)`."""
        import tensorflow as tf

        if self.preprocess is not None:
            inputs = self.preprocess(inputs)
        feeds = {name: tf.constant(np.asarray(each)) for name, each in self._feeds(inputs).items()}
        return self._as_logits(self._run(feeds).numpy(), self._who())

    def _run(self, feeds: dict[str, Any]) -> Any:
        """The output in float32, `(batch, …, num_classes)`, for tensors, eager ones or those of a graph."""
        import tensorflow as tf

        feeds = {name: tf.cast(each, self._specs[name].dtype) for name, each in feeds.items()}
        first = next(iter(feeds.values()))
        wanted = next(iter(self._specs.values())).shape
        size = wanted[0] if wanted.rank else None
        if size is None or first.shape[0] == size:
            return tf.cast(self._function(**feeds)[self.output_name], tf.float32)
        # Of a fixed batch size: in portions, the last one filled up with its own last item.
        num_items = tf.shape(first)[0]
        num_portions = (num_items + size - 1) // size
        rows = tf.reshape(tf.minimum(tf.range(num_portions * size), num_items - 1), [num_portions, size])

        def portion(places: Any) -> Any:
            taken = {
                name: tf.ensure_shape(tf.gather(each, places), [size, *each.shape[1:]]) for name, each in feeds.items()
            }
            return tf.cast(self._function(**taken)[self.output_name], tf.float32)

        portions = tf.map_fn(portion, rows, fn_output_signature=tf.float32)
        joined = tf.reshape(portions, tf.concat([[-1], tf.shape(portions)[2:]], 0))[:num_items]
        joined.set_shape([first.shape[0], *(self._output_shape or [])[1:]])
        return joined

    def _look_at_zeros(self) -> None:
        """Finds out what makes its probabilities, for a graph, in which no value is to be seen."""
        import tensorflow as tf

        with tf.init_scope():
            feeds = {
                name: tf.zeros([size or 1 for size in spec.shape], spec.dtype) for name, spec in self._specs.items()
            }
            self._as_logits(self._run(feeds).numpy(), self._who())

    def _who(self) -> str:
        return f"the output {self.output_name!r} of {self.path.name}"

    def _open(self, signature: str | None, output_name: str | None) -> None:
        try:
            import tensorflow as tf
        except ImportError as error:
            raise ImportError("SavedModelTeacher needs TensorFlow: pip install tensorflow") from error
        try:
            # The functions live as long as what was loaded.
            self._loaded = tf.saved_model.load(os.fspath(self.path))
        except Exception as error:
            # TensorFlow has no common class for its errors; whatever it says, the folder cannot be loaded.
            received = " ".join(str(error).split())[:240]
            raise ValueError(
                error_message(f"{self.path} must be a SavedModel that TensorFlow loads", received)
            ) from error
        signatures = list(self._loaded.signatures)
        self.signature = signature or (signatures[0] if len(signatures) == 1 else _DEFAULT_SIGNATURE)
        if self.signature not in signatures:
            received = f"{self.signature!r}, where it has {signatures or 'none'}"
            remedy = "Name another with signature=, or export the model again with one."
            raise ValueError(error_message(f"{self.path} must have the signature that is called", received, remedy))
        self._function = self._loaded.signatures[self.signature]
        self._specs = dict(self._function.structured_input_signature[1])
        outputs = self._function.structured_outputs
        able = [name for name, spec in outputs.items() if spec.dtype.is_floating and spec.shape.rank not in (0, 1)]
        if output_name is not None and output_name not in outputs:
            raise ValueError(error_message(f"output_name must be one of {sorted(outputs)}", repr(output_name)))
        if output_name is None and len(able) != 1:
            listed = ", ".join(f"{name} {spec.dtype.name} {spec.shape}" for name, spec in outputs.items())
            expectation = "a SavedModel teacher's output must be one float tensor of rank >= 2"
            raise ValueError(error_message(expectation, listed, "Name it with output_name=."))
        self.output_name = output_name or able[0]
        shape = outputs[self.output_name].shape
        self._output_shape = None if shape.rank is None else shape.as_list()
        self.num_classes = self._output_shape[-1] if self._output_shape else None

    def _logits_shape(self, inputs: TensorTree) -> list[int | None] | None:
        return self._output_shape

    def _feeds(self, inputs: TensorTree) -> dict[str, Any]:
        names = list(self._specs)
        if isinstance(inputs, Mapping):
            given = {name: (self.input_names or {}).get(name, name) for name in names}
            missing = sorted(set(given.values()) - set(inputs))
            if missing:
                remedy = "Map them with input_names={name in the signature: name in the inputs}."
                raise ValueError(
                    error_message(f"the inputs must be a dict that holds {missing}", sorted(inputs), remedy)
                )
            arrays = [inputs[given[name]] for name in names]
        else:
            arrays = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
            if len(names) != 1 or len(arrays) != 1:
                # A signature's inputs have names, and no order.
                expectation = f"the inputs must be a dict of {', '.join(sorted(names))}"
                received = f"{len(arrays)} without a name"
                raise ValueError(error_message(expectation, received, "Name them as the signature does."))
        feeds: dict[str, Any] = dict(zip(names, arrays, strict=True))
        for name, array in feeds.items():
            wanted, shape = self._specs[name].shape, tuple(array.shape)
            if wanted.rank is not None and not wanted[1:].is_compatible_with(shape[1:]):
                remedy = "Use preprocess= for another size."
                expected = f"have shape {tuple(wanted)}, as the signature's {name!r}"
                raise ValueError(error_message(f"a batch for a SavedModelTeacher must {expected}", shape, remedy))
        return feeds

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: the settings; the folder must be there, too."""
        return {name: value for name, value in vars(self).items() if name not in ("_loaded", "_function", "_specs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Loads the folder again."""
        vars(self).update(state)
        self._open(self.signature, self.output_name)

    def __repr__(self) -> str:
        return f"SavedModelTeacher({str(self.path)!r}, output_name={self.output_name!r})"


def _name_of(function: Callable | None) -> str | None:
    # A function's address would make another fingerprint in every process.
    return None if function is None else getattr(function, "__qualname__", type(function).__qualname__)
