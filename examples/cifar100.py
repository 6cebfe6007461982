"""CIFAR-100 by the protocol that the field compares methods on: WRN-40-2 teaches WRN-16-2.

    KERAS_BACKEND=jax python -m examples.cifar100            # --quick: 8 × 8 digits, a minute

240 epochs of all 50,000 training images, batches of 64, SGD at 0.05 with momentum 0.9 and weight decay 5e-4, a tenth
of the rate from epochs 150, 180 and 210 on; images cropped after a border of four pixels, and flipped; T = 4. Nothing
is chosen, so nothing is validated: test accuracy of the last epoch. Images lie on the device; a step takes their row
numbers and draws, and crops and flips them in the compiled step.

An accelerator is needed: the first thing that a run prints is its estimate, from a few timed steps. `--epochs 24` is
the same schedule, shortened. `--minutes 8` stops at the end of an epoch; the same command goes on. `--jobs 3` trains
three models side by side (on one GPU with XLA_PYTHON_CLIENT_PREALLOCATE=false).
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import keras_distill as kd
from examples import record
from examples.jobs import Job, run_phases

COMMAND = "KERAS_BACKEND=jax python -m examples.cifar100"
# Of each epoch, as shares of the training: 150, 180 and 210 of 240.
MILESTONES = (0.625, 0.75, 0.875)
TEMPERATURE = 4.0
# What is published, and what is aimed at.
GOALS: dict[str, tuple[str | None, str | None, Callable[[dict[str, Any]], bool] | None]] = {
    "teacher": ("75.61", None, None),
    "labels": ("73.26", None, None),
    "kd": ("74.92", "within 0.3 of 74.92", lambda ours: abs(ours["mean"] - 74.92) <= 0.3),
    "dkd": ("76.23", "one method ≥ 76.6", lambda ours: ours["mean"] >= 76.6),
    "standardised": (None, "one method ≥ 76.6", lambda ours: ours["mean"] >= 76.6),
    "refined": (None, "one method ≥ 76.6", lambda ours: ours["mean"] >= 76.6),
}
NAMES = {
    "teacher": "teacher, WRN-40-2",
    "labels": "WRN-16-2 on labels",
    "kd": "… soft targets, T = 4 (Hinton et al.)",
    "dkd": "… DKD, α = 1, β = 8 (Zhao et al., 2203.08679)",
    "standardised": "… soft targets of standardised logits (Sun et al., 2403.01427)",
    "refined": "… RLD (Sun et al., 2408.07703)",
}


@dataclass(frozen=True)
class Recipe:
    """What is trained, and for how long."""

    data: str = "cifar100"
    epochs: int = 240
    batch_size: int = 64
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    padding: int = 4
    flip: bool = True
    width: int = 2
    teacher_depth: int = 40
    student_depth: int = 16


QUICK = Recipe(
    data="digits", epochs=4, padding=1, flip=False, width=1, teacher_depth=16, student_depth=10, learning_rate=0.02
)


class Images(layers.Layer):
    """Images that lie on the device, cropped and flipped there.

    Args:
        pixels: uint8 `(num_items, height, width, channels)`.
        padding: of the black border before an image is cropped to its own size.
    """

    def __init__(self, pixels: np.ndarray, padding: int):
        super().__init__(trainable=False, dtype="float32", name="images")
        self.padding, self.size = padding, pixels.shape[1]
        self.pixels = self.add_weight(
            shape=pixels.shape, dtype="uint8", initializer=lambda *_, **__: ops.convert_to_tensor(pixels), name="pixels"
        )

    def call(self, row: Any, corner: Any, flip: Any) -> Any:
        """Rows `(batch,)`, top left corners in the bordered image `(batch, 2)` and flips `(batch,)`, 0 or 1."""
        images = ops.take(self.pixels.value, row, axis=0)
        border = (self.padding, self.padding)
        images = ops.cast(ops.pad(images, ((0, 0), border, border, (0, 0))), "float32")
        places = ops.arange(self.size)
        down = corner[:, :1] + places
        across = corner[:, 1:] + ops.where(ops.expand_dims(flip, -1) > 0, self.size - 1 - places, places)
        images = ops.take_along_axis(images, down[:, :, None, None], axis=1)
        return ops.take_along_axis(images, across[:, None, :, None], axis=2)

    def save_own_variables(self, store: Any) -> None:
        """A backup need not hold the data."""

    def load_own_variables(self, store: Any) -> None:
        """Nor bring it back."""


class Draws(keras.utils.PyDataset):
    """Row numbers, corners and flips in the order of an epoch: the same whenever that epoch is trained.

    Attributes:
        epoch: which one; it goes on with the training, also where that was begun again.
    """

    def __init__(self, labels: np.ndarray, recipe: Recipe, seed: int):
        super().__init__()
        self.labels, self.recipe, self.seed, self.epoch = labels, recipe, seed, 0
        self._drawn: tuple[int, dict[str, np.ndarray]] | None = None

    def __len__(self) -> int:
        return len(self.labels) // self.recipe.batch_size

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        if self._drawn is None or self._drawn[0] != self.epoch:
            generator = np.random.default_rng((self.seed, self.epoch))
            count = len(self.labels)
            drawn = {
                "row": generator.permutation(count).astype("int32"),
                "corner": generator.integers(0, 2 * self.recipe.padding + 1, (count, 2)).astype("int32"),
                "flip": generator.integers(0, 1 + self.recipe.flip, count).astype("int32"),
            }
            self._drawn = self.epoch, drawn
        batch = slice(index * self.recipe.batch_size, (index + 1) * self.recipe.batch_size)
        inputs = {name: array[batch] for name, array in self._drawn[1].items()}
        return inputs, self.labels[inputs["row"]]

    def on_epoch_end(self) -> None:
        """The next epoch has an order of its own."""
        self.epoch += 1


def wide_resnet(input_shape: tuple[int, ...], num_classes: int, depth: int, width: int, decay: float) -> keras.Model:
    """WRN-depth-width of pixels in [0, 255]: three stages of 16, 32 and 64 times `width` channels, logits.

    The decay is PyTorch's, in the gradient and so in the momentum, of all weights; as a penalty it is half of it.

    Reference:
        Zagoruyko and Komodakis, arXiv:1605.07146, table 1.
    """
    penalty = keras.regularizers.L2(decay / 2)

    def normalised(x: Any) -> Any:
        norm = layers.BatchNormalization(
            momentum=0.9, epsilon=1e-5, beta_regularizer=penalty, gamma_regularizer=penalty
        )
        return layers.ReLU()(norm(x))

    def convolved(x: Any, filters: int, size: int = 3, strides: int = 1) -> Any:
        options = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
        return layers.Conv2D(filters, size, strides, kernel_regularizer=penalty, **options)(x)

    inputs = keras.Input(input_shape)
    x = convolved(layers.Rescaling(1 / 64.0, -2.0)(inputs), 16)
    for stage in range(3):
        filters = 16 * 2**stage * width
        for block in range((depth - 4) // 6):
            strides = 2 if stage and not block else 1
            before = normalised(x)
            is_new_shape = strides > 1 or x.shape[-1] != filters
            shortcut = convolved(before, filters, 1, strides) if is_new_shape else x
            x = convolved(normalised(convolved(before, filters, 3, strides)), filters)
            x = layers.Add()([x, shortcut])
    x = layers.GlobalAveragePooling2D()(normalised(x))
    x = layers.Dense(num_classes, kernel_regularizer=penalty, bias_regularizer=penalty)(x)
    return keras.Model(inputs, x, name=f"wrn_{depth}_{width}")


def on_device(network: keras.Model, images: Images, name: str) -> keras.Model:
    """The network behind the images: its inputs are rows, corners and flips."""
    inputs = {
        "row": keras.Input((), dtype="int32", name="row"),
        "corner": keras.Input((2,), dtype="int32", name="corner"),
        "flip": keras.Input((), dtype="int32", name="flip"),
    }
    return keras.Model(inputs, network(images(**inputs)), name=name)


def loaded(recipe: Recipe) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All images to train on and their labels, the test images and theirs; pixels uint8."""
    dataset = kd.data.load(recipe.data)
    train = [np.concatenate([getattr(dataset.train, key), getattr(dataset.validation, key)])
             for key in ("inputs", "labels")]  # fmt: skip
    pixels, test = (np.round(255.0 * images).astype("uint8") for images in (train[0], dataset.test.inputs))
    return pixels, train[1], test, dataset.test.labels


