"""Temperatures and weights that change while a student learns.

Each is a small layer with a variable inside, which a compiled step reads anew at every batch: a Python number would
be baked into the step. The `Distiller` moves them and saves them with itself; the student never holds one.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_choice, check_fraction, check_number, check_positive, error_message
from keras_distill._keras_internals import all_layers
from keras_distill._types import Logs, Tensor, TensorTree

UNITS = ("epochs", "steps")


def current(value: Any) -> Any:
    """What `value` is at this step: a schedule's current value, a variable's, or the number itself.

    Example:
        >>> current(4.0), float(current(Linear(8.0, 2.0, length=3)))
        (4.0, 8.0)
    """
    return getattr(value, "current", value)


def check_schedulable(name: str, value: Any, check: Any, *arguments: Any) -> Any:
    """Returns a schedule or a `keras.Variable` as it is, anything else as `check(name, value, *arguments)` does."""
    if hasattr(value, "current") or isinstance(value, keras.Variable):
        return value
    return check(name, value, *arguments)


class Schedule(keras.Layer):
    """A number that is a function of how far training is.

    Args:
        unit: what `position` counts: `"epochs"` (set by `fit` when one begins, from 0) or `"steps"` (batches).
        name: the layer's name.

    Attributes:
        position: the variable that counts, float32, in `unit`.
    """

    def __init__(self, unit: str = "epochs", *, name: str | None = None, **kwargs: Any):
        super().__init__(name=name, dtype="float32", **kwargs)
        self.unit = check_choice("unit", unit, UNITS)
        # Every replica would count the same step.
        self.position = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="position", aggregation="only_first_replica"
        )
        self.built = True

    def value_at(self, position: Tensor) -> Any:
        """The value at a position, a float32 scalar."""
        raise NotImplementedError(f"{type(self).__name__} must implement value_at")

    @property
    def current(self) -> Any:
        """The value at the variable's position, a float32 scalar."""
        return self.value_at(ops.convert_to_tensor(self.position))

    def call(self, inputs: TensorTree) -> Any:
        """The value at the position `inputs`."""
        return self.value_at(inputs)

    def compute_output_spec(self, inputs: TensorTree) -> keras.KerasTensor:
        """A scalar."""
        return keras.KerasTensor((), "float32")

    def begin_epoch(self, epoch: int) -> None:
        """Moves a schedule of epochs to `epoch`."""
        if self.unit == "epochs":
            self.position.assign(float(epoch))

    def end_step(self) -> None:
        """Moves a schedule of steps on by one."""
        if self.unit == "steps":
            self.position.assign_add(1.0)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"name": self.name, "unit": self.unit}


@keras.saving.register_keras_serializable(package="keras_distill")
class Linear(Schedule):
    """A straight line from `start` to `end` over `length` epochs (or steps), then `end`.

    Args:
        start: the value at position 0.
        end: the value from position `length` on.
        length: > 0, in `unit`.
        unit: `"epochs"` or `"steps"`.
        name: the layer's name.

    Example:
        >>> temperature = Linear(10.0, 2.0, length=8)
        >>> [float(temperature.value_at(epoch)) for epoch in (0, 4, 8, 100)]
        [10.0, 6.0, 2.0, 2.0]
    """

    def __init__(self, start: float, end: float, length: float, unit: str = "epochs", *, name: str | None = None):
        super().__init__(unit, name=name)
        self.start, self.end = check_number("start", start), check_number("end", end)
        self.length = check_positive("length", length, f"It counts {unit}.")

    def share_at(self, position: Tensor) -> Any:
        """How much of the way is done, in [0, 1]."""
        return ops.clip(ops.cast(position, "float32") / self.length, 0.0, 1.0)

    def value_at(self, position: Tensor) -> Any:
        """`start + (end − start)·min(position / length, 1)`."""
        return self.start + (self.end - self.start) * self.share_at(position)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "start": self.start, "end": self.end, "length": self.length}


@keras.saving.register_keras_serializable(package="keras_distill")
class Cosine(Linear):
    """Half a cosine wave from `start` to `end` over `length` epochs (or steps), then `end`.

    Args:
        start: the value at position 0.
        end: the value from position `length` on.
        length: > 0, in `unit`.
        unit: `"epochs"` or `"steps"`.
        name: the layer's name.

    Example:
        >>> weight = Cosine(0.0, 1.0, length=4)
        >>> [round(float(weight.value_at(epoch)), 4) for epoch in (0, 1, 2, 4, 9)]
        [0.0, 0.1464, 0.5, 1.0, 1.0]
    """

    def value_at(self, position: Tensor) -> Any:
        """`start + (end − start)·(1 − cos(π·min(position / length, 1))) / 2`."""
        return self.start + (self.end - self.start) * 0.5 * (1.0 - ops.cos(math.pi * self.share_at(position)))


@keras.saving.register_keras_serializable(package="keras_distill")
class WarmUp(Linear):
    """Rises in equal parts to `end`: `end / length` in the first epoch (or step), `end` from the last one on.

    Args:
        end: the value after the warm-up.
        length: > 0, in `unit`.
        unit: `"epochs"` or `"steps"`.
        name: the layer's name.

    Example:
        >>> weight = WarmUp(1.0, length=4)
        >>> [float(weight.value_at(epoch)) for epoch in (0, 1, 3, 10)]
        [0.25, 0.5, 1.0, 1.0]
    """

    def __init__(self, end: float, length: float, unit: str = "epochs", *, name: str | None = None):
        super().__init__(0.0, end, length, unit, name=name)

    def share_at(self, position: Tensor) -> Any:
        """How much of the way is done once this epoch (or step) counts, in (0, 1]."""
        return super().share_at(ops.cast(position, "float32") + 1.0)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: value for name, value in super().get_config().items() if name != "start"}


