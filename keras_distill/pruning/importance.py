"""How much each channel of a group counts; whole groups are judged together."""

import numpy as np

from keras_distill.pruning.channels import ChannelGroups


def norms(groups: ChannelGroups) -> dict[str, np.ndarray]:
    """The norm of all weights that make a channel times the norm of all that read it, one array `(size,)` a group."""
    made: dict[int, float] = {}
    read: dict[int, float] = {}
    for layer, widths in groups.widths.values():
        values = layer.get_weights()
        for axis in widths.axes:
            squares = np.square(np.moveaxis(values[axis.weight], axis.axis, 0).astype("float64"))
            totals = {"makes": made, "reads": read}.get(axis.role)
            if totals is not None:
                for root, total in zip(
                    groups.root(axis.channels), squares.reshape(len(squares), -1).sum(1), strict=True
                ):
                    totals[int(root)] = totals.get(int(root), 0.0) + float(total)
    return {
        name: np.array([np.sqrt(made.get(int(root), 1.0) * read.get(int(root), 1.0)) for root in group.channels])
        for name, group in groups.groups.items()
    }
