"""Scores and statistics: the official LaMP scores, ROUGE, intervals, forgetting, hit rates."""

from nvcim_jax.metrics.shift import forgetting, hit_rate, previously_seen, previously_seen_mean
from nvcim_jax.metrics.statistics import (
    MeanInterval,
    hierarchical_interval,
    interval,
    paired_interval,
    student_quantile,
)

__all__ = [
    "MeanInterval",
    "forgetting",
    "hierarchical_interval",
    "hit_rate",
    "interval",
    "paired_interval",
    "previously_seen",
    "previously_seen_mean",
    "student_quantile",
]
