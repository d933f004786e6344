"""NVCiM-PT put together: buffers become prompts in noisy memory, queries find theirs, one objective trains it all."""

from nvcim_jax.pipeline.answer import answer, choose, rank, write
from nvcim_jax.pipeline.config import Config
from nvcim_jax.pipeline.memory import (
    Memory,
    compensate_state,
    crossbar_memory,
    drift_state,
    exact_memory,
)
from nvcim_jax.pipeline.objective import Batch, EndToEnd, objective, train
from nvcim_jax.pipeline.observe import State, init, observe, tune_rows
from nvcim_jax.pipeline.presets import Preset, presets
from nvcim_jax.pipeline.retrieval import matrices, program_store, read_prompts, retrieve, search
from nvcim_jax.pipeline.store import Store, capacity
from nvcim_jax.pipeline.text import make_buffer, make_queries, stack_buffers

__all__ = [
    "Batch",
    "Config",
    "EndToEnd",
    "Memory",
    "Preset",
    "State",
    "Store",
    "answer",
    "capacity",
    "choose",
    "compensate_state",
    "crossbar_memory",
    "drift_state",
    "exact_memory",
    "init",
    "make_buffer",
    "make_queries",
    "matrices",
    "objective",
    "observe",
    "presets",
    "program_store",
    "rank",
    "read_prompts",
    "retrieve",
    "search",
    "stack_buffers",
    "train",
    "tune_rows",
    "write",
]
