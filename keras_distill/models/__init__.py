"""What is known of a user's model: its logits and features, how it ends, how it is compiled and loaded."""

from keras_distill.models.forward_pass import ForwardPass, Outputs, forward_pass, logits_model
from keras_distill.models.heads import head_activation

__all__ = ["ForwardPass", "Outputs", "forward_pass", "head_activation", "logits_model"]
