"""Training one specialist: half special examples, half others, and a dustbin for the classes it does not tell apart.

Every specialist is trained alone, from files alone: any number of processes may train one each.
"""

import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from keras_distill._checks import (
    check_choice,
    check_count,
    check_fraction,
    check_labels,
    check_positive,
    complaint,
)
from keras_distill._files import whole_folder
from keras_distill.backup import restore_state, save_state
from keras_distill.distiller import Distiller
from keras_distill.logits import logits_model
from keras_distill.losses import SoftTargets
from keras_distill.specialists.combiner import check_class_sets

TRAINED = ("head", "last_block", "all")
DUSTBINS = ("sum", "unit")


class Examples(Protocol):
    """Inputs and labels in memory, as `keras_distill.data.Split` holds them."""

    inputs: np.ndarray
    labels: np.ndarray


def train(
    generalist: keras.Model,
    class_set: Sequence[int],
    examples: Examples,
    *,
    trained: str = "all",
    num_steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 3e-4,
    special_share: float = 0.5,
    soft_target_weight: float = 0.5,
    temperature: float = 2.0,
    dustbin: str = "sum",
    augmentation: Callable | None = None,
    generalist_logits: np.ndarray | None = None,
    features: Any = None,
    seed: int = 0,
    backup_dir: str | os.PathLike | None = None,
) -> keras.Model:
    """Trains the specialist of one set of classes.

    It starts from the generalist's weights. Half of each batch are examples of its classes, half are others, whose
    label is the dustbin. So few special examples overfit: the generalist's predictions, its other classes summed
    into the dustbin, are soft targets beside the labels (section 6.1). The dustbin's share in training is not its
    share in the world: for the time of training its logit is lowered, and afterwards raised again, by

        log( (1 − share in the data) / (1 − special_share) ) − log( share in the data / special_share )

    Args:
        generalist: a Functional or Sequential model that ends in a Dense layer, with or without an activation.
        class_set: the specialist's classes, in the order of its outputs.
        examples: `inputs` and integer `labels` of all classes.
        trained: what is trained beside the new head: `"head"` nothing, `"last_block"` the last hidden layer
            with a kernel and what follows it, `"all"`. What is not trained runs as in use (no dropout, fixed
            statistics), and once for each example where there is no augmentation, whatever the number of steps.
        num_steps: updates.
        batch_size: items a step.
        learning_rate: Adam's, with cosine decay to zero.
        special_share: the share of special examples in a batch, in (0, 1).
        soft_target_weight: how much the soft targets count beside the labels, in [0, 1]; 0 is labels alone.
        temperature: of the soft targets.
        dustbin: `"sum"`: inside, the head keeps a unit for every class, and the dustbin is the log of the sum over the
            others, so that the specialist starts as exactly what the generalist says. `"unit"`, the paper's: one unit
            of its own, a far smaller head where there are thousands of classes, which has to learn what it means.
        augmentation: called with `(inputs, ids, views)`, arrays of a batch, gives the batch as it is trained on: a
            `keras_distill.targets.Augmentation`, say. Use what the generalist was trained with. The soft
            targets are then what the generalist says of that very view: it runs beside.
        generalist_logits: `(num_items, num_classes)`, if they are already there; not read with an augmentation.
        features: what `frozen_features` gave for this generalist, these inputs and this `trained`, if it is already
            there: of several specialists only the first has to compute it.
        seed: of the batches, of the views and of the layers that draw.
        backup_dir: where the state of an interrupted training is kept, so that the same call goes on from there.

    Returns:
        A plain Keras model with `len(class_set) + 1` logits, the dustbin last.

    Raises:
        ValueError: a set with a class out of range, twice or without example; no example outside of the set; a
            generalist that does not end in a Dense layer.

    Reference: Hinton et al., arXiv:1503.02531, sections 5.2 and 6.1.
    """
    num_classes = generalist.output_shape[-1]
    labels = check_labels("labels", examples.labels, num_classes)
    [classes] = check_class_sets([class_set], num_classes)
    if not check_positive("special_share", special_share) < 1.0:
        raise ValueError(complaint("special_share", "< 1", special_share, "A dustbin is learned from other examples."))
    position = np.full(num_classes, len(classes))
    position[classes] = np.arange(len(classes))
    special_labels = position[labels]
    special, others = (np.flatnonzero(mask) for mask in (special_labels < len(classes), special_labels == len(classes)))
    if not len(special) or not len(others):
        expected = "examples both inside and outside of the specialist's classes"
        raise ValueError(complaint("examples", expected, f"{len(special)} inside, {len(others)} outside"))
    correction = dustbin_correction(len(special) / len(labels), special_share)

    keras.utils.set_random_seed(seed)
    specialist = specialist_model(generalist, classes, dustbin)

    def as_rare_as_in_training(logits: np.ndarray) -> np.ndarray:
        return collapse(logits, classes) - correction * np.eye(len(classes) + 1, dtype="float32")[-1]

    num_special = min(max(1, round(special_share * batch_size)), batch_size - 1)
    parts = _Parts(specialist, trained)
    batches = _Batches(
        parts.inputs(examples.inputs, augmentation, features),
        special_labels,
        _SoftTargets(generalist, examples.inputs, augmentation, generalist_logits, as_rare_as_in_training),
        [(special, num_special), (others, batch_size - num_special)],
        num_steps,
        seed,
    )
    _raise_dustbin(specialist, len(classes), -correction)
    _fit(parts.of_batches, batches, learning_rate, soft_target_weight, temperature, backup_dir)
    parts.thaw()
    _raise_dustbin(specialist, len(classes), correction)
    return specialist


