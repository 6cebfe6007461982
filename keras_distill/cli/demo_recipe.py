"""The demo's training recipes, in the form in which a reader would copy them: plain `fit` on in-memory arrays.

`docs/demo.md` describes them; what the command itself chooses, it chooses on validation data.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_distill._types import TensorTree
from keras_distill.data.dataset import Dataset, stratified_positions

if TYPE_CHECKING:
    import keras

    from keras_distill.teachers import Ensemble


@dataclass(frozen=True)
class Recipe:
    """How the demo trains its teacher and its students.

    Attributes:
        teacher_widths: filters of each of a member's convolutions.
        teacher_dense_width: units of a member's dense layer.
        num_members: how many ConvNets the teacher averages.
        teacher_dropout: share of the dense layer's inputs and outputs that a member's training drops.
        teacher_epochs: passes over the jittered training set, a member.
        teacher_batch_size: examples a step.
        teacher_learning_rate: Adam's, with cosine decay to zero.
        jitter: largest random shift of an image, as a share of its side.
        student_share: share of the training examples that both students see, in (0, 1].
        student_widths: filters of each of the student's convolutions.
        student_dense_width: units of the student's dense layer.
        student_epochs: passes over those examples, unshifted, for both students.
        student_batch_size: examples a step.
        student_learning_rate: Adam's, with cosine decay to zero.
        temperature: of the soft targets.
        student_loss_weight: of the hard labels, in [0, 1]; the soft targets have the rest.
    """

    teacher_widths: tuple[int, ...]
    teacher_dense_width: int
    num_members: int
    teacher_dropout: float
    teacher_epochs: int
    teacher_batch_size: int
    teacher_learning_rate: float
    jitter: float
    student_share: float
    student_widths: tuple[int, ...]
    student_dense_width: int
    student_epochs: int
    student_batch_size: int
    student_learning_rate: float
    temperature: float
    student_loss_weight: float


RECIPES = {
    "digits": Recipe(
        teacher_widths=(32, 64),
        teacher_dense_width=128,
        num_members=4,
        teacher_dropout=0.4,
        teacher_epochs=40,
        teacher_batch_size=32,
        teacher_learning_rate=2e-3,
        jitter=0.125,
        student_share=1.0,
        student_widths=(8, 16),
        student_dense_width=32,
        student_epochs=60,
        student_batch_size=32,
        student_learning_rate=3e-3,
        temperature=5.0,
        student_loss_weight=0.1,
    ),
    # The students see a tenth of the examples, as in section 6 of the paper: where they see all of MNIST, so
    # small a net is limited by its size, and no teacher can help it.
    "mnist": Recipe(
        teacher_widths=(32, 64),
        teacher_dense_width=128,
        num_members=2,
        teacher_dropout=0.25,
        teacher_epochs=6,
        teacher_batch_size=256,
        teacher_learning_rate=2e-3,
        jitter=0.08,
        student_share=0.1,
        student_widths=(8, 16),
        student_dense_width=32,
        student_epochs=20,
        student_batch_size=64,
        student_learning_rate=2e-3,
        temperature=5.0,
        student_loss_weight=0.1,
    ),
}


def quick(recipe: Recipe) -> Recipe:
    """The same recipe with two members and two epochs: tries the machinery, proves nothing."""
    return replace(recipe, num_members=2, teacher_epochs=2, student_epochs=2)


def train_teacher(dataset: Dataset, recipe: Recipe, advance: Callable[[], None]) -> "Ensemble":
    """Trains the teacher: ConvNets of different seeds on jittered images, with dropout, averaged.

    Args:
        dataset: only its `train` split is read.
        recipe: how.
        advance: called after every epoch.
    """
    import keras

    from keras_distill.data import networks
    from keras_distill.teachers import Ensemble

    train, members = dataset.train, []
    for seed in range(recipe.num_members):
        keras.utils.set_random_seed(1000 + seed)
        member = networks.convnet(
            dataset.input_shape,
            dataset.num_classes,
            recipe.teacher_widths,
            dropout=recipe.teacher_dropout,
            dense_width=recipe.teacher_dense_width,
        )
        # Only training shifts the images; the member that joins the ensemble has no such layer.
        images = keras.Input(dataset.input_shape)
        jitter = keras.layers.RandomTranslation(recipe.jitter, recipe.jitter, fill_mode="constant")
        jittered = keras.Model(images, member(jitter(images)))
        compile_for(
            jittered, recipe.teacher_learning_rate, steps(train, recipe.teacher_epochs, recipe.teacher_batch_size)
        )
        jittered.fit(
            train.inputs,
            train.labels,
            batch_size=recipe.teacher_batch_size,
            epochs=recipe.teacher_epochs,
            callbacks=[after_epoch(advance)],
            verbose=0,
        )
        members.append(member)
    return Ensemble(members, name="teacher")


def transfer_set(dataset: Dataset, recipe: Recipe) -> Dataset:
    """The dataset as the students see it: `student_share` of its training examples, each class in proportion."""
    num_seen = round(recipe.student_share * len(dataset.train))
    if num_seen == len(dataset.train):
        return dataset
    return replace(dataset, train=dataset.train.take(stratified_positions(dataset.train.labels, num_seen)))


def new_student(dataset: Dataset, recipe: Recipe, seed: int) -> "keras.Model":
    """The student before training; the same weights for the same seed."""
    import keras

    from keras_distill.data import networks

    keras.utils.set_random_seed(seed)
    return networks.convnet(
        dataset.input_shape,
        dataset.num_classes,
        recipe.student_widths,
        dense_width=recipe.student_dense_width,
        name="student",
    )


def train_on_labels(dataset: Dataset, recipe: Recipe, seed: int, advance: Callable[[], None]) -> "keras.Model":
    """Trains the student on hard labels alone: the twin that the distilled one is compared with."""
    train, student = dataset.train, new_student(dataset, recipe, seed)
    compile_for(student, recipe.student_learning_rate, steps(train, recipe.student_epochs, recipe.student_batch_size))
    student.fit(
        train.inputs,
        train.labels,
        batch_size=recipe.student_batch_size,
        epochs=recipe.student_epochs,
        callbacks=[after_epoch(advance)],
        verbose=0,
    )
    return student


def distil(
    dataset: Dataset, soft_targets: TensorTree, recipe: Recipe, seed: int, advance: Callable[[], None]
) -> "keras.Model":
    """Trains the same student on the same examples, for as many steps, on what the teacher says of them."""
    from keras_distill.distillation.distiller import Distiller
    from keras_distill.losses import SoftTargets

    train, student = dataset.train, new_student(dataset, recipe, seed)
    distiller = Distiller(
        # The teacher answered once, before; a batch brings its soft targets along.
        teacher=None,
        student=student,
        distillation_losses=SoftTargets(temperature=recipe.temperature),
        student_loss_weight=recipe.student_loss_weight,
    )
    compile_for(distiller, recipe.student_learning_rate, steps(train, recipe.student_epochs, recipe.student_batch_size))
    distiller.fit(
        train.inputs,
        {"labels": train.labels, "soft_targets": soft_targets},
        batch_size=recipe.student_batch_size,
        epochs=recipe.student_epochs,
        callbacks=[after_epoch(advance)],
        verbose=0,
    )
    return student


def soft_targets_of(teacher: "Ensemble", inputs: np.ndarray) -> Any:
    """What the teacher says of every input at every temperature, as NumPy arrays; see `Ensemble.soft_targets`."""
    return in_batches(teacher.soft_targets, inputs)


def in_batches(answer: Callable[[np.ndarray], Any], inputs: np.ndarray, batch_size: int = 1000) -> Any:
    """Calls `answer` on a thousand inputs at a time and joins what it gives, an array or a dictionary of them."""
    import keras

    batches = [answer(inputs[start : start + batch_size]) for start in range(0, len(inputs), batch_size)]
    return keras.tree.map_structure(
        lambda *parts: np.concatenate([keras.ops.convert_to_numpy(part) for part in parts]), *batches
    )


def compile_for(model: "keras.Model", learning_rate: float, num_steps: int) -> None:
    """Compiles with Adam, whose rate falls to zero along a cosine, and cross-entropy on logits."""
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Several steps a call: the networks are so small that Python would take most of the time.
    model.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=8)


def steps(split: Any, epochs: int, batch_size: int) -> int:
    """How many steps a `fit` takes."""
    return epochs * -(-len(split) // batch_size)


def after_epoch(advance: Callable[[], None]) -> "keras.callbacks.Callback":
    """A callback that calls `advance` after every epoch."""
    import keras

    return keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: advance())
