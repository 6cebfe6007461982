"""Teachers: several models as one, a student's own past, and models of other frameworks."""

from keras_distill.teachers.ensemble import Ensemble, arithmetic_mean, geometric_mean
from keras_distill.teachers.function import FunctionTeacher
from keras_distill.teachers.moving_average import MovingAverage
from keras_distill.teachers.onnx import OnnxTeacher
from keras_distill.teachers.predict_proba import PredictProbaTeacher
from keras_distill.teachers.saved_model import SavedModelTeacher

__all__ = [
    "Ensemble",
    "FunctionTeacher",
    "MovingAverage",
    "OnnxTeacher",
    "PredictProbaTeacher",
    "SavedModelTeacher",
    "arithmetic_mean",
    "geometric_mean",
]
