"""Tiny ONNX files written by hand, so that tests of what follows a conversion need no conversion."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def linear_onnx(path, kernel, *, batch="batch", input_name="x", extra=()):
    """Writes `logits = x @ kernel`, kernel float32 of shape (features, num_classes)."""
    kernel = np.asarray(kernel, "float32")
    graph = helper.make_graph(
        [helper.make_node("MatMul", [input_name, "kernel"], ["logits"]), *extra],
        "linear",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [batch, kernel.shape[0]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, kernel.shape[1]])],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path
