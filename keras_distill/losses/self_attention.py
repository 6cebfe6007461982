"""MiniLM's relation of tokens: how the queries, keys or values of an attention relate, whatever its heads and width."""

from typing import Any

import keras
from keras import ops

from keras_distill._checks import check_count, error_message
from keras_distill._types import Tensor
from keras_distill.losses.features import FeatureLoss, check_single
from keras_distill.losses.per_example import at_least_float32


def self_attention_relation(
    teacher_features: Tensor, student_features: Tensor, num_relation_heads: int, mask: Tensor = None
) -> Tensor:
    """KL of the two models' relations of each token to all others, the mean over relation heads, in nats.

    The vectors of all attention heads, one after the other, are cut into `num_relation_heads` parts of size d; in each
    the relation is softmax(A·Aᵀ / √d) over the tokens that are no padding.

    Args:
        teacher_features: float `(batch, tokens, heads, size)` or `(batch, tokens, width)`: queries, keys or values.
        student_features: the same of the student; heads, size and width may differ.
        num_relation_heads: > 0, divides both widths.
        mask: `(batch, tokens)`, not 0 at the tokens that are no padding; `None` where all are.

    Returns:
        float `(batch, tokens)`, at least float32; what it says of padding means nothing.

    Example:
        >>> teacher, student = [[[1.0, 0.0], [0.0, 1.0]]], [[[1.0], [1.0]]]  # told apart, and not
        >>> [round(float(nats), 4) for nats in self_attention_relation(teacher, student, 1)[0]]
        [0.0588, 0.0588]

    Reference:
        Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
        Transformers", arXiv:2012.15828, section 3.1, equations 4 to 8.
    """
    teacher, student = (
        _log_relations(features, num_relation_heads, mask) for features in (teacher_features, student_features)
    )
    teacher = ops.cast(teacher, student.dtype)
    divergence = ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)
    return ops.maximum(ops.mean(divergence, axis=1), 0.0)


def _log_relations(features: Tensor, num_relation_heads: int, mask: Tensor) -> Tensor:
    """The logarithm of each token's relation to the others, `(batch, relation heads, tokens, tokens)`."""
    features = at_least_float32(features)
    size = _width(features) // num_relation_heads
    shape = ops.shape(features)
    features = ops.reshape(features, (shape[0], shape[1], num_relation_heads, size))
    products = ops.einsum("bihd,bjhd->bhij", features, features) * size**-0.5
    if mask is not None:
        # Finite, so that a sequence of padding alone has no NaN; far enough for its exponential to be 0.
        products = ops.where(ops.cast(mask, "bool")[:, None, None, :], products, -1e9)
    return ops.log_softmax(products, axis=-1)


def _width(features: Tensor) -> int:
    size = 1
    for part in features.shape[2:]:
        size *= part
    return size


@keras.saving.register_keras_serializable(package="keras_distill")
class SelfAttentionRelation(FeatureLoss):
    """MiniLM v2: the student's tokens relate as the teacher's do, in the queries, keys or values of one attention.

    MiniLM takes three of these, of queries, keys and values, of one layer of the teacher (the last of a base model, the
    last but some of a large one) and the student's last. Teacher and student may differ in heads and width.

    Args:
        teacher_layer_name: the layer that makes the teacher's queries, keys or values: of KerasHub's encoder
            `"transformer_layer_11/self_attention_layer/query"`, or `…/key`, or `…/value`.
        student_layer_name: the student's; `None` takes the teacher's name.
        num_relation_heads: into how many parts both widths are cut; 48 for a teacher of width 768 and 64 for one
            of 1024 in the paper. More heads than attention has are finer, and cost memory:
            `batch · heads · tokens²` numbers for each model.
        mask_layer_name: the student's layer that says which tokens are no padding, as for `Hint`.

    Raises:
        ValueError: `num_relation_heads` is not > 0.

    Example:
        >>> loss = SelfAttentionRelation("layer_11/attention/query", "layer_5/attention/query", num_relation_heads=1)
        >>> round(float(loss.compute_loss([[[1.0, 0.0], [0.0, 1.0]]], [[[1.0], [1.0]]])), 4)
        0.0588

    Reference:
        Wang et al., arXiv:2012.15828, section 3.
    """

    reads = ("mask",)

    def __init__(
        self,
        teacher_layer_name: str | None = None,
        student_layer_name: str | None = None,
        *,
        num_relation_heads: int,
        mask_layer_name: str | None = None,
    ):
        super().__init__(teacher_layer_name, student_layer_name)
        self.num_relation_heads = check_count("num_relation_heads", num_relation_heads)
        self.mask_layer_name = mask_layer_name

    def per_example(self, teacher_outputs: Tensor, student_outputs: Tensor, mask: Tensor = None) -> Tensor:
        """Returns the loss of each token, `(batch, tokens)`; raises `ValueError` for a mask of other tokens."""
        if mask is not None and tuple(mask.shape[1:]) != tuple(student_outputs.shape[1:2]):
            expectation = f"the mask must have shape (batch, {student_outputs.shape[1]}), one entry a token"
            raise ValueError(error_message(expectation, tuple(mask.shape), "Name the layer of the padding mask."))
        return self_attention_relation(teacher_outputs, student_outputs, self.num_relation_heads, mask)

    def validate_outputs(self, teacher_outputs: Tensor, student_outputs: Tensor) -> None:
        """Raises `ValueError` for features without tokens, of other tokens, or of a width that the heads do not cut."""
        check_single(teacher_outputs, student_outputs)
        for who, outputs in (("teacher", teacher_outputs), ("student", student_outputs)):
            shape = tuple(outputs.shape)
            if len(shape) < 3:
                expectation = f"the {who}'s features must have shape (batch, tokens, width)"
                remedy = "Name the layer that makes queries, keys or values, before any pooling."
                raise ValueError(error_message(expectation, shape, remedy))
            if _width(outputs) % self.num_relation_heads:
                expectation = f"num_relation_heads must divide the {who}'s width of {_width(outputs)}"
                raise ValueError(error_message(expectation, self.num_relation_heads))
        theirs, ours = teacher_outputs.shape[1], student_outputs.shape[1]
        if theirs is not None and ours is not None and theirs != ours:
            expectation = f"the student must have the teacher's {theirs} tokens"
            raise ValueError(error_message(expectation, ours, "Give both the same token ids."))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"num_relation_heads": self.num_relation_heads, "mask_layer_name": self.mask_layer_name}
        return {**super().get_config(), **own}
