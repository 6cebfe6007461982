"""Students cut from teachers: fewer channels, the teacher's own weights."""

from keras_distill.pruning.channels import ChannelGroup, ChannelGroups, channel_groups
from keras_distill.pruning.importance import norms
from keras_distill.pruning.prune import prune
from keras_distill.pruning.widths import Axis, Widths

__all__ = ["Axis", "ChannelGroup", "ChannelGroups", "Widths", "channel_groups", "norms", "prune"]
