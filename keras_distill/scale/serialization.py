"""What travels to a worker: functions, models and arrays, the arrays apart from the rest, so that they are not copied.

Arrays leave the pickle as buffers (protocol 5); an engine lays them where its workers can map them. A memory map
travels as the name of its file: what lies on a disk that all workers see is never sent.
"""

import io
import mmap
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class SerializedModel:
    """A Keras model as the bytes of its `.keras` file.

    Attributes:
        content: uint8 `(num_bytes,)`: an array, so that it travels as one.
    """

    content: np.ndarray

    @classmethod
    def of(cls, model: "keras.Model") -> "SerializedModel":
        """What `load` brings back."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            return cls(np.frombuffer(path.read_bytes(), np.uint8))

    def load(self) -> "keras.Model":
        """The model, without its optimizer; it was saved by this program, so code inside it is trusted."""
        from keras_distill.models.saving import load_model

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            path.write_bytes(self.content.tobytes())
            return load_model(path, compile=False, safe_mode=False)


def serialize(model: Any) -> Any:
    """A Keras model as it travels; any other teacher travels as it is."""
    import keras

    return SerializedModel.of(model) if isinstance(model, keras.Model) else model


def deserialize(model: Any) -> Any:
    """What `serialize` was given."""
    return model.load() if isinstance(model, SerializedModel) else model


def pack(content: Any) -> tuple[bytes, list[np.ndarray]]:
    """A pickle and the buffers of its arrays, uint8 `(num_bytes,)` each.

    Example:
        >>> data, buffers = pack({"inputs": np.arange(3)})
        >>> [buffer.nbytes for buffer in buffers], unpack(data, buffers)["inputs"].tolist()
        ([24], [0, 1, 2])
    """
    import cloudpickle

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, part: Any) -> Any:
            # A view of a map does not know its place in the file: it travels as any array.
            if isinstance(part, np.memmap) and isinstance(part.base, mmap.mmap) and part.filename is not None:
                order = "F" if part.flags.f_contiguous and not part.flags.c_contiguous else "C"
                return np.memmap, (part.filename, part.dtype, "r", part.offset, part.shape, order)
            if isinstance(part, np.memmap):
                return np.asarray, (np.asarray(part),)
            return super().reducer_override(part)

    stream = io.BytesIO()
    buffers: list[Any] = []
    Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(content)
    return stream.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]


def unpack(data: bytes, buffers: Sequence[Any]) -> Any:
    """What `pack` was given; its arrays are views of the buffers."""
    import pickle

    return pickle.loads(data, buffers=buffers)
