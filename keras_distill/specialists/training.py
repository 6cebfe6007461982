"""Training one specialist: half special examples, half others, and a dustbin for the classes it does not tell apart.

Every specialist is trained alone, from files alone: any number of processes may train one each.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from keras_distill._checks import (
    check_count,
    check_fraction,
    check_labels,
    check_positive,
    error_message,
)
from keras_distill._types import TensorTree
from keras_distill.backup import Backup
from keras_distill.distillation.distiller import Distiller
from keras_distill.losses import SoftTargets
from keras_distill.models.forward_pass import logits_model
from keras_distill.specialists.frozen import TrainedPart
from keras_distill.specialists.merge import check_class_sets
from keras_distill.specialists.specialist import collapse, dustbin_correction, raise_dustbin, specialist_model

# How often a training keeps its state: one that is killed loses at most a tenth.
_NUM_BACKUPS = 10


class Examples(Protocol):
    """Inputs and labels in memory, as `keras_distill.data.Split` holds them."""

    @property
    def inputs(self) -> TensorTree:
        """All examples', `(num_items, …)`, or a dict of such."""

    @property
    def labels(self) -> np.ndarray:
        """Their classes, integers `(num_items,)`."""


def train(
    generalist: keras.Model,
    class_set: Sequence[int],
    dataset: Examples,
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
    features: TensorTree = None,
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
        dataset: `inputs` and integer `labels` of all classes.
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
    labels = check_labels("labels", dataset.labels, num_classes)
    [classes] = check_class_sets([class_set], num_classes)
    if not check_positive("special_share", special_share) < 1.0:
        raise ValueError(
            error_message("special_share must be < 1", special_share, "A dustbin is learned from other examples.")
        )
    position = np.full(num_classes, len(classes))
    position[classes] = np.arange(len(classes))
    special_labels = position[labels]
    special, others = (np.flatnonzero(mask) for mask in (special_labels < len(classes), special_labels == len(classes)))
    if not len(special) or not len(others):
        expected = "have examples both inside and outside of the specialist's classes"
        raise ValueError(error_message(f"the dataset must {expected}", f"{len(special)} inside, {len(others)} outside"))
    correction = dustbin_correction(len(special) / len(labels), special_share)

    keras.utils.set_random_seed(seed)
    specialist = specialist_model(generalist, classes, dustbin)

    def as_rare_as_in_training(logits: np.ndarray) -> np.ndarray:
        return collapse(logits, classes) - correction * np.eye(len(classes) + 1, dtype="float32")[-1]

    num_special = min(max(1, round(special_share * batch_size)), batch_size - 1)
    parts = TrainedPart(specialist, trained)
    batches = _Batches(
        parts.inputs(dataset.inputs, augmentation, features),
        special_labels,
        _SoftTargets(generalist, dataset.inputs, augmentation, generalist_logits, as_rare_as_in_training),
        [(special, num_special), (others, batch_size - num_special)],
        num_steps,
        seed,
    )
    raise_dustbin(specialist, len(classes), -correction)
    _fit(parts.of_batches, batches, learning_rate, soft_target_weight, temperature, backup_dir)
    parts.thaw()
    raise_dustbin(specialist, len(classes), correction)
    return specialist


def train_control(
    generalist: keras.Model,
    dataset: Examples,
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
    features: TensorTree = None,
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
    labels = check_labels("labels", dataset.labels, num_classes)
    teacher = generalist if teacher is None else teacher
    if teacher.output_shape[-1] != num_classes:
        raise ValueError(error_message(f"teacher must have {num_classes} classes", teacher.output_shape[-1]))
    keras.utils.set_random_seed(seed)
    control = specialist_model(generalist, range(num_classes))
    parts = TrainedPart(control, trained)
    batches = _Batches(
        parts.inputs(dataset.inputs, augmentation, features),
        labels,
        _SoftTargets(teacher, dataset.inputs, augmentation, teacher_logits),
        [(np.arange(len(labels)), batch_size)],
        num_steps,
        seed,
    )
    _fit(parts.of_batches, batches, learning_rate, soft_target_weight, temperature, backup_dir)
    parts.thaw()
    return control


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
        inputs: TensorTree,
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

        # Epoch by epoch so many of the steps, from the first one on.
        self.first, self.steps, self.epoch = 0, num_steps, 0

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        step = self.first + self.epoch * self.steps + index
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
    # A backup after every tenth of the training; what does not divide by ten comes first, and is too little for one.
    num_parts = min(_NUM_BACKUPS, batches.num_steps)
    for first, num_epochs, steps in (
        (0, 1, batches.num_steps % num_parts),
        (batches.num_steps % num_parts, num_parts, batches.num_steps // num_parts),
    ):
        if not steps:
            continue
        batches.first, batches.steps = first, steps
        # Keras has an epoch more to end than it trains, since it looks at a first batch: what counts is its own number.
        count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(batches, "epoch", epoch))
        backups = [] if backup_dir is None or num_epochs == 1 else [Backup(backup_dir)]
        distiller.fit(batches, epochs=num_epochs, shuffle=False, verbose=0, callbacks=[count, *backups])
