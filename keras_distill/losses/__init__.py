"""Distillation losses: pure functions of teacher's and student's outputs, and thin objects over them."""

from keras_distill.losses.alpha_beta import AlphaBetaDivergence, alpha_beta_divergence
from keras_distill.losses.binary import BinarySoftTargets, binary_soft_targets
from keras_distill.losses.decoupled import DecoupledKD, decoupled_divergence, target_classes
from keras_distill.losses.dist import DIST, inter_class_relation, intra_class_relation
from keras_distill.losses.features import AttentionTransfer, attention_map, attention_transfer
from keras_distill.losses.hints import CosineDistance, Hint, cosine_distance, hint
from keras_distill.losses.logit_matching import LogitMatching, logit_matching
from keras_distill.losses.logit_standardization import LogitStandardization, standardized_logits
from keras_distill.losses.multi_level import MultiLevelLogits, batch_correlation, class_correlation
from keras_distill.losses.per_example import PerExampleLoss
from keras_distill.losses.projector import Projector
from keras_distill.losses.refined_logits import RefinedLogits, masked_correlation, sample_confidence
from keras_distill.losses.regression import RegressionTargets, regression_targets
from keras_distill.losses.relations import (
    RelationalKD,
    SimilarityPreserving,
    angle_relation,
    distance_relation,
    similarity_preserving,
)
from keras_distill.losses.self_attention import SelfAttentionRelation, self_attention_relation
from keras_distill.losses.smoothed_labels import SmoothedLabels
from keras_distill.losses.soft_targets import (
    SoftTargets,
    member_soft_targets,
    sampled_soft_targets,
    soft_targets,
    top_k_soft_targets,
)
from keras_distill.losses.transformed_teacher import TransformedTeacherMatching, transformed_teacher_divergence

__all__ = [
    "DIST",
    "AlphaBetaDivergence",
    "AttentionTransfer",
    "BinarySoftTargets",
    "CosineDistance",
    "DecoupledKD",
    "Hint",
    "LogitMatching",
    "LogitStandardization",
    "MultiLevelLogits",
    "PerExampleLoss",
    "Projector",
    "RefinedLogits",
    "RegressionTargets",
    "RelationalKD",
    "SelfAttentionRelation",
    "SimilarityPreserving",
    "SmoothedLabels",
    "SoftTargets",
    "TransformedTeacherMatching",
    "alpha_beta_divergence",
    "angle_relation",
    "attention_map",
    "attention_transfer",
    "batch_correlation",
    "binary_soft_targets",
    "class_correlation",
    "cosine_distance",
    "decoupled_divergence",
    "distance_relation",
    "hint",
    "inter_class_relation",
    "intra_class_relation",
    "logit_matching",
    "masked_correlation",
    "member_soft_targets",
    "regression_targets",
    "sample_confidence",
    "sampled_soft_targets",
    "self_attention_relation",
    "similarity_preserving",
    "soft_targets",
    "standardized_logits",
    "target_classes",
    "top_k_soft_targets",
    "transformed_teacher_divergence",
]
