"""A graph's heads taken off: each output's logits beside the output itself, in one graph that runs every layer once.

The user's layers and their weights are shared, and their model stays as it was. What is told of a head, and by what
evidence, is `heads.py`'s.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
from keras import layers

from keras_distill._keras_internals import input_structure, producer
from keras_distill._types import Shape, Tensor, TensorTree
from keras_distill.models.heads import Head, bare_layer, role_at_end, values_read
from keras_distill.models.layer_roles import Role
from keras_distill.models.probabilities import SIGMOID, SOFTMAX, LogitsOfProbabilities


class WithoutActivation(layers.Layer):
    """A layer (Dense, a convolution, …) as it is before its activation; the weights are its own."""

    def __init__(self, layer: layers.Layer, **kwargs: Any):
        super().__init__(dtype=layer.dtype_policy, **kwargs)
        self.layer = layer
        self.supports_masking = layer.supports_masking
        self.built = True

    def call(self, inputs: TensorTree) -> Any:
        """The layer's output with a linear activation, `(..., units)`."""
        # Every such layer reads `self.activation` when called; sharing the call shares the weights for all of them.
        # A twin of the same attributes, since another thread may be calling the layer itself.
        return bare_layer(self.layer)(inputs)

    def compute_output_shape(self, input_shape: Shape) -> Any:
        """The layer's own: an activation changes no shape."""
        return self.layer.compute_output_shape(input_shape)


class Separated(NamedTuple):
    """An output and its logits, symbolic tensors of one graph."""

    logits: Any
    output: Any


def separate(outputs: Sequence[Any], heads: Sequence[Head], also_read: Iterable[Any] = ()) -> list[Separated]:
    """Takes the heads of a graph's outputs off.

    Args:
        outputs: symbolic tensors.
        heads: what `find_heads` found of each.
        also_read: other tensors of the graph that will be computed beside the outputs: no layer runs twice for them.
    """
    return _Removal().of_graph(list(outputs), list(heads), list(also_read), is_outermost=True)


class _Path(NamedTuple):
    """From an output back to what ends the model.

    Attributes:
        moves: the nodes that only move values or are dropout, each with its role, the last one first.
        base: the node of the head itself.
        place: which of its outputs the path comes from.
        role: what the head's operation is.
    """

    moves: list[tuple[Any, Role]]
    base: Any
    place: int
    role: Role


