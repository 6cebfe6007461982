"""`keras-distill label --folds`: the teachers of the folds, trained anew or made by a function that the user names."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from keras_distill.cli import model_file

if TYPE_CHECKING:
    import keras
    import numpy as np

    from keras_distill._types import Inputs
    from keras_distill.data import Dataset

_BATCH_SIZE = 128
_LEARNING_RATE = 1e-3


def add_fold_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the switches that `check` and `maker_of` read, but for `--seed`."""
    add = parser.add_argument
    add("--folds", type=int, metavar="N", help="label each of N folds by a teacher that was trained on the others")
    add("--make-teacher", metavar="MODULE:FUNCTION", help="with --folds, what trains them: function(inputs, labels, "
        "fold) (default: the architecture of --teacher, trained anew)")  # fmt: skip
    add("--epochs", type=int, help="of a teacher that is trained anew (default: as many as make 4,000 steps, 20 to "
        "1,000)")  # fmt: skip
    add("--learning-rate", type=float, help="of a teacher that is trained anew: Adam's, with cosine decay to zero "
        "(default: 0.001)")  # fmt: skip


def check(arguments: argparse.Namespace) -> None:
    """Raises `ValueError` where options do not go together or are out of range."""
    from keras_distill._checks import check_count, check_positive, error_message

    if arguments.folds is None and arguments.make_teacher:
        raise ValueError(error_message("--make-teacher must be given with --folds", "no --folds", "Add --folds 5."))
    if bool(arguments.teacher) == bool(arguments.make_teacher):
        received = "both" if arguments.teacher else "none"
        expectation = "one of --teacher and, with --folds, --make-teacher must be given"
        raise ValueError(error_message(expectation, received))
    if arguments.folds is not None:
        check_count("--folds", arguments.folds, 2, remedy="5 is usual.")
        if arguments.engine != "local" or arguments.workers not in (None, 1):
            received = f"--engine {arguments.engine}" if arguments.workers is None else f"--workers {arguments.workers}"
            remedy = "Start the processes yourself, with --process 0/2 and --process 1/2."
            raise ValueError(error_message("--folds must be given without --engine and --workers", received, remedy))
    for name, value in (("--epochs", arguments.epochs), ("--learning-rate", arguments.learning_rate)):
        if value is not None and arguments.folds is None:
            remedy = "It is of teachers that are trained anew: add --folds 5, or leave it out."
            raise ValueError(error_message(f"{name} must be given with --folds", "no --folds", remedy))
    if arguments.epochs is not None:
        check_count("--epochs", arguments.epochs)
    if arguments.learning_rate is not None:
        check_positive("--learning-rate", arguments.learning_rate, "Adam is used to 1e-3.")


def maker_of(arguments: argparse.Namespace, dataset: "Dataset") -> Callable:
    """What makes the teacher of a fold out of the inputs and labels of the others.

    Raises:
        ValueError: no such function; several teachers, or one that cannot be trained anew.
    """
    import keras

    from keras_distill._checks import error_message
    from keras_distill.teachers.function import named_object

    if arguments.make_teacher:
        # As with `python -m`, modules of the current folder are found.
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        for module in arguments.modules:
            import_module(module)
        found = named_object(arguments.make_teacher)
        if not callable(found):
            expectation = f"{arguments.make_teacher} must be a function (inputs, labels, fold)"
            raise ValueError(error_message(expectation, f"a {type(found).__name__}"))
        return found
    remedy = "Name a function that trains yours with --make-teacher MODULE:FUNCTION."
    expectation = "--folds trains the teacher anew, which must be one Keras model"
    if len(arguments.teacher) > 1:
        raise ValueError(error_message(expectation, f"{len(arguments.teacher)} teachers", remedy))
    teacher = model_file.load_teacher(arguments.teacher[0], arguments, dataset)
    if not isinstance(teacher, keras.Model):
        raise ValueError(error_message(expectation, repr(teacher), remedy))
    return Anew(teacher, arguments.epochs, arguments.learning_rate or _LEARNING_RATE, arguments.seed)


class Anew:
    """A model's architecture, trained from fresh weights on some items and their labels.

    What is frozen in it keeps its weights, as an encoder that never saw these items does, and so do the means that a
    `Normalization` was adapted to.

    Args:
        teacher: the model; it is not changed.
        epochs: how many; `None` as many as `distill` makes of so many items.
        learning_rate: of Adam, which falls to zero by a cosine.
        seed: of the weights, the order of the items and dropout, with the fold's number.

    Attributes:
        fingerprint: what a run that goes on is compared by.
    """

    def __init__(self, teacher: "keras.Model", epochs: int | None, learning_rate: float, seed: int):
        from keras_distill._checks import error_message
        from keras_distill.targets.fingerprints import fingerprint

        if not teacher.trainable_weights:
            remedy = "Save it with teacher.trainable = True; its weights are drawn anew."
            raise ValueError(error_message("a teacher that is trained anew must have weights to train", "none", remedy))
        self.teacher, self.epochs, self.learning_rate, self.seed = teacher, epochs, learning_rate, seed
        length = "as many epochs as distill makes" if epochs is None else f"{epochs} epochs"
        self.fingerprint = f"{fingerprint(teacher)} anew, {length} at {learning_rate:g}, seed {seed}"

    def __call__(self, inputs: "Inputs", labels: "np.ndarray", fold: int) -> "keras.Model":
        """The teacher that has not seen a fold."""
        import keras

        from keras_distill._keras_internals import all_layers
        from keras_distill.cli.evaluation import label_loss
        from keras_distill.distillation.training_length import default_epochs

        keras.utils.set_random_seed(1000 * self.seed + fold)
        fresh = keras.models.clone_model(self.teacher)
        for old, new in zip(all_layers(self.teacher), all_layers(fresh), strict=True):
            if not old.trainable or isinstance(old, keras.layers.Normalization):
                new.set_weights(old.get_weights())
        epochs = self.epochs or default_epochs(len(labels), _BATCH_SIZE)
        schedule = keras.optimizers.schedules.CosineDecay(self.learning_rate, epochs * -(-len(labels) // _BATCH_SIZE))
        fresh.compile(keras.optimizers.Adam(schedule), label_loss(fresh))
        fresh.fit(inputs, labels, batch_size=_BATCH_SIZE, epochs=epochs, verbose=0)
        return fresh
