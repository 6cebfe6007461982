"""`DeepMutualLearning`: students that teach each other, without a teacher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_number, error_message
from keras_distill._keras_internals import compiled_loss, mask_of
from keras_distill._types import Schedulable, Shape, Tensor, TensorTree
from keras_distill.distillation.first_batch import FirstBatchCheck
from keras_distill.distillation.promises import Promise, Promises
from keras_distill.distillation.trainable_model import TrainableModel
from keras_distill.losses import SoftTargets
from keras_distill.losses.per_example import restored, serialized
from keras_distill.losses.reduction import WeightedMean, unscaled
from keras_distill.models.forward_pass import ForwardPass, forward_pass
from keras_distill.models.heads import MISPLACED
from keras_distill.models.probabilities import SIGMOID, SOFTMAX
from keras_distill.schedules import FollowSchedules, check_schedulable, current, schedules_in


@keras.saving.register_keras_serializable(package="keras_distill")
class DeepMutualLearning(TrainableModel):
    """Several students of one data set, each of which learns from the labels and from all its peers.

    The objective is the sum over the K students k of

        student_lossₖ + mutual_weight · 1/(K − 1) · Σ_{l ≠ k} T²·KL(softmax(zₗ / T) ‖ softmax(zₖ / T)),

    in which a peer's logits are targets, without a gradient. Every student runs once a step and all are updated
    together; the paper's algorithm 1 takes turns. Sample weights and masks weigh both terms.

    `evaluate` and `predict` are the first student's; all are plain Keras models, at `students`.

    Args:
        students: two or more built Keras models of the same classes, with any heads.
        temperature: T > 0; the paper takes 1. May be a schedule.
        mutual_weight: the weight of the peers, >= 0; the paper takes 1. May be a schedule.
        from_logits: what students give whose head cannot be found, as in `Distiller`; a sequence says it for each.
        name: the model's name.
        dtype: the policy that scales the loss; `None` takes the first student's.

    Raises:
        ValueError: fewer than two students, students of different classes, or a number out of range.

    Example:
        >>> import numpy as np
        >>> students = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)]
        >>> learners = DeepMutualLearning(students)
        >>> learners.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = learners.fit(np.ones((8, 4)), np.zeros(8, "int32"), verbose=0)
        >>> sorted(history.history)
        ['loss', 'mutual_loss', 'student_loss']

    Reference:
        Zhang et al., "Deep Mutual Learning", arXiv:1706.00384, sections 2.2 and 2.4.
    """

    def __init__(
        self,
        students: Sequence[keras.Model],
        temperature: Schedulable = 1.0,
        mutual_weight: Schedulable = 1.0,
        *,
        from_logits: bool | Sequence[bool] = True,
        name: str = "deep_mutual_learning",
        dtype: str | keras.DTypePolicy | None = None,
    ):
        students = list(students)
        if len(students) < 2:
            raise ValueError(error_message("students must be at least two models", len(students)))
        super().__init__(name=name, autocast=False, dtype=students[0].dtype_policy if dtype is None else dtype)
        self.students = students
        self.mutual_loss = SoftTargets(temperature)
        self.mutual_weight = check_schedulable("mutual_weight", mutual_weight, _check_weight)
        weights = [self.mutual_weight] if isinstance(self.mutual_weight, keras.Layer) else []
        self.auxiliary_layers = [*self.mutual_loss.layers, *weights]
        promised = [from_logits] * len(students) if isinstance(from_logits, bool) else list(map(bool, from_logits))
        self.from_logits = from_logits if isinstance(from_logits, bool) else promised
        if len(promised) != len(students):
            raise ValueError(error_message(f"from_logits must be one bool, or {len(students)}", f"{len(promised)}"))
        self.student_loss_tracker = keras.metrics.Mean(name="student_loss")
        self.mutual_loss_tracker = keras.metrics.Mean(name="mutual_loss")
        self._reduce = WeightedMean()
        runs = [forward_pass(student, from_logits=gives) for student, gives in zip(students, promised, strict=True)]
        for position, run in enumerate(runs):
            if run.activations in (SIGMOID, MISPLACED):
                expectation = f"students[{position}] must end in logits or in a softmax over the last axis"
                raise ValueError(error_message(expectation, run.activations))
        self._promises = Promises(len(students))
        self._untracked = _Passes(runs)
        first, *others = [run.symbolic for run in self._untracked.runs]
        for other in others:
            if first is not None and other is not None:
                self.mutual_loss.validate_outputs(first.logits, other.logits)
        self.built = all(student.built for student in students)

    def build(self, input_shape: Shape) -> None:
        """Students that have no weights yet build themselves when first called."""
        self.built = True

    def call(self, inputs: TensorTree, training: bool = False) -> Any:
        """The first student's output; in training the `Outputs` of all."""
        if not training:
            return self.students[0](inputs, training=False)
        return [run(inputs, True) for run in self._untracked.runs]

    def _own_callbacks(self) -> list[keras.callbacks.Callback]:
        first_batch = FirstBatchCheck(self.students, self._promises.broken)
        return [first_batch, FollowSchedules(schedules_in(self.auxiliary_layers))]

    def compute_loss(
        self,
        x: TensorTree = None,
        y: TensorTree = None,
        y_pred: Tensor = None,
        sample_weight: Tensor = None,
        training: bool = True,
    ) -> Any:
        """The objective of a batch, a scalar; evaluation measures the first student."""
        if not training or not isinstance(y_pred, list):
            if y is None or compiled_loss(self) is None:
                return ops.cast(0.0, "float32")
            loss = compiled_loss(self)(y, y_pred, sample_weight)
            self.student_loss_tracker.update_state(unscaled(loss), sample_weight=ops.shape(keras.tree.flatten(x)[0])[0])
            return loss
        logits = [outputs.logits for outputs in y_pred]
        self._watch_promises(logits)
        hard = ops.cast(0.0, "float32")
        if y is not None and compiled_loss(self) is not None:
            for outputs in y_pred:
                hard += ops.cast(compiled_loss(self)(y, outputs.output, sample_weight), "float32")
        mutual = ops.cast(0.0, "float32")
        for number, student_logits in enumerate(logits):
            peers = [ops.stop_gradient(peer) for other, peer in enumerate(logits) if other != number]
            values = sum(self.mutual_loss.per_example(peer, student_logits) for peer in peers) / len(peers)
            mutual += self._reduce(values, mask_of(student_logits), sample_weight)
        num_items = ops.shape(keras.tree.flatten(x)[0])[0]
        self.student_loss_tracker.update_state(unscaled(hard), sample_weight=num_items)
        self.mutual_loss_tracker.update_state(unscaled(mutual), sample_weight=num_items)
        total = hard + ops.cast(current(self.mutual_weight), "float32") * mutual
        for regulariser in self.losses:
            total += self._reduce(ops.sum(ops.cast(regulariser, "float32")), None, None)
        for schedule in schedules_in(self.auxiliary_layers):
            schedule.end_step()
        return total

    def _watch_promises(self, logits: list[Any]) -> None:
        watched = {}
        for position, (run, given) in enumerate(zip(self._untracked.runs, logits, strict=True)):
            if run.activations is None:
                remedy = f"Give from_logits for each student, {not run.from_logits} for this one."
                promise = Promise(f"the outputs of students[{position}]", run.from_logits, SOFTMAX, remedy)
                watched[position] = promise, given
        if watched:
            self._promises.update_state(watched)

    def get_metrics_result(self) -> dict[str, Any]:
        """The reported metrics' values, without the one that only watches the first batch."""
        return {name: value for name, value in super().get_metrics_result().items() if name != self._promises.name}

    def compute_metrics(
        self, x: TensorTree, y: TensorTree, y_pred: Tensor, sample_weight: Tensor = None
    ) -> dict[str, Any]:
        """Updates the compiled metrics with the first student's output."""
        output = y_pred[0].output if isinstance(y_pred, list) else y_pred
        results = super().compute_metrics(x, y, output, sample_weight)
        if not isinstance(y_pred, list):
            results = {name: value for name, value in results.items() if name != "mutual_loss"}
        return results

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "name": self.name,
            "students": [keras.saving.serialize_keras_object(student) for student in self.students],
            "temperature": serialized(self.mutual_loss.temperature),
            "mutual_weight": serialized(self.mutual_weight),
            "from_logits": self.from_logits,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "DeepMutualLearning":
        """Builds the model that `get_config` described."""
        restore = keras.saving.deserialize_keras_object
        students = [restore(student, custom_objects=custom_objects) for student in config["students"]]
        schedulable = {name: restored(config[name]) for name in ("temperature", "mutual_weight")}
        return cls(**{**config, **schedulable, "students": students})


@dataclass(frozen=True)
class _Passes:
    """The students' passes, where Keras's trackers do not look: they hold the students' layers once more."""

    runs: list[ForwardPass]


def _check_weight(name: str, weight: Any) -> float:
    if not 0.0 <= check_number(name, weight) < float("inf"):
        raise ValueError(error_message(f"{name} must be >= 0 and finite", weight))
    return float(weight)
