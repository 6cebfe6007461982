"""Five real tasks for `benchmarks.compress`: their data, a teacher each, and three budgets."""

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset
    from keras_distill.search.families import Family

# A budget: bytes and milliseconds, either of them or both.
Limits = tuple[int | None, float | None]


@dataclass(frozen=True)
class Task:
    """What is compressed.

    Attributes:
        load: the data.
        teacher: a compiled model for such data, to be trained.
        teacher_epochs: how long.
        budgets: three of them, `(bytes, ms)`.
        steps: about how many a student's training has.
    """

    load: "Callable[[], Dataset]"
    teacher: "Callable[[Dataset], keras.Model]"
    teacher_epochs: int
    budgets: Sequence[Limits]
    steps: int


def images(name: str, num_examples: int | None = None) -> "Dataset":
    """A data set of the package, of which so many examples are trained on."""
    from dataclasses import replace

    from keras_distill import data
    from keras_distill.data.dataset import stratified_positions

    dataset = data.load(name)
    if num_examples is None:
        return dataset
    return replace(dataset, train=dataset.train.take(stratified_positions(dataset.train.labels, num_examples)))


def adult() -> "Dataset":
    """Is somebody's income above 50,000 dollars? Numbers standardised, categories one-hot; missing is a category."""
    from keras_distill import data
    from keras_distill._kit import kit_module
    from keras_distill.data.dataset import stratified_positions

    columns = kit_module("prepare").read_table(_folder() / "adult.csv.gz")
    split = np.array(columns["split"], dtype=object)
    to_train = np.flatnonzero(split == "train")
    validation = stratified_positions(np.array(columns["income"])[to_train] == ">50K", 4000)
    split[to_train[validation]] = "validation"
    columns["split"] = split.tolist()
    return data.from_table(columns, "income", name="adult", leave_out=("fnlwgt", "education"), licence="CC BY 4.0")


def banking77() -> "Dataset":
    """Which of 77 things does somebody want of their bank? Features of a frozen sentence encoder."""
    from keras_distill.data import Dataset, Split
    from keras_distill.data.dataset import carve

    with np.load(_folder() / "banking77_minilm.npz") as features:
        inputs = {name: features[name].astype("float32") * 10.0 for name in ("train", "test")}
    intents = {}
    for name in inputs:
        with open(_folder() / f"banking77_{name}.csv", newline="") as file:
            intents[name] = [row["category"] for row in csv.DictReader(file)]
    names = sorted(set(intents["train"]))
    labels = {name: np.array([names.index(each) for each in intents[name]], "int32") for name in inputs}
    train, validation = carve(Split(inputs["train"], labels["train"]), 1540)
    return Dataset("banking77", train, validation, Split(inputs["test"], labels["test"]), tuple(names), "CC BY 4.0")


def random_shape(family: "Family", generator: np.random.Generator) -> dict[str, float]:
    """A shape of a family that nobody chose."""
    return {
        name: float(generator.integers(int(entry.low), int(entry.high) + 1))
        if entry.is_whole
        else float(generator.uniform(entry.low, entry.high))
        for name, entry in family.entries.items()
    }


def convnet(dataset: "Dataset") -> "keras.Model":
    """A teacher for images."""
    from keras_distill.data import networks

    return networks.convnet(dataset.input_shape, dataset.num_classes, (64, 128), 0.3, dense_width=256, name="teacher")


def mlp(dataset: "Dataset") -> "keras.Model":
    """A teacher for vectors."""
    from keras_distill.data import networks

    return networks.mlp(dataset.input_shape, dataset.num_classes, (512, 512), 0.5, name="teacher")


TASKS = {
    "digits": Task(lambda: images("digits"), convnet, 150, ((8_000, None), (12_000, 0.01), (None, 0.003)), 1500),
    "mnist": Task(lambda: images("mnist", 20_000), convnet, 10, ((15_000, None), (40_000, 0.03), (None, 0.012)), 1500),
    "spoken_digit": Task(
        lambda: images("spoken_digit"), convnet, 30, ((15_000, None), (40_000, 0.06), (None, 0.03)), 1500
    ),
    "adult": Task(adult, mlp, 8, ((6_000, None), (12_000, 0.003), (None, 0.002)), 1500),
    "banking77": Task(banking77, mlp, 30, ((30_000, None), (60_000, 0.01), (None, 0.005)), 1500),
}


def _folder() -> Path:
    return Path(os.environ["KERAS_DISTILL_DATA"])
