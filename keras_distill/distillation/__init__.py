"""Training beside a teacher, or beside each other, as Keras models with a `fit` of their own."""

from keras_distill.distillation.distiller import Distiller
from keras_distill.distillation.mutual_learning import DeepMutualLearning

__all__ = ["DeepMutualLearning", "Distiller"]
