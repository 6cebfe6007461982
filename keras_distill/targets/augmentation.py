"""Augmentations that a seed replays: what the student sees in training is, bit for bit, what the teacher labelled.

A *view* of an item is named by two integers, its id and the view's number; together with one seed they fix
every random choice. Nothing depends on the batch that an item is in: the draws are hashes of those integers, and
the arithmetic is either a move of pixels or elementwise.

Run these in a `tf.data` pipeline or eagerly: XLA may fuse a product and a sum into one rounding, and a `tf.function`
folds constants into another order.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill._checks import check_count, check_positive, error_message
from keras_distill._types import Tensor, TensorTree

# SplitMix64's increment and multipliers (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
_INCREMENT, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_NUM_ANGLES = 4096


def hashes(seed: int, ids: Tensor, views: Tensor, num_draws: int) -> tf.Tensor:
    """Random 64-bit integers that depend on `(seed, id, view, draw)` and nothing else.

    Args:
        seed: any integer in [0, 2⁶³).
        ids: integers `(batch,)`.
        views: integers `(batch,)`.
        num_draws: how many are wanted for each item.

    Returns:
        uint64 `(batch, num_draws)`.

    Example:
        >>> bool((hashes(7, [3, 4], [0, 1], 2)[1] == hashes(7, [4], [1], 2)[0]).numpy().all())
        True

    Reference:
        Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 9.
    """
    state = _mix(tf.cast(ids, tf.uint64) * _constant(_INCREMENT) + _mix(tf.cast(seed, tf.uint64) + _constant(1)))
    state = _mix(state + tf.cast(views, tf.uint64) * _constant(_FIRST) + _constant(_INCREMENT))
    steps = tf.cast(tf.range(1, num_draws + 1, dtype=tf.int64), tf.uint64) * _constant(_INCREMENT)
    return _mix(state[:, None] + steps[None, :])


def uniform(seed: int, ids: Tensor, views: Tensor, num_draws: int) -> tf.Tensor:
    """Numbers in [0, 1), multiples of 2⁻²⁴, made of `hashes`; float32 `(batch, num_draws)`."""
    top = tf.bitwise.right_shift(hashes(seed, ids, views, num_draws), tf.constant(40, tf.uint64))
    return tf.cast(tf.cast(top, tf.int64), tf.float32) * np.float32(2.0**-24)


class Shift:
    """Moves an image by whole pixels, up to `max_pixels` in each direction; zeros move in.

    Args:
        max_pixels: the largest move, >= 1.
        exhaustive: view v *is* one of the `(2 · max_pixels + 1)²` moves, so that a store of that many views holds
            them all; otherwise each view of each item is moved at random.
    """

    num_draws = 2

    def __init__(self, max_pixels: int, exhaustive: bool = False):
        self.max_pixels = check_count("max_pixels", max_pixels)
        self.exhaustive = bool(exhaustive)

    @property
    def num_views(self) -> int | None:
        """How many views there are; `None` where any number may be asked for."""
        return (2 * self.max_pixels + 1) ** 2 if self.exhaustive else None

    def apply(self, images: tf.Tensor, draws: tf.Tensor, views: tf.Tensor) -> tf.Tensor:
        """Images `(batch, height, width, …)` moved."""
        side = 2 * self.max_pixels + 1
        if self.exhaustive:
            moves = tf.stack([views // side, views % side], axis=1) - self.max_pixels
        else:
            moves = _whole(draws, side) - self.max_pixels
        return _window(images, -moves[:, 0], -moves[:, 1], images.shape[1], images.shape[2])

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"max_pixels": self.max_pixels, "exhaustive": self.exhaustive}


class Crop:
    """Cuts a window out of an image that has `padding` zeros around it.

    Args:
        height: of the window, pixels.
        width: of the window, pixels.
        padding: zeros added on every side before the cut, pixels.
    """

    num_draws = 2
    num_views = None

    def __init__(self, height: int, width: int, padding: int = 0):
        self.height = check_count("height", height)
        self.width = check_count("width", width)
        self.padding = check_count("padding", padding, 0)

    def apply(self, images: tf.Tensor, draws: tf.Tensor, views: tf.Tensor) -> tf.Tensor:
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

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"height": self.height, "width": self.width, "padding": self.padding}


class Flip:
    """Mirrors half of the views, left to right."""

    num_draws = 1
    num_views = None

    def apply(self, images: tf.Tensor, draws: tf.Tensor, views: tf.Tensor) -> tf.Tensor:
        """Images `(batch, height, width, …)`, some mirrored."""
        mirrored = tf.reshape(draws[:, 0] < 0.5, [-1] + [1] * (len(images.shape) - 1))
        return tf.where(mirrored, tf.reverse(images, axis=[2]), images)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments: none."""
        return {}