def compiled(network: keras.Model, recipe: Recipe, num_steps: int, **options: Any) -> dict[str, Any]:
    """Arguments of `compile`: SGD, a tenth of the rate at each milestone."""
    boundaries = [round(share * num_steps) for share in MILESTONES]
    rates = [recipe.learning_rate * 0.1**power for power in range(4)]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return {"optimizer": keras.optimizers.SGD(schedule, momentum=0.9), "loss": loss} | options


def distiller_of(
    method: str, teacher: keras.Model, student: keras.Model, recipe: Recipe
) -> tuple[keras.Model, dict[str, Any]]:
    """A `Distiller` by the papers' own weights, and what `compile` needs beside the optimizer."""
    warm_up = recipe.epochs / 12
    if method == "kd":
        return kd.Distiller(teacher, student, kd.losses.SoftTargets(TEMPERATURE), student_loss_weight=0.1), {}
    if method == "standardised":
        loss = kd.losses.LogitStandardization(kd.losses.SoftTargets(2.0))
        # 0.1 of the labels beside 9 of the soft targets.
        return kd.Distiller(teacher, student, loss, 10.0, student_loss_weight=0.1), {}
    loss = {
        "dkd": kd.losses.DecoupledKD(TEMPERATURE, 1.0, 8.0, warm_up_epochs=warm_up),
        "refined": kd.losses.RefinedLogits(TEMPERATURE),
    }[method]
    # All of the labels beside all of the loss: twice the half of each.
    return kd.Distiller(teacher, student, loss, 2.0, student_loss_weight=0.5), {"loss_weights": 2.0}