def train_control(
    generalist: keras.Model,
    examples: Examples,
    *,
    teacher: keras.Model | None = None,
    trained: str = "all",
    num_steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 3e-4,
    soft_target_weight: float = 0.5,
    temperature: float = 2.0,
    augmentation: Callable | None = None,
    teacher_logits: np.ndarray | None = None,
    features: Any = None,
    seed: int = 0,
    backup_dir: str | os.PathLike | None = None,
) -> keras.Model:
    """The control of the experiment: the generalist itself, trained on, on all classes, by the specialists' recipe.

    What specialists gain over the generalist may be no more than what some more training gains; this says so. With the
    merged model as `teacher` the same function distils all specialists back into one net of the generalist's size,
    which the paper left open.

    Args:
        generalist: what the training starts from; a copy is trained.
        teacher: who gives the soft targets; `None`: the generalist itself.
        teacher_logits: the teacher's, `(num_items, num_classes)`, if they are already there; not read with an
            augmentation.

    The other arguments are those of `train`.

    Returns:
        A plain Keras model with the generalist's classes, logits.
    """
    num_classes = generalist.output_shape[-1]
    labels = check_labels("labels", examples.labels, num_classes)
    teacher = generalist if teacher is None else teacher
    if teacher.output_shape[-1] != num_classes:
        raise ValueError(complaint("teacher", f"of {num_classes} classes", teacher.output_shape[-1]))
    keras.utils.set_random_seed(seed)
    control = specialist_model(generalist, range(num_classes))
    parts = _Parts(control, trained)
    batches = _Batches(
        parts.inputs(examples.inputs, augmentation, features),
        labels,
        _SoftTargets(teacher, examples.inputs, augmentation, teacher_logits),
        [(np.arange(len(labels)), batch_size)],
        num_steps,
        seed,
    )
    _fit(parts.of_batches, batches, learning_rate, soft_target_weight, temperature, backup_dir)
    parts.thaw()
    return control


