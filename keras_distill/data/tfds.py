"""`tfds:NAME`: any labelled dataset of tensorflow-datasets; downloads it where it is not yet on this machine."""

import os
import socket
import urllib.request
from typing import Any

import numpy as np

from keras_distill._checks import error_message
from keras_distill.data import npz
from keras_distill.data.dataset import Dataset, Split, carve
from keras_distill.data.image_file import resized

SECONDS_TO_ANSWER = 5.0
HOST = "storage.googleapis.com"


def load_tfds(name: str, image_size: tuple[int, int] | None = None) -> Dataset:
    """Loads `tfds:NAME`, whose examples must be arrays of one shape with an integer label.

    Its `test` split tests and its `validation` split validates; where it has none, a stratified tenth
    of `train` takes their place, the same one every time.

    Args:
        name: a tensorflow-datasets name, `"cifar10"` or `"cifar10:3.*.*"`.
        image_size: `(height, width)` that every image is resized to; `None` leaves them.

    Raises:
        ValueError: an unknown name, a dataset without labels, or examples of several shapes.
        OSError: it is neither on this machine nor to be downloaded; tensorflow-datasets cannot be imported whole.
    """
    builder = prepared_builder(name)
    info = builder.info
    if info.supervised_keys is None:
        raise ValueError(
            error_message(f"tfds:{name} must be a dataset with inputs and labels", "one without supervised keys")
        )
    class_names = getattr(info.features[info.supervised_keys[1]], "names", None)
    if class_names is None:
        raise ValueError(
            error_message(f"tfds:{name} must be a dataset whose label is a class", "labels of another kind")
        )
    if "train" not in info.splits:
        raise ValueError(error_message(f"tfds:{name} must be a dataset with a train split", ", ".join(info.splits)))

    train = _split(name, builder, "train", image_size)
    if "test" in info.splits:
        test = _split(name, builder, "test", image_size)
        # A few official test sets come without labels, all of them -1.
        has_test = len(test) > 0 and bool((test.labels >= 0).all())
    else:
        has_test = False
    if "validation" in info.splits:
        validation = _split(name, builder, "validation", image_size)
    else:
        train, validation = carve(train, max(1, len(train) // 10))
    if not has_test:
        train, test = carve(train, max(1, len(train) // 10), seed=1)
    licence = getattr(info, "license", "") or "not stated by tensorflow-datasets"
    return Dataset(f"tfds:{name}", train, validation, test, tuple(class_names), licence)


def read_split(name: str, split_name: str) -> tuple[np.ndarray, np.ndarray]:
    """One split of a dataset whose examples have one shape: inputs `(num_items, ...)` and labels `(num_items,)`."""
    inputs, labels = [], []
    for example, label in prepared_builder(name).as_dataset(split=split_name, as_supervised=True).as_numpy_iterator():
        inputs.append(example)
        labels.append(label)
    return np.stack(inputs), np.asarray(labels)


def prepared_builder(name: str) -> Any:
    """The tensorflow-datasets builder of `name`, its data on this machine, downloaded if need be.

    Without network the downloader retries for over three minutes before it gives up, so whether the
    network answers is asked first.
    """
    import tensorflow_datasets

    if not hasattr(tensorflow_datasets, "builder"):
        # It swallows what its own imports raise, such as that protobuf is older than what tensorflow-metadata asks for.
        remedy = "Beside TensorFlow 2.19: pip install 'tensorflow-metadata<1.18'."
        raise OSError(error_message("tensorflow_datasets must be imported whole", "half of it", remedy))
    try:
        builder = tensorflow_datasets.builder(name)
    except (tensorflow_datasets.core.registered.DatasetNotFoundError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(
            error_message(f"tfds:{name} must name a dataset that tensorflow-datasets knows", first_line)
        ) from error
    if builder.is_prepared():
        return builder
    if not network_answers():
        raise OSError(unreachable(name))
    try:
        builder.download_and_prepare()
    except Exception as error:  # the downloader raises whatever its own libraries do
        raise OSError(f"{unreachable(name)} The downloader said: {str(error).strip().splitlines()[0]}") from error
    return builder


def unreachable(name: str) -> str:
    """The sentence for a dataset that cannot be had."""
    return (
        f"the data of {name!r} must be on this machine or to be downloaded; got neither. "
        "Set KERAS_DISTILL_DATA to a folder that holds it (see keras_distill.data), or connect to the network."
    )


def network_answers() -> bool:
    """Whether a download can start: the host of the data is reached within seconds, or a proxy is set to reach it."""
    if "https" in urllib.request.getproxies() or os.environ.get("ALL_PROXY"):
        return True
    try:
        socket.create_connection((HOST, 443), timeout=SECONDS_TO_ANSWER).close()
    except OSError:
        return False
    return True


def _split(name: str, builder: Any, split_name: str, image_size: tuple[int, int] | None) -> Split:
    """Reads one split, every example brought to one shape."""
    inputs, labels = [], []
    for example, label in builder.as_dataset(split=split_name, as_supervised=True).as_numpy_iterator():
        if not isinstance(example, np.ndarray):
            received = f"examples of type {type(example).__name__}"
            raise ValueError(error_message(f"tfds:{name} must be a dataset of images or arrays", received))
        inputs.append(resized(example, image_size) if image_size and example.ndim == 3 else example)
        labels.append(label)
        if inputs[-1].shape != inputs[0].shape:
            received = f"{inputs[0].shape} and {inputs[-1].shape}"
            remedy = "Pass image_size=(height, width) to resize images."
            raise ValueError(error_message(f"tfds:{name} must be a dataset of examples of one shape", received, remedy))
    if not inputs:
        return Split(np.zeros((0,), "float32"), np.zeros((0,), "int32"))
    return Split(npz.as_inputs(f"tfds:{name}", np.stack(inputs)), np.asarray(labels).astype("int32"))
