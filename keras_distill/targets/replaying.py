"""What makes the views again that a store's teacher saw, for batches of arrays."""

from typing import Any

from keras_distill._checks import error_message
from keras_distill.targets.store import SoftTargetStore


def replay_of(store: SoftTargetStore, expectation: str, remedy: str) -> Any:
    """What makes the views that the teacher saw; bit for bit, it is TensorFlow's arithmetic that does.

    Raises:
        ValueError: Mixup, whose partners are looked up by their ids; `expectation` and `remedy` say what to do.
    """
    if not store.manifest.augmentation:
        return None
    from keras_distill.targets.augmentation import Augmentation

    replay = Augmentation.from_config(store.manifest.augmentation)
    if replay.mixup is not None:
        raise ValueError(error_message(f"{store.path}: the augmentation must be {expectation}", "Mixup", remedy))
    return replay
