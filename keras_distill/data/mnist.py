"""`mnist`: 70,000 handwritten digits, 28 × 28 pixels."""

import numpy as np

from keras_distill.data import local_data, npz, tfds
from keras_distill.data.dataset import Dataset, Split, carve

LICENCE = "CC BY-SA 3.0 (LeCun, Cortes, Burges)"
CLASS_NAMES = tuple("0123456789")


def load_mnist() -> Dataset:
    """Loads `mnist`: images float32 `(28, 28, 1)` in [0, 1].

    55,000 to train, 5,000 to validate (stratified, always the same ones), the official 10,000 to test.
    Read from `mnist.npz` in `KERAS_DISTILL_DATA`, else downloaded by tensorflow-datasets.

    Raises:
        OSError: it is neither local nor to be downloaded.
    """
    path = local_data.find("mnist.npz")
    if path:
        arrays = local_data.read_arrays(path, npz.REQUIRED)
        pairs = [(arrays[f"x_{name}"], arrays[f"y_{name}"]) for name in ("train", "test")]
    else:
        pairs = [tfds.read_split("mnist", name) for name in ("train", "test")]
    full, test = (_split(*pair) for pair in pairs)
    train, validation = carve(full, len(full) // 12)
    return Dataset("mnist", train, validation, test, CLASS_NAMES, LICENCE)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    images = npz.as_inputs("mnist's images", images.reshape(-1, 28, 28, 1))
    return Split(images, labels.astype("int32"))