class Rotation:
    """Turns an image about its centre, bilinearly; zeros turn in.

    Args:
        max_degrees: the largest turn either way, in (0, 180].
    """

    num_draws = 1
    num_views = None

    def __init__(self, max_degrees: float):
        self.max_degrees = check_positive("max_degrees", max_degrees)
        if self.max_degrees > 180.0:
            raise ValueError(error_message("max_degrees must be <= 180", max_degrees))

    def apply(self, images: tf.Tensor, draws: tf.Tensor, views: tf.Tensor) -> tf.Tensor:
        """Images `(batch, height, width, …)` turned, float32."""
        # Sines from a table: a vectorised sine may differ in its last bit with the place in the batch.
        angles = np.deg2rad(np.linspace(-self.max_degrees, self.max_degrees, _NUM_ANGLES))
        chosen = _whole(draws[:, 0], _NUM_ANGLES)
        sine = tf.gather(np.sin(angles).astype("float32"), chosen)[:, None, None]
        cosine = tf.gather(np.cos(angles).astype("float32"), chosen)[:, None, None]
        height, width = images.shape[1], images.shape[2]
        down = tf.constant(np.arange(height)[None, :, None] - (height - 1) / 2, tf.float32)
        right = tf.constant(np.arange(width)[None, None, :] - (width - 1) / 2, tf.float32)
        row = cosine * down - sine * right + np.float32((height - 1) / 2)
        column = sine * down + cosine * right + np.float32((width - 1) / 2)
        return _bilinear(tf.cast(images, tf.float32), row, column)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"max_degrees": self.max_degrees}


class Mixup:
    """Blends an item with a partner: `share · item + (1 − share) · partner`, share from Beta(alpha, alpha).

    The partner's id follows from the item's id and the view, so it is replayed too. The partner is seen in
    the same view, after the steps before this one; Mixup comes last.

    Args:
        alpha: of the Beta distribution, > 0; 1 is uniform.

    Reference:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv:1710.09412, section 2.
    """

    num_draws = 2
    num_views = None

    def __init__(self, alpha: float = 1.0):
        self.alpha = check_positive("alpha", alpha)

    def shares(self, draws: tf.Tensor) -> tf.Tensor:
        """The item's share of each blend, float32 `(batch,)`, in [0, 1]."""
        return tf.gather(_beta_quantiles(self.alpha), _whole(draws[:, 0], _NUM_ANGLES))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"alpha": self.alpha}


