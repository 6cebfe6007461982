"""`train_all`: every specialist of a clustering, each a task of its own, on one machine or on many."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_distill.models.forward_pass import logits_model
from keras_distill.specialists.merge import check_class_sets
from keras_distill.specialists.training import Examples, train

if TYPE_CHECKING:
    from keras_distill.scale import Engine


def train_all(
    generalist: keras.Model,
    class_sets: Sequence[Sequence[int]],
    dataset: Examples,
    path: str | os.PathLike,
    *,
    engine: "Engine | str" = "local",
    seed: int = 0,
    generalist_logits: np.ndarray | None = None,
    progress: bool | None = None,
    **recipe: Any,
) -> list[Path]:
    """Trains the specialist of every set of classes, as `train` does.

    A run that was killed goes on when called again: specialists that are there stay, half-trained ones go on after
    their last tenth. Every engine makes the same specialists.

    Args:
        generalist: as in `train`.
        class_sets: the classes of each specialist.
        dataset: as in `train`.
        path: the folder for `specialist-000.keras` and so on; with engines past this machine, one that all share.
        engine: `"local"`, `"ray"`, or an engine of `keras_distill.scale`.
        seed: the first specialist's; the next ones have the following numbers.
        generalist_logits: `(num_items, num_classes)`, if they are already there; else they are computed once, here.
        progress: show a progress bar; `None` does where standard error is a terminal.
        recipe: the other options of `train`: `num_steps`, `trained`, `learning_rate` …

    Returns:
        The specialists' files, in the order of `class_sets`.

    Raises:
        ValueError: as in `train`.
        WorkersLostError: workers died at the same specialist again and again.

    Reference: Hinton et al., arXiv:1503.02531, section 5: "61 specialists … trained completely independently".
    """
    from keras_distill.scale import make_models
    from keras_distill.scale.serialization import serialize

    sets = check_class_sets(class_sets, generalist.output_shape[-1])
    if generalist_logits is None:
        generalist_logits = logits_model(generalist).predict(dataset.inputs, batch_size=512, verbose=0)
    folder = Path(path).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    trainer = _Trainer(
        serialize(generalist), sets, dataset.inputs, dataset.labels, generalist_logits, folder, seed, dict(recipe)
    )
    paths = [folder / f"{trainer.name(position)}.keras" for position in range(len(sets))]
    return make_models(trainer, paths, engine=engine, progress=progress)


@dataclass
class _Trainer:
    """From a specialist's position to the specialist; travels to the workers."""

    saved_generalist: Any
    class_sets: list
    inputs: np.ndarray
    labels: np.ndarray
    generalist_logits: np.ndarray
    folder: Path
    seed: int
    recipe: dict[str, Any]

    def name(self, position: int) -> str:
        return f"specialist-{position:03d}"

    @cached_property
    def generalist(self) -> keras.Model:
        """Opened once in each worker."""
        from keras_distill.scale.serialization import deserialize

        return deserialize(self.saved_generalist)

    def __call__(self, position: int) -> keras.Model:
        return train(
            self.generalist,
            self.class_sets[position],
            self,
            generalist_logits=self.generalist_logits,
            seed=self.seed + position,
            backup_dir=self.folder / f".{self.name(position)}",
            **self.recipe,
        )