@keras.saving.register_keras_serializable(package="keras_distill")
class Steps(Schedule):
    """One value after another: `values[i]` until `boundaries[i]`, the last value from then on.

    Args:
        values: one number more than there are boundaries.
        boundaries: rising positions; at a boundary the next value already holds.
        unit: `"epochs"` or `"steps"`.
        name: the layer's name.

    Example:
        >>> temperature = Steps([8.0, 4.0, 1.0], boundaries=[10, 20])
        >>> [float(temperature.value_at(epoch)) for epoch in (0, 9, 10, 20)]
        [8.0, 8.0, 4.0, 1.0]
    """

    def __init__(
        self, values: Sequence[float], boundaries: Sequence[float], unit: str = "epochs", *, name: str | None = None
    ):
        super().__init__(unit, name=name)
        self.values = [check_number(f"values[{position}]", value) for position, value in enumerate(values)]
        self.boundaries = [check_number(f"boundaries[{number}]", value) for number, value in enumerate(boundaries)]
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                error_message(
                    f"there must be {len(self.boundaries) + 1} values, one more than there are boundaries", len(values)
                )
            )
        if sorted(set(self.boundaries)) != self.boundaries:
            raise ValueError(error_message("boundaries must rise", self.boundaries))

    def value_at(self, position: Tensor) -> Any:
        """The value that holds at `position`."""
        position = ops.cast(position, "float32")
        value = ops.convert_to_tensor(self.values[0], "float32")
        for boundary, next_value in zip(self.boundaries, self.values[1:], strict=True):
            value = ops.where(position >= boundary, next_value, value)
        return value

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "values": list(self.values), "boundaries": list(self.boundaries)}


@keras.saving.register_keras_serializable(package="keras_distill")
class LearntTemperature(keras.Layer):
    """A temperature that is trained *against* the student: what it learns makes the task harder, step by step.

    `T = minimum + (maximum − minimum)·σ(θ)`, where θ begins at 1 and its gradient is multiplied by −λ. The student
    descends the distillation loss, the temperature climbs it. λ grows from 0 to 1, from easy to hard.

    Args:
        minimum: the temperature's lower bound, > 0.
        maximum: its upper bound, > `minimum`.
        reversal: λ, a number in [0, 1] or a schedule; `None` is `Cosine(0, 1, length=10)`, in epochs.
        name: the layer's name.

    Raises:
        ValueError: bounds or λ out of range.

    Example:
        >>> temperature = LearntTemperature()
        >>> round(float(temperature.current), 3)  # 1 + 20·σ(1)
        15.621

    Reference:
        Li et al., "Curriculum Temperature for Knowledge Distillation", arXiv:2211.16231, sections 3.2 and 3.3: the
        global temperature, its bounds, and the cosine of λ.
    """

    def __init__(self, minimum: float = 1.0, maximum: float = 21.0, reversal: Any = None, *, name: str | None = None):
        super().__init__(name=name, dtype="float32")
        self.minimum = check_positive("minimum", minimum)
        self.maximum = check_positive("maximum", maximum)
        if self.maximum <= self.minimum:
            raise ValueError(error_message(f"maximum must be > minimum = {self.minimum}", self.maximum))
        reversal = Cosine(0.0, 1.0, length=10) if reversal is None else reversal
        self.reversal = check_schedulable("reversal", reversal, check_fraction)
        self.theta = self.add_weight(shape=(), initializer="ones", name="theta")
        self.built = True

    @property
    def current(self) -> Any:
        """The temperature now, a float32 scalar, through which θ receives the reversed gradient."""
        theta = ops.convert_to_tensor(self.theta)
        strength = current(self.reversal)
        reversed_theta = ops.stop_gradient((1.0 + strength) * theta) - strength * theta
        return self.minimum + (self.maximum - self.minimum) * ops.sigmoid(reversed_theta)

    def call(self, inputs: TensorTree) -> Any:
        """The temperature now, whatever the inputs."""
        return self.current

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "name": self.name,
            "minimum": self.minimum,
            "maximum": self.maximum,
            "reversal": keras.saving.serialize_keras_object(self.reversal),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LearntTemperature":
        """Builds the temperature that `get_config` described."""
        return cls(**{**config, "reversal": keras.saving.deserialize_keras_object(config["reversal"])})


class FollowSchedules(keras.callbacks.Callback):
    """Tells schedules which epoch begins. The `Distiller` brings its own; other trainers' `fit` takes this one.

    Args:
        schedules: the schedules to move, those inside others too.
    """

    def __init__(self, schedules: Sequence[Schedule]):
        super().__init__()
        self.schedules = list(schedules)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Moves the schedules of epochs."""
        for schedule in self.schedules:
            schedule.begin_epoch(epoch)


def schedules_in(layers: Sequence[keras.Layer]) -> list[Schedule]:
    """Every schedule among `layers` and inside them, each once."""
    found: dict[int, Schedule] = {}
    for layer in layers:
        for part in all_layers(layer):
            if isinstance(part, Schedule):
                found[id(part)] = part
    return list(found.values())
