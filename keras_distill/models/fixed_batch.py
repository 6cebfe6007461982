"""A model that takes batches of one size only, run on any number of items."""

from collections.abc import Callable

import keras
from keras import ops

from keras_distill._types import Teacher, TensorTree


def fixed_batch_of(model: Teacher) -> int | None:
    """The number of examples that a Keras model takes a call; `None` where it takes any.

    Example:
        >>> fixed_batch_of(keras.Sequential([keras.Input((2,), batch_size=16), keras.layers.Dense(3)]))
        16
    """
    inputs = getattr(model, "inputs", None) if isinstance(model, keras.Model) else None
    return next((tensor.shape[0] for tensor in inputs or [] if tensor.shape[0] is not None), None)


def in_portions(run: Callable[[TensorTree], TensorTree], size: int) -> Callable[[TensorTree], TensorTree]:
    """`run` in portions of `size` items, the last one filled up with its own last item.

    Args:
        run: a function of inputs `(size, …)`, or a structure of such, to tensors `(size, …)`, or a structure of such; a
            scalar is the same for every portion.
        size: what it takes.

    Returns:
        The same function of inputs `(n, …)`.

    Example:
        >>> run = in_portions(lambda x: ops.reshape(x, (2, 1)) * 2.0, 2)
        >>> run(ops.convert_to_tensor([1.0, 2.0, 3.0])).shape[0]
        3
    """

    def run_all(inputs: TensorTree) -> TensorTree:
        num_items = len(keras.tree.flatten(inputs)[0])
        portions = []
        for start in range(0, num_items, size):
            rows = [min(row, num_items - 1) for row in range(start, start + size)]
            portions.append(run(keras.tree.map_structure(lambda part, rows=rows: ops.take(part, rows, axis=0), inputs)))

        def joined(*parts: TensorTree) -> TensorTree:
            # PyTorch's sizes are plain integers.
            is_scalar = not ops.is_tensor(parts[0]) or not len(parts[0].shape)
            return parts[0] if is_scalar else ops.concatenate(parts, axis=0)[:num_items]

        return keras.tree.map_structure(joined, *portions)

    return run_all
