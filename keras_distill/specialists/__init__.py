"""A generalist, specialists for its confusable classes, and their exact merge: section 5 of the paper.

Clustering loads on first use: a saved SpecialistEnsemble needs no scikit-learn.
"""

from importlib import import_module
from typing import Any

from keras_distill.specialists.combiner import SpecialistCombiner
from keras_distill.specialists.ensemble import SpecialistEnsemble
from keras_distill.specialists.merge import merge
from keras_distill.specialists.train_all import train_all
from keras_distill.specialists.training import train, train_control

_LAZY = ("Clusters", "cluster_classes", "heat_map", "table")

__all__ = ["SpecialistCombiner", "SpecialistEnsemble", "merge", "train", "train_all", "train_control", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.clustering"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
