"""`SpecialistEnsemble`: a generalist, its specialists and their merge as one Keras model."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_count, error_message
from keras_distill._keras_internals import input_structure
from keras_distill._types import Shape, Tensor, TensorTree
from keras_distill.models.forward_pass import logits_model
from keras_distill.specialists.cells import NOTHING
from keras_distill.specialists.combiner import SpecialistCombiner
from keras_distill.specialists.merge import check_class_sets


@keras.saving.register_keras_serializable(package="keras_distill")
class SpecialistEnsemble(keras.Model):
    """A generalist and its specialists as one model that gives logits.

    The generalist's most probable classes decide which specialists are asked: those whose set holds one of them.
    A specialist sees only the examples of a batch that ask it, and where there are none it is not run: however many
    specialists there are, an example costs the generalist and its own few. In an exported graph a specialist that
    anybody in a call asks answers for the whole call.

    Args:
        generalist: a built Keras model with one output, any head, `(batch, num_classes)`.
        specialists: models over the same inputs, with outputs for their classes and the dustbin last.
        class_sets: for each specialist its classes, in the order of its outputs.
        num_routes: how many of the generalist's most probable classes choose specialists.
        steps: see `merge`.
        generalist_weight: see `merge`.
        conditional: whether specialists are spared what they are not asked; `False` runs all of them on everything,
            for runtimes without conditionals or batches of unknown size, and for XLA.
        name: the model's name.

    Raises:
        ValueError: as `merge` does; counts of specialists and class sets that differ.

    Example:
        >>> def net(units):
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units)])
        >>> ensemble = SpecialistEnsemble(net(5), [net(3), net(3)], class_sets=[[0, 1], [3, 4]])
        >>> ensemble(np.ones((2, 4), "float32")).shape
        TensorShape([2, 5])

    Reference: Hinton et al., arXiv:1503.02531, section 5.4.
    """

    def __init__(
        self,
        generalist: keras.Model,
        specialists: Sequence[keras.Model],
        class_sets: Sequence[Sequence[int]],
        num_routes: int = 1,
        *,
        steps: int = 10,
        generalist_weight: float = 1.0,
        conditional: bool = True,
        name: str | None = None,
    ):
        if not getattr(generalist, "inputs", None):
            remedy = "Give it an Input: inputs = keras.Input(…); keras.Model(inputs, model(inputs))."
            raise ValueError(
                error_message("generalist must be a model whose inputs are known", repr(generalist.name), remedy)
            )
        routed = RoutedSpecialists(
            generalist,
            specialists,
            class_sets,
            num_routes,
            steps,
            generalist_weight,
            conditional,
            name="routed",
        )
        inputs = keras.tree.map_structure(
            lambda tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name),
            input_structure(generalist),
        )
        super().__init__(inputs=inputs, outputs=routed(inputs), name=name)

    @property
    def generalist(self) -> keras.Model:
        """The generalist, as it was given."""
        return self.get_layer("routed").generalist

    @property
    def specialists(self) -> list[keras.Model]:
        """The specialists, as they were given."""
        return list(self.get_layer("routed").specialists)

    @property
    def class_sets(self) -> list[list[int]]:
        """The classes of each specialist."""
        return [list(class_set) for class_set in self.get_layer("routed").class_sets]

    def routes(self, generalist_logits: Tensor) -> Any:
        """Which specialists each example asks: float32 `(batch, num_specialists)` of 0 and 1."""
        return self.get_layer("routed").routes(generalist_logits)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        routed = self.get_layer("routed")
        return {
            "generalist": keras.saving.serialize_keras_object(self.generalist),
            "specialists": [keras.saving.serialize_keras_object(specialist) for specialist in self.specialists],
            "class_sets": self.class_sets,
            "num_routes": routed.num_routes,
            "steps": routed.combiner.steps,
            "generalist_weight": routed.combiner.generalist_weight,
            "conditional": routed.conditional,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "SpecialistEnsemble":
        """Builds the model that `get_config` described."""

        def revive(model: dict[str, Any]) -> keras.Model:
            return keras.saving.deserialize_keras_object(model, custom_objects)

        models = {"generalist": revive(config["generalist"]), "specialists": list(map(revive, config["specialists"]))}
        return cls(**{**config, **models})


@keras.saving.register_keras_serializable(package="keras_distill")
class RoutedSpecialists(keras.layers.Layer):
    """The generalist, the specialists that it asks and their merge: one layer, since specialists may share a name.

    Args: as those of `SpecialistEnsemble`.
    """

    def __init__(
        self,
        generalist: keras.Model,
        specialists: Sequence[keras.Model],
        class_sets: Sequence[Sequence[int]],
        num_routes: int,
        steps: int,
        generalist_weight: float,
        conditional: bool,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        num_classes = generalist.outputs[0].shape[-1]
        self.class_sets = check_class_sets(class_sets, num_classes)
        if len(specialists) != len(self.class_sets):
            raise ValueError(
                error_message(
                    f"there must be {len(self.class_sets)} specialists, one for each class set", len(specialists)
                )
            )
        self.generalist = generalist
        self.specialists = list(specialists)
        # Saved files hold the models as they were given; what a function encloses Keras does not track.
        stripped = [logits_model(model) for model in (generalist, *specialists)]
        self._logits_of = lambda position, inputs, training: ops.cast(
            stripped[position](inputs, training=training), "float32"
        )
        self.num_routes = check_count("num_routes", num_routes)
        if self.num_routes > num_classes:
            raise ValueError(error_message(f"num_routes must be <= {num_classes}, the number of classes", num_routes))
        self.conditional = bool(conditional)
        # Whether a specialist that is asked answers only for those who ask. Not in a file (`deploy/trace.py`).
        self.gathers_examples = True
        # How many examples ask a specialist is not known when a graph is compiled.
        self.supports_jit = not self.conditional
        for position, (specialist, class_set) in enumerate(zip(self.specialists, self.class_sets, strict=True)):
            num_outputs = specialist.outputs[0].shape[-1]
            if num_outputs != len(class_set) + 1:
                expected = f"have {len(class_set) + 1} outputs, its {len(class_set)} classes and the dustbin"
                raise ValueError(error_message(f"specialists[{position}] must {expected}", num_outputs))
        covers = np.zeros((num_classes, len(self.class_sets)), "float32")
        for position, class_set in enumerate(self.class_sets):
            covers[class_set, position] = 1.0
        self.covers = covers
        # The most specialists that any `num_routes` classes can call: the solver's system need not be larger.
        coverage = np.sort(covers.sum(axis=1))[::-1]
        max_active = max(1, min(len(self.class_sets), int(coverage[: self.num_routes].sum())))
        self.combiner = SpecialistCombiner(
            self.class_sets, num_classes, steps, max_active=max_active, generalist_weight=generalist_weight
        )

    def build(self, input_shape: Shape) -> None:
        """The models were built before."""

    def routes(self, generalist_logits: Tensor) -> Any:
        """Which specialists each example asks: float32 `(batch, num_specialists)`."""
        # One maximum after the other, the first class among equal ones. Not `top_k`: LiteRT learns the size of what
        # it gives only while it runs; see `Problem.levelled`.
        logits = ops.cast(generalist_logits, "float32")
        is_asked = ops.zeros_like(logits)
        for _ in range(self.num_routes):
            is_largest = ops.cast(logits >= ops.max(logits, axis=-1, keepdims=True), "float32")
            is_first = is_largest * ops.cast(ops.cumsum(is_largest, axis=-1) < 1.5, "float32")
            is_asked = is_asked + is_first
            logits = ops.where(is_first > 0.5, NOTHING, logits)
        return ops.cast(ops.matmul(is_asked, self.covers) > 0.5, "float32")

    def call(self, inputs: TensorTree, training: bool | None = None) -> Any:
        """Merged logits, `(batch, num_classes)`."""
        generalist_logits = self._logits_of(0, inputs, training)
        if not self.specialists:
            return ops.log_softmax(generalist_logits, axis=-1)
        routes = self.routes(generalist_logits)
        specialist_logits = [
            self._ask(position, inputs, routes, generalist_logits, training)
            for position in range(len(self.specialists))
        ]
        return self.combiner([generalist_logits, *specialist_logits], routes)

    def _ask(
        self, position: int, inputs: TensorTree, routes: Tensor, generalist_logits: Tensor, training: bool | None
    ) -> Any:
        """One specialist's logits, `(batch, k + 1)`; those of examples that do not ask it mean nothing."""
        num_outputs = len(self.class_sets[position]) + 1

        def run() -> Any:
            if keras.config.backend() != "tensorflow" or not self.gathers_examples:
                return self._logits_of(1 + position, inputs, training)
            # The places of the ones; LiteRT has no `nonzero`.
            _, asking = ops.top_k(routes[:, position], ops.cast(ops.sum(routes[:, position]), "int32"))
            few = keras.tree.map_structure(lambda tensor: ops.take(tensor, asking, axis=0), inputs)
            logits = self._logits_of(1 + position, few, training)
            return ops.scatter(asking[:, None], logits, (ops.shape(generalist_logits)[0], num_outputs))

        def skip() -> Any:
            return ops.zeros_like(generalist_logits[:, :1]) + np.zeros((1, num_outputs), "float32")

        if not self.conditional:
            return self._logits_of(1 + position, inputs, training)
        return ops.cond(ops.max(routes[:, position]) > 0.5, run, skip)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments: `keras.models.clone_model` clones a functional model layer by layer."""
        serialize = keras.saving.serialize_keras_object
        own = {
            "generalist": serialize(self.generalist),
            "specialists": [serialize(specialist) for specialist in self.specialists],
            "class_sets": self.class_sets,
            "num_routes": self.num_routes,
            "steps": self.combiner.steps,
            "generalist_weight": self.combiner.generalist_weight,
            "conditional": self.conditional,
        }
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RoutedSpecialists":
        """Builds the layer that `get_config` described."""
        restore = keras.saving.deserialize_keras_object
        models = {"generalist": restore(config["generalist"]), "specialists": list(map(restore, config["specialists"]))}
        return cls(**{**config, **models})