def frozen_features(generalist: keras.Model, inputs: Any, trained: str) -> Any:
    """What the layers that are not trained make of every example: an array, or several, `(num_items, …)`.

    Args:
        generalist: as `train` takes it.
        inputs: all examples'.
        trained: `"head"` or `"last_block"`; with `"all"` nothing is frozen, and the inputs come back.

    Example:
        >>> hidden = keras.layers.Dense(8, "relu", kernel_initializer="ones")
        >>> generalist = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3)])
        >>> frozen_features(generalist, np.ones((2, 4), "float32"), "head").tolist()[0]
        [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0]
    """
    return _Parts(specialist_model(generalist, range(generalist.output_shape[-1])), trained).features(inputs)


def dustbin_correction(share_in_data: float, special_share: float) -> float:
    """What to add to a dustbin's logit after training on batches with `special_share` special examples; nats.

    Example:
        >>> round(dustbin_correction(0.1, 0.5), 4)  # 9 of 10 items belong in the dustbin, in training 1 of 2 did
        2.1972
    """
    return math.log((1.0 - share_in_data) / (1.0 - special_share)) - math.log(share_in_data / special_share)


def collapse(logits: np.ndarray, class_set: Sequence[int]) -> np.ndarray:
    """A generalist's logits as those of a specialist: its classes, then the log of the sum over all others.

    Args:
        logits: `(num_items, num_classes)`.
        class_set: the specialist's classes.

    Returns:
        float32 `(num_items, len(class_set) + 1)`; its softmax sums the generalist's.

    Example:
        >>> np.exp(collapse(np.log([[0.5, 0.2, 0.3]]), [2])).round(3).tolist()
        [[0.3, 0.7]]
    """
    rest = np.delete(logits, list(class_set), axis=1)
    highest = rest.max(axis=1, keepdims=True)
    dustbin = highest + np.log(np.exp(rest - highest).sum(axis=1, keepdims=True))
    return np.concatenate([logits[:, list(class_set)], dustbin], axis=1)


def specialist_model(generalist: keras.Model, class_set: Sequence[int], dustbin: str = "sum") -> keras.Model:
    """A copy of the generalist with outputs for some of its classes, and a dustbin where they are not all.

    With the dustbin `"sum"` it says exactly what the generalist says, its other classes taken together. A `"unit"`
    starts from the mean of the others' columns, as often as they are.

    Raises:
        ValueError: the generalist is neither Functional nor Sequential, or does not end in a Dense layer.
    """
    check_choice("dustbin", dustbin, DUSTBINS)
    if not getattr(generalist, "inputs", None):
        remedy = "Build it with keras.Sequential or keras.Model(inputs, outputs)."
        raise ValueError(complaint("generalist", "Functional or Sequential", type(generalist).__name__, remedy))
    copy = keras.models.clone_model(generalist)
    copy.set_weights(generalist.get_weights())
    dense = [layer for layer in copy.layers if isinstance(layer, keras.layers.Dense)]
    num_classes = generalist.output_shape[-1]
    if not dense or dense[-1].units != num_classes:
        received = f"none in {generalist.name!r}" if not dense else f"one of {dense[-1].units} units"
        raise ValueError(complaint("the generalist's last Dense layer", f"of {num_classes} units", received))
    old = dense[-1]
    classes = list(class_set)
    rest = [label for label in range(num_classes) if label not in set(classes)]
    kernel = old.kernel.numpy()
    bias = old.bias.numpy() if old.use_bias else np.zeros(num_classes, "float32")
    kernels, biases = [kernel[:, classes]], [bias[classes]]
    if rest and dustbin == "sum":
        kernels.append(kernel[:, rest])
        biases.append(bias[rest])
    elif rest:
        kernels.append(kernel[:, rest].mean(axis=1, keepdims=True))
        biases.append(bias[rest].mean(keepdims=True) + np.log(len(rest)))
    head_weights = [np.concatenate(kernels, axis=1), np.concatenate(biases)]
    head = keras.layers.Dense(head_weights[1].size, dtype="float32", name=_HEAD)
    outputs = head(old.input)
    if rest and dustbin == "sum":
        others = ops.logsumexp(outputs[:, len(classes) :], axis=-1, keepdims=True)
        outputs = ops.concatenate([outputs[:, : len(classes)], others], axis=-1)
    # A Sequential has one input; a functional model's `_inputs_struct` keeps the caller's own nesting.
    inputs = getattr(copy, "_inputs_struct", copy.inputs[0])
    specialist = keras.Model(inputs, outputs, name=f"{generalist.name}_specialist")
    head.set_weights(head_weights)
    return specialist


