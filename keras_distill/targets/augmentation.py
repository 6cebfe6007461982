"""Augmentations that a seed replays: what the student sees in training is, bit for bit, what the teacher labelled.

A *view* of an item is named by two integers, its id and the view's number; together with one seed they fix every
random choice. Nothing depends on the batch that an item is in: the draws are hashes of those integers (`hashes.py`),
and the arithmetic is that of Keras's own layers (`layer_step.py`) or a move of pixels.

On TensorFlow run these eagerly or in a `tf.data` pipeline: XLA may fuse a product and a sum into one rounding.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import check_count, error_message
from keras_distill._types import Config, Tensor, TensorTree
from keras_distill.targets.hashes import hashes, modulo, uniform
from keras_distill.targets.layer_step import BLOCK, LayerStep

# Views that are made twice before a store trusts an augmentation: more than a block, and no multiple of one.
_NUM_TRIED = 40
_NOW_KERAS = {
    "Flip": 'keras.layers.RandomFlip("horizontal")',
    "Rotation": "keras.layers.RandomRotation",
    "Mixup": "keras.layers.MixUp",
}


class Shift:
    """Moves an image by whole pixels, up to `max_pixels` in each direction; zeros move in.

    Args:
        max_pixels: the largest move, >= 1.
        exhaustive: view v *is* one of the `(2 · max_pixels + 1)²` moves, so that a store of that many views holds
            them all; otherwise each view of each item is moved at random.
    """

    pairs_items = False

    def __init__(self, max_pixels: int, exhaustive: bool = False):
        self.max_pixels = check_count("max_pixels", max_pixels)
        self.exhaustive = bool(exhaustive)

    @property
    def num_views(self) -> int | None:
        """How many views there are; `None` where any number may be asked for."""
        return (2 * self.max_pixels + 1) ** 2 if self.exhaustive else None

    def num_draws(self, shape: tuple[int, ...]) -> int:
        """Numbers that a view takes."""
        return 2

    def apply(self, images: Tensor, draws: Tensor, views: Tensor) -> Tensor:
        """Images `(batch, height, width, …)` moved."""
        side = 2 * self.max_pixels + 1
        if self.exhaustive:
            moves = ops.cast(ops.stack([views // side, views % side], axis=1), "int32") - self.max_pixels
        else:
            moves = _whole(draws, side) - self.max_pixels
        return _window(images, -moves[:, 0], -moves[:, 1], images.shape[1], images.shape[2])

    def get_config(self) -> Config:
        """What a manifest keeps."""
        return {"step": "Shift", "max_pixels": self.max_pixels, "exhaustive": self.exhaustive}


class Crop:
    """Cuts a window out of an image that has `padding` zeros around it.

    `keras.layers.RandomCrop` pads nothing, and cuts one image after the other: this cuts a batch at once.

    Args:
        height: of the window, pixels.
        width: of the window, pixels.
        padding: zeros added on every side before the cut, pixels.
    """

    num_views = None
    pairs_items = False

    def __init__(self, height: int, width: int, padding: int = 0):
        self.height = check_count("height", height)
        self.width = check_count("width", width)
        self.padding = check_count("padding", padding, 0)

    def num_draws(self, shape: tuple[int, ...]) -> int:
        """Numbers that a view takes."""
        return 2

    def apply(self, images: Tensor, draws: Tensor, views: Tensor) -> Tensor:
        """Windows `(batch, self.height, self.width, …)` of the images."""
        room = [images.shape[axis] + 2 * self.padding - size for axis, size in ((1, self.height), (2, self.width))]
        if min(room) < 0:
            received = f"{self.height} × {self.width}"
            remedy = "Crop less, or pad more."
            expected = (
                f"be no larger than the padded image, {images.shape[1]} × {images.shape[2]} + {self.padding} a side"
            )
            raise ValueError(error_message(f"the crop must {expected}", received, remedy))
        top = _whole(draws[:, 0], room[0] + 1) - self.padding
        left = _whole(draws[:, 1], room[1] + 1) - self.padding
        return _window(images, top, left, self.height, self.width)

    def get_config(self) -> Config:
        """What a manifest keeps."""
        return {"step": "Crop", "height": self.height, "width": self.width, "padding": self.padding}


class Augmentation:
    """Steps, one after another, all replayed from one seed.

    Args:
        *steps: `Shift`, `Crop`, and layers of Keras's that augment images, of which `MixUp` or `CutMix` comes last. A
            layer's own seed plays no part.
        seed: an integer in [0, 2⁶³).

    Attributes:
        num_views: how many views there are where a step says so, else `None`.
        pairs_items: whether an item is blended with another one.

    Raises:
        ValueError: a layer that cannot be replayed, by name.

    Example:
        >>> augmentation = Augmentation(Shift(1, exhaustive=True))
        >>> image = np.arange(9.0, dtype="float32").reshape(1, 3, 3)
        >>> np.asarray(augmentation(image, ids=[0], views=[0])[0])  # one up, one left
        array([[4., 5., 0.], [7., 8., 0.], [0., 0., 0.]], dtype=float32)
        >>> augmentation.num_views
        9
        >>> flip = Augmentation(keras.layers.RandomFlip("horizontal"), seed=1)
        >>> np.asarray(flip(image, ids=[2], views=[0])[0])  # the third item is mirrored, the first is not
        array([[2., 1., 0.], [5., 4., 3.], [8., 7., 6.]], dtype=float32)
    """

    def __init__(self, *steps: Any, seed: int = 0):
        if not steps:
            raise ValueError(error_message("steps must hold at least one augmentation", "none"))
        self.steps = [
            LayerStep(step) if isinstance(step, keras.layers.Layer) else step for step in _without_pipelines(steps)
        ]
        if any(step.pairs_items for step in self.steps[:-1]):
            names = [getattr(step, "name", type(step).__name__) for step in self.steps]
            raise ValueError(error_message("what blends items with others must come last among the steps", names))
        self.seed = check_count("seed", seed, 0)
        counts = {step.num_views for step in self.steps if step.num_views is not None}
        if len(counts) > 1:
            raise ValueError(error_message("exhaustive steps must all have the same number of views", sorted(counts)))
        self.num_views: int | None = counts.pop() if counts else None
        self.pairs_items: bool = self.steps[-1].pairs_items

    def __reduce__(self) -> tuple:
        return Augmentation.from_config, (self.get_config(),)

    def __call__(
        self,
        inputs: TensorTree,
        ids: Tensor,
        views: Tensor,
        partner_inputs: Tensor | None = None,
        num_items: int = 0,
    ) -> Tensor:
        """Views of some items.

        Args:
            inputs: `(batch, height, width)` or `(batch, height, width, channels)`.
            ids: integers `(batch,)`.
            views: integers `(batch,)`.
            partner_inputs: where `pairs_items`, the inputs of `partners(ids, views, num_items)`.
            num_items: where `pairs_items`, the length of the data set.

        Returns:
            The augmented inputs: tensors on TensorFlow, elsewhere tensors or NumPy's arrays.

        Raises:
            ValueError: inputs that are not one array of images, or partners that are missing.
        """
        return self._made(inputs, ids, views, partner_inputs, num_items, None, None)[0]

    def with_labels(
        self,
        inputs: Tensor,
        ids: Tensor,
        views: Tensor,
        partner_inputs: Tensor,
        num_items: int,
        labels: Tensor,
        partner_labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Where `pairs_items`: the views, and labels that are blended as the items are, `(batch, num_classes)`."""
        return self._made(inputs, ids, views, partner_inputs, num_items, labels, partner_labels)

    def partners(self, ids: Tensor, views: Tensor, num_items: int) -> Tensor:
        """The ids of the items that `ids` are blended with, int64 `(batch,)`."""
        # A stream of its own: a layer's draws are of the same seed, and begin with the first.
        return modulo(hashes(self._step_seed(len(self.steps)), ids, views, 2)[:, 1], num_items)

    def check(self, shape: tuple[int, ...], dtype: Any) -> str:
        """Makes views of a sample twice, in other batches, and tells what they are.

        Args:
            shape: of an image, `(height, width[, channels])`.
            dtype: of its pixels.

        Returns:
            32 hexadecimal digits: of another version of Keras, or on another backend, they may be others.

        Raises:
            ValueError: a layer whose views are not the same twice, by name.
        """
        made = self._of_sample(shape, dtype, _NUM_TRIED)
        again = Augmentation.from_config(self.get_config())._of_sample(shape, dtype, 7)
        if not np.array_equal(made, again):
            for step in self.steps:
                if isinstance(step, LayerStep) and len(self.steps) > 1:
                    Augmentation(step.layer_again(), seed=self.seed).check(shape, dtype)
            last = self.steps[-1]
            raise last.refusal("another picture the second time") if isinstance(last, LayerStep) else AssertionError
        return hashlib.sha256(np.ascontiguousarray(made[:16]).tobytes()).hexdigest()[:32]

    def get_config(self) -> Config:
        """What replays it: plain JSON."""
        return {"seed": self.seed, "steps": [step.get_config() for step in self.steps]}

    @classmethod
    def from_config(cls, config: Config) -> "Augmentation":
        """Builds the augmentation that a manifest describes.

        Raises:
            ValueError: a step that this version does not know.
        """
        return cls(*map(_step_from, config["steps"]), seed=config["seed"])

    def _step_seed(self, position: int) -> int:
        # Odd multiples keep the streams of the steps, and of neighbouring seeds, apart.
        return (self.seed * 0x2545F491 + position * 0x9E3779B1) % 2**63

    def _of_sample(self, shape: tuple[int, ...], dtype: Any, batch_size: int) -> np.ndarray:
        """Views of made-up images, bright and dark, in batches of a size; on TensorFlow out of a pipeline."""
        ids, views = np.arange(_NUM_TRIED), np.arange(_NUM_TRIED) % 3
        pixels = np.asarray(uniform(0, ids, views * 0, int(np.prod(shape)))).reshape(-1, *shape)
        # Layers take pixels in [0, 1] or in [0, 255]: of floating-point images every second one is of either kind.
        is_whole = np.issubdtype(np.dtype(dtype), np.integer)
        scale = np.where((ids % 2 == 0) | is_whole, 255.0, 1.0).astype("float32").reshape(-1, *[1] * len(shape))
        images = (pixels * scale).astype(dtype)
        partners = np.asarray(self.partners(ids, views, _NUM_TRIED)) if self.pairs_items else ids

        def of_batch(images: Tensor, ids: Tensor, views: Tensor, partner_images: Tensor) -> Tensor:
            return self(images, ids, views, partner_images if self.pairs_items else None, _NUM_TRIED)

        parts = images, ids, views, images[partners]
        if keras.config.backend() == "tensorflow" and batch_size < _NUM_TRIED:
            import tensorflow as tf

            pipeline = tf.data.Dataset.from_tensor_slices(parts).batch(batch_size).map(of_batch)
            return np.concatenate(list(pipeline.as_numpy_iterator()))
        starts = range(0, _NUM_TRIED, batch_size)
        made = [of_batch(*(part[at : at + batch_size] for part in parts)) for at in starts]
        return np.concatenate([ops.convert_to_numpy(part) for part in made])

    def _made(
        self,
        inputs: TensorTree,
        ids: Tensor,
        views: Tensor,
        partner_inputs: Tensor | None,
        num_items: int,
        labels: Tensor | None,
        partner_labels: Tensor | None,
    ) -> tuple[Tensor, Any]:
        if isinstance(inputs, (dict, list, tuple)):
            remedy = "Leave the augmentation out."
            received = f"inputs by name ({', '.join(inputs)})" if isinstance(inputs, dict) else f"{len(inputs)} inputs"
            raise ValueError(error_message("an augmentation needs one array of images", received, remedy))
        if len(inputs.shape) not in (3, 4) or None in inputs.shape[1:3]:
            remedy = "These augmentations are of images; label other data without."
            received = f"shape {tuple(inputs.shape)}"
            raise ValueError(
                error_message("inputs must have shape (batch, height, width[, channels])", received, remedy)
            )
        if self.pairs_items and partner_inputs is None:
            remedy = "Give the data as arrays: a stream cannot look an item up by its id."
            expectation = f"partner_inputs must be given for {self.steps[-1].name}"
            raise ValueError(error_message(expectation, None, remedy))
        ids, views = (part if hasattr(part, "dtype") else np.asarray(part) for part in (ids, views))
        parts = inputs, ids, views, partner_inputs, labels, partner_labels
        if keras.config.backend() == "tensorflow":
            return self._in_tensorflow(*parts, num_items=num_items)
        return self._made_of(*(None if part is None else np.asarray(part) for part in parts), num_items=num_items)

    @cached_property
    def _in_tensorflow(self) -> Any:
        import tensorflow as tf

        # A graph of its own wherever it is called: TensorFlow moves products and sums about in a graph, others in a
        # pipeline than outside, and then a last bit differs.
        apart = {"_noinline": True}
        # Behind a partial TensorFlow does not count the traces of other augmentations as this one's, and warn.
        return tf.function(
            partial(self._made_of), reduce_retracing=True, autograph=False, experimental_attributes=apart
        )

    def _made_of(
        self,
        images: Tensor,
        ids: Tensor,
        views: Tensor,
        partner_images: Tensor | None,
        labels: Tensor | None,
        partner_labels: Tensor | None,
        *,
        num_items: int,
    ) -> tuple[Tensor, Any]:
        num_wanted = ops.shape(images)[0]
        partner_ids = self.partners(ids, views, num_items) if self.pairs_items else None
        whole: tuple = ids, views, images, partner_images, partner_ids, labels, partner_labels
        if any(isinstance(step, LayerStep) for step in self.steps):
            whole = tuple(None if part is None else _whole_blocks(part) for part in whole)
        ids, views, images, partner_images, partner_ids, labels, partner_labels = whole
        steps = self.steps[:-1] if self.pairs_items else self.steps
        images = self._stepped(steps, images, ids, views)
        if self.pairs_items:
            partner_images = self._stepped(steps, partner_images, partner_ids, views)
            draws = self._drawn(len(steps), images, ids, views)
            images, labels = self.steps[-1].blend(images, partner_images, draws, labels, partner_labels)
        return images[:num_wanted], None if labels is None else labels[:num_wanted]

    def _stepped(self, steps: Sequence[Any], images: Tensor, ids: Tensor, views: Tensor) -> Tensor:
        for position, step in enumerate(steps):
            images = step.apply(images, self._drawn(position, images, ids, views), views)
        return images

    def _drawn(self, position: int, images: Tensor, ids: Tensor, views: Tensor) -> Tensor:
        num_draws = self.steps[position].num_draws(tuple(images.shape[1:]))
        return uniform(self._step_seed(position), ids, views, num_draws)