class _Removal:
    """One removal: the layers without activations, and the models without heads, that it has made."""

    def __init__(self) -> None:
        self._bare: dict[int, Any] = {}
        self._inner: dict[tuple, Any] = {}
        self._names: set[str] = set()

    def of_graph(
        self, outputs: list[Any], heads: list[Head], also_read: list[Any], is_outermost: bool = False
    ) -> list[Any]:
        """The `Separated` of each output; in a nested model the logits may be `None`, and the outer graph's to make."""
        nodes = _nodes_behind([*outputs, *also_read])
        self._names |= {node.operation.name for node in nodes}
        readers = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
        readers.update(id(tensor) for tensor in (*outputs, *also_read))
        paths = [_path(output) for output in outputs]
        separated = [Separated(None, output) for output in outputs]
        nested: dict[int, list[int]] = defaultdict(list)
        for position, (path, head) in enumerate(zip(paths, heads, strict=True)):
            if path.role is Role.NESTED:
                nested[id(path.base)].append(position)
            elif head.comes_off and (path.role is Role.SQUASH or _is_alone(outputs[position], path, readers)):
                separated[position] = self._taken_off(outputs[position], path)
        for positions in nested.values():
            chosen = [(outputs[position], paths[position], heads[position]) for position in positions]
            if any(head.comes_off for *_, head in chosen) and _are_alone(chosen, readers):
                for position, pair in zip(positions, self._of_nested(chosen), strict=True):
                    separated[position] = pair
        if not is_outermost:
            return separated
        return [self._with_logits(pair, head) for pair, head in zip(separated, heads, strict=True)]

    def _with_logits(self, pair: Separated, head: Head) -> Separated:
        if pair.logits is not None:
            return pair
        if head.activation not in (SOFTMAX, SIGMOID):
            return Separated(pair.output, pair.output)
        name = self._free_name(f"{producer(pair.output)[0].name}_logits")
        return Separated(LogitsOfProbabilities(head.activation, name=name)(pair.output), pair.output)

    def _taken_off(self, output: Any, path: _Path) -> Separated:
        if path.role is Role.SQUASH:
            # The model's own output stays as it is; only what moved the probabilities moves the logits once more.
            return Separated(_moved(path.base.input_tensors[0], path.moves), output)
        layer, arguments = path.base.operation, path.base.arguments
        logits = self._bare_of(layer)(*arguments.args, **arguments.kwargs)
        inner = layer.layer if isinstance(layer, layers.TimeDistributed) else layer
        # The activation on the logits, rather than the layer a second time.
        name = self._free_name(f"{layer.name}_activation")
        dtype = path.base.outputs[0].dtype
        activation = inner.activation
        if isinstance(activation, layers.Layer):
            # Called as a layer it would take the mask that the logits carry; inside its own layer there was none.
            activation = activation.call
        activated = layers.Activation(activation, name=name, dtype=dtype)(logits)
        return Separated(_moved(logits, path.moves), _replayed(activated, path.moves))

    def _of_nested(self, chosen: list[tuple[Any, _Path, Head]]) -> list[Separated]:
        """The outputs that come from one call of a nested model, which gives its logits beside them."""
        node = chosen[0][1].base
        model = node.operation
        key = (id(model), tuple((path.place, head) for _, path, head in chosen))
        if key not in self._inner:
            inner_outputs = [model.outputs[path.place] for _, path, _ in chosen]
            pairs = self.of_graph(inner_outputs, [head for *_, head in chosen], [])
            name = self._free_name(f"{model.name}_with_logits")
            given = [[tensor for tensor in pair if tensor is not None] for pair in pairs]
            self._inner[key] = keras.Model(input_structure(model), given, name=name), pairs
        inner, pairs = self._inner[key]
        results = inner(*node.arguments.args, **node.arguments.kwargs)
        separated = []
        for (_, path, _), pair, tensors in zip(chosen, pairs, results, strict=True):
            logits = None if pair.logits is None else _moved(tensors[0], path.moves)
            separated.append(Separated(logits, _replayed(tensors[-1], path.moves)))
        return separated

    def _bare_of(self, layer: keras.layers.Layer) -> Any:
        if id(layer) not in self._bare:
            name = self._free_name(f"{layer.name}_without_activation")
            if isinstance(layer, layers.TimeDistributed):
                inner = WithoutActivation(layer.layer, name=f"{layer.layer.name}_without_activation")
                self._bare[id(layer)] = layers.TimeDistributed(inner, name=name, dtype=layer.dtype_policy)
            else:
                self._bare[id(layer)] = WithoutActivation(layer, name=name)
        return self._bare[id(layer)]

    def _free_name(self, wanted: str) -> str:
        """A name that no operation of the graph has."""
        name, number = wanted, 1
        while name in self._names:
            name, number = f"{wanted}_{number}", number + 1
        self._names.add(name)
        return name


def _path(output: Any) -> _Path:
    moves: list[tuple[Any, Role]] = []
    tensor = output
    while True:
        _, node, place = producer(tensor)
        role = role_at_end(tensor)
        if role not in (Role.IDENTITY, Role.LAYOUT, Role.FUNCTION) or len(values_read(node)) != 1:
            return _Path(moves, node, place, role)
        moves.append((node, role))
        (tensor,) = values_read(node)


def _moved(logits: Tensor, moves: list[tuple[Any, Role]]) -> Any:
    """Logits moved as the probabilities are; dropout and noise are the probabilities' alone."""
    return _replayed(logits, [(node, role) for node, role in moves if role is not Role.IDENTITY])


def _replayed(tensor: Tensor, moves: list[tuple[Any, Role]]) -> Any:
    for node, _ in reversed(moves):
        (before,) = values_read(node)
        arguments, keywords = keras.tree.map_structure(
            lambda part, before=before, tensor=tensor: tensor if part is before else part,
            (node.arguments.args, node.arguments.kwargs),
        )
        tensor = node.operation(*arguments, **keywords)
    return tensor


def _is_alone(output: Any, path: _Path, readers: Counter) -> bool:
    """Whether nothing else reads what a path passes: dropout and nested models must not run twice."""
    if path.role is Role.KERNEL and all(role is Role.LAYOUT for _, role in path.moves):
        return True
    passed = [output, *(tensor for node, _ in path.moves for tensor in values_read(node))]
    return all(readers[id(tensor)] == 1 for tensor in passed)


def _are_alone(chosen: list[tuple[Any, _Path, Head]], readers: Counter) -> bool:
    """The same of all paths from one call of a nested model, of which nothing else may be read."""
    read = sum(readers[id(tensor)] for tensor in chosen[0][1].base.outputs)
    return read == len(chosen) and all(_is_alone(output, path, readers) for output, path, _ in chosen)


def _nodes_behind(tensors: Iterable[Any]) -> list[Any]:
    """The nodes that a graph needs to compute `tensors`."""
    found: dict[int, Any] = {}
    todo = [producer(tensor)[1] for tensor in tensors]
    while todo:
        node = todo.pop()
        if id(node) not in found:
            found[id(node)] = node
            todo += [producer(tensor)[1] for tensor in node.input_tensors]
    return list(found.values())
