"""Domain shift: which samples stand for a buffer, the codes that are stored, and the search that finds them again."""

from nvcim_jax.selection.pick import PICKS, pick, pick_hard, pick_soft, pick_straight_through
from nvcim_jax.selection.search import (
    SSA_WEIGHTS,
    SearchConfig,
    key_vector,
    num_key_rows,
    pool,
    pool_tokens,
    query_vector,
    scores,
)

__all__ = [
    "PICKS",
    "SSA_WEIGHTS",
    "SearchConfig",
    "key_vector",
    "num_key_rows",
    "pick",
    "pick_hard",
    "pick_soft",
    "pick_straight_through",
    "pool",
    "pool_tokens",
    "query_vector",
    "scores",
]