class Augmentation:
    """Steps, one after another, all replayed from one seed.

    Args:
        *steps: `Shift`, `Crop`, `Flip`, `Rotation`; `Mixup` last.
        seed: an integer in [0, 2⁶³).

    Attributes:
        num_views: how many views there are where a step says so, else `None`.

    Example:
        >>> augmentation = Augmentation(Shift(1, exhaustive=True))
        >>> image = tf.reshape(tf.range(9.0), (1, 3, 3))
        >>> augmentation(image, ids=[0], views=[0]).numpy()[0]  # one up, one left
        array([[4., 5., 0.], [7., 8., 0.], [0., 0., 0.]], dtype=float32)
        >>> augmentation.num_views
        9
    """

    def __init__(self, *steps: Any, seed: int = 0):
        if not steps:
            raise ValueError(error_message("steps must hold at least one augmentation", "none"))
        if any(isinstance(step, Mixup) for step in steps[:-1]):
            raise ValueError(
                error_message("Mixup must come last among the steps", [type(step).__name__ for step in steps])
            )
        self.steps = steps
        self.seed = check_count("seed", seed, 0)
        counts = {step.num_views for step in steps} - {None}
        if len(counts) > 1:
            raise ValueError(error_message("exhaustive steps must all have the same number of views", sorted(counts)))
        self.num_views: int | None = counts.pop() if counts else None

    @property
    def mixup(self) -> Mixup | None:
        """The last step if it is a Mixup."""
        return self.steps[-1] if isinstance(self.steps[-1], Mixup) else None

    def __call__(
        self, inputs: TensorTree, ids: Tensor, views: Tensor, partner_inputs: Any = None, num_items: int = 0
    ) -> tf.Tensor:
        """Views of some items.

        Args:
            inputs: `(batch, height, width)` or `(batch, height, width, channels)`.
            ids: integers `(batch,)`.
            views: integers `(batch,)`.
            partner_inputs: with Mixup, the inputs of `partners(ids, views, num_items)`.
            num_items: with Mixup, the length of the data set.

        Returns:
            The augmented inputs.

        Raises:
            ValueError: inputs that are not one array of images, or partners that are missing.
        """
        if isinstance(inputs, (dict, list, tuple)):
            remedy = "Leave the augmentation out."
            received = f"inputs by name ({', '.join(inputs)})" if isinstance(inputs, dict) else f"{len(inputs)} inputs"
            raise ValueError(error_message("an augmentation needs one array of images", received, remedy))
        ids, views = tf.cast(ids, tf.int64), tf.cast(views, tf.int64)
        seen = self._before_mixup(inputs, ids, views)
        if self.mixup is None:
            return seen
        if partner_inputs is None:
            remedy = "Give the data as arrays: a stream cannot look an item up by its id."
            raise ValueError(error_message("partner_inputs must be given for Mixup", None, remedy))
        partner = self._before_mixup(partner_inputs, self.partners(ids, views, num_items), views)
        share = tf.reshape(self.mixup_shares(ids, views), [-1] + [1] * (len(seen.shape) - 1))
        return share * tf.cast(seen, tf.float32) + (1.0 - share) * tf.cast(partner, tf.float32)

    def partners(self, ids: Tensor, views: Tensor, num_items: int) -> tf.Tensor:
        """The ids that Mixup blends with `ids`, int64 `(batch,)`."""
        drawn = hashes(self._step_seed(len(self.steps) - 1), ids, views, 2)[:, 1]
        return tf.cast(tf.math.floormod(drawn, tf.constant(num_items, tf.uint64)), tf.int64)

    def mixup_shares(self, ids: Tensor, views: Tensor) -> tf.Tensor:
        """What share of each blend is the item's own, float32 `(batch,)`; ones without Mixup."""
        if self.mixup is None:
            return tf.ones(tf.shape(ids), tf.float32)
        return self.mixup.shares(uniform(self._step_seed(len(self.steps) - 1), ids, views, 2))

    def get_config(self) -> dict[str, Any]:
        """What a manifest keeps: plain JSON."""
        steps = [{"step": type(step).__name__, **step.get_config()} for step in self.steps]
        return {"seed": self.seed, "steps": steps}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Augmentation":
        """Builds the augmentation that a manifest describes."""
        known = {step.__name__: step for step in (Shift, Crop, Flip, Rotation, Mixup)}
        steps = []
        for step in config["steps"]:
            if step["step"] not in known:
                remedy = "Install the version of keras-distill that labelled the store."
                raise ValueError(
                    error_message(f"an augmentation must be one of {', '.join(known)}", step["step"], remedy)
                )
            steps.append(known[step["step"]](**{name: value for name, value in step.items() if name != "step"}))
        return cls(*steps, seed=config["seed"])

    def _step_seed(self, position: int) -> int:
        # Odd multiples keep the streams of the steps, and of neighbouring seeds, apart.
        return (self.seed * 0x2545F491 + position * 0x9E3779B1) % 2**63

    def _before_mixup(self, inputs: TensorTree, ids: tf.Tensor, views: tf.Tensor) -> tf.Tensor:
        images = tf.convert_to_tensor(inputs)
        for position, step in enumerate(self.steps):
            if isinstance(step, Mixup):
                break
            if len(images.shape) not in (3, 4) or None in images.shape[1:3]:
                remedy = "These augmentations are of images; label other data without."
                received = f"shape {tuple(images.shape)}"
                raise ValueError(
                    error_message("inputs must have shape (batch, height, width[, channels])", received, remedy)
                )
            draws = uniform(self._step_seed(position), ids, views, step.num_draws)
            images = step.apply(images, draws, views)
        return images


