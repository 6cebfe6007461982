"""Datasets, and the paper's small nets (`networks`, imported by its own name since it needs Keras)."""

from keras_distill.data.catalogue import load
from keras_distill.data.dataset import Dataset, Split

__all__ = ["Dataset", "Split", "load"]
