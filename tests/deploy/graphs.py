"""Tiny ONNX files written by hand, so that tests of what follows a conversion need no conversion."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}


def onnx_file(path, nodes, inputs, outputs, constants):
    """Writes a graph.

    Args:
        path: the file.
        nodes: `(operation, input names, output names)`, or with a dictionary of attributes as the fourth.
        inputs: `{name: (type's name, shape)}`.
        outputs: `{name: shape}`, all float32.
        constants: `{name: array}`.
    """
    made = [helper.make_node(node[0], node[1], node[2], **(node[3] if len(node) > 3 else {})) for node in nodes]
    graph = helper.make_graph(
        made,
        "by_hand",
        [helper.make_tensor_value_info(name, TYPES[kind], shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    return path


def linear_onnx(path, kernel, *, batch="batch", places=(), input_name="x"):
    """Writes `logits = x @ kernel`, kernel float32 of shape (features, num_classes), at each of some places."""
    kernel = np.asarray(kernel, "float32")
    return onnx_file(
        path,
        [("MatMul", [input_name, "kernel"], ["logits"])],
        {input_name: ("float32", [batch, *places, kernel.shape[0]])},
        {"logits": [batch, *places, kernel.shape[1]]},
        {"kernel": kernel},
    )
