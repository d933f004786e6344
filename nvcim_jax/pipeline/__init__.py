"""NVCiM-PT put together: buffers become prompts in noisy memory, queries find theirs, one objective trains it all."""

from nvcim_jax.pipeline.ageing import compensate_state, drift_state
from nvcim_jax.pipeline.config import Config, crossbar_for
from nvcim_jax.pipeline.memory import Arrays, Correction, Retrieved, program_store, read_prompts, retrieve, search
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
from nvcim_jax.pipeline.text import Queries, label_candidates, make_examples, make_queries, text_features

__all__ = [
    "AnswerInfo",
    "Arrays",
    "Batch",
    "Buffer",
    "Capacity",
    "Config",
    "Correction",
    "EndToEnd",
    "Inserted",
    "ObserveInfo",
    "Queries",
    "Retrieved",
    "State",
    "Store",
    "Trainable",
    "answer",
    "capacity",
    "compensate_state",
    "crossbar_for",
    "drift_state",
    "empty_store",
    "fit_codec",
    "init",
    "insert",
    "label_candidates",
    "make_buffer",
    "make_examples",
    "make_queries",
    "make_starts",
    "objective",
    "observe",
    "pipeline_loss",
    "program_store",
    "read_prompts",
    "retrieve",
    "search",
    "text_features",
    "through_cells",
    "train",
    "trainable",
    "training_noise",
    "with_trained",
]
