"""Datasets, and the paper's small nets (`networks`, imported by its own name since it needs Keras)."""

from keras_distill.data.catalogue import load
from keras_distill.data.dataset import Dataset, Split
from keras_distill.data.preparation import Preparation
from keras_distill.data.recombination import recombined
from keras_distill.data.table import from_table

__all__ = ["Dataset", "Preparation", "Split", "from_table", "load", "recombined"]
