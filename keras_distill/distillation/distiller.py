"""`Distiller`: a student that learns from a teacher through plain `compile` and `fit`.

The objective lives in `compute_loss`, in `keras.ops`, for every backend; `train_step` and `test_step` are TensorFlow's.
What a loss computes is in `losses/`, how a model becomes logits in `logits.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_finite, check_fraction, error_message
from keras_distill._keras_internals import all_layers, compiled_loss, restore_jax_state
from keras_distill.distillation.batch import (
    LABELS,
    SOFT_TARGETS,
    TEACHER_FEATURES,
    UNLABELLED,
    batch_parts,
    batch_size_of,
    brings_soft_targets,
    class_weights_as_sample_weights,
    feature_or_logits,
    first_leaf,
    is_one_target,
    item_weights_of,
    masked_weights,
)
from keras_distill.distillation.first_batch import FIRST_BATCH_METRICS, FirstBatchCheck
from keras_distill.distillation.guards import check_not_empty, warn_of_scalar_loss
from keras_distill.distillation.objective import (
    Objective,
    Term,
    check_losses,
    layer_names,
    map_losses,
    may_differ,
    weighted_terms,
)
from keras_distill.distillation.teacher_batches import TeacherBatches, follow, teacher_pass
from keras_distill.losses import SoftTargets
from keras_distill.losses.per_example import restored, serialized
from keras_distill.losses.reduction import WeightedMean, unscaled
from keras_distill.models.forward_pass import ForwardPass, Outputs, forward_pass
from keras_distill.models.heads import is_readable, looks_like_probabilities
from keras_distill.schedules import FollowSchedules, check_schedulable, current, schedules_in


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(keras.Model):
    """A Keras model that trains `student` on hard labels and on what `teacher` knows.

    The objective of a batch is

        student_loss_weight · student_loss + (1 − student_loss_weight) · Σᵢ weightᵢ · distillation_lossᵢ

    plus the student's own regularisers. Sample weights, class weights and Keras masks weigh both terms. The
    teacher runs once a step, in inference mode, outside the gradient; the student runs once. A batch that brings its
    own soft targets, `(x, {"labels": y, "soft_targets": t})`, needs no teacher.

    `fit` takes what `keras.Model.fit` takes, and also `x` alone (no labels) and partly labelled sets
    (`SparseCategoricalCrossentropy(ignore_class=-1)`). `evaluate` and `predict` are the student's alone.
    Checkpoints and `.keras` files hold the student and the optimizer, never the teacher.

    Args:
        teacher: what knows: a Keras model with any head, an `Ensemble`, any callable that maps a batch of inputs
            to logits; `None` where batches bring their soft targets. Never changed, never saved.
        student: the Keras model to train, with any head. It stays a plain Keras model, at `distiller.student`.
        distillation_losses: one loss or several, ours or Keras's; `None` is `SoftTargets(temperature=4.0)`. For a
            model of several outputs a dict `{output name: loss or None}`, which may be one of several.
        distillation_loss_weights: a non-negative number for each loss, of the losses' own structure; `None` weighs
            each 1. Each may be a schedule or a `keras.Variable`, which a compiled step reads anew.
        student_loss_weight: the weight of the hard labels, in [0, 1]; may be a schedule or a variable too. At 0.0
            training neither computes nor reports their loss; `evaluate` does.
        from_logits: what models give whose graph cannot be read (subclassed models, callables): logits, or
            (`False`) probabilities. Heads of Functional and Sequential models are found by themselves.
        evaluate_distillation: whether `evaluate` too runs the teacher and reports `distillation_loss`.
        name: the model's name.

    Raises:
        TypeError: `student` is no Keras model, or `teacher` cannot be called.
        ValueError: a weight out of range, class counts that differ, a layer name that is not there.

    Example:
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
        teacher: Callable | None,
        student: keras.Model,
        distillation_losses: Any = None,
        distillation_loss_weights: Any = None,
        student_loss_weight: Any = 0.1,
        *,
        from_logits: bool = True,
        evaluate_distillation: bool = False,
        name: str = "distiller",
        **kwargs: Any,
    ):
        if not isinstance(student, keras.Model):
            raise TypeError(error_message("student must be a keras.Model", type(student).__name__))
        # The student's own policy decides whether the loss is scaled; its own layers decide what is cast.
        kwargs.setdefault("dtype", student.dtype_policy)
        super().__init__(name=name, autocast=False, **kwargs)
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
        self.evaluate_distillation = bool(evaluate_distillation)
        self.student_loss_tracker = keras.metrics.Mean(name="student_loss")
        self.distillation_loss_tracker = keras.metrics.Mean(name="distillation_loss")
        # Metrics, because replicas and compiled steps know how to add them up; `get_metrics_result` keeps them in.
        self._teacher_not_finite = keras.metrics.Sum(name="teacher_not_finite")
        self._teacher_probabilities = keras.metrics.Mean(name="teacher_probabilities")
        self._student_probabilities = keras.metrics.Mean(name="student_probabilities")
        self._reduce = WeightedMean()
        self._student_pass: Any = None
        # Keras's step for JAX calls the model itself, also where an evaluation wants more than its output.
        self._gives_all = False
        self._teacher = _Unsaved(None, None, None)
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
    def teacher(self) -> Callable | None:
        """The teacher as it was given, or `None`."""
        return self._teacher.model

    def set_teacher(self, teacher: Callable) -> None:
        """Gives the distiller its teacher: a saved one comes back without.

        Raises:
            TypeError: `teacher` cannot be called.
            ValueError: its classes are not the student's, or a loss names a layer that it has not.
        """
        if not callable(teacher):
            raise TypeError(error_message("teacher must be a Keras model or a callable", type(teacher).__name__))
        if isinstance(teacher, keras.Model):
            for loss in self.distillation_losses:
                loss.validate_model_compatibility(teacher, self.student)
        run = self._open_teacher(teacher)
        self._match_teacher_and_student(run)
        # A plain holder: Keras stores sub-models by the order of their creation, and must not see the teacher.
        self._teacher = _Unsaved(teacher, run, teacher_pass(run, teacher))
        layers = all_layers(teacher) if isinstance(teacher, keras.Layer) else [teacher]
        self.supports_jit = all(getattr(layer, "supports_jit", True) for layer in layers)
        self.train_function = self.test_function = None

    def __dir__(self) -> list[str]:
        # Keras saves every model that `dir` lists; the teacher is the caller's.
        return [name for name in super().__dir__() if name != "teacher"]

    def build(self, input_shape: Any) -> None:
        """Builds a Sequential student that has no weights yet; a subclassed one builds itself when first called."""
        if not self.student.built and isinstance(self.student, keras.Sequential):
            self.student.build(input_shape)
        self._open_student()
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The student's output; in training all that the objective needs, as `Outputs`."""
        if self._student_pass is None:
            self._open_student()
        if training or self._gives_all:
            return self._student_pass(inputs, training)
        return self.student(inputs, training=False)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains the student as `keras.Model.fit` does.

        Raises:
            ValueError: no items, labels out of range, weights (the student's or the samples') or teacher's logits that
                are NaN or infinite, a model that gives probabilities where logits were promised, neither teacher nor
                soft targets.
        """
        check_not_empty(x)
        self._check_label_range(y)
        if isinstance(kwargs.get("sample_weight"), np.ndarray):
            check_finite("sample_weight", kwargs["sample_weight"], "An item that should not count weighs 0.")
        if kwargs.get("class_weight") and brings_soft_targets(x, y):
            kwargs["sample_weight"], x = class_weights_as_sample_weights(
                x, y, kwargs.pop("class_weight"), kwargs.get("sample_weight")
            )
        if y is None and kwargs.get("sample_weight") is not None:
            # Keras drops the weights of items without a `y`.
            y = {UNLABELLED: np.zeros(len(kwargs["sample_weight"]), "uint8")}
        weight = kwargs.get("sample_weight")
        if isinstance(y, dict) and {SOFT_TARGETS, UNLABELLED} & set(y) and getattr(weight, "ndim", 1) > 1:
            # Beside a `y` of several parts Keras takes a weight a token only as one for each part.
            kwargs["sample_weight"] = keras.tree.map_structure(lambda _: weight, y)
        ours = [FirstBatchCheck(), FollowSchedules(schedules_in(self.auxiliary_layers))]
        callbacks = kwargs.pop("callbacks", None)
        if isinstance(callbacks, keras.callbacks.CallbackList):
            for callback in ours:
                callbacks.append(callback)
        else:
            callbacks = [*ours, *keras.tree.flatten(callbacks or [])]
        return super().fit(x, y, *args, callbacks=callbacks, **kwargs)

    if keras.config.backend() == "tensorflow":

        def train_step(self, data: Any) -> dict[str, Any]:
            """One step: the teacher outside the gradient, then the student, the objective and the update."""
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            return super().train_step((x, self._with_teacher(x, y, training=True), sample_weight))

        def test_step(self, data: Any) -> dict[str, Any]:
            """One evaluation step of the student; the teacher runs only if `evaluate_distillation`."""
            x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
            if self.evaluate_distillation:
                y = self._with_teacher(x, y)
            return self._evaluation_of_all(super().test_step, (x, y, sample_weight))

    elif keras.config.backend() == "jax":

        def make_train_function(self, force: bool = False) -> None:
            """Keras's own, over batches that the teacher has seen."""
            is_new = self.train_function is None or force
            super().make_train_function(force)
            if is_new:
                self.train_function = self._with_teacher_batches(self.train_function, training=True)

        def make_test_function(self, force: bool = False) -> None:
            """Keras's own; the teacher sees the batches only if `evaluate_distillation`."""
            is_new = self.test_function is None or force
            super().make_test_function(force)
            if is_new and self.evaluate_distillation:
                self.test_function = self._with_teacher_batches(self.test_function, training=False)

        def test_step(self, state: Any, data: Any) -> Any:  # type: ignore[misc]  # Keras's signature for JAX
            """Keras's own; with `evaluate_distillation` the student gives all that the objective needs."""
            return self._evaluation_of_all(super().test_step, state, data)

        def _with_teacher_batches(self, function: Any, training: bool) -> Any:
            if training and self.steps_per_execution > 1 and hasattr(self.teacher, "follow"):
                expected = "be 1 on JAX, for a teacher that follows its student"
                raise ValueError(error_message(f"steps_per_execution must {expected}", self.steps_per_execution))

            def step(state: tuple, batches: Any) -> Any:
                def teach(x: Any, y: Any) -> Any:
                    values = zip(
                        self.trainable_variables + self.non_trainable_variables, state[0] + state[1], strict=True
                    )
                    return self._with_teacher(x, y, training, list(values))

                try:
                    return function(state, TeacherBatches(batches, teach))
                except Exception:
                    self._restore_variables(state)
                    raise

            return step

        def _restore_variables(self, state: tuple) -> None:
            """Gives the variables the values that Keras took from them for a step that failed."""
            if any(value.is_deleted() for value in keras.tree.flatten(state)):
                return
            names = ["trainable_variables", "non_trainable_variables", "optimizer_variables", "metrics_variables"]
            if len(state) == 3:
                names.remove("optimizer_variables")
            restore_jax_state(self, dict(zip(names, state, strict=True)))

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The objective of a batch, a scalar.

        Args:
            x: the inputs; the teacher runs on them unless `y` brings soft targets.
            y: labels, `None`, or `{"labels": …, "soft_targets": …}`.
            y_pred: `Outputs` of the student (in training), or the student's own output.
            sample_weight: `(batch,)`, or a weight a token.
            training: whether the distillation losses count; evaluation measures the student.
        """
        outputs = self(x, training=training) if y_pred is None else y_pred
        distils = isinstance(outputs, Outputs) and self._distils
        if distils and SOFT_TARGETS not in batch_parts(y):
            y = self._with_teacher(x, y, training=training)
        parts, sample_weight = batch_parts(y), item_weights_of(sample_weight)
        student_output = outputs.output if isinstance(outputs, Outputs) else outputs
        batch_size = batch_size_of(x)

        total_loss = ops.sum(ops.stack([self._aggregate(loss) for loss in self.losses])) if self.losses else 0.0
        student_loss = None
        if self._computes_student_loss(parts, outputs):
            self._check_loss_meets_head()
            student_loss = compiled_loss(self)(parts[LABELS], student_output, sample_weight)
            self.student_loss_tracker.update_state(unscaled(student_loss), sample_weight=batch_size)
        distillation_loss = self._distillation_loss(parts, outputs, sample_weight) if distils else None
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

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        """Updates the compiled metrics with the student's output, where there are labels."""
        parts = batch_parts(y)
        output = y_pred.output if isinstance(y_pred, Outputs) else y_pred
        if LABELS in parts:
            super().compute_metrics(x, parts[LABELS], output, item_weights_of(sample_weight))
        results = self.get_metrics_result()
        reported = {"student_loss"} if self._computes_student_loss(parts, y_pred) else set()
        if isinstance(y_pred, Outputs):
            reported |= {"total_loss"} | ({"distillation_loss"} if self._distils else set())
        return {name: value for name, value in results.items() if name in reported or name not in _OWN_METRICS}

    def get_metrics_result(self) -> dict[str, Any]:
        """The reported metrics' values, without those that only watch the first batch.

        `total_loss` is Keras's own `loss` under the name that `keras.distillation` gives it.
        """
        results = {
            name: value for name, value in super().get_metrics_result().items() if name not in FIRST_BATCH_METRICS
        }
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
            "evaluate_distillation": self.evaluate_distillation,
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

    def _computes_student_loss(self, parts: dict[str, Any], outputs: Any) -> bool:
        """Whether a step computes the labels' loss: evaluations do, trainings if its weight can be other than 0."""
        trains = isinstance(outputs, Outputs) and not self._gives_all
        counts = not trains or may_differ(self.student_loss_weight, 0.0)
        return counts and LABELS in parts and compiled_loss(self) is not None

    def _open_student(self) -> None:
        names = layer_names(self.distillation_losses, "student_layer_name")
        self._student_pass = forward_pass(self.student, layer_names=names, from_logits=self.from_logits)
        self.output_names = getattr(self.student, "output_names", None)
        self._check_heads("student", self._student_pass)

    def _open_teacher(self, teacher: Callable) -> ForwardPass:
        names = layer_names(self.distillation_losses, "teacher_layer_name")
        if hasattr(teacher, "soft_targets"):
            if names:
                remedy = "Distil features from one of its models instead."
                raise ValueError(
                    error_message("a teacher whose features are named must be a single model", "several", remedy)
                )
            # It knows what is right at every temperature, which its logits at T = 1 do not say.
            return ForwardPass(lambda inputs, training: Outputs(teacher.soft_targets(inputs), None, {}))
        return forward_pass(teacher, layer_names=names, from_logits=self.from_logits)

    def _match_teacher_and_student(self, teacher_pass: ForwardPass) -> None:
        """Checks the two models' outputs against each other, and lets the losses make what the shapes need."""
        self._check_heads("teacher", teacher_pass)
        if self._student_pass is None or self._student_pass.symbolic is None:
            return
        ours = self._student_pass.symbolic
        theirs = teacher_pass.symbolic
        if theirs is None:
            return
        for term in self._objective.terms:
            if not hasattr(term.loss, "per_example"):
                continue
            pair = self._pair(term, theirs.logits, theirs.features, ours)
            term.loss.build(*pair)
            term.loss.validate_outputs(*pair)

    def _with_teacher(self, x: Any, y: Any, training: bool = False, student_values: list | None = None) -> Any:
        """`y` with what the teacher says of `x`, unless the batch brings it or nothing would read it.

        `student_values` are the student's, `(variable, value)`, where a compiled step holds them (JAX).
        """
        parts = batch_parts(y)
        if SOFT_TARGETS in parts or not self._distils:
            return y
        if self.teacher is None:
            remedy = (
                'Call distiller.set_teacher(teacher), or fit on (x, {"labels": y, "soft_targets": t}). '
                "A saved distiller holds no teacher."
            )
            raise ValueError(error_message("the teacher must be given before fit", None, remedy))
        if training and hasattr(self.teacher, "follow"):
            if student_values is None:
                self.teacher.follow(self.student)
            else:
                follow(self.teacher, self.student, student_values)
        if student_values is None:
            outputs = self._teacher.run(x, False)
            outputs = outputs.logits, outputs.features
        else:
            outputs = self._teacher.between_steps(x)
        soft_targets, features = keras.tree.map_structure(ops.stop_gradient, outputs)
        return parts | {SOFT_TARGETS: soft_targets, TEACHER_FEATURES: features}

    def _distillation_loss(self, parts: dict[str, Any], outputs: Outputs, sample_weight: Any) -> Any:
        self._watch_soft_targets(parts[SOFT_TARGETS])
        if not is_readable(self.student) and self.from_logits:
            self._student_probabilities.update_state(looks_like_probabilities(first_leaf(outputs.logits)))
        losses = []
        for term in self._objective.terms:
            loss, weight = term.loss, current(term.weight)
            pair = self._pair(term, parts[SOFT_TARGETS], parts.get(TEACHER_FEATURES, {}), outputs)
            item_weights = self._of_output(term, sample_weight)
            loss.validate_outputs(*pair)
            if hasattr(loss, "per_example"):
                context = dict.fromkeys(loss.reads)
                if "labels" in context:
                    context["labels"] = self._of_output(term, parts.get(LABELS))
                if "item_weights" in context:
                    context["item_weights"] = masked_weights(item_weights, pair[1])
                values = loss.per_example(*pair, **context)
                losses.append(weight * self._reduce(values, pair[1], item_weights))
            else:
                if sample_weight is not None:
                    warn_of_scalar_loss(loss)
                losses.append(weight * self._reduce(loss.compute_loss(*pair), None, None))
        return ops.sum(ops.stack(losses))

    def _pair(self, term: "Term", teacher_logits: Any, teacher_features: dict, student: Outputs) -> tuple[Any, Any]:
        """What a term compares: the teacher's and the student's features, or their logits of one output."""
        theirs = feature_or_logits(
            teacher_features,
            getattr(term.loss, "teacher_layer_name", None),
            lambda: self._of_output(term, teacher_logits),
        )
        ours = feature_or_logits(
            student.features,
            getattr(term.loss, "student_layer_name", None),
            lambda: self._of_output(term, student.logits),
        )
        return theirs, ours

    def _of_output(self, term: "Term", structure: Any) -> Any:
        """A term's own part of what may be one tensor or one for each output."""
        is_several = isinstance(structure, (list, tuple)) or (
            isinstance(structure, dict) and not is_one_target(structure)
        )
        if structure is None or not is_several:
            return structure
        if term.output_name is None:
            if not hasattr(term.loss, "per_example") or term.loss.teacher_layer_name is not None:
                return structure
            names = list(structure) if isinstance(structure, dict) else self.output_names
            remedy = "Give a dict {output name: loss or None}."
            raise ValueError(
                error_message(
                    f"distillation_losses of several outputs must be given by name ({names})", term.loss, remedy
                )
            )
        if isinstance(structure, dict):
            if term.output_name not in structure:
                raise ValueError(
                    error_message(f"output {term.output_name!r} must be one of {list(structure)}", "another")
                )
            return structure[term.output_name]
        names = list(self.output_names or [])
        if term.output_name not in names:
            raise ValueError(error_message(f"output {term.output_name!r} must be one of {names}", "another"))
        return structure[names.index(term.output_name)]

    def _check_heads(self, who: str, run: ForwardPass) -> None:
        """A softmax's loss on sigmoids, or the other way round, trains and is wrong in silence."""
        if run.symbolic is None:
            return
        for term in self._objective.terms:
            expected = getattr(term.loss, "head", None)
            if expected is None or getattr(term.loss, "teacher_layer_name", None) is not None:
                continue
            activation = self._of_output(term, run.activations)
            if activation in ("softmax", "sigmoid") and activation != expected:
                name = "BinarySoftTargets" if activation == "sigmoid" else "SoftTargets"
                remedy = f"Use a loss for it, such as keras_distill.losses.{name}."
                subject = f"the head of the {who} under {type(term.loss).__name__}"
                raise ValueError(error_message(f"{subject} must be {expected}", activation, remedy))

    def _aggregate(self, regulariser: Any) -> Any:
        return self._reduce(ops.sum(ops.cast(regulariser, "float32")), None, None)

    def _watch_soft_targets(self, soft_targets: Any) -> None:
        # Values times zero sum to zero exactly where all of them are finite: one pass, no boolean tensor.
        not_finite = [
            ops.cast(ops.isnan(ops.sum(ops.cast(values, "float32") * 0.0)), "float32")
            for values in keras.tree.flatten(soft_targets)
        ]
        self._teacher_not_finite.update_state(ops.stack(not_finite))
        if self.from_logits and not isinstance(soft_targets, dict) and not is_readable(self.teacher):
            self._teacher_probabilities.update_state(looks_like_probabilities(first_leaf(soft_targets)))

    def _complaint_of_first_batch(self) -> str | None:
        """What the first batch showed to be wrong, if anything."""
        if float(self._teacher_not_finite.result()) > 0:
            remedy = "Look at the teacher's inputs (scaling, missing values) and at its weights."
            return error_message("the teacher's logits must be finite", "NaN or infinite values", remedy)
        for who, metric in (("teacher", self._teacher_probabilities), ("student", self._student_probabilities)):
            if float(metric.result()) == 1.0:
                remedy = "Pass from_logits=False to Distiller, or let the model end before its softmax."
                return error_message(
                    f"the {who}'s outputs must be logits", "probabilities: rows in [0, 1] that sum to 1", remedy
                )
        return None

    def _check_loss_meets_head(self) -> None:
        """A loss of probabilities on a student that ends in logits trains, badly and in silence."""
        if getattr(self._student_pass, "activations", None) != "linear" or keras.tree.is_nested(self.loss):
            return
        if self.loss in ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"):
            name = "".join(word.capitalize() for word in self.loss.split("_"))
        elif isinstance(self.loss, keras.losses.Loss) and self.loss.get_config().get("from_logits") is False:
            name = type(self.loss).__name__
        else:
            return
        remedy = f"Pass loss=keras.losses.{name}(from_logits=True)."
        raise ValueError(
            error_message("a student that ends in logits needs a loss of logits", "one of probabilities", remedy)
        )

    def _check_label_range(self, y: Any) -> None:
        labels = batch_parts(y).get(LABELS)
        num_classes = self.student.outputs[0].shape[-1] if is_readable(self.student) else None
        is_sparse = self.loss == "sparse_categorical_crossentropy" or isinstance(
            self.loss, keras.losses.SparseCategoricalCrossentropy
        )
        if not isinstance(labels, np.ndarray) or not is_sparse or num_classes is None or not labels.size:
            return
        ignored = getattr(self.loss, "ignore_class", None)
        outside = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignored)]
        if outside.size:
            remedy = "For items without a label use SparseCategoricalCrossentropy(ignore_class=-1)."
            raise ValueError(
                error_message(f"labels must be in [0, {num_classes})", f"{outside[0]} ({outside.size} such)", remedy)
            )


_OWN_METRICS = {"student_loss", "distillation_loss", "total_loss"}


@dataclass(frozen=True)
class _Unsaved:
    """The teacher and its one pass, where Keras's trackers do not look: into lists, dicts and tuples they do."""

    model: Callable | None
    run: Any
    between_steps: Any