_HEAD = "specialist_logits"


def _raise_dustbin(specialist: keras.Model, num_special: int, by: float) -> None:
    """Adds `by` to the dustbin's logit: to one unit's bias, or to those of all that it sums."""
    bias = specialist.get_layer(_HEAD).bias
    bias.assign(bias.numpy() + by * (np.arange(bias.shape[0]) >= num_special))


class _Parts:
    """A model as the part that is frozen and the part that is trained.

    Attributes:
        model: the whole.
        frozen: from the inputs to the tensors that cross into the trained part; `None` where all is trained.
        tail: from there to the outputs.
        of_batches: the model that batches are given to: `tail`, or the whole with the frozen part as it is in use.
    """

    def __init__(self, model: keras.Model, trained: str):
        self.model = self.tail = self.of_batches = model
        self.frozen: keras.Model | None = None
        layers = _frozen_layers(model, check_choice("trained", trained, TRAINED))
        self.flags = [(layer, layer.trainable) for layer in layers]
        if layers:
            crossing = _crossing(model.outputs, {id(layer) for layer in layers})
            crossing = crossing[0] if len(crossing) == 1 else crossing
            self.frozen = keras.Model(getattr(model, "_inputs_struct", model.inputs[0]), crossing)
            self.tail = keras.Model(crossing, model.outputs[0])

    def features(self, inputs: Any) -> Any:
        """What the frozen part makes of all examples."""
        return inputs if self.frozen is None else self.frozen.predict(inputs, batch_size=512, verbose=0)

    def inputs(self, inputs: Any, augmentation: Callable | None, features: Any) -> Any:
        """What batches are made of: features, or the inputs where each step sees others; decides `of_batches`."""
        if self.frozen is None:
            return inputs
        if augmentation is None:
            self.of_batches = self.tail
            return self.features(inputs) if features is None else features
        given = keras.tree.map_structure(
            lambda tensor: keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype), self.frozen._inputs_struct
        )
        self.frozen.trainable = False
        self.of_batches = keras.Model(given, self.tail(self.frozen(given, training=False)))
        return inputs

    def thaw(self) -> None:
        """Gives the frozen layers back their `trainable`."""
        for layer, trainable in self.flags:
            layer.trainable = trainable


