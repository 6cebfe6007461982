"""Students cut from teachers: fewer channels and blocks, the teacher's own weights."""

from keras_distill.pruning.blocks import Block, Blocks, residual_blocks
from keras_distill.pruning.channels import ChannelGroup, ChannelGroups, channel_groups
from keras_distill.pruning.importance import activations, at_random, batch_normalization_scales, norms, taylor
from keras_distill.pruning.prune import kept_channels, prune
from keras_distill.pruning.repair import correct_biases, reestimate_batch_normalization
from keras_distill.pruning.widths import Axis, Widths

__all__ = [
    "Axis",
    "Block",
    "Blocks",
    "ChannelGroup",
    "ChannelGroups",
    "Widths",
    "activations",
    "at_random",
    "batch_normalization_scales",
    "channel_groups",
    "correct_biases",
    "kept_channels",
    "norms",
    "prune",
    "reestimate_batch_normalization",
    "residual_blocks",
    "taylor",
]
