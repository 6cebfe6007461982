"""A generalist, specialists for its confusable classes, and their exact merge: section 5 of the paper.

Clustering loads on first use: a saved SpecialistEnsemble needs no scikit-learn.
"""

from typing import TYPE_CHECKING

from keras_distill._lazy import lazy_names
from keras_distill.specialists.combiner import SpecialistCombiner
from keras_distill.specialists.ensemble import SpecialistEnsemble
from keras_distill.specialists.merge import merge
from keras_distill.specialists.train_all import train_all
from keras_distill.specialists.training import train, train_control

if TYPE_CHECKING:
    from keras_distill.specialists.clustering import Clusters, cluster_classes, heat_map, table
else:
    __getattr__ = lazy_names(
        __name__,
        {"Clusters": "clustering", "cluster_classes": "clustering", "heat_map": "clustering", "table": "clustering"},
    )

__all__ = [
    "Clusters",
    "SpecialistCombiner",
    "SpecialistEnsemble",
    "cluster_classes",
    "heat_map",
    "merge",
    "table",
    "train",
    "train_all",
    "train_control",
]
