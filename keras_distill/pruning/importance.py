"""How much each channel of a group counts; whole groups are judged together.

A channel's score sums over every layer that makes it or reads it. Scores compare the channels of one group, never two
groups. By name: `"norms"`, `"scales"` (BatchNormalization's γ), `"activations"` and `"taylor"`, which want calibration
data, and `"random"`, what the others must beat.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_choice, check_positive, error_message
from keras_distill._types import Tensor, TensorTree
from keras_distill.models.gradient import gradient
from keras_distill.models.heads import find_heads
from keras_distill.models.probabilities import SIGMOID, SOFTMAX, logits_of
from keras_distill.pruning.channels import ChannelGroups
from keras_distill.pruning.traversal import batches, run_looking

Scores = dict[str, np.ndarray]
NAMES = ("norms", "scales", "activations", "taylor", "random")


def importance_by_name(name: str, groups: ChannelGroups, model: keras.Model, calibration: TensorTree = None) -> Scores:
    """The scores that a name stands for.

    Args:
        name: one of `NAMES`.
        groups: the channel groups of `model`.
        model: the model.
        calibration: inputs, arrays `(num_items, …)` as the model takes them; `"activations"` and `"taylor"` need some.

    Raises:
        ValueError: another name, or no data where it is needed.
    """
    check_choice("importance", name, NAMES)
    if name in ("activations", "taylor"):
        if calibration is None:
            remedy = "Give some hundred inputs as calibration=, or take the norms."
            raise ValueError(error_message(f"importance {name!r} needs calibration data", "none", remedy))
        return (activations if name == "activations" else taylor)(groups, model, calibration)
    return {"norms": norms, "scales": batch_normalization_scales, "random": at_random}[name](groups)


def norms(groups: ChannelGroups) -> Scores:
    """The norm of all weights that make a channel times the norm of all that read it, one array `(size,)` a group."""
    made = _sums_by_channel(groups, "makes")
    read = _sums_by_channel(groups, "reads")
    return _by_group(groups, lambda channel: float(np.sqrt(made.get(channel, 1.0) * read.get(channel, 1.0))))


def batch_normalization_scales(groups: ChannelGroups) -> Scores:
    """|γ|, the sum over every BatchNormalization that a channel passes; of groups that pass none their norms.

    Reference:
        Liu et al., Learning Efficient Convolutional Networks through Network Slimming, 2017.
    """
    scales: dict[int, float] = defaultdict(float)
    for layer, widths in groups.widths.values():
        if not isinstance(layer, keras.layers.BatchNormalization) or not layer.scale:
            continue
        gamma = np.abs(ops.convert_to_numpy(layer.gamma).astype("float64"))
        for axis in widths.axes:
            if layer.weights[axis.weight] is layer.gamma:
                for channel, scale in zip(groups.root(axis.channels).tolist(), gamma.tolist(), strict=True):
                    scales[channel] += scale
    return _or_norms(groups, scales)


def activations(groups: ChannelGroups, model: keras.Model, inputs: TensorTree, *, batch_size: int = 128) -> Scores:
    """The mean of |activation| that a channel's readers see on data, times the norm of their weights, summed over them.

    A reader adds at most that to its output on account of the channel, so a channel that is large and that nobody
    listens to counts little.

    Args:
        groups: the channel groups of `model`.
        model: the model, run in inference.
        inputs: arrays `(num_items, …)`, as the model takes them; some hundred items do.
        batch_size: items a pass.
    """
    sums: dict[int, float] = defaultdict(float)
    strengths = {id(layer): _strengths(groups, layer) for layer, _ in groups.widths.values()}
    num_items = 0

    def look(layer: keras.layers.Layer, tensor: Tensor, channels: np.ndarray) -> Tensor:
        places = max(1, int(np.prod(tensor.shape[1:-1])))
        sizes = ops.convert_to_numpy(ops.sum(ops.abs(ops.cast(tensor, "float32")), range(len(tensor.shape) - 1)))
        for channel, size in zip(channels, sizes.astype("float64"), strict=True):
            sums[int(channel)] += size / places * strengths[id(layer)].get(int(channel), 0.0)
        return tensor

    for batch in batches(inputs, batch_size):
        run_looking(model, groups, batch, look)
        num_items += len(keras.tree.flatten(batch)[0])
    return _or_norms(groups, {channel: total / num_items for channel, total in sums.items()})


def taylor(
    groups: ChannelGroups,
    model: keras.Model,
    inputs: TensorTree,
    labels: np.ndarray | None = None,
    *,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
) -> Scores:
    """The mean over examples of (Σ gradient · activation)², with the sum over all places where a channel is read.

    The sum is an example's first-order change of loss when the channel goes. The loss is the cross-entropy with the
    labels. Without labels it is the distillation loss: the cross-entropy with classes drawn, once an example, from the
    teacher's own softened answers. There, where the student still is its teacher, the first-order change of the loss
    itself is zero, and half of this mean of squares is the second-order one (the Fisher information).

    Args:
        groups: the channel groups of `model`.
        model: the model, run in inference, with any head; outputs whose head is not known are taken for logits.
        inputs: arrays `(num_items, …)`, as the model takes them.
        labels: classes, integers `(num_items, …)`, of a model of one output.
        temperature: softens both sides, τ > 0.
        batch_size: items a pass.
        seed: of the classes that are drawn.

    Raises:
        ValueError: labels for a model of several outputs, or not as many as inputs.

    Reference:
        Molchanov et al., Importance Estimation for Neural Network Pruning, 2019, section 3; Theis et al., Faster gaze
        prediction with dense networks and Fisher pruning, 2018.
    """
    check_positive("temperature", temperature)
    heads = [head.activation for head in find_heads(model.outputs)]
    if labels is not None and (len(heads) != 1 or len(labels) != len(keras.tree.flatten(inputs)[0])):
        expectation = "labels must be one for each input, of a model of one output"
        raise ValueError(error_message(expectation, f"{len(labels)} for {len(heads)} outputs", "Leave them out."))
    free = [channel for group in groups.groups.values() if group.is_free for channel in group.channels]
    # Fixed channels share a last place of which nobody asks.
    place_of = {int(channel): place for place, channel in enumerate(free)}
    generator, sums, num_items = np.random.default_rng(seed), np.zeros(len(free)), 0
    seen: set[int] = set()
    for batch in batches((inputs, labels) if labels is not None else (inputs,), batch_size):

        def loss(gates: Tensor, batch: TensorTree = batch) -> Tensor:
            def look(layer: keras.layers.Layer, tensor: Tensor, channels: np.ndarray) -> Tensor:
                seen.update(channels.tolist())
                places = np.array([place_of.get(int(channel), len(free)) for channel in channels])
                gate = ops.take(gates, places, axis=1)
                gate = ops.reshape(gate, (gates.shape[0], *[1] * (len(tensor.shape) - 2), len(channels)))
                return tensor * ops.cast(gate, tensor.dtype)

            outputs = run_looking(model, groups, batch[0], look)
            total = ops.zeros(())
            for output, head in zip(outputs, heads, strict=True):
                logits = logits_of(output, head) if head in (SOFTMAX, SIGMOID) else output
                logits = ops.cast(logits, "float32") / temperature
                total += _cross_entropy(logits, batch[1] if len(batch) > 1 else None, head == SIGMOID, generator)
            return total

        size = len(keras.tree.flatten(batch)[0])
        found = gradient(loss, np.ones((size, len(free) + 1), "float32"))
        sums += np.square(found[:, : len(free)].astype("float64")).sum(axis=0)
        num_items += size
    return _or_norms(
        groups, {channel: sums[place] / num_items for channel, place in place_of.items() if channel in seen}
    )


def at_random(groups: ChannelGroups, seed: int = 0) -> Scores:
    """Scores from 0 to 1 at random: what every other importance must beat."""
    generator = np.random.default_rng(seed)
    return {name: generator.random(group.size) for name, group in groups.groups.items()}


def _cross_entropy(
    logits: Tensor, labels: np.ndarray | None, is_sigmoid: bool, generator: np.random.Generator
) -> Tensor:
    """The sum over a batch; of one unit, or of several that are each yes or no, with labels drawn where none are."""
    if is_sigmoid or logits.shape[-1] == 1:
        if labels is None:
            labels = generator.random(logits.shape).astype("float32") < ops.sigmoid(ops.stop_gradient(logits))
        targets = ops.reshape(ops.cast(labels, "float32"), logits.shape)
        return ops.sum(ops.softplus(logits) - targets * logits)
    if labels is None:
        # The largest of logits plus Gumbel noise is a class drawn from their softmax.
        labels = ops.argmax(ops.stop_gradient(logits) + generator.gumbel(size=logits.shape).astype("float32"), axis=-1)
    labels = ops.reshape(ops.cast(labels, "int32"), logits.shape[:-1])
    return -ops.sum(ops.one_hot(labels, logits.shape[-1]) * ops.log_softmax(logits))


def _strengths(groups: ChannelGroups, layer: keras.layers.Layer) -> dict[int, float]:
    """Of each channel that a layer reads, the norm of the weights that read it."""
    return {channel: total**0.5 for channel, total in _sums_of(groups, layer, "reads")}


def _sums_by_channel(groups: ChannelGroups, role: str) -> dict[int, float]:
    totals: dict[int, float] = defaultdict(float)
    for layer, _ in groups.widths.values():
        for channel, total in _sums_of(groups, layer, role):
            totals[channel] += total
    return totals


def _sums_of(groups: ChannelGroups, layer: keras.layers.Layer, role: str) -> Iterator[tuple[int, float]]:
    """Each channel that a layer has in that role, and the sum of the squares of its weights; once a channel."""
    totals: dict[int, float] = defaultdict(float)
    values = layer.get_weights()
    for axis in groups.widths[id(layer)][1].axes:
        if axis.role == role:
            squares = np.square(np.moveaxis(values[axis.weight], axis.axis, 0).astype("float64"))
            for channel, total in zip(
                groups.root(axis.channels), squares.reshape(len(squares), -1).sum(1), strict=True
            ):
                totals[int(channel)] += float(total)
    yield from totals.items()


def _or_norms(groups: ChannelGroups, scores: Mapping[int, float]) -> Scores:
    """Scores by group; a group of which no channel has any, such as those inside attention, has its norms."""
    by_norm = norms(groups)
    return {
        name: np.array([scores.get(channel, 0.0) for channel in channels])
        if any(channel in scores for channel in channels)
        else by_norm[name]
        for name, channels in ((name, group.channels.tolist()) for name, group in groups.groups.items())
    }


def _by_group(groups: ChannelGroups, score: Callable[[int], float]) -> Scores:
    return {
        name: np.array([score(int(channel)) for channel in group.channels]) for name, group in groups.groups.items()
    }
