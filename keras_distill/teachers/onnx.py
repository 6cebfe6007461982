"""`OnnxTeacher`: a teacher from any framework that can write ONNX: PyTorch, scikit-learn, JAX, Keras itself.

It runs in onnxruntime, outside the student's compiled step, on NumPy arrays.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill._checks import check_count, error_message
from keras_distill._types import TensorTree
from keras_distill.teachers.outside import OutsideTeacher


class OnnxTeacher(OutsideTeacher):
    """An ONNX file as a teacher: beside the student in a `Distiller`, or through a store by `targets.label`.

    A batch goes through `preprocess`, then (`channels_first`) to the axes that PyTorch wants, then to the type and, if
    the file's batch size is fixed, in portions of that size, through the graph. What comes back is logits.

    Args:
        path: the `.onnx` file.
        output_name: which output holds the logits or probabilities; `None` takes the only float one of rank ≥ 2.
        from_logits: whether that output is logits, or (`False`) probabilities, of a softmax or of sigmoids, whose
            logits are then taken.
        channels_first: whether the file wants `(batch, channels, height, width)` while the inputs are Keras's
            `(batch, height, width, channels)`. An output of as many axes, a map of classes, then comes back with its
            classes last.
        preprocess: a function of a NumPy batch: another resolution, another scaling than the student's.
        input_names: for inputs given as a dict, `{name in the file: name in the dict}`; `None` takes equal names.
        num_threads: how many threads onnxruntime may use; `None` leaves it to choose.

    Attributes:
        num_classes: the width of its output, or `None` where the file does not say.
        fingerprint: 32 hexadecimal digits of the file's and the settings' hash; a store keeps it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no output, or several, could hold logits.
        ImportError: onnxruntime is not installed.

    Example:
        >>> import tempfile
        >>> from onnx import TensorProto, helper, save
        >>> floats = lambda name, columns: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", columns])
        >>> double = helper.make_node("Add", ["x", "x"], ["logits"])
        >>> graph = helper.make_graph([double], "twice", [floats("x", 2)], [floats("logits", 2)])
        >>> path = tempfile.mkdtemp() + "/teacher.onnx"
        >>> save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        >>> OnnxTeacher(path)(np.float32([[1, 2]])).numpy().tolist()
        [[2.0, 4.0]]

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2: nothing is asked of a teacher but its logits.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        output_name: str | None = None,
        *,
        from_logits: bool = True,
        channels_first: bool = False,
        preprocess: Callable[[Any], Any] | None = None,
        input_names: dict[str, str] | None = None,
        num_threads: int | None = None,
    ):
        super().__init__(from_logits)
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                error_message("an OnnxTeacher's path must be an .onnx file", f"no file at {self.path}")
            )
        self.channels_first = bool(channels_first)
        self.preprocess = preprocess
        self.input_names = input_names
        self.num_threads = None if num_threads is None else check_count("num_threads", num_threads)
        self._session = _open(self.path, self.num_threads)
        self._inputs = self._session.get_inputs()
        self.output_name, shape = _choose_output(self._session.get_outputs(), output_name)
        self._is_map = self.channels_first and 3 <= len(shape) == len(self._inputs[0].shape)
        if self._is_map:
            shape = [shape[0], *shape[2:], shape[1]]
        self.num_classes = shape[-1] if shape and isinstance(shape[-1], int) else None
        self._output_shape = [size if isinstance(size, int) else None for size in shape]
        settings = (self.output_name, self.from_logits, self.channels_first, _name_of(preprocess), input_names)
        self.fingerprint = hashlib.sha256(self.path.read_bytes() + repr(settings).encode()).hexdigest()[:32]

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: the settings; the file must be there, too."""
        return {name: value for name, value in vars(self).items() if name not in ("_session", "_inputs")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens the file again."""
        vars(self).update(state)
        self._session = _open(self.path, self.num_threads)
        self._inputs = self._session.get_inputs()

    def logits(self, inputs: TensorTree) -> np.ndarray:
        """The same for NumPy arrays alone: float32 `(batch, …, num_classes)`."""
        if self.preprocess is not None:
            inputs = self.preprocess(inputs)
        feeds = self._feeds(inputs)
        num_items = len(next(iter(feeds.values())))
        size = self._inputs[0].shape[0] if self._inputs[0].shape else None
        if not isinstance(size, int) or size == num_items:
            outputs = self._session.run([self.output_name], feeds)[0]
        else:
            outputs = self._in_portions(feeds, num_items, size)
        outputs = np.asarray(outputs, "float32")
        if self._is_map:
            outputs = np.moveaxis(outputs, 1, -1)
        return self._as_logits(outputs, f"the output {self.output_name!r} of {self.path.name}")

    def _logits_shape(self, inputs: TensorTree) -> list[int | None]:
        return self._output_shape

    def _in_portions(self, feeds: dict[str, np.ndarray], num_items: int, size: int) -> np.ndarray:
        """A file of fixed batch size: the last portion is filled up with its own last item."""
        portions = []
        for start in range(0, num_items, size):
            rows = np.minimum(np.arange(start, start + size), num_items - 1)
            part = self._session.run([self.output_name], {name: array[rows] for name, array in feeds.items()})[0]
            portions.append(part[: num_items - start])
        return np.concatenate(portions)

    def _feeds(self, inputs: TensorTree) -> dict[str, np.ndarray]:
        names = [graph_input.name for graph_input in self._inputs]
        if isinstance(inputs, dict):
            given = self.input_names or {name: name for name in names}
            missing = sorted({given.get(name, name) for name in names} - set(inputs))
            if missing:
                remedy = "Map them with input_names={name in the file: name in the inputs}."
                raise ValueError(
                    error_message(f"the inputs must be a dict that holds {missing}", sorted(inputs), remedy)
                )
            arrays = [inputs[given.get(name, name)] for name in names]
        else:
            arrays = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if len(arrays) != len(names):
            raise ValueError(error_message(f"there must be {len(names)} inputs ({', '.join(names)})", len(arrays)))
        return {
            graph_input.name: self._fed(np.asarray(array), graph_input)
            for graph_input, array in zip(self._inputs, arrays, strict=True)
        }

    def _fed(self, array: np.ndarray, graph_input: Any) -> np.ndarray:
        if self.channels_first and array.ndim >= 3:
            array = np.moveaxis(array, -1, 1)
        wanted = graph_input.shape
        differs = len(wanted) != array.ndim or any(
            isinstance(size, int) and size != given for size, given in zip(wanted[1:], array.shape[1:], strict=True)
        )
        if wanted and differs:
            remedy = "Use channels_first=True for a PyTorch image model, or preprocess= for another size."
            expected = f"have shape {tuple(wanted)}, as the file's {graph_input.name!r}"
            raise ValueError(error_message(f"a batch for an OnnxTeacher must {expected}", array.shape, remedy))
        return np.ascontiguousarray(array, _dtype_of(graph_input.type))

    def __repr__(self) -> str:
        return f"OnnxTeacher({str(self.path)!r}, output_name={self.output_name!r})"


