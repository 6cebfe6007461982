"""What makes the views again that a store's teacher saw; and what a manifest keeps so that it does."""

from typing import TYPE_CHECKING

import keras

from keras_distill._checks import error_message
from keras_distill._types import Config, TensorTree
from keras_distill.targets.manifest import StoreError
from keras_distill.targets.store import SoftTargetStore

if TYPE_CHECKING:
    from keras_distill.targets.augmentation import Augmentation


def recipe(augmentation: "Augmentation", item: TensorTree) -> Config:
    """What a manifest keeps of an augmentation, once it has made the views of a sample twice.

    Of steps that are layers of Keras's, whose arithmetic is not ours, a hash of those views is kept as well.

    Args:
        augmentation: what makes the views.
        item: a batch of the data set's items, `(n, height, width[, channels])`, of which shape and dtype are read.

    Raises:
        ValueError: a layer that does not make a view again.
    """
    config = augmentation.get_config()
    if not any("layer" in step for step in config["steps"]) or isinstance(item, (dict, list, tuple)):
        # What is no image is refused where views are made of it.
        return config
    shape, dtype = tuple(int(size) for size in item.shape[1:]), keras.backend.standardize_dtype(item.dtype)
    made_by = {"keras": keras.__version__, "backend": keras.config.backend()}
    return {**config, "made_by": made_by, "sample": [list(shape), dtype, augmentation.check(shape, dtype)]}


def replay_of(store: SoftTargetStore, remedy_for_pairs: str = "") -> "Augmentation | None":
    """What makes the views that the teacher saw, held to the sample that the manifest keeps.

    Args:
        store: an open store.
        remedy_for_pairs: what to do instead, where an item's partner cannot be looked up by its id; else empty.

    Raises:
        StoreError: the sample's views are others here, with another version of Keras or on another backend.
        ValueError: an augmentation that blends items, where there is a remedy for it.
    """
    config = store.manifest.augmentation
    if not config:
        return None
    from keras_distill.targets.augmentation import Augmentation

    replay = Augmentation.from_config(config)
    if replay.pairs_items and remedy_for_pairs:
        expectation = f"{store.path}: the augmentation must be one that blends no items"
        raise ValueError(error_message(expectation, replay.steps[-1].name, remedy_for_pairs))
    if "sample" in config:
        shape, dtype, expected = config["sample"]
        if replay.check(tuple(shape), dtype) != expected:
            made_by = config["made_by"]
            expectation = (
                f"{store.path}: the views must be those that the teacher saw, made by Keras {made_by['keras']} on "
                f"{made_by['backend']}"
            )
            received = f"others by Keras {keras.__version__} on {keras.config.backend()}"
            raise StoreError(error_message(expectation, received, "Use that version and backend, or label again."))
    return replay
