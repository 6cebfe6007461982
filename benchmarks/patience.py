"""Whether a good teacher is patient and consistent: the recipe of Beyer et al. against fixed targets, on MNIST.

    python -m benchmarks.patience [--kept FOLDER] [--seeds 3] [--write]

The first 2,000 training images; a teacher 784-800-800-10 with dropout, trained on labels and images moved by up to two
pixels; students 784-100-100-10 that learn from its soft targets alone, at temperature 2, Adam with cosine decay to
zero, batches of 125. Three recipes, each for 20 and for 200 epochs: the student sees the images as the teacher saw
them; the student sees them moved, with the targets of the unmoved ones; both see the same moved image, out of a store
that grows while it is used. Judged after the last epoch on the 10,000 test images. Some four minutes of one core;
`--kept` keeps what is measured, so that a run that was killed goes on.

Reference: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", arXiv:2106.05237, figure 3.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.page import table, write_part
from benchmarks.rounds import machine, use_one_thread

if TYPE_CHECKING:
    import keras

    from keras_distill.data import Dataset

NUM_TRAIN, BATCH_SIZE, LENGTHS, TEACHER_EPOCHS, TEMPERATURE = 2000, 125, (20, 200), 60, 2.0
RECIPES = {
    "fixed": "fixed targets, images as they are",
    "moved": "fixed targets, the student's images moved",
    "consistent": "consistent views, both see the moved image",
}


def network(width: int, dropout: float = 0.0) -> "keras.Model":
    """Two hidden layers."""
    import keras
    from keras import layers

    hidden = [part for _ in range(2) for part in (layers.Dense(width, activation="relu"), layers.Dropout(dropout))]
    return keras.Sequential([keras.Input((28, 28, 1)), layers.Flatten(), *hidden, layers.Dense(10)])


def optimizer(epochs: int) -> "keras.optimizers.Optimizer":
    """Adam with cosine decay to zero."""
    import keras

    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, epochs * NUM_TRAIN // BATCH_SIZE))


def moved(images: Any, place: Any) -> Any:
    """Images moved by up to two pixels, another way in each batch."""
    import tensorflow as tf

    from keras_distill.targets import Augmentation, Shift

    ids = tf.range(tf.shape(images)[0], dtype=tf.int64)
    return Augmentation(Shift(2))(images, ids, tf.fill(tf.shape(ids), place))


def make_teacher(dataset: "Dataset", path: Path, seed: int) -> "keras.Model":
    """Trains the teacher, where it is not kept."""
    import keras
    import tensorflow as tf

    if not path.exists():
        keras.utils.set_random_seed(seed)
        model = network(800, 0.5)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(TEACHER_EPOCHS), loss, steps_per_execution=16)
        batches = tf.data.Dataset.from_tensor_slices(
            (dataset.train.inputs[:NUM_TRAIN], dataset.train.labels[:NUM_TRAIN])
        )
        batches = batches.shuffle(NUM_TRAIN, seed=seed).batch(BATCH_SIZE).repeat(TEACHER_EPOCHS).enumerate()
        batches = batches.map(lambda place, item: (moved(item[0], place), item[1]))
        model.fit(batches.prefetch(2), verbose=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    return keras.saving.load_model(path, compile=False)


def errors(model: "keras.Model", dataset: "Dataset") -> float:
    """Per cent of the test set."""
    logits = model.predict(dataset.test.inputs, batch_size=1000, verbose=0)
    return 100.0 * float(np.mean(np.argmax(logits, axis=-1) != dataset.test.labels))


def taught(dataset: "Dataset", teacher: "keras.Model", recipe: str, epochs: int, seed: int) -> float:
    """The errors of a student, per cent."""
    import keras

    from keras_distill import Distiller
    from keras_distill.losses import SoftTargets
    from keras_distill.targets import Augmentation, Shift, attach

    images = dataset.train.inputs[:NUM_TRAIN]
    views = {"augmentation": Augmentation(Shift(2, exhaustive=True))} if recipe == "consistent" else {}
    keras.utils.set_random_seed(100 + seed)
    student = network(100)
    distiller = Distiller(None, student, SoftTargets(TEMPERATURE))
    distiller.compile(optimizer(epochs), steps_per_execution=16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "targets"
        batches = attach(images, path, teacher=teacher, batch_size=BATCH_SIZE, seed=seed, **views)
        batches = batches.repeat(epochs).enumerate()
        if recipe == "moved":
            batches = batches.map(lambda place, item: (moved(item[0], place), item[1]))
        else:
            batches = batches.map(lambda place, item: item)
        distiller.fit(batches, shuffle=False, verbose=0)
    return errors(student, dataset)


def measure(kept: Path, seeds: int) -> dict[str, Any]:
    """The errors of teachers and students by seed, each measured once."""
    from keras_distill import data

    dataset = data.load("mnist")
    found: dict[str, list[float]] = {}

    def once(name: str, seed: int, make: Any) -> None:
        file = kept / f"{name}-{seed}.json"
        if not file.exists():
            file.write_text(json.dumps(make()))
        found.setdefault(name, []).append(json.loads(file.read_text()))
        print(f"{name}, seed {seed}: {found[name][-1]:.2f} % errors", flush=True)

    for seed in range(seeds):
        teacher = make_teacher(dataset, kept / f"teacher-{seed}.keras", seed)
        once("teacher", seed, lambda teacher=teacher: errors(teacher, dataset))
        for epochs in LENGTHS:
            for recipe in RECIPES:
                arguments = dataset, teacher, recipe, epochs, seed
                once(f"{recipe}-{epochs}", seed, lambda arguments=arguments: taught(*arguments))
    return {"machine": machine(), "errors": found}


def page_part(result: dict[str, Any]) -> str:
    """The table in docs/store.md."""

    def cell(name: str) -> str:
        values = result["errors"][name]
        return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) if len(values) > 1 else 0.0:.2f} %"

    rows = [[text, *(cell(f"{name}-{epochs}") for epochs in LENGTHS)] for name, text in RECIPES.items()]
    num_seeds = len(result["errors"]["teacher"])
    text = table(["errors on the test set", *(f"{epochs} epochs" for epochs in LENGTHS)], rows)
    return f"{text}\nMean and standard deviation over {num_seeds} seeds; the teachers make {cell('teacher')}.\n"


def main() -> int:
    """Measures, prints, and writes where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kept", type=Path, metavar="FOLDER", help="keep what is measured here; go on with what is there"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the table into docs/store.md")
    arguments = parser.parse_args()
    use_one_thread()
    with tempfile.TemporaryDirectory() as folder:
        kept = arguments.kept or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        result = measure(kept, arguments.seeds)
    print(page_part(result))
    if arguments.write:
        write_part("store.md", "patience", page_part(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
