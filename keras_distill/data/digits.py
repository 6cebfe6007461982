"""`digits`: the 1797 handwritten digits, 8 × 8 pixels, that scikit-learn carries. Needs no download."""

import numpy as np

from keras_distill.data.dataset import Dataset, Split, carve


def load_digits() -> Dataset:
    """Loads `digits`: images float32 `(8, 8, 1)` in [0, 1]; 719 to train, 359 to validate, 719 to test.

    The data has no official split. Ours is stratified and always the same; two fifths of it test, since
    a smaller test set could not tell a teacher from its student.

    Reference:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test half).
    """
    from sklearn.datasets import load_digits as load_from_sklearn

    images, labels = load_from_sklearn(return_X_y=True)
    inputs = (images.reshape(-1, 8, 8, 1) / 16.0).astype("float32")
    rest, test = carve(Split(inputs, labels.astype("int32")), 719)
    train, validation = carve(rest, 359)
    class_names = tuple(str(digit) for digit in np.unique(labels))
    return Dataset("digits", train, validation, test, class_names, "CC BY 4.0 (UCI Machine Learning Repository)")
