"""Training one specialist: half special examples, half others, and a dustbin for the classes it does not tell apart.

Every specialist is trained alone, from files alone: any number of processes may train one each.
"""

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import keras
import numpy as np

from keras_distill._checks import (
    check_choice,
    check_count,
    check_fraction,
    check_labels,
    check_positive,
    complaint,
)
from keras_distill._files import whole_file
from keras_distill.distiller import Distiller
from keras_distill.logits import logits_model
from keras_distill.losses import SoftTargets
from keras_distill.specialists.combiner import check_class_sets

TRAINED = ("head", "last_block", "all")


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
    generalist_logits: np.ndarray | None = None,
    seed: int = 0,
    backup_dir: str | os.PathLike | None = None,
) -> keras.Model:
    """Trains the specialist of one set of classes.

    It starts from the generalist's weights. Half of each batch are examples of its classes, half are others, whose
    label is the dustbin. So few special examples overfit: the generalist's predictions, its other classes summed
    into the dustbin, are soft targets beside the labels (section 6.1). The dustbin's share in training is not its
    share in the world; afterwards its bias is corrected by

        log( (1 − share in the data) / (1 − special_share) ) − log( share in the data / special_share )

    Args:
        generalist: a Functional or Sequential model that ends in a Dense layer, with or without an activation.
        class_set: the specialist's classes, in the order of its outputs.
        examples: `inputs` and integer `labels` of all classes.
        trained: what is trained beside the new head: `"head"` nothing, `"last_block"` the last hidden layer
            with a kernel and what follows it, `"all"`.
        num_steps: updates.
        batch_size: items a step.
        learning_rate: Adam's, with cosine decay to zero.
        special_share: the share of special examples in a batch, in (0, 1).
        soft_target_weight: how much the soft targets count beside the labels, in [0, 1]; 0 is labels alone.
        temperature: of the soft targets.
        generalist_logits: `(num_items, num_classes)`, if they are already there.
        seed: of the batches and of the layers that draw.
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
    check_fraction("special_share", check_positive("special_share", special_share))
    position = np.full(num_classes, len(classes))
    position[classes] = np.arange(len(classes))
    special_labels = position[labels]
    special, others = (np.flatnonzero(mask) for mask in (special_labels < len(classes), special_labels == len(classes)))
    if not len(special) or not len(others):
        expected = "examples both inside and outside of the specialist's classes"
        raise ValueError(complaint("examples", expected, f"{len(special)} inside, {len(others)} outside"))
    correction = dustbin_correction(len(special) / len(labels), special_share)

    keras.utils.set_random_seed(seed)
    specialist = specialist_model(generalist, classes)
    if generalist_logits is None:
        generalist_logits = logits_model(generalist).predict(examples.inputs, batch_size=512, verbose=0)
    soft_targets = collapse(generalist_logits, classes)
    # In training the dustbin is as rare as the batches make it; so are its soft targets.
    soft_targets[:, -1] -= correction
    num_special = min(max(1, round(special_share * batch_size)), batch_size - 1)
    batches = _Batches(
        examples.inputs,
        {"labels": special_labels, "soft_targets": soft_targets},
        [(special, num_special), (others, batch_size - num_special)],
        num_steps,
        seed,
    )
    _fit(specialist, batches, trained, learning_rate, soft_target_weight, temperature, backup_dir)
    bias = specialist.get_layer(_HEAD).bias
    bias.assign(bias.numpy() + np.eye(len(classes) + 1)[-1] * correction)
    return specialist


def train_control(
    generalist: keras.Model,
    examples: Examples,
    *,
    trained: str = "all",
    num_steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 3e-4,
    soft_target_weight: float = 0.5,
    temperature: float = 2.0,
    generalist_logits: np.ndarray | None = None,
    seed: int = 0,
    backup_dir: str | os.PathLike | None = None,
) -> keras.Model:
    """The control of the experiment: the generalist itself, trained on, on all classes, by the same recipe.

    What specialists gain over the generalist may be no more than what some more training gains; this says so.

    Args: as those of `train`.

    Returns:
        A plain Keras model with the generalist's classes, logits.
    """
    num_classes = generalist.output_shape[-1]
    labels = check_labels("labels", examples.labels, num_classes)
    keras.utils.set_random_seed(seed)
    control = specialist_model(generalist, range(num_classes))
    if generalist_logits is None:
        generalist_logits = logits_model(generalist).predict(examples.inputs, batch_size=512, verbose=0)
    batches = _Batches(
        examples.inputs,
        {"labels": labels, "soft_targets": generalist_logits},
        [(np.arange(len(labels)), batch_size)],
        num_steps,
        seed,
    )
    _fit(control, batches, trained, learning_rate, soft_target_weight, temperature, backup_dir)
    return control


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


def specialist_model(generalist: keras.Model, class_set: Sequence[int]) -> keras.Model:
    """A copy of the generalist with a head for some of its classes, and a dustbin where they are not all.

    The head starts from the generalist's own columns; the dustbin from the mean of the others, as often as they are.

    Raises:
        ValueError: the generalist is neither Functional nor Sequential, or does not end in a Dense layer.
    """
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
    head = keras.layers.Dense(len(classes) + bool(rest), dtype="float32", name=_HEAD)
    # A Sequential has one input; a functional model's `_inputs_struct` keeps the caller's own nesting.
    inputs = getattr(copy, "_inputs_struct", copy.inputs[0])
    specialist = keras.Model(inputs, head(old.input), name=f"{generalist.name}_specialist")
    kernel = old.kernel.numpy()
    bias = old.bias.numpy() if old.use_bias else np.zeros(num_classes, "float32")
    kernels, biases = [kernel[:, classes]], [bias[classes]]
    if rest:
        kernels.append(kernel[:, rest].mean(axis=1, keepdims=True))
        biases.append(bias[rest].mean(keepdims=True) + np.log(len(rest)))
    head.set_weights([np.concatenate(kernels, axis=1), np.concatenate(biases)])
    return specialist


_HEAD = "specialist_logits"


class _Batches(keras.utils.PyDataset):
    """Batches of fixed shares of several groups of examples, each group in an order of its own, again and again."""

    def __init__(
        self,
        inputs: np.ndarray,
        targets: dict[str, np.ndarray],
        groups: list[tuple[np.ndarray, int]],
        num_steps: int,
        seed: int,
    ):
        super().__init__()
        self.inputs, self.targets, self.num_steps = inputs, targets, check_count("num_steps", num_steps)
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
        taken = np.concatenate([positions[self.first + index] for positions in self.positions])
        return self.inputs[taken], {name: values[taken] for name, values in self.targets.items()}


def _fit(
    model: keras.Model,
    batches: _Batches,
    trained: str,
    learning_rate: float,
    soft_target_weight: float,
    temperature: float,
    backup_dir: str | os.PathLike | None,
) -> None:
    check_choice("trained", trained, TRAINED)
    check_positive("learning_rate", learning_rate)
    check_fraction("soft_target_weight", soft_target_weight)
    frozen = _frozen_layers(model, trained)
    for layer in frozen:
        layer.trainable = False
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
    for layer in frozen:
        layer.trainable = True


def _back_up(distiller: Distiller, backup_dir: str | os.PathLike, num_done: int) -> None:
    older = list(Path(backup_dir).glob("step-*.weights.h5"))
    with whole_file(Path(backup_dir) / f"step-{num_done:07d}.weights.h5") as aside:
        distiller.save_weights(aside)
    for file in older:
        file.unlink()


def _restore(distiller: Distiller, backup_dir: str | os.PathLike | None) -> int:
    """Brings back weights and optimizer; returns how many steps were done."""
    files = [] if backup_dir is None else sorted(Path(backup_dir).glob("step-*.weights.h5"))
    if not files:
        return 0
    distiller.load_weights(files[-1])
    return int(files[-1].name.removeprefix("step-").removesuffix(".weights.h5"))


def _frozen_layers(model: keras.Model, trained: str) -> list[keras.layers.Layer]:
    hidden = [layer for layer in model.layers if layer.name != _HEAD]
    if trained == "all":
        return []
    if trained == "head":
        return hidden
    with_kernel = [place for place, layer in enumerate(hidden) if any(weight.ndim > 1 for weight in layer.weights)]
    return hidden[: with_kernel[-1]] if with_kernel else []