def _constant(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint64)


def _mix(state: tf.Tensor) -> tf.Tensor:
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        state = tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, _constant(shift))) * _constant(factor)
    return tf.bitwise.bitwise_xor(state, tf.bitwise.right_shift(state, _constant(31)))


def _whole(draws: tf.Tensor, num_choices: int) -> tf.Tensor:
    """Uniform draws as integers in [0, num_choices), int64."""
    return tf.cast(tf.math.floor(draws * np.float32(num_choices)), tf.int64)


def _window(images: tf.Tensor, top: tf.Tensor, left: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Cuts `height` × `width` at each image's own corner, int64 `(batch,)`; zeros outside the image."""
    rows = top[:, None] + tf.range(height, dtype=tf.int64)
    columns = left[:, None] + tf.range(width, dtype=tf.int64)
    return _pick(
        images, rows[:, :, None] + tf.zeros_like(columns)[:, None], columns[:, None] + tf.zeros_like(rows)[:, :, None]
    )


def _pick(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Pixels at `rows`, `columns`, int64 `(batch, height, width)`; zeros outside the image."""
    num_rows, num_columns = images.shape[1], images.shape[2]
    inside = (rows >= 0) & (rows < num_rows) & (columns >= 0) & (columns < num_columns)
    places = tf.where(inside, rows * num_columns + columns, 0)
    flat = tf.reshape(images, [-1, num_rows * num_columns, *images.shape[3:]])
    picked = tf.gather(flat, places, batch_dims=1)
    inside = tf.reshape(inside, tf.concat([tf.shape(inside), [1] * (len(images.shape) - 3)], axis=0))
    return tf.where(inside, picked, tf.zeros([], images.dtype))


def _bilinear(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    top, left = tf.floor(rows), tf.floor(columns)
    extra = [1] * (len(images.shape) - 3)
    shape = tf.concat([tf.shape(rows), extra], axis=0) if extra else tf.shape(rows)
    below, beside = tf.reshape(rows - top, shape), tf.reshape(columns - left, shape)
    top, left = tf.cast(top, tf.int64), tf.cast(left, tf.int64)
    upper = _pick(images, top, left) * (1.0 - beside) + _pick(images, top, left + 1) * beside
    lower = _pick(images, top + 1, left) * (1.0 - beside) + _pick(images, top + 1, left + 1) * beside
    return upper * (1.0 - below) + lower * below


def _beta_quantiles(alpha: float) -> np.ndarray:
    """Quantiles of Beta(alpha, alpha) at the middles of 4096 equal shares, float32, multiples of 2⁻²⁴."""
    # x = sin²(angle) takes the density's poles at 0 and 1 away: (x · (1 - x))^(a-1) dx ~ (sin · cos)^(2a-1) d(angle).
    angle = (np.arange(1 << 18) + 0.5) * (np.pi / 2 / (1 << 18))
    mass = np.cumsum((np.sin(angle) * np.cos(angle)) ** (2 * alpha - 1))
    middles = (np.arange(_NUM_ANGLES) + 0.5) / _NUM_ANGLES
    return (np.rint(np.sin(np.interp(middles, mass / mass[-1], angle)) ** 2 * 2**24) / 2**24).astype("float32")
