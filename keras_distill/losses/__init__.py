"""Distillation losses: pure functions of teacher's and student's outputs, and thin objects over them."""

from keras_distill.losses.binary import BinarySoftTargets, binary_soft_targets
from keras_distill.losses.decoupled import DecoupledKD, decoupled_divergence, target_classes
from keras_distill.losses.dist import DIST, inter_class_relation, intra_class_relation
from keras_distill.losses.features import AttentionTransfer, Hint, attention_map, attention_transfer, hint
from keras_distill.losses.logit_matching import LogitMatching, logit_matching
from keras_distill.losses.logit_standardization import LogitStandardization, standardized_logits
from keras_distill.losses.per_example import PerExampleLoss
from keras_distill.losses.projector import Projector
from keras_distill.losses.regression import RegressionTargets, regression_targets
from keras_distill.losses.relations import (
    RelationalKD,
    SimilarityPreserving,
    angle_relation,
    distance_relation,
    similarity_preserving,
)
from keras_distill.losses.smoothed_labels import SmoothedLabels
from keras_distill.losses.soft_targets import SoftTargets, member_soft_targets, soft_targets, top_k_soft_targets

__all__ = [
    "DIST",
    "AttentionTransfer",
    "BinarySoftTargets",
    "DecoupledKD",
    "Hint",
    "LogitMatching",
    "LogitStandardization",
    "PerExampleLoss",
    "Projector",
    "RegressionTargets",
    "RelationalKD",
    "SimilarityPreserving",
    "SmoothedLabels",
    "SoftTargets",
    "angle_relation",
    "attention_map",
    "attention_transfer",
    "binary_soft_targets",
    "decoupled_divergence",
    "distance_relation",
    "hint",
    "inter_class_relation",
    "intra_class_relation",
    "logit_matching",
    "member_soft_targets",
    "regression_targets",
    "similarity_preserving",
    "soft_targets",
    "standardized_logits",
    "target_classes",
    "top_k_soft_targets",
]
