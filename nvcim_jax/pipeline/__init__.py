"""NVCiM-PT put together: buffers become prompts in noisy memory, queries find theirs, one objective trains it all."""

from nvcim_jax.pipeline.ageing import compensate_state, drift_state
from nvcim_jax.pipeline.config import Config, Template, crossbar_for
from nvcim_jax.pipeline.memory import Arrays, Correction, Retrieved, program_store, read_prompts, retrieve, search
from nvcim_jax.pipeline.mitigation import MITIGATIONS, calibrated, code_importance, curvature, program_selected
from nvcim_jax.pipeline.nearest_text import nearest_text
from nvcim_jax.pipeline.noise import through_cells, training_noise
from nvcim_jax.pipeline.objective import (
    Batch,
    EndToEnd,
    Trainable,
    objective,
    pipeline_loss,
    train,
    trainable,
    with_trained,
)
from nvcim_jax.pipeline.protocol import (
    METHODS,
    Asked,
    Learned,
    Method,
    ask,
    chip_metric,
    learn,
    methods_config,
    one_prompt,
)
from nvcim_jax.pipeline.saving import load_state, save_state
from nvcim_jax.pipeline.stages import (
    AnswerInfo,
    Buffer,
    ObserveInfo,
    State,
    answer,
    fit_codec,
    init,
    make_buffer,
    make_starts,
    observe,
)
from nvcim_jax.pipeline.store import Capacity, Inserted, Store, capacity, empty_store, insert
from nvcim_jax.pipeline.study import study
from nvcim_jax.pipeline.study_folder import read_study, run_study
from nvcim_jax.pipeline.study_plan import BASELINES, END_TO_END, MOST_CHIPS, Unit, plan
from nvcim_jax.pipeline.summary import shift_matrix, summary
from nvcim_jax.pipeline.text import Queries, label_candidates, make_examples, make_queries, text_features

__all__ = [
    "BASELINES",
    "END_TO_END",
    "METHODS",
    "MITIGATIONS",
    "MOST_CHIPS",
    "AnswerInfo",
    "Arrays",
    "Asked",
    "Batch",
    "Buffer",
    "Capacity",
    "Config",
    "Correction",
    "EndToEnd",
    "Inserted",
    "Learned",
    "Method",
    "ObserveInfo",
    "Queries",
    "Retrieved",
    "State",
    "Store",
    "Template",
    "Trainable",
    "Unit",
    "answer",
    "ask",
    "calibrated",
    "capacity",
    "chip_metric",
    "code_importance",
    "compensate_state",
    "crossbar_for",
    "curvature",
    "drift_state",
    "empty_store",
    "fit_codec",
    "init",
    "insert",
    "label_candidates",
    "learn",
    "load_state",
    "make_buffer",
    "make_examples",
    "make_queries",
    "make_starts",
    "methods_config",
    "nearest_text",
    "objective",
    "observe",
    "one_prompt",
    "pipeline_loss",
    "plan",
    "program_selected",
    "program_store",
    "read_prompts",
    "read_study",
    "retrieve",
    "run_study",
    "save_state",
    "search",
    "shift_matrix",
    "study",
    "summary",
    "text_features",
    "through_cells",
    "train",
    "trainable",
    "training_noise",
    "with_trained",
]
