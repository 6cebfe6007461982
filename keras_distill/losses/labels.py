"""Labels in whatever layout Keras takes them: flat, as a column, or one row a class."""

from keras import ops

from keras_distill._types import Tensor


def class_ids(labels: Tensor, outputs: Tensor) -> Tensor:
    """The class of each item.

    Args:
        labels: whole numbers `(...)` or `(..., 1)`, of any dtype; or one row a class, `(..., num_classes)`, of which
            the largest counts.
        outputs: `(..., num_classes)`, what the labels belong to; its rank tells the layouts apart.

    Returns:
        int32 `(...)`; negative where a label is, for "no label".

    Example:
        >>> import numpy as np
        >>> outputs = np.zeros((2, 3))
        >>> [class_ids(np.array(y), outputs).numpy().tolist() for y in ([2, -1], [[2], [-1]], [[0, 0, 1], [0, 1, 0]])]
        [[2, -1], [2, -1], [2, 1]]
    """
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) == len(outputs.shape):
        labels = labels[..., 0] if labels.shape[-1] == 1 else ops.argmax(labels, axis=-1)
    return ops.cast(ops.round(ops.cast(labels, "float32")) if _is_float(labels) else labels, "int32")


def are_class_ids(labels: Tensor, outputs: Tensor) -> bool:
    """Whether labels are laid out as one class an item, so that a negative one can mean "no label"."""
    shape, num_outputs = getattr(labels, "shape", None), outputs.shape[-1]
    if shape is None or num_outputs is None or num_outputs < 2:
        return False
    return len(shape) == len(outputs.shape) - 1 or (len(shape) == len(outputs.shape) and shape[-1] == 1)


def _is_float(labels: Tensor) -> bool:
    return "float" in str(labels.dtype)
