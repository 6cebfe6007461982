"""The teacher beside a student: opened once, run for every batch, never tracked and never saved."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import error_message
from keras_distill._keras_internals import all_layers
from keras_distill._types import Teacher, Tensor, TensorTree
from keras_distill.models.compilation import compiled
from keras_distill.models.forward_pass import ForwardPass, Outputs, forward_pass


class HeldTeacher:
    """A teacher where Keras's trackers do not look: they look into lists, dicts and tuples, and not into other objects.

    Args:
        teacher: a Keras model, an `Ensemble`, or any function from a batch of inputs to logits.
        layer_names: the layers whose outputs losses compare.
        from_logits: what a teacher gives whose head cannot be found: logits, or (`False`) probabilities.
        activation: what made such probabilities, `"softmax"` or `"sigmoid"`.

    Raises:
        TypeError: `teacher` cannot be called.
        ValueError: a layer is named that the teacher has not, or of several models at once.
    """

    def __init__(self, teacher: Teacher, layer_names: Sequence[str], from_logits: bool, activation: str):
        if not callable(teacher):
            raise TypeError(error_message("teacher must be a Keras model or a callable", type(teacher).__name__))
        self.model = teacher
        self.forward_pass = _forward_pass(teacher, layer_names, from_logits, activation)
        layers = all_layers(teacher) if isinstance(teacher, keras.Layer) else [teacher]
        self.supports_jit = all(getattr(layer, "supports_jit", True) for layer in layers)
        self._between_steps = _between_steps(self.forward_pass, teacher, self.supports_jit)

    def outputs(self, x: TensorTree, student: keras.Model, training: bool, student_values: list | None) -> tuple:
        """What the teacher says of a batch: its logits, and the features that losses compare, without gradients.

        Args:
            x: the batch's inputs.
            student: whom a teacher such as `MovingAverage` follows before each step of training.
            training: whether the batch is one of training.
            student_values: the student's `(variable, value)` where a compiled step holds them (JAX); else `None`.
        """
        if training and hasattr(self.model, "follow"):
            if student_values is None:
                self.model.follow(student)
            else:
                _follow(self.model, student, student_values)
        if student_values is None:
            given = self.forward_pass(x, False)
            outputs = given.logits, given.features
        else:
            # What the two share is in the student's step, and has no value elsewhere.
            outputs = self._between_steps(x, student_values)
        return keras.tree.map_structure(ops.stop_gradient, outputs)


def _forward_pass(teacher: Teacher, layer_names: Sequence[str], from_logits: bool, activation: str) -> ForwardPass:
    if not hasattr(teacher, "soft_targets"):
        return forward_pass(teacher, layer_names=layer_names, from_logits=from_logits, activation=activation)
    if layer_names:
        remedy = "Distil features from one of its models instead."
        raise ValueError(error_message("a teacher whose features are named must be a single model", "several", remedy))
    # An ensemble knows what is right at every temperature, which its logits at T = 1 do not say.
    return ForwardPass(lambda inputs, training: Outputs(teacher.soft_targets(inputs), None, {}))


def _between_steps(run: ForwardPass, teacher: Teacher, supports_jit: bool) -> Callable[..., tuple]:
    """The teacher's pass outside of any step, compiled where its layers can be: of inputs, and of a step's values."""

    def parts(inputs: TensorTree) -> tuple[TensorTree, dict[str, Tensor]]:
        outputs = run(inputs, False)
        return outputs.logits, outputs.features

    if isinstance(teacher, keras.Model) and supports_jit:
        return compiled(parts, teacher)
    return lambda inputs, held: parts(inputs)


def _follow(teacher: Any, student: keras.Model, student_values: list[tuple[Any, Tensor]]) -> None:
    """`teacher.follow(student)`, while the compiled step holds the student's variables."""
    with keras.StatelessScope(state_mapping=student_values) as scope:
        teacher.follow(student)
        moved = [(variable, scope.get_current_value(variable)) for variable in teacher.variables]
    for variable, value in moved:
        if value is not None:
            variable.assign(value)
