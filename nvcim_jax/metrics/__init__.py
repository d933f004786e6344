"""Scores and statistics: the official LaMP scores, ROUGE, intervals, forgetting, hit rates."""

from nvcim_jax.metrics.lamp import LAMP_LABELS, lamp_evaluate
from nvcim_jax.metrics.rouge import Rouge, rouge
from nvcim_jax.metrics.scores import accuracy, macro_f1, mean_absolute_error, root_mean_squared_error
from nvcim_jax.metrics.shift import forgetting, hit_rate, previously_seen, previously_seen_mean
from nvcim_jax.metrics.statistics import (
    MeanInterval,
    hierarchical_interval,
    interval,
    paired_interval,
    student_quantile,
)

__all__ = [
    "LAMP_LABELS",
    "MeanInterval",
    "Rouge",
    "accuracy",
    "forgetting",
    "hierarchical_interval",
    "hit_rate",
    "interval",
    "lamp_evaluate",
    "macro_f1",
    "mean_absolute_error",
    "paired_interval",
    "previously_seen",
    "previously_seen_mean",
    "root_mean_squared_error",
    "rouge",
    "student_quantile",
]
