"""`Distiller`: a student that learns from a teacher through plain `compile` and `fit`.

The objective lives in `compute_loss`, in `keras.ops`, for every backend; the steps around it are the backends' own, in
`trainer.py` and `jax_trainer.py`. What a loss computes is in `losses/`, how a model becomes logits in `models/`.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from keras_distill._checks import check_fraction, error_message
from keras_distill._keras_internals import compiled_loss, metrics_result, update_compiled_metrics
from keras_distill._types import ArrayLike, Data, Schedulable, Shape, Teacher, Tensor, TensorTree
from keras_distill.distillation.batch import (
    LABELS,
    SOFT_TARGETS,
    TEACHER_FEATURES,
    ClassWeights,
    batch_parts,
    batch_size_of,
    first_leaf,
    fit_arguments,
    item_weights_of,
    labelled_items,
    multiplied,
)
from keras_distill.distillation.first_batch import FIRST_BATCH_METRICS, FirstBatchCheck
from keras_distill.distillation.guards import (
    check_heads,
    check_label_range,
    check_loss_fits_head,
    check_not_empty,
    num_not_finite,
    num_of_other_temperature,
    promised_logits,
)
from keras_distill.distillation.objective import (
    Objective,
    check_losses,
    layer_names,
    map_losses,
    may_differ,
    weighted_terms,
)
from keras_distill.distillation.promises import Promises
from keras_distill.distillation.teacher import HeldTeacher
from keras_distill.losses import SoftTargets
from keras_distill.losses.per_example import restored, serialized
from keras_distill.losses.reduction import WeightedMean, unscaled
from keras_distill.models.forward_pass import ForwardPass, Outputs, forward_pass
from keras_distill.models.layer_roles import is_readable
from keras_distill.models.strings import without_strings
from keras_distill.schedules import FollowSchedules, check_schedulable, current, schedules_in

if TYPE_CHECKING or keras.config.backend() != "jax":
    from keras_distill.distillation.trainer import Trainer
else:
    from keras_distill.distillation.jax_trainer import JaxTrainer as Trainer


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(Trainer):
    """A Keras model that trains `student` on hard labels and on the outputs of `teacher`.

    The objective of a batch is

        student_loss_weight · student_loss + (1 − student_loss_weight) · Σᵢ weightᵢ · distillation_lossᵢ

    plus the student's own regularisers. Sample weights, class weights and Keras masks weigh both terms. The
    teacher runs once a step, in inference mode, outside the gradient; the student runs once. A batch that brings its
    own soft targets, `(x, {"labels": y, "soft_targets": t})`, needs no teacher.

    `fit` takes what `keras.Model.fit` takes, and also `x` alone (no labels) and partly labelled sets
    (`SparseCategoricalCrossentropy(ignore_class=-1)`), whose metrics count the labelled items. Class weights go
    together with sample weights, with stored soft targets and with any kind of dataset; what is validated is not
    weighed by them. `evaluate` and `predict` are the student's alone.
    Checkpoints and `.keras` files hold the student and the optimizer, never the teacher.

    Args:
        teacher: a Keras model with any head, an `Ensemble`, or any callable that maps a batch of inputs to logits;
            `None` where batches bring their soft targets. Never changed, never saved.
        student: the Keras model to train, with any head. It stays a plain Keras model, at `distiller.student`.
        distillation_losses: one loss or several, ours or Keras's; `None` is `SoftTargets(temperature=4.0)`. For a
            model of several outputs a dict `{output name: loss or None}`, which may be one of several.
        distillation_loss_weights: a non-negative number for each loss, of the losses' own structure; `None` weighs
            each 1. Each may be a schedule or a `keras.Variable`, which a compiled step reads anew.
        student_loss_weight: the weight of the hard labels, in [0, 1]; may be a schedule or a variable too. At 0.0
            training neither computes nor reports their loss; `evaluate` does.
        from_logits: what models give whose head cannot be found (subclassed models, callables, last layers of one's
            own): logits, or (`False`) probabilities. Heads of Functional and Sequential models are found by themselves.
            A promise that is wrong ends `fit` at its first batch. Soft targets that a batch brings are always logits.
        teacher_from_logits: the same for the teacher alone; `None` is `from_logits`.
        student_from_logits: the same for the student alone; `None` is `from_logits`.
        evaluate_distillation: whether `evaluate` too runs the teacher and reports `distillation_loss`.
        name: the model's name.
        dtype: the policy that scales the loss; `None` takes the student's.

    Raises:
        TypeError: `student` is no Keras model, or `teacher` cannot be called.
        ValueError: a weight out of range, class counts that differ, a layer name that is not there; in `fit`, no items,
            labels out of range, weights (the student's or the samples') or teacher's logits that are NaN or infinite, a
            model that gives probabilities where logits were promised, neither teacher nor soft targets.

    Example:
        >>> import numpy as np
        >>> x, y = np.random.default_rng(0).normal(size=(32, 4)).astype("float32"), np.arange(32) % 3
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3)])
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "softmax")])
        >>> distiller = Distiller(teacher, student, SoftTargets(temperature=4.0))
        >>> distiller.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> history = distiller.fit(x, y, verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'distillation_loss', 'loss', 'student_loss', 'total_loss']

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.
    """

    def __init__(
        self,
        teacher: Teacher | None,
        student: keras.Model,
        distillation_losses: Any = None,
        distillation_loss_weights: Any = None,
        student_loss_weight: Schedulable = 0.1,
        *,
        from_logits: bool = True,
        teacher_from_logits: bool | None = None,
        student_from_logits: bool | None = None,
        evaluate_distillation: bool = False,
        name: str = "distiller",
        dtype: str | keras.DTypePolicy | None = None,
    ):
        if not isinstance(student, keras.Model):
            raise TypeError(error_message("student must be a keras.Model", type(student).__name__))
        # The student's own policy decides whether the loss is scaled; its own layers decide what is cast.
        super().__init__(name=name, autocast=False, dtype=student.dtype_policy if dtype is None else dtype)
        self.student = student
        if distillation_losses is None:
            distillation_losses = SoftTargets()
        # Layers among them are tracked once, as `auxiliary_layers`.
        self._objective = Objective(
            weighted_terms(check_losses(distillation_losses), distillation_loss_weights),
            check_schedulable("student_loss_weight", student_loss_weight, check_fraction),
            distillation_losses,
            distillation_loss_weights,
        )
        self.from_logits = bool(from_logits)
        self.teacher_from_logits = teacher_from_logits
        self.student_from_logits = student_from_logits
        self.evaluate_distillation = bool(evaluate_distillation)
        self.student_loss_tracker = keras.metrics.Mean(name="student_loss")
        self.distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")
        # Metrics, because replicas and compiled steps know how to add them up; `get_metrics_result` keeps them in.
        self._teacher_not_finite = keras.metrics.Sum(name="teacher_not_finite")
        self._other_temperature = keras.metrics.Sum(name="other_temperature")
        # The teacher's tensor and the student's for each term.
        self._promises = Promises(2 * len(self._objective.terms))
        self._reduce = WeightedMean()
        self._student_pass: ForwardPass | None = None
        self.output_names: list[str] | None = None
        # Keras's step for JAX calls the model itself, also where an evaluation wants more than its output.
        self._gives_all = False
        self._teacher: HeldTeacher | None = None
        self._given_class_weight: dict[int, float] | None = None
        self._class_weights: ClassWeights | None = None
        # What losses and weights train, move and save with this model and not with the student; each once.
        self.auxiliary_layers: list[keras.Layer] = self._objective.layers()
        if student.built:
            self._open_student()
            self.built = True
        if teacher is not None:
            self.set_teacher(teacher)

    @property
    def distillation_losses(self) -> list[Any]:
        """The distillation losses, flat, in the order of their weights."""
        return [term.loss for term in self._objective.terms]

    @property
    def distillation_loss_weights(self) -> list[Any]:
        """The weight of each of `distillation_losses`: a number, schedule or variable."""
        return [term.weight for term in self._objective.terms]

    @property
    def student_loss_weight(self) -> Any:
        """The weight of the hard labels: a number, schedule or variable. A compiled step holds it: it has no setter."""
        return self._objective.student_loss_weight

    @property
    def teacher(self) -> Teacher | None:
        """The teacher as it was given, or `None`."""
        return None if self._teacher is None else self._teacher.model

    def set_teacher(self, teacher: Teacher) -> None:
        """Gives the distiller its teacher: a saved one comes back without.

        Raises:
            TypeError: `teacher` cannot be called.
            ValueError: its classes are not the student's, or a loss names a layer that it has not.
        """
        names = layer_names(self.distillation_losses, "teacher_layer_name")
        from_logits = self.from_logits if self.teacher_from_logits is None else self.teacher_from_logits
        held = HeldTeacher(teacher, names, from_logits, self._objective.activation)
        if isinstance(teacher, keras.Model):
            for loss in self.distillation_losses:
                loss.validate_model_compatibility(teacher, self.student)
        self._match_teacher_and_student(held.forward_pass)
        # Keras stores sub-models by the order of their creation, and must not see the teacher.
        self._teacher, self.supports_jit = held, held.supports_jit
        self.train_function = self.test_function = None

    def __dir__(self) -> list[str]:
        # Keras saves every model that `dir` lists; the teacher is the caller's.
        return [name for name in super().__dir__() if name != "teacher"]

    def build(self, input_shape: Shape) -> None:
        """Builds a Sequential student that has no weights yet; a subclassed one builds itself when first called."""
        if not self.student.built and isinstance(self.student, keras.Sequential):
            self.student.build(input_shape)
        self._open_student()
        self.built = True

    def call(self, inputs: TensorTree, training: bool = False) -> Any:
        """The student's output; in training all that the objective needs, as `Outputs`."""
        run = self._student_pass or self._open_student()
        if training or self._gives_all:
            return run(inputs, training)
        return self.student(inputs, training=False)

    def _without_strings(self, x: Data, y: Data = None, sample_weight: Data = None) -> tuple[Data, Data, Data]:
        return without_strings(x, y, sample_weight, self.student, self.teacher)

    def _check_fit(
        self, x: Data, y: Data, class_weight: Mapping[int, float] | None, sample_weight: ArrayLike | None
    ) -> tuple[Data, None, ArrayLike | None]:
        check_not_empty(x)
        num_classes = self.student.outputs[0].shape[-1] if is_readable(self.student) else None
        check_label_range(batch_parts(y).get(LABELS), self.loss, num_classes)
        given = dict(class_weight) if class_weight else None
        if given != self._given_class_weight:
            # They are part of the compiled step.
            self._class_weights = None if given is None else ClassWeights.of(given)
            self._given_class_weight, self.train_function = given, None
        y, sample_weight = fit_arguments(y, sample_weight)
        return y, None, sample_weight

    def _own_callbacks(self) -> list[keras.callbacks.Callback]:
        first_batch = FirstBatchCheck([self.student], self._fault_of_first_batch)
        return [first_batch, FollowSchedules(schedules_in(self.auxiliary_layers))]

    def compute_loss(
        self,
        x: TensorTree = None,
        y: TensorTree = None,
        y_pred: TensorTree = None,
        sample_weight: TensorTree = None,
        training: bool = True,
    ) -> Tensor:
        """The objective of a batch, a scalar.

        Args:
            x: the inputs; the teacher runs on them unless `y` brings soft targets.
            y: labels, `None`, or `{"labels": …, "soft_targets": …}`.
            y_pred: `Outputs` of the student (in training), or the student's own output.
            sample_weight: `(batch,)`, or one for each token.
            training: whether the distillation losses count; evaluation measures the student.
        """
        outputs = self(x, training=training) if y_pred is None else y_pred
        distils = isinstance(outputs, Outputs) and self._distils
        if distils and SOFT_TARGETS not in batch_parts(y):
            y = self._with_teacher(x, y, training=training)
        parts = batch_parts(y)
        weights = self._item_weights(parts, outputs, sample_weight)
        batch_size = batch_size_of(x)

        total_loss = ops.sum(ops.stack([self._aggregate(loss) for loss in self.losses])) if self.losses else 0.0
        student_loss = None
        if self._computes_student_loss(parts, outputs):
            check_loss_fits_head(self.loss, getattr(self._student_pass, "activations", None))
            student_loss = compiled_loss(self)(parts[LABELS], _own_output(outputs), weights)
            self.student_loss_tracker.update_state(unscaled(student_loss), sample_weight=batch_size)
        distillation_loss = self._distillation_loss(parts, outputs, weights) if distils else None
        if distillation_loss is not None:
            self.distillation_loss_tracker.update_state(unscaled(distillation_loss), sample_weight=batch_size)

        if not isinstance(outputs, Outputs):
            return total_loss if student_loss is None else student_loss + total_loss
        student_loss_weight = current(self.student_loss_weight)
        if student_loss is not None:
            total_loss += student_loss_weight * student_loss
        if distillation_loss is not None:
            total_loss += (1.0 - student_loss_weight) * distillation_loss
        if training:
            for schedule in schedules_in(self.auxiliary_layers):
                schedule.end_step()
        return ops.convert_to_tensor(total_loss, dtype="float32")

    def compute_metrics(
        self, x: TensorTree, y: TensorTree, y_pred: TensorTree, sample_weight: TensorTree = None
    ) -> dict[str, Any]:
        """Updates the compiled metrics with the student's output; items without a label count in none of them."""
        parts = batch_parts(y)
        if LABELS in parts:
            weights = self._item_weights(parts, y_pred, sample_weight)
            update_compiled_metrics(self, parts[LABELS], _own_output(y_pred), weights, labelled_items)
        reported = {"student_loss"} if self._computes_student_loss(parts, y_pred) else set()
        if isinstance(y_pred, Outputs):
            reported |= {"total_loss"} | ({"distillation_loss"} if self._distils else set())
        results = self._reported_metrics(with_compiled=LABELS in parts)
        return {name: value for name, value in results.items() if name in reported or name not in _OWN_METRICS}

    def get_metrics_result(self) -> dict[str, Any]:
        """The reported metrics' values, without those that only watch the first batch.

        `total_loss` is Keras's own `loss` under the name that `keras.distillation` gives it.
        """
        return self._reported_metrics(with_compiled=True)

    def _reported_metrics(self, with_compiled: bool) -> dict[str, Any]:
        results = metrics_result(self, with_compiled)
        results = {name: value for name, value in results.items() if name not in FIRST_BATCH_METRICS}
        return results | ({"total_loss": results["loss"]} if "loss" in results else {})

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments without the teacher."""
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "student": serialize(self.student),
            "distillation_losses": map_losses(serialize, self._objective.given_losses),
            "distillation_loss_weights": map_losses(serialized, self._objective.given_weights),
            "student_loss_weight": serialized(self.student_loss_weight),
            "from_logits": self.from_logits,
            "teacher_from_logits": self.teacher_from_logits,
            "student_from_logits": self.student_from_logits,
            "evaluate_distillation": self.evaluate_distillation,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "Distiller":
        """Builds a distiller without a teacher from `get_config`."""
        config = dict(config)
        restore = keras.saving.deserialize_keras_object
        config["student"] = restore(config["student"], custom_objects=custom_objects)
        losses = map_losses(lambda loss: restore(loss, custom_objects=custom_objects), config["distillation_losses"])
        config["distillation_losses"] = losses
        config["distillation_loss_weights"] = map_losses(restored, config["distillation_loss_weights"])
        config["student_loss_weight"] = restored(config["student_loss_weight"])
        return cls(teacher=None, **config)

    @property
    def _distils(self) -> bool:
        return may_differ(self.student_loss_weight, 1.0)

    def _evaluation_of_all(self, test_step: Callable, *arguments: Any) -> Any:
        """Keras's step; with `evaluate_distillation` the student gives all that the objective needs."""
        self._gives_all = self.evaluate_distillation
        try:
            return test_step(*arguments)
        finally:
            self._gives_all = False

    def _computes_student_loss(self, parts: dict[str, TensorTree], outputs: TensorTree) -> bool:
        """Whether a step computes the labels' loss: evaluations do, trainings if its weight can be other than 0."""
        counts = not self._trains(outputs) or may_differ(self.student_loss_weight, 0.0)
        return counts and LABELS in parts and compiled_loss(self) is not None

    def _trains(self, outputs: TensorTree) -> bool:
        """Whether a step that has these outputs is one of training."""
        return isinstance(outputs, Outputs) and not self._gives_all

    def _item_weights(
        self, parts: dict[str, TensorTree], outputs: TensorTree, sample_weight: TensorTree
    ) -> Tensor | None:
        """Sample weights times, in training, the weights of the labels' classes."""
        weights = item_weights_of(sample_weight)
        if self._class_weights is None or LABELS not in parts or not self._trains(outputs):
            return weights
        of_items = self._class_weights.of_items(parts[LABELS], first_leaf(_own_output(outputs)))
        return multiplied(of_items, weights)

    def _open_student(self) -> ForwardPass:
        names = layer_names(self.distillation_losses, "student_layer_name", "mask_layer_name")
        from_logits = self.from_logits if self.student_from_logits is None else self.student_from_logits
        activation = self._objective.activation
        run = forward_pass(self.student, layer_names=names, from_logits=from_logits, activation=activation)
        self._student_pass, self.output_names = run, getattr(self.student, "output_names", None)
        self._check_heads("student", run)
        return run

    def _match_teacher_and_student(self, teacher_pass: ForwardPass) -> None:
        """Checks the two models' outputs against each other, and lets the losses make what the shapes need."""
        self._check_heads("teacher", teacher_pass)
        student = None if self._student_pass is None else self._student_pass.symbolic
        if student is not None and teacher_pass.symbolic is not None:
            self._objective.match(teacher_pass.symbolic, student, self.output_names)

    def _with_teacher(
        self, x: TensorTree, y: TensorTree, training: bool = False, student_values: list | None = None
    ) -> TensorTree:
        """`y` with what the teacher says of `x`, unless the batch brings it or nothing would read it."""
        parts = batch_parts(y)
        if SOFT_TARGETS in parts or not self._distils:
            return y
        if self._teacher is None:
            remedy = (
                'Call distiller.set_teacher(teacher), or fit on (x, {"labels": y, "soft_targets": t}). '
                "A saved distiller holds no teacher."
            )
            raise ValueError(error_message("the teacher must be given before fit", None, remedy))
        soft_targets, features = self._teacher.outputs(x, self.student, training, student_values)
        return parts | {SOFT_TARGETS: soft_targets, TEACHER_FEATURES: features}

    def _distillation_loss(self, parts: dict[str, TensorTree], outputs: Outputs, weights: TensorTree) -> Tensor:
        self._teacher_not_finite.update_state(num_not_finite(parts[SOFT_TARGETS]))
        num_others = num_of_other_temperature(self._objective.terms, parts[SOFT_TARGETS], self.output_names)
        if num_others is not None:
            self._other_temperature.update_state(num_others)
        self._watch_promises(parts, outputs)
        return self._objective.distillation_loss(parts, outputs, weights, self.output_names, self._reduce)

    def _check_heads(self, who: str, run: ForwardPass) -> None:
        if run.symbolic is not None:
            names = self.output_names
            check_heads(self._objective.terms, who, lambda term: term.part_of(run.activations, names))

    def _aggregate(self, regulariser: Tensor) -> Any:
        return self._reduce(ops.sum(ops.cast(regulariser, "float32")), None, None)

    def _watch_promises(self, parts: dict[str, TensorTree], outputs: Outputs) -> None:
        teacher_pass = self._teacher.forward_pass if self._teacher and TEACHER_FEATURES in parts else None
        sides = [("teacher", teacher_pass, parts[SOFT_TARGETS]), ("student", self._student_pass, outputs.logits)]
        watched = promised_logits(self._objective.terms, sides, self.output_names)
        if watched:
            self._promises.update_state(watched)

    def _fault_of_first_batch(self) -> str | None:
        """What the first batch of a `fit` showed to be wrong, if anything, as an error's message."""
        broken = self._promises.broken()
        if broken is None and float(self._teacher_not_finite.result()) > 0:
            remedy = "Look at the teacher's inputs (scaling, missing values) and at its weights."
            return error_message("the teacher's logits must be finite", "NaN or infinite values", remedy)
        if broken is None and float(self._other_temperature.result()) > 0:
            remedy = "Give the loss store.manifest.sampling_temperature, or label again with the loss's temperature=…"
            return error_message(
                "the loss's temperature must be that at which the rows were sampled", "another", remedy
            )
        return broken


_OWN_METRICS = {"student_loss", "distillation_loss", "total_loss"}


def _own_output(outputs: TensorTree) -> TensorTree:
    """What the student itself returns, out of what a step gave."""
    return outputs.output if isinstance(outputs, Outputs) else outputs
