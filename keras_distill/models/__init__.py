"""What is known of a user's model: logits and features, how it ends, what it costs, how it is compiled and loaded."""

from keras_distill.models.forward_pass import ForwardPass, Outputs, forward_pass, logits_model
from keras_distill.models.heads import head_activation
from keras_distill.models.multiply_adds import multiply_adds
from keras_distill.models.strings import preprocess_strings

__all__ = [
    "ForwardPass",
    "Outputs",
    "forward_pass",
    "head_activation",
    "logits_model",
    "multiply_adds",
    "preprocess_strings",
]
