"""A function of a batch, compiled by whichever backend Keras runs on, and the way out of such a compilation.

The weights of a model are arguments of what is compiled, never constants in it: constants are compiled again with every
new teacher, and JAX refuses them where they lie on several hosts.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import keras

from keras_distill._types import Tensor, TensorTree


def compiled(function: Callable[[Any], Any], model: Any = None) -> Callable[..., Any]:
    """`function` of one structure of tensors, compiled.

    Args:
        function: from inputs to a structure of tensors; it may read the weights of `model`, not write them.
        model: a Keras model whose weights it reads, or `None`.

    Returns:
        The compiled function: a `tf.function` on TensorFlow, of `jax.jit` on JAX; on PyTorch `function` itself, whose
        results have no gradients. It reads the weights anew at every call. On JAX it takes the `(variable, value)`
        that a running step holds as a second argument: such variables have no value elsewhere.

    Example:
        >>> double = compiled(lambda inputs: {"twice": 2 * inputs})
        >>> float(double(keras.ops.convert_to_tensor(1.5))["twice"])
        3.0
    """
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        # Without autograph an error of ours stays as it is, rather than inside an excerpt of "user code". Behind a
        # partial each function is one of its own: by their code TensorFlow takes ten models' for one that is traced ten
        # times, and warns.
        return tf.function(partial(function), reduce_retracing=True, autograph=False)
    if keras.config.backend() == "torch":
        import torch

        return torch.no_grad()(function)
    if keras.config.backend() != "jax":
        return function
    import jax

    @jax.jit
    def pure(values: list, inputs: TensorTree) -> Any:
        variables = [] if model is None else model.variables
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(inputs)

    def call(inputs: TensorTree, held: Sequence[tuple[Any, Tensor]] = ()) -> Any:
        if not getattr(model, "built", True):
            # A subclassed model makes its weights when first called, and they must outlive the call.
            return function(inputs)
        values = {id(variable): value for variable, value in held}
        variables = [] if model is None else model.variables
        # Not `get`: what a step holds has no `value` to fall back to.
        return pure([values[id(each)] if id(each) in values else each.value for each in variables], inputs)  # noqa: SIM401

    return call


def outside_compilation() -> AbstractContextManager:
    """A context in which operations give numbers, also while TensorFlow or JAX traces a function around it.

    Example:
        >>> from keras import ops
        >>> def function(inputs):
        ...     with outside_compilation():
        ...         print(float(ops.add(1.0, 1.0)))
        ...     return inputs
        >>> _ = compiled(function)(ops.zeros(2))
        2.0
    """
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        return tf.init_scope()
    if keras.config.backend() == "jax":
        import jax

        return jax.ensure_compile_time_eval()
    return nullcontext()
