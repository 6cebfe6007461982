"""Small models of every shape, as ONNX graphs and as NumPy in float64: what the gate must let pass, and what not.

A subject is whole: inputs, labels, the graph, and the outputs that NumPy finds. `write` writes it, edited or not.
"""

from dataclasses import dataclass, field

import numpy as np
from graphs import onnx_file


@dataclass
class Subject:
    """A model that is known in closed form.

    Attributes:
        inputs: `{name: array}`.
        nodes: as `onnx_file` takes them.
        constants: `{name: array}`.
        outputs: `{name: array}`: what NumPy finds, in float32.
        labels: `{output name: labels}`.
        answers: `{output name: answer}` where neither values nor labels say it.
    """

    inputs: dict
    nodes: list
    constants: dict
    outputs: dict
    labels: dict = field(default_factory=dict)
    answers: dict = field(default_factory=dict)

    def write(self, path, *, before=(), after=(), constants=(), batch="batch"):
        """Writes the graph, with nodes before an input, which make `now` of it, or after an output's own values, `was`.

        Args:
            path: the file.
            before: `(input name, nodes)`.
            after: `(output name, nodes)`.
            constants: those that differ or come with the nodes.
            batch: the size of the first axis.
        """
        nodes, extra = [tuple(node) for node in self.nodes], dict(constants)
        if before:
            name, added = before
            nodes = [*added, *(_renamed(node, 1, name, "now") for node in nodes)]
        if after:
            name, added = after
            nodes = [*(_renamed(node, 2, name, "was") for node in nodes), *added]
        inputs = {name: (str(array.dtype), [batch, *array.shape[1:]]) for name, array in self.inputs.items()}
        outputs = {name: [None, *[None] * (array.ndim - 1)] for name, array in self.outputs.items()}
        return onnx_file(path, nodes, inputs, outputs, self.constants | extra)


def _renamed(node, position, old, new):
    parts = list(node)
    parts[position] = [new if name == old else name for name in parts[position]]
    return tuple(parts)


def float32(array):
    return np.asarray(array, "float32")


def classes(num_items=300, num_classes=4, num_features=8, seed=0, scale=1.0):
    """A linear classifier whose labels are mostly its own answers."""
    generator = np.random.default_rng(seed)
    x = float32(generator.normal(size=(num_items, num_features)))
    kernel = float32(scale * generator.normal(size=(num_features, num_classes)))
    bias = float32(scale * generator.normal(size=num_classes))
    logits = np.float64(x) @ np.float64(kernel) + bias
    noisy = logits + scale * generator.gumbel(size=logits.shape)
    return Subject(
        {"x": x},
        [("MatMul", ["x", "kernel"], ["product"]), ("Add", ["product", "bias"], ["logits"])],
        {"kernel": kernel, "bias": bias},
        {"logits": float32(logits)},
        {"logits": noisy.argmax(-1)},
    )


def one_unit(num_items=300, seed=1):
    """A binary classifier of one unit."""
    subject = classes(num_items, 1, 8, seed)
    noise = np.random.default_rng(seed).logistic(size=(num_items, 1))
    subject.labels = {"logits": (subject.outputs["logits"] + noise > 0).astype("int64")[:, 0]}
    subject.answers = {"logits": "threshold"}
    return subject


def several_labels(num_items=300, seed=2):
    """Five labels, each yes or no; the last one is rare."""
    subject = classes(num_items, 5, 8, seed)
    shift = float32([0, 0, 0, 0, -7])
    subject.constants["bias"] = subject.constants["bias"] + shift
    subject.outputs["logits"] = subject.outputs["logits"] + shift
    noise = np.random.default_rng(seed).logistic(size=(num_items, 5))
    subject.labels = {"logits": (subject.outputs["logits"] + noise > 0).astype("int64")}
    subject.answers = {"logits": "threshold"}
    return subject


def values(num_items=300, seed=3):
    """A regression of three values in units of their own."""
    subject = classes(num_items, 3, 8, seed)
    units = float32([1.0, 50.0, 0.05])
    for name in ("kernel", "bias"):
        subject.constants[name] = subject.constants[name] * units
    subject.outputs["logits"] = subject.outputs["logits"] * units
    noise = np.random.default_rng(seed).normal(size=(num_items, 3))
    subject.labels = {"logits": subject.outputs["logits"] + 0.3 * units * noise}
    subject.answers = {"logits": "distance"}
    return subject


