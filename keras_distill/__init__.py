"""keras_distill: teach a small, fast Keras model what a big one knows, and ship it.

The public names load on first use: the command line prints its help without starting TensorFlow.
"""

from typing import TYPE_CHECKING

from keras_distill._lazy import lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from keras_distill import (
        data,
        deploy,
        distillation,
        losses,
        models,
        pruning,
        quantize_aware,
        report,
        scale,
        schedules,
        search,
        specialists,
        targets,
        teachers,
    )
    from keras_distill.backup import Backup
    from keras_distill.distillation import DeepMutualLearning, Distiller
    from keras_distill.models.saving import load_model
    from keras_distill.search import compress, tune
    from keras_distill.teachers import Ensemble, OnnxTeacher, PredictProbaTeacher
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "Backup": "backup",
            "DeepMutualLearning": "distillation",
            "Distiller": "distillation",
            "Ensemble": "teachers",
            "OnnxTeacher": "teachers",
            "PredictProbaTeacher": "teachers",
            "data": "",
            "deploy": "",
            "distillation": "",
            "load_model": "models.saving",
            "losses": "",
            "models": "",
            "pruning": "",
            "quantize_aware": "",
            "report": "",
            "scale": "",
            "schedules": "",
            "search": "",
            "specialists": "",
            "targets": "",
            "teachers": "",
            "compress": "search",
            "tune": "search",
        },
    )

__all__ = [
    "Backup",
    "DeepMutualLearning",
    "Distiller",
    "Ensemble",
    "OnnxTeacher",
    "PredictProbaTeacher",
    "compress",
    "data",
    "deploy",
    "distillation",
    "load_model",
    "losses",
    "models",
    "pruning",
    "quantize_aware",
    "report",
    "scale",
    "schedules",
    "search",
    "specialists",
    "targets",
    "teachers",
    "tune",
]


def __dir__() -> list[str]:
    return __all__
