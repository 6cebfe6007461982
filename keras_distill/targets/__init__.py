"""Soft targets computed once: label a dataset with a teacher, then train from the store as fast as on labels.

The names load on first use: reading a store needs NumPy alone.
"""

from typing import TYPE_CHECKING

from keras_distill._lazy import lazy_names

if TYPE_CHECKING:
    from keras_distill.targets.attaching import attach
    from keras_distill.targets.augmentation import Augmentation, Crop, Shift
    from keras_distill.targets.batches import StoredBatches
    from keras_distill.targets.calibration import calibration_temperature
    from keras_distill.targets.fingerprints import fingerprint
    from keras_distill.targets.folds import assign_folds
    from keras_distill.targets.labelling import label
    from keras_distill.targets.store import SoftTargetStore
    from keras_distill.targets.upgrading import upgrade
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "Augmentation": "augmentation",
            "Crop": "augmentation",
            "Shift": "augmentation",
            "SoftTargetStore": "store",
            "StoredBatches": "batches",
            "assign_folds": "folds",
            "attach": "attaching",
            "calibration_temperature": "calibration",
            "fingerprint": "fingerprints",
            "label": "labelling",
            "upgrade": "upgrading",
        },
    )

__all__ = [
    "Augmentation",
    "Crop",
    "Shift",
    "SoftTargetStore",
    "StoredBatches",
    "assign_folds",
    "attach",
    "calibration_temperature",
    "fingerprint",
    "label",
    "upgrade",
]
