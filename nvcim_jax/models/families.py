"""What tells the supported Hugging Face families apart, as tables."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from nvcim_jax import checks

__all__ = ["FAMILIES", "Family", "family"]


class Family(NamedTuple):
    """Describe one `model_type` of transformers.

    Attributes:
        keys: Field of `Config` -> key of config.json.
        stems: Parameter -> name of its tensor, less ".weight" or ".bias"; `{i}` is the layer. Parameters that share a
            stem are fused in one tensor, in this order of outputs.
        fixed: Fields of `Config` that hold for every model of the family.
        refused: Key of config.json -> the only value of it that is supported.
        interleaved: Whether a fused tensor runs through its parts once a head, instead of once.
        inputs_first: Whether weights of blocks are stored (inputs, outputs), GPT-2's "Conv1D".
        architecture: Name of the class in transformers.
    """

    keys: Mapping[str, str]
    stems: Mapping[str, str]
    architecture: str
    fixed: Mapping[str, Any] = {}  # never written to
    refused: Mapping[str, Any] = {}
    interleaved: bool = False
    inputs_first: bool = False


KEYS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_width": "intermediate_size",
    "max_tokens": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "activation": "hidden_act",
    "tied": "tie_word_embeddings",
}
"""Names that most families share."""

STEMS = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "model.layers.{i}.input_layernorm",
    "q": "model.layers.{i}.self_attn.q_proj",
    "k": "model.layers.{i}.self_attn.k_proj",
    "v": "model.layers.{i}.self_attn.v_proj",
    "o": "model.layers.{i}.self_attn.o_proj",
    "q_norm": "model.layers.{i}.self_attn.q_norm",
    "k_norm": "model.layers.{i}.self_attn.k_norm",
    "mlp_norm": "model.layers.{i}.post_attention_layernorm",
    "gate": "model.layers.{i}.mlp.gate_proj",
    "up": "model.layers.{i}.mlp.up_proj",
    "down": "model.layers.{i}.mlp.down_proj",
}
"""Tensors of a Llama, which most families follow."""

ALL_BIASES = {"qkv_bias": "attention_bias", "output_bias": "attention_bias"}

GEMMA = {"norm_offset": True}

GEMMA2_STEMS = STEMS | {
    "attention_post_norm": "model.layers.{i}.post_attention_layernorm",
    "mlp_norm": "model.layers.{i}.pre_feedforward_layernorm",
    "mlp_post_norm": "model.layers.{i}.post_feedforward_layernorm",
}

GEMMA2_KEYS = (
    KEYS
    | ALL_BIASES
    | {
        "activation": "hidden_activation",
        "attention_softcap": "attn_logit_softcapping",
        "logit_softcap": "final_logit_softcapping",
    }
)

LAYER_NORM = {"norm": "layer", "gated": False}

GPT2_KEYS = {
    "vocab_size": "vocab_size",
    "width": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "mlp_width": "n_inner",
    "max_tokens": "n_positions",
    "norm_eps": "layer_norm_epsilon",
    "activation": "activation_function",
    "tied": "tie_word_embeddings",
}

GPT2_STEMS = {
    "embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
    "attention_norm": "transformer.h.{i}.ln_1",
    "q": "transformer.h.{i}.attn.c_attn",
    "k": "transformer.h.{i}.attn.c_attn",
    "v": "transformer.h.{i}.attn.c_attn",
    "o": "transformer.h.{i}.attn.c_proj",
    "mlp_norm": "transformer.h.{i}.ln_2",
    "up": "transformer.h.{i}.mlp.c_fc",
    "down": "transformer.h.{i}.mlp.c_proj",
}

NEOX_KEYS = {name: key for name, key in KEYS.items() if name not in {"num_kv_heads", "head_dim"}}

NEOX_STEMS = {
    "embedding": "gpt_neox.embed_in",
    "final_norm": "gpt_neox.final_layer_norm",
    "head": "embed_out",
    "attention_norm": "gpt_neox.layers.{i}.input_layernorm",
    "q": "gpt_neox.layers.{i}.attention.query_key_value",
    "k": "gpt_neox.layers.{i}.attention.query_key_value",
    "v": "gpt_neox.layers.{i}.attention.query_key_value",
    "o": "gpt_neox.layers.{i}.attention.dense",
    "mlp_norm": "gpt_neox.layers.{i}.post_attention_layernorm",
    "up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
    "down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
}

OPT_KEYS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_width": "ffn_dim",
    "max_tokens": "max_position_embeddings",
    "activation": "activation_function",
    "tied": "tie_word_embeddings",
}

OPT_STEMS = {
    "embedding": "model.decoder.embed_tokens",
    "position_embedding": "model.decoder.embed_positions",
    "final_norm": "model.decoder.final_layer_norm",
    "head": "lm_head",
    "attention_norm": "model.decoder.layers.{i}.self_attn_layer_norm",
    "q": "model.decoder.layers.{i}.self_attn.q_proj",
    "k": "model.decoder.layers.{i}.self_attn.k_proj",
    "v": "model.decoder.layers.{i}.self_attn.v_proj",
    "o": "model.decoder.layers.{i}.self_attn.out_proj",
    "mlp_norm": "model.decoder.layers.{i}.final_layer_norm",
    "up": "model.decoder.layers.{i}.fc1",
    "down": "model.decoder.layers.{i}.fc2",
}

PHI_STEMS = STEMS | {
    "final_norm": "model.final_layernorm",
    "o": "model.layers.{i}.self_attn.dense",
    "up": "model.layers.{i}.mlp.fc1",
    "down": "model.layers.{i}.mlp.fc2",
}

PHI3_STEMS = STEMS | {
    "q": "model.layers.{i}.self_attn.qkv_proj",
    "k": "model.layers.{i}.self_attn.qkv_proj",
    "v": "model.layers.{i}.self_attn.qkv_proj",
    "gate": "model.layers.{i}.mlp.gate_up_proj",
    "up": "model.layers.{i}.mlp.gate_up_proj",
}

BIASED = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(KEYS | ALL_BIASES | {"mlp_bias": "mlp_bias"}, STEMS, "LlamaForCausalLM"),
    "mistral": Family(KEYS, STEMS, "MistralForCausalLM"),
    "qwen2": Family(
        {name: key for name, key in KEYS.items() if name != "head_dim"},
        STEMS,
        "Qwen2ForCausalLM",
        fixed={"qkv_bias": True},
    ),
    "qwen3": Family(KEYS | ALL_BIASES, STEMS, "Qwen3ForCausalLM", fixed={"qk_norm": True}),
    "gemma": Family(
        KEYS | ALL_BIASES,
        STEMS,
        "GemmaForCausalLM",
        fixed=GEMMA,
        refused={"use_bidirectional_attention": None},
    ),
    "gemma2": Family(
        GEMMA2_KEYS,
        GEMMA2_STEMS,
        "Gemma2ForCausalLM",
        fixed=GEMMA | {"post_norms": True},
        refused={"use_bidirectional_attention": None},
    ),
    "gemma3_text": Family(
        GEMMA2_KEYS,
        GEMMA2_STEMS,
        "Gemma3ForCausalLM",
        fixed=GEMMA | {"post_norms": True, "qk_norm": True},
        refused={"use_bidirectional_attention": False},
    ),
    "phi": Family(
        {name: key for name, key in KEYS.items() if name != "head_dim"} | {"norm_eps": "layer_norm_eps"},
        PHI_STEMS,
        "PhiForCausalLM",
        fixed=LAYER_NORM | BIASED | {"parallel": True, "shared_norm": True, "head_bias": True},
        refused={"qk_layernorm": False},
    ),
    "phi3": Family({name: key for name, key in KEYS.items() if name != "head_dim"}, PHI3_STEMS, "Phi3ForCausalLM"),
    "gpt2": Family(
        GPT2_KEYS,
        GPT2_STEMS,
        "GPT2LMHeadModel",
        fixed=LAYER_NORM | BIASED | {"positions": "learned"},
        refused={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        inputs_first=True,
    ),
    "opt": Family(
        OPT_KEYS,
        OPT_STEMS,
        "OPTForCausalLM",
        fixed=LAYER_NORM | BIASED | {"positions": "learned", "position_offset": 2, "norm_eps": 1e-5},
        refused={
            "do_layer_norm_before": True,
            "enable_bias": True,
            "layer_norm_elementwise_affine": True,
            "_remove_final_layer_norm": False,
        },
    ),
    "gpt_neox": Family(
        NEOX_KEYS | ALL_BIASES | {"norm_eps": "layer_norm_eps", "parallel": "use_parallel_residual"},
        NEOX_STEMS,
        "GPTNeoXForCausalLM",
        fixed=LAYER_NORM | {"mlp_bias": True},
        interleaved=True,
    ),
}
"""The supported families by `model_type`."""


def family(model_type: str) -> Family:
    """Return the description of a family.

    Args:
        model_type: As in config.json.

    Raises:
        ValueError: If it is not supported; the message lists what is.

    Example:
        >>> family("gpt2").stems["up"]
        'transformer.h.{i}.mlp.c_fc'
    """
    checks.choice("model_type", model_type, FAMILIES)
    return FAMILIES[model_type]
