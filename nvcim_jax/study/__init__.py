"""Evaluation of the pipeline: methods and baselines on streams whose domain shifts, chip by chip, and their tables."""

from nvcim_jax.study.folder import Incomplete, incomplete, read, run
from nvcim_jax.study.measure import measure
from nvcim_jax.study.methods import METHODS, Method, method_config, trial
from nvcim_jax.study.mitigation import calibrated, code_importance, corrected_memory, curvature, program_selected
from nvcim_jax.study.nearest_text import nearest_text
from nvcim_jax.study.plan import BASELINES, END_TO_END, MOST_CHIPS, Design, Unit, plan
from nvcim_jax.study.protocol import (
    Questions,
    chip_metric,
    make_questions,
    observe_stream,
    retrieve_on_chip,
    tune_one,
)
from nvcim_jax.study.summary import shift_matrix, summarise
from nvcim_jax.study.trained import Session

__all__ = [
    "BASELINES",
    "END_TO_END",
    "METHODS",
    "MOST_CHIPS",
    "Design",
    "Incomplete",
    "Method",
    "Questions",
    "Session",
    "Unit",
    "calibrated",
    "chip_metric",
    "code_importance",
    "corrected_memory",
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
    "trial",
    "tune_one",
]
