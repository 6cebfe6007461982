"""An ONNX graph as a web: who makes each tensor, who reads it, and which are constants."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class OnnxGraph:
    """The main graph of a model, for those who rewrite it.

    Args:
        model: an `onnx.ModelProto`.

    Attributes:
        constants: name → array of each initializer.
        producers: name → the node that makes the tensor.
    """

    def __init__(self, model: Any):
        from onnx import numpy_helper

        self.model, self.graph = model, model.graph
        self._ranks: dict[str, int] = {}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output}

    def add(self, name: str, array: np.ndarray) -> str:
        """Adds a constant and returns its name."""
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(array, name))
        self.constants[name] = array
        return name

    def readers(self, name: str) -> list[Any]:
        """The nodes that read a tensor."""
        return [node for node in self.graph.node if name in node.input]

    def is_output(self, name: str) -> bool:
        """Whether a tensor is an output of the graph."""
        return any(tensor.name == name for tensor in self.graph.output)

    def rank(self, name: str) -> int | None:
        """The number of dimensions of a tensor, where the graph says it."""
        import onnx

        if not self._ranks:
            inferred = onnx.shape_inference.infer_shapes(self.model).graph
            values = (*inferred.value_info, *inferred.input, *inferred.output)
            self._ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
        return self._ranks.get(name)

    def replace_nodes(self, nodes: Sequence[Any]) -> None:
        """Makes `nodes` the graph's, without those that nobody reads."""
        kept = list(nodes)
        while True:
            read = self._names_read_by(kept)
            needed = [node for node in kept if read & set(node.output)]
            if len(needed) == len(kept):
                break
            kept = needed
        del self.graph.node[:]
        self.graph.node.extend(kept)

    def drop_unused(self) -> None:
        """Removes constants that no node reads."""
        read = self._names_read_by(self.graph.node)
        kept = [tensor for tensor in self.graph.initializer if tensor.name in read]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)

    def _names_read_by(self, nodes: Sequence[Any]) -> set[str]:
        every = list(nodes)
        for node in every:
            # The branches of an If and the body of a Loop read the tensors around them.
            every.extend(inner for attribute in node.attribute for inner in attribute.g.node)
        inner_outputs = (tensor for node in every for attribute in node.attribute for tensor in attribute.g.output)
        return {name for node in every for name in node.input} | {
            tensor.name for tensor in (*self.graph.output, *inner_outputs)
        }