class TimeIsOver(Exception):
    """The minutes that were given are used up; the same command goes on."""


class Deadline(keras.callbacks.Callback):
    """Ends a training at the end of an epoch, after its backup, once a moment has passed."""

    def __init__(self, moment: float | None):
        super().__init__()
        self.moment = moment

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Raises `TimeIsOver` where it is."""
        is_last = epoch + 1 == self.params["epochs"]
        if self.moment is not None and time.time() > self.moment and not is_last:
            raise TimeIsOver


def train(folder: Path, recipe: Recipe, method: str, seed: int, deadline: float | None) -> dict[str, Any]:
    """One model: the teacher, a student on labels, or one that is taught. Kept as `METHOD-SEED.keras`."""
    pixels, labels, test, test_labels = loaded(recipe)
    keras.utils.set_random_seed(seed)
    model, network, options = models(folder, recipe, method, pixels, int(labels.max()) + 1)
    draws = Draws(labels, recipe, seed)
    model.compile(**compiled(network, recipe, recipe.epochs * len(draws), **options))
    backup = kd.Backup(folder / f"{method}-{seed}-backup", every=max(1, recipe.epochs // 40), batches=draws)
    model.fit(draws, epochs=recipe.epochs, shuffle=False, verbose=2, callbacks=[backup, Deadline(deadline)])
    network.save(folder / f"{method}-{seed}.keras", include_optimizer=False)
    logits = network.predict(test.astype("float32"), 500, verbose=0)
    return {"accuracy": 100.0 * float(np.mean(logits.argmax(-1) == test_labels))}


def models(
    folder: Path, recipe: Recipe, method: str, pixels: np.ndarray, num_classes: int
) -> tuple[keras.Model, keras.Model, dict[str, Any]]:
    """What is trained, the network in it, and what `compile` needs beside the optimizer."""
    images = Images(pixels, recipe.padding)
    depth = recipe.teacher_depth if method == "teacher" else recipe.student_depth
    network = wide_resnet(pixels.shape[1:], num_classes, depth, recipe.width, recipe.weight_decay)
    student = on_device(network, images, method)
    if method in ("teacher", "labels"):
        return student, network, {}
    teacher = on_device(kd.load_model(folder / "teacher-0.keras"), images, "taught_by")
    distiller, options = distiller_of(method, teacher, student, recipe)
    return distiller, network, options


def estimate(recipe: Recipe, num_seeds: int) -> float:
    """Minutes that all models take, from some steps of each kind after those that compile it."""
    pixels, labels, _, _ = loaded(recipe)
    num_classes, minutes = int(labels.max()) + 1, 0.0
    draws = Draws(labels, recipe, 0)
    for name, count in (("teacher", 1), ("student", num_seeds)):
        depth = recipe.teacher_depth if name == "teacher" else recipe.student_depth
        network = wide_resnet(pixels.shape[1:], num_classes, depth, recipe.width, recipe.weight_decay)
        model = on_device(network, Images(pixels, recipe.padding), name)
        model.compile(**compiled(network, recipe, 1000))
        model.train_on_batch(*draws[0])
        began = time.monotonic()
        for index in range(1, 6):
            model.train_on_batch(*draws[index])
        step = (time.monotonic() - began) / 5
        # A taught student's step runs the teacher forwards too, which is a third of a teacher's own.
        if name == "teacher":
            forward = step / 3
            minutes += recipe.epochs * len(draws) * step / 60
        else:
            taught = len(NAMES) - 2
            minutes += count * recipe.epochs * len(draws) * (step + taught * (step + forward)) / 60
    return minutes


def phases(recipe: Recipe, seeds: list[int], deadline: float | None) -> list[list[Job]]:
    """The teacher, then all students."""
    arguments = {"recipe": recipe, "deadline": deadline}

    def job(method: str, seed: int) -> Job:
        return Job(f"{method}-{seed}", train, arguments | {"method": method, "seed": seed})

    return [[job("teacher", 0)], [job(method, seed) for method in NAMES if method != "teacher" for seed in seeds]]


def rows(recipe: Recipe, jobs: dict[str, dict[str, Any]], seeds: list[int]) -> list[dict[str, Any]]:
    """The table; methods that were not run are left out. Other data, or a shorter schedule, has no goals."""
    table = []
    for method, name in NAMES.items():
        found = [jobs[f"{method}-{seed}"] for seed in seeds if f"{method}-{seed}" in jobs]
        if found:
            published, goal, reaches = GOALS[method] if recipe == Recipe() else (None, None, None)
            values = [job["figures"]["accuracy"] for job in found]
            table.append(record.row(name, values, "% right", paper=published, goal=goal, reaches=reaches))
    return table


def main(on_estimate: Callable[[float], None] = lambda minutes: None) -> int:
    """Runs what is missing and writes the results."""
    parser = record.parser(__doc__, "runs/cifar100")
    parser.add_argument("--epochs", type=int, help="of each training (default: 240); milestones keep their shares")
    parser.add_argument("--minutes", type=float, help="stop at the end of an epoch after so many; run again to go on")
    arguments = parser.parse_args()
    recipe = QUICK if arguments.quick else Recipe()
    if arguments.epochs is not None:
        recipe = replace(recipe, epochs=arguments.epochs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    minutes = estimate(recipe, len(arguments.seeds))
    print(f"all models take about {minutes:,.0f} minutes on this machine, one after another", flush=True)
    on_estimate(minutes)
    deadline = None if arguments.minutes is None else time.time() + 60.0 * arguments.minutes
    try:
        jobs = run_phases(phases(recipe, arguments.seeds, deadline), arguments)
    except TimeIsOver:
        print(f"stopped after {arguments.minutes:g} minutes; the same command goes on")
        return 0
    write(arguments, recipe, jobs)
    return 0


def write(arguments: Namespace, recipe: Recipe, jobs: dict[str, dict[str, Any]]) -> None:
    """`results.json`, with the backend that trained."""
    table = rows(recipe, jobs, [0] if arguments.only == ["teacher"] else arguments.seeds)
    more = {"backend": keras.config.backend(), "epochs": recipe.epochs}
    record.write(arguments.out, "cifar100", COMMAND, jobs, table, arguments=arguments, **more)


if __name__ == "__main__":
    sys.exit(main())