def tokens(num_items=60, length=12, num_classes=5, seed=4):
    """A label for each token, from the token and its left neighbour; 30 tokens of vocabulary; padding has label −1."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(1, 30, (num_items, length)).astype("int32")
    ids[:, -2:] = 0
    table = float32(generator.normal(size=(30, 6)))
    kernel, left = (float32(generator.normal(size=(6, num_classes))) for _ in range(2))
    embedded = np.float64(table)[ids]
    neighbours = np.concatenate([np.zeros_like(embedded[:, :1]), embedded[:, :-1]], 1)
    logits = embedded @ kernel + neighbours @ left
    labels = (logits + generator.gumbel(size=logits.shape)).argmax(-1)
    labels[ids == 0] = -1
    return Subject(
        {"ids": ids},
        [
            ("Gather", ["table", "ids"], ["embedded"]),
            ("Slice", ["embedded", "zero", "minus_one", "one"], ["head"]),
            ("Pad", ["head", "pads"], ["neighbours"]),
            ("MatMul", ["embedded", "kernel"], ["own"]),
            ("MatMul", ["neighbours", "left"], ["of_left"]),
            ("Add", ["own", "of_left"], ["logits"]),
        ],
        {
            "table": table,
            "kernel": kernel,
            "left": left,
            "zero": np.array([0]),
            "one": np.array([1]),
            "minus_one": np.array([-1]),
            "pads": np.array([0, 1, 0, 0, 0, 0]),
        },
        {"logits": float32(logits)},
        {"logits": labels},
    )


def maps(num_items=24, size=10, num_classes=3, seed=5):
    """A class for each pixel of images whose colours come in patches."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(num_items, size // 2, size // 2, 3))
    images = float32(coarse.repeat(2, 1).repeat(2, 2))
    kernel = float32(2 * generator.normal(size=(3, num_classes)))
    logits = np.float64(images) @ np.float64(kernel)
    return Subject(
        {"image": images},
        [("MatMul", ["image", "kernel"], ["logits"])],
        {"kernel": kernel},
        {"logits": float32(logits)},
        {"logits": (logits + generator.gumbel(size=logits.shape)).argmax(-1)},
    )


def two_outputs(num_items=300, seed=6):
    """A kind of three and a size, of one hidden layer."""
    generator = np.random.default_rng(seed)
    x = float32(generator.normal(size=(num_items, 8)))
    hidden, kind, size = (float32(generator.normal(size=shape)) for shape in ((8, 16), (16, 3), (16, 1)))
    inner = np.maximum(np.float64(x) @ hidden, 0)
    outputs = {"size": float32(inner @ size), "kind": float32(inner @ kind)}
    return Subject(
        {"x": x},
        [
            ("MatMul", ["x", "hidden"], ["product"]),
            ("Relu", ["product"], ["inner"]),
            ("MatMul", ["inner", "kind_kernel"], ["kind"]),
            ("MatMul", ["inner", "size_kernel"], ["size"]),
        ],
        {"hidden": hidden, "kind_kernel": kind, "size_kernel": size},
        outputs,
        {"kind": (outputs["kind"] + 3 * generator.gumbel(size=(num_items, 3))).argmax(-1)},
        {"size": "distance"},
    )


def two_inputs(num_items=300, seed=7):
    """Ten measurements and an int64 category."""
    generator = np.random.default_rng(seed)
    x, category = float32(generator.normal(size=(num_items, 10))), generator.integers(0, 6, (num_items, 1))
    kernel, table = float32(generator.normal(size=(10, 3))), float32(generator.normal(size=(6, 3)))
    logits = np.float64(x) @ kernel + np.float64(table)[category[:, 0]]
    return Subject(
        {"x": x, "category": category},
        [
            ("MatMul", ["x", "kernel"], ["product"]),
            ("Gather", ["table", "category"], ["rows"]),
            ("Squeeze", ["rows", "axis"], ["row"]),
            ("Add", ["product", "row"], ["logits"]),
        ],
        {"kernel": kernel, "table": table, "axis": np.array([1])},
        {"logits": float32(logits)},
        {"logits": (logits + generator.gumbel(size=logits.shape)).argmax(-1)},
    )


def rare_class(num_items=1000, num_rare=4, seed=8):
    """Two classes, one of them with four examples in a thousand, which the model knows."""
    generator = np.random.default_rng(seed)
    x = float32(generator.normal(size=(num_items, 4)))
    x[:num_rare, 0] = 9.0
    kernel, bias = np.zeros((4, 2), "float32"), float32([6.0, 0.0])
    kernel[0, 1] = 1.0
    kernel[1, :] = 0.2
    logits = np.float64(x) @ kernel + bias
    return Subject(
        {"x": x},
        [("MatMul", ["x", "kernel"], ["product"]), ("Add", ["product", "bias"], ["logits"])],
        {"kernel": kernel, "bias": bias},
        {"logits": float32(logits)},
        {"logits": (x[:, 0] > 6).astype("int32")},
    )


def pixels(num_items=200, seed=9):
    """Images in uint8, cast inside."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (num_items, 4, 4, 1)).astype("uint8")
    kernel = float32(generator.normal(size=(16, 3)) / 100)
    logits = np.float64(images).reshape(num_items, 16) @ kernel
    return Subject(
        {"image": images},
        [
            ("Cast", ["image"], ["floats"], {"to": 1}),
            ("Flatten", ["floats"], ["flat"]),
            ("MatMul", ["flat", "kernel"], ["logits"]),
        ],
        {"kernel": kernel},
        {"logits": float32(logits)},
        {"logits": (logits + generator.gumbel(size=logits.shape)).argmax(-1)},
    )


SUBJECTS = {
    each.__name__: each
    for each in (
        classes,
        one_unit,
        several_labels,
        values,
        tokens,
        maps,
        two_outputs,
        two_inputs,
        rare_class,
        pixels,
    )
}
