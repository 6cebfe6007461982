"""`Ensemble`: several models as one teacher, one model, one pass."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_choice, check_positive, error_message
from keras_distill._keras_internals import input_structure
from keras_distill._types import Shape, Tensor, TensorTree
from keras_distill.models.forward_pass import logits_model

COMBINATIONS = ("arithmetic", "geometric")


def arithmetic_mean(member_logits: Tensor, member_weights: Tensor) -> Tensor:
    """The log of the weighted mean of the members' probabilities.

    The paper's mean of choice for ensembles: it keeps the mass of whatever any one member believes in.

    `log Σ_m w_m · softmax(z_m)`, in the log domain, so that logits of ±1e4 neither overflow nor vanish.

    Args:
        member_logits: float, `(..., members, num_classes)`.
        member_weights: float, `(..., members)`, > 0, summing to one.

    Returns:
        Logits (log probabilities, nats), float, `(..., num_classes)`, right at temperature 1 only.

    Example:
        >>> import numpy as np
        >>> logits = np.log([[0.8, 0.2], [0.4, 0.6]])
        >>> np.exp(arithmetic_mean(logits, np.array([0.5, 0.5]))).round(3).tolist()
        [0.6, 0.4]

    Reference: Hinton et al., arXiv:1503.02531, section 2 (soft targets of an ensemble) and 5.
    """
    log_probabilities = ops.log_softmax(member_logits, axis=-1)
    return ops.logsumexp(log_probabilities + ops.expand_dims(ops.log(member_weights), axis=-1), axis=-2)


def geometric_mean(member_logits: Tensor, member_weights: Tensor) -> Tensor:
    """The weighted mean of the members' logits.

    Its softmax at any temperature T is the normalised geometric mean of the members' `softmax(z_m / T)`.

    `Σ_m w_m · z_m`

    Args:
        member_logits: float, `(..., members, num_classes)`.
        member_weights: float, `(..., members)`, > 0, summing to one.

    Returns:
        Logits, float, `(..., num_classes)`, right at every temperature.

    Example:
        >>> import numpy as np
        >>> np.asarray(geometric_mean(np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([0.5, 0.5]))).tolist()
        [2.0, 0.0]

    Reference: Hinton et al., arXiv:1503.02531, section 2 (geometric or arithmetic mean).
    """
    return ops.sum(member_logits * ops.expand_dims(member_weights, axis=-1), axis=-2)


@keras.saving.register_keras_serializable(package="keras_distill")
class Ensemble(keras.Model):
    """Several models over the same inputs as one model that gives logits.

    Members may differ in architecture, in precision and in the preprocessing they carry inside. All run in
    one pass. The model's output is right at temperature 1; `soft_targets` gives what is right at *every*
    temperature, since the mean of `softmax(z_m / T)` is no function of the mean at T = 1.

    A functional model with `input` and `output`: it saves, loads and exports as any other, and is a teacher
    for `Distiller` and for labelling.

    Args:
        models: built Keras models with one output each, `(..., num_classes)`, any head; a softmax is taken off.
        combine: `"arithmetic"`, the mean of the members' probabilities, or `"geometric"`, the mean of their logits.
        weights: one number > 0 a member, scaled to sum to one; `None` weighs all the same.
        name: the model's name.

    Raises:
        TypeError: a member is no Keras model.
        ValueError: no members; members with other class counts, with several outputs or not built; weights that are
            not one positive number a member.

    Example:
        >>> import keras, numpy as np
        >>> def member(seed):
        ...     kernel = keras.initializers.RandomNormal(seed=seed)
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer=kernel)])
        >>> ensemble = Ensemble([member(1), member(2)], combine="arithmetic", weights=[3, 1])
        >>> ensemble(np.zeros((2, 4))).shape
        TensorShape([2, 3])
        >>> {name: tuple(value.shape) for name, value in ensemble.soft_targets(np.zeros((2, 4))).items()}
        {'member_logits': (2, 2, 3), 'member_weights': (2, 2)}

    Reference: Hinton et al., arXiv:1503.02531, sections 2 and 3.
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        combine: str = "arithmetic",
        weights: Sequence[float] | None = None,
        *,
        name: str | None = None,
    ):
        check_choice("combine", combine, COMBINATIONS)
        models = _checked_models(models)
        members = Members(models, combine, _normalised(weights, len(models)), name="members")
        inputs = _fresh_inputs(models)
        super().__init__(inputs=inputs, outputs=members(inputs), name=name)
        self.combine = combine

    @property
    def member_weights(self) -> list[float]:
        """How much each member counts; the numbers sum to one."""
        return list(self.get_layer("members").member_weights)

    @property
    def models(self) -> list[keras.Model]:
        """The members, as they were given."""
        return list(self.get_layer("members").models)

    def soft_targets(self, inputs: TensorTree) -> Tensor:
        """What this teacher says at every temperature.

        Args:
            inputs: what the members take.

        Returns:
            Arithmetic: `{"member_logits": (..., members, num_classes), "member_weights": (..., members)}`.
            Geometric: the mean logits, `(..., num_classes)`. Both float32.
        """
        members = self.get_layer("members")
        member_logits = members.member_logits(inputs, training=False)
        if self.combine == "geometric":
            return members.mean(member_logits)
        member_weights = np.asarray(self.member_weights, "float32")
        return {
            "member_logits": member_logits,
            "member_weights": ops.broadcast_to(member_weights, ops.shape(member_logits)[:-1]),
        }

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "models": [keras.saving.serialize_keras_object(model) for model in self.models],
            "combine": self.combine,
            "weights": self.member_weights,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "Ensemble":
        """Builds the ensemble that `get_config` described."""
        models = [keras.saving.deserialize_keras_object(model, custom_objects) for model in config["models"]]
        return cls(**{**config, "models": models})