def _crossing(outputs: Sequence[Any], frozen: set[int]) -> list[Any]:
    """The tensors that frozen layers hand to those that are trained."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = list(outputs)
    while waiting:
        tensor = waiting.pop()
        operation, node_index, _ = tensor._keras_history
        if id(operation) in frozen:
            found[id(tensor)] = tensor
        elif id(tensor) not in seen:
            seen.add(id(tensor))
            waiting += operation._inbound_nodes[node_index].input_tensors
    return list(found.values())


class _SoftTargets:
    """What the teacher says of a batch: looked up, or of the augmented inputs themselves."""

    def __init__(
        self,
        teacher: keras.Model,
        inputs: np.ndarray,
        augmentation: Callable | None,
        logits: np.ndarray | None,
        change: Callable[[np.ndarray], np.ndarray] = np.asarray,
    ):
        self.teacher, self.augmentation, self.change = logits_model(teacher), augmentation, change
        self.known: Any = None
        if augmentation is None:
            known = self.teacher.predict(inputs, batch_size=512, verbose=0) if logits is None else logits
            self.known = change(known)

    def batch(self, inputs: np.ndarray, ids: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray]:
        """The inputs as they are trained on, and the soft targets, `(batch, outputs)`."""
        if self.augmentation is None:
            return inputs, self.known[ids]
        inputs = np.asarray(self.augmentation(inputs, ids, np.full(len(ids), view)))
        return inputs, self.change(self.teacher.predict_on_batch(inputs))


class _Batches(keras.utils.PyDataset):
    """Batches of fixed shares of several groups of examples, each group in an order of its own, again and again."""

    def __init__(
        self,
        inputs: Any,
        labels: np.ndarray,
        soft_targets: _SoftTargets,
        groups: list[tuple[np.ndarray, int]],
        num_steps: int,
        seed: int,
    ):
        super().__init__()
        self.inputs, self.labels, self.soft_targets = inputs, labels, soft_targets
        self.num_steps, self.seed = check_count("num_steps", num_steps), seed
        self.positions = []
        for number, (group, share) in enumerate(groups):
            generator = np.random.default_rng([seed, number])
            num_rounds = math.ceil(num_steps * share / len(group))
            order = np.concatenate([generator.permutation(group) for _ in range(num_rounds)])
            self.positions.append(order[: num_steps * share].reshape(num_steps, share))

        self.first, self.last = 0, num_steps

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        step = self.first + index
        taken = np.concatenate([positions[step] for positions in self.positions])
        # No two steps of two seeds share a view, so that an item never comes twice in the same one.
        inputs = keras.tree.map_structure(lambda array: array[taken], self.inputs)
        inputs, soft_targets = self.soft_targets.batch(inputs, taken, self.seed * self.num_steps + step)
        return inputs, {"labels": self.labels[taken], "soft_targets": soft_targets}


def _fit(
    model: keras.Model,
    batches: _Batches,
    learning_rate: float,
    soft_target_weight: float,
    temperature: float,
    backup_dir: str | os.PathLike | None,
) -> None:
    check_positive("learning_rate", learning_rate)
    check_fraction("soft_target_weight", soft_target_weight)
    distiller = Distiller(None, model, SoftTargets(temperature), student_loss_weight=1.0 - soft_target_weight)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, batches.num_steps)
    distiller.compile(
        keras.optimizers.Adam(schedule), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    distiller.optimizer.build(distiller.trainable_variables)
    batches.first = _restore(distiller, backup_dir)
    # In parts, so that a killed training loses at most a tenth. Keras's own backups know whole epochs alone.
    part = max(1, math.ceil(batches.num_steps / 10))
    while batches.first < batches.num_steps:
        batches.last = min(batches.first + part, batches.num_steps)
        distiller.fit(batches, epochs=1, shuffle=False, verbose=0)
        batches.first = batches.last
        if backup_dir is not None and batches.last < batches.num_steps:
            _back_up(distiller, backup_dir, batches.last)
    if backup_dir is not None:
        shutil.rmtree(backup_dir, ignore_errors=True)


def _back_up(distiller: Distiller, backup_dir: str | os.PathLike, num_done: int) -> None:
    older = list(Path(backup_dir).glob("step-*"))
    with whole_folder(Path(backup_dir) / f"step-{num_done:07d}") as aside:
        save_state(distiller, aside)
    for folder in older:
        shutil.rmtree(folder, ignore_errors=True)


def _restore(distiller: Distiller, backup_dir: str | os.PathLike | None) -> int:
    """Brings back weights, optimizer and the random states of dropout; returns how many steps were done."""
    folders = [] if backup_dir is None else sorted(Path(backup_dir).glob("step-*"))
    if not folders:
        return 0
    restore_state(distiller, folders[-1])
    return int(folders[-1].name.removeprefix("step-"))


def _frozen_layers(model: keras.Model, trained: str) -> list[keras.layers.Layer]:
    hidden = [layer for layer in model.layers if layer.name != _HEAD]
    if trained == "all":
        return []
    if trained == "head":
        return hidden
    with_kernel = [place for place, layer in enumerate(hidden) if any(weight.ndim > 1 for weight in layer.weights)]
    return hidden[: with_kernel[-1]] if with_kernel else []
