"""Guided training: the paper's own (Section 3.2: Eq. 10, Eq. 11 and Algorithm 1), and other guidance losses."""

from ibsgl.guidance.algorithm import feature_divergence, guidance_target
from ibsgl.guidance.batch import TrainingBatch
from ibsgl.guidance.classification import classification_loss
from ibsgl.guidance.localization import (
    localization_loss,
    localization_losses,
    other_class,
    saliency_cross_entropy,
)
from ibsgl.guidance.losses import training_losses
from ibsgl.guidance.registry import LOSSES, TEACHERS, GuidanceLoss, Teacher
from ibsgl.guidance.settings import DivergenceSettings, GuidanceSettings

__all__ = [
    "LOSSES",
    "TEACHERS",
    "DivergenceSettings",
    "GuidanceLoss",
    "GuidanceSettings",
    "Teacher",
    "TrainingBatch",
    "classification_loss",
    "feature_divergence",
    "guidance_target",
    "localization_loss",
    "localization_losses",
    "other_class",
    "saliency_cross_entropy",
    "training_losses",
]
