"""`prune`: a model with fewer channels and the teacher's own weights."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np

from keras_distill._checks import check_count, check_number, error_message
from keras_distill._keras_internals import functional_graph, input_structure
from keras_distill._types import Config, TensorTree
from keras_distill.models.layer_roles import is_readable
from keras_distill.pruning.blocks import without_blocks
from keras_distill.pruning.channels import ChannelGroup, ChannelGroups, channel_groups
from keras_distill.pruning.importance import importance_by_name, norms
from keras_distill.pruning.input_size import with_smaller_input
from keras_distill.pruning.repair import repair as repair_on_data
from keras_distill.pruning.widths import Rule, Widths

# Of a group: the share of its places (float), how many (int), or which. A place is a channel, or what goes as one.
Keep: TypeAlias = float | int | Sequence[int]


def prune(
    teacher: keras.Model,
    keep: float | Mapping[str, Keep] = 1.0,
    *,
    drop_blocks: str | Sequence[str] = (),
    input_scale: float = 1.0,
    importance: str | Mapping[str, np.ndarray] = "scales",
    calibration: TensorTree = None,
    repair: bool = False,
    multiple_of: int = 1,
    rules: Mapping[type | str, Rule] | None = None,
) -> keras.Model:
    """A plain Keras model of the teacher's layer classes with fewer channels and blocks and the teacher's weights.

    It answers as the teacher would if everything that reads the dropped channels had zero weights. The teacher is not
    changed. What no rule knows keeps its width: `channel_groups(teacher).kept_whole` names it.

    Args:
        teacher: a functional or Sequential model, built.
        keep: the share of the channels of every free group, in (0, 1]; or for groups by name a share (float), a count
            (int) or the places of the channels, where groups that are not named stay whole.
        drop_blocks: names from `residual_blocks(teacher)`, or `"every second"` of those that are alike. Groups are
            those of what is left.
        input_scale: puts a resize of height and width in front, in (0, 1]; of networks that are convolutional up to a
            global pooling.
        importance: which channels stay, those of the highest scores: `"scales"` of BatchNormalization and, where there
            is none, norms; `"norms"` of the weights that make and that read a channel, `"activations"`, `"taylor"` or
            `"random"` (see `importance.py`); or for each group an array of scores, one a channel.
        calibration: inputs, arrays `(num_items, …)` as the teacher takes them, for `"activations"`, `"taylor"` and
            `repair`; some hundred do.
        repair: whether biases and the statistics of BatchNormalization are put right on `calibration`.
        multiple_of: of shares and counts, widths are rounded up to multiples of it in channels, never beyond the
            teacher's. Heads of attention are no channels: their number is not rounded.
        rules: rules for layers of your own, by their class.

    Raises:
        ValueError: for a model without a graph, a group or block that is not there, a group that is fixed, a share or
            count out of range, an input that cannot be smaller, or no calibration data where they are needed.

    Example:
        >>> import keras
        >>> layers = [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
        >>> prune(keras.Sequential(layers), 0.25).count_params()
        19
    """
    check_count("multiple_of", multiple_of)
    if repair and calibration is None:
        raise ValueError(error_message("repair needs calibration data", "none", "Give inputs as calibration=."))
    # The teacher's own layers, so that their weights are in memory once.
    whole = without_blocks(teacher, drop_blocks) if len(drop_blocks) else teacher
    whole = with_smaller_input(whole, input_scale) if input_scale != 1.0 else whole
    groups = channel_groups(whole, rules=rules)
    scores = importance
    if isinstance(scores, str):
        scores = importance_by_name(scores, groups, whole, calibration)
    kept = kept_channels(groups, keep, scores, multiple_of)
    student = _rebuilt(whole, groups, kept)
    if repair:
        repair_on_data(student, whole, groups, kept, calibration)
    return student


def kept_channels(
    groups: ChannelGroups,
    keep: float | Mapping[str, Keep],
    importance: Mapping[str, np.ndarray] | None = None,
    multiple_of: int = 1,
) -> set[int]:
    """The channels that stay, by number, as `ChannelGroups.root` gives it."""
    wanted = _wanted(groups, keep)
    scores = norms(groups) if importance is None else importance
    kept: set[int] = set()
    for group in groups.groups.values():
        places = np.arange(group.size)
        if group.name in wanted:
            if group.name not in scores or np.shape(scores[group.name]) != (group.size,):
                raise ValueError(
                    error_message(
                        f"importance must have {group.size} scores for group {group.name!r}",
                        np.shape(scores.get(group.name, ())),
                    )
                )
            places = _places(group, wanted[group.name], np.asarray(scores[group.name]), multiple_of)
        kept.update(int(channel) for channel in group.channels[places])
    return kept


def _wanted(groups: ChannelGroups, keep: float | Mapping[str, Keep]) -> Mapping[str, Keep]:
    free = [group.name for group in groups.groups.values() if group.is_free]
    if not isinstance(keep, Mapping):
        share = check_number("keep", keep)
        if not 0.0 < share <= 1.0:
            raise ValueError(error_message("keep must be in (0, 1]", keep, "0.25 keeps a quarter of the channels."))
        return dict.fromkeys(free, share)
    for name in keep:
        if name not in free:
            expectation = "keep must name free groups"
            raise ValueError(error_message(expectation, repr(name), f"There are: {', '.join(free) or 'none'}."))
    return keep


def _places(group: ChannelGroup, keep: Keep, scores: np.ndarray, multiple_of: int) -> np.ndarray:
    """Which places of a group stay, in their order."""
    if isinstance(keep, (Sequence, np.ndarray)):
        places = np.unique(np.asarray(keep, dtype=int))
        if not places.size or places[0] < 0 or places[-1] >= group.size:
            expectation = f"group {group.name!r} must keep places between 0 and {group.size - 1}, at least one"
            raise ValueError(error_message(expectation, list(keep)))
        return places
    if isinstance(keep, (int, np.integer)) and not isinstance(keep, bool):
        count = int(keep)
    else:
        share = check_number(f"keep[{group.name!r}]", keep)
        if not 0.0 < share <= 1.0:
            raise ValueError(error_message(f"keep[{group.name!r}] must be a share in (0, 1]", keep))
        count = max(1, round(share * group.size))
    if not 1 <= count <= group.size:
        expectation = f"group {group.name!r} must keep between 1 and {group.size} channels"
        raise ValueError(error_message(expectation, count))
    best = np.argsort(-scores, kind="stable")
    # What each tensor would have of channels for every count of places, from the one that was asked for.
    widths = np.cumsum(group.widths[:, best], axis=1)[:, count - 1 :]
    is_multiple = np.all(widths % multiple_of == 0, axis=0)
    count = count + int(is_multiple.argmax()) if is_multiple.any() else group.size
    return np.sort(best[:count])


def _rebuilt(teacher: keras.Model, groups: ChannelGroups, kept: set[int]) -> keras.Model:
    clones: dict[int, Any] = {}
    staying = np.fromiter(kept, dtype=int, count=len(kept))

    def stays(channels: np.ndarray) -> np.ndarray:
        return np.isin(groups.root(channels), staying)

    def clone(layer: Any) -> Any:
        if id(layer) not in clones:
            if is_readable(layer):
                inputs = _narrower_inputs(layer, [int(stays(part).sum()) for part in groups.inputs_of[id(layer)]])
                clones[id(layer)] = keras.models.clone_model(layer, inputs, clone_function=clone)
            else:
                known = groups.widths.get(id(layer))
                clones[id(layer)] = _copy(layer, known[1] if known is not None else None, stays)
        return clones[id(layer)]

    pruned = keras.models.clone_model(teacher, clone_function=clone)
    for layer in _layers_with_weights(teacher):
        values = layer.get_weights()
        known = groups.widths.get(id(layer))
        # A weight that is made and read along one axis (a tied table) is cut once.
        axes = {(axis.weight, axis.axis): axis.channels for axis in known[1].axes} if known is not None else {}
        for (weight, axis), channels in axes.items():
            values[weight] = np.compress(stays(channels), values[weight], axis=axis)
        clones[id(layer)].set_weights(values)
    return pruned


def _narrower_inputs(model: keras.Model, widths: Sequence[int]) -> TensorTree:
    """New symbolic inputs for a model inside a model, as many channels wide as what it is given."""
    inputs = [
        keras.Input(batch_shape=(*tensor.shape[:-1], width), dtype=tensor.dtype, name=tensor.name)
        if len(tensor.shape) > 1 and tensor.shape[-1] is not None
        else keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)
        for tensor, width in zip(functional_graph(model).inputs, widths, strict=True)
    ]
    return (
        inputs[0]
        if isinstance(model, keras.Sequential)
        else keras.tree.pack_sequence_as(input_structure(model), inputs)
    )


def _copy(layer: Any, widths: Widths | None, stays: Any) -> Any:
    """A new layer of the same class and configuration, narrower; refused where Keras cannot rebuild it."""
    try:
        with warnings.catch_warnings():
            # That a lambda in a file may do harm: this one is not read from a file.
            warnings.filterwarnings("ignore", "(?s).*lambda", UserWarning)
            config = layer.get_config()
    except (TypeError, ValueError, NotImplementedError) as error:
        raise _not_rebuilt(layer) from error
    for entry in ("layer", "backward_layer"):
        # Wrappers keep the shapes that what they wrap was built on; it is built anew.
        if isinstance(config.get(entry), dict):
            config[entry].pop("build_config", None)
    config = config if widths is None else _narrowed(config, widths, stays)
    # Some layers (KerasHub's ViTPatchingAndEmbedding) write down more than their constructor takes.
    for entries in (config, _taken(config, layer)):
        try:
            return type(layer).from_config(entries)
        except (TypeError, ValueError, NotImplementedError) as error:
            refusal = error
    raise _not_rebuilt(layer) from refusal


def _taken(config: Config, layer: Any) -> Config:
    constructors = [vars(kind)["__init__"] for kind in type(layer).__mro__[:-1] if "__init__" in vars(kind)]
    names = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
    return {entry: value for entry, value in config.items() if entry in names | {"name", "trainable", "dtype"}}


def _not_rebuilt(layer: Any) -> ValueError:
    return ValueError(
        error_message(
            "pruning rebuilds each layer from its configuration",
            f"{layer.name!r} ({type(layer).__name__}), which Keras cannot rebuild",
            "Use a named function in place of a lambda, and give your own layers get_config().",
        )
    )


def _layers_with_weights(model: keras.Model) -> list[Any]:
    """Every layer that was cloned by itself: of nested graphs their layers, of wrappers the whole."""
    found: list[Any] = []
    for layer in model.layers:
        found.extend(_layers_with_weights(layer) if is_readable(layer) else [layer])
    return [layer for layer in found if layer.weights]


def _narrowed(config: Config, widths: Widths, stays: Any) -> Config:
    for path, channels in widths.config.items():
        *outer, entry = path.split(".")
        place = config
        for part in outer:
            place = place[part]
        count = int(stays(channels).sum())
        # A shape ends in its width; everything else is the width.
        place[entry] = (*place[entry][:-1], count) if isinstance(place[entry], (tuple, list)) else count
    return config
