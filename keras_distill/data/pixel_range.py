"""The scales that pixels come in: from 0 to 1, as this house reads them, and what models elsewhere were trained on.

A model that is fed another scale than it was trained on answers little better than chance, and raises no error.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from keras_distill._checks import check_choice, error_message
from keras_distill._inputs import arrays_by_name, described, only_array
from keras_distill.data.dataset import Dataset, Split

PIXEL_RANGES = ("0-1", "0-255", "-1-1", "standardised", "imagenet", "caffe")
# Of ImageNet's training images, red, green, blue, in [0, 1].
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (
    np.array([0.485, 0.456, 0.406], "float32"),
    np.array([0.229, 0.224, 0.225], "float32"),
)
# Blue, green, red, in [0, 255]: what Caffe's networks subtract.
_CAFFE_MEAN = np.array([103.939, 116.779, 123.68], "float32")


def pixel_range_of(inputs: np.ndarray) -> str | None:
    """The range that inputs lie in: `"0-1"`, `"0-255"`, `"-1-1"`, or `None` where it is none of these.

    Example:
        >>> pixel_range_of(np.float32([[0.0, 0.5]])), pixel_range_of(np.float32([[0.0, 255.0]]))
        ('0-1', '0-255')
    """
    if not np.issubdtype(inputs.dtype, np.floating):
        return None
    low, high = float(inputs.min()), float(inputs.max())
    if low >= 0.0:
        return "0-1" if high <= 1.0 else "0-255" if high <= 255.0 else None
    return "-1-1" if low >= -1.0 and high <= 1.0 else None


def other_pixel_ranges(dataset: Dataset) -> tuple[str, ...]:
    """The ranges that a dataset can be brought into and that it is not in, the most usual ones first.

    Example:
        >>> from keras_distill.data import load
        >>> other_pixel_ranges(load("digits"))
        ('0-255', '-1-1', 'standardised')
    """
    arrays = [*arrays_by_name(dataset.train.inputs).values()]
    if len(arrays) > 1 or dataset.preparation is not None or not np.issubdtype(arrays[0].dtype, np.floating):
        return ()
    inputs = arrays[0]
    now = pixel_range_of(inputs)
    names = PIXEL_RANGES if now else ("standardised",)
    of_colour = inputs.ndim == 4 and inputs.shape[-1] == 3
    return tuple(name for name in names if name != now and (of_colour or name not in ("imagenet", "caffe")))


def in_pixel_range(dataset: Dataset, pixel_range: str) -> Dataset:
    """A dataset with its inputs in another range, those of all splits by the same arithmetic.

    Args:
        dataset: what `load` gave; the range of its training inputs is seen by their values.
        pixel_range: `"0-1"`, `"0-255"`, `"-1-1"`; `"standardised"`: mean 0 and standard deviation 1 on the training
            split, for each channel or column; `"imagenet"`: in [0, 1], less ImageNet's mean, over its deviation;
            `"caffe"`: in [0, 255], blue, green, red, less ImageNet's mean.

    Returns:
        A new `Dataset` of float32 inputs.

    Raises:
        ValueError: an unknown range, inputs of several arrays, of integers, made out of raw rows or in no range of
            pixels, images that are not of colour.

    Example:
        >>> from keras_distill.data import load
        >>> float(in_pixel_range(load("digits"), "0-255").train.inputs.max())
        255.0

    Reference:
        `keras.applications.imagenet_utils.preprocess_input`, whose modes "tf", "torch" and "caffe" are the last ones.
    """
    check_choice("the pixel range", pixel_range, PIXEL_RANGES)
    remedy = "Leave --pixel-range out: these are no pixels."
    if dataset.preparation is not None or isinstance(dataset.train.inputs, dict):
        received = dataset.preparation.description if dataset.preparation else described(dataset.train.inputs)
        expectation = f"a pixel range needs {dataset.name!r} to hold images in one array"
        raise ValueError(error_message(expectation, received, remedy))
    inputs = dataset.train.inputs
    if not np.issubdtype(inputs.dtype, np.floating):
        raise ValueError(
            error_message(f"a pixel range needs the inputs of {dataset.name!r} to be floats", inputs.dtype, remedy)
        )
    if pixel_range == "standardised":
        axes = tuple(range(inputs.ndim - 1))
        mean = inputs.mean(axis=axes, dtype="float64")
        deviation = inputs.std(axis=axes, dtype="float64")
        # A column that never changes stays as it is, at 0.
        scale = 1.0 / np.where(deviation > 0.0, deviation, 1.0)
        return _mapped(dataset, lambda values: (values - mean) * scale)
    now = pixel_range_of(inputs)
    if now is None:
        received = f"values from {float(inputs.min()):g} to {float(inputs.max()):g}"
        remedy = "Save them from 0 to 1 or from 0 to 255, or ask for standardised."
        expectation = f"the inputs of {dataset.name!r} must be pixels from 0 to 1, 0 to 255 or -1 to 1"
        raise ValueError(error_message(expectation, received, remedy))
    if pixel_range in ("imagenet", "caffe") and not (inputs.ndim == 4 and inputs.shape[-1] == 3):
        expectation = f"the pixel range {pixel_range} needs images of shape (height, width, 3)"
        raise ValueError(error_message(expectation, inputs.shape[1:], f"Name one of {', '.join(PIXEL_RANGES[:4])}."))

    def bring(values: np.ndarray) -> np.ndarray:
        unit = {"0-1": values, "0-255": values / 255.0, "-1-1": (values + 1.0) / 2.0}[now]
        match pixel_range:
            case "0-255":
                return unit * 255.0
            case "-1-1":
                return unit * 2.0 - 1.0
            case "imagenet":
                return (unit - _IMAGENET_MEAN) / _IMAGENET_DEVIATION
            case "caffe":
                return unit[..., ::-1] * 255.0 - _CAFFE_MEAN
        return unit

    return dataset if pixel_range == now else _mapped(dataset, bring)


def _mapped(dataset: Dataset, function: Callable[[np.ndarray], np.ndarray]) -> Dataset:
    def map_split(split: Split) -> Split:
        return Split(function(only_array(split.inputs, "a pixel range")).astype("float32"), split.labels)

    train, validation, test = map(map_split, (dataset.train, dataset.validation, dataset.test))
    return replace(dataset, train=train, validation=validation, test=test)
