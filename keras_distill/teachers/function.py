"""`FunctionTeacher`: any Python function of a batch as a teacher, known by its name."""

import hashlib
import inspect
from contextlib import suppress
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill._checks import error_message
from keras_distill._types import TensorTree
from keras_distill.teachers.outside import OutsideTeacher


class FunctionTeacher(OutsideTeacher):
    """The function `package.module:function` as a teacher: beside the student, or through a store by `targets.label`.

    Args:
        name: where the function is: its module, a colon, and its place in the module. It takes a NumPy batch `(batch,
            …)`, or a structure of such, and returns an array or tensor `(batch, …, num_classes)`. One that calls a
            `tf.function` wants TensorFlow to have two threads beside a student; a store does without.
        from_logits: whether that is logits, or (`False`) probabilities, of a softmax or of sigmoids, whose logits are
            then taken.

    Attributes:
        function: what the name stands for.
        fingerprint: 32 hexadecimal digits; a store keeps it. The function's own attribute `fingerprint` if it has one,
            or a hash of its name and of its module's source: what the module reads from elsewhere is not seen.

    Raises:
        ValueError: no such module, nothing of that name in it, or nothing that can be called.

    Example:
        >>> FunctionTeacher("numpy:negative").logits(np.float32([[1, 2]])).tolist()
        [[-1.0, -2.0]]
    """

    def __init__(self, name: str, *, from_logits: bool = True):
        super().__init__(from_logits)
        self.name = name
        # Of what it returns, known after a first batch.
        self._shape: list[int | None] | None = None
        self.function = named_object(name)
        if not callable(self.function):
            expectation = f"{name} must be a function from a batch to logits"
            raise ValueError(error_message(expectation, f"{type(self.function).__name__}"))
        given = getattr(self.function, "fingerprint", None)
        self.fingerprint = given if isinstance(given, str) else _fingerprint(name, self.from_logits)

    def logits(self, inputs: TensorTree) -> np.ndarray:
        """The same for NumPy arrays alone: float32 `(batch, …, num_classes)`."""
        import keras

        outputs: Any = self.function(inputs)
        if keras.ops.is_tensor(outputs):
            outputs = keras.ops.convert_to_numpy(outputs)
        elif hasattr(outputs, "detach"):
            # PyTorch's, beside another backend.
            outputs = outputs.detach().cpu().numpy()
        outputs = np.asarray(outputs)
        num_items = len(keras.tree.flatten(inputs)[0])
        if outputs.dtype.kind not in "fiu" or outputs.ndim < 2 or len(outputs) != num_items:
            expectation = (
                f"{self.name} must return numbers of shape ({num_items}, …, num_classes) for {num_items} items"
            )
            raise ValueError(error_message(expectation, f"{outputs.dtype} of shape {outputs.shape}"))
        self._shape = [None, *([None] * (outputs.ndim - 2)), outputs.shape[-1]]
        return self._as_logits(outputs.astype("float32"), f"what {self.name} returns")

    def _logits_shape(self, inputs: TensorTree) -> list[int | None]:
        if self._shape is None:
            import keras

            def zeros(tensor: Any) -> np.ndarray:
                return np.zeros([size or 1 for size in tensor.shape], tensor.dtype.as_numpy_dtype)

            self.logits(keras.tree.map_structure(zeros, inputs))
        assert self._shape is not None  # logits saw to it
        return self._shape

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: the name; the module must be there, too."""
        return {name: value for name, value in vars(self).items() if name != "function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Imports the function again."""
        vars(self).update(state)
        self.function = named_object(self.name)

    def __repr__(self) -> str:
        return f"FunctionTeacher({self.name!r})"


def named_object(name: str) -> Any:
    """What `package.module:place.in.it` stands for.

    Raises:
        ValueError: there is none, or the module cannot be imported.
    """
    module, _, place = name.partition(":")
    try:
        return attrgetter(place)(import_module(module))
    except AttributeError as error:
        raise ValueError(error_message(f"{name} must be there", str(error), "Check its name.")) from error
    except Exception as error:
        # A module may raise anything when it is imported.
        received = f"{type(error).__name__}: {' '.join(str(error).split())[:240]}"
        remedy = "Start from the module's folder, install it, or set PYTHONPATH."
        raise ValueError(error_message(f"the module {module} must be importable", received, remedy)) from error


def _fingerprint(name: str, from_logits: bool) -> str:
    digest = hashlib.sha256(f"{name} {from_logits}".encode())
    # A module of the interpreter itself has no file.
    with suppress(TypeError):
        digest.update(Path(inspect.getfile(import_module(name.partition(":")[0]))).read_bytes())
    return digest.hexdigest()[:32]


def is_function_name(text: str) -> bool:
    """Whether a text reads `package.module:function`.

    Example:
        >>> is_function_name("teachers.big:logits"), is_function_name("C:/big.keras"), is_function_name("big.keras")
        (True, False, False)
    """
    module, colon, place = text.partition(":")
    parts = [*module.split("."), *place.split(".")]
    return bool(colon) and all(part.isidentifier() for part in parts)
