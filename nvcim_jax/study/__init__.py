"""Evaluation of the pipeline: methods and baselines on streams whose domain shifts, chip by chip, and their tables."""

from nvcim_jax.study.folder import Incomplete, incomplete, read, run
from nvcim_jax.study.measure import measure
from nvcim_jax.study.mitigation import MITIGATIONS, calibrated, code_importance, curvature, program_selected
from nvcim_jax.study.nearest_text import nearest_text
from nvcim_jax.study.plan import BASELINES, END_TO_END, MOST_CHIPS, Unit, plan
from nvcim_jax.study.protocol import (
    METHODS,
    Method,
    Observed,
    Questions,
    chip_metric,
    make_questions,
    method_config,
    observe_stream,
    retrieve_on_chip,
    tune_one,
)
from nvcim_jax.study.summary import shift_matrix, summarise

__all__ = [
    "BASELINES",
    "END_TO_END",
    "METHODS",
    "MITIGATIONS",
    "MOST_CHIPS",
    "Incomplete",
    "Method",
    "Observed",
    "Questions",
    "Unit",
    "calibrated",
    "chip_metric",
    "code_importance",
    "curvature",
    "incomplete",
    "make_questions",
    "measure",
    "method_config",
    "nearest_text",
    "observe_stream",
    "plan",
    "program_selected",
    "read",
    "retrieve_on_chip",
    "run",
    "shift_matrix",
    "summarise",
    "tune_one",
]
