"""`PredictProbaTeacher`: a classifier with `predict_proba`, scikit-learn's boosted trees for one, as a teacher."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from keras_distill._checks import check_fraction, error_message
from keras_distill._types import TensorTree
from keras_distill.teachers.outside import OutsideTeacher


class Classifier(Protocol):
    """What scikit-learn, XGBoost and LightGBM call a fitted classifier."""

    @property
    def classes_(self) -> Any:
        """The labels that it was fitted on, in the order of its probabilities."""

    def predict_proba(self, inputs: Any, /) -> Any:
        """The probability of each class, `(num_items, num_classes)`."""


class PredictProbaTeacher(OutsideTeacher):
    """A fitted classifier as a teacher: beside the student in a `Distiller`, or through a store by `targets.label`.

    Its logits are the logarithms of its probabilities. It runs outside the student's compiled step, on NumPy arrays;
    labelled once into a store it costs nothing while the student trains.

    Args:
        classifier: fitted; its labels are class ids, or names.
        class_names: the data's, where the classifier was fitted on names, or has not seen every class.
        smallest: what a probability counts as at least, in (0, 1). The shares of a forest's trees may be 0, which says
            no more than that no tree of so many voted so: take half of a tree's share there.
        preprocess: a function from a batch of the student's inputs to what the classifier takes.

    Attributes:
        num_classes: how many logits it gives.
        fingerprint: 32 hexadecimal digits of the fitted classifier's hash; a store keeps it.

    Raises:
        TypeError: there is no `predict_proba`.
        ValueError: it is not fitted, or was fitted on labels that are none of the classes.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> x = np.float32([[0.0], [1.0], [2.0], [3.0]])
        >>> teacher = PredictProbaTeacher(LogisticRegression().fit(x, [0, 0, 1, 1]))
        >>> logits = np.asarray(teacher(x))
        >>> logits.shape, logits.argmax(axis=-1).tolist()
        ((4, 2), [0, 0, 1, 1])

    Reference:
        Hinton, Vinyals, Dean, arXiv:1503.02531, section 2: nothing is asked of a teacher but its logits.
    """

    def __init__(
        self,
        classifier: Classifier,
        class_names: Sequence[str] | None = None,
        *,
        smallest: float = 1e-7,
        preprocess: Callable[[Any], Any] | None = None,
    ):
        if not callable(getattr(classifier, "predict_proba", None)):
            received = type(classifier).__name__
            remedy = "A regressor or an SVM without probabilities cannot teach classes."
            raise TypeError(error_message("the classifier must have predict_proba", received, remedy))
        # Logarithms of probabilities are logits.
        super().__init__(from_logits=True)
        self.classifier = classifier
        self.class_names = None if class_names is None else tuple(class_names)
        self.smallest = check_fraction("smallest", smallest)
        if not 0.0 < self.smallest < 1.0:
            raise ValueError(error_message("smallest must be in (0, 1)", smallest, "1e-7 is float32's own."))
        self.preprocess = preprocess
        # Which class each of its columns is.
        self._places = _places(classifier, self.class_names)
        self.num_classes = int(self._places.max()) + 1 if self.class_names is None else len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # hashing a forest takes time: on first use
        """Of what was fitted and of the settings."""
        import joblib

        settings = (self.class_names, self.smallest, getattr(self.preprocess, "__qualname__", None))
        return joblib.hash((self.classifier, settings))

    def logits(self, inputs: TensorTree) -> np.ndarray:
        """The same for NumPy arrays alone: float32 `(batch, num_classes)`."""
        given = inputs if self.preprocess is None else self.preprocess(inputs)
        probabilities = np.asarray(self.classifier.predict_proba(given))
        if probabilities.ndim != 2 or probabilities.shape[1] != len(self._places):
            expectation = f"predict_proba must give (batch, {len(self._places)}) probabilities"
            remedy = "A classifier of several outputs teaches each alone."
            raise ValueError(error_message(expectation, f"shape {probabilities.shape}", remedy))
        # A class that it was never shown has no probability.
        whole = np.zeros((len(probabilities), self.num_classes))
        whole[:, self._places] = probabilities
        return np.log(np.maximum(whole, self.smallest)).astype("float32")

    def _logits_shape(self, inputs: TensorTree) -> list[int | None]:
        return [None, self.num_classes]

    def __repr__(self) -> str:
        return f"PredictProbaTeacher({type(self.classifier).__name__}, {self.num_classes} classes)"


def _places(classifier: Classifier, class_names: tuple[str, ...] | None) -> np.ndarray:
    """The class id of each column of a classifier's probabilities, int `(num_columns,)`."""
    labels = getattr(classifier, "classes_", None)
    if labels is None:
        raise ValueError(
            error_message("the classifier must be fitted", "no classes_", "Call its fit(inputs, labels) first.")
        )
    labels = np.asarray(labels)
    if np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1:
        if labels.min() < 0 or (class_names is not None and labels.max() >= len(class_names)):
            raise ValueError(error_message("the classifier's labels must be class ids", str(labels.tolist()[:8])))
        return labels
    if class_names is None or labels.ndim != 1:
        remedy = "Give class_names=dataset.class_names, or fit it on dataset.train.labels."
        raise ValueError(error_message("the classifier's labels must be class ids", str(labels.tolist()[:8]), remedy))
    unknown = [str(label) for label in labels if str(label) not in class_names]
    if unknown:
        expectation = f"the classifier's labels must be among {', '.join(class_names[:8])}"
        raise ValueError(error_message(expectation, ", ".join(unknown[:8])))
    return np.array([class_names.index(str(label)) for label in labels])