@keras.saving.register_keras_serializable(package="keras_distill")
class Members(keras.Layer):
    """Models over the same inputs, and their mean.

    One layer, because the layers of a functional model need unique names and members often share theirs.

    Args:
        models: Keras models with one output each, of one shape.
        combine: `"arithmetic"` or `"geometric"`.
        member_weights: one number a member, summing to one.
    """

    def __init__(self, models: Sequence[keras.Model], combine: str, member_weights: Sequence[float], **kwargs: Any):
        # A layer that casts would round uint8 images or float64 features before a member's own preprocessing.
        super().__init__(autocast=False, **kwargs)
        self.models = list(models)
        # Saved files hold the members as they were given; what a function encloses Keras does not track.
        stripped = [logits_model(model) for model in self.models]
        self._logits_of_all = lambda inputs, training: [model(inputs, training=training) for model in stripped]
        self.combine = combine
        self.member_weights = list(member_weights)

    def build(self, input_shape: Shape) -> None:
        """The members were built before."""
        self.built = True

    def call(self, inputs: TensorTree, training: bool | None = None) -> Tensor:
        """The mean of the members, logits at temperature 1, `(..., num_classes)`."""
        return self.mean(self.member_logits(inputs, training=training))

    def member_logits(self, inputs: TensorTree, training: bool | None = None) -> Tensor:
        """Runs every member once; float32 `(..., members, num_classes)`."""
        outputs = self._logits_of_all(inputs, training)
        return ops.stack([ops.cast(output, "float32") for output in outputs], axis=-2)

    def mean(self, member_logits: Tensor) -> Tensor:
        """`(..., members, num_classes)` → `(..., num_classes)`."""
        mean = arithmetic_mean if self.combine == "arithmetic" else geometric_mean
        # A NumPy constant stays inside an exported graph; an eager tensor would become another input of it.
        return mean(member_logits, np.asarray(self.member_weights, "float32"))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments: `keras.models.clone_model` clones a functional model layer by layer."""
        models = [keras.saving.serialize_keras_object(model) for model in self.models]
        own = {"models": models, "combine": self.combine, "member_weights": self.member_weights}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Members":
        """Builds the layer that `get_config` described."""
        models = [keras.saving.deserialize_keras_object(model) for model in config["models"]]
        return cls(**{**config, "models": models})


def _checked_models(models: Sequence[keras.Model]) -> list[keras.Model]:
    models = list(models)
    if not models:
        raise ValueError(error_message("models must hold at least one Keras model", "none"))
    for position, model in enumerate(models):
        if not isinstance(model, keras.Model):
            remedy = "Wrap the callable in a keras.Model first."
            raise TypeError(error_message(f"models[{position}] must be a keras.Model", type(model).__name__, remedy))
        if not getattr(model, "inputs", None):
            remedy = "Give it an Input: inputs = keras.Input(…); keras.Model(inputs, model(inputs))."
            raise ValueError(
                error_message(f"models[{position}] must be a model whose inputs are known", repr(model.name), remedy)
            )
        if len(model.outputs) != 1:
            remedy = "Give a model of its logits alone."
            raise ValueError(error_message(f"models[{position}] must have one output", f"{len(model.outputs)}", remedy))
        if model.outputs[0].shape[-1] != models[0].outputs[0].shape[-1]:
            expected = f"have {models[0].outputs[0].shape[-1]} classes, as models[0] has"
            raise ValueError(error_message(f"models[{position}] must {expected}", model.outputs[0].shape[-1]))
    return models


def _fresh_inputs(models: Sequence[keras.Model]) -> Tensor:
    """Inputs as the first member takes them, single, list or dict."""

    def fresh(tensor: Tensor) -> Tensor:
        return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)

    return keras.tree.map_structure(fresh, input_structure(models[0]))


def _normalised(weights: Sequence[float] | None, num_members: int) -> list[float]:
    if weights is None:
        return [1.0 / num_members] * num_members
    if len(weights) != num_members:
        raise ValueError(error_message(f"there must be {num_members} weights, one for each member", f"{len(weights)}"))
    remedy = "Leave out a member that should not count."
    numbers = [check_positive(f"weights[{position}]", weight, remedy) for position, weight in enumerate(weights)]
    total = math.fsum(numbers)
    return [number / total for number in numbers]
