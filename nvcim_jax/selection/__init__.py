"""Domain shift: which samples stand for a buffer, the codes that are stored, and the search that finds them again."""

from nvcim_jax.selection.codec import Codec, codec_identity, codec_init, codec_pca, decode, encode
from nvcim_jax.selection.contrastive import Pairs, fit_contrastive
from nvcim_jax.selection.fit import FitConfig, FitInfo, fit
from nvcim_jax.selection.pick import PICKS, pick, pick_hard, pick_soft, pick_straight_through
from nvcim_jax.selection.representative import (
    Clusters,
    assignment_soft,
    kmeans,
    num_representatives,
    representative,
    representative_soft,
)
from nvcim_jax.selection.search import (
    SSA_WEIGHTS,
    SearchConfig,
    Similarity,
    key_vector,
    num_key_rows,
    pool_tokens,
    query_vector,
    similarity,
)

__all__ = [
    "PICKS",
    "SSA_WEIGHTS",
    "Clusters",
    "Codec",
    "FitConfig",
    "FitInfo",
    "Pairs",
    "SearchConfig",
    "Similarity",
    "assignment_soft",
    "codec_identity",
    "codec_init",
    "codec_pca",
    "decode",
    "encode",
    "fit",
    "fit_contrastive",
    "key_vector",
    "kmeans",
    "num_key_rows",
    "num_representatives",
    "pick",
    "pick_hard",
    "pick_soft",
    "pick_straight_through",
    "pool_tokens",
    "query_vector",
    "representative",
    "representative_soft",
    "similarity",
]