def _without_pipelines(steps: Sequence[Any]) -> list[Any]:
    """Steps, those of a `keras.layers.Pipeline` in its place: each draws for itself."""
    flat = []
    for step in steps:
        flat += _without_pipelines(step.layers) if isinstance(step, keras.layers.Pipeline) else [step]
    return flat


def _step_from(config: Config) -> Any:
    if "layer" in config:
        return keras.layers.deserialize(config["layer"])
    name = config["step"]
    if name in _NOW_KERAS:
        remedy = f"{_NOW_KERAS[name]} took its place and draws otherwise: label again."
        raise ValueError(error_message("an augmentation must be one that this version replays", name, remedy))
    known = {"Shift": Shift, "Crop": Crop}
    if name not in known:
        remedy = "Install the version of keras-distill that labelled the store."
        raise ValueError(error_message(f"an augmentation must be one of {', '.join(known)}", name, remedy))
    return known[name](**{key: value for key, value in config.items() if key != "step"})


def _whole_blocks(part: Tensor) -> Tensor:
    """A batch filled up with zeros to a multiple of `BLOCK` items."""
    missing = -ops.shape(part)[0] % BLOCK
    if isinstance(part, np.ndarray):
        return np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)])
    return ops.concatenate([part, ops.zeros((missing, *part.shape[1:]), part.dtype)], axis=0)


def _whole(draws: Tensor, num_choices: int) -> Tensor:
    """Uniform draws as integers in [0, num_choices), int32."""
    return ops.cast(ops.floor(draws * np.float32(num_choices)), "int32")


def _window(images: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Cuts `height` × `width` at each image's own corner, int32 `(batch,)`; zeros outside the image."""
    num_rows, num_columns = images.shape[1], images.shape[2]
    rows = (top[:, None] + ops.arange(height, dtype="int32"))[:, :, None]
    columns = (left[:, None] + ops.arange(width, dtype="int32"))[:, None, :]
    is_inside = (rows >= 0) & (rows < num_rows) & (columns >= 0) & (columns < num_columns)
    # Places among the pixels of all images, in one line.
    first = ops.arange(ops.shape(images)[0], dtype="int32")[:, None, None] * (num_rows * num_columns)
    places = ops.where(is_inside, first + rows * num_columns + columns, first)
    picked = ops.take(ops.reshape(images, (-1, *images.shape[3:])), places, axis=0)
    if len(images.shape) > 3:
        is_inside = is_inside[..., None]
    return ops.where(is_inside, picked, ops.zeros((), images.dtype))