def _open(path: Path, num_threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("OnnxTeacher needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    except Exception as error:
        # onnxruntime has no common class for its errors; whatever it says, the file cannot be opened.
        raise ValueError(error_message(f"{path} must be a readable ONNX file", str(error).splitlines()[0])) from error


def _choose_output(outputs: list[Any], name: str | None) -> tuple[str, list[Any]]:
    """The name and shape of the output that holds logits or probabilities."""
    if name is not None:
        for output in outputs:
            if output.name == name:
                return name, list(output.shape)
        raise ValueError(error_message(f"output_name must be one of {[output.name for output in outputs]}", repr(name)))
    # scikit-learn's converters add a label (int64) and, unless told otherwise, probabilities as a list of maps.
    able = [
        output
        for output in outputs
        if output.type in ("tensor(float)", "tensor(double)", "tensor(float16)") and len(output.shape) != 1
    ]
    if len(able) != 1:
        listed = ", ".join(f"{output.name} {output.type} {output.shape}" for output in outputs)
        remedy = "Name it with output_name=; convert scikit-learn models with options={'zipmap': False}."
        raise ValueError(
            error_message("an ONNX teacher's output must be one float tensor of rank >= 2", listed, remedy)
        )
    return able[0].name, list(able[0].shape)


def _dtype_of(onnx_type: str) -> str:
    inner = onnx_type.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(inner, inner)


def _name_of(function: Callable | None) -> str | None:
    # A function's address would make another fingerprint in every process.
    return None if function is None else getattr(function, "__qualname__", type(function).__qualname__)
