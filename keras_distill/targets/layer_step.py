"""A layer of Keras's as a step of an augmentation: its random numbers come from the view, its pictures from Keras.

The step has a copy of the layer whose `backend.random` and whose seed generators are replaced (`draws.py`); the layer's
own seed plays no part. Nothing is believed of a layer that was not tried: see `Augmentation.check`.
"""

import copy
import inspect
import math
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error_message
from keras_distill._keras_internals import all_layers
from keras_distill._types import Config, Tensor
from keras_distill.models.compilation import compiled, outside_compilation
from keras_distill.targets.draws import DrawingBackend, DrawnSeeds, Draws

# Arithmetic on whole registers and on what is left over may differ in the last bit: of whole blocks nothing is left
# over. On JAX it is also the one size that a layer is compiled for.
BLOCK = 32


class Plan(NamedTuple):
    """How a layer draws for images of one shape.

    Attributes:
        singly: whether it must be run for each item by itself: it draws, or measures, for a whole batch at once.
        num_draws: numbers that a view takes.
        pairs_items: whether it blends an item with another one.
    """

    singly: bool
    num_draws: int
    pairs_items: bool


class LayerStep:
    """A layer as a step.

    Args:
        layer: one of `keras.layers` that augments images, or changes them without chance and without weights.

    Attributes:
        name: the layer's class.
        pairs_items: whether it blends an item with another one, as `keras.layers.MixUp` does.

    Raises:
        ValueError: a layer that has weights, or draws what has no stand-in.
    """

    num_views = None

    def __init__(self, layer: keras.layers.Layer):
        self.name = type(layer).__name__
        if layer.weights:
            raise self.refusal("a layer with weights, which no manifest keeps")
        self.config = _timeless(keras.layers.serialize(layer))
        try:
            self.layer = self.layer_again()
        except (TypeError, ValueError) as error:
            received = "a layer that Keras cannot make again out of the configuration that it gives"
            raise self.refusal(f"{received}: {str(error).splitlines()[-1]}") from error
        self._takes_training = "training" in inspect.signature(self.layer.call).parameters
        self._draws = Draws()
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._compiled: dict[Plan, Callable] = {}
        # A layer draws from one table at a time, while it is traced or run.
        self._lock = Lock()
        for part in all_layers(self.layer):
            if hasattr(getattr(part, "backend", None), "random"):
                part.backend = DrawingBackend(part.backend, self._draws)
            if isinstance(getattr(part, "generator", None), keras.random.SeedGenerator):
                part.generator = DrawnSeeds(self._draws)
        # On pictures that suit most layers; where they do not suit this one, those of the data set will tell.
        try:
            with outside_compilation():
                self.pairs_items = self._asked(5, (32, 32, 3))[1]
        except ValueError:
            self.pairs_items = False

    def plan(self, shape: tuple[int, ...]) -> Plan:
        """How the layer draws for images of a shape, `(height, width[, channels])`.

        Raises:
            ValueError: it cannot be replayed, or does not take such images.
        """
        if shape not in self._plans:
            with outside_compilation():
                self._plans[shape] = self._tried(shape)
        return self._plans[shape]

    def num_draws(self, shape: tuple[int, ...]) -> int:
        """Numbers that a view of an image of a shape takes."""
        return self.plan(shape).num_draws

    def apply(self, images: Tensor, draws: Tensor, views: Tensor) -> Tensor:
        """Images `(batch, height, width[, channels])` as the layer makes them, in its dtype."""
        return self._run(images, draws, None)[0]

    def blend(
        self, images: Tensor, partners: Tensor, draws: Tensor, labels: Tensor | None, partner_labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Images blended with their partners', and the labels as well, `(batch, num_classes)`."""
        pairs = ops.stack([images, partners], axis=1)
        classes = None if labels is None else ops.stack([labels, partner_labels], axis=1)
        return self._run(pairs, draws, classes)

    def get_config(self) -> Config:
        """What a manifest keeps: the layer as Keras writes it down."""
        return {"layer": self.config}

    def layer_again(self) -> keras.layers.Layer:
        """The layer as it was given, but for its name and seed."""
        return keras.layers.deserialize(copy.deepcopy(self.config))

    def refusal(self, received: str) -> ValueError:
        """The error for a layer whose views cannot be made again."""
        remedy = f"Take {self.name} out, or augment beside the teacher, without a store."
        expectation = f"{self.name} must make a view again, bit for bit, of (seed, id, view)"
        return ValueError(error_message(expectation, received, remedy))

    def _run(self, images: Tensor, draws: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Views of images `(batch, height, …)`, or of pairs of them `(batch, 2, height, …)`; whole blocks of items."""
        plan = self.plan(tuple(images.shape[2 if self.pairs_items else 1 :]))
        if plan.pairs_items != self.pairs_items:
            raise self.refusal("a layer that pairs items of some shapes and not of others")
        items = [part for part in (images, draws, labels) if part is not None]
        if keras.config.backend() == "tensorflow":
            made = self._over_items(items, plan, _in_tensorflow)
        elif keras.config.backend() == "jax":
            made = self._in_jax(items, plan)
        else:
            made = _by_blocks(lambda *block: self._over_items(block, plan, _in_python), items)
        return made[0], made[1] if len(made) > 1 else None

    def _in_jax(self, items: Sequence[Tensor], plan: Plan) -> tuple:
        import jax

        def run(*block: Tensor) -> tuple:
            return self._over_items(block, plan, lambda of_one, items: jax.vmap(of_one)(*items))

        if plan not in self._compiled:
            self._compiled[plan] = jax.jit(run)
        try:
            return _by_blocks(self._compiled[plan], items)
        except (jax.errors.JAXTypeError, IndexError, TypeError):
            # RandomCrop, for example, slices at places that a compiler must know.
            self._compiled[plan] = lambda *block: self._over_items(block, plan, _in_python)
        return _by_blocks(self._compiled[plan], items)

    def _over_items(self, items: Sequence[Tensor], plan: Plan, over_items: Callable) -> tuple:
        """The layer's outputs for images, draws and maybe labels: one output, or two."""

        def of_one(image: Tensor, row: Tensor, classes: Tensor | None = None) -> tuple:
            outputs = self._drawn(image if self.pairs_items else image[None], row[None], True, classes)
            return tuple(output[0] for output in outputs)

        if plan.singly:
            return over_items(of_one, items)
        images, draws, labels = (*items, None)[:3]
        if not self.pairs_items:
            return self._drawn(images, draws, False, labels)
        num_items = ops.shape(images)[0]
        # The partners stand behind the items, each as far from its own.
        images, labels = [
            None if part is None else ops.concatenate([part[:, 0], part[:, 1]], axis=0) for part in (images, labels)
        ]
        outputs = self._drawn(images, ops.concatenate([draws, draws], axis=0), False, labels)
        return tuple(output[:num_items] for output in outputs)

    def _drawn(self, images: Tensor, draws: Tensor, singly: bool, labels: Tensor | None) -> tuple:
        with self._lock:
            self._draws.begin(draws, singly)
            return self._called(images, labels)

    def _called(self, images: Tensor, labels: Tensor | None = None) -> tuple:
        """The layer's own call; images without channels get one for its sake."""
        axis = 1 if getattr(self.layer, "data_format", None) == "channels_first" else -1
        is_bare = len(images.shape) == 3
        seen = ops.cast(ops.expand_dims(images, axis) if is_bare else images, self.layer.compute_dtype)
        options = {"training": True} if self._takes_training else {}
        made = self.layer.call(seen if labels is None else {"images": seen, "labels": labels}, **options)
        made, *classes = (made,) if labels is None else (made["images"], made["labels"])
        return (ops.squeeze(made, axis) if is_bare else made, *classes)

    def _tried(self, shape: tuple[int, ...]) -> Plan:
        # Of numbers of items that are no sizes of anything else: what they are in shows which axis is the items'.
        few, _ = self._asked(5, shape)
        many, pairs_items = self._asked(7, shape)
        if len(few) != len(many):
            raise self.refusal("a layer that draws other numbers each time")
        if all(a[:1] == (5,) and b[:1] == (7,) and a[1:] == b[1:] for a, b in zip(few, many, strict=True)):
            num_draws = sum(math.prod(each[1:]) for each in few)
            if pairs_items or self._keeps_items_apart(shape, num_draws):
                return Plan(False, num_draws, pairs_items)
        # By itself an item is a batch of one, or of two with its partner.
        alone, _ = self._asked(2 if pairs_items else 1, shape)
        return Plan(True, sum(math.prod(each) for each in alone), pairs_items)

    def _keeps_items_apart(self, shape: tuple[int, ...], num_draws: int) -> bool:
        """Whether what becomes of an item has nothing to do with the others of its batch."""
        random = np.random.default_rng(0)
        # From dark to bright: `Equalization`, for one, takes the histogram of all images together.
        images = random.random((7, *shape), dtype=np.float32) * np.linspace(1, 255, 7, dtype="float32").reshape(
            -1, *[1] * len(shape)
        )
        draws = random.random((7, num_draws), dtype=np.float32)

        def run(inputs: list[Tensor]) -> Tensor:
            return self._drawn(inputs[0], inputs[1], False, None)[0]

        if keras.config.backend() == "jax":
            # Op by op each would be compiled by itself.
            run = compiled(run)
        whole, alone = (run([ops.convert_to_tensor(part[:n]) for part in (images, draws)]) for n in (7, 1))
        first, only = (ops.convert_to_numpy(each)[0].astype("float64") for each in (whole, alone))
        return np.allclose(first, only, rtol=1e-3, atol=1e-3 * np.abs(only).max(), equal_nan=True)

    def _asked(self, num_items: int, shape: tuple[int, ...]) -> tuple[list[tuple], bool]:
        """The shapes of all that the layer draws for some images, and whether it pairs them."""
        images = ops.convert_to_tensor(np.random.default_rng(0).random((num_items, *shape), dtype=np.float32))
        with self._lock:
            self._draws.record()
            try:
                _only_traced(self._called, images)
            except Exception as error:
                if isinstance(error, AttributeError) and "no stand-in" in str(error):
                    raise self.refusal(f"a layer that draws from {error}") from error
                received = f"images of shape {shape}, of which it says: {error}"
                raise ValueError(error_message(f"the images must be such as {self.name} takes", received)) from error
            return self._draws.shapes, self._draws.pairs_items


def _only_traced(function: Callable, images: Tensor) -> None:
    if keras.config.backend() == "jax":
        import jax

        jax.eval_shape(function, images)
    else:
        function(images)


def _by_blocks(run: Callable, items: Sequence[Tensor]) -> tuple:
    """`run` over so many items at a time as it was compiled for, `BLOCK`; NumPy's arrays."""
    arrays = [np.asarray(part) for part in items]
    blocks = [run(*(part[at : at + BLOCK] for part in arrays)) for at in range(0, len(arrays[0]), BLOCK)]
    return tuple(np.concatenate([ops.convert_to_numpy(part) for part in parts]) for parts in zip(*blocks, strict=True))


def _in_python(of_one: Callable, items: Sequence[Tensor]) -> tuple:
    each = [of_one(*(ops.convert_to_tensor(part) for part in item)) for item in zip(*items, strict=True)]
    return tuple(np.stack([ops.convert_to_numpy(part) for part in parts]) for parts in zip(*each, strict=True))


def _in_tensorflow(of_one: Callable, items: Sequence[Tensor]) -> tuple:
    import tensorflow as tf

    # What one item becomes, which a loop must know beforehand.
    specs = [tf.TensorSpec(part.shape[1:], part.dtype) for part in items]
    made = tf.function(of_one, autograph=False).get_concrete_function(*specs).structured_outputs
    signature = tuple(tf.TensorSpec(part.shape, part.dtype) for part in made)
    return tf.map_fn(lambda item: of_one(*item), tuple(items), fn_output_signature=signature)


def _timeless(config: Any) -> Any:
    """A layer's configuration without what differs from process to process: its name, and seeds that play no part."""
    if isinstance(config, (list, tuple)):
        return [_timeless(part) for part in config]
    if not isinstance(config, dict):
        return config
    # A dtype policy has a name too, and that one says what it is.
    is_layer = "trainable" in config
    kept = {name: _timeless(part) for name, part in config.items() if not (is_layer and name == "name")}
    return {name: None if name == "seed" else part for name, part in kept.items() if name != "build_config"}
